//! Launches of `squeeze_excite.cu`.

use super::SqueezeExcite;
use crate::cuda::params::ScaleParams;
use crate::cuda::{self, Buffer, Channels, CudaQueue, CudaScratch, Driver, Rows, check};
use crate::{Result, gate, mean_pool};
use std::sync::Arc;

/// Makes room for what lies between the layers, for up to `batch` samples.
pub(crate) fn reserve(
    driver: &Arc<dyn Driver>,
    scratch: &mut CudaScratch,
    weights: &cuda::SqueezeExcite,
    batch: usize,
) -> Result<()> {
    let widths = [weights.squeeze.c_in, weights.squeeze.c_out, weights.excite.c_out];
    for (memory, width) in scratch.room.iter_mut().zip(widths) {
        memory.reserve(driver, floats(batch, width), "squeeze-excitation")?;
    }
    Ok(())
}

/// Bytes of a value for every channel.
fn floats(batch: usize, width: usize) -> usize {
    batch.saturating_mul(width).saturating_mul(size_of::<f32>())
}

pub(crate) fn run(
    queue: &mut CudaQueue<'_>,
    weights: &cuda::SqueezeExcite,
    call: SqueezeExcite<'_, Buffer, Rows, Channels>,
) -> Result<()> {
    let SqueezeExcite { rows, channels, data, data_rows, mean } = call;
    let op = "squeeze_excite";
    let (batch, c) = (rows.batch, weights.squeeze.c_in);
    let shape = mean_pool::cuda::check(op, (rows, channels), data, data_rows, mean)?;
    check::channels(op, channels, c, batch, &shape)?;
    let means = queue.reserved(|scratch| &scratch.room[0], floats(batch, c))?;
    let hidden = queue.reserved(|scratch| &scratch.room[1], floats(batch, weights.squeeze.c_out))?;
    let factor = queue.reserved(|scratch| &scratch.room[2], floats(batch, c))?;
    // SAFETY: operands were checked above, and the room is as large.
    unsafe {
        mean_pool::cuda::run_unchecked(queue, (rows, channels), data, data_rows, mean, (true, means))?;
        gate::cuda::linear_unchecked(queue, &weights.squeeze, batch, means, hidden)?;
        gate::cuda::linear_unchecked(queue, &weights.excite, batch, hidden, factor)?;
    }
    let row_list = queue.rows(rows);
    let channel_list = queue.channels(channels);
    let params = ScaleParams {
        rows: row_list,
        channels: channel_list,
        data: queue.at(&data.memory),
        factor,
        data_rows: data_rows.into(),
        reserved: 0,
    };
    let device = queue.shape();
    let launch = params.launch(device.dtype(), device.bytes(), device.most());
    // SAFETY: as above.
    unsafe { queue.launch(&launch, &params, &format_args!("{op}, {shape}")) }
}
