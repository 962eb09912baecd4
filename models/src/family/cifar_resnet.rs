//! ResNet for CIFAR: ResNet-20 … 110, any depths and widths.
//!
//! He et al., "Deep Residual Learning", section 4.2: a 3×3 stem without pooling, three stages of basic blocks, shortcuts of
//! type A (every second pixel, zero channels on both sides), as in akamaster/pytorch_resnet_cifar10.

use super::{Family, Preset, common};
use crate::gates::{GatedBlock, StageGates};
use crate::layers::{self, Conv, Layers, count, scaled};
use crate::{
    Activation, BlockSpec, Error, HeadSpec, MaskPoint, NetConfig, NetSpec, Preprocess, Shapes, Shortcut,
    StemSpec,
};

/// The family `cifar_resnet`.
pub(super) struct CifarResNet;

impl Family for CifarResNet {
    fn name(&self) -> &'static str {
        "cifar_resnet"
    }

    fn presets(&self) -> Vec<Preset> {
        let preset = |name, aliases, depth: usize| Preset {
            name,
            aliases,
            config: NetConfig { depths: Some(vec![(depth - 2) / 6; 3]), ..NetConfig::default() },
        };
        vec![
            preset("resnet20", &["cifar_resnet20"], 20),
            preset("resnet32", &["cifar_resnet32"], 32),
            preset("resnet44", &["cifar_resnet44"], 44),
            preset("resnet56", &["cifar_resnet56"], 56),
            preset("resnet110", &["cifar_resnet110"], 110),
        ]
    }

    fn complete(&self, config: &NetConfig) -> Result<NetConfig, Error> {
        let mult = config.width_mult.unwrap_or(1.0);
        let depths = layers::depths(config, &[3, 3, 3])?;
        let widths = layers::widths(config, depths.len(), |stage| scaled(16 << stage, mult))?;
        let stem = config.stem_width.map_or_else(|| scaled(16, mult), Ok)?;
        let classes = config.num_classes.unwrap_or(10);
        Ok(NetConfig {
            depths: Some(depths),
            width_mult: None,
            widths: Some(widths),
            stem_width: Some(count("stem_width", stem, layers::MAX_CHANNELS)?),
            num_classes: Some(count("num_classes", classes, layers::MAX_CLASSES)?),
            ..config.clone()
        })
    }

    fn build(&self, config: &NetConfig) -> Result<NetSpec, Error> {
        let preprocess = Preprocess { resize: None, mean: super::IMAGENET_MEAN, std: super::IMAGENET_STD };
        let input = common::input(config, 32, preprocess)?;
        let make = Layers::new(config);
        let depths = config.depths.as_deref().unwrap_or_default();
        let widths = config.widths.as_deref().unwrap_or_default();
        let mut channels = config.stem_width.unwrap_or_default();
        let conv3x3 = |name: &str, norm: &str, c_in, c_out, stride, act, size| {
            let conv = Conv { name, norm, c_in, c_out, kernel: 3, stride, groups: 1, act };
            make.conv(&conv, size)
        };
        let (stem, mut size) =
            conv3x3("conv1", "bn1", input.channels, channels, 1, Activation::Relu, input.size)?;
        let gates = StageGates::of(config, depths.len())?;
        let mut blocks = Vec::new();
        for (stage, ((&depth, &width), gates)) in depths.iter().zip(widths).zip(&gates).enumerate() {
            for index in 0..depth {
                let name = format!("layer{}.{index}", stage + 1);
                let stride = if stage > 0 && index == 0 { 2 } else { 1 };
                let part = |part: &str| format!("{name}.{part}");
                let (conv1, middle) =
                    conv3x3(&part("conv1"), &part("bn1"), channels, width, stride, Activation::Relu, size)?;
                let (conv2, output) =
                    conv3x3(&part("conv2"), &part("bn2"), width, width, 1, Activation::None, middle)?;
                let (prefix, point) = (&name, MaskPoint::BeforeNorm);
                let gate =
                    gates.build(&GatedBlock { prefix, c_in: channels, output, inner: width, point })?;
                blocks.push(BlockSpec {
                    stage,
                    input: size,
                    output,
                    convs: [conv1, conv2].into_iter().collect(),
                    squeeze_excite: None,
                    shortcut: shortcut(stage, channels, width, stride)?,
                    act: Activation::Relu,
                    gate,
                    name,
                });
                (size, channels) = (output, width);
            }
        }
        let fc = common::linear("fc", channels, config.num_classes.unwrap_or_default());
        Ok(NetSpec {
            name: config.name.clone().unwrap_or_else(|| self.name().to_owned()),
            input,
            stem: StemSpec { conv: stem, pool: None },
            blocks,
            head: HeadSpec { conv: None, fc },
        })
    }

    fn recognises(&self, shapes: &Shapes) -> bool {
        let stem = shapes.get("conv1.weight").and_then(|shape| shape.get(2));
        shapes.contains_key("layer1.0.conv1.weight") && stem == Some(&3)
    }

    fn infer(&self, shapes: &Shapes, _: &NetConfig) -> Result<NetConfig, Error> {
        let depths =
            common::depths(shapes, |stage, block| format!("layer{}.{block}.conv1.weight", stage + 1));
        let widths = (1..=depths.len())
            .map(|stage| common::c_out(shapes, &format!("layer{stage}.0.conv1.weight")))
            .collect::<Result<_, _>>()?;
        Ok(NetConfig {
            depths: Some(depths),
            widths: Some(widths),
            stem_width: Some(common::c_out(shapes, "conv1.weight")?),
            num_classes: Some(common::classes(shapes, "fc.weight")?),
            ..NetConfig::default()
        })
    }
}

/// Type A. Of an odd number of added channels, one more goes behind.
fn shortcut(stage: usize, c_in: usize, c_out: usize, stride: usize) -> Result<Shortcut, Error> {
    let Some(added) = c_out.checked_sub(c_in) else {
        let reason = format!("a type A shortcut cannot drop channels; the block reads {c_in}");
        return Err(Error::invalid(format!("widths[{stage}]"), c_out, reason));
    };
    Ok(if added == 0 && stride == 1 {
        Shortcut::Identity
    } else {
        Shortcut::PadChannels { stride, before: added / 2, after: added - added / 2 }
    })
}
