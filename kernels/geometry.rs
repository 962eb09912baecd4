//! Shapes. Letters: `n` samples, `h` rows, `w` columns, `c` channels of a feature map; `k`, `r`, `s` output channel,
//! kernel row, kernel column of a filter.

use crate::{Error, Result};

/// Height and width of a feature map, pixels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Extent {
    /// Rows.
    pub h: usize,
    /// Columns.
    pub w: usize,
}

impl Extent {
    /// Pixels of one sample.
    pub fn pixels(self) -> usize {
        self.h * self.w
    }
}

/// Geometry of a square 2-D convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConvGeometry {
    /// Input map.
    pub input: Extent,
    /// Output map.
    pub output: Extent,
    /// Input channels.
    pub c_in: usize,
    /// Output channels.
    pub c_out: usize,
    /// Kernel side.
    pub kernel: usize,
    /// Stride.
    pub stride: usize,
    /// Zero rows above the input.
    pub pad_top: usize,
    /// Zero columns left of the input.
    pub pad_left: usize,
    /// Groups.
    pub groups: usize,
}

impl ConvGeometry {
    /// A 1×1 convolution with stride 1 on maps of size `map`.
    pub fn pointwise(map: Extent, c_in: usize, c_out: usize) -> Self {
        Self::padded(map, (c_in, c_out), 1, 1, 0)
    }

    /// A convolution in one group on maps of size `input` behind `pad` zeros on each of the four sides. A kernel that does
    /// not fit gives one output pixel, which operations refuse where it lies outside.
    pub fn padded(
        input: Extent,
        (c_in, c_out): (usize, usize),
        kernel: usize,
        stride: usize,
        pad: usize,
    ) -> Self {
        let along = |n: usize| (n + 2 * pad).saturating_sub(kernel) / stride + 1;
        let output = Extent { h: along(input.h), w: along(input.w) };
        Self { input, output, c_in, c_out, kernel, stride, pad_top: pad, pad_left: pad, groups: 1 }
    }

    /// The same with every channel on its own: depthwise, or pooling.
    pub fn per_channel(input: Extent, c: usize, kernel: usize, stride: usize, pad: usize) -> Self {
        Self { groups: c, ..Self::padded(input, (c, c), kernel, stride, pad) }
    }

    /// Input channels of one group.
    pub fn group_in(&self) -> usize {
        self.c_in / self.groups
    }

    /// Output channels of one group.
    pub fn group_out(&self) -> usize {
        self.c_out / self.groups
    }

    /// Elements of the `krsc` weight tensor.
    pub fn weights(&self) -> usize {
        self.c_out * self.kernel * self.kernel * self.group_in()
    }

    /// Whether an output pixel's only tap is the input pixel at the same position.
    pub fn is_pointwise(&self) -> bool {
        self.kernel == 1 && self.stride == 1 && self.pad_top == 0 && self.pad_left == 0
    }

    /// Rejects geometries that no kernel computes.
    pub(crate) fn check(&self, op: &'static str) -> Result<()> {
        let Self { input, output, c_in, c_out, kernel, stride, groups, .. } = *self;
        let overflow = |sizes: &[usize]| {
            let product = sizes.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
            product.is_none_or(|product| product > isize::MAX as usize / 8)
        };
        let why = if [input.h, input.w, output.h, output.w, c_in, c_out, kernel, stride, groups].contains(&0)
        {
            "a size is zero"
        } else if overflow(&[input.h, input.w, c_in])
            || overflow(&[output.h, output.w, c_out])
            || overflow(&[kernel, kernel, c_in, c_out])
            || overflow(&[output.h.max(output.w), stride])
        {
            "a size overflows"
        } else if c_in % groups != 0 || c_out % groups != 0 {
            "groups do not divide the channels"
        } else if self.pad_top >= kernel || self.pad_left >= kernel {
            "the padding is as large as the kernel"
        } else if (output.h - 1) * stride >= input.h + self.pad_top
            || (output.w - 1) * stride >= input.w + self.pad_left
        {
            "the last output pixel lies outside the input"
        } else {
            return Ok(());
        };
        Err(Error::Geometry { op, why, geometry: self.to_string() })
    }
}

impl std::fmt::Display for ConvGeometry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { input, output, c_in, c_out, kernel, stride, groups, .. } = self;
        write!(
            f,
            "{kernel}×{kernel}/{stride} conv, {}×{}×{c_in} → {}×{}×{c_out}, {groups} groups",
            input.h, input.w, output.h, output.w
        )
    }
}

/// Pointwise activation behind an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Act {
    /// Identity.
    None,
    /// `max(x, 0)`, NaN stays NaN.
    Relu,
    /// `min(max(x, 0), 6)`, NaN stays NaN.
    Relu6,
}

impl Act {
    /// Least and most of what comes out; between them values come out as they are.
    #[inline(always)]
    pub(crate) fn range(self) -> (f32, f32) {
        match self {
            Act::None => (f32::NEG_INFINITY, f32::INFINITY),
            Act::Relu => (0.0, f32::INFINITY),
            Act::Relu6 => (0.0, 6.0),
        }
    }

    /// The activation of one value.
    pub fn apply(self, x: f32) -> f32 {
        match self {
            Act::None => x,
            Act::Relu => {
                if x < 0.0 {
                    0.0
                } else {
                    x
                }
            }
            Act::Relu6 => x.clamp(0.0, 6.0),
        }
    }
}
