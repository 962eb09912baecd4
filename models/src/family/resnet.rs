//! ResNet for ImageNet: basic blocks (18, 34) and bottlenecks (50, 101, 152), any depths and widths.
//!
//! He et al., "Deep Residual Learning", in torchvision's layout (the stride is on the 3×3 convolution); gates as in
//! LAUDNet, imagenet_classification/models/laud_resnet.py.

use smallvec::SmallVec;

use super::{Family, Preset, common};
use crate::gates::{GatedBlock, StageGates};
use crate::layers::{self, Conv, Layers, count, scaled};
use crate::{
    Activation, BlockKind, BlockSpec, ConvSpec, Error, HeadSpec, MapSize, MaskPoint, MaxPoolSpec, NetConfig,
    NetSpec, Shapes, Shortcut, StemSpec,
};

/// Output channels of a bottleneck ÷ channels of its 3×3 convolution.
const EXPANSION: usize = 4;
const POOL: MaxPoolSpec = MaxPoolSpec { kernel: 3, stride: 2, pad: 1 };

/// The family `resnet`.
pub(super) struct ResNet;

impl Family for ResNet {
    fn name(&self) -> &'static str {
        "resnet"
    }

    fn presets(&self) -> Vec<Preset> {
        let preset = |name, aliases, block, depths: [usize; 4]| Preset {
            name,
            aliases,
            config: NetConfig { block: Some(block), depths: Some(depths.to_vec()), ..NetConfig::default() },
        };
        vec![
            preset("resnet18", &["uni_resnet18"], BlockKind::Basic, [2, 2, 2, 2]),
            preset("resnet34", &["uni_resnet34"], BlockKind::Basic, [3, 4, 6, 3]),
            preset("resnet50", &["uni_resnet50"], BlockKind::Bottleneck, [3, 4, 6, 3]),
            preset("resnet101", &["uni_resnet101"], BlockKind::Bottleneck, [3, 4, 23, 3]),
            preset("resnet152", &["uni_resnet152"], BlockKind::Bottleneck, [3, 8, 36, 3]),
        ]
    }

    fn complete(&self, config: &NetConfig) -> Result<NetConfig, Error> {
        let mult = config.width_mult.unwrap_or(1.0);
        let depths = layers::depths(config, &[3, 4, 6, 3])?;
        let widths = layers::widths(config, depths.len(), |stage| scaled(64 << stage, mult))?;
        let stem = config.stem_width.map_or_else(|| scaled(64, mult), Ok)?;
        let classes = config.num_classes.unwrap_or(1000);
        Ok(NetConfig {
            block: Some(config.block.unwrap_or(BlockKind::Bottleneck)),
            depths: Some(depths),
            width_mult: None,
            widths: Some(widths),
            stem_width: Some(count("stem_width", stem, layers::MAX_CHANNELS)?),
            num_classes: Some(count("num_classes", classes, layers::MAX_CLASSES)?),
            ..config.clone()
        })
    }

    fn build(&self, config: &NetConfig) -> Result<NetSpec, Error> {
        let input = common::input(config, 224, common::imagenet(config))?;
        let make = Layers::new(config);
        let depths = config.depths.as_deref().unwrap_or_default();
        let widths = config.widths.as_deref().unwrap_or_default();
        let kind = config.block.unwrap_or(BlockKind::Bottleneck);
        let expansion = if kind == BlockKind::Bottleneck { EXPANSION } else { 1 };
        let mut channels = config.stem_width.unwrap_or_default();
        let stem = Conv {
            name: "conv1",
            norm: "bn1",
            c_in: input.channels,
            c_out: channels,
            kernel: 7,
            stride: 2,
            groups: 1,
            act: Activation::Relu,
        };
        let (stem, size) = make.conv(&stem, input.size)?;
        let mut size = POOL.output_size(size).ok_or_else(|| {
            Error::spec("maxpool", format!("a {}×{} map is smaller than its window", size.h, size.w))
        })?;
        let gates = StageGates::of(config, depths.len())?;
        let mut blocks = Vec::new();
        for (stage, ((&depth, &width), gates)) in depths.iter().zip(widths).zip(&gates).enumerate() {
            let out =
                count(format!("widths[{stage}] × {expansion}"), width * expansion, layers::MAX_CHANNELS)?;
            for index in 0..depth {
                let geometry = Geometry {
                    name: format!("layer{}.{index}", stage + 1),
                    stage,
                    c_in: channels,
                    width,
                    c_out: out,
                    stride: if stage > 0 && index == 0 { 2 } else { 1 },
                };
                let block = block(&make, kind, &geometry, size, gates)?;
                size = block.output;
                channels = out;
                blocks.push(block);
            }
        }
        let fc = common::linear("fc", channels, config.num_classes.unwrap_or_default());
        Ok(NetSpec {
            name: config.name.clone().unwrap_or_else(|| self.name().to_owned()),
            input,
            stem: StemSpec { conv: stem, pool: Some(POOL) },
            blocks,
            head: HeadSpec { conv: None, fc },
        })
    }

    fn recognises(&self, shapes: &Shapes) -> bool {
        let stem = shapes.get("conv1.weight").and_then(|shape| shape.get(2));
        shapes.contains_key("layer1.0.conv1.weight") && stem == Some(&7)
    }

    fn infer(&self, shapes: &Shapes, _: &NetConfig) -> Result<NetConfig, Error> {
        let depths =
            common::depths(shapes, |stage, block| format!("layer{}.{block}.conv1.weight", stage + 1));
        let bottleneck = shapes.contains_key("layer1.0.conv3.weight");
        let widths = (1..=depths.len())
            .map(|stage| common::c_out(shapes, &format!("layer{stage}.0.conv2.weight")))
            .collect::<Result<_, _>>()?;
        Ok(NetConfig {
            block: Some(if bottleneck { BlockKind::Bottleneck } else { BlockKind::Basic }),
            depths: Some(depths),
            widths: Some(widths),
            stem_width: Some(common::c_out(shapes, "conv1.weight")?),
            num_classes: Some(common::classes(shapes, "fc.weight")?),
            ..NetConfig::default()
        })
    }
}

