//! Network, profile and densities → [`ExecutionPlan`]: a pure function.

use super::{
    Activity, ActivityTable, BlockPlan, ExecutionPlan, Expected, Route, Setting, lower, lower_block,
};
use super::{Call, Times};
use anyhow::{Result, ensure};
use laud_models::{BlockSpec, NetSpec};
use laud_predictor::profile::Profile;

/// How much of a block a plan is made for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BlockDensity {
    /// Of patches, `0..=1`; not looked at where the block has no such gate.
    pub patches: f64,
    /// Of channel groups, `0..=1`.
    pub channels: f64,
}

/// One way to run a block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Alternative {
    /// How rows get to the convolutions.
    pub route: Route,
    /// Side of the squares they are scheduled in, cells.
    pub granularity: usize,
    /// Expected time of the block at the density that the plan is for, nanoseconds.
    pub ns: f64,
}

/// A plan and what it was chosen from.
#[derive(Clone, Debug)]
pub struct Choice {
    /// The plan.
    pub plan: ExecutionPlan,
    /// For each block the ways to run it, the one that was picked first.
    pub alternatives: Vec<Vec<Alternative>>,
    /// Expected time of an inference, nanoseconds, as picked and with every block dense.
    pub ns: f64,
    /// See [`ns`](Self::ns).
    pub dense_ns: f64,
}

/// Largest square that is considered, pixels.
const LARGEST_SQUARE: usize = 16;
/// Squares that list more than this share of a block's input are not considered.
const MOST_LISTED: f64 = 0.98;
/// Densities at which the expected times in a plan are given.
const KNOTS: [f64; 9] = [0.02, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.98];

/// Chooses how to run every block of `spec` so that it is expected to be fastest at `densities`, one a block.
///
/// # Errors
/// When there are not as many densities as blocks, or one is not in `0..=1`.
pub fn search(
    spec: &NetSpec,
    profile: &Profile,
    densities: &[BlockDensity],
    setting: &Setting,
) -> Result<Choice> {
    ensure!(
        densities.len() == spec.blocks.len(),
        "densities of {} blocks for the {} of {}",
        densities.len(),
        spec.blocks.len(),
        spec.name
    );
    for (block, density) in spec.blocks.iter().zip(densities) {
        for value in [density.patches, density.channels] {
            ensure!((0.0..=1.0).contains(&value), "{}: density {value} is not in 0..=1", block.name);
        }
    }
    let most = spec.blocks.iter().flat_map(granularities).max().unwrap_or(1);
    let all: Vec<usize> =
        std::iter::successors(Some(1), |side| Some(2 * side)).take_while(|s| *s <= most).collect();
    let search = Search { spec, profile, setting, table: ActivityTable::new(spec, &all)? };
    let mut plan = ExecutionPlan::sparse(spec);
    let mut alternatives = Vec::new();
    for (index, density) in densities.iter().enumerate() {
        let (block, choices) = search.block(index, *density);
        plan.blocks[index] = block;
        alternatives.push(choices);
    }
    let time = |plan: &ExecutionPlan| {
        let activities: Vec<Activity> = (plan.blocks.iter().zip(densities).enumerate())
            .map(|(i, (block, density))| search.activity(i, block.granularity, *density))
            .collect();
        lower(spec, plan, &activities, setting)
    };
    let lowered = time(&plan);
    let ns = |calls: &[Call]| network_ns(profile, calls.iter());
    plan.expected = Some(Times {
        batch: setting.batch,
        threads: setting.threads,
        stem_ns: ns(&lowered.stem) as f32,
        head_ns: ns(&lowered.head) as f32,
    });
    let whole = |lowered: &super::Lowered| network_ns(profile, lowered.calls());
    let dense = time(&ExecutionPlan::with_threshold(spec, 0.0));
    Ok(Choice { ns: whole(&lowered), dense_ns: whole(&dense), plan, alternatives })
}

/// Expected time of calls of a network, nanoseconds.
pub fn network_ns<'a>(profile: &Profile, calls: impl IntoIterator<Item = &'a Call>) -> f64 {
    let (workloads, times): (Vec<_>, Vec<_>) =
        calls.into_iter().map(|call| (&call.workload, call.times)).unzip();
    profile.calls_ns(&workloads).zip(times).map(|(ns, times)| ns * times).sum()
}

