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

/// A block of gathered rows × one panel, computed tile by tile. Pointers that are indexed by row have `rows` entries.
#[derive(Clone, Copy)]
pub(super) struct Strip<'a, E> {
    /// Where each row's input of each tap starts; tile after tile, `[n_taps][rows of the tile]`.
    pub(super) taps: *const *const E,
    pub(super) n_taps: usize,
    pub(super) rows: usize,
    /// Number of tiles, which share the rows evenly: the first ones may have one more.
    pub(super) tiles: usize,
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
    /// Bias of the panel's columns, a row of the table for every class of rows.
    pub(super) bias: *const f32,
    pub(super) bias_stride: usize,
    /// `[rows]`: class of each row; null: all are of class 0.
    pub(super) class: *const u32,
    /// Subtracted behind the activation; null: nothing.
    pub(super) constant: *const f32,
    pub(super) residual: bool,
    pub(super) act: Act,
    /// What will be multiplied with next; it is asked for while this is being multiplied. May be any address.
    pub(super) ahead: *const u8,
    pub(super) ahead_bytes: usize,
}

dispatch! {
    /// Computes a strip.
    ///
    /// Every pointer must be valid for what the shape says, with `SLACK` readable elements behind panel, bias and
    /// constant; no other thread touches the outputs meanwhile.
    pub(super) fn compute<E>(strip: &Strip<'_, E>) = compute_set
}

#[inline(always)]
fn compute_set<S: Simd, E: Element>(strip: &Strip<'_, E>) {
    let (height, taller) = (strip.rows / strip.tiles, strip.rows % strip.tiles);
    let mut ahead = Ahead {
        at: strip.ahead,
        lines: strip.ahead_bytes.div_ceil(64 * strip.tiles * strip.segments.len().max(1)),
    };
    let mut first = 0;
    for tile in 0..strip.tiles {
        let rows = height + usize::from(tile < taller);
        macro_rules! by_rows {
            ($nv:literal: $($mr:literal)*) => {
                match rows {
                    // SAFETY: the caller of `compute` vouches for the pointers; `dispatch` for the instruction set.
                    $($mr => unsafe { fixed::<S, E, $mr, $nv>(strip, first, &mut ahead) },)*
                    _ => unreachable!("a tile has 1..=12 rows"),
                }
            };
        }
        match strip.stored / S::LANES {
            1 => by_rows!(1: 1 2 3 4 5 6 7 8 9 10 11 12),
            2 => by_rows!(2: 1 2 3 4 5 6 7 8 9 10 11 12),
            3 if S::NV >= 3 => by_rows!(3: 1 2 3 4 5 6 7 8 9 10 11 12),
            4 if S::NV >= 4 => by_rows!(4: 1 2 3 4 5 6 7 8 9 10 11 12),
            _ => unreachable!("a panel has 1..=S::NV vectors"),
        }
        first += rows;
    }
}

/// Cache lines to ask for.
struct Ahead {
    at: *const u8,
    /// At every request.
    lines: usize,
}

/// # Safety
/// As for [`compute`], inside a function compiled for `S`.
#[inline(always)]
unsafe fn fixed<S: Simd, E: Element, const MR: usize, const NV: usize>(
    strip: &Strip<'_, E>,
    first: usize,
    ahead: &mut Ahead,
) {
    if MR > S::MR {
        unreachable!("taller than the tile of this instruction set");
    }
    // SAFETY: see above.
    unsafe {
        let mut acc = [[S::splat(0.0); NV]; MR];
        let taps = strip.taps.add(first * strip.n_taps);
        let (mut at, lines) = (ahead.at, ahead.lines);
        for segment in strip.segments {
            let starts = taps.add(segment.tap as usize * MR);
            let a: [*const E; MR] = std::array::from_fn(|i| (*starts.add(i)).add(segment.c_in as usize));
            let mut b = strip.panel.add(segment.panel_row as usize * NV * S::LANES);
            // Asking once a segment keeps the loads of the next panel spread over this one.
            for line in 0..lines {
                S::prefetch_far(at.wrapping_add(64 * line));
            }
            at = at.wrapping_add(64 * lines);
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
        ahead.at = at;
        finish::<S, E, MR, NV>(strip, first, &acc);
    }
}

/// Bias, residual, activation, constant, store.
///
/// # Safety
/// As for [`compute`], inside a function compiled for `S`.
#[inline(always)]
unsafe fn finish<S: Simd, E: Element, const MR: usize, const NV: usize>(
    strip: &Strip<'_, E>,
    first: usize,
    acc: &[[S::V; NV]; MR],
) {
    // SAFETY: see above.
    unsafe {
        let zero = S::splat(0.0);
        for i in 0..MR {
            let out = (*strip.out.add(first + i)).add(strip.column);
            let class = if strip.class.is_null() { 0 } else { *strip.class.add(first + i) as usize };
            let bias = strip.bias.add(class * strip.bias_stride);
            for j in 0..NV {
                let at = j * S::LANES;
                let n = strip.columns - at.min(strip.columns);
                let mut v = S::add(acc[i][j], S::load_f32(bias.add(at)));
                if strip.residual {
                    v = S::add(v, S::load_first(out.add(at), n));
                }
                // The value is the second operand: x86's max and min hand that one on when it is NaN.
                v = match strip.act {
                    Act::None => v,
                    Act::Relu => S::max(zero, v),
                    Act::Relu6 => S::min(S::splat(6.0), S::max(zero, v)),
                };
                if !strip.constant.is_null() {
                    v = S::sub(v, S::load_f32(strip.constant.add(at)));
                }
                S::store_first(out.add(at), n, v);
            }
        }
    }
}
