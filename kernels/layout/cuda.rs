//! Launches of `layout.cu`.

use super::FromNchw;
use crate::cuda::params::{FromNchwParams, ToNchwParams};
use crate::cuda::{Buffer, CudaQueue, Images, Vector};
use crate::error::require;
use crate::{Error, Extent, Result};

pub(crate) fn from_nchw(queue: &mut CudaQueue<'_>, call: FromNchw<'_, Buffer, Images>) -> Result<()> {
    let device = queue.shape();
    let pitch = call.c.next_multiple_of(device.precision.vector());
    call.check(call.input.len, call.output.len, pitch)?;
    let FromNchw { batch, c, image, border, bordered, scale, input, output } = call;
    if scale.is_some() {
        let geometry = format!("{c}×{}×{}, batch {batch}", image.h, image.w);
        let why = "images come in as they are on CUDA devices";
        return Err(Error::Geometry { op: "layout", why, geometry });
    }
    let params = FromNchwParams {
        input: input.address,
        output: queue.at(&output.memory),
        batch: batch as u32,
        c: c as u32,
        h: image.h as u32,
        w: image.w as u32,
        border_top: border.h as u32,
        border_left: border.w as u32,
        out_h: bordered.h as u32,
        out_w: bordered.w as u32,
        pitch: pitch as u32,
        reserved: 0,
    };
    let shape = format_args!("{c}×{}×{}, batch {batch}", image.h, image.w);
    // SAFETY: operands were checked above; the scratch holds the images.
    unsafe { queue.launch(&params.launch(device.dtype()), &params, &format_args!("layout, {shape}")) }
}

pub(crate) fn to_nchw(
    queue: &mut CudaQueue<'_>,
    batch: usize,
    map: Extent,
    c: usize,
    input: &Buffer,
    output: &mut Vector<f32>,
) -> Result<()> {
    let shape = format_args!("{c}×{}×{}, batch {batch}", map.h, map.w);
    require("layout", "input", input.len, &[batch, c, map.h, map.w], &shape)?;
    require("layout", "output", output.len(), &[batch, c, map.h, map.w], &shape)?;
    let params = ToNchwParams {
        input: queue.at(&input.memory),
        output: queue.at(&output.memory),
        batch: batch as u32,
        c: c as u32,
        pixels: map.pixels() as u32,
        reserved: 0,
    };
    let launch = params.launch(queue.shape().dtype());
    // SAFETY: operands were checked above.
    unsafe { queue.launch(&launch, &params, &format_args!("layout, {shape}")) }
}
