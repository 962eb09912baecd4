//! `laud predictor`: how well does the predictor do on measurements that it was not fitted to?

use super::output::{Table, json};
use anyhow::{Context, Result, ensure};
use clap::{Args, Subcommand};
use laud_predictor::dataset::{Evaluation, Gpu, Shots, leave_out, same_device};
use serde_json::json;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Try the predictor on measurements of others
#[derive(Args)]
pub(super) struct Predictor {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Evaluate(Evaluate),
}

/// Predict convolutions that were measured on GPUs, and report the error
///
/// The folder holds a pair of files for each GPU: conv_<gpu>.csv (latency_ms, batch, in_channels, out_channels, kernel,
/// input_size, stride, padding) and <gpu>.spec.json (Device, Mem_Bw, Num_Sm, SingleFLOPs).
#[derive(Args)]
struct Evaluate {
    /// Folder with the measurements
    #[arg(long, value_name = "DIR")]
    dataset: PathBuf,
    /// Only this GPU
    #[arg(long, value_name = "GPU", conflicts_with = "leave_out")]
    gpu: Option<String>,
    /// Measurements to train on, of the GPU that is predicted
    #[arg(long, value_name = "N", default_value = "1000", conflicts_with = "leave_out")]
    train_samples: usize,
    /// Predict this GPU from the others
    #[arg(long, value_name = "GPU")]
    leave_out: Option<String>,
    /// Measurements of it that may be used
    #[arg(long, value_name = "N", default_value = "10", requires = "leave_out")]
    shots: usize,
    /// Predict shapes that were not measured on the others either
    #[arg(long, requires = "leave_out")]
    unseen_shapes: bool,
    /// Measurements to predict, where not all the others are
    #[arg(long, value_name = "N", default_value = "1000", value_parser = clap::value_parser!(u32).range(1..))]
    held_out: u32,
    /// Draws what is used and what is predicted
    #[arg(long, value_name = "N", default_value = "0")]
    seed: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Predictor {
    pub(super) fn run(self, out: &mut dyn Write) -> Result<()> {
        match self.command {
            Command::Evaluate(evaluate) => evaluate.run(out),
        }
    }
}

impl Evaluate {
    fn run(self, out: &mut dyn Write) -> Result<()> {
        let gpus = read(&self.dataset)?;
        let held_out = self.held_out as usize;
        if let Some(name) = &self.leave_out {
            let unseen_shapes = self.unseen_shapes.then_some(held_out);
            let shots = Shots { count: self.shots, seed: self.seed, unseen_shapes };
            let evaluation = leave_out(&gpus, name, shots).with_context(|| format!("--leave-out {name}"))?;
            return if self.json { json(out, &evaluation) } else { print(&[evaluation], out) };
        }
        let chosen: Vec<&Gpu> =
            gpus.iter().filter(|gpu| self.gpu.as_ref().is_none_or(|name| *name == gpu.name)).collect();
        let names = || gpus.iter().map(|gpu| gpu.name.as_str()).collect::<Vec<_>>().join(", ");
        ensure!(
            !chosen.is_empty(),
            "--gpu {}: not in the data set, which has {}",
            self.gpu.unwrap(),
            names()
        );
        let evaluations: Vec<Evaluation> = chosen
            .into_iter()
            .map(|gpu| same_device(gpu, self.train_samples, held_out, self.seed))
            .collect::<Result<_, _>>()?;
        if self.json {
            let mean = |of: fn(&Evaluation) -> f64| {
                evaluations.iter().map(of).sum::<f64>() / evaluations.len() as f64
            };
            let report = json!({
                "mape_percent": mean(|evaluation| evaluation.mape_percent),
                "within_10_percent": mean(|evaluation| evaluation.within_10_percent),
                "gpus": evaluations,
            });
            return json(out, &report);
        }
        print(&evaluations, out)
    }
}

/// Every GPU of the folder, by name.
fn read(folder: &Path) -> Result<Vec<Gpu>> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("--dataset {}: cannot read", folder.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.with_context(|| folder.display().to_string())?.file_name();
        let gpu = name.to_str().and_then(|name| name.strip_prefix("conv_")?.strip_suffix(".csv"));
        names.extend(gpu.map(str::to_owned));
    }
    names.sort();
    ensure!(!names.is_empty(), "--dataset {}: no file is called conv_<gpu>.csv", folder.display());
    let text =
        |path: &Path| fs::read_to_string(path).with_context(|| format!("{}: cannot read", path.display()));
    let gpu = |name: &String| {
        let (csv, spec) = (folder.join(format!("conv_{name}.csv")), folder.join(format!("{name}.spec.json")));
        Gpu::read(name, &text(&csv)?, &text(&spec)?)
            .with_context(|| format!("--dataset {}, {name}", folder.display()))
    };
    names.iter().map(gpu).collect()
}

fn print(evaluations: &[Evaluation], out: &mut dyn Write) -> Result<()> {
    let header =
        ["gpu", "used", "of others", "predicted", "error", "±10 %", "moment known", "±10 %", "drift"];
    let mut table = Table::new(header).left(1);
    for evaluation in evaluations {
        table.row([
            evaluation.gpu.clone(),
            evaluation.used.to_string(),
            evaluation.used_of_others.to_string(),
            evaluation.held_out.to_string(),
            format!("{:.1} %", evaluation.mape_percent),
            format!("{:.0} %", evaluation.within_10_percent),
            format!("{:.1} %", evaluation.mape_percent_given_moment),
            format!("{:.0} %", evaluation.within_10_percent_given_moment),
            format!("{:.2} ms", evaluation.drift_ms),
        ]);
    }
    table.print(out)
}
