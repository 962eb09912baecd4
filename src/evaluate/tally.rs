use super::{Batch, Latency, Progress};
use crate::exec::{ExitTrace, Output};
use anyhow::Result;
use laud_models::{MapSize, NetSpec};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What an evaluation found. Shares are `0..=1`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluation {
    /// Images.
    pub images: usize,
    /// Images of an inference.
    pub batch: usize,
    /// Share of the images whose label comes first.
    pub top1: f64,
    /// Share of the images whose label is among the first five.
    pub top5: f64,
    /// Multiply-accumulates an image.
    pub macs: Macs,
    /// Early exits in the order in which they are asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exits: Vec<ExitShare>,
    /// Shares of the network that were computed; an image that left early has none.
    pub computed: Computed,
    /// The same block by block.
    pub blocks: Vec<BlockShare>,
    /// As measured.
    pub latency_ms: Latency,
    /// As a profile predicts it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predicted_ms: Option<Latency>,
    /// The network without its gates, on the same images.
    #[serde(default, rename = "static", skip_serializing_if = "Option::is_none")]
    pub compared: Option<Compared>,
}

impl Evaluation {
    /// How long an image takes, milliseconds: the median; the mean where images leave early, for then most are fast and the
    /// others slower than without exits.
    pub fn typical_ms(&self) -> f64 {
        self.typical(&self.latency_ms)
    }

    /// How many times as fast as the static network, by [`typical_ms`](Self::typical_ms) of both.
    pub fn speedup(&self) -> Option<f64> {
        let compared = self.compared.as_ref()?;
        Some(self.typical(&compared.latency_ms) / self.typical_ms())
    }

    fn typical(&self, latency: &Latency) -> f64 {
        if self.exits.is_empty() { latency.p50 } else { latency.mean }
    }
}

/// Multiply-accumulates an image.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Macs {
    /// As executed, mean.
    pub done: f64,
    /// The most that a batch took.
    pub most: f64,
    /// With everything active.
    pub dense: f64,
}

/// What an early exit did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExitShare {
    /// Size of the images that it looks at, pixels.
    pub size: MapSize,
    /// Images that came to it.
    pub images: usize,
    /// Of them it answered.
    pub answered: usize,
}

/// Shares of a network that were computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Computed {
    /// Of the blocks: those of which anything was.
    pub blocks: f64,
    /// Of the patches, over the blocks that decide about patches; 1 without any.
    pub patches: f64,
    /// Of the channel groups, over the blocks that decide about those; 1 without any.
    pub channel_groups: f64,
}

/// Shares of a block that were computed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockShare {
    /// Block, as the network names it.
    pub block: String,
    /// Density of patches; `None` where it does not decide about them.
    pub patches: Option<f64>,
    /// Density of channel groups.
    pub channel_groups: Option<f64>,
    /// Multiply-accumulates, halo included, of those with everything active.
    pub macs: f64,
}

/// The network with everything active, and where the other differs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Compared {
    /// Its accuracy, as of [`Evaluation`].
    pub top1: f64,
    /// See [`top1`](Self::top1).
    pub top5: f64,
    /// Its latency.
    pub latency_ms: Latency,
    /// Share of the images that both put into the same class.
    pub agreement: f64,
    /// Images that only the static network puts into the right class, and only the other one.
    pub only_static_right: usize,
    /// See [`only_static_right`](Self::only_static_right).
    pub only_dynamic_right: usize,
    /// What becomes what, the most frequent first.
    pub differs: Vec<Difference>,
}

/// Images that move from one class to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Difference {
    /// Class of the static network.
    pub from: usize,
    /// Class with skipping.
    pub to: usize,
    /// How many.
    pub images: usize,
    /// Of them were right.
    pub static_right: usize,
    /// Of them are right.
    pub dynamic_right: usize,
}

/// Sums over the images so far.
#[derive(Default)]
pub(super) struct Tally {
    images: usize,
    top1: usize,
    top5: usize,
    macs: u64,
    most: f64,
    dense_macs: u64,
    exits: Vec<ExitShare>,
    computed: f64,
    blocks: Vec<Sums>,
    /// Milliseconds an image, one entry a batch.
    ms: Vec<f64>,
    predicted: Option<Vec<f64>>,
    plain: Option<Plain>,
}