/// Sides of squares, in cells, that a block can be scheduled in.
fn granularities(block: &BlockSpec) -> Vec<usize> {
    let Some(gate) = block.gate.spatial.as_ref() else { return vec![1] };
    let (cells, pixels) = (gate.grid.h.max(gate.grid.w), block.output.h.max(block.output.w));
    let sides = std::iter::successors(Some(1), |side| Some(2 * side));
    sides.take_while(|&side| side == 1 || (side < cells && side * pixels <= LARGEST_SQUARE * cells)).collect()
}

struct Search<'a> {
    spec: &'a NetSpec,
    profile: &'a Profile,
    setting: &'a Setting,
    table: ActivityTable,
}

impl Search<'_> {
    fn activity(&self, index: usize, granularity: usize, density: BlockDensity) -> Activity {
        let gate = &self.spec.blocks[index].gate;
        let of = |gated: bool, density: f64| if gated { density } else { 1.0 };
        let patches = of(gate.spatial.is_some(), density.patches);
        self.table.at(index, granularity, patches, of(gate.channel.is_some(), density.channels))
    }

    fn ns(&self, index: usize, route: Route, granularity: usize, density: BlockDensity) -> f64 {
        let plan = BlockPlan { route, granularity, ..BlockPlan::sparse(&self.spec.blocks[index]) };
        let activity = self.activity(index, granularity, density);
        network_ns(self.profile, &lower_block(self.spec, index, &plan, &activity, self.setting))
    }

    /// The plan of one block, and what else there was.
    fn block(&self, index: usize, density: BlockDensity) -> (BlockPlan, Vec<Alternative>) {
        let block = &self.spec.blocks[index];
        let of = |route, granularity| Alternative {
            route,
            granularity,
            ns: self.ns(index, route, granularity, density),
        };
        // Squares that leave nothing out list what dense computes unlisted.
        let whole = Activity::full(block).rows[0];
        let leaves_some =
            |&side: &usize| side == 1 || self.activity(index, side, density).rows[0] < MOST_LISTED * whole;
        let sides = granularities(block).into_iter().filter(leaves_some);
        let mut choices: Vec<Alternative> = sides.map(|side| of(Route::Implicit, side)).collect();
        // The finest of equals: it computes least where the estimate is wrong.
        choices.sort_by(|a, b| a.ns.total_cmp(&b.ns));
        let gathered = choices[0];
        let patches = block.gate.spatial.as_ref().is_some_and(|gate| gate.grid.h * gate.grid.w > 1);
        let dense_above = if patches { self.break_even(index, gathered.granularity, density) } else { 1.0 };
        if patches {
            let dense = of(Route::Dense, 1);
            let at = if (density.patches as f32) < dense_above { choices.len() } else { 0 };
            choices.insert(at, dense);
        }
        let route = if dense_above > 0.0 { Route::Implicit } else { Route::Dense };
        let plan = BlockPlan {
            route,
            granularity: gathered.granularity,
            dense_above,
            expected: Some(self.expected(index, gathered.granularity, density)),
            ..BlockPlan::sparse(block)
        };
        (plan, choices)
    }

    /// The density from which on dense is expected to be faster.
    fn break_even(&self, index: usize, granularity: usize, density: BlockDensity) -> f32 {
        let gain = |patches: f64| {
            let at = BlockDensity { patches, ..density };
            self.ns(index, Route::Dense, 1, at) - self.ns(index, Route::Implicit, granularity, at)
        };
        let mut above: Option<(f64, f64)> = None;
        for &knot in KNOTS.iter().rev() {
            let gain = gain(knot);
            if gain >= 0.0 {
                // Between this knot and the one above the lines cross.
                let Some((higher, loss)) = above else { return 1.0 };
                return (knot + (higher - knot) * gain / (gain - loss).max(f64::MIN_POSITIVE)) as f32;
            }
            above = Some((knot, gain));
        }
        0.0
    }

    fn expected(&self, index: usize, granularity: usize, density: BlockDensity) -> Expected {
        let gate = &self.spec.blocks[index].gate;
        let at = |knot: f64| match gate.spatial {
            Some(_) => BlockDensity { patches: knot, ..density },
            None => BlockDensity { channels: knot, ..density },
        };
        let knots: Vec<f64> = match gate.is_some() {
            true => [0.0].into_iter().chain(KNOTS).chain([1.0]).collect(),
            false => vec![1.0],
        };
        let ns = |route, granularity| {
            knots.iter().map(|&knot| self.ns(index, route, granularity, at(knot)) as f32).collect()
        };
        Expected {
            gathered_ns: ns(Route::Implicit, granularity),
            dense_ns: ns(Route::Dense, 1),
            densities: knots.iter().map(|knot| *knot as f32).collect(),
        }
    }
}
