//! What tensor shapes say about a network.

use serde::Serialize;

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
    contradictions(family, &hints, &found)?;
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

/// The gates of a block, as its tensors have them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Found {
    spatial: bool,
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
    let stages = net.blocks.last().map_or(0, |block| block.stage + 1);
    let mut found: Vec<Option<(&str, Found)>> = vec![None; stages];
    let mut hidden = Vec::new();
    for block in net.blocks.iter().filter(|block| block.shortcut != Shortcut::None) {
        let here = gates_of(family, block, shapes, &mut hidden)?;
        match &found[block.stage] {
            None => found[block.stage] = Some((&block.name, here)),
            Some((_, first)) if *first == here => {}
            Some((name, first)) => {
                let reason =
                    format!("its gates {here:?} differ from those of {name} in its stage: {first:?}");
                return Err(Error::spec(&block.name, reason));
            }
        }
    }
    let found: Vec<_> = found.into_iter().map(|stage| stage.map(|(_, found)| found)).collect();
    if found.iter().flatten().all(|found| *found == Found::default()) {
        let given = hints.dyn_mode.as_ref().map(|modes| modes.resolve("dyn_mode", stages)).transpose()?;
        if let Some(given) = given
            && given.iter().zip(&found).any(|(mode, found)| found.is_some() && *mode != GateMode::None)
        {
            let found = "no gates".to_owned();
            return Err(Error::Contradiction { key: "dyn_mode", given: shown(&given), found });
        }
        config.dyn_mode = Some(PerStage::All(GateMode::None));
        return Ok(());
    }
    let modes = modes(&found, hints)?;
    config.dyn_mode = Some(PerStage::Each(modes));
    let channels: Vec<_> = found.iter().map(|found| found.and_then(|found| found.channel)).collect();
    if channels.iter().any(Option::is_some) {
        channel_contradictions(&channels, hints)?;
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
    Ok(Found { spatial: shapes.contains_key(&format!("{prefix}.masker_spatial.conv.weight")), channel })
}

