use laud_predictor::DeviceFacts;
use laud_predictor::learned::{FitOptions, Model};
use laud_predictor::workload::{Cache, Sample, Workload};
use std::collections::{BTreeMap, HashSet};

/// Picks what to measure next.
pub(super) struct Chooser {
    left: Vec<Workload>,
    model: Option<Model>,
    /// Measurements that the model was fitted to.
    fitted: usize,
}

/// Candidates that are looked at for one choice.
const LOOKED_AT: usize = 600;
/// Expected time of everything around a call, nanoseconds: what cheap calls cost all the same.
const AROUND_NS: f64 = 200_000.0;
/// Measurements behind which there is a model, and by how much they grow until the next.
const FIRST_FIT: usize = 24;
const GROWTH: f64 = 1.4;

impl Chooser {
    /// Candidates in an order that a seed shuffles, without those that were measured; kernels take turns.
    pub(super) fn new(candidates: Vec<Workload>, samples: &[Sample], seed: u64) -> Self {
        let mut known: HashSet<Key> = samples.iter().map(|sample| key(&sample.workload)).collect();
        let mut by_op: BTreeMap<_, Vec<Workload>> = BTreeMap::new();
        for workload in candidates {
            if known.insert(key(&workload)) {
                by_op.entry((workload.op, workload.cache == Cache::Warm)).or_default().push(workload);
            }
        }
        let mut random = super::sweep::Random::new(seed);
        by_op.values_mut().for_each(|list| random.shuffle(list));
        // Rarer kernels come evenly between the others, one of each at first.
        let mut order: Vec<(f64, Workload)> = by_op
            .into_values()
            .flat_map(|list| {
                let len = list.len() as f64;
                list.into_iter().enumerate().map(move |(i, workload)| (i as f64 / len, workload))
            })
            .collect();
        order.sort_by(|a, b| b.0.total_cmp(&a.0));
        let left = order.into_iter().map(|(_, workload)| workload).collect();
        Self { left, model: None, fitted: 0 }
    }

    /// Takes back a candidate that could not be measured, to be chosen after the others.
    pub(super) fn put_back(&mut self, workload: Workload) {
        self.left.insert(0, workload);
    }

    /// Up to `count` candidates of one number of threads: half in order, half those that the model is least sure of for
    /// their cost.
    pub(super) fn next(&mut self, samples: &[Sample], facts: &DeviceFacts, count: usize) -> Vec<Workload> {
        let Some(threads) = self.left.last().map(|workload| workload.threads) else { return Vec::new() };
        if samples.len() >= FIRST_FIT && samples.len() as f64 >= GROWTH * self.fitted as f64 {
            self.model = Model::fit(samples, facts, &FitOptions::default()).ok();
            self.fitted = samples.len();
        }
        let in_order = if self.model.is_some() { count.div_ceil(2) } else { count };
        let mut set = Vec::new();
        while set.len() < in_order {
            let Some(at) = self.left.iter().rposition(|workload| workload.threads == threads) else { break };
            set.push(self.left.remove(at));
        }
        let Some(model) = &self.model else { return set };
        let first = self.left.len().saturating_sub(LOOKED_AT);
        let mut scored: Vec<(f64, usize)> = (first..self.left.len())
            .filter(|&i| self.left[i].threads == threads)
            .map(|i| (worth(model, &self.left[i]), i))
            .collect();
        scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        scored.truncate(count - set.len());
        let mut picked: Vec<usize> = scored.into_iter().map(|(_, i)| i).collect();
        picked.sort_unstable_by(|a, b| b.cmp(a));
        set.extend(picked.into_iter().map(|i| self.left.remove(i)));
        set
    }
}

/// Uncertainty for the cost of removing it.
fn worth(model: &Model, workload: &Workload) -> f64 {
    model.uncertainty(workload).min(1e3) / (model.predict(workload).ns + AROUND_NS)
}

/// What makes two workloads one measurement: rows, runs and active channels about the same, all else equal.
type Key = (String, [i64; 4]);

fn key(w: &Workload) -> Key {
    let step = |value: f64| (16.0 * value.max(1.0).ln()).round() as i64;
    let counts =
        [step(w.rows.into()), step(f64::from(w.runs) / 2.0), step(w.c_in_active), step(w.c_out_active)];
    let rest = Workload { rows: 1, runs: 1, c_in_active: 0.0, c_out_active: 0.0, ..*w };
    (format!("{rest:?}"), counts)
}
