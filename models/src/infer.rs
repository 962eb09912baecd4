//! What tensor shapes say about a network.

use crate::contradiction;
use crate::family::{FAMILIES, Family, family_names, lookup};
use crate::gates::{DEFAULT_REDUCTION, mlp_hidden};
use crate::{
    BlockSpec, ChannelMasker, Error, GateMode, NetConfig, NetSpec, NormStyle, PerStage, Shapes, Shortcut,
};

/// The configuration of the network that `shapes` belong to, with `hints` for what shapes cannot tell.
///
/// Shapes tell the family, depths, widths, classes, the kinds of gates and channel granularities. They do not tell layer from
/// spatial gates, the spatial granularity, the input size (default 224, CIFAR 32), padding or preprocessing. A hint
/// that the shapes contradict is an error, and so is any tensor that the network would miss, not know, or have in another
/// shape (`*.num_batches_tracked` aside). A plain torchvision state dict gives a static network.
///
/// ```
/// use laud_models::{NetConfig, Shapes, infer};
///
/// let net = NetConfig::preset("resnet34")?.build()?;
/// let shapes: Shapes = net.parameters().into_iter().map(|p| (p.name, p.shape)).collect();
/// let config = infer(&shapes, &NetConfig::default())?;
/// assert_eq!(config.build()?, net);
/// # Ok::<(), laud_models::Error>(())
/// ```
pub fn infer(shapes: &Shapes, hints: &NetConfig) -> Result<NetConfig, Error> {
    let (family, hints) = family(shapes, hints)?;
    let mut found = family.infer(shapes, &hints)?;
    found.arch = Some(family.name().to_owned());
    found.norm = Some(norm(family, shapes, &found)?);
    let plain = found.clone().build()?;
    gates(family, &plain, shapes, &hints, &mut found)?;
    contradiction::structure(family, &hints, &found)?;
    // Found keys go first, so that a width_mult of the hints does not come back.
    let mut config = NetConfig { width_mult: None, regnet: None, ..found.or(hints) };
    if config.name.is_none() {
        config.name = preset_name(family, &config);
    }
    let mismatch = config.build()?.compare(shapes);
    if mismatch.is_empty() { Ok(config) } else { Err(Error::Tensors(mismatch)) }
}

/// The family of the tensors, and the hints with a preset's keys filled in.
fn family(shapes: &Shapes, hints: &NetConfig) -> Result<(&'static dyn Family, NetConfig), Error> {
    let family = FAMILIES.into_iter().find(|family| family.recognises(shapes)).ok_or_else(|| {
        let some: Vec<_> = shapes.keys().take(3).map(String::as_str).collect();
        let reason = format!("{} tensors ({}, …)", shapes.len(), some.join(", "));
        Error::UnknownTensors { known: family_names(), reason }
    })?;
    let Some(arch) = &hints.arch else { return Ok((family, hints.clone())) };
    if lookup(arch)?.0.name() != family.name() {
        let (given, found) = (arch.clone(), family.name().to_owned());
        return Err(Error::Contradiction { key: "arch", given, found });
    }
    Ok((family, hints.clone().family()?.1))
}

/// Folded where the stem has no BatchNorm tensors.
fn norm(family: &dyn Family, shapes: &Shapes, found: &NetConfig) -> Result<NormStyle, Error> {
    let stem = family.build(&family.complete(found)?)?.stem.conv;
    let batch = stem.norm.is_none_or(|norm| shapes.contains_key(&format!("{}.running_mean", norm.prefix)));
    Ok(if batch { NormStyle::Batch } else { NormStyle::Folded })
}

/// The gates of a block or a stage, as its tensors have them.
#[derive(Clone, Copy, Debug)]
struct Found {
    /// `None` without a shortcut, where nothing tells.
    spatial: Option<bool>,
    /// Kind, linear layers and granularity.
    channel: Option<(ChannelMasker, usize, usize)>,
}

