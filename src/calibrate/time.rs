use crate::exec::Prober;
use anyhow::Result;
use laud_predictor::DeviceKind;
use laud_predictor::measurements::{median, undisturbed};
use laud_predictor::workload::{Cache, Op, Sample, Workload};
use std::collections::VecDeque;
use std::ops::Range;

/// What came of timing one call.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// Its time, and how fast the machine was meanwhile.
    Measured(Sample, Pace),
    /// No time: the machine was slower than it can be all along. Worth another try.
    Slow(Workload),
    /// No time that can be believed, and why.
    Dropped(Workload, String),
}

/// Rounds that are not counted: caches, branch predictors and clocks settle.
const WARM_UP: usize = 2;
/// Rounds that are counted.
const ROUNDS: usize = 9;
/// Rounds at most, where some times are still unsure.
const MOST_ROUNDS: usize = 27;
/// MAD ÷ median above which a time is unsure, and above which it is given up.
const UNSURE: f64 = 0.03;
const HOPELESS: f64 = 0.15;
/// A round that takes this many times as long as the median round was disturbed; its times are not counted.
const DISTURBED: f64 = 1.25;

/// How fast the machine is at the moment: calls that are timed in every round.
///
/// A machine that others share can be slower for seconds, and all calls of a set alike: neither repeats nor medians show
/// it. A few percent are taken off again: what multiplies is timed before and behind each set, and tells its [`Pace`]. A round
/// counts while all anchors take about what they take in good moments.
#[derive(Clone, Debug, Default)]
pub struct Anchors {
    past: [VecDeque<u64>; ANCHORS],
    /// How much longer than in good moments an anchor may take whatever that is, nanoseconds.
    slack_ns: f64,
    /// The pace so far, of every set.
    paces: Vec<f64>,
}

/// What the anchors took while a set was timed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    ns: [f64; ANCHORS],
}

/// One that reads weights from memory, one that reads the outermost cache, and those that multiply, before the set and
/// behind it.
const ANCHORS: usize = AHEAD + MULTIPLY;
/// Anchors before the set.
const AHEAD: usize = 2 + MULTIPLY;
const MULTIPLY: usize = 3;
/// Rounds that are remembered.
const REMEMBERED: usize = 4096;
/// Share of the rounds that are good moments.
const GOOD: f64 = 0.25;
/// Steps of a GPU's clock: times of calls that are not much longer differ by that.
const GPU_CLOCK_NS: f64 = 1000.0;
/// In a round that counts, anchors take at most this many times what they take in good moments.
const SLOW: f64 = 1.25;

impl Pace {
    /// Of what multiplies: the geometric mean, nanoseconds.
    fn multiplying(&self) -> f64 {
        let logs = self.ns[2..].iter().map(|ns| ns.ln());
        (logs.sum::<f64>() / (2 * MULTIPLY) as f64).exp()
    }
}

impl Anchors {
    /// On a device of this kind.
    pub fn new(kind: DeviceKind) -> Self {
        let slack_ns = if kind == DeviceKind::Cuda { GPU_CLOCK_NS } else { 0.0 };
        Self { slack_ns, ..Self::default() }
    }

    /// One that reads a megabyte of weights from memory, one that reads four megabytes that were just written (from the
    /// outermost cache, unless others fill it), and three that multiply with everything in the caches. Half as wide elements
    /// are multiplied many times as fast: they get more channels, or a call of 3 µs would tell more about the clock than
    /// about the machine.
    fn workloads(of: &Workload) -> [Workload; AHEAD] {
        let narrow = of.dtype.bytes() < 4;
        let call = |op, side, c_in, c_out| Workload {
            threads: of.threads,
            dtype: of.dtype,
            ..Workload::new(op, side, side, c_in, c_out)
        };
        let far = if narrow { 720 } else { 512 };
        let near = if narrow { 2048 } else { 1024 };
        let times = if narrow { 2 } else { 1 };
        [
            Workload { cache: Cache::Cold, ..call(Op::GatherGemm, 2, far, far) },
            call(Op::MeanPool, 32, near, near),
            call(Op::GatherGemm, 28, 256 * times, 64 * times),
            call(Op::GatherGemm, 14, 512 * times, 128 * times),
            Workload { kernel: 3, ..call(Op::GatherGemm, 14, 128 * times, 128 * times) },
        ]
    }

    fn note(&mut self, round: &[u64]) {
        for (past, &ns) in self.past.iter_mut().zip(round) {
            past.push_back(ns);
            if past.len() > REMEMBERED {
                past.pop_front();
            }
        }
    }

    /// Tells measurements whose pace turned out to be that of a slow machine, by all rounds since.
    pub fn tells_slow(&self) -> impl Fn(&Pace) -> bool + use<> {
        let limits = self.limits();
        move |pace| pace.ns.iter().zip(limits).any(|(&ns, limit)| ns > limit)
    }

