//! The CUDA kernels: tiles and thread blocks in waves over multiprocessors; see `kernels/cuda/launch.rs`, `shape.rs` and
//! the `.cu` files.
//!
//! A grid is launched for everything that could be active, up to a few thread blocks a multiprocessor; counts are read on
//! the device, and what finds nothing to do ends. Tiles are chosen by what could be active, their number by what is.

mod gemm;

pub use gemm::{GemmTile, gemm_thread_blocks, gemm_tile};

use super::{Kind, Sizes, Work, flag};
use crate::DeviceFacts;
use crate::workload::{DType, Op, Route, Workload};
use gemm::{Gemm, TILES, choose, parts, place};

/// Vectors of a step of a sum.
const STEP: f64 = 4.0;
/// Rows that a thread of a mean reads of a part at least.
const MEAN_ROWS: f64 = 4.0;
/// Thread blocks a multiprocessor at most, of kernels that go on to further work.
const BLOCKS: f64 = 8.0;
/// Thread blocks that share a multiprocessor where threads are all that counts.
const RESIDENT: f64 = 6.0;
/// Shared cache where nobody says, bytes.
const USUAL_L2_BYTES: f64 = 4194304.0;
/// Side of a patch that a gate is timed with, pixels.
const PATCH: u32 = 4;

/// Elements of a vector of 16 bytes.
fn vector(dtype: DType) -> u32 {
    16 / dtype.bytes()
}

/// `a / b` rounded up.
fn up(a: f64, b: f64) -> f64 {
    (a / b.max(1.0)).ceil()
}

/// How the work of a call lies on the device.
struct Spread {
    /// Thread blocks that are launched, and pieces of work for them.
    launched: f64,
    pieces: f64,
    /// Pieces of the busiest multiprocessor, one after the other if each has it to itself.
    busiest: f64,
    /// Rounds in which all thread blocks that fit run at once.
    waves: f64,
    /// Steps of a piece that wait for each other.
    serial: f64,
}

impl Spread {
    fn new(facts: &DeviceFacts, (launched, pieces): (f64, f64), resident: f64, serial: f64) -> Self {
        let cores = f64::from(facts.cores);
        let (busiest, waves) = (up(pieces, cores), up(pieces, cores * resident));
        Self { launched, pieces, busiest, waves, serial }
    }

    /// Thread blocks of 256 threads, each thread taking one of `tasks` after the other; `most` tasks could there be.
    fn threads(facts: &DeviceFacts, tasks: f64, most: f64) -> Self {
        let launched = up(most, 256.0).min(BLOCKS * f64::from(facts.cores)).max(1.0);
        let pieces = up(tasks, 256.0).min(launched);
        Self::new(facts, (launched, pieces), RESIDENT, up(tasks, 256.0 * launched))
    }

    fn idle(&self) -> f64 {
        (self.launched - self.pieces).max(0.0)
    }

    /// One behind the other.
    fn then(self, next: Self) -> Self {
        let waves = self.waves + next.waves;
        let serial = (self.waves * self.serial + next.waves * next.serial) / waves.max(1.0);
        Self {
            launched: self.launched + next.launched,
            pieces: self.pieces + next.pieces,
            busiest: self.busiest + next.busiest,
            waves,
            serial,
        }
    }

