//! Launches of `mean_pool.cu`.

use super::{Mean, MeanPool};
use crate::cuda::params::{Address, MeanPoolParams};
use crate::cuda::{Buffer, Channels, CudaQueue, Rows, Vector};
use crate::error::require;
use crate::gather_gemm::Placement;
use crate::{Error, Result};

pub(crate) fn run(
    queue: &mut CudaQueue<'_>,
    call: MeanPool<'_, Buffer, Vector<f32>, Rows, Channels>,
) -> Result<()> {
    let MeanPool { rows, channels, input, input_rows, mean, output } = call;
    let shape = check("mean_pool", (rows, channels), input, input_rows, mean)?;
    require("mean_pool", "output", output.len(), &[rows.batch, channels.total], &shape)?;
    let output = queue.at(&output.memory);
    // SAFETY: operands were checked above.
    unsafe { run_unchecked(queue, (rows, channels), input, input_rows, mean, (false, output)) }
}

/// Checks what an operation on listed rows of data relies on; gives its shape in words.
pub(crate) fn check(
    op: &'static str,
    (rows, channels): (&Rows, &Channels),
    data: &Buffer,
    placement: Placement,
    mean: Mean,
) -> Result<String> {
    let (batch, pixels, c) = (rows.batch, rows.pixels, channels.total);
    let shape = format!("batch {batch}, {pixels} pixels, {c} channels");
    if mean == Mean::AllPixels && placement == Placement::Compact {
        return Err(Error::Geometry { op, why: "compact rows are not all pixels", geometry: shape });
    }
    require(op, "input", data.len, &[batch, pixels, c], &shape)?;
    require(op, "active channels", channels.samples().unwrap_or(batch), &[batch], &shape)?;
    Ok(shape)
}

/// # Safety
/// Operands have been checked; `output` is `[batch, c]` and held by the queue.
pub(crate) unsafe fn run_unchecked(
    queue: &mut CudaQueue<'_>,
    (rows, channels): (&Rows, &Channels),
    input: &Buffer,
    input_rows: Placement,
    mean: Mean,
    (by_channel, output): (bool, Address),
) -> Result<()> {
    let row_list = queue.rows(rows);
    let channel_list = queue.channels(channels);
    let params = MeanPoolParams {
        rows: row_list,
        channels: channel_list,
        input: queue.at(&input.memory),
        output,
        partial: 0,
        arrived: 0,
        input_rows: input_rows.into(),
        mean: mean.into(),
        by_channel: u32::from(by_channel),
        split: 1,
    };
    let device = queue.shape();
    let params = MeanPoolParams { split: device.mean_parts(&params), ..params };
    let params = match params.split {
        1 => params,
        _ => {
            let (partial, arrived) = queue.parts(params.partial_len(), params.arrived_len())?;
            MeanPoolParams { partial, arrived, ..params }
        }
    };
    let launch = params.launch(device.dtype());
    let (batch, pixels, c) = (rows.batch, rows.pixels, channels.total);
    let shape = format_args!("mean_pool, batch {batch}, {pixels} pixels, {c} channels");
    // SAFETY: the caller's word.
    unsafe { queue.launch(&launch, &params, &shape) }
}
