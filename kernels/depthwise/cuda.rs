//! Launches of `depthwise.cu`.

use super::Depthwise;
use crate::Result;
use crate::cuda::params::{DepthwiseParams, Window};
use crate::cuda::{self, Buffer, Channels, CudaQueue, Rows, check};
use crate::error::require;

pub(crate) fn run(
    queue: &mut CudaQueue<'_>,
    filter: &cuda::Depthwise,
    call: Depthwise<'_, Buffer, Rows, Channels>,
) -> Result<()> {
    let Depthwise { rows, channels, input, input_channels, output, output_rows, act } = call;
    let (op, g, batch) = ("depthwise", &filter.geometry, rows.batch);
    let shape = format_args!("{g}, batch {batch}");
    check::rows(op, rows, g.output.pixels(), &shape)?;
    check::channels(op, channels, g.c_in, batch, &shape)?;
    require(op, "input", input.len, &[batch, g.input.pixels(), g.c_in], &shape)?;
    require(op, "output", output.len, &[batch, g.output.pixels(), g.c_out], &shape)?;
    let row_list = queue.rows(rows);
    let channel_list = queue.channels(channels);
    let params = DepthwiseParams {
        rows: row_list,
        channels: channel_list,
        window: Window::from(g),
        input: queue.at(&input.memory),
        output: queue.at(&output.memory),
        weight: queue.at(&filter.weight),
        bias: queue.at(&filter.bias),
        minus_constant: queue.maybe_at(filter.minus_constant.as_ref()),
        output_constant: queue.maybe_at(filter.output_constant.as_ref()),
        input_channels: input_channels.into(),
        output_rows: output_rows.into(),
        act: act.into(),
        reserved: 0,
    };
    let device = queue.shape();
    let launch = params.launch(device.dtype(), device.bytes(), device.most());
    // SAFETY: operands were checked above and agree with the geometry that the filter was packed for.
    unsafe { queue.launch(&launch, &params, &format_args!("{op}, {shape}")) }
}
