//! `laud verify`: does this machine compute what a file says that the network computes?

use super::device::{Builder, DeviceArgs};
use super::infer::{block_macs, spatial_shape};
use super::model::{Model, ModelArgs};
use super::output::{Table, json, tiny};
use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use laud::checkpoint::Checkpoint;
use laud::exec::Request;
use laud::{FIXTURE_PREFIX, Output};
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Check results against the ones recorded in files
#[derive(Args)]
pub(super) struct Verify {
    /// Files with recorded results beside the weights, or with FILE.expected.safetensors beside them
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Largest error of logits and feature maps, relative to the largest value
    #[arg(long, value_name = "T", default_value = "1e-4", value_parser = super::parse::tolerance)]
    tolerance: f64,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Largest relative error of counted multiply-accumulates.
const MACS_TOLERANCE: f64 = 1e-6;
/// What recorded results are called.
const EXPECTED: &str = ".expected.safetensors";

/// How far one file's results are from what it says.
struct Outcome {
    file: String,
    masks: Masks,
    logits: Option<Error>,
    /// Of the worst stage.
    stages: Option<Error>,
    stage_count: usize,
    macs: Option<f64>,
    fractions: Option<f64>,
    /// What disagrees, in words.
    wrong: Vec<String>,
}

#[derive(Default)]
struct Masks {
    decisions: usize,
    different: usize,
}

/// Largest deviation, and the same relative to the largest value.
#[derive(Clone, Copy, Default)]
struct Error {
    absolute: f64,
    relative: f64,
}

impl Verify {
    pub(super) fn run(self, out: &mut dyn Write) -> Result<()> {
        let builder = self.device.builder()?;
        let outcomes =
            self.files.iter().map(|file| self.verify(&builder, file)).collect::<Result<Vec<_>>>()?;
        let failed = outcomes.iter().filter(|outcome| !outcome.wrong.is_empty()).count();
        match self.json {
            true => json(out, &outcomes.iter().map(Outcome::json).collect::<Vec<_>>())?,
            false => print(&outcomes, out)?,
        }
        ensure!(failed == 0, "verify: {failed} of {} files disagree", outcomes.len());
        Ok(())
    }

    fn verify(&self, builder: &Builder<'_>, file: &Path) -> Result<Outcome> {
        let name = file.display().to_string();
        let (weights, recorded) = pair(file)?;
        let recorded = Checkpoint::open(&recorded)?;
        ensure!(
            recorded.tensors().keys().any(|name| name.starts_with(FIXTURE_PREFIX)),
            "{name}: no recorded results in it, and no {} beside it",
            expected_of(file).file_name().unwrap_or_default().to_string_lossy()
        );
        let weights = self.model.model.as_deref().map_or(weights, PathBuf::from);
        let model = self.model.open(&weights, Some(&recorded))?;
        let session = builder.session(&model)?;
        let (input, batch) = super::infer::images(&recorded, &model.spec)?;
        let mut output = Output::default();
        let request = Request { images: &input, batch, features: true, masks: true, timed: false };
        session.infer_into(request, &mut output).with_context(|| name.clone())?;
        self.compare(&name, &model, &recorded, &output)
    }

