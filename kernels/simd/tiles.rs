//! Products of 16×16 tiles of bfloat16 or of bytes, for which some processors have instructions (Intel's AMX). Others have
//! vectors that multiply bytes (AVX-512 VNNI): there these products are computed from the same operands.

#[cfg(target_arch = "x86_64")]
mod vnni;

use super::{Isa, Kind};
use crate::{DType, Element};

/// Rows and columns of a tile of sums.
pub(crate) const SIDE: usize = 16;
/// The most tiles of columns that a product has, and what tiles have registers for; vectors have some for all.
pub(crate) const MOST_COLUMNS: usize = 4;
pub(crate) const COLUMNS_OF_TILES: usize = 2;
/// Rows that vectors have registers for next to so many columns.
pub(crate) const ROWS_OF_VECTORS: usize = 6;
/// Elements of each row that are met at a time, in a step of a reduction: 64 bytes.
pub(crate) const fn step_len<E>() -> usize {
    64 / size_of::<E>()
}

/// Rows of columns' tiles that lie in turns: four bytes of each column.
pub(crate) const fn in_turn<E>() -> usize {
    4 / size_of::<E>()
}

/// A product of up to two tiles of rows and [`MOST_COLUMNS`] of columns.
///
/// ```text
/// sums[i][j] (+)= Σ_s Σ_k a[i / 16][i % 16][offsets[s] + k] · b[j / 16][step_len·s + k][j % 16]
/// ```
///
/// with `k` in `0..step_len`; [`in_turn`] rows of `b` lie in turns. Zero is [`column_zero`] there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Product<E> {
    /// First value of each tile's row 0.
    pub(crate) a: [*const E; 2],
    /// Bytes from there to what each step reads.
    pub(crate) offsets: *const usize,
    /// Bytes from row to row.
    pub(crate) pitch: usize,
    /// Rows are in two tiles; otherwise in one, and `a[1]` is not read.
    pub(crate) two_rows: bool,
    /// Of each tile of rows, the first that somebody asks for and their number: vectors compute no others.
    pub(crate) asked: [(usize, usize); 2],
    /// The columns' tiles.
    pub(crate) b: [*const E; MOST_COLUMNS],
    /// Tiles that the columns are in, at least one; of `b` no more are read.
    pub(crate) columns: usize,
    /// Steps of the reduction, at least one.
    pub(crate) steps: usize,
    /// `[rows][columns]`: what is written, whole tiles. Of bytes these are numbers of the type `i32`.
    pub(crate) sums: *mut f32,
    /// The product is added to the sums; otherwise they begin with it.
    pub(crate) adds: bool,
    /// Of each step, how many turns there are: all behind them are zeros in the columns. Tiles read them all.
    pub(crate) turns: *const u8,
    /// What the sums of each tile's rows begin with where columns are [`without_sign`]; else not read.
    pub(crate) begin: [*const i32; 2],
    /// What will be multiplied with soon, of which every step asks for that many cache lines.
    pub(crate) ahead: *const u8,
    pub(crate) lines: usize,
}

/// Whether numbers of columns have no sign and are 128 more than they stand for.
pub(crate) fn without_sign<E: Element>(isa: Isa) -> bool {
    match isa.0 {
        #[cfg(target_arch = "x86_64")]
        Kind::Vnni => E::DTYPE == DType::Int8,
        _ => false,
    }
}

/// What stands for zero in columns.
pub(crate) fn column_zero<E: Element>(isa: Isa) -> E {
    // The byte of the least number is 128 without a sign.
    E::from_f32(if without_sign::<E>(isa) { f32::from(i8::MIN) } else { 0.0 })
}

/// What the sums of a tile's sixteen rows begin with, where columns are [`without_sign`]; `offsets` and `turns` as in a
/// [`Product`].
///
/// # Safety
/// As many turns of each step of sixteen rows from `a` on can be read.
pub(crate) unsafe fn begin<E: Element>(
    isa: Isa,
    (a, pitch): (*const E, usize),
    offsets: &[usize],
    turns: &[u8],
) -> [i32; SIDE] {
    match isa.0 {
        #[cfg(target_arch = "x86_64")]
        Kind::Vnni => {
            assert!(offsets.len() == turns.len());
            // SAFETY: the caller's promise; the token says that the machine has such vectors.
            unsafe { vnni::begin(a.cast(), pitch, offsets, turns) }
        }
        _ => [0; SIDE],
    }
}

/// The right to multiply tiles on this thread, given back when dropped.
pub(crate) struct Tiles {
    isa: Isa,
}

