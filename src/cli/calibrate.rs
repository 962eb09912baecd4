//! `laud calibrate`: measure this device, so that latency on it can be predicted.

use super::device::kind;
use super::output::{percent, save};
use super::parse;
use super::toolchain::ToolchainArgs;
use anyhow::{Context, Result, ensure};
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use laud::calibrate::{
    Budget, Journal, Measured, NETWORKS, Networks, Progress, Target, kernel_hash, measure, sweep, today,
};
use laud::exec::Prober;
use laud::kernels::Isa;
use laud::predictor::DeviceKind;
use laud::predictor::learned::FitOptions;
use laud::predictor::measurements;
use laud::predictor::profile::{Header, Profile, Validation};
use laud::predictor::workload::Workload;
use laud::{Device, Element};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Measure the kernels on this device, for predictions and plans
#[derive(Args)]
pub(super) struct Calibrate {
    /// What to measure: auto, cpu or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: Device,
    /// Threads of an inference on the CPU; one, or several for one profile [default: the cores at hand]
    #[arg(long, value_name = "N,..", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Vec<u16>,
    /// What activations and weights are stored as: f32, bf16 or, on the CPU, int8; on CUDA also f16 or tf32
    #[arg(long, value_name = "TYPE", default_value = "f32")]
    dtype: Element,
    /// Instruction set of the CPU: amx, avx512, avx2, neon or portable [default: the fastest for the element type]
    #[arg(long, value_name = "NAME")]
    isa: Option<String>,
    /// How long to measure
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = parse::duration)]
    budget: Duration,
    /// A minute and 60 measurements at most
    #[arg(long, conflicts_with = "budget")]
    quick: bool,
    /// Seed of the shapes that are drawn beside those of the shipped networks
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Profile to write; measurements come beside it as CSV
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    toolchain: ToolchainArgs,
}

/// What `--quick` measures at most, and for how long.
const QUICK: Budget = Budget { time: Duration::from_secs(50), measurements: 60 };
/// Workloads that are drawn beside those of the shipped networks, and what is measured at most without `--quick`.
const DRAWN: usize = 8000;
const MOST: usize = 8000;

impl Calibrate {
    pub(super) fn run(self, out: &mut dyn Write) -> Result<()> {
        let table = self.out.with_extension("csv");
        ensure!(
            table != self.out,
            "--out {}: a profile is JSON; its measurements are the CSV",
            self.out.display()
        );
        for file in [&self.out, &table] {
            ensure!(
                !file.exists(),
                "{}: is there already and stays as it is; take another --out, or remove it first",
                file.display()
            );
        }
        let target = self.target()?;
        let (facts, kernels) = (target.facts(), kernel_hash(kind(&self.device)));
        let mut threads: Vec<u32> = self.threads.iter().copied().map(u32::from).collect();
        if threads.is_empty() {
            threads.push(if facts.kind == DeviceKind::Cpu { facts.cores } else { 1 });
        }
        threads.sort_unstable();
        threads.dedup();
        let probers = threads.iter().map(|&n| Ok((n, target.prober(n as usize)?)));
        let mut probers: Vec<(u32, Box<dyn Prober>)> = probers.collect::<Result<_>>()?;
        let mut candidates = sweep(facts.kind, &threads, DRAWN, self.seed)?;
        candidates.iter_mut().for_each(|workload| workload.dtype = target.dtype());
        let budget = match self.quick {
            true => QUICK,
            false => Budget { time: self.budget, measurements: MOST },
        };
        // Measurements of other kernels are another journal's.
        let mut journal = Journal::open(&self.out.with_extension(format!("{kernels}.partial.csv")))?;
        let most = threads.last().copied().unwrap_or(1);
        let mut networks = Networks::new(&target, most, &NETWORKS)?;
        let bar = bar();
        let start = Instant::now();
        let measured = measure(
            &mut probers,
            candidates,
            (&facts, self.seed),
            budget,
            &mut journal,
            &mut || start.elapsed(),
            &mut |progress| {
                show(&bar, progress);
                networks.keep_up(start.elapsed())
            },
        );
        bar.finish_and_clear();
        let measured = measured?;
        let header = Header {
            kernel_hash: kernels.to_owned(),
            driver: target.driver().map_or_else(operating_system, |cuda| operating_system() + ", " + &cuda),
            commit: commit(),
            date: today(),
            command: std::env::args().skip(1).collect::<Vec<_>>().join(" "),
            measurements: measured.samples.len(),
        };
        let options = FitOptions { seed: self.seed, ..FitOptions::default() };
        let kept = || format!("the measurements are kept in {}", journal.path().display());
        let mut profile = Profile::fit(&measured.samples, &facts, header, &options).with_context(kept)?;
        profile.correction = networks.correct(&profile).with_context(kept)?;
        save(&table, &measurements::write(&measured.samples))?;
        save(&self.out, &profile.to_json())?;
        journal.finish()?;
        print(&self.out, &measured, &profile, start.elapsed(), out)
    }

