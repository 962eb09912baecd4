//! What is issued for some samples, and read behind it.

use super::account::Records;
use super::block::{self, everywhere};
use super::network::Network;
use super::workspace::{Lists, Maps, Results};
use super::{Output, Request};
use crate::gate::{Amount, Rule, UnitKind, Units};
use crate::plan::ExecutionPlan;
use anyhow::{Context, Result};
use laud_kernels::gather_gemm::Placement;
use laud_kernels::layout::FromNchw;
use laud_kernels::max_pool::MaxPool;
use laud_kernels::mean_pool::{Mean, MeanPool};
use laud_kernels::{Backend, Extent};
use std::ops::Range;

/// Some samples of an inference, through some of the blocks: maybe behind the stem, the last ones in front of the head.
pub(super) struct Program<'a, B: Backend> {
    pub(super) network: &'a Network<B>,
    pub(super) plan: &'a ExecutionPlan,
    /// Whether the plan is always the same.
    pub(super) keep: bool,
    pub(super) rule: Rule<'a>,
    pub(super) request: Request<'a>,
    pub(super) samples: Range<usize>,
    /// Place of the first of them among those that go on together.
    pub(super) at: usize,
    pub(super) blocks: Range<usize>,
    /// Whether the stem is in front of these blocks, of which there may be none.
    pub(super) stem: bool,
}

/// Stamps of an inference: around the stem, around and between the steps of every block, around the head.
pub(super) fn stamps(blocks: usize) -> usize {
    2 + 4 * blocks + 2
}

