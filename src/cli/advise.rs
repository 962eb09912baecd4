//! `laud advise`: what meets a latency budget, from measured points only.

use super::output::{Table, json, ms, percent};
use super::parse;
use anyhow::{Context, Result, bail};
use clap::Args;
use laud::evaluate::{Advice, Quantile, Question, Row, advise, load};
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Choose network, policy, precision, threads and device for a latency budget, from measured points
#[derive(Args)]
pub(super) struct AdviseArgs {
    /// What an image may take: 33ms, 1s
    #[arg(long, value_name = "TIME", value_parser = parse::duration)]
    budget: Duration,
    /// Results of experiments: JSON lines
    #[arg(long, value_name = "FILE", required = true, num_args = 1..)]
    results: Vec<PathBuf>,
    /// Devices to choose from [default: all that were measured]
    #[arg(long, value_name = "DEVICE,..", value_delimiter = ',')]
    devices: Vec<String>,
    /// Which latency has to keep within the budget: p50, p95 or p99
    #[arg(long, value_name = "QUANTILE", default_value = "p95")]
    quantile: Quantile,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Rows of several files.
pub(super) fn load_all(files: &[PathBuf]) -> Result<Vec<Row>> {
    let files = files.iter().map(|file| load(file));
    Ok(files.collect::<Result<Vec<_>>>()?.concat())
}

impl AdviseArgs {
    pub(super) fn run(self, out: &mut dyn Write) -> Result<()> {
        let rows = load_all(&self.results)?;
        let budget_ms = self.budget.as_secs_f64() * 1e3;
        let question = Question { budget_ms, quantile: self.quantile, devices: &self.devices };
        let advice = advise(&rows, &question).context("--results")?;
        if self.json {
            return json(out, &self.json(&advice, budget_ms));
        }
        let cost = |row: &Row| self.quantile.of(&row.found.latency_ms);
        let name = self.quantile.name();
        let Some(pick) = advice.pick.map(|row| &advice.rows[row]) else {
            let fastest = &advice.rows[advice.fastest];
            bail!(
                "nothing that was measured keeps within {} at {name}; the fastest takes {}: {}, {}, {} (top-1 {})",
                ms(budget_ms),
                ms(cost(fastest)),
                fastest.network(),
                fastest.cell.policy,
                fastest.place(),
                percent(fastest.found.top1)
            )
        };
        let set = Path::new(&pick.cell.data)
            .file_name()
            .map_or(pick.cell.data.clone(), |name| name.to_string_lossy().into_owned());
        writeln!(
            out,
            "within {} at {name}: the most accurate of {} measured points ({} images of {set})\n",
            ms(budget_ms),
            advice.rows.len(),
            pick.found.images
        )?;
        writeln!(out, "  {}  ·  {}  ·  {}", pick.network(), pick.cell.policy, pick.place())?;
        let latency = &pick.found.latency_ms;
        writeln!(
            out,
            "  top-1 {}  ·  p50 {}  p95 {}  p99 {}  ·  {} of the MACs",
            percent(pick.found.top1),
            ms(latency.p50),
            ms(latency.p95),
            ms(latency.p99),
            percent(pick.macs())
        )?;
        if !pick.origin.trained {
            writeln!(out, "  its gates are not trained: training them can only help")?;
        }
        writeln!(out, "\nwhat nothing beats, and what accuracy costs")?;
        let mut table = Table::new([name, "top-1", "points per ms", "network", "policy", "where"])
            .left(3)
            .left(4)
            .left(5);
        for step in &advice.steps {
            let row = &advice.rows[step.row];
            table.row([
                ms(cost(row)),
                percent(row.found.top1),
                step.points_per_ms.map_or(String::new(), |points| format!("{points:+.2}")),
                row.network(),
                row.cell.policy.clone(),
                row.place(),
            ]);
        }
        table.print(out)
    }

    fn json(&self, advice: &Advice, budget_ms: f64) -> Value {
        let point = |row: usize| {
            let row = &advice.rows[row];
            let mut latency = serde_json::to_value(&row.found.latency_ms).unwrap_or_default();
            if let Some(latency) = latency.as_object_mut() {
                latency.remove("percentiles");
            }
            json!({
                "network": row.origin.network, "gates": row.origin.gates, "trained": row.origin.trained,
                "model": row.cell.model, "policy": row.cell.policy, "device": row.cell.device,
                "threads": row.cell.threads, "dtype": row.cell.dtype, "seed": row.cell.seed,
                "top1": row.found.top1, "latency_ms": latency, "macs": row.macs(), "commit": row.origin.commit,
            })
        };
        let steps = advice.steps.iter().map(|step| {
            let mut value = point(step.row);
            value["points_per_ms"] = json!(step.points_per_ms);
            value
        });
        json!({
            "budget_ms": budget_ms,
            "quantile": self.quantile.name(),
            "points": advice.rows.len(),
            "pick": advice.pick.map(point),
            "fastest": point(advice.fastest),
            "front": steps.collect::<Vec<_>>(),
        })
    }
}
