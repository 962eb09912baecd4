//! gather_gemm on the CPU: cuts the work into chunks of rows × columns, turns rows into pointers, packs the active
//! columns where only some are, and runs the register tile over it.

use super::filter::{Panel, SLACK};
use super::micro::{self, Tile};
use super::{Filter, GatherGemm, Placement};
use crate::{Buffer, Element, Isa, Result, Team};
use std::ops::Range;

/// Rows whose pointers are set up together; their input stays in the second-level cache while panels pass by.
const BLOCK_ROWS: usize = 144;
/// Weights up to this size stay in the second-level cache next to a block of rows.
const RESIDENT_BYTES: usize = 320 << 10;
/// Chunks for each thread, so that a thread that is held up does not hold up the others.
const CHUNKS_PER_THREAD: usize = 4;

/// Working memory of one thread.
pub struct Scratch<E> {
    taps: Vec<*const E>,
    out: Vec<*mut E>,
    bias: Vec<*const f32>,
    class: Vec<u32>,
    zeros: Buffer<E>,
    packed: Buffer<E>,
    packed_bias: Vec<f32>,
    packed_constant: Vec<f32>,
}

// SAFETY: the pointers are written and read within one call and mean nothing in between.
unsafe impl<E: Send> Send for Scratch<E> {}

impl<E: Element> Scratch<E> {
    /// Empty working memory; [`reserve`](Self::reserve) makes it large enough for a filter.
    pub fn new() -> Result<Self> {
        let empty = || Buffer::zeroed(0, "scratch");
        let (zeros, packed) = (empty()?, empty()?);
        let (packed_bias, packed_constant) = (Vec::new(), Vec::new());
        Ok(Self {
            taps: vec![],
            out: vec![],
            bias: vec![],
            class: vec![],
            zeros,
            packed,
            packed_bias,
            packed_constant,
        })
    }

    /// Grows to what calls with `filter` need; `channels`: also for calls with only some channels active.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn reserve(&mut self, filter: &Filter<E>, channels: bool) -> Result<()> {
        let g = filter.geometry();
        let grow = |buffer: &mut Buffer<E>, len: usize, what: &str| -> Result<()> {
            if buffer.len() < len {
                *buffer = Buffer::zeroed(len, what)?;
            }
            Ok(())
        };
        grow(&mut self.zeros, g.c_in.max(g.kernel * g.c_in * usize::from(filter.folded)) + SLACK, "padding")?;
        let rows = BLOCK_ROWS + filter.max_rows;
        let taps = rows * g.kernel * g.kernel;
        self.taps.resize(self.taps.len().max(taps), std::ptr::null());
        self.out.resize(self.out.len().max(rows), std::ptr::null_mut());
        self.bias.resize(self.bias.len().max(rows), std::ptr::null());
        self.class.resize(self.class.len().max(rows), 0);
        if channels {
            let inputs = filter.panels.iter().map(|panel| panel.inputs).max().unwrap_or(0);
            let width = filter.panel_width;
            grow(&mut self.packed, g.kernel * g.kernel * inputs * width + SLACK, "packed active columns")?;
            let bias = filter.bias.len() / filter.bias_stride * width + SLACK;
            self.packed_bias.resize(self.packed_bias.len().max(bias), 0.0);
            self.packed_constant.resize(self.packed_constant.len().max(width + SLACK), 0.0);
        }
        Ok(())
    }
}

/// Rows that share their active channels.
struct Job<'a> {
    rows: Range<usize>,
    c_in: Option<&'a [u32]>,
    c_out: Option<&'a [u32]>,
    /// Pieces the rows are cut into.
    blocks: usize,
    /// Panels, or runs of active columns as wide as one.
    columns: usize,
    /// Of which one chunk does this many.
    columns_per_chunk: usize,
}

impl Job<'_> {
    fn chunks(&self) -> usize {
        self.blocks * self.columns.div_ceil(self.columns_per_chunk)
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
    team: &mut Team<'_>,
    filter: &Filter<E>,
    scratch: &mut [Scratch<E>],
    call: GatherGemm<'_, E>,
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
    team.for_each(total, |mut chunk, worker| {
        // SAFETY: overlapping calls have different workers, so each has its own scratch.
        let scratch = unsafe { &mut *scratch.get().add(worker) };
        for n in 0..jobs {
            let job = job(filter, call, threads, jobs, n);
            if chunk < job.chunks() {
                return run_chunk(isa, filter, call, &job, chunk, scratch, output.get());
            }
            chunk -= job.chunks();
        }
    });
    Ok(())
}

