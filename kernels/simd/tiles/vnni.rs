//! Vectors of bytes.
//!
//! The instruction multiplies numbers without a sign by numbers with one. Columns therefore lie in memory as 128 more than
//! they are ([`column_zero`](super::column_zero)), and sums begin with that many times what each row sums up to, less.

use super::{MOST_COLUMNS, Product, ROWS_OF_VECTORS, SIDE};
use std::arch::x86_64::*;

/// Bytes that a column has of each row in turn, and of a step.
const TURN: usize = 4;
const STEP: usize = 64;
/// A turn of a tile of columns.
const TURN_OF_COLUMNS: usize = TURN * SIDE;

/// The most rows whose sums are in registers together with those of so many tiles of columns.
const fn most_rows(columns: usize) -> usize {
    if columns == MOST_COLUMNS { ROWS_OF_VECTORS } else { 8 }
}

/// See [`Tiles::multiply`](super::Tiles::multiply).
///
/// # Safety
/// As there, on a machine with VNNI; elements are bytes.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) unsafe fn multiply<E>(p: &Product<E>) {
    assert!(size_of::<E>() == 1);
    let tiles = 1 + usize::from(p.two_rows);
    let passes = |(_, rows): (usize, usize)| rows.div_ceil(most_rows(p.columns));
    // What comes next is asked for once.
    let mut lines = p.lines;
    for (tile, &(first, rows)) in p.asked[..tiles].iter().enumerate() {
        let passes = passes((first, rows));
        for pass in 0..passes {
            let (from, to) = (rows * pass / passes, rows * (pass + 1) / passes);
            macro_rules! shapes {
                ($(($rows:literal $columns:literal))*) => {
                    match (to - from, p.columns) {
                        // SAFETY: the caller's promise.
                        $(($rows, $columns) => unsafe {
                            multiply_rows::<$rows, $columns, { at_least_two($columns) }, E>(
                                p, (tile, first + from), lines,
                            )
                        })*
                        _ => unreachable!("no product of {} rows and {} tiles", to - from, p.columns),
                    }
                };
            }
            shapes! {
                (1 1) (2 1) (3 1) (4 1) (5 1) (6 1) (7 1) (8 1)
                (1 2) (2 2) (3 2) (4 2) (5 2) (6 2) (7 2) (8 2)
                (1 3) (2 3) (3 3) (4 3) (5 3) (6 3) (7 3) (8 3)
                (1 4) (2 4) (3 4) (4 4) (5 4) (6 4)
            }
            lines = 0;
        }
    }
}

const fn at_least_two(sums: usize) -> usize {
    if sums < 2 { 2 } else { sums }
}

/// `R` rows of a tile from `first` on with `N` tiles of columns. Each row has `S` vectors of sums: with one tile of columns
/// two, of turns that follow each other, so that none waits for the one before.
///
/// # Safety
/// As above.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn multiply_rows<const R: usize, const N: usize, const S: usize, E>(
    p: &Product<E>,
    (tile, first): (usize, usize),
    lines: usize,
) {
    let mut sums = [[_mm512_setzero_si512(); S]; R];
    // SAFETY: the caller's promise.
    unsafe {
        let a: [*const u8; R] =
            std::array::from_fn(|i| p.a[tile].cast::<u8>().wrapping_add((first + i) * p.pitch));
        let kept = p.sums.add((tile * SIDE + first) * N * SIDE).cast::<i32>();
        for (i, sums) in sums.iter_mut().enumerate() {
            for (j, sum) in sums[..N].iter_mut().enumerate() {
                *sum = match p.adds {
                    true => _mm512_loadu_si512(kept.add((i * N + j) * SIDE).cast()),
                    false => _mm512_set1_epi32(*p.begin[tile].add(first + i)),
                };
            }
        }
        for step in 0..p.steps {
            for line in step * lines..(step + 1) * lines {
                _mm_prefetch::<_MM_HINT_T1>(p.ahead.wrapping_add(line * STEP).cast());
            }
            let (turns, mut at) = (usize::from(*p.turns.add(step)), *p.offsets.add(step));
            let mut b: [*const u8; N] =
                std::array::from_fn(|j| p.b[j].cast::<u8>().wrapping_add(step * STEP * SIDE));
            macro_rules! turn {
                ($turn:literal) => {
                    let columns: [__m512i; N] =
                        std::array::from_fn(|j| _mm512_loadu_si512(b[j].add($turn * TURN_OF_COLUMNS).cast()));
                    for i in 0..R {
                        let values = a[i].add(at + $turn * TURN).cast::<i32>().read_unaligned();
                        let values = _mm512_set1_epi32(values);
                        for j in 0..N {
                            let sum = if N < S { $turn % S } else { j };
                            sums[i][sum] = _mm512_dpbusd_epi32(sums[i][sum], columns[j], values);
                        }
                    }
                };
            }
            for _ in 0..turns / 2 {
                turn!(0);
                turn!(1);
                at += 2 * TURN;
                b = b.map(|b| b.wrapping_add(2 * TURN_OF_COLUMNS));
            }
            if turns % 2 == 1 {
                turn!(0);
            }
        }
        for (i, sums) in sums.into_iter().enumerate() {
            for (j, sum) in sums[..N].iter().enumerate() {
                let sum = if N < S { _mm512_add_epi32(*sum, sums[S - 1]) } else { *sum };
                _mm512_storeu_si512(kept.add((i * N + j) * SIDE).cast(), sum);
            }
        }
    }
}

/// Minus 128 times what the sixteen rows of a tile, `pitch` bytes apart, sum up to: what sums begin with.
///
/// # Safety
/// The machine has VNNI; of every row as many turns of each step as it has can be read.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) unsafe fn begin(a: *const u8, pitch: usize, offsets: &[usize], turns: &[u8]) -> [i32; SIDE] {
    let ones = _mm512_set1_epi8(1);
    let mut rows = [_mm512_setzero_si512(); SIDE];
    for (&offset, &turns) in offsets.iter().zip(turns) {
        let met = ((1u32 << turns) - 1) as u16;
        for (row, sum) in rows.iter_mut().enumerate() {
            let values = a.wrapping_add(offset + row * pitch).cast();
            // SAFETY: the caller's promise.
            *sum = _mm512_dpbusd_epi32(*sum, ones, unsafe { _mm512_maskz_loadu_epi32(met, values) });
        }
    }
    let mut begin = [0; SIDE];
    let sums = _mm512_slli_epi32::<7>(sums_of_lanes(rows));
    // SAFETY: there is room for as many.
    unsafe { _mm512_storeu_si512(begin.as_mut_ptr().cast(), _mm512_sub_epi32(_mm512_setzero_si512(), sums)) };
    begin
}

/// In lane `i` the sum of all lanes of `rows[i]`.
#[target_feature(enable = "avx512f")]
fn sums_of_lanes(rows: [__m512i; SIDE]) -> __m512i {
    let mut pairs = [rows[0]; SIDE / 2];
    for (i, pair) in pairs.iter_mut().enumerate() {
        let (a, b) = (rows[2 * i], rows[2 * i + 1]);
        *pair = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    }
    let mut fours = [rows[0]; SIDE / 4];
    for (i, four) in fours.iter_mut().enumerate() {
        let (a, b) = (pairs[2 * i], pairs[2 * i + 1]);
        *four = _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    }
    // Of each register's four quarters two and two.
    let halve =
        |a, b| _mm512_add_epi32(_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xdd>(a, b));
    halve(halve(fours[0], fours[1]), halve(fours[2], fours[3]))
}
