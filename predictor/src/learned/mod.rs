//! The learned predictor: analytic terms of the kernels with coefficients fitted to measurements of a device.
//!
//! [`Model::fit`] takes [`Sample`]s; [`Model::predict`] answers for a [`Workload`] with an interval, a split into what
//! the time is made of, and whether the question lies outside of what was measured.

pub(crate) mod boost;
mod held_out;
mod masks;
pub(crate) mod nnls;
pub(crate) mod regression;
pub(crate) mod scales;
mod terms;
mod transfer;

pub use held_out::predict_held_out;
pub use terms::cuda::{GemmTile, gemm_thread_blocks, gemm_tile};

use std::fmt;
use std::ops::{Add, AddAssign};

use serde::{Deserialize, Serialize};

use crate::workload::{DType, Op, Sample, Workload};
use crate::{DeviceFacts, Error, Result};
use boost::{Growth, Guess};
use masks::ROWS;
use regression::{Regression, Row, Settings};
use terms::{Features, Work};

/// Time of one kernel call on one device, learned from measurements.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    facts: DeviceFacts,
    ops: Vec<OpModel>,
}

/// What was learned about one kernel on values of one type.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OpModel {
    op: Op,
    dtype: DType,
    regression: Regression,
    /// Least and most of each quantity in [`RANGES`] among the measurements.
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
#[derive(Clone, Copy, Debug, Default, PartialEq)]
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
        let mut kernels: Vec<(Op, DType)> =
            samples.iter().map(|sample| (sample.workload.op, sample.workload.dtype)).collect();
        kernels.sort();
        kernels.dedup();
        let ops = kernels
            .into_iter()
            .map(|(op, dtype)| {
                let of = |w: &Workload| (w.op, w.dtype) == (op, dtype);
                let samples: Vec<&Sample> = samples.iter().filter(|sample| of(&sample.workload)).collect();
                OpModel::fit((op, dtype), &samples, facts, options)
            })
            .collect::<Result<_>>()?;
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

    /// Types that anything was measured on, each once.
    pub fn dtypes(&self) -> Vec<DType> {
        let mut dtypes: Vec<DType> = self.ops.iter().map(|model| model.dtype).collect();
        dtypes.sort();
        dtypes.dedup();
        dtypes
    }

    /// Number of measurements it was fitted to.
    pub fn samples(&self) -> usize {
        self.ops.iter().map(|model| model.samples).sum()
    }

    fn find(&self, workload: &Workload) -> Option<&OpModel> {
        self.ops.iter().find(|model| (model.op, model.dtype) == (workload.op, workload.dtype))
    }

    /// Time of one call. A workload whose kernel was never measured takes 0 ns and is [`Outside::Op`].
    pub fn predict(&self, workload: &Workload) -> Prediction {
        match self.find(workload) {
            Some(model) => model.predict(workload, &self.facts),
            None => Prediction::unknown(workload.op),
        }
    }

    /// The times alone that [`predict`](Self::predict) says of each, but for rounding: in a fraction of the time.
    pub fn predict_ns(&self, workloads: &[&Workload]) -> Vec<f64> {
        let mut answers = vec![0.0; workloads.len()];
        let mut places = Vec::with_capacity(workloads.len());
        for model in &self.ops {
            let of = |w: &Workload| (w.op, w.dtype) == (model.op, model.dtype);
            places.clear();
            places.extend((0..workloads.len()).filter(|&i| of(workloads[i])));
            for places in places.chunks(ROWS) {
                model.predict_ns(workloads, places, &self.facts, &mut answers);
            }
        }
        answers
    }

    /// How unsure the model is of the logarithm of this workload's time: what to measure next is where it is largest.
    pub fn uncertainty(&self, workload: &Workload) -> f64 {
        self.find(workload).map_or(f64::INFINITY, |model| {
            let (_, guess) = model.logarithm(workload, &self.facts);
            model.regression.expected_error(&guess) + model.distance(workload)
        })
    }

    /// Checks what was read from a file.
    pub(crate) fn check(&self) -> Result<()> {
        self.facts.check()?;
        for model in &self.ops {
            let wrong = |reason| Error::Profile { reason: format!("the model of {}: {reason}", model.op) };
            model.regression.check(terms::count(model.op, &self.facts)).map_err(wrong)?;
            let ranges =
                model.measured.iter().all(|(low, high)| low <= high && low.is_finite() && high.is_finite());
            if model.measured.len() != RANGES.len() || !ranges {
                return Err(wrong("the measured ranges are not ranges".to_owned()));
            }
        }
        Ok(())
    }
}

/// Quantities whose range is remembered.
const RANGES: [&str; 7] =
    ["rows", "rows of a run", "c_in_active", "c_out_active", "kernel", "threads", "batch"];

fn ranged(w: &Workload) -> [f64; 7] {
    let rows = f64::from(w.rows);
    let run = rows / f64::from(w.runs.max(1));
    [rows, run, w.c_in_active, w.c_out_active, w.kernel.into(), w.threads.into(), w.batch.into()]
}

/// How far beyond a measured range is still the same: as a factor.
const SLACK: f64 = 1.05;

