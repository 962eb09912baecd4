//! From the configuration's per-stage gate keys to a block's [`GateSpec`].

use crate::layers::count;
use crate::{
    Activation, ChannelGateSpec, ChannelHead, ChannelMasker, ConvSpec, Error, GateMode, GateSpec, MapSize,
    MaskPoint, NetConfig, NormSpec, Padding, SpatialGateSpec,
};

/// Default `reduction` of the channel maskers.
pub(crate) const DEFAULT_REDUCTION: usize = 16;

/// Fewest hidden features of a two-layer MLP masker.
const MIN_HIDDEN: usize = 16;

/// One stage's gates, checked as far as they can be without a block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StageGates {
    stage: usize,
    mode: GateMode,
    spatial: usize,
    channel: usize,
    masker: ChannelMasker,
    layers: usize,
    reduction: usize,
}

/// The block that a gate is built for.
pub(crate) struct GatedBlock<'a> {
    /// Module that holds the maskers.
    pub(crate) prefix: &'a str,
    /// Channels of the block's input, which the maskers read.
    pub(crate) c_in: usize,
    /// Size of the block's output.
    pub(crate) output: MapSize,
    /// Channels between the convolutions.
    pub(crate) inner: usize,
    pub(crate) point: MaskPoint,
}

impl StageGates {
    /// One entry a stage.
    pub(crate) fn of(config: &NetConfig, stages: usize) -> Result<Vec<Self>, Error> {
        let modes = match &config.dyn_mode {
            Some(modes) => modes.resolve("dyn_mode", stages)?,
            None => vec![GateMode::None; stages],
        };
        let resolve = |key, list: &Option<crate::PerStage<usize>>| {
            list.as_ref().map(|list| list.resolve(key, stages)).transpose()
        };
        let spatial = resolve("spatial_granularity", &config.spatial_granularity)?;
        let channel = resolve("channel_granularity", &config.channel_granularity)?;
        let layers = resolve("channel_masker_layers", &config.channel_masker_layers)?;
        let mask_groups = resolve("spatial_mask_channel_group", &config.spatial_mask_channel_group)?;
        let maskers =
            config.channel_masker.as_ref().map(|list| list.resolve("channel_masker", stages)).transpose()?;
        let reduction = count("reduction", config.reduction.unwrap_or(DEFAULT_REDUCTION), usize::MAX)?;
        let needed = |key, list: &Option<Vec<usize>>, stage: usize, unit| match list {
            Some(list) => count(format!("{key}[{stage}]"), list[stage], usize::MAX),
            None => Err(Error::Missing {
                key,
                reason: format!("stage {stage} is gated as `{}`; give {unit}", <&str>::from(modes[stage])),
            }),
        };
        let mut gates = Vec::with_capacity(stages);
        for (stage, &mode) in modes.iter().enumerate() {
            let patches = matches!(mode, GateMode::Spatial | GateMode::Both);
            let gate = Self {
                stage,
                mode,
                spatial: if patches {
                    needed("spatial_granularity", &spatial, stage, "the side of a patch in output pixels")?
                } else {
                    1
                },
                channel: if mode.is_channel() {
                    needed("channel_granularity", &channel, stage, "the channels in a group")?
                } else {
                    1
                },
                masker: maskers.as_ref().map_or(ChannelMasker::default(), |list| list[stage]),
                layers: layers.as_ref().map_or(2, |list| list[stage]),
                reduction,
            };
            if mode.is_spatial()
                && let Some(groups) = mask_groups.as_ref().map(|list| list[stage])
                && groups != 1
            {
                let key = format!("spatial_mask_channel_group[{stage}]");
                return Err(Error::invalid(
                    key,
                    groups,
                    "only one spatial mask for all channels is supported",
                ));
            }
            if mode.is_channel() && gate.masker == ChannelMasker::Mlp && !(1..=2).contains(&gate.layers) {
                let key = format!("channel_masker_layers[{stage}]");
                return Err(Error::invalid(key, gate.layers, "an MLP masker has 1 or 2 linear layers"));
            }
            gates.push(gate);
        }
        Ok(gates)
    }

    /// The gates of one block.
    pub(crate) fn build(&self, block: &GatedBlock<'_>) -> Result<GateSpec, Error> {
        let spatial = self.mode.is_spatial().then(|| {
            let layer = self.mode == GateMode::Layer;
            let cells = |pixels: usize| if layer { 1 } else { (pixels / self.spatial).max(1) };
            SpatialGateSpec {
                prefix: format!("{}.masker_spatial", block.prefix),
                c_in: block.c_in,
                grid: MapSize { h: cells(block.output.h), w: cells(block.output.w) },
                layer,
            }
        });
        let channel = self.mode.is_channel().then(|| self.channel(block)).transpose()?;
        Ok(GateSpec { spatial, channel })
    }

    fn channel(&self, block: &GatedBlock<'_>) -> Result<ChannelGateSpec, Error> {
        if !block.inner.is_multiple_of(self.channel) {
            return Err(Error::ChannelGranularity {
                stage: self.stage,
                granularity: self.channel,
                width: block.inner,
                block: block.prefix.to_owned(),
            });
        }
        let groups = block.inner / self.channel;
        let head = match (self.masker, self.layers) {
            (ChannelMasker::Mlp, 1) => ChannelHead::Mlp1,
            (ChannelMasker::Mlp, _) => ChannelHead::Mlp2 { hidden: mlp_hidden(groups, self.reduction) },
            (ChannelMasker::ConvLinear, _) => match block.c_in / self.reduction {
                0 => {
                    let reason = format!(
                        "it leaves nothing of the {} channels that {} reads",
                        block.c_in, block.prefix
                    );
                    return Err(Error::invalid("reduction", self.reduction, reason));
                }
                hidden => ChannelHead::ConvLinear { hidden },
            },
        };
        Ok(ChannelGateSpec {
            prefix: format!("{}.masker_channel", block.prefix),
            c_in: block.c_in,
            groups,
            group_size: self.channel,
            head,
            point: block.point,
        })
    }
}

/// Hidden features of a two-layer MLP masker over `groups` groups
/// (LAUDNet, imagenet_classification/models/utils.py, `Masker_channel_MLP`).
pub(crate) fn mlp_hidden(groups: usize, reduction: usize) -> usize {
    (groups / reduction).max(MIN_HIDDEN)
}

impl ChannelGateSpec {
    /// The 1×1 convolution to `hidden` channels in front of the pool of a [`ChannelHead::ConvLinear`] masker.
    pub fn reduce_conv(&self, hidden: usize) -> ConvSpec {
        ConvSpec {
            weight: format!("{}.conv.0.weight", self.prefix),
            bias: None,
            norm: Some(NormSpec { prefix: format!("{}.conv.1", self.prefix), eps: crate::layers::NORM_EPS }),
            c_in: self.c_in,
            c_out: hidden,
            kernel: 1,
            stride: 1,
            groups: 1,
            pad: Padding::default(),
            act: Activation::Relu,
        }
    }
}
