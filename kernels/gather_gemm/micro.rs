//! The register tile: up to `S::MR` gathered rows × one panel of columns, over the whole reduction.

/// A stretch of the reduction: consecutive input channels of one tap.
#[derive(Clone, Copy, Default)]
pub(super) struct Segment {
    pub(super) tap: u32,
    /// First input channel, from where the tap's row starts.
    pub(super) c_in: u32,
    /// Input channels.
    pub(super) inputs: u32,
    /// Row of the panel that the first input channel meets.
    pub(super) panel_row: u32,
}

use crate::simd::{Simd, dispatch};
use crate::{Act, Element};

/// One tile. Pointers that are indexed by row have `rows` entries.
#[derive(Clone, Copy)]
pub(super) struct Tile<'a, E> {
    /// `[taps][rows]`: where each row's input of each tap starts.
    pub(super) taps: *const *const E,
    pub(super) rows: usize,
    /// The reduction.
    pub(super) segments: &'a [Segment],
    /// `[panel rows][stored]`.
    pub(super) panel: *const E,
    /// Stored columns, whole vectors.
    pub(super) stored: usize,
    /// `[rows]`: where each row's output starts.
    pub(super) out: *const *mut E,
    /// First column, from the row's start.
    pub(super) column: usize,
    /// Columns that are written.
    pub(super) columns: usize,
    /// `[rows]`: bias of each row; indexed by `bias_column`.
    pub(super) bias: *const *const f32,
    pub(super) bias_column: usize,
    /// Subtracted behind the activation; null: nothing.
    pub(super) constant: *const f32,
    pub(super) residual: bool,
    pub(super) act: Act,
}

dispatch! {
    /// Computes one tile.
    ///
    /// Every pointer of a tile must be valid for what its shape says, with `SLACK` readable elements behind panel,
    /// bias and constant; no other thread touches the outputs meanwhile.
    pub(super) fn compute<E>(tile: &Tile<'_, E>) = compute_set
}

#[inline(always)]
fn compute_set<S: Simd, E: Element>(tile: &Tile<'_, E>) {
    macro_rules! by_rows {
        ($nv:literal: $($mr:literal)*) => {
            match tile.rows {
                // SAFETY: the caller of `compute` vouches for the pointers; `dispatch` for the instruction set.
                $($mr => unsafe { fixed::<S, E, $mr, $nv>(tile) },)*
                _ => unreachable!("a tile has 1..=12 rows"),
            }
        };
    }
    match tile.stored / S::LANES {
        1 => by_rows!(1: 1 2 3 4 5 6 7 8 9 10 11 12),
        2 => by_rows!(2: 1 2 3 4 5 6 7 8 9 10 11 12),
        3 if S::NV >= 3 => by_rows!(3: 1 2 3 4 5 6 7 8 9 10 11 12),
        4 if S::NV >= 4 => by_rows!(4: 1 2 3 4 5 6 7 8 9 10 11 12),
        _ => unreachable!("a panel has 1..=S::NV vectors"),
    }
}

/// # Safety
/// As for [`compute`], inside a function compiled for `S`.
#[inline(always)]
unsafe fn fixed<S: Simd, E: Element, const MR: usize, const NV: usize>(tile: &Tile<'_, E>) {
    if MR > S::MR {
        unreachable!("taller than the tile of this instruction set");
    }
    // SAFETY: see above.
    unsafe {
        let mut acc = [[S::splat(0.0); NV]; MR];
        for segment in tile.segments {
            let starts = tile.taps.add(segment.tap as usize * MR);
            let a: [*const E; MR] = std::array::from_fn(|i| (*starts.add(i)).add(segment.c_in as usize));
            let mut b = tile.panel.add(segment.panel_row as usize * NV * S::LANES);
            for k in 0..segment.inputs as usize {
                let columns: [S::V; NV] = std::array::from_fn(|j| S::load(b.add(j * S::LANES)));
                for i in 0..MR {
                    let value = S::splat((*a[i].add(k)).to_f32());
                    for j in 0..NV {
                        acc[i][j] = S::fma(value, columns[j], acc[i][j]);
                    }
                }
                b = b.add(NV * S::LANES);
            }
        }
        finish::<S, E, MR, NV>(tile, &acc);
    }
}

/// Bias, residual, activation, constant, store.
///
/// # Safety
/// As for [`compute`], inside a function compiled for `S`.
#[inline(always)]
unsafe fn finish<S: Simd, E: Element, const MR: usize, const NV: usize>(
    tile: &Tile<'_, E>,
    acc: &[[S::V; NV]; MR],
) {
    // SAFETY: see above.
    unsafe {
        let zero = S::splat(0.0);
        for i in 0..MR {
            let out = (*tile.out.add(i)).add(tile.column);
            let bias = (*tile.bias.add(i)).add(tile.bias_column);
            for j in 0..NV {
                let first = j * S::LANES;
                let n = tile.columns - first.min(tile.columns);
                let mut v = S::add(acc[i][j], S::load_f32(bias.add(first)));
                if tile.residual {
                    v = S::add(v, S::load_first(out.add(first), n));
                }
                // The value is the second operand: x86's max and min hand that one on when it is NaN.
                v = match tile.act {
                    Act::None => v,
                    Act::Relu => S::max(zero, v),
                    Act::Relu6 => S::min(S::splat(6.0), S::max(zero, v)),
                };
                if !tile.constant.is_null() {
                    v = S::sub(v, S::load_f32(tile.constant.add(first)));
                }
                S::store_first(out.add(first), n, v);
            }
        }
    }
}
