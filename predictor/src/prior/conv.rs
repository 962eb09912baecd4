use super::LIMITS;
use super::static_ops::map_values;
use super::tiles::Tile;
use crate::{Error, Result};

/// A convolution on square maps. The output has `in_size / stride` positions a side, rounded down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConvShape {
    /// Input channels.
    pub in_channels: u32,
    /// Output channels.
    pub out_channels: u32,
    /// Side of the input map, in positions.
    pub in_size: u32,
    /// Side of the kernel, in positions.
    pub kernel: u32,
    /// Convolution groups; must divide both numbers of channels.
    pub groups: u32,
    /// Stride, in positions.
    pub stride: u32,
}

impl ConvShape {
    /// A 1×1 convolution with one group.
    pub fn pointwise(in_channels: u32, out_channels: u32, in_size: u32, stride: u32) -> Self {
        Self { in_channels, out_channels, in_size, kernel: 1, groups: 1, stride }
    }

    /// Side of the output map, in positions; 0 if the stride is.
    pub fn out_size(&self) -> u32 {
        self.in_size.checked_div(self.stride).unwrap_or(0)
    }

    pub(super) fn validate(&self) -> Result<()> {
        let Self { in_channels, out_channels, in_size, kernel, groups, stride } = *self;
        LIMITS.channels("input channels", in_channels)?;
        LIMITS.channels("output channels", out_channels)?;
        LIMITS.size("kernel", kernel)?;
        LIMITS.size("stride", stride)?;
        LIMITS.channels("convolution groups", groups)?;
        LIMITS.size("input size", in_size)?;
        LIMITS.size("output size", in_size / stride)?;
        match [in_channels, out_channels].into_iter().find(|channels| channels % groups != 0) {
            Some(channels) => Err(Error::Groups { channels, groups }),
            None => Ok(()),
        }
    }

    /// Input channels that one output channel reads.
    fn depth(&self) -> f64 {
        f64::from(self.in_channels / self.groups)
    }

    /// Positions of the kernel.
    fn taps(&self) -> f64 {
        f64::from(self.kernel) * f64::from(self.kernel)
    }

    /// Multiply-adds of one output value.
    pub(super) fn macs_per_output(&self) -> f64 {
        self.depth() * self.taps()
    }

    /// Weights, in values.
    pub(super) fn weights(&self) -> f64 {
        f64::from(self.out_channels) * self.macs_per_output()
    }

    /// Input map of one sample as far as the output needs it, in values.
    pub(super) fn input_values(&self) -> f64 {
        map_values(self.in_channels, self.out_size() * self.stride)
    }

    /// Output map of one sample, in values.
    pub(super) fn output_values(&self) -> f64 {
        map_values(self.out_channels, self.out_size())
    }

    /// Weights that one tile reads, in values.
    pub(super) fn tile_weights(&self, tile: &Tile) -> f64 {
        f64::from(tile.channels) * self.macs_per_output()
    }

    /// Inputs that one tile reads, its halo included, in values of one sample (or of one patch).
    pub(super) fn tile_inputs(&self, tile: &Tile) -> f64 {
        let group_width = self.out_channels / self.groups;
        let side = |outputs: u32| f64::from(outputs + self.kernel - 1) * f64::from(self.stride);
        f64::from(tile.channels.div_ceil(group_width)) * self.depth() * side(tile.rows) * side(tile.cols)
    }
}
