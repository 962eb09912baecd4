//! **batch_norm**: normalisation with the statistics of a batch, the residual sum behind it, and their gradients, for
//! training.
//!
//! All operations take one sample, `rows × c` values; sums over a batch are the caller's, who adds the samples' parts in
//! a fixed order. With `v = x · keep` (a channel mask in front of the normalisation; ones where there is none), `m` the
//! number of rows in the batch, `act'` the derivative of the activation at what it saw:
//!
//! ```text
//! moments     first += Σ (v − pivot)      second += Σ (v − pivot)²
//! forward     y = act(v · scale + shift)
//! grad_sums   g = dy · act'               first += Σ g      second += Σ g · (v − mean)
//! grad        dv = g · a + v · b + d      dx = dv · keep    dkeep += Σ dv · x
//! join        y = act(weight · (v · scale + shift) + shortcut)
//! join_grad   dshortcut = dy · act'       g = weight · dshortcut, and grad_sums of that
//!             dweight = Σ_c dshortcut · (v · scale + shift)
//! ```
//!
//! `scale = γ / √(var + ε)` and `shift = β − mean · scale`; with batch statistics `a = scale`, `b = −scale · second / (m
//! (var + ε))`, `d = −scale · first / m − mean · b`, with stored ones `b = d = 0`. Ioffe and Szegedy, "Batch
//! Normalization", 2015, section 3.
//!
//! A channel mask is folded into `scale` where an operation does not take `keep`.
//!
//! **Layout.** Maps, and `dx`, which a convolution reads, are of any element type; all other gradients are f32.

mod cpu;
#[cfg(test)]
mod tests;

pub use cpu::{forward, grad, grad_sums, join, join_grad, moments};

use crate::{Act, Error, Result};

/// Per-channel `v · scale + shift`.
#[derive(Clone, Copy, Debug)]
pub struct Affine<'a> {
    /// `[c]`.
    pub scale: &'a [f32],
    /// `[c]`.
    pub shift: &'a [f32],
}

/// Two sums per channel, `[c]` each, added to.
#[derive(Debug)]
pub struct Sums<'a> {
    /// Of the value itself.
    pub first: &'a mut [f32],
    /// Of its square, or of its product with the centred input.
    pub second: &'a mut [f32],
}

/// What a channel's input is measured from.
#[derive(Clone, Copy, Debug)]
pub struct Centre<'a> {
    /// Channel mask, `[c]`.
    pub keep: &'a [f32],
    /// Mean, or a pivot near it, `[c]`.
    pub mean: &'a [f32],
}

/// Per-channel coefficients of the input's gradient, `[c]` each.
#[derive(Clone, Copy, Debug)]
pub struct GradCoefficients<'a> {
    /// Of the output's gradient.
    pub a: &'a [f32],
    /// Of the input.
    pub b: &'a [f32],
    /// Constant.
    pub d: &'a [f32],
}

/// A residual sum.
#[derive(Clone, Copy)]
pub struct Join<'a, E> {
    /// Input of the branch's last normalisation, `[rows, c]`.
    pub x: &'a [E],
    /// That normalisation.
    pub affine: Affine<'a>,
    /// Spatial mask, `[rows]`.
    pub weight: &'a [f32],
    /// `[rows, c]`; `None`: nothing is added.
    pub shortcut: Option<&'a [E]>,
    /// Activation behind the sum.
    pub act: Act,
}

/// Gradient of a residual sum.
pub struct JoinGrad<'a, E> {
    /// The sum.
    pub join: Join<'a, E>,
    /// What it gave, `[rows, c]`.
    pub y: &'a [E],
    /// Gradient of that, `[rows, c]`; becomes the shortcut's.
    pub dy: &'a mut [f32],
    /// Centre of the branch's last normalisation.
    pub centre: Centre<'a>,
    /// Gradient behind the branch's last normalisation, `[rows, c]`.
    pub g: &'a mut [f32],
    /// `[rows]`.
    pub dweight: &'a mut [f32],
}

/// Checks that every operand of `op` has the size that goes with `c` channels and `rows` rows.
fn check(op: &'static str, c: usize, rows: usize, channels: &[&[f32]], maps: &[usize]) -> Result<()> {
    let fits =
        c > 0 && channels.iter().all(|list| list.len() == c) && maps.iter().all(|&len| len == rows * c);
    if fits {
        return Ok(());
    }
    let sizes = channels.iter().map(|list| list.len()).chain(maps.iter().copied());
    let geometry = format!("{rows} rows of {c}, operands of {:?}", sizes.collect::<Vec<_>>());
    Err(Error::Geometry { op, why: "an operand has another size", geometry })
}
