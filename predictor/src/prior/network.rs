use super::LIMITS;
use super::conv::ConvShape;
use crate::{Error, Result};

/// A residual block: pointwise convolution, 3×3 convolution (with the stride and the groups), pointwise convolution,
/// and what is added to its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Block {
    /// Stage of the network, from 0; granularities are given per stage.
    pub stage: u32,
    /// Channels of the block's input.
    pub in_channels: u32,
    /// Channels between the convolutions.
    pub width: u32,
    /// Channels of the block's output.
    pub out_channels: u32,
    /// Side of the block's square input map, in positions.
    pub in_size: u32,
    /// Stride of the 3×3 convolution.
    pub stride: u32,
    /// Groups of the 3×3 convolution.
    pub groups: u32,
    /// Hidden channels of squeeze-excitation after the 3×3 convolution, if the block has one.
    pub squeeze: Option<u32>,
    /// Whether the shortcut is a pointwise convolution with the block's stride.
    pub projection: bool,
}

impl Block {
    /// Side of the output map, in positions; 0 if the stride is.
    pub fn out_size(&self) -> u32 {
        self.in_size.checked_div(self.stride).unwrap_or(0)
    }

    /// First convolution.
    pub(super) fn conv1(&self) -> ConvShape {
        ConvShape::pointwise(self.in_channels, self.width, self.in_size, 1)
    }

    /// 3×3 convolution.
    pub(super) fn conv2(&self) -> ConvShape {
        ConvShape {
            in_channels: self.width,
            out_channels: self.width,
            in_size: self.in_size,
            kernel: 3,
            groups: self.groups,
            stride: self.stride,
        }
    }

    /// Last convolution.
    pub(super) fn conv3(&self) -> ConvShape {
        ConvShape::pointwise(self.width, self.out_channels, self.out_size(), 1)
    }

    /// Convolution of the shortcut.
    pub(super) fn shortcut(&self) -> Option<ConvShape> {
        self.projection
            .then(|| ConvShape::pointwise(self.in_channels, self.out_channels, self.in_size, self.stride))
    }

    /// Checks that every size is in range and that groups divide the width.
    pub fn validate(&self) -> Result<()> {
        self.conv2().validate()?;
        self.conv1().validate()?;
        self.conv3().validate()?;
        self.squeeze.map_or(Ok(()), |squeeze| LIMITS.channels("squeeze", squeeze))
    }
}

/// One stage of a RegNet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegNetStage {
    /// Number of blocks.
    pub depth: u32,
    /// Channels of every map.
    pub width: u32,
    /// Groups of the 3×3 convolutions.
    pub groups: u32,
}

/// The residual blocks of a network: all that the prior costs. Stem, pools and classifier are not counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    name: String,
    blocks: Vec<Block>,
}

const REGNETY_004: [[u32; 3]; 4] = [[1, 48, 6], [3, 104, 13], [6, 208, 26], [6, 440, 55]];
const REGNETY_008: [[u32; 3]; 4] = [[1, 64, 4], [3, 144, 9], [8, 320, 20], [2, 784, 49]];

