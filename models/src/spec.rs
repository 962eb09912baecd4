//! What a network is, as data: [`NetSpec`] and the parts it is made of.
//!
//! Letters: `h`, `w` map height and width in pixels; `c` channels; `S` spatial granularity in output pixels;
//! `G` channels in a channel group. Tensor names are those of the checkpoint (torchvision's, and the official
//! LAUDNet code's for the maskers). Nothing here holds a tensor.

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

/// A whole network, ready to be filled with weights and lowered to a plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NetSpec {
    /// Name shown to users, for example `resnet50`.
    pub name: String,
    /// What the network reads.
    pub input: InputSpec,
    /// The layers in front of the first block.
    pub stem: StemSpec,
    /// Residual blocks in the order of execution.
    pub blocks: Vec<BlockSpec>,
    /// Everything behind the last block.
    pub head: HeadSpec,
}

/// The image a network reads and how its weights expect it to be prepared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InputSpec {
    /// Channels, 3 for RGB.
    pub channels: usize,
    /// Size in pixels.
    pub size: MapSize,
    /// Shorter side, in pixels, that an image is resized to before the centre crop; `None`: no resize, crop only.
    pub resize: Option<usize>,
    /// Per-channel mean that is subtracted after scaling to `0..=1`.
    pub mean: [f32; 3],
    /// Per-channel standard deviation that is divided by afterwards.
    pub std: [f32; 3],
}

/// Height and width of a feature map, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MapSize {
    /// Rows.
    pub h: usize,
    /// Columns.
    pub w: usize,
}

/// Convolution in front of the blocks, and its optional pooling.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StemSpec {
    /// The convolution.
    pub conv: ConvSpec,
    /// Max pooling after it.
    pub pool: Option<MaxPoolSpec>,
}

/// Max pooling with square window; padding never wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MaxPoolSpec {
    /// Window side, pixels.
    pub kernel: usize,
    /// Stride, pixels.
    pub stride: usize,
    /// Padding on every side, pixels.
    pub pad: usize,
}

/// Optional last convolution, global average pooling, classifier.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeadSpec {
    /// 1×1 convolution before the pooling (MobileNetV2), else `None`.
    pub conv: Option<ConvSpec>,
    /// Classifier: `[classes, c]` weight and `[classes]` bias.
    pub fc: LinearSpec,
}

/// Fully connected layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinearSpec {
    /// Name of the `[c_out, c_in]` tensor (`[c_out, c_in, 1, 1]` is accepted too).
    pub weight: String,
    /// Name of the `[c_out]` tensor.
    pub bias: Option<String>,
    /// Input features.
    pub c_in: usize,
    /// Output features.
    pub c_out: usize,
}

/// Square 2-D convolution with its normalisation and activation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConvSpec {
    /// Name of the `[c_out, c_in / groups, k, k]` tensor.
    pub weight: String,
    /// Name of the `[c_out]` bias tensor.
    pub bias: Option<String>,
    /// BatchNorm behind the convolution; `None` where it is folded or absent.
    pub norm: Option<NormSpec>,
    /// Input channels.
    pub c_in: usize,
    /// Output channels.
    pub c_out: usize,
    /// Kernel side, pixels.
    pub kernel: usize,
    /// Stride, pixels.
    pub stride: usize,
    /// Groups; equal to `c_in` for a depthwise convolution.
    pub groups: usize,
    /// Zero padding.
    pub pad: Padding,
    /// Activation behind the normalisation.
    pub act: Activation,
}

/// Zero padding in pixels. torchvision pads alike on all sides, TensorFlow's `SAME` more at the bottom and right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Padding {
    /// Rows above.
    pub top: usize,
    /// Columns to the left.
    pub left: usize,
    /// Rows below.
    pub bottom: usize,
    /// Columns to the right.
    pub right: usize,
}

/// BatchNorm in evaluation mode: `y = (x − mean) / √(var + eps) · weight + bias`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NormSpec {
    /// Prefix of the `weight`, `bias`, `running_mean`, `running_var` tensors, without the dot.
    pub prefix: String,
    /// Added to the variance.
    pub eps: f32,
}

/// Pointwise activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// Identity.
    None,
    /// `max(x, 0)`.
    Relu,
    /// `min(max(x, 0), 6)`.
    Relu6,
}

/// A residual block: a chain of convolutions, a shortcut, and the gate that decides how much of the chain is computed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BlockSpec {
    /// Module name in the checkpoint, for example `layer1.0`.
    pub name: String,
    /// Stage, counted from 0.
    pub stage: usize,
    /// Size of the map the block reads.
    pub input: MapSize,
    /// Size of the map the block writes.
    pub output: MapSize,
    /// The residual branch, in order.
    pub convs: SmallVec<[ConvSpec; 3]>,
    /// Squeeze-excitation between the last two convolutions of the branch.
    pub squeeze_excite: Option<SqueezeExciteSpec>,
    /// What is added to the branch.
    pub shortcut: Shortcut,
    /// Activation behind the addition.
    pub act: Activation,
    /// What decides how much of the branch is computed; both parts `None`: a static block.
    pub gate: GateSpec,
}

