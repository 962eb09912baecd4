//! [`Session`]: a network, its weights, a plan, a policy and a device, ready to infer.

mod early_exit;

use crate::exec::{Executor, Output, Request, Runnable, Weights};
use crate::gate::{Learned, Policy};
use crate::plan::ExecutionPlan;
use anyhow::{Context, Result, bail, ensure};
use candle_core::Tensor;
use early_exit::{EarlyExit, EarlyExits};
use laud_kernels::cuda::{Cuda, Driver, Precision, Toolchain};
use laud_kernels::{Cpu, Isa};
use laud_models::NetSpec;
use laud_predictor::workload::DType;
use std::str::FromStr;
use std::sync::Arc;

/// A network that is ready to run.
///
/// A session is `Send + Sync`: share it by reference or `Arc` and infer from as many threads as you like. Inferences
/// in flight at the same time share the session's thread pool and its weights, and each has memory of its own, which
/// is made at first use and kept. After the first inference of a batch size, an inference with a reused [`Output`]
/// allocates nothing, apart from the pool's own queue, which takes a block of memory for every few dozen inferences
/// started from outside the pool, and from resizing for early exits.
pub struct Session {
    spec: Arc<NetSpec>,
    runnable: Box<dyn Runnable>,
    policy: Box<dyn Policy>,
    exits: EarlyExits,
}

/// Where to run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The best device at hand; [`Session::describe`] says which that was.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// A CUDA device by number.
    Cuda(usize),
}

impl FromStr for Device {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.split_once(':').unwrap_or((text, "0")) {
            ("auto", _) => Ok(Self::Auto),
            ("cpu", _) => Ok(Self::Cpu),
            ("cuda", number) => {
                Ok(Self::Cuda(number.parse().with_context(|| format!("{text}: no device number"))?))
            }
            _ => bail!("unknown device {text}; there are auto, cpu and cuda:N"),
        }
    }
}

/// What activations and weights are stored as. Arithmetic accumulates in f32, of whole numbers in 32 bits where the processor
/// multiplies them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Element {
    /// IEEE single precision.
    #[default]
    F32,
    /// bfloat16: half the memory, and several times as fast where the processor multiplies tiles of it (Intel's AMX).
    Bf16,
    /// IEEE half precision; on CUDA devices.
    F16,
    /// f32, whose products are computed with 10 bits of mantissa; on CUDA devices.
    Tf32,
    /// Whole numbers, −128 to 127, in units of each channel: a quarter of f32's memory, and the fastest where the processor
    /// multiplies bytes (AMX, AVX-512 VNNI). Takes weights with [ranges](NetSpec::ranges), which [`quantize`](crate::quantize)
    /// measures. On the CPU.
    Int8,
}

impl Element {
    /// As the predictor names it.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::Bf16,
            Self::F16 => DType::F16,
            Self::Tf32 => DType::Tf32,
            Self::Int8 => DType::Int8,
        }
    }

    /// The CPU's instruction set that computes fastest with it.
    pub fn best_isa(self) -> Isa {
        Isa::best_for(self.on_cpu())
    }

    /// As the CPU's kernels name it; those that only CUDA devices have as f32.
    pub(crate) fn on_cpu(self) -> laud_kernels::DType {
        match self {
            Self::Bf16 => laud_kernels::DType::Bf16,
            Self::Int8 => laud_kernels::DType::Int8,
            Self::F32 | Self::F16 | Self::Tf32 => laud_kernels::DType::F32,
        }
    }

    /// As CUDA devices name it; an error where they have no such elements.
    pub(crate) fn precision(self) -> Result<Precision> {
        Ok(match self {
            Self::F32 => Precision::F32,
            Self::Tf32 => Precision::Tf32,
            Self::F16 => Precision::F16,
            Self::Bf16 => Precision::Bf16,
            Self::Int8 => {
                bail!("int8 runs on the CPU only so far; CUDA devices have f32, bf16, f16 and tf32")
            }
        })
    }
}

impl FromStr for Element {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            "f16" => Ok(Self::F16),
            "tf32" => Ok(Self::Tf32),
            "int8" => Ok(Self::Int8),
            _ => bail!("unknown element type {text}; there are f32, bf16, f16, tf32 and int8"),
        }
    }
}

/// Collects what a [`Session`] is made of.
pub struct SessionBuilder {
    spec: NetSpec,
    device: Device,
    element: Element,
    threads: Option<usize>,
    pool: Option<Arc<rayon::ThreadPool>>,
    isa: Option<String>,
    cuda: Option<Arc<dyn Driver>>,
    toolchain: Toolchain,
    plan: Option<ExecutionPlan>,
    policy: Box<dyn Policy>,
    exits: Vec<EarlyExit>,
}

impl SessionBuilder {
    /// Where to run; default [`Device::Auto`].
    pub fn device(mut self, device: Device) -> Self {
        self.device = device;
        self
    }

    /// Element type; default f32.
    pub fn element(mut self, element: Element) -> Self {
        self.element = element;
        self
    }

