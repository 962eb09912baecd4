use crate::depthwise::Depthwise;
use crate::gate::{Linear, PatchGate};
use crate::gather_gemm::{FilterSpec, GatherGemm};
use crate::layout::FromNchw;
use crate::max_pool::MaxPool;
use crate::mean_pool::MeanPool;
use crate::shortcut::PadChannels;
use crate::squeeze_excite::{SqueezeExcite, WeightsSpec};
use crate::{Element, Extent, Result};

/// A device that runs every operation of a dynamic network.
///
/// Operations take their operands as buffers of the device and are issued in order to a queue that lives as long as
/// one inference. Weights are prepared once and never change, so that sessions and threads can share them; whatever
/// else an operation needs comes from the scratch of the inference.
pub trait Backend: Send + Sync + 'static {
    /// What activations and weights are stored as.
    type Elem: Element;
    /// Memory for activations.
    type Buffer: Send + Sync;
    /// Weights of a [`gather_gemm`](Self::gather_gemm).
    type Filter: Send + Sync;
    /// Weights of a [`depthwise`](Self::depthwise) convolution.
    type Depthwise: Send + Sync;
    /// Weights of a [`squeeze_excite`](Self::squeeze_excite).
    type SqueezeExcite: Send + Sync;
    /// Working memory of one inference.
    type Scratch: Send;
    /// Operations of one inference, in order.
    type Queue<'q>;

    /// Device in a few words, for people.
    fn describe(&self) -> String;
    /// A zeroed buffer of `len` elements; `what` names it in errors.
    fn buffer(&self, len: usize, what: &str) -> Result<Self::Buffer>;
    /// Prepares the weights of a convolution.
    fn filter(&self, spec: &FilterSpec<'_>) -> Result<Self::Filter>;
    /// Prepares the weights of a depthwise convolution.
    fn depthwise_filter(&self, spec: &FilterSpec<'_>) -> Result<Self::Depthwise>;
    /// Prepares the two layers of a squeeze-excitation.
    fn squeeze_excite_weights(&self, spec: &WeightsSpec<'_>) -> Result<Self::SqueezeExcite>;

    /// Working memory for one inference at a time.
    fn scratch(&self) -> Result<Self::Scratch>;
    /// Makes `scratch` large enough for calls with `filter`; `channels`: also with only some channels active.
    fn reserve(&self, scratch: &mut Self::Scratch, filter: &Self::Filter, channels: bool) -> Result<()>;
    /// The same for calls with the squeeze-excitation `weights` on up to `batch` samples.
    fn reserve_squeeze_excite(
        &self,
        scratch: &mut Self::Scratch,
        weights: &Self::SqueezeExcite,
        batch: usize,
    ) -> Result<()>;
    /// Runs one inference: `program` issues operations to the queue and sees them in order.
    fn run<R: Send>(
        &self,
        scratch: &mut Self::Scratch,
        program: impl FnOnce(&mut Self::Queue<'_>) -> R + Send,
    ) -> R;

    /// See [`gather_gemm`](crate::gather_gemm).
    fn gather_gemm(
        queue: &mut Self::Queue<'_>,
        filter: &Self::Filter,
        call: GatherGemm<'_, Self::Buffer>,
    ) -> Result<()>;
    /// See [`depthwise`](crate::depthwise).
    fn depthwise(
        queue: &mut Self::Queue<'_>,
        filter: &Self::Depthwise,
        call: Depthwise<'_, Self::Buffer>,
    ) -> Result<()>;
    /// See [`max_pool`](crate::max_pool).
    fn max_pool(queue: &mut Self::Queue<'_>, call: MaxPool<'_, Self::Buffer>) -> Result<()>;
    /// See [`mean_pool`](crate::mean_pool).
    fn mean_pool(queue: &mut Self::Queue<'_>, call: MeanPool<'_, Self::Buffer>) -> Result<()>;
    /// See [`squeeze_excite`](crate::squeeze_excite).
    fn squeeze_excite(
        queue: &mut Self::Queue<'_>,
        weights: &Self::SqueezeExcite,
        call: SqueezeExcite<'_, Self::Buffer>,
    ) -> Result<()>;
    /// See [`shortcut`](crate::shortcut).
    fn pad_channels(queue: &mut Self::Queue<'_>, call: PadChannels<'_, Self::Buffer>) -> Result<()>;
    /// See [`gate::patch`](crate::gate::patch).
    fn patch_gate(
        queue: &mut Self::Queue<'_>,
        gate: &PatchGate,
        input: &Self::Buffer,
        batch: usize,
        map: Extent,
        margins: &mut [f32],
    ) -> Result<()>;
    /// See [`gate::linear`](crate::gate::linear).
    fn linear(queue: &mut Self::Queue<'_>, layer: &Linear, input: &[f32], output: &mut [f32]) -> Result<()>;
    /// See [`layout::from_nchw`](crate::layout::from_nchw).
    fn from_nchw(queue: &mut Self::Queue<'_>, call: FromNchw<'_, Self::Buffer>) -> Result<()>;
    /// See [`layout::to_nchw`](crate::layout::to_nchw).
    fn to_nchw(
        queue: &mut Self::Queue<'_>,
        batch: usize,
        map: Extent,
        c: usize,
        input: &Self::Buffer,
        output: &mut [f32],
    ) -> Result<()>;
}
