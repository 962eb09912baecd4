//! [`Guard`]: expected against observed times while a plan runs.
//!
//! A plan gathers where the predictor expects that to be faster. Where it turns out otherwise, the guard runs the block
//! dense instead, and tries again later. A machine that is slower than the one that was calibrated, all blocks alike, is
//! no reason to: that is *drift*, and is reported.

use super::trace::{BlockTrace, Trace, Watch};
use crate::plan::{ExecutionPlan, Expected, Route};
use std::sync::Arc;

/// Watches over one plan. Reads no clock: it is told.
#[derive(Debug)]
pub(super) struct Guard {
    planned: ExecutionPlan,
    /// The plan with what the guard changed, if anything.
    changed: Option<Arc<ExecutionPlan>>,
    blocks: Vec<BlockGuard>,
    /// Logarithm of observed ÷ expected of what is no block.
    rest: Mean,
    /// The same of the middle one of all blocks and the rest: of the machine, not of one block.
    drift: f64,
    ratios: Vec<f64>,
    inferences: u64,
}

#[derive(Clone, Debug, Default)]
struct BlockGuard {
    /// Logarithm of observed ÷ expected, as planned and dense.
    gathered: Mean,
    dense: Mean,
    /// Whichever was run.
    off: Mean,
    /// Observations until gathering is tried again; 0: as planned.
    hold: u32,
    /// How long it was held the last time.
    held: u32,
}

/// An exponentially weighted mean.
#[derive(Clone, Copy, Debug, Default)]
struct Mean {
    value: f64,
    count: u32,
}

/// Weight of an observation, once there are several.
const WEIGHT: f64 = 0.2;
/// Observations before anything is concluded.
const ENOUGH: u32 = 6;
/// How much slower than dense gathering has to look before a block is run dense.
const MARGIN: f64 = 1.05;
/// Observations for which a block is held dense the first time, and at most; it doubles.
const HOLD: u32 = 32;
const LONGEST_HOLD: u32 = 4096;
/// Drift beyond this factor, either way, is reported.
const DRIFT: f64 = 1.25;
/// One inference of so many is observed, after the first ones.
const EVERY: u64 = 4;
const FIRST: u64 = 16;

impl Guard {
    /// Watches over `plan`; `None` when it says nothing about times.
    pub(super) fn new(plan: &ExecutionPlan) -> Option<Self> {
        plan.expected.as_ref()?;
        Some(Self {
            blocks: vec![BlockGuard::default(); plan.blocks.len()],
            planned: plan.clone(),
            changed: None,
            rest: Mean::default(),
            drift: 0.0,
            ratios: Vec::with_capacity(plan.blocks.len() + 1),
            inferences: 0,
        })
    }

    /// What the next inference runs unless it is as planned, and whether it is to be timed.
    pub(super) fn next(&mut self) -> (Option<Arc<ExecutionPlan>>, bool) {
        self.inferences += 1;
        let timed = self.inferences <= FIRST || self.inferences.is_multiple_of(EVERY);
        (self.changed.clone(), timed)
    }

    /// Takes note of a timed inference and puts its findings into the trace.
    pub(super) fn observe(&mut self, trace: &mut Trace) {
        let Some(expected) = &self.planned.expected else { return };
        let batch = expected.batch;
        let scale = trace.batch as f64 / batch.max(1) as f64;
        let rest = f64::from(expected.stem_ns + expected.head_ns);
        let total = scale * (rest + self.blocks_ns(trace));
        if total <= 0.0 || trace.total_ns() == 0 {
            return;
        }
        self.rest.add((((trace.stem_ns + trace.head_ns) as f64).max(1.0) / (scale * rest).max(1.0)).ln());
        self.drift(trace, scale);
        let mut changed = false;
        for (i, entry) in trace.blocks.iter().enumerate() {
            if let Some(expected) = &self.planned.blocks[i].expected {
                changed |= self.blocks[i].observe(entry, expected, scale, self.drift);
            }
        }
        if changed {
            let mut plan = self.planned.clone();
            for (block, guard) in plan.blocks.iter_mut().zip(&self.blocks) {
                if guard.hold > 0 {
                    block.route = Route::Dense;
                }
            }
            self.changed = self.blocks.iter().any(|guard| guard.hold > 0).then(|| Arc::new(plan));
        }
        self.report(trace, total);
    }

