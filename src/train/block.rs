//! A residual block with its gates.

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Tensor, Var};
use candle_nn::ops::sigmoid;
use laud_models::{BlockSpec, Shortcut, SqueezeExciteSpec, SqueezePooling};

use super::decisions::{BlockMasks, PerGate, Sampling, bits, given};
use super::gate::{Gate, expand, upsample};
use super::layers::{ChannelMask, Conv, Linear, Statistics, Weights, activate};
use super::maps::{Map, MapOps};
use super::pool::{active_mean, global_mean, subsample};

/// A residual block and its gates.
pub(super) struct Block {
    pub(super) gates: PerGate<Gate>,
    pub(super) residual: Residual,
}

/// `out = act(shortcut(x) + M ⊙ branch(x))`, with the channel mask on every convolution of the branch but the last and `M`
/// the spatial mask on the map.
pub struct Residual {
    /// What it is.
    pub spec: BlockSpec,
    /// The branch, in order.
    pub convs: Vec<Conv>,
    /// Only of [`Shortcut::Projection`].
    pub projection: Option<Conv>,
    squeeze_excite: Option<SqueezeExcite>,
}

struct SqueezeExcite {
    fc1: Linear,
    fc2: Linear,
    pooling: SqueezePooling,
}

impl Block {
    pub(super) fn load(spec: &BlockSpec, weights: &Weights<'_>) -> Result<Self> {
        let gates = PerGate {
            spatial: spec.gate.spatial.as_ref().map(|gate| Gate::spatial(gate, weights)).transpose()?,
            channel: spec.gate.channel.as_ref().map(|gate| Gate::channel(gate, weights)).transpose()?,
        };
        let squeeze_excite = spec.squeeze_excite.as_ref().map(|se| SqueezeExcite::load(se, weights));
        if spec.squeeze_excite.as_ref().is_some_and(|se| se.pooling == SqueezePooling::Active) {
            let pointwise = spec.convs.last().is_some_and(|conv| (conv.kernel, conv.stride) == (1, 1));
            ensure!(
                pointwise,
                "{}: pooling of active positions needs a 1×1 convolution behind it",
                spec.name
            );
        }
        let projection = match &spec.shortcut {
            Shortcut::Projection(conv) => Some(Conv::load(conv, weights)?),
            _ => None,
        };
        let residual = Residual {
            convs: spec.convs.iter().map(|conv| Conv::load(conv, weights)).collect::<Result<_>>()?,
            squeeze_excite: squeeze_excite.transpose()?,
            projection,
            spec: spec.clone(),
        };
        Ok(Self { gates, residual })
    }

    /// What the gates say about the block's input: `[n, 2, u]`, keep logit first.
    pub(super) fn logits(
        &self,
        x: &Map,
        maps: &dyn MapOps,
        statistics: Statistics,
    ) -> Result<PerGate<Tensor>> {
        self.gates.as_ref().try_map(|gate| gate.logits(x, maps, statistics))
    }

    /// Decisions under noise.
    pub(super) fn sample(
        &self,
        logits: &PerGate<Tensor>,
        sampling: &Sampling<'_>,
    ) -> Result<PerGate<Tensor>> {
        let one = |gate: &Option<Gate>, logits: &Option<Tensor>| match (gate, logits) {
            (Some(gate), Some(logits)) => sampling.keep(gate.name(), logits).map(Some),
            _ => Ok(None),
        };
        Ok(PerGate {
            spatial: one(&self.gates.spatial, &logits.spatial)?,
            channel: one(&self.gates.channel, &logits.channel)?,
        })
    }

    /// Forced decisions as tensors `[n, u]`; an error where they are not of exactly this block's gates.
    pub(super) fn given(&self, masks: &BlockMasks, like: &Tensor) -> Result<PerGate<Tensor>> {
        let mask = |what: &str, gate: &Option<Gate>, mask: &Option<Vec<bool>>| match (gate, mask) {
            (None, None) => Ok(None),
            (Some(_), None) => Err(anyhow::anyhow!("no decisions given for the {what} gate")),
            (None, Some(_)) => Err(anyhow::anyhow!("decisions given, but there is no {what} gate")),
            (Some(gate), Some(mask)) => {
                let tensor = given(mask, (like.dim(0)?, gate.units()), like.device());
                tensor.with_context(|| format!("decisions for the {what} gate")).map(Some)
            }
        };
        Ok(PerGate {
            spatial: mask("spatial", &self.gates.spatial, &masks.spatial)?,
            channel: mask("channel", &self.gates.channel, &masks.channel)?,
        })
    }
}

