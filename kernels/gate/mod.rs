//! **gate**: the arithmetic of a gate, up to the margin by which each unit is kept.
//!
//! A masker computes a keep and a skip logit per unit and keeps where `keep >= skip`. The two rows of its last layer
//! are folded into their difference once, at load, so a gate yields one *margin* per unit: kept where `margin >= 0`,
//! ties included.
//!
//! * [`PatchGate`]: average over each cell of a grid, then a dot product over channels (`Masker_spatial`). Both are
//!   linear, so pixels are multiplied as they are read and nothing is stored in between.
//! * [`decide`]: margins to decisions.
//! * [`Linear`]: the fully connected layers of channel gates, behind a mean over the map (`Masker_channel_MLP`) or
//!   behind a 1×1 convolution and a mean (`conv_linear`).

mod cpu;
pub(crate) mod cuda;
#[cfg(test)]
mod tests;

pub use cpu::{linear, patch};

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
    /// Units.
    pub units: usize,
    /// A margin for each unit.
    pub margins: &'a M,
    /// Keeps units whose margin is at least this; a margin that is no number never is.
    pub at_least: f32,
    /// Decisions, from element `keep_at` on.
    pub keep: &'a mut K,
    /// See [`keep`](Self::keep).
    pub keep_at: usize,
}

/// Keeps units by their margins.
///
/// # Errors
/// When an operand is too small.
pub fn decide(call: Decide<'_, [f32], [bool]>) -> Result<()> {
    let Decide { units, margins, at_least, keep, keep_at } = call;
    let geometry = format_args!("{units} units");
    require("decide", "margins", margins.len(), &[units], &geometry)?;
    require("decide", "decisions", keep.len().saturating_sub(keep_at), &[units], &geometry)?;
    let keep = &mut keep[keep_at..][..units];
    keep.iter_mut().zip(margins).for_each(|(keep, margin)| *keep = *margin >= at_least);
    Ok(())
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