/// Sums of a block.
struct Sums {
    block: String,
    patches: Option<(usize, usize)>,
    groups: Option<(usize, usize)>,
    macs: u64,
    dense_macs: u64,
}

/// Sums of the static network.
#[derive(Default)]
struct Plain {
    top1: usize,
    top5: usize,
    ms: Vec<f64>,
    agree: usize,
    only: [usize; 2],
    differs: BTreeMap<(usize, usize), [usize; 3]>,
}

impl Tally {
    pub(super) fn new(spec: &NetSpec, compared: bool, predicted: bool) -> Self {
        let sums = |block: &laud_models::BlockSpec| Sums {
            block: block.name.clone(),
            patches: block.gate.spatial.as_ref().map(|_| (0, 0)),
            groups: block.gate.channel.as_ref().map(|_| (0, 0)),
            macs: 0,
            dense_macs: 0,
        };
        Self {
            blocks: spec.blocks.iter().map(sums).collect(),
            plain: compared.then(Plain::default),
            predicted: predicted.then(Vec::new),
            ..Self::default()
        }
    }

    pub(super) fn progress(&self) -> Progress {
        Progress { images: self.images, right: self.top1 }
    }

    pub(super) fn add(
        &mut self,
        spec: &NetSpec,
        batch: &Batch<'_>,
        (output, ms): (&Output, f64),
        plain: Option<(&Output, f64)>,
        predicted: Option<f64>,
    ) {
        self.ms.push(ms);
        if let (Some(all), Some(ms)) = (&mut self.predicted, predicted) {
            all.push(ms);
        }
        for i in 0..batch.n {
            let (logits, label) = (logits(output, i), batch.label(i));
            let rank = rank(logits, label);
            self.top1 += usize::from(rank == Some(0));
            self.top5 += usize::from(rank.is_some_and(|rank| rank < 5));
        }
        if let (Some(sums), Some((other, ms))) = (&mut self.plain, plain) {
            sums.ms.push(ms);
            let among_five =
                |i: &usize| rank(self::logits(other, *i), batch.label(*i)).is_some_and(|rank| rank < 5);
            sums.top5 += (0..batch.n).filter(among_five).count();
            (0..batch.n).for_each(|i| {
                sums.add(batch.label(i), best(self::logits(other, i)), best(self::logits(output, i)))
            });
        }
        let trace = &output.trace;
        self.images += batch.n;
        self.most = self.most.max(trace.macs() as f64 / batch.n as f64);
        self.macs += trace.macs();
        self.dense_macs += trace.dense_macs();
        for (i, &ExitTrace { size, samples, answered, .. }) in trace.exits.iter().enumerate() {
            if i == self.exits.len() {
                self.exits.push(ExitShare { size, images: 0, answered: 0 });
            }
            self.exits[i].images += samples;
            self.exits[i].answered += answered;
        }
        for ((sums, trace), block) in self.blocks.iter_mut().zip(&trace.blocks).zip(&spec.blocks) {
            let add = |sum: &mut Option<(usize, usize)>, count: crate::exec::Count| {
                if let Some((active, total)) = sum {
                    (*active, *total) = (*active + count.active, *total + count.total);
                }
            };
            add(&mut sums.patches, trace.patches);
            add(&mut sums.groups, trace.channel_groups);
            sums.macs += trace.macs;
            sums.dense_macs += trace.dense_macs;
            // Blocks skip samples one by one, so shares of a batch and not whole blocks are counted.
            let whole = block.gate.spatial.as_ref().is_none_or(|gate| gate.layer);
            let computed = match whole {
                true => batch.n as f64 * trace.patches.density(),
                false if trace.patches.active > 0 => output.trace.samples as f64,
                false => 0.0,
            };
            self.computed += computed / spec.blocks.len().max(1) as f64;
        }
    }

