//! The layers that blocks and gates are made of.

use std::collections::HashMap;

use anyhow::{Context, Result};
use candle_core::{DType, Tensor, Var};
use candle_nn::{BatchNorm, ModuleT};
use laud_models::{Activation, ConvSpec, LinearSpec, MaskPoint, NormSpec};

/// Tensors by checkpoint name.
pub(super) struct Weights<'a>(pub(super) &'a HashMap<String, Tensor>);

impl Weights<'_> {
    /// The tensor in f32; a trained variable stays one.
    fn get(&self, name: &str) -> Result<Tensor> {
        let tensor = self.0.get(name).with_context(|| format!("tensor {name} is missing"))?;
        Ok(tensor.to_dtype(DType::F32)?)
    }

    fn norm(&self, norm: &NormSpec, channels: usize) -> Result<BatchNorm> {
        let get = |suffix: &str| self.get(&format!("{}.{suffix}", norm.prefix));
        let (mean, var) = (get("running_mean")?, get("running_var")?);
        let norm = BatchNorm::new(channels, mean, var, get("weight")?, get("bias")?, f64::from(norm.eps));
        Ok(norm?)
    }
}

/// Which statistics a BatchNorm normalises with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Statistics {
    /// Those stored with the weights.
    Stored,
    /// Those of the batch, which also move the stored ones: a tenth of the way, as PyTorch does.
    Batch,
    /// As `Batch`, but a branch with a layer gate alone sees only the images that it is kept for: the others are not
    /// computed, no gradient of the branch reaches the decisions, and its stored statistics move the less the fewer it sees.
    Kept,
    /// Normalises with the stored ones and then stores the batch's in their place.
    Measured,
}

impl Statistics {
    /// Whether maps are normalised with the stored statistics.
    pub fn are_stored(self) -> bool {
        matches!(self, Self::Stored | Self::Measured)
    }
}

/// A channel mask `keep [n, c, 1, 1]` and where it multiplies.
#[derive(Clone, Copy)]
pub(super) struct ChannelMask<'a> {
    pub(super) keep: &'a Tensor,
    pub(super) point: MaskPoint,
}

/// Convolution, normalisation, activation, with tensors that may be trained variables.
pub struct Conv {
    /// What it is.
    pub spec: ConvSpec,
    /// `[c_out, c_in / groups, k, k]`.
    pub weight: Tensor,
    /// `[c_out]`.
    pub bias: Option<Tensor>,
    /// Behind the convolution.
    pub norm: Option<BatchNorm>,
}

impl Conv {
    pub(super) fn load(spec: &ConvSpec, weights: &Weights<'_>) -> Result<Self> {
        Ok(Self {
            weight: weights.get(&spec.weight)?,
            bias: spec.bias.as_ref().map(|name| weights.get(name)).transpose()?,
            norm: spec.norm.as_ref().map(|norm| weights.norm(norm, spec.c_out)).transpose()?,
            spec: spec.clone(),
        })
    }

    /// `[n, c_in, h, w]` to `[n, c_out, h', w']`.
    ///
    /// Where the norm is folded, the bias is the norm's: `MaskPoint::BeforeNorm` then multiplies in front of the bias, so that
    /// an inactive channel is worth the same as before folding.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        mask: Option<ChannelMask<'_>>,
        statistics: Statistics,
    ) -> Result<Tensor> {
        let masked = |y: Tensor, here: MaskPoint| match mask {
            Some(mask) if mask.point == here => y.broadcast_mul(mask.keep),
            _ => Ok(y),
        };
        let mut y = self.product(x).with_context(|| format!("convolution {}", self.spec.weight))?;
        let bias = self.bias.as_ref().map(|bias| bias.reshape((1, self.spec.c_out, 1, 1))).transpose()?;
        if let Some(norm) = &self.norm {
            if let Some(bias) = &bias {
                y = y.broadcast_add(bias)?;
            }
            let y_masked = masked(y, MaskPoint::BeforeNorm)?;
            y = norm.forward_t(&y_masked, !statistics.are_stored())?;
            if statistics == Statistics::Measured {
                let by_channel = y_masked.transpose(0, 1)?.flatten_from(1)?.detach();
                Var::from_tensor(norm.running_mean())?.set(&by_channel.mean(1)?)?;
                Var::from_tensor(norm.running_var())?.set(&by_channel.var(1)?)?;
            }
        } else {
            y = masked(y, MaskPoint::BeforeNorm)?;
            if let Some(bias) = &bias {
                y = y.broadcast_add(bias)?;
            }
        }
        Ok(masked(activate(&y, self.spec.act)?, MaskPoint::AfterActivation)?)
    }

    fn product(&self, x: &Tensor) -> Result<Tensor> {
        let ConvSpec { c_in, c_out, kernel, stride, groups, pad, .. } = self.spec;
        let weight = self.weight.reshape((c_out, c_in / groups, kernel, kernel))?;
        let same = [pad.left, pad.bottom, pad.right].iter().all(|&side| side == pad.top);
        if same {
            return Ok(x.conv2d(&weight, pad.top, stride, 1, groups)?);
        }
        let x = x.pad_with_zeros(2, pad.top, pad.bottom)?.pad_with_zeros(3, pad.left, pad.right)?;
        Ok(x.conv2d(&weight, 0, stride, 1, groups)?)
    }
}

/// Fully connected layer.
pub(super) struct Linear {
    spec: LinearSpec,
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    pub(super) fn load(spec: &LinearSpec, weights: &Weights<'_>) -> Result<Self> {
        let weight = weights.get(&spec.weight)?;
        let bias = spec.bias.as_ref().map(|name| weights.get(name)).transpose()?;
        Ok(Self { spec: spec.clone(), weight, bias })
    }

    /// `[n, c_in]` to `[n, c_out]`.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let product = || x.matmul(&self.weight.reshape((self.spec.c_out, self.spec.c_in))?.t()?);
        let y = product().with_context(|| format!("linear layer {}", self.spec.weight))?;
        match &self.bias {
            Some(bias) => Ok(y.broadcast_add(bias)?),
            None => Ok(y),
        }
    }
}

/// The gradient at a kink is 0, as PyTorch's; candle's own `relu` lets it pass, which matters where a skipped block hands on
/// exact zeros.
pub(super) fn activate(x: &Tensor, act: Activation) -> Result<Tensor> {
    if act == Activation::None {
        return Ok(x.clone());
    }
    let positive = x.le(0f64)?.where_cond(&x.zeros_like()?, x)?;
    Ok(match act {
        Activation::Relu6 => positive.ge(6f64)?.where_cond(&(x.zeros_like()? + 6.0)?, &positive)?,
        _ => positive,
    })
}
