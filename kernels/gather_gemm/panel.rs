//! What a chunk multiplies with: the steps of its reduction, and its panels, as they were packed at load or packed
//! again from the active columns.

use super::Filter;
use super::cpu::Job;
use super::filter::Panel;
use super::micro::{MAX_UNITS, PanelRows, UNIT};
use super::pack::{self, Columns};
use super::scratch::Scratch;
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

/// Whether channels come in aligned units.
fn in_units(list: Option<&[u32]>) -> bool {
    list.is_none_or(|list| {
        list.chunks(UNIT).all(|unit| {
            (unit[0] as usize).is_multiple_of(UNIT)
                && unit.len() == UNIT
                && unit[UNIT - 1] == unit[0] + UNIT as u32 - 1
        })
    })
}

/// The reduction of a chunk whose panels all read the same input channels. Grouped filters do it panel by panel.
pub(super) fn reduce<E: Element>(filter: &Filter<E>, job: &Job<'_>, folded: bool, scratch: &mut Scratch<E>) {
    scratch.units = filter.units && in_units(job.c_in) && in_units(job.c_out);
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
    let row = |tap: usize, c: u32| (tap * window.len() + c as usize - window.start) as u32;
    let step = if scratch.units { UNIT } else { 1 };
    match job.c_in {
        Some(list) if scratch.units || job.c_out.is_none() => {
            let list = &list[positions];
            let tap = |tap| list.iter().step_by(step).map(move |&c| row(tap, c));
            scratch.listed.extend((0..taps).flat_map(tap));
        }
        None if scratch.units => scratch.listed.extend((0..(taps * inputs) as u32).step_by(step)),
        _ => {}
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
    if scratch.units {
        let last = job.c_out.map_or(filter.geometry().c_out, <[u32]>::len) - 1;
        // Where there is no such unit, any will do: nobody reads its columns.
        let units = std::array::from_fn(|unit| {
            let position = last.min(column * filter.panel_width + unit * UNIT);
            start(job.c_out.map_or(position, |list| list[position] as usize) / UNIT)
        });
        return Some(PanelRows { units, listed, apart: true });
    }
    let whole = job.c_out.is_none() && !filter.units;
    whole.then(|| PanelRows { units: [start(column); MAX_UNITS], listed, apart: false })
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
    let width = filter.panel_width;
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
    let stored = columns.next_multiple_of(if filter.units { filter.lanes.max(UNIT) } else { filter.lanes });
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
    let rows = place(filter, job, column, scratch).unwrap_or_else(|| {
        let inputs = job.c_in.map(|list| &list[scratch.inputs.clone()]);
        let channel = |position| job.c_out.map_or(position, |list| list[position] as usize);
        let (taps, packed) = (g.kernel * g.kernel, scratch.packed.as_mut_slice());
        if filter.units {
            pack::copy_units(filter, span.map(channel), inputs, packed, stored);
        } else {
            let panel = Columns::new(filter, span.map(channel));
            pack::copy(isa, &panel, filter.data.as_slice(), taps, inputs, &window, packed, stored);
        }
        let start = scratch.packed.as_slice().as_ptr();
        PanelRows { units: [start; MAX_UNITS], listed: std::ptr::null(), apart: false }
    });
    Some(Ready { rows, stored, c_out, columns, constant, packed: job.c_out.is_some() })
}
