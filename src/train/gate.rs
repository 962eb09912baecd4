//! Maskers: from a block's input to two logits for every unit.
//!
//! LAUDNet, imagenet_classification/models/utils.py (`Masker_spatial`, `Masker_channel_MLP`,
//! `Masker_channel_conv_linear`).

use anyhow::{Context, Result};
use candle_core::Tensor;
use laud_models::{
    Activation, ChannelGateSpec, ChannelHead, ConvSpec, LinearSpec, MapSize, NormSpec, Padding,
    SpatialGateSpec,
};

use super::layers::{Conv, Linear, Statistics, Weights};
use super::maps::{Map, MapOps};

/// Added to the variance of a masker's BatchNorm; PyTorch's default.
const NORM_EPS: f32 = 1e-5;

/// A gate's weights.
pub(super) struct Gate {
    prefix: String,
    units: usize,
    head: Head,
}

enum Head {
    Spatial { grid: MapSize, linear: Linear },
    Mlp1(Linear),
    Mlp2(Linear, Linear),
    ConvLinear { reduce: Conv, linear: Linear },
}

impl Gate {
    pub(super) fn spatial(spec: &SpatialGateSpec, weights: &Weights<'_>) -> Result<Self> {
        let (weight, bias) = (format!("{}.conv.weight", spec.prefix), format!("{}.conv.bias", spec.prefix));
        let linear = LinearSpec { weight, bias: Some(bias), c_in: spec.c_in, c_out: 2 };
        let head = Head::Spatial { grid: spec.grid, linear: Linear::load(&linear, weights)? };
        Ok(Self { prefix: spec.prefix.clone(), units: spec.grid.h * spec.grid.w, head })
    }

    pub(super) fn channel(spec: &ChannelGateSpec, weights: &Weights<'_>) -> Result<Self> {
        let &ChannelGateSpec { ref prefix, c_in, groups, head, .. } = spec;
        let linear = |name: &str, c_in, c_out| {
            let (weight, bias) = (format!("{prefix}.{name}.weight"), Some(format!("{prefix}.{name}.bias")));
            Linear::load(&LinearSpec { weight, bias, c_in, c_out }, weights)
        };
        let head = match head {
            ChannelHead::Mlp1 => Head::Mlp1(linear("conv", c_in, 2 * groups)?),
            ChannelHead::Mlp2 { hidden } => {
                Head::Mlp2(linear("conv.0", c_in, hidden)?, linear("conv.2", hidden, 2 * groups)?)
            }
            ChannelHead::ConvLinear { hidden } => {
                let norm = Some(NormSpec { prefix: format!("{prefix}.conv.1"), eps: NORM_EPS });
                let act = Activation::Relu;
                let reduce = ConvSpec { norm, act, ..pointwise(&format!("{prefix}.conv.0"), c_in, hidden) };
                Head::ConvLinear {
                    reduce: Conv::load(&reduce, weights)?,
                    linear: linear("linear", hidden, 2 * groups)?,
                }
            }
        };
        Ok(Self { prefix: prefix.clone(), units: groups, head })
    }

    /// Module name.
    pub(super) fn name(&self) -> &str {
        &self.prefix
    }

    /// Decisions per sample.
    pub(super) fn units(&self) -> usize {
        self.units
    }

    /// Name of the tensor of the last layer's biases, of which a channel gate's first `u` are the keep biases; a spatial
    /// gate has one keep bias for all its cells.
    pub(super) fn bias(&self) -> String {
        let layer = match &self.head {
            Head::Spatial { .. } | Head::Mlp1(_) => "conv",
            Head::Mlp2(..) => "conv.2",
            Head::ConvLinear { .. } => "linear",
        };
        format!("{}.{layer}.bias", self.prefix)
    }

    /// The block's input to `[n, 2, u]`, keep logit first. A spatial gate's units are its grid, row by row.
    pub(super) fn logits(&self, x: &Map, maps: &dyn MapOps, statistics: Statistics) -> Result<Tensor> {
        let n = x.tensor.dim(0)?;
        let mean = |x: &Map| Ok::<_, anyhow::Error>(maps.pool(x, MapSize { h: 1, w: 1 })?.squeeze(1)?);
        let logits = || match &self.head {
            Head::Spatial { grid, linear } => {
                let cells = maps.pool(x, *grid)?;
                let logits = linear.forward(&cells.reshape((n * self.units, cells.dim(2)?))?)?;
                Ok(logits.reshape((n, self.units, 2))?.transpose(1, 2)?.contiguous()?)
            }
            Head::Mlp1(linear) => linear.forward(&mean(x)?),
            Head::Mlp2(first, second) => second.forward(&first.forward(&mean(x)?)?.relu()?),
            Head::ConvLinear { reduce, linear } => linear.forward(&mean(&maps.conv(reduce, x, statistics)?)?),
        };
        let logits = logits().with_context(|| format!("gate {}", self.prefix))?;
        Ok(logits.reshape((n, 2, self.units))?)
    }
}

/// A 1×1 convolution without bias, norm and activation.
fn pointwise(name: &str, c_in: usize, c_out: usize) -> ConvSpec {
    ConvSpec {
        weight: format!("{name}.weight"),
        bias: None,
        norm: None,
        c_in,
        c_out,
        kernel: 1,
        stride: 1,
        groups: 1,
        pad: Padding::same(0),
        act: Activation::None,
    }
}

/// `keep [n, m]` brought to a map: `[n, 1, out.h, out.w]`, source index `⌊dst · grid / out⌋`.
pub(super) fn upsample(keep: &Tensor, grid: MapSize, out: MapSize) -> Result<Tensor> {
    let keep = keep.reshape((keep.dim(0)?, 1, grid.h, grid.w))?;
    nearest(&nearest(&keep, 2, out.h)?, 3, out.w)
}

fn nearest(x: &Tensor, dim: usize, out: usize) -> Result<Tensor> {
    let length = x.dim(dim)?;
    let index: Vec<u32> = (0..out).map(|i| u32::try_from(i * length / out)).collect::<Result<_, _>>()?;
    Ok(x.index_select(&Tensor::new(index, x.device())?, dim)?)
}

/// `keep [n, g]` brought to channels: `[n, g · size, 1, 1]`, group `k` covering the channels `k · size ..`.
pub(super) fn expand(keep: &Tensor, size: usize) -> Result<Tensor> {
    let (n, groups) = keep.dims2()?;
    let channels = keep.unsqueeze(2)?.broadcast_as((n, groups, size))?.contiguous()?;
    Ok(channels.reshape((n, groups * size, 1, 1))?)
}
