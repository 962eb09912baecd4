//! `laud plan --verify`: the plan against everything else there is, on the device.

use super::output::{Table, percent};
use super::plan::uniform;
use anyhow::{Context, Result};
use laud::exec::{Request, Trace};
use laud::gate::Policy;
use laud::plan::{Activity, ExecutionPlan, Route, Setting, lower, network_ns};
use laud::predictor::profile::Profile;
use laud::{Output, Session};
use laud_models::SqueezePooling;
use serde::Serialize;
use std::io::Write;

/// What verifying found.
#[derive(Serialize)]
pub(super) struct Report {
    network: String,
    batch: usize,
    rounds: usize,
    /// Of the inference: the plan, everything dense, everything gathered at each granularity.
    networks: Vec<Whole>,
    blocks: Vec<Block>,
    /// Time of the pick ÷ time of the best − 1, over the blocks with a choice.
    mean_regret: f64,
    worst_regret: f64,
    /// Share of these blocks whose pick is the best one.
    top1: f64,
    /// Of the whole network against the fastest of the others.
    network_regret: f64,
}

#[derive(Serialize)]
struct Whole {
    name: String,
    measured_us: f64,
    predicted_us: f64,
}

#[derive(Serialize)]
struct Block {
    block: String,
    picked: String,
    best: String,
    picked_us: f64,
    best_us: f64,
    dense_us: f64,
    predicted_us: f64,
    regret: f64,
}

/// Rounds that are counted, and those before.
const ROUNDS: usize = 21;
const WARM_UP: usize = 3;

/// Runs the plan, everything dense and every alternative of all blocks in turns.
pub(super) fn verify(
    session: &Session,
    policy: &dyn Policy,
    profile: &Profile,
    plan: &ExecutionPlan,
    setting: &Setting,
) -> Result<Report> {
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
    let mut traces: Vec<Vec<Trace>> = contestants.iter().map(|_| Vec::new()).collect();
    for round in 0..WARM_UP + ROUNDS {
        for (((_, plan), output), traces) in contestants.iter().zip(&mut outputs).zip(&mut traces) {
            session.infer_by(plan, request, policy, output)?;
            if round >= WARM_UP {
                traces.push(output.trace.clone());
            }
        }
    }
    let median = |of: &dyn Fn(&Trace) -> u64, traces: &[Trace]| {
        let mut times: Vec<u64> = traces.iter().map(of).collect();
        times.sort_unstable();
        times[times.len() / 2] as f64 / 1e3
    };
    let mut networks = Vec::new();
    let mut predicted_blocks = Vec::new();
    for ((name, plan), (output, traces)) in contestants.iter().zip(outputs.iter().zip(&traces)) {
        let activities =
            spec.blocks.iter().zip(&output.masks).zip(&plan.blocks).map(|((block, masks), plan)| {
                Activity::of(block, &masks.patches, &masks.channel_groups, plan.granularity)
            });
        let lowered = lower(spec, plan, &activities.collect::<Result<Vec<_>>>()?, setting);
        let ns = network_ns(profile, lowered.calls());
        networks.push(Whole {
            name: name.clone(),
            measured_us: median(&|trace| trace.total_ns(), traces),
            predicted_us: ns / 1e3,
        });
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
            if dense { "dense".to_owned() } else { format!("gather {}×{0}", plan.granularity) }
        };
        let time = |traces: &[Trace]| median(&|trace| trace.blocks[i].total_ns(), traces);
        let measured: Vec<(String, f64)> = contestants
            .iter()
            .zip(&traces)
            .filter(|((_, plan), _)| plan.blocks[i].granularity < 2 * cells)
            .map(|((_, plan), traces)| (way(plan), time(traces)))
            .collect();
        let picked = measured[0].0.clone();
        // The pick runs twice: in the plan and as an alternative.
        let of_pick = measured.iter().filter(|(name, _)| *name == picked).map(|(_, us)| *us);
        let picked_us = of_pick.fold(f64::INFINITY, f64::min);
        let best = measured.iter().min_by(|a, b| a.1.total_cmp(&b.1)).context("a block without a way")?;
        blocks.push(Block {
            block: block.name.clone(),
            best: best.0.clone(),
            best_us: best.1,
            picked_us,
            dense_us: time(&traces[1]),
            predicted_us: predicted_blocks[0][i],
            regret: picked_us / best.1 - 1.0,
            picked,
        });
    }
    let count = blocks.len().max(1) as f64;
    let fastest = networks.iter().map(|whole| whole.measured_us).fold(f64::INFINITY, f64::min);
    Ok(Report {
        network: spec.name.clone(),
        batch,
        rounds: ROUNDS,
        mean_regret: blocks.iter().map(|block| block.regret).sum::<f64>() / count,
        worst_regret: blocks.iter().map(|block| block.regret).fold(0.0, f64::max),
        top1: blocks.iter().filter(|block| block.picked == block.best).count() as f64 / count,
        network_regret: networks[0].measured_us / fastest - 1.0,
        networks,
        blocks,
    })
}

impl Report {
    pub(super) fn print(&self, out: &mut dyn Write) -> Result<()> {
        writeln!(
            out,
            "{}  ·  batch {}  ·  medians of {} rounds, in turns\n",
            self.network, self.batch, self.rounds
        )?;
        let off = |predicted: f64, measured: f64| format!("{:+.1} %", 100.0 * (predicted / measured - 1.0));
        let mut table = Table::new(["network, µs", "measured", "predicted", "off"]);
        for Whole { name, measured_us, predicted_us } in &self.networks {
            table.row([
                name.clone(),
                format!("{measured_us:.0}"),
                format!("{predicted_us:.0}"),
                off(*predicted_us, *measured_us),
            ]);
        }
        table.print(out)?;
        writeln!(out)?;
        let mut table = Table::new([
            "block, µs",
            "picked",
            "measured",
            "predicted",
            "off",
            "dense",
            "best",
            "µs",
            "regret",
        ]);
        for block in &self.blocks {
            table.row([
                block.block.clone(),
                block.picked.clone(),
                format!("{:.1}", block.picked_us),
                format!("{:.1}", block.predicted_us),
                off(block.predicted_us, block.picked_us),
                format!("{:.1}", block.dense_us),
                block.best.clone(),
                format!("{:.1}", block.best_us),
                percent(block.regret),
            ]);
        }
        table.print(out)?;
        writeln!(
            out,
            "\nregret of {} choices: mean {}, worst {}, best one picked {}; of the network {}",
            self.blocks.len(),
            percent(self.mean_regret),
            percent(self.worst_regret),
            percent(self.top1),
            percent(self.network_regret)
        )?;
        Ok(())
    }
}
