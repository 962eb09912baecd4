//! `laud bench`: how long does an inference take, and where does the time go?

use super::device::DeviceArgs;
use super::force::ForceArgs;
use super::model::{Model, ModelArgs};
use super::output::{Table, json, percent, save, si, speed};
use super::run::{Computed, head};
use super::timing::{Limit, Summary, Times, interleave};
use anyhow::{Context, Result, ensure};
use clap::Args;
use laud::exec::{BlockTrace, Request};
use laud::gate::{Learned, Policy};
use laud::report::chrome_events;
use laud::{Output, Session, Trace};
use laud_models::NetSpec;
use serde::Serialize;
use serde_json::{Value, json};
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

/// Measure the time of an inference
#[derive(Args)]
pub(super) struct Bench {
    /// Images of an inference
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    batch: u16,
    /// Inferences to time, of each contestant
    #[arg(long, value_name = "N", conflicts_with = "duration", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    iterations: Option<u32>,
    /// How long to go on, all contestants together; at least 10 inferences of each
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = super::parse::duration)]
    duration: Duration,
    /// Inferences before the clock counts, of each contestant
    #[arg(long, value_name = "N", default_value_t = 5)]
    warm_up: u16,
    /// Wait this long before every inference, as an application does that is sent an image now and then
    #[arg(long, value_name = "TIME", value_parser = super::parse::duration)]
    pause: Option<Duration>,
    /// Measure the same network without gates too, in turns
    #[arg(long = "static")]
    beside_static: bool,
    /// Print where the time goes, block by block
    #[arg(long)]
    profile: bool,
    /// Write one inference of each contestant as a trace for Perfetto or chrome://tracing
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
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

/// One of the things that are timed in turns.
struct Contestant<'a> {
    name: String,
    session: &'a Session,
    policy: Box<dyn Policy>,
    density: Option<f64>,
    /// The network without gates, which the others are compared with.
    is_static: bool,
}

/// What came of one contestant.
struct Result_ {
    times: Times,
    /// Of one inference: what was computed.
    trace: Trace,
    /// Medians over timed inferences; `None` unless asked for.
    profile: Option<Trace>,
}

/// Inferences that a profile is the median of.
const PROFILED: usize = 15;

impl Bench {
    pub(super) fn run(self, out: &mut dyn Write) -> Result<()> {
        self.force.no_exits("bench")?;
        let model = self.model.resolve(&self.force)?;
        ensure!(
            model.is_gated() || !self.beside_static,
            "--static: {} has no gates and is static itself; add --density, or --mode for random weights",
            model.spec.name
        );
        let builder = self.device.builder()?;
        let session = builder.session(&model)?;
        let plain = self.beside_static.then(|| builder.static_session(&model)).transpose()?;
        let batch = usize::from(self.batch);
        let contestants = self.contestants(&model, &session, plain.as_ref())?;
        let images = random_images(&model.spec, batch, self.force.seed)?;
        let request = Request { images: &images, batch, features: false, masks: false, timed: false };

        let mut output = Output::default();
        let infer = |at: usize, output: &mut Output, timed: bool| {
            let Contestant { session, policy, .. } = &contestants[at];
            let outcome = session.infer_with(Request { timed, ..request }, &**policy, output);
            outcome.with_context(|| format!("{}, batch {batch}", model.label))
        };
        let (rounds, duration, most) = match self.iterations {
            Some(n) => (n as usize, Duration::ZERO, n as usize),
            None => (10, self.duration, 1_000_000),
        };
        let limit = Limit {
            warm_up: self.warm_up.into(),
            rounds,
            duration,
            most,
            pause: self.pause.unwrap_or_default(),
        };
        let times = interleave(contestants.len(), limit, |at| infer(at, &mut output, false))?;
        let mut results = Vec::new();
        for (at, times) in times.into_iter().enumerate() {
            infer(at, &mut output, false)?;
            let trace = output.trace.clone();
            let profile = (self.profile || self.trace.is_some()).then(|| {
                let traces =
                    (0..PROFILED).map(|_| infer(at, &mut output, true).map(|()| output.trace.clone()));
                anyhow::Ok(median_trace(&traces.collect::<Result<Vec<_>>>()?))
            });
            results.push(Result_ { times, trace, profile: profile.transpose()? });
        }

        if let Some(path) = &self.trace {
            let both = contestants.iter().zip(&results).enumerate();
            let events: Vec<Value> = both
                .filter_map(|(at, (contestant, result))| {
                    Some(chrome_events(
                        contestant.session.spec(),
                        result.profile.as_ref()?,
                        (at + 1, &contestant.name),
                    ))
                })
                .flatten()
                .collect();
            let text = serde_json::to_string(&json!({ "traceEvents": events, "displayTimeUnit": "ms" }));
            save(path, &text.context("cannot write the trace")?)?;
        }
        match self.json {
            true => json(out, &self.report(&model, &contestants, &results)),
            false => self.print(&model, &contestants, &results, out),
        }
    }

