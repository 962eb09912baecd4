//! `laud eval`: how often is the network right?

use super::device::DeviceArgs;
use super::force::ForceArgs;
use super::model::ModelArgs;
use super::output::{json, ms, percent, save, si};
use super::run::{Computed, densities_line, head};
use anyhow::{Context, Result, ensure};
use clap::Args;
use laud::Output;
use laud::exec::Request;
use laud::vision::{Dataset, Preprocess};
use rayon::prelude::*;
use serde_json::json;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::Instant;

/// Measure accuracy on labelled images
#[derive(Args)]
pub(super) struct Eval {
    /// A folder with labels.csv or a folder a class, a CIFAR-10 .bin, or a .jpk file
    #[arg(long, short, value_name = "DIR|FILE")]
    data: PathBuf,
    /// Only the first images
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Images of an inference
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1024))]
    batch: u16,
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

/// Sums over the images so far.
#[derive(Default)]
struct Tally {
    images: usize,
    top1: usize,
    top5: usize,
    macs: u64,
    dense_macs: u64,
    /// Weighted by images.
    blocks: f64,
    patches: f64,
    channels: f64,
    /// Milliseconds an image, one entry a batch.
    ms: Vec<f64>,
}

impl Eval {
    pub(super) fn run(self, out: &mut dyn Write) -> Result<()> {
        let model = self.model.resolve(&self.force)?;
        let data = Dataset::open(&self.data)?;
        let classes = model.spec.head.fc.c_out;
        ensure!(
            data.max_label() < classes,
            "{}: has label {}, {} tells {classes} classes apart",
            self.data.display(),
            data.max_label(),
            model.spec.name
        );
        let session = self.device.builder()?.session(&model)?;
        let preprocess = Preprocess::new(&model.spec.input)?;
        let count = self
            .limit
            .map_or(data.len(), |limit| data.len().min(usize::try_from(limit).unwrap_or(usize::MAX)));
        let batch = usize::from(self.batch).min(count);
        let policy = self.force.policy(&model.spec, batch, self.force.single()?)?;
        let mut values = vec![0.0; batch * preprocess.values()];
        let mut output = Output::default();
        let (mut tally, mut densities) = (Tally::default(), String::new());
        let progress = std::io::stderr().is_terminal() && !self.json;
        for start in (0..count).step_by(batch) {
            let n = batch.min(count - start);
            let values = &mut values[..n * preprocess.values()];
            values.par_chunks_mut(preprocess.values()).enumerate().try_for_each(|(i, values)| {
                let sample = data.get(start + i)?;
                preprocess.write_nchw(&sample.image, values).context(sample.name)
            })?;
            let request = Request { images: values, batch: n, features: false, masks: false, timed: false };
            if start == 0 {
                session.infer_with(request, &*policy, &mut output)?;
            }
            let clock = Instant::now();
            session.infer_with(request, &*policy, &mut output)?;
            tally.ms.push(clock.elapsed().as_secs_f64() * 1e3 / n as f64);
            if self.record_densities.is_some() {
                session.infer_with(Request { masks: true, ..request }, &*policy, &mut output)?;
                for i in 0..n {
                    let name = data.get(start + i)?.name;
                    densities += &densities_line(&model.spec, &name, &output, i)?;
                }
            }
            let labels = (start..start + n).filter_map(|i| data.label(i));
            tally.add(&model.spec, &output, labels);
            if progress {
                let done = tally.images;
                write!(
                    std::io::stderr(),
                    "\r{done} of {count}, top-1 {}",
                    percent(tally.top1 as f64 / done as f64)
                )?;
            }
        }
        if progress {
            write!(std::io::stderr(), "\r{:50}\r", "")?;
        }
        if let Some(path) = &self.record_densities {
            save(path, &densities)?;
        }
        if self.json {
            return json(out, &tally.json(&model, &session, &self));
        }
        head(&model, &session, &self.force, out)?;
        writeln!(out)?;
        tally.print(&model, &self, out)
    }
}