    pub(super) fn evaluation(self, batch: usize) -> Result<Evaluation> {
        let n = self.images as f64;
        let density = |(active, total): (usize, usize)| active as f64 / total.max(1) as f64;
        let blocks: Vec<BlockShare> = (self.blocks.iter())
            .map(|sums| BlockShare {
                block: sums.block.clone(),
                patches: sums.patches.map(density),
                channel_groups: sums.groups.map(density),
                macs: sums.macs as f64 / sums.dense_macs.max(1) as f64,
            })
            .collect();
        let mean = |of: &dyn Fn(&BlockShare) -> Option<f64>| {
            let all: Vec<f64> = blocks.iter().filter_map(of).collect();
            if all.is_empty() { 1.0 } else { all.iter().sum::<f64>() / all.len() as f64 }
        };
        Ok(Evaluation {
            images: self.images,
            batch,
            top1: self.top1 as f64 / n,
            top5: self.top5 as f64 / n,
            macs: Macs { done: self.macs as f64 / n, most: self.most, dense: self.dense_macs as f64 / n },
            exits: self.exits,
            computed: Computed {
                blocks: self.computed / n,
                patches: mean(&|block| block.patches),
                channel_groups: mean(&|block| block.channel_groups),
            },
            blocks,
            latency_ms: Latency::of(&self.ms)?,
            predicted_ms: self.predicted.map(|ms| Latency::of(&ms)).transpose()?,
            compared: self.plain.map(|plain| plain.compared(self.images)).transpose()?,
        })
    }
}

impl Plain {
    fn add(&mut self, label: usize, from: usize, to: usize) {
        let right = [from == label, to == label];
        self.top1 += usize::from(right[0]);
        if from == to {
            self.agree += 1;
            return;
        }
        self.only[0] += usize::from(right[0]);
        self.only[1] += usize::from(right[1]);
        let entry = self.differs.entry((from, to)).or_default();
        let counts = [1, usize::from(right[0]), usize::from(right[1])];
        entry.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
    }

    fn compared(self, images: usize) -> Result<Compared> {
        let mut differs: Vec<Difference> = (self.differs.into_iter())
            .map(|((from, to), [images, static_right, dynamic_right])| Difference {
                from,
                to,
                images,
                static_right,
                dynamic_right,
            })
            .collect();
        differs.sort_by_key(|difference| std::cmp::Reverse(difference.images));
        Ok(Compared {
            top1: self.top1 as f64 / images as f64,
            top5: self.top5 as f64 / images as f64,
            latency_ms: Latency::of(&self.ms)?,
            agreement: self.agree as f64 / images as f64,
            only_static_right: self.only[0],
            only_dynamic_right: self.only[1],
            differs,
        })
    }
}

/// Logits of sample `i`.
pub(super) fn logits(output: &Output, i: usize) -> &[f32] {
    let classes = output.logits.len() / output.trace.batch.max(1);
    &output.logits[i * classes..][..classes]
}

/// How many classes come before `label`: those with a larger logit, and equal ones in front of it; `None` where its logit is no
/// number.
fn rank(logits: &[f32], label: usize) -> Option<usize> {
    let score = *logits.get(label).filter(|score| !score.is_nan())?;
    let ahead = logits.iter().enumerate().filter(|&(i, &other)| other > score || other == score && i < label);
    Some(ahead.count())
}

/// The first class of the largest logit.
fn best(logits: &[f32]) -> usize {
    let larger = |best: usize, i: usize| if logits[i] > logits[best] { i } else { best };
    (1..logits.len()).fold(0, larger)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_ranked_behind_equals_in_front_of_them() {
        let logits = [1.0, 3.0, 2.0, 3.0];
        assert_eq!([0, 1, 2, 3].map(|label| rank(&logits, label)), [Some(3), Some(0), Some(2), Some(1)]);
        assert_eq!(best(&logits), 1);
        assert_eq!(rank(&[0.0, f32::NAN], 1), None);
    }

    #[test]
    fn differences_are_counted_by_what_becomes_what() {
        let mut plain = Plain::default();
        for (label, from, to) in [(1, 1, 1), (1, 1, 2), (2, 1, 2), (0, 1, 2), (3, 3, 0), (0, 0, 0)] {
            plain.add(label, from, to);
            plain.ms.push(1.0);
        }
        let compared = plain.compared(6).unwrap();
        assert_eq!((compared.top1, compared.agreement), (4.0 / 6.0, 2.0 / 6.0));
        assert_eq!((compared.only_static_right, compared.only_dynamic_right), (2, 1));
        let first = Difference { from: 1, to: 2, images: 3, static_right: 1, dynamic_right: 1 };
        assert_eq!((compared.differs.len(), compared.differs[0]), (2, first));
    }
}
