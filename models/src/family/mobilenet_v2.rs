//! MobileNetV2: inverted residuals, BatchNorm present or folded, torchvision's or TensorFlow's padding.
//!
//! Sandler et al., "MobileNetV2", table 2, with torchvision's tensor names. A channel mask applies to the outputs of the
//! expansion and of the depthwise convolution, behind the activation; a spatial mask to all convolutions of a block, where it
//! has a skip connection.

use super::{Family, Preset, common};
use crate::gates::{GatedBlock, StageGates};
use crate::layers::{self, Conv, Layers, MAX_CHANNELS, count};
use crate::{
    Activation, BlockSpec, Error, GateSpec, HeadSpec, MapSize, MaskPoint, NetConfig, NetSpec, NormStyle,
    PaddingStyle, PerStage, Preprocess, Shapes, Shortcut, StemSpec,
};

const EXPANSIONS: [usize; 7] = [1, 6, 6, 6, 6, 6, 6];
const WIDTHS: [usize; 7] = [16, 24, 32, 64, 96, 160, 320];
const DEPTHS: [usize; 7] = [1, 2, 3, 4, 3, 3, 1];
const STRIDES: [usize; 7] = [1, 2, 2, 2, 1, 2, 1];
const STEM_WIDTH: usize = 32;
const HEAD_WIDTH: usize = 1280;
/// Widths are multiples of this.
const DIVISOR: usize = 8;

/// The family `mobilenet_v2`.
pub(super) struct MobileNetV2;