impl Tiles {
    /// Readies this thread.
    ///
    /// # Panics
    /// When the set has no tiles.
    pub(crate) fn new(isa: Isa) -> Self {
        match isa.0 {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            // SAFETY: the token says that the machine has tiles and this process may use them.
            Kind::Amx => unsafe { amx::configure() },
            #[cfg(target_arch = "x86_64")]
            Kind::Vnni => {}
            #[cfg(test)]
            Kind::SoftTiles => {}
            _ => panic!("{} has no tiles", isa.name()),
        }
        Self { isa }
    }

    /// Multiplies.
    ///
    /// # Safety
    /// 16 rows of each tile of `a` and `16 · steps` pairs of rows of each tile of `b` can be read, and as many sums written.
    #[inline(always)]
    pub(crate) unsafe fn multiply<E: Element>(&self, product: &Product<E>) {
        assert!(E::DTYPE != DType::F32, "tiles are of bfloat16 or of bytes");
        // SAFETY: the caller's promise; `new` has made the thread ready.
        unsafe {
            match self.isa.0 {
                #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
                Kind::Amx => amx::multiply(product),
                #[cfg(target_arch = "x86_64")]
                Kind::Vnni => vnni::multiply(product),
                _ => in_software(product),
            }
        }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if self.isa.0 == Kind::Amx {
            // SAFETY: as for `new`.
            unsafe { amx::release() }
        }
    }
}

