//! The register tile: up to `S::MR` gathered rows × one panel of columns, over the whole reduction.

/// A stretch of the reduction: consecutive input channels of one tap.
#[derive(Clone, Copy, Default)]
pub(super) struct Segment {
    pub(super) tap: u32,
    /// First input channel, from where the tap's row starts.
    pub(super) c_in: u32,
    /// Input channels.
    pub(super) inputs: u32,
    /// Place in the order of the reduction of the first input channel: the panel row it meets, or where the list of
    /// rows says which.
    pub(super) panel_row: u32,
}

use crate::simd::{Simd, dispatch};
use crate::{Act, Element};
use std::ops::Range;

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
    /// The weights.
    pub(super) panel: PanelRows<E>,
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
    /// What will be multiplied with next; it is asked for while this is being multiplied.
    pub(super) next: PanelRows<E>,
    /// Rows of it.
    pub(super) next_rows: usize,
}

/// Where the rows of a panel lie. Each row is `stored` columns.
#[derive(Clone, Copy)]
pub(super) struct PanelRows<E> {
    /// Where every [`UNIT`] columns of row 0 start.
    pub(super) units: [*const E; MAX_UNITS],
    /// Elements from row 0 to each row in the order of the reduction; null: rows follow each other.
    pub(super) offsets: *const u32,
    /// The units are not neighbours.
    pub(super) scattered: bool,
}

/// Columns of a unit, the smallest that can be gathered while multiplying.
pub(super) const UNIT: usize = 8;
/// Units of the widest panel.
pub(super) const MAX_UNITS: usize = 4;

impl<E> PanelRows<E> {
    /// A panel of neighbours from `start` on.
    pub(super) fn neighbours(start: *const E, offsets: *const u32) -> Self {
        let units = std::array::from_fn(|unit| start.wrapping_add(unit * UNIT));
        Self { units, offsets, scattered: false }
    }
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
    let requests = strip.tiles * strip.segments.len().max(1);
    let mut ahead = Ahead { row: 0, rows: strip.next_rows.div_ceil(requests) };
    const { assert!(S::MR * S::NV * S::LANES <= MOST_SUMS) };
    let mut sums = Sums([0.0; MOST_SUMS]);
    let mut first = 0;
    for tile in 0..strip.tiles {
        let rows = height + usize::from(tile < taller);
        // SAFETY: the caller of `compute` vouches for the pointers; `dispatch` for the instruction set.
        unsafe { expect_output::<S, E>(strip, first..first + rows) };
        macro_rules! by_rows {
            ($gather:ident, $nv:literal: $($mr:literal)*) => {
                match rows {
                    // SAFETY: the caller of `compute` vouches for the pointers; `dispatch` for the instruction set.
                    $($mr => unsafe { fixed::<S, E, $mr, $nv, $gather>(strip, first, &mut ahead, &mut sums) },)*
                    _ => unreachable!("a tile has 1..=12 rows"),
                }
            };
            ($nv:literal) => {
                match (strip.panel.offsets.is_null(), strip.panel.scattered) {
                    (true, _) => by_rows!(STREAM, $nv: 1 2 3 4 5 6 7 8 9 10 11 12),
                    (false, false) => by_rows!(ROWS, $nv: 1 2 3 4 5 6 7 8 9 10 11 12),
                    (false, true) => by_rows!(UNITS, $nv: 1 2 3 4 5 6 7 8 9 10 11 12),
                }
            };
        }
        match strip.stored / S::LANES {
            1 => by_rows!(1),
            2 => by_rows!(2),
            3 if S::NV >= 3 => by_rows!(3),
            4 if S::NV >= 4 => by_rows!(4),
            _ => unreachable!("a panel has 1..=S::NV vectors"),
        }
        // SAFETY: as above.
        unsafe { finish::<S, E>(strip, first..first + rows, &sums) };
        first += rows;
    }
}

/// Progress through the rows of the next panel.
struct Ahead {
    row: usize,
    /// To ask for at every segment.
    rows: usize,
}

/// Steps of the reduction that a narrow tile does at a time.
const UNROLL: usize = 4;

/// Panel rows follow each other.
const STREAM: u8 = 0;
/// Panel rows are listed.
const ROWS: u8 = 1;
/// Panel rows are listed and their units lie apart.
const UNITS: u8 = 2;

