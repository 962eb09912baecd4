//! gather_gemm on the CPU: cuts the work into chunks of rows × columns, turns rows into pointers, packs the active
//! columns where only some are, and runs the register tile over it.

use super::filter::{Panel, SLACK};
use super::micro::{self, MAX_UNITS, PanelRows, Segment, Strip, UNIT};
use super::pack::{self, Columns};
use super::{Filter, GatherGemm, Placement};
use crate::{Buffer, Element, Extent, Isa, Result, Team};
use std::ops::Range;

/// Rows whose pointers are set up together; their input stays in the second-level cache while panels pass by.
const BLOCK_ROWS: usize = 144;
/// With some columns active, up to this many rows are one block: their inputs are few, the columns come from far.
const FEW_ROWS: usize = 250;
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
    /// Steps of the reduction, and the positions of the input channels it reads.
    depth: usize,
    inputs: Range<usize>,
    /// Where each step's row lies in a panel, in units of `scaled` elements.
    offsets: Vec<u32>,
    scaled: usize,
    zeros: Buffer<E>,
    sums: Buffer<f32>,
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
            depth: 0,
            inputs: 0..0,
            offsets: vec![],
            scaled: 1,
            zeros,
            sums: Buffer::zeroed(0, "scratch")?,
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
        let rows = if channels { FEW_ROWS } else { BLOCK_ROWS } + filter.max_rows;
        let taps = rows * g.kernel * g.kernel;
        self.taps.resize(self.taps.len().max(taps), std::ptr::null());
        if self.sums.len() < rows * filter.panel_width {
            self.sums = Buffer::zeroed(rows * filter.panel_width, "sums")?;
        }
        self.out.resize(self.out.len().max(rows), std::ptr::null_mut());
        self.class.resize(self.class.len().max(rows), 0);
        let inputs = filter.panels.iter().map(|panel| panel.inputs).max().unwrap_or(0);
        self.segments.clear();
        self.segments.reserve(g.kernel * g.kernel * (inputs / 64 + 1));
        if channels {
            self.offsets.clear();
            self.offsets.reserve(g.kernel * g.kernel * inputs);
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
    /// Tiles, which share the rows evenly, and pieces these are cut into.
    tiles: usize,
    blocks: usize,
    /// Panels, or runs of active columns as wide as one.
    columns: usize,
    /// Pieces these are cut into.
    parts: usize,
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
        return Job { rows, c_in, c_out, tiles: 0, blocks: 0, columns: 0, parts: 0 };
    }
    let wanted = if threads == 1 { 1 } else { (threads * CHUNKS_PER_THREAD).div_ceil(jobs) };
    let block_rows = if c_out.is_some() && rows.len() <= FEW_ROWS { FEW_ROWS } else { BLOCK_ROWS };
    let tiles = rows.len().div_ceil(filter.max_rows);
    let blocks = rows.len().div_ceil(block_rows);
    let bytes = filter.bytes() / filter.panels.len() * columns;
    let few = bytes <= RESIDENT_BYTES && c_out.is_none() && c_in.is_none();
    let blocks = if few { blocks.max(wanted.min(tiles)) } else { blocks };
    let parts = wanted.div_ceil(blocks).min(columns);
    Job { rows, c_in, c_out, tiles, blocks, columns, parts }
}

/// Start of piece `i` of `0..len` cut evenly into `pieces`.
fn piece(len: usize, pieces: usize, i: usize) -> usize {
    len * i / pieces
}

