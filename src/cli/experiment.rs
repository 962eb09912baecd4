//! `laud experiment`: networks × gates × devices × seeds × policies, each evaluated once, whatever interrupts it.

mod grid;
mod pictures;

use super::calibrate::commit;
use super::device::{Builder, DeviceArgs, looking};
use super::model::Model;
use super::output::{ms, percent};
use anyhow::{Context, Result};
use clap::Args;
use grid::{Experiment, Place, Variant};
use laud::Session;
use laud::calibrate::{device_facts, kernel_hash, load, today};
use laud::evaluate::{Cell, Contest, Forecast, Images, Origin, Results, Row, evaluate};
use laud::gate::{Always, Policy};
use laud::kernels::Isa;
use laud::plan::{ExecutionPlan, Setting};
use laud::policy::{Exit, Subject, early_exits, named};
use laud::predictor::profile::Profile;
use laud::vision::Dataset;
use laud_models::NetSpec;
use pictures::draw;
use std::io::Write;
use std::path::PathBuf;

/// Evaluate a grid of networks, gates, devices, seeds and policies
///
/// The grid is a TOML file; `laud experiment --example` prints one that says what there is. Rows are appended to a file of
/// JSON lines as they are done, and what is there is not done again.
#[derive(Args)]
pub(super) struct ExperimentArgs {
    /// The grid: TOML
    #[arg(value_name = "FILE", required_unless_present = "example")]
    file: Option<PathBuf>,
    /// Where rows go [default: FILE with .jsonl]
    #[arg(long, short, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Print what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Print an example of a grid
    #[arg(long, conflicts_with_all = ["file", "out", "dry_run"])]
    example: bool,
}

/// What is evaluated together: sessions that several policies share.
struct Bench<'a> {
    model: &'a Model,
    session: Session,
    plain: Option<Session>,
}

/// What is the same for all cells.
struct Common<'a> {
    grid: &'a Experiment,
    data: &'a Dataset,
    profile: Option<&'a Profile>,
    commit: String,
    machine: String,
}

