//! What operations on listed rows and channels rely on.

use super::memory::{Channels, Rows};
use crate::error::require;
use crate::{ConvGeometry, Error, Result};

pub(crate) fn rows(
    op: &'static str,
    rows: &Rows,
    pixels: usize,
    shape: &dyn std::fmt::Display,
) -> Result<()> {
    if rows.pixels == pixels {
        return Ok(());
    }
    let geometry = format!("{shape}, rows of maps with {} pixels", rows.pixels);
    Err(Error::Geometry { op, why: "the active rows are pixels of another map", geometry })
}

pub(crate) fn channels(
    op: &'static str,
    channels: &Channels,
    total: usize,
    batch: usize,
    shape: &dyn std::fmt::Display,
) -> Result<()> {
    if channels.total != total {
        let geometry = format!("{shape}, active channels of {}", channels.total);
        return Err(Error::Geometry { op, why: "the active channels are of another layer", geometry });
    }
    require(op, "active channels", channels.samples().unwrap_or(batch), &[batch], &shape)
}

/// Kernels count in 32 bits.
pub(crate) fn fits(g: &ConvGeometry) -> Result<()> {
    let sizes = [g.input.pixels(), g.output.pixels(), g.c_in, g.c_out, g.kernel, g.stride];
    let (h, w) = (g.output.h.saturating_mul(g.stride), g.output.w.saturating_mul(g.stride));
    if sizes.into_iter().chain([h, w]).all(|size| size < 1 << 30) {
        return Ok(());
    }
    Err(Error::Geometry { op: "cuda", why: "sizes do not fit 32 bits", geometry: g.to_string() })
}
