use super::conv::ConvShape;
use super::dynamic_ops::Patches;
use super::machine::Machine;
use super::tiles::Choice;
use super::{LIMITS, Latency};
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

/// One operator of a block. Maps are square; `size` is their side and `patch` the side of a patch, both in positions.
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
    #[allow(missing_docs)]
    Add { channels: u32, size: u32 },
    /// A linear layer.
    #[allow(missing_docs)]
    Linear { inputs: u32, outputs: u32 },
    /// Squeeze-excitation with `squeeze` hidden channels.
    #[allow(missing_docs)]
    SqueezeExcite { channels: u32, size: u32, squeeze: u32 },
    /// The spatial masker together with the block's first, pointwise convolution: fused and dense, or a masker and a
    /// convolution over the active patches, whichever is faster.
    #[allow(missing_docs)]
    MaskerConv1 { in_channels: u32, width: u32, size: u32, patch: u32, density: Density },
    /// A convolution over the active patches of its output.
    #[allow(missing_docs)]
    PatchConv { conv: ConvShape, patch: u32, density: Density, input: PatchInput },
    /// Addition of the active patches to a residual map.
    #[allow(missing_docs)]
    ScatterAdd { channels: u32, size: u32, patch: u32, density: Density },
    /// Squeeze-excitation that pools the active patches.
    #[allow(missing_docs)]
    PatchSqueezeExcite { channels: u32, size: u32, squeeze: u32, patch: u32, density: Density },
    /// The channel masker of groups of `group` channels. As in the official model, groups are counted on the block's
    /// input channels, and a single group needs no masker.
    #[allow(missing_docs)]
    ChannelMasker { in_channels: u32, size: u32, group: u32, layers: MaskerLayers },
}

/// What the tile search is run for: an operator less what the choice does not depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Search {
    Conv { conv: ConvShape, input: Density, output: Density },
    Add { channels: u32, size: u32 },
    Linear { inputs: u32, outputs: u32 },
    GlobalPool { channels: u32, size: u32 },
    Multiply { channels: u32, size: u32 },
    PatchConv { conv: ConvShape, patches: Patches, input: PatchInput },
    ScatterAdd { channels: u32, patches: Patches },
    PatchPool { channels: u32, patches: Patches },
}

impl Search {
    /// The best choice. For operators over patches only its tile has a meaning.
    pub(super) fn run(&self, machine: &Machine<'_>) -> Choice {
        let tile = match *self {
            Self::Conv { conv, input, output } => return machine.conv(&conv, input, output),
            Self::Add { channels, size } => return machine.add(channels, size),
            Self::Linear { inputs, outputs } => return machine.linear(inputs, outputs),
            Self::GlobalPool { channels, size } => return machine.global_pool(channels, size),
            Self::Multiply { channels, size } => return machine.multiply(channels, size),
            Self::PatchConv { conv, patches, input } => machine.patch_conv(&conv, patches, input),
            Self::ScatterAdd { channels, patches } => machine.scatter_add(channels, patches),
            Self::PatchPool { channels, patches } => machine.patch_pool(channels, patches),
        };
        Choice { tile, ..Choice::NONE }
    }
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

    /// Latency of the operator, given a source of search results.
    pub(super) fn cost(&self, machine: &Machine<'_>, search: &impl Fn(Search) -> Choice) -> Latency {
        match *self {
            Self::Conv { conv, input, output } => {
                machine.launched(search(Search::Conv { conv, input, output }))
            }
            Self::Add { channels, size } => machine.launched(search(Search::Add { channels, size })),
            Self::Linear { inputs, outputs } => machine.launched(search(Search::Linear { inputs, outputs })),
            Self::SqueezeExcite { channels, size, squeeze } => {
                machine.launched(search(Search::GlobalPool { channels, size }))
                    + excite(channels, size, squeeze, machine, search)
            }
            Self::MaskerConv1 { in_channels, width, size, patch, density } => {
                let conv = |out_channels| Self::Conv {
                    conv: ConvShape::pointwise(in_channels, out_channels, size, 1),
                    input: Density::ONE,
                    output: Density::ONE,
                };
                let patch_conv = Self::PatchConv {
                    conv: ConvShape::pointwise(in_channels, width, size, 1),
                    patch,
                    density,
                    input: PatchInput::Indexed,
                };
                let fused = conv(width + 1).cost(machine, search);
                let unfused = conv(2).cost(machine, search) + patch_conv.cost(machine, search);
                if unfused.total_s() < fused.total_s() { unfused } else { fused }
            }
            Self::PatchConv { conv, patch, density, input } => {
                let patches = Patches { size: conv.out_size(), patch };
                let tile = search(Search::PatchConv { conv, patches, input }).tile;
                let active = patches.active(density);
                machine.launched(machine.patch_conv_at(&conv, patches, input, active, tile))
            }
            Self::ScatterAdd { channels, size, patch, density } => {
                let patches = Patches { size, patch };
                let tile = search(Search::ScatterAdd { channels, patches }).tile;
                machine.launched(machine.scatter_add_at(channels, patches, patches.active(density), tile))
            }
            Self::PatchSqueezeExcite { channels, size, squeeze, patch, density } => {
                let patches = Patches { size, patch };
                let tile = search(Search::PatchPool { channels, patches }).tile;
                machine.launched(machine.patch_pool_at(channels, patches, patches.active(density), tile))
                    + excite(channels, size, squeeze, machine, search)
            }
            Self::ChannelMasker { in_channels, size, group, layers } => {
                let groups = in_channels / group;
                if groups <= 1 {
                    return Latency::default();
                }
                let linear = |inputs, outputs| machine.launched(search(Search::Linear { inputs, outputs }));
                let pool = machine.avg_pool(in_channels, size);
                match layers {
                    MaskerLayers::One => pool + linear(in_channels, groups),
                    MaskerLayers::Two => {
                        let hidden = groups / groups.min(16);
                        pool + linear(in_channels, hidden) + linear(hidden, groups)
                    }
                }
            }
        }
    }
}

/// Squeeze-excitation after its pool: two linear layers and the product with the map, a launch each.
fn excite(
    channels: u32,
    size: u32,
    squeeze: u32,
    machine: &Machine<'_>,
    search: &impl Fn(Search) -> Choice,
) -> Latency {
    machine.launched(search(Search::Linear { inputs: channels, outputs: squeeze }))
        + machine.launched(search(Search::Linear { inputs: squeeze, outputs: channels }))
        + machine.launched(search(Search::Multiply { channels, size }))
}