    /// Threads of an inference on the CPU; default: the cores this process may use.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = Some(threads);
        self
    }

    /// Runs in this pool, with as many threads as it has, instead of one made for the session.
    pub fn pool(mut self, pool: Arc<rayon::ThreadPool>) -> Self {
        self.pool = Some(pool);
        self
    }

    /// Instruction set on the CPU (`amx`, `avx512vnni`, `avx512`, `avx2`, `neon`, `portable`); default: the fastest for the element
    /// type.
    pub fn isa(mut self, name: &str) -> Self {
        self.isa = Some(name.to_owned());
        self
    }

    /// Where a CUDA device's kernels come from.
    pub fn toolchain(mut self, toolchain: Toolchain) -> Self {
        self.toolchain = toolchain;
        self
    }

    /// Runs on this CUDA device instead of opening one.
    pub fn cuda(mut self, device: Arc<dyn Driver>) -> Self {
        self.cuda = Some(device);
        self
    }

    /// How to run each block; default [`ExecutionPlan::sparse`].
    pub fn plan(mut self, plan: ExecutionPlan) -> Self {
        self.plan = Some(plan);
        self
    }

    /// Who decides what is computed; default [`Learned`].
    pub fn policy(self, policy: impl Policy + 'static) -> Self {
        self.boxed_policy(Box::new(policy))
    }

    /// The same with a policy whose type is not known, as [`policy::named`](crate::policy::named) gives it.
    pub fn boxed_policy(mut self, policy: Box<dyn Policy>) -> Self {
        self.policy = policy;
        self
    }

    /// Asks `session` first, with the images resized to what it reads, and takes its answer where the probability of its
    /// best class is at least `confidence`, `0..=1`; only the other images go on. Often `session` is the same network on
    /// smaller images: a self-cascade (Wang et al., "Wisdom of Committees", ICLR 2022). Exits are asked in
    /// the order in which they are added, each with its own policy and plan. It has weights of its own, so that the same
    /// network twice takes twice the memory.
    ///
    /// ```
    /// use laud::models::{MapSize, NetConfig};
    /// use laud::{RandomWeights, Session};
    ///
    /// let large = NetConfig::from_json(r#"{"arch": "resnet20"}"#)?;
    /// let small = NetConfig { input_size: Some(MapSize { h: 24, w: 24 }), ..large.clone() };
    /// let (large, small) = (large.build()?, small.build()?);
    /// let weights = RandomWeights::new(&large, 1);
    /// let first = Session::builder(small).build(&weights)?;
    /// let session = Session::builder(large).early_exit(first, 0.7).build(&weights)?;
    ///
    /// let trace = session.infer(&[0.5; 3 * 32 * 32], 1)?.trace;
    /// assert_eq!((trace.exits[0].samples, trace.exits[0].answered + trace.samples), (1, 1));
    /// # anyhow::Ok(())
    /// ```
    pub fn early_exit(mut self, session: Session, confidence: f32) -> Self {
        self.exits.push(EarlyExit { session, confidence });
        self
    }

    /// Reads the weights and makes the session.
    ///
    /// # Errors
    /// When a weight is missing or does not fit, the device is not there, the plan is about another network, or an early
    /// exit tells other classes or has its images prepared otherwise.
    pub fn build(self, weights: &dyn Weights) -> Result<Session> {
        let Self { spec, device, element, threads, pool, isa, cuda, toolchain, plan, policy, exits } = self;
        let exits = EarlyExits::new(&spec, exits)?;
        let spec = Arc::new(spec);
        let plan = plan.unwrap_or_else(|| ExecutionPlan::sparse(&spec));
        let cuda = match (cuda, device) {
            (None, Device::Cuda(number)) => {
                // What no device has is said before one is looked for.
                element.precision()?;
                Some(toolchain.open(number)?)
            }
            (cuda, _) => cuda,
        };
        if let Some(driver) = cuda {
            let cuda = Cuda::new(driver, element.precision()?);
            let runnable = Box::new(Executor::prepare(spec.clone(), cuda, weights, plan)?);
            return Ok(Session { spec, runnable, policy, exits });
        }
        let isa = isa.map_or_else(|| Ok(element.best_isa()), |name| Isa::named(&name))?;
        let pool = match (pool, threads) {
            (Some(pool), None) => Some(pool),
            (Some(_), Some(_)) => bail!("give either a pool or a number of threads"),
            (None, threads) => {
                let cores = || std::thread::available_parallelism().map_or(1, usize::from);
                start_threads(threads.unwrap_or_else(cores))?
            }
        };
        let runnable: Box<dyn Runnable> = match element {
            Element::F32 => {
                Box::new(Executor::prepare(spec.clone(), Cpu::<f32>::new(isa, pool), weights, plan)?)
            }
            Element::Bf16 => {
                Box::new(Executor::prepare(spec.clone(), Cpu::<half::bf16>::new(isa, pool), weights, plan)?)
            }
            Element::Int8 => {
                Box::new(Executor::prepare(spec.clone(), Cpu::<i8>::new(isa, pool), weights, plan)?)
            }
            Element::F16 | Element::Tf32 => {
                bail!("the cpu has f32, bf16 and int8; f16 and tf32 need a CUDA device")
            }
        };
        Ok(Session { spec, runnable, policy, exits })
    }
}

