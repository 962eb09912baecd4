use crate::compact::{Branch, BranchRows, ListChannels};
use crate::depthwise::Depthwise;
use crate::gate::{self, Decide};
use crate::gather_gemm::{FilterSpec, GatherGemm};
use crate::layout::FromNchw;
use crate::max_pool::MaxPool;
use crate::mean_pool::MeanPool;
use crate::shortcut::PadChannels;
use crate::squeeze_excite::{SqueezeExcite, WeightsSpec};
use crate::{Error, Extent, Result};

/// A device that runs every operation of a dynamic network.
///
/// Operations are issued in order to a queue that lives as long as one inference, and take their operands as memory of
/// the device. What is active is decided and listed there too: nothing about it needs to be known to issue the next
/// operation, and an operation on an empty list does nothing. A device may thus run behind; it answers when something
/// is [`read`](Self::read). Weights are prepared once and never change, so that sessions and threads can share them;
/// whatever else an operation needs comes from the scratch of the inference.
pub trait Backend: Send + Sync + 'static {
    /// Memory for activations.
    type Buffer: Send + Sync;
    /// Memory for values that the host writes before operations or reads behind them: decisions, margins, counts.
    type Vector<T: Value>: Send + Sync;
    /// A list of active pixels: [`Rows`](crate::Rows), or what stands for them.
    type Rows: Send + Sync;
    /// A list of active channels: [`Channels`](crate::Channels), or what stands for them.
    type Channels: Send + Sync;
    /// Images on their way in.
    type Images<'i>: Copy;
    /// Weights of a [`gather_gemm`](Self::gather_gemm).
    type Filter: Send + Sync;
    /// Weights of a [`depthwise`](Self::depthwise) convolution.
    type Depthwise: Send + Sync;
    /// Weights of a [`squeeze_excite`](Self::squeeze_excite).
    type SqueezeExcite: Send + Sync;
    /// Weights of a [`patch_gate`](Self::patch_gate).
    type PatchGate: Send + Sync;
    /// Weights of a [`linear`](Self::linear) layer.
    type Linear: Send + Sync;
    /// Working memory of one inference.
    type Scratch: Send;
    /// Operations of one inference, in order.
    type Queue<'q>;

    /// Device in a few words, for people.
    fn describe(&self) -> String;
    /// Bytes of an element of activations.
    fn element_bytes(&self) -> usize;
    /// Whether elements are whole numbers, −127 to 127, that a network's values have to be brought to.
    fn integers(&self) -> bool {
        false
    }
    /// Bytes that the feature maps of the samples that run together should have at most: larger batches run in parts.
    fn map_bytes(&self) -> usize;

    /// A zeroed buffer of `len` elements; `what` names it in errors.
    fn buffer(&self, len: usize, what: &str) -> Result<Self::Buffer>;
    /// A zeroed buffer for `batch` images with their border, as [`from_nchw`](Self::from_nchw) leaves them.
    fn image(&self, batch: usize, bordered: Extent, c: usize) -> Result<Self::Buffer> {
        self.buffer(batch * bordered.pixels() * c, "image")
    }
    /// A zeroed vector of `len` values; `what` names it in errors.
    fn vector<T: Value>(&self, len: usize, what: &str) -> Result<Self::Vector<T>>;
    /// A list with room for `batch` maps of `pixels` pixels.
    fn rows(&self, batch: usize, pixels: usize) -> Result<Self::Rows>;
    /// A list with room for `batch` samples of `total` channels.
    fn channels(&self, batch: usize, total: usize) -> Result<Self::Channels>;
    /// Prepares the weights of a convolution.
    fn filter(&self, spec: &FilterSpec<'_>) -> Result<Self::Filter>;
    /// Prepares the weights of a convolution that reads images, as [`from_nchw`](Self::from_nchw) leaves them.
    fn image_filter(&self, spec: &FilterSpec<'_>) -> Result<Self::Filter> {
        self.filter(spec)
    }
    /// Prepares the weights of a depthwise convolution.
    fn depthwise_filter(&self, spec: &FilterSpec<'_>) -> Result<Self::Depthwise>;
    /// Prepares the two layers of a squeeze-excitation.
    fn squeeze_excite_weights(&self, spec: &WeightsSpec<'_>) -> Result<Self::SqueezeExcite>;
    /// Prepares a gate about patches.
    fn patch_gate_weights(&self, gate: gate::PatchGate) -> Result<Self::PatchGate>;
    /// Prepares a fully connected layer.
    fn linear_weights(&self, layer: gate::Linear) -> Result<Self::Linear>;

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
    /// The same for listing the rows of `branch` in up to `batch` samples.
    fn reserve_rows(&self, scratch: &mut Self::Scratch, branch: &Branch, batch: usize) -> Result<()>;
    /// The same for up to `count` [`stamp`](Self::stamp)s.
    fn reserve_stamps(&self, scratch: &mut Self::Scratch, count: usize) -> Result<()>;

    /// Runs one inference: `inference` issues operations to the queue and reads what they give.
    fn run<R: Send>(
        &self,
        scratch: &mut Self::Scratch,
        inference: impl FnOnce(&mut Self::Queue<'_>) -> R + Send,
    ) -> R;
    /// Issues the operations of `program`. With a key a device may keep them and, the next time that this scratch comes
    /// with the same key, issue them again without asking `program`: the same key promises the same operations on the
    /// same memory, whatever values lie in it. Without one they are issued one by one, and can be timed.
    fn play<X: From<Error>>(
        queue: &mut Self::Queue<'_>,
        key: Option<u64>,
        images: &[f32],
        program: impl FnOnce(&mut Self::Queue<'_>, Self::Images<'_>) -> Result<(), X>,
    ) -> Result<(), X>;
    /// Writes a vector before operations are played.
    fn upload<T: Value>(
        queue: &mut Self::Queue<'_>,
        vector: &mut Self::Vector<T>,
        fill: impl FnOnce(&mut [T]),
    ) -> Result<()>;
    /// In a program: this vector will be read behind it.
    fn fetch<T: Value>(queue: &mut Self::Queue<'_>, vector: &mut Self::Vector<T>) -> Result<()>;
    /// Copies the first `len` elements of `from` to where element `at` of `to` lies.
    fn copy(
        queue: &mut Self::Queue<'_>,
        from: &Self::Buffer,
        len: usize,
        to: &mut Self::Buffer,
        at: usize,
    ) -> Result<()>;
    /// Waits for everything played, then shows a vector that was fetched.
    fn read<'v, T: Value>(queue: &mut Self::Queue<'_>, vector: &'v Self::Vector<T>) -> Result<&'v [T]>;
    /// In a program without a key: notes the time, when everything before it has run.
    fn stamp(queue: &mut Self::Queue<'_>);
    /// Waits, then gives the nanoseconds from stamp `i`, counted from 0 in every program, to the next one.
    fn lap(queue: &mut Self::Queue<'_>, i: usize) -> Result<u64>;

    /// Makes every pixel of `batch` maps with `pixels` pixels active.
    fn all_rows(rows: &mut Self::Rows, batch: usize, pixels: usize);
    /// Makes every one of `total` channels active.
    fn all_channels(channels: &mut Self::Channels, total: usize);
    /// Whether two lists, one of which has every pixel of the other, are known to be the same: what an operation on one
    /// leaves compact, an operation on the other can read then.
    fn same_rows(a: &Self::Rows, b: &Self::Rows) -> bool;

    /// In a program: says that what is issued until [`end_when`](Self::end_when) does nothing if the list is empty. True
    /// where the device then leaves all of it out as one; that has to be ended.
    fn when(_queue: &mut Self::Queue<'_>, _rows: &Self::Rows) -> Result<bool> {
        Ok(false)
    }
    /// See [`when`](Self::when).
    fn end_when(_queue: &mut Self::Queue<'_>) -> Result<()> {
        Ok(())
    }

    /// See [`gate::patch`]: margins `[batch, grid.h, grid.w]`.
    fn patch_gate(
        queue: &mut Self::Queue<'_>,
        gate: &Self::PatchGate,
        input: &Self::Buffer,
        batch: usize,
        map: Extent,
        margins: &mut Self::Vector<f32>,
    ) -> Result<()>;
    /// See [`gate::linear`].
    fn linear(
        queue: &mut Self::Queue<'_>,
        layer: &Self::Linear,
        batch: usize,
        input: &Self::Vector<f32>,
        output: &mut Self::Vector<f32>,
    ) -> Result<()>;
    /// See [`gate::decide`].
    fn decide(
        queue: &mut Self::Queue<'_>,
        call: Decide<'_, Self::Vector<f32>, Self::Vector<bool>>,
    ) -> Result<()>;
    /// See [`compact::list_rows`](crate::compact::list_rows).
    fn list_rows(
        queue: &mut Self::Queue<'_>,
        call: BranchRows<'_, Self::Vector<bool>, Self::Vector<u32>, Self::Rows>,
    ) -> Result<()>;
    /// See [`compact::list_channels`](crate::compact::list_channels).
    fn list_channels(
        queue: &mut Self::Queue<'_>,
        call: ListChannels<'_, Self::Vector<bool>, Self::Channels>,
    ) -> Result<()>;
    /// See [`gather_gemm`](crate::gather_gemm).
    fn gather_gemm(
        queue: &mut Self::Queue<'_>,
        filter: &Self::Filter,
        call: GatherGemm<'_, Self::Buffer, Self::Rows, Self::Channels>,
    ) -> Result<()>;
    /// See [`depthwise`](crate::depthwise).
    fn depthwise(
        queue: &mut Self::Queue<'_>,
        filter: &Self::Depthwise,
        call: Depthwise<'_, Self::Buffer, Self::Rows, Self::Channels>,
    ) -> Result<()>;
    /// See [`max_pool`](crate::max_pool).
    fn max_pool(queue: &mut Self::Queue<'_>, call: MaxPool<'_, Self::Buffer>) -> Result<()>;
    /// See [`mean_pool`](crate::mean_pool).
    fn mean_pool(
        queue: &mut Self::Queue<'_>,
        call: MeanPool<'_, Self::Buffer, Self::Vector<f32>, Self::Rows, Self::Channels>,
    ) -> Result<()>;
    /// See [`squeeze_excite`](crate::squeeze_excite).
    fn squeeze_excite(
        queue: &mut Self::Queue<'_>,
        weights: &Self::SqueezeExcite,
        call: SqueezeExcite<'_, Self::Buffer, Self::Rows, Self::Channels>,
    ) -> Result<()>;
    /// See [`shortcut`](crate::shortcut).
    fn pad_channels(queue: &mut Self::Queue<'_>, call: PadChannels<'_, Self::Buffer>) -> Result<()>;
    /// See [`layout::from_nchw`](crate::layout::from_nchw).
    fn from_nchw<'i>(
        queue: &mut Self::Queue<'_>,
        call: FromNchw<'_, Self::Buffer, Self::Images<'i>>,
    ) -> Result<()>;
    /// See [`layout::to_nchw`](crate::layout::to_nchw).
    fn to_nchw(
        queue: &mut Self::Queue<'_>,
        batch: usize,
        map: Extent,
        c: usize,
        input: &Self::Buffer,
        output: &mut Self::Vector<f32>,
    ) -> Result<()>;
}

/// A value that lies in a vector of a [`Backend`].
pub trait Value:
    bytemuck::CheckedBitPattern + bytemuck::NoUninit + Default + std::fmt::Debug + Send + Sync
{
}

impl Value for bool {}
impl Value for u32 {}
impl Value for f32 {}
