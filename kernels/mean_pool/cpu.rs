//! mean_pool on the CPU: parallel over samples × parts of the rows, or blocks of channels where rows are few, vectors
//! along channels. How a map is cut depends on its size alone, so that threads leave no trace in the result.

use super::{Mean, MeanPool};
use crate::gather_gemm::Placement;
use crate::gather_gemm::cpu::BLOCK_ROWS;
use crate::simd::{Simd, dispatch};
use crate::{Channels, Disjoint, Element, Isa, PartSums, Result, Rows, Team};

/// Chunks for each thread, so that a thread that is held up does not hold up the others.
const CHUNKS_PER_THREAD: usize = 2;
/// Channels that a chunk has at least: a cache line of sums.
const NARROW: usize = 16;
/// Rows added up before their sum is added to the total.
const ROWS: usize = 8;
/// Parts that the rows of a map are cut into. In order, as gather_gemm cuts them: each thread reads what it wrote.
const PARTS: usize = 8;
/// With no more pixels than these gather_gemm lets threads share the channels, and so is it here.
const FEW_PIXELS: usize = BLOCK_ROWS;

/// Runs one call.
///
/// # Errors
/// When an operand is too small, before anything is written, or memory for the sums of parts runs out.
pub fn run<E: Element>(
    isa: Isa,
    team: &mut Team,
    parts: &mut PartSums,
    call: MeanPool<'_, [E]>,
) -> Result<()> {
    call.check()?;
    let source = Source {
        rows: call.rows,
        channels: call.channels,
        input: call.input,
        input_rows: call.input_rows,
        mean: call.mean,
    };
    pool(isa, team, parts, source, call.output)
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
///
/// # Errors
/// When memory for the sums of parts runs out.
pub(crate) fn pool<E: Element>(
    isa: Isa,
    team: &mut Team,
    parts: &mut PartSums,
    source: Source<'_, E>,
    output: &mut [f32],
) -> Result<()> {
    let (batch, c) = (source.rows.batch(), source.channels.total());
    if batch == 0 || c == 0 {
        return Ok(());
    }
    if source.rows.pixels() <= FEW_PIXELS {
        by_channels(isa, team, source, output);
        return Ok(());
    }
    let sums = parts.reserve(batch * PARTS * c)?;
    let shared = Disjoint::new(sums);
    team.for_each(batch * PARTS, |chunk, _| {
        let (n, part) = (chunk / PARTS, chunk % PARTS);
        // SAFETY: chunks differ in the sample or in the part.
        let sums = unsafe { shared.slice(chunk * c..chunk * c + source.channels.count(n)) };
        let (start, len) = source.span(n);
        let (first, end) = (len * part / PARTS, len * (part + 1) / PARTS);
        sum::<E>(isa, &source.part(0, start + first, end - first), sums);
    });
    for (n, parts) in sums.chunks_exact(PARTS * c).enumerate() {
        let output = &mut output[n * c..n * c + source.channels.count(n)];
        output.copy_from_slice(&parts[..output.len()]);
        for part in parts[c..].chunks_exact(c) {
            output.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
        }
        let divisor = source.divisor(n);
        output.iter_mut().for_each(|sum| *sum /= divisor);
    }
    Ok(())
}

fn by_channels<E: Element>(isa: Isa, team: &mut Team, source: Source<'_, E>, output: &mut [f32]) {
    let (batch, c) = (source.rows.batch(), source.channels.total());
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
        // SAFETY: chunks differ in the sample or in the block of channels.
        let output = unsafe { output.slice(n * c + first..n * c + count.min(first + width)) };
        let (start, len) = source.span(n);
        sum::<E>(isa, &source.part(first, start, len), output);
        let divisor = source.divisor(n);
        output.iter_mut().for_each(|sum| *sum /= divisor);
    });
}

impl<'a, E> Source<'a, E> {
    /// First row that is read of a sample, and how many.
    fn span(&self, n: usize) -> (usize, usize) {
        let active = self.rows.sample(n);
        match self.mean {
            Mean::AllPixels if !active.is_empty() => (n * self.rows.pixels(), self.rows.pixels()),
            _ => (active.start, active.len()),
        }
    }

    fn divisor(&self, n: usize) -> f32 {
        let rows = if self.mean == Mean::Active { self.span(n).1.max(1) } else { self.rows.pixels() };
        rows as f32
    }

    /// Rows `start..start + len`, from channel `first` on.
    fn part(&self, first: usize, start: usize, len: usize) -> Part<'a, E> {
        let listed = self.input_rows == Placement::Natural && self.mean != Mean::AllPixels;
        Part {
            input: self.input.as_ptr().wrapping_add(first),
            c: self.channels.total(),
            rows: (listed && !self.rows.is_all()).then_some(self.rows),
            start,
            len,
        }
    }
}

struct Part<'a, E> {
    /// First channel, in row 0.
    input: *const E,
    c: usize,
    /// Rows are at the pixels listed here, or one behind the other.
    rows: Option<&'a Rows>,
    start: usize,
    len: usize,
}

dispatch! {
    /// Adds up rows `start..start + len` for `out.len()` channels; the input holds all of them.
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
