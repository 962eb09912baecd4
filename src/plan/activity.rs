//! [`Activity`]: how much of a block is active, as far as its time depends on it.

use crate::gate::{Decisions, Given, Pattern, UnitKind, Units};
use anyhow::{Context, Result, ensure};
use laud_models::{BlockSpec, MapSize, MaskGrid, NetSpec};
use serde::{Deserialize, Serialize};

/// Longest branch of any family, convolutions.
const MAX_CONVS: usize = 3;
/// Densities that [`ActivityTable`] draws masks at.
const DENSITIES: [f64; 11] = [0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0];
/// Masks drawn for each of them.
const SAMPLES: usize = 3;

/// What is active in one block, means over samples.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Activity {
    /// Density of patches, `0..=1`.
    pub patches: f64,
    /// Density of channel groups, `0..=1`.
    pub channels: f64,
    /// Share of the samples of which anything is active, `0..=1`.
    pub samples: f64,
    /// Active output pixels of each convolution of the branch, the halo included.
    pub rows: [f64; MAX_CONVS],
    /// Maximal stretches of them that are neighbours in a line.
    pub runs: [f64; MAX_CONVS],
}

impl Activity {
    /// Everything is active.
    pub fn full(block: &BlockSpec) -> Self {
        let mut activity = Self {
            patches: 1.0,
            channels: 1.0,
            samples: 1.0,
            rows: [0.0; MAX_CONVS],
            runs: [0.0; MAX_CONVS],
        };
        for (i, (_, size)) in maps(block).enumerate().take(MAX_CONVS) {
            (activity.rows[i], activity.runs[i]) = ((size.h * size.w) as f64, size.h as f64);
        }
        activity
    }

    /// Of recorded decisions: patches `[samples, cells]` and channel groups `[samples, groups]`, empty where the block
    /// has no such gate. All convolutions but the last are scheduled in squares of `granularity` cells.
    ///
    /// # Errors
    /// When the decisions are not those of the block's gates.
    pub fn of(block: &BlockSpec, patches: &[bool], groups: &[bool], granularity: usize) -> Result<Self> {
        let mut activity = Self::full(block);
        if let Some(gate) = &block.gate.channel {
            let fits = !groups.is_empty() && groups.len().is_multiple_of(gate.groups);
            ensure!(fits, "{}: {} decisions about channel groups", block.name, groups.len());
            activity.channels = share(groups);
        }
        let Some(gate) = &block.gate.spatial else { return Ok(activity) };
        let cells = gate.grid.h * gate.grid.w;
        let fits = !patches.is_empty() && patches.len().is_multiple_of(cells);
        ensure!(fits, "{}: {} decisions about patches", block.name, patches.len());
        let samples = (patches.len() / cells) as f64;
        activity.patches = share(patches);
        (activity.samples, activity.rows, activity.runs) = (0.0, [0.0; MAX_CONVS], [0.0; MAX_CONVS]);
        for keep in patches.chunks_exact(cells).filter(|keep| keep.contains(&true)) {
            activity.samples += 1.0 / samples;
            let fine = MaskGrid::new(gate.grid, keep.to_vec()).context("a mask of the gate's grid")?;
            let (mut masks, last) = (block.masks(&fine)?, block.convs.len() - 1);
            if granularity > 1 {
                let exact = masks.pop().context("a branch has convolutions")?;
                masks = block.masks(&coarse(&fine, granularity))?;
                masks[last] = exact;
            }
            for (i, mask) in masks.iter().enumerate().take(MAX_CONVS) {
                activity.rows[i] += mask.active() as f64 / samples;
                activity.runs[i] += runs(mask) as f64 / samples;
            }
        }
        Ok(activity)
    }
}

/// Activities of every block of a network at any density, estimated from masks drawn as learned ones are: in blobs.
#[derive(Clone, Debug)]
pub struct ActivityTable {
    granularities: Vec<usize>,
    /// Of each block, for each granularity, at each density.
    blocks: Vec<Vec<Vec<Activity>>>,
}