impl ExperimentArgs {
    pub(super) fn run(self, out: &mut dyn Write) -> Result<()> {
        let Some(file) = self.file.as_deref().filter(|_| !self.example) else {
            return Ok(write!(out, "{}", grid::EXAMPLE)?);
        };
        let grid = Experiment::load(file)?;
        let data = Dataset::open(&grid.data).with_context(|| format!("{}: data", file.display()))?;
        let profile = grid.profile.as_deref().map(load).transpose()?;
        if let Some(profile) = &profile {
            fits_somewhere(profile, &grid).with_context(|| format!("{}: profile", file.display()))?;
        }
        let target = self.out.clone().unwrap_or_else(|| file.with_extension("jsonl"));
        let isa = Isa::detect();
        let common = Common {
            grid: &grid,
            data: &data,
            profile: profile.as_ref(),
            commit: commit(),
            machine: device_facts(isa, laud::Element::F32).name,
        };
        // Everything that can be wrong with the grid is said before anything takes time.
        let variants = grid.variants().with_context(|| file.display().to_string())?;
        let mut cells = Vec::new();
        for variant in &variants {
            common.images(&variant.model.spec).with_context(|| file.display().to_string())?;
            for place in grid.places() {
                for (policy, seed) in variant.policies(&grid) {
                    let cell = common.cell(variant, &place, &policy, seed);
                    check(variant, &cell).with_context(|| file.display().to_string())?;
                    cells.push((variant, place.clone(), cell));
                }
            }
        }
        let (mut results, done) = if self.dry_run {
            let done = if target.exists() { laud::evaluate::load(&target)? } else { Vec::new() };
            (None, done)
        } else {
            let results = Results::open(&target)?;
            let done = results.rows().to_vec();
            (Some(results), done)
        };
        let count = cells.len();
        cells.retain(|(.., cell)| !done.iter().any(|row| row.cell == *cell));
        writeln!(out, "{}: {count} evaluations, {} of them done", target.display(), count - cells.len())?;
        let mut bench: Option<(Bench<'_>, (String, Place, u64, String))> = None;
        for (at, (variant, place, cell)) in cells.iter().enumerate() {
            let number = count - cells.len() + at + 1;
            let place_text = format!("{}, {} × {}", cell.device, cell.threads, cell.dtype);
            write!(
                out,
                "[{number}/{count}] {}  ·  {}  ·  {place_text}, seed {}",
                variant.label, cell.policy, cell.seed
            )?;
            let Some(results) = &mut results else {
                writeln!(out)?;
                continue;
            };
            out.flush()?;
            // Sessions are made again when anything but the policy behind early exits changes.
            let (exits, _) = early_exits(&cell.policy)?;
            let seed = if variant.model.attached || !exits.is_empty() { cell.seed } else { 0 };
            let leaving = if exits.is_empty() { "" } else { &*cell.policy };
            let key = (variant.label.clone(), place.clone(), seed, leaving.to_owned());
            if bench.as_ref().is_none_or(|(_, made)| *made != key) {
                // The one before is given back first.
                drop(bench.take());
                let args = DeviceArgs::of(&place.device, place.threads, &place.dtype)?;
                let decider = |spec: &NetSpec| policy(cell, spec, &args);
                let bench_of = Bench::new(variant.of_seed(seed), &args.builder()?, &exits, &decider);
                bench = Some((bench_of?, key));
            }
            let Some((ready, _)) = &bench else { continue };
            let row = common
                .evaluate(ready, cell, &target)
                .with_context(|| format!("{}, {}", variant.label, cell.policy))?;
            let speed = row.found.speedup();
            let speed = speed.map_or(String::new(), |speed| format!(", {speed:.2}× the static speed"));
            writeln!(
                out,
                ":  top-1 {}, {} of the MACs, {}{speed}",
                percent(row.found.top1),
                percent(row.macs()),
                ms(row.found.typical_ms())
            )?;
            out.flush()?;
            results.push(row)?;
        }
        if results.is_some() {
            writeln!(out, "see: laud report {}", target.display())?;
        }
        Ok(())
    }
}

impl<'a> Bench<'a> {
    fn new(
        model: &'a Model,
        builder: &Builder<'_>,
        exits: &[Exit],
        decider: &dyn Fn(&NetSpec) -> Result<Box<dyn Policy>>,
    ) -> Result<Self> {
        let session = builder.leaving_early(model, exits, decider)?;
        let adaptive = model.is_gated() || !exits.is_empty();
        let plain = adaptive.then(|| builder.static_session(model)).transpose()?;
        Ok(Self { model, session, plain })
    }
}

impl Common<'_> {
    fn images(&self, spec: &NetSpec) -> Result<Images<'_>> {
        Images::new(self.data, spec, self.grid.limit, self.grid.batch)
            .with_context(|| self.grid.data.display().to_string())
    }

    fn cell(&self, variant: &Variant, place: &Place, policy: &str, seed: u64) -> Cell {
        Cell {
            model: variant.name.clone(),
            mode: variant.mode.clone(),
            granularity: variant.granularity.clone(),
            group: variant.group.clone(),
            policy: policy.to_owned(),
            device: place.device.clone(),
            threads: place.threads,
            dtype: place.dtype.clone(),
            seed,
            data: self.grid.data.display().to_string(),
            limit: self.grid.limit,
            batch: self.grid.batch,
            repeat: self.grid.repeat,
        }
    }

    fn evaluate(&self, bench: &Bench<'_>, cell: &Cell, results: &std::path::Path) -> Result<Row> {
        let Bench { model, session, plain } = bench;
        let spec = &model.spec;
        let images = self.images(spec)?;
        let args = DeviceArgs::of(&cell.device, cell.threads, &cell.dtype)?;
        let (dtype, kind, threads) = (args.dtype(), args.kind(), cell.threads);
        let policy = policy(cell, spec, &args)?;
        let plan = ExecutionPlan::sparse(spec);
        // A profile says nothing about other devices and types than its own, nor about what leaves early.
        let leaving = cell.policy.starts_with("exit:");
        let profile = self.profile.filter(|profile| !leaving && profile.check_use(kind, dtype).is_ok());
        let forecast = profile.map(|profile| {
            let setting = Setting::of(profile, threads, dtype);
            Forecast { profile, plan: &plan, setting }
        });
        let drawn = if model.is_gated() { self.grid.pictures } else { 0 };
        let mut pictures = Vec::new();
        let contest = Contest {
            session,
            policy: &*policy,
            plain: plain.as_ref(),
            forecast,
            repeat: self.grid.repeat,
            masks: drawn > 0,
        };
        let found = evaluate(&contest, &images, &mut |batch, masked, _| {
            for (i, output) in (0..batch.n).filter_map(|i| Some((i, masked?))) {
                if batch.first + i < drawn {
                    let sample = batch.data.get(batch.first + i)?;
                    pictures.push(draw(model, images.preprocess(), &sample, output, i, (cell, results))?);
                }
            }
            Ok(())
        })?;
        let origin = Origin {
            commit: self.commit.clone(),
            date: today(),
            device: session.describe(),
            machine: self.machine.clone(),
            kernels: kernel_hash(args.kind()).to_owned(),
            profile: profile.map(describe),
            network: spec.name.clone(),
            gates: model.is_gated().then(|| model.gates_text()),
            trained: super::run::trained(model),
        };
        Ok(Row { cell: cell.clone(), origin, found, pictures })
    }
}

/// Whether the policy fits the network, early exits included, and the device is one.
fn check(variant: &Variant, cell: &Cell) -> Result<()> {
    let args = DeviceArgs::of(&cell.device, cell.threads, &cell.dtype)?;
    let fits = || {
        policy(cell, &variant.model.spec, &args)?;
        for exit in early_exits(&cell.policy)?.0 {
            policy(cell, &looking(&variant.model, &exit)?.1, &args)?;
        }
        anyhow::Ok(())
    };
    fits().with_context(|| format!("policies: {}", variant.label))
}

/// Who decides in a network, behind any early exits.
fn policy(cell: &Cell, spec: &NetSpec, args: &DeviceArgs) -> Result<Box<dyn Policy>> {
    if cell.policy == grid::STATIC {
        return Ok(Box::new(Always));
    }
    let (dtype, kind) = (args.dtype(), args.kind());
    named(early_exits(&cell.policy)?.1, Subject { spec, seed: cell.seed, threads: cell.threads, dtype, kind })
}

/// Whether a profile says anything about one of the grid's devices and types.
fn fits_somewhere(profile: &Profile, grid: &Experiment) -> Result<()> {
    let mut outcome = Ok(());
    for place in grid.places() {
        let args = DeviceArgs::of(&place.device, place.threads, &place.dtype)?;
        outcome = profile.check_use(args.kind(), args.dtype());
        if outcome.is_ok() {
            break;
        }
    }
    Ok(outcome?)
}

fn describe(profile: &Profile) -> String {
    let facts = profile.model.facts();
    format!("{}, {}, {}, kernels {}", facts.name, facts.isa, profile.header.date, profile.header.kernel_hash)
}
