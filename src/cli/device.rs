//! `--device`, `--threads`, `--dtype`, `--isa`, `--plan`.

use super::model::{Model, ModelArgs};
use super::toolchain::ToolchainArgs;
use anyhow::{Context, Result};
use clap::Args;
use laud::gate::{Learned, Policy};
use laud::plan::ExecutionPlan;
use laud::policy::{Exit, Look};
use laud::predictor::DeviceKind;
use laud::predictor::workload::DType;
use laud::{Device, Element, Session, SessionBuilder};
use laud_kernels::cuda::Driver;
use laud_models::NetSpec;
use std::path::PathBuf;
use std::sync::Arc;

#[derive(Args)]
#[command(next_help_heading = "Device")]
pub(super) struct DeviceArgs {
    /// Where to run: auto, cpu or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: Device,
    /// Threads of an inference [default: the cores at hand]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// What activations and weights are stored as: f32, bf16 or, on the CPU, int8; on CUDA also f16 or tf32
    #[arg(long, value_name = "TYPE", default_value = "f32")]
    dtype: Element,
    /// Instruction set: amx, avx512, avx2, neon or portable [default: the fastest for the element type]
    #[arg(long, value_name = "NAME")]
    isa: Option<String>,
    /// How to run each block: a plan as JSON [default: gather wherever something is skipped]
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
    #[command(flatten)]
    toolchain: ToolchainArgs,
}

/// Makes sessions that share one pool of threads, or one CUDA device.
pub(super) struct Builder<'a> {
    args: &'a DeviceArgs,
    plan: Option<ExecutionPlan>,
    /// `None` for a single thread.
    pool: Option<Arc<rayon::ThreadPool>>,
    cuda: Option<Arc<dyn Driver>>,
}

impl DeviceArgs {
    /// A device as `--device`, `--threads` and `--dtype` name it.
    pub(super) fn of(device: &str, threads: usize, dtype: &str) -> Result<Self> {
        Ok(Self {
            device: device.parse()?,
            threads: Some(
                u16::try_from(threads).ok().filter(|n| *n <= 1024).context("at most 1024 threads")?,
            ),
            dtype: dtype.parse()?,
            isa: None,
            plan: None,
            toolchain: ToolchainArgs::default(),
        })
    }

    /// The plan that was given.
    pub(super) fn plan(&self) -> Result<Option<ExecutionPlan>> {
        self.plan.as_deref().map(ExecutionPlan::load).transpose()
    }

    /// Kind of the device.
    pub(super) fn kind(&self) -> DeviceKind {
        kind(&self.device)
    }

    /// Threads of an inference.
    pub(super) fn threads(&self) -> usize {
        self.threads.map_or_else(|| std::thread::available_parallelism().map_or(1, usize::from), usize::from)
    }

    /// Type of values, as the predictor names it.
    pub(super) fn dtype(&self) -> DType {
        self.dtype.dtype()
    }

    pub(super) fn builder(&self) -> Result<Builder<'_>> {
        let (plan, threads) = (self.plan()?, self.threads());
        let name = |i| format!("laud-{i}");
        let pool = (threads > 1)
            .then(|| rayon::ThreadPoolBuilder::new().num_threads(threads).thread_name(name).build());
        let pool = pool.transpose().context("cannot start threads")?.map(Arc::new);
        let cuda = match self.device {
            Device::Cuda(number) => Some(self.toolchain.toolchain().open(number).context("--device")?),
            Device::Auto | Device::Cpu => None,
        };
        Ok(Builder { args: self, plan, pool, cuda })
    }
}

impl Builder<'_> {
    /// A session for `model`.
    pub(super) fn session(&self, model: &Model) -> Result<Session> {
        self.leaving_early(model, &[], &|_| Ok(Box::new(Learned)))
    }

    /// The same with early exits in front, which decide by what `policy` gives for their network.
    pub(super) fn leaving_early(
        &self,
        model: &Model,
        exits: &[Exit],
        policy: &dyn Fn(&NetSpec) -> Result<Box<dyn Policy>>,
    ) -> Result<Session> {
        let exit = |exit: &Exit| {
            let (other, spec) = looking(model, exit)?;
            let model = other.as_ref().unwrap_or(model);
            let policy = policy(&spec)?;
            let session = self.start(model, spec, None)?.boxed_policy(policy);
            Ok((session.build(&*model.weights()?).with_context(|| model.label.clone())?, exit.confidence))
        };
        let exits = exits.iter().map(exit).collect::<Result<Vec<_>>>()?;
        let session = self.start(model, model.spec.clone(), self.plan.clone())?;
        let session = exits.into_iter().fold(session, |session, (exit, sure)| session.early_exit(exit, sure));
        session.build(&*model.weights()?).with_context(|| model.label.clone())
    }

    /// A session for the same weights without any gate: what a dynamic network is compared with.
    pub(super) fn static_session(&self, model: &Model) -> Result<Session> {
        let session = self.start(model, model.spec.without_gates(), None)?;
        session.build(&*model.weights()?).with_context(|| model.label.clone())
    }

    fn start(&self, model: &Model, spec: NetSpec, plan: Option<ExecutionPlan>) -> Result<SessionBuilder> {
        let mut builder = Session::builder(spec).device(self.args.device.clone()).element(self.args.dtype);
        builder = match &self.pool {
            Some(pool) => builder.pool(pool.clone()),
            None => builder.threads(1),
        };
        if let Some(cuda) = &self.cuda {
            builder = builder.cuda(cuda.clone());
        }
        if let Some(isa) = &self.args.isa {
            builder = builder.isa(isa);
        }
        if let Some(plan) = plan {
            let file = self.args.plan.as_deref().unwrap_or(std::path::Path::new("plan"));
            plan.check(&model.spec).with_context(|| file.display().to_string())?;
            builder = builder.plan(plan);
        }
        Ok(builder)
    }
}

/// Who looks at an early exit's images, if not `model` itself, and at which.
pub(super) fn looking(model: &Model, exit: &Exit) -> Result<(Option<Model>, NetSpec)> {
    match &exit.look {
        Look::Smaller(size) => Ok((None, model.resized(*size)?)),
        Look::Other(name) => {
            let other = ModelArgs::named(name).for_training(0).context("early exit")?;
            let spec = other.spec.clone();
            Ok((Some(other), spec))
        }
    }
}

/// Kind of a device; the CPU where nothing is asked for.
pub(super) fn kind(device: &Device) -> DeviceKind {
    match device {
        Device::Auto | Device::Cpu => DeviceKind::Cpu,
        Device::Cuda(_) => DeviceKind::Cuda,
    }
}
