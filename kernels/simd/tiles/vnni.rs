//! Vectors of bytes.

use super::{Product, SIDE};
use std::arch::x86_64::*;

/// Rows whose sums are in registers at a time.
const ROWS: usize = 8;
/// Bytes that a column has of each row in turn, and of a step.
const TURN: usize = 4;
const STEP: usize = 64;

/// See [`Tiles::multiply`](super::Tiles::multiply).
///
/// # Safety
/// As there, on a machine with VNNI; elements are bytes.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) unsafe fn multiply<E>(p: &Product<E>) {
    assert!(size_of::<E>() == 1);
    let tiles = if p.two_rows { &p.a[..] } else { &p.a[..1] };
    let mut lines = Lines { at: p.ahead, left: p.lines * p.steps, each: 0 };
    lines.each = lines.left.div_ceil(p.steps * tiles.len() * (SIDE / ROWS));
    for (i, tile) in tiles.iter().enumerate() {
        for first in (0..SIDE).step_by(ROWS) {
            let a = tile.wrapping_byte_add(first * p.pitch).cast();
            let row = i * SIDE + first;
            // SAFETY: the caller's promise.
            unsafe {
                match p.two_columns {
                    true => rows::<2, E>(p, a, row, &mut lines),
                    false => rows::<1, E>(p, a, row, &mut lines),
                }
            }
        }
    }
}

/// What will be multiplied with soon.
struct Lines {
    at: *const u8,
    left: usize,
    each: usize,
}

/// [`ROWS`] rows from `a` on with `N` tiles of columns; `row` is the first row of sums.
///
/// The instruction multiplies numbers without a sign by numbers with one: columns are taken as 128 more than they are, and that
/// many times each row's sum is subtracted.
///
/// # Safety
/// As above.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn rows<const N: usize, E>(p: &Product<E>, a: *const i8, row: usize, lines: &mut Lines) {
    let sign = _mm512_set1_epi8(i8::MIN);
    let ones = _mm512_set1_epi8(1);
    let mut sums = [[_mm512_setzero_si512(); N]; ROWS];
    let mut of_rows = [_mm512_setzero_si512(); ROWS];
    // SAFETY: the caller's promise; asking for an address never faults.
    unsafe {
        for step in 0..p.steps {
            let a = a.byte_add(*p.offsets.add(step));
            let asked = lines.each.min(lines.left);
            for line in 0..asked {
                _mm_prefetch::<_MM_HINT_T1>(lines.at.wrapping_add(line * STEP).cast());
            }
            lines.at = lines.at.wrapping_add(asked * STEP);
            lines.left -= asked;
            for (i, of_row) in of_rows.iter_mut().enumerate() {
                let values = _mm512_loadu_si512(a.byte_add(i * p.pitch).cast());
                *of_row = _mm512_dpbusd_epi32(*of_row, ones, values);
            }
            for turn in 0..STEP / TURN {
                let mut columns = [sign; N];
                for (columns, b) in columns.iter_mut().zip(p.b) {
                    let at = b.cast::<u8>().add((step * (STEP / TURN) + turn) * TURN * SIDE);
                    *columns = _mm512_xor_si512(_mm512_loadu_si512(at.cast()), sign);
                }
                for (i, sums) in sums.iter_mut().enumerate() {
                    let values = a.byte_add(i * p.pitch + turn * TURN).cast::<i32>().read_unaligned();
                    let values = _mm512_set1_epi32(values);
                    for (sums, columns) in sums.iter_mut().zip(columns) {
                        *sums = _mm512_dpbusd_epi32(*sums, columns, values);
                    }
                }
            }
        }
        for (i, (sums, of_row)) in sums.into_iter().zip(of_rows).enumerate() {
            let more = _mm512_set1_epi32(128 * _mm512_reduce_add_epi32(of_row));
            for (j, sum) in sums.into_iter().enumerate() {
                let to = p.sums.add((row + i) * N * SIDE + j * SIDE);
                let mut sum = _mm512_sub_epi32(sum, more);
                if p.adds {
                    sum = _mm512_add_epi32(sum, _mm512_loadu_si512(to.cast()));
                }
                _mm512_storeu_si512(to.cast(), sum);
            }
        }
    }
}