    fn of(w: &Workload, facts: &DeviceFacts) -> Self {
        let batch = f64::from(w.batch);
        let n = f64::from(vector(w.dtype));
        let rows = f64::from(w.rows);
        // Vectors of a pixel, and whether a call moves whole ones.
        let chunks = |c: u32, in_runs: bool| match c.is_multiple_of(vector(w.dtype)) && in_runs {
            true => f64::from(c) / n,
            false => f64::from(c),
        };
        let runs = !w.c_out_listed || w.group_size.is_multiple_of(vector(w.dtype));
        let mean = || {
            let blocks = up(w.c_in.into(), 64.0) * batch;
            let lines = 4.0 * n;
            let idle = (f64::from(facts.cores) / blocks.max(1.0)).floor();
            let parts = idle.min((w.pixels() as f64 / batch / (MEAN_ROWS * lines)).floor()).max(1.0);
            let pieces = up(w.c_in_active, 64.0) * batch * parts;
            Self::new(facts, (blocks * parts, pieces), RESIDENT, up(rows / batch / parts, lines))
        };
        let linear = |c_in: f64, c_out: f64, samples: f64| {
            let blocks = up(c_out, 8.0) * up(samples, 8.0);
            Self::new(facts, (blocks, blocks), RESIDENT, up(c_in, 128.0) * samples.min(8.0))
        };
        let pass = |c: u32, runs: bool| {
            Self::threads(facts, rows * chunks(c, runs), w.pixels() as f64 * chunks(c, runs))
        };
        match w.op {
            Op::GatherGemm => {
                let gemm = Gemm::of(w);
                let tile = choose(&gemm, w, facts);
                let most = gemm.tiles(w, w.pixels() as f64, &tile);
                let jobs = if gemm.listed { batch } else { 1.0 };
                let parts = parts(&gemm, w, &tile, facts);
                let launched = jobs * (most * parts / jobs).min(BLOCKS * f64::from(facts.cores));
                let active = Gemm { group_out: gemm.active_out, ..gemm };
                let room = match facts.l2_bytes {
                    0 => f64::from(tile.resident),
                    bytes => (bytes as f64 / f64::from(tile.shared)).floor().max(1.0),
                };
                let resident = f64::from(tile.resident).min(room);
                let steps = up(tile.steps(w, active.taps, active.inputs), parts);
                Self::new(facts, (launched, active.tiles(w, rows, &tile) * parts), resident, steps)
            }
            Op::Depthwise => pass(w.c_out, runs),
            Op::MaxPool | Op::PadChannels => pass(w.c_out, true),
            Op::MeanPool => mean(),
            Op::SqueezeExcite => {
                let (c, q) = (f64::from(w.c_in), f64::from(w.c_out));
                mean().then(linear(c, q, batch)).then(linear(q, c, batch)).then(pass(w.c_in, true))
            }
            Op::PatchGate => {
                let cells = batch * f64::from(w.in_h.div_ceil(PATCH)) * f64::from(w.in_w.div_ceil(PATCH));
                let values = f64::from(PATCH * PATCH) * chunks(w.c_in, true);
                Self::new(facts, (cells, cells), RESIDENT, up(values, 128.0))
            }
            Op::Linear => linear(w.c_in.into(), w.c_out.into(), rows),
            Op::FromNchw | Op::ToNchw => {
                let blocks = up(w.pixels() as f64 / batch, 32.0) * up(w.c_in.into(), 32.0) * batch;
                Self::new(facts, (blocks, blocks), RESIDENT, 4.0)
            }
            Op::Compact => {
                let map = f64::from(w.in_h) * f64::from(w.in_w);
                let serial = up(map, 512.0) + up(w.pixels() as f64, 512.0) + up(batch, 512.0);
                Self::new(facts, (batch, batch), 2.0, serial)
            }
            Op::Overhead => Self::new(facts, (0.0, 0.0), 1.0, 0.0),
        }
    }
}

/// What the rest may depend on besides what it does on a CPU.
pub(super) fn features(w: &Workload, facts: &DeviceFacts) -> [f32; 4] {
    let Spread { pieces, waves, serial, .. } = Spread::of(w, facts);
    let full = pieces / (waves * f64::from(facts.cores)).max(1.0);
    let kind = if w.op == Op::GatherGemm { place(&gemm_tile(w, facts)) } else { 0 };
    [waves.max(1.0).ln() as f32, full as f32, serial.max(1.0).ln() as f32, kind as f32]
}

