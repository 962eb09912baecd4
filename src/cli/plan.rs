//! `laud plan`: how should this network be run here, and at which granularity should it be trained?

use super::device::DeviceArgs;
use super::force::ForceArgs;
use super::model::{Model, ModelArgs};
use super::output::{Table, json, ms, save, speed};
use super::{parse, plan_verify, profile};
use anyhow::{Context, Result, ensure};
use clap::Args;
use laud::evaluate::verify;
use laud::plan::{BlockDensity, Choice, Densities, Route, Setting, lower, network_ns, search};
use laud::predictor::prior::{Mode, Network, Prior};
use laud::predictor::profile::Profile;
use laud::predictor::{Density, DeviceKind};
use laud_models::{GateMode, NetConfig, NetSpec, PerStage};
use serde_json::json;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

/// Choose how to run each block of a network on a calibrated device
#[derive(Args)]
pub(super) struct Plan {
    /// What `laud calibrate` wrote; for --for-training also a device one does not own, as `predict` knows them
    #[arg(long, value_name = "FILE")]
    profile: String,
    /// Densities to plan for, as `--record-densities` wrote them [default: --density for all gates]
    #[arg(long, value_name = "FILE", conflicts_with = "density")]
    densities: Option<PathBuf>,
    /// Images of an inference
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    batch: u16,
    /// Plan to write
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Run the plan, everything dense, and every alternative of each block, and print the regret
    #[arg(long)]
    verify: bool,
    /// How long that goes on; 21 rounds at least
    #[arg(long, value_name = "TIME", requires = "verify", default_value = "10s", value_parser = parse::duration)]
    duration: Duration,
    /// Rank the granularities that masks could be trained at, stage by stage
    #[arg(long, conflicts_with_all = ["verify", "out", "densities"])]
    for_training: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    force: ForceArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Sides of patches that are ranked, pixels.
const SIDES: [usize; 7] = [1, 2, 4, 7, 8, 14, 16];

impl Plan {
    pub(super) fn run(self, out: &mut dyn Write) -> Result<()> {
        self.force.no_exits("plan")?;
        let model = self.model.resolve(&self.force)?;
        if self.for_training {
            return self.for_training(&model, out);
        }
        ensure!(
            model.is_gated(),
            "{} has no gates, there is nothing to plan; add --density, or take a network with gates",
            model.spec.name
        );
        let spec = &model.spec;
        let profile = profile::load_for(self.profile.as_ref(), &self.device)?;
        let densities = match (&self.densities, self.force.single()?) {
            (Some(file), _) => Densities::load(file, spec)?.means(),
            (None, Some(density)) => {
                vec![BlockDensity { patches: density, channels: density }; spec.blocks.len()]
            }
            (None, None) => anyhow::bail!("what to plan for? give --density or --densities"),
        };
        let setting = self.setting(&profile);
        let mut choice = search(spec, &profile, &densities, &setting)?;
        if let Some(given) = self.device.plan()? {
            given.check(spec)?;
            choice.plan = given;
        }
        if let Some(path) = &self.out {
            let text = serde_json::to_string_pretty(&choice.plan).context("cannot write the plan")?;
            save(path, &format!("{text}\n"))?;
        }
        if self.verify {
            let (density, batch) = (self.force.single()?, usize::from(self.batch));
            let policy = self.force.policy(spec, batch, density.or(Some(mean(&densities))), &self.device)?;
            let session = self.device.builder()?.session(&model)?;
            let regret = verify(&session, &*policy, &profile, &choice.plan, &setting, self.duration)?;
            return match self.json {
                true => json(out, &regret),
                false => plan_verify::print(&regret, out),
            };
        }
        match self.json {
            true => json(out, &choice.plan),
            false => self.print(spec, &profile, &choice, out),
        }
    }

    /// What the calls depend on besides the network.
    fn setting(&self, profile: &Profile) -> Setting {
        let one = Setting::of(profile, self.device.threads(), self.device.dtype());
        Setting { batch: self.batch.into(), ..one }
    }

    fn print(&self, spec: &NetSpec, profile: &Profile, choice: &Choice, out: &mut dyn Write) -> Result<()> {
        writeln!(
            out,
            "{}  ·  {}  ·  {}  ·  expected {}, dense {}  {}\n",
            spec.name,
            profile.model.facts().name,
            asked(&self.setting(profile), profile),
            ms(choice.ns / 1e6),
            ms(choice.dense_ns / 1e6),
            speed(choice.dense_ns / choice.ns)
        )?;
        let mut table =
            Table::new(["block", "route", "squares", "dense above", "µs", "instead, µs"]).left(1).left(5);
        for ((block, plan), alternatives) in
            spec.blocks.iter().zip(&choice.plan.blocks).zip(&choice.alternatives)
        {
            let gated = block.gate.spatial.is_some();
            let (picked, others) = alternatives.split_first().context("a block without a way to run it")?;
            let others = others.iter().map(|other| {
                let name = match other.route {
                    Route::Dense => "dense".to_owned(),
                    Route::Implicit => format!("{}×{0}", other.granularity),
                };
                format!("{name} {:.0}", other.ns / 1e3)
            });
            let of = |text: String| if gated { text } else { String::new() };
            table.row([
                block.name.clone(),
                of(if picked.route == Route::Dense { "dense" } else { "gather" }.to_owned()),
                of(format!("{}×{0}", plan.granularity)),
                of(format!("{:.2}", plan.dense_above)),
                format!("{:.0}", picked.ns / 1e3),
                others.collect::<Vec<_>>().join(", "),
            ]);
        }
        table.print(out)
    }

