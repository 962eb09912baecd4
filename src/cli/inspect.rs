//! `laud inspect`: what is this network?

use super::force::ForceArgs;
use super::model::{Model, ModelArgs};
use super::output::{Table, json, percent, si};
use super::quantize::RANGES_ABOUT;
use anyhow::Result;
use clap::Args;
use laud::CheckpointWeights;
use laud_models::{BlockSpec, GateSpec, NetSpec, Shortcut};
use serde_json::{Value, json};
use std::io::Write;

/// Describe a network: layers, gates, cost, where that is known from
#[derive(Args)]
pub(super) struct Inspect {
    /// As --model
    #[arg(value_name = "NAME|FILE", conflicts_with = "model")]
    network: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    force: ForceArgs,
}

impl Inspect {
    pub(super) fn run(mut self, out: &mut dyn Write) -> Result<()> {
        self.model.model = self.network.take().or(self.model.model.take());
        let model = self.model.resolve(&self.force)?;
        if self.json { json(out, &report(&model)?) } else { print(&model, out) }
    }
}

/// Multiply-accumulates of the convolutions and the classifier with everything active, as the executor counts them.
fn executed_dense(spec: &NetSpec) -> u64 {
    let plain = spec.without_gates();
    let stem = plain.stem.conv.output_size(plain.input.size).map_or(0, |size| plain.stem.conv.macs(size));
    let blocks: u64 = plain.blocks.iter().map(executed_block).sum();
    let last = plain.blocks.last().map(|block| block.output);
    let head = plain.head.conv.as_ref().zip(last).map_or(0, |(conv, map)| conv.macs(map));
    stem + blocks + head + (plain.head.fc.c_in * plain.head.fc.c_out) as u64
}

fn executed_block(block: &BlockSpec) -> u64 {
    let mut size = block.input;
    let mut macs = 0;
    for conv in &block.convs {
        size = conv.output_size(size).unwrap_or(size);
        macs += conv.macs(size);
    }
    match &block.shortcut {
        Shortcut::Projection(conv) => macs + conv.macs(block.output),
        _ => macs,
    }
}

/// Blocks of a stage that are alike but for the first.
struct Stage<'a> {
    blocks: Vec<&'a BlockSpec>,
}

impl<'a> Stage<'a> {
    fn all(spec: &'a NetSpec) -> Vec<Self> {
        spec.blocks
            .chunk_by(|a, b| a.stage == b.stage)
            .map(|blocks| Self { blocks: blocks.iter().collect() })
            .collect()
    }

    fn last(&self) -> &'a BlockSpec {
        self.blocks[self.blocks.len() - 1]
    }

    fn convs(&self) -> String {
        let conv = |conv: &laud_models::ConvSpec| {
            let kind = match conv.groups {
                1 => String::new(),
                n if n == conv.c_in => " depthwise".to_owned(),
                n => format!(" in {n} groups"),
            };
            format!("{0}×{0}{kind}", conv.kernel)
        };
        let mut text = self.last().convs.iter().map(conv).collect::<Vec<_>>().join(", ");
        if self.last().squeeze_excite.is_some() {
            text += ", squeeze-excitation";
        }
        text
    }

    fn gates(&self) -> String {
        let block = self.last();
        let some = |has: fn(&GateSpec) -> bool| {
            let gated = self.blocks.iter().filter(|block| has(&block.gate)).count();
            if gated < self.blocks.len() { format!(" in {gated}") } else { String::new() }
        };
        let mut parts = Vec::new();
        if let Some(gate) = &block.gate.spatial {
            let kind = match gate.layer {
                true => "layer".to_owned(),
                false => format!(
                    "{}×{} patches of {}×{}",
                    gate.grid.h,
                    gate.grid.w,
                    block.output.h / gate.grid.h.max(1),
                    block.output.w / gate.grid.w.max(1)
                ),
            };
            parts.push(kind + &some(|gate| gate.spatial.is_some()));
        }
        if let Some(gate) = &block.gate.channel {
            let kind = format!("{} groups of {} channels", gate.groups, gate.group_size);
            parts.push(kind + &some(|gate| gate.channel.is_some()));
        }
        parts.join(", ")
    }
}

/// Whether whole numbers can be computed with, and by what.
fn ranges_text(model: &Model) -> String {
    match (has_ranges(model), model.checkpoint()) {
        (true, Some(file)) => {
            let about =
                file.metadata().get(RANGES_ABOUT).and_then(|json| serde_json::from_str::<Value>(json).ok());
            let images = about.and_then(|about| about["images"].as_u64());
            let images = images.map_or_else(|| "images".to_owned(), |images| format!("{images} images"));
            format!("ranges measured on {images}")
        }
        (false, Some(_)) => "no ranges; `laud quantize` measures them".to_owned(),
        (_, None) => "made-up ranges, for times only".to_owned(),
    }
}

fn has_ranges(model: &Model) -> bool {
    model.checkpoint().is_some_and(|file| CheckpointWeights::new(file).has_ranges(&model.spec))
}

fn devices() -> Vec<String> {
    let sets = laud_kernels::Isa::available();
    vec![format!("cpu ({})", sets.iter().map(|isa| isa.name()).collect::<Vec<_>>().join(", "))]
}

