//! gather_gemm on the CPU: cuts the work into chunks of rows × columns, turns rows into pointers, packs the active
//! columns where only some are, and runs the register tile over it.

use super::epilogue::Epilogue;
use super::filter::Layout;
use super::micro::{self, Strip};
use super::panel::{Ready, place, prepare, reduce};
use super::rows::{point_in, point_out};
use super::scratch::Scratch;
use super::tiles;
use super::{Filter, GatherGemm};
use crate::{ConvGeometry, Element, Isa, Result, Team};
use std::ops::Range;

/// Rows whose pointers are set up together; their input stays in the second-level cache while panels pass by.
pub(crate) const BLOCK_ROWS: usize = 144;
/// Where panels are packed, up to this many rows are one block: their inputs are few, the columns come from far.
pub(super) const WIDE_BLOCK_ROWS: usize = 250;
/// Weights up to this size stay in the second-level cache next to a block of rows.
const RESIDENT_BYTES: usize = 320 << 10;
/// Maps of this many pixels have filters in units packed.
const PACKED_PIXELS: usize = 1024;
/// Chunks for each thread, so that a thread that is held up does not hold up the others.
const CHUNKS_PER_THREAD: usize = 4;

/// Rows that share their active channels.
pub(super) struct Job<'a> {
    pub(super) sample: usize,
    pub(super) rows: Range<usize>,
    pub(super) c_in: Option<&'a [u32]>,
    pub(super) c_out: Option<&'a [u32]>,
    /// Tiles, which share the rows evenly, and pieces these are cut into.
    pub(super) tiles: usize,
    pub(super) blocks: usize,
    /// Units are packed although they could be met where they lie.
    pub(super) packs: bool,
    /// Columns that are met at a time.
    pub(super) width: usize,
    /// Panels, or runs of active columns as wide as one.
    pub(super) columns: usize,
    /// Pieces these are cut into.
    pub(super) parts: usize,
}

impl Job<'_> {
    fn chunks(&self) -> usize {
        self.blocks * self.parts
    }
}

/// A pointer that chunks share; they write disjoint parts.
#[derive(Clone, Copy)]
struct Shared<T>(*mut T);
// SAFETY: every user states why its writes are disjoint.
unsafe impl<T> Sync for Shared<T> {}
impl<T> Shared<T> {
    fn get(&self) -> *mut T {
        self.0
    }
}

/// Runs one call. `scratch` has an entry for every thread of the team.
///
/// # Errors
/// When an operand is too small for the geometry, before anything is written.
pub fn run<E: Element>(
    isa: Isa,
    team: &mut Team,
    filter: &Filter<E>,
    scratch: &mut [Scratch<E>],
    call: GatherGemm<'_, [E]>,
) -> Result<()> {
    call.check(filter)?;
    let some_channels = !(call.active.c_in.is_all() && call.active.c_out.is_all());
    for scratch in scratch.iter_mut() {
        scratch.reserve(filter, some_channels)?;
    }
    let jobs = if some_channels { call.active.rows.batch() } else { 1 };
    let total = (0..jobs).map(|n| job(filter, &call, team.threads(), jobs, n).chunks()).sum();
    let threads = team.threads();
    assert!(
        scratch.len() >= threads,
        "gather_gemm: scratch for {} threads, the team has {threads}",
        scratch.len()
    );
    let (output, scratch) = (Shared(call.output.as_mut_ptr()), Shared(scratch.as_mut_ptr()));
    let call = &call;
    let run = |mut chunk: usize, worker: usize| {
        // SAFETY: overlapping calls have different workers, so each has its own scratch.
        let scratch = unsafe { &mut *scratch.get().add(worker) };
        for n in 0..jobs {
            let job = job(filter, call, threads, jobs, n);
            if chunk < job.chunks() {
                return run_chunk(isa, filter, call, &job, chunk, scratch, output.get());
            }
            chunk -= job.chunks();
        }
    };
    match filter.layout {
        Layout::Turns => team.for_each_near(total, run),
        _ => team.for_each(total, run),
    }
    Ok(())
}

fn job<'a, E: Element>(
    filter: &Filter<E>,
    call: &GatherGemm<'a, [E]>,
    threads: usize,
    jobs: usize,
    n: usize,
) -> Job<'a> {
    let (active, g) = (call.active, filter.geometry());
    let some = |list: Option<&'a [u32]>, all: usize| list.filter(|list| list.len() < all);
    let (rows, c_in, c_out) = match jobs {
        1 if active.c_in.is_all() && active.c_out.is_all() => (0..active.rows.len(), None, None),
        _ => (
            active.rows.sample(n),
            some(active.c_in.sample(n), g.c_in),
            some(active.c_out.sample(n), g.c_out),
        ),
    };
    let count = |list: Option<&[u32]>, all| list.map_or(all, <[u32]>::len);
    let units = filter.layout == Layout::Units;
    let packs = units && packs_units(g);
    let tile = if units && !packs { filter.units_tile } else { filter.tile };
    let width = tile.columns;
    let columns = match g.groups {
        1 => count(c_out, g.c_out).div_ceil(width),
        _ => filter.panels.len(),
    };
    let job = Job { sample: n, rows, c_in, c_out, tiles: 0, blocks: 0, packs, width, columns, parts: 0 };
    let rows = &job.rows;
    if rows.is_empty() || columns == 0 {
        return job;
    }
    let wanted = if threads == 1 { 1 } else { (threads * CHUNKS_PER_THREAD).div_ceil(jobs) };
    let bytes = filter.bytes() / g.c_in * count(c_in, g.c_in) / g.c_out * count(c_out, g.c_out);
    if filter.layout == Layout::Turns {
        let sharing = if jobs < threads { threads } else { 1 };
        return tiles::cut(filter, call, job, bytes, (wanted, sharing));
    }
    let packs = packs || c_out.is_some() && !units;
    let block_rows = if packs && rows.len() <= WIDE_BLOCK_ROWS { WIDE_BLOCK_ROWS } else { BLOCK_ROWS };
    let tiles = rows.len().div_ceil(tile.rows);
    let blocks = rows.len().div_ceil(block_rows);
    let blocks = if bytes <= RESIDENT_BYTES && !packs { blocks.max(wanted.min(tiles)) } else { blocks };
    // Every thread gets as many tiles of as many blocks as the others, or as many columns.
    let turns = if jobs < threads { threads } else { 1 };
    let tiles = if tiles > 2 * turns { tiles.next_multiple_of(turns) } else { tiles };
    let blocks = if blocks > 1 { blocks.next_multiple_of(turns).min(tiles) } else { 1 };
    let parts = evenly(columns, wanted.div_ceil(blocks));
    Job { tiles, blocks, parts, ..job }
}

