//! The executor: a prepared network, a plan and a policy in; logits, features and a trace out.
//!
//! [`Executor`] is the only type outside the kernels that is generic over the backend. It is used through
//! [`Runnable`], so that everything above is chosen once, when the session is built.

mod block;
mod fold;
mod network;
mod trace;
mod workspace;

pub use fold::Weights;
pub use trace::{BlockTrace, Count, MAX_CONVS, Trace};

use crate::gate::Policy;
use crate::plan::ExecutionPlan;
use anyhow::{Context, Result, ensure};
use laud_kernels::gather_gemm::Placement;
use laud_kernels::layout::FromNchw;
use laud_kernels::max_pool::MaxPool;
use laud_kernels::mean_pool::{Mean, MeanPool};
use laud_kernels::{ActiveSet, Backend, Extent};
use laud_models::NetSpec;
use network::{Conv, Network};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use workspace::Workspace;

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
    /// memory of its own, which is kept for the next.
    ///
    /// # Errors
    /// When the request does not fit the network, an image's value is not finite, or memory runs out.
    fn infer(&self, request: Request<'_>, policy: &dyn Policy, output: &mut Output) -> Result<()>;
}

/// A network on a backend, with a plan.
pub struct Executor<B: Backend> {
    spec: Arc<NetSpec>,
    backend: B,
    network: Network<B>,
    plan: ExecutionPlan,
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
        Ok(Self { spec, backend, network, plan, idle: Mutex::new(Vec::new()) })
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
        let at_once = batch.min(self.network.samples_at_once());
        let mut workspace = self.workspace(at_once)?;
        let Workspace { scratch, image, stream, branch, lists, .. } = &mut *workspace;
        let program = |queue: &mut B::Queue<'_>| {
            for first in (0..batch).step_by(at_once) {
                let samples = first..batch.min(first + at_once);
                let memory = Memory {
                    image: &mut *image,
                    stream: &mut *stream,
                    branch: &mut *branch,
                    lists: &mut *lists,
                };
                Program::<B> { network: &self.network, plan: &self.plan, policy, request, samples }
                    .run(queue, memory, output)?;
            }
            Ok(())
        };
        let outcome = self.backend.run(scratch, program);
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(workspace);
        outcome
    }
}

/// The parts of a workspace that a program uses, apart from the backend's own.
struct Memory<'a, B: Backend> {
    image: &'a mut B::Buffer,
    stream: &'a mut [B::Buffer; 2],
    branch: &'a mut [B::Buffer; 2],
    lists: &'a mut workspace::Lists,
}

/// Some samples of an inference from the top.
struct Program<'a, B: Backend> {
    network: &'a Network<B>,
    plan: &'a ExecutionPlan,
    policy: &'a dyn Policy,
    request: Request<'a>,
    samples: Range<usize>,
}

impl<B: Backend> Program<'_, B> {
    fn run(&self, queue: &mut B::Queue<'_>, memory: Memory<'_, B>, output: &mut Output) -> Result<()> {
        let Memory { image, stream, branch, lists } = memory;
        let Request { timed, .. } = self.request;
        let Range { start: first, .. } = self.samples;
        let batch = self.samples.len();
        let mut clock = Instant::now();
        let mut lap = || {
            let passed = clock.elapsed().as_nanos() as u64;
            clock = Instant::now();
            if timed { passed } else { 0 }
        };
        self.stem(queue, image, stream, lists).context("stem")?;
        output.trace.stem_ns += lap();
        let context = block::Run { first, batch, policy: self.policy, timed };
        let mut stage = 0;
        for (i, (block, plan)) in self.network.blocks.iter().zip(&self.plan.blocks).enumerate() {
            let entry = block::run(queue, &context, (i, block), plan, stream, branch, lists);
            output.trace.blocks[i].add(&entry.with_context(|| format!("block {}", block.name))?);
            if self.request.masks {
                output.masks[i].extend(block, batch, lists);
            }
            let ends_stage = self.network.blocks.get(i + 1).is_none_or(|next| next.stage != block.stage);
            if self.request.features && ends_stage {
                let sample = block.output.pixels() * block.c_out();
                let values = &mut output.features[stage].values[first * sample..][..batch * sample];
                B::to_nchw(queue, batch, block.output, block.c_out(), &stream[0], values)?;
                stage += 1;
            }
        }
        lap();
        let classes = self.network.classifier.c_out();
        let logits = &mut output.logits[first * classes..][..batch * classes];
        self.head(queue, stream, lists, logits).context("head")?;
        output.trace.head_ns += lap();
        Ok(())
    }

    fn stem(
        &self,
        queue: &mut B::Queue<'_>,
        image: &mut B::Buffer,
        stream: &mut [B::Buffer; 2],
        lists: &mut workspace::Lists,
    ) -> Result<()> {
        let Network { stem, border, image: size, pool, .. } = self.network;
        let geometry = &stem.geometry;
        let (batch, values) = (self.samples.len(), geometry.c_in * size.pixels());
        let images = &self.request.images[self.samples.start * values..self.samples.end * values];
        let call = FromNchw {
            batch,
            c: geometry.c_in,
            image: *size,
            border: Extent { h: border.top, w: border.left },
            bordered: geometry.input,
            input: images,
            output: image,
        };
        B::from_nchw(queue, call)?;
        everywhere::<B>(queue, stem, batch, image, &mut stream[0], lists)?;
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
        stream: &mut [B::Buffer; 2],
        lists: &mut workspace::Lists,
        logits: &mut [f32],
    ) -> Result<()> {
        let batch = self.samples.len();
        let [input, output] = stream;
        let mut map =
            self.network.blocks.last().map_or(self.network.stem.geometry.output, |block| block.output);
        let mut last = &*input;
        if let Some(conv) = &self.network.head {
            everywhere::<B>(queue, conv, batch, input, output, lists)?;
            (map, last) = (conv.geometry.output, &*output);
        }
        let c = self.network.classifier.c_in();
        lists.all_output.set_all(batch, map.pixels());
        lists.all_channels[0].set_all(c);
        let call = MeanPool {
            rows: &lists.all_output,
            channels: &lists.all_channels[0],
            input: last,
            input_rows: Placement::Natural,
            mean: Mean::Active,
            output: &mut lists.features[0][..batch * c],
        };
        B::mean_pool(queue, call)?;
        B::linear(queue, &self.network.classifier, &lists.features[0][..batch * c], logits)?;
        Ok(())
    }
}

