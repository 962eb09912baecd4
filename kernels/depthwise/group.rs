//! The register tile: up to seven output pixels that are neighbours in a line × one vector of channels.

use crate::simd::Simd;
use crate::{Act, Element};

/// Sizes that runs of neighbours are cut into. Seven divides the maps of ImageNet networks, 7 to 112 pixels wide.
pub(super) const SIZES: [usize; 4] = [7, 4, 2, 1];

/// Some output pixels that are neighbours in a line, and neighbours in the output.
#[derive(Clone, Copy, Default)]
pub(super) struct Group {
    /// One of [`SIZES`].
    pub(super) size: usize,
    /// Element of the input at which the first pixel's first tap lies, perhaps outside.
    pub(super) input: isize,
    /// Element of the output at which the first pixel lies.
    pub(super) output: usize,
    /// Kernel rows that lie inside.
    pub(super) first_row: usize,
    pub(super) last_row: usize,
    /// Input column of the first pixel's first tap.
    pub(super) x: isize,
    /// All taps of all pixels lie inside.
    pub(super) inside: bool,
}

/// One vector of channels. Parameters hold `n` values each.
#[derive(Clone, Copy)]
pub(super) struct Column<E> {
    pub(super) n: usize,
    pub(super) input: *const E,
    pub(super) output: *mut E,
    /// Elements from one pixel to the next, in the input as in the output.
    pub(super) c: usize,
    /// Columns of the input.
    pub(super) w: usize,
    pub(super) kernel: usize,
    pub(super) stride: usize,
    /// `[tap][tap_stride]`.
    pub(super) weight: *const f32,
    pub(super) tap_stride: usize,
    pub(super) bias: *const f32,
    /// Null: zero.
    pub(super) minus_constant: *const f32,
    /// Null: zero.
    pub(super) output_constant: *const f32,
    pub(super) act: Act,
}

/// What a tap outside reads.
static ZEROS: [f32; 16] = [0.0; 16];

/// Computes `groups`.
///
/// # Safety
/// Inside a function compiled for `S`; every pointer is valid for what the groups name, `n <= S::LANES`, and no other
/// thread touches the outputs meanwhile.
#[inline(always)]
pub(super) unsafe fn compute<S: Simd, E: Element>(column: &Column<E>, groups: &[Group]) {
    // SAFETY: forwarded; only the kernels of fixed size take the vector for a whole one.
    unsafe {
        match (column.kernel, column.stride, column.n == S::LANES) {
            (3, 1, true) => all::<S, E, 3, 1>(column, groups),
            (3, 2, true) => all::<S, E, 3, 2>(column, groups),
            (5, 1, true) => all::<S, E, 5, 1>(column, groups),
            (5, 2, true) => all::<S, E, 5, 2>(column, groups),
            _ => all::<S, E, 0, 0>(column, groups),
        }
    }
}

/// # Safety
/// As for [`compute`].
#[inline(always)]
unsafe fn all<S: Simd, E: Element, const K: usize, const STRIDE: usize>(
    column: &Column<E>,
    groups: &[Group],
) {
    for group in groups {
        // SAFETY: forwarded.
        unsafe {
            match (group.size, group.inside) {
                (7, true) => fixed::<S, E, K, STRIDE, 7, true>(column, group),
                (7, false) => fixed::<S, E, K, STRIDE, 7, false>(column, group),
                (4, true) => fixed::<S, E, K, STRIDE, 4, true>(column, group),
                (4, false) => fixed::<S, E, K, STRIDE, 4, false>(column, group),
                (2, true) => fixed::<S, E, K, STRIDE, 2, true>(column, group),
                (2, false) => fixed::<S, E, K, STRIDE, 2, false>(column, group),
                (1, true) => fixed::<S, E, K, STRIDE, 1, true>(column, group),
                _ => fixed::<S, E, K, STRIDE, 1, false>(column, group),
            }
        }
    }
}

/// `K`, `STRIDE`: of the kernel, with whole vectors; 0: any, also with cut vectors. The order of the sum of a pixel is
/// the same in all.
///
/// # Safety
/// As for [`compute`], with `P` pixels that are `INSIDE` or not.
#[inline(always)]
unsafe fn fixed<
    S: Simd,
    E: Element,
    const K: usize,
    const STRIDE: usize,
    const P: usize,
    const INSIDE: bool,
>(
    column: &Column<E>,
    group: &Group,
) {
    let (k, stride) = if K == 0 { (column.kernel, column.stride) } else { (K, STRIDE) };
    let (c, line, n) = (column.c, column.w * column.c, column.n);
    let hit = |p: usize, s: usize| (group.x + (p * stride + s) as isize) as usize;
    // SAFETY: taps that lie outside are not dereferenced: their rows are not in `first_row..last_row`, for their
    // columns zeros are read. The rest is the caller's word.
    unsafe {
        let parameter = |p: *const f32| if K == 0 { S::load_first(p, n) } else { S::load_f32(p) };
        let weight = |r: usize, s: usize| parameter(column.weight.add((r * k + s) * column.tap_stride));
        let mut sums = [parameter(column.bias); P];
        let rows = if INSIDE { 0..k } else { group.first_row..group.last_row };
        if !INSIDE && !column.minus_constant.is_null() {
            let minus = parameter(column.minus_constant);
            for r in 0..k {
                for s in 0..k {
                    let response = S::mul(weight(r, s), minus);
                    for (p, sum) in sums.iter_mut().enumerate() {
                        if !rows.contains(&r) || hit(p, s) >= column.w {
                            *sum = S::add(*sum, response);
                        }
                    }
                }
            }
        }
        for r in rows {
            let start = column.input.wrapping_offset(group.input + (r * line) as isize);
            let load = |p: usize, s: usize| {
                let tap = start.wrapping_add((p * stride + s) * c);
                let tap = if INSIDE || hit(p, s) < column.w { tap } else { ZEROS.as_ptr().cast() };
                if K == 0 { S::load_first(tap, n) } else { S::load(tap) }
            };
            if K == 0 {
                for s in 0..k {
                    let w = weight(r, s);
                    for (p, sum) in sums.iter_mut().enumerate() {
                        *sum = S::fma(load(p, s), w, *sum);
                    }
                }
            } else {
                // Pixel by pixel: the compiler sees that neighbours load the same taps, and keeps few at a time.
                for (p, sum) in sums.iter_mut().enumerate() {
                    for s in 0..K {
                        *sum = S::fma(load(p, s), weight(r, s), *sum);
                    }
                }
            }
        }
        for (p, sum) in sums.into_iter().enumerate() {
            // The value is the second operand: x86's max and min hand that one on when it is NaN.
            let mut v = match column.act {
                Act::None => sum,
                Act::Relu => S::max(S::splat(0.0), sum),
                Act::Relu6 => S::min(S::splat(6.0), S::max(S::splat(0.0), sum)),
            };
            if !column.output_constant.is_null() {
                v = S::sub(v, parameter(column.output_constant));
            }
            let out = column.output.add(group.output + p * c);
            if K == 0 { S::store_first(out, n, v) } else { S::store(out, v) }
        }
    }
}
