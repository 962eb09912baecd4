//! filter_grad on the CPU: a register tile of some rows (taps × input channels) × one or two vectors of output channels
//! stays in registers while all pixels of the sample pass by.

use super::FilterGrad;
use crate::simd::{Simd, dispatch};
use crate::{Element, Isa, Result};

/// Most rows of a tile.
const MOST_ROWS: usize = 24;

/// Adds one sample's part to the sum.
///
/// # Errors
/// When an operand is too small, the convolution is grouped or padded.
pub fn run<E: Element>(isa: Isa, call: FilterGrad<'_, E>) -> Result<()> {
    call.check()?;
    strips(isa, call);
    Ok(())
}

dispatch! {
    fn strips<E>(call: FilterGrad<'_, E>) = strips_set
}

/// One tile's place: `rows` values from `row` on of kernel row `r`, `columns` channels from `column` on.
#[derive(Clone, Copy)]
struct Tile {
    r: usize,
    row: usize,
    column: usize,
    /// Columns of the last vector.
    last: usize,
}

#[inline(always)]
fn strips_set<S: Simd, E: Element>(mut call: FilterGrad<'_, E>) {
    let g = call.geometry;
    let length = g.kernel * g.c_in;
    let mut column = 0;
    while column < g.c_out {
        let vectors = (g.c_out - column).div_ceil(S::LANES).min(2);
        let columns = (vectors * S::LANES).min(g.c_out - column);
        let most = (S::MR * S::NV / vectors).min(MOST_ROWS);
        let last = columns - (vectors - 1) * S::LANES;
        for r in 0..g.kernel {
            let mut row = 0;
            while row < length {
                let rows = (length - row).min(most);
                let tile = Tile { r, row, column, last };
                macro_rules! by_rows {
                    ($nv:literal: $($rows:literal)*) => {
                        match rows {
                            // SAFETY: `dispatch` vouches for the instruction set, the operands were checked, and the
                            // tile lies inside them.
                            $($rows => unsafe { accumulate::<S, E, $rows, $nv>(&mut call, tile) },)*
                            _ => unreachable!("a tile has 1..=24 rows"),
                        }
                    };
                }
                match vectors {
                    1 => by_rows!(1: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24),
                    _ => by_rows!(2: 1 2 3 4 5 6 7 8 9 10 11 12),
                }
                row += rows;
            }
        }
        column += columns;
    }
}

/// # Safety
/// Inside a function compiled for `S`; `call` is checked and `tile` lies inside its sum.
#[inline(always)]
unsafe fn accumulate<S: Simd, E: Element, const ROWS: usize, const NV: usize>(
    call: &mut FilterGrad<'_, E>,
    tile: Tile,
) {
    if ROWS * NV > S::MR * S::NV {
        unreachable!("more accumulators than this instruction set has");
    }
    let g = call.geometry;
    // SAFETY: pixels lie inside the maps, which `check` measured; rows and columns inside the tile.
    unsafe {
        let mut acc = [[S::splat(0.0); NV]; ROWS];
        for y in 0..g.output.h {
            let line = (y * g.stride + tile.r) * g.input.w * g.c_in + tile.row;
            let mut input = call.input.as_ptr().add(line);
            let mut grad = call.grad.as_ptr().add(y * g.output.w * g.c_out + tile.column);
            for _ in 0..g.output.w {
                let columns: [S::V; NV] = std::array::from_fn(|j| {
                    let at = grad.add(j * S::LANES);
                    if j + 1 < NV || tile.last == S::LANES {
                        S::load(at)
                    } else {
                        S::load_first(at, tile.last)
                    }
                });
                for (i, acc) in acc.iter_mut().enumerate() {
                    let value = S::splat((*input.add(i)).to_f32());
                    for (acc, &column) in acc.iter_mut().zip(&columns) {
                        *acc = S::fma(value, column, *acc);
                    }
                }
                input = input.wrapping_add(g.stride * g.c_in);
                grad = grad.wrapping_add(g.c_out);
            }
        }
        let first = (tile.r * g.kernel * g.c_in + tile.row) * g.c_out + tile.column;
        // Written out row by row: with a loop here, accumulators would be stored for every pixel.
        macro_rules! add_rows {
            ($($i:literal)*) => {
                $(if $i < ROWS {
                    for j in 0..NV {
                        let n = if j + 1 < NV { S::LANES } else { tile.last };
                        let at = call.sum.as_mut_ptr().add(first + $i * g.c_out + j * S::LANES);
                        S::store_first(at, n, S::add(S::load_first(at, n), acc[$i % ROWS][j]));
                    }
                })*
            };
        }
        add_rows!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23);
    }
}
