use super::{Decisions, Policy, Rule, UnitKind, Units};
use crate::random::Random;
use anyhow::{Result, ensure};
use laud_models::NetSpec;

/// Decisions fixed beforehand: recorded masks, or masks forced to a density.
#[derive(Clone, Debug)]
pub struct Given {
    name: String,
    /// Decisions `[samples, per_sample]` of each block's gates.
    blocks: Vec<BlockDecisions>,
}

/// Decisions of one block; `None` where it has no such gate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct BlockDecisions {
    patches: Option<Vec<bool>>,
    channels: Option<Vec<bool>>,
}

/// Recorded decisions of one block: patches `[samples, cells]` and channel groups `[samples, groups]`, each where the
/// block has such a gate.
pub type Recorded = (Option<Vec<bool>>, Option<Vec<bool>>);

/// How forced patches lie on the map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pattern {
    /// Independently of each other: the worst case for a kernel.
    Scattered,
    /// In a few blobs, as learned masks do.
    #[default]
    Clustered,
}

impl Given {
    /// Recorded decisions: for each block its patches `[samples, cells]` and channel groups `[samples, groups]`.
    ///
    /// # Errors
    /// When a block's decisions are missing, of a gate it does not have, or not a whole number of samples.
    pub fn recorded(spec: &NetSpec, decisions: Vec<Recorded>) -> Result<Self> {
        ensure!(
            decisions.len() == spec.blocks.len(),
            "decisions of {} blocks for the {} blocks of {}",
            decisions.len(),
            spec.blocks.len(),
            spec.name
        );
        for (block, (patches, channels)) in spec.blocks.iter().zip(&decisions) {
            let cells = block.gate.spatial.as_ref().map(|gate| gate.grid.h * gate.grid.w);
            let groups = block.gate.channel.as_ref().map(|gate| gate.groups);
            for (kind, units, got) in [("patches", cells, patches), ("channel groups", groups, channels)] {
                let fits = match (units, got) {
                    (None, None) => true,
                    (Some(units), Some(got)) => !got.is_empty() && got.len() % units == 0,
                    _ => false,
                };
                let got = got.as_ref().map_or(0, Vec::len);
                ensure!(fits, "{}: {got} decisions about {} {kind}", block.name, units.unwrap_or(0));
            }
        }
        let blocks =
            decisions.into_iter().map(|(patches, channels)| BlockDecisions { patches, channels }).collect();
        Ok(Self { name: "recorded".into(), blocks })
    }

    /// Decisions forced so that in each of `samples` samples `round(density · units)` units of each gate are kept;
    /// where a gate has a single unit (layer skipping) the rounding is over all such gates of the sample. The same
    /// `seed` gives the same decisions.
    ///
    /// # Errors
    /// When `density` is not in `0..=1` or `samples` is 0.
    pub fn forced(spec: &NetSpec, samples: usize, density: f64, pattern: Pattern, seed: u64) -> Result<Self> {
        ensure!((0.0..=1.0).contains(&density), "density {density} is not in 0..=1");
        ensure!(samples > 0, "forced decisions need at least one sample");
        let keep = |units: usize| (density * units as f64).round() as usize;
        let mut random = Random::new(seed);
        let mut blocks = vec![BlockDecisions::default(); spec.blocks.len()];
        let single = |block: &laud_models::BlockSpec| {
            block.gate.spatial.as_ref().is_some_and(|g| g.grid.h * g.grid.w == 1)
        };
        let layers: Vec<usize> = (0..blocks.len()).filter(|&i| single(&spec.blocks[i])).collect();
        for _ in 0..samples {
            let scores = layers.iter().map(|_| random.uniform()).collect();
            for (&i, kept) in layers.iter().zip(top(scores, keep(layers.len()))) {
                blocks[i].patches.get_or_insert_default().push(kept);
            }
            for (decisions, block) in blocks.iter_mut().zip(&spec.blocks) {
                if let Some(gate) = block.gate.spatial.as_ref().filter(|_| !single(block)) {
                    let scores = match pattern {
                        Pattern::Scattered => {
                            (0..gate.grid.h * gate.grid.w).map(|_| random.uniform()).collect()
                        }
                        Pattern::Clustered => blobs(&mut random, gate.grid.h, gate.grid.w),
                    };
                    let kept = top(scores, keep(gate.grid.h * gate.grid.w));
                    decisions.patches.get_or_insert_default().extend(kept);
                }
                if let Some(gate) = &block.gate.channel {
                    let scores = (0..gate.groups).map(|_| random.uniform()).collect();
                    decisions.channels.get_or_insert_default().extend(top(scores, keep(gate.groups)));
                }
            }
        }
        Ok(Self { name: format!("forced to density {density}"), blocks })
    }
}

impl Policy for Given {
    fn name(&self) -> &str {
        &self.name
    }

    fn rule(&self) -> Rule<'_> {
        Rule::Given(self)
    }
}

impl Decisions for Given {
    /// Samples beyond those given repeat them from the first.
    fn decide(&self, units: Units, keep: &mut [bool]) {
        let block = &self.blocks[units.block];
        let given = match units.kind {
            UnitKind::Patch => &block.patches,
            UnitKind::ChannelGroup => &block.channels,
        };
        let given = given.as_ref().expect("a gate that the specification has");
        let from = units.first * units.per_sample % given.len();
        let repeated = given[from..].iter().chain(given.iter().cycle());
        keep.iter_mut().zip(repeated).for_each(|(keep, given)| *keep = *given);
    }
}

/// Marks the `count` largest scores; the earlier one wins a tie.
fn top(scores: Vec<f64>, count: usize) -> Vec<bool> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    let mut kept = vec![false; scores.len()];
    order.into_iter().take(count).for_each(|i| kept[i] = true);
    kept
}

/// A smooth random field on a grid: a few bumps and a little noise.
fn blobs(random: &mut Random, h: usize, w: usize) -> Vec<f64> {
    let bumps: Vec<(f64, f64, f64)> =
        (0..3).map(|_| (random.uniform(), random.uniform(), 0.12 + 0.2 * random.uniform())).collect();
    let mut field = Vec::with_capacity(h * w);
    for y in 0..h {
        for x in 0..w {
            let (y, x) = ((y as f64 + 0.5) / h as f64, (x as f64 + 0.5) / w as f64);
            let bump = |&(cy, cx, r): &(f64, f64, f64)| {
                (-((y - cy).powi(2) + (x - cx).powi(2)) / (2.0 * r * r)).exp()
            };
            field.push(bumps.iter().map(bump).sum::<f64>() + 0.15 * random.uniform());
        }
    }
    field
}