    /// What is calibrated; of a CUDA device with its kernels loaded.
    fn target(&self) -> Result<Target> {
        let Device::Cuda(number) = self.device else {
            let isa = self.isa.as_deref().map_or_else(|| Ok(self.dtype.best_isa()), Isa::named)?;
            let (multiplies, fits) = match isa.name() {
                "amx" => ("tiles of bf16 and int8", matches!(self.dtype, Element::Bf16 | Element::Int8)),
                "avx512vnni" => ("int8", self.dtype == Element::Int8),
                _ => ("", true),
            };
            ensure!(
                fits,
                "--isa {}: multiplies {multiplies}; {} takes {} there",
                isa.name(),
                self.dtype.dtype(),
                self.dtype.best_isa().name()
            );
            return Ok(Target::cpu(isa, self.dtype));
        };
        ensure!(self.threads.is_empty(), "--threads: of the CPU only, cuda:{number} has none to choose");
        ensure!(self.isa.is_none(), "--isa: an instruction set of the CPU, cuda:{number} has its own");
        Ok(Target::cuda(self.toolchain.toolchain().open(number).context("--device")?, self.dtype))
    }
}

fn print(
    file: &Path,
    measured: &Measured,
    profile: &Profile,
    took: Duration,
    out: &mut dyn Write,
) -> Result<()> {
    let resumed = match measured.resumed {
        0 => String::new(),
        n => format!(", {n} of them before"),
    };
    writeln!(
        out,
        "{}: {} measurements in {:.1} s{resumed}",
        file.display(),
        measured.samples.len(),
        took.as_secs_f64()
    )?;
    let mut reasons: BTreeMap<&str, (usize, &Workload)> = BTreeMap::new();
    for (workload, why) in &measured.dropped {
        reasons.entry(why).or_insert((0, workload)).0 += 1;
    }
    for (why, (count, first)) in reasons {
        writeln!(out, "  {count} given up: {why}; such as {first}")?;
    }
    let Validation { held_out, mape, within_10_percent, coverage, repeatability, visits_differ } =
        profile.validation;
    if held_out > 0 {
        writeln!(
            out,
            "  of {held_out} held out: error {}, within ±10 % {}, inside the interval {}; rounds differ by {}, visits by {}",
            percent(mape),
            percent(within_10_percent),
            percent(coverage),
            percent(repeatability),
            visits_differ.map_or_else(|| "–".to_owned(), percent)
        )?;
    }
    Ok(())
}

/// A bar on a terminal, nothing elsewhere.
fn bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(STEPS), ProgressDrawTarget::stderr());
    let style = "{bar:40} {percent} %  {msg}  {eta} left";
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    bar
}

/// Resolution of the bar.
const STEPS: u64 = 1000;

fn show(bar: &ProgressBar, progress: Progress) {
    bar.set_position((STEPS as f64 * progress.used) as u64);
    let dropped = match progress.dropped {
        0 => String::new(),
        n => format!(", {n} given up"),
    };
    bar.set_message(format!("{} measured{dropped}", progress.measured));
}

fn operating_system() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{} {}", std::env::consts::OS, release.trim()).trim().to_owned()
}

/// Commit that the program is built at, as far as it lies in its repository.
pub(super) fn commit() -> String {
    let text = || {
        let program = std::env::current_exe().ok()?;
        let mut git = std::process::Command::new("git");
        git.arg("-C").arg(program.parent()?).args(["rev-parse", "--short=12", "HEAD"]);
        let output = git.output().ok().filter(|output| output.status.success())?;
        Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
    };
    text().unwrap_or_else(|| format!("version {}", env!("CARGO_PKG_VERSION")))
}