    fn compare(&self, name: &str, model: &Model, recorded: &Checkpoint, output: &Output) -> Result<Outcome> {
        let batch = output.trace.batch;
        let mut wrong = Vec::new();
        let mut masks = Masks::default();
        let known = |name: &str| recorded.tensors().get(name).map(|info| info.shape.clone());
        let mut used = 1; // the input

        let logits = match known("fixture.logits") {
            None => None,
            Some(shape) => {
                used += 1;
                let wanted = [batch, model.spec.head.fc.c_out];
                ensure!(shape == wanted, "{name}: fixture.logits is {shape:?}, the network gives {wanted:?}");
                Some(Error::between(&output.logits, &recorded.read_f32("fixture.logits")?))
            }
        };
        let mut stages: Option<Error> = None;
        let mut stage_count = 0;
        for (stage, map) in (1..).zip(&output.features) {
            let key = format!("fixture.stage{stage}");
            let Some(shape) = known(&key) else { continue };
            used += 1;
            ensure!(shape == map.shape, "{name}: {key} is {shape:?}, the network gives {:?}", map.shape);
            let error = Error::between(&map.values, &recorded.read_f32(&key)?);
            if !error.within(self.tolerance) {
                wrong.push(format!("stage {stage} is off by {} of its largest value", tiny(error.relative)));
            }
            stages = Some(stages.map_or(error, |worst| worst.max(error)));
            stage_count += 1;
        }
        for (block, found) in model.spec.blocks.iter().zip(&output.masks) {
            let spatial = block
                .gate
                .spatial
                .as_ref()
                .map(|gate| (&gate.prefix, spatial_shape(gate, batch), &found.patches));
            let channel = block
                .gate
                .channel
                .as_ref()
                .map(|gate| (&gate.prefix, vec![batch, gate.groups], &found.channel_groups));
            for (prefix, wanted, found) in [spatial, channel].into_iter().flatten() {
                let key = format!("fixture.mask.{prefix}");
                let Some(shape) = known(&key) else { continue };
                used += 1;
                ensure!(shape == wanted, "{name}: {key} is {shape:?}, the network decides {wanted:?}");
                let recorded = recorded.read_u8(&key)?;
                let different = recorded
                    .iter()
                    .zip(found)
                    .filter(|&(&recorded, &found)| (recorded != 0) != found)
                    .count();
                if different > 0 {
                    wrong.push(format!("{prefix}: {different} of {} decisions differ", found.len()));
                }
                masks.decisions += found.len();
                masks.different += different;
            }
        }
        let counted = block_macs(&model.spec, &output.masks, batch)?;
        let macs = match known("fixture.macs_total") {
            None => None,
            Some(_) => {
                used += 1;
                let wanted = read_f64(recorded, "fixture.macs_total")?;
                ensure!(wanted.len() == 1, "{name}: fixture.macs_total holds {} values", wanted.len());
                Some((counted.total() - wanted[0]).abs() / wanted[0].abs())
            }
        };
        let fractions = match known("fixture.flops_fraction_per_block") {
            None => None,
            Some(shape) => {
                used += 1;
                let wanted = recorded.read_f32("fixture.flops_fraction_per_block")?;
                ensure!(
                    wanted.len() == counted.blocks.len(),
                    "{name}: fixture.flops_fraction_per_block is {shape:?}, the network has {} blocks",
                    counted.blocks.len()
                );
                let error = |(block, &wanted): (&laud_models::BlockMacs, &f32)| {
                    (block.fraction() - f64::from(wanted)).abs()
                };
                Some(counted.blocks.iter().zip(&wanted).map(error).fold(0.0, worse))
            }
        };
        if let Some(error) = logits.filter(|error| !error.within(self.tolerance)) {
            wrong.push(format!("the logits are off by {} of their largest", tiny(error.relative)));
        }
        for (what, error) in [("total", macs), ("fraction of a block", fractions)] {
            if let Some(error) = error.filter(|&error| error.is_nan() || error > MACS_TOLERANCE) {
                wrong.push(format!("the {what} of multiply-accumulates is off by {}", tiny(error)));
            }
        }
        let all = recorded.tensors().keys().filter(|name| name.starts_with(FIXTURE_PREFIX)).count();
        if used < all {
            wrong.push(format!(
                "{} recorded results are of something that this network does not have",
                all - used
            ));
        }
        ensure!(all > 1, "{name}: only an input is recorded, nothing to compare with");
        Ok(Outcome { file: name.to_owned(), masks, logits, stages, stage_count, macs, fractions, wrong })
    }
}

impl Error {
    fn between(found: &[f32], wanted: &[f32]) -> Self {
        let absolute = found.iter().zip(wanted).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, worse);
        let scale = wanted.iter().map(|value| f64::from(value.abs())).fold(0.0, worse);
        let relative = if absolute == 0.0 { 0.0 } else { absolute / scale };
        Self { absolute, relative }
    }

