use super::{Decisions, Policy, Rule, UnitKind, Units};
use crate::files::write_atomically;
use anyhow::{Context, Result, ensure};
use laud_models::NetSpec;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The same units for every image: those that rank highest by a score that was measured beforehand.
///
/// With how often a learned gate keeps each unit as its score this is static pruning of the least used; with what each unit
/// adds to accuracy it is the best that does not look at the image.
#[derive(Clone, Debug)]
pub struct Ranked {
    name: String,
    /// Of each block: patches, channel groups.
    kept: Vec<[Vec<bool>; 2]>,
}

/// What was measured about the units of one network, as `laud rank` writes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scores {
    /// Network.
    pub network: String,
    /// What was measured.
    pub by: ScoredBy,
    /// On how many images.
    pub images: usize,
    /// One entry per block, in the order of execution.
    pub blocks: Vec<BlockScores>,
}

/// What scores mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScoredBy {
    /// Share of the images for which the gates keep a unit.
    Usage,
    /// By how much the loss grows without a unit, everything else active.
    Importance,
}

/// A block's scores, one a unit; empty where it has no such gate.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockScores {
    /// Block, as the network names it.
    pub block: String,
    /// Of the cells of the spatial gate's grid, row by row.
    pub patches: Vec<f64>,
    /// Of the channel groups.
    pub channels: Vec<f64>,
}

impl Scores {
    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read or holds something else.
    pub fn load(path: &Path) -> Result<Self> {
        let name = || path.display().to_string();
        let text = std::fs::read_to_string(path).with_context(|| format!("{}: cannot read", name()))?;
        serde_json::from_str(&text).with_context(|| format!("{}: no scores of units", name()))
    }

    /// Writes a file, all or nothing.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string(self)?;
        write_atomically(path, |out| writeln!(out, "{text}"))
            .with_context(|| format!("{}: cannot write", path.display()))
    }
}

impl Ranked {
    /// Keeps the units that the trained gates keep most often: `usage` is each unit's share of the images.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn by_usage(spec: &NetSpec, usage: &[BlockScores], share: f64) -> Result<Self> {
        Self::new(format!("pruned to {share}"), spec, usage, share)
    }

    /// Keeps the units whose absence costs most: `importance` is, for each unit, what is lost without it.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn by_importance(spec: &NetSpec, importance: &[BlockScores], share: f64) -> Result<Self> {
        Self::new(format!("importance {share}"), spec, importance, share)
    }

    /// Keeps the `share` of all units of a kind, over all blocks, that scores highest; the earlier of equals.
    ///
    /// # Errors
    /// Scores that do not fit the gates or are no numbers, a share outside `0..=1`.
    pub fn new(name: String, spec: &NetSpec, scores: &[BlockScores], share: f64) -> Result<Self> {
        ensure!((0.0..=1.0).contains(&share), "share {share} is not in 0..=1");
        ensure!(
            scores.len() == spec.blocks.len(),
            "scores of {} blocks for the {} blocks of {}",
            scores.len(),
            spec.blocks.len(),
            spec.name
        );
        for (block, scores) in spec.blocks.iter().zip(scores) {
            ensure!(
                scores.block == block.name,
                "scores of block {}, {} has {}",
                scores.block,
                spec.name,
                block.name
            );
            let cells = block.gate.spatial.as_ref().map_or(0, |gate| gate.grid.h * gate.grid.w);
            let groups = block.gate.channel.as_ref().map_or(0, |gate| gate.groups);
            for (kind, need, got) in
                [("patches", cells, &scores.patches), ("channel groups", groups, &scores.channels)]
            {
                ensure!(got.len() == need, "{}: {} scores for {need} {kind}", block.name, got.len());
                ensure!(!got.iter().any(|score| score.is_nan()), "{}: a score that is no number", block.name);
            }
        }
        let mut kept: Vec<[Vec<bool>; 2]> =
            scores.iter().map(|s| [vec![false; s.patches.len()], vec![false; s.channels.len()]]).collect();
        for kind in 0..2 {
            let of =
                |scores: &'_ BlockScores| [scores.patches.clone(), scores.channels.clone()][kind].clone();
            let all = scores.iter().enumerate().flat_map(|(block, scores)| {
                of(scores).into_iter().enumerate().map(move |(unit, score)| (score, block, unit))
            });
            let mut all: Vec<(f64, usize, usize)> = all.collect();
            all.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
            let count = (share * all.len() as f64).round() as usize;
            all.into_iter().take(count).for_each(|(_, block, unit)| kept[block][kind][unit] = true);
        }
        Ok(Self { name, kept })
    }
}

impl Policy for Ranked {
    fn name(&self) -> &str {
        &self.name
    }

    fn rule(&self) -> Rule<'_> {
        Rule::Given(self)
    }
}

impl Decisions for Ranked {
    fn decide(&self, units: Units, keep: &mut [bool]) {
        let kind = usize::from(units.kind == UnitKind::ChannelGroup);
        let kept = self.kept.get(units.block).map_or(&[][..], |block| &block[kind]);
        keep.iter_mut().zip(kept.iter().cycle()).for_each(|(keep, kept)| *keep = *kept);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use laud_models::NetConfig;

    #[test]
    fn the_highest_scores_are_kept_for_every_sample() {
        let config = r#"{"arch": "resnet20", "depths": [2, 2], "widths": [8, 8], "stem_width": 8, "dyn_mode": "layer"}"#;
        let spec = NetConfig::from_json(config).unwrap().build().unwrap();
        let score = |(score, block): (f64, &laud_models::BlockSpec)| BlockScores {
            block: block.name.clone(),
            patches: vec![score],
            channels: vec![],
        };
        let scores: Vec<_> = [0.2, 0.9, 0.9, 0.1].into_iter().zip(&spec.blocks).map(score).collect();
        let policy = Ranked::by_usage(&spec, &scores, 0.5).unwrap();
        let decide = |block| {
            let mut keep = [false; 3];
            let units = Units { block, kind: UnitKind::Patch, first: 0, batch: 3, per_sample: 1 };
            policy.decide(units, &mut keep);
            keep
        };
        assert_eq!(
            [decide(0), decide(1), decide(2), decide(3)],
            [[false; 3], [true; 3], [true; 3], [false; 3]]
        );
        assert!(Ranked::by_usage(&spec, &scores[1..], 0.5).is_err());
        assert!(Ranked::by_usage(&spec, &scores, 1.5).is_err());
    }
}
