//! Calibration: **sweep → time → fit → validate → profile**. A straight line that ends in a file.
//!
//! What is measured are the calls of the shipped networks and others drawn beside them ([`sweep`]), through the
//! operations that an inference issues ([`Prober`]), and each measurement is on the disk before the
//! next is taken ([`Journal`]): whatever stops a calibration, the same command goes on where it was. The call that
//! is measured next is the one the model is least sure of for its cost.

mod choose;
mod device;
mod journal;
mod networks;
mod sweep;
mod target;
mod time;

pub use device::{cuda_facts, device_facts, today};
pub use journal::Journal;
pub use networks::{NETWORKS, correct};
pub use sweep::sweep;
pub use target::{Target, kernel_hash, load};
pub use time::{Anchors, Outcome, time};

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
/// Fewest measurements that a profile is made of.
pub const FEWEST: usize = 40;

/// Measures `candidates` until the budget is spent or all are measured. `clock` gives the time since the start; each
/// prober belongs to one number of threads.
///
/// # Errors
/// Those of the probers and of the disk; [`FEWEST`] measurements were not reached.
pub fn measure(
    probers: &mut [(u32, Box<dyn Prober>)],
    candidates: Vec<Workload>,
    (facts, seed): (&DeviceFacts, u64),
    budget: Budget,
    journal: &mut Journal,
    clock: &mut dyn FnMut() -> Duration,
    progress: &mut dyn FnMut(Progress),
) -> Result<Measured> {
    ensure!(!budget.time.is_zero() && budget.measurements > 0, "a calibration needs a budget above zero");
    let mut samples = journal.samples().to_vec();
    let resumed = samples.len();
    let mut dropped = Vec::new();
    let mut chooser = Chooser::new(candidates, &samples, seed);
    let mut anchors = vec![Anchors::new(facts.kind); probers.len()];
    loop {
        let spent = clock();
        let left = budget.measurements.saturating_sub(samples.len());
        let used = spent.as_secs_f64() / budget.time.as_secs_f64();
        let of_count = samples.len() as f64 / budget.measurements as f64;
        progress(Progress {
            measured: samples.len(),
            dropped: dropped.len(),
            used: used.max(of_count).min(1.0),
        });
        if spent >= budget.time || left == 0 {
            break;
        }
        let set = chooser.next(&samples, facts, SET.min(left));
        let Some(threads) = set.first().map(|workload| workload.threads) else { break };
        let prober = probers.iter_mut().zip(&mut anchors).find(|((of, _), _)| *of == threads);
        let ((_, prober), anchors) = prober.with_context(|| format!("nothing measures {threads} threads"))?;
        for outcome in time(&mut **prober, &set, anchors)? {
            match outcome {
                Outcome::Measured(sample) => {
                    journal.append(&sample)?;
                    samples.push(sample);
                }
                Outcome::Slow(workload) => chooser.put_back(workload),
                Outcome::Dropped(workload, why) => dropped.push((workload, why)),
            }
        }
    }
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