fn job<'a, E: Element>(
    filter: &Filter<E>,
    call: &GatherGemm<'a, E>,
    threads: usize,
    jobs: usize,
    n: usize,
) -> Job<'a> {
    let active = call.active;
    let (rows, c_in, c_out) = match jobs {
        1 if active.c_in.is_all() && active.c_out.is_all() => (0..active.rows.len(), None, None),
        _ => (active.rows.sample(n), active.c_in.sample(n), active.c_out.sample(n)),
    };
    let columns = match c_out {
        Some(list) if filter.geometry().groups == 1 => list.len().div_ceil(filter.panel_width),
        _ => filter.panels.len(),
    };
    if rows.is_empty() || columns == 0 {
        return Job { rows, c_in, c_out, blocks: 0, columns: 0, columns_per_chunk: 1 };
    }
    let wanted = if threads == 1 { 1 } else { (threads * CHUNKS_PER_THREAD).div_ceil(jobs) };
    let blocks = rows.len().div_ceil(BLOCK_ROWS);
    let bytes = filter.bytes() / filter.panels.len() * columns;
    let (blocks, columns_per_chunk) = if bytes <= RESIDENT_BYTES && c_out.is_none() && c_in.is_none() {
        let tiles = rows.len().div_ceil(filter.max_rows);
        let blocks = blocks.max(wanted.min(tiles));
        (blocks, if blocks >= wanted { columns } else { columns.div_ceil(wanted.div_ceil(blocks)) })
    } else {
        (blocks, columns.div_ceil(wanted.div_ceil(blocks)))
    };
    Job { rows, c_in, c_out, blocks, columns, columns_per_chunk }
}

/// Start of piece `i` of `0..len` cut evenly into `pieces`.
fn piece(len: usize, pieces: usize, i: usize) -> usize {
    len * i / pieces
}

fn run_chunk<E: Element>(
    isa: Isa,
    filter: &Filter<E>,
    call: &GatherGemm<'_, E>,
    job: &Job<'_>,
    chunk: usize,
    scratch: &mut Scratch<E>,
    output: *mut E,
) {
    let (block, columns) = (chunk % job.blocks, chunk / job.blocks * job.columns_per_chunk);
    let columns = columns..(columns + job.columns_per_chunk).min(job.columns);
    let block = job.rows.start + piece(job.rows.len(), job.blocks, block)
        ..job.rows.start + piece(job.rows.len(), job.blocks, block + 1);
    let tiles = block.len().div_ceil(filter.max_rows);
    let tile_rows = |t: usize| piece(block.len(), tiles, t)..piece(block.len(), tiles, t + 1);
    let g = filter.geometry();
    let n_taps = if filter.folded { g.kernel } else { g.kernel * g.kernel };
    for t in 0..tiles {
        point(filter, call, block.start, tile_rows(t), n_taps, scratch, output);
    }
    for column in columns {
        let panel = match (job.c_in, job.c_out) {
            (None, None) => whole(filter, column, scratch, block.len()),
            _ => some(filter, job, column, scratch, block.len()),
        };
        let Some((panel, bias_column)) = panel else { continue };
        for t in 0..tiles {
            let rows = tile_rows(t);
            let tile = Tile {
                taps: scratch.taps[rows.start * n_taps..].as_ptr(),
                n_taps,
                rows: rows.len(),
                c_in: panel.c_in,
                inputs: if filter.folded { panel.inputs * g.kernel } else { panel.inputs },
                panel: panel.data,
                stored: panel.stored,
                out: scratch.out[rows.start..].as_ptr(),
                column: panel.c_out,
                columns: panel.columns,
                bias: scratch.bias[rows.start..].as_ptr(),
                bias_column,
                constant: panel.constant,
                residual: call.residual,
                act: call.act,
            };
            micro::compute(isa, &tile);
        }
    }
}

/// A panel ready to be multiplied with.
struct Ready<E> {
    data: *const E,
    stored: usize,
    /// First input channel and number of input channels, by position in the rows.
    c_in: usize,
    inputs: usize,
    /// First output channel and number of them, by position in the rows.
    c_out: usize,
    columns: usize,
    constant: *const f32,
}

