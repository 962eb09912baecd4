//! [`NetConfig`]: what a user or a checkpoint's metadata says about a network.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use crate::{Error, GateMode, MapSize, PerStage, SqueezePooling};

/// A network in the words of a user: a family or preset name and whatever differs from its defaults.
///
/// Every key is optional, so that the same type is a full description, a checkpoint's metadata, and a hint to
/// [`infer`](crate::infer). Keys that are not listed here (`batch`, `seed`, `target`, …) are ignored. Lists "per stage"
/// also accept one value for all stages.
///
/// ```
/// use laud_models::NetConfig;
///
/// let config = NetConfig::from_json(
///     r#"{"arch": "resnet50", "dyn_mode": ["spatial", "layer", "channel", "none"],
///         "spatial_granularity": 4, "channel_granularity": 2}"#,
/// )?;
/// let net = config.build()?;
/// assert_eq!(net.blocks.len(), 16);
/// assert!(net.blocks[0].gate.spatial.is_some() && !net.blocks[15].gate.is_some());
/// # Ok::<(), laud_models::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetConfig {
    /// Name shown to users; does not influence the network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Family (`resnet`, `cifar_resnet`, `regnet`, `mobilenet_v2`) or preset (`resnet50`, …).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arch: Option<String>,
    /// Residual block of a ResNet; default `bottleneck`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block: Option<BlockKind>,
    /// Blocks in each stage. Its length is the number of stages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub depths: Option<Vec<usize>>,
    /// Factor on the family's default widths; `widths`, `stem_width` and `head_width` go before it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub width_mult: Option<f64>,
    /// Channels of each stage: the 3×3 convolutions' of a ResNet, the output's of a RegNet or MobileNetV2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub widths: Option<Vec<usize>>,
    /// Output channels of the stem.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stem_width: Option<usize>,
    /// Output channels of the last 1×1 convolution (MobileNetV2).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head_width: Option<usize>,
    /// Inner width ÷ input width of each stage's blocks (MobileNetV2); default 1, 6, 6, 6, 6, 6, 6.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expansions: Option<PerStage<usize>>,
    /// Channels in a group of each stage's 3×3 convolutions (RegNet).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group_widths: Option<PerStage<usize>>,
    /// Squeeze-excitation features ÷ block input channels (RegNet); default 0.25, and 0 for none (RegNet-X).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub se_ratio: Option<f64>,
    /// RegNet's design-space parameters, instead of `depths`, `widths` and `group_widths`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub regnet: Option<RegNetParams>,
    /// Image size in pixels: one number, or `[h, w]`. Default 224, CIFAR 32.
    #[serde(
        skip_serializing_if = "Option::is_none",
        serialize_with = "write_size",
        deserialize_with = "read_size"
    )]
    pub input_size: Option<MapSize>,
    /// Classes; default 1000, CIFAR 10.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_classes: Option<usize>,
    /// Gates of each stage; default none. Blocks without a shortcut get no spatial or layer gate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dyn_mode: Option<PerStage<GateMode>>,
    /// `S` of each stage: side of a patch in output pixels. Read where the mode is `spatial` or `both`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spatial_granularity: Option<PerStage<usize>>,
    /// Mask channels of the spatial gates; 1 is the only supported value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spatial_mask_channel_group: Option<PerStage<usize>>,
    /// `G` of each stage: channels in a group. Read where the mode is `channel` or `both`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channel_granularity: Option<PerStage<usize>>,
    /// Kind of channel masker; default MLP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channel_masker: Option<PerStage<ChannelMasker>>,
    /// Linear layers of an MLP channel masker, 1 or 2; default 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channel_masker_layers: Option<PerStage<usize>>,
    /// Reduction `r` of the channel maskers: hidden features are `max(groups / r, 16)` (MLP), `c_in / r`
    /// (conv_linear); default 16.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reduction: Option<usize>,
    /// What squeeze-excitation pools under a spatial mask; default `dense`, the official meaning.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub squeeze_pooling: Option<SqueezePooling>,
    /// BatchNorm tensors, or folded into the convolutions; default `batch`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub norm: Option<NormStyle>,
    /// How the convolutions pad; default `torchvision`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub padding: Option<PaddingStyle>,
    /// How an image is prepared; default the family's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preprocess: Option<Preprocess>,
}

/// Residual block of a ResNet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BlockKind {
    /// Two 3×3 convolutions (ResNet-18, 34).
    Basic,
    /// 1×1, 3×3, 1×1 with four times the width (ResNet-50, 101, 152).
    Bottleneck,
}

/// Kind of channel masker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ChannelMasker {
    /// Pool, then one or two linear layers.
    #[default]
    #[serde(rename = "MLP", alias = "mlp")]
    Mlp,
    /// 1×1 convolution, BatchNorm, ReLU, pool, linear layer.
    #[serde(rename = "conv_linear")]
    ConvLinear,
}

