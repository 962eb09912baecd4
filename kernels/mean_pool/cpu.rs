//! mean_pool on the CPU: parallel over samples × blocks of channels, vectors along channels. No thread shares a sum
//! with another, so that there is nothing to combine and the partition leaves no trace in the result.

use super::{Mean, MeanPool};
use crate::gather_gemm::Placement;
use crate::simd::{Simd, dispatch};
use crate::{Channels, Disjoint, Element, Isa, Result, Rows, Team};

/// Channels of a chunk where there are enough chunks; few otherwise, a cache line of sums.
const WIDE: usize = 64;
const NARROW: usize = 16;
/// Rows summed before the sum is added to the total: rounding errors grow with this plus the number of blocks.
const BLOCK_ROWS: usize = 64;
/// Rows summed side by side, to hide the latency of additions.
const STRANDS: usize = 4;

/// Runs one call.
///
/// # Errors
/// When an operand is too small, before anything is written.
pub fn run<E: Element>(isa: Isa, team: &mut Team<'_>, call: MeanPool<'_, E>) -> Result<()> {
    call.check()?;
    let source = Source {
        rows: call.rows,
        channels: call.channels,
        input: call.input,
        input_rows: call.input_rows,
        mean: call.mean,
    };
    pool(isa, team, source, call.output);
    Ok(())
}

/// A checked call without its output.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a, E> {
    pub(crate) rows: &'a Rows,
    pub(crate) channels: &'a Channels,
    pub(crate) input: &'a [E],
    pub(crate) input_rows: Placement,
    pub(crate) mean: Mean,
}

/// The means of a checked call.
pub(crate) fn pool<E: Element>(isa: Isa, team: &mut Team<'_>, source: Source<'_, E>, output: &mut [f32]) {
    let (rows, c) = (source.rows, source.channels.total());
    let batch = rows.batch();
    let width = if batch * c.div_ceil(WIDE) >= 2 * team.threads() { WIDE } else { NARROW };
    let blocks = c.div_ceil(width);
    let output = Disjoint::new(output);
    team.for_each(batch * blocks, |chunk, _| {
        let (n, first) = (chunk / blocks, chunk % blocks * width);
        let count = source.channels.count(n);
        if first >= count {
            return;
        }
        let range = n * c + first..n * c + count.min(first + width);
        // SAFETY: chunks differ in the sample or in the block of channels.
        let out = unsafe { output.slice(range) };
        let active = rows.sample(n);
        let (start, len) = match source.mean {
            Mean::AllPixels if !active.is_empty() => (n * rows.pixels(), rows.pixels()),
            _ => (active.start, active.len()),
        };
        let listed = source.input_rows == Placement::Natural && source.mean != Mean::AllPixels;
        let divisor = if source.mean == Mean::Active { len.max(1) } else { rows.pixels() };
        let part = Part {
            input: source.input.as_ptr().wrapping_add(first),
            c,
            rows: if listed && !rows.is_all() { Some(rows) } else { None },
            start,
            len,
            divisor: divisor as f32,
        };
        sum::<E>(isa, &part, out);
    });
}

struct Part<'a, E> {
    /// First channel of the block, in row 0.
    input: *const E,
    c: usize,
    /// Rows are at the pixels listed here, or one behind the other.
    rows: Option<&'a Rows>,
    start: usize,
    len: usize,
    divisor: f32,
}

dispatch! {
    /// Averages rows `start..start + len` for `out.len()` channels; the input holds all of them.
    fn sum<E>(part: &Part<'_, E>, out: &mut [f32]) = sum_set
}

#[inline(always)]
fn sum_set<S: Simd, E: Element>(part: &Part<'_, E>, out: &mut [f32]) {
    let (width, lanes) = (out.len(), S::LANES);
    let mut at = 0;
    // SAFETY: `at` and the lanes from there stay below `width`; `dispatch` vouches for the instruction set.
    unsafe {
        while width - at >= 2 * lanes {
            block::<S, E, 2>(part, at, lanes, out);
            at += 2 * lanes;
        }
        while at < width {
            // The last vector starts early rather than being cut, where there is room: its sums come out the same.
            let first = if width >= lanes { at.min(width - lanes) } else { at };
            block::<S, E, 1>(part, first, lanes.min(width - first), out);
            at += lanes;
        }
    }
}

/// # Safety
/// Inside a function compiled for `S`; `NV` vectors from channel `at`, the last one of `n` lanes, are in the block.
#[inline(always)]
unsafe fn block<S: Simd, E: Element, const NV: usize>(
    part: &Part<'_, E>,
    at: usize,
    n: usize,
    out: &mut [f32],
) {
    // SAFETY: the rows were checked to lie in the input; the channels as the caller says.
    unsafe {
        let mut total = [S::splat(0.0); NV];
        let row = |i: usize| {
            let i = part.start + i;
            part.input.add(part.rows.map_or(i, |rows| rows.pixel(i)) * part.c + at)
        };
        let load = |p: *const E| if NV > 1 { S::load(p) } else { S::load_first(p, n) };
        let mut first = 0;
        while first < part.len {
            let last = part.len.min(first + BLOCK_ROWS);
            let mut strands = [[S::splat(0.0); NV]; STRANDS];
            let mut i = first;
            while i + STRANDS <= last {
                for (k, strand) in strands.iter_mut().enumerate() {
                    let p = row(i + k);
                    for (j, sum) in strand.iter_mut().enumerate() {
                        *sum = S::add(*sum, load(p.add(j * S::LANES)));
                    }
                }
                i += STRANDS;
            }
            while i < last {
                let p = row(i);
                for (j, sum) in strands[0].iter_mut().enumerate() {
                    *sum = S::add(*sum, load(p.add(j * S::LANES)));
                }
                i += 1;
            }
            for j in 0..NV {
                let [a, b, c, d] = strands;
                total[j] = S::add(total[j], S::add(S::add(a[j], b[j]), S::add(c[j], d[j])));
            }
            first = last;
        }
        for (j, total) in total.into_iter().enumerate() {
            let mean = S::mul(total, S::splat(1.0 / part.divisor));
            S::store_first(out.as_mut_ptr().add(at + j * S::LANES), n, mean);
        }
    }
}
