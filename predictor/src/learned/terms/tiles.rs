//! The CPU's gather_gemm where it multiplies tiles of bfloat16 or of bytes; see `kernels/gather_gemm/tiles`.

use super::gather_gemm::{CHUNKS_PER_THREAD, SHARED_NS_PER_BYTE, packings, parts};
use super::{Kind, Sizes, Work, flag};
use crate::DeviceFacts;
use crate::workload::Workload;

/// Rows and columns of a tile.
const SIDE: f64 = 16.0;
/// Rows of a product, and columns on tiles and on vectors of bytes.
const ROWS: f64 = 2.0 * SIDE;
const COLUMNS_OF_TILES: f64 = 2.0 * SIDE;
const MOST_COLUMNS: f64 = 4.0 * SIDE;
/// Rows of it whose sums vectors keep in registers.
const ROWS_OF_VECTORS: f64 = 6.0;
/// Bytes of each column that vectors multiply at once.
const TURN: f64 = 4.0;
/// Copied rows of a block.
const GATHERED_BYTES: f64 = 1200.0 * 1024.0;
const MOST_ROWS: f64 = 512.0;
/// When threads share rows, and when blocks are smaller than they have to be.
const WEIGHTS_PER_INPUT: f64 = 4.0;
const NEAR_WEIGHTS: f64 = 160.0 * 1024.0;
const NEAR_ROWS: f64 = 28.0 * 1024.0;
const FEWEST_ROWS: f64 = 4.0 * SIDE;
const COPIED_TILES: f64 = 3.0;
/// Steps of a reduction that two products meet before the next ones.
const PART_STEPS: f64 = 9.0;
/// Rows of windows for each row, up to which neighbouring pixels are copied once, and where channels are fewer than a step.
const MOST_WASTE: f64 = 1.7;
const MOST_WASTE_OF_FEW: f64 = 2.6;
/// What a step of a product takes where nothing is waited for.
const NS_PER_STEP: f64 = 25.0;
/// The same of a vector's product.
const NS_PER_VECTOR: f64 = 0.17;

/// Whether calls run on tiles: what such a CPU computes in f32, and with vectors of bytes in bfloat16, is of another instruction
/// set.
pub(super) fn runs(facts: &DeviceFacts) -> bool {
    facts.isa == "amx" || vectors(facts)
}

/// Whether products of bytes are computed by vectors.
fn vectors(facts: &DeviceFacts) -> bool {
    facts.isa == "avx512vnni"
}

/// Columns of a panel.
fn width(w: &Workload, facts: &DeviceFacts) -> f64 {
    let all = w.c_out.div_ceil(SIDE as u32);
    match vectors(facts) {
        true if all.is_multiple_of(3) && (1..3).contains(&(all % 4)) => MOST_COLUMNS - SIDE,
        true => MOST_COLUMNS,
        false => COLUMNS_OF_TILES,
    }
}

/// Values of a row that are met at a time.
fn step_len(w: &Workload) -> f64 {
    64.0 / f64::from(w.dtype.bytes())
}

/// How rows are read.
#[derive(Clone, Copy, PartialEq)]
enum Read {
    /// Where they lie.
    Even,
    /// From a copy of the lines of the map.
    Map,
    /// Each from a copy of what it reads.
    Gathered,
}

/// Whether kernel rows begin steps.
fn in_lines(w: &Workload, packs: bool) -> bool {
    let narrow = w.groups > 1 || !w.c_in_listed && !w.c_out_listed && f64::from(w.c_in) < 3.0 * step_len(w);
    w.kernel > 1 && narrow && !(w.c_in / w.groups).is_multiple_of(step_len(w) as u32) && !packs
}

