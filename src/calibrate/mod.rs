//! Calibration: **sweep → time → fit → validate → profile**. A straight line that ends in a file.
//!
//! What is measured are the calls of the shipped networks and others drawn beside them ([`sweep`]), through the
//! operations that an inference issues ([`Prober`]), and each measurement is on the disk before the
//! next is taken ([`Journal`]): whatever stops a calibration, the same command goes on where it was. The call that
//! is measured next is the one the model is least sure of for its cost; now and then calls are measured a second time,
//! for what a measurement can be trusted.

mod choose;
mod device;
mod journal;
mod networks;
mod sweep;
mod target;
mod time;

pub use device::{cuda_facts, device_facts, today};
pub use journal::Journal;
pub use networks::{NETWORKS, Networks};
pub use sweep::sweep;
pub use target::{Target, kernel_hash, load};
pub use time::{Anchors, Outcome, Pace, time};

use crate::exec::Prober;
use anyhow::{Context, Result, bail, ensure};
use choose::Chooser;
use laud_predictor::DeviceFacts;
use laud_predictor::workload::{Sample, Workload};
use std::time::Duration;

/// How much to measure.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Stop after this long.
    pub time: Duration,
    /// And after this many measurements.
    pub measurements: usize,
}

/// How far a calibration is.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Measurements on the disk.
    pub measured: usize,
    /// Measurements given up.
    pub dropped: usize,
    /// Share of the budget that is used, `0..=1`.
    pub used: f64,
}

/// What a calibration measured.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// Everything on the disk, resumed measurements too.
    pub samples: Vec<Sample>,
    /// What was given up in this run, and why.
    pub dropped: Vec<(Workload, String)>,
    /// Measurements found on the disk at the start.
    pub resumed: usize,
}

/// Calls that are measured together.
const SET: usize = 24;
/// One set of so many is of calls that were measured before.
const AGAIN_EVERY: usize = 12;
/// Fewest measurements that a profile is made of.
pub const FEWEST: usize = 40;

/// Measures `candidates` until the budget is spent or all are measured. `clock` gives the time since the start; each
/// prober belongs to one number of threads. Before each set it tells `progress`, which may use the device meanwhile.
///
/// # Errors
/// Those of the probers, of the disk and of `progress`; [`FEWEST`] measurements were not reached.
pub fn measure(
    probers: &mut [(u32, Box<dyn Prober>)],
    candidates: Vec<Workload>,
    (facts, seed): (&DeviceFacts, u64),
    budget: Budget,
    journal: &mut Journal,
    clock: &mut dyn FnMut() -> Duration,
    progress: &mut dyn FnMut(Progress) -> Result<()>,
) -> Result<Measured> {
    ensure!(!budget.time.is_zero() && budget.measurements > 0, "a calibration needs a budget above zero");
    let resumed = journal.samples().len();
    let mut taken = Taken { samples: journal.samples().to_vec(), paces: vec![None; resumed] };
    let mut dropped = Vec::new();
    let mut chooser = Chooser::new(candidates, &taken.samples, seed);
    let mut anchors = vec![Anchors::new(facts.kind); probers.len()];
    let mut random = sweep::Random::new(seed ^ resumed as u64);
    for number in 1.. {
        let spent = clock();
        let left = budget.measurements.saturating_sub(taken.samples.len());
        let used = spent.as_secs_f64() / budget.time.as_secs_f64();
        let of_count = taken.samples.len() as f64 / budget.measurements as f64;
        progress(Progress {
            measured: taken.samples.len(),
            dropped: dropped.len(),
            used: used.max(of_count).min(1.0),
        })?;
        if spent >= budget.time || left == 0 {
            break;
        }
        let slow = tell_slow(probers, &anchors);
        let again = number % AGAIN_EVERY == 0 && !taken.samples.is_empty();
        let (set, again) = match taken.remove_slow(&slow, SET) {
            Some(set) => (set, false),
            None if again => (some_of(&taken.samples, SET.min(left), &mut random), true),
            None => (chooser.next(&taken.samples, facts, SET.min(left)), false),
        };
        let Some(threads) = set.first().map(|workload| workload.threads) else { break };
        let prober = probers.iter_mut().zip(&mut anchors).find(|((of, _), _)| *of == threads);
        let ((_, prober), anchors) = prober.with_context(|| format!("nothing measures {threads} threads"))?;
        for outcome in time(&mut **prober, &set, anchors)? {
            match outcome {
                Outcome::Measured(sample, pace) => {
                    journal.append(&sample)?;
                    taken.samples.push(sample);
                    taken.paces.push(Some(pace));
                }
                Outcome::Slow(_) if again => {}
                Outcome::Slow(workload) => chooser.put_back(workload),
                Outcome::Dropped(workload, why) => dropped.push((workload, why)),
            }
        }
    }
    let slow = tell_slow(probers, &anchors);
    while let Some(set) = taken.remove_slow(&slow, 1) {
        let why = "the machine was slower than it turned out to be able to";
        dropped.extend(set.into_iter().map(|workload| (workload, why.to_owned())));
    }
    let samples = taken.settled(probers, &anchors);
    if samples.len() < FEWEST {
        bail!(
            "{} measurements within {:.3} s, a profile takes {FEWEST}; what was measured is kept in {}: run again, or \
             give a larger --budget",
            samples.len(),
            budget.time.as_secs_f64(),
            journal.path().display()
        );
    }
    Ok(Measured { samples, dropped, resumed })
}

