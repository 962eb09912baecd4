//! The CPU's gather_gemm: blocks of rows × panels of columns, each in tiles; see `kernels/gather_gemm`.

use super::{Kind, Sizes, Work, flag};
use crate::DeviceFacts;
use crate::workload::{Route, Workload};

/// Rows whose pointers are set up together, and up to how many they are where panels are packed.
const BLOCK_ROWS: f64 = 144.0;
const WIDE_BLOCK_ROWS: f64 = 250.0;
/// Weights up to this size stay in a core's cache next to a block of rows.
const RESIDENT_BYTES: f64 = 320.0 * 1024.0;
pub(super) const CHUNKS_PER_THREAD: f64 = 4.0;
/// Columns that can be gathered while multiplying come in units of this many, and steps of the reduction in runs.
pub(super) const UNIT: u32 = 8;
const RUN: u32 = 4;
/// Maps of this many pixels have them packed instead.
const PACKED_PIXELS: u64 = 1024;
/// Panels that a thread packs for a call are kept up to this size.
const PACKED_BYTES: f64 = 640.0 * 1024.0;
/// Longest stretch of the reduction.
const SEGMENT: f64 = 256.0;

/// Maps of this many pixels have a tile that is twice as wide and half as high where vectors are so long, unless columns come
/// in units.
const MANY_PIXELS: u64 = 196;
const WIDE_LANES: u32 = 16;

/// Rates that say whether weights arrive in time, of current server CPUs.
const NS_PER_CYCLE: f64 = 0.25;
const MEMORY_NS_PER_BYTE: f64 = 0.08;
pub(super) const SHARED_NS_PER_BYTE: f64 = 0.035;

/// How a filter is met.
#[derive(Clone, Copy)]
struct Layout {
    /// In units, where they lie.
    units: bool,
    /// Its panels are packed for the call.
    packs: bool,
    /// Columns and rows of the tile.
    columns: f64,
    rows: f64,
}

impl Layout {
    fn of(w: &Workload, facts: &DeviceFacts, (some_in, some_out): (bool, bool)) -> Self {
        let pixels = u64::from(w.out_h) * u64::from(w.out_w);
        let (columns, rows) = (f64::from(facts.tile_columns), f64::from(facts.tile_rows));
        let in_units = w.c_out_listed
            && w.groups == 1
            && w.group_size.is_multiple_of(UNIT)
            && w.c_in.is_multiple_of(UNIT);
        let units = in_units && pixels < PACKED_PIXELS;
        let runs = w.groups == 1 && w.group_size.is_multiple_of(RUN);
        let packs = if in_units { !units } else { some_out || some_in && !runs };
        let many = pixels >= MANY_PIXELS && !in_units;
        let fits = w.groups == 1 && w.c_out.is_multiple_of(2 * facts.tile_columns.max(1));
        let (columns, rows) = match (units, many && fits && facts.lanes == WIDE_LANES) {
            (true, _) => (columns / 2.0, rows),
            (false, true) => (2.0 * columns, rows / 2.0),
            (false, false) => (columns, rows),
        };
        Self { units, packs, columns, rows }
    }
}

/// How the columns are cut.
struct Panels {
    /// Panels as wide as the tile, and narrower ones.
    whole: f64,
    narrow: f64,
    /// Vectors of a narrow one.
    narrow_vectors: f64,
    /// Input channels that a panel reads.
    inputs: f64,
    /// Columns that do not fill their vector, of all.
    ragged: f64,
    /// Steps of the reduction that a vector of sums takes at a time: with units two, side by side.
    steps: f64,
}

impl Panels {
    fn of(w: &Workload, facts: &DeviceFacts, layout: Layout) -> Self {
        let steps = if layout.units { 2.0 } else { 1.0 };
        let lanes = f64::from(facts.lanes) / steps;
        let width = layout.columns;
        let (groups, c_out) = (f64::from(w.groups), f64::from(w.c_out));
        let (sets, columns, inputs) = if w.groups == 1 {
            (1.0, w.c_out_active, w.c_in_active)
        } else {
            // Groups narrower than a vector share a panel, with zeros off the diagonal.
            let together = (lanes / (c_out / groups)).floor().clamp(1.0, groups);
            let sets = (groups / together).ceil();
            (sets, w.c_out_active / sets, w.c_in_active / sets)
        };
        let whole = (columns / width).floor();
        let rest = columns - whole * width;
        let narrow_vectors = (rest / lanes).ceil();
        let narrow = if rest > 1e-9 { 1.0 } else { 0.0 };
        let ragged = sets * (narrow_vectors * lanes - rest).max(0.0);
        Self { whole: sets * whole, narrow: sets * narrow, narrow_vectors, inputs, ragged, steps }
    }