/// # Safety
/// As for [`compute`], inside a function compiled for `S`.
#[inline(always)]
unsafe fn fixed<S: Simd, E: Element, const MR: usize, const NV: usize, const GATHER: u8>(
    strip: &Strip<'_, E>,
    first: usize,
    ahead: &mut Ahead,
    sums: &mut Sums,
) {
    if MR > S::MR {
        unreachable!("taller than the tile of this instruction set");
    }
    // SAFETY: see above.
    unsafe {
        let mut acc = [[S::splat(0.0); NV]; MR];
        let taps = strip.taps.add(first * strip.n_taps);
        let (mut next_row, rows, next) = (ahead.row, ahead.rows, &strip.next);
        for segment in strip.segments {
            let starts = taps.add(segment.tap as usize * MR);
            let a: [*const E; MR] = std::array::from_fn(|i| (*starts.add(i)).add(segment.c_in as usize));
            let order = segment.panel_row as usize;
            // Asking once a segment keeps the loads of the next panel spread over this one.
            let end = strip.next_rows.min(next_row + rows);
            while next_row < end {
                let offset = match next.offsets.is_null() {
                    true => next_row * strip.stored,
                    false => *next.offsets.add(next_row) as usize,
                };
                for unit in
                    next.units.iter().step_by(if GATHER == UNITS { 1 } else { 64 / UNIT / size_of::<E>() })
                {
                    S::prefetch_far(unit.wrapping_add(offset).cast());
                }
                next_row += 1;
            }
            let mut b = strip.panel.units[0].wrapping_add(order * NV * S::LANES);
            let inputs = segment.inputs as usize;
            macro_rules! step {
                ($k:expr, $columns:expr) => {
                    let columns: [S::V; NV] = $columns;
                    for i in 0..MR {
                        let value = S::splat((*a[i].add($k)).to_f32());
                        for j in 0..NV {
                            acc[i][j] = S::fma(value, columns[j], acc[i][j]);
                        }
                    }
                };
            }
            let mut k = 0;
            if NV == 1 && GATHER == STREAM {
                // Narrow tiles are bound by loads, also those of the pointers that have no register.
                while k + UNROLL <= inputs {
                    step!(k, [S::load(b); NV]);
                    step!(k + 1, [S::load(b.add(S::LANES)); NV]);
                    step!(k + 2, [S::load(b.add(2 * S::LANES)); NV]);
                    step!(k + 3, [S::load(b.add(3 * S::LANES)); NV]);
                    b = b.wrapping_add(UNROLL * S::LANES);
                    k += UNROLL;
                }
            }
            while k < inputs {
                let columns: [S::V; NV] = match GATHER {
                    STREAM => std::array::from_fn(|j| S::load(b.add(j * S::LANES))),
                    ROWS => {
                        let row = strip.panel.units[0].add(*strip.panel.offsets.add(order + k) as usize);
                        std::array::from_fn(|j| S::load(row.add(j * S::LANES)))
                    }
                    _ => {
                        let row = *strip.panel.offsets.add(order + k) as usize;
                        std::array::from_fn(|j| {
                            let unit = j * S::LANES / UNIT;
                            let within = j * S::LANES % UNIT;
                            let low = strip.panel.units[unit].add(row + within);
                            match S::LANES > UNIT {
                                true => S::load_halves(low, strip.panel.units[unit + 1].add(row)),
                                false => S::load(low),
                            }
                        })
                    }
                };
                step!(k, columns);
                b = b.wrapping_add(NV * S::LANES);
                k += 1;
            }
        }
        ahead.row = next_row;
        for (i, acc) in acc.iter().enumerate() {
            for (j, &acc) in acc.iter().enumerate() {
                S::store_f32(sums.0.as_mut_ptr().add((i * NV + j) * S::LANES), acc);
            }
        }
    }
}

/// Sums of a tile, `[rows][stored columns]`. They pass through memory on their way to the epilogue, which then needs
/// no code of its own for every shape of tile.
#[repr(align(64))]
struct Sums([f32; MOST_SUMS]);

/// The largest tile of any instruction set: 12 rows × 32 columns.
const MOST_SUMS: usize = 12 * 32;