    /// The static network first, then one contestant a density.
    fn contestants<'a>(
        &self,
        model: &Model,
        session: &'a Session,
        plain: Option<&'a Session>,
    ) -> Result<Vec<Contestant<'a>>> {
        let mut contestants = Vec::new();
        if let Some(session) = plain {
            contestants.push(Contestant {
                name: "static".into(),
                session,
                policy: Box::new(Learned),
                density: None,
                is_static: true,
            });
        }
        let densities: Vec<Option<f64>> = match self.force.density.as_slice() {
            [] => vec![None],
            list => list.iter().copied().map(Some).collect(),
        };
        for density in densities {
            let name = match (density, model.is_gated()) {
                (Some(density), _) => format!("density {density}"),
                (None, true) => "learned".to_owned(),
                (None, false) => "static".to_owned(),
            };
            let policy = self.force.policy(&model.spec, self.batch.into(), density, &self.device)?;
            contestants.push(Contestant { name, session, policy, density, is_static: false });
        }
        Ok(contestants)
    }

    fn print(
        &self,
        model: &Model,
        contestants: &[Contestant<'_>],
        results: &[Result_],
        out: &mut dyn Write,
    ) -> Result<()> {
        if let Some(contestant) = contestants.last() {
            head(model, contestant.session, &self.force, out)?;
        }
        let rounds = results.first().map_or(0, |result| result.times.len());
        let inferences = if rounds == 1 { "inference" } else { "inferences" };
        let turns = if results.len() > 1 { ", in turns" } else { "" };
        let pause =
            |pause: Duration| format!(", each after a pause of {} ms", digits(pause.as_secs_f64() * 1e3));
        let pause = self.pause.map_or_else(String::new, pause);
        writeln!(
            out,
            "batch {}  ·  {rounds} {inferences} after {} of warm-up{turns}{pause}\n",
            self.batch, self.warm_up
        )?;
        let baseline = baseline(contestants, results);
        let mut table = Table::new([
            "ms", "min", "mean", "median", "p90", "p95", "p99", "images/s", "MACs", "of dense", "patches",
            "channels", "η", "",
        ])
        .left(13);
        for (contestant, result) in contestants.iter().zip(results) {
            let summary = result.times.summary();
            let Summary { min, mean, median, p90, p95, p99 } = summary;
            let mut row = vec![contestant.name.clone()];
            row.extend([min, mean, median, p90, p95, p99].map(digits));
            let (macs, dense) = (result.trace.macs() as f64, result.trace.dense_macs() as f64);
            row.push(format!("{:.1}", f64::from(self.batch) / median * 1e3));
            row.push(si(macs));
            let computed = Computed::of(contestant.session.spec(), &result.trace.blocks);
            let gated = model.is_gated() && !contestant.is_static;
            row.push(if gated { percent(macs / dense) } else { String::new() });
            row.push(computed.patches.map_or_else(String::new, percent));
            row.push(computed.channels.map_or_else(String::new, percent));
            match baseline.filter(|_| !contestant.is_static) {
                Some(base) => {
                    row.extend([format!("{:.2}", eta(base, result)), speed(base.times.median() / median)])
                }
                None => row.extend([String::new(), String::new()]),
            }
            table.row(row);
        }
        table.print(out)?;
        if self.profile {
            for (contestant, result) in contestants.iter().zip(results) {
                if let Some(trace) = &result.profile {
                    writeln!(out)?;
                    print_profile(&contestant.name, contestant.session.spec(), trace, out)?;
                }
            }
        }
        if let Some(path) = &self.trace {
            writeln!(out, "\ntrace: {}, for https://ui.perfetto.dev", path.display())?;
        }
        Ok(())
    }

    fn report(&self, model: &Model, contestants: &[Contestant<'_>], results: &[Result_]) -> Value {
        let baseline = baseline(contestants, results);
        let both = contestants.iter().zip(results).filter(|(contestant, _)| !contestant.is_static);
        let mut runs: Vec<Run> =
            both.map(|(contestant, result)| self.run_json(contestant, result, baseline)).collect();
        let mut report = json!({
            "model": model.spec.name,
            "weights": model.weights_kind(),
            "gates": model.is_gated().then(|| model.gates_text()),
            "device": contestants.last().map(|contestant| contestant.session.describe()),
            "batch": self.batch,
            "iterations": results.first().map_or(0, |result| result.times.len()),
            "warm_up": self.warm_up,
            "pause_ms": self.pause.map(|pause| pause.as_secs_f64() * 1e3),
            "seed": self.force.seed,
            "pattern": (!self.force.density.is_empty()).then(|| self.force.pattern()),
        });
        // One run: its keys stand beside the others.
        let run = if runs.len() == 1 { json!(runs.remove(0)) } else { json!({ "runs": runs }) };
        if let (Value::Object(report), Value::Object(run)) = (&mut report, run) {
            report.extend(run);
        }
        report
    }

    fn run_json(&self, contestant: &Contestant<'_>, result: &Result_, baseline: Option<&Result_>) -> Run {
        let latency = result.times.summary();
        let (done, dense) = (result.trace.macs(), result.trace.dense_macs());
        let computed = Computed::of(contestant.session.spec(), &result.trace.blocks);
        let profile = result.profile.as_ref().filter(|_| self.profile);
        Run {
            density: contestant.density,
            latency_ms: latency,
            images_per_s: f64::from(self.batch) / latency.median * 1e3,
            static_latency_ms: baseline.map(|base| base.times.summary()),
            speedup: baseline.map(|base| base.times.median() / latency.median),
            eta: baseline.map(|base| eta(base, result)),
            macs: json!({ "done": done, "dense": dense, "fraction": done as f64 / dense as f64 }),
            computed: json!({ "blocks": computed.blocks, "patches": computed.patches, "channel_groups": computed.channels }),
            profile: profile.map(|trace| profile_json(contestant.session.spec(), trace)),
            static_profile: baseline
                .and_then(|base| base.profile.as_ref())
                .filter(|_| self.profile)
                .map(|trace| profile_json(contestant.session.spec(), trace)),
        }
    }
}

/// One contestant but the static one, as JSON.
#[derive(Serialize)]
struct Run {
    #[serde(skip_serializing_if = "Option::is_none")]
    density: Option<f64>,
    latency_ms: Summary,
    images_per_s: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    static_latency_ms: Option<Summary>,
    #[serde(skip_serializing_if = "Option::is_none")]
    speedup: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    eta: Option<f64>,
    /// Over the batch.
    macs: Value,
    computed: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    profile: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    static_profile: Option<Value>,
}

fn baseline<'a>(contestants: &[Contestant<'_>], results: &'a [Result_]) -> Option<&'a Result_> {
    contestants.iter().zip(results).find(|(contestant, _)| contestant.is_static).map(|(_, result)| result)
}