    fn all(&self) -> f64 {
        self.whole + self.narrow
    }
}

/// How the rows and columns of a job are cut for the threads.
struct Cut {
    tiles: f64,
    blocks: f64,
    parts: f64,
}

impl Cut {
    fn of(w: &Workload, (rows, jobs): (f64, f64), (panels, weights, layout): (&Panels, f64, Layout)) -> Self {
        let packs = layout.packs;
        let threads = f64::from(w.threads);
        let wanted = if w.threads == 1 { 1.0 } else { (threads * CHUNKS_PER_THREAD / jobs).ceil() };
        let turns = if jobs < threads { threads } else { 1.0 };
        let next = |value: f64| (value / turns).ceil() * turns;
        let tiles = (rows / layout.rows).ceil().max(1.0);
        let mut blocks = (rows / if packs && rows <= WIDE_BLOCK_ROWS { WIDE_BLOCK_ROWS } else { BLOCK_ROWS })
            .ceil()
            .max(1.0);
        if weights <= RESIDENT_BYTES && !packs {
            blocks = blocks.max(wanted.min(tiles));
        }
        let tiles = if tiles > 2.0 * turns { next(tiles) } else { tiles };
        let blocks = if blocks > 1.0 { next(blocks).min(tiles) } else { 1.0 };
        Self { tiles, blocks, parts: parts(panels.all(), wanted / blocks) }
    }
}

/// Into how many parts panels are cut where so many are wanted: some more, if then all are as long.
pub(super) fn parts(panels: f64, wanted: f64) -> f64 {
    let (columns, wanted) = (panels.ceil().max(1.0) as u32, wanted.ceil() as u32);
    let even = (wanted..2 * wanted).find(|&parts| columns.is_multiple_of(parts));
    f64::from(even.unwrap_or(wanted).min(columns))
}

/// How often panels are packed for a call, for one thread: what it packs it keeps for its other rows, unless that is too much.
pub(super) fn packings((jobs, threads): (f64, f64), (blocks, share): (f64, f64), bytes: f64) -> f64 {
    match bytes <= PACKED_BYTES {
        true if jobs < threads && blocks > 1.0 => jobs,
        true => jobs * share,
        false => blocks * jobs * share,
    }
}

/// Cycles for one step of the reduction of a tile: two multiply-adds, or two loads, a cycle, and the additions into one
/// sum wait for each other.
fn cycles(rows: f64, vectors: f64) -> f64 {
    (rows * vectors / 2.0).max((rows + vectors) / 2.0).max(4.0)
}

