//! The register tile: up to seven output pixels that are neighbours in a line × one vector of channels.

use crate::Element;
use crate::simd::Simd;

/// Sizes that runs of neighbours are cut into. Seven divides the maps of ImageNet networks, 7 to 112 pixels wide.
pub(super) const SIZES: [usize; 4] = [7, 4, 2, 1];

/// Some output pixels that are neighbours in a line, and neighbours in the output.
#[derive(Clone, Copy, Default)]
pub(super) struct Group {
    /// Element of the input at which the first pixel's first tap lies, perhaps outside.
    pub(super) input: isize,
    /// Element of the output at which the first pixel lies.
    pub(super) output: usize,
    /// Input column of the first pixel's first tap.
    pub(super) x: isize,
    /// Bit `j`: the `j`-th column that the pixels see lies outside; the first 32 only.
    pub(super) outside: u32,
    /// One of [`SIZES`].
    pub(super) size: u8,
    /// Kernel rows that lie inside.
    pub(super) first_row: u8,
    pub(super) last_row: u8,
    /// All taps of all pixels have their columns inside.
    pub(super) columns_inside: bool,
    /// And their rows.
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
    /// What the activation clamps to.
    pub(super) least: f32,
    pub(super) most: f32,
}

/// Most input columns that a group of pixels sees with a kernel of fixed size.
const COLUMNS: usize = (SIZES[0] - 1) * 2 + 5;

/// Computes `groups`, for each one column after the other; the columns have the same kernel and width.
///
/// # Safety
/// Inside a function compiled for `S`; every pointer is valid for what the groups name, `n <= S::LANES`, and no other
/// thread touches the outputs meanwhile.
#[inline(always)]
pub(super) unsafe fn compute<S: Simd, E: Element>(columns: &[Column<E>], groups: &[Group]) {
    let Some(first) = columns.first() else { return };
    // SAFETY: forwarded; only the kernels of fixed size take the vectors for whole ones.
    unsafe {
        match (first.kernel, first.stride, first.n == S::LANES) {
            (3, 1, true) => all::<S, E, 3, 1>(columns, groups),
            (3, 2, true) => all::<S, E, 3, 2>(columns, groups),
            (5, 1, true) => all::<S, E, 5, 1>(columns, groups),
            (5, 2, true) => all::<S, E, 5, 2>(columns, groups),
            _ => all::<S, E, 0, 0>(columns, groups),
        }
    }
}

/// # Safety
/// As for [`compute`].
#[inline(always)]
unsafe fn all<S: Simd, E: Element, const K: usize, const STRIDE: usize>(
    columns: &[Column<E>],
    groups: &[Group],
) {
    macro_rules! each {
        ($group:ident: $size:literal, $inside:literal) => {
            for column in columns {
                // SAFETY: forwarded.
                unsafe { fixed::<S, E, K, STRIDE, $size, $inside>(column, $group) }
            }
        };
    }
    for group in groups {
        match (group.size, group.columns_inside) {
            (7, true) => each!(group: 7, true),
            (7, false) => each!(group: 7, false),
            (4, true) => each!(group: 4, true),
            (4, false) => each!(group: 4, false),
            (2, true) => each!(group: 2, true),
            (2, false) => each!(group: 2, false),
            (1, true) => each!(group: 1, true),
            _ => each!(group: 1, false),
        }
    }
}

/// `K`, `STRIDE`: of the kernel, with whole vectors; 0: any, also with cut vectors. The order of the sum of a pixel is
/// the same in all.
///
/// # Safety
/// As for [`compute`], with `P` pixels whose taps' columns all lie inside where `INSIDE`.
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
    let (first_row, last_row) = (usize::from(group.first_row), usize::from(group.last_row));
    let (k, stride) = if K == 0 { (column.kernel, column.stride) } else { (K, STRIDE) };
    let (c, line, n) = (column.c, column.w * column.c, column.n);
    let hit = |p: usize, s: usize| INSIDE || ((group.x + (p * stride + s) as isize) as usize) < column.w;
    // SAFETY: taps that lie outside are not dereferenced: their rows are not in `first_row..last_row`, for their
    // columns zeros are taken. The rest is the caller's word.
    unsafe {
        let parameter = |p: *const f32| if K == 0 { S::load_first(p, n) } else { S::load_f32(p) };
        let weight = |r: usize, s: usize| parameter(column.weight.add((r * k + s) * column.tap_stride));
        let load = |p: *const E| if K == 0 { S::load_first(p, n) } else { S::load(p) };
        let mut sums = [parameter(column.bias); P];
        if !group.inside && !column.minus_constant.is_null() {
            let minus = parameter(column.minus_constant);
            for (r, s) in (0..k).flat_map(|r| (0..k).map(move |s| (r, s))) {
                let response = S::mul(weight(r, s), minus);
                for (p, sum) in sums.iter_mut().enumerate() {
                    if r < first_row || r >= last_row || !hit(p, s) {
                        *sum = S::add(*sum, response);
                    }
                }
            }
        }
        for r in first_row..last_row {
            let mut tap = column.input.wrapping_offset(group.input + (r * line) as isize);
            if K == 0 {
                for s in 0..k {
                    let w = weight(r, s);
                    for (p, sum) in sums.iter_mut().enumerate() {
                        if hit(p, s) {
                            *sum = S::fma(load(tap.wrapping_add((p * stride + s) * c)), w, *sum);
                        }
                    }
                }
                continue;
            }
            // Each column that the pixels see is loaded once, just before its first use. Spelled out per pixel: the
            // compiler would not unroll a loop as long as this and keep it all in registers.
            let mut seen = [S::splat(0.0); COLUMNS];
            let mut see = |j: usize, seen: &mut [S::V; COLUMNS]| {
                if INSIDE || group.outside >> j & 1 == 0 {
                    seen[j] = load(tap);
                }
                tap = tap.wrapping_add(c);
            };
            for j in 0..K.saturating_sub(STRIDE) {
                see(j, &mut seen);
            }
            macro_rules! pixels {
                ($($p:literal)*) => {
                    $(if $p < P {
                        for i in 0..STRIDE {
                            see($p * STRIDE + K.saturating_sub(STRIDE) + i, &mut seen);
                        }
                        for s in 0..K {
                            sums[$p % P] = S::fma(seen[$p * STRIDE + s], weight(r, s), sums[$p % P]);
                        }
                    })*
                };
            }
            pixels!(0 1 2 3 4 5 6);
        }
        let (least, most) = (S::splat(column.least), S::splat(column.most));
        let output_constant = match column.output_constant.is_null() {
            true => S::splat(0.0),
            false => parameter(column.output_constant),
        };
        for (p, sum) in sums.into_iter().enumerate() {
            // The value is the second operand: x86's max and min hand that one on when it is NaN.
            let v = S::sub(S::min(most, S::max(least, sum)), output_constant);
            let out = column.output.add(group.output + p * c);
            if K == 0 { S::store_first(out, n, v) } else { S::store(out, v) }
        }
    }
}
