//! The executor: a prepared network, a plan and a policy in; logits, features and a trace out.
//!
//! [`Executor`] is the only type outside the kernels that is generic over the backend. It is used through
//! [`Runnable`], so that everything above is chosen once, when the session is built.

mod account;
mod block;
mod draw;
mod fold;
mod guard;
mod network;
mod probe;
mod trace;
mod workspace;

pub use fold::Weights;
pub use probe::{Probe, Prober};
pub use trace::{BlockTrace, Count, MAX_CONVS, Trace, Watch};

use crate::gate::{Amount, Policy, Rule, UnitKind, Units};
use crate::plan::ExecutionPlan;
use account::Records;
use anyhow::{Context, Result, ensure};
use block::everywhere;
use guard::Guard;
use laud_kernels::gather_gemm::Placement;
use laud_kernels::layout::FromNchw;
use laud_kernels::max_pool::MaxPool;
use laud_kernels::mean_pool::{Mean, MeanPool};
use laud_kernels::{Backend, Extent};
use laud_models::NetSpec;
use network::{Conv, Network};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use workspace::{Lists, Maps, Results, Workspace};

/// What an inference is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// `[n, c, h, w]`, prepared as the weights expect.
    pub images: &'a [f32],
    /// Samples.
    pub batch: usize,
    /// Keep the feature map behind every stage.
    pub features: bool,
    /// Keep the decisions of every gate.
    pub masks: bool,
    /// Record times in the trace.
    pub timed: bool,
}

/// What an inference gives. Reused between calls, it is only written to.
#[derive(Clone, Debug, Default)]
pub struct Output {
    /// `[n, classes]`.
    pub logits: Vec<f32>,
    /// Feature maps behind the stages, if asked for.
    pub features: Vec<FeatureMap>,
    /// Decisions of every block, if asked for.
    pub masks: Vec<BlockMasks>,
    /// What was computed and how long it took.
    pub trace: Trace,
}

/// A feature map at the public edge.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FeatureMap {
    /// `[n, c, h, w]`.
    pub shape: [usize; 4],
    /// Row-major values.
    pub values: Vec<f32>,
}

/// Decisions of one block's gates; empty where it has no such gate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockMasks {
    /// `[n, cells]` at mask resolution.
    pub patches: Vec<bool>,
    /// `[n, groups]`.
    pub channel_groups: Vec<bool>,
}

/// Something that runs a network, whatever the backend.
pub trait Runnable: Send + Sync {
    /// Device in a few words.
    fn describe(&self) -> String;

    /// Runs one inference. Any number of threads may call this at the same time; each inference in flight has
    /// memory of its own, which is kept for the next. Where the plan expects times, they are watched: see [`Watch`].
    ///
    /// # Errors
    /// When the request does not fit the network, an image's value is not finite, or memory runs out.
    fn infer(&self, request: Request<'_>, policy: &dyn Policy, output: &mut Output) -> Result<()>;

    /// Runs one inference by another plan, unwatched.
    ///
    /// # Errors
    /// As [`infer`](Self::infer); when the plan is about another network.
    fn infer_by(
        &self,
        plan: &ExecutionPlan,
        request: Request<'_>,
        policy: &dyn Policy,
        output: &mut Output,
    ) -> Result<()>;
}

/// A network on a backend, with a plan.
pub struct Executor<B: Backend> {
    spec: Arc<NetSpec>,
    backend: B,
    network: Network<B>,
    plan: ExecutionPlan,
    guard: Option<Mutex<Guard>>,
    /// Workspaces that are not in use.
    idle: Mutex<Vec<Box<Workspace<B>>>>,
}

impl<B: Backend> Executor<B> {
    /// Reads every weight, folds BatchNorms and packs.
    ///
    /// # Errors
    /// When the specification contradicts itself or asks for something unsupported, a weight is missing or does not
    /// fit, or the plan is about another network.
    pub fn prepare(
        spec: Arc<NetSpec>,
        backend: B,
        weights: &dyn Weights,
        plan: ExecutionPlan,
    ) -> Result<Self> {
        spec.validate()?;
        plan.check(&spec)?;
        let network = Network::prepare(&spec, &backend, weights)?;
        let guard = Guard::new(&plan).map(Mutex::new);
        Ok(Self { spec, backend, network, plan, guard, idle: Mutex::new(Vec::new()) })
    }

    /// A workspace for `batch` samples: an idle one that is large enough, or a new one.
    fn workspace(&self, batch: usize) -> Result<Box<Workspace<B>>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = idle.iter().position(|workspace| workspace.batch >= batch) {
            return Ok(idle.swap_remove(at));
        }
        // A smaller one would only take up memory from now on.
        idle.pop();
        drop(idle);
        Ok(Box::new(Workspace::new(&self.backend, &self.network, batch)?))
    }
}

