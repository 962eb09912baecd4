//! Packs the active columns of a filter whose rows lie in turns, for the active input channels, into tiles of columns.

use super::super::Filter;
use super::super::filter::turn_place;
use crate::simd::tiles::{SIDE, column_zero, in_turn, step_len};
use crate::{Element, Isa};
use smallvec::SmallVec;
use std::ops::Range;

/// Which stored rows of a panel a reduction meets.
#[derive(Default)]
pub(in super::super) struct Listed {
    /// Turns, where all that they hold is met; otherwise rows, or [`ZEROS`] up to a whole turn.
    list: Vec<u32>,
    turns: bool,
    /// Input channels of the panel.
    inputs: usize,
    /// Rows that are packed: whole steps, zeros behind the listed ones.
    pub(in super::super) depth: usize,
}

/// In place of a row.
const ZEROS: u32 = u32::MAX;

impl Listed {
    /// Room for reductions over `depth` rows.
    pub(in super::super) fn reserve(&mut self, depth: usize) {
        self.list.clear();
        self.list.reserve(depth);
    }

    /// Lists the rows of all taps of `inputs`, ascending channels of `window` (`None`: all of it), in the order of
    /// [`place_in_blocks`].
    ///
    /// [`place_in_blocks`]: super::super::filter::place_in_blocks
    pub(in super::super) fn list<E: Element>(
        &mut self,
        filter: &Filter<E>,
        inputs: Option<&[u32]>,
        window: &Range<usize>,
    ) {
        let (kernel, turn, step) = (filter.geometry().kernel, in_turn::<E>(), step_len::<E>());
        let (taps, rows) = (kernel * kernel, inputs.map_or(window.len(), <[u32]>::len));
        let in_window = |list: &[u32]| list.last().is_none_or(|&last| window.contains(&(last as usize)));
        assert!(inputs.is_none_or(in_window));
        let input = |i: usize| inputs.map_or(i, |list| list[i] as usize - window.start);
        let whole = |i: usize| input(i).is_multiple_of(turn) && input(i + turn - 1) == input(i) + turn - 1;
        self.turns = window.len().is_multiple_of(turn)
            && rows.is_multiple_of(turn)
            && (0..rows).step_by(turn).all(whole);
        self.inputs = window.len();
        self.depth = (taps * rows).next_multiple_of(step);
        self.list.clear();
        let every = if self.turns { turn } else { 1 };
        for block in (0..rows).step_by(step) {
            for tap in 0..taps {
                let inputs = (block..rows.min(block + step)).step_by(every).map(input);
                let row = |input| (filter.row_in_turns(window.len(), tap, input) / every) as u32;
                self.list.extend(inputs.map(row));
            }
        }
        if !self.turns {
            self.list.resize(self.list.len().next_multiple_of(turn), ZEROS);
        }
    }
}

/// Columns of a tile that come from one panel, the others left out between them.
struct Piece<E> {
    panel: *const E,
    /// Where they go, a bit each.
    columns: u16,
    /// The panel's column that each of the tile's columns is.
    from: [u32; SIDE],
}

/// Packs `channels`, which are ascending and read the same inputs.
pub(in super::super) fn columns<E: Element>(
    isa: Isa,
    filter: &Filter<E>,
    channels: impl Iterator<Item = usize>,
    listed: &Listed,
    packed: &mut [E],
) {
    let mut tiles = packed.chunks_exact_mut((listed.depth * SIDE).max(1));
    let mut pieces = SmallVec::<[Piece<E>; SIDE]>::new();
    let mut finish = |pieces: &mut SmallVec<[Piece<E>; SIDE]>| {
        if let Some(tile) = tiles.next().filter(|_| listed.depth > 0) {
            tile[listed.list.len() * if listed.turns { in_turn::<E>() } else { 1 } * SIDE..]
                .fill(column_zero(isa));
            copy(isa, pieces, listed, tile);
        }
        pieces.clear();
    };
    let (mut at, mut column) = (0, 0);
    for channel in channels {
        while filter.panels[at].c_out + filter.panels[at].columns <= channel {
            at += 1;
        }
        let panel = &filter.panels[at];
        assert_eq!(panel.inputs, listed.inputs);
        let rows = filter.depth_in_turns(panel.inputs);
        let data = filter.data.as_slice()[panel.offset..][..rows * SIDE].as_ptr();
        if pieces.last().is_none_or(|piece| piece.panel != data) {
            pieces.push(Piece { panel: data, columns: 0, from: [0; SIDE] });
        }
        if let Some(piece) = pieces.last_mut() {
            piece.columns |= 1 << column;
            piece.from[column] = (channel - panel.c_out) as u32;
        }
        column += 1;
        if column == SIDE {
            finish(&mut pieces);
            column = 0;
        }
    }
    if column > 0 {
        finish(&mut pieces);
    }
}

