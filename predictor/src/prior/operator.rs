use super::LIMITS;
use super::conv::ConvShape;
use crate::{Density, Result};

/// How a convolution over patches reads its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PatchInput {
    /// From the whole map, by index, in the operand load: the whole map is read from DRAM.
    Indexed,
    /// From a buffer that holds the active patches with their halo.
    Gathered,
}

/// Number of linear layers of a channel masker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MaskerLayers {
    /// One layer to the groups.
    One,
    /// Two layers, with a hidden layer a sixteenth as wide as the groups.
    Two,
}

/// One operator of a block, on square maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operator {
    /// A dense convolution; channels may be active at a density below 1.
    Conv {
        /// Its shape.
        conv: ConvShape,
        /// Density of its input channels.
        input: Density,
        /// Density of its output channels.
        output: Density,
    },
    /// The residual addition.
    Add {
        /// Channels of the map.
        channels: u32,
        /// Side of the map, in positions.
        size: u32,
    },
    /// A linear layer.
    Linear {
        /// Input values of a sample.
        inputs: u32,
        /// Output values of a sample.
        outputs: u32,
    },
    /// Squeeze-excitation.
    SqueezeExcite {
        /// Channels of the map.
        channels: u32,
        /// Side of the map, in positions.
        size: u32,
        /// Hidden channels.
        squeeze: u32,
    },
    /// The spatial masker together with the block's first, pointwise convolution: fused and dense, or a masker and a
    /// convolution over the active patches, whichever is faster.
    MaskerConv1 {
        /// Channels of the block's input.
        in_channels: u32,
        /// Output channels of the convolution.
        width: u32,
        /// Side of the map, in positions.
        size: u32,
        /// Side of a patch, in positions.
        patch: u32,
        /// Density of the patches.
        density: Density,
    },
    /// A convolution over the active patches of its output.
    PatchConv {
        /// Shape of the convolution on the whole map.
        conv: ConvShape,
        /// Side of a patch of the output, in positions.
        patch: u32,
        /// Density of the patches.
        density: Density,
        /// How it reads its input.
        input: PatchInput,
    },
    /// Addition of the active patches to a residual map.
    ScatterAdd {
        /// Channels of the map.
        channels: u32,
        /// Side of the map, in positions.
        size: u32,
        /// Side of a patch, in positions.
        patch: u32,
        /// Density of the patches.
        density: Density,
    },
    /// Squeeze-excitation that pools the active patches.
    PatchSqueezeExcite {
        /// Channels of the map.
        channels: u32,
        /// Side of the map, in positions.
        size: u32,
        /// Hidden channels.
        squeeze: u32,
        /// Side of a patch, in positions.
        patch: u32,
        /// Density of the patches.
        density: Density,
    },
    /// The channel masker. As in the official model, groups are counted on the block's input channels; a single group needs
    /// no masker.
    ChannelMasker {
        /// Channels of the block's input.
        in_channels: u32,
        /// Side of the block's input map, in positions.
        size: u32,
        /// Channels that are skipped together.
        group: u32,
        /// Linear layers.
        layers: MaskerLayers,
    },
}

impl Operator {
    /// Checks that every size is at least 1 and not beyond the model's range, and that groups divide channels.
    pub(super) fn validate(&self) -> Result<()> {
        let map = |channels, size| {
            LIMITS.channels("channels", channels)?;
            LIMITS.size("map size", size)
        };
        match *self {
            Self::Conv { conv, .. } => conv.validate(),
            Self::Add { channels, size } => map(channels, size),
            Self::Linear { inputs, outputs } => {
                LIMITS.channels("inputs", inputs)?;
                LIMITS.channels("outputs", outputs)
            }
            Self::SqueezeExcite { channels, size, squeeze } => {
                LIMITS.channels("squeeze", squeeze)?;
                map(channels, size)
            }
            Self::MaskerConv1 { in_channels, width, size, patch, .. } => {
                LIMITS.size("patch", patch)?;
                ConvShape::pointwise(in_channels, width, size, 1).validate()
            }
            Self::PatchConv { conv, patch, .. } => {
                LIMITS.size("patch", patch)?;
                conv.validate()
            }
            Self::ScatterAdd { channels, size, patch, .. } => {
                LIMITS.size("patch", patch)?;
                map(channels, size)
            }
            Self::PatchSqueezeExcite { channels, size, squeeze, patch, .. } => {
                LIMITS.size("patch", patch)?;
                LIMITS.channels("squeeze", squeeze)?;
                map(channels, size)
            }
            Self::ChannelMasker { in_channels, size, group, .. } => {
                LIMITS.channels("channel group", group)?;
                map(in_channels, size)
            }
        }
    }
}
