//! Turns rows into pointers.

use super::scratch::Scratch;
use super::{Filter, GatherGemm, Placement};
use crate::{Element, Extent};
use std::ops::Range;

/// Walks over the pixels of maps in ascending order without dividing.
pub(super) struct Cursor {
    map: Extent,
    /// First pixel of the line, over the whole batch.
    line: usize,
    n: usize,
    y: usize,
}

impl Cursor {
    pub(super) fn new(map: Extent, pixel: usize) -> Self {
        let (n, within) = (pixel / map.pixels(), pixel % map.pixels());
        Self { map, line: pixel - within % map.w, n, y: within / map.w }
    }

    /// Sample, row and column of `pixel`.
    #[inline(always)]
    pub(super) fn locate(&mut self, pixel: usize) -> (usize, usize, usize) {
        if pixel - self.line >= 4 * self.map.w {
            *self = Self::new(self.map, pixel);
        }
        while pixel - self.line >= self.map.w {
            self.line += self.map.w;
            self.y += 1;
            if self.y == self.map.h {
                (self.n, self.y) = (self.n + 1, 0);
            }
        }
        (self.n, self.y, pixel - self.line)
    }
}

/// Fills in where the outputs of some rows (counted from `first`) start, and the rows' classes.
pub(super) fn point_out<E: Element>(
    filter: &Filter<E>,
    call: &GatherGemm<'_, [E]>,
    first: usize,
    rows: Range<usize>,
    scratch: &mut Scratch<E>,
    output: *mut E,
) {
    let g = filter.geometry();
    let active = call.active.rows;
    let first = first + rows.start;
    for (slot, out) in scratch.out[rows.clone()].iter_mut().enumerate() {
        let at =
            if call.output_rows == Placement::Natural { active.pixel(first + slot) } else { first + slot };
        *out = output.wrapping_add(at * g.c_out);
    }
    if g.is_pointwise() || filter.bias.len() == filter.bias_stride {
        return;
    }
    let mut cursor = Cursor::new(g.output, active.pixel(first));
    for (slot, class) in scratch.class[rows].iter_mut().enumerate() {
        let (_, y, x) = cursor.locate(active.pixel(first + slot));
        *class = filter.class(y, x) as u32;
    }
}

/// Fills in where each tap of the rows of one tile (counted from `first`) starts.
pub(super) fn point_in<E: Element>(
    filter: &Filter<E>,
    call: &GatherGemm<'_, [E]>,
    first: usize,
    rows: Range<usize>,
    n_taps: usize,
    scratch: &mut Scratch<E>,
) {
    let g = filter.geometry();
    let height = rows.len();
    let taps = &mut scratch.taps[rows.start * n_taps..rows.end * n_taps];
    let input = call.input.as_ptr();
    let active = call.active.rows;
    let first = first + rows.start;
    if g.is_pointwise() {
        for (slot, tap) in taps.iter_mut().enumerate() {
            let at =
                if call.input_rows == Placement::Natural { active.pixel(first + slot) } else { first + slot };
            *tap = input.wrapping_add(at * g.c_in);
        }
        return;
    }
    let mut cursor = Cursor::new(g.output, active.pixel(first));
    let line = g.input.w * g.c_in;
    let zeros = scratch.zeros.as_slice().as_ptr();
    for slot in 0..height {
        let (n, y, x) = cursor.locate(active.pixel(first + slot));
        // Wraps below zero where the kernel hangs over the edge.
        let (iy, ix) = ((y * g.stride).wrapping_sub(g.pad_top), (x * g.stride).wrapping_sub(g.pad_left));
        let origin = (n * g.input.pixels()).wrapping_add(iy.wrapping_mul(g.input.w)).wrapping_add(ix);
        let origin = input.wrapping_add(origin.wrapping_mul(g.c_in));
        let mut tap = slot;
        if n_taps < g.kernel * g.kernel {
            for r in 0..g.kernel {
                taps[tap] = origin.wrapping_add(r * line);
                tap += height;
            }
            continue;
        }
        let inside = |at: usize, size: usize| at < size && at + g.kernel <= size;
        if inside(iy, g.input.h) && inside(ix, g.input.w) {
            for r in 0..g.kernel {
                for s in 0..g.kernel {
                    taps[tap] = origin.wrapping_add(r * line + s * g.c_in);
                    tap += height;
                }
            }
            continue;
        }
        for r in 0..g.kernel {
            for s in 0..g.kernel {
                let hit = iy.wrapping_add(r) < g.input.h && ix.wrapping_add(s) < g.input.w;
                taps[tap] = if hit { origin.wrapping_add(r * line + s * g.c_in) } else { zeros };
                tap += height;
            }
        }
    }
}
