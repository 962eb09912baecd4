//! `laud eval`: how often is the network right, how long does it take, and what does skipping change?

use super::data::{DataArgs, bar};
use super::device::DeviceArgs;
use super::force::ForceArgs;
use super::model::{Model, ModelArgs};
use super::output::{Table, json, ms, percent, save, si, speed};
use super::profile;
use super::run::{class_name, densities_line, head};
use anyhow::{Result, ensure};
use clap::Args;
use laud::Session;
use laud::evaluate::{Compared, Contest, Evaluation, ExitShare, Forecast, Latency, evaluate};
use laud::gate::Policy;
use laud::plan::{ExecutionPlan, Setting};
use laud_models::NetSpec;
use serde_json::{Value, json};
use std::io::Write;
use std::path::PathBuf;

/// Measure accuracy and latency on labelled images, and what skipping changes
#[derive(Args)]
pub(super) struct Eval {
    #[command(flatten)]
    data: DataArgs,
    /// Time every inference so often; its median counts
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    repeat: u16,
    /// Predict latency too, from a calibrated device
    #[arg(long, value_name = "PROFILE")]
    predict: Option<PathBuf>,
    /// Print what was active block by block
    #[arg(long)]
    blocks: bool,
    /// Write each block's densities: JSON lines, one an image
    #[arg(long, value_name = "FILE")]
    record_densities: Option<PathBuf>,
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

impl Eval {
    pub(super) fn run(self, out: &mut dyn Write) -> Result<()> {
        let model = self.model.resolve(&self.force)?;
        let data = self.data.open()?;
        let images = self.data.images(&data, &model.spec)?;
        let builder = self.device.builder()?;
        let exits = self.force.exits()?;
        ensure!(
            exits.is_empty() || self.predict.is_none(),
            "--predict: what images leave early is not predicted; take a policy without exit"
        );
        let (density, batch) = (self.force.single()?, images.batch());
        let decider = |spec: &NetSpec| self.force.policy(spec, batch, density, &self.device);
        let policy = decider(&model.spec)?;
        let session = builder.leaving_early(&model, &exits, &decider)?;
        let adaptive = model.is_gated() || !exits.is_empty();
        let plain = adaptive.then(|| builder.static_session(&model)).transpose()?;
        let profile = self.predict.as_deref().map(|file| profile::load_for(file, &self.device));
        let profile = profile.transpose()?;
        let plan = match self.device.plan()? {
            Some(plan) => plan,
            None => ExecutionPlan::sparse(&model.spec),
        };
        let forecast = profile.as_ref().map(|profile| {
            let setting = Setting::of(profile, self.device.threads(), self.device.dtype());
            Forecast { profile, plan: &plan, setting }
        });
        let contest = Contest {
            session: &session,
            policy: &*policy,
            plain: plain.as_ref(),
            forecast,
            repeat: self.repeat.into(),
            masks: self.record_densities.is_some(),
        };
        let mut densities = String::new();
        let bar = bar(images.len());
        let found = evaluate(&contest, &images, &mut |batch, masked, progress| {
            for (i, output) in (0..batch.n).filter_map(|i| Some((i, masked?))) {
                let name = batch.data.get(batch.first + i)?.name;
                densities += &densities_line(&model.spec, &name, output, i)?;
            }
            bar.set_position(progress.images as u64);
            bar.set_message(format!("top-1 {}", percent(progress.right as f64 / progress.images as f64)));
            Ok(())
        });
        bar.finish_and_clear();
        let found = found?;
        if let Some(path) = &self.record_densities {
            save(path, &densities)?;
        }
        if self.json {
            return json(out, &self.json(&model, &session, &*policy, &found)?);
        }
        head(&model, &session, &self.force, out)?;
        writeln!(out)?;
        self.print(&model, &found, out)
    }