impl Family for MobileNetV2 {
    fn name(&self) -> &'static str {
        "mobilenet_v2"
    }

    fn presets(&self) -> Vec<Preset> {
        let tensorflow = NetConfig {
            norm: Some(NormStyle::Folded),
            padding: Some(PaddingStyle::Tf),
            preprocess: Some(Preprocess { resize: Some(256), mean: [0.5; 3], std: [0.5; 3] }),
            ..NetConfig::default()
        };
        vec![
            Preset { name: "mobilenet_v2", aliases: &["mobilenetv2"], config: NetConfig::default() },
            Preset { name: "mobilenet_v2_tf", aliases: &[], config: tensorflow },
        ]
    }

    fn complete(&self, config: &NetConfig) -> Result<NetConfig, Error> {
        let mult = config.width_mult.unwrap_or(1.0);
        let depths = layers::depths(config, &DEPTHS)?;
        let stages = WIDTHS.len();
        if depths.len() != stages {
            let reason = format!("a MobileNetV2 has {stages} stages");
            return Err(Error::invalid("depths (length)", depths.len(), reason));
        }
        let widths = layers::widths(config, stages, |stage| scaled(WIDTHS[stage], mult))?;
        let expansions = match &config.expansions {
            Some(expansions) => expansions.resolve("expansions", stages)?,
            None => EXPANSIONS.to_vec(),
        };
        for (stage, &expansion) in expansions.iter().enumerate() {
            count(format!("expansions[{stage}]"), expansion, MAX_CHANNELS)?;
        }
        let stem = config.stem_width.map_or_else(|| scaled(STEM_WIDTH, mult), Ok)?;
        let head = config.head_width.map_or_else(|| scaled(HEAD_WIDTH, mult.max(1.0)), Ok)?;
        let classes = config.num_classes.unwrap_or(1000);
        Ok(NetConfig {
            depths: Some(depths),
            width_mult: None,
            widths: Some(widths),
            expansions: Some(PerStage::Each(expansions)),
            stem_width: Some(count("stem_width", stem, MAX_CHANNELS)?),
            head_width: Some(count("head_width", head, MAX_CHANNELS)?),
            num_classes: Some(count("num_classes", classes, layers::MAX_CLASSES)?),
            ..config.clone()
        })
    }

    fn build(&self, config: &NetConfig) -> Result<NetSpec, Error> {
        let input = common::input(config, 224, common::imagenet(config))?;
        let make = Layers::new(config);
        let depths = config.depths.as_deref().unwrap_or_default();
        let widths = config.widths.as_deref().unwrap_or_default();
        let expansions = config.expansions.as_ref().unwrap_or(&PerStage::All(1));
        let expansions = expansions.resolve("expansions", depths.len())?;
        let gates = StageGates::of(config, depths.len())?;
        let mut channels = config.stem_width.unwrap_or_default();
        let stem = Conv {
            name: "features.0.0",
            norm: "features.0.1",
            c_in: input.channels,
            c_out: channels,
            kernel: 3,
            stride: 2,
            groups: 1,
            act: Activation::Relu6,
        };
        let (stem, mut size) = make.conv(&stem, input.size)?;
        let mut blocks = Vec::new();
        for stage in 0..depths.len() {
            for index in 0..depths[stage] {
                let geometry = Geometry {
                    name: format!("features.{}", blocks.len() + 1),
                    stage,
                    c_in: channels,
                    c_out: widths[stage],
                    expansion: expansions[stage],
                    stride: if index == 0 { STRIDES[stage] } else { 1 },
                };
                let block = block(&make, &geometry, size, &gates[stage])?;
                (size, channels) = (block.output, widths[stage]);
                blocks.push(block);
            }
        }
        let last = blocks.len() + 1;
        let head = Conv {
            name: &format!("features.{last}.0"),
            norm: &format!("features.{last}.1"),
            c_in: channels,
            c_out: config.head_width.unwrap_or_default(),
            kernel: 1,
            stride: 1,
            groups: 1,
            act: Activation::Relu6,
        };
        let (head, _) = make.conv(&head, size)?;
        let fc = common::linear("classifier.1", head.c_out, config.num_classes.unwrap_or_default());
        Ok(NetSpec {
            name: config.name.clone().unwrap_or_else(|| self.name().to_owned()),
            input,
            stem: StemSpec { conv: stem, pool: None },
            blocks,
            head: HeadSpec { conv: Some(head), fc },
        })
    }

    fn recognises(&self, shapes: &Shapes) -> bool {
        shapes.contains_key("features.0.0.weight") && shapes.contains_key("features.1.conv.0.0.weight")
    }

    fn infer(&self, shapes: &Shapes, hints: &NetConfig) -> Result<NetConfig, Error> {
        let count = (1..=WIDTHS.len() * layers::MAX_DEPTH)
            .take_while(|block| shapes.contains_key(&format!("features.{block}.conv.0.0.weight")))
            .count();
        let blocks: Vec<_> = (1..=count).map(|block| widths_of(shapes, block)).collect::<Result<_, _>>()?;
        let depths = match hints.depths.as_deref().unwrap_or(&DEPTHS) {
            known if known.iter().try_fold(0, |sum: usize, &n| sum.checked_add(n)) == Some(count) => {
                known.to_vec()
            }
            _ => runs(&blocks),
        };
        if depths.len() != WIDTHS.len() {
            let reason = format!(
                "the {count} blocks change their width {} times; give the blocks of the {} stages",
                depths.len().saturating_sub(1),
                WIDTHS.len()
            );
            return Err(Error::Missing { key: "depths", reason });
        }
        let firsts: Vec<_> = depths
            .iter()
            .scan(0, |next, &depth| {
                *next += depth;
                blocks.get(*next - depth)
            })
            .collect();
        let stem = common::c_out(shapes, "features.0.0.weight")?;
        let inputs = std::iter::once(stem).chain(firsts.iter().map(|block| block.1));
        let expansions = firsts.iter().zip(inputs).map(|(block, c_in)| (block.0 / c_in).max(1)).collect();
        let folded = shapes.contains_key("features.0.0.bias");
        if folded && hints.padding.is_none() {
            let reason = "the BatchNorms are folded, so this may be a TensorFlow network: give `torchvision` or \
                          `tf`, and `preprocess` where it is not torchvision's";
            return Err(Error::Missing { key: "padding", reason: reason.into() });
        }
        Ok(NetConfig {
            widths: Some(firsts.iter().map(|block| block.1).collect()),
            depths: Some(depths),
            expansions: Some(PerStage::Each(expansions)),
            stem_width: Some(stem),
            head_width: Some(common::c_out(shapes, &format!("features.{}.0.weight", count + 1))?),
            num_classes: Some(common::classes(shapes, "classifier.1.weight")?),
            ..NetConfig::default()
        })
    }
}

