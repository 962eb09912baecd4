//! depthwise on the CPU: cuts the work into chunks of rows × channels, collects neighbouring rows into groups whose
//! input stays in the second-level cache, and passes over them once for every vector of channels.

use super::group::{Column, Group, SIZES, compute};
use super::{Depthwise, Filter};
use crate::gather_gemm::Placement;
use crate::simd::{Simd, dispatch};
use crate::{Act, Buffer, ConvGeometry, Disjoint, Element, Isa, Result, Rows, Team};
use std::ops::Range;

/// Chunks for each thread, so that a thread that is held up does not hold up the others.
const CHUNKS_PER_THREAD: usize = 4;
/// Channels that a chunk has at least where channels are cut.
const CHANNELS: usize = 64;
/// Groups collected together.
const GROUPS: usize = 64;
/// Input that groups collected together read, about.
const INPUT_BYTES: usize = 256 << 10;
/// Vectors of channels that are computed one after the other for a group: they are neighbours in memory. As many as
/// let the lines that a kernel sees stay in the first-level cache, for the lines below.
const COLUMNS: usize = 4;
const LINES_BYTES: usize = 28 << 10;
/// Largest kernel, taps.
pub(super) const MAX_TAPS: usize = 7 * 7;
/// Most lanes of a vector.
const LANES: usize = 16;

/// Runs one call.
///
/// # Errors
/// When an operand is too small for the geometry, before anything is written.
pub fn run<E: Element>(isa: Isa, team: &mut Team, filter: &Filter, call: Depthwise<'_, [E]>) -> Result<()> {
    call.check(filter)?;
    let (rows, channels, g) = (call.rows, call.channels, filter.geometry);
    let jobs = if channels.is_all() { 1 } else { rows.batch() };
    if rows.is_empty() || jobs == 0 {
        return Ok(());
    }
    let wanted = if team.threads() == 1 { 1 } else { (CHUNKS_PER_THREAD * team.threads()).div_ceil(jobs) };
    let output = Disjoint::new(call.output);
    let (input, act, output_rows) = (call.input, call.act, call.output_rows);
    team.for_each(jobs * wanted, |chunk, _| {
        let (n, chunk) = (chunk / wanted, chunk % wanted);
        let (range, count) = match channels.is_all() {
            true => (0..rows.len(), g.c_in),
            false => (rows.sample(n), channels.count(n)),
        };
        // Rows are cut between lines where lines are whole.
        let unit = if rows.is_all() { g.output.w } else { 1 };
        let units = range.len() / unit;
        let most_blocks = (count / CHANNELS).max(1);
        let (pieces, blocks) = if channels.is_all() {
            let pieces = wanted.min(units.max(1));
            (pieces, (wanted / pieces).min(most_blocks))
        } else {
            // Listed channels have their weights gathered for every chunk of rows: rather cut the channels.
            let blocks = wanted.min(most_blocks);
            (wanted / blocks, blocks)
        };
        if chunk >= pieces * blocks || range.is_empty() {
            return;
        }
        let (piece, block) = (chunk % pieces, chunk / pieces);
        let cut = |i: usize| range.start + units * i / pieces * unit;
        let edge = |i: usize| if i == blocks { count } else { count / LANES * i / blocks * LANES };
        let task = Task {
            filter,
            input: input.as_ptr(),
            output: output.pointer(0),
            list: channels.sample(n),
            channels: edge(block)..edge(block + 1),
            act,
        };
        let width = task.channels.len().max(1) * g.stride * g.stride * size_of::<E>();
        let most_rows = (INPUT_BYTES / width).max(SIZES[0]);
        let (mut at, end) = (cut(piece), cut(piece + 1));
        let mut groups = [Group::default(); GROUPS];
        while at < end {
            let (len, next) = collect(&g, rows, output_rows, at..end.min(at + most_rows), &mut groups);
            pass::<E>(isa, &task, &groups[..len]);
            at = next;
        }
    });
    Ok(())
}

/// Turns the first of `rows` into groups; returns how many, and the first row that found no place.
fn collect(
    g: &ConvGeometry,
    rows: &Rows,
    output_rows: Placement,
    range: Range<usize>,
    groups: &mut [Group; GROUPS],
) -> (usize, usize) {
    let (mut len, mut at) = (0, range.start);
    while at < range.end && len < GROUPS {
        let pixel = rows.pixel(at);
        let (n, within) = (pixel / g.output.pixels(), pixel % g.output.pixels());
        let (y, x) = (within / g.output.w, within % g.output.w);
        let room = SIZES[0].min(g.output.w - x).min(range.end - at);
        let mut neighbours = if rows.is_all() { room } else { 1 };
        while neighbours < room && rows.pixel(at + neighbours) == pixel + neighbours {
            neighbours += 1;
        }
        let size = SIZES.into_iter().find(|&size| size <= neighbours).unwrap_or(1);
        let iy = (y * g.stride) as isize - g.pad_top as isize;
        let ix = (x * g.stride) as isize - g.pad_left as isize;
        let (h, w) = (g.input.h as isize, g.input.w as isize);
        let first_row = (-iy).max(0) as usize;
        let last_row = g.kernel.min((h - iy) as usize);
        let last = ix + ((size - 1) * g.stride + g.kernel) as isize;
        let columns_inside = ix >= 0 && last <= w;
        let mut outside = 0;
        if !columns_inside {
            (0..32).for_each(|j| outside |= u32::from(!(0..w).contains(&(ix + j))) << j);
        }
        let row = if output_rows == Placement::Natural { pixel } else { at };
        groups[len] = Group {
            size: size as u8,
            input: ((n * g.input.pixels()) as isize + iy * w + ix) * g.c_in as isize,
            output: row * g.c_out,
            first_row: first_row as u8,
            last_row: last_row as u8,
            x: ix,
            outside,
            columns_inside,
            inside: columns_inside && first_row == 0 && last_row == g.kernel,
        };
        len += 1;
        at += size;
    }
    (len, at)
}