fn print(model: &Model, out: &mut dyn Write) -> Result<()> {
    let spec = &model.spec;
    let input = &spec.input;
    let tensors =
        model.checkpoint().map_or_else(|| spec.parameters().len(), |checkpoint| checkpoint.tensors().len());
    let gates = if model.is_gated() { model.gates_text() } else { "none: a static network".to_owned() };
    let (full, least) = (spec.macs_at(1.0)?.total(), spec.macs_at(0.0)?.total());
    let dense = executed_dense(spec);
    let list = |values: &[f32]| values.iter().map(f32::to_string).collect::<Vec<_>>().join(" ");
    let resize = input.resize.map_or("no resize".to_owned(), |side| format!("shorter side to {side}"));
    let mut table = Table::default().left(1);
    let mut row = |name: &str, text: String| table.row([name.to_owned(), text]);
    row("network", spec.name.clone());
    row(
        "weights",
        format!(
            "{}, {} parameters in {tensors} tensors",
            model.weights_text(),
            si(spec.parameter_count() as f64)
        ),
    );
    row("architecture", format!("from {}", model.config_from));
    row(
        "input",
        format!(
            "{} channels, {}×{} pixels: {resize}, centre crop, mean {}, std {}",
            input.channels,
            input.size.h,
            input.size.w,
            list(&input.mean),
            list(&input.std)
        ),
    );
    row("int8", ranges_text(model));
    row("gates", gates + if model.attached { " (attached, not trained)" } else { "" });
    let macs = match model.is_gated() {
        true => format!(
            "{} with everything active, {} with nothing ({})",
            si(full),
            si(least),
            percent(least / full)
        ),
        false => si(full),
    };
    row(
        "MACs",
        format!("{macs}, counted as in the paper; {} in convolutions and classifier", si(dense as f64)),
    );
    row("runs on", devices().join(", "));
    table.print(out)?;

    writeln!(out)?;
    let mut table =
        Table::new(["stage", "blocks", "map", "channels", "inner", "MACs", "convolutions", "gates"])
            .left(6)
            .left(7);
    let stem = spec.stem.conv.output_size(input.size).unwrap_or(input.size);
    let row = |name: &str, map: String, channels: usize, macs: u64, text: String| {
        [
            name.to_owned(),
            String::new(),
            map,
            channels.to_string(),
            String::new(),
            si(macs as f64),
            text,
            String::new(),
        ]
    };
    let conv = &spec.stem.conv;
    let pool = if spec.stem.pool.is_some() { ", max pool" } else { "" };
    table.row(row(
        "stem",
        format!("{}×{}", stem.h, stem.w),
        conv.c_out,
        conv.macs(stem),
        format!("{0}×{0}{pool}", conv.kernel),
    ));
    for stage in Stage::all(spec) {
        let last = stage.last();
        table.row([
            (last.stage + 1).to_string(),
            stage.blocks.len().to_string(),
            format!("{}×{}", last.output.h, last.output.w),
            last.convs.last().map_or(0, |conv| conv.c_out).to_string(),
            last.convs[0].c_out.to_string(),
            si(stage.blocks.iter().map(|block| executed_block(block)).sum::<u64>() as f64),
            stage.convs(),
            stage.gates(),
        ]);
    }
    let fc = &spec.head.fc;
    let head =
        spec.head.conv.as_ref().zip(spec.blocks.last()).map_or(0, |(conv, block)| conv.macs(block.output));
    let text = if spec.head.conv.is_some() { "1×1, mean, linear" } else { "mean, linear" };
    table.row(row("head", String::new(), fc.c_out, head + (fc.c_in * fc.c_out) as u64, text.to_owned()));
    table.print(out)
}

fn report(model: &Model) -> Result<Value> {
    let spec = &model.spec;
    let stages = Stage::all(spec).into_iter().map(|stage| {
        let last = stage.last();
        json!({
            "stage": last.stage + 1,
            "blocks": stage.blocks.len(),
            "gated_blocks": stage.blocks.iter().filter(|block| block.gate.is_some()).count(),
            "map": [last.output.h, last.output.w],
            "channels": last.convs.last().map(|conv| conv.c_out),
            "macs": stage.blocks.iter().map(|block| executed_block(block)).sum::<u64>(),
            "gate": stage.blocks.iter().find(|block| block.gate.is_some()).map(|block| &block.gate),
        })
    });
    Ok(json!({
        "name": spec.name,
        "weights": { "from": model.weights_kind(), "file": model.checkpoint().map(|file| file.path()) },
        "config": model.config,
        "config_from": model.config_from,
        "gates": model.is_gated().then(|| model.gates_text()),
        "gates_attached": model.attached,
        "ranges": has_ranges(model),
        "parameters": spec.parameter_count(),
        "tensors": model.checkpoint().map_or_else(|| spec.parameters().len(), |file| file.tensors().len()),
        "macs": {
            "official_full": spec.macs_at(1.0)?.total(),
            "official_zero": spec.macs_at(0.0)?.total(),
            "executed_dense": executed_dense(spec),
        },
        "input": spec.input,
        "stages": stages.collect::<Vec<_>>(),
        "devices": devices(),
    }))
}