/// The definition.
///
/// # Safety
/// As for [`Tiles::multiply`].
unsafe fn in_software<E: Element>(p: &Product<E>) {
    let (depth, turn) = (step_len::<E>(), in_turn::<E>());
    let (rows, columns) = (SIDE * (1 + usize::from(p.two_rows)), SIDE * p.columns);
    for (i, j) in (0..rows).flat_map(|i| (0..columns).map(move |j| (i, j))) {
        // SAFETY: the caller's promise.
        unsafe {
            let row = p.a[i / SIDE].byte_add(i % SIDE * p.pitch);
            let column = p.b[j / SIDE].add(turn * (j % SIDE));
            let terms = (0..depth * p.steps).map(|k| {
                let a = row.byte_add(*p.offsets.add(k / depth)).add(k % depth);
                (*a).to_f32() * (*column.add(k / turn * turn * SIDE + k % turn)).to_f32()
            });
            let sum = p.sums.add(i * columns + j);
            match E::DTYPE {
                DType::Int8 => {
                    let sum = sum.cast::<i32>();
                    *sum = terms.fold(if p.adds { *sum } else { 0 }, |sum, term| sum + term as i32);
                }
                _ => *sum = terms.fold(if p.adds { *sum } else { 0.0 }, |sum, term| sum + term),
            }
        }
    }
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(super) mod amx {
    use super::{COLUMNS_OF_TILES, DType, Element, Product, SIDE};
    use std::arch::asm;
    use std::arch::x86_64::{__cpuid, __cpuid_count};

    /// Whether the processor has tiles of bfloat16 and of bytes, and the system lets this process use them, for which it has to be asked.
    pub(crate) fn available() -> bool {
        const BF16: u32 = 1 << 22;
        const TILE: u32 = 1 << 24;
        const INT8: u32 = 1 << 25;
        const ALL: u32 = BF16 | TILE | INT8;
        let known = __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & ALL == ALL;
        known && permitted()
    }

    /// Asks for the tiles' registers, which a thread's saved state has no room for otherwise.
    fn permitted() -> bool {
        const ARCH_REQ_XCOMP_PERM: libc::c_ulong = 0x1023;
        const XFEATURE_XTILEDATA: libc::c_ulong = 18;
        // SAFETY: the call reads and writes no memory of this process; an older system refuses it.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
    }

    /// What `ldtilecfg` reads.
    #[repr(C, align(64))]
    struct Shape {
        palette: u8,
        start_row: u8,
        reserved: [u8; 14],
        row_bytes: [u16; 16],
        rows: [u8; 16],
    }

    /// All eight tiles are as large as they can be.
    const SHAPE: Shape = {
        let mut shape =
            Shape { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        let mut tile = 0;
        while tile < 8 {
            shape.row_bytes[tile] = 64;
            shape.rows[tile] = SIDE as u8;
            tile += 1;
        }
        shape
    };

    /// # Safety
    /// [`available`].
    pub(crate) unsafe fn configure() {
        static TILES: Shape = SHAPE;
        // SAFETY: the shape is one that the processor takes; the compiler itself never uses tiles.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const TILES, options(nostack, preserves_flags)) }
    }

    /// # Safety
    /// [`available`].
    pub(crate) unsafe fn release() {
        // SAFETY: see above.
        unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) }
    }

    // Sums live in tiles 0 to 3, rows in 4 and 5, columns in 6 and 7. Nothing stays in a tile between two calls.
    macro_rules! product {
        ($p:ident, [$($begin:expr)*] [$($step:expr)*] [$($store:expr)*]) => {
            asm!(
                $($begin,)*
                "2:",
                "mov {i}, [{offsets}]",
                "add {offsets}, 8",
                "mov {a}, 64 # {a1}",
                $($step,)*
                "add {b0}, 1024", "add {b1}, 1024",
                "mov {i}, {lines}",
                "test {i}, {i}", "jz 4f",
                "3:", "prefetcht1 [{ahead}]", "add {ahead}, 64", "dec {i}", "jnz 3b",
                "4:",
                "dec {steps}", "jnz 2b",
                $($store,)*
                a0 = in(reg) $p.a[0],
                a1 = in(reg) $p.a[1],
                offsets = inout(reg) $p.offsets => _,
                b0 = inout(reg) $p.b[0] => _,
                b1 = inout(reg) $p.b[1] => _,
                steps = inout(reg) $p.steps => _,
                ahead = inout(reg) $p.ahead => _,
                lines = in(reg) $p.lines,
                i = out(reg) _,
                a = out(reg) _,
                pitch = in(reg) $p.pitch,
                sums = in(reg) $p.sums,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack)
            )
        };
    }

    macro_rules! tiles {
        ($p:ident, $row:literal, $step:tt: $($tile:literal $place:literal)*) => {
            match $p.adds {
                true => product!(
                    $p,
                    [
                        concat!("mov {i}, ", $row)
                        $(concat!("tileloadd tmm", $tile, ", [{sums} + {i}", $place, "]"))*
                    ]
                    $step
                    [
                        concat!("mov {i}, ", $row)
                        $(concat!("tilestored [{sums} + {i}", $place, "], tmm", $tile))*
                    ]
                ),
                false => product!(
                    $p,
                    [$(concat!("tilezero tmm", $tile))*]
                    $step
                    [
                        concat!("mov {i}, ", $row)
                        $(concat!("tilestored [{sums} + {i}", $place, "], tmm", $tile))*
                    ]
                ),
            }
        };
    }

    macro_rules! multiply_with {
        ($p:ident, $multiply:literal) => {
            match ($p.two_rows, $p.columns == COLUMNS_OF_TILES) {
                (true, true) => tiles!(
                    $p, 128,
                    [
                        "tileloadd tmm6, [{b0} + {a}]"
                        "tileloadd tmm7, [{b1} + {a}]"
                        "lea {a}, [{a0} + {i}]"
                        "tileloadd tmm4, [{a} + {pitch}]"
                        concat!($multiply, " tmm0, tmm4, tmm6")
                        concat!($multiply, " tmm1, tmm4, tmm7")
                        "lea {a}, [{a1} + {i}]"
                        "tileloadd tmm5, [{a} + {pitch}]"
                        concat!($multiply, " tmm2, tmm5, tmm6")
                        concat!($multiply, " tmm3, tmm5, tmm7")
                    ]: 0 "" 1 " + 64" 2 " + 2048" 3 " + 2112"
                ),
                (true, false) => tiles!(
                    $p, 64,
                    [
                        "tileloadd tmm6, [{b0} + {a}]"
                        "lea {a}, [{a0} + {i}]"
                        "tileloadd tmm4, [{a} + {pitch}]"
                        concat!($multiply, " tmm0, tmm4, tmm6")
                        "lea {a}, [{a1} + {i}]"
                        "tileloadd tmm5, [{a} + {pitch}]"
                        concat!($multiply, " tmm2, tmm5, tmm6")
                    ]: 0 "" 2 " + 1024"
                ),
                (false, true) => tiles!(
                    $p, 128,
                    [
                        "tileloadd tmm6, [{b0} + {a}]"
                        "tileloadd tmm7, [{b1} + {a}]"
                        "lea {a}, [{a0} + {i}]"
                        "tileloadd tmm4, [{a} + {pitch}]"
                        concat!($multiply, " tmm0, tmm4, tmm6")
                        concat!($multiply, " tmm1, tmm4, tmm7")
                    ]: 0 "" 1 " + 64"
                ),
                (false, false) => tiles!(
                    $p, 64,
                    [
                        "tileloadd tmm6, [{b0} + {a}]"
                        "lea {a}, [{a0} + {i}]"
                        "tileloadd tmm4, [{a} + {pitch}]"
                        concat!($multiply, " tmm0, tmm4, tmm6")
                    ]: 0 ""
                ),
            }
        };
    }

    /// # Safety
    /// As for [`Tiles::multiply`](super::Tiles::multiply), on a thread that is [configured](configure).
    #[inline(always)]
    pub(crate) unsafe fn multiply<E: Element>(p: &Product<E>) {
        assert!(p.columns <= COLUMNS_OF_TILES);
        // SAFETY: the caller's promise.
        unsafe {
            match E::DTYPE {
                DType::Int8 => multiply_with!(p, "tdpbssd"),
                _ => multiply_with!(p, "tdpbf16ps"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;
    use half::bf16;

    /// The instructions against the definition: small whole numbers, so that both are exact.
    fn multiplies_as_defined<E: Element>(isa: &str) {
        let Ok(isa) = Isa::named(isa) else { return };
        let depth = step_len::<E>();
        // Bytes up to the ends of their range.
        let most = if E::DTYPE == DType::Int8 { 256 } else { 9 };
        let mut random = Random(5);
        let mut whole = |len: usize| -> Vec<E> {
            (0..len).map(|_| E::from_f32(random.below(most) as f32 - (most / 2) as f32)).collect()
        };
        let tiles = super::super::super::gather_gemm::tile(isa, E::DTYPE).columns / SIDE;
        let shapes = (1..=tiles).flat_map(|columns| [true, false].map(|two_rows| (two_rows, columns)));
        let calls = [(false, 5, 3), (true, 2, 0), (false, 1, 0), (true, 3, 2)];
        let asked = [[(0, SIDE); 2], [(3, 7), (0, 12)], [(15, 1), (4, 3)]];
        let shapes = shapes.flat_map(|shape| asked.map(|asked| (shape, asked)));
        for (((two_rows, columns), asked), (adds, steps, lines)) in
            shapes.flat_map(|shape| calls.map(|call| (shape, call)))
        {
            let width = (steps + 1) * depth;
            let a = whole(2 * SIDE * width);
            // Every other step has fewer turns.
            let turns: Vec<u8> = (0..steps).map(|step| if step % 2 == 1 { 16 } else { 5 }).collect();
            let b = [(); MOST_COLUMNS].map(|()| {
                let mut columns = whole(width * SIDE);
                for (step, &turns) in columns.chunks_exact_mut(depth * SIDE).zip(&turns) {
                    step[usize::from(turns) * in_turn::<E>() * SIDE..].fill(E::from_f32(0.0));
                }
                columns
            });
            let stored = b.clone().map(|mut columns| {
                if without_sign::<E>(isa) {
                    let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut columns);
                    bytes.iter_mut().for_each(|byte| *byte ^= 128);
                }
                columns
            });
            // Backwards, with tiles that overlap.
            let offsets: Vec<usize> = (0..steps).rev().map(|step| 64 * step).collect();
            let (a, pitch) = ([a.as_ptr(), a[5 * width..].as_ptr()], width * size_of::<E>());
            // SAFETY: see below.
            let begin = a.map(|a| unsafe { begin(isa, (a, pitch), &offsets, &turns) });
            let product = |sums: &mut [f32], b: &[Vec<E>; MOST_COLUMNS]| Product {
                a,
                offsets: offsets.as_ptr(),
                pitch,
                two_rows,
                asked,
                b: b.each_ref().map(|b| b.as_ptr()),
                columns,
                steps,
                sums: sums.as_mut_ptr(),
                adds,
                turns: turns.as_ptr(),
                begin: begin.each_ref().map(|begin| begin.as_ptr()),
                ahead: a[0].cast(),
                lines,
            };
            let (mut got, mut want) = ([3.0f32; 8 * SIDE * SIDE], [3.0; 8 * SIDE * SIDE]);
            // What is added to begins with it.
            let width = SIDE * columns;
            for (row, sums) in got.chunks_exact_mut(width).enumerate().take(if adds { 2 * SIDE } else { 0 }) {
                let begin = begin[row / SIDE][row % SIDE] as u32;
                sums.iter_mut().for_each(|sum| *sum = f32::from_bits(sum.to_bits().wrapping_add(begin)));
            }
            // SAFETY: the operands are as large as two tiles need.
            unsafe {
                Tiles::new(isa).multiply(&product(&mut got, &stored));
                in_software(&product(&mut want, &b));
            }
            let there = &asked[..1 + usize::from(two_rows)];
            let rows =
                (0..).step_by(SIDE).zip(there).flat_map(|(tile, &(first, n))| tile + first..tile + first + n);
            for row in rows {
                let [got, want] = [&got, &want].map(|sums| sums[row * width..][..width].iter());
                assert!(want.clone().any(|&sum| sum != 3.0));
                let same = got.map(|sum| sum.to_bits()).eq(want.map(|sum| sum.to_bits()));
                assert!(same, "{}: row {row}, {columns} tiles, {adds} {steps}", isa.name());
            }
        }
    }

    #[test]
    fn instructions_multiply_as_defined() {
        multiplies_as_defined::<bf16>("amx");
        multiplies_as_defined::<i8>("amx");
        multiplies_as_defined::<i8>("avx512vnni");
    }
}
