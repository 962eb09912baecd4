//! What the gates of a block say, and whose word counts.

use anyhow::{Result, ensure};
use candle_core::{CpuStorage, CustomOp2, DType, Device, Layout, Shape, Tensor};
use candle_nn::ops::sigmoid;

/// One value for each of the two gates that a block can have; `None` where it has no such gate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PerGate<T> {
    /// Of the gate over patches, or over the whole map.
    pub spatial: Option<T>,
    /// Of the gate over channel groups.
    pub channel: Option<T>,
}

/// Keep decisions of one block: `spatial [n · m]` (sample, then the gate's grid row by row), `channel [n · g]`.
pub type BlockMasks = PerGate<Vec<bool>>;

/// Keep logit − skip logit, in the layout of [`BlockMasks`]. Active is `>= 0` up to rounding; the decision itself compares
/// the two logits.
pub type BlockMargins = PerGate<Vec<f32>>;

/// Whose decisions a forward pass follows.
#[derive(Clone, Copy, Debug)]
pub enum Decisions<'a> {
    /// Those of the network's own gates.
    Learned,
    /// These, one entry a block (static blocks too). Exactly the gates that a block has must be given.
    Given(&'a [BlockMasks]),
    /// Those of the network's own gates under noise, as gates are trained.
    Sampled(Sampling<'a>),
}

/// Gumbel-softmax with a straight-through gradient (Jang et al., "Categorical Reparameterization with Gumbel-Softmax",
/// 2017): forward is the decision on noisy logits, backward the gradient of `sigmoid(margin / temperature)`.
#[derive(Clone, Copy)]
pub struct Sampling<'a> {
    /// Positive; the smaller, the steeper.
    pub temperature: f64,
    /// Added to a gate's logits `[n, 2, u]`: from the gate's name and that shape, a tensor of it.
    pub noise: &'a dyn Fn(&str, &[usize]) -> Result<Tensor>,
}

impl std::fmt::Debug for Sampling<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sampling").field("temperature", &self.temperature).finish_non_exhaustive()
    }
}

impl Sampling<'_> {
    /// Keep decisions `[n, u]` of the gate `name`.
    pub(super) fn keep(&self, name: &str, logits: &Tensor) -> Result<Tensor> {
        let noisy = (logits + (self.noise)(name, logits.dims())?)?;
        let margin = (noisy.get_on_dim(1, 0)? - noisy.get_on_dim(1, 1)?)?;
        let soft = sigmoid(&(&margin / self.temperature)?)?;
        Ok(soft.apply_op2(&margin.detach(), StraightThrough)?)
    }
}

/// 1 where the second argument is not negative, else 0; the gradient goes to the first.
struct StraightThrough;

impl CustomOp2 for StraightThrough {
    fn name(&self) -> &'static str {
        "straight-through"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        soft: &Layout,
        margin: &CpuStorage,
        layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let Some((start, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("straight-through: margins are not contiguous")
        };
        let hard = |margin: &f32| f32::from(u8::from(*margin >= 0.0));
        let keep = margin.as_slice::<f32>()?[start..end].iter().map(hard).collect();
        Ok((CpuStorage::F32(keep), soft.shape().clone()))
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((Some(grad.clone()), None))
    }
}

impl<T> PerGate<T> {
    /// Of a block without gates.
    pub fn none() -> Self {
        Self { spatial: None, channel: None }
    }

    /// Both values by reference.
    pub fn as_ref(&self) -> PerGate<&T> {
        PerGate { spatial: self.spatial.as_ref(), channel: self.channel.as_ref() }
    }

    /// `f` of both values.
    pub(super) fn try_map<U>(self, mut f: impl FnMut(T) -> Result<U>) -> Result<PerGate<U>> {
        Ok(PerGate {
            spatial: self.spatial.map(&mut f).transpose()?,
            channel: self.channel.map(f).transpose()?,
        })
    }
}

/// The official decision: `logits [n, 2, u]`, keep logit first, to `[n, u]` of 1 (keep logit >= skip logit) and 0.
pub(super) fn decide(logits: &Tensor) -> Result<Tensor> {
    let (keep, skip) = (logits.get_on_dim(1, 0)?, logits.get_on_dim(1, 1)?);
    Ok(keep.ge(&skip)?.to_dtype(DType::F32)?)
}

/// Keep logit − skip logit of `logits [n, 2, u]`, flat.
pub(super) fn margins(logits: &Tensor) -> Result<Vec<f32>> {
    let difference = (logits.get_on_dim(1, 0)? - logits.get_on_dim(1, 1)?)?;
    Ok(difference.flatten_all()?.to_vec1()?)
}

/// Forced decisions as `[n, u]` of 1 and 0.
pub(super) fn given(mask: &[bool], shape: (usize, usize), device: &Device) -> Result<Tensor> {
    ensure!(mask.len() == shape.0 * shape.1, "{} decisions, expected {} × {}", mask.len(), shape.0, shape.1);
    let values: Vec<f32> = mask.iter().map(|&keep| f32::from(u8::from(keep))).collect();
    Ok(Tensor::from_vec(values, shape, device)?)
}

/// The reverse of [`given`].
pub(super) fn bits(keep: &Tensor) -> Result<Vec<bool>> {
    let values: Vec<f32> = keep.flatten_all()?.to_vec1()?;
    Ok(values.into_iter().map(|value| value != 0.0).collect())
}
