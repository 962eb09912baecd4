//! **gate**: the arithmetic of a gate, up to the margin by which each unit is kept.
//!
//! A masker computes a keep and a skip logit per unit and keeps where `keep >= skip`. The two rows of its last layer
//! are folded into their difference once, at load, so a gate yields one *margin* per unit: kept where `margin >= 0`,
//! ties included.
//!
//! * [`PatchGate`]: average over each cell of a grid, then a dot product over channels (`Masker_spatial`). Both are
//!   linear, so pixels are multiplied as they are read and nothing is stored in between.
//! * [`decide`]: margins to decisions, by a threshold, a number of units, or what a sample can pay for.
//! * [`Linear`]: the fully connected layers of channel gates, behind a mean over the map (`Masker_channel_MLP`) or
//!   behind a 1×1 convolution and a mean (`conv_linear`).

mod cpu;
pub(crate) mod cuda;
#[cfg(test)]
mod tests;

pub use cpu::{LinearWeights, linear, patch};

use crate::error::require;
use crate::{Element, Error, Extent, Result};

/// Weights of a gate that decides about the cells of a grid.
#[derive(Clone, Debug)]
pub struct PatchGate {
    /// Keep weight minus skip weight of every input channel.
    pub weight: Vec<f32>,
    /// Keep bias minus skip bias.
    pub bias: f32,
    /// Cells.
    pub grid: Extent,
}

/// A fully connected layer in f32.
#[derive(Clone, Debug)]
pub struct Linear {
    /// `[c_out, c_in]`.
    pub weight: Vec<f32>,
    /// `[c_out]`.
    pub bias: Vec<f32>,
    /// ReLU behind it.
    pub relu: bool,
}

impl Linear {
    /// A layer of `bias.len()` features.
    ///
    /// # Errors
    /// When the weight's length is not a multiple of the bias's.
    pub fn new(weight: Vec<f32>, bias: Vec<f32>, relu: bool) -> Result<Self> {
        if bias.is_empty() || weight.is_empty() || !weight.len().is_multiple_of(bias.len()) {
            let (got, need) = (weight.len(), bias.len());
            let geometry = format!("a row for each of {need} features");
            return Err(Error::Size { op: "linear", what: "weight", got, need, geometry });
        }
        Ok(Self { weight, bias, relu })
    }

    /// Input features.
    pub fn c_in(&self) -> usize {
        self.weight.len() / self.bias.len()
    }

    /// Output features.
    pub fn c_out(&self) -> usize {
        self.bias.len()
    }
}

/// One call of [`decide`]: margins are `M`, decisions `K`.
pub struct Decide<'a, M: ?Sized, K: ?Sized> {
    /// Samples.
    pub batch: usize,
    /// Units of each.
    pub per_sample: usize,
    /// A margin for each unit, `[batch, per_sample]`.
    pub margins: &'a M,
    /// Keeps units whose margin is at least this; a margin that is no number never is.
    pub at_least: f32,
    /// How many of them, those of the highest margins; of equals the first.
    pub most: Most<'a, M>,
    /// Decisions, from element `keep_at` on.
    pub keep: &'a mut K,
    /// See [`keep`](Self::keep).
    pub keep_at: usize,
}

/// How many units of a sample are kept at most.
pub enum Most<'a, M: ?Sized> {
    /// All of them.
    All,
    /// The same number of every sample.
    Count(usize),
    /// As many as a sample can pay for.
    Paid(Account<'a, M>),
}

/// Units cost something, and every sample has an account. Costs are in any unit, the same for all of them.
pub struct Account<'a, M: ?Sized> {
    /// What each sample has spent, `[batch]`; what is kept is added.
    pub spent: &'a mut M,
    /// Cost of a unit, above 0.
    pub price: f32,
    /// What a sample should have spent behind this gate at most; the nearest number of units counts.
    pub pace: f32,
    /// What a sample may spend in all, never exceeded by more than a thousandth of a unit.
    pub limit: f32,
}

impl<M: ?Sized> Account<'_, M> {
    /// How many units a sample can pay for that has spent so much.
    fn affordable(&self, spent: f32) -> usize {
        let paced = ((self.pace - spent) / self.price).round();
        let left = ((self.limit - spent) / self.price + 1e-3).floor();
        // Negative ones are 0.
        paced.min(left) as usize
    }
}

/// Keeps units by their margins.
///
/// # Errors
/// When an operand is too small.
pub fn decide(call: Decide<'_, [f32], [bool]>) -> Result<()> {
    let Decide { batch, per_sample, margins, at_least, mut most, keep, keep_at } = call;
    let geometry = format_args!("{batch} samples of {per_sample} units");
    require("decide", "margins", margins.len(), &[batch, per_sample], &geometry)?;
    require("decide", "decisions", keep.len().saturating_sub(keep_at), &[batch, per_sample], &geometry)?;
    if let Most::Paid(account) = &most {
        require("decide", "account", account.spent.len(), &[batch], &geometry)?;
    }
    let keep = &mut keep[keep_at..][..batch * per_sample];
    let samples = margins.chunks_exact(per_sample.max(1)).zip(keep.chunks_exact_mut(per_sample.max(1)));
    for (n, (margins, keep)) in samples.enumerate() {
        let count = match &most {
            Most::All => per_sample,
            Most::Count(count) => *count,
            Most::Paid(account) => account.affordable(account.spent[n]),
        };
        let kept = highest(margins, at_least, count, keep);
        if let Most::Paid(account) = &mut most {
            account.spent[n] += kept as f32 * account.price;
        }
    }
    Ok(())
}

