//! Packs the active columns of a filter next to each other, so that the register tile meets dense panels.

use super::Filter;
use super::filter::{Panel, unit_place};
use super::micro::{Segment, UNIT};
use crate::Element;
use crate::simd::{Simd, dispatch};
use std::ops::Range;

/// Columns that are neighbours in one panel of the filter and will be neighbours in the packed one; at most a vector.
#[derive(Clone, Copy, Debug, Default)]
struct Piece {
    /// Index of the first column in the panel's first row.
    source: usize,
    /// First packed column.
    target: usize,
    columns: usize,
}

/// The columns of one packed panel, cut into pieces.
pub(super) struct Columns {
    pieces: [Piece; MAX_COLUMNS],
    len: usize,
    columns: usize,
    /// The panel that each piece is of.
    panel: [Panel; MAX_COLUMNS],
    /// Input channels of the panels.
    inputs: usize,
}

/// No panel is wider.
const MAX_COLUMNS: usize = 64;
/// Units that fill a packed panel.
pub(super) const PACKED_UNITS: usize = MAX_COLUMNS / UNIT;
/// Rows between a copy and the request for the line it will need.
const AHEAD: usize = 12;

impl Columns {
    /// Cuts `channels`, ascending and no more than a panel holds.
    pub(super) fn new<E: Element>(filter: &Filter<E>, channels: impl Iterator<Item = usize>) -> Self {
        let mut columns = Self {
            pieces: [Piece::default(); MAX_COLUMNS],
            len: 0,
            columns: 0,
            panel: [filter.panels[0]; MAX_COLUMNS],
            inputs: 0,
        };
        let mut at = 0;
        let mut next = usize::MAX;
        for (target, channel) in channels.enumerate() {
            while filter.panels[at].c_out + filter.panels[at].columns <= channel {
                (at, next) = (at + 1, usize::MAX);
            }
            let Panel { c_out, inputs, offset, .. } = filter.panels[at];
            let last = columns.len.wrapping_sub(1);
            if channel == next && columns.pieces[last].columns < filter.tile.lanes {
                columns.pieces[last].columns += 1;
            } else {
                columns.pieces[columns.len] = Piece { source: offset + channel - c_out, target, columns: 1 };
                columns.panel[columns.len] = filter.panels[at];
                columns.len += 1;
            }
            columns.inputs = inputs;
            columns.columns = target + 1;
            next = channel + 1;
        }
        columns
    }
}

dispatch! {
    /// Copies the rows `taps` × `inputs` (channels of `window`; `None`: all of it) of `columns` into `packed`, whose
    /// rows are `stored` long.
    pub(super) fn copy<E>(
        columns: &Columns,
        source: &[E],
        taps: usize,
        inputs: Option<&[u32]>,
        window: &Range<usize>,
        packed: &mut [E],
        stored: usize,
    ) = copy_set
}

#[inline(always)]
fn copy_set<S: Simd, E: Element>(
    columns: &Columns,
    source: &[E],
    taps: usize,
    inputs: Option<&[u32]>,
    window: &Range<usize>,
    packed: &mut [E],
    stored: usize,
) {
    let rows = inputs.map_or(window.len(), <[u32]>::len);
    let pieces = &columns.pieces[..columns.len];
    assert!(columns.columns <= stored && window.len() <= columns.inputs);
    assert!(taps * rows * stored <= packed.len());
    for (piece, panel) in pieces.iter().zip(&columns.panel) {
        assert!(piece.columns <= S::LANES);
        assert!(piece.source + panel.row(taps * columns.inputs - 1) + piece.columns <= source.len());
    }
    let row_of = |i: usize| inputs.map_or(i, |list| list[i] as usize - window.start);
    let mut to = packed.as_mut_ptr();
    for tap in 0..taps {
        for i in 0..rows {
            let at = tap * columns.inputs + row_of(i);
            let ahead = tap * columns.inputs + row_of((i + AHEAD).min(rows - 1));
            for (piece, panel) in pieces.iter().zip(&columns.panel) {
                let from = source.as_ptr().wrapping_add(piece.source);
                // SAFETY: `at` is below taps × inputs, so source and target lie inside what was asserted above.
                unsafe {
                    S::prefetch(from.wrapping_add(panel.row(ahead)).cast());
                    copy_columns::<S, E>(from.add(panel.row(at)), to.add(piece.target), piece.columns);
                }
            }
            to = to.wrapping_add(stored);
        }
    }
}

dispatch! {
    /// As [`copy`] from a filter whose panels are units, of `units` side by side, where both lists name whole units.
    pub(super) fn copy_units<E>(
        filter: &Filter<E>,
        units: &[usize; PACKED_UNITS],
        inputs: Option<&[u32]>,
        packed: &mut [E],
        stored: usize,
    ) = copy_units_set
}

