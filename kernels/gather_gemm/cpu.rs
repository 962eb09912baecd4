//! gather_gemm on the CPU: cuts the work into chunks of rows × columns, turns rows into pointers, packs the active
//! columns where only some are, and runs the register tile over it.

use super::filter::{Panel, SLACK};
use super::micro::{self, Segment, Strip};
use super::pack::{self, Columns, segments};
use super::{Filter, GatherGemm, Placement};
use crate::{Buffer, Element, Extent, Isa, Result, Team};
use std::ops::Range;

/// Rows whose pointers are set up together; their input stays in the second-level cache while panels pass by.
const BLOCK_ROWS: usize = 144;
/// The same where every block packs its panels anew, which more rows must pay for.
const PACKED_BLOCK_ROWS: usize = 448;
/// Weights up to this size stay in the second-level cache next to a block of rows.
const RESIDENT_BYTES: usize = 320 << 10;
/// Chunks for each thread, so that a thread that is held up does not hold up the others.
const CHUNKS_PER_THREAD: usize = 4;

/// Working memory of one thread.
pub struct Scratch<E> {
    taps: Vec<*const E>,
    out: Vec<*mut E>,
    class: Vec<u32>,
    segments: Vec<Segment>,
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
            class: vec![],
            segments: vec![],
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
        let rows = if channels { PACKED_BLOCK_ROWS } else { BLOCK_ROWS } + filter.max_rows;
        let taps = rows * g.kernel * g.kernel;
        self.taps.resize(self.taps.len().max(taps), std::ptr::null());
        self.out.resize(self.out.len().max(rows), std::ptr::null_mut());
        self.class.resize(self.class.len().max(rows), 0);
        let inputs = filter.panels.iter().map(|panel| panel.inputs).max().unwrap_or(0);
        let runs = if channels { inputs.div_ceil(2) } else { inputs.div_ceil(16) };
        self.segments.clear();
        self.segments.reserve(g.kernel * g.kernel * runs.max(g.kernel));
        if channels {
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
    team.for_each(total, |mut chunk, worker| {
        // SAFETY: overlapping calls have different workers, so each has its own scratch.
        let scratch = unsafe { &mut *scratch.get().add(worker) };
        for n in 0..jobs {
            let job = job(filter, call, threads, jobs, n);
            if chunk < job.chunks() {
                return run_chunk(isa, threads, filter, call, &job, chunk, scratch, output.get());
            }
            chunk -= job.chunks();
        }
    });
    Ok(())
}

fn job<'a, E: Element>(
    filter: &Filter<E>,
    call: &GatherGemm<'a, [E]>,
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
    let block_rows = if c_out.is_some() { PACKED_BLOCK_ROWS } else { BLOCK_ROWS };
    let blocks = rows.len().div_ceil(block_rows);
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

#[allow(clippy::too_many_arguments)]
fn run_chunk<E: Element>(
    isa: Isa,
    threads: usize,
    filter: &Filter<E>,
    call: &GatherGemm<'_, [E]>,
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
    let g = filter.geometry();
    let folded = filter.folded && job.c_in.is_none() && job.c_out.is_none();
    let n_taps = if folded { g.kernel } else { g.kernel * g.kernel };
    let (height, taller) = (block.len() / tiles, block.len() % tiles);
    let mut start = 0;
    for t in 0..tiles {
        let end = start + height + usize::from(t < taller);
        point(filter, call, block.start, start..end, n_taps, scratch, output);
        start = end;
    }
    for column in columns.clone() {
        let Some(panel) = prepare(isa, filter, job, column, scratch) else { continue };
        let bias = if panel.packed { &scratch.packed_bias[..] } else { &filter.bias[panel.c_out..] };
        // Whoever takes the chunk after next finds its panel on the way; in between come the other threads.
        let next = if column + 1 < columns.end {
            column + 1
        } else {
            column + 1 + job.columns_per_chunk * (threads - 1)
        };
        let (ahead, ahead_bytes) = match filter.panels.get(next) {
            Some(next) if !panel.packed && next.offset > 0 => {
                let bytes = g.kernel * g.kernel * next.inputs * next.stored * size_of::<E>();
                (filter.data.as_slice()[next.offset..].as_ptr().cast(), bytes)
            }
            _ => (std::ptr::null(), 0),
        };
        let strip = Strip {
            taps: scratch.taps.as_ptr(),
            n_taps,
            rows: block.len(),
            tiles,
            segments: &scratch.segments,
            panel: panel.data,
            stored: panel.stored,
            out: scratch.out.as_ptr(),
            column: panel.c_out,
            columns: panel.columns,
            bias: bias.as_ptr(),
            bias_stride: if panel.packed { filter.panel_width } else { filter.bias_stride },
            class: if filter.bias.len() > filter.bias_stride {
                scratch.class.as_ptr()
            } else {
                std::ptr::null()
            },
            constant: panel.constant,
            residual: call.residual,
            act: call.act,
            ahead,
            ahead_bytes,
        };
        micro::compute(isa, &strip);
    }
}

/// A panel ready to be multiplied with; its reduction is in the scratch.
struct Ready<E> {
    data: *const E,
    stored: usize,
    /// First output channel and number of them, by position in the rows.
    c_out: usize,
    columns: usize,
    constant: *const f32,
    /// Bias and constant were packed too.
    packed: bool,
}

/// Readies what the `column`-th panel stands for: as it was packed at load where all its columns are active, with
/// the active columns packed again where only some are. Inactive input channels are left out of the reduction.
fn prepare<E: Element>(
    isa: Isa,
    filter: &Filter<E>,
    job: &Job<'_>,
    column: usize,
    scratch: &mut Scratch<E>,
) -> Option<Ready<E>> {
    let g = filter.geometry();
    let within = |list: &[u32], from: usize, len: usize| {
        let position = |c: usize| list.partition_point(|&active| (active as usize) < c);
        position(from)..position(from + len)
    };
    // Positions in the lists, and the input channels the panel reads.
    let width = filter.panel_width;
    let (out_span, window) = match (job.c_out, g.groups) {
        (Some(list), 1) => (column * width..list.len().min((column + 1) * width), 0..g.c_in),
        (list, _) => {
            let Panel { c_out, columns, c_in, inputs, .. } = filter.panels[column];
            (list.map_or(c_out..c_out + columns, |list| within(list, c_out, columns)), c_in..c_in + inputs)
        }
    };
    if out_span.is_empty() {
        return None;
    }
    let in_span = job.c_in.map_or(window.clone(), |list| within(list, window.start, window.len()));
    let inputs = job.c_in.map(|list| &list[in_span.clone()]);
    scratch.segments.clear();
    if job.c_out.is_none() {
        segments(filter, &window, in_span, inputs, &mut scratch.segments);
        let Panel { c_out, columns, stored, offset, .. } = filter.panels[column];
        let constant =
            filter.output_constant.as_ref().map_or(std::ptr::null(), |constant| constant[c_out..].as_ptr());
        let data = filter.data.as_slice()[offset..].as_ptr();
        return Some(Ready { data, stored, c_out, columns, constant, packed: false });
    }
    let taps = g.kernel * g.kernel;
    let stored = out_span.len().next_multiple_of(filter.lanes);
    let channel = |position: usize| job.c_out.map_or(position, |list| list[position] as usize);
    let rows = in_span.len();
    let columns = Columns::new(filter, out_span.clone().map(channel));
    pack::copy(
        isa,
        &columns,
        filter.data.as_slice(),
        taps,
        inputs,
        &window,
        scratch.packed.as_mut_slice(),
        stored,
    );
    pack::every_input(taps, in_span.start, rows, &mut scratch.segments);
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
    let data = scratch.packed.as_slice().as_ptr();
    Some(Ready { data, stored, c_out: out_span.start, columns: out_span.len(), constant, packed: true })
}

/// Walks over the pixels of maps in ascending order without dividing.
struct Cursor {
    map: Extent,
    /// First pixel of the line, over the whole batch.
    line: usize,
    n: usize,
    y: usize,
}

impl Cursor {
    fn new(map: Extent, pixel: usize) -> Self {
        let (n, within) = (pixel / map.pixels(), pixel % map.pixels());
        Self { map, line: pixel - within % map.w, n, y: within / map.w }
    }