    fn drift(&mut self, trace: &Trace, scale: f64) {
        self.ratios.clear();
        self.ratios.push(self.rest.value);
        for ((plan, guard), entry) in self.planned.blocks.iter().zip(&mut self.blocks).zip(&trace.blocks) {
            let Some(expected) = &plan.expected else { continue };
            let expected_ns = scale * expected.ns(density(entry), !entry.gathered);
            if expected_ns > 0.0 && entry.total_ns() > 0 {
                guard.off.add((entry.total_ns() as f64 / expected_ns).ln());
                self.ratios.push(guard.off.value);
            }
        }
        self.ratios.sort_unstable_by(f64::total_cmp);
        self.drift = self.ratios[self.ratios.len() / 2];
    }

    /// Puts what is known into the trace of an inference that was not timed.
    pub(super) fn tell(&self, trace: &mut Trace) {
        let Some(expected) = &self.planned.expected else { return };
        let scale = trace.batch as f64 / expected.batch.max(1) as f64;
        let rest = f64::from(expected.stem_ns + expected.head_ns);
        self.report(trace, scale * (rest + self.blocks_ns(trace)));
    }

    fn report(&self, trace: &mut Trace, expected_ns: f64) {
        let drift = self.drift.exp();
        let drifted = self.rest.count >= ENOUGH && self.drift.abs() > DRIFT.ln();
        let dense_blocks = self.blocks.iter().filter(|block| block.hold > 0).count();
        trace.watch = Some(Watch { expected_ns, drift, drifted, dense_blocks });
    }

    /// Expected time of the blocks with what was active, for the batch of the plan.
    fn blocks_ns(&self, trace: &Trace) -> f64 {
        let of = |(plan, entry): (&crate::plan::BlockPlan, &BlockTrace)| {
            plan.expected.as_ref().map_or(0.0, |expected| expected.ns(density(entry), !entry.gathered))
        };
        self.planned.blocks.iter().zip(&trace.blocks).map(of).sum()
    }
}

/// Density of patches where there is a gate about them, else of channel groups.
fn density(entry: &BlockTrace) -> f64 {
    if entry.patches.active < entry.patches.total || entry.channel_groups.total == 0 {
        entry.patches.density()
    } else {
        entry.channel_groups.density()
    }
}

impl BlockGuard {
    /// Returns whether the block is run differently from now on. `drift` is that of the machine, a logarithm.
    fn observe(&mut self, entry: &BlockTrace, expected: &Expected, scale: f64, drift: f64) -> bool {
        let partly = entry.patches.active > 0 && entry.patches.active < entry.patches.total;
        let ns = entry.total_ns() as f64;
        if !partly || ns <= 0.0 {
            return false;
        }
        let density = density(entry);
        let (gathered_ns, dense_ns) = (expected.ns(density, false), expected.ns(density, true));
        if gathered_ns <= 0.0 || dense_ns <= 0.0 {
            return false;
        }
        if entry.gathered {
            self.gathered.add((ns / (scale * gathered_ns)).ln());
            // Dense is as far off as it was seen to be, or as everything is.
            let dense_off = if self.dense.count > 0 { self.dense.value } else { drift };
            let slower = gathered_ns * self.gathered.value.exp() / (dense_ns * dense_off.exp());
            if self.gathered.count >= ENOUGH && slower > MARGIN {
                self.held = (2 * self.held).clamp(HOLD, LONGEST_HOLD);
                self.hold = self.held;
                return true;
            }
            return false;
        }
        self.dense.add((ns / (scale * dense_ns)).ln());
        if self.hold == 0 {
            return false;
        }
        self.hold -= 1;
        if self.hold == 0 {
            self.gathered = Mean::default();
        }
        self.hold == 0
    }
}

