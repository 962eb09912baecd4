//! `laud infer`: tensors in, tensors out.

use super::device::DeviceArgs;
use super::model::ModelArgs;
use super::output::{json, percent, si};
use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use laud::Output;
use laud::checkpoint::{Checkpoint, TensorData, TensorOut, write_safetensors};
use laud::exec::{BlockMasks, Request};
use laud_models::{BlockRates, MaskGrid, NetMacs, NetSpec, SampleMasks, SpatialGateSpec};
use serde_json::json;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

/// Infer a tensor from a file and write logits, feature maps and masks to another
#[derive(Args)]
pub(super) struct Infer {
    /// Safetensors file with a tensor `input` or `fixture.input`, [n, c, h, w], prepared as the weights expect
    #[arg(long, short, value_name = "FILE")]
    input: PathBuf,
    /// Safetensors file to write: fixture.logits, fixture.stage1.., fixture.mask.MODULE
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    force: super::force::ForceArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

impl Infer {
    pub(super) fn run(self, out: &mut dyn Write) -> Result<()> {
        self.force.no_exits("infer")?;
        let model = self.model.resolve(&self.force)?;
        let input = Checkpoint::open(&self.input)?;
        let (values, batch) = images(&input, &model.spec)?;
        let session = self.device.builder()?.session(&model)?;
        let policy = self.force.policy(&model.spec, batch, self.force.single()?, &self.device)?;
        let mut output = Output::default();
        let request = Request { images: &values, batch, features: true, masks: true, timed: false };
        session
            .infer_with(request, &*policy, &mut output)
            .with_context(|| self.input.display().to_string())?;
        let macs = block_macs(&model.spec, &output.masks, batch)?;

        let total = [macs.total()];
        let fractions: Vec<f32> = macs.blocks.iter().map(|block| block.fraction() as f32).collect();
        let mut tensors = BTreeMap::new();
        let mut put = |name: String, shape: Vec<usize>, data| tensors.insert(name, TensorOut { shape, data });
        put("fixture.logits".into(), vec![batch, model.spec.head.fc.c_out], TensorData::F32(&output.logits));
        for (stage, map) in (1..).zip(&output.features) {
            put(format!("fixture.stage{stage}"), map.shape.to_vec(), TensorData::F32(&map.values));
        }
        let bytes: Vec<_> =
            output.masks.iter().map(|masks| (bits(&masks.patches), bits(&masks.channel_groups))).collect();
        for (block, (patches, groups)) in model.spec.blocks.iter().zip(&bytes) {
            if let Some(gate) = &block.gate.spatial {
                put(
                    format!("fixture.mask.{}", gate.prefix),
                    spatial_shape(gate, batch),
                    TensorData::U8(patches),
                );
            }
            if let Some(gate) = &block.gate.channel {
                put(
                    format!("fixture.mask.{}", gate.prefix),
                    vec![batch, gate.groups],
                    TensorData::U8(groups),
                );
            }
        }
        put("fixture.macs_total".into(), vec![1], TensorData::F64(&total));
        put("fixture.flops_fraction_per_block".into(), vec![fractions.len()], TensorData::F32(&fractions));
        let config = serde_json::to_string(&model.config).context("cannot write the configuration")?;
        write_safetensors(&self.output, &tensors, &BTreeMap::from([("config".to_owned(), config)]))?;

        let trace = &output.trace;
        if self.json {
            return json(
                out,
                &json!({
                    "model": model.spec.name,
                    "device": session.describe(),
                    "batch": batch,
                    "output": self.output,
                    "tensors": tensors.len(),
                    "macs": { "done": trace.macs(), "dense": trace.dense_macs() },
                }),
            );
        }
        let share = trace.macs() as f64 / trace.dense_macs() as f64;
        writeln!(
            out,
            "{}: {} tensors of {batch} samples  ·  {} MACs ({} of dense)  ·  {}",
            self.output.display(),
            tensors.len(),
            si(trace.macs() as f64),
            percent(share),
            session.describe()
        )?;
        Ok(())
    }
}

/// The tensor `input` or `fixture.input`, checked against what the network reads; and the batch size.
pub(super) fn images(file: &Checkpoint, spec: &NetSpec) -> Result<(Vec<f32>, usize)> {
    let path = file.path().display();
    let Some(name) = ["input", "fixture.input"].into_iter().find(|name| file.tensors().contains_key(*name))
    else {
        bail!("{path}: has neither a tensor `input` nor `fixture.input`")
    };
    let shape = &file.tensors()[name].shape;
    let (c, size) = (spec.input.channels, spec.input.size);
    match shape.as_slice() {
        &[n, channels, h, w] if n > 0 && (channels, h, w) == (c, size.h, size.w) => {
            let values = file.read_f32(name)?;
            if let Some(at) = values.iter().position(|value| !value.is_finite()) {
                bail!("{path}: `{name}` holds {} at element {at}; inputs must be finite", values[at]);
            }
            Ok((values, n))
        }
        _ => bail!("{path}: `{name}` is {shape:?}, {} reads [n, {c}, {}, {}]", spec.name, size.h, size.w),
    }
}

/// Shape of a recorded spatial mask.
pub(super) fn spatial_shape(gate: &SpatialGateSpec, batch: usize) -> Vec<usize> {
    vec![batch, 1, gate.grid.h, gate.grid.w]
}

fn bits(mask: &[bool]) -> Vec<u8> {
    mask.iter().map(|&keep| u8::from(keep)).collect()
}

/// The official count of multiply-accumulates for these decisions.
pub(super) fn block_macs(spec: &NetSpec, masks: &[BlockMasks], batch: usize) -> Result<NetMacs> {
    ensure!(masks.len() == spec.blocks.len(), "decisions of {} blocks", masks.len());
    let rates = spec.blocks.iter().zip(masks).map(|(block, masks)| {
        let sample = |sample: usize| {
            let part = |all: &[bool], units: usize| {
                all.get(sample * units..(sample + 1) * units).map(<[bool]>::to_vec)
            };
            let spatial =
                block.gate.spatial.as_ref().and_then(|gate| {
                    MaskGrid::new(gate.grid, part(&masks.patches, gate.grid.h * gate.grid.w)?)
                });
            let channel =
                block.gate.channel.as_ref().and_then(|gate| part(&masks.channel_groups, gate.groups));
            SampleMasks { spatial, channel }
        };
        BlockRates::of(block, &(0..batch).map(sample).collect::<Vec<_>>())
    });
    Ok(spec.macs(&rates.collect::<Result<Vec<_>, _>>()?)?)
}
