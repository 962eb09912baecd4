//! Writes the sums of a product.

use super::super::epilogue::{Epilogue, Sums, finish};
use crate::simd::{Simd, dispatch};
use crate::{DType, Element, Isa};
use std::ops::Range;

/// A product that is written.
struct Written<'a, E> {
    end: &'a Epilogue<E>,
    rows: Range<usize>,
    at: *const u8,
    sums: *const f32,
}

/// Bias, residual, activation, constant, store. `at` is for each row of the block which row of its product it is, in `sums`.
pub(super) fn run<E: Element>(
    isa: Isa,
    end: &Epilogue<E>,
    rows: Range<usize>,
    (at, sums): (*const u8, *const f32),
) {
    let product = &Written { end, rows, at, sums };
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if isa.0 == crate::simd::Kind::Amx {
        // SAFETY: the token says that the machine has vectors of bfloat16; elements are of that type or bytes here, and the
        // pointers are what the call was checked for.
        return unsafe { amx::run(product) };
    }
    #[cfg(target_arch = "x86_64")]
    if isa.0 == crate::simd::Kind::Vnni {
        // SAFETY: as above; this set multiplies tiles of nothing but bytes.
        return unsafe { bytes::rows(product) };
    }
    any(isa, product);
}

dispatch! {
    /// The same for any instruction set and width.
    fn any<E>(product: &Written<'_, E>) = any_set
}

#[inline(always)]
fn any_set<S: Simd, E: Element>(product: &Written<'_, E>) {
    let vectors = product.end.stored / S::LANES;
    // SAFETY: the pointers are what the call was checked for; `dispatch` vouches for the instruction set.
    unsafe {
        for row in product.rows.clone() {
            let sums = product.sums.add(*product.at.add(row) as usize * product.end.stored);
            let sums = match E::DTYPE {
                DType::Int8 => Sums::Whole(sums.cast()),
                _ => Sums::Rows(sums),
            };
            finish::<S, E>(product.end, row..row + 1, vectors, sums);
        }
    }
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx {
    use super::Written;
    use crate::simd::tiles::SIDE;
    use crate::{DType, Element};
    use std::arch::x86_64::*;

    /// Columns of both tiles.
    const BOTH: usize = 2 * SIDE;

    /// Rows of bfloat16 or of bytes.
    ///
    /// # Safety
    /// Elements are one of these; the machine has vectors of bfloat16; bias, scale and constant can be read a vector at a time.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub(super) unsafe fn run<E: Element>(product: &Written<'_, E>) {
        // SAFETY: the caller's promise.
        unsafe {
            if E::DTYPE == DType::Int8 {
                return super::bytes::rows(product);
            }
            let end = product.end;
            let one_bias = end.bias_stride == 0 && end.constant.is_null();
            if one_bias && end.whole() && end.stored == BOTH {
                return match end.residual {
                    true => whole::<true, E>(product),
                    false => whole::<false, E>(product),
                };
            }
            match (end.stored, end.whole()) {
                (SIDE, true) => halves::<1, true, E>(product),
                (SIDE, false) => halves::<1, false, E>(product),
                (_, true) => halves::<2, true, E>(product),
                (_, false) => halves::<2, false, E>(product),
            }
        }
    }

    /// Both tiles of columns of bfloat16, whose rows have the same bias.
    ///
    /// # Safety
    /// As above.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn whole<const RESIDUAL: bool, E: Element>(product: &Written<'_, E>) {
        assert!(E::DTYPE == DType::Bf16);
        let Written { end, rows, at, sums } = product;
        // What is stored could change what is behind a reference, as far as the compiler knows.
        let (at, sums, outputs, column) = (*at, *sums, end.out, end.column);
        let (least, most) = end.act.range();
        let (least, most) = (_mm512_set1_ps(least), _mm512_set1_ps(most));
        // SAFETY: the caller's promise.
        unsafe {
            let bias = [_mm512_loadu_ps(end.bias), _mm512_loadu_ps(end.bias.add(SIDE))];
            for row in rows.clone() {
                let sums = sums.add(*at.add(row) as usize * BOTH);
                let out = (*outputs.add(row)).add(column);
                let mut low = _mm512_add_ps(_mm512_loadu_ps(sums), bias[0]);
                let mut high = _mm512_add_ps(_mm512_loadu_ps(sums.add(SIDE)), bias[1]);
                if RESIDUAL {
                    let before = [_mm256_loadu_si256(out.cast()), _mm256_loadu_si256(out.add(SIDE).cast())];
                    let wide = [_mm512_cvtepu16_epi32(before[0]), _mm512_cvtepu16_epi32(before[1])];
                    low = _mm512_add_ps(low, _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide[0])));
                    high = _mm512_add_ps(high, _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide[1])));
                }
                // The value is the second operand, which is handed on when it is NaN.
                low = _mm512_min_ps(most, _mm512_max_ps(least, low));
                high = _mm512_min_ps(most, _mm512_max_ps(least, high));
                let both = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
                _mm512_storeu_si512(out.cast(), both);
            }
        }
    }

    /// The first of 32 columns.
    fn first(columns: usize) -> u32 {
        u32::MAX >> (2 * SIDE - columns)
    }

    /// `N` vectors of columns of bfloat16, of which with `WHOLE` all are written.
    ///
    /// # Safety
    /// As above.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn halves<const N: usize, const WHOLE: bool, E: Element>(product: &Written<'_, E>) {
        assert!(E::DTYPE == DType::Bf16);
        let Written { end, rows, sums, at } = product;
        let zero = _mm512_setzero_ps();
        let (least, most) = end.act.range();
        let (least, most) = (_mm512_set1_ps(least), _mm512_set1_ps(most));
        let written = if WHOLE { first(N * SIDE) } else { first(end.columns) };
        // Loops, because a closure would not be compiled for these instructions.
        let (mut constant, mut bias) = ([zero; N], [zero; N]);
        // SAFETY: the caller's promise.
        unsafe {
            for j in 0..N {
                bias[j] = _mm512_loadu_ps(end.bias.add(j * SIDE));
                if !end.constant.is_null() {
                    constant[j] = _mm512_loadu_ps(end.constant.add(j * SIDE));
                }
            }
            for row in rows.clone() {
                let sums = sums.add(*at.add(row) as usize * N * SIDE);
                let out = (*end.out.add(row)).add(end.column);
                if end.bias_stride > 0 {
                    for (j, bias) in bias.iter_mut().enumerate() {
                        *bias = _mm512_loadu_ps(end.bias_of(row).add(j * SIDE));
                    }
                }
                let mut before = [zero; N];
                if end.residual {
                    for (j, before) in before.iter_mut().enumerate() {
                        let (out, written) = (out.wrapping_add(j * SIDE), written >> (j * SIDE));
                        let halves = match WHOLE {
                            true => _mm256_loadu_si256(out.cast()),
                            false => {
                                let written = u32::from(written as u16);
                                _mm512_castsi512_si256(_mm512_maskz_loadu_epi16(written, out.cast()))
                            }
                        };
                        let wide = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves));
                        *before = _mm512_castsi512_ps(wide);
                    }
                }
                let mut value = [zero; N];
                for j in 0..N {
                    let mut v = _mm512_add_ps(_mm512_loadu_ps(sums.add(j * SIDE)), bias[j]);
                    if end.residual {
                        v = _mm512_add_ps(v, before[j]);
                    }
                    // The value is the second operand, which is handed on when it is NaN.
                    v = _mm512_min_ps(most, _mm512_max_ps(least, v));
                    value[j] = _mm512_sub_ps(v, constant[j]);
                }
                let both = match N {
                    2 => {
                        std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(value[N - 1], value[0]))
                    }
                    _ => {
                        let one = _mm512_cvtneps_pbh(value[0]);
                        _mm512_castsi256_si512(std::mem::transmute::<__m256bh, __m256i>(one))
                    }
                };
                match (WHOLE, N) {
                    (true, 2) => _mm512_storeu_si512(out.cast(), both),
                    (true, _) => _mm256_storeu_si256(out.cast(), _mm512_castsi512_si256(both)),
                    (false, _) => _mm512_mask_storeu_epi16(out.cast(), written, both),
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod bytes {
    use super::Written;
    use crate::simd::tiles::SIDE;
    use crate::{Act, Element};
    use std::arch::x86_64::*;

    /// Columns of which two rows fill a vector of bytes.
    const PAIR: usize = 2 * SIDE;

    /// Rows of bytes.
    ///
    /// # Safety
    /// The machine has such vectors; bias, scale and constant can be read a vector at a time.
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) unsafe fn rows<E: Element>(product: &Written<'_, E>) {
        assert!(size_of::<E>() == 1);
        let end = product.end;
        let plain = end.act != Act::Relu6 && end.constant.is_null();
        for column in (0..end.stored).step_by(PAIR) {
            // SAFETY: the caller's promise.
            unsafe {
                if plain && end.columns >= column + PAIR {
                    match end.residual {
                        true => pairs::<true, E>(product, column),
                        false => pairs::<false, E>(product, column),
                    }
                } else if plain && end.columns == column + SIDE && !end.residual {
                    fours(product, column);
                } else {
                    let last = end.stored.min(column + PAIR);
                    (column..last).step_by(SIDE).for_each(|column| some(product, column));
                }
            }
        }
    }

    /// Two tiles of columns from `column` on, which are whole and of which no constant is subtracted, in numbers of 16 bits: two
    /// rows at a time.
    ///
    /// # Safety
    /// As above.
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn pairs<const RESIDUAL: bool, E>(product: &Written<'_, E>, column: usize) {
        let Written { end, rows, sums, at } = product;
        // What is stored could change what is behind a reference, as far as the compiler knows.
        let (sums, at, outputs, classes) = (sums.wrapping_add(column), *at, end.out, end.bias_stride > 0);
        let (stored, from) = (end.stored, end.column + column);
        // Packing takes four columns of the first tile and four of the second in turns.
        let apart = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        let together = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        let least = _mm512_set1_epi16(if end.act == Act::Relu { 0 } else { i16::MIN });
        // SAFETY: the caller's promise.
        unsafe {
            let load = |from: *const f32| {
                let from = from.add(column);
                [_mm512_loadu_ps(from), _mm512_loadu_ps(from.add(SIDE))]
            };
            let scale = load(end.scale);
            let mut bias = load(end.bias);
            for first in rows.clone().step_by(2) {
                // Of an odd number the last row is computed twice.
                let pair = [first, (first + 1).min(rows.end - 1)];
                let out = pair.map(|row| (*outputs.add(row)).add(from));
                let mut values = [least; 2];
                for ((value, row), out) in values.iter_mut().zip(pair).zip(out) {
                    if classes {
                        bias = load(end.bias_of(row));
                    }
                    let sums = sums.add(*at.add(row) as usize * stored);
                    let sums = [
                        _mm512_cvtepi32_ps(_mm512_loadu_si512(sums.cast())),
                        _mm512_cvtepi32_ps(_mm512_loadu_si512(sums.add(SIDE).cast())),
                    ];
                    let one = _mm512_cvtps_epi32(_mm512_fmadd_ps(sums[0], scale[0], bias[0]));
                    let two = _mm512_cvtps_epi32(_mm512_fmadd_ps(sums[1], scale[1], bias[1]));
                    *value = _mm512_packs_epi32(one, two);
                    if RESIDUAL {
                        let before = _mm256_permutevar8x32_epi32(_mm256_loadu_si256(out.cast()), apart);
                        *value = _mm512_adds_epi16(*value, _mm512_cvtepi8_epi16(before));
                    }
                    *value = _mm512_max_epi16(*value, least);
                }
                let both = _mm512_permutexvar_epi32(together, _mm512_packs_epi16(values[0], values[1]));
                _mm256_storeu_si256(out[1].cast(), _mm512_extracti64x4_epi64::<1>(both));
                _mm256_storeu_si256(out[0].cast(), _mm512_castsi512_si256(both));
            }
        }
    }

    /// One tile of columns from `column` on, which is whole, without constant or residual: four rows at a time.
    ///
    /// # Safety
    /// As above.
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn fours<E>(product: &Written<'_, E>, column: usize) {
        let Written { end, rows, sums, at } = product;
        // What is stored could change what is behind a reference, as far as the compiler knows.
        let (sums, at, outputs, classes) = (sums.wrapping_add(column), *at, end.out, end.bias_stride > 0);
        let (stored, from) = (end.stored, end.column + column);
        // Packing takes four columns of every row in turns.
        let together = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        let least = _mm512_set1_epi8(if end.act == Act::Relu { 0 } else { i8::MIN });
        // SAFETY: the caller's promise.
        unsafe {
            let scale = _mm512_loadu_ps(end.scale.add(column));
            let mut bias = _mm512_loadu_ps(end.bias.add(column));
            for first in rows.clone().step_by(4) {
                // Where fewer are left the last row is computed again.
                let four: [usize; 4] = std::array::from_fn(|i| (first + i).min(rows.end - 1));
                let mut values = [_mm512_setzero_si512(); 4];
                for (value, row) in values.iter_mut().zip(four) {
                    if classes {
                        bias = _mm512_loadu_ps(end.bias_of(row).add(column));
                    }
                    let sums = sums.add(*at.add(row) as usize * stored);
                    let sums = _mm512_cvtepi32_ps(_mm512_loadu_si512(sums.cast()));
                    *value = _mm512_cvtps_epi32(_mm512_fmadd_ps(sums, scale, bias));
                }
                let [a, b, c, d] = values;
                let bytes = _mm512_packs_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
                let bytes = _mm512_permutexvar_epi32(together, _mm512_max_epi8(bytes, least));
                let bytes = [
                    _mm512_castsi512_si128(bytes),
                    _mm512_extracti32x4_epi32::<1>(bytes),
                    _mm512_extracti32x4_epi32::<2>(bytes),
                    _mm512_extracti32x4_epi32::<3>(bytes),
                ];
                for (bytes, row) in bytes.into_iter().zip(four) {
                    _mm_storeu_si128((*outputs.add(row)).add(from).cast(), bytes);
                }
            }
        }
    }

    /// One tile of columns from `column` on, of which some may be nobody's.
    ///
    /// # Safety
    /// As above.
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn some<E>(product: &Written<'_, E>, column: usize) {
        let Written { end, rows, sums, at } = product;
        let (least, most) = end.act.range();
        let (least, most) = (_mm512_set1_ps(least), _mm512_set1_ps(most));
        let written = u64::from(u16::MAX >> (SIDE - SIDE.min(end.columns - column)));
        let mut constant = _mm512_setzero_ps();
        // SAFETY: the caller's promise.
        unsafe {
            let scale = _mm512_loadu_ps(end.scale.add(column));
            let mut bias = _mm512_loadu_ps(end.bias.add(column));
            if !end.constant.is_null() {
                constant = _mm512_loadu_ps(end.constant.add(column));
            }
            for row in rows.clone() {
                let sums = sums.add(*at.add(row) as usize * end.stored + column);
                let out = (*end.out.add(row)).add(end.column + column);
                if end.bias_stride > 0 {
                    bias = _mm512_loadu_ps(end.bias_of(row).add(column));
                }
                let sums = _mm512_cvtepi32_ps(_mm512_loadu_si512(sums.cast()));
                let mut v = _mm512_fmadd_ps(sums, scale, bias);
                if end.residual {
                    let before = _mm512_castsi512_si128(_mm512_maskz_loadu_epi8(written, out.cast()));
                    v = _mm512_roundscale_ps::<_MM_FROUND_TO_NEAREST_INT>(v);
                    v = _mm512_add_ps(v, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(before)));
                }
                // The value is the second operand, which is handed on when it is NaN.
                v = _mm512_min_ps(most, _mm512_max_ps(least, v));
                // What is beyond 32 bits would become the least.
                let whole = _mm512_min_ps(_mm512_sub_ps(v, constant), _mm512_set1_ps(127.0));
                let bytes = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(whole));
                _mm512_mask_storeu_epi8(out.cast(), written, _mm512_castsi128_si512(bytes));
            }
        }
    }
}
