//! **depthwise**: one k×k filter per channel, over the active pixels and channels.
//!
//! With `p = (n, y, x)` the pixel of row `i`, `c` the `j`-th active channel of sample `n` and
//! `q(r, s) = (n, y·stride + r − pad_top, x·stride + s − pad_left)`:
//!
//! ```text
//! z            = bias[c] + Σ_{r,s: q inside} w[c, r, s] · (input[q, j or c] + input_constant[c])
//! output[i, j] = act(z) − output_constant[c]
//! ```
//!
//! What is stored has its channel's constant already subtracted, as in [`gather_gemm`](crate::gather_gemm); padding is
//! zero *after* the constant. Channels that aren't active are neither read nor written: a filter reads its own channel
//! only. What is computed for a pixel does not depend on which others are active, to the last bit.
//!
//! **Layout.** Input rows of `c` values lie at their pixel, output rows there or at `i`. The `j`-th active channel of
//! a sample lies at position `j` of its output row, and there or at its own position of its input row.

pub(crate) mod cpu;
pub(crate) mod cuda;
mod group;
#[cfg(test)]
mod tests;

pub use cpu::run;

use crate::error::require;
use crate::gather_gemm::{FilterSpec, Placement};
use crate::{Act, Buffer, Channels, ConvGeometry, Element, Error, Result, Rows};

/// A depthwise convolution's weights, in f32 whatever the activations are: there are few.
pub struct Filter {
    geometry: ConvGeometry,
    /// `[tap][c]`.
    weight: Buffer<f32>,
    /// `[c]`: the bias with the input constant folded in, as far from the border.
    bias: Buffer<f32>,
    /// `[c]`: minus the input constant, to take out again where taps lie outside.
    minus_constant: Option<Buffer<f32>>,
    /// `[c]`.
    output_constant: Option<Buffer<f32>>,
}

/// What a filter holds, for other devices.
pub(crate) struct Tables<'a> {
    pub(crate) weight: &'a [f32],
    pub(crate) bias: &'a [f32],
    pub(crate) minus_constant: Option<&'a [f32]>,
    pub(crate) output_constant: Option<&'a [f32]>,
}

impl Filter {
    /// Packs weights. The geometry has `groups == c_in == c_out`, hence the weights `[c, kernel, kernel]`.
    ///
    /// # Errors
    /// When a size does not fit the geometry, the geometry is not a depthwise one, or memory runs out.
    pub fn pack(spec: &FilterSpec<'_>) -> Result<Self> {
        let g = spec.geometry;
        g.check("depthwise")?;
        if g.groups != g.c_in || g.groups != g.c_out {
            let why = "a depthwise convolution has as many groups as channels";
            return Err(Error::Geometry { op: "depthwise", why, geometry: g.to_string() });
        }
        let (c, taps) = (g.c_in, g.kernel * g.kernel);
        if taps > cpu::MAX_TAPS {
            let why = "kernels above 11×11 are not supported";
            return Err(Error::Geometry { op: "depthwise", why, geometry: g.to_string() });
        }
        for (what, got, need) in [
            ("weight", spec.weight.len(), c * taps),
            ("bias", spec.bias.len(), c),
            ("input constant", spec.input_constant.map_or(c, <[f32]>::len), c),
            ("output constant", spec.output_constant.map_or(c, <[f32]>::len), c),
        ] {
            if got != need {
                return Err(Error::Size { op: "depthwise", what, got, need, geometry: g.to_string() });
            }
        }
        let copy = |from: &[f32], sign: f32| -> Result<Buffer<f32>> {
            let mut to = Buffer::zeroed(c, "depthwise filter")?;
            to.as_mut_slice().iter_mut().zip(from).for_each(|(to, from)| *to = sign * from);
            Ok(to)
        };
        let mut weight = Buffer::zeroed(c * taps, "depthwise filter")?;
        let mut bias = copy(spec.bias, 1.0)?;
        for (channel, from) in spec.weight.chunks_exact(taps).enumerate() {
            for (tap, &w) in from.iter().enumerate() {
                weight.as_mut_slice()[tap * c + channel] = w;
            }
            if let Some(constant) = spec.input_constant {
                let sum: f64 = from.iter().map(|&w| f64::from(w)).sum();
                let folded = f64::from(spec.bias[channel]) + sum * f64::from(constant[channel]);
                bias.as_mut_slice()[channel] = folded as f32;
            }
        }
        Ok(Self {
            geometry: g,
            weight,
            bias,
            minus_constant: spec.input_constant.map(|constant| copy(constant, -1.0)).transpose()?,
            output_constant: spec.output_constant.map(|constant| copy(constant, 1.0)).transpose()?,
        })
    }

