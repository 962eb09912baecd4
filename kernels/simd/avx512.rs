// SAFETY, of every block in this file: the method's caller vouches for the instruction set and the pointers, as the
// trait asks.
#![allow(clippy::undocumented_unsafe_blocks)]

use super::{Outlined, Simd};
use crate::{DType, Element};
use std::arch::x86_64::*;

/// 16 lanes, 32 registers: a tile of 12 rows × 32 columns holds 24 accumulators, as does one of 6 × 64.
#[derive(Clone, Copy)]
pub(crate) struct Avx512;

impl Simd for Avx512 {
    type V = __m512;
    const LANES: usize = 16;
    const NV: usize = 2;
    const MR: usize = 12;
    const WIDE: (usize, usize) = (4, 6);

    #[target_feature(enable = "avx512f,avx512bw,avx2,fma")]
    #[inline(never)]
    unsafe fn outlined<T: Outlined>(part: T) {
        unsafe { part.run::<Self>() }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load_f32(p: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store_f32(p: *mut f32, v: __m512) {
        unsafe { _mm512_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn load_first_f32(p: *const f32, n: usize) -> __m512 {
        unsafe { _mm512_maskz_loadu_ps((1u16 << n) - 1, p) }
    }
    #[inline(always)]
    unsafe fn store_first_f32(p: *mut f32, n: usize, v: __m512) {
        unsafe { _mm512_mask_storeu_ps(p, (1u16 << n) - 1, v) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const half::bf16) -> __m512 {
        unsafe {
            let halves = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(halves))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut half::bf16, v: __m512) {
        unsafe {
            let bits = _mm512_castps_si512(v);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
            let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x40_0000));
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
            let upper = _mm512_srli_epi32::<16>(_mm512_mask_mov_epi32(rounded, nan, quiet));
            _mm256_storeu_si256(p.cast(), _mm512_cvtepi32_epi16(upper));
        }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn store_i8(p: *mut i8, v: __m512) {
        unsafe {
            // What is beyond 32 bits would become the least.
            let whole = _mm512_cvtps_epi32(_mm512_min_ps(v, _mm512_set1_ps(127.0)));
            _mm_storeu_si128(p.cast(), _mm512_cvtsepi32_epi8(whole));
        }
    }
    #[inline(always)]
    unsafe fn load_i32(p: *const i32) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_loadu_si512(p.cast())) }
    }
    #[inline(always)]
    unsafe fn splat_pair<E: Element>(p: *const E) -> __m512 {
        unsafe {
            match E::DTYPE {
                DType::F32 => _mm512_castpd_ps(_mm512_set1_pd(p.cast::<f64>().read_unaligned())),
                DType::Bf16 => {
                    let pair = _mm512_set1_epi32(p.cast::<i32>().read_unaligned());
                    let odd = _mm512_and_si512(pair, _mm512_set1_epi32(!0xffff));
                    _mm512_castsi512_ps(_mm512_mask_slli_epi32::<16>(odd, 0x5555, pair))
                }
                DType::Int8 => {
                    let pair = _mm512_set1_epi16(p.cast::<i16>().read_unaligned());
                    // Sign-extended: the first of each pair in even lanes, the second in odd ones.
                    let even = _mm512_srai_epi32::<24>(_mm512_slli_epi32::<24>(pair));
                    _mm512_cvtepi32_ps(_mm512_mask_srai_epi32::<24>(even, 0xaaaa, pair))
                }
            }
        }
    }
    #[inline(always)]
    unsafe fn unzip(a: __m512, b: __m512) -> (__m512, __m512) {
        unsafe {
            let even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
            let odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
            (_mm512_permutex2var_ps(a, even, b), _mm512_permutex2var_ps(a, odd, b))
        }
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn max_nan(a: __m512, b: __m512) -> __m512 {
        // Where `b` is NaN the instruction hands it on; where `a` is, it is kept.
        unsafe { _mm512_mask_max_ps(a, _mm512_cmp_ps_mask::<_CMP_ORD_Q>(a, a), a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn prefetch_far(p: *const u8) {
        // As assembly, because the compiler takes the intrinsic for a write and then keeps accumulators in memory.
        // SAFETY: asking for an address never faults and touches no register.
        unsafe {
            std::arch::asm!("prefetcht1 [{}]", in(reg) p.addr(), options(nomem, nostack, preserves_flags))
        }
    }
    #[inline(always)]
    unsafe fn prefetch_write(p: *const u8) {
        // SAFETY: as above; where the instruction is unknown it does nothing.
        unsafe {
            std::arch::asm!("prefetchw [{}]", in(reg) p.addr(), options(nomem, nostack, preserves_flags))
        }
    }
    #[inline(always)]
    unsafe fn sum(v: __m512) -> f32 {
        unsafe { _mm512_reduce_add_ps(v) }
    }
}