/// Whether BatchNorm has tensors of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormStyle {
    /// Behind every convolution, which then has no bias.
    #[default]
    Batch,
    /// Folded: every convolution has a bias and there are no BatchNorm tensors.
    Folded,
}

/// How convolutions pad.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PaddingStyle {
    /// `(kernel − 1) / 2` on every side.
    #[default]
    Torchvision,
    /// TensorFlow's `SAME`: as much as gives `⌈n / stride⌉`, the odd pixel at the bottom and right.
    Tf,
}

/// How an image becomes the network's input: resize, centre crop to the input size, scale to `0..=1`, `(x − mean) / std`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Preprocess {
    /// Shorter side after resizing, pixels; absent: crop only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resize: Option<usize>,
    /// Per-channel mean, of values in `0..=1`.
    pub mean: [f32; 3],
    /// Per-channel standard deviation, of values in `0..=1`.
    pub std: [f32; 3],
}

/// RegNet's quantised linear widths: block `i` of `depth` wants `w_0 + w_a·i` channels, rounded to a power of `w_m` times
/// `w_0` and to multiples of 8 and of the group width. Radosavovic et al., "Designing Network Design Spaces", section 3.3.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RegNetParams {
    /// Blocks in all.
    pub depth: usize,
    /// Channels of the first block.
    pub w_0: usize,
    /// Channels more per block.
    pub w_a: f64,
    /// Ratio of the widths of two stages.
    pub w_m: f64,
    /// Channels in a group of the 3×3 convolutions.
    pub group_width: usize,
}

impl NetConfig {
    /// Reads JSON. A value of a wrong kind is an error that names its key.
    pub fn from_json(json: &str) -> Result<Self, Error> {
        Self::from_value(serde_json::from_str(json)?)
    }

    /// Reads parsed JSON, as [`from_json`](Self::from_json).
    pub fn from_value(value: Value) -> Result<Self, Error> {
        serde_json::from_value(value.clone()).map_err(|whole| {
            // serde's message has no key: find the first entry that fails on its own.
            let Value::Object(entries) = value else { return Error::Json(whole) };
            for (key, value) in entries {
                let shown = value.to_string();
                let alone = Value::Object([(key.clone(), value)].into_iter().collect());
                if let Err(error) = serde_json::from_value::<Self>(alone) {
                    return Error::invalid(key, shown, error.to_string());
                }
            }
            Error::Json(whole)
        })
    }

    /// These keys, and `defaults` where one is absent.
    #[must_use]
    pub fn or(self, defaults: Self) -> Self {
        let d = defaults;
        Self {
            name: self.name.or(d.name),
            arch: self.arch.or(d.arch),
            block: self.block.or(d.block),
            depths: self.depths.or(d.depths),
            width_mult: self.width_mult.or(d.width_mult),
            widths: self.widths.or(d.widths),
            stem_width: self.stem_width.or(d.stem_width),
            head_width: self.head_width.or(d.head_width),
            expansions: self.expansions.or(d.expansions),
            group_widths: self.group_widths.or(d.group_widths),
            se_ratio: self.se_ratio.or(d.se_ratio),
            regnet: self.regnet.or(d.regnet),
            input_size: self.input_size.or(d.input_size),
            num_classes: self.num_classes.or(d.num_classes),
            dyn_mode: self.dyn_mode.or(d.dyn_mode),
            spatial_granularity: self.spatial_granularity.or(d.spatial_granularity),
            spatial_mask_channel_group: self.spatial_mask_channel_group.or(d.spatial_mask_channel_group),
            channel_granularity: self.channel_granularity.or(d.channel_granularity),
            channel_masker: self.channel_masker.or(d.channel_masker),
            channel_masker_layers: self.channel_masker_layers.or(d.channel_masker_layers),
            reduction: self.reduction.or(d.reduction),
            squeeze_pooling: self.squeeze_pooling.or(d.squeeze_pooling),
            norm: self.norm.or(d.norm),
            padding: self.padding.or(d.padding),
            preprocess: self.preprocess.or(d.preprocess),
        }
    }
}

fn write_size<S: Serializer>(size: &Option<MapSize>, serializer: S) -> Result<S::Ok, S::Error> {
    size.map(|size| [size.h, size.w]).serialize(serializer)
}

fn read_size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<MapSize>, D::Error> {
    let value = Value::deserialize(deserializer)?;
    let side = |value: &Value| {
        let side = value.as_u64().and_then(|side| usize::try_from(side).ok());
        side.ok_or_else(|| D::Error::custom("expected a number of pixels, or [h, w]"))
    };
    Ok(match &value {
        Value::Null => None,
        Value::Array(sides) => match sides.as_slice() {
            [h, w] => Some(MapSize { h: side(h)?, w: side(w)? }),
            _ => return Err(D::Error::custom("expected a number of pixels, or [h, w]")),
        },
        one => side(one).map(|side| Some(MapSize { h: side, w: side }))?,
    })
}
