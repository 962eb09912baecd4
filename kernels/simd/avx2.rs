// SAFETY, of every block in this file: the method's caller vouches for the instruction set and the pointers, as the
// trait asks.
#![allow(clippy::undocumented_unsafe_blocks)]

use super::{Outlined, Simd};
use crate::{DType, Element};
use std::arch::x86_64::*;

/// 8 lanes, 16 registers: a tile of 6 rows × 16 columns holds 12 accumulators.
#[derive(Clone, Copy)]
pub(crate) struct Avx2;

impl Simd for Avx2 {
    type V = __m256;
    const LANES: usize = 8;
    const NV: usize = 2;
    const MR: usize = 6;

    #[target_feature(enable = "avx2,fma")]
    #[inline(never)]
    unsafe fn outlined<T: Outlined>(part: T) {
        unsafe { part.run::<Self>() }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> __m256 {
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load_f32(p: *const f32) -> __m256 {
        unsafe { _mm256_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store_f32(p: *mut f32, v: __m256) {
        unsafe { _mm256_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const half::bf16) -> __m256 {
        unsafe {
            let halves = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(halves))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut half::bf16, v: __m256) {
        unsafe {
            let bits = _mm256_castps_si256(v);
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
            let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x40_0000));
            let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(v, v));
            let upper = _mm256_srli_epi32::<16>(_mm256_blendv_epi8(rounded, quiet, nan));
            let halves =
                _mm_packus_epi32(_mm256_castsi256_si128(upper), _mm256_extracti128_si256::<1>(upper));
            _mm_storeu_si128(p.cast(), halves);
        }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> __m256 {
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn store_i8(p: *mut i8, v: __m256) {
        unsafe {
            // What is beyond 32 bits would become the least.
            let whole = _mm256_cvtps_epi32(_mm256_min_ps(v, _mm256_set1_ps(127.0)));
            let halves = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256::<1>(whole));
            _mm_storel_epi64(p.cast(), _mm_packs_epi16(halves, halves));
        }
    }
    #[inline(always)]
    unsafe fn load_i32(p: *const i32) -> __m256 {
        unsafe { _mm256_cvtepi32_ps(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn splat_pair<E: Element>(p: *const E) -> __m256 {
        unsafe {
            match E::DTYPE {
                DType::F32 => _mm256_castpd_ps(_mm256_set1_pd(p.cast::<f64>().read_unaligned())),
                DType::Bf16 => {
                    let pair = _mm256_set1_epi32(p.cast::<i32>().read_unaligned());
                    let odd = _mm256_and_si256(pair, _mm256_set1_epi32(!0xffff));
                    _mm256_castsi256_ps(_mm256_blend_epi32::<0xaa>(_mm256_slli_epi32::<16>(pair), odd))
                }
                DType::Int8 => {
                    let pair = _mm256_set1_epi16(p.cast::<i16>().read_unaligned());
                    // Sign-extended: the first of each pair in even lanes, the second in odd ones.
                    let even = _mm256_srai_epi32::<24>(_mm256_slli_epi32::<24>(pair));
                    let odd = _mm256_srai_epi32::<24>(pair);
                    _mm256_cvtepi32_ps(_mm256_blend_epi32::<0xaa>(even, odd))
                }
            }
        }
    }
    #[inline(always)]
    unsafe fn unzip(a: __m256, b: __m256) -> (__m256, __m256) {
        unsafe {
            // Halves of `a` and `b` alternate in what the shuffles give.
            let order = |v| _mm256_castpd_ps(_mm256_permute4x64_pd::<0b11_01_10_00>(_mm256_castps_pd(v)));
            let (even, odd) =
                (_mm256_shuffle_ps::<0b10_00_10_00>(a, b), _mm256_shuffle_ps::<0b11_01_11_01>(a, b));
            (order(even), order(odd))
        }
    }
    #[inline(always)]
    unsafe fn add_pairs(a: __m256, b: __m256) -> __m256 {
        unsafe {
            // Halves of `a` and `b` alternate in what this gives.
            let sums = _mm256_castps_pd(_mm256_hadd_ps(a, b));
            _mm256_castpd_ps(_mm256_permute4x64_pd::<0b11_01_10_00>(sums))
        }
    }
    #[inline(always)]
    unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn max(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn max_nan(a: __m256, b: __m256) -> __m256 {
        // Where `b` is NaN the instruction hands it on; where `a` is, it is put back.
        unsafe { _mm256_blendv_ps(_mm256_max_ps(a, b), a, _mm256_cmp_ps::<_CMP_UNORD_Q>(a, a)) }
    }
    #[inline(always)]
    unsafe fn min(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_min_ps(a, b) }
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
    unsafe fn sum(v: __m256) -> f32 {
        unsafe {
            let half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let pair = _mm_add_ps(half, _mm_movehl_ps(half, half));
            _mm_cvtss_f32(_mm_add_ss(pair, _mm_shuffle_ps::<1>(pair, pair)))
        }
    }
}
