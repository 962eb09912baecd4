//! Which measured point meets a latency budget at the best accuracy, and what accuracy costs.

use super::results::front;
use super::{Cell, Computed, Evaluation, Latency, Macs, Row};
use anyhow::{Context, Result, ensure};
use std::str::FromStr;

/// What is asked.
#[derive(Clone, Debug)]
pub struct Question<'a> {
    /// Milliseconds that an image may take.
    pub budget_ms: f64,
    /// How many of the images have to keep within them.
    pub quantile: Quantile,
    /// Devices to choose from; all of them where there are none.
    pub devices: &'a [String],
}

/// Which latency counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantile {
    /// Half of the images keep within it.
    P50,
    /// 95 of a hundred.
    P95,
    /// 99 of a hundred.
    P99,
}

impl Quantile {
    /// Of a latency.
    pub fn of(self, latency: &Latency) -> f64 {
        match self {
            Self::P50 => latency.p50,
            Self::P95 => latency.p95,
            Self::P99 => latency.p99,
        }
    }

    /// `p50`, `p95` or `p99`.
    pub fn name(self) -> &'static str {
        match self {
            Self::P50 => "p50",
            Self::P95 => "p95",
            Self::P99 => "p99",
        }
    }
}

impl FromStr for Quantile {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let all = [Self::P50, Self::P95, Self::P99];
        all.into_iter().find(|quantile| quantile.name() == text).context("there are p50, p95 and p99")
    }
}

/// The answer.
#[derive(Clone, Debug)]
pub struct Advice {
    /// The measured points it is about, those of static networks too.
    pub rows: Vec<Row>,
    /// The most accurate one within the budget, the faster of equals; `None`: nothing keeps within it.
    pub pick: Option<usize>,
    /// The fastest one.
    pub fastest: usize,
    /// The points that nothing beats, from the fastest to the most accurate.
    pub steps: Vec<Step>,
}

/// One of the points that nothing beats.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Point.
    pub row: usize,
    /// Accuracy that a millisecond more buys on the way from the step before, in percentage points; `None` of the first.
    pub points_per_ms: Option<f64>,
}

/// Chooses from measured points only.
///
/// # Errors
/// Points of different images cannot be compared; none on the devices.
pub fn advise(rows: &[Row], question: &Question<'_>) -> Result<Advice> {
    let asked = |row: &&Row| question.devices.is_empty() || question.devices.contains(&row.cell.device);
    let rows: Vec<Row> = with_static(rows).iter().filter(asked).cloned().collect();
    let first =
        rows.first().with_context(|| format!("nothing was measured on {}", question.devices.join(", ")))?;
    let set = |row: &Row| (row.cell.data.clone(), row.found.images);
    if let Some(other) = rows.iter().find(|row| set(row) != set(first)) {
        let [(a, n), (b, m)] = [set(first), set(other)];
        ensure!(
            false,
            "accuracy on {n} images of {a} does not compare with that on {m} of {b}; give results of one set"
        );
    }
    let cost = |row: &Row| question.quantile.of(&row.found.latency_ms);
    let order = front(&rows, cost);
    let step = |(at, &row): (usize, &usize)| {
        let before = at.checked_sub(1).map(|before| &rows[order[before]]);
        let per_ms = |before: &Row| {
            100.0 * (rows[row].found.top1 - before.found.top1)
                / (cost(&rows[row]) - cost(before)).max(f64::MIN_POSITIVE)
        };
        Step { row, points_per_ms: before.map(per_ms) }
    };
    let steps = order.iter().enumerate().map(step).collect();
    let pick = order.iter().rev().copied().find(|&row| cost(&rows[row]) <= question.budget_ms);
    let fastest = *order.first().context("no latencies")?;
    Ok(Advice { pick, fastest, steps, rows })
}

