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
    /// Elements from one row of the filter's panels to the next; a packed panel draws from panels of one shape, or
    /// `row` differs by piece.
    row: [usize; MAX_COLUMNS],
    /// Input channels of the panels.
    inputs: usize,
}

/// No panel is wider.
const MAX_COLUMNS: usize = 32;
/// Rows between a copy and the request for the line it will need.
const AHEAD: usize = 12;

impl Columns {
    /// Cuts `channels`, ascending and no more than a panel holds.
    pub(super) fn new<E: Element>(filter: &Filter<E>, channels: impl Iterator<Item = usize>) -> Self {
        let mut columns = Self {
            pieces: [Piece::default(); MAX_COLUMNS],
            len: 0,
            columns: 0,
            row: [0; MAX_COLUMNS],
            inputs: 0,
        };
        let mut at = 0;
        let mut next = usize::MAX;
        for (target, channel) in channels.enumerate() {
            while filter.panels[at].c_out + filter.panels[at].columns <= channel {
                (at, next) = (at + 1, usize::MAX);
            }
            let Panel { c_out, inputs, stored, offset, .. } = filter.panels[at];
            let last = columns.len.wrapping_sub(1);
            if channel == next && columns.pieces[last].columns < filter.lanes {
                columns.pieces[last].columns += 1;
            } else {
                columns.pieces[columns.len] = Piece { source: offset + channel - c_out, target, columns: 1 };
                columns.row[columns.len] = stored;
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
    for (piece, row) in pieces.iter().zip(&columns.row) {
        assert!(piece.columns <= S::LANES);
        assert!(piece.source + (taps * columns.inputs - 1) * row + piece.columns <= source.len());
    }
    let row_of = |i: usize| inputs.map_or(i, |list| list[i] as usize - window.start);
    let mut to = packed.as_mut_ptr();
    for tap in 0..taps {
        for i in 0..rows {
            let at = tap * columns.inputs + row_of(i);
            let ahead = tap * columns.inputs + row_of((i + AHEAD).min(rows - 1));
            for (piece, row) in pieces.iter().zip(&columns.row) {
                let from = source.as_ptr().wrapping_add(piece.source);
                // SAFETY: `at` is below taps × inputs, so source and target lie inside what was asserted above.
                unsafe {
                    S::prefetch(from.wrapping_add(ahead * row).cast());
                    copy_columns::<S, E>(from.add(at * row), to.add(piece.target), piece.columns);
                }
            }
            to = to.wrapping_add(stored);
        }
    }
}

/// As [`copy`] from a filter whose panels are units. It was not packed for such lists: speed is no concern.
pub(super) fn copy_units<E: Element>(
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

/// The longest segment: at the start of each, the kernel asks for a part of what comes next.
const LONGEST: usize = 64;

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
