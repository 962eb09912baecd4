//! Launches of `max_pool.cu`.

use super::MaxPool;
use crate::cuda::params::{MaxPoolParams, Window};
use crate::cuda::{Buffer, CudaQueue, check};
use crate::error::require;
use crate::{Error, Result};

pub(crate) fn run(queue: &mut CudaQueue<'_>, call: MaxPool<'_, Buffer>) -> Result<()> {
    let MaxPool { geometry: g, batch, input, output } = call;
    g.check("max_pool")?;
    check::fits(&g)?;
    if g.c_in != g.c_out {
        let why = "pooling keeps the number of channels";
        return Err(Error::Geometry { op: "max_pool", why, geometry: g.to_string() });
    }
    require("max_pool", "input", input.len, &[batch, g.input.pixels(), g.c_in], &g)?;
    require("max_pool", "output", output.len, &[batch, g.output.pixels(), g.c_out], &g)?;
    let params = MaxPoolParams {
        window: Window::from(&g),
        input: queue.at(&input.memory),
        output: queue.at(&output.memory),
        batch: batch as u32,
        c: g.c_in as u32,
    };
    let device = queue.shape();
    let launch = params.launch(device.dtype(), device.bytes(), device.most());
    // SAFETY: operands were checked above.
    unsafe { queue.launch(&launch, &params, &format_args!("max_pool, {g}, batch {batch}")) }
}
