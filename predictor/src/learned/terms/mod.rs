//! What a call does, counted from its numbers and the tile of the kernels: amounts of work that each have a time a unit,
//! and the features that the rest may depend on.

pub(super) mod cuda;
mod depthwise;
mod gather_gemm;
mod pooling;
mod simple;
mod tiles;

use std::iter::repeat_n;

use smallvec::SmallVec;

use super::Parts;
use crate::workload::{Cache, Op, Workload};
use crate::{DeviceFacts, DeviceKind};

/// 1 where something is, 0 where it is not.
fn flag(is: bool) -> f64 {
    f64::from(u8::from(is))
}

/// Bytes of the cache that a core has to itself; a usual size where nobody says.
fn near_bytes(facts: &DeviceFacts) -> f64 {
    if facts.l2_bytes == 0 { 1048576.0 } else { facts.l2_bytes as f64 }
}

/// What an amount of work is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Compute,
    Memory,
    Gather,
    Launch,
}

/// What the rest may depend on.
pub(super) type Features = Vec<f32>;

/// What one call does: amounts of work under their kinds; calls of one kernel have the same number of them.
pub(super) struct Work {
    op: Op,
    pub(super) amounts: Vec<f64>,
    /// How many amounts in a row are of one kind.
    kinds: SmallVec<[(Kind, usize); 8]>,
}

impl Work {
    pub(super) fn of(workload: &Workload, facts: &DeviceFacts) -> Self {
        let mut work = Self::default();
        work.count(workload, facts);
        work
    }

    /// Becomes what `workload` does.
    pub(super) fn count(&mut self, workload: &Workload, facts: &DeviceFacts) {
        self.op = workload.op;
        self.amounts.clear();
        self.kinds.clear();
        fill(workload, facts, self);
    }

    fn add<const N: usize>(&mut self, kind: Kind, amounts: &[f64; N]) {
        self.amounts.extend_from_slice(amounts);
        self.kinds.push((kind, N));
    }

    /// Which part, in the order of [`Parts`], each amount belongs to.
    fn part_indices(&self) -> impl Iterator<Item = usize> {
        self.kinds.iter().flat_map(|&(kind, count)| repeat_n(part(self.op, kind), count))
    }

    /// Times of the amounts, by the parts they belong to.
    pub(super) fn parts(&self, coefficients: &[f64]) -> Parts {
        let mut ns = [0.0; 6];
        for ((part, amount), each) in self.part_indices().zip(&self.amounts).zip(coefficients) {
            ns[part] += amount * each;
        }
        let [compute_ns, memory_ns, gather_ns, gate_ns, compaction_ns, launch_ns] = ns;
        Parts { compute_ns, memory_ns, gather_ns, gate_ns, compaction_ns, launch_ns }
    }
}

impl Default for Work {
    fn default() -> Self {
        Self { op: Op::Overhead, amounts: Vec::new(), kinds: SmallVec::new() }
    }
}

/// Number of amounts that calls of a kernel have.
pub(super) fn count(op: Op, facts: &DeviceFacts) -> usize {
    Work::of(&Workload::new(op, 1, 1, 1, 1), facts).amounts.len()
}

/// Which part, in the order of [`Parts`], each of a kernel's amounts belongs to.
pub(super) fn part_indices(op: Op, facts: &DeviceFacts) -> Vec<usize> {
    Work::of(&Workload::new(op, 1, 1, 1, 1), facts).part_indices().collect()
}

/// All that a gate does is its own part, and so is compaction.
fn part(op: Op, kind: Kind) -> usize {
    match (op, kind) {
        (Op::PatchGate, _) => 3,
        (Op::Compact, _) => 4,
        (_, Kind::Compute) => 0,
        (_, Kind::Memory) => 1,
        (_, Kind::Gather) => 2,
        (_, Kind::Launch) => 5,
    }
}

fn fill(workload: &Workload, facts: &DeviceFacts, work: &mut Work) {
    if facts.kind == DeviceKind::Cuda {
        return cuda::fill(workload, facts, work);
    }
    match workload.op {
        Op::GatherGemm if tiles::runs(facts) => tiles::fill(workload, facts, work),
        Op::GatherGemm => gather_gemm::fill(workload, facts, work),
        Op::Depthwise => depthwise::fill(workload, facts, work),
        Op::MeanPool | Op::MaxPool | Op::SqueezeExcite | Op::PatchGate => {
            pooling::fill(workload, facts, work)
        }
        _ => simple::fill(workload, facts, work),
    }
}

