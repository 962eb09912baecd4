//! squeeze_excite on the CPU: four steps, each parallel over samples × pieces: means, first layer, second layer with
//! the sigmoid, scaling.

use super::{ROW, SqueezeExcite, Weights};
use crate::gather_gemm::Placement;
use crate::mean_pool::cpu::{Source, pool};
use crate::simd::{Simd, dispatch};
use crate::{Buffer, Disjoint, Element, Isa, PartSums, Result, Team};

/// Channels of a chunk of the second layer.
const CHANNELS: usize = 64;
/// Products summed side by side, to hide the latency of additions.
const STRANDS: usize = 4;
/// Chunks for each thread, so that a thread that is held up does not hold up the others.
const CHUNKS_PER_THREAD: usize = 4;

/// Working memory of one call.
pub struct Scratch {
    /// `[n, c]`: means, then factors, by position.
    means: Buffer<f32>,
    /// `[n, q]`.
    hidden: Buffer<f32>,
    parts: PartSums,
}

impl Scratch {
    /// Empty working memory; [`reserve`](Self::reserve) makes it large enough for a weights.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn new() -> Result<Self> {
        let empty = || Buffer::zeroed(0, "scratch");
        Ok(Self { means: empty()?, hidden: empty()?, parts: PartSums::new()? })
    }

    /// Grows to what calls with `weights` on `batch` samples need.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn reserve(&mut self, weights: &Weights, batch: usize) -> Result<()> {
        for (buffer, width, what) in [
            (&mut self.means, weights.c, "channel means"),
            (&mut self.hidden, weights.stride, "squeezed means"),
        ] {
            let len = batch.saturating_mul(width);
            if buffer.len() < len {
                *buffer = Buffer::zeroed(len, what)?;
            }
        }
        Ok(())
    }
}

/// Runs one call.
///
/// # Errors
/// When an operand is too small, before anything is written, or memory for the scratch runs out.
pub fn run<E: Element>(
    isa: Isa,
    team: &mut Team,
    weights: &Weights,
    scratch: &mut Scratch,
    call: SqueezeExcite<'_, [E]>,
) -> Result<()> {
    call.check(weights)?;
    let (rows, channels, c) = (call.rows, call.channels, weights.c);
    let batch = rows.batch();
    scratch.reserve(weights, batch)?;
    if rows.is_empty() {
        return Ok(());
    }
    let Scratch { means, hidden, parts } = scratch;
    let (means, hidden) = (means.as_mut_slice(), hidden.as_mut_slice());
    let source = Source { rows, channels, input: &*call.data, input_rows: call.data_rows, mean: call.mean };
    pool(isa, team, parts, source, means)?;

    let squeezed = Disjoint::new(hidden);
    let blocks = weights.stride / ROW;
    team.for_each(batch * blocks, |chunk, _| {
        let (n, first) = (chunk / blocks, chunk % blocks * ROW);
        if !rows.sample(n).is_empty() {
            let start = n * weights.stride + first;
            // SAFETY: chunks differ in the sample or in the block of hidden channels.
            let out = unsafe { squeezed.slice(start..start + ROW) };
            squeeze::<f32>(isa, weights, first, channels.sample(n), &means[n * c..(n + 1) * c], out);
        }
    });

    let scales = Disjoint::new(means);
    let blocks = c.div_ceil(CHANNELS);
    team.for_each(batch * blocks, |chunk, _| {
        let (n, first) = (chunk / blocks, chunk % blocks * CHANNELS);
        let last = channels.count(n).min(first + CHANNELS);
        if first < last && !rows.sample(n).is_empty() {
            // SAFETY: chunks differ in the sample or in the block of channels.
            let out = unsafe { scales.slice(n * c + first..n * c + last) };
            excite::<f32>(isa, weights, first, channels.sample(n), &hidden[n * weights.stride..], out);
        }
    });

    let data = Disjoint::new(call.data);
    let pieces = (CHUNKS_PER_THREAD * team.threads()).div_ceil(batch);
    team.for_each(batch * pieces, |chunk, _| {
        let (n, piece) = (chunk / pieces, chunk % pieces);
        let (active, count) = (rows.sample(n), channels.count(n));
        for i in active.len() * piece / pieces..active.len() * (piece + 1) / pieces {
            let i = active.start + i;
            let row = if call.data_rows == Placement::Natural { rows.pixel(i) } else { i };
            // SAFETY: every active row belongs to one chunk.
            let row = unsafe { data.slice(row * c..row * c + count) };
            scale::<E>(isa, row, &means[n * c..]);
        }
    });
    Ok(())
}