/// What tells one block from another.
struct Geometry {
    name: String,
    stage: usize,
    c_in: usize,
    /// Channels of the 3×3 convolutions.
    width: usize,
    c_out: usize,
    stride: usize,
}

fn block(
    make: &Layers,
    kind: BlockKind,
    geometry: &Geometry,
    input: MapSize,
    gates: &StageGates,
) -> Result<BlockSpec, Error> {
    let Geometry { name, stage, c_in, width, c_out, stride } = geometry;
    // (kernel, stride, output channels) of the branch
    let chain: &[_] = match kind {
        BlockKind::Basic => &[(3, *stride, *width), (3, 1, *c_out)],
        BlockKind::Bottleneck => &[(1, 1, *width), (3, *stride, *width), (1, 1, *c_out)],
    };
    let mut convs: SmallVec<[ConvSpec; 3]> = SmallVec::new();
    let (mut output, mut channels) = (input, *c_in);
    for (index, &(kernel, stride, out)) in chain.iter().enumerate() {
        let last = index + 1 == chain.len();
        let conv = Conv {
            name: &format!("{name}.conv{}", index + 1),
            norm: &format!("{name}.bn{}", index + 1),
            c_in: channels,
            c_out: out,
            kernel,
            stride,
            groups: 1,
            act: if last { Activation::None } else { Activation::Relu },
        };
        let (conv, size) = make.conv(&conv, output)?;
        (output, channels) = (size, out);
        convs.push(conv);
    }
    let shortcut = if *stride == 1 && c_in == c_out {
        Shortcut::Identity
    } else {
        let conv = Conv {
            name: &format!("{name}.downsample.0"),
            norm: &format!("{name}.downsample.1"),
            c_in: *c_in,
            c_out: *c_out,
            kernel: 1,
            stride: *stride,
            groups: 1,
            act: Activation::None,
        };
        Shortcut::Projection(make.conv(&conv, input)?.0)
    };
    let gate = gates.build(&GatedBlock {
        prefix: name,
        c_in: *c_in,
        output,
        inner: *width,
        point: MaskPoint::BeforeNorm,
    })?;
    Ok(BlockSpec {
        name: name.clone(),
        stage: *stage,
        input,
        output,
        convs,
        squeeze_excite: None,
        shortcut,
        act: Activation::Relu,
        gate,
    })
}