impl<B: Backend> Runnable for Executor<B> {
    fn describe(&self) -> String {
        self.backend.describe()
    }

    fn infer(&self, request: Request<'_>, policy: &dyn Policy, output: &mut Output) -> Result<()> {
        let Some(guard) = &self.guard else { return self.run(&self.plan, request, policy, output) };
        let guard = || guard.lock().unwrap_or_else(PoisonError::into_inner);
        let (plan, timed) = guard().next();
        let timed = timed || request.timed;
        self.run(plan.as_deref().unwrap_or(&self.plan), Request { timed, ..request }, policy, output)?;
        match timed {
            true => guard().observe(&mut output.trace),
            false => guard().tell(&mut output.trace),
        }
        if !request.timed {
            output.trace.forget_times();
        }
        Ok(())
    }

    fn infer_by(
        &self,
        plan: &ExecutionPlan,
        request: Request<'_>,
        policy: &dyn Policy,
        output: &mut Output,
    ) -> Result<()> {
        plan.check(&self.spec)?;
        self.run(plan, request, policy, output)
    }
}

impl<B: Backend> Executor<B> {
    fn run(
        &self,
        plan: &ExecutionPlan,
        request: Request<'_>,
        policy: &dyn Policy,
        output: &mut Output,
    ) -> Result<()> {
        let Request { images, batch, .. } = request;
        let image = self.network.image;
        let channels = self.spec.input.channels;
        let need = batch.saturating_mul(channels * image.pixels());
        ensure!(batch > 0, "an inference needs at least one image");
        ensure!(
            images.len() == need,
            "{} values for {batch} images of {channels}×{}×{}, which are {need}",
            images.len(),
            image.h,
            image.w
        );
        // Lists of active pixels count in u32, and no map is larger than the image with its border.
        let most = u32::MAX as usize / self.network.stem.geometry.input.pixels();
        ensure!(batch <= most, "a batch of {batch} images; {most} are the most at once");
        output.prepare(&self.network, request);
        let at_once = batch.min(self.network.samples_at_once(&self.backend));
        let mut workspace = self.workspace(at_once)?;
        if request.features {
            self.make_stages(&mut workspace)?;
        }
        let Workspace { scratch, maps, lists, results, .. } = &mut *workspace;
        let rule = policy.rule();
        let inference = |queue: &mut B::Queue<'_>| {
            for first in (0..batch).step_by(at_once) {
                let samples = first..batch.min(first + at_once);
                let keep = std::ptr::eq(plan, &self.plan);
                let program = Program::<B> { network: &self.network, plan, keep, rule, request, samples };
                program.decide(queue, &mut lists.spent, results)?;
                let images = program.images();
                B::play(queue, program.key(), images, |queue, images| {
                    program.issue(queue, images, maps, lists, results)
                })?;
                program.tell(queue, results, output)?;
            }
            Ok(())
        };
        let outcome = self.backend.run(scratch, inference);
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(workspace);
        outcome
    }
}

impl<B: Backend> Executor<B> {
    /// Memory for the feature maps behind the stages.
    fn make_stages(&self, workspace: &mut Workspace<B>) -> Result<()> {
        let (batch, stages) = (workspace.batch, &mut workspace.results.stages);
        for block in self.network.stage_ends().skip(stages.len()) {
            let values = batch * block.output.pixels() * block.c_out();
            stages.push(self.backend.vector(values, "feature map behind a stage")?);
        }
        Ok(())
    }
}

/// Some samples of an inference from the top.
struct Program<'a, B: Backend> {
    network: &'a Network<B>,
    plan: &'a ExecutionPlan,
    /// Whether the plan is always the same.
    keep: bool,
    rule: Rule<'a>,
    request: Request<'a>,
    samples: Range<usize>,
}

/// Stamps of an inference: around the stem, around and between the steps of every block, around the head.
fn stamps(blocks: usize) -> usize {
    2 + 4 * blocks + 2
}

