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
    /// `[rows][stored]`, to keep sums in between.
    pub(super) sums: *mut f32,
    /// What will be multiplied with next; it is asked for while this is being multiplied.
    pub(super) next: Option<PanelRows<E>>,
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

/// Rows of a panel that are multiplied with all rows of a strip before the next ones are: these and the next ones
/// together stay in the second-level cache.
const PART: usize = 1152;

#[inline(always)]
fn compute_set<S: Simd, E: Element>(strip: &Strip<'_, E>) {
    const { assert!(S::MR * S::NV * S::LANES <= 12 * 32) };
    let row = |segment: usize| strip.segments.get(segment).map(|segment| segment.panel_row as usize);
    let depth = strip.segments.last().map_or(0, |last| (last.panel_row + last.inputs) as usize);
    let parts = depth.div_ceil(PART).max(1);
    let length = strip.segments.len().div_ceil(parts);
    for part in 0..parts {
        let segments = &strip.segments[part * length..strip.segments.len().min((part + 1) * length)];
        let last = part + 1 == parts;
        let coming = match last {
            false => Some((
                strip.panel,
                row((part + 1) * length).unwrap_or(depth)..row((part + 2) * length).unwrap_or(depth),
            )),
            true => strip.next.map(|next| (next, 0..row(length).unwrap_or(depth))),
        };
        let mut ahead = Ahead::new(coming, strip.stored, strip.tiles * segments.len().max(1));
        // SAFETY: the caller of `compute` vouches for the pointers; `dispatch` for the instruction set.
        unsafe { compute_part::<S, E>(strip, segments, (part == 0, last), parts > 1, &mut ahead) };
    }
}