impl OpModel {
    fn fit(
        (op, dtype): (Op, DType),
        samples: &[&Sample],
        facts: &DeviceFacts,
        options: &FitOptions,
    ) -> Result<Self> {
        let growth = Growth {
            bags: 3,
            trees: 60,
            leaves: 31,
            depth: 8,
            columns: 0.3,
            learning_rate: 0.15,
            leaf: 4.0,
            seed: options.seed,
        };
        let settings = Settings { growth, coverage: options.coverage.clamp(0.0, 1.0), session: None };
        let amounts =
            samples.iter().map(|sample| (Work::of(&sample.workload, facts).amounts, sample.median_ns));
        let rough = nnls::relative(&amounts.collect::<Vec<_>>());
        let rows: Vec<Row> = samples
            .iter()
            .map(|sample| {
                let amounts = Work::of(&sample.workload, facts).amounts;
                let mut features = Features::new();
                terms::features(&sample.workload, facts, &amounts, &rough, &mut features);
                let features = features.iter().map(|&x| x.into()).collect();
                Row { terms: amounts, features, ns: sample.median_ns }
            })
            .collect();
        let regression = Regression::fit(&rows, &settings)?;
        let mut measured = vec![(f64::INFINITY, f64::NEG_INFINITY); RANGES.len()];
        for sample in samples {
            for (range, value) in measured.iter_mut().zip(ranged(&sample.workload)) {
                *range = (range.0.min(value), range.1.max(value));
            }
        }
        Ok(Self { op, dtype, regression, measured, samples: samples.len() })
    }

    /// Multiplies what a unit of each part takes by that part's factor, in the order of [`Parts`].
    fn scale(&mut self, facts: &DeviceFacts, factors: &[f64; 6]) {
        let parts = terms::part_indices(self.op, facts);
        self.regression.coefficients.iter_mut().zip(parts).for_each(|(each, part)| *each *= factors[part]);
    }

    /// Moves all predictions by what few measurements say, and widens the intervals by how far they are off.
    fn shift(&mut self, off: &[f64]) {
        /// Measurements that are as strong as the prediction.
        const PRIOR: f64 = 3.0;
        let n = off.len() as f64;
        let shift = off.iter().sum::<f64>() / (n + PRIOR);
        self.regression.coefficients.iter_mut().for_each(|each| *each *= shift.exp());
        let rest = off.iter().map(|off| (off - shift).abs()).sum::<f64>();
        self.regression.widen((rest + PRIOR * 0.15) / (n + PRIOR));
    }

    /// The terms' times, and what the rest may depend on.
    fn terms(&self, workload: &Workload, facts: &DeviceFacts) -> (Parts, Features) {
        let work = Work::of(workload, facts);
        let coefficients = &self.regression.coefficients;
        let mut features = Features::new();
        terms::features(workload, facts, &work.amounts, coefficients, &mut features);
        (work.parts(coefficients), features)
    }

    /// The terms' times and what is expected of the rest.
    fn logarithm(&self, workload: &Workload, facts: &DeviceFacts) -> (Parts, Guess) {
        let (parts, features) = self.terms(workload, facts);
        (parts, self.regression.residual(&features))
    }

    fn predict(&self, workload: &Workload, facts: &DeviceFacts) -> Prediction {
        let (parts, guess) = self.logarithm(workload, facts);
        self.answer(workload, parts, &guess)
    }

    /// Writes the times of the calls at up to [`ROWS`] `places` to `answers`.
    fn predict_ns(
        &self,
        workloads: &[&Workload],
        places: &[usize],
        facts: &DeviceFacts,
        answers: &mut [f64],
    ) {
        let coefficients = &self.regression.coefficients;
        let mut work = Work::default();
        let guesses = self.regression.residuals(places.len(), |i, features| {
            let place = places[i];
            work.count(workloads[place], facts);
            answers[place] = self.regression.analytic(&work.amounts);
            terms::features(workloads[place], facts, &work.amounts, coefficients, features);
        });
        for (&place, guess) in places.iter().zip(&guesses) {
            answers[place] *= guess.mean.exp();
        }
    }

    fn answer(&self, workload: &Workload, parts: Parts, guess: &Guess) -> Prediction {
        let parts = parts.scaled(guess.mean.exp());
        let ns = parts.total_ns();
        let wide = (self.regression.half_width(guess) + self.distance(workload)).exp();
        Prediction { ns, low_ns: ns / wide, high_ns: ns * wide, parts, outside: self.outside(workload) }
    }

    fn outside(&self, workload: &Workload) -> Option<Outside> {
        let mut ranges = RANGES.into_iter().zip(ranged(workload)).zip(&self.measured);
        ranges
            .find(|((_, value), (low, high))| *value < low / SLACK || *value > high * SLACK)
            .map(|((what, value), &(low, high))| Outside::Range { what, value, low, high })
    }

    /// Logarithm of the factor by which the workload lies outside of the measured ranges; inside: 0.
    fn distance(&self, workload: &Workload) -> f64 {
        let beyond = |(value, &(low, high)): (f64, &(f64, f64))| {
            let (value, low, high) = (value.max(1e-3), low.max(1e-3), high.max(1e-3));
            // Most are inside: no logarithm for them.
            let factor = (low / value).max(value / high);
            if factor > SLACK { (factor / SLACK).ln() } else { 0.0 }
        };
        ranged(workload).into_iter().zip(&self.measured).map(beyond).sum()
    }
}

impl Prediction {
    /// Of a kernel that was not measured.
    fn unknown(op: Op) -> Self {
        Self { high_ns: f64::INFINITY, outside: Some(Outside::Op(op)), ..Self::default() }
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