/// Whether a filter in units is packed for every call, a vector of columns from two units: then each row of the input is
/// read once for twice as many columns, which pays where many rows meet what was packed. It depends on nothing that a
/// schedule changes, because sums are rounded in another order.
fn packs_units(g: &ConvGeometry) -> bool {
    g.output.pixels() >= PACKED_PIXELS
}

/// Into how many pieces to cut `len` where `wanted` are: some more, if then all are as long.
pub(super) fn evenly(len: usize, wanted: usize) -> usize {
    (wanted..2 * wanted).find(|&pieces| len.is_multiple_of(pieces)).unwrap_or(wanted).min(len)
}

/// Start of piece `i` of `0..len` cut evenly into `pieces`.
pub(super) fn piece(len: usize, pieces: usize, i: usize) -> usize {
    len * i / pieces
}

fn run_chunk<E: Element>(
    isa: Isa,
    filter: &Filter<E>,
    call: &GatherGemm<'_, [E]>,
    job: &Job<'_>,
    chunk: usize,
    scratch: &mut Scratch<E>,
    output: *mut E,
) {
    if filter.layout == Layout::Turns {
        return tiles::run_chunk(isa, filter, call, job, chunk, scratch, output);
    }
    let (block, part) = (chunk / job.parts, chunk % job.parts);
    let columns = piece(job.columns, job.parts, part)..piece(job.columns, job.parts, part + 1);
    // Cut between tiles, so that none is lower than it needs to be.
    let (first, end) = (piece(job.tiles, job.blocks, block), piece(job.tiles, job.blocks, block + 1));
    let row = |tile: usize| job.rows.start + piece(job.rows.len(), job.tiles, tile);
    let (block, tiles) = (row(first)..row(end), end - first);
    let g = filter.geometry();
    let folded = filter.folded && job.c_in.is_none() && job.c_out.is_none();
    let n_taps = if folded { g.kernel } else { g.kernel * g.kernel };
    let (height, taller) = (block.len() / tiles, block.len() % tiles);
    let mut start = 0;
    for t in 0..tiles {
        let end = start + height + usize::from(t < taller);
        point_in(filter, call, block.start, start..end, n_taps, scratch);
        start = end;
    }
    point_out(filter, call, block.start, 0..block.len(), scratch, output);
    reduce(filter, job, folded, scratch);
    for column in columns.clone() {
        let Some(panel) = prepare(isa, filter, job, column, scratch) else { continue };
        // Most often the next chunk is this thread's too.
        let next = column + 1;
        let next = if g.groups == 1 && next < job.columns { place(filter, job, next, scratch) } else { None };
        let strip = Strip {
            taps: scratch.taps.as_ptr(),
            n_taps,
            rows: block.len(),
            tiles,
            segments: &scratch.segments,
            panel: panel.rows,
            sums: scratch.sums.as_mut_slice().as_mut_ptr(),
            next,
            end: epilogue(filter, call, job, &panel, scratch),
        };
        micro::compute(isa, &strip);
    }
}

/// What is done with the sums of a panel.
pub(super) fn epilogue<E: Element>(
    filter: &Filter<E>,
    call: &GatherGemm<'_, [E]>,
    job: &Job<'_>,
    panel: &Ready<E>,
    scratch: &Scratch<E>,
) -> Epilogue<E> {
    let (packed, classes) = (panel.packed, filter.bias.len() > filter.bias_stride);
    let bias = if packed { &scratch.packed_bias[..] } else { &filter.bias[panel.c_out..] };
    Epilogue {
        stored: panel.stored,
        out: scratch.out.as_ptr(),
        column: panel.c_out,
        columns: panel.columns,
        bias: bias.as_ptr(),
        bias_stride: match (classes, packed) {
            (false, _) => 0,
            (true, true) => job.width,
            (true, false) => filter.bias_stride,
        },
        class: scratch.class.as_ptr(),
        scale: match (filter.scale.is_empty(), packed) {
            (true, _) => std::ptr::null(),
            (false, true) => scratch.packed_scale.as_ptr(),
            (false, false) => filter.scale[panel.c_out..].as_ptr(),
        },
        constant: panel.constant,
        residual: call.residual,
        act: call.act,
    }
}