/// Keeps up to `most` units whose margin is at least `at_least`; how many those are.
fn highest(margins: &[f32], at_least: f32, most: usize, keep: &mut [bool]) -> usize {
    let mut candidates = 0;
    for (keep, margin) in keep.iter_mut().zip(margins) {
        *keep = *margin >= at_least;
        candidates += usize::from(*keep);
    }
    if candidates <= most {
        return candidates;
    }
    let above = |keep: &[bool], lowest: u32| {
        let of = keep.iter().zip(margins).filter(|(keep, margin)| **keep & (ascending(**margin) >= lowest));
        of.count()
    };
    // The last margin that is kept, bit by bit from the highest: as many passes whatever the margins, and no memory.
    let mut last = 0;
    for bit in (0..u32::BITS).rev() {
        let higher = last | 1 << bit;
        if above(keep, higher) >= most {
            last = higher;
        }
    }
    let mut equals = most - last.checked_add(1).map_or(0, |higher| above(keep, higher)).min(most);
    for (keep, margin) in keep.iter_mut().zip(margins).filter(|(keep, _)| **keep) {
        let order = ascending(*margin);
        let first = order == last && equals > 0;
        equals -= usize::from(first);
        *keep = order > last || first;
    }
    most
}

/// A number that is in the order of margins; equal for both zeros.
fn ascending(margin: f32) -> u32 {
    let bits = (margin + 0.0).to_bits();
    if bits >> 31 == 0 { bits | 1 << 31 } else { !bits }
}

/// Pixels `start..end` that cell `i` of `cells` averages along an axis of `pixels`: adaptive average pooling, whose
/// cells overlap where they do not divide.
pub(crate) fn cell(i: usize, cells: usize, pixels: usize) -> std::ops::Range<usize> {
    i * pixels / cells..((i + 1) * pixels).div_ceil(cells)
}

/// The definition of [`patch`].
pub fn reference_patch<E: Element>(
    gate: &PatchGate,
    input: &[E],
    batch: usize,
    map: Extent,
    margins: &mut [f32],
) {
    let c = gate.weight.len();
    for n in 0..batch {
        for gy in 0..gate.grid.h {
            for gx in 0..gate.grid.w {
                let (ys, xs) = (cell(gy, gate.grid.h, map.h), cell(gx, gate.grid.w, map.w));
                let mut sum = 0.0f64;
                for (y, x) in ys.clone().flat_map(|y| xs.clone().map(move |x| (y, x))) {
                    let pixel = &input[((n * map.h + y) * map.w + x) * c..][..c];
                    sum +=
                        pixel.iter().zip(&gate.weight).map(|(x, w)| f64::from(x.to_f32() * w)).sum::<f64>();
                }
                let mean = sum / (ys.len() * xs.len()) as f64;
                margins[(n * gate.grid.h + gy) * gate.grid.w + gx] = mean as f32 + gate.bias;
            }
        }
    }
}

/// The definition of [`decide`].
pub fn reference_decide(call: Decide<'_, [f32], [bool]>) {
    let Decide { batch, per_sample, margins, at_least, mut most, keep, keep_at } = call;
    for n in 0..batch {
        let margins = &margins[n * per_sample..][..per_sample];
        let mut order: Vec<usize> = (0..per_sample).filter(|&unit| margins[unit] >= at_least).collect();
        order.sort_by(|&a, &b| margins[b].partial_cmp(&margins[a]).expect("numbers").then(a.cmp(&b)));
        match &mut most {
            Most::All => {}
            Most::Count(count) => order.truncate(*count),
            Most::Paid(account) => {
                order.truncate(account.affordable(account.spent[n]));
                account.spent[n] += order.len() as f32 * account.price;
            }
        }
        for unit in 0..per_sample {
            keep[keep_at + n * per_sample + unit] = order.contains(&unit);
        }
    }
}

/// The definition of [`linear`].
pub fn reference_linear(layer: &Linear, input: &[f32], output: &mut [f32]) {
    let (c_in, c_out) = (layer.c_in(), layer.c_out());
    for (x, y) in input.chunks_exact(c_in).zip(output.chunks_exact_mut(c_out)) {
        for ((y, w), b) in y.iter_mut().zip(layer.weight.chunks_exact(c_in)).zip(&layer.bias) {
            let sum = x.iter().zip(w).map(|(x, w)| f64::from(x * w)).sum::<f64>() as f32 + b;
            *y = if layer.relu { sum.max(0.0) } else { sum };
        }
    }
}
