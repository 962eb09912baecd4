//! The executor: a prepared network, a plan and a policy in; logits, features and a trace out.
//!
//! [`Executor`] is the only type outside the kernels that is generic over the backend. It is used through
//! [`Runnable`], so that everything above is chosen once, when the session is built.

mod account;
mod around;
mod block;
mod draw;
mod fold;
mod guard;
mod network;
mod probe;
mod program;
mod trace;
mod units;
mod workspace;

pub use around::Around;
pub use fold::Weights;
pub use probe::{Probe, Prober};
pub use trace::{BlockTrace, Count, ExitTrace, MAX_CONVS, Trace, Watch};

use crate::gate::{Policy, Rule};
use crate::plan::{ExecutionPlan, Portions};
use anyhow::{Result, ensure};
use guard::Guard;
use laud_kernels::Backend;
use laud_models::NetSpec;
use network::{Conv, Network};
use program::Program;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use units::Units;
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
    /// Reads every weight, folds BatchNorms and packs. A backend of whole numbers takes the network's
    /// [ranges](NetSpec::ranges) too.
    ///
    /// # Errors
    /// When the specification contradicts itself or asks for something unsupported, a weight or range is missing or does
    /// not fit, or the plan is about another network.
    pub fn prepare(
        spec: Arc<NetSpec>,
        backend: B,
        weights: &dyn Weights,
        plan: ExecutionPlan,
    ) -> Result<Self> {
        spec.validate()?;
        plan.check(&spec)?;
        let units = backend.integers().then(|| Units::read(&spec, weights)).transpose()?;
        Self::prepare_in(units.as_ref(), spec, backend, weights, plan)
    }

    /// The same of a checked network, whose values are stored in `units`, or as they are.
    fn prepare_in(
        units: Option<&Units>,
        spec: Arc<NetSpec>,
        backend: B,
        weights: &dyn Weights,
        plan: ExecutionPlan,
    ) -> Result<Self> {
        let network = Network::prepare(&spec, &backend, weights, units)?;
        let guard = Guard::new(&plan).map(Mutex::new);
        Ok(Self { spec, backend, network, plan, guard, idle: Mutex::new(Vec::new()) })
    }

    /// A workspace for such portions: an idle one that is large enough, or a new one.
    fn workspace(&self, portions: Portions) -> Result<Box<Workspace<B>>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = idle.iter().position(|workspace| workspace.fits(portions)) {
            return Ok(idle.swap_remove(at));
        }
        // A smaller one would only take up memory from now on.
        idle.pop();
        drop(idle);
        Ok(Box::new(Workspace::new(&self.backend, &self.network, portions)?))
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
        let rule = policy.rule();
        let portions = self.portions(batch, rule);
        let mut workspace = self.workspace(portions)?;
        if request.features {
            self.make_stages(&mut workspace)?;
        }
        let Workspace { scratch, maps, lists, results, .. } = &mut *workspace;
        let inference = |queue: &mut B::Queue<'_>| {
            let mut run = |samples: Range<usize>, at: usize, blocks: Range<usize>, stem: bool| {
                let keep = std::ptr::eq(plan, &self.plan) && !portions.split();
                let program = Program::<B> {
                    network: &self.network,
                    plan,
                    keep,
                    rule,
                    request,
                    samples,
                    at,
                    blocks,
                    stem,
                };
                program.decide(queue, &mut lists.spent, results)?;
                B::play(queue, program.key(), program.images(), |queue, images| {
                    program.issue(queue, images, maps, lists, results)
                })?;
                program.tell(queue, results, output)
            };
            for group in portions.groups(batch) {
                for part in portions.parts(group.clone()) {
                    let at = part.start - group.start;
                    run(part, at, 0..portions.cut, true)?;
                }
                if portions.split() {
                    run(group, 0, portions.cut..self.network.blocks.len(), false)?;
                }
            }
            Ok(())
        };
        let outcome = self.backend.run(scratch, inference);
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(workspace);
        outcome
    }
}

impl<B: Backend> Executor<B> {
    /// How many samples go through the network together.
    fn portions(&self, batch: usize, rule: Rule<'_>) -> Portions {
        let (element, map_bytes) = (self.backend.element_bytes(), self.backend.map_bytes());
        let portions = Portions::of(&self.spec, element, map_bytes, batch);
        match rule {
            // What a sample has spent in front it cannot spend behind.
            Rule::Paid(_) => Portions::even(&self.spec, portions.front),
            _ => portions,
        }
    }

    /// Memory for the feature maps behind the stages.
    fn make_stages(&self, workspace: &mut Workspace<B>) -> Result<()> {
        let (batch, stages) = (workspace.portions.back, &mut workspace.results.stages);
        for block in self.network.stage_ends().skip(stages.len()) {
            let values = batch * block.output.pixels() * block.c_out();
            stages.push(self.backend.vector(values, "feature map behind a stage")?);
        }
        Ok(())
    }
}

impl Output {
    /// Sizes everything for one inference, without allocating when it was of that size before.
    fn prepare<B: Backend>(&mut self, network: &Network<B>, request: Request<'_>) {
        let Request { batch, features, masks, .. } = request;
        self.logits.clear();
        self.logits.resize(batch * network.classifier.c_out, 0.0);
        (self.trace.batch, self.trace.samples) = (batch, batch);
        self.trace.exits.clear();
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