/// The panel as it was packed at load.
fn whole<E: Element>(
    filter: &Filter<E>,
    column: usize,
    scratch: &mut Scratch<E>,
    rows: usize,
) -> Option<(Ready<E>, usize)> {
    let Panel { c_out, columns, c_in, inputs, stored, offset } = filter.panels[column];
    for i in 0..rows {
        scratch.bias[i] = filter.bias[scratch.class[i] as usize * filter.bias_stride..].as_ptr();
    }
    let constant =
        filter.output_constant.as_ref().map_or(std::ptr::null(), |constant| constant[c_out..].as_ptr());
    let data = filter.data.as_slice()[offset..].as_ptr();
    Some((Ready { data, stored, c_in, inputs, c_out, columns, constant }, c_out))
}

/// Packs the active part of what the `column`-th panel stands for.
fn some<E: Element>(
    filter: &Filter<E>,
    job: &Job<'_>,
    column: usize,
    scratch: &mut Scratch<E>,
    rows: usize,
) -> Option<(Ready<E>, usize)> {
    let g = filter.geometry();
    let within = |list: &[u32], from: usize, len: usize| {
        let position = |c: usize| list.partition_point(|&active| (active as usize) < c);
        position(from)..position(from + len)
    };
    // Positions in the lists and the channels themselves.
    let width = filter.panel_width;
    let (out_span, window) = if g.groups == 1 {
        let len = job.c_out.map_or(g.c_out, <[u32]>::len);
        (column * width..len.min((column + 1) * width), 0..g.c_in)
    } else {
        let panel = filter.panels[column];
        let all = panel.c_out..panel.c_out + panel.columns;
        let span = job.c_out.map_or(all, |list| within(list, panel.c_out, panel.columns));
        (span, panel.c_in..panel.c_in + panel.inputs)
    };
    if out_span.is_empty() {
        return None;
    }
    let in_span = job.c_in.map_or(window.clone(), |list| within(list, window.start, window.len()));
    let stored = out_span.len().next_multiple_of(filter.lanes);
    let runs = Runs::new(filter, job.c_out, out_span.clone());
    let packed = scratch.packed.as_mut_slice().as_mut_ptr();
    let source = filter.data.as_slice().as_ptr();
    let mut row = 0;
    for tap in 0..g.kernel * g.kernel {
        for position in in_span.clone() {
            let c = job.c_in.map_or(position, |list| list[position] as usize) - window.start;
            // SAFETY: the scratch was reserved for all inputs × the panel width, plus slack; every run's source has
            // slack behind it. Later runs and rows overwrite what an earlier copy wrote beyond its end.
            unsafe { runs.copy(source, tap, c, packed.add(row * stored)) };
            row += 1;
        }
    }
    let channel = |position: usize| job.c_out.map_or(position, |list| list[position] as usize);
    for class in 0..filter.bias.len() / filter.bias_stride {
        for (j, position) in out_span.clone().enumerate() {
            scratch.packed_bias[class * width + j] =
                filter.bias[class * filter.bias_stride + channel(position)];
        }
    }
    let constant = filter.output_constant.as_ref().map_or(std::ptr::null(), |constant| {
        for (j, position) in out_span.clone().enumerate() {
            scratch.packed_constant[j] = constant[channel(position)];
        }
        scratch.packed_constant.as_ptr()
    });
    for i in 0..rows {
        scratch.bias[i] = scratch.packed_bias[scratch.class[i] as usize * width..].as_ptr();
    }
    let (c_in, inputs, c_out, columns) = (in_span.start, in_span.len(), out_span.start, out_span.len());
    Some((Ready { data: packed, stored, c_in, inputs, c_out, columns, constant }, 0))
}

/// Columns to pack, as runs that are neighbours in a source panel.
struct Runs {
    runs: [Run; 64],
    len: usize,
}

#[derive(Clone, Copy, Default)]
struct Run {
    /// Offset of the run in its panel's first row.
    source: usize,
    /// Elements from one row of the panel to the next, and from one tap to the next.
    row: usize,
    tap: usize,
    target: usize,
    len: usize,
}

