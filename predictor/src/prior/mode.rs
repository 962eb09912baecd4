use std::fmt;
use std::str::FromStr;

use super::{LIMITS, Network};
use crate::{Error, Result};

/// What one block skips.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlockMode {
    /// Nothing: the dense block, without a masker.
    Static,
    /// Inactive patches of `patch`² output positions.
    Spatial {
        /// Side of a patch, in output positions.
        patch: u32,
    },
    /// The whole block.
    Layer,
    /// Inactive channels between the convolutions.
    Channel {
        /// Consecutive channels that are skipped together.
        group: u32,
    },
}

/// What a network skips. Text form: `static`, `layer`, `spatial:4-4-2-1`, `channel:2-2-2-2`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Nothing.
    Static,
    /// Patches; the side of a patch per stage, in output positions.
    Spatial(Vec<u32>),
    /// Whole blocks.
    Layer,
    /// Channels between the convolutions; the number of channels skipped together, per stage.
    Channel(Vec<u32>),
}

impl Mode {
    /// The mode's name, without granularities.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Static => "static",
            Self::Spatial(_) => "spatial",
            Self::Layer => "layer",
            Self::Channel(_) => "channel",
        }
    }

    /// Granularity per stage as in CSV rows: `4-4-2-1`; the output sizes of the stages for `layer`, `-` for `static`.
    pub fn granularity(&self, network: &Network) -> String {
        match self {
            Self::Static => "-".to_owned(),
            Self::Spatial(list) | Self::Channel(list) => join(list),
            Self::Layer => {
                let mut sizes = vec![0; network.stages()];
                for block in network.blocks() {
                    sizes[block.stage as usize] = block.out_size();
                }
                join(&sizes)
            }
        }
    }

    /// The mode of a block of the given stage; `None` past the end of the list of granularities.
    pub(super) fn of_stage(&self, stage: u32) -> Option<BlockMode> {
        let entry = |list: &[u32]| list.get(stage as usize).copied();
        match self {
            Self::Static => Some(BlockMode::Static),
            Self::Layer => Some(BlockMode::Layer),
            Self::Spatial(list) => entry(list).map(|patch| BlockMode::Spatial { patch }),
            Self::Channel(list) => entry(list).map(|group| BlockMode::Channel { group }),
        }
    }

    /// Checks that there is one granularity, of at least 1, per stage of `network`.
    pub(super) fn validate(&self, network: &Network) -> Result<()> {
        let (Self::Spatial(list) | Self::Channel(list)) = self else { return Ok(()) };
        if list.len() != network.stages() {
            return Err(Error::Count {
                what: "stages' granularities",
                network: network.name().to_owned(),
                expected: network.stages(),
                found: list.len(),
            });
        }
        list.iter().try_for_each(|&granularity| match self {
            Self::Spatial(_) => LIMITS.size("patch", granularity),
            _ => LIMITS.channels("channel group", granularity),
        })
    }
}

fn join(list: &[u32]) -> String {
    list.iter().map(u32::to_string).collect::<Vec<_>>().join("-")
}

fn parse_list(text: &str) -> Result<Vec<u32>> {
    let wrong = || Error::GranularityList { text: text.to_owned() };
    text.split('-')
        .map(|entry| entry.parse::<u32>().ok().filter(|&granularity| granularity > 0).ok_or_else(wrong))
        .collect()
}

impl FromStr for Mode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.split_once(':') {
            None if text == "static" => Ok(Self::Static),
            None if text == "layer" => Ok(Self::Layer),
            None if text == "spatial" || text == "channel" => {
                Err(Error::GranularityList { text: String::new() })
            }
            Some(("spatial", list)) => Ok(Self::Spatial(parse_list(list)?)),
            Some(("channel", list)) => Ok(Self::Channel(parse_list(list)?)),
            _ => Err(Error::UnknownName {
                kind: "mode",
                name: text.to_owned(),
                known: "static, layer, spatial:4-4-2-1, channel:2-2-2-2".to_owned(),
            }),
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        match self {
            Self::Static | Self::Layer => Ok(()),
            Self::Spatial(list) | Self::Channel(list) => write!(f, ":{}", join(list)),
        }
    }
}
