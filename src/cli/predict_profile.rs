//! `laud predict --profile`: a calibrated device, one network, densities or a distribution of them.

use super::output::{Table, json, ms, percent, speed};
use super::plan::asked;
use super::predict::{ModeArg, Predict};
use anyhow::{Context, Result, ensure};
use laud::calibrate::load;
use laud::plan::{Activity, ActivityTable, Densities, ExecutionPlan, Lowered, Setting, lower, network_ns};
use laud::predictor::DeviceKind;
use laud::predictor::learned::Parts;
use laud::predictor::profile::Profile;
use laud::predictor::workload::DType;
use laud_models::{GateMode, NetConfig, NetSpec, PerStage};
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;

/// What a network is expected to take.
struct Expected {
    ns: f64,
    parts: Parts,
    /// The first call that is not like anything that was measured.
    outside: Option<String>,
}

impl Predict {
    pub(super) fn measured(&self, file: &Path, out: &mut dyn Write) -> Result<()> {
        let profile = load(file)?;
        let kind = profile.model.facts().kind;
        ensure!(
            kind == DeviceKind::Cpu || self.threads.is_none(),
            "--threads: {} is of a CUDA device, which has none",
            file.display()
        );
        let dtype = match (self.dtype, profile.model.dtypes().as_slice()) {
            (Some(element), _) => element.dtype(),
            (None, [only]) => *only,
            (None, _) => DType::F32,
        };
        profile.check_use(kind, dtype).with_context(|| file.display().to_string())?;
        let setting = Setting {
            batch: self.batch.unwrap_or(1) as usize,
            ..Setting::of(&profile, self.threads.unwrap_or(1).into(), dtype)
        };
        let spec = self.network()?;
        match &self.densities {
            Some(file) => self.distribution(&spec, &profile, &setting, file, out),
            None => self.table(&spec, &profile, &setting, out),
        }
    }

    /// The one network and mode.
    fn network(&self) -> Result<NetSpec> {
        let [name] = self.model.as_slice() else { anyhow::bail!("--profile: give one --model") };
        let ([mode], [granularity]) = (self.mode.as_slice(), self.granularity.as_slice()) else {
            anyhow::bail!("--profile: give one --mode and one --granularity")
        };
        let context = || format!("--model {name}");
        let config = NetConfig { arch: Some(name.clone()), ..NetConfig::default() };
        let mut config = config.complete().with_context(context)?;
        let plain = config.clone().build().with_context(context)?;
        let stages = plain.blocks.last().map_or(0, |block| block.stage + 1);
        let mut sides = super::parse::per_stage_number(granularity).map_err(anyhow::Error::msg)?;
        if let PerStage::Each(list) = &mut sides
            && let Some(last) = list.last().copied()
        {
            // A list for four stages does for a network with others.
            list.resize(stages, last);
        }
        let gates = match mode {
            ModeArg::Static => GateMode::None,
            ModeArg::Layer => GateMode::Layer,
            ModeArg::Spatial => GateMode::Spatial,
            ModeArg::Channel => GateMode::Channel,
        };
        config.dyn_mode = Some(PerStage::All(gates));
        config.spatial_granularity = Some(sides.clone());
        config.channel_granularity = Some(sides);
        config.build().with_context(context)
    }

