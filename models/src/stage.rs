//! Configuration values that differ from stage to stage, and the gate modes that are the most prominent of them.

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use crate::Error;

/// Either one value for all stages or one for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PerStage<T> {
    /// The same everywhere.
    All(T),
    /// One entry a stage.
    Each(Vec<T>),
}

/// Which gates a stage's blocks have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Option<String>", into = "&'static str")]
pub enum GateMode {
    /// Static. `null` in JSON means the same.
    #[default]
    None,
    /// Patches.
    Spatial,
    /// The whole map of a sample.
    Layer,
    /// Groups of channels.
    Channel,
    /// Patches and groups of channels.
    Both,
}

impl<T: Clone> PerStage<T> {
    /// One value for each of `stages` stages; `key` names the list in the error.
    pub fn resolve(&self, key: &'static str, stages: usize) -> Result<Vec<T>, Error> {
        match self {
            Self::All(value) => Ok(vec![value.clone(); stages]),
            Self::Each(values) if values.len() == stages => Ok(values.clone()),
            Self::Each(values) => Err(Error::StageCount { key, found: values.len(), stages }),
        }
    }
}

impl<T: Serialize> Serialize for PerStage<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::All(value) => value.serialize(serializer),
            Self::Each(values) => values.serialize(serializer),
        }
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for PerStage<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let read = if value.is_array() {
            serde_json::from_value(value).map(Self::Each)
        } else {
            serde_json::from_value(value).map(Self::All)
        };
        read.map_err(D::Error::custom)
    }
}

impl TryFrom<Option<String>> for GateMode {
    type Error = String;

    fn try_from(name: Option<String>) -> Result<Self, String> {
        Ok(match name.as_deref() {
            None | Some("none") => Self::None,
            Some("spatial") => Self::Spatial,
            Some("layer") => Self::Layer,
            Some("channel") => Self::Channel,
            Some("both") => Self::Both,
            Some(other) => {
                return Err(format!(
                    "unknown gate mode `{other}`; known: none, spatial, layer, channel, both"
                ));
            }
        })
    }
}

impl From<GateMode> for &'static str {
    fn from(mode: GateMode) -> Self {
        match mode {
            GateMode::None => "none",
            GateMode::Spatial => "spatial",
            GateMode::Layer => "layer",
            GateMode::Channel => "channel",
            GateMode::Both => "both",
        }
    }
}

impl GateMode {
    /// Whether there is a gate over patches or the whole map.
    pub fn is_spatial(self) -> bool {
        matches!(self, Self::Spatial | Self::Layer | Self::Both)
    }

    /// Whether there is a gate over channel groups.
    pub fn is_channel(self) -> bool {
        matches!(self, Self::Channel | Self::Both)
    }
}
