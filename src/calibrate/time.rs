use crate::exec::Prober;
use anyhow::Result;
use laud_predictor::workload::{Sample, Workload};

/// What came of timing one call.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// Its time.
    Measured(Sample),
    /// No time that can be believed, and why.
    Dropped(Workload, String),
}

/// Rounds that are not counted: caches, branch predictors and clocks settle.
const WARM_UP: usize = 2;
/// Rounds that are counted.
const ROUNDS: usize = 9;
/// Rounds that are counted at most, where some times are still unsure.
const MOST_ROUNDS: usize = 27;
/// MAD ÷ median above which a time is unsure, and above which it is given up.
const UNSURE: f64 = 0.03;
const HOPELESS: f64 = 0.15;
/// A round that takes this many times as long as the median round was disturbed; its times are not counted.
const DISTURBED: f64 = 1.25;

/// Times the calls of one set in turns, round after round, so that a disturbance hits all alike.
///
/// # Errors
/// Those of the prober.
pub fn time(prober: &mut dyn Prober, set: &[Workload]) -> Result<Vec<Outcome>> {
    let drawn = prober.prepare(set)?;
    let mut rounds: Vec<Vec<u64>> = Vec::new();
    let mut ns = vec![0; drawn.len()];
    for round in 0..WARM_UP + MOST_ROUNDS {
        prober.round(&mut ns)?;
        if round < WARM_UP {
            continue;
        }
        rounds.push(ns.clone());
        let enough = rounds.len() >= ROUNDS;
        if enough && rounds.len().is_multiple_of(3) {
            let kept = undisturbed(&rounds);
            let sure = |i: usize| relative_mad(&kept, i) <= UNSURE;
            if kept.len() >= ROUNDS && (0..drawn.len()).all(sure) {
                break;
            }
        }
    }
    let kept = undisturbed(&rounds);
    let outcome = |(i, &workload): (usize, &Workload)| {
        let (median_ns, mad_ns) = spread(&kept, i);
        let sample = Sample { workload, median_ns, mad_ns, repeats: kept.len() as u32 };
        let share = mad_ns / median_ns;
        if share.is_nan() || share > HOPELESS {
            let why = format!("the times of {} rounds deviate by {:.0} %", kept.len(), 100.0 * share);
            return Outcome::Dropped(workload, why);
        }
        match sample.check() {
            Ok(()) => Outcome::Measured(sample),
            Err(error) => Outcome::Dropped(workload, error.to_string()),
        }
    };
    Ok(drawn.iter().enumerate().map(outcome).collect())
}

/// Rounds that took about as long as most.
fn undisturbed(rounds: &[Vec<u64>]) -> Vec<&Vec<u64>> {
    let total = |round: &[u64]| round.iter().sum::<u64>() as f64;
    let most = DISTURBED * median(rounds.iter().map(|round| total(round)).collect());
    rounds.iter().filter(|round| total(round) <= most).collect()
}

fn relative_mad(rounds: &[&Vec<u64>], i: usize) -> f64 {
    let (median, mad) = spread(rounds, i);
    mad / median
}

/// Median and median absolute deviation of call `i`.
fn spread(rounds: &[&Vec<u64>], i: usize) -> (f64, f64) {
    let times: Vec<f64> = rounds.iter().map(|round| round[i] as f64).collect();
    let middle = median(times.clone());
    (middle, median(times.iter().map(|time| (time - middle).abs()).collect()))
}

pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use laud_predictor::workload::Op;

    /// Takes as long as a script says.
    struct Script<F>(F, u64);

    impl<F: FnMut(u64, usize) -> u64> Prober for Script<F> {
        fn describe(&self) -> String {
            "script".into()
        }
        fn prepare(&mut self, workloads: &[Workload]) -> Result<Vec<Workload>> {
            Ok(workloads.to_vec())
        }
        fn round(&mut self, ns: &mut [u64]) -> Result<()> {
            self.1 += 1;
            ns.iter_mut().enumerate().for_each(|(i, ns)| *ns = (self.0)(self.1, i));
            Ok(())
        }
    }

    fn two() -> [Workload; 2] {
        [Workload::new(Op::GatherGemm, 7, 7, 8, 8), Workload::new(Op::MaxPool, 7, 7, 8, 8)]
    }

    #[test]
    fn a_disturbed_round_does_not_count() {
        let mut script = Script(|round, _| if round % 4 == 0 { 9000 } else { 1000 }, 0);
        let outcomes = time(&mut script, &two()).unwrap();
        for outcome in outcomes {
            let Outcome::Measured(sample) = outcome else { panic!("{outcome:?}") };
            assert_eq!((sample.median_ns, sample.mad_ns), (1000.0, 0.0));
            assert!(sample.repeats as usize >= ROUNDS);
        }
    }

    #[test]
    fn a_call_without_a_steady_time_is_dropped_with_the_reason_and_the_other_is_not() {
        let unsteady = [100, 900, 400, 2000, 700];
        let mut script = Script(|round, i| if i == 0 { unsteady[round as usize % 5] } else { 50_000 }, 0);
        let outcomes = time(&mut script, &two()).unwrap();
        assert!(matches!(&outcomes[0], Outcome::Dropped(_, why) if why.contains("deviate")));
        assert!(matches!(&outcomes[1], Outcome::Measured(sample) if sample.median_ns == 50_000.0));
    }

    #[test]
    fn a_clock_that_stands_still_is_no_measurement() {
        let mut script = Script(|_, _| 0, 0);
        assert!(time(&mut script, &two()).unwrap().iter().all(|o| matches!(o, Outcome::Dropped(..))));
    }
}
