//! RegNet-Y (and RegNet-X: `se_ratio` 0): 400MF … 3.2GF, and any depths, widths and group widths.
//!
//! Radosavovic et al., "Designing Network Design Spaces", in torchvision's layout; gates as in LAUDNet,
//! imagenet_classification/models/laud_regnet.py. The bottleneck ratio is 1.

use super::{Family, Preset, common};
use crate::gates::{GatedBlock, StageGates};
use crate::layers::{self, Conv, Layers, MAX_CHANNELS, count};
use crate::{
    Activation, BlockSpec, Error, HeadSpec, MapSize, MaskPoint, NetConfig, NetSpec, PerStage, RegNetParams,
    Shapes, Shortcut, SqueezeExciteSpec, StemSpec,
};

const STEM_WIDTH: usize = 32;
const SE_RATIO: f64 = 0.25;

/// The family `regnet`.
pub(super) struct RegNet;

impl Family for RegNet {
    fn name(&self) -> &'static str {
        "regnet"
    }

    fn presets(&self) -> Vec<Preset> {
        let preset = |name, aliases, depth, w_0, w_a, w_m, group_width| {
            let regnet = Some(RegNetParams { depth, w_0, w_a, w_m, group_width });
            Preset { name, aliases, config: NetConfig { regnet, ..NetConfig::default() } }
        };
        vec![
            preset("regnet_y_400mf", &["lad_regnet_y_400mf"], 16, 48, 27.89, 2.09, 8),
            preset("regnet_y_800mf", &["lad_regnet_y_800mf"], 14, 56, 38.84, 2.4, 16),
            preset("regnet_y_1_6gf", &["lad_regnet_y_1_6gf"], 27, 48, 20.71, 2.65, 24),
            preset("regnet_y_3_2gf", &["lad_regnet_y_3_2gf"], 21, 80, 42.63, 2.66, 24),
        ]
    }

    fn complete(&self, config: &NetConfig) -> Result<NetConfig, Error> {
        if let (Some(mult), None) = (config.width_mult, &config.widths) {
            return Err(Error::invalid("width_mult", mult, "a RegNet's widths are given as `widths`"));
        }
        let config = match &config.regnet {
            Some(params) => {
                let [depths, widths, groups] = params.stages()?;
                let quantised = NetConfig {
                    depths: Some(depths),
                    widths: Some(widths),
                    group_widths: Some(PerStage::Each(groups)),
                    ..NetConfig::default()
                };
                config.clone().or(quantised)
            }
            None => config.clone(),
        };
        let missing =
            |key| Error::Missing { key, reason: "give the stages of the RegNet, or a preset".into() };
        let depths = layers::depths(&config, config.depths.as_deref().ok_or_else(|| missing("depths"))?)?;
        let widths = layers::widths(&config, depths.len(), |_| Err(missing("widths")))?;
        let groups = config.group_widths.as_ref().ok_or_else(|| missing("group_widths"))?;
        let groups = groups.resolve("group_widths", depths.len())?;
        for (stage, (&width, &group)) in widths.iter().zip(&groups).enumerate() {
            let key = format!("group_widths[{stage}]");
            if !width.is_multiple_of(count(&key, group, MAX_CHANNELS)?) {
                return Err(Error::invalid(
                    key,
                    group,
                    format!("it does not divide widths[{stage}], {width}"),
                ));
            }
        }
        let se_ratio = config.se_ratio.unwrap_or(SE_RATIO);
        if !(0.0..=16.0).contains(&se_ratio) {
            return Err(Error::invalid("se_ratio", se_ratio, "it must be between 0 and 16"));
        }
        let classes = config.num_classes.unwrap_or(1000);
        let stem = config.stem_width.unwrap_or(STEM_WIDTH);
        Ok(NetConfig {
            regnet: None,
            depths: Some(depths),
            width_mult: None,
            widths: Some(widths),
            group_widths: Some(PerStage::Each(groups)),
            se_ratio: Some(se_ratio),
            stem_width: Some(count("stem_width", stem, MAX_CHANNELS)?),
            num_classes: Some(count("num_classes", classes, layers::MAX_CLASSES)?),
            ..config
        })
    }

    fn build(&self, config: &NetConfig) -> Result<NetSpec, Error> {
        let input = common::input(config, 224, common::imagenet(config))?;
        let make = Layers::new(config);
        let depths = config.depths.as_deref().unwrap_or_default();
        let widths = config.widths.as_deref().unwrap_or_default();
        let groups = config.group_widths.as_ref().unwrap_or(&PerStage::All(1));
        let groups = groups.resolve("group_widths", depths.len())?;
        let gates = StageGates::of(config, depths.len())?;
        let mut channels = config.stem_width.unwrap_or_default();
        let (act, c_in, c_out) = (Activation::Relu, input.channels, channels);
        let stem = Conv { name: "stem.0", norm: "stem.1", c_in, c_out, kernel: 3, stride: 2, groups: 1, act };
        let (stem, mut size) = make.conv(&stem, input.size)?;
        let mut blocks = Vec::new();
        for stage in 0..depths.len() {
            for index in 0..depths[stage] {
                let geometry = Geometry {
                    name: format!("trunk_output.block{0}.block{0}-{index}", stage + 1),
                    stage,
                    c_in: channels,
                    width: widths[stage],
                    group_width: groups[stage],
                    stride: if index == 0 { 2 } else { 1 },
                };
                let block = self.block(config, &make, &geometry, size, &gates[stage])?;
                (size, channels) = (block.output, widths[stage]);
                blocks.push(block);
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
        shapes.contains_key("stem.0.weight")
            && shapes.contains_key("trunk_output.block1.block1-0.f.a.0.weight")
    }

    fn infer(&self, shapes: &Shapes, hints: &NetConfig) -> Result<NetConfig, Error> {
        let tensor = |stage, block, part: &str| {
            format!("trunk_output.block{0}.block{0}-{block}.f.{part}.weight", stage + 1)
        };
        let depths = common::depths(shapes, |stage, block| tensor(stage, block, "a.0"));
        let (mut widths, mut groups) = (Vec::new(), Vec::new());
        for stage in 0..depths.len() {
            let &[c_out, group, ..] = common::shape(shapes, &tensor(stage, 0, "b.0"), 4)? else { continue };
            widths.push(c_out);
            groups.push(group);
        }
        let stem = common::c_out(shapes, "stem.0.weight")?;
        // (block input channels, squeezed features) of the first block of every stage
        let mut squeezes = Vec::new();
        for stage in 0..depths.len() {
            if shapes.contains_key(&tensor(stage, 0, "se.fc1")) {
                let c_in = if stage == 0 { stem } else { widths[stage - 1] };
                squeezes.push((c_in, common::classes(shapes, &tensor(stage, 0, "se.fc1"))?));
            }
        }
        let fits = |ratio: &f64| squeezes.iter().all(|&(c_in, q)| squeezed(*ratio, c_in) == q);
        let measured = squeezes.iter().map(|&(c_in, q)| q as f64 / c_in as f64);
        let se_ratio = if squeezes.is_empty() {
            Some(0.0)
        } else {
            hints.se_ratio.into_iter().chain([SE_RATIO]).chain(measured.clone()).find(fits)
        };
        let se_ratio = se_ratio.ok_or_else(|| {
            let found: Vec<_> = squeezes.iter().map(|(c_in, q)| format!("{q} of {c_in}")).collect();
            Error::spec("se", format!("no one `se_ratio` squeezes to {} features", found.join(", ")))
        })?;
        Ok(NetConfig {
            depths: Some(depths),
            widths: Some(widths),
            group_widths: Some(PerStage::Each(groups)),
            se_ratio: Some(se_ratio),
            stem_width: Some(stem),
            num_classes: Some(common::classes(shapes, "fc.weight")?),
            ..NetConfig::default()
        })
    }

    fn gate_prefix(&self, block: &str) -> String {
        format!("{block}.f")
    }
}

/// Features that squeeze-excitation squeezes to; rounds half to even, as Python does.
fn squeezed(ratio: f64, block_input: usize) -> usize {
    (ratio * block_input as f64).round_ties_even() as usize
}

/// What tells one block from another.
struct Geometry {
    name: String,
    stage: usize,
    c_in: usize,
    width: usize,
    group_width: usize,
    stride: usize,
}

impl RegNet {
    fn block(
        &self,
        config: &NetConfig,
        make: &Layers,
        geometry: &Geometry,
        input: MapSize,
        gates: &StageGates,
    ) -> Result<BlockSpec, Error> {
        let &Geometry { ref name, stage, c_in, width, group_width, stride } = geometry;
        let conv = |part: &str, c_in, kernel, stride, groups, act, size| {
            let (conv, norm) = (format!("{name}.{part}.0"), format!("{name}.{part}.1"));
            make.conv(
                &Conv { name: &conv, norm: &norm, c_in, c_out: width, kernel, stride, groups, act },
                size,
            )
        };
        let relu = Activation::Relu;
        let (a, middle) = conv("f.a", c_in, 1, 1, 1, relu, input)?;
        let (b, output) = conv("f.b", width, 3, stride, width / group_width, relu, middle)?;
        let (c, output) = conv("f.c", width, 1, 1, 1, Activation::None, output)?;
        let shortcut = if stride == 1 && c_in == width {
            Shortcut::Identity
        } else {
            Shortcut::Projection(conv("proj", c_in, 1, stride, 1, Activation::None, input)?.0)
        };
        let ratio = config.se_ratio.unwrap_or(SE_RATIO);
        let squeeze_excite = if ratio == 0.0 {
            None
        } else {
            let features = squeezed(ratio, c_in);
            if features == 0 {
                return Err(Error::invalid(
                    "se_ratio",
                    ratio,
                    format!("it leaves nothing of {c_in} channels"),
                ));
            }
            Some(SqueezeExciteSpec {
                fc1: common::linear(&format!("{name}.f.se.fc1"), width, features),
                fc2: common::linear(&format!("{name}.f.se.fc2"), features, width),
                pooling: config.squeeze_pooling.unwrap_or(crate::SqueezePooling::Dense),
            })
        };
        let (prefix, point) = (self.gate_prefix(name), MaskPoint::AfterActivation);
        let gate = gates.build(&GatedBlock { prefix: &prefix, c_in, output, inner: width, point })?;
        Ok(BlockSpec {
            name: name.clone(),
            stage,
            input,
            output,
            convs: [a, b, c].into_iter().collect(),
            squeeze_excite,
            shortcut,
            act: Activation::Relu,
            gate,
        })
    }
}

impl RegNetParams {
    /// Depths, widths and group widths of the stages, as torchvision's `BlockParams.from_init_params`.
    fn stages(&self) -> Result<[Vec<usize>; 3], Error> {
        const QUANTUM: f64 = 8.0;
        let depth = count("regnet.depth", self.depth, layers::MAX_DEPTH)?;
        let w_0 = count("regnet.w_0", self.w_0, MAX_CHANNELS)? as f64;
        let group = count("regnet.group_width", self.group_width, MAX_CHANNELS)?;
        if !(self.w_a >= 0.0 && self.w_a.is_finite()) {
            return Err(Error::invalid("regnet.w_a", self.w_a, "it must be at least 0"));
        }
        if !(self.w_m > 1.0 && self.w_m.is_finite()) {
            return Err(Error::invalid("regnet.w_m", self.w_m, "it must be more than 1"));
        }
        let mut stages: Vec<(usize, usize)> = Vec::new(); // (width, depth)
        for block in 0..depth {
            let wanted = w_0 + self.w_a * block as f64;
            let power = ((wanted / w_0).ln() / self.w_m.ln()).round_ties_even();
            let width = (w_0 * self.w_m.powf(power) / QUANTUM).round_ties_even() * QUANTUM;
            if !(1.0..=MAX_CHANNELS as f64).contains(&width) {
                return Err(Error::invalid(
                    "regnet.w_a",
                    self.w_a,
                    format!("block {block} gets {width} channels"),
                ));
            }
            match stages.last_mut() {
                Some((last, depth)) if *last == width as usize => *depth += 1,
                _ => stages.push((width as usize, 1)),
            }
        }
        let groups: Vec<_> = stages.iter().map(|&(width, _)| group.min(width)).collect();
        let widths = stages
            .iter()
            .zip(&groups)
            .map(|(&(width, _), &group)| common::divisible(width as f64, group))
            .collect();
        Ok([stages.iter().map(|&(_, depth)| depth).collect(), widths, groups])
    }
}