/// Realised efficiency: speed-up ÷ saving of multiply-accumulates.
fn eta(base: &Result_, result: &Result_) -> f64 {
    let faster = base.times.median() / result.times.median();
    let saved = result.trace.dense_macs() as f64 / result.trace.macs() as f64;
    faster / saved
}

/// Three significant digits or more.
fn digits(ms: f64) -> String {
    if ms < 10.0 { format!("{ms:.3}") } else { format!("{ms:.2}") }
}

/// Seeded values spread like a normalised photograph's.
fn random_images(spec: &NetSpec, batch: usize, seed: u64) -> Result<Vec<f32>> {
    let size = spec.input.size;
    let len = batch * spec.input.channels * size.h * size.w;
    let mut values = Vec::new();
    values.try_reserve_exact(len).ok().with_context(|| {
        format!("--batch {batch}: there is no memory for images of {}×{} pixels", size.h, size.w)
    })?;
    let mut state = seed;
    values.extend((0..len).map(|_| {
        // Sebastiano Vigna's splitmix64.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 22) as f32 - 2.0
    }));
    Ok(values)
}

/// The counts of the last trace with the median of each time.
fn median_trace(traces: &[Trace]) -> Trace {
    let Some(mut merged) = traces.last().cloned() else { return Trace::default() };
    let median = |time: &dyn Fn(&Trace) -> u64| {
        let mut times: Vec<u64> = traces.iter().map(time).collect();
        times.sort_unstable();
        times[times.len() / 2]
    };
    merged.stem_ns = median(&|trace| trace.stem_ns);
    merged.head_ns = median(&|trace| trace.head_ns);
    for (i, block) in merged.blocks.iter_mut().enumerate() {
        block.gate_ns = median(&|trace| trace.blocks[i].gate_ns);
        block.compact_ns = median(&|trace| trace.blocks[i].compact_ns);
        block.compute_ns = median(&|trace| trace.blocks[i].compute_ns);
    }
    merged
}

