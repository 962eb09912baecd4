//! One convolution with its normalisation and activation.

use anyhow::Result;
use laud_kernels::filter_grad::{FilterGrad, Summing};
use laud_kernels::gather_gemm::FilterSpec;
use laud_kernels::{Act, ConvGeometry, Element, Extent, Isa, depthwise, gather_gemm};
use laud_models::{Activation, ConvSpec, MapSize};
use rayon::prelude::*;

use super::work::{Framed, Places};

/// Channels whose weights are moved together, as many as share a cache line.
const SOME: usize = 16;
/// Largest kernel that [`depthwise`] takes.
const MAX_DEPTHWISE_KERNEL: usize = 11;

/// Packed weights of a convolution.
pub(super) enum Filter<E> {
    Gemm(gather_gemm::Filter<E>),
    Depthwise(depthwise::Filter),
}

impl<E: Element> Filter<E> {
    fn pack(isa: Isa, geometry: ConvGeometry, weight: &[f32]) -> Result<Self> {
        let bias = vec![0.0; geometry.c_out];
        let spec = FilterSpec {
            geometry,
            weight,
            bias: &bias,
            input_constant: None,
            output_constant: None,
            output_group: None,
        };
        Ok(match geometry.groups {
            1 => Self::Gemm(gather_gemm::Filter::pack(isa, &spec)?),
            _ => Self::Depthwise(depthwise::Filter::pack(&spec)?),
        })
    }

    pub(super) fn geometry(&self) -> &ConvGeometry {
        match self {
            Self::Gemm(filter) => filter.geometry(),
            Self::Depthwise(filter) => filter.geometry(),
        }
    }
}

/// What a chain's convolution is, and where its parameters lie among the chain's.
#[derive(Clone, Debug)]
pub(super) struct Unit {
    /// On an input with its border.
    pub(super) geometry: ConvGeometry,
    pub(super) input: Extent,
    /// Zero rows above and columns left of the input.
    border: Extent,
    pub(super) act: Act,
    pub(super) eps: Option<f32>,
    /// Where `[c_out, c_in / groups, k, k]` starts.
    weight_at: usize,
    /// Where the normalisation's weights start.
    pub(super) gamma_at: Option<usize>,
    /// Where its biases, or those of a convolution without normalisation, start.
    pub(super) beta_at: Option<usize>,
    pub(super) params_end: usize,
}

impl Unit {
    /// `None` for what only candle computes.
    pub(super) fn new(spec: &ConvSpec, input: MapSize, params_at: usize) -> Option<Self> {
        let output = spec.output_size(input)?;
        let side = |out: usize| (out - 1) * spec.stride + spec.kernel;
        let wide = [spec.pad.top, spec.pad.left, spec.pad.bottom, spec.pad.right]
            .iter()
            .any(|&pad| pad >= spec.kernel);
        let depthwise = spec.groups == spec.c_in && spec.c_in == spec.c_out;
        let computed = spec.groups == 1 || depthwise && spec.kernel <= MAX_DEPTHWISE_KERNEL;
        if wide || !computed || spec.norm.is_some() && spec.bias.is_some() {
            return None;
        }
        let geometry = ConvGeometry {
            input: Extent { h: side(output.h), w: side(output.w) },
            output: Extent { h: output.h, w: output.w },
            c_in: spec.c_in,
            c_out: spec.c_out,
            kernel: spec.kernel,
            stride: spec.stride,
            pad_top: 0,
            pad_left: 0,
            groups: spec.groups,
        };
        let mut end = params_at + geometry.weights();
        let mut channels = |present: bool| {
            present.then(|| {
                end += spec.c_out;
                end - spec.c_out
            })
        };
        let gamma_at = channels(spec.norm.is_some());
        let beta_at = channels(spec.norm.is_some() || spec.bias.is_some());
        Some(Self {
            geometry,
            input: Extent { h: input.h, w: input.w },
            border: Extent { h: spec.pad.top, w: spec.pad.left },
            act: act(spec.act),
            eps: spec.norm.as_ref().map(|norm| norm.eps),
            weight_at: params_at,
            gamma_at,
            beta_at,
            params_end: end,
        })
    }

