//! `laud predictor`: how well does the predictor do on measurements that it was not fitted to?

use super::output::{Table, json, percent, save};
use anyhow::{Context, Result, ensure};
use clap::{Args, Subcommand};
use laud::report::charts;
use laud_predictor::dataset::{Evaluation, Gpu, Shots, leave_out, same_device};
use laud_predictor::learned::{FitOptions, Model, Prediction, predict_held_out};
use laud_predictor::measurements;
use laud_predictor::profile::{Profile, Validation};
use laud_predictor::workload::{Op, Sample};
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
    Check(Check),
}

/// Predict calls of the kernels that were measured on this or another device, and report the error
///
/// Every measurement is predicted by a model that has seen no measurement of its shape, unless --as-is asks for the
/// profile's own.
#[derive(Args)]
struct Check {
    /// Measurements, as `laud calibrate` writes them
    #[arg(long, value_name = "FILE,..", value_delimiter = ',', required = true)]
    measurements: Vec<PathBuf>,
    /// Profile that says what device it was
    #[arg(long, value_name = "FILE")]
    profile: PathBuf,
    /// Predict with the profile as it is
    #[arg(long)]
    as_is: bool,
    /// Predict from the profile, adapted with this many of the measurements, the others
    #[arg(long, value_name = "N", conflicts_with = "as_is")]
    shots: Option<usize>,
    /// Draws what is held out
    #[arg(long, value_name = "N", default_value = "0")]
    seed: u64,
    /// Write predicted-vs-measured.svg and error-vs-density.svg into this folder
    #[arg(long, value_name = "DIR")]
    charts: Option<PathBuf>,
    /// Report of `laud plan --verify --json`, whose regrets become regret.svg
    #[arg(long, value_name = "FILE,..", value_delimiter = ',', requires = "charts")]
    verified: Vec<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
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
            Command::Check(check) => check.run(out),
        }
    }
}

impl Check {
    fn run(self, out: &mut dyn Write) -> Result<()> {
        let mut samples = Vec::new();
        for path in &self.measurements {
            let read = measurements::read(&text(path)?).with_context(|| path.display().to_string())?;
            samples.extend(read);
        }
        let profile = Profile::from_json(&text(&self.profile)?, None)
            .with_context(|| format!("--profile {}", self.profile.display()))?;
        let facts = profile.model.facts();
        let options = FitOptions { seed: self.seed, ..FitOptions::default() };
        let by = |model: &Model, samples: &[Sample]| {
            samples.iter().map(|sample| model.predict(&sample.workload)).collect::<Vec<_>>()
        };
        let predictions = if let Some(shots) = self.shots {
            let (shots, others) = draw(samples, shots, self.seed)?;
            let model = profile.model.transfer(facts, &shots)?;
            samples = others;
            by(&model, &samples)
        } else if self.as_is {
            by(&profile.model, &samples)
        } else {
            predict_held_out(&samples, facts, &options)?
        };
        if let Some(folder) = &self.charts {
            self.draw_charts(folder, &samples, &predictions)?;
        }
        let whole = Validation::of(&samples, &predictions);
        let ops: Vec<(Op, Validation)> = Op::ALL
            .into_iter()
            .filter_map(|op| {
                let of = samples.iter().zip(&predictions).filter(|(sample, _)| sample.workload.op == op);
                let (samples, predictions): (Vec<Sample>, Vec<Prediction>) =
                    of.map(|(sample, prediction)| (*sample, *prediction)).unzip();
                (!samples.is_empty()).then(|| (op, Validation::of(&samples, &predictions)))
            })
            .collect();
        if self.json {
            let ops: serde_json::Map<_, _> = ops
                .iter()
                .map(|(op, validation)| Ok((op.name().to_owned(), serde_json::to_value(validation)?)))
                .collect::<Result<_>>()?;
            let mut report = json!({
                "mape_percent": 100.0 * whole.mape,
                "within_10_percent": 100.0 * whole.within_10_percent,
            });
            report["all"] = serde_json::to_value(whole)?;
            report["ops"] = ops.into();
            return json(out, &report);
        }
        let mut table = Table::new([
            "kernel",
            "predicted",
            "error",
            "±10 %",
            "in the interval",
            "rounds differ by",
            "visits",
        ])
        .left(1);
        let all = ops.iter().map(|(op, validation)| (op.name(), validation));
        for (name, validation) in all.chain([("all", &whole)]) {
            table.row([
                name.to_owned(),
                validation.held_out.to_string(),
                percent(validation.mape),
                percent(validation.within_10_percent),
                percent(validation.coverage),
                percent(validation.repeatability),
                validation.visits_differ.map_or_else(|| "–".to_owned(), percent),
            ]);
        }
        table.print(out)
    }

    fn draw_charts(&self, folder: &Path, samples: &[Sample], predictions: &[Prediction]) -> Result<()> {
        fs::create_dir_all(folder).with_context(|| format!("--charts {}", folder.display()))?;
        let measured = charts::predicted_vs_measured(samples, predictions)?;
        save(&folder.join("predicted-vs-measured.svg"), &measured)?;
        save(&folder.join("error-vs-density.svg"), &charts::error_vs_density(samples, predictions)?)?;
        let mut regrets = Vec::new();
        for path in &self.verified {
            #[derive(serde::Deserialize)]
            struct Report {
                blocks: Vec<Block>,
            }
            #[derive(serde::Deserialize)]
            struct Block {
                regret: f64,
            }
            let report: Report = serde_json::from_str(&text(path)?)
                .with_context(|| format!("{}: not a report of plan --verify", path.display()))?;
            regrets.extend(report.blocks.into_iter().map(|block| block.regret));
        }
        if !self.verified.is_empty() {
            save(&folder.join("regret.svg"), &charts::regret_histogram(&regrets)?)?;
        }
        Ok(())
    }
}

/// `shots` samples that a seed draws, and the others.
fn draw(mut samples: Vec<Sample>, shots: usize, seed: u64) -> Result<(Vec<Sample>, Vec<Sample>)> {
    ensure!(shots < samples.len(), "--shots {shots}: there are {} measurements", samples.len());
    let mut state = seed;
    for i in 0..shots {
        // Knuth's multiplicative generator does for drawing a few.
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let at = i + (state >> 33) as usize % (samples.len() - i);
        samples.swap(i, at);
    }
    let others = samples.split_off(shots);
    Ok((samples, others))
}

fn text(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("{}: cannot read", path.display()))
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
