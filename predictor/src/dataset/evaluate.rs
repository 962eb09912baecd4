use serde::Serialize;

use super::terms::{Terms, features};
use super::{Conv, Gpu, GpuSpec, Timing};
use crate::learned::boost::Growth;
use crate::learned::regression::{Regression, Row, Settings, narrow};
use crate::random::Random;
use crate::{Error, Result};

/// How far predictions are from measurements that were not used.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Evaluation {
    /// The GPU, as its files name it.
    pub gpu: String,
    /// Measurements of this GPU that were used.
    pub used: usize,
    /// Measurements of other GPUs that were used.
    pub used_of_others: usize,
    /// Measurements that the errors are about.
    pub held_out: usize,
    /// Mean of |predicted − measured| ÷ measured, in percent. The predictor knows the shape.
    pub mape_percent: f64,
    /// Share of the measurements that are predicted within ±10 %, in percent.
    pub within_10_percent: f64,
    /// The same mean when the predictor is told when in its session a measurement was taken.
    pub mape_percent_given_moment: f64,
    /// Share within ±10 % then.
    pub within_10_percent_given_moment: f64,
    /// Milliseconds that the session added to a measurement from its first line to its last.
    pub drift_ms: f64,
}

/// Place of the session's term among the amounts of work.
const SESSION: usize = Terms::LEN;

/// A model of one GPU.
pub(super) struct GpuModel {
    spec: GpuSpec,
    pub(super) regression: Regression,
}

impl GpuModel {
    pub(super) fn fit<'a>(
        spec: &GpuSpec,
        timings: impl Iterator<Item = &'a Timing>,
        seed: u64,
    ) -> Result<Self> {
        let rows: Vec<Row> = timings
            .map(|timing| Row {
                terms: amounts(&timing.conv, spec, timing.moment),
                features: features(&timing.conv, spec),
                ns: timing.latency_ms,
            })
            .collect();
        let growth = Growth {
            bags: 3,
            trees: 160,
            leaves: 12,
            depth: 5,
            columns: 0.5,
            learning_rate: 0.08,
            leaf: 4.0,
            seed,
        };
        let settings = Settings { growth, coverage: 0.9, session: Some(SESSION) };
        let regression = Regression::fit(&rows, &settings)?;
        Ok(Self { spec: spec.clone(), regression })
    }

    /// Milliseconds of the convolution by the terms alone, without what the session adds.
    pub(super) fn analytic_ms(&self, conv: &Conv) -> f64 {
        self.regression.analytic(&amounts(conv, &self.spec, 0.0))
    }

    /// Logarithm of the factor on that.
    pub(super) fn residual(&self, conv: &Conv) -> f64 {
        self.regression.residual(&narrow(&features(conv, &self.spec))).mean
    }

    /// Milliseconds that the session adds from its first line to its last.
    pub(super) fn drift_ms(&self) -> f64 {
        self.regression.coefficients[SESSION]
    }
}

fn amounts(conv: &Conv, spec: &GpuSpec, moment: f64) -> Vec<f64> {
    let mut amounts = Terms::of(conv, spec).values();
    amounts.push(moment);
    amounts
}

/// The time with the least expected relative error where the session adds anything between nothing and `drift_ms`.
pub(super) fn at_any_moment(work_ms: f64, drift_ms: f64) -> f64 {
    (work_ms * (work_ms + drift_ms)).sqrt()
}

/// Fits `train` measurements of one GPU, drawn by `seed`, and predicts `held_out` others, or as many as there are.
///
/// # Errors
/// [`Error::Fit`] when there are not more measurements than are to be used.
pub fn same_device(gpu: &Gpu, train: usize, held_out: usize, seed: u64) -> Result<Evaluation> {
    let n = gpu.timings.len();
    if train < 2 || train >= n {
        let reason = format!("{train} of the {n} measurements of {} to train on", gpu.name);
        return Err(Error::Fit { reason });
    }
    let order = Random::new(seed).permutation(n);
    let pick = |range: std::ops::Range<usize>| order[range].iter().map(|&i| &gpu.timings[i]);
    let model = GpuModel::fit(&gpu.spec, pick(0..train), seed)?;
    let drift = model.drift_ms();
    let predicted = pick(train..n.min(train + held_out)).map(|timing| {
        let work = model.analytic_ms(&timing.conv) * model.residual(&timing.conv).exp();
        (timing.latency_ms, at_any_moment(work, drift), work + drift * timing.moment)
    });
    Ok(Evaluation::of(&gpu.name, (train, 0), drift, predicted))
}

impl Evaluation {
    /// From measured milliseconds, predicted ones, and those predicted for the moment.
    pub(super) fn of(
        gpu: &str,
        (used, used_of_others): (usize, usize),
        drift_ms: f64,
        predicted: impl Iterator<Item = (f64, f64, f64)>,
    ) -> Self {
        let errors: Vec<[f64; 2]> = predicted
            .map(|(measured, any, given)| [any, given].map(|ms| (ms / measured - 1.0).abs()))
            .collect();
        let n = errors.len().max(1) as f64;
        let mean = |of: usize| 100.0 * errors.iter().map(|error| error[of]).sum::<f64>() / n;
        let within = |of: usize| 100.0 * errors.iter().filter(|error| error[of] <= 0.1).count() as f64 / n;
        Self {
            gpu: gpu.to_owned(),
            used,
            used_of_others,
            held_out: errors.len(),
            mape_percent: mean(0),
            within_10_percent: within(0),
            mape_percent_given_moment: mean(1),
            within_10_percent_given_moment: within(1),
            drift_ms,
        }
    }
}

/// Milliseconds of launch, arithmetic and traffic, with the coefficient of each term.
pub(super) fn kinds(conv: &Conv, spec: &GpuSpec, coefficient: impl Fn(usize) -> f64) -> [f64; 3] {
    let terms = Terms::of(conv, spec);
    let sum = |first: usize, values: &[f64]| -> f64 {
        values.iter().enumerate().map(|(i, value)| coefficient(first + i) * value).sum()
    };
    let computed = 1 + terms.compute.len();
    [sum(0, &[terms.launch]), sum(1, &terms.compute), sum(computed, &terms.memory)]
}
