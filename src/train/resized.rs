//! Images of another size.

use anyhow::Result;
use candle_core::{Device, Tensor};
use laud_models::MapSize;

use crate::vision::Planes;

/// Prepared images `[n, c, h, w]` resized to `size`, as an early exit sees them; without a gradient.
///
/// # Errors
/// Another shape, or no pixels.
pub fn resized(images: &Tensor, size: MapSize) -> Result<Tensor> {
    let (n, c, h, w) = images.dims4()?;
    if (h, w) == (size.h, size.w) {
        return Ok(images.clone());
    }
    let values = images.flatten_all()?.to_vec1::<f32>()?;
    let mut out = vec![0.0; n * c * size.h * size.w];
    Planes::default().resize((&values, MapSize { h, w }), (&mut out, size))?;
    Ok(Tensor::from_vec(out, (n, c, size.h, size.w), &Device::Cpu)?)
}