impl Residual {
    /// The block on `x [n, c, h, w]`, with `keep [n, u]` for each of its gates.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        keep: &PerGate<Tensor>,
        statistics: Statistics,
    ) -> Result<Tensor> {
        if let (Statistics::Kept, Some(kept), true) = (statistics, &keep.spatial, self.spec.gate.is_layer()) {
            return self.of_kept(x, kept);
        }
        let spatial = match (&self.spec.gate.spatial, &keep.spatial) {
            (Some(gate), Some(keep)) => Some(upsample(keep, gate.grid, self.spec.output)?),
            _ => None,
        };
        let channel = match (&self.spec.gate.channel, &keep.channel) {
            (Some(gate), Some(keep)) => Some((expand(keep, gate.group_size)?, gate.point)),
            _ => None,
        };
        let mask = channel.as_ref().map(|(keep, point)| ChannelMask { keep, point: *point });
        let mut y = self.branch(x, (spatial.as_ref(), mask), statistics)?;
        if let Some(keep) = &spatial {
            y = y.broadcast_mul(keep)?;
        }
        if let Some(shortcut) = self.shortcut(x, statistics)? {
            y = (y + shortcut)?;
        }
        activate(&y, self.spec.act)
    }

    /// With the branch on the samples that `keep [n, 1]` keeps.
    fn of_kept(&self, x: &Tensor, keep: &Tensor) -> Result<Tensor> {
        let kept = (0..).zip(bits(keep)?).filter_map(|(i, keep)| keep.then_some(i)).collect::<Vec<u32>>();
        let output = self.spec.output;
        let c_out = self.convs.last().map_or(0, |conv| conv.spec.c_out);
        let mut y = Tensor::zeros((x.dim(0)?, c_out, output.h, output.w), DType::F32, x.device())?;
        if !kept.is_empty() {
            let share = kept.len() as f64 / x.dim(0)? as f64;
            let kept = Tensor::new(kept, x.device())?;
            let norms = || self.convs.iter().filter_map(|conv| conv.norm.as_ref());
            let stored = norms().flat_map(|norm| [norm.running_mean(), norm.running_var()]);
            let before = stored.clone().map(Tensor::copy).collect::<Result<Vec<_>, _>>()?;
            let x = x.contiguous()?.index_select(&kept, 0)?;
            let branch = self.branch(&x, (None, None), Statistics::Batch)?;
            for (stored, before) in stored.zip(before) {
                let moved = (&before + ((stored - &before)? * share)?)?;
                Var::from_tensor(stored)?.set(&moved)?;
            }
            y = y.index_add(&kept, &branch.contiguous()?, 0)?;
        }
        if let Some(shortcut) = self.shortcut(x, Statistics::Batch)? {
            y = (y + shortcut)?;
        }
        activate(&y, self.spec.act)
    }

    fn branch(
        &self,
        x: &Tensor,
        (spatial, mask): (Option<&Tensor>, Option<ChannelMask<'_>>),
        statistics: Statistics,
    ) -> Result<Tensor> {
        let mut y = x.clone();
        for (index, conv) in self.convs.iter().enumerate() {
            let last = index + 1 == self.convs.len();
            if let (true, Some(se)) = (last, &self.squeeze_excite) {
                y = se.forward(&y, spatial)?;
            }
            y = conv.forward(&y, mask.filter(|_| !last), statistics)?;
        }
        Ok(y)
    }

    /// Behind every convolution but the last, with `keep [n, u]` of its channel gate.
    pub(super) fn inner(&self, x: &Map, keep: Option<&Tensor>, maps: &dyn MapOps) -> Result<Vec<Map>> {
        let inner = &self.convs[..self.convs.len() - 1];
        let mut all: Vec<Map> = Vec::with_capacity(inner.len());
        let mask = match (&self.spec.gate.channel, keep) {
            (Some(gate), Some(keep)) => Some((expand(keep, gate.group_size)?, gate.point)),
            _ => None,
        };
        for conv in inner {
            let from = all.last().unwrap_or(x);
            let map = match &mask {
                None => maps.conv(conv, from, Statistics::Stored)?,
                Some((keep, point)) => {
                    let mask = ChannelMask { keep, point: *point };
                    maps.enter(&conv.forward(&maps.leave(from)?, Some(mask), Statistics::Stored)?)?
                }
            };
            all.push(map);
        }
        Ok(all)
    }

    /// Whether squeeze-excitation sits in the branch.
    pub fn squeezes(&self) -> bool {
        self.squeeze_excite.is_some()
    }

    pub(super) fn shortcut(&self, x: &Tensor, statistics: Statistics) -> Result<Option<Tensor>> {
        Ok(match (&self.spec.shortcut, &self.projection) {
            (Shortcut::None, _) => None,
            (&Shortcut::PadChannels { stride, before, after }, _) => {
                Some(subsample(x, stride)?.pad_with_zeros(1, before, after)?)
            }
            (_, Some(projection)) => Some(projection.forward(x, None, statistics)?),
            (_, None) => Some(x.clone()),
        })
    }
}

impl SqueezeExcite {
    fn load(spec: &SqueezeExciteSpec, weights: &Weights<'_>) -> Result<Self> {
        let (fc1, fc2) = (Linear::load(&spec.fc1, weights)?, Linear::load(&spec.fc2, weights)?);
        Ok(Self { fc1, fc2, pooling: spec.pooling })
    }

    /// `x [n, c, h, w]` with its channels scaled; `keep [n, 1, h, w]` of a spatially gated block. The scale of a sample
    /// without active positions does not matter: the spatial mask removes its branch.
    fn forward(&self, x: &Tensor, keep: Option<&Tensor>) -> Result<Tensor> {
        let pooled = match (self.pooling, keep) {
            (SqueezePooling::Active, Some(keep)) => active_mean(x, keep)?,
            _ => global_mean(x)?,
        };
        let scale = sigmoid(&self.fc2.forward(&self.fc1.forward(&pooled)?.relu()?)?)?;
        Ok(x.broadcast_mul(&scale.unsqueeze(2)?.unsqueeze(3)?)?)
    }
}