/// Fills in the gate keys of `config`.
fn gates(
    family: &dyn Family,
    net: &NetSpec,
    shapes: &Shapes,
    hints: &NetConfig,
    config: &mut NetConfig,
) -> Result<(), Error> {
    let mut hidden = Vec::new();
    let stages = net.blocks.chunk_by(|a, b| a.stage == b.stage);
    let found: Vec<Found> =
        stages.map(|stage| gates_of_stage(family, stage, shapes, &mut hidden)).collect::<Result<_, _>>()?;
    if found.iter().all(|found| found.spatial != Some(true) && found.channel.is_none()) {
        let given =
            hints.dyn_mode.as_ref().map(|modes| modes.resolve("dyn_mode", found.len())).transpose()?;
        let shows = |(mode, found): (&GateMode, &Found)| {
            mode.is_channel() || mode.is_spatial() && found.spatial.is_some()
        };
        if let Some(given) = given
            && given.iter().zip(&found).any(shows)
        {
            let found = "no gates".to_owned();
            return Err(Error::Contradiction { key: "dyn_mode", given: contradiction::shown(&given), found });
        }
        config.dyn_mode = Some(PerStage::All(GateMode::None));
        return Ok(());
    }
    let modes = modes(&found, hints)?;
    config.dyn_mode = Some(PerStage::Each(modes));
    let channels: Vec<_> = found.iter().map(|found| found.channel).collect();
    if channels.iter().any(Option::is_some) {
        contradiction::channel_gates(&channels, hints)?;
        // A stage without channel gates has no granularity; 1 is what official configurations say there.
        let each = |value: fn((ChannelMasker, usize, usize)) -> usize, without: usize| {
            PerStage::Each(channels.iter().map(|gate| gate.map_or(without, value)).collect())
        };
        config.channel_granularity = Some(each(|gate| gate.2, 1));
        config.channel_masker_layers = Some(each(|gate| gate.1, 2));
        let kinds = channels.iter().map(|gate| gate.map_or(ChannelMasker::Mlp, |gate| gate.0));
        config.channel_masker = Some(PerStage::Each(kinds.collect()));
        config.reduction = Some(reduction(&hidden, hints)?);
    }
    Ok(())
}

/// Input channels, groups and hidden features of a channel masker that has a hidden layer.
#[derive(Clone, Copy)]
struct Hidden {
    kind: ChannelMasker,
    c_in: usize,
    groups: usize,
    features: usize,
}

/// The gates that a stage's blocks have in common.
fn gates_of_stage(
    family: &dyn Family,
    blocks: &[BlockSpec],
    shapes: &Shapes,
    hidden: &mut Vec<Hidden>,
) -> Result<Found, Error> {
    let mut stage = gates_of(family, &blocks[0], shapes, hidden)?;
    for block in &blocks[1..] {
        let here = gates_of(family, block, shapes, hidden)?;
        let spatial = stage.spatial.or(here.spatial);
        if here.channel != stage.channel || here.spatial.is_some() && here.spatial != spatial {
            let name = &blocks[0].name;
            let reason = format!("its gates {here:?} differ from those of {name} in its stage: {stage:?}");
            return Err(Error::spec(&block.name, reason));
        }
        stage.spatial = spatial;
    }
    Ok(stage)
}

fn gates_of(
    family: &dyn Family,
    block: &BlockSpec,
    shapes: &Shapes,
    hidden: &mut Vec<Hidden>,
) -> Result<Found, Error> {
    let prefix = family.gate_prefix(&block.name);
    let first = |tensor: &str| {
        let shape = shapes.get(&format!("{prefix}.masker_channel.{tensor}.weight"));
        shape.map(|shape| shape.first().copied().unwrap_or(0))
    };
    let masker = match (first("linear"), first("conv.2"), first("conv")) {
        (Some(logits), _, _) => Some((ChannelMasker::ConvLinear, 2, logits)),
        (_, Some(logits), _) => Some((ChannelMasker::Mlp, 2, logits)),
        (_, _, Some(logits)) => Some((ChannelMasker::Mlp, 1, logits)),
        _ => None,
    };
    let inner = block.convs[0].c_out;
    let channel = match masker {
        None => None,
        Some((kind, layers, logits)) => {
            let groups = logits / 2;
            if logits == 0 || logits % 2 != 0 || !inner.is_multiple_of(groups) {
                let reason = format!("{logits} logits are not two for each group of {inner} channels");
                return Err(Error::spec(format!("{prefix}.masker_channel"), reason));
            }
            if let (Some(features), 2) = (first("conv.0"), layers) {
                hidden.push(Hidden { kind, c_in: block.convs[0].c_in, groups, features });
            }
            Some((kind, layers, inner / groups))
        }
    };
    let spatial = (block.shortcut != Shortcut::None)
        .then(|| shapes.contains_key(&format!("{prefix}.masker_spatial.conv.weight")));
    Ok(Found { spatial, channel })
}