#[allow(clippy::too_many_arguments)]
fn run_chunk<E: Element>(
    isa: Isa,
    filter: &Filter<E>,
    call: &GatherGemm<'_, [E]>,
    job: &Job<'_>,
    chunk: usize,
    scratch: &mut Scratch<E>,
    output: *mut E,
) {
    let (block, part) = (chunk % job.blocks, chunk / job.blocks);
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
        point(filter, call, block.start, start..end, n_taps, scratch, output);
        start = end;
    }
    reduce(filter, job, folded, scratch);
    for column in columns.clone() {
        let Some(panel) = prepare(isa, filter, job, column, scratch) else { continue };
        // Most often the next chunk is this thread's too.
        let next = column + 1;
        let next = if g.groups == 1 && next < job.columns { place(filter, job, next, scratch) } else { None };
        let (packed, classes) = (panel.packed, filter.bias.len() > filter.bias_stride);
        let bias = if packed { &scratch.packed_bias[..] } else { &filter.bias[panel.c_out..] };
        let sums = scratch.sums.as_mut_slice().as_mut_ptr();
        let strip = Strip {
            taps: scratch.taps.as_ptr(),
            n_taps,
            rows: block.len(),
            tiles,
            segments: &scratch.segments,
            panel: panel.rows,
            stored: panel.stored,
            out: scratch.out.as_ptr(),
            column: panel.c_out,
            columns: panel.columns,
            bias: bias.as_ptr(),
            bias_stride: if packed { filter.panel_width } else { filter.bias_stride },
            class: if classes { scratch.class.as_ptr() } else { std::ptr::null() },
            constant: panel.constant,
            residual: call.residual,
            act: call.act,
            sums,
            next,
        };
        micro::compute(isa, &strip);
    }
}

/// A panel ready to be multiplied with.
struct Ready<E> {
    rows: PanelRows<E>,
    stored: usize,
    /// First output channel and number of them, by position in the rows.
    c_out: usize,
    columns: usize,
    constant: *const f32,
    /// Bias and constant are those of the active columns, put next to each other.
    packed: bool,
}

/// Positions of the channels `from..from + len` in an ascending list.
fn within(list: &[u32], from: usize, len: usize) -> Range<usize> {
    let position = |c: usize| list.partition_point(|&active| (active as usize) < c);
    position(from)..position(from + len)
}

/// The reduction of a chunk whose panels all read the same input channels: segments, and where only some channels
/// are active the offsets of their rows in a panel. Grouped filters do it panel by panel.
fn reduce<E: Element>(filter: &Filter<E>, job: &Job<'_>, folded: bool, scratch: &mut Scratch<E>) {
    let g = filter.geometry();
    if g.groups == 1 {
        reduce_window(filter, job, &(0..g.c_in), folded, scratch);
    }
}

fn reduce_window<E: Element>(
    filter: &Filter<E>,
    job: &Job<'_>,
    window: &Range<usize>,
    folded: bool,
    scratch: &mut Scratch<E>,
) {
    let kernel = filter.geometry().kernel;
    let positions = job.c_in.map_or(window.clone(), |list| within(list, window.start, window.len()));
    let (taps, inputs) =
        if folded { (kernel, kernel * window.len()) } else { (kernel * kernel, positions.len()) };
    scratch.segments.clear();
    pack::every_input(taps, positions.start, inputs, &mut scratch.segments);
    scratch.depth = taps * inputs;
    scratch.inputs = positions.clone();
    scratch.offsets.clear();
    if let Some(list) = job.c_in {
        // All panels but the last are equally wide, which scales the offsets.
        let offset = |tap: usize, c: u32| (tap * window.len() + c as usize - window.start) as u32;
        let list = &list[positions];
        scratch.offsets.extend((0..taps).flat_map(|tap| list.iter().map(move |&c| offset(tap, c))));
        scratch.scaled = 1;
    }
}

/// Scales the offsets to panels whose rows are `stored` long.
fn scale<E>(scratch: &mut Scratch<E>, stored: usize) {
    if scratch.scaled != stored {
        let before = scratch.scaled as u32;
        scratch.offsets.iter_mut().for_each(|offset| *offset = *offset / before * stored as u32);
        scratch.scaled = stored;
    }
}