dispatch! {
    /// Hidden channels `first..first + ROW` of one sample, from the means of its active channels.
    fn squeeze<E>(weights: &Weights, first: usize, list: Option<&[u32]>, means: &[f32], out: &mut [f32]) = squeeze_set
}

#[expect(clippy::extra_unused_type_parameters, reason = "`dispatch` hands on an element type")]
#[inline(always)]
fn squeeze_set<S: Simd, E: Element>(
    weights: &Weights,
    first: usize,
    list: Option<&[u32]>,
    means: &[f32],
    out: &mut [f32],
) {
    let count = list.map_or(weights.c, <[u32]>::len);
    let (bias, fc1) = (&weights.bias1.as_slice()[first..first + ROW], weights.fc1.as_slice());
    for at in (0..ROW).step_by(S::LANES) {
        // SAFETY: a row of weights and the bias hold `ROW` values from `first`, `out` holds `ROW`, and LANES divides
        // ROW; channels are below `weights.c`; `dispatch` vouches for the instruction set.
        unsafe {
            let mut sums = [S::splat(0.0); STRANDS];
            let term = |j: usize, sum: S::V| {
                let channel = list.map_or(j, |list| list[j] as usize);
                let w = S::load_f32(fc1.as_ptr().add(channel * weights.stride + first + at));
                S::fma(S::splat(means[j]), w, sum)
            };
            let mut j = 0;
            while j + STRANDS <= count {
                for (k, sum) in sums.iter_mut().enumerate() {
                    *sum = term(j + k, *sum);
                }
                j += STRANDS;
            }
            for j in j..count {
                sums[0] = term(j, sums[0]);
            }
            let sum = S::add(S::add(sums[0], sums[1]), S::add(sums[2], sums[3]));
            let sum = S::add(sum, S::load_f32(bias.as_ptr().add(at)));
            // The sum is the second operand, which x86 hands on when it is NaN.
            S::store_f32(out.as_mut_ptr().add(at), S::max(S::splat(0.0), sum));
        }
    }
}

dispatch! {
    /// Factors of the active channels at positions `first..first + out.len()` of one sample.
    fn excite<E>(weights: &Weights, first: usize, list: Option<&[u32]>, hidden: &[f32], out: &mut [f32]) = excite_set
}

#[expect(clippy::extra_unused_type_parameters, reason = "`dispatch` hands on an element type")]
#[inline(always)]
fn excite_set<S: Simd, E: Element>(
    weights: &Weights,
    first: usize,
    list: Option<&[u32]>,
    hidden: &[f32],
    out: &mut [f32],
) {
    let hidden = &hidden[..weights.stride];
    for (j, out) in out.iter_mut().enumerate() {
        let channel = list.map_or(first + j, |list| list[first + j] as usize);
        let row = &weights.fc2.as_slice()[channel * weights.stride..][..weights.stride];
        // SAFETY: both hold `stride` values, a multiple of LANES; `dispatch` vouches for the instruction set.
        let dot = unsafe {
            let mut sum = S::splat(0.0);
            for at in (0..weights.stride).step_by(S::LANES) {
                let (w, h) = (S::load_f32(row.as_ptr().add(at)), S::load_f32(hidden.as_ptr().add(at)));
                sum = S::fma(w, h, sum);
            }
            S::sum(sum)
        };
        *out = 1.0 / (1.0 + (-(dot + weights.bias2.as_slice()[channel])).exp());
    }
}

dispatch! {
    /// Multiplies a row with its sample's factors, of which there are at least as many.
    fn scale<E>(row: &mut [E], factors: &[f32]) = scale_set
}

#[inline(always)]
fn scale_set<S: Simd, E: Element>(row: &mut [E], factors: &[f32]) {
    let factors = &factors[..row.len()];
    let mut at = 0;
    while at < row.len() {
        let n = S::LANES.min(row.len() - at);
        // SAFETY: both hold `n` values from `at`; `dispatch` vouches for the instruction set.
        unsafe {
            let p = row.as_mut_ptr().add(at);
            let value = S::mul(S::load_first(p.cast_const(), n), S::load_first(factors.as_ptr().add(at), n));
            S::store_first(p, n, value);
        }
        at += n;
    }
}