/// Squeeze-excitation: global average pool → fc1 → ReLU → fc2 → sigmoid → scale the channels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SqueezeExciteSpec {
    /// `[q, c, 1, 1]`.
    pub fc1: LinearSpec,
    /// `[c, q, 1, 1]`.
    pub fc2: LinearSpec,
    /// Which positions the pool averages when the block is spatially gated.
    pub pooling: SqueezePooling,
}

/// Meaning of squeeze-excitation's pool under a spatial mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SqueezePooling {
    /// Over every position, active or not: the official LAUDNet code. The convolutions before it run densely.
    Dense,
    /// Over the active positions only: their mean; a sample without any active position is skipped.
    Active,
}

/// What a block adds to its branch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shortcut {
    /// Nothing: the block has no residual connection (some MobileNetV2 blocks). Such a block has no spatial gate.
    None,
    /// The block's input.
    Identity,
    /// A strided 1×1 convolution of it.
    Projection(ConvSpec),
    /// Every `stride`-th pixel, with `before` and `after` zero channels added (CIFAR ResNet's type A).
    PadChannels {
        /// Distance of the pixels that are kept.
        stride: usize,
        /// Zero channels in front.
        before: usize,
        /// Zero channels behind.
        after: usize,
    },
}

/// The gates of one block. Both may be present (the official mode `both`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GateSpec {
    /// Decides about patches or about the whole map.
    pub spatial: Option<SpatialGateSpec>,
    /// Decides about groups of channels of every convolution output but the last.
    pub channel: Option<ChannelGateSpec>,
}

/// Spatial gate: average pool to `grid`, 1×1 convolution to two logits, keep where `logit0 >= logit1`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpatialGateSpec {
    /// Module name, for example `layer1.0.masker_spatial`; tensors `{prefix}.conv.weight [2, c, 1, 1]`, `.conv.bias [2]`.
    pub prefix: String,
    /// Input channels.
    pub c_in: usize,
    /// Mask cells; `1 × 1` decides about the whole map (layer skipping). Brought to the output size by nearest
    /// up-sampling: source index `⌊dst · grid / out⌋`.
    pub grid: MapSize,
    /// Whether the user calls this layer skipping (`layer`) or patch skipping (`spatial`).
    pub layer: bool,
}

/// Channel gate: one keep decision for every `group_size` consecutive channels of the block's inner width.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelGateSpec {
    /// Module name, for example `layer1.0.masker_channel`.
    pub prefix: String,
    /// Input channels.
    pub c_in: usize,
    /// Number of groups `g`; the logits are `g` keep logits, then `g` skip logits.
    pub groups: usize,
    /// Channels in a group, `G`.
    pub group_size: usize,
    /// Layers of the masker.
    pub head: ChannelHead,
    /// Where the mask multiplies.
    pub point: MaskPoint,
}

/// Layers of a channel masker. Tensor names are relative to the gate's prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChannelHead {
    /// Global average pool → `conv` (linear `[2g, c]` with bias).
    Mlp1,
    /// Global average pool → `conv.0` (linear `[hidden, c]` with bias) → ReLU → `conv.2` (linear `[2g, hidden]` with bias).
    Mlp2 {
        /// Hidden features.
        hidden: usize,
    },
    /// `conv.0` (1×1 convolution `[hidden, c, 1, 1]`, no bias) → BatchNorm `conv.1` → ReLU → global average pool →
    /// `linear` (`[2g, hidden]` with bias).
    ConvLinear {
        /// Reduced channels.
        hidden: usize,
    },
}

/// Where a channel mask multiplies, which decides what an inactive channel is worth to the next convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MaskPoint {
    /// Between convolution and BatchNorm (LAUDNet's ResNet): an inactive channel is the constant `act(bn(0))`.
    BeforeNorm,
    /// Behind the activation (LAUDNet's RegNet): an inactive channel is zero.
    AfterActivation,
}

impl GateSpec {
    /// Whether the block has any gate.
    pub fn is_some(&self) -> bool {
        self.spatial.is_some() || self.channel.is_some()
    }

    /// Whether a gate over the whole map is all there is.
    pub fn is_layer(&self) -> bool {
        let whole = |gate: &SpatialGateSpec| gate.grid.h * gate.grid.w == 1;
        self.channel.is_none() && self.spatial.as_ref().is_some_and(whole)
    }
}

impl ConvSpec {
    /// Size of the map that this convolution makes of `input`; `None` when the padded input is smaller than the kernel.
    pub fn output_size(&self, input: MapSize) -> Option<MapSize> {
        let along = |n: usize, before: usize, after: usize| {
            (n + before + after).checked_sub(self.kernel).map(|room| room / self.stride + 1)
        };
        Some(MapSize {
            h: along(input.h, self.pad.top, self.pad.bottom)?,
            w: along(input.w, self.pad.left, self.pad.right)?,
        })
    }
}

impl Padding {
    /// The same on every side.
    pub const fn same(pixels: usize) -> Self {
        Self { top: pixels, left: pixels, bottom: pixels, right: pixels }
    }
}