/// Writes to `features` what the rest may depend on: sizes, what the amounts take and the share that each of them has of that.
pub(super) fn features(
    w: &Workload,
    facts: &DeviceFacts,
    amounts: &[f64],
    coefficients: &[f64],
    features: &mut Features,
) {
    let times = || amounts.iter().zip(coefficients).map(|(amount, each)| amount * each);
    let analytic_ns: f64 = times().sum();
    let sizes = Sizes::of(w, facts);
    let depth = sizes.taps * w.c_in_active / f64::from(w.groups);
    // Most batches and groups are ones: no logarithm for them.
    let log = |value: f64| if value == 1.0 { 0.0 } else { value.max(1e-3).ln() as f32 };
    let flag = |is: bool| f32::from(u8::from(is));
    let tile_rows = f64::from(facts.tile_rows);
    let tile_columns = f64::from(facts.tile_columns);
    let fill = |value: f64, tile: f64| (value / ((value / tile).ceil() * tile).max(1.0)) as f32;
    features.clear();
    features.extend_from_slice(&[
        log(sizes.rows),
        log(sizes.rows / f64::from(w.runs.max(1))),
        log(w.c_in_active),
        log(w.c_out_active),
        log(depth),
        w.kernel as f32,
        w.stride as f32,
        log(w.batch.into()),
        log(w.group_size.into()),
        flag(w.c_in_listed),
        flag(w.c_out_listed),
        flag(w.cache == Cache::Cold),
        w.threads as f32,
        flag(w.residual),
        flag(w.input_compact),
        flag(w.output_compact),
        flag(w.route != crate::workload::Route::Dense),
        fill(sizes.rows, tile_rows),
        fill(w.c_out_active, tile_columns),
        fill(w.c_out_active, f64::from(facts.lanes)),
        log(w.out_w.into()),
        log(w.groups.into()),
        log(analytic_ns),
        log(analytic_ns / sizes.rows.max(1.0)),
        log(sizes.bytes()),
        (w.c_in % 16) as f32,
        (w.c_out % 16) as f32,
        // Rows far apart by powers of two meet in the same sets of a cache.
        w.c_in.trailing_zeros() as f32,
        w.c_out.trailing_zeros() as f32,
        w.row_density() as f32,
    ]);
    if facts.kind == DeviceKind::Cuda {
        features.extend_from_slice(&cuda::features(w, facts));
    }
    let whole = 1.0 / analytic_ns.max(f64::MIN_POSITIVE);
    features.extend(times().map(|ns| (ns * whole) as f32));
}

/// Sizes that every kernel's amounts are made of.
struct Sizes {
    rows: f64,
    taps: f64,
    /// Bytes of what is read and written.
    input: f64,
    /// Bytes of the input that stretches of neighbours reach, each for itself.
    reached: f64,
    output: f64,
    weights: f64,
    /// Of the bytes, those that do not fit into the cache of a core.
    outside: f64,
    /// One thread's share of work that is cut evenly.
    share: f64,
    cold: f64,
    threads: f64,
}

impl Sizes {
    fn of(w: &Workload, facts: &DeviceFacts) -> Self {
        let element = f64::from(w.dtype.bytes());
        let (rows, taps) = (f64::from(w.rows), f64::from(w.kernel).powi(2));
        let threads = f64::from(w.threads);
        let pixels = f64::from(w.batch) * f64::from(w.in_h) * f64::from(w.in_w);
        let read = (rows * taps.min(f64::from(w.stride).powi(2))).min(pixels);
        let input = read * w.c_in_active * element;
        let (runs, kernel) = (f64::from(w.runs), f64::from(w.kernel));
        let wide = (rows - runs).max(0.0) * f64::from(w.stride) + runs * kernel;
        let reached = (kernel * wide).min(pixels) * w.c_in_active * element;
        let output = rows * w.c_out_active * element;
        let weights = match w.op {
            Op::GatherGemm => taps * w.c_in_active * w.c_out_active / f64::from(w.groups) * element,
            Op::Depthwise => taps * w.c_out_active * 4.0,
            Op::Linear if facts.kind == DeviceKind::Cpu => w.c_in_active * w.c_out_active * element,
            Op::Linear | Op::SqueezeExcite => w.c_in_active * w.c_out_active * 4.0,
            _ => 0.0,
        };
        let all = input + output + weights;
        let outside = (1.0 - near_bytes(facts) * threads / all.max(1.0)).max(0.0);
        let share = 1.0 / threads.min(f64::from(facts.cores)).max(1.0);
        let cold = f64::from(u8::from(w.cache == Cache::Cold));
        Self { rows, taps, input, reached, output, weights, outside, share, cold, threads }
    }