impl<B: Backend> Program<'_, B> {
    /// Decisions that do not depend on margins, or that nothing is spent yet.
    fn decide(
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
            for (i, (block, slot)) in self.network.blocks.iter().zip(slots).enumerate() {
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

    fn images(&self) -> &[f32] {
        let values = self.network.stem.geometry.c_in * self.network.image.pixels();
        &self.request.images[self.samples.start * values..self.samples.end * values]
    }

    /// Everything that [`issue`](Self::issue) depends on; `None` when it reads the clock or the plan is a passing one.
    fn key(&self) -> Option<u64> {
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

    /// Issues every operation, from the image to the logits.
    fn issue(
        &self,
        queue: &mut B::Queue<'_>,
        images: B::Images<'_>,
        maps: &mut Maps<B>,
        lists: &mut Lists<B>,
        results: &mut Results<B>,
    ) -> Result<()> {
        let batch = self.samples.len();
        let run = block::Run { batch, rule: self.rule, timed: self.request.timed };
        run.stamp::<B>(queue);
        self.stem(queue, images, maps, lists).context("stem")?;
        run.stamp::<B>(queue);
        let mut stage = 0;
        for (i, (block, plan)) in self.network.blocks.iter().zip(&self.plan.blocks).enumerate() {
            block::run(queue, run, (i, block, plan, results.slots[i]), maps, lists, results)
                .with_context(|| format!("block {}", block.name))?;
            if self.request.features && self.network.ends_stage(i) {
                let (stream, values) = (&maps.stream[0], &mut results.stages[stage]);
                B::to_nchw(queue, batch, block.output, block.c_out(), stream, values)?;
                B::fetch(queue, values)?;
                stage += 1;
            }
        }
        run.stamp::<B>(queue);
        self.head(queue, maps, lists, &mut results.logits).context("head")?;
        run.stamp::<B>(queue);
        B::fetch(queue, &mut results.logits)?;
        B::fetch(queue, &mut results.keep)?;
        B::fetch(queue, &mut results.starts)?;
        Ok(())
    }

    /// Reads what the inference gave.
    fn tell(&self, queue: &mut B::Queue<'_>, results: &Results<B>, output: &mut Output) -> Result<()> {
        let (first, batch) = (self.samples.start, self.samples.len());
        let classes = self.network.classifier.c_out;
        let logits = &B::read(queue, &results.logits)?[..batch * classes];
        output.logits[first * classes..][..batch * classes].copy_from_slice(logits);
        for (map, values) in output.features.iter_mut().zip(&results.stages) {
            let sample = map.shape[1..].iter().product::<usize>();
            let values = &B::read(queue, values)?[..batch * sample];
            map.values[first * sample..][..batch * sample].copy_from_slice(values);
        }
        let (keep, starts) = (B::read(queue, &results.keep)?, B::read(queue, &results.starts)?);
        let records = Records { batch, keep, starts };
        for (i, (block, plan)) in self.network.blocks.iter().zip(&self.plan.blocks).enumerate() {
            let mut trace = records.trace((block, plan, results.slots[i]));
            if self.request.timed {
                let at = 2 + 4 * i;
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
        if self.request.timed {
            output.trace.stem_ns += B::lap(queue, 0)?;
            output.trace.head_ns += B::lap(queue, stamps(self.network.blocks.len()) - 2)?;
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
        let Network { stem, border, image: size, pool, .. } = self.network;
        let Maps { image, stream, .. } = maps;
        let geometry = &stem.geometry;
        let batch = self.samples.len();
        let call = FromNchw {
            batch,
            c: geometry.c_in,
            image: *size,
            border: Extent { h: border.top, w: border.left },
            bordered: geometry.input,
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
        let mut map =
            self.network.blocks.last().map_or(self.network.stem.geometry.output, |block| block.output);
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

impl Output {
    /// Sizes everything for one inference, without allocating when it was of that size before.
    fn prepare<B: Backend>(&mut self, network: &Network<B>, request: Request<'_>) {
        let Request { batch, features, masks, .. } = request;
        self.logits.clear();
        self.logits.resize(batch * network.classifier.c_out, 0.0);
        self.trace.batch = batch;
        (self.trace.stem_ns, self.trace.head_ns, self.trace.watch) = (0, 0, None);
        self.trace.blocks.clear();
        self.trace.blocks.resize(network.blocks.len(), BlockTrace::default());
        let classifier = network.classifier.c_in * network.classifier.c_out;
        let head = network.head.as_ref().map_or(0, Conv::macs) + classifier;
        self.trace.stem_macs = (batch * network.stem.macs()) as u64;
        self.trace.head_macs = (batch * head) as u64;
        let stages = if features { network.stage_ends().count() } else { 0 };
        self.features.resize(stages, FeatureMap::default());
        for (map, block) in self.features.iter_mut().zip(network.stage_ends()) {
            map.shape = [batch, block.c_out(), block.output.h, block.output.w];
            map.values.resize(map.shape.iter().product(), 0.0);
        }
        self.masks.resize(if masks { network.blocks.len() } else { 0 }, BlockMasks::default());
        for BlockMasks { patches, channel_groups } in &mut self.masks {
            patches.clear();
            channel_groups.clear();
        }
    }
}