pub(super) fn fill(w: &Workload, facts: &DeviceFacts, work: &mut Work) {
    let s = Sizes::of(w, facts);
    let spread = Spread::of(w, facts);
    let l2 = if facts.l3_bytes == 0 { USUAL_L2_BYTES } else { facts.l3_bytes as f64 };
    let outside = (1.0 - l2 / s.bytes().max(1.0)).max(0.0);
    let each = |amount: f64| amount / f64::from(facts.cores);
    let steps = spread.waves * spread.serial;
    if w.op == Op::GatherGemm {
        gather_gemm(w, facts, &spread, work);
    } else {
        let products = match w.op {
            Op::Linear | Op::SqueezeExcite => s.rows.min(w.batch.into()) * w.c_in_active * w.c_out_active,
            _ => s.rows * s.taps * w.c_out_active,
        };
        work.add(
            Kind::Compute,
            &[steps, each(spread.pieces * spread.serial), each(products), steps * s.taps],
        );
    }
    work.add(Kind::Compute, &[spread.waves, spread.busiest, steps * s.cold]);
    work.add(
        Kind::Memory,
        &[
            s.input,
            s.input * outside,
            s.reached,
            s.output,
            s.output * outside,
            s.output * flag(w.residual),
            s.weights,
            s.weights * s.cold,
            s.weights * outside,
        ],
    );
    let gathered = flag(w.route != Route::Dense);
    let lists = flag(w.c_in_listed) * w.c_in_active + flag(w.c_out_listed) * w.c_out_active;
    work.add(
        Kind::Gather,
        &[
            each(s.rows * gathered),
            each(s.rows * s.taps * gathered),
            each(f64::from(w.runs) * gathered),
            f64::from(w.batch) * lists,
            each(spread.launched),
            each(spread.idle()),
            w.batch.into(),
        ],
    );
    work.add(Kind::Launch, &[1.0, s.cold]);
}