impl Runs {
    fn new<E: Element>(filter: &Filter<E>, list: Option<&[u32]>, span: Range<usize>) -> Self {
        let mut runs = Runs { runs: [Run::default(); 64], len: 0 };
        let (mut next, mut panel_at) = (usize::MAX, 0);
        for (target, position) in span.enumerate() {
            let o = list.map_or(position, |list| list[position] as usize);
            while filter.panels[panel_at].c_out + filter.panels[panel_at].columns <= o {
                panel_at += 1;
                next = usize::MAX;
            }
            if o == next {
                runs.runs[runs.len - 1].len += 1;
            } else {
                let panel = &filter.panels[panel_at];
                let source = panel.offset + o - panel.c_out;
                let (row, tap) = (panel.stored, panel.inputs * panel.stored);
                runs.runs[runs.len] = Run { source, row, tap, target, len: 1 };
                runs.len += 1;
            }
            next = o + 1;
        }
        runs
    }

    /// Copies one row (tap, input channel) of every run.
    ///
    /// # Safety
    /// `source` is the packed filter, and 64 elements may be written from `target` and 16 behind.
    #[inline(always)]
    unsafe fn copy<E: Element>(&self, source: *const E, tap: usize, c: usize, target: *mut E) {
        for run in &self.runs[..self.len] {
            // SAFETY: in steps of 16, at most 15 elements past the run on either side, as the caller allows.
            unsafe {
                let from = source.add(run.source + tap * run.tap + c * run.row);
                let to = target.add(run.target);
                let mut at = 0;
                while at < run.len {
                    std::ptr::copy_nonoverlapping(from.add(at), to.add(at), 16);
                    at += 16;
                }
            }
        }
    }
}

/// Fills in the pointers of the rows of one tile (`rows` counted from `first`).
fn point<E: Element>(
    filter: &Filter<E>,
    call: &GatherGemm<'_, E>,
    first: usize,
    rows: Range<usize>,
    n_taps: usize,
    scratch: &mut Scratch<E>,
    output: *mut E,
) {
    let g = filter.geometry();
    let height = rows.len();
    let taps = &mut scratch.taps[rows.start * n_taps..rows.end * n_taps];
    let input = call.input.as_ptr();
    let classes = filter.bias.len() > filter.bias_stride;
    let decode = classes || !g.is_pointwise();
    let (out_pixels, out_w) = (g.output.pixels(), g.output.w);
    for (slot, i) in rows.enumerate() {
        let row = first + i;
        let pixel = call.active.rows.pixel(row);
        let at = if call.output_rows == Placement::Natural { pixel } else { row };
        // SAFETY: `check` made sure that the output holds this row.
        scratch.out[i] = unsafe { output.add(at * g.c_out) };
        if !decode {
            let at = if call.input_rows == Placement::Natural { pixel } else { row };
            scratch.class[i] = 0;
            // SAFETY: `check` made sure that the input holds this row.
            taps[slot] = unsafe { input.add(at * g.c_in) };
            continue;
        }
        let (n, within) = (pixel / out_pixels, pixel % out_pixels);
        let (y, x) = (within / out_w, within % out_w);
        scratch.class[i] = filter.class(y, x) as u32;
        if g.is_pointwise() {
            let at = if call.input_rows == Placement::Natural { pixel } else { row };
            // SAFETY: as above.
            taps[slot] = unsafe { input.add(at * g.c_in) };
            continue;
        }
        let (iy, ix) =
            ((y * g.stride) as isize - g.pad_top as isize, (x * g.stride) as isize - g.pad_left as isize);
        let sample = (n * g.input.pixels()) as isize;
        let origin = (sample + iy * g.input.w as isize + ix) * g.c_in as isize;
        let line = (g.input.w * g.c_in) as isize;
        if filter.folded {
            for r in 0..g.kernel {
                taps[r * height + slot] = input.wrapping_offset(origin + r as isize * line);
            }
            continue;
        }
        let k = g.kernel as isize;
        let inside = iy >= 0 && ix >= 0 && iy + k <= g.input.h as isize && ix + k <= g.input.w as isize;
        for r in 0..k {
            for s in 0..k {
                let hit = inside
                    || ((0..g.input.h as isize).contains(&(iy + r))
                        && (0..g.input.w as isize).contains(&(ix + s)));
                let pointer = input.wrapping_offset(origin + r * line + s * g.c_in as isize);
                let tap = (r * k + s) as usize;
                taps[tap * height + slot] = if hit { pointer } else { scratch.zeros.as_slice().as_ptr() };
            }
        }
    }
}