    pub(super) fn output_map(&self) -> MapSize {
        MapSize { h: self.geometry.output.h, w: self.geometry.output.w }
    }

    /// Values of a sample's output.
    pub(super) fn output_len(&self) -> usize {
        self.geometry.output.pixels() * self.geometry.c_out
    }

    /// Values of a sample's input, without border.
    pub(super) fn input_len(&self) -> usize {
        self.input.pixels() * self.geometry.c_in
    }

    /// One of the normalisation's parameters, or `default`.
    pub(super) fn channels(&self, params: &[f32], at: Option<usize>, default: f32) -> Vec<f32> {
        match at {
            Some(at) => params[at..at + self.geometry.c_out].to_vec(),
            None => vec![default; self.geometry.c_out],
        }
    }

    /// The weights for the way forward.
    pub(super) fn filter<E: Element>(&self, isa: Isa, params: &[f32]) -> Result<Filter<E>> {
        let g = &self.geometry;
        let (taps, inputs) = (g.kernel * g.kernel, g.group_in());
        let mut weight = vec![0.0; g.weights()];
        let torch = self.weights(params).par_chunks(taps * inputs);
        weight.par_chunks_mut(taps * inputs).zip(torch).for_each(|(to, from)| {
            for (c, from) in from.chunks_exact(taps).enumerate() {
                from.iter().enumerate().for_each(|(tap, &value)| to[tap * inputs + c] = value);
            }
        });
        Filter::pack(isa, *g, &weight)
    }

    /// The weights for the way back: mirrored, inputs and outputs exchanged.
    pub(super) fn back_filter<E: Element>(&self, isa: Isa, params: &[f32]) -> Result<Filter<E>> {
        let g = &self.geometry;
        let taps = g.kernel * g.kernel;
        let torch = self.weights(params);
        let mut weight = vec![0.0; g.weights()];
        if g.groups == 1 {
            let (inputs, outputs) = (g.c_in, g.c_out);
            weight.par_chunks_mut(SOME * taps * outputs).enumerate().for_each(|(i, to)| {
                let channels = to.len() / (taps * outputs);
                for (o, from) in torch.chunks_exact(taps * inputs).enumerate() {
                    let from = &from[i * SOME * taps..][..channels * taps];
                    for (c, from) in from.chunks_exact(taps).enumerate() {
                        let to = &mut to[c * taps * outputs..];
                        from.iter().rev().enumerate().for_each(|(tap, &value)| to[tap * outputs + o] = value);
                    }
                }
            });
        } else {
            // A channel of its own is its only input and its only output.
            for (to, from) in weight.chunks_exact_mut(taps).zip(torch.chunks_exact(taps)) {
                to.iter_mut().zip(from.iter().rev()).for_each(|(to, from)| *to = *from);
            }
        }
        let geometry = ConvGeometry {
            input: self.spread_map(),
            output: self.input,
            c_in: g.c_out,
            c_out: g.c_in,
            stride: 1,
            ..*g
        };
        Filter::pack(isa, geometry, &weight)
    }

    /// Adds what one sample, its border in place, contributes to the weights' gradient `[r, s, c / groups, k]`; now, or when
    /// `summing` is finished.
    pub(super) fn weight_grad<E: Element>(
        &self,
        isa: Isa,
        (bordered, grad): (&[E], &[E]),
        summing: &mut Summing,
        sum: &mut [f32],
    ) -> Result<()> {
        let g = &self.geometry;
        if g.groups == 1 {
            let call = FilterGrad { geometry: *g, input: bordered, grad, sum };
            return Ok(summing.add(isa, call)?);
        }
        let c = g.c_out;
        for (y, line) in grad.chunks_exact(g.output.w * c).enumerate() {
            for (tap, sum) in sum.chunks_exact_mut(c).enumerate() {
                let (r, s) = (tap / g.kernel, tap % g.kernel);
                let start = ((y * g.stride + r) * g.input.w + s) * c;
                let taken = bordered[start..].chunks(g.stride * c);
                for (grad, input) in line.chunks_exact(c).zip(taken) {
                    for ((sum, grad), input) in sum.iter_mut().zip(grad).zip(input) {
                        *sum += grad.to_f32() * input.to_f32();
                    }
                }
            }
        }
        Ok(())
    }