#[inline(always)]
fn copy_units_set<S: Simd, E: Element>(
    filter: &Filter<E>,
    units: &[usize; PACKED_UNITS],
    inputs: Option<&[u32]>,
    packed: &mut [E],
    stored: usize,
) {
    let g = filter.geometry();
    let (taps, rows) = (g.kernel * g.kernel, inputs.map_or(g.c_in, <[u32]>::len) / UNIT * UNIT);
    // What a vector of one row takes from the units: two vectors of a pair of rows, which may lie in two units.
    let vectors = stored / S::LANES;
    let per_unit = 2 * UNIT / S::LANES;
    let panel = |vector: usize| {
        let (unit, lane) = (vector / per_unit, vector % per_unit * S::LANES);
        &filter.data.as_slice()[filter.panels[units[unit]].offset + lane..][..taps * g.c_in * UNIT - lane]
    };
    assert!(stored.is_multiple_of(S::LANES) && taps * rows * stored <= packed.len() && stored <= MAX_COLUMNS);
    assert!(inputs.is_none_or(|list| list.iter().all(|&c| (c as usize) < g.c_in)));
    let source: [*const E; MAX_COLUMNS] =
        std::array::from_fn(
            |vector| if vector < 2 * vectors { panel(vector).as_ptr() } else { std::ptr::null() },
        );
    let mut to = packed.as_mut_ptr();
    for tap in 0..taps {
        let row = |i: usize| (tap * g.c_in + inputs.map_or(i, |list| list[i] as usize)) * UNIT;
        for i in (0..rows).step_by(UNIT) {
            let (at, ahead) = (row(i), row((i + 2 * UNIT).min(rows - UNIT)));
            for pair in 0..UNIT / 2 {
                let step = pair * 2 * UNIT;
                for vector in 0..vectors {
                    // SAFETY: `at` is the first of a unit of rows in `0..taps * c_in`, each of which has `UNIT` columns;
                    // the target lies within what was asserted.
                    unsafe {
                        let [a, b] = [source[2 * vector], source[2 * vector + 1]];
                        S::prefetch(a.wrapping_add(ahead + step).cast());
                        S::prefetch(b.wrapping_add(ahead + step).cast());
                        let (even, odd) = S::unzip(S::load(a.add(at + step)), S::load(b.add(at + step)));
                        S::store(to.add(vector * S::LANES), even);
                        S::store(to.add(stored + vector * S::LANES), odd);
                    }
                }
                to = to.wrapping_add(2 * stored);
            }
        }
    }
}

/// As [`copy_units`] where a list splits units.
pub(super) fn copy_split_units<E: Element>(
    filter: &Filter<E>,
    channels: impl Iterator<Item = usize>,
    inputs: Option<&[u32]>,
    packed: &mut [E],
    stored: usize,
) {
    let g = filter.geometry();
    let rows = inputs.map_or(g.c_in, <[u32]>::len);
    for (target, channel) in channels.enumerate() {
        let panel = &filter.data.as_slice()[filter.panels[channel / UNIT].offset..];
        for (at, packed) in
            packed[target..].iter_mut().step_by(stored).take(g.kernel * g.kernel * rows).enumerate()
        {
            let (tap, i) = (at / rows, at % rows);
            let row = tap * g.c_in + inputs.map_or(i, |list| list[i] as usize);
            *packed = panel[unit_place(row, channel % UNIT)];
        }
    }
}

/// # Safety
/// `columns <= S::LANES` elements can be read and written.
#[inline(always)]
unsafe fn copy_columns<S: Simd, E: Element>(from: *const E, to: *mut E, columns: usize) {
    // SAFETY: the caller's promise; f32 goes through one vector.
    unsafe {
        match E::DTYPE {
            crate::DType::F32 => S::store_first(to, columns, S::load_first(from, columns)),
            _ => std::ptr::copy_nonoverlapping(from, to, columns),
        }
    }
}

/// The longest segment: the reduction is cut into parts between segments.
pub(super) const LONGEST: usize = 256;

/// The reduction over `taps` × `inputs` consecutive channels from `c_in` on, which fill the panel.
pub(super) fn every_input(taps: usize, c_in: usize, inputs: usize, segments: &mut Vec<Segment>) {
    for tap in 0..taps {
        for first in (0..inputs).step_by(LONGEST) {
            segments.push(Segment {
                tap: tap as u32,
                c_in: (c_in + first) as u32,
                inputs: LONGEST.min(inputs - first) as u32,
                panel_row: (tap * inputs + first) as u32,
            });
        }
    }
}
