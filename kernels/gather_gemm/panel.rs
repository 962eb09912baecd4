//! What a chunk multiplies with: the steps of its reduction, and its panels, as they were packed at load or packed
//! again from the active columns.

use super::Filter;
use super::cpu::Job;
use super::filter::{Layout, Panel, SLACK};
use super::micro::{PanelRows, RUN, UNIT};
use super::pack::{self, Columns, PACKED_UNITS};
use super::scratch::Scratch;
use super::tiles;
use crate::simd::tiles::{MOST_COLUMNS, SIDE};
use crate::{Element, Isa};
use std::ops::Range;

/// A panel ready to be multiplied with.
pub(super) struct Ready<E> {
    pub(super) rows: PanelRows<E>,
    /// Stored columns, whole vectors.
    pub(super) stored: usize,
    /// First output channel and number of them, by position in the rows.
    pub(super) c_out: usize,
    pub(super) columns: usize,
    pub(super) constant: *const f32,
    /// Bias and constant are those of the active columns, put next to each other.
    pub(super) packed: bool,
}

/// Positions of the channels `from..from + len` in an ascending list.
fn within(list: &[u32], from: usize, len: usize) -> Range<usize> {
    let position = |c: usize| list.partition_point(|&active| (active as usize) < c);
    position(from)..position(from + len)
}

/// How the steps of a reduction meet the rows of a filter's panels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meets {
    /// One after another.
    Stream,
    /// Those of the active input channels, which come in aligned runs of [`RUN`].
    Runs,
    /// Those of the active input channels, of the active columns' units side by side.
    Units,
    /// Panels are packed first, then one after another.
    Packed,
}

/// Whether channels come in aligned runs of `len`.
fn in_runs(list: Option<&[u32]>, len: usize) -> bool {
    list.is_none_or(|list| {
        list.chunks(len).all(|run| {
            (run[0] as usize).is_multiple_of(len)
                && run.len() == len
                && run[len - 1] == run[0] + len as u32 - 1
        })
    })
}

/// How `job` meets the panels of `filter`.
fn meets<E: Element>(filter: &Filter<E>, job: &Job<'_>) -> Meets {
    if filter.layout == Layout::Units {
        let fit = in_runs(job.c_in, UNIT) && in_runs(job.c_out, UNIT);
        return if fit && !job.packs { Meets::Units } else { Meets::Packed };
    }
    let g = filter.geometry();
    let runs = filter.layout == Layout::Panels && g.groups == 1 && g.c_in.is_multiple_of(RUN);
    match (job.c_in, job.c_out) {
        (None, None) => Meets::Stream,
        (_, None) if runs && in_runs(job.c_in, RUN) => Meets::Runs,
        _ => Meets::Packed,
    }
}

/// The reduction of a chunk whose panels all read the same input channels. Grouped filters do it panel by panel.
pub(super) fn reduce<E: Element>(filter: &Filter<E>, job: &Job<'_>, folded: bool, scratch: &mut Scratch<E>) {
    scratch.meets = meets(filter, job);
    let g = filter.geometry();
    if g.groups == 1 {
        reduce_window(filter, job, &(0..g.c_in), folded, scratch);
    }
}

/// Fills in the segments, and where the rows of a panel do not follow each other the list of them.
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
    scratch.inputs = positions.clone();
    scratch.listed.clear();
    let step = match scratch.meets {
        Meets::Packed if filter.layout == Layout::Turns => {
            let inputs = job.c_in.map(|list| &list[positions]);
            return scratch.turns.list(filter, inputs, window);
        }
        Meets::Stream | Meets::Packed => return,
        Meets::Runs => RUN,
        Meets::Units => UNIT,
    };
    match job.c_in {
        Some(list) => {
            let run = |tap: usize, c: u32| ((tap * window.len() + c as usize - window.start) / step) as u32;
            let list = &list[positions];
            let tap = |tap| list.iter().step_by(step).map(move |&c| run(tap, c));
            scratch.listed.extend((0..taps).flat_map(tap));
        }
        None => scratch.listed.extend(0..(taps * inputs / step) as u32),
    }
}

/// Where the rows of the `column`-th panel lie, if they can be multiplied with as they are.
pub(super) fn place<E: Element>(
    filter: &Filter<E>,
    job: &Job<'_>,
    column: usize,
    scratch: &Scratch<E>,
) -> Option<PanelRows<E>> {
    let start = |panel: usize| filter.data.as_slice()[filter.panels[panel].offset..].as_ptr();
    let listed = if scratch.listed.is_empty() { std::ptr::null() } else { scratch.listed.as_ptr() };
    match scratch.meets {
        Meets::Units => {
            let last = job.c_out.map_or(filter.geometry().c_out, <[u32]>::len) - 1;
            // Where there is no such unit, any will do: nobody reads its columns.
            let units = std::array::from_fn(|unit| {
                let position = last.min(column * job.width + unit * UNIT);
                start(job.c_out.map_or(position, |list| list[position] as usize) / UNIT)
            });
            Some(PanelRows { units, listed, apart: true })
        }
        Meets::Stream if filter.layout == Layout::Turns && filter.geometry().groups == 1 => {
            let first = column * (job.width / SIDE);
            let units = std::array::from_fn(|i| start((first + i).min(filter.panels.len() - 1)));
            Some(PanelRows { units, listed, apart: false })
        }
        Meets::Stream | Meets::Runs => {
            Some(PanelRows { units: [start(column); MOST_COLUMNS], listed, apart: false })
        }
        Meets::Packed => None,
    }
}