impl<B: Backend> Program<'_, B> {
    /// Decisions that do not depend on margins, or that nothing is spent yet.
    pub(super) fn decide(
        &self,
        queue: &mut B::Queue<'_>,
        spent: &mut B::Vector<f32>,
        results: &mut Results<B>,
    ) -> Result<()> {
        let decisions = match self.rule {
            Rule::Given(decisions) => decisions,
            Rule::Paid(_) => return Ok(B::upload(queue, spent, |spent: &mut [f32]| spent.fill(0.0))?),
            Rule::Margin { .. } | Rule::Top(_) => return Ok(()),
        };
        let (first, batch) = (self.samples.start, self.samples.len());
        let Results { keep, slots, .. } = results;
        let fill = |keep: &mut [bool]| {
            for i in self.blocks.clone() {
                let (block, slot) = (&self.network.blocks[i], &slots[i]);
                let mut gate = |kind, at: usize, per_sample| {
                    let units = Units { block: i, kind, first, batch, per_sample };
                    decisions.decide(units, &mut keep[at..][..batch * per_sample]);
                };
                if let Some(patches) = &block.patch_gate {
                    gate(UnitKind::Patch, slot.patches, patches.cells());
                }
                if let Some(channels) = &block.channel_gate {
                    gate(UnitKind::ChannelGroup, slot.groups, channels.groups);
                }
            }
        };
        Ok(B::upload(queue, keep, fill)?)
    }

    fn last(&self) -> bool {
        self.blocks.end == self.network.blocks.len()
    }

    pub(super) fn images(&self) -> &[f32] {
        if !self.stem {
            return &[];
        }
        let values = self.network.stem.geometry.c_in * self.network.image.pixels();
        &self.request.images[self.samples.start * values..self.samples.end * values]
    }

    /// Everything that [`issue`](Self::issue) depends on; `None` when it reads the clock or the plan is a passing one.
    pub(super) fn key(&self) -> Option<u64> {
        // Shares have fewer than 31 bits.
        let (no_margin, rule) = match self.rule {
            Rule::Margin { at_least } => (0, at_least.to_bits()),
            Rule::Given(_) => (1, 0),
            Rule::Top(Amount::Share(share)) => (1, 1 + share.to_bits()),
            Rule::Top(Amount::Count(count)) => (1, 1 << 31 | count),
            Rule::Paid(_) => return None,
        };
        let flags = u64::from(self.request.features) << 1 | no_margin;
        // Batches fit 30 bits: pixels of a batch are counted in 32, and maps of fewer than 4 have no room for a block.
        (self.keep && !self.request.timed)
            .then_some((self.samples.len() as u64) << 34 | flags << 32 | u64::from(rule))
    }

    /// Issues every operation, from the image (or from what the front left) to the logits (or to what the back takes).
    pub(super) fn issue(
        &self,
        queue: &mut B::Queue<'_>,
        images: B::Images<'_>,
        maps: &mut Maps<B>,
        lists: &mut Lists<B>,
        results: &mut Results<B>,
    ) -> Result<()> {
        let batch = self.samples.len();
        let run = block::Run { batch, rule: self.rule, timed: self.request.timed };
        if self.stem {
            run.stamp::<B>(queue);
            self.stem(queue, images, maps, lists).context("stem")?;
            run.stamp::<B>(queue);
        } else {
            let [stream, _] = &mut maps.stream;
            std::mem::swap(stream, &mut maps.joined);
        }
        let mut stage = self.stages().start;
        for i in self.blocks.clone() {
            let (block, plan) = (&self.network.blocks[i], &self.plan.blocks[i]);
            block::run(queue, run, (i, block, plan, results.slots[i]), maps, lists, results)
                .with_context(|| format!("block {}", block.name))?;
            if self.request.features && self.network.ends_stage(i) {
                let (stream, values) = (&maps.stream[0], &mut results.stages[stage]);
                B::to_nchw(queue, batch, block.output, block.c_out(), stream, values)?;
                B::fetch(queue, values)?;
                stage += 1;
            }
        }
        if self.last() {
            run.stamp::<B>(queue);
            self.head(queue, maps, lists, &mut results.logits).context("head")?;
            run.stamp::<B>(queue);
            B::fetch(queue, &mut results.logits)?;
        } else {
            let (map, c) = self.network.behind(self.blocks.end);
            let sample = map.pixels() * c;
            B::copy(queue, &maps.stream[0], batch * sample, &mut maps.joined, self.at * sample)?;
        }
        B::fetch(queue, &mut results.keep)?;
        B::fetch(queue, &mut results.starts)?;
        Ok(())
    }

    /// Stages that end in the blocks.
    fn stages(&self) -> Range<usize> {
        let ends = |blocks: Range<usize>| blocks.filter(|&i| self.network.ends_stage(i)).count();
        let before = ends(0..self.blocks.start);
        before..before + ends(self.blocks.clone())
    }

    /// Reads what the inference gave.
    pub(super) fn tell(
        &self,
        queue: &mut B::Queue<'_>,
        results: &Results<B>,
        output: &mut Output,
    ) -> Result<()> {
        let (first, batch) = (self.samples.start, self.samples.len());
        if self.last() {
            let classes = self.network.classifier.c_out;
            let logits = &B::read(queue, &results.logits)?[..batch * classes];
            output.logits[first * classes..][..batch * classes].copy_from_slice(logits);
        }
        let stages = if self.request.features { self.stages() } else { 0..0 };
        let maps = output.features[stages.clone()].iter_mut().zip(&results.stages[stages.clone()]);
        for ((map, values), block) in maps.zip(self.network.stage_ends().skip(stages.start)) {
            let sample = map.shape[1..].iter().product::<usize>();
            let values = &B::read(queue, values)?[..batch * sample];
            let map = &mut map.values[first * sample..][..batch * sample];
            map.copy_from_slice(values);
            if let Some(units) = &block.units {
                let planes = map.chunks_exact_mut(block.output.pixels());
                for (plane, unit) in planes.zip(units.iter().cycle()) {
                    plane.iter_mut().for_each(|value| *value *= unit);
                }
            }
        }
        let (keep, starts) = (B::read(queue, &results.keep)?, B::read(queue, &results.starts)?);
        let records = Records { batch, keep, starts };
        let stamped = if self.stem { 2 } else { 0 };
        for i in self.blocks.clone() {
            let (block, plan) = (&self.network.blocks[i], &self.plan.blocks[i]);
            let mut trace = records.trace((block, plan, results.slots[i]));
            if self.request.timed {
                let at = stamped + 4 * (i - self.blocks.start);
                trace.gate_ns = B::lap(queue, at)?;
                trace.compact_ns = B::lap(queue, at + 1)?;
                trace.compute_ns = B::lap(queue, at + 2)?;
            }
            output.trace.blocks[i].add(&trace);
            if let Some(masks) = output.masks.get_mut(i) {
                masks.patches.extend_from_slice(records.patches(block, results.slots[i]));
                masks.channel_groups.extend_from_slice(records.groups(block, results.slots[i]));
            }
        }
        if self.request.timed && self.stem {
            output.trace.stem_ns += B::lap(queue, 0)?;
        }
        if self.request.timed && self.last() {
            output.trace.head_ns += B::lap(queue, stamped + 4 * self.blocks.len())?;
        }
        Ok(())
    }

    fn stem(
        &self,
        queue: &mut B::Queue<'_>,
        images: B::Images<'_>,
        maps: &mut Maps<B>,
        lists: &mut Lists<B>,
    ) -> Result<()> {
        let Network { stem, border, image: size, image_scale, pool, .. } = self.network;
        let Maps { image, stream, .. } = maps;
        let geometry = &stem.geometry;
        let batch = self.samples.len();
        let call = FromNchw {
            batch,
            c: geometry.c_in,
            image: *size,
            border: Extent { h: border.top, w: border.left },
            bordered: geometry.input,
            scale: image_scale.as_deref(),
            input: images,
            output: &mut *image,
        };
        B::from_nchw(queue, call)?;
        everywhere(queue, stem, batch, image, &mut stream[0], lists)?;
        if let Some(geometry) = *pool {
            let [input, output] = stream;
            B::max_pool(queue, MaxPool { geometry, batch, input: &*input, output })?;
            stream.swap(0, 1);
        }
        Ok(())
    }

    fn head(
        &self,
        queue: &mut B::Queue<'_>,
        maps: &mut Maps<B>,
        lists: &mut Lists<B>,
        logits: &mut B::Vector<f32>,
    ) -> Result<()> {
        let batch = self.samples.len();
        let [input, output] = &mut maps.stream;
        let (mut map, _) = self.network.behind(self.network.blocks.len());
        let mut last = &*input;
        if let Some(conv) = &self.network.head {
            everywhere(queue, conv, batch, input, output, lists)?;
            (map, last) = (conv.geometry.output, &*output);
        }
        let classifier = &self.network.classifier;
        let Lists { features: [means, _], all_rows: rows, all_channels: [channels, _], .. } = lists;
        B::all_rows(rows, batch, map.pixels());
        B::all_channels(channels, classifier.c_in);
        let call = MeanPool {
            rows: &*rows,
            channels: &*channels,
            input: last,
            input_rows: Placement::Natural,
            mean: Mean::Active,
            output: &mut *means,
        };
        B::mean_pool(queue, call)?;
        B::linear(queue, &classifier.weights, batch, means, logits)?;
        Ok(())
    }
}
