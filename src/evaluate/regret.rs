//! [`Regret`]: a plan against everything else there is, on the device.

use crate::exec::Request;
use crate::gate::Policy;
use crate::plan::{Activity, ExecutionPlan, Route, Setting, lower, network_ns};
use crate::{Output, Session};
use anyhow::{Context, Result};
use laud_models::{NetSpec, SqueezePooling};
use laud_predictor::measurements::median;
use laud_predictor::profile::Profile;
use serde::Serialize;
use std::time::Duration;

/// What verifying a plan found. Times are medians, in microseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Regret {
    /// Network.
    pub network: String,
    /// Images of an inference.
    pub batch: usize,
    /// Inferences of each way that count.
    pub rounds: usize,
    /// Of the inference: the plan, everything dense, everything gathered at each granularity.
    pub networks: Vec<WholeRegret>,
    /// Blocks with a choice.
    pub blocks: Vec<BlockRegret>,
    /// Time of the pick ÷ time of the best − 1, mean over these blocks.
    pub mean_regret: f64,
    /// The largest of them.
    pub worst_regret: f64,
    /// Share of these blocks whose pick is the best one.
    pub top1: f64,
    /// Of the whole network against the fastest of the others.
    pub network_regret: f64,
}

/// One way to run a network.
#[derive(Clone, Debug, Serialize)]
pub struct WholeRegret {
    /// In a few words.
    pub name: String,
    /// What it took.
    pub measured_us: f64,
    /// What it was expected to take, with what was active.
    pub predicted_us: f64,
}

/// How well one block was planned.
#[derive(Clone, Debug, Serialize)]
pub struct BlockRegret {
    /// Name.
    pub block: String,
    /// How it is run.
    pub picked: String,
    /// How it is fastest.
    pub best: String,
    /// Time as picked.
    pub picked_us: f64,
    /// Time of the fastest way.
    pub best_us: f64,
    /// Time dense.
    pub dense_us: f64,
    /// What the pick was expected to take.
    pub predicted_us: f64,
    /// Time of the pick ÷ time of the best − 1.
    pub regret: f64,
}

/// Rounds that are counted, at least, and those before.
const ROUNDS: usize = 21;
const WARM_UP: usize = 3;

