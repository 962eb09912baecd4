//! Launches of `gate.cu`.

use super::{Account, Decide, Most};
use crate::cuda::params::{Address, DecideHighestParams, DecideParams, LinearParams, PatchGateParams};
use crate::cuda::{Buffer, CudaQueue, Linear, PatchGate, Vector};
use crate::error::require;
use crate::{Extent, Result};

pub(crate) fn patch(
    queue: &mut CudaQueue<'_>,
    gate: &PatchGate,
    input: &Buffer,
    batch: usize,
    map: Extent,
    margins: &mut Vector<f32>,
) -> Result<()> {
    let PatchGate { weight, c, bias, grid } = gate;
    let shape = format_args!("{}×{}×{c}, {}×{} cells, batch {batch}", map.h, map.w, grid.h, grid.w);
    require("gate", "input", input.len, &[batch, map.h, map.w, *c], &shape)?;
    require("gate", "margins", margins.len(), &[batch, grid.h, grid.w], &shape)?;
    let params = PatchGateParams {
        input: queue.at(&input.memory),
        weight: queue.at(weight),
        margin: queue.at(&margins.memory),
        keep: 0,
        batch: batch as u32,
        h: map.h as u32,
        w: map.w as u32,
        c: *c as u32,
        grid_h: grid.h as u32,
        grid_w: grid.w as u32,
        bias: *bias,
        threshold: 0.0,
    };
    let launch = params.launch(queue.shape().dtype());
    // SAFETY: operands were checked above.
    unsafe { queue.launch(&launch, &params, &format_args!("gate, {shape}")) }
}

pub(crate) fn linear(
    queue: &mut CudaQueue<'_>,
    layer: &Linear,
    batch: usize,
    input: &Vector<f32>,
    output: &mut Vector<f32>,
) -> Result<()> {
    let (c_in, c_out) = (layer.c_in, layer.c_out);
    let shape = format_args!("{c_in} → {c_out}, batch {batch}");
    require("linear", "input", input.len(), &[batch, c_in], &shape)?;
    require("linear", "output", output.len(), &[batch, c_out], &shape)?;
    let (input, output) = (queue.at(&input.memory), queue.at(&output.memory));
    // SAFETY: operands were checked above.
    unsafe { linear_unchecked(queue, layer, batch, input, output) }
}

/// # Safety
/// `input` is `[batch, c_in]` and `output` `[batch, c_out]`, both held by the queue.
pub(crate) unsafe fn linear_unchecked(
    queue: &mut CudaQueue<'_>,
    layer: &Linear,
    batch: usize,
    input: Address,
    output: Address,
) -> Result<()> {
    let (c_in, c_out) = (layer.c_in, layer.c_out);
    let params = LinearParams {
        input,
        weight: queue.at(&layer.weight),
        bias: queue.at(&layer.bias),
        output,
        keep: 0,
        batch: batch as u32,
        c_in: c_in as u32,
        c_out: c_out as u32,
        act: layer.act,
        threshold: 0.0,
        reserved: 0,
    };
    // SAFETY: the caller's word.
    unsafe {
        queue.launch(&params.launch(), &params, &format_args!("linear, {c_in} → {c_out}, batch {batch}"))
    }
}

pub(crate) fn decide(queue: &mut CudaQueue<'_>, call: Decide<'_, Vector<f32>, Vector<bool>>) -> Result<()> {
    let Decide { batch, per_sample, margins, at_least, most, keep, keep_at } = call;
    let shape = format_args!("{batch} samples of {per_sample} units");
    require("decide", "margins", margins.len(), &[batch, per_sample], &shape)?;
    require("decide", "decisions", keep.len().saturating_sub(keep_at), &[batch, per_sample], &shape)?;
    let (margin, keep) = (queue.at(&margins.memory), queue.at(&keep.memory) + keep_at as u64);
    let what = format_args!("decide, {shape}");
    let highest = DecideHighestParams {
        margin,
        keep,
        batch: batch as u32,
        per_sample: per_sample as u32,
        threshold: at_least,
        ..DecideHighestParams::default()
    };
    let params = match most {
        Most::All => {
            let len = (batch * per_sample) as u32;
            let params = DecideParams { margin, keep, len, threshold: at_least };
            // SAFETY: operands were checked above.
            return unsafe { queue.launch(&params.launch(), &params, &what) };
        }
        Most::Count(most) => DecideHighestParams { most: most.min(per_sample) as u32, ..highest },
        Most::Paid(Account { spent, price, pace, limit }) => {
            require("decide", "account", spent.len(), &[batch], &shape)?;
            DecideHighestParams { spent: queue.at(&spent.memory), price, pace, limit, ..highest }
        }
    };
    // SAFETY: as above.
    unsafe { queue.launch(&params.launch(), &params, &what) }
}
