//! `laud predict`: what would it be worth on a device that is not here?

use super::output::{Table, json, ms, speed};
use super::parse;
use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use laud::Element;
use laud_predictor::Density;
use laud_predictor::prior::{DeviceSpec, Mode, Network, Prior, SweepRow};
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Predict latency: on a GPU that is not at hand from published constants, on a calibrated device from its profile
#[derive(Args)]
pub(super) struct Predict {
    /// Devices: v100, 3090, 3060, tx2, nano, a100, h100, h200, l4, t4, 4090, orin, or a file of constants
    #[arg(long, value_name = "DEVICE,..", value_delimiter = ',', default_value = "v100")]
    device: Vec<String>,
    /// Networks: resnet50, resnet101, regnety004, regnety008
    #[arg(long, value_name = "NAME,..", value_delimiter = ',', default_value = "resnet50")]
    pub(super) model: Vec<String>,
    /// What is skipped
    #[arg(long, value_name = "MODE,..", value_delimiter = ',', default_value = "spatial")]
    pub(super) mode: Vec<ModeArg>,
    /// Side of a patch or channels of a group, by stage
    #[arg(long, value_name = "S-S-S-S,..", value_delimiter = ',', default_value = "4-4-2-1")]
    pub(super) granularity: Vec<String>,
    /// Densities, 0..=1 [default: 0.1 to 1]
    #[arg(long, value_name = "D,..", value_delimiter = ',', value_parser = parse::density)]
    pub(super) density: Vec<f64>,
    /// Images of an inference [default: what the device is usually asked about]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub(super) batch: Option<u32>,
    /// For a device that was calibrated: what `laud calibrate` wrote
    #[arg(long, value_name = "FILE", conflicts_with_all = ["device", "csv"])]
    profile: Option<PathBuf>,
    /// With --profile: what was active image by image, as --record-densities wrote it, for a distribution
    #[arg(long, value_name = "FILE", requires = "profile", conflicts_with = "density")]
    pub(super) densities: Option<PathBuf>,
    /// With --densities: which share of the images takes no longer than this?
    #[arg(long, value_name = "TIME", requires = "densities", value_parser = parse::duration)]
    pub(super) budget: Option<Duration>,
    /// With --profile: threads of an inference on a CPU [default: 1]
    #[arg(long, value_name = "N", requires = "profile", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(super) threads: Option<u16>,
    /// With --profile: f32, bf16, f16, tf32 or int8 [default: what was measured; of several f32]
    #[arg(long, value_name = "TYPE", requires = "profile")]
    pub(super) dtype: Option<Element>,
    /// With --profile: split each number into what it is made of
    #[arg(long, requires = "profile")]
    pub(super) explain: bool,
    /// Print CSV
    #[arg(long, conflicts_with = "json")]
    csv: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum ModeArg {
    /// Nothing
    Static,
    /// Whole blocks
    Layer,
    /// Patches
    Spatial,
    /// Channel groups: the expectation over which ones
    Channel,
}

/// Predictions for one device and network.
struct Part {
    batch: u32,
    title: String,
    rows: Vec<SweepRow>,
}

impl Predict {
    pub(super) fn run(self, out: &mut dyn Write) -> Result<()> {
        if let Some(profile) = &self.profile {
            return self.measured(profile, out);
        }
        let densities = match self.density.as_slice() {
            [] => (1..=10).map(|tenths| f64::from(tenths) / 10.0).collect(),
            list => list.to_vec(),
        };
        let densities = densities.into_iter().map(Density::new).collect::<Result<Vec<_>, _>>()?;
        let mut parts = Vec::new();
        for device in &self.device {
            let prior = Prior::new(find(device)?)?;
            for name in &self.model {
                let network =
                    Network::named(simulator_name(name)).with_context(|| format!("--model {name}"))?;
                let batch = self.batch.unwrap_or(prior.device().batch);
                let modes = self.modes(&network)?;
                let rows = prior
                    .sweep(&network, &modes, &densities, batch)
                    .with_context(|| format!("--model {name}"))?;
                parts.push(Part { batch, title: prior.device().title.clone(), rows });
            }
        }
        if self.csv {
            writeln!(out, "{}", SweepRow::HEADER)?;
            return parts.iter().flat_map(|part| &part.rows).try_for_each(|row| Ok(writeln!(out, "{row}")?));
        }
        if self.json {
            let rows: Vec<Value> =
                parts.iter().flat_map(|part| part.rows.iter().map(|row| row_json(row, part.batch))).collect();
            return json(out, &rows);
        }
        for (i, part) in parts.iter().enumerate() {
            if i > 0 {
                writeln!(out)?;
            }
            print(part, out)?;
        }
        Ok(())
    }

    /// Every mode with every granularity where it has one.
    fn modes(&self, network: &Network) -> Result<Vec<Mode>> {
        let mut modes = Vec::new();
        for mode in &self.mode {
            match mode {
                ModeArg::Static => modes.push(Mode::Static),
                ModeArg::Layer => modes.push(Mode::Layer),
                ModeArg::Spatial | ModeArg::Channel => {
                    let kind = if *mode == ModeArg::Spatial { "spatial" } else { "channel" };
                    for list in &self.granularity {
                        let list = match list.contains('-') {
                            true => list.clone(),
                            false => vec![list.as_str(); network.stages()].join("-"),
                        };
                        modes.push(format!("{kind}:{list}").parse().context("--granularity")?);
                    }
                }
            }
        }
        Ok(modes)
    }
}

/// A shipped device, or a file of the same form.
pub(super) fn find(device: &str) -> Result<DeviceSpec> {
    match DeviceSpec::named(device) {
        Ok(spec) => Ok(spec),
        Err(_) if Path::new(device).is_file() => {
            DeviceSpec::load(device).with_context(|| format!("--device {device}"))
        }
        Err(error) => bail!("--device {device}: {error}; or give a file of constants"),
    }
}

/// The simulator's name of a network that is known by another.
pub(super) fn simulator_name(name: &str) -> &str {
    match name {
        "regnet_y_400mf" => "regnety004",
        "regnet_y_800mf" => "regnety008",
        other => other,
    }
}

fn row_json(row: &SweepRow, batch: u32) -> Value {
    json!({
        "model": row.model,
        "hardware": row.hardware,
        "mode": row.mode,
        "granularity": row.granularity,
        "activation": row.activation.get(),
        "batch": batch,
        "latency_s": row.latency_s,
        "static_latency_s": row.static_latency_s,
        "speedup": row.static_latency_s / row.latency_s,
    })
}

fn print(part: &Part, out: &mut dyn Write) -> Result<()> {
    let Some(first) = part.rows.first() else { return Ok(()) };
    writeln!(
        out,
        "{}  ·  {}  ·  batch {}  ·  static {}  ·  predicted, not measured; residual blocks only\n",
        first.model,
        part.title,
        part.batch,
        ms(first.static_latency_s * 1e3)
    )?;
    let mut table = Table::new(["mode", "granularity", "density", "ms", "an image", ""]).left(1).left(5);
    for row in &part.rows {
        table.row([
            row.mode.to_owned(),
            row.granularity.clone(),
            format!("{:.2}", row.activation.get()),
            format!("{:.2}", row.latency_s * 1e3),
            ms(row.latency_s * 1e3 / f64::from(part.batch)),
            speed(row.static_latency_s / row.latency_s),
        ]);
    }
    table.print(out)
}
