//! What products read of a block of rows: windows of sixteen, whose rows lie evenly.

use super::super::micro::Segment;
use super::super::panel::Meets;
use super::super::rows::{Cursor, point_in};
use super::super::scratch::Scratch;
use super::super::{Filter, GatherGemm, Placement};
use super::lines::{Lines, map};
use crate::simd::tiles::{SIDE, begin, in_turn, step_len, without_sign};
use crate::simd::{Simd, dispatch};
use crate::{ConvGeometry, Element, Isa};
use std::ops::Range;

/// Up to sixteen rows of a block that a tile reads.
#[derive(Clone, Copy)]
pub(in super::super) struct Window<E> {
    /// What row 0 of the tile reads.
    pub(super) start: *const E,
    /// First row of the block and number of them; which rows of the tile they are stands elsewhere.
    pub(super) first: u32,
    pub(super) rows: u32,
}

/// Rows that lie evenly, without or with what was copied for them.
pub(in super::super) struct Operand<E> {
    /// Windows, two of which make a product.
    pub(super) windows: Vec<Window<E>>,
    /// For each row of the block, which row of its product it is.
    pub(super) at: Vec<u8>,
    /// Bytes from a window's start to what each step reads, and turns that there are of it.
    pub(super) offsets: Vec<usize>,
    pub(super) turns: Vec<u8>,
    /// What the sums of each window's rows begin with, where it is not zero; else empty.
    pub(super) begin: Vec<[i32; SIDE]>,
    /// Bytes from one row of a tile to the next.
    pub(super) pitch: usize,
    /// The input channels and steps it is of.
    of: Option<Range<usize>>,
    /// Lines of maps that are copied.
    pub(super) strips: Vec<Lines>,
    /// Whether the taps of the block's rows are filled in.
    pointed: bool,
    /// Whether it pays to copy those with so many channels; then the windows are in them.
    pub(super) mapped: Option<(usize, bool)>,
}

impl<E> Default for Operand<E> {
    fn default() -> Self {
        Self {
            windows: vec![],
            at: vec![],
            offsets: vec![],
            turns: vec![],
            begin: vec![],
            pitch: 0,
            of: None,
            strips: vec![],
            pointed: false,
            mapped: None,
        }
    }
}

impl<E> Operand<E> {
    /// Room for blocks of `rows` rows and reductions over `depth`.
    pub(in super::super) fn reserve(&mut self, rows: usize, depth: usize) {
        self.forget();
        self.at.clear();
        self.offsets.clear();
        self.strips.clear();
        self.windows.reserve(rows);
        self.at.reserve(rows);
        self.offsets.reserve(depth.div_ceil(step_len::<E>()));
        self.turns.clear();
        self.turns.reserve(depth.div_ceil(step_len::<E>()));
        self.begin.clear();
        self.begin.reserve(rows);
        self.strips.reserve(rows);
    }

    /// What there is is of another block.
    pub(in super::super) fn forget(&mut self) {
        self.of = None;
        self.mapped = None;
        self.pointed = false;
        self.windows.clear();
    }

    /// Fills in how many turns there are of each step of runs of `run` values, each of which begins with a step.
    fn count_turns(&mut self, run: usize) {
        let (step, turn) = (step_len::<E>(), in_turn::<E>());
        let steps = run.div_ceil(step).max(1);
        let left = |i: usize| run - i % steps * step;
        let turns = (0..self.offsets.len()).map(|i| left(i).min(step).div_ceil(turn) as u8);
        self.turns.clear();
        self.turns.extend(turns);
    }

    /// Windows of rows that follow each other, `pitch` apart. With `ends` nothing may be read behind the last.
    fn consecutive(&mut self, start: *const E, rows: usize, pitch: usize, ends: bool) {
        self.windows.clear();
        self.at.clear();
        for first in (0..rows).step_by(SIDE) {
            let count = SIDE.min(rows - first);
            let skipped = if ends { SIDE - count } else { 0 };
            let start = start.wrapping_byte_add((first - skipped) * pitch);
            let odd = first % (2 * SIDE);
            self.at.extend((skipped..skipped + count).map(|at| (odd + at) as u8));
            self.windows.push(Window { start, first: first as u32, rows: count as u32 });
        }
        self.pitch = pitch;
    }
}

impl<E: Element> Operand<E> {
    /// Fills in what the sums of each window begin with.
    fn begin(&mut self, isa: Isa) {
        let Self { windows, offsets, turns, pitch, .. } = self;
        // SAFETY: windows are of sixteen rows that can be read.
        let of_window = |window: &Window<E>| unsafe { begin(isa, (window.start, *pitch), offsets, turns) };
        self.begin.clear();
        self.begin.extend(windows.iter().map(of_window));
    }
}

