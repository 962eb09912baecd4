//! Launches of `shortcut.cu`.

use super::PadChannels;
use crate::Result;
use crate::cuda::params::PadChannelsParams;
use crate::cuda::{Buffer, CudaQueue};

pub(crate) fn run(queue: &mut CudaQueue<'_>, call: PadChannels<'_, Buffer>) -> Result<()> {
    call.check(call.input.len, call.output.len)?;
    let PadChannels { batch, input_map, output_map, c_in, c_out, stride, before, input, output } = call;
    let params = PadChannelsParams {
        input: queue.at(&input.memory),
        output: queue.at(&output.memory),
        batch: batch as u32,
        in_h: input_map.h as u32,
        in_w: input_map.w as u32,
        out_h: output_map.h as u32,
        out_w: output_map.w as u32,
        c_in: c_in as u32,
        c_out: c_out as u32,
        stride: stride as u32,
        before: before as u32,
        reserved: 0,
    };
    let device = queue.shape();
    let launch = params.launch(device.dtype(), device.bytes(), device.most());
    let shape = format_args!("{c_in} → {c_out} channels, stride {stride}, batch {batch}");
    // SAFETY: operands were checked above.
    unsafe { queue.launch(&launch, &params, &format_args!("shortcut, {shape}")) }
}