/// A convolution of every pixel.
fn everywhere<B: Backend>(
    queue: &mut B::Queue<'_>,
    conv: &Conv<B>,
    batch: usize,
    input: &B::Buffer,
    output: &mut B::Buffer,
    lists: &mut workspace::Lists,
) -> Result<()> {
    let g = &conv.geometry;
    lists.all_output.set_all(batch, g.output.pixels());
    lists.all_channels[0].set_all(g.c_in);
    lists.all_channels[1].set_all(g.c_out);
    let [c_in, c_out] = &lists.all_channels;
    let active = ActiveSet { rows: &lists.all_output, c_in, c_out };
    block::convolve(
        queue,
        conv,
        active,
        Placement::Natural,
        Placement::Natural,
        block::Operands { input, output, residual: false },
    )
}

impl Output {
    /// Sizes everything for one inference, without allocating when it was of that size before.
    fn prepare<B: Backend>(&mut self, network: &Network<B>, request: Request<'_>) {
        let Request { batch, features, masks, .. } = request;
        self.logits.clear();
        self.logits.resize(batch * network.classifier.c_out(), 0.0);
        self.trace.batch = batch;
        (self.trace.stem_ns, self.trace.head_ns) = (0, 0);
        self.trace.blocks.clear();
        self.trace.blocks.resize(network.blocks.len(), BlockTrace::default());
        let head = network.head.as_ref().map_or(0, Conv::macs) + network.classifier.weight.len();
        self.trace.stem_macs = (batch * network.stem.macs()) as u64;
        self.trace.head_macs = (batch * head) as u64;
        let ends =
            |i: usize| network.blocks.get(i + 1).is_none_or(|next| next.stage != network.blocks[i].stage);
        let mut stage = 0;
        for (i, block) in network.blocks.iter().enumerate().filter(|_| features) {
            if ends(i) {
                if self.features.len() == stage {
                    self.features.push(FeatureMap::default());
                }
                let map = &mut self.features[stage];
                map.shape = [batch, block.c_out(), block.output.h, block.output.w];
                map.values.resize(map.shape.iter().product(), 0.0);
                stage += 1;
            }
        }
        self.features.truncate(stage);
        self.masks.resize(if masks { network.blocks.len() } else { 0 }, BlockMasks::default());
        for BlockMasks { patches, channel_groups } in &mut self.masks {
            patches.clear();
            channel_groups.clear();
        }
    }
}

impl BlockMasks {
    /// Adds the decisions about further samples.
    fn extend<B: Backend>(&mut self, block: &network::Block<B>, batch: usize, lists: &workspace::Lists) {
        let cells = block.patch_gate.as_ref().map_or(0, |gate| gate.grid.pixels());
        let groups = block.channel_gate.as_ref().map_or(0, |gate| gate.groups);
        self.patches.extend_from_slice(&lists.keep_patches[..batch * cells]);
        self.channel_groups.extend_from_slice(&lists.keep_channels[..batch * groups]);
    }
}