/// Bytes from one copied row to the next, for `channels` values: an odd number of cache lines, so that rows lie in different
/// sets of the first-level cache.
pub(super) fn pitch<E>(channels: usize) -> usize {
    let lines = channels.div_ceil(step_len::<E>());
    64 * (lines + usize::from(lines.is_multiple_of(2)))
}

/// Steps of a reduction.
pub(super) fn depth(segments: &[Segment]) -> usize {
    segments.last().map_or(0, |last| (last.panel_row + last.inputs) as usize)
}

/// Readies what the `rows` rows of a block from `first_row` on read, for the reduction in `scratch`.
pub(super) fn ready<E: Element>(
    isa: Isa,
    filter: &Filter<E>,
    call: &GatherGemm<'_, [E]>,
    (first_row, rows): (usize, usize),
    n_taps: usize,
    scratch: &mut Scratch<E>,
) {
    let g = filter.geometry();
    // Of the first tap; folded taps are longer than a pixel's channels.
    let first = scratch.segments.first().map_or(0, |segment| segment.c_in as usize);
    let depth = depth(&scratch.segments);
    let len = depth / n_taps;
    let of = Some(first..depth);
    if scratch.operand.of == of {
        return;
    }
    let even = g.is_pointwise() && (call.input_rows == Placement::Compact || call.active.rows.is_all());
    let whole = len > 0 && len.is_multiple_of(step_len::<E>());
    let channels = first..first + len;
    // Behind a row's last channel a step may read the next row's first, which meet weights that are zero (and so have to be
    // finite).
    let reach = (first_row + rows) * g.c_in + depth.next_multiple_of(step_len::<E>()) - len;
    let follows = len == g.c_in && reach <= call.active.rows.len() * g.c_in;
    // Values that are met one after another from where a step begins.
    let mut run = depth;
    if even && (whole || follows) && rows >= SIDE {
        let start = call.input.as_ptr().wrapping_add(first_row * g.c_in + first);
        scratch.operand.consecutive(start, rows, g.c_in * size_of::<E>(), true);
        step_by_step(&mut scratch.operand, depth);
    } else if n_taps < g.kernel * g.kernel && filter.lines {
        run = len;
        if !along_lines(g, call, (first_row, rows), scratch) {
            gathered(isa, filter, call, (first_row, rows), n_taps, (channels, 1), scratch);
        }
    } else {
        // Panels that were packed lie in another order.
        let lines = filter.lines && scratch.meets == Meets::Stream;
        let together = if lines { g.kernel } else { n_taps };
        run = together * len;
        let maps = g.kernel > 1 && n_taps == g.kernel * g.kernel && (whole || lines && len > 0);
        if !(maps && map(isa, g, call, (first_row, rows), (&channels, lines), scratch)) {
            gathered(isa, filter, call, (first_row, rows), n_taps, (channels, together), scratch);
        }
    }
    scratch.operand.of = of;
    scratch.operand.count_turns(run);
    if without_sign::<E>(isa) {
        scratch.operand.begin(isa);
    }
}

/// Windows of sixteen neighbouring output pixels, whose kernel rows are read where they lie: what a step reads behind one meets
/// weights that are zero (so it has to be finite, as a session's images are). False where the output is narrower, some pixels
/// are inactive, or the input ends too soon.
fn along_lines<E: Element>(
    g: &ConvGeometry,
    call: &GatherGemm<'_, [E]>,
    (first_row, rows): (usize, usize),
    scratch: &mut Scratch<E>,
) -> bool {
    if !call.active.rows.is_all() || g.output.w < SIDE || rows == 0 {
        return false;
    }
    let operand = &mut scratch.operand;
    operand.windows.clear();
    operand.at.clear();
    operand.pitch = g.stride * g.c_in * size_of::<E>();
    let mut cursor = Cursor::new(g.output, first_row);
    let mut row = 0;
    while row < rows {
        let (n, y, x) = cursor.locate(first_row + row);
        let pixel = (n * g.input.h + y * g.stride) * g.input.w + x * g.stride;
        let count = SIDE.min(g.output.w - x).min(rows - row);
        let skipped = SIDE.saturating_sub(g.output.w - x);
        let start =
            call.input.as_ptr().wrapping_add(pixel * g.c_in).wrapping_byte_sub(skipped * operand.pitch);
        let odd = SIDE * (operand.windows.len() % 2);
        operand.at.extend((skipped..skipped + count).map(|at| (odd + at) as u8));
        operand.windows.push(Window { start, first: row as u32, rows: count as u32 });
        row += count;
    }
    let line = g.input.w * g.c_in * size_of::<E>();
    operand.offsets.clear();
    operand.offsets.extend((0..g.kernel).map(|r| r * line));
    let last = operand.windows[operand.windows.len() - 1].start.addr();
    let reach = last + (SIDE - 1) * operand.pitch + (g.kernel - 1) * line + 64;
    reach <= call.input.as_ptr_range().end.addr()
}

