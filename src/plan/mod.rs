//! What the executor does with a block, decided before it runs.

mod activity;
mod budget;
mod densities;
mod expected;
mod lower;
mod portions;
mod search;

pub use activity::{Activity, ActivityTable};
pub use budget::{Spending, budget};
pub use densities::{Densities, Recorded, RecordedBlock};
pub use expected::{Expected, Times};
pub use lower::{CPU_MAP_BYTES, CUDA_MAP_BYTES, Call, Lowered, Setting, lower, lower_block};
pub use portions::Portions;
pub use search::{Alternative, BlockDensity, Choice, network_ns, search};

use anyhow::{Context, Result, ensure};
use laud_models::{BlockSpec, NetSpec};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// How to run every block of one network. Plain data: written as JSON, read back, edited by hand.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecutionPlan {
    /// Network it was made for.
    pub network: String,
    /// How long the rest is expected to take; `None`: nobody asked a predictor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<Times>,
    /// One entry per block, in the order of execution.
    pub blocks: Vec<BlockPlan>,
}

/// How to run one block.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockPlan {
    /// Block, as the network names it.
    pub block: String,
    /// How all convolutions but the last get their rows. Only the last one writes, so the result is the same.
    #[serde(default)]
    pub route: Route,
    /// Side of the squares, in cells of the mask, that they are scheduled in: a square of which a cell is kept is
    /// computed, the last convolution writes what is kept. 1 is the granularity of the mask.
    #[serde(default = "one")]
    pub granularity: usize,
    /// Density of patches, `0..=1`, from which on they run on every pixel: gathering no longer pays.
    pub dense_above: f32,
    /// How long it is expected to take; `None`: nobody asked a predictor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<Expected>,
}

/// How rows get to a convolution.
///
/// There is no route that copies what active rows read into a dense matrix first: with half of the rows of ResNet-50's and
/// RegNet-Y's convolutions that was nowhere faster on an Intel Xeon (Emerald Rapids), with one thread or two; on an AMD EPYC
/// (Zen 4) it was 0 to 14 % slower on two threads, the stem 44 %, and on one thread 3 to 19 % faster (four runs) at two
/// convolutions of the last stage, a 3×3 and one with stride 2, and else 2 % at best (`cargo bench --bench gather_gemm`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Route {
    /// Every pixel is computed.
    Dense,
    /// Active rows are gathered while their operands are loaded.
    #[default]
    Implicit,
}

fn one() -> usize {
    1
}

/// Larger squares than any map.
const MAX_GRANULARITY: usize = 1 << 16;

impl ExecutionPlan {
    /// Gathers as soon as anything is inactive.
    pub fn sparse(spec: &NetSpec) -> Self {
        Self::with_threshold(spec, 1.0)
    }

    /// The same threshold for every block.
    pub fn with_threshold(spec: &NetSpec, dense_above: f32) -> Self {
        let block = |block| BlockPlan { dense_above, ..BlockPlan::sparse(block) };
        let blocks = spec.blocks.iter().map(block).collect();
        Self { network: spec.name.clone(), expected: None, blocks }
    }

    /// Reads a plan from a JSON file.
    ///
    /// # Errors
    /// When the file cannot be read or is not a plan.
    pub fn load(path: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("{}: cannot read", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{}: not an execution plan", path.display()))
    }

    /// Checks that the plan is about this network.
    ///
    /// # Errors
    /// Names the first difference.
    pub fn check(&self, spec: &NetSpec) -> Result<()> {
        ensure!(
            self.blocks.len() == spec.blocks.len(),
            "the plan for {} has {} blocks, {} has {}",
            self.network,
            self.blocks.len(),
            spec.name,
            spec.blocks.len()
        );
        for (plan, block) in self.blocks.iter().zip(&spec.blocks) {
            ensure!(plan.block == block.name, "the plan is about block {}, not {}", plan.block, block.name);
            ensure!(
                (0.0..=1.0).contains(&plan.dense_above),
                "{}: dense_above {} is not in 0..=1",
                plan.block,
                plan.dense_above
            );
            if let Some(expected) = &plan.expected {
                expected.check().with_context(|| plan.block.clone())?;
            }
            ensure!(
                (1..=MAX_GRANULARITY).contains(&plan.granularity),
                "{}: granularity {} is not in 1..={MAX_GRANULARITY}",
                plan.block,
                plan.granularity
            );
        }
        Ok(())
    }
}

impl BlockPlan {
    /// Gathers as soon as anything is inactive.
    pub fn sparse(block: &BlockSpec) -> Self {
        let (route, granularity, dense_above) = (Route::Implicit, 1, 1.0);
        Self { block: block.name.clone(), route, granularity, dense_above, expected: None }
    }
}