    fn bytes(&self) -> f64 {
        self.input + self.output + self.weights
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DeviceFacts;

    #[test]
    fn amounts_are_numbers_as_many_for_every_call_of_a_kernel() {
        let tiles = DeviceFacts { isa: "amx".into(), ..DeviceFacts::example("test") };
        for (op, facts) in
            Op::ALL.into_iter().flat_map(|op| [(op, DeviceFacts::example("test")), (op, tiles.clone())])
        {
            let expected = count(op, &facts);
            for (rows, threads, listed, batch) in [(0, 1, false, 1), (1, 2, true, 4), (49, 64, false, 3)] {
                let mut w = Workload::new(op, 7, 7, 64, 96);
                (w.rows, w.runs, w.threads, w.batch) = (rows, rows.min(7), threads, batch);
                (w.c_in_listed, w.c_out_listed) = (listed, listed);
                if listed {
                    (w.c_in_active, w.c_out_active) = (0.0, 0.0);
                }
                let amounts = Work::of(&w, &facts).amounts;
                assert_eq!(amounts.len(), expected, "{op}");
                assert!(amounts.iter().all(|a| a.is_finite() && *a >= 0.0), "{op}: {amounts:?}");
                for each in [0.0, 0.1] {
                    let coefficients = vec![each; expected];
                    let mut row = Features::new();
                    features(&w, &facts, &amounts, &coefficients, &mut row);
                    assert!(row.iter().all(|f| f.is_finite()), "{op}: {row:?}");
                }
            }
        }
    }

    #[test]
    fn a_tile_reads_neighbours_in_place_and_gathers_what_is_far_apart() {
        let facts = DeviceFacts { isa: "amx".into(), ..DeviceFacts::example("test") };
        let gathers = |rows: u32, runs: u32| {
            let mut w = Workload::new(Op::GatherGemm, 56, 56, 64, 64);
            (w.kernel, w.rows, w.runs) = (3, rows, runs);
            Work::of(&w, &facts).parts(&vec![1.0; count(Op::GatherGemm, &facts)]).gather_ns
        };
        // Lines are copied once, not once for each tap.
        assert!(gathers(56 * 56, 56) / 3136.0 < gathers(300, 300) / 300.0 / 4.0);
        assert!(gathers(300, 300) > 300.0 * 9.0 * 64.0);
    }

    #[test]
    fn a_tile_copies_lines_for_each_set_of_groups_and_reads_kernel_rows_there() {
        let facts = DeviceFacts { isa: "amx".into(), ..DeviceFacts::example("test") };
        for stride in [1, 2] {
            // Ten sets of sixteen channels, whose kernel rows of 48 are two steps each.
            let mut w = Workload::new(Op::GatherGemm, 28, 28, 160, 160);
            (w.kernel, w.groups, w.stride) = (3, 10, stride);
            (w.out_h, w.out_w) = (28 / stride, 28 / stride);
            (w.rows, w.runs) = (w.out_h * w.out_w, w.out_h);
            let parts =
                |w: &Workload| Work::of(w, &facts).parts(&vec![1.0; count(Op::GatherGemm, &facts)]).gather_ns;
            let copied = f64::from((w.out_h - 1) * stride + 3) * f64::from((w.out_w - 1) * stride + 3);
            let (all, each) = (parts(&w), f64::from(w.rows) * 9.0 * 16.0 * 10.0);
            assert!((copied * 16.0 * 10.0..0.75 * each).contains(&all), "{all}, stride {stride}");
            // Rows far apart are gathered tap by tap.
            let far = Workload { rows: 40, runs: 40, ..w };
            assert!(parts(&far) > 40.0 * 9.0 * 16.0 * 10.0);
        }
    }
}