    fn table(&self, spec: &NetSpec, profile: &Profile, setting: &Setting, out: &mut dyn Write) -> Result<()> {
        let densities = match self.density.as_slice() {
            [] => (1..=10).map(|tenths| f64::from(tenths) / 10.0).collect(),
            list => list.to_vec(),
        };
        let table = ActivityTable::new(spec, &[1])?;
        let plan = ExecutionPlan::sparse(spec);
        let full: Vec<Activity> = spec.blocks.iter().map(Activity::full).collect();
        let plain = spec.without_gates();
        let dense = expected(profile, &lower(&plain, &ExecutionPlan::sparse(&plain), &full, setting));
        let mut rows = Vec::new();
        for density in densities {
            let activities: Vec<Activity> = (spec.blocks.iter().enumerate())
                .map(|(i, block)| {
                    let of = |gated: bool| if gated { density } else { 1.0 };
                    table.at(i, 1, of(block.gate.spatial.is_some()), of(block.gate.channel.is_some()))
                })
                .collect();
            rows.push((density, expected(profile, &lower(spec, &plan, &activities, setting))));
        }
        if self.json {
            let row = |(density, expected): &(f64, Expected)| {
                let mut row = expected.json();
                row["density"] = json!(density);
                row["static_latency_ms"] = json!(dense.ns / 1e6);
                row
            };
            return json(out, &rows.iter().map(row).collect::<Vec<_>>());
        }
        writeln!(
            out,
            "{}  ·  {}  ·  {}  ·  static {}\n",
            spec.name,
            profile.model.facts().name,
            asked(setting, profile),
            ms(dense.ns / 1e6)
        )?;
        let mut lines =
            Table::new(["density", "ms", "", "compute", "memory", "gather", "gate", "compact", "launch"]);
        for (density, expected) in &rows {
            let part = |ns: f64| if self.explain { format!("{:.3}", ns / 1e6) } else { String::new() };
            let Parts { compute_ns, memory_ns, gather_ns, gate_ns, compaction_ns, launch_ns } =
                expected.parts;
            let mut line = vec![
                format!("{density}"),
                format!("{:.3}", expected.ns / 1e6),
                speed(dense.ns / expected.ns),
            ];
            line.extend([compute_ns, memory_ns, gather_ns, gate_ns, compaction_ns, launch_ns].map(part));
            lines.row(line);
        }
        lines.print(out)?;
        if let Some(outside) = rows.iter().find_map(|(_, expected)| expected.outside.as_ref()) {
            writeln!(out, "\noutside what was measured: {outside}")?;
        }
        Ok(())
    }

    fn distribution(
        &self,
        spec: &NetSpec,
        profile: &Profile,
        setting: &Setting,
        file: &Path,
        out: &mut dyn Write,
    ) -> Result<()> {
        ensure!(setting.batch == 1, "--densities: the distribution is over images, leave --batch at 1");
        let densities = Densities::load(file, spec)?;
        let plan = ExecutionPlan::sparse(spec);
        let mut times: Vec<f64> = densities
            .images
            .iter()
            .map(|image| expected(profile, &lower(spec, &plan, &image.activities(), setting)).ns / 1e6)
            .collect();
        times.sort_by(f64::total_cmp);
        let quantile = |q: f64| times[((q * times.len() as f64).ceil() as usize).clamp(1, times.len()) - 1];
        let budget = self.budget.map(|budget| budget.as_secs_f64() * 1e3);
        let within =
            budget.map(|budget| times.iter().filter(|ms| **ms <= budget).count() as f64 / times.len() as f64);
        if self.json {
            let value = json!({
                "network": spec.name, "images": times.len(),
                "p50_ms": quantile(0.5), "p90_ms": quantile(0.9), "p99_ms": quantile(0.99),
                "budget_ms": budget, "within_budget": within,
            });
            return json(out, &value);
        }
        writeln!(out, "{}  ·  {} images  ·  {}", spec.name, times.len(), asked(setting, profile))?;
        for (name, q) in [("p50", 0.5), ("p90", 0.9), ("p99", 0.99)] {
            writeln!(out, "  {name}  {}", ms(quantile(q)))?;
        }
        if let (Some(budget), Some(within)) = (budget, within) {
            writeln!(out, "  {} of them within {}", percent(within), ms(budget))?;
        }
        Ok(())
    }
}

fn expected(profile: &Profile, lowered: &Lowered) -> Expected {
    let mut parts = Parts::default();
    let mut outside = None;
    for call in lowered.calls() {
        let one = profile.model.predict(&call.workload);
        parts += one.parts.scaled(call.times);
        if let (None, Some(why)) = (&outside, one.outside) {
            outside = Some(format!("{}: {why}", call.workload));
        }
    }
    let ns = network_ns(profile, lowered.calls());
    Expected { ns, parts, outside }
}

impl Expected {
    fn json(&self) -> Value {
        json!({
            "latency_ms": self.ns / 1e6,
            "parts_ns": self.parts,
            "outside": self.outside,
        })
    }
}
