//! The learned predictor: analytic terms of the kernels with coefficients fitted to measurements of a device.
//!
//! [`Model::fit`] takes [`Sample`]s; [`Model::predict`] answers for a [`Workload`] with an interval, a split into what
//! the time is made of, and whether the question lies outside of what was measured.

pub(crate) mod boost;
mod nnls;
pub(crate) mod regression;
pub(crate) mod scales;
mod terms;

use std::fmt;
use std::ops::{Add, AddAssign};

use serde::{Deserialize, Serialize};

use crate::workload::{Op, Sample, Workload};
use crate::{DeviceFacts, Error, Result};
use terms::Terms;

/// Time of one kernel call on one device, learned from measurements.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    facts: DeviceFacts,
    ops: Vec<OpModel>,
}

/// What was learned about one kernel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OpModel {
    op: Op,
    /// Nanoseconds a unit of each term.
    coefficients: Vec<f64>,
    /// Half width of the interval around the logarithm of a prediction.
    spread: f64,
    /// Least and most of each checked quantity among the measurements.
    measured: Vec<(f64, f64)>,
    samples: usize,
}

/// How to fit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FitOptions {
    /// Seed of everything that is drawn.
    pub seed: u64,
    /// Share of held-out measurements that the intervals are to hold, `0..1`.
    pub coverage: f64,
}

impl Default for FitOptions {
    fn default() -> Self {
        Self { seed: 0, coverage: 0.9 }
    }
}

/// An answer, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prediction {
    /// Expected time.
    pub ns: f64,
    /// Lower end of the interval.
    pub low_ns: f64,
    /// Upper end of the interval.
    pub high_ns: f64,
    /// What [`ns`](Self::ns) is made of.
    pub parts: Parts,
    /// The question is not like anything that was measured, and how; the answer is an extrapolation.
    pub outside: Option<Outside>,
}

/// What a time is made of, in nanoseconds; adds up to the prediction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Parts {
    /// Arithmetic, padded to tiles.
    pub compute_ns: f64,
    /// Reading and writing weights and activations.
    pub memory_ns: f64,
    /// Finding rows and channels: pointers, runs, packing of active columns.
    pub gather_ns: f64,
    /// Decisions of gates.
    pub gate_ns: f64,
    /// Decisions to lists.
    pub compaction_ns: f64,
    /// What every call costs.
    pub launch_ns: f64,
}

/// How a question lies outside of what was measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outside {
    /// The kernel was not measured at all.
    Op(Op),
    /// A quantity lies outside the measured range.
    Range {
        /// Its name.
        what: &'static str,
        /// What was asked.
        value: f64,
        /// Least measured.
        low: f64,
        /// Most measured.
        high: f64,
    },
}

impl Model {
    /// Learns from measurements of one device.
    ///
    /// # Errors
    /// [`Error::Fit`] without samples, [`Error::Workload`] for an impossible one, [`Error::Device`] for impossible facts.
    pub fn fit(samples: &[Sample], facts: &DeviceFacts, options: &FitOptions) -> Result<Self> {
        facts.check()?;
        samples.iter().try_for_each(Sample::check)?;
        if samples.is_empty() {
            return Err(Error::Fit { reason: "no measurements".to_owned() });
        }
        let of = |op: Op| samples.iter().filter(move |sample| sample.workload.op == op);
        let ops = Op::ALL
            .into_iter()
            .filter(|&op| of(op).next().is_some())
            .map(|op| OpModel::fit(op, of(op), facts, options))
            .collect();
        Ok(Self { facts: facts.clone(), ops })
    }

    /// The device it was fitted on.
    pub fn facts(&self) -> &DeviceFacts {
        &self.facts
    }

