//! Which operators a block runs in each mode.
//!
//! Source: LAUDNet repository, DyNetSimulator/eval_example.py.

use smallvec::{SmallVec, smallvec};

use super::conv::ConvShape;
use super::network::Block;
use super::operator::{MaskerLayers, Operator, PatchInput};
use super::{BlockMode, Latency};
use crate::Density;

/// An operator of a block and how it counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BlockOperator {
    /// Its role in the block: `conv1`, `masker+conv1`, `scatter_add` …
    pub role: &'static str,
    /// The operator.
    pub operator: Operator,
    /// Probability that it runs: the density for all but the masker and the shortcut in mode layer, else 1.
    pub probability: f64,
}

/// The operators of a block with their predicted latencies, in order of execution.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockLatency {
    /// Operators and latencies for the batch; latencies already count each operator's probability.
    pub operators: SmallVec<[(BlockOperator, Latency); 8]>,
}

impl BlockLatency {
    /// Sum over the operators.
    pub fn total(&self) -> Latency {
        self.operators.iter().map(|(_, latency)| *latency).sum()
    }
}

fn always(role: &'static str, operator: Operator) -> BlockOperator {
    BlockOperator { role, operator, probability: 1.0 }
}

fn dense(conv: ConvShape) -> Operator {
    Operator::Conv { conv, input: Density::ONE, output: Density::ONE }
}

impl Block {
    /// The operators that run in `mode` at `density`.
    pub fn operators(&self, mode: BlockMode, density: Density) -> SmallVec<[BlockOperator; 8]> {
        match mode {
            BlockMode::Static => self.static_operators().chain(self.shortcut_operator()).collect(),
            BlockMode::Spatial { patch } => self.spatial_operators(patch, density),
            BlockMode::Layer => self.layer_operators(density),
            BlockMode::Channel { group } => self.channel_operators(group, density),
        }
    }

    /// The residual branch and the addition.
    fn static_operators(&self) -> impl Iterator<Item = BlockOperator> {
        let (channels, size) = (self.out_channels, self.out_size());
        let squeeze_excite = self
            .squeeze
            .map(|squeeze| always("se", Operator::SqueezeExcite { channels: self.width, size, squeeze }));
        [
            always("conv1", dense(self.conv1())),
            always("conv2", dense(self.conv2())),
            always("conv3", dense(self.conv3())),
            always("add", Operator::Add { channels, size }),
        ]
        .into_iter()
        .chain(squeeze_excite)
    }

    fn shortcut_operator(&self) -> Option<BlockOperator> {
        self.shortcut().map(|conv| always("projection", dense(conv)))
    }

    /// Squeeze-excitation over patches, and the projection.
    fn patch_extras(&self, patch: u32, density: Density) -> impl Iterator<Item = BlockOperator> {
        let (channels, size) = (self.width, self.out_size());
        let squeeze_excite = self.squeeze.map(|squeeze| {
            let operator = Operator::PatchSqueezeExcite { channels, size, squeeze, patch, density };
            always("se", operator)
        });
        self.shortcut_operator().into_iter().chain(squeeze_excite)
    }

    /// The patch is measured in output positions, also where it cuts the block's input (masker and conv1).
    fn spatial_operators(&self, patch: u32, density: Density) -> SmallVec<[BlockOperator; 8]> {
        let Self { in_channels, width, in_size: size, .. } = *self;
        let masker_conv1 = Operator::MaskerConv1 { in_channels, width, size, patch, density };
        let conv2 = Operator::PatchConv { conv: self.conv2(), patch, density, input: PatchInput::Indexed };
        let conv3 = Operator::PatchConv { conv: self.conv3(), patch, density, input: PatchInput::Gathered };
        let (channels, size) = (self.out_channels, self.out_size());
        let mut operators: SmallVec<[BlockOperator; 8]> = smallvec![
            always("masker+conv1", masker_conv1),
            always("conv2", conv2),
            always("conv3", conv3),
            always("scatter_add", Operator::ScatterAdd { channels, size, patch, density }),
        ];
        operators.extend(self.patch_extras(patch, density));
        operators
    }

    /// The masker is one more output channel of conv1 that reads the input and computes next to nothing.
    fn layer_operators(&self, density: Density) -> SmallVec<[BlockOperator; 8]> {
        let conv = ConvShape::pointwise(self.in_channels, self.width.saturating_add(1), self.in_size, 1);
        let masker = Operator::Conv { conv, input: Density::ONE, output: Density::ZERO };
        let mut operators: SmallVec<[BlockOperator; 8]> = smallvec![always("masker", masker)];
        operators.extend(self.shortcut_operator());
        operators.extend(
            self.static_operators().map(|operator| BlockOperator { probability: density.get(), ..operator }),
        );
        operators
    }

    /// The group size matters to the masker only; the addition is costed as a scatter of single positions.
    fn channel_operators(&self, group: u32, density: Density) -> SmallVec<[BlockOperator; 8]> {
        let (channels, size) = (self.out_channels, self.out_size());
        let masker = Operator::ChannelMasker {
            in_channels: self.in_channels,
            size: self.in_size,
            group,
            layers: MaskerLayers::Two,
        };
        let conv = |conv, input, output| Operator::Conv { conv, input, output };
        let scatter_add = Operator::ScatterAdd { channels, size, patch: 1, density: Density::ONE };
        let mut operators: SmallVec<[BlockOperator; 8]> = smallvec![
            always("masker", masker),
            always("conv1", conv(self.conv1(), Density::ONE, density)),
            always("conv2", conv(self.conv2(), density, density)),
            always("conv3", conv(self.conv3(), density, Density::ONE)),
            always("scatter_add", scatter_add),
        ];
        operators.extend(self.patch_extras(1, Density::ONE));
        operators
    }
}
