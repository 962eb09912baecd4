//! **squeeze_excite**: scales every channel of a sample by a factor computed from the means of all its channels,
//! in place (Hu et al., *Squeeze-and-Excitation Networks*, CVPR 2018).
//!
//! ```text
//! m = mean over pixels of data[p, ·]                           [c], zero for inactive channels
//! h = relu(fc1 · m + bias1)                                    [q]
//! s = 1 / (1 + exp(−(fc2 · h + bias2)))                        [c]
//! data[p, j] *= s[channel j]                                   active rows and channels only
//! ```
//!
//! [`Mean`] says which pixels `m` is taken of; a network is trained with one meaning and the two are never mixed
//! silently. Official LAUDNet takes [`Mean::AllPixels`], so that a sparse executor has to compute every row before
//! this operation; [`Mean::Active`] reads nothing but active rows. A sample without active rows is skipped.
//!
//! **Layout.** Rows of `c` values, natural or compact; the `j`-th active channel of a sample lies at position `j` of
//! its row.

pub(crate) mod cpu;
pub(crate) mod cuda;
#[cfg(test)]
mod tests;

pub use cpu::{Scratch, run};

use crate::error::require;
use crate::gather_gemm::Placement;
use crate::mean_pool::{Mean, Shape, check_rows};
use crate::{Buffer, Channels, Element, Error, Result, Rows};

/// The two layers of a weights.
#[derive(Clone, Copy, Debug)]
pub struct WeightsSpec<'a> {
    /// Channels.
    pub c: usize,
    /// Channels between the two layers.
    pub q: usize,
    /// `[q, c]`.
    pub fc1: &'a [f32],
    /// `[q]`.
    pub bias1: &'a [f32],
    /// `[c, q]`.
    pub fc2: &'a [f32],
    /// `[c]`.
    pub bias2: &'a [f32],
}

/// The two layers, ready to be multiplied with: both layers `[c][q]`, rows padded to whole vectors.
pub struct Weights {
    c: usize,
    /// `q`, rounded up.
    stride: usize,
    fc1: Buffer<f32>,
    bias1: Buffer<f32>,
    fc2: Buffer<f32>,
    bias2: Buffer<f32>,
}

/// Values that a row of packed weights is a multiple of: a multiple of every vector's lanes.
const ROW: usize = 16;

impl WeightsSpec<'_> {
    /// Rejects impossible sizes and operands of another size.
    pub(crate) fn check(&self) -> Result<()> {
        let WeightsSpec { c, q, fc1, bias1, fc2, bias2 } = *self;
        let overflows = c.checked_mul(q.saturating_add(ROW)).is_none();
        if c == 0 || q == 0 || overflows {
            let why = "a size is zero or overflows";
            let geometry = format!("{c} → {q} → {c} channels");
            return Err(Error::Geometry { op: "squeeze_excite", why, geometry });
        }
        let sizes = [
            ("fc1", fc1.len(), q * c),
            ("bias1", bias1.len(), q),
            ("fc2", fc2.len(), c * q),
            ("bias2", bias2.len(), c),
        ];
        for (what, got, need) in sizes {
            if got != need {
                let geometry = format!("{c} → {q} → {c} channels");
                return Err(Error::Size { op: "squeeze_excite", what, got, need, geometry });
            }
        }
        Ok(())
    }
}

impl Weights {
    /// Packs the two layers.
    ///
    /// # Errors
    /// When a size is not the one that `c` and `q` ask for, or memory runs out.
    pub fn pack(spec: &WeightsSpec<'_>) -> Result<Self> {
        spec.check()?;
        let WeightsSpec { c, q, fc1, bias1, fc2, bias2 } = *spec;
        let stride = q.next_multiple_of(ROW);
        let buffer = |len| Buffer::zeroed(len, "squeeze-excitation weights");
        let mut weights = Self {
            c,
            stride,
            fc1: buffer(c * stride)?,
            bias1: buffer(stride)?,
            fc2: buffer(c * stride)?,
            bias2: buffer(c)?,
        };
        weights.bias1.as_mut_slice()[..q].copy_from_slice(bias1);
        weights.bias2.as_mut_slice().copy_from_slice(bias2);
        for (i, row) in weights.fc1.as_mut_slice().chunks_exact_mut(stride).enumerate() {
            row.iter_mut().zip(fc1[i..].iter().step_by(c)).for_each(|(to, &from)| *to = from);
        }
        for (row, from) in weights.fc2.as_mut_slice().chunks_exact_mut(stride).zip(fc2.chunks_exact(q)) {
            row[..q].copy_from_slice(from);
        }
        Ok(weights)
    }