/// Packs one tile, but for the zeros at its end.
fn copy<E: Element>(isa: Isa, pieces: &[Piece<E>], listed: &Listed, tile: &mut [E]) {
    #[cfg(target_arch = "x86_64")]
    if matches!(isa.0, crate::simd::Kind::Amx | crate::simd::Kind::Vnni) {
        let (list, to) = (&listed.list[..], tile.as_mut_ptr());
        // SAFETY: both sets have such vectors; panels have as many inputs as was listed for, and tiles as many rows.
        return unsafe {
            match pieces {
                _ if !listed.turns => avx512::copy_rows(pieces, list, column_zero(isa), to),
                [a] => avx512::copy_turns([a], list, to),
                [a, b] => avx512::copy_turns([a, b], list, to),
                [a, b, c] => avx512::copy_turns([a, b, c], list, to),
                _ => avx512::copy_any_turns(pieces, list, to),
            }
        };
    }
    let _ = isa;
    let turn = in_turn::<E>();
    for i in 0..listed.list.len() * if listed.turns { turn } else { 1 } {
        let row = match listed.turns {
            true => listed.list[i / turn] * turn as u32 + (i % turn) as u32,
            false => listed.list[i],
        };
        for piece in pieces {
            for column in (0..SIDE).filter(|column| piece.columns >> column & 1 == 1) {
                tile[turn_place::<E>(i, column, SIDE)] = match row {
                    ZEROS => E::from_f32(0.0),
                    // SAFETY: panels have as many inputs as was listed for.
                    _ => unsafe {
                        let from = piece.from[column] as usize;
                        *piece.panel.add(turn_place::<E>(row as usize, from, SIDE))
                    },
                };
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::{Piece, SIDE, ZEROS, in_turn};
    use crate::Element;
    use std::arch::x86_64::*;

    /// Elements of a turn of all columns, which fill a vector.
    const fn turn_len<E: Element>() -> usize {
        in_turn::<E>() * SIDE
    }

    /// Whole turns: a vector of each piece, whose columns are moved to their places.
    ///
    /// # Safety
    /// The machine has such vectors, the panels the listed turns, and `to` room for as many.
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) unsafe fn copy_turns<const N: usize, E: Element>(
        pieces: [&Piece<E>; N],
        turns: &[u32],
        to: *mut E,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let from = pieces.map(|piece| _mm512_loadu_si512(piece.from.as_ptr().cast()));
            let (columns, panels) = (pieces.map(|piece| piece.columns), pieces.map(|piece| piece.panel));
            for (i, &turn) in turns.iter().enumerate() {
                let at = turn as usize * turn_len::<E>();
                let mut all = _mm512_setzero_si512();
                for piece in 0..N {
                    let turn = _mm512_loadu_si512(panels[piece].add(at).cast());
                    all = _mm512_mask_permutexvar_epi32(all, columns[piece], from[piece], turn);
                }
                _mm512_storeu_si512(to.add(i * turn_len::<E>()).cast(), all);
            }
        }
    }

    /// As [`copy_turns`] of any number of pieces.
    ///
    /// # Safety
    /// As for [`copy_turns`].
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) unsafe fn copy_any_turns<E: Element>(pieces: &[Piece<E>], turns: &[u32], to: *mut E) {
        // SAFETY: the caller's promise.
        unsafe {
            for (i, &turn) in turns.iter().enumerate() {
                let mut all = _mm512_setzero_si512();
                for piece in pieces {
                    let from = _mm512_loadu_si512(piece.from.as_ptr().cast());
                    let turn = _mm512_loadu_si512(piece.panel.add(turn as usize * turn_len::<E>()).cast());
                    all = _mm512_mask_permutexvar_epi32(all, piece.columns, from, turn);
                }
                _mm512_storeu_si512(to.add(i * turn_len::<E>()).cast(), all);
            }
        }
    }

    /// Rows that are put into turns, and what stands for zero.
    ///
    /// # Safety
    /// The machine has such vectors, the panels the listed rows, and `to` room for as many.
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) unsafe fn copy_rows<E: Element>(pieces: &[Piece<E>], rows: &[u32], zero: E, to: *mut E) {
        let turn = in_turn::<E>();
        let bits = 8 * size_of::<E>();
        let count = |bits: usize| _mm_cvtsi32_si128(bits as i32);
        let byte = bytemuck::bytes_of(&zero)[0];
        let zero = _mm512_set1_epi32(i32::from(byte));
        // SAFETY: the caller's promise.
        unsafe {
            for (i, rows) in rows.chunks_exact(turn).enumerate() {
                let mut all = _mm512_setzero_si512();
                for piece in pieces {
                    let mut turned = _mm512_setzero_si512();
                    for (i, &row) in rows.iter().enumerate() {
                        if row == ZEROS {
                            turned = _mm512_or_si512(turned, _mm512_sll_epi32(zero, count(bits * i)));
                            continue;
                        }
                        let (from, within) = (row as usize / turn, row as usize % turn);
                        let from = _mm512_loadu_si512(piece.panel.add(from * turn_len::<E>()).cast());
                        // The other rows are shifted out, those above it first.
                        let alone = _mm512_sll_epi32(from, count(bits * (turn - 1 - within)));
                        let alone = _mm512_srl_epi32(alone, count(bits * (turn - 1)));
                        turned = _mm512_or_si512(turned, _mm512_sll_epi32(alone, count(bits * i)));
                    }
                    let from = _mm512_loadu_si512(piece.from.as_ptr().cast());
                    all = _mm512_mask_permutexvar_epi32(all, piece.columns, from, turned);
                }
                _mm512_storeu_si512(to.add(i * turn_len::<E>()).cast(), all);
            }
        }
    }
}