/// The mode of every stage: from the tensors, and from the hints which kind a spatial gate is.
fn modes(found: &[Option<Found>], hints: &NetConfig) -> Result<Vec<GateMode>, Error> {
    let given = hints.dyn_mode.as_ref().map(|modes| modes.resolve("dyn_mode", found.len())).transpose()?;
    let mut modes = Vec::with_capacity(found.len());
    for (stage, found) in found.iter().enumerate() {
        // Without any block that could be gated, a hint changes nothing.
        let Some(found) = found else {
            modes.push(GateMode::None);
            continue;
        };
        let mode = match (found.spatial, found.channel.is_some()) {
            (false, false) => GateMode::None,
            (false, true) => GateMode::Channel,
            (true, true) => GateMode::Both,
            (true, false) => match given.as_ref().map(|given| given[stage]) {
                Some(mode @ (GateMode::Spatial | GateMode::Layer)) => mode,
                Some(other) => {
                    let (given, found) = (<&str>::from(other).to_owned(), "spatial or layer".to_owned());
                    return Err(Error::Contradiction { key: "dyn_mode", given, found });
                }
                None if hints.spatial_granularity.is_some() => GateMode::Spatial,
                None => {
                    let reason = format!(
                        "stage {stage} has spatial gates; give `layer`, or `spatial` and `spatial_granularity` \
                         (the side of a patch in output pixels)"
                    );
                    return Err(Error::Missing { key: "dyn_mode", reason });
                }
            },
        };
        if let Some(given) = &given
            && given[stage] != mode
        {
            let (given, found) = (<&str>::from(given[stage]).to_owned(), <&str>::from(mode).to_owned());
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

/// A contradiction where both are there and differ.
fn same<T: PartialEq + Serialize>(
    key: &'static str,
    given: Option<&T>,
    found: Option<&T>,
) -> Result<(), Error> {
    match (given, found) {
        (Some(given), Some(found)) if given != found => {
            Err(Error::Contradiction { key, given: shown(given), found: shown(found) })
        }
        _ => Ok(()),
    }
}

/// As the user would write it in JSON.
fn shown(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

/// Checks every structural key that both say.
fn contradictions(family: &dyn Family, hints: &NetConfig, found: &NetConfig) -> Result<(), Error> {
    same("block", hints.block.as_ref(), found.block.as_ref())?;
    same("depths", hints.depths.as_ref(), found.depths.as_ref())?;
    same("widths", hints.widths.as_ref(), found.widths.as_ref())?;
    same("stem_width", hints.stem_width.as_ref(), found.stem_width.as_ref())?;
    same("head_width", hints.head_width.as_ref(), found.head_width.as_ref())?;
    same("se_ratio", hints.se_ratio.as_ref(), found.se_ratio.as_ref())?;
    same("num_classes", hints.num_classes.as_ref(), found.num_classes.as_ref())?;
    same("norm", hints.norm.as_ref(), found.norm.as_ref())?;
    let stages = found.depths.as_ref().map_or(0, Vec::len);
    let each =
        |key, list: &Option<PerStage<usize>>| list.as_ref().map(|list| list.resolve(key, stages)).transpose();
    for (key, given, found) in [
        ("group_widths", &hints.group_widths, &found.group_widths),
        ("expansions", &hints.expansions, &found.expansions),
    ] {
        same(key, each(key, given)?.as_ref(), each(key, found)?.as_ref())?;
    }
    if let Some(params) = &hints.regnet {
        let arch = found.arch.clone();
        let meant = family.complete(&NetConfig { arch, regnet: Some(*params), ..NetConfig::default() })?;
        same("regnet (depths)", meant.depths.as_ref(), found.depths.as_ref())?;
        same("regnet (widths)", meant.widths.as_ref(), found.widths.as_ref())?;
        same("regnet (group widths)", meant.group_widths.as_ref(), found.group_widths.as_ref())?;
    }
    if hints.width_mult.is_some() && hints.widths.is_none() {
        let scaled = NetConfig {
            width_mult: hints.width_mult,
            widths: None,
            stem_width: hints.stem_width,
            head_width: hints.head_width,
            ..found.clone()
        };
        let meant = family.complete(&scaled)?;
        same("width_mult (widths)", meant.widths.as_ref(), found.widths.as_ref())?;
        same("width_mult (stem_width)", meant.stem_width.as_ref(), found.stem_width.as_ref())?;
        same("width_mult (head_width)", meant.head_width.as_ref(), found.head_width.as_ref())?;
    }
    Ok(())
}

/// Checks the keys of the channel maskers in the stages that have them.
fn channel_contradictions(
    channels: &[Option<(ChannelMasker, usize, usize)>],
    hints: &NetConfig,
) -> Result<(), Error> {
    fn check<T: Clone + PartialEq + Serialize>(
        key: &'static str,
        given: &Option<PerStage<T>>,
        found: &[Option<T>],
    ) -> Result<(), Error> {
        let Some(given) = given else { return Ok(()) };
        let given = given.resolve(key, found.len())?;
        if given.iter().zip(found).any(|(given, found)| found.as_ref().is_some_and(|found| found != given)) {
            return Err(Error::Contradiction { key, given: shown(&given), found: shown(&found) });
        }
        Ok(())
    }
    let sizes: Vec<_> = channels.iter().map(|gate| gate.map(|gate| gate.2)).collect();
    let kinds: Vec<_> = channels.iter().map(|gate| gate.map(|gate| gate.0)).collect();
    check("channel_masker", &hints.channel_masker, &kinds)?;
    check("channel_granularity", &hints.channel_granularity, &sizes)?;
    let mlp = |gate: &(ChannelMasker, usize, usize)| gate.0 == ChannelMasker::Mlp;
    let layers: Vec<_> = channels.iter().map(|gate| gate.filter(mlp).map(|gate| gate.1)).collect();
    check("channel_masker_layers", &hints.channel_masker_layers, &layers)
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