/// Multiplies with some rows of the panel. The `first` part starts from zero, the others from the sums so far; the
/// `last` finishes.
///
/// # Safety
/// As for [`compute`], inside a function compiled for `S`.
#[inline(always)]
unsafe fn compute_part<S: Simd, E: Element>(
    strip: &Strip<'_, E>,
    segments: &[Segment],
    (start, last): (bool, bool),
    keep: bool,
    ahead: &mut Ahead,
) {
    let (height, taller) = (strip.rows / strip.tiles, strip.rows % strip.tiles);
    let mut first = 0;
    for tile in 0..strip.tiles {
        let rows = height + usize::from(tile < taller);
        let sums = if keep { strip.sums.wrapping_add(first * strip.stored) } else { strip.sums };
        if last {
            // SAFETY: see above.
            unsafe { expect_output::<S, E>(strip, first..first + rows) };
        }
        macro_rules! by_rows {
            ($gather:ident, $nv:literal: $($mr:literal)*) => {
                match rows {
                    // SAFETY: the caller of `compute` vouches for the pointers; `dispatch` for the instruction set.
                    $($mr => unsafe { fixed::<S, E, $mr, $nv, $gather>(strip, segments, first, ahead, (start, sums)) },)*
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
        if last {
            // SAFETY: see above.
            unsafe { finish::<S, E>(strip, first..first + rows, sums) };
        }
        first += rows;
    }
}

/// Progress through the rows of a panel that will be multiplied with soon.
#[derive(Clone, Copy)]
struct Ahead {
    /// Cache lines of row 0, some of them perhaps twice.
    lines: [*const u8; MAX_UNITS],
    /// Whether there are more than two.
    scattered: bool,
    /// Elements from row 0 to each row; null: they follow each other.
    offsets: *const u32,
    element: usize,
    /// Next row to ask for; where rows follow each other, next cache line.
    at: usize,
    end: usize,
    /// To ask for at every segment, so that the loads are spread over the multiplication.
    step: usize,
}

impl Ahead {
    fn new<E>(coming: Option<(PanelRows<E>, Range<usize>)>, stored: usize, requests: usize) -> Self {
        let nothing = || (PanelRows::neighbours(std::ptr::null(), std::ptr::null()), 0..0);
        let (panel, mut rows) = coming.unwrap_or_else(nothing);
        if panel.offsets.is_null() {
            let line = |row: usize| (row * stored * size_of::<E>()).div_ceil(64);
            rows = line(rows.start)..line(rows.end);
        }
        let [first, second, third, fourth] = panel.units.map(|unit: *const E| unit.cast());
        let lines =
            if panel.scattered { [first, second, third, fourth] } else { [first, third, first, third] };
        Ahead {
            lines,
            scattered: panel.scattered,
            offsets: panel.offsets,
            element: size_of::<E>(),
            at: rows.start,
            end: rows.end,
            step: rows.len().div_ceil(requests),
        }
    }

    /// Asks for some more.
    ///
    /// # Safety
    /// Inside a function compiled for `S`; `offsets` is null or has `end` entries.
    #[inline(always)]
    unsafe fn ask<S: Simd>(&mut self) {
        let end = self.end.min(self.at + self.step);
        // SAFETY: see above.
        unsafe {
            if self.offsets.is_null() {
                while self.at < end {
                    S::prefetch_far(self.lines[0].wrapping_add(self.at * 64));
                    self.at += 1;
                }
            }
            while self.at < end {
                let offset = *self.offsets.add(self.at) as usize * self.element;
                S::prefetch_far(self.lines[0].wrapping_add(offset));
                S::prefetch_far(self.lines[1].wrapping_add(offset));
                if self.scattered {
                    S::prefetch_far(self.lines[2].wrapping_add(offset));
                    S::prefetch_far(self.lines[3].wrapping_add(offset));
                }
                self.at += 1;
            }
        }
    }
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
    segments: &[Segment],
    first: usize,
    ahead: &mut Ahead,
    (start, sums): (bool, *mut f32),
) {
    if MR > S::MR {
        unreachable!("taller than the tile of this instruction set");
    }
    // SAFETY: see above.
    unsafe {
        let mut acc = [[S::splat(0.0); NV]; MR];
        if !start {
            for (i, acc) in acc.iter_mut().enumerate() {
                for (j, acc) in acc.iter_mut().enumerate() {
                    *acc = S::load_f32(sums.add((i * NV + j) * S::LANES).cast_const());
                }
            }
        }
        let taps = strip.taps.add(first * strip.n_taps);
        let mut coming = *ahead;
        for segment in segments {
            let starts = taps.add(segment.tap as usize * MR);
            let a: [*const E; MR] = std::array::from_fn(|i| (*starts.add(i)).add(segment.c_in as usize));
            let order = segment.panel_row as usize;
            coming.ask::<S>();
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
        *ahead = coming;
        for (i, acc) in acc.iter().enumerate() {
            for (j, &acc) in acc.iter().enumerate() {
                S::store_f32(sums.add((i * NV + j) * S::LANES), acc);
            }
        }
    }
}

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

/// Bias, residual, activation, constant, store. The sums pass through memory on their way here, so that this needs no
/// code of its own for every shape of tile.
///
/// # Safety
/// As for [`compute`], inside a function compiled for `S`.
#[inline(always)]
unsafe fn finish<S: Simd, E: Element>(strip: &Strip<'_, E>, rows: Range<usize>, sums: *const f32) {
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
    sums: *const f32,
) {
    // SAFETY: see above.
    unsafe {
        let least = S::splat(if strip.act == Act::Relu { 0.0 } else { f32::NEG_INFINITY });
        let constant: [S::V; NV] = match strip.constant.is_null() {
            true => [S::splat(0.0); NV],
            false => std::array::from_fn(|j| S::load_f32(strip.constant.add(j * S::LANES))),
        };
        let mut sum = sums;
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
unsafe fn finish_part<S: Simd, E: Element>(strip: &Strip<'_, E>, rows: Range<usize>, sums: *const f32) {
    // SAFETY: see above.
    unsafe {
        let zero = S::splat(0.0);
        let mut sum = sums;
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
