//! Runs networks on the executor, with tensors in and out.

use std::collections::HashMap;

use candle_core::{Device, Tensor};
use laud::exec::Request;
use laud::gate::{Given, Policy};
use laud::plan::ExecutionPlan;
use laud::train::{BlockMasks, PerGate};
use laud::{Output, Session, SessionBuilder, TensorMap};
use laud_kernels::Isa;
use laud_models::{BlockSpec, MapSize, MaskGrid, NetSpec, SampleMasks, Shortcut, SqueezePooling};

use crate::compare::values;

/// A session on the weights, one thread unless `change` says otherwise.
pub(crate) fn session(
    spec: &NetSpec,
    weights: &HashMap<String, Tensor>,
    change: impl FnOnce(SessionBuilder) -> SessionBuilder,
) -> Session {
    let weights = TensorMap::from_candle(weights).unwrap();
    change(Session::builder(spec.clone())).build(&weights).unwrap()
}

/// What the executor found.
pub(crate) struct Found {
    pub(crate) logits: Tensor,
    pub(crate) stages: Vec<Tensor>,
    pub(crate) masks: Vec<BlockMasks>,
    pub(crate) output: Output,
}

/// One inference of `images [n, c, h, w]` with everything recorded; without a policy the session's decides.
pub(crate) fn run(session: &Session, images: &Tensor, policy: Option<&dyn Policy>) -> Found {
    found(session, images, |request, output| match policy {
        Some(policy) => session.infer_with(request, policy, output).unwrap(),
        None => session.infer_into(request, output).unwrap(),
    })
}

/// The same by another plan.
pub(crate) fn run_by(plan: &ExecutionPlan, session: &Session, images: &Tensor, policy: &dyn Policy) -> Found {
    found(session, images, |request, output| session.infer_by(plan, request, policy, output).unwrap())
}

fn found(session: &Session, images: &Tensor, infer: impl FnOnce(Request<'_>, &mut Output)) -> Found {
    let (values, batch) = (values(images), images.dim(0).unwrap());
    let request = Request { images: &values, batch, features: true, masks: true, timed: false };
    let mut output = Output::default();
    infer(request, &mut output);
    let logits = (batch, output.logits.len() / batch);
    let masks = session.spec().blocks.iter().zip(&output.masks).map(|(block, masks)| PerGate {
        spatial: block.gate.spatial.is_some().then(|| masks.patches.clone()),
        channel: block.gate.channel.is_some().then(|| masks.channel_groups.clone()),
    });
    let stage = |map: &laud::exec::FeatureMap| Tensor::from_slice(&map.values, &map.shape, &Device::Cpu);
    Found {
        logits: Tensor::from_slice(&output.logits, logits, &Device::Cpu).unwrap(),
        stages: output.features.iter().map(|map| stage(map).unwrap()).collect(),
        masks: masks.collect(),
        output,
    }
}

/// A policy that decides as `masks` say.
pub(crate) fn recorded(spec: &NetSpec, masks: &[BlockMasks]) -> Given {
    let decisions = masks.iter().map(|masks| (masks.spatial.clone(), masks.channel.clone())).collect();
    Given::recorded(spec, decisions).unwrap()
}

/// Names of the instruction sets that this machine has.
pub(crate) fn isas() -> Vec<&'static str> {
    Isa::available().into_iter().map(Isa::name).collect()
}

/// The masks of one block, sample by sample.
pub(crate) fn samples(block: &BlockSpec, masks: &BlockMasks, batch: usize) -> Vec<SampleMasks> {
    let of = |all: &Vec<bool>, n: usize| all[n * all.len() / batch..(n + 1) * all.len() / batch].to_vec();
    let grid = |cells| MaskGrid::new(block.gate.spatial.as_ref().unwrap().grid, cells).unwrap();
    let sample = |n| SampleMasks {
        spatial: masks.spatial.as_ref().map(|all| grid(of(all, n))),
        channel: masks.channel.as_ref().map(|all| of(all, n)),
    };
    (0..batch).map(sample).collect()
}

/// Multiply-accumulates of the block when it gathers, and with everything active: every product of an active output
/// with an active input, one by one.
pub(crate) fn macs(block: &BlockSpec, samples: &[SampleMasks]) -> (u64, u64) {
    let whole = |conv: &laud_models::ConvSpec, out: MapSize| conv.macs(out) * samples.len() as u64;
    let skipped = |sample: &SampleMasks| sample.spatial.as_ref().is_some_and(|mask| mask.active() == 0);
    // Squeeze-excitation may average all positions: all in front of it are computed where any in the batch is not.
    let everywhere = block.squeeze_excite.as_ref().is_some_and(|se| se.pooling == SqueezePooling::Dense);
    let (mut macs, mut dense, mut size) = (0, 0, block.input);
    for (index, conv) in block.convs.iter().enumerate() {
        let last = index + 1 == block.convs.len();
        size = conv.output_size(size).unwrap();
        dense += whole(conv, size);
        for sample in samples.iter().filter(|_| !samples.iter().all(skipped)) {
            let positions = match &sample.spatial {
                Some(mask) if !everywhere || last => block.masks(mask).unwrap()[index].active(),
                _ => size.h * size.w,
            };
            let keep = |c: usize, gated: bool| {
                let gate = block.gate.channel.as_ref().filter(|_| gated).zip(sample.channel.as_ref());
                gate.is_none_or(|(gate, keep)| keep[c / gate.group_size])
            };
            let (group_in, group_out) = (conv.c_in / conv.groups, conv.c_out / conv.groups);
            let pairs = (0..conv.c_out).filter(|&o| keep(o, !last)).map(|o| {
                let first = o / group_out * group_in;
                (first..first + group_in).filter(|&i| keep(i, index > 0)).count()
            });
            macs += (positions * conv.kernel * conv.kernel * pairs.sum::<usize>()) as u64;
        }
    }
    if let Shortcut::Projection(conv) = &block.shortcut {
        macs += whole(conv, block.output);
        dense += whole(conv, block.output);
    }
    (macs, dense)
}
