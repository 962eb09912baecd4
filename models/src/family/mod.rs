//! The network families. A new family is one file here and one line in [`FAMILIES`].

use crate::{Error, NetConfig, NetSpec, Shapes};

mod cifar_resnet;
mod common;
mod mobilenet_v2;
mod regnet;

mod resnet;

/// ImageNet's per-channel mean, of values in `0..=1`.
const IMAGENET_MEAN: [f32; 3] = [0.485, 0.456, 0.406];
/// ImageNet's per-channel standard deviation.
const IMAGENET_STD: [f32; 3] = [0.229, 0.224, 0.225];

/// How one family of networks is described, built and recognised.
pub(crate) trait Family: Sync {
    /// The value of the configuration key `arch`.
    fn name(&self) -> &'static str;

    /// Named configurations.
    fn presets(&self) -> Vec<Preset>;

    /// `config` with every structural key that this family reads written out: depths, widths, …
    /// An error where one of them is impossible.
    fn complete(&self, config: &NetConfig) -> Result<NetConfig, Error>;

    /// The network of a completed configuration.
    fn build(&self, config: &NetConfig) -> Result<NetSpec, Error>;

    /// Whether tensors of these names are of this family.
    fn recognises(&self, shapes: &Shapes) -> bool;

    /// The structural keys that the shapes tell; `hints` help where shapes are ambiguous, but are not checked.
    fn infer(&self, shapes: &Shapes, hints: &NetConfig) -> Result<NetConfig, Error>;

    /// Module that holds a block's maskers.
    fn gate_prefix(&self, block: &str) -> String {
        block.to_owned()
    }
}

/// A configuration with a name.
pub(crate) struct Preset {
    pub(crate) name: &'static str,
    pub(crate) aliases: &'static [&'static str],
    pub(crate) config: NetConfig,
}

/// Every family.
pub(crate) static FAMILIES: [&dyn Family; 4] =
    [&resnet::ResNet, &cifar_resnet::CifarResNet, &regnet::RegNet, &mobilenet_v2::MobileNetV2];

/// Names of all presets, without aliases.
pub fn preset_names() -> Vec<&'static str> {
    FAMILIES.iter().flat_map(|family| family.presets()).map(|preset| preset.name).collect()
}

/// Family names, separated by commas.
pub(crate) fn family_names() -> String {
    FAMILIES.iter().map(|family| family.name()).collect::<Vec<_>>().join(", ")
}

/// The family that `arch` names, and the preset's configuration where it names one.
pub(crate) fn lookup(arch: &str) -> Result<(&'static dyn Family, NetConfig), Error> {
    for family in FAMILIES {
        for preset in family.presets() {
            if preset.name == arch || preset.aliases.contains(&arch) {
                let named = NetConfig { name: Some(preset.name.to_owned()), ..preset.config };
                return Ok((family, named));
            }
        }
        if family.name() == arch {
            return Ok((family, NetConfig::default()));
        }
    }
    let known = format!("{}, {}", family_names(), preset_names().join(", "));
    Err(Error::UnknownNetwork { name: arch.to_owned(), known })
}

impl NetConfig {
    /// The configuration of a named network, for example `resnet50`; see [`preset_names`].
    pub fn preset(name: &str) -> Result<Self, Error> {
        let named = Self { arch: Some(name.to_owned()), ..Self::default() };
        named.complete()
    }

    /// This configuration with `arch` resolved to its family and every structural default written out.
    pub fn complete(self) -> Result<Self, Error> {
        let (family, config) = self.family()?;
        family.complete(&config)
    }

    /// The network that this describes.
    pub fn build(&self) -> Result<NetSpec, Error> {
        let (family, config) = self.clone().family()?;
        let net = family.build(&family.complete(&config)?)?;
        net.validate()?;
        Ok(net)
    }

    /// The family, and the configuration with the preset's keys filled in.
    pub(crate) fn family(self) -> Result<(&'static dyn Family, Self), Error> {
        let Some(arch) = &self.arch else {
            let reason = format!("give a family ({}) or a preset", family_names());
            return Err(Error::Missing { key: "arch", reason });
        };
        let (family, preset) = lookup(arch)?;
        let resolved = Self { arch: Some(family.name().to_owned()), ..self };
        Ok((family, resolved.or(preset)))
    }
}