/// Inner and output channels of a block.
fn widths_of(shapes: &Shapes, block: usize) -> Result<(usize, usize), Error> {
    let inner = common::c_out(shapes, &format!("features.{block}.conv.0.0.weight"))?;
    let expanded = shapes.contains_key(&format!("features.{block}.conv.1.0.weight"));
    let project = if expanded { 2 } else { 1 };
    Ok((inner, common::c_out(shapes, &format!("features.{block}.conv.{project}.weight"))?))
}

/// Lengths of the runs of equal output widths.
fn runs(blocks: &[(usize, usize)]) -> Vec<usize> {
    blocks.chunk_by(|a, b| a.1 == b.1).map(<[_]>::len).collect()
}

/// `base × mult` as a multiple of 8.
fn scaled(base: usize, mult: f64) -> Result<usize, Error> {
    let wanted = base as f64 * mult;
    if mult.is_finite() && mult > 0.0 && wanted < (MAX_CHANNELS - DIVISOR) as f64 {
        Ok(common::divisible(wanted, DIVISOR))
    } else {
        Err(Error::invalid("width_mult", mult, format!("{base} channels would become {wanted}")))
    }
}

/// What tells one block from another.
struct Geometry {
    name: String,
    stage: usize,
    c_in: usize,
    c_out: usize,
    expansion: usize,
    stride: usize,
}

fn block(make: &Layers, geometry: &Geometry, input: MapSize, gates: &StageGates) -> Result<BlockSpec, Error> {
    let &Geometry { ref name, stage, c_in, c_out, expansion, stride } = geometry;
    let inner = count(format!("expansions[{stage}] × {c_in}"), c_in * expansion, MAX_CHANNELS)?;
    let conv = |conv: &str, norm: &str, c_in, c_out, kernel, stride, groups, act, size| {
        let (conv, norm) = (format!("{name}.conv.{conv}"), format!("{name}.conv.{norm}"));
        make.conv(&Conv { name: &conv, norm: &norm, c_in, c_out, kernel, stride, groups, act }, size)
    };
    let relu6 = Activation::Relu6;
    let mut convs = smallvec::SmallVec::new();
    let (depthwise, output) = if expansion == 1 {
        conv("0.0", "0.1", inner, inner, 3, stride, inner, relu6, input)?
    } else {
        let (expand, size) = conv("0.0", "0.1", c_in, inner, 1, 1, 1, relu6, input)?;
        convs.push(expand);
        conv("1.0", "1.1", inner, inner, 3, stride, inner, relu6, size)?
    };
    let (project, norm) = if expansion == 1 { ("1", "2") } else { ("2", "3") };
    let (project, output) = conv(project, norm, inner, c_out, 1, 1, 1, Activation::None, output)?;
    convs.extend([depthwise, project]);
    let skip = stride == 1 && c_in == c_out;
    let point = MaskPoint::AfterActivation;
    let gate = gates.build(&GatedBlock { prefix: name, c_in, output, inner, point })?;
    Ok(BlockSpec {
        name: name.clone(),
        stage,
        input,
        output,
        convs,
        squeeze_excite: None,
        shortcut: if skip { Shortcut::Identity } else { Shortcut::None },
        act: Activation::None,
        gate: GateSpec { spatial: gate.spatial.filter(|_| skip), ..gate },
    })
}