/// How rows are read, in how many windows of sixteen, and pixels that are copied for it.
fn read(w: &Workload, (rows, runs, jobs): (f64, f64, f64), inputs: f64, lines: bool) -> (Read, f64, f64) {
    let (kernel, taps) = (f64::from(w.kernel), f64::from(w.kernel).powi(2));
    let (stride, out_w) = (f64::from(w.stride), f64::from(w.out_w));
    let all = f64::from(w.batch) * f64::from(w.out_h) * out_w / jobs;
    let whole = inputs > 0.0 && inputs % step_len(w) == 0.0;
    let follows = whole || inputs == f64::from(w.c_in);
    if w.kernel == 1 && w.stride == 1 && (w.input_compact || rows >= all) && follows && rows >= SIDE {
        return (Read::Even, (rows / SIDE).ceil(), 0.0);
    }
    let width = ((((out_w - 1.0) * stride + kernel) / stride).ceil() * stride).max(out_w);
    let gap = (all - rows) / runs.max(1.0) + width - out_w;
    let windows = ((rows + gap * runs) / SIDE).min(rows / SIDE + 0.5 * runs).max(rows / SIDE).ceil();
    let height = (f64::from(w.out_h) - 1.0) * stride + kernel;
    let copied = (f64::from(w.batch) / jobs * height).min(runs * kernel) * width;
    let waste = if lines && inputs < step_len(w) { MOST_WASTE_OF_FEW } else { MOST_WASTE };
    let fits = windows * SIDE <= waste * rows + SIDE && copied <= 0.75 * rows * taps;
    if w.kernel > 1 && (whole || lines) && fits {
        return (Read::Map, windows, copied);
    }
    (Read::Gathered, (rows / SIDE).ceil(), rows * taps)
}

/// Blocks that the rows of a job are cut into.
fn blocks(
    w: &Workload,
    (rows, jobs, wanted): (f64, f64, f64),
    (steps, (columns, width), weights): (f64, (f64, f64), f64),
) -> f64 {
    let (element, length) = (f64::from(w.dtype.bytes()), 64.0 * steps);
    let pitch = 64.0 * (steps + flag(steps % 2.0 == 0.0));
    let tiles = (rows / SIDE).ceil().max(1.0);
    let most_rows = ((GATHERED_BYTES / pitch / SIDE).floor() * SIDE).clamp(ROWS, MOST_ROWS);
    let least = (rows / most_rows).ceil().max(1.0);
    let row = WEIGHTS_PER_INPUT * length + columns * width * element;
    let mut shares = if jobs < f64::from(w.threads) { f64::from(w.threads) } else { 1.0 };
    while shares > 1.0 && 2.0 * shares > tiles {
        shares = (shares / 2.0).floor();
    }
    let by_rows = weights <= rows * row;
    let near = (NEAR_ROWS / length.max(1.0) / SIDE).floor() * SIDE;
    let all = f64::from(w.out_h) * f64::from(w.out_w) * f64::from(w.batch) / jobs;
    let listed = w.kernel == 1 && w.stride == 1 && !w.input_compact && rows < all;
    let small = match () {
        _ if weights > NEAR_WEIGHTS => 1.0,
        _ if listed => (tiles / COPIED_TILES).floor().min(2.0 * wanted),
        _ if w.groups == 1 && columns > 2.0 && near >= FEWEST_ROWS => (rows / near).ceil(),
        _ => 1.0,
    };
    let turns = if by_rows { shares } else { 1.0 };
    (least.max(small) / turns).ceil() * turns
}