impl Network {
    /// Names that [`Network::named`] knows.
    pub const NAMES: [&'static str; 4] = ["resnet50", "resnet101", "regnety004", "regnety008"];

    /// A network of the given blocks. Their stages must be numbered from 0 in order.
    pub fn new(name: impl Into<String>, blocks: Vec<Block>) -> Result<Self> {
        let name = name.into();
        let wrong = |reason: String| Err(Error::Network { network: name.clone(), reason });
        let Some(first) = blocks.first() else { return wrong("it has no blocks".into()) };
        if first.stage != 0 {
            return wrong(format!("its first block is in stage {}, not 0", first.stage));
        }
        for (index, pair) in blocks.windows(2).enumerate() {
            let (stage, next) = (pair[0].stage, pair[1].stage);
            if next != stage && Some(next) != stage.checked_add(1) {
                return wrong(format!("block {} is in stage {next}, after stage {stage}", index + 1));
            }
        }
        blocks.iter().try_for_each(Block::validate)?;
        Ok(Self { name, blocks })
    }

    /// A shipped network at 224×224 pixels; the error lists the known names.
    pub fn named(name: &str) -> Result<Self> {
        let regnet = |stages: [[u32; 3]; 4]| {
            Self::regnet_y(
                name,
                &stages.map(|[depth, width, groups]| RegNetStage { depth, width, groups }),
                224,
            )
        };
        match name {
            "resnet50" => Self::resnet(name, &[3, 4, 6, 3], 224),
            "resnet101" => Self::resnet(name, &[3, 4, 23, 3], 224),
            "regnety004" => regnet(REGNETY_004),
            "regnety008" => regnet(REGNETY_008),
            _ => Err(Error::UnknownName {
                kind: "network",
                name: name.to_owned(),
                known: Self::NAMES.join(", "),
            }),
        }
    }

    /// A bottleneck ResNet with blocks per stage `depths`, for square images of `image` pixels a side.
    ///
    /// As in the official simulator (DyNetSimulator/eval_example.py), the projection of the first block of the first
    /// stage, which has stride 1, is not counted.
    pub fn resnet(name: impl Into<String>, depths: &[u32; 4], image: u32) -> Result<Self> {
        let mut blocks = Vec::new();
        let (mut in_channels, mut in_size) = (64, image / 4);
        for (stage, &depth) in (0u32..).zip(depths) {
            LIMITS.depth(depth)?;
            let width = 64 << stage;
            for index in 0..depth {
                let stride = if index == 0 && stage > 0 { 2 } else { 1 };
                let block = Block {
                    stage,
                    in_channels,
                    width,
                    out_channels: 4 * width,
                    in_size,
                    stride,
                    groups: 1,
                    squeeze: None,
                    projection: stride > 1,
                };
                in_channels = block.out_channels;
                in_size = block.out_size();
                blocks.push(block);
            }
        }
        Self::new(name, blocks)
    }

    /// A RegNetY with a stem of 32 channels and stride 2, for square images of `image` pixels a side. Squeeze-excitation
    /// has a quarter of the channels of the block's input.
    pub fn regnet_y(name: impl Into<String>, stages: &[RegNetStage], image: u32) -> Result<Self> {
        let mut blocks = Vec::new();
        let (mut in_channels, mut in_size) = (32, image / 2);
        for (stage, &RegNetStage { depth, width, groups }) in (0u32..).zip(stages) {
            LIMITS.depth(depth)?;
            for index in 0..depth {
                let stride = if index == 0 { 2 } else { 1 };
                let block = Block {
                    stage,
                    in_channels,
                    width,
                    out_channels: width,
                    in_size,
                    stride,
                    groups,
                    squeeze: Some((0.25 * f64::from(in_channels)).round_ties_even() as u32),
                    projection: stride > 1,
                };
                in_channels = block.out_channels;
                in_size = block.out_size();
                blocks.push(block);
            }
        }
        Self::new(name, blocks)
    }

    /// Name, as in CSV rows.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The residual blocks, in order.
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// Number of stages.
    pub fn stages(&self) -> usize {
        self.blocks.last().map_or(0, |block| block.stage as usize + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shipped_networks_have_the_published_depths_and_sizes() {
        let count = |name| Network::named(name).unwrap().blocks().len();
        assert_eq!(Network::NAMES.map(count), [16, 33, 16, 14]);
        let last = *Network::named("resnet50").unwrap().blocks().last().unwrap();
        assert_eq!((last.in_channels, last.width, last.in_size, last.out_size()), (2048, 512, 7, 7));
    }

    #[test]
    fn impossible_networks_are_errors() {
        let block = Network::named("resnet50").unwrap().blocks()[0];
        let build = |block| Network::new("x", vec![block]).unwrap_err();
        assert!(matches!(build(Block { width: 0, ..block }), Error::Size { value: 0, .. }));
        assert!(matches!(build(Block { stride: 0, ..block }), Error::Size { value: 0, .. }));
        assert!(matches!(build(Block { stride: 57, ..block }), Error::Size { value: 0, .. }));
        assert!(matches!(build(Block { in_size: u32::MAX, ..block }), Error::Size { .. }));
        assert!(matches!(build(Block { groups: 3, ..block }), Error::Groups { channels: 64, groups: 3 }));
        assert!(matches!(build(Block { squeeze: Some(0), ..block }), Error::Size { .. }));
        assert!(matches!(build(Block { stage: 1, ..block }), Error::Network { .. }));
        assert!(matches!(Network::new("x", vec![]), Err(Error::Network { .. })));
        assert!(matches!(Network::resnet("x", &[1, 1, 1, u32::MAX], 224), Err(Error::Size { .. })));
        assert!(Network::resnet("x", &[1, 1, 1, 1], 3).is_err());
        let message = Network::named("vgg").unwrap_err().to_string();
        assert!(message.contains("resnet50, resnet101"), "{message}");
    }
}
