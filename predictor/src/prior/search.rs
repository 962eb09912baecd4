//! From an operator to the tile searches that it needs, and from their results to its latency.

use super::Latency;
use super::conv::ConvShape;
use super::dynamic_ops::Patches;
use super::machine::Machine;
use super::operator::{MaskerLayers, Operator, PatchInput};
use super::tiles::Choice;
use crate::Density;

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
