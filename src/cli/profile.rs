//! `laud profile`: look at profiles, compare them, make one of several.

use super::device::DeviceArgs;
use super::output::{Table, percent, save};
use anyhow::{Context, Result, ensure};
use clap::{Args, Subcommand};
use laud::calibrate::{kernel_hash, load};
use laud::predictor::DeviceKind;
use laud::predictor::learned::FitOptions;
use laud::predictor::measurements;
use laud::predictor::profile::{Header, Profile, Validation};
use laud::predictor::workload::{DType, Sample};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Look at profiles, compare them, make one of several
#[derive(Args)]
pub(super) struct ProfileArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Print where a profile comes from and how good it is
    Show {
        /// Profile
        file: PathBuf,
    },
    /// Compare what two profiles predict for the measurements of both
    Diff {
        /// Profile, with its measurements beside it
        a: PathBuf,
        /// Another
        b: PathBuf,
    },
    /// Fit one profile to the measurements of several of the same device
    Merge {
        /// Profiles, with their measurements beside them
        #[arg(required = true, num_args = 2..)]
        files: Vec<PathBuf>,
        /// Profile to write
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
}

impl ProfileArgs {
    pub(super) fn run(self, out: &mut dyn Write) -> Result<()> {
        match self.what {
            What::Show { file } => show(&file, out),
            What::Diff { a, b } => diff(&a, &b, out),
            What::Merge { files, out: target } => merge(&files, &target, out),
        }
    }
}

/// Reads a profile of the kernels of this program, to be asked about inferences as `device` says.
pub(super) fn load_for(path: &Path, device: &DeviceArgs) -> Result<Profile> {
    let profile = load(path)?;
    profile.check_use(device.kind(), device.dtype()).with_context(|| path.display().to_string())?;
    Ok(profile)
}

fn read(path: &Path, kernel_hash: Option<&str>) -> Result<Profile> {
    let name = || path.display().to_string();
    let text = fs::read_to_string(path).with_context(|| format!("{}: cannot read", name()))?;
    Profile::from_json(&text, kernel_hash).with_context(name)
}

/// The measurements beside a profile.
fn samples(profile: &Path) -> Result<Vec<Sample>> {
    let path = profile.with_extension("csv");
    let text = fs::read_to_string(&path).with_context(|| {
        format!("{}: cannot read the measurements of {}", path.display(), profile.display())
    })?;
    measurements::read(&text).with_context(|| path.display().to_string())
}

fn show(path: &Path, out: &mut dyn Write) -> Result<()> {
    let profile = read(path, None)?;
    let (facts, header) = (profile.model.facts(), &profile.header);
    let cores = match facts.kind {
        DeviceKind::Cpu => "cores",
        DeviceKind::Cuda => "multiprocessors",
    };
    writeln!(out, "{}  ·  {}  ·  {} {cores}  ·  {}", facts.name, facts.isa, facts.cores, header.driver)?;
    let kernels =
        if header.kernel_hash == kernel_hash(facts.kind) { "those of this program" } else { "others" };
    writeln!(
        out,
        "kernels {} ({kernels})  ·  commit {}  ·  {}",
        header.kernel_hash, header.commit, header.date
    )?;
    writeln!(out, "{} measurements by `laud {}`", header.measurements, header.command)?;
    let Validation { held_out, mape, within_10_percent, coverage, repeatability, visits_differ } =
        profile.validation;
    if held_out > 0 {
        writeln!(
            out,
            "of {held_out} held out: error {}, within ±10 % {}, inside the interval {}; rounds differ by {}, visits by {}",
            percent(mape),
            percent(within_10_percent),
            percent(coverage),
            percent(repeatability),
            visits_differ.map_or_else(|| "–".to_owned(), percent)
        )?;
    }
    let mut ops: Vec<&str> = profile.model.ops().map(|op| op.name()).collect();
    ops.dedup();
    let dtypes: Vec<&str> = profile.model.dtypes().into_iter().map(DType::name).collect();
    Ok(writeln!(out, "measured in {}: {}", dtypes.join(", "), ops.join(", "))?)
}

fn diff(a: &Path, b: &Path, out: &mut dyn Write) -> Result<()> {
    let (first, second) = (read(a, None)?, read(b, None)?);
    for (what, a, b) in [
        ("device", &first.model.facts().name, &second.model.facts().name),
        ("instruction set", &first.model.facts().isa, &second.model.facts().isa),
        ("kernels", &first.header.kernel_hash, &second.header.kernel_hash),
        ("commit", &first.header.commit, &second.header.commit),
        ("date", &first.header.date, &second.header.date),
    ] {
        if a != b {
            writeln!(out, "{what}: {a}  →  {b}")?;
        }
    }
    let all: Vec<Sample> = samples(a)?.into_iter().chain(samples(b)?).collect();
    let mut table = Table::new(["operation", "calls", "median b ÷ a", "least", "most"]);
    for op in first.model.ops().filter(|&op| second.model.ops().any(|other| other == op)) {
        let of = all.iter().filter(|sample| sample.workload.op == op);
        let ratio = |sample: &Sample| {
            second.model.predict(&sample.workload).ns / first.model.predict(&sample.workload).ns
        };
        let mut ratios: Vec<f64> = of.map(ratio).filter(|ratio| ratio.is_finite()).collect();
        ratios.sort_by(f64::total_cmp);
        let (Some(least), Some(most)) = (ratios.first(), ratios.last()) else { continue };
        table.row([
            op.name().to_owned(),
            ratios.len().to_string(),
            format!("{:.3}", ratios[ratios.len() / 2]),
            format!("{least:.3}"),
            format!("{most:.3}"),
        ]);
    }
    table.print(out)
}

fn merge(files: &[PathBuf], target: &Path, out: &mut dyn Write) -> Result<()> {
    let table = target.with_extension("csv");
    for file in [target, &table] {
        ensure!(
            !file.exists(),
            "{}: is there already and stays as it is; take another --out",
            file.display()
        );
    }
    let first = read(&files[0], None)?;
    let mut all: Vec<Sample> = Vec::new();
    for file in files {
        let profile = read(file, Some(&first.header.kernel_hash))?;
        let (facts, other) = (first.model.facts(), profile.model.facts());
        ensure!(
            (&facts.name, &facts.isa) == (&other.name, &other.isa),
            "{}: of {} ({}), {} is of {} ({}); profiles of one device are merged",
            file.display(),
            other.name,
            other.isa,
            files[0].display(),
            facts.name,
            facts.isa
        );
        all.extend(samples(file)?);
    }
    let names: Vec<_> = files.iter().map(|file| file.display().to_string()).collect();
    let header = Header { command: format!("profile merge {}", names.join(" ")), ..first.header.clone() };
    let profile = Profile::fit(&all, first.model.facts(), header, &FitOptions::default())?;
    save(&table, &measurements::write(&all))?;
    save(target, &profile.to_json())?;
    Ok(writeln!(out, "{}: {} measurements of {} profiles", target.display(), all.len(), files.len())?)
}