    fn print(&self, model: &Model, found: &Evaluation, out: &mut dyn Write) -> Result<()> {
        let n = found.images as f64;
        let compared = found.compared.as_ref();
        let against = |text: &dyn Fn(&Compared) -> String| {
            compared.map_or(String::new(), |compared| format!("  ·  static {}", text(compared)))
        };
        writeln!(out, "{}: {} images", self.data.data.display(), found.images)?;
        let error = 1.96 * (found.top1 * (1.0 - found.top1) / n).sqrt();
        let other = against(&|compared| percent(compared.top1));
        writeln!(out, "  top-1   {}  ±{:.1} (95 %){other}", percent(found.top1), 100.0 * error)?;
        writeln!(out, "  top-5   {}", percent(found.top5))?;
        let times = |latency: &Latency| {
            let Latency { mean, p50, p95, p99, .. } = latency;
            // With early exits the median is of those that leave, or of those that stay.
            let mean =
                if found.exits.is_empty() { String::new() } else { format!("mean {}  p50 ", ms(*mean)) };
            format!("{mean}{}  p95 {}  p99 {}", ms(*p50), ms(*p95), ms(*p99))
        };
        let batches = match found.batch {
            1 => "an image".to_owned(),
            batch => format!("an image, in batches of {batch}"),
        };
        let faster = found.speedup().map_or(String::new(), speed);
        let other = against(&|compared| format!("{}  {faster}", times(&compared.latency_ms)));
        writeln!(out, "  time    {} {batches}{other}", times(&found.latency_ms))?;
        if let Some(predicted) = &found.predicted_ms {
            let off = percent(predicted.mean / found.latency_ms.mean - 1.0);
            writeln!(out, "  predicted {}  ·  mean off by {off}", times(predicted))?;
        }
        let macs = found.macs;
        if compared.is_none() {
            return Ok(writeln!(out, "  MACs    {}", si(macs.dense))?);
        }
        let share = percent(macs.done / macs.dense);
        writeln!(
            out,
            "  MACs    {} of {} ({share}), at most {}",
            si(macs.done),
            si(macs.dense),
            si(macs.most)
        )?;
        for exit in &found.exits {
            let ExitShare { size, images, answered } = exit;
            let percent = percent(*answered as f64 / (*images).max(1) as f64);
            writeln!(out, "  exit    {}×{} answers {answered} of {images} ({percent})", size.h, size.w)?;
        }
        let mut parts = vec![format!("blocks {}", percent(found.computed.blocks))];
        let has = |kind: fn(&laud_models::BlockSpec) -> bool| model.spec.blocks.iter().any(kind);
        if has(|block| block.gate.spatial.as_ref().is_some_and(|gate| !gate.layer)) {
            parts.push(format!("patches {}", percent(found.computed.patches)));
        }
        if has(|block| block.gate.channel.is_some()) {
            parts.push(format!("channels {}", percent(found.computed.channel_groups)));
        }
        writeln!(out, "  active  {}", parts.join("  ·  "))?;
        if let Some(compared) = compared {
            print_differences(model, found.images, compared, out)?;
        }
        if self.blocks {
            writeln!(out)?;
            print_blocks(found, out)?;
        }
        Ok(())
    }

    fn json(
        &self,
        model: &Model,
        session: &Session,
        policy: &dyn Policy,
        found: &Evaluation,
    ) -> Result<Value> {
        let mut report = json!({
            "model": model.spec.name,
            "weights": model.weights_kind(),
            "device": session.describe(),
            "policy": self.force.title(policy),
            "data": self.data.data,
            "density": self.force.density.first(),
        });
        if let (Value::Object(report), Value::Object(found)) = (&mut report, serde_json::to_value(found)?) {
            report.extend(found);
        }
        Ok(report)
    }
}

/// Lines of the table of differences.
const DIFFERENCES: usize = 8;

fn print_differences(model: &Model, images: usize, compared: &Compared, out: &mut dyn Write) -> Result<()> {
    let differ: usize = compared.differs.iter().map(|difference| difference.images).sum();
    write!(out, "  agrees  {} with the static network", percent(compared.agreement))?;
    if differ == 0 {
        return Ok(writeln!(out)?);
    }
    writeln!(
        out,
        "; of {differ} of {images} images that differ it loses {} and wins {}\n",
        compared.only_static_right, compared.only_dynamic_right
    )?;
    let mut table =
        Table::new(["static", "with skipping", "images", "static right", "skipping right"]).left(1);
    for difference in compared.differs.iter().take(DIFFERENCES) {
        let counts = [difference.images, difference.static_right, difference.dynamic_right];
        let names = [difference.from, difference.to].map(|class| class_name(model, class));
        table.row(names.into_iter().chain(counts.map(|count| count.to_string())));
    }
    table.print(out)?;
    match compared.differs.len().saturating_sub(DIFFERENCES) {
        0 => Ok(()),
        more => Ok(writeln!(out, "and {more} pairs more (--json has them)")?),
    }
}

fn print_blocks(found: &Evaluation, out: &mut dyn Write) -> Result<()> {
    let mut table = Table::new(["block", "patches", "channels", "MACs"]);
    for block in &found.blocks {
        let share = |share: Option<f64>| share.map_or(String::new(), percent);
        table.row([
            block.block.clone(),
            share(block.patches),
            share(block.channel_groups),
            percent(block.macs),
        ]);
    }
    table.print(out)
}