impl Mean {
    fn add(&mut self, value: f64) {
        self.count = self.count.saturating_add(1);
        let weight = WEIGHT.max(1.0 / f64::from(self.count));
        self.value += weight * (value - self.value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::Count;
    use crate::plan::{BlockPlan, Times};

    /// Two blocks that are expected to take 500 ns gathered and 1000 ns dense, at any density below 1.
    fn plan() -> ExecutionPlan {
        let expected =
            Expected { densities: vec![0.0, 1.0], gathered_ns: vec![500.0; 2], dense_ns: vec![1000.0; 2] };
        let block = |name: &str| BlockPlan {
            block: name.into(),
            route: Route::Implicit,
            granularity: 1,
            dense_above: 1.0,
            expected: Some(expected.clone()),
        };
        let times = Times { batch: 1, threads: 1, stem_ns: 200.0, head_ns: 100.0 };
        ExecutionPlan { network: "two".into(), expected: Some(times), blocks: vec![block("a"), block("b")] }
    }

    /// A machine on which block b takes `b` times as long as expected where it gathers, and everything `all` times.
    fn infer(guard: &mut Guard, b: f64, all: f64) -> Trace {
        let plan = guard.next().0.map_or_else(plan, |plan| (*plan).clone());
        let mut trace = Trace {
            batch: 1,
            stem_ns: (200.0 * all) as u64,
            head_ns: (100.0 * all) as u64,
            ..Trace::default()
        };
        for (i, block) in plan.blocks.iter().enumerate() {
            let gathered = block.route == Route::Implicit;
            let ns = if gathered { 500.0 * if i == 1 { b } else { 1.0 } } else { 1000.0 };
            trace.blocks.push(BlockTrace {
                patches: Count { active: 8, total: 16 },
                gathered,
                compute_ns: (ns * all) as u64,
                ..BlockTrace::default()
            });
        }
        guard.observe(&mut trace);
        trace
    }

    #[test]
    fn a_machine_as_calibrated_runs_as_planned() {
        let mut guard = Guard::new(&plan()).unwrap();
        for _ in 0..500 {
            let trace = infer(&mut guard, 1.0, 1.0);
            assert!(trace.blocks.iter().all(|block| block.gathered));
            let watch = trace.watch.unwrap();
            assert_eq!((watch.expected_ns, watch.drifted, watch.dense_blocks), (1300.0, false, 0));
        }
    }

    #[test]
    fn a_slower_machine_drifts_and_still_runs_as_planned() {
        let mut guard = Guard::new(&plan()).unwrap();
        let trace = (0..50).map(|_| infer(&mut guard, 1.0, 2.0)).last().unwrap();
        let watch = trace.watch.unwrap();
        assert!(watch.drifted && (watch.drift - 2.0).abs() < 0.01 && watch.dense_blocks == 0);
        // And recovers.
        let trace = (0..50).map(|_| infer(&mut guard, 1.0, 1.0)).last().unwrap();
        assert!(!trace.watch.unwrap().drifted);
    }

    #[test]
    fn a_block_that_gathers_too_slowly_runs_dense_and_is_tried_again() {
        let mut guard = Guard::new(&plan()).unwrap();
        let gathered: Vec<bool> = (0..200).map(|_| infer(&mut guard, 4.0, 1.0).blocks[1].gathered).collect();
        let until = gathered.iter().position(|gathered| !gathered).unwrap();
        assert_eq!(until as u32, ENOUGH, "{gathered:?}");
        assert!(gathered[until..until + HOLD as usize].iter().all(|gathered| !gathered));
        assert!(gathered[until + HOLD as usize], "tried again");
        let dense = gathered.iter().filter(|gathered| !**gathered).count();
        assert!(dense > 180, "{dense}: a try again is short, and the next hold longer");
        assert!(infer(&mut guard, 4.0, 1.0).blocks[0].gathered, "the other block stays as planned");
    }

    #[test]
    fn a_block_that_recovers_gathers_again() {
        let mut guard = Guard::new(&plan()).unwrap();
        (0..ENOUGH + 1).for_each(|_| drop(infer(&mut guard, 4.0, 1.0)));
        let gathered: Vec<bool> = (0..100).map(|_| infer(&mut guard, 1.0, 1.0).blocks[1].gathered).collect();
        assert!(gathered[HOLD as usize..].iter().all(|gathered| *gathered), "{gathered:?}");
    }

    #[test]
    fn a_plan_without_times_is_not_watched() {
        assert!(Guard::new(&ExecutionPlan { expected: None, ..plan() }).is_none());
    }
}