/// Where the rows of the `column`-th panel lie, if they can be multiplied with as they are; with the offsets as they
/// are scaled now.
fn place<E: Element>(
    filter: &Filter<E>,
    job: &Job<'_>,
    column: usize,
    scratch: &Scratch<E>,
) -> Option<PanelRows<E>> {
    let data = filter.data.as_slice();
    let offsets = if job.c_in.is_some() { scratch.offsets.as_ptr() } else { std::ptr::null() };
    let Some(list) = job.c_out else {
        let panel = filter.panels[column];
        return Some(PanelRows::neighbours(data[panel.offset..].as_ptr(), offsets));
    };
    let width = filter.panel_width;
    let list = list.get(column * width..list.len().min((column + 1) * width))?;
    let mut units = [data.as_ptr(); MAX_UNITS];
    for (unit, channels) in units.iter_mut().zip(list.chunks(UNIT)) {
        let panel = filter.panels[channels[0] as usize / width];
        *unit = data[panel.offset + channels[0] as usize - panel.c_out..].as_ptr();
    }
    Some(PanelRows { units, offsets, scattered: true })
}

/// Whether active columns come in aligned units, so that they can be gathered while multiplying.
fn in_units<E: Element>(filter: &Filter<E>, list: &[u32]) -> bool {
    // The last panel may have shorter rows than the others.
    let whole = filter.geometry().c_out.is_multiple_of(filter.panel_width);
    whole
        && list.chunks(UNIT).all(|unit| {
            (unit[0] as usize).is_multiple_of(UNIT)
                && unit.len() == UNIT
                && unit[UNIT - 1] == unit[0] + UNIT as u32 - 1
        })
}

/// Readies what the `column`-th panel stands for. All its columns active: it is used as it was packed at load. Some
/// active: they are gathered while multiplying where they come in units, otherwise packed first.
fn prepare<E: Element>(
    isa: Isa,
    filter: &Filter<E>,
    job: &Job<'_>,
    column: usize,
    scratch: &mut Scratch<E>,
) -> Option<Ready<E>> {
    let g = filter.geometry();
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
    if g.groups > 1 {
        reduce_window(filter, job, &window, false, scratch);
    }
    let Some(list) = job.c_out else {
        let Panel { c_out, columns, stored, .. } = filter.panels[column];
        scale(scratch, stored);
        let constant = filter.output_constant.as_ref();
        let constant = constant.map_or(std::ptr::null(), |constant| constant[c_out..].as_ptr());
        let rows = place(filter, job, column, scratch)?;
        return Some(Ready { rows, stored, c_out, columns, constant, packed: false });
    };
    let channels = &list[out_span.clone()];
    let stored = channels.len().next_multiple_of(filter.lanes);
    for (packed, bias) in
        scratch.packed_bias.chunks_mut(width).zip(filter.bias.chunks_exact(filter.bias_stride))
    {
        packed.iter_mut().zip(channels).for_each(|(packed, &o)| *packed = bias[o as usize]);
    }
    let constant = filter.output_constant.as_ref().map_or(std::ptr::null(), |constant| {
        scratch
            .packed_constant
            .iter_mut()
            .zip(channels)
            .for_each(|(packed, &o)| *packed = constant[o as usize]);
        scratch.packed_constant.as_ptr()
    });
    let (c_out, columns) = (out_span.start, out_span.len());
    if g.groups == 1
        && filter.lanes >= UNIT
        && columns.is_multiple_of(filter.lanes)
        && in_units(filter, channels)
    {
        if job.c_in.is_none() && scratch.offsets.is_empty() {
            scratch.offsets.extend(0..scratch.depth as u32);
            scratch.scaled = 1;
        }
        scale(scratch, width);
        let mut rows = place(filter, job, column, scratch)?;
        rows.offsets = scratch.offsets.as_ptr();
        return Some(Ready { rows, stored, c_out, columns, constant, packed: true });
    }
    let inputs = job.c_in.map(|list| &list[scratch.inputs.clone()]);
    let panel = Columns::new(filter, channels.iter().map(|&o| o as usize));
    let (taps, packed) = (g.kernel * g.kernel, scratch.packed.as_mut_slice());
    pack::copy(isa, &panel, filter.data.as_slice(), taps, inputs, &window, packed, stored);
    let rows = PanelRows::neighbours(scratch.packed.as_slice().as_ptr(), std::ptr::null());
    Some(Ready { rows, stored, c_out, columns, constant, packed: true })
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
    for (slot, class) in class.iter_mut().enumerate() {
        let (n, y, x) = cursor.locate(active.pixel(first + slot));
        if classes {
            *class = filter.class(y, x) as u32;
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