/// Asks for the output of a tile, which is to be written (and with a residual to be read) when its sums are ready.
///
/// # Safety
/// As for [`compute`], inside a function compiled for `S`.
#[inline(always)]
unsafe fn expect_output<S: Simd, E: Element>(strip: &Strip<'_, E>, rows: Range<usize>) {
    for row in rows {
        // SAFETY: see above.
        unsafe {
            let out = (*strip.out.add(row)).add(strip.column);
            for line in (0..strip.columns).step_by(64 / size_of::<E>()) {
                S::prefetch_write(out.add(line).cast());
            }
        }
    }
}

/// Bias, residual, activation, constant, store.
///
/// # Safety
/// As for [`compute`], inside a function compiled for `S`.
#[inline(always)]
unsafe fn finish<S: Simd, E: Element>(strip: &Strip<'_, E>, rows: Range<usize>, sums: &Sums) {
    // SAFETY: see above.
    unsafe {
        let classes = !strip.class.is_null();
        let part = strip.columns < strip.stored || strip.act == Act::Relu6 || classes && strip.residual;
        macro_rules! whole {
            ($nv:literal) => {
                match (strip.residual, classes) {
                    (false, false) => finish_whole::<S, E, $nv, false, false>(strip, rows, sums),
                    (false, true) => finish_whole::<S, E, $nv, false, true>(strip, rows, sums),
                    (true, _) => finish_whole::<S, E, $nv, true, false>(strip, rows, sums),
                }
            };
        }
        match strip.stored / S::LANES {
            1 if !part => whole!(1),
            2 if !part => whole!(2),
            _ => finish_part::<S, E>(strip, rows, sums),
        }
    }
}

/// Whole vectors, no activation but ReLU.
///
/// # Safety
/// As for [`compute`], inside a function compiled for `S`.
#[inline(always)]
unsafe fn finish_whole<S: Simd, E: Element, const NV: usize, const RESIDUAL: bool, const CLASSES: bool>(
    strip: &Strip<'_, E>,
    rows: Range<usize>,
    sums: &Sums,
) {
    // SAFETY: see above.
    unsafe {
        let least = S::splat(if strip.act == Act::Relu { 0.0 } else { f32::NEG_INFINITY });
        let constant: [S::V; NV] = match strip.constant.is_null() {
            true => [S::splat(0.0); NV],
            false => std::array::from_fn(|j| S::load_f32(strip.constant.add(j * S::LANES))),
        };
        let mut sum = sums.0.as_ptr();
        for row in rows {
            let out = (*strip.out.add(row)).add(strip.column);
            let class = if CLASSES { *strip.class.add(row) as usize } else { 0 };
            let bias = strip.bias.add(class * strip.bias_stride);
            for (j, &constant) in constant.iter().enumerate() {
                let at = j * S::LANES;
                let mut v = S::add(S::load_f32(sum.add(at)), S::load_f32(bias.add(at)));
                if RESIDUAL {
                    v = S::add(v, S::load(out.add(at).cast_const()));
                }
                // The value is the second operand, which x86's max hands on when it is NaN.
                S::store(out.add(at), S::sub(S::max(least, v), constant));
            }
            sum = sum.add(NV * S::LANES);
        }
    }
}

/// Any case.
///
/// # Safety
/// As for [`compute`], inside a function compiled for `S`.
#[inline(always)]
unsafe fn finish_part<S: Simd, E: Element>(strip: &Strip<'_, E>, rows: Range<usize>, sums: &Sums) {
    // SAFETY: see above.
    unsafe {
        let zero = S::splat(0.0);
        let mut sum = sums.0.as_ptr();
        for row in rows {
            let out = (*strip.out.add(row)).add(strip.column);
            let class = if strip.class.is_null() { 0 } else { *strip.class.add(row) as usize };
            let bias = strip.bias.add(class * strip.bias_stride);
            for at in (0..strip.columns).step_by(S::LANES) {
                let n = strip.columns - at;
                let mut v = S::add(S::load_f32(sum.add(at)), S::load_f32(bias.add(at)));
                if strip.residual {
                    v = S::add(v, S::load_first(out.add(at).cast_const(), n));
                }
                v = match strip.act {
                    Act::None => v,
                    // The value is the second operand, which x86's max and min hand on when it is NaN.
                    Act::Relu => S::max(zero, v),
                    Act::Relu6 => S::min(S::splat(6.0), S::max(zero, v)),
                };
                if !strip.constant.is_null() {
                    v = S::sub(v, S::load_f32(strip.constant.add(at)));
                }
                S::store_first(out.add(at), n, v);
            }
            sum = sum.add(strip.stored);
        }
    }
}