impl ActivityTable {
    /// Draws masks for `spec`, always the same, scheduled at each of `granularities` (cells).
    ///
    /// # Errors
    /// When the network's gates contradict its maps.
    pub fn new(spec: &NetSpec, granularities: &[usize]) -> Result<Self> {
        let mut blocks = vec![vec![Vec::new(); granularities.len()]; spec.blocks.len()];
        for density in DENSITIES {
            let given = Given::forced(spec, SAMPLES, density, Pattern::Clustered, 0)?;
            for (index, (block, table)) in spec.blocks.iter().zip(&mut blocks).enumerate() {
                let decide = |kind, per_sample| {
                    let mut keep = vec![false; SAMPLES * per_sample];
                    let units = Units { block: index, kind, first: 0, batch: SAMPLES, per_sample };
                    given.decide(units, &mut keep);
                    keep
                };
                let layer = block.gate.spatial.as_ref().is_some_and(|gate| gate.grid.h * gate.grid.w == 1);
                let patches = match &block.gate.spatial {
                    Some(gate) if !layer => decide(UnitKind::Patch, gate.grid.h * gate.grid.w),
                    Some(_) => vec![true],
                    None => Vec::new(),
                };
                let groups = match &block.gate.channel {
                    Some(gate) => decide(UnitKind::ChannelGroup, gate.groups),
                    None => Vec::new(),
                };
                for (&granularity, table) in granularities.iter().zip(table) {
                    let mut activity = Activity::of(block, &patches, &groups, granularity)?;
                    if layer {
                        // All of a sample or nothing: as many samples as the density says.
                        (activity.patches, activity.samples) = (density, density);
                        activity.rows.iter_mut().chain(&mut activity.runs).for_each(|n| *n *= density);
                    }
                    table.push(activity);
                }
            }
        }
        Ok(Self { granularities: granularities.to_vec(), blocks })
    }

    /// Block number `block` at a density of patches and one of channel groups, scheduled at `granularity`, which is one
    /// of those drawn or is taken for the first.
    pub fn at(&self, block: usize, granularity: usize, patches: f64, channels: f64) -> Activity {
        let which = self.granularities.iter().position(|&drawn| drawn == granularity).unwrap_or(0);
        let table = &self.blocks[block][which];
        let after = table.iter().position(|entry| entry.patches >= patches).unwrap_or(table.len() - 1);
        let (low, high) = (&table[after.saturating_sub(1)], &table[after]);
        let width = high.patches - low.patches;
        let t = if width > 0.0 { ((patches - low.patches) / width).max(0.0) } else { 1.0 };
        // Below the least density that was drawn, everything shrinks alike.
        let below = if patches < table[0].patches { patches / table[0].patches } else { 1.0 };
        let mix = |a: f64, b: f64| below * (a + (b - a) * t.min(1.0));
        let mut activity = *high;
        for i in 0..MAX_CONVS {
            activity.rows[i] = mix(low.rows[i], high.rows[i]);
            activity.runs[i] = mix(low.runs[i], high.runs[i]);
        }
        activity.samples = mix(low.samples, high.samples);
        activity.patches = if high.patches == low.patches && after > 0 { high.patches } else { patches };
        activity.channels = channels;
        activity
    }
}

/// Convolutions of the branch with the sizes of what they write.
pub(super) fn maps(block: &BlockSpec) -> impl Iterator<Item = (MapSize, MapSize)> + '_ {
    block.convs.iter().scan(block.input, |size, conv| {
        let input = *size;
        *size = conv.output_size(input).unwrap_or(input);
        Some((input, *size))
    })
}

fn share(keep: &[bool]) -> f64 {
    keep.iter().filter(|keep| **keep).count() as f64 / keep.len().max(1) as f64
}

/// Every cell of a square of `side` cells of which any is kept.
fn coarse(mask: &MaskGrid, side: usize) -> MaskGrid {
    let size = mask.size();
    let mut squares = vec![false; size.h.div_ceil(side) * size.w.div_ceil(side)];
    let at = |y: usize, x: usize| y / side * size.w.div_ceil(side) + x / side;
    for (y, x) in (0..size.h).flat_map(|y| (0..size.w).map(move |x| (y, x))) {
        squares[at(y, x)] |= mask.get(y, x);
    }
    MaskGrid::from_fn(size, |y, x| squares[at(y, x)])
}

fn runs(mask: &MaskGrid) -> usize {
    let starts = |line: &[bool]| (0..line.len()).filter(|&x| line[x] && (x == 0 || !line[x - 1])).count();
    mask.cells().chunks_exact(mask.size().w.max(1)).map(starts).sum()
}