/// A pool of so many threads; `None` for the calling thread alone.
pub(crate) fn start_threads(threads: usize) -> Result<Option<Arc<rayon::ThreadPool>>> {
    ensure!(threads > 0, "a session needs at least one thread");
    ensure!(threads <= 1024, "{threads} threads are more than any machine has");
    let name = |i| format!("laud-{i}");
    let pool = (threads > 1).then(|| {
        rayon::ThreadPoolBuilder::new().num_threads(threads).thread_name(name).build().map(Arc::new)
    });
    pool.transpose().context("cannot start threads")
}

impl Session {
    /// Starts building a session for `spec`.
    pub fn builder(spec: NetSpec) -> SessionBuilder {
        SessionBuilder {
            spec,
            device: Device::Auto,
            element: Element::F32,
            threads: None,
            pool: None,
            isa: None,
            cuda: None,
            toolchain: Toolchain::default(),
            plan: None,
            policy: Box::new(Learned),
            exits: Vec::new(),
        }
    }

    /// The network.
    pub fn spec(&self) -> &NetSpec {
        &self.spec
    }

    /// Device, element type, instruction set and threads in a few words.
    pub fn describe(&self) -> String {
        self.runnable.describe()
    }

    /// Name of the policy that decides.
    pub fn policy(&self) -> &str {
        self.policy.name()
    }

    /// Infers `batch` images, `[n, c, h, w]` prepared as the weights expect.
    ///
    /// # Errors
    /// When there are too few or too many values, one is not finite, feature maps are asked for that samples which leave
    /// early do not have, or memory runs out.
    pub fn infer(&self, images: &[f32], batch: usize) -> Result<Output> {
        let mut output = Output::default();
        self.infer_into(Request { images, batch, features: false, masks: false, timed: false }, &mut output)?;
        Ok(output)
    }

    /// The same with everything a [`Request`] can ask for, into memory that is used again.
    ///
    /// # Errors
    /// As [`infer`](Self::infer).
    pub fn infer_into(&self, request: Request<'_>, output: &mut Output) -> Result<()> {
        self.infer_with(request, &*self.policy, output)
    }

    /// The same with another policy than the session's; early exits keep theirs.
    ///
    /// # Errors
    /// As [`infer`](Self::infer).
    pub fn infer_with(&self, request: Request<'_>, policy: &dyn Policy, output: &mut Output) -> Result<()> {
        self.check(request)?;
        self.through(request, output, |request, output| self.runnable.infer(request, policy, output))
    }

    /// The same by another plan than the session's; early exits keep theirs.
    ///
    /// # Errors
    /// As [`infer`](Self::infer); when the plan is about another network.
    pub fn infer_by(
        &self,
        plan: &ExecutionPlan,
        request: Request<'_>,
        policy: &dyn Policy,
        output: &mut Output,
    ) -> Result<()> {
        self.check(request)?;
        self.through(request, output, |request, output| self.runnable.infer_by(plan, request, policy, output))
    }

    /// Through the early exits, if there are any, and `full` behind them.
    fn through(
        &self,
        request: Request<'_>,
        output: &mut Output,
        full: impl FnOnce(Request<'_>, &mut Output) -> Result<()>,
    ) -> Result<()> {
        match self.exits.is_empty() {
            true => full(request, output),
            false => self.exits.infer(&self.spec, request, output, full),
        }
    }

    fn check(&self, request: Request<'_>) -> Result<()> {
        // Whole pieces first: a search with an early end for every value is no vector code.
        let finite = |piece: &[f32]| piece.iter().fold(true, |all, value| all & value.is_finite());
        if !request.images.chunks(1 << 12).all(finite)
            && let Some(at) = request.images.iter().position(|value| !value.is_finite())
        {
            bail!("value {at} of the images is {}; inputs must be finite", request.images[at]);
        }
        Ok(())
    }

    /// Infers a candle tensor `[n, c, h, w]` and gives logits `[n, classes]` and the trace.
    ///
    /// # Errors
    /// When the tensor has another shape than the network reads; else as [`infer`](Self::infer).
    pub fn infer_tensor(&self, images: &Tensor) -> Result<(Tensor, Output)> {
        let input = &self.spec.input;
        let (n, c, h, w) = images.dims4().context("images are [n, c, h, w]")?;
        ensure!(
            (c, h, w) == (input.channels, input.size.h, input.size.w),
            "images of {c}×{h}×{w}, {} reads {}×{}×{}",
            self.spec.name,
            input.channels,
            input.size.h,
            input.size.w
        );
        let values = images.to_dtype(candle_core::DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let output = self.infer(&values, n)?;
        let logits = Tensor::from_slice(&output.logits, (n, output.logits.len() / n), images.device())?;
        Ok((logits, output))
    }
}