    /// Kernels it was fitted on.
    pub fn ops(&self) -> impl Iterator<Item = Op> + '_ {
        self.ops.iter().map(|model| model.op)
    }

    /// Time of one call. A workload whose kernel was never measured takes 0 ns and is [`Outside::Op`].
    pub fn predict(&self, workload: &Workload) -> Prediction {
        let Some(model) = self.ops.iter().find(|model| model.op == workload.op) else {
            let outside = Some(Outside::Op(workload.op));
            return Prediction {
                ns: 0.0,
                low_ns: 0.0,
                high_ns: f64::INFINITY,
                parts: Parts::default(),
                outside,
            };
        };
        let terms = Terms::of(workload, &self.facts);
        let parts = terms.parts(&model.coefficients);
        let ns = parts.total_ns();
        let wide = model.spread.exp();
        Prediction { ns, low_ns: ns / wide, high_ns: ns * wide, parts, outside: model.outside(workload) }
    }

    /// How unsure the model is of the logarithm of this workload's time: what to measure next is where it is largest.
    pub fn uncertainty(&self, workload: &Workload) -> f64 {
        match self.ops.iter().find(|model| model.op == workload.op) {
            None => f64::INFINITY,
            Some(model) => model.spread + if model.outside(workload).is_some() { 1.0 } else { 0.0 },
        }
    }
}

/// Quantities whose range is remembered.
const RANGES: [&str; 6] = ["rows", "runs", "c_in_active", "c_out_active", "kernel", "threads"];

fn ranged(w: &Workload) -> [f64; 6] {
    [w.rows.into(), w.runs.into(), w.c_in_active, w.c_out_active, w.kernel.into(), w.threads.into()]
}

impl OpModel {
    fn fit<'a>(
        op: Op,
        samples: impl Iterator<Item = &'a Sample> + Clone,
        facts: &DeviceFacts,
        options: &FitOptions,
    ) -> Self {
        let rows: Vec<(Vec<f64>, f64)> = samples
            .clone()
            .map(|sample| (Terms::of(&sample.workload, facts).values(), sample.median_ns))
            .collect();
        let coefficients = nnls::relative(&rows);
        let mut errors: Vec<f64> = rows
            .iter()
            .map(|(terms, ns)| {
                let fitted: f64 = terms.iter().zip(&coefficients).map(|(t, c)| t * c).sum();
                (fitted.max(f64::MIN_POSITIVE) / ns).ln().abs()
            })
            .collect();
        errors.sort_by(f64::total_cmp);
        let at = (options.coverage.clamp(0.0, 1.0) * errors.len() as f64).ceil() as usize;
        let spread = errors[at.clamp(1, errors.len()) - 1];
        let mut measured = vec![(f64::INFINITY, f64::NEG_INFINITY); RANGES.len()];
        for sample in samples {
            for (range, value) in measured.iter_mut().zip(ranged(&sample.workload)) {
                *range = (range.0.min(value), range.1.max(value));
            }
        }
        Self { op, coefficients, spread, measured, samples: rows.len() }
    }

    fn outside(&self, workload: &Workload) -> Option<Outside> {
        let ranges = RANGES.into_iter().zip(ranged(workload)).zip(&self.measured);
        ranges
            .into_iter()
            .find(|((_, value), (low, high))| value < low || value > high)
            .map(|((what, value), &(low, high))| Outside::Range { what, value, low, high })
    }
}

impl Parts {
    /// The whole.
    pub fn total_ns(&self) -> f64 {
        self.compute_ns + self.memory_ns + self.gather_ns + self.gate_ns + self.compaction_ns + self.launch_ns
    }

    /// Every part multiplied by `factor`.
    pub fn scaled(self, factor: f64) -> Self {
        Self {
            compute_ns: self.compute_ns * factor,
            memory_ns: self.memory_ns * factor,
            gather_ns: self.gather_ns * factor,
            gate_ns: self.gate_ns * factor,
            compaction_ns: self.compaction_ns * factor,
            launch_ns: self.launch_ns * factor,
        }
    }
}

impl Add for Parts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            compute_ns: self.compute_ns + other.compute_ns,
            memory_ns: self.memory_ns + other.memory_ns,
            gather_ns: self.gather_ns + other.gather_ns,
            gate_ns: self.gate_ns + other.gate_ns,
            compaction_ns: self.compaction_ns + other.compaction_ns,
            launch_ns: self.launch_ns + other.launch_ns,
        }
    }
}

impl AddAssign for Parts {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl fmt::Display for Outside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Op(op) => write!(f, "{op} was not measured on this device"),
            Self::Range { what, value, low, high } => {
                write!(f, "{what} = {value} lies outside the measured {low}..={high}")
            }
        }
    }
}