/// GFLOP/s of `macs` in `ns`, two operations each; nothing where no time passed.
fn gflops(macs: u64, ns: u64) -> Option<f64> {
    (ns > 0 && macs > 0).then(|| 2.0 * macs as f64 / ns as f64)
}

fn print_profile(name: &str, spec: &NetSpec, trace: &Trace, out: &mut dyn Write) -> Result<()> {
    let us = |ns: u64| if ns == 0 { String::new() } else { format!("{:.1}", ns as f64 / 1e3) };
    let rate = |macs, ns| gflops(macs, ns).map_or_else(String::new, |rate| format!("{rate:.0}"));
    let share = |ns: u64| format!("{:.1} %", 100.0 * ns as f64 / trace.total_ns().max(1) as f64);
    let mut table = Table::new([
        name, "map", "gate µs", "compact", "compute", "share", "patches", "channels", "MACs", "of dense",
        "GFLOP/s", "",
    ])
    .left(11);
    let plain = |name: &str, ns: u64, macs: u64| {
        let mut row = vec![String::new(); 12];
        (row[0], row[4], row[5]) = (name.to_owned(), us(ns), share(ns));
        (row[8], row[10]) = (si(macs as f64), rate(macs, ns));
        row
    };
    table.row(plain("stem", trace.stem_ns, trace.stem_macs));
    for (block, entry) in spec.blocks.iter().zip(&trace.blocks) {
        let &BlockTrace { gate_ns, compact_ns, compute_ns, macs, dense_macs, .. } = entry;
        let gated = block.gate.is_some();
        let density = |gated: bool, count: laud::exec::Count| {
            if gated { percent(count.density()) } else { String::new() }
        };
        table.row([
            block.name.clone(),
            format!("{}×{}", block.output.h, block.output.w),
            if gated { us(gate_ns) } else { String::new() },
            if gated { us(compact_ns) } else { String::new() },
            us(compute_ns),
            share(gate_ns + compact_ns + compute_ns),
            density(block.gate.spatial.is_some(), entry.patches),
            density(block.gate.channel.is_some(), entry.channel_groups),
            si(macs as f64),
            if gated { percent(macs as f64 / dense_macs.max(1) as f64) } else { String::new() },
            rate(macs, compute_ns),
            if entry.gathered { "gathered".to_owned() } else { String::new() },
        ]);
    }
    table.row(plain("head", trace.head_ns, trace.head_macs));
    let gated = || spec.blocks.iter().zip(&trace.blocks).filter(|(block, _)| block.gate.is_some());
    let sum = |part: fn(&BlockTrace) -> u64| gated().map(|(_, entry)| part(entry)).sum::<u64>();
    let (gate_ns, compact_ns) = (sum(|block| block.gate_ns), sum(|block| block.compact_ns));
    let mut total = plain("total", 0, trace.macs());
    total[2] = us(gate_ns);
    total[3] = us(compact_ns);
    total[4] = us(trace.total_ns() - gate_ns - compact_ns);
    total[5] = String::new();
    if gated().next().is_some() {
        total[9] = percent(trace.macs() as f64 / trace.dense_macs().max(1) as f64);
    }
    total[10] = rate(trace.macs(), trace.total_ns());
    table.row(total);
    table.print(out)
}

fn profile_json(spec: &NetSpec, trace: &Trace) -> Value {
    let blocks = spec.blocks.iter().zip(&trace.blocks).map(|(block, entry)| {
        json!({
            "block": block.name,
            "gate_us": entry.gate_ns as f64 / 1e3,
            "compact_us": entry.compact_ns as f64 / 1e3,
            "compute_us": entry.compute_ns as f64 / 1e3,
            "patches": entry.patches.density(),
            "channel_groups": entry.channel_groups.density(),
            "macs": entry.macs,
            "dense_macs": entry.dense_macs,
            "gathered": entry.gathered,
            "gflops": gflops(entry.macs, entry.compute_ns),
        })
    });
    json!({
        "stem_us": trace.stem_ns as f64 / 1e3,
        "head_us": trace.head_ns as f64 / 1e3,
        "blocks": blocks.collect::<Vec<_>>(),
    })
}