    fn within(self, tolerance: f64) -> bool {
        self.relative <= tolerance
    }

    fn max(self, other: Self) -> Self {
        Self {
            absolute: worse(self.absolute, other.absolute),
            relative: worse(self.relative, other.relative),
        }
    }
}

/// The larger; NaN if either is.
fn worse(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }
}

/// The file with the weights and the file with the results, from either.
fn pair(file: &Path) -> Result<(PathBuf, PathBuf)> {
    let text = file.to_string_lossy();
    if let Some(stem) = text.strip_suffix(EXPECTED) {
        let candidates =
            ["pth.tar", "pth", "pt", "bin", "safetensors"].map(|end| PathBuf::from(format!("{stem}.{end}")));
        let Some(weights) = candidates.into_iter().find(|path| path.is_file()) else {
            bail!("{text}: no weights beside it ({stem}.pth.tar, .pth, .pt, .bin, .safetensors)")
        };
        return Ok((weights, file.to_owned()));
    }
    let expected = expected_of(file);
    let recorded = if expected.is_file() { expected } else { file.to_owned() };
    Ok((file.to_owned(), recorded))
}

fn expected_of(file: &Path) -> PathBuf {
    let text = file.to_string_lossy();
    let ends = [".pth.tar", ".pth", ".pt", ".bin", ".safetensors"];
    let stem = ends.iter().find_map(|end| text.strip_suffix(end)).unwrap_or(&text);
    PathBuf::from(format!("{stem}{EXPECTED}"))
}

fn read_f64(recorded: &Checkpoint, name: &str) -> Result<Vec<f64>> {
    if recorded.tensors()[name].dtype != laud::checkpoint::DType::F64 {
        return Ok(recorded.read_f32(name)?.into_iter().map(f64::from).collect());
    }
    let bytes = recorded.read_bytes(name)?;
    Ok(bytes.as_chunks::<8>().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect())
}

fn print(outcomes: &[Outcome], out: &mut dyn Write) -> Result<()> {
    let mut table =
        Table::new(["", "decisions", "logits abs", "rel", "stages abs", "rel", "MACs rel", "per block", ""])
            .left(8);
    for outcome in outcomes {
        let Masks { decisions, different } = outcome.masks;
        let file = Path::new(&outcome.file).file_name().unwrap_or_default().to_string_lossy().into_owned();
        let [la, lr] = columns(outcome.logits);
        let [sa, sr] = columns(outcome.stages);
        let single = |error: Option<f64>| error.map_or_else(String::new, tiny);
        let verdict = if outcome.wrong.is_empty() { "agrees" } else { "DIFFERS" };
        table.row([
            file,
            format!("{} of {decisions} equal", decisions - different),
            la,
            lr,
            sa,
            sr,
            single(outcome.macs),
            single(outcome.fractions),
            verdict.to_owned(),
        ]);
    }
    table.print(out)?;
    for outcome in outcomes {
        for wrong in &outcome.wrong {
            writeln!(out, "{}: {wrong}", outcome.file)?;
        }
    }
    Ok(())
}

fn columns(error: Option<Error>) -> [String; 2] {
    error.map_or_else(Default::default, |error| [tiny(error.absolute), tiny(error.relative)])
}

impl Outcome {
    fn json(&self) -> Value {
        let error =
            |error: Option<Error>| error.map(|e| json!({ "absolute": e.absolute, "relative": e.relative }));
        json!({
            "file": self.file,
            "agrees": self.wrong.is_empty(),
            "masks": { "decisions": self.masks.decisions, "different": self.masks.different },
            "logits": error(self.logits),
            "stages": error(self.stages),
            "stages_compared": self.stage_count,
            "macs_relative_error": self.macs,
            "flops_fraction_error": self.fractions,
            "wrong": self.wrong,
        })
    }
}
