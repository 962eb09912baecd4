//! Where a configuration and the tensors of a checkpoint say different things.

use serde::Serialize;

use crate::family::Family;
use crate::{ChannelMasker, Error, NetConfig, PerStage};

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
pub(crate) fn shown(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

/// Checks every structural key that both say.
pub(crate) fn structure(family: &dyn Family, hints: &NetConfig, found: &NetConfig) -> Result<(), Error> {
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
pub(crate) fn channel_gates(
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