    /// Geometry it was packed for.
    pub fn geometry(&self) -> &ConvGeometry {
        &self.geometry
    }

    /// What it holds.
    pub(crate) fn tables(&self) -> Tables<'_> {
        Tables {
            weight: self.weight.as_slice(),
            bias: self.bias.as_slice(),
            minus_constant: self.minus_constant.as_ref().map(Buffer::as_slice),
            output_constant: self.output_constant.as_ref().map(Buffer::as_slice),
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        let constants = [&self.minus_constant, &self.output_constant];
        let constants: usize = constants.iter().filter_map(|buffer| buffer.as_ref().map(Buffer::len)).sum();
        (self.weight.len() + self.bias.len() + constants) * size_of::<f32>()
    }
}

/// One call.
pub struct Depthwise<'a, T: ?Sized, R = Rows, C = Channels> {
    /// Active output pixels.
    pub rows: &'a R,
    /// Active channels, of the input as of the output.
    pub channels: &'a C,
    /// Input activations, `[n, h, w, c]`.
    pub input: &'a T,
    /// Where the channels of an input row lie: `Natural` in a map that holds all of them, whose others are not read.
    pub input_channels: Placement,
    /// Output activations, `[rows, c]`; everything outside the active set stays as it is.
    pub output: &'a mut T,
    /// Where the output rows lie.
    pub output_rows: Placement,
    /// Activation.
    pub act: Act,
}

impl<E: Element> Depthwise<'_, [E]> {
    fn check(&self, filter: &Filter) -> Result<()> {
        let (op, g, batch) = ("depthwise", filter.geometry(), self.rows.batch());
        if self.rows.pixels() != g.output.pixels() {
            let geometry = format!("{g}, rows of maps with {} pixels", self.rows.pixels());
            return Err(Error::Geometry { op, why: "the active rows are pixels of another map", geometry });
        }
        if self.channels.total() != g.c_in {
            let geometry = format!("{g}, active channels of {}", self.channels.total());
            return Err(Error::Geometry { op, why: "the active channels are of another layer", geometry });
        }
        let shape = format_args!("{g}, batch {batch}");
        require(op, "input", self.input.len(), &[batch, g.input.pixels(), g.c_in], &shape)?;
        let rows = match self.output_rows {
            Placement::Natural => [batch, g.output.pixels(), g.c_out],
            Placement::Compact => [1, self.rows.len(), g.c_out],
        };
        require(op, "output", self.output.len(), &rows, &shape)?;
        require(op, "active channels", self.channels.batch().unwrap_or(batch), &[batch], &shape)
    }
}

/// The definition: plain loops, in f32. `spec` is what the filter was packed from.
pub fn reference<E: Element>(spec: &FilterSpec<'_>, call: &mut Depthwise<'_, [E]>) {
    let (g, rows) = (spec.geometry, call.rows);
    let c = g.c_in;
    for n in 0..rows.batch() {
        let channels: Vec<usize> = match call.channels.sample(n) {
            Some(list) => list.iter().map(|&channel| channel as usize).collect(),
            None => (0..c).collect(),
        };
        for i in rows.sample(n) {
            let pixel = rows.pixel(i);
            let (y, x) = (pixel % g.output.pixels() / g.output.w, pixel % g.output.w);
            let at = if call.output_rows == Placement::Natural { pixel } else { i };
            for (j, &channel) in channels.iter().enumerate() {
                let constant = spec.input_constant.map_or(0.0, |constant| constant[channel]);
                let from = if call.input_channels == Placement::Natural { channel } else { j };
                let mut z = spec.bias[channel];
                for (r, s) in (0..g.kernel).flat_map(|r| (0..g.kernel).map(move |s| (r, s))) {
                    let iy = (y * g.stride + r).wrapping_sub(g.pad_top);
                    let ix = (x * g.stride + s).wrapping_sub(g.pad_left);
                    if iy < g.input.h && ix < g.input.w {
                        let value = call.input[((n * g.input.h + iy) * g.input.w + ix) * c + from].to_f32();
                        z += spec.weight[(channel * g.kernel + r) * g.kernel + s] * (value + constant);
                    }
                }
                let out = call.act.apply(z) - spec.output_constant.map_or(0.0, |constant| constant[channel]);
                call.output[at * c + j] = E::from_f32(out);
            }
        }
    }
}