impl Tally {
    fn add(&mut self, spec: &laud_models::NetSpec, output: &Output, labels: impl Iterator<Item = usize>) {
        let batch = output.trace.batch;
        let classes = output.logits.len() / batch.max(1);
        for (logits, label) in output.logits.chunks_exact(classes.max(1)).zip(labels) {
            let score = logits.get(label).copied().unwrap_or(f32::NAN);
            // Ranked before the label: better ones, and equal ones of a lower class.
            let ahead =
                logits.iter().enumerate().filter(|&(i, &other)| other > score || other == score && i < label);
            let rank = ahead.count();
            self.top1 += usize::from(rank == 0 && !score.is_nan());
            self.top5 += usize::from(rank < 5 && !score.is_nan());
        }
        let computed = Computed::of(spec, &output.trace.blocks);
        // Blocks skip samples one by one, so shares of a batch and not whole blocks are counted.
        let blocks = output.trace.blocks.iter().zip(&spec.blocks).map(|(trace, block)| {
            let layer = block.gate.spatial.as_ref().is_some_and(|gate| gate.layer);
            if layer { trace.patches.density() } else { f64::from(u8::from(trace.patches.active > 0)) }
        });
        self.images += batch;
        self.blocks += batch as f64 * blocks.sum::<f64>() / spec.blocks.len().max(1) as f64;
        self.patches += batch as f64 * computed.patches.unwrap_or(1.0);
        self.channels += batch as f64 * computed.channels.unwrap_or(1.0);
        self.macs += output.trace.macs();
        self.dense_macs += output.trace.dense_macs();
    }

    fn median_ms(&self) -> f64 {
        let mut ms = self.ms.clone();
        ms.sort_by(f64::total_cmp);
        ms.get(ms.len() / 2).copied().unwrap_or(f64::NAN)
    }

    fn print(&self, model: &super::model::Model, args: &Eval, out: &mut dyn Write) -> Result<()> {
        let n = self.images as f64;
        let share = |hits: usize| percent(hits as f64 / n);
        writeln!(out, "{}: {} images", args.data.display(), self.images)?;
        let error = 1.96 * (self.top1 as f64 / n * (1.0 - self.top1 as f64 / n) / n).sqrt();
        writeln!(out, "  top-1   {}  ±{:.1} (95 %)", share(self.top1), 100.0 * error)?;
        writeln!(out, "  top-5   {}", share(self.top5))?;
        writeln!(out, "  time    {} an image, in batches of {}", ms(self.median_ms()), args.batch)?;
        let (done, dense) = (self.macs as f64 / n, self.dense_macs as f64 / n);
        match model.is_gated() {
            true => writeln!(out, "  MACs    {} of {} ({})", si(done), si(dense), percent(done / dense))?,
            false => writeln!(out, "  MACs    {}", si(dense))?,
        }
        if model.is_gated() {
            let has = |kind: fn(&laud_models::BlockSpec) -> bool| model.spec.blocks.iter().any(kind);
            let mut parts = vec![format!("blocks {}", percent(self.blocks / n))];
            if has(|block| block.gate.spatial.as_ref().is_some_and(|gate| !gate.layer)) {
                parts.push(format!("patches {}", percent(self.patches / n)));
            }
            if has(|block| block.gate.channel.is_some()) {
                parts.push(format!("channels {}", percent(self.channels / n)));
            }
            writeln!(out, "  active  {}", parts.join("  ·  "))?;
        }
        Ok(())
    }

    fn json(&self, model: &super::model::Model, session: &laud::Session, args: &Eval) -> serde_json::Value {
        let n = self.images as f64;
        json!({
            "model": model.spec.name,
            "weights": model.weights_kind(),
            "device": session.describe(),
            "data": args.data,
            "images": self.images,
            "top1": self.top1 as f64 / n,
            "top5": self.top5 as f64 / n,
            "density": args.force.density.first(),
            "computed": { "blocks": self.blocks / n, "patches": self.patches / n, "channel_groups": self.channels / n },
            "macs": { "done": self.macs as f64 / n, "dense": self.dense_macs as f64 / n },
            "batch": args.batch,
            "latency_ms_per_image": self.median_ms(),
        })
    }
}
