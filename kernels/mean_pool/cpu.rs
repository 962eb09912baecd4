//! mean_pool on the CPU: parallel over samples × blocks of channels, vectors along channels. No thread shares a sum
//! with another, so that there is nothing to combine and the partition leaves no trace in the result.

use super::{Mean, MeanPool};
use crate::gather_gemm::Placement;
use crate::simd::{Simd, dispatch};
use crate::{Channels, Disjoint, Element, Isa, Result, Rows, Team};

/// Chunks for each thread, so that a thread that is held up does not hold up the others.
const CHUNKS_PER_THREAD: usize = 2;
/// Channels that a chunk has at least: a cache line of sums.
const NARROW: usize = 16;
/// Rows added up before their sum is added to the total.
const ROWS: usize = 8;

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
    if batch == 0 || c == 0 {
        return;
    }
    let wanted = if team.threads() == 1 { 1 } else { (CHUNKS_PER_THREAD * team.threads()).div_ceil(batch) };
    let width = c.div_ceil(wanted).next_multiple_of(NARROW);
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
    let row = |i: usize| {
        let i = part.start + i;
        part.input.wrapping_add(part.rows.map_or(i, |rows| rows.pixel(i)) * part.c)
    };
    let mut first = 0;
    out.fill(0.0);
    while first + ROWS <= part.len {
        let mut rows = [part.input; ROWS];
        for (i, start) in rows.iter_mut().enumerate() {
            *start = row(first + i);
        }
        add::<S, E, ROWS>(&rows, out);
        first += ROWS;
    }
    for i in first..part.len {
        add::<S, E, 1>(&[row(i)], out);
    }
    for sum in out {
        *sum /= part.divisor;
    }
}

/// Adds `out.len()` values of every row.
#[inline(always)]
fn add<S: Simd, E: Element, const R: usize>(rows: &[*const E; R], out: &mut [f32]) {
    let mut at = 0;
    while at < out.len() {
        let n = S::LANES.min(out.len() - at);
        // SAFETY: rows and `out` hold `n` values from `at`: the rows were checked to lie in the input, with all
        // channels of the block; `dispatch` vouches for the instruction set.
        unsafe {
            let sum = out.as_mut_ptr().add(at);
            if n == S::LANES {
                let mut values = [S::splat(0.0); R];
                for (value, row) in values.iter_mut().zip(rows) {
                    *value = S::load(row.add(at));
                }
                S::store_f32(sum, S::add(S::load_f32(sum), tree::<S, R>(values)));
            } else {
                let mut values = [S::splat(0.0); R];
                for (value, row) in values.iter_mut().zip(rows) {
                    *value = S::load_first(row.add(at), n);
                }
                S::store_first(sum, n, S::add(S::load_first(sum, n), tree::<S, R>(values)));
            }
        }
        at += n;
    }
}

/// Sum of a power of two of vectors, in pairs.
///
/// # Safety
/// Inside a function compiled for `S`.
#[inline(always)]
unsafe fn tree<S: Simd, const R: usize>(mut values: [S::V; R]) -> S::V {
    let mut len = R;
    while len > 1 {
        len /= 2;
        for i in 0..len {
            // SAFETY: the caller vouches for the instruction set.
            values[i] = unsafe { S::add(values[i], values[i + len]) };
        }
    }
    values[0]
}