    /// Adds a gradient in `[r, s, c / groups, k]` to the parameters' gradient.
    pub(super) fn add_weight_grad(&self, grad: &[f32], params: &mut [f32]) {
        let g = &self.geometry;
        let (taps, inputs, outputs) = (g.kernel * g.kernel, g.group_in(), g.c_out);
        let to = &mut params[self.weight_at..][..g.weights()];
        to.par_chunks_mut(SOME * taps * inputs).enumerate().for_each(|(i, to)| {
            for (c, tap) in (0..inputs).flat_map(|c| (0..taps).map(move |tap| (c, tap))) {
                let from = &grad[(tap * inputs + c) * outputs + i * SOME..];
                for (to, grad) in to.chunks_exact_mut(taps * inputs).zip(from) {
                    to[c * taps + tap] += grad;
                }
            }
        });
    }

    /// PyTorch's weights, `[c_out, c_in / groups, k, k]`.
    fn weights<'a>(&self, params: &'a [f32]) -> &'a [f32] {
        &params[self.weight_at..][..self.geometry.weights()]
    }

    /// Puts a sample's input into its border: `line(y, to)` writes row `y`.
    pub(super) fn place<E: Element>(
        &self,
        bordered: &mut Framed<E>,
        mut line: impl FnMut(usize, &mut [E]) -> Result<()>,
    ) -> Result<()> {
        let g = &self.geometry;
        let rows = self.input.h.min(g.input.h - self.border.h);
        let columns = self.input.w.min(g.input.w - self.border.w);
        let written = Extent { h: rows, w: columns };
        let places = Places { map: g.input, c: g.c_in, first: self.border, written, stride: 1 };
        let (bordered, width) = (bordered.frame(places), columns * g.c_in);
        for y in 0..rows {
            let start = ((y + self.border.h) * g.input.w + self.border.w) * g.c_in;
            line(y, &mut bordered[start..start + width])?;
        }
        Ok(())
    }

    /// Size of the map that [`spread`](Self::spread) makes.
    fn spread_map(&self) -> Extent {
        let side = |n: usize| n + self.geometry.kernel - 1;
        Extent { h: side(self.input.h), w: side(self.input.w) }
    }

    /// Puts a sample's output gradient where the mirrored convolution reads it.
    pub(super) fn spread<E: Element>(&self, grad: &[E], spread: &mut Framed<E>) {
        let g = &self.geometry;
        let map = self.spread_map();
        let (top, left) = (g.kernel - 1 - self.border.h, g.kernel - 1 - self.border.w);
        let first = Extent { h: top, w: left };
        let places = Places { map, c: g.c_out, first, written: g.output, stride: g.stride };
        let spread = spread.frame(places);
        for (y, line) in grad.chunks_exact(g.output.w * g.c_out).enumerate() {
            let start = ((y * g.stride + top) * map.w + left) * g.c_out;
            let to = &mut spread[start..];
            if g.stride == 1 {
                to[..line.len()].copy_from_slice(line);
                continue;
            }
            for (x, pixel) in line.chunks_exact(g.c_out).enumerate() {
                to[x * g.stride * g.c_out..][..g.c_out].copy_from_slice(pixel);
            }
        }
    }
}

pub(super) fn act(act: Activation) -> Act {
    match act {
        Activation::None => Act::None,
        Activation::Relu => Act::Relu,
        Activation::Relu6 => Act::Relu6,
    }
}