/// The rows, and one for each static network that they were compared with and that is not among them.
pub fn with_static(rows: &[Row]) -> Vec<Row> {
    let mut all = rows.to_vec();
    for row in rows {
        let Some(compared) = &row.found.compared else { continue };
        let cell = Cell {
            policy: "static".to_owned(),
            mode: None,
            granularity: None,
            group: None,
            seed: 0,
            ..row.cell.clone()
        };
        let same = |other: &Row| {
            let Cell { model, device, threads, dtype, data, limit, .. } = &other.cell;
            (model, device, threads, dtype, data, limit)
                == (&cell.model, &cell.device, &cell.threads, &cell.dtype, &cell.data, &cell.limit)
        };
        if all.iter().any(|other| other.cell.policy == cell.policy && same(other)) {
            continue;
        }
        // Of all that were compared with it, the one in the middle speaks for it.
        let mut times: Vec<&Latency> = rows
            .iter()
            .filter(|row| same(row))
            .filter_map(|row| Some(&row.found.compared.as_ref()?.latency_ms))
            .collect();
        times.sort_by(|a, b| a.p50.total_cmp(&b.p50));
        let Some(latency) = times.get(times.len() / 2) else { continue };
        let dense = row.found.macs.dense;
        let mut origin = row.origin.clone();
        (origin.gates, origin.trained) = (None, true);
        let found = Evaluation {
            images: row.found.images,
            batch: row.found.batch,
            top1: compared.top1,
            top5: compared.top5,
            macs: Macs { done: dense, most: dense, dense },
            exits: Vec::new(),
            computed: Computed { blocks: 1.0, patches: 1.0, channel_groups: 1.0 },
            blocks: Vec::new(),
            latency_ms: (*latency).clone(),
            predicted_ms: None,
            compared: None,
        };
        all.push(Row { cell, origin, found, pictures: Vec::new() });
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::results::tests::row;

    fn ask(rows: &[Row], budget_ms: f64, devices: &[String]) -> Result<Advice> {
        advise(rows, &Question { budget_ms, quantile: Quantile::P50, devices })
    }

    #[test]
    fn the_most_accurate_point_within_the_budget_is_taken() {
        let rows = [row("a", 0.8, 1.0), row("b", 0.9, 2.0), row("c", 0.85, 3.0), row("d", 0.95, 6.0)];
        let picked = |budget| {
            let advice = ask(&rows, budget, &[]).unwrap();
            advice.pick.map(|row| advice.rows[row].cell.policy.clone())
        };
        assert_eq!(
            [picked(5.0), picked(7.0), picked(1.5)],
            ["b", "d", "a"].map(|name| Some(name.to_owned()))
        );
        assert_eq!(picked(0.5), None);
        let advice = ask(&rows, 5.0, &[]).unwrap();
        assert_eq!((advice.fastest, advice.steps.len()), (0, 3));
        assert_eq!(advice.steps[0].points_per_ms, None);
        assert!((advice.steps[1].points_per_ms.unwrap() - 10.0).abs() < 1e-6);
    }

    #[test]
    fn only_what_compares_is_compared() {
        let mut rows = vec![row("a", 0.8, 1.0), row("b", 0.9, 2.0)];
        rows[1].cell.device = "cuda:0".into();
        assert_eq!(ask(&rows, 5.0, &["cpu".into()]).unwrap().rows.len(), 1);
        assert!(ask(&rows, 5.0, &["tpu".into()]).unwrap_err().to_string().contains("tpu"));
        rows[1].cell.data = "other".into();
        assert!(ask(&rows, 5.0, &[]).unwrap_err().to_string().contains("does not compare"));
    }

    #[test]
    fn static_networks_are_points_too() {
        let mut dynamic = row("learned", 0.8, 1.0);
        let other = row("static", 0.85, 2.0).found;
        dynamic.found.compared = Some(super::super::Compared {
            top1: 0.85,
            top5: 1.0,
            latency_ms: other.latency_ms,
            agreement: 0.9,
            only_static_right: 20,
            only_dynamic_right: 10,
            differs: vec![],
        });
        let rows = with_static(&[
            dynamic.clone(),
            Row { cell: Cell { policy: "always".into(), ..dynamic.cell.clone() }, ..dynamic },
        ]);
        assert_eq!(rows.len(), 3);
        assert_eq!((rows[2].cell.policy.as_str(), rows[2].found.top1, rows[2].macs()), ("static", 0.85, 1.0));
        assert_eq!(rows[2].network(), "net");
        assert_eq!(with_static(&rows).len(), 3);
    }
}