    /// Takes what the machine was slower or faster than it mostly is off a measurement that was made at this pace. A GPU's
    /// are left alone: its clock has steps that are longer than that.
    pub fn settles(&self) -> impl Fn(&mut Sample, &Pace) + use<> {
        let usual = match self.slack_ns > 0.0 {
            true => f64::NAN,
            false => median(self.paces.clone()),
        };
        move |sample, pace| {
            let factor = usual / pace.multiplying();
            if factor.is_finite() && factor > 0.0 {
                sample.median_ns *= factor;
                sample.mad_ns *= factor;
            }
        }
    }

    /// What each anchor takes at most in a round that counts.
    fn limits(&self) -> [f64; ANCHORS] {
        std::array::from_fn(|i| {
            let mut sorted: Vec<u64> = self.past[i].iter().copied().collect();
            sorted.sort_unstable();
            let good = sorted.get((GOOD * sorted.len() as f64) as usize);
            good.map_or(f64::INFINITY, |&ns| SLOW * ns as f64 + self.slack_ns)
        })
    }
}

/// Multiply-accumulates above which a call is long enough to bring its own code, and below which its time is that of the
/// clock and of where its operands happen to lie.
const LONG_MACS: f64 = 2e7;
const SHORT_MACS: f64 = 2e5;
/// Calls that the time of a very short one is the mean of.
const TOGETHER: usize = 4;

/// The calls of a round, and which of them are timed for the anchors and for each call of the set: a long one once, a
/// short one behind a twin with weights of its own, a very short one as the mean of several twins. In a network its code
/// would have run a few layers before; behind whatever else there is in a set, a call of a few microseconds takes up to
/// several times as long.
fn in_order(set: &[Workload]) -> (Vec<Workload>, Vec<Range<usize>>) {
    let anchors = set.first().map(Anchors::workloads);
    let mut calls: Vec<Workload> = anchors.into_iter().flatten().collect();
    let mut timed: Vec<_> = (0..calls.len()).map(|i| i..i + 1).collect();
    let mut of_set = Vec::with_capacity(set.len());
    for &workload in set {
        let (ahead, together) = match workload.macs() {
            macs if macs >= LONG_MACS => (0, 1),
            macs if macs >= SHORT_MACS => (1, 1),
            _ => (1, TOGETHER),
        };
        calls.extend(std::iter::repeat_n(workload, ahead + together));
        of_set.push(calls.len() - together..calls.len());
    }
    for anchor in anchors.iter().flat_map(|anchors| &anchors[AHEAD - MULTIPLY..]) {
        timed.push(calls.len()..calls.len() + 1);
        calls.push(*anchor);
    }
    timed.extend(of_set);
    (calls, timed)
}

/// Times the calls of one set in turns, round after round, so that a disturbance hits all alike.
///
/// # Errors
/// Those of the prober.
pub fn time(prober: &mut dyn Prober, set: &[Workload], anchors: &mut Anchors) -> Result<Vec<Outcome>> {
    let (calls, timed) = in_order(set);
    let drawn = prober.prepare(&calls)?;
    let mut rounds: Vec<Vec<u64>> = Vec::new();
    let mut ns = vec![0; drawn.len()];
    for round in 0..WARM_UP + MOST_ROUNDS {
        prober.round(&mut ns)?;
        if round < WARM_UP {
            continue;
        }
        let mean = |calls: &Range<usize>| ns[calls.clone()].iter().sum::<u64>() / calls.len() as u64;
        rounds.push(timed.iter().map(mean).collect());
        anchors.note(&rounds[rounds.len() - 1]);
        if rounds.len() >= ROUNDS && rounds.len().is_multiple_of(3) {
            let kept = counted(&rounds, anchors);
            let sure = |i: usize| spread(&kept, i).share <= UNSURE;
            if kept.len() >= ROUNDS && (ANCHORS..timed.len()).all(sure) {
                break;
            }
        }
    }
    let kept = counted(&rounds, anchors);
    let pace = Pace { ns: std::array::from_fn(|i| spread(&kept, i).quick_ns) };
    if kept.len() >= ROUNDS {
        anchors.paces.push(pace.multiplying());
    }
    let outcome = |i: usize| {
        let workload = drawn[timed[i].start];
        if kept.len() < ROUNDS {
            return Outcome::Slow(workload);
        }
        let Spread { quick_ns, mad_ns, share } = spread(&kept, i);
        let sample = Sample { workload, median_ns: quick_ns, mad_ns, repeats: kept.len() as u32 };
        if share.is_nan() || share > HOPELESS {
            let why = format!("the times of {} rounds deviate by {:.0} %", kept.len(), 100.0 * share);
            return Outcome::Dropped(workload, why);
        }
        match sample.check() {
            Ok(()) => Outcome::Measured(sample, pace),
            Err(error) => Outcome::Dropped(workload, error.to_string()),
        }
    };
    Ok((ANCHORS..timed.len()).map(outcome).collect())
}

/// Rounds that took about as long as most, at good moments of the machine.
fn counted<'r>(rounds: &'r [Vec<u64>], anchors: &Anchors) -> Vec<&'r Vec<u64>> {
    let limits = anchors.limits();
    let good = |round: &&Vec<u64>| round.iter().zip(limits).all(|(&ns, limit)| ns as f64 <= limit);
    let total = |round: &[u64]| round.iter().sum::<u64>() as f64;
    let mut kept: Vec<&Vec<u64>> = rounds.iter().filter(good).collect();
    let most = DISTURBED * median(kept.iter().map(|round| total(round)).collect());
    kept.retain(|round| total(round) <= most);
    kept
}