/// What tells a slow machine's measurements, for each number of threads.
fn tell_slow(
    probers: &[(u32, Box<dyn Prober>)],
    anchors: &[Anchors],
) -> Vec<(u32, impl Fn(&Pace) -> bool + use<>)> {
    probers.iter().zip(anchors).map(|((threads, _), anchors)| (*threads, anchors.tells_slow())).collect()
}

/// Measurements so far, and what the anchors took when each was made; `None` of those that an earlier run left.
struct Taken {
    samples: Vec<Sample>,
    paces: Vec<Option<Pace>>,
}

impl Taken {
    /// Removes `count` measurements of one number of threads that were made while the machine was slow, as known by now,
    /// to be made again; `None`: there are fewer.
    fn remove_slow(&mut self, slow: &[(u32, impl Fn(&Pace) -> bool)], count: usize) -> Option<Vec<Workload>> {
        let (threads, slow) =
            slow.iter().find(|(threads, slow)| self.slow(*threads, slow).nth(count - 1).is_some())?;
        let at: Vec<usize> = self.slow(*threads, slow).take(count).collect();
        Some(
            at.into_iter()
                .rev()
                .map(|i| {
                    self.paces.swap_remove(i);
                    self.samples.swap_remove(i).workload
                })
                .collect(),
        )
    }

    /// All of them, at the pace that the machine mostly has.
    fn settled(mut self, probers: &[(u32, Box<dyn Prober>)], anchors: &[Anchors]) -> Vec<Sample> {
        for ((threads, _), anchors) in probers.iter().zip(anchors) {
            let settle = anchors.settles();
            for (sample, pace) in self.samples.iter_mut().zip(&self.paces) {
                if let Some(pace) = pace
                    && sample.workload.threads == *threads
                {
                    settle(sample, pace);
                }
            }
        }
        self.samples
    }

    fn slow<'a>(
        &'a self,
        threads: u32,
        slow: &'a impl Fn(&Pace) -> bool,
    ) -> impl Iterator<Item = usize> + 'a {
        let both = self.samples.iter().zip(&self.paces).enumerate();
        both.filter(move |(_, (sample, pace))| {
            sample.workload.threads == threads && pace.as_ref().is_some_and(slow)
        })
        .map(|(i, _)| i)
    }
}

/// Up to `count` calls that were measured, all of one number of threads.
fn some_of(samples: &[Sample], count: usize, random: &mut sweep::Random) -> Vec<Workload> {
    let threads = random.pick(samples).workload.threads;
    let mut measured: Vec<Workload> =
        samples.iter().map(|sample| sample.workload).filter(|workload| workload.threads == threads).collect();
    random.shuffle(&mut measured);
    measured.truncate(count);
    measured
}