/// What a chunk computes for its groups of pixels.
struct Task<'a, E> {
    filter: &'a Filter,
    input: *const E,
    output: *mut E,
    /// The sample's active channels; `None`: all.
    list: Option<&'a [u32]>,
    /// Positions in the list.
    channels: Range<usize>,
    act: Act,
}

dispatch! {
    /// Computes groups of pixels that were collected for a checked call; nobody else writes the task's part of the
    /// output meanwhile.
    fn pass<E>(task: &Task<'_, E>, groups: &[Group]) = pass_set
}

#[inline(always)]
fn pass_set<S: Simd, E: Element>(task: &Task<'_, E>, groups: &[Group]) {
    let (filter, g, end) = (task.filter, &task.filter.geometry, task.channels.end);
    let (c, taps) = (g.c_in, g.kernel * g.kernel);
    let (least, most) = match task.act {
        Act::None => (f32::NEG_INFINITY, f32::INFINITY),
        Act::Relu => (0.0, f32::INFINITY),
        Act::Relu6 => (0.0, 6.0),
    };
    let from = |buffer: &Option<Buffer<f32>>, first: usize| {
        buffer.as_ref().map_or(std::ptr::null(), |buffer| buffer.as_slice()[first..].as_ptr())
    };
    let column = |first: usize| Column {
        n: S::LANES.min(end - first),
        input: task.input.wrapping_add(first),
        output: task.output.wrapping_add(first),
        c,
        w: g.input.w,
        kernel: g.kernel,
        stride: g.stride,
        weight: filter.weight.as_slice()[first..].as_ptr(),
        tap_stride: c,
        bias: filter.bias.as_slice()[first..].as_ptr(),
        minus_constant: from(&filter.minus_constant, first),
        output_constant: from(&filter.output_constant, first),
        least,
        most,
    };
    let mut gathered = task.list.map(|list| (list, Gathered::new()));
    let line_bytes = g.kernel * g.input.w * S::LANES * size_of::<E>();
    let together = if task.list.is_some() { 1 } else { (LINES_BYTES / line_bytes).clamp(1, COLUMNS) };
    let mut columns = [column(task.channels.start); COLUMNS];
    let mut at = task.channels.start;
    while at < end {
        let mut len = 0;
        while len < together && at < end {
            // The last vector starts early rather than being cut, where there is room: its values come out the same.
            let first = if task.channels.len() >= S::LANES { at.min(end - S::LANES) } else { at };
            columns[len] = column(first);
            if let Some((list, gathered)) = &mut gathered {
                let list = &list[first..first + columns[len].n];
                gathered.gather(filter, taps, list, &mut columns[len]);
            }
            len += 1;
            at += S::LANES;
        }
        // SAFETY: operands were checked against the geometry that the groups follow; all parameters hold `n` values;
        // chunks differ in rows or channels; `dispatch` vouches for the instruction set.
        unsafe { compute::<S, E>(&columns[..len], groups) };
    }
}

/// Parameters of listed channels.
struct Gathered {
    weight: [[f32; LANES]; MAX_TAPS],
    others: [[f32; LANES]; 3],
}

impl Gathered {
    fn new() -> Self {
        Self { weight: [[0.0; LANES]; MAX_TAPS], others: [[0.0; LANES]; 3] }
    }

    /// Copies the parameters of the channels in `list` and points `column` to the copies.
    fn gather<E>(&mut self, filter: &Filter, taps: usize, list: &[u32], column: &mut Column<E>) {
        let pick = |from: &[f32], to: &mut [f32; LANES]| {
            to.iter_mut().zip(list).for_each(|(to, &channel)| *to = from[channel as usize]);
        };
        let c = column.c;
        for (from, to) in filter.weight.as_slice().chunks_exact(c).zip(&mut self.weight[..taps]) {
            pick(from, to);
        }
        let [bias, minus_constant, output_constant] = &mut self.others;
        pick(filter.bias.as_slice(), bias);
        column.bias = bias.as_ptr();
        if let Some(from) = &filter.minus_constant {
            pick(from.as_slice(), minus_constant);
            column.minus_constant = minus_constant.as_ptr();
        }
        if let Some(from) = &filter.output_constant {
            pick(from.as_slice(), output_constant);
            column.output_constant = output_constant.as_ptr();
        }
        column.weight = self.weight.as_ptr().cast();
        column.tap_stride = LANES;
    }
}
