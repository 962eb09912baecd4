//! What is done with sums: bias, residual, activation, constant, store.

use crate::simd::Simd;
use crate::{Act, DType, Element};
use std::ops::Range;

/// What is done with the sums of a block of rows × one panel. Pointers that are indexed by row have an entry for each.
#[derive(Clone, Copy)]
pub(super) struct Epilogue<E> {
    /// Stored columns, whole vectors.
    pub(super) stored: usize,
    /// `[rows]`: where each row's output starts.
    pub(super) out: *const *mut E,
    /// First column, from the row's start.
    pub(super) column: usize,
    /// Columns that are written.
    pub(super) columns: usize,
    /// Bias of the panel's columns, a row of the table for every class of rows.
    pub(super) bias: *const f32,
    /// From one row of the table to the next; 0: there is one.
    pub(super) bias_stride: usize,
    /// `[rows]`: class of each row.
    pub(super) class: *const u32,
    /// What the sums of the panel's columns are multiplied with; null: nothing, but where elements are whole numbers.
    pub(super) scale: *const f32,
    /// Subtracted behind the activation; null: nothing.
    pub(super) constant: *const f32,
    pub(super) residual: bool,
    pub(super) act: Act,
}

impl<E> Epilogue<E> {
    /// Whole vectors.
    #[inline(always)]
    pub(super) fn whole(&self) -> bool {
        self.columns == self.stored
    }

    /// The bias of a row.
    ///
    /// # Safety
    /// There is such a row.
    #[inline(always)]
    pub(super) unsafe fn bias_of(&self, row: usize) -> *const f32 {
        // SAFETY: see above.
        self.bias.wrapping_add(unsafe { *self.class.add(row) } as usize * self.bias_stride)
    }
}

/// What a residual is added to: whole numbers are rounded first.
///
/// # Safety
/// As for [`compute`](super::micro::compute), inside a function compiled for `S`.
#[inline(always)]
pub(super) unsafe fn before_residual<S: Simd, E: Element>(v: S::V) -> S::V {
    // Numbers from here to twice as much are whole; what is as large by itself saturates anyway.
    const WHOLE: f32 = 12_582_912.0;
    // SAFETY: see above.
    unsafe {
        match E::DTYPE {
            DType::Int8 => S::sub(S::add(v, S::splat(WHOLE)), S::splat(WHOLE)),
            _ => v,
        }
    }
}

/// Sums that were left in memory.
#[derive(Clone, Copy)]
pub(super) enum Sums {
    /// Row by row.
    Rows(*const f32),
    /// The same, those over even and odd rows of the panel side by side.
    Apart(*const f32),
    /// Row by row, as whole numbers.
    Whole(*const i32),
}

/// Bias, residual, activation, constant, store, of sums that a tile left in memory, `vectors` of each row.
///
/// # Safety
/// As for [`compute`](super::micro::compute), inside a function compiled for `S`.
#[inline(always)]
pub(super) unsafe fn finish<S: Simd, E: Element>(
    end: &Epilogue<E>,
    rows: Range<usize>,
    vectors: usize,
    sums: Sums,
) {
    // SAFETY: see above.
    unsafe {
        let (least, most) = end.act.range();
        let (least, most) = (S::splat(least), S::splat(most));
        for (i, row) in rows.enumerate() {
            let first = i * vectors * S::LANES;
            let out = (*end.out.add(row)).add(end.column);
            let bias = end.bias_of(row);
            for at in (0..end.columns).step_by(S::LANES) {
                let n = end.columns - at;
                let v = match sums {
                    Sums::Rows(sums) => S::load_f32(sums.add(first + at)),
                    Sums::Apart(sums) => S::add_pairs(
                        S::load_f32(sums.add(first + 2 * at)),
                        S::load_f32(sums.add(first + (2 * at + S::LANES).min((vectors - 1) * S::LANES))),
                    ),
                    Sums::Whole(sums) => S::load_i32(sums.add(first + at)),
                };
                let bias = S::load_f32(bias.add(at));
                let mut v = match E::DTYPE {
                    DType::Int8 => S::fma(v, S::load_f32(end.scale.add(at)), bias),
                    _ => S::add(v, bias),
                };
                if end.residual {
                    v = before_residual::<S, E>(v);
                    v = S::add(v, S::load_first(out.add(at).cast_const(), n));
                }
                // The value is the second operand, which x86's max and min hand on when it is NaN.
                v = S::min(most, S::max(least, v));
                if !end.constant.is_null() {
                    v = S::sub(v, S::load_f32(end.constant.add(at)));
                }
                S::store_first(out.add(at), n, v);
            }
        }
    }
}