pub(super) fn fill(w: &Workload, facts: &DeviceFacts, work: &mut Work) {
    let s = Sizes::of(w, facts);
    let some = |listed: bool, active: f64, all: u32| listed && active < f64::from(all);
    let (li, lo) =
        (some(w.c_in_listed, w.c_in_active, w.c_in), some(w.c_out_listed, w.c_out_active, w.c_out));
    let jobs = if li || lo { f64::from(w.batch) } else { 1.0 };
    let (rows, runs) = (s.rows / jobs, f64::from(w.runs) / jobs);
    let (width, vectors) = (width(w, facts), vectors(facts));
    // Sets of columns that read the same channels.
    let (panels, inputs, sets) = if w.groups == 1 {
        (w.c_out_active / width, w.c_in_active, 1.0)
    } else {
        // Groups narrower than a tile share it, with zeros off the diagonal.
        let together =
            (SIDE * f64::from(w.groups) / f64::from(w.c_out)).floor().clamp(1.0, f64::from(w.groups));
        let sets = (f64::from(w.groups) / together).ceil();
        (sets * (w.c_out_active / sets / SIDE).ceil(), w.c_in_active / sets, sets)
    };
    let (panels, narrow) = match w.groups {
        1 if (panels.fract() * width) > 0.0 && panels.fract() * width <= SIDE => (panels.ceil(), 1.0),
        1 => (panels.ceil(), 0.0),
        _ => (panels, panels),
    };
    let depth = s.taps * inputs;
    let (lines, kernel) = (in_lines(w, li || lo), f64::from(w.kernel));
    let steps =
        if lines { kernel * (kernel * inputs / step_len(w)).ceil() } else { (depth / step_len(w)).ceil() };
    let (read, windows, pixels) = read(w, (rows, runs, jobs), inputs, lines);

    let threads = f64::from(w.threads);
    let wanted = if w.threads == 1 { 1.0 } else { (threads * CHUNKS_PER_THREAD / jobs).ceil() };
    let blocks = blocks(w, (rows, jobs, wanted), (steps, (panels, width), s.weights));
    let parts = parts(panels, wanted / blocks);
    let chunks = blocks * parts * jobs;
    let share = if threads == 1.0 { 1.0 } else { ((chunks / threads).ceil() / chunks).max(s.share) };
    // A thread copies a block for itself.
    let copies = share * parts.min(if jobs < threads { threads } else { 1.0 });

    let heights = (windows / 2.0).ceil() * jobs;
    let products = heights * panels * share;
    let (map, gathered) = (flag(read == Read::Map), flag(read == Read::Gathered));
    let (rows_of_columns, residual) = (s.rows * panels * share, flag(w.residual));
    let odd_columns = s.rows * flag(w.c_out_active % SIDE > 0.0) * share;
    let work_steps = if w.rows == 0 { 0.0 } else { products * steps };
    let mut busy_ns = work_steps * NS_PER_STEP;
    if vectors {
        let bytes = f64::from(w.dtype.bytes());
        let turns = match lines {
            true => kernel * (kernel * inputs * bytes / TURN).ceil(),
            false => (depth * bytes / TURN).ceil(),
        };
        let tiles = if w.groups == 1 { (w.c_out_active / SIDE).ceil() } else { panels };
        let each = s.rows * turns * share;
        let all = each * tiles;
        busy_ns = all * NS_PER_VECTOR;
        let passes = (s.rows / ROWS_OF_VECTORS).max(windows * jobs) * share;
        work.add(
            Kind::Compute,
            &[
                all,
                all * map,
                all * gathered,
                all * s.cold,
                all * flag(w.groups > 1),
                each * narrow,
                passes * tiles * turns,
                passes * panels,
                passes * panels * steps,
                products * (steps / PART_STEPS).ceil(),
                s.rows * tiles * share,
                s.rows * narrow * share,
                s.rows * tiles * residual * share,
                odd_columns,
            ],
        );
    } else {
        work.add(
            Kind::Compute,
            &[
                work_steps,
                work_steps * map,
                work_steps * gathered,
                work_steps * s.cold,
                work_steps * flag(w.groups > 1),
                heights * narrow * steps * share,
                jobs * panels * steps * share * flag(windows % 2.0 == 1.0),
                products,
                products * (steps / PART_STEPS).ceil(),
                rows_of_columns,
                s.rows * narrow * share,
                rows_of_columns * residual,
                odd_columns,
            ],
        );
    }
    let streamed = blocks * jobs * s.weights * share;
    let waits = (streamed * SHARED_NS_PER_BYTE - busy_ns).max(0.0);
    let resident = flag(s.weights <= 0.5 * facts.l2_bytes.max(1) as f64);
    let (input, output) = (s.input * share, s.output * share);
    work.add(
        Kind::Memory,
        &[
            streamed * resident,
            streamed * (1.0 - resident),
            s.weights * s.cold * share,
            s.weights.min(facts.l2_bytes.max(1) as f64) * s.cold * share,
            waits * resident,
            waits * (1.0 - resident),
            input,
            input * s.outside,
            input * s.outside * s.cold,
            output * s.outside,
            output * s.cold,
            output * s.outside * s.cold,
            output * flag(w.residual) * s.outside,
        ],
    );
    // Rows lie in turns of four bytes of each column; where some of a turn are inactive, others are put together.
    let turns = !li || (w.group_size * w.dtype.bytes()).is_multiple_of(4);
    let bytes = s.taps * f64::from(w.c_in) * panels * width * f64::from(w.dtype.bytes());
    let packings = flag(li || lo) * packings((jobs, threads), (blocks, share), bytes);
    let packed = packings * depth * w.c_out_active;
    // Panels that the columns of a packed tile come from.
    let density = w.c_out_active.max(1.0) / f64::from(w.c_out);
    let pieces = if lo { (1.0 / density).min(SIDE / f64::from(w.group_size)).max(1.0) } else { 1.0 };
    let all_pixels = pixels * jobs * copies * sets;
    work.add(
        Kind::Gather,
        &[
            s.rows * copies,
            s.rows * s.taps * copies,
            all_pixels * gathered,
            all_pixels * inputs * gathered,
            all_pixels * gathered * flag(inputs % step_len(w) > 0.0),
            all_pixels * map,
            all_pixels * inputs * map,
            f64::from(w.runs) * copies,
            packed * pieces,
            packed * pieces * s.cold,
            packed * pieces * flag(!turns),
            packed,
            packings * panels,
            blocks * jobs * depth * share * flag(li || lo),
            // What the sums of rows begin with.
            windows * jobs * copies * sets * steps * flag(vectors),
            windows * jobs * copies * sets * flag(vectors),
        ],
    );
    work.add(Kind::Launch, &[1.0, s.cold, threads - 1.0, flag(w.threads > 1), chunks * share]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::{DType, Op};

    #[test]
    fn threads_share_rows_unless_weights_are_many_and_blocks_stay_near() {
        let pointwise = |side: u32, c_in: u32, c_out: u32| Workload {
            dtype: DType::Bf16,
            threads: 2,
            ..Workload::new(Op::GatherGemm, side, side, c_in, c_out)
        };
        let cut = |w: Workload| {
            let taps = f64::from(w.kernel * w.kernel);
            let (c_in, c_out) = (f64::from(w.c_in), f64::from(w.c_out));
            let wanted = if w.threads == 1 { 1.0 } else { f64::from(w.threads) * CHUNKS_PER_THREAD };
            let columns = ((c_out / COLUMNS_OF_TILES).ceil(), COLUMNS_OF_TILES);
            let sizes = ((taps * c_in / step_len(&w)).ceil(), columns, taps * c_in * c_out * 2.0);
            blocks(&w, (f64::from(w.rows), 1.0, wanted), sizes)
        };
        let rows = pointwise(15, 256, 256);
        assert_eq!(cut(rows), 2.0);
        assert_eq!(cut(Workload { threads: 1, ..rows }), 1.0);
        // Two threads have no two tiles each.
        assert_eq!(cut(Workload { rows: 48, ..pointwise(7, 256, 256) }), 1.0);
        // Nine taps of many channels: the columns are shared.
        assert_eq!(cut(Workload { kernel: 3, ..pointwise(7, 512, 512) }), 1.0);
        // 112 rows of 104 channels stay in the first-level cache; listed rows are copied three tiles at a time.
        assert_eq!(cut(pointwise(28, 104, 104)), 8.0);
        assert_eq!(cut(Workload { rows: 392, runs: 98, ..pointwise(28, 128, 128) }), 8.0);
    }
}