/// The mode of every stage: from the tensors, and from the hints which kind a spatial gate is.
fn modes(found: &[Found], hints: &NetConfig) -> Result<Vec<GateMode>, Error> {
    let given = hints.dyn_mode.as_ref().map(|modes| modes.resolve("dyn_mode", found.len())).transpose()?;
    let mut modes = Vec::with_capacity(found.len());
    for (stage, found) in found.iter().enumerate() {
        let hint = given.as_ref().map(|given| given[stage]);
        let mode = match (found.spatial, found.channel.is_some(), hint) {
            // Without a shortcut in the stage, spatial gates of a hint change nothing.
            (None, channel, Some(hint)) if hint.is_channel() == channel => hint,
            (None | Some(false), false, _) => GateMode::None,
            (None | Some(false), true, _) => GateMode::Channel,
            (Some(true), true, _) => GateMode::Both,
            (Some(true), false, Some(mode @ (GateMode::Spatial | GateMode::Layer))) => mode,
            (Some(true), false, Some(other)) => {
                let (given, found) = (<&str>::from(other).to_owned(), "spatial or layer".to_owned());
                return Err(Error::Contradiction { key: "dyn_mode", given, found });
            }
            (Some(true), false, None) if hints.spatial_granularity.is_some() => GateMode::Spatial,
            (Some(true), false, None) => {
                let reason = format!(
                    "stage {stage} has spatial gates; give `layer`, or `spatial` and `spatial_granularity` \
                     (the side of a patch in output pixels)"
                );
                return Err(Error::Missing { key: "dyn_mode", reason });
            }
        };
        if let Some(given) = hint.filter(|hint| *hint != mode) {
            let (given, found) = (<&str>::from(given).to_owned(), <&str>::from(mode).to_owned());
            return Err(Error::Contradiction { key: "dyn_mode", given, found });
        }
        modes.push(mode);
    }
    Ok(modes)
}

/// A reduction that gives every masker its hidden features; the hint's or the default before any other.
fn reduction(hidden: &[Hidden], hints: &NetConfig) -> Result<usize, Error> {
    let fits = |&reduction: &usize| {
        hidden.iter().all(|masker| {
            let features = match masker.kind {
                ChannelMasker::Mlp => mlp_hidden(masker.groups, reduction),
                ChannelMasker::ConvLinear => masker.c_in / reduction,
            };
            features == masker.features
        })
    };
    let features: Vec<_> = hidden.iter().map(|masker| masker.features).collect();
    if let Some(given) = hints.reduction {
        if given > 0 && fits(&given) {
            return Ok(given);
        }
        let found = format!("{features:?} hidden features");
        return Err(Error::Contradiction { key: "reduction", given: given.to_string(), found });
    }
    let largest = hidden.iter().map(|masker| masker.c_in.max(masker.groups)).max().unwrap_or(1);
    std::iter::once(DEFAULT_REDUCTION).chain(1..=largest).find(fits).ok_or_else(|| {
        Error::spec("masker_channel", format!("no one `reduction` gives {features:?} hidden features"))
    })
}

/// The preset that has this structure.
fn preset_name(family: &dyn Family, config: &NetConfig) -> Option<String> {
    let structure = |config: &NetConfig| {
        let c = config.clone();
        let norm = c.norm.unwrap_or_default();
        (c.block, c.depths, c.widths, c.stem_width, c.head_width, c.group_widths, c.se_ratio, norm)
    };
    family.presets().into_iter().find_map(|preset| {
        let complete = family.complete(&preset.config).ok()?;
        (structure(&complete) == structure(config)).then(|| preset.name.to_owned())
    })
}
