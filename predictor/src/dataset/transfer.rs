use std::collections::{HashMap, HashSet};

use super::evaluate::{GpuModel, at_any_moment};
use super::{Conv, Evaluation, Gpu, Timing};
use crate::learned::scales::{Priors, Scales};
use crate::random::Random;
use crate::{Error, Result};

/// Work, traffic, launch and drift: what has a rate of its own on every device.
const KINDS: usize = 4;
const DRIFT: usize = 3;
/// How much of what the terms leave over on other devices is expected here.
const SHARED: f64 = 0.9;

/// What is known of a GPU that is otherwise left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shots {
    /// Measurements of it.
    pub count: usize,
    /// Draws them.
    pub seed: u64,
    /// The errors are about this many shapes, of which the other GPUs' measurements are left out too; `None`: about all
    /// other measurements, most of whose shapes were measured on the other GPUs.
    pub unseen_shapes: Option<usize>,
}

/// Predicts a GPU from the measurements of all others, its published figures and a few measurements of it; the errors
/// are about the rest of its measurements.
///
/// A shape that was measured on another device brings what was left over there, and when in the session it came; one that
/// was not, what the other devices' models expect.
///
/// # Errors
/// [`Error::UnknownName`] for a GPU that is not there; [`Error::Fit`] when there is no other one, or not more
/// measurements than shots.
pub fn leave_out(gpus: &[Gpu], name: &str, shots: Shots) -> Result<Evaluation> {
    let Shots { count: shots, seed, unseen_shapes } = shots;
    let Some(target) = gpus.iter().find(|gpu| gpu.name == name) else {
        let known = gpus.iter().map(|gpu| gpu.name.as_str()).collect::<Vec<_>>().join(", ");
        return Err(Error::UnknownName { kind: "GPU", name: name.to_owned(), known });
    };
    let n = target.timings.len();
    if shots >= n {
        let reason = format!("{shots} of the {n} measurements of {name} as shots");
        return Err(Error::Fit { reason });
    }
    let order = Random::new(seed).permutation(n);
    let tested = &order[shots..n.min(shots + unseen_shapes.unwrap_or(n))];
    let hidden: HashSet<Conv> = match unseen_shapes {
        None => HashSet::new(),
        Some(_) => tested.iter().map(|&i| target.timings[i].conv).collect(),
    };
    let sources: Vec<Source> = gpus
        .iter()
        .filter(|gpu| gpu.name != name)
        .map(|gpu| Source::new(gpu, &hidden, seed))
        .collect::<Result<_>>()?;
    if sources.is_empty() {
        return Err(Error::Fit { reason: format!("{name} is the only GPU") });
    }
    let transferred = Transferred { target, sources: &sources };
    let expected: Vec<Expected> =
        target.timings.iter().map(|timing| transferred.expect(&timing.conv)).collect();
    let rows: Vec<([f64; KINDS], f64)> = order[..shots]
        .iter()
        .map(|&i| (expected[i].parts_at(target.timings[i].moment), target.timings[i].latency_ms))
        .collect();
    let scales = Scales::fit(&rows, &PRIORS);
    let drift = scales.factors()[DRIFT] * transferred.drift_ms();
    let predicted = tested.iter().map(|&i| {
        let Timing { latency_ms, moment, .. } = target.timings[i];
        let work = scales.total(&expected[i].parts_at(0.0));
        let likely = match expected[i].moment {
            Some(moment) => work + drift * moment,
            None => at_any_moment(work, drift),
        };
        (latency_ms, likely, work + drift * moment)
    });
    let used = sources.iter().map(|source| source.measured.len()).sum();
    Ok(Evaluation::of(name, (shots, used), drift, predicted))
}

/// How far devices differ from what their published figures say.
const PRIORS: Priors<KINDS> = Priors { common: 0.4, each: [0.35, 0.35, 0.3, 0.45], noise: 0.15 };

/// Another GPU: its model, and what it measured, by shape.
struct Source {
    model: GpuModel,
    measured: HashMap<Conv, Timing>,
}

impl Source {
    fn new(gpu: &Gpu, hidden: &HashSet<Conv>, seed: u64) -> Result<Self> {
        let known = || gpu.timings.iter().filter(|timing| !hidden.contains(&timing.conv));
        let model = GpuModel::fit(&gpu.spec, known(), seed)?;
        Ok(Self { model, measured: known().map(|timing| (timing.conv, *timing)).collect() })
    }

    /// Logarithm of the factor that the terms leave over for this shape. The more of a measurement is drift, the more the
    /// model is believed instead.
    fn left_over(&self, conv: &Conv) -> f64 {
        let expected = self.model.residual(conv);
        self.measured.get(conv).map_or(expected, |timing| {
            let work = self.model.analytic_ms(conv);
            let drift = self.model.drift_ms() * timing.moment;
            let measured = ((timing.latency_ms - drift).max(0.2 * work) / work).ln();
            let share = work / (work + 0.15 * drift);
            share * measured + (1.0 - share) * expected
        })
    }
}

struct Transferred<'a> {
    target: &'a Gpu,
    sources: &'a [Source],
}

/// What a shape is expected to take before the shots have their say.
struct Expected {
    /// Milliseconds by kind; the drift's over the whole session.
    parts: [f64; KINDS],
    /// When in the session the shape was measured elsewhere.
    moment: Option<f64>,
}

impl Expected {
    fn parts_at(&self, moment: f64) -> [f64; KINDS] {
        let mut parts = self.parts;
        parts[DRIFT] *= moment;
        parts
    }
}

impl Transferred<'_> {
    fn mean(&self, of: impl Fn(&Source) -> f64) -> f64 {
        self.sources.iter().map(of).sum::<f64>() / self.sources.len() as f64
    }

    fn drift_ms(&self) -> f64 {
        self.mean(|source| source.model.drift_ms())
    }

    fn expect(&self, conv: &Conv) -> Expected {
        let [launch, compute, memory] = super::evaluate::kinds(conv, &self.target.spec, |term| {
            self.mean(|source| source.model.regression.coefficients[term])
        });
        let factor = (SHARED * self.mean(|source| source.left_over(conv))).exp();
        let moments: Vec<f64> = self
            .sources
            .iter()
            .filter_map(|source| source.measured.get(conv).map(|timing| timing.moment))
            .collect();
        let moment = (!moments.is_empty()).then(|| moments.iter().sum::<f64>() / moments.len() as f64);
        Expected { parts: [compute * factor, memory * factor, launch * factor, self.drift_ms()], moment }
    }
}