pub(super) fn fill(w: &Workload, facts: &DeviceFacts, work: &mut Work) {
    let s = Sizes::of(w, facts);
    let listed = w.c_in_listed || w.c_out_listed;
    let some = |listed: bool, active: f64, all: u32| f64::from(u8::from(listed && active < f64::from(all)));
    let (li, lo) =
        (some(w.c_in_listed, w.c_in_active, w.c_in), some(w.c_out_listed, w.c_out_active, w.c_out));
    let layout = Layout::of(w, facts, (li > 0.0, lo > 0.0));
    let Layout { units, packs, .. } = layout;
    let panels = Panels::of(w, facts, layout);
    let jobs = if listed { f64::from(w.batch) } else { 1.0 };
    let rows = s.rows / jobs;
    let vectors = layout.columns * panels.steps / f64::from(facts.lanes);
    let threads = s.threads;
    let Cut { tiles, blocks, parts } = Cut::of(w, (rows, jobs), (&panels, s.weights, layout));
    let chunks = blocks * parts * jobs;
    let share = if threads == 1.0 { 1.0 } else { ((chunks / threads).ceil() / chunks).max(s.share) };

    let height = rows / tiles;
    let (low, high) = (height.floor(), height.ceil());
    let taller = height - low;
    let tile_cycles = |vectors: f64| {
        ((1.0 - taller) * cycles(low, vectors) + taller * cycles(high, vectors)) / panels.steps
    };
    let steps = s.taps * panels.inputs;
    let all_tiles = jobs * tiles;
    let per_step = panels.whole * tile_cycles(vectors) + panels.narrow * tile_cycles(panels.narrow_vectors);
    let compute = if w.rows == 0 { 0.0 } else { all_tiles * steps * per_step * share };
    let tile_panels = all_tiles * panels.all() * share;
    let (deep, while_multiplying, packed) = (flag(w.kernel > 1), flag(units), flag(packs));
    let grouped = flag(w.groups > 1);
    work.add(
        Kind::Compute,
        &[
            compute,
            compute * deep,
            compute * grouped,
            compute * s.cold,
            tile_panels,
            tile_panels * s.cold,
            all_tiles * panels.all() * (steps / SEGMENT).ceil() * share,
            s.rows * panels.all() * share,
            s.rows * flag(panels.ragged > 0.0) * share,
            s.rows * panels.all() * flag(w.residual) * share,
        ],
    );
    // Stretches of columns that are packed together: neighbouring groups that are active join.
    let density = w.c_out_active / f64::from(w.c_out);
    let per_stretch = f64::from(w.group_size).min(f64::from(facts.lanes));
    let stretches = (w.c_out_active / per_stretch * (1.0 - density)).max(panels.all());
    let whole = steps * f64::from(w.c_in) / w.c_in_active.max(1.0);
    let bytes = whole * panels.all() * layout.columns * f64::from(w.dtype.bytes());
    let packings = packed * packings((jobs, threads), (blocks, share), bytes);
    let copied = packings * steps * stretches;
    // Weights that come slower than they are multiplied with, at usual rates of memory and of the shared cache.
    let streamed = blocks * jobs * s.weights * share;
    let waits = |ns_per_byte: f64| (streamed * ns_per_byte - compute * NS_PER_CYCLE).max(0.0);
    let first = (s.weights * share * MEMORY_NS_PER_BYTE - compute * NS_PER_CYCLE).max(0.0);
    let resident = s.weights <= 0.5 * facts.l2_bytes.max(1) as f64;
    let element = f64::from(w.dtype.bytes());
    let line = 64.0 / (f64::from(w.group_size) * element);
    let (input, output) = (s.input * share, s.output * share);
    let near = s.weights.min(facts.l2_bytes.max(1) as f64);
    work.add(
        Kind::Memory,
        &[
            streamed * flag(resident),
            streamed * flag(!resident),
            s.weights * s.cold * share,
            near * s.cold * share,
            first * s.cold,
            waits(SHARED_NS_PER_BYTE) * flag(!resident),
            waits(SHARED_NS_PER_BYTE) * flag(resident),
            streamed * li,
            s.weights * lo * line.max(1.0) * s.cold * share,
            s.weights * li * s.cold * share,
            input,
            input * s.outside,
            input * s.outside * s.cold,
            s.reached * share,
            output * s.outside,
            output * s.cold,
            output * s.outside * s.cold,
            output * flag(w.residual),
            output * flag(w.residual) * s.outside,
            output * flag(w.residual) * s.cold,
        ],
    );
    let runs = f64::from(w.runs) * flag(w.route != Route::Dense) * share;
    work.add(
        Kind::Gather,
        &[
            s.rows * s.taps * parts * share,
            s.rows * parts * share,
            s.rows * flag(w.route != Route::Dense) * share,
            runs,
            runs * s.cold,
            runs * w.c_in_active,
            compute * li,
            compute * while_multiplying,
            packings * steps * w.c_out_active,
            packings * steps * w.c_out_active * s.cold,
            packings * steps * w.c_out_active * line.max(1.0),
            copied,
            copied * s.cold,
            blocks * jobs * steps * li * share,
            jobs * flag(listed),
        ],
    );
    work.add(Kind::Launch, &[1.0, s.cold, threads - 1.0, flag(w.threads > 1), chunks * share]);
}
