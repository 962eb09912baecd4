//! Writes the sums of a product.

use super::super::micro::{Epilogue, Sums, finish};
use super::Pending;
use crate::simd::{Simd, dispatch};
use crate::{DType, Element, Isa};
use std::ops::Range;

/// Bias, residual, activation, constant, store.
pub(super) fn run<E: Element>(isa: Isa, pending: &Pending<E>) {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if isa.0 == crate::simd::Kind::Amx && pending.end.whole() {
        // SAFETY: the token says that the machine has vectors of bfloat16; elements are of that type or bytes here, and the
        // pointers are what the call was checked for.
        return unsafe { whole::run(pending) };
    }
    any(isa, pending);
}

dispatch! {
    /// Asks for what will be written, and with a residual read.
    pub(super) fn ask<E>(end: &Epilogue<E>, rows: Range<usize>) = ask_set
}

#[inline(always)]
fn ask_set<S: Simd, E: Element>(end: &Epilogue<E>, rows: Range<usize>) {
    for row in rows {
        // SAFETY: there are as many rows; asking for an address never faults.
        unsafe { S::prefetch_write((*end.out.add(row)).wrapping_add(end.column).cast()) }
    }
}

dispatch! {
    /// The same for any instruction set and width.
    fn any<E>(pending: &Pending<E>) = any_set
}

#[inline(always)]
fn any_set<S: Simd, E: Element>(pending: &Pending<E>) {
    let vectors = pending.end.stored / S::LANES;
    // SAFETY: the pointers are what the call was checked for; `dispatch` vouches for the instruction set.
    unsafe {
        for row in pending.rows.clone() {
            let sums = pending.sums.add(*pending.at.add(row) as usize * pending.end.stored);
            let sums = match E::DTYPE {
                DType::Int8 => Sums::Whole(sums.cast()),
                _ => Sums::Rows(sums),
            };
            finish::<S, E>(&pending.end, row..row + 1, vectors, sums);
        }
    }
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod whole {
    use super::super::{Pending, SIDE};
    use crate::{Act, DType, Element};
    use std::arch::x86_64::*;

    /// Whole vectors of bfloat16 or of bytes.
    ///
    /// # Safety
    /// Elements are one of these; the machine has vectors of bfloat16; outputs, bias, scale and constant have as many columns.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub(super) unsafe fn run<E: Element>(pending: &Pending<E>) {
        // SAFETY: the caller's promise.
        unsafe {
            match pending.end.stored {
                SIDE => rows::<1, E>(pending),
                _ => rows::<2, E>(pending),
            }
        }
    }

    /// # Safety
    /// As above.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn rows<const N: usize, E: Element>(pending: &Pending<E>) {
        let Pending { end, rows, sums, at } = pending;
        let zero = _mm512_setzero_ps();
        let least = if end.act == Act::Relu { zero } else { _mm512_set1_ps(f32::NEG_INFINITY) };
        // Loops, because a closure would not be compiled for these instructions.
        let (mut constant, mut bias, mut scale) = ([zero; N], [zero; N], [zero; N]);
        // SAFETY: the caller's promise.
        unsafe {
            for j in 0..N {
                bias[j] = _mm512_loadu_ps(end.bias.add(j * SIDE));
                if E::DTYPE == DType::Int8 {
                    scale[j] = _mm512_loadu_ps(end.scale.add(j * SIDE));
                }
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
                let mut value = [zero; N];
                for j in 0..N {
                    let sums = sums.add(j * SIDE);
                    let mut v = match E::DTYPE {
                        DType::Int8 => {
                            let sums = _mm512_cvtepi32_ps(_mm512_loadu_si512(sums.cast()));
                            _mm512_fmadd_ps(sums, scale[j], bias[j])
                        }
                        _ => _mm512_add_ps(_mm512_loadu_ps(sums), bias[j]),
                    };
                    if end.residual {
                        let out = out.add(j * SIDE);
                        let before = match E::DTYPE {
                            DType::Int8 => {
                                _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(out.cast())))
                            }
                            _ => {
                                let halves = _mm512_cvtepu16_epi32(_mm256_loadu_si256(out.cast()));
                                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(halves))
                            }
                        };
                        v = _mm512_add_ps(v, before);
                    }
                    // The value is the second operand, which is handed on when it is NaN.
                    value[j] = _mm512_sub_ps(_mm512_max_ps(least, v), constant[j]);
                }
                if E::DTYPE == DType::Int8 {
                    for (j, value) in value.into_iter().enumerate() {
                        // What is beyond 32 bits would become the least.
                        let whole = _mm512_cvtps_epi32(_mm512_min_ps(value, _mm512_set1_ps(127.0)));
                        _mm_storeu_si128(out.add(j * SIDE).cast(), _mm512_cvtsepi32_epi8(whole));
                    }
                } else if N == 2 {
                    let both = _mm512_cvtne2ps_pbh(value[N - 1], value[0]);
                    _mm512_storeu_si512(out.cast(), std::mem::transmute::<__m512bh, __m512i>(both));
                } else {
                    let one = _mm512_cvtneps_pbh(value[0]);
                    _mm256_storeu_si256(out.cast(), std::mem::transmute::<__m256bh, __m256i>(one));
                }
            }
        }
    }
}
