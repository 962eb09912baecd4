use super::{Activity, BlockDensity};
use crate::gate::UnitKind;
use anyhow::{Context, Result, ensure};
use laud_models::NetSpec;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// What was active in each block of a network, image by image: JSON lines, one an image, as `--record-densities` writes
/// them.
#[derive(Clone, Debug, PartialEq)]
pub struct Densities {
    /// One entry an image.
    pub images: Vec<Recorded>,
}

/// What was active for one image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recorded {
    /// The image.
    pub file: String,
    /// Network that decided.
    pub network: String,
    /// One entry per block, in the order of execution.
    pub blocks: Vec<RecordedBlock>,
}

/// What was active of one block.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordedBlock {
    /// Block, as the network names it.
    pub block: String,
    /// Density of patches; `None` where the block has no such gate.
    pub patches: Option<f64>,
    /// Density of channel groups; `None` where the block has no such gate.
    pub channel_groups: Option<f64>,
    /// Active output pixels of each convolution, the halo included.
    pub rows: Vec<f64>,
    /// Maximal stretches of them that are neighbours in a line.
    pub runs: Vec<f64>,
}

impl Recorded {
    /// From the decisions about one image: for each block, patches and channel groups.
    ///
    /// # Errors
    /// When the decisions are not those of the network's gates.
    pub fn of<'a>(
        spec: &NetSpec,
        file: &str,
        mut decisions: impl FnMut(usize, UnitKind) -> &'a [bool],
    ) -> Result<Self> {
        let block = |(index, block): (usize, &laud_models::BlockSpec)| {
            let patches = decisions(index, UnitKind::Patch);
            let groups = decisions(index, UnitKind::ChannelGroup);
            let activity = Activity::of(block, patches, groups, 1)?;
            let convs = block.convs.len();
            Ok(RecordedBlock {
                block: block.name.clone(),
                patches: block.gate.spatial.is_some().then_some(activity.patches),
                channel_groups: block.gate.channel.is_some().then_some(activity.channels),
                rows: activity.rows[..convs].to_vec(),
                runs: activity.runs[..convs].to_vec(),
            })
        };
        let blocks = spec.blocks.iter().enumerate().map(block).collect::<Result<_>>()?;
        Ok(Self { file: file.to_owned(), network: spec.name.clone(), blocks })
    }

    /// What the blocks' times depend on.
    pub fn activities(&self) -> Vec<Activity> {
        let one = |block: &RecordedBlock| {
            let list = |of: &[f64]| std::array::from_fn(|i| of.get(i).copied().unwrap_or(0.0));
            let patches = block.patches.unwrap_or(1.0);
            Activity {
                patches,
                channels: block.channel_groups.unwrap_or(1.0),
                samples: if patches > 0.0 { 1.0 } else { 0.0 },
                rows: list(&block.rows),
                runs: list(&block.runs),
            }
        };
        self.blocks.iter().map(one).collect()
    }
}

impl Densities {
    /// Reads a file about `spec`.
    ///
    /// # Errors
    /// Names file and line of the first thing that is wrong.
    pub fn load(path: &Path, spec: &NetSpec) -> Result<Self> {
        let name = || path.display().to_string();
        let text = std::fs::read_to_string(path).with_context(|| format!("{}: cannot read", name()))?;
        Self::parse(&text, spec).with_context(name)
    }

    fn parse(text: &str, spec: &NetSpec) -> Result<Self> {
        let mut images = Vec::new();
        for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let recorded: Recorded =
                serde_json::from_str(line).with_context(|| format!("line {}: not densities", at + 1))?;
            recorded.check(spec).with_context(|| format!("line {}", at + 1))?;
            images.push(recorded);
        }
        ensure!(!images.is_empty(), "no densities");
        Ok(Self { images })
    }

    /// Mean density of each block.
    pub fn means(&self) -> Vec<BlockDensity> {
        let blocks = self.images.first().map_or(0, |image| image.blocks.len());
        let mean = |of: &dyn Fn(&Recorded) -> f64| {
            self.images.iter().map(of).sum::<f64>() / self.images.len().max(1) as f64
        };
        (0..blocks)
            .map(|i| BlockDensity {
                patches: mean(&|image| image.blocks[i].patches.unwrap_or(1.0)),
                channels: mean(&|image| image.blocks[i].channel_groups.unwrap_or(1.0)),
            })
            .collect()
    }
}

impl Recorded {
    fn check(&self, spec: &NetSpec) -> Result<()> {
        ensure!(
            self.blocks.len() == spec.blocks.len(),
            "densities of the {} blocks of {}, {} has {}",
            self.blocks.len(),
            self.network,
            spec.name,
            spec.blocks.len()
        );
        for (recorded, block) in self.blocks.iter().zip(&spec.blocks) {
            let name = &recorded.block;
            ensure!(*name == block.name, "densities of block {name}, {} has {}", spec.name, block.name);
            for (density, gated) in [
                (recorded.patches, block.gate.spatial.is_some()),
                (recorded.channel_groups, block.gate.channel.is_some()),
            ] {
                ensure!(density.is_some() == gated, "{name}: other gates than {} has", spec.name);
                let value = density.unwrap_or(1.0);
                ensure!((0.0..=1.0).contains(&value), "{name}: density {value} is not in 0..=1");
            }
            let full = Activity::full(block);
            for (what, list) in [("rows", &recorded.rows), ("runs", &recorded.runs)] {
                let fits = list.len() == block.convs.len()
                    && list.iter().zip(full.rows).all(|(n, most)| (0.0..=most).contains(n));
                ensure!(fits, "{name}: {what} {list:?} of maps with {:?} pixels", full.rows);
            }
        }
        Ok(())
    }
}