/// Tiles: padded multiply-accumulates, operands on their way, ends.
fn gather_gemm(w: &Workload, facts: &DeviceFacts, spread: &Spread, work: &mut Work) {
    let gemm = Gemm::of(w);
    let tile = choose(&gemm, w, facts);
    let (rows, columns) = (f64::from(tile.rows), f64::from(tile.columns));
    let parts = parts(&gemm, w, &tile, facts);
    let depth = STEP * if tile.tensor_cores { f64::from(vector(w.dtype)) } else { 4.0 };
    let of_tile = rows * columns * depth * spread.serial;
    let each = |amount: f64| amount / f64::from(facts.cores);
    let mut macs = [0.0; TILES];
    macs[place(&tile)] = spread.busiest * of_tile;
    work.add(Kind::Compute, &macs);
    let (waits, ends) = (spread.waves * spread.serial, spread.busiest * rows * columns);
    let n = vector(w.dtype);
    // Weights of active channels are read one by one where they are no whole vectors.
    let scattered = w.c_in_listed && !w.group_size.is_multiple_of(if tile.tensor_cores { n } else { 4 });
    work.add(
        Kind::Compute,
        &[
            each(spread.pieces * of_tile),
            waits,
            waits * flag(tile.tensor_cores),
            spread.busiest * rows,
            ends,
            ends * flag(w.residual),
        ],
    );
    // Parts are stored and read again; the last one to come to a tile adds them up.
    let cut = flag(parts > 1.0);
    work.add(Kind::Compute, &[ends * cut, spread.waves * parts * cut, rows * columns * parts * cut]);
    work.add(Kind::Memory, &[2.0 * spread.pieces * rows * columns * cut]);
    let loaded = spread.pieces * spread.serial * (rows + columns) * depth * f64::from(w.dtype.bytes());
    work.add(Kind::Memory, &[loaded, each(loaded)]);
    let skipped = (gemm.tiles(w, w.rows.into(), &tile) * parts - spread.pieces).max(0.0);
    work.add(
        Kind::Gather,
        &[
            spread.busiest * spread.serial * columns * depth * flag(w.c_in_listed),
            spread.busiest * spread.serial * columns * depth * flag(scattered),
            ends * flag(w.c_out_listed),
            each(skipped),
        ],
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learned::terms;

    pub(super) fn facts() -> DeviceFacts {
        DeviceFacts::example_gpu("test")
    }

    pub(super) fn call(op: Op, side: u32, c: u32, batch: u32) -> Workload {
        let mut w = Workload::new(op, side, side, c, c);
        (w.batch, w.rows, w.runs) = (batch, batch * side * side, batch * side);
        if op == Op::Depthwise {
            w.groups = c;
        }
        w
    }

    #[test]
    fn amounts_are_numbers_as_many_for_every_call_of_a_kernel() {
        for op in Op::ALL {
            let expected = terms::count(op, &facts());
            for dtype in [DType::F32, DType::Tf32, DType::F16, DType::Bf16] {
                for (side, c, batch) in [(1, 1, 1), (7, 64, 4), (56, 96, 128), (3, 7, 2), (112, 3, 1)] {
                    for (share, listed) in [(1.0, false), (0.0, true), (0.3, true)] {
                        let mut w = Workload { dtype, ..call(op, side, c, batch) };
                        w.rows = (f64::from(w.rows) * share) as u32;
                        w.runs = w.runs.min(w.rows);
                        (w.c_in_listed, w.c_out_listed) = (listed, listed);
                        w.c_in_active *= share;
                        w.c_out_active *= share;
                        let amounts = Work::of(&w, &facts()).amounts;
                        assert_eq!(amounts.len(), expected, "{w}");
                        assert!(amounts.iter().all(|a| a.is_finite() && *a >= 0.0), "{w}: {amounts:?}");
                        let amounts = Work::of(&w, &facts()).amounts;
                        let coefficients = vec![0.1; amounts.len()];
                        let mut row = terms::Features::new();
                        terms::features(&w, &facts(), &amounts, &coefficients, &mut row);
                        assert!(row.iter().all(|f| f.is_finite()), "{w}: {row:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn more_waves_cost_more() {
        for op in [Op::GatherGemm, Op::Depthwise, Op::MeanPool, Op::PatchGate, Op::SqueezeExcite] {
            let mut before: Option<Vec<f64>> = None;
            // One tile shape for all of them.
            for batch in [64, 128, 256, 512] {
                let w = Workload { dtype: DType::F16, ..call(op, 28, 128, batch) };
                let amounts = Work::of(&w, &facts()).amounts.to_vec();
                if let Some(before) = before.replace(amounts.clone()) {
                    let pairs = || before.iter().zip(&amounts);
                    assert!(pairs().all(|(less, more)| less <= more), "{op}: {before:?}, {amounts:?}");
                    assert!(pairs().filter(|(less, more)| less < more).count() > 5, "{op}");
                }
            }
        }
        // A tile more than run at once is a wave more.
        let with = |tiles: u32| {
            let mut w = Workload::new(Op::GatherGemm, 128, 265, 64, 128);
            (w.dtype, w.route, w.rows) = (DType::F16, Route::Implicit, 128 * tiles);
            w.runs = w.rows;
            let tile = gemm_tile(&w, &facts());
            assert_eq!((tile.rows, tile.columns, tile.resident), (128, 128, 2));
            Spread::of(&w, &facts())
        };
        assert_eq!([with(264).waves, with(265).waves], [1.0, 2.0]);
        assert_eq!(with(1).idle(), 264.0, "launched for what could be active");
    }

    #[test]
    fn sums_are_cut_where_multiprocessors_are_idle() {
        let of = |side, kernel, c, batch| {
            let w = Workload { dtype: DType::F16, kernel, ..call(Op::GatherGemm, side, c, batch) };
            let spread = Spread::of(&w, &facts());
            assert_eq!(f64::from(spread.pieces as u32), gemm_thread_blocks(&w, &facts()));
            (spread.pieces, spread.serial)
        };
        // 16 tiles with 72 steps; 8 tiles with 144, of which a part has no fewer than there are parts.
        assert_eq!(of(14, 3, 256, 1), (16.0 * 8.0, 9.0));
        assert_eq!(of(7, 3, 512, 1), (8.0 * 12.0, 12.0));
        assert_eq!(of(7, 1, 64, 1), (1.0, 2.0));
        assert_eq!(of(28, 3, 128, 1).0, 26.0 * 5.0);
        assert_eq!(of(56, 3, 256, 8), (196.0, 72.0), "there are no idle ones");
    }
}