    /// Channels.
    pub fn channels(&self) -> usize {
        self.c
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        (self.fc1.len() + self.bias1.len() + self.fc2.len() + self.bias2.len()) * size_of::<f32>()
    }
}

/// One call.
pub struct SqueezeExcite<'a, T: ?Sized, R = Rows, C = Channels> {
    /// Active pixels.
    pub rows: &'a R,
    /// Active channels.
    pub channels: &'a C,
    /// Activations, `[rows, c]`; everything outside the active set stays as it is.
    pub data: &'a mut T,
    /// Where the rows lie; `Compact` not with [`Mean::AllPixels`].
    pub data_rows: Placement,
    /// What the means are taken of.
    pub mean: Mean,
}

impl<E: Element> SqueezeExcite<'_, [E]> {
    fn check(&self, weights: &Weights) -> Result<()> {
        let op = "squeeze_excite";
        if self.channels.total() != weights.c {
            let geometry = format!("weights for {}, active channels of {}", weights.c, self.channels.total());
            return Err(Error::Geometry {
                op,
                why: "the weights are for another number of channels",
                geometry,
            });
        }
        check_rows(op, (self.rows, self.channels), self.data, self.data_rows, self.mean)?;
        let need = [self.rows.batch(), weights.c.max(weights.stride), size_of::<f32>()];
        require(op, "address space", isize::MAX as usize, &need, &Shape(self.rows, self.channels))
    }
}

/// The definition: plain loops, in f64.
pub fn reference<E: Element>(spec: &WeightsSpec<'_>, call: &mut SqueezeExcite<'_, [E]>) {
    let WeightsSpec { c, q, .. } = *spec;
    let rows = call.rows;
    for n in 0..rows.batch() {
        let at = |i: usize| if call.data_rows == Placement::Natural { rows.pixel(i) } else { i };
        let active: Vec<usize> = rows.sample(n).map(at).collect();
        if active.is_empty() {
            continue;
        }
        let read: Vec<usize> = match call.mean {
            Mean::AllPixels => (n * rows.pixels()..(n + 1) * rows.pixels()).collect(),
            Mean::Active | Mean::InactiveAsZero => active.clone(),
        };
        let divisor = if call.mean == Mean::Active { read.len() } else { rows.pixels() };
        let channels: Vec<usize> = match call.channels.sample(n) {
            Some(list) => list.iter().map(|&channel| channel as usize).collect(),
            None => (0..c).collect(),
        };
        let mut mean = vec![0.0; c];
        for (j, &channel) in channels.iter().enumerate() {
            let sum: f64 = read.iter().map(|row| f64::from(call.data[row * c + j].to_f32())).sum();
            mean[channel] = sum / divisor as f64;
        }
        let dot = |w: &[f32], x: &[f64]| w.iter().zip(x).map(|(&w, x)| f64::from(w) * x).sum::<f64>();
        let layer = |w: &[f32], bias: &[f32], x: &[f64]| -> Vec<f64> {
            w.chunks(x.len()).zip(bias).map(|(w, &bias)| f64::from(bias) + dot(w, x)).collect()
        };
        let mut hidden = layer(spec.fc1, spec.bias1, &mean);
        hidden.iter_mut().for_each(|h| *h = h.max(0.0));
        debug_assert_eq!(hidden.len(), q);
        let factor = layer(spec.fc2, spec.bias2, &hidden);
        for row in active {
            for (j, &channel) in channels.iter().enumerate() {
                let value = &mut call.data[row * c + j];
                *value = E::from_f32((f64::from(value.to_f32()) / (1.0 + (-factor[channel]).exp())) as f32);
            }
        }
    }
}