    fn for_training(&self, model: &Model, out: &mut dyn Write) -> Result<()> {
        let density = self.force.single()?.unwrap_or(0.5);
        let stages = model.spec.blocks.last().map_or(0, |block| block.stage + 1);
        let smallest = |stage: usize| {
            let of = model.spec.blocks.iter().filter(|block| block.stage == stage);
            of.map(|block| block.output.h.min(block.output.w)).min().unwrap_or(1)
        };
        let own = std::path::Path::new(&self.profile).is_file();
        let (what, unit, ranked) = match own {
            true => {
                let profile = profile::load_for(self.profile.as_ref(), &self.device)?;
                let name = profile.model.facts().name.clone();
                let time = |stage, side| self.stage_ms(model, &profile, stages, stage, side, density);
                (name, "stage", rank(stages, smallest, time)?)
            }
            false => {
                let prior = Prior::new(super::predict::find(&self.profile)?)?;
                let name = super::predict::simulator_name(&model.spec.name).to_owned();
                let network = Network::named(&name).with_context(|| format!("--model {name}"))?;
                let rate = Density::new(density)?;
                let time = |stage: usize, side: usize| {
                    let list: Vec<String> =
                        (0..stages).map(|s| if s == stage { side } else { 1 }.to_string()).collect();
                    let mode: Mode = format!("spatial:{}", list.join("-")).parse()?;
                    let latency = prior.network(&network, &mode, rate, self.batch.into())?;
                    Ok(1e3 * latency.total_s())
                };
                (prior.device().title.clone(), "network", rank(stages, smallest, time)?)
            }
        };
        if self.json {
            let rows = ranked.iter().enumerate().flat_map(|(stage, list)| {
                list.iter()
                    .map(move |(side, ms)| json!({ "stage": stage + 1, "granularity": side, "ms": ms }))
            });
            return json(out, &rows.collect::<Vec<_>>());
        }
        writeln!(
            out,
            "{}  ·  {what}  ·  batch {}  ·  density {density}  ·  best first, time of the {unit}\n",
            model.spec.name, self.batch
        )?;
        let mut table = Table::new(["stage", "patches", "ms", "to the best"]);
        for (stage, list) in ranked.iter().enumerate() {
            for (side, ms) in list {
                let best = list.first().map_or(*ms, |(_, best)| *best);
                table.row([
                    (stage + 1).to_string(),
                    format!("{side}×{side}"),
                    format!("{ms:.3}"),
                    format!("{:.3}", ms / best),
                ]);
            }
        }
        table.print(out)
    }

    /// Expected time of a stage whose masks have patches of `side`, as planned.
    fn stage_ms(
        &self,
        model: &Model,
        profile: &Profile,
        stages: usize,
        stage: usize,
        side: usize,
        density: f64,
    ) -> Result<f64> {
        let modes = (0..stages).map(|s| if s == stage { GateMode::Spatial } else { GateMode::None });
        let config = NetConfig {
            dyn_mode: Some(PerStage::Each(modes.collect())),
            spatial_granularity: Some(PerStage::All(side)),
            ..model.config.clone()
        };
        let spec = config.build()?;
        let setting = self.setting(profile);
        let densities = vec![BlockDensity { patches: density, channels: 1.0 }; spec.blocks.len()];
        let choice = search(&spec, profile, &densities, &setting)?;
        let table = laud::plan::ActivityTable::new(&spec, &[1, 2, 4, 8, 16])?;
        let activities: Vec<_> = (spec.blocks.iter().zip(&choice.plan.blocks).enumerate())
            .map(|(i, (block, plan))| {
                let patches = if block.gate.spatial.is_some() { density } else { 1.0 };
                table.at(i, plan.granularity, patches, 1.0)
            })
            .collect();
        let lowered = lower(&spec, &choice.plan, &activities, &setting);
        let of_stage = spec.blocks.iter().zip(&lowered.blocks).filter(|(block, _)| block.stage == stage);
        Ok(of_stage.map(|(_, calls)| network_ns(profile, calls)).sum::<f64>() / 1e6)
    }
}

/// Sides with their times, best first, for every stage.
fn rank(
    stages: usize,
    smallest: impl Fn(usize) -> usize,
    time: impl Fn(usize, usize) -> Result<f64>,
) -> Result<Vec<Vec<(usize, f64)>>> {
    let stage = |stage: usize| {
        let sides = SIDES.into_iter().filter(|&side| side <= smallest(stage));
        let mut list = sides.map(|side| Ok((side, time(stage, side)?))).collect::<Result<Vec<_>>>()?;
        list.sort_by(|a, b| a.1.total_cmp(&b.1));
        Ok(list)
    };
    (0..stages).map(stage).collect()
}

/// Batch, and threads where a device has them, for people.
pub(super) fn asked(setting: &Setting, profile: &Profile) -> String {
    let batch = format!("batch {}", setting.batch);
    match profile.model.facts().kind {
        DeviceKind::Cpu => format!("{batch}, {} threads", setting.threads),
        DeviceKind::Cuda => format!("{batch}, {}", setting.dtype),
    }
}

fn mean(densities: &[BlockDensity]) -> f64 {
    densities.iter().map(|density| density.patches).sum::<f64>() / densities.len().max(1) as f64
}
