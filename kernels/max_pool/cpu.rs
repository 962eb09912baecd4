//! max_pool on the CPU: parallel over output lines, vectors along channels.

use super::MaxPool;
use crate::simd::{Simd, dispatch};
use crate::{ConvGeometry, Disjoint, Element, Isa, Result, Team};
use std::ops::Range;

/// Chunks for each thread, so that a thread that is held up does not hold up the others.
const CHUNKS_PER_THREAD: usize = 4;

/// Runs one call.
///
/// # Errors
/// When the geometry is impossible or an operand too small, before anything is written.
pub fn run<E: Element>(isa: Isa, team: &mut Team, call: MaxPool<'_, [E]>) -> Result<()> {
    call.check()?;
    let g = call.geometry;
    let lines = call.batch * g.output.h;
    let chunks = lines.min(CHUNKS_PER_THREAD * team.threads());
    let width = g.output.w * g.c_out;
    let (input, output) = (call.input, Disjoint::new(call.output));
    team.for_each(chunks, |chunk, _| {
        for line in lines * chunk / chunks..lines * (chunk + 1) / chunks {
            // SAFETY: every line belongs to one chunk.
            let out = unsafe { output.slice(line * width..(line + 1) * width) };
            let map = g.input.pixels() * g.c_in;
            let sample = &input[line / g.output.h * map..][..map];
            pool_line::<E>(isa, &g, sample, line % g.output.h, out);
        }
    });
    Ok(())
}

dispatch! {
    /// Output line `y` of one sample.
    fn pool_line<E>(g: &ConvGeometry, sample: &[E], y: usize, out: &mut [E]) = pool_line_set
}

/// The part of a window of `kernel` from `at·stride − pad` that lies in `0..size`.
#[inline(always)]
fn inside(at: usize, g: &ConvGeometry, pad: usize, size: usize) -> Range<usize> {
    let first = at * g.stride;
    first.saturating_sub(pad)..size.min(first + g.kernel - pad)
}

#[inline(always)]
fn pool_line_set<S: Simd, E: Element>(g: &ConvGeometry, sample: &[E], y: usize, out: &mut [E]) {
    let (c, line) = (g.c_in, g.input.w * g.c_in);
    let rows = inside(y, g, g.pad_top, g.input.h);
    let n_rows = rows.len();
    for x in 0..g.output.w {
        let columns = inside(x, g, g.pad_left, g.input.w);
        let n_columns = columns.len();
        // SAFETY: the window is cut to the map, and every vector to the `c` values of a pixel; `dispatch` vouches for
        // the instruction set.
        unsafe {
            let first = sample.as_ptr().add(rows.start * line + columns.start * c);
            let out = out.as_mut_ptr().add(x * c);
            let mut at = 0;
            if n_rows == 3 && n_columns == 3 {
                while at + S::LANES <= c {
                    let p = first.add(at);
                    S::store(out.add(at), largest::<S, E>(p, (3, 3), (line, c), S::LANES));
                    at += S::LANES;
                }
            }
            while at < c {
                let n = S::LANES.min(c - at);
                let value = largest::<S, E>(first.add(at), (n_rows, n_columns), (line, c), n);
                S::store_first(out.add(at), n, value);
                at += n;
            }
        }
    }
}

/// Largest of `rows × columns` pixels, `n` channels.
///
/// # Safety
/// Inside a function compiled for `S`; the pixels hold `n <= S::LANES` values from `p`.
#[inline(always)]
unsafe fn largest<S: Simd, E: Element>(
    p: *const E,
    (rows, columns): (usize, usize),
    (line, c): (usize, usize),
    n: usize,
) -> S::V {
    // SAFETY: see above.
    unsafe {
        let mut value = S::splat(f32::NEG_INFINITY);
        for r in 0..rows {
            for s in 0..columns {
                // The new value first: what is looked at for NaN then does not depend on the round before.
                value = S::max_nan(S::load_first(p.add(r * line + s * c), n), value);
            }
        }
        value
    }
}