/// Windows of rows that are copied: `channels` of every tap, and of how many taps together the first begins a step.
fn gathered<E: Element>(
    isa: Isa,
    filter: &Filter<E>,
    call: &GatherGemm<'_, [E]>,
    (first_row, rows): (usize, usize),
    n_taps: usize,
    (channels, together): (Range<usize>, usize),
    scratch: &mut Scratch<E>,
) {
    if !scratch.operand.pointed {
        point_in(filter, call, first_row, 0..rows, n_taps, scratch);
        scratch.operand.pointed = true;
    }
    let depth = n_taps / together * (together * channels.len()).next_multiple_of(step_len::<E>());
    let pitch = pitch::<E>(depth);
    assert!(rows.next_multiple_of(SIDE) * pitch <= scratch.gathered.len() * size_of::<E>());
    let to = scratch.gathered.as_mut_slice().as_mut_ptr();
    gather(isa, &scratch.taps[..rows * n_taps], n_taps, (channels, together), to);
    scratch.operand.consecutive(to, rows, pitch, false);
    step_by_step(&mut scratch.operand, depth);
}

/// Every step reads what follows.
fn step_by_step<E>(operand: &mut Operand<E>, depth: usize) {
    operand.offsets.clear();
    operand.offsets.extend((0..depth.div_ceil(step_len::<E>())).map(|step| 64 * step));
}

dispatch! {
    /// Copies what each row reads of every tap next to each other. `taps` are `[n_taps][rows]` pointers to whole pixels, of
    /// which `channels` are read. Some taps are `together`, in the order of `place_in_blocks`, with zeros behind them.
    fn gather<E>(taps: &[*const E], n_taps: usize, channels: (Range<usize>, usize), to: *mut E) = gather_set
}

#[inline(always)]
fn gather_set<S: Simd, E: Element>(
    taps: &[*const E],
    n_taps: usize,
    (channels, together): (Range<usize>, usize),
    to: *mut E,
) {
    let len = channels.len();
    let filled = (together * len).next_multiple_of(step_len::<E>());
    let (rows, pitch) = (taps.len() / n_taps, pitch::<E>(n_taps / together * filled));
    // Neighbours in a line are met tap by tap, others some channels of all taps at a time.
    let width = if together < n_taps { len } else { step_len::<E>() };
    for row in 0..rows {
        let mut to = to.wrapping_byte_add(row * pitch);
        for first in (0..n_taps).step_by(together) {
            let mut at = to;
            // SAFETY: taps point to whole pixels; there is room for whole steps of every row.
            unsafe {
                for block in (0..len).step_by(width) {
                    for tap in first..first + together {
                        let from = taps[tap * rows + row].add(channels.start + block);
                        let width = width.min(len - block);
                        copy_all(from, at, width);
                        at = at.add(width);
                    }
                }
                at.write_bytes(0, filled - together * len);
                to = to.add(filled);
            }
        }
    }
}

/// Copies elements.
///
/// # Safety
/// They can be read and written.
#[inline(always)]
pub(super) unsafe fn copy_all<E: Element>(from: *const E, to: *mut E, len: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        let (from, to, len) = (from.cast::<u8>(), to.cast::<u8>(), len * size_of::<E>());
        let mut at = 0;
        while at + LINE <= len {
            copy(from.add(at), to.add(at), LINE);
            at += LINE;
        }
        if at < len {
            copy(from.add(at), to.add(at), len - at);
        }
    }
}

/// Bytes of a cache line, and of a step.
const LINE: usize = 64;

/// Copies up to [`LINE`] bytes.
///
/// # Safety
/// They can be read and written.
#[inline(always)]
unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    macro_rules! ends {
        ($half:literal) => {{
            std::ptr::copy_nonoverlapping(from, to, $half);
            std::ptr::copy_nonoverlapping(from.add(len - $half), to.add(len - $half), $half);
        }};
    }
    // SAFETY: the caller's promise. Of a length between two powers the ends are copied, which overlap.
    unsafe {
        match len {
            LINE => std::ptr::copy_nonoverlapping(from, to, LINE),
            32.. => ends!(32),
            16.. => ends!(16),
            8.. => ends!(8),
            _ => std::ptr::copy_nonoverlapping(from, to, len),
        }
    }
}