/// Runs the plan, everything dense and every alternative of all blocks in turns, for `least` or longer: a shared machine has slow
/// phases of seconds.
///
/// # Errors
/// When an inference fails.
pub fn verify(
    session: &Session,
    policy: &dyn Policy,
    profile: &Profile,
    plan: &ExecutionPlan,
    setting: &Setting,
    least: Duration,
) -> Result<Regret> {
    let (spec, batch) = (session.spec(), setting.batch);
    let mut contestants = vec![
        ("plan".to_owned(), ExecutionPlan { expected: None, ..plan.clone() }),
        ("dense".to_owned(), uniform(spec, Route::Dense, 1)),
    ];
    for side in [1, 2, 4, 8, 16] {
        contestants.push((format!("gather {side}×{side}"), uniform(spec, Route::Implicit, side)));
    }
    let len = batch * spec.input.channels * spec.input.size.h * spec.input.size.w;
    let images: Vec<f32> = (0..len).map(|i| (i % 251) as f32 / 125.0 - 1.0).collect();
    let request = Request { images: &images, batch, features: false, masks: true, timed: true };
    let mut outputs: Vec<Output> = contestants.iter().map(|_| Output::default()).collect();
    // Of every way: the whole, then block by block, round after round.
    let mut times = vec![vec![Vec::new(); 1 + spec.blocks.len()]; contestants.len()];
    let (mut rounds, mut spent) = (0, 0);
    while rounds < WARM_UP + ROUNDS || Duration::from_nanos(spent) < least {
        for (((_, plan), output), times) in contestants.iter().zip(&mut outputs).zip(&mut times) {
            session.infer_by(plan, request, policy, output)?;
            spent += output.trace.total_ns();
            if rounds >= WARM_UP {
                let blocks = output.trace.blocks.iter().map(|block| block.total_ns());
                let ns = std::iter::once(output.trace.total_ns()).chain(blocks);
                times.iter_mut().zip(ns).for_each(|(times, ns)| times.push(ns as f64 / 1e3));
            }
        }
        rounds += 1;
    }
    let times: Vec<Vec<f64>> =
        times.into_iter().map(|times| times.into_iter().map(median).collect()).collect();
    let mut networks = Vec::new();
    let mut predicted_blocks = Vec::new();
    for ((name, plan), (output, times)) in contestants.iter().zip(outputs.iter().zip(&times)) {
        let activities =
            spec.blocks.iter().zip(&output.masks).zip(&plan.blocks).map(|((block, masks), plan)| {
                Activity::of(block, &masks.patches, &masks.channel_groups, plan.granularity)
            });
        let lowered = lower(spec, plan, &activities.collect::<Result<Vec<_>>>()?, setting);
        let ns = network_ns(profile, lowered.calls());
        networks.push(WholeRegret { name: name.clone(), measured_us: times[0], predicted_us: ns / 1e3 });
        predicted_blocks
            .push(lowered.blocks.iter().map(|calls| network_ns(profile, calls) / 1e3).collect::<Vec<_>>());
    }
    let mut blocks = Vec::new();
    for (i, block) in spec.blocks.iter().enumerate() {
        let Some(gate) = &block.gate.spatial else { continue };
        let cells = gate.grid.h.max(gate.grid.w);
        let partly = outputs[0].trace.blocks[i].patches;
        // Squeeze-excitation over every pixel leaves nothing to choose: all of them are computed.
        let everywhere =
            block.squeeze_excite.as_ref().is_some_and(|squeeze| squeeze.pooling == SqueezePooling::Dense);
        if cells == 1 || everywhere || partly.active == 0 || partly.active == partly.total {
            continue;
        }
        let way = |plan: &ExecutionPlan| {
            let plan = &plan.blocks[i];
            let dense = plan.route == Route::Dense || partly.density() as f32 >= plan.dense_above;
            let side = plan.granularity;
            if dense { "dense".to_owned() } else { format!("gather {side}×{side}") }
        };
        let measured: Vec<(String, f64)> = contestants
            .iter()
            .zip(&times)
            .filter(|((_, plan), _)| plan.blocks[i].granularity < 2 * cells)
            .map(|((_, plan), times)| (way(plan), times[1 + i]))
            .collect();
        let picked = measured[0].0.clone();
        // The pick runs twice: in the plan and as an alternative.
        let of_pick = measured.iter().filter(|(name, _)| *name == picked).map(|(_, us)| *us);
        let picked_us = of_pick.fold(f64::INFINITY, f64::min);
        let best = measured.iter().min_by(|a, b| a.1.total_cmp(&b.1)).context("a block without a way")?;
        blocks.push(BlockRegret {
            block: block.name.clone(),
            best: best.0.clone(),
            best_us: best.1,
            picked_us,
            dense_us: times[1][1 + i],
            predicted_us: predicted_blocks[0][i],
            regret: picked_us / best.1 - 1.0,
            picked,
        });
    }
    let count = blocks.len().max(1) as f64;
    let fastest = networks.iter().map(|whole| whole.measured_us).fold(f64::INFINITY, f64::min);
    Ok(Regret {
        network: spec.name.clone(),
        batch,
        rounds: rounds - WARM_UP,
        mean_regret: blocks.iter().map(|block| block.regret).sum::<f64>() / count,
        worst_regret: blocks.iter().map(|block| block.regret).fold(0.0, f64::max),
        top1: blocks.iter().filter(|block| block.picked == block.best).count() as f64 / count,
        network_regret: networks[0].measured_us / fastest - 1.0,
        networks,
        blocks,
    })
}

/// A plan in which every block does the same.
fn uniform(spec: &NetSpec, route: Route, granularity: usize) -> ExecutionPlan {
    let mut plan = ExecutionPlan::sparse(spec);
    plan.blocks.iter_mut().for_each(|block| (block.route, block.granularity) = (route, granularity));
    plan
}
