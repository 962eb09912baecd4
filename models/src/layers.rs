//! What the families build their networks from: convolutions with their names, padding and sizes, checked widths.

use crate::{
    Activation, ConvSpec, Error, MapSize, MaxPoolSpec, NetConfig, NormSpec, NormStyle, Padding, PaddingStyle,
};

/// Largest number of channels of any layer.
pub(crate) const MAX_CHANNELS: usize = 1 << 16;
/// Largest side of an image, pixels.
pub(crate) const MAX_SIDE: usize = 1 << 14;
/// Most blocks in a stage.
pub(crate) const MAX_DEPTH: usize = 1000;
/// Most stages.
pub(crate) const MAX_STAGES: usize = 16;
/// Most classes.
pub(crate) const MAX_CLASSES: usize = 1 << 20;

/// Added to the variance of every BatchNorm; PyTorch's default.
pub(crate) const NORM_EPS: f32 = 1e-5;

/// Makes convolutions in the configuration's norm and padding style.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layers {
    norm: NormStyle,
    padding: PaddingStyle,
}

/// Names and geometry of a convolution.
pub(crate) struct Conv<'a> {
    /// Prefix of `.weight` and, where the norm is folded, `.bias`.
    pub(crate) name: &'a str,
    /// Prefix of the norm's tensors.
    pub(crate) norm: &'a str,
    pub(crate) c_in: usize,
    pub(crate) c_out: usize,
    pub(crate) kernel: usize,
    pub(crate) stride: usize,
    pub(crate) groups: usize,
    pub(crate) act: Activation,
}

impl Layers {
    pub(crate) fn new(config: &NetConfig) -> Self {
        Self { norm: config.norm.unwrap_or_default(), padding: config.padding.unwrap_or_default() }
    }

    /// The convolution on a map of size `input`, and the size of what it writes.
    pub(crate) fn conv(&self, conv: &Conv<'_>, input: MapSize) -> Result<(ConvSpec, MapSize), Error> {
        let folded = self.norm == NormStyle::Folded;
        let spec = ConvSpec {
            weight: format!("{}.weight", conv.name),
            bias: folded.then(|| format!("{}.bias", conv.name)),
            norm: (!folded).then(|| NormSpec { prefix: conv.norm.to_owned(), eps: NORM_EPS }),
            c_in: conv.c_in,
            c_out: conv.c_out,
            kernel: conv.kernel,
            stride: conv.stride,
            groups: conv.groups,
            pad: self.pad(conv, input),
            act: conv.act,
        };
        let output = spec.output_size(input).ok_or_else(|| {
            let reason = format!("a {}×{} map is smaller than its kernel {}", input.h, input.w, conv.kernel);
            Error::spec(conv.name, reason)
        })?;
        Ok((spec, output))
    }

    fn pad(&self, conv: &Conv<'_>, input: MapSize) -> Padding {
        match self.padding {
            PaddingStyle::Torchvision => Padding::same((conv.kernel - 1) / 2),
            PaddingStyle::Tf => {
                let total =
                    |n: usize| ((n.div_ceil(conv.stride) - 1) * conv.stride + conv.kernel).saturating_sub(n);
                let (v, h) = (total(input.h), total(input.w));
                Padding { top: v / 2, bottom: v - v / 2, left: h / 2, right: h - h / 2 }
            }
        }
    }
}

impl MaxPoolSpec {
    /// Size of the map that this pooling makes of `input`; `None` when the padded input is smaller than the window.
    pub fn output_size(&self, input: MapSize) -> Option<MapSize> {
        let along = |n: usize| (n + 2 * self.pad).checked_sub(self.kernel).map(|room| room / self.stride + 1);
        Some(MapSize { h: along(input.h)?, w: along(input.w)? })
    }
}

/// Width `base × mult`, rounded, at least 1.
pub(crate) fn scaled(base: usize, mult: f64) -> Result<usize, Error> {
    let width = (base as f64 * mult).round();
    if mult.is_finite() && (1.0..=MAX_CHANNELS as f64).contains(&width) {
        Ok(width as usize)
    } else {
        Err(Error::invalid("width_mult", mult, format!("{base} channels would become {width}")))
    }
}

/// `value` where it is in `1..=max`.
pub(crate) fn count(key: impl Into<String>, value: usize, max: usize) -> Result<usize, Error> {
    if (1..=max).contains(&value) {
        Ok(value)
    } else {
        Err(Error::invalid(key, value, format!("it must be between 1 and {max}")))
    }
}

/// Blocks per stage, all sensible.
pub(crate) fn depths(config: &NetConfig, default: &[usize]) -> Result<Vec<usize>, Error> {
    let depths = config.depths.clone().unwrap_or_else(|| default.to_vec());
    count("depths (length)", depths.len(), MAX_STAGES)?;
    for (stage, &depth) in depths.iter().enumerate() {
        count(format!("depths[{stage}]"), depth, MAX_DEPTH)?;
    }
    Ok(depths)
}

/// Explicit widths where given, else `default(stage)`; all sensible.
pub(crate) fn widths(
    config: &NetConfig,
    stages: usize,
    default: impl Fn(usize) -> Result<usize, Error>,
) -> Result<Vec<usize>, Error> {
    let widths = match &config.widths {
        Some(widths) if widths.len() == stages => widths.clone(),
        Some(widths) => {
            return Err(Error::StageCount { key: "widths", found: widths.len(), stages });
        }
        None => (0..stages).map(default).collect::<Result<_, _>>()?,
    };
    for (stage, &width) in widths.iter().enumerate() {
        count(format!("widths[{stage}]"), width, MAX_CHANNELS)?;
    }
    Ok(widths)
}