/// The times of one call.
struct Spread {
    /// See [`undisturbed`].
    quick_ns: f64,
    /// Median absolute deviation from the median of all rounds, and its share of that.
    mad_ns: f64,
    share: f64,
}

fn spread(rounds: &[&Vec<u64>], i: usize) -> Spread {
    let times: Vec<f64> = rounds.iter().map(|round| round[i] as f64).collect();
    let middle = median(times.clone());
    let mad_ns = median(times.iter().map(|time| (time - middle).abs()).collect());
    Spread { quick_ns: undisturbed(times), mad_ns, share: mad_ns / middle }
}

#[cfg(test)]
mod tests {
    use super::*;
    use laud_predictor::workload::Op;

    /// What a script knows an anchor by.
    const ANCHOR: usize = 9;

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
            for (i, ns) in ns.iter_mut().enumerate() {
                // Calls of a set come behind twins, and several together.
                let call = i.checked_sub(AHEAD).map(|i| i / (1 + TOGETHER)).filter(|&call| call < 2);
                *ns = (self.0)(self.1, call.unwrap_or(ANCHOR));
            }
            Ok(())
        }
    }

    fn two() -> [Workload; 2] {
        [Workload::new(Op::GatherGemm, 7, 7, 8, 8), Workload::new(Op::MaxPool, 7, 7, 8, 8)]
    }

    #[test]
    fn a_disturbed_round_does_not_count() {
        let mut script = Script(|round, _| if round % 4 == 0 { 9000 } else { 1000 }, 0);
        let outcomes = time(&mut script, &two(), &mut Anchors::default()).unwrap();
        for outcome in outcomes {
            let Outcome::Measured(sample, _) = outcome else { panic!("{outcome:?}") };
            assert_eq!((sample.median_ns, sample.mad_ns), (1000.0, 0.0));
            assert!(sample.repeats as usize >= ROUNDS);
        }
    }

    #[test]
    fn a_call_without_a_steady_time_is_dropped_with_the_reason_and_the_other_is_not() {
        let unsteady = [100, 900, 400, 2000, 700];
        let mut script = Script(|round, i| if i == 0 { unsteady[round as usize % 5] } else { 50_000 }, 0);
        let outcomes = time(&mut script, &two(), &mut Anchors::default()).unwrap();
        assert!(matches!(&outcomes[0], Outcome::Dropped(_, why) if why.contains("deviate")));
        assert!(matches!(&outcomes[1], Outcome::Measured(sample, _) if sample.median_ns == 50_000.0));
    }

    #[test]
    fn what_a_slow_machine_takes_is_not_measured() {
        // Half as fast from round 30 on, for the length of a set and a half.
        let slow = |round| (30..70).contains(&round);
        let mut script = Script(|round, i| if slow(round) { 1700 } else { 1000 } + i as u64, 0);
        let mut anchors = Anchors::default();
        let mut times = Vec::new();
        while script.1 < 100 {
            for outcome in time(&mut script, &two(), &mut anchors).unwrap() {
                times.push(match outcome {
                    Outcome::Measured(sample, _) => Some(sample.median_ns),
                    Outcome::Slow(_) => None,
                    Outcome::Dropped(_, why) => panic!("{why}"),
                });
            }
        }
        assert!(times.iter().flatten().all(|&ns| ns < 1010.0), "{times:?}");
        assert!(times.contains(&None) && times.last() == Some(&Some(1001.0)), "{times:?}");
    }

    #[test]
    fn a_slower_pace_is_taken_off_again_but_for_a_gpu() {
        for (kind, expected) in [(DeviceKind::Cpu, 2000.0), (DeviceKind::Cuda, 2200.0)] {
            // A tenth slower for one set in three.
            let slow = |round| (30..45).contains(&round);
            let mut script = Script(|round, i| if slow(round) { 1100 } else { 1000 } * (1 + i as u64 % 2), 0);
            let mut anchors = Anchors::new(kind);
            let mut measured = Vec::new();
            while script.1 < 60 {
                measured.extend(time(&mut script, &two(), &mut anchors).unwrap());
            }
            let settle = anchors.settles();
            let mut longest = 0.0_f64;
            for outcome in measured {
                let Outcome::Measured(mut sample, pace) = outcome else { panic!("{outcome:?}") };
                settle(&mut sample, &pace);
                longest = longest.max(sample.median_ns);
            }
            assert!((longest / expected - 1.0).abs() < 0.01, "{longest} on {kind:?}");
        }
    }

    #[test]
    fn a_clock_that_stands_still_is_no_measurement() {
        let mut script = Script(|_, _| 0, 0);
        assert!(
            time(&mut script, &two(), &mut Anchors::default())
                .unwrap()
                .iter()
                .all(|o| matches!(o, Outcome::Dropped(..)))
        );
    }
}
