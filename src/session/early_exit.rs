//! Early exits: a session on smaller images answers where it is sure, and only the other images go on.

use super::Session;
use crate::exec::{BlockMasks, BlockTrace, Count, ExitTrace, Output, Request};
use crate::vision::Planes;
use anyhow::{Context, Result, ensure};
use laud_models::{ConvSpec, MapSize, NetSpec, Shortcut};
use std::sync::{Mutex, PoisonError};

/// Sessions that are asked before the one they stand in front of.
pub(super) struct EarlyExits {
    list: Vec<EarlyExit>,
    /// The network behind them.
    dense: Dense,
    classes: usize,
    /// Memory that is not in use.
    idle: Mutex<Vec<Scratch>>,
}

/// One of them.
pub(super) struct EarlyExit {
    /// Reads images of its own size.
    pub(super) session: Session,
    /// The least probability of its best class with which it answers.
    pub(super) confidence: f32,
}

/// What an inference needs besides its output.
#[derive(Default)]
struct Scratch {
    /// Images of one size, of the samples that are left.
    images: Vec<f32>,
    /// Samples that nobody has answered, ascending.
    left: Vec<usize>,
    /// Of the sessions.
    output: Output,
    exits: Vec<ExitTrace>,
    planes: Planes,
}

impl EarlyExits {
    /// Exits in front of a network.
    ///
    /// # Errors
    /// Other classes or preparation than the network's, or a confidence outside `0..=1`.
    pub(super) fn new(spec: &NetSpec, list: Vec<EarlyExit>) -> Result<Self> {
        for EarlyExit { session, confidence } in &list {
            ensure!(
                (0.0..=1.0).contains(confidence),
                "an early exit's confidence {confidence} is not in 0..=1"
            );
            let (own, other) = (&spec.input, &session.spec.input);
            ensure!(
                (own.channels, own.mean, own.std) == (other.channels, other.mean, other.std),
                "early exit {}: its images are prepared otherwise than those of {}",
                session.spec.name,
                spec.name
            );
            let (own, other) = (spec.head.fc.c_out, session.spec.head.fc.c_out);
            ensure!(
                own == other,
                "early exit {}: {other} classes, {} has {own}",
                session.spec.name,
                spec.name
            );
        }
        let dense = Dense::of(spec).context("early exits")?;
        Ok(Self { list, dense, classes: spec.head.fc.c_out, idle: Mutex::default() })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Asks one exit after the other, then runs `full` on the samples that are left.
    pub(super) fn infer(
        &self,
        spec: &NetSpec,
        request: Request<'_>,
        output: &mut Output,
        full: impl FnOnce(Request<'_>, &mut Output) -> Result<()>,
    ) -> Result<()> {
        ensure!(
            !request.features,
            "no feature maps of samples that leave early; take a session without early exits"
        );
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let scratch = idle().pop();
        let mut scratch = scratch.unwrap_or_default();
        let outcome = self.infer_in(&mut scratch, spec, request, output, full);
        idle().push(scratch);
        outcome
    }

    fn infer_in(
        &self,
        scratch: &mut Scratch,
        spec: &NetSpec,
        request: Request<'_>,
        output: &mut Output,
        full: impl FnOnce(Request<'_>, &mut Output) -> Result<()>,
    ) -> Result<()> {
        let Request { batch, timed, .. } = request;
        let (size, values) = (spec.input.size, spec.input.channels * spec.input.size.h * spec.input.size.w);
        // A request that does not fit is the network's to refuse.
        if batch == 0 || batch.checked_mul(values) != Some(request.images.len()) {
            return full(request, output);
        }
        let Scratch { images, left, output: inner, exits, planes } = scratch;
        left.clear();
        left.extend(0..batch);
        exits.clear();
        output.logits.clear();
        output.logits.resize(batch * self.classes, 0.0);
        for EarlyExit { session, confidence } in &self.list {
            let (to, came) = (session.spec.input.size, left.len());
            let mut exit = ExitTrace { size: to, samples: came, answered: 0, macs: 0, ns: 0 };
            if came > 0 {
                let smaller = spec.input.channels * to.h * to.w;
                images.resize(came * smaller, 0.0);
                for (&sample, image) in left.iter().zip(images.chunks_exact_mut(smaller)) {
                    planes.resize((&request.images[sample * values..][..values], size), (image, to))?;
                }
                let look = Request { images, batch: came, features: false, masks: false, timed };
                session
                    .infer_into(look, inner)
                    .with_context(|| format!("early exit at {}×{}", to.h, to.w))?;
                let mut answers = inner.logits.chunks_exact(self.classes);
                left.retain(|&sample| {
                    let logits = answers.next().unwrap_or_default();
                    let sure = probability(logits) >= *confidence;
                    if sure {
                        output.logits[sample * self.classes..][..self.classes].copy_from_slice(logits);
                    }
                    !sure
                });
                exit.answered = came - left.len();
                (exit.macs, exit.ns) = (inner.trace.macs(), inner.trace.total_ns());
            }
            exits.push(exit);
        }
        if left.len() == batch {
            full(request, output)?;
        } else {
            images.clear();
            left.iter().for_each(|&sample| images.extend(&request.images[sample * values..][..values]));
            let done = match left.is_empty() {
                true => None,
                false => {
                    full(Request { images, batch: left.len(), ..request }, inner)?;
                    Some(&*inner)
                }
            };
            self.join(request, left, done, output);
        }
        output.trace.exits.clone_from(exits);
        Ok(())
    }

    /// Puts what came of the samples that were `left` among the others, for whom nothing of the network was computed.
    fn join(&self, request: Request<'_>, left: &[usize], done: Option<&Output>, output: &mut Output) {
        let batch = request.batch;
        let Output { logits, features, masks, trace } = output;
        let answers = done.map_or(&[][..], |done| &done.logits);
        for (&sample, answer) in left.iter().zip(answers.chunks_exact(self.classes)) {
            logits[sample * self.classes..][..self.classes].copy_from_slice(answer);
        }
        features.clear();
        (trace.batch, trace.samples) = (batch, left.len());
        (trace.stem_macs, trace.head_macs) = (batch as u64 * self.dense.stem, batch as u64 * self.dense.head);
        (trace.stem_ns, trace.head_ns, trace.watch) = (0, 0, None);
        trace.blocks.clear();
        trace.blocks.extend(self.dense.blocks.iter().map(|block| block.skipped(batch)));
        masks.resize(if request.masks { self.dense.blocks.len() } else { 0 }, BlockMasks::default());
        for (masks, dense) in masks.iter_mut().zip(&self.dense.blocks) {
            for (keep, units) in
                [(&mut masks.patches, dense.cells), (&mut masks.channel_groups, dense.groups)]
            {
                keep.clear();
                keep.resize(batch * units, false);
            }
        }
        let Some(done) = done else { return };
        (trace.stem_ns, trace.head_ns) = (done.trace.stem_ns, done.trace.head_ns);
        trace.watch = done.trace.watch;
        for (block, done) in trace.blocks.iter_mut().zip(&done.trace.blocks) {
            let totals = (block.patches.total, block.channel_groups.total, block.dense_macs);
            block.clone_from(done);
            (block.patches.total, block.channel_groups.total, block.dense_macs) = totals;
        }
        for ((masks, done), dense) in masks.iter_mut().zip(&done.masks).zip(&self.dense.blocks) {
            spread(&mut masks.patches, &done.patches, left, dense.cells);
            spread(&mut masks.channel_groups, &done.channel_groups, left, dense.groups);
        }
    }
}

/// Decisions about the samples that were `left`, to their places.
fn spread(to: &mut [bool], from: &[bool], left: &[usize], units: usize) {
    for (&sample, keep) in left.iter().zip(from.chunks_exact(units.max(1))) {
        to[sample * units..][..units].copy_from_slice(keep);
    }
}

/// The probability of the best class: the largest softmax of the logits; no number where one of them is none.
fn probability(logits: &[f32]) -> f32 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    1.0 / logits.iter().map(|logit| (logit - largest).exp()).sum::<f32>()
}

/// What a sample costs with everything active, and how many units decide about it.
struct Dense {
    stem: u64,
    head: u64,
    blocks: Vec<DenseBlock>,
}

#[derive(Clone, Copy)]
struct DenseBlock {
    /// Of the gate about patches; 0 without one.
    cells: usize,
    /// Of the gate about channels; 0 without one.
    groups: usize,
    macs: u64,
}

impl Dense {
    fn of(spec: &NetSpec) -> Result<Self> {
        let conv = |conv: &ConvSpec, input: MapSize| {
            let output = conv.output_size(input).with_context(|| format!("{}: no output", conv.weight))?;
            anyhow::Ok((conv.macs(output), output))
        };
        let (stem, map) = conv(&spec.stem.conv, spec.input.size)?;
        let mut blocks = Vec::with_capacity(spec.blocks.len());
        for block in &spec.blocks {
            let (mut map, mut macs) = (block.input, 0);
            for each in &block.convs {
                let (more, output) = conv(each, map)?;
                (map, macs) = (output, macs + more);
            }
            if let Shortcut::Projection(projection) = &block.shortcut {
                macs += conv(projection, block.input)?.0;
            }
            let cells = block.gate.spatial.as_ref().map_or(0, |gate| gate.grid.h * gate.grid.w);
            let groups = block.gate.channel.as_ref().map_or(0, |gate| gate.groups);
            blocks.push(DenseBlock { cells, groups, macs });
        }
        let last = spec.blocks.last().map_or(map, |block| block.output);
        let mut head = (spec.head.fc.c_in * spec.head.fc.c_out) as u64;
        if let Some(each) = &spec.head.conv {
            head += conv(each, last)?.0;
        }
        Ok(Self { stem, head, blocks })
    }
}

impl DenseBlock {
    /// The block's record where none of `batch` samples reaches it.
    fn skipped(&self, batch: usize) -> BlockTrace {
        BlockTrace {
            // A block that does not decide about patches counts samples.
            patches: Count { active: 0, total: batch * self.cells.max(1) },
            channel_groups: Count { active: 0, total: batch * self.groups },
            dense_macs: batch as u64 * self.macs,
            ..BlockTrace::default()
        }
    }
}
