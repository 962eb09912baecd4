//! Gathers rows: what each reads of every tap, next to each other.

use super::{Operand, Scratch};
use crate::simd::tiles::DEPTH;
use crate::{Element, Isa};

/// Bytes from one gathered row to the next, for a reduction over `depth`: an odd number of cache lines, so that rows lie in
/// different sets of the first-level cache.
pub(super) fn pitch(depth: usize) -> usize {
    let lines = depth.div_ceil(DEPTH);
    64 * (lines + usize::from(lines.is_multiple_of(2)))
}

/// Gathers the `rows` rows that the taps point to, unless that was done. `depth`: steps of the reduction.
pub(super) fn run<E: Element>(
    isa: Isa,
    scratch: &mut Scratch<E>,
    rows: usize,
    n_taps: usize,
    depth: usize,
) -> Operand<E> {
    // Of the first tap; folded taps are longer than a pixel's channels.
    let first = scratch.segments.first().map_or(0, |segment| segment.c_in as usize);
    let pitch = pitch(depth);
    let of = Some(first..depth);
    if scratch.gathered_of != of {
        assert!(rows * pitch <= scratch.gathered.len() * size_of::<E>());
        let copy = Copy {
            taps: &scratch.taps[..rows * n_taps],
            n_taps,
            first,
            len: depth / n_taps,
            to: scratch.gathered.as_mut_slice().as_mut_ptr(),
        };
        // SAFETY: the token says that the machine has what is used; rows were counted; taps point to whole pixels.
        unsafe {
            match isa.0 {
                #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
                crate::simd::Kind::Amx => copy.with_masks(),
                _ => copy.plainly(),
            }
        }
        scratch.gathered_of = of;
    }
    Operand { start: scratch.gathered.as_slice().as_ptr(), pitch, ends: false }
}

/// What to copy.
struct Copy<'a, E> {
    /// `[n_taps][rows]`.
    taps: &'a [*const E],
    n_taps: usize,
    /// Channels of each tap.
    first: usize,
    len: usize,
    to: *mut E,
}

impl<E: Element> Copy<'_, E> {
    /// # Safety
    /// Taps have `first + len` channels, and for every row there is room for `n_taps * len` elements in whole lines, `pitch`
    /// apart.
    unsafe fn plainly(&self) {
        let Self { taps, n_taps, first, len, to } = *self;
        let (rows, depth) = (taps.len() / n_taps, n_taps * len);
        for row in 0..rows {
            let to = to.wrapping_byte_add(row * pitch(depth));
            // SAFETY: the caller's promise.
            unsafe {
                for tap in 0..n_taps {
                    let from = taps[tap * rows + row].add(first);
                    std::ptr::copy_nonoverlapping(from, to.add(tap * len), len);
                }
                to.add(depth).write_bytes(0, depth.next_multiple_of(DEPTH) - depth);
            }
        }
    }

    /// # Safety
    /// As above, of elements of two bytes, on a machine with AVX-512.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn with_masks(&self) {
        use std::arch::x86_64::*;
        let Self { taps, n_taps, first, len, to } = *self;
        let (rows, depth) = (taps.len() / n_taps, n_taps * len);
        let pitch = pitch(depth);
        let (lines, rest) = (len / DEPTH, len % DEPTH);
        let mask = (1u32 << rest) - 1;
        let padding = depth.next_multiple_of(DEPTH) - depth;
        for row in 0..rows {
            let mut to = to.wrapping_byte_add(row * pitch);
            for tap in 0..n_taps {
                let mut from = taps[tap * rows + row].wrapping_add(first);
                // SAFETY: the caller's promise.
                unsafe {
                    for _ in 0..lines {
                        _mm512_storeu_epi16(to.cast(), _mm512_loadu_epi16(from.cast()));
                        (from, to) = (from.add(DEPTH), to.add(DEPTH));
                    }
                    if rest > 0 {
                        _mm512_mask_storeu_epi16(
                            to.cast(),
                            mask,
                            _mm512_maskz_loadu_epi16(mask, from.cast()),
                        );
                        to = to.add(rest);
                    }
                }
            }
            // SAFETY: see above.
            unsafe { _mm512_mask_storeu_epi16(to.cast(), (1u32 << padding) - 1, _mm512_setzero_si512()) };
        }
    }
}