    /// Sample, row and column of `pixel`.
    #[inline(always)]
    fn locate(&mut self, pixel: usize) -> (usize, usize, usize) {
        if pixel - self.line >= 4 * self.map.w {
            *self = Self::new(self.map, pixel);
        }
        while pixel - self.line >= self.map.w {
            self.line += self.map.w;
            self.y += 1;
            if self.y == self.map.h {
                (self.n, self.y) = (self.n + 1, 0);
            }
        }
        (self.n, self.y, pixel - self.line)
    }
}

/// Fills in the pointers of the rows of one tile (`rows` counted from `first`).
fn point<E: Element>(
    filter: &Filter<E>,
    call: &GatherGemm<'_, [E]>,
    first: usize,
    rows: Range<usize>,
    n_taps: usize,
    scratch: &mut Scratch<E>,
    output: *mut E,
) {
    let g = filter.geometry();
    let height = rows.len();
    let taps = &mut scratch.taps[rows.start * n_taps..rows.end * n_taps];
    let (out, class) = (&mut scratch.out[rows.clone()], &mut scratch.class[rows.clone()]);
    let input = call.input.as_ptr();
    let active = call.active.rows;
    let first = first + rows.start;
    for (slot, out) in out.iter_mut().enumerate() {
        let at =
            if call.output_rows == Placement::Natural { active.pixel(first + slot) } else { first + slot };
        *out = output.wrapping_add(at * g.c_out);
    }
    let classes = filter.bias.len() > filter.bias_stride;
    if g.is_pointwise() {
        for (slot, tap) in taps.iter_mut().enumerate() {
            let at =
                if call.input_rows == Placement::Natural { active.pixel(first + slot) } else { first + slot };
            *tap = input.wrapping_add(at * g.c_in);
        }
        return;
    }
    let mut cursor = Cursor::new(g.output, active.pixel(first));
    let line = g.input.w * g.c_in;
    let zeros = scratch.zeros.as_slice().as_ptr();
    for slot in 0..height {
        let (n, y, x) = cursor.locate(active.pixel(first + slot));
        if classes {
            class[slot] = filter.class(y, x) as u32;
        }
        // Wraps below zero where the kernel hangs over the edge.
        let (iy, ix) = ((y * g.stride).wrapping_sub(g.pad_top), (x * g.stride).wrapping_sub(g.pad_left));
        let origin = (n * g.input.pixels()).wrapping_add(iy.wrapping_mul(g.input.w)).wrapping_add(ix);
        let origin = input.wrapping_add(origin.wrapping_mul(g.c_in));
        let mut tap = slot;
        if n_taps < g.kernel * g.kernel {
            for r in 0..g.kernel {
                taps[tap] = origin.wrapping_add(r * line);
                tap += height;
            }
            continue;
        }
        let inside = |at: usize, size: usize| at < size && at + g.kernel <= size;
        if inside(iy, g.input.h) && inside(ix, g.input.w) {
            for r in 0..g.kernel {
                for s in 0..g.kernel {
                    taps[tap] = origin.wrapping_add(r * line + s * g.c_in);
                    tap += height;
                }
            }
            continue;
        }
        for r in 0..g.kernel {
            for s in 0..g.kernel {
                let hit = iy.wrapping_add(r) < g.input.h && ix.wrapping_add(s) < g.input.w;
                taps[tap] = if hit { origin.wrapping_add(r * line + s * g.c_in) } else { zeros };
                tap += height;
            }
        }
    }
}