/// Readies what the `column`-th panel stands for: it is used as it was packed at load where that is possible, and
/// packed again otherwise.
pub(super) fn prepare<E: Element>(
    isa: Isa,
    filter: &Filter<E>,
    job: &Job<'_>,
    column: usize,
    scratch: &mut Scratch<E>,
) -> Option<Ready<E>> {
    let g = filter.geometry();
    let width = job.width;
    let (span, window) = if g.groups == 1 {
        let count = job.c_out.map_or(g.c_out, <[u32]>::len);
        (column * width..count.min((column + 1) * width), 0..g.c_in)
    } else {
        let Panel { c_out, columns, c_in, inputs, .. } = filter.panels[column];
        let all = c_out..c_out + columns;
        (job.c_out.map_or(all, |list| within(list, c_out, columns)), c_in..c_in + inputs)
    };
    if span.is_empty() {
        return None;
    }
    if g.groups > 1 {
        reduce_window(filter, job, &window, false, scratch);
    }
    let (c_out, columns) = (span.start, span.len());
    let stored = columns.next_multiple_of(match scratch.meets {
        Meets::Units => filter.tile.lanes.max(UNIT),
        _ => filter.tile.lanes,
    });
    let constant = match (job.c_out, &filter.output_constant) {
        (_, None) => std::ptr::null(),
        (None, Some(constant)) => constant[c_out..].as_ptr(),
        (Some(list), Some(constant)) => {
            let packed = scratch.packed_constant.iter_mut().zip(&list[span.clone()]);
            packed.for_each(|(packed, &o)| *packed = constant[o as usize]);
            scratch.packed_constant.as_ptr()
        }
    };
    if let Some(list) = job.c_out {
        let rows = scratch.packed_bias.chunks_mut(width).zip(filter.bias.chunks_exact(filter.bias_stride));
        for (packed, bias) in rows {
            let packed = packed.iter_mut().zip(&list[span.clone()]);
            packed.for_each(|(packed, &o)| *packed = bias[o as usize]);
        }
    }
    if let Some(list) = job.c_out.filter(|_| !filter.scale.is_empty()) {
        let packed = scratch.packed_scale.iter_mut().zip(&list[span.clone()]);
        packed.for_each(|(packed, &o)| *packed = filter.scale[o as usize]);
    }
    let rows = place(filter, job, column, scratch)
        .unwrap_or_else(|| packed(isa, filter, job, (column, &span, &window, stored), scratch));
    Some(Ready { rows, stored, c_out, columns, constant, packed: job.c_out.is_some() })
}

/// The columns `span`, which read the channels of `window`, packed for this call.
fn packed<E: Element>(
    isa: Isa,
    filter: &Filter<E>,
    job: &Job<'_>,
    (column, span, window, stored): (usize, &Range<usize>, &Range<usize>, usize),
    scratch: &mut Scratch<E>,
) -> PanelRows<E> {
    let g = filter.geometry();
    let inputs = job.c_in.map(|list| &list[scratch.inputs.clone()]);
    let taps = g.kernel * g.kernel;
    // What only one block of rows meets need not be kept, and is nearer where the one before was.
    let slots = if job.blocks == 1 { 1 } else { (scratch.packed.len() - SLACK) / scratch.packed_len };
    let slot = column % slots;
    if scratch.packed_of.len() <= slot {
        scratch.packed_of.resize(slot + 1, (usize::MAX, 0));
    }
    let start = slot * scratch.packed_len;
    let there = scratch.packed_of[slot] == (job.sample, column);
    if !there {
        scratch.packed_of[slot] = (job.sample, column);
        let packed = &mut scratch.packed.as_mut_slice()[start..];
        let channel = |position| job.c_out.map_or(position, |list| list[position] as usize);
        let whole = in_runs(job.c_in, UNIT) && in_runs(job.c_out, UNIT);
        if filter.layout == Layout::Turns {
            tiles::pack::columns(isa, filter, span.clone().map(channel), &scratch.turns, packed);
        } else if filter.layout == Layout::Panels {
            let panel = Columns::new(filter, span.clone().map(channel));
            pack::copy(isa, &panel, filter.data.as_slice(), taps, inputs, window, packed, stored);
        } else if whole {
            // Where there is no such unit, any will do: nobody writes its columns.
            let unit = |i: usize| channel((span.start + i * UNIT).min(span.end - 1)) / UNIT;
            let units: [usize; PACKED_UNITS] = std::array::from_fn(unit);
            pack::copy_units(isa, filter, &units, inputs, packed, stored);
        } else {
            pack::copy_split_units(filter, span.clone().map(channel), inputs, packed, stored);
        }
    }
    let packed = scratch.packed.as_slice()[start..].as_ptr();
    let apart = if filter.layout == Layout::Turns { scratch.turns.depth * SIDE } else { 0 };
    let units = std::array::from_fn(|i| packed.wrapping_add(i * apart));
    PanelRows { units, listed: std::ptr::null(), apart: false }
}
