use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The device files in `predictor/devices/`, by name.
const SHIPPED: [(&str, &str); 12] = [
    ("v100", include_str!("../../devices/v100.json")),
    ("3090", include_str!("../../devices/3090.json")),
    ("3060", include_str!("../../devices/3060.json")),
    ("tx2", include_str!("../../devices/tx2.json")),
    ("nano", include_str!("../../devices/nano.json")),
    ("a100", include_str!("../../devices/a100.json")),
    ("h100", include_str!("../../devices/h100.json")),
    ("h200", include_str!("../../devices/h200.json")),
    ("l4", include_str!("../../devices/l4.json")),
    ("t4", include_str!("../../devices/t4.json")),
    ("4090", include_str!("../../devices/4090.json")),
    ("orin", include_str!("../../devices/orin.json")),
];

/// A device as the prior sees it: identical multiprocessors in front of one L2 and one DRAM.
///
/// The constants are data files with a source each. Those of v100, 3090, 3060, tx2 and nano are the official ones
/// (LAUDNet repository, DyNetSimulator/eval_example.py and hardware_models/static_predictor.py); the others come
/// from the vendor's documents, and their `note` says which constant is an assumption.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceSpec {
    /// Short name, as in file names and CSV rows.
    pub name: String,
    /// The vendor's name.
    pub title: String,
    /// Number of multiprocessors (the simulator's processing engines).
    pub multiprocessors: u32,
    /// fp32 lanes of one multiprocessor; a lane does one multiply-add per cycle.
    pub lanes: u32,
    /// Clock, in Hz.
    pub clock_hz: f64,
    /// DRAM bandwidth, in bytes per second.
    pub dram_bytes_per_s: f64,
    /// L2 bandwidth ÷ DRAM bandwidth (official name: `l2_speed_frac`).
    pub l2_bandwidth_ratio: f64,
    /// Operations in flight per lane that it takes to hide latency: a tile smaller than `lanes · fp32_cycles`
    /// leaves lanes idle.
    pub fp32_cycles: u32,
    /// Fixed time of one operator launch, in seconds.
    pub launch_s: f64,
    /// Batch size at which the device is usually asked about.
    pub batch: u32,
    /// Official name of the document that states the constants.
    pub source: String,
    /// What the source does not say.
    pub note: String,
}

impl DeviceSpec {
    /// Names of the shipped devices.
    pub fn names() -> impl Iterator<Item = &'static str> {
        SHIPPED.iter().map(|(name, _)| *name)
    }

    /// The shipped device called `name`; the error lists the known names.
    pub fn named(name: &str) -> Result<Self> {
        match SHIPPED.iter().find(|(known, _)| *known == name) {
            Some((_, json)) => Self::from_json(json),
            None => Err(Error::UnknownName {
                kind: "device",
                name: name.to_owned(),
                known: Self::names().collect::<Vec<_>>().join(", "),
            }),
        }
    }

    /// A device from the text of a device file.
    pub fn from_json(text: &str) -> Result<Self> {
        let spec: Self =
            serde_json::from_str(text).map_err(|source| Error::Json { what: "a device file", source })?;
        spec.validate()?;
        Ok(spec)
    }

    /// A device from a file of the same form as those in `predictor/devices/`.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path)
            .map_err(|source| Error::Read { path: path.to_path_buf(), source })?;
        Self::from_json(&text)
    }

    /// Checks that every constant is finite and positive.
    pub fn validate(&self) -> Result<()> {
        let constants = [
            ("multiprocessors", f64::from(self.multiprocessors)),
            ("lanes", f64::from(self.lanes)),
            ("clock_hz", self.clock_hz),
            ("dram_bytes_per_s", self.dram_bytes_per_s),
            ("l2_bandwidth_ratio", self.l2_bandwidth_ratio),
            ("fp32_cycles", f64::from(self.fp32_cycles)),
            ("launch_s", self.launch_s),
            ("batch", f64::from(self.batch)),
        ];
        match constants.into_iter().find(|(_, value)| !(value.is_finite() && *value > 0.0)) {
            Some((field, value)) => Err(Error::Device { device: self.name.clone(), field, value }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shipped_device_parses_and_bears_its_name_and_source() {
        for name in DeviceSpec::names() {
            let spec = DeviceSpec::named(name).unwrap();
            assert_eq!(spec.name, name);
            assert!(!spec.source.is_empty() && !spec.note.is_empty(), "{name}");
        }
    }

    #[test]
    fn an_unknown_device_lists_the_known_ones() {
        let message = DeviceSpec::named("gtx").unwrap_err().to_string();
        assert!(message.contains("gtx") && message.contains("v100, 3090"), "{message}");
    }

    #[test]
    fn impossible_constants_are_errors() {
        let mut spec = DeviceSpec::named("tx2").unwrap();
        spec.clock_hz = 0.0;
        assert!(matches!(spec.validate(), Err(Error::Device { field: "clock_hz", .. })));
        assert!(matches!(DeviceSpec::from_json("{}"), Err(Error::Json { .. })));
        assert!(matches!(DeviceSpec::load("no/such/file.json"), Err(Error::Read { .. })));
    }
}
