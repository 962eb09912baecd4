//! A whole training in a folder: steps, log, checkpoints, and going on where it was cut off.
//!
//! | file | what |
//! |---|---|
//! | `model.safetensors` | the network, with its configuration in the metadata; written behind every epoch |
//! | `state.safetensors` | weights, velocities, step: what going on needs |
//! | `log.jsonl` | an object for every step and for every epoch's evaluation, as soon as it is over |
//!
//! Everything random depends on the seed and the step only, so a training that was cut off and goes on ends with the same
//! weights as one that was not.

use std::collections::{BTreeMap, HashMap};
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor};
use half::f16;
use laud_models::NetConfig;
use serde::{Deserialize, Serialize};

use super::init::is_gate;
use super::recipe::Recipe;
use super::trainer::{StepReport, Trainer, correct};
use crate::checkpoint::{Checkpoint, DType, TensorData, TensorOut, write_safetensors};
use crate::files::write_atomically;
use crate::random::Random;
use crate::vision::{Augment, Batches};

/// In front of the names of velocities.
const VELOCITY: &str = "velocity.";
/// Images of an evaluation's step.
const EVALUATED_AT_ONCE: usize = 100;

/// A training in a folder.
pub struct Course<'a> {
    folder: PathBuf,
    trainer: Trainer,
    config: NetConfig,
    data: &'a Batches,
    validation: Option<&'a Batches>,
    /// Steps between two saved states.
    every: usize,
    /// Told to whoever reads the files.
    about: BTreeMap<String, String>,
    precision: Precision,
}

/// How the network is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// In single precision.
    #[default]
    Single,
    /// The backbone's filters in half precision; gates, biases and normalisations in single precision.
    Half,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Event {
    /// A step.
    Step(StepReport),
    /// An epoch and, where there are images for that, an evaluation.
    Epoch(EpochReport),
}

/// An epoch that is over.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EpochReport {
    /// Epochs so far.
    pub epoch: usize,
    /// Steps so far.
    pub step: usize,
    /// Share of the validation images that the network, deciding as it will be used, gets right.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top1: Option<f64>,
    /// Its cost ÷ that of the network without gates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<f64>,
}

/// What a state must agree with to be gone on from.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Progress {
    step: usize,
    steps: usize,
    images: usize,
    recipe: Recipe,
}

/// Where in its folder a training's state is.
const STATE_FILE: &str = "state.safetensors";

/// Whether a training in this folder goes on from a saved state.
pub fn goes_on(folder: &Path) -> bool {
    folder.join(STATE_FILE).exists()
}

/// Steps of an epoch of `images`; the rest that fills no step sits out, a different one every epoch.
///
/// # Errors
/// Fewer images than a step takes.
pub fn steps_per_epoch(images: usize, batch: usize) -> Result<usize> {
    ensure!(images >= batch, "{images} images are fewer than the {batch} of a step");
    Ok(images / batch)
}

impl<'a> Course<'a> {
    /// Before the first step. `about` goes into the metadata of the files.
    pub fn new(
        folder: &Path,
        (trainer, config): (Trainer, NetConfig),
        data: &'a Batches,
        validation: Option<&'a Batches>,
        every: usize,
        about: BTreeMap<String, String>,
    ) -> Result<Self> {
        std::fs::create_dir_all(folder).with_context(|| format!("{}: cannot create", folder.display()))?;
        let (folder, every) = (folder.to_owned(), every.max(1));
        let precision = Precision::default();
        Ok(Self { folder, trainer, config, data, validation, every, about, precision })
    }

    /// The same with its network written in this precision. What is trained, saved and evaluated stays as it is.
    #[must_use]
    pub fn written_in(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// The network so far.
    pub fn trainer(&self) -> &Trainer {
        &self.trainer
    }

    /// Where the network is written.
    pub fn model_path(&self) -> PathBuf {
        self.folder.join("model.safetensors")
    }

    /// Where going on starts from.
    pub fn state_path(&self) -> PathBuf {
        self.folder.join(STATE_FILE)
    }

    /// Where the log is.
    pub fn log_path(&self) -> PathBuf {
        self.folder.join("log.jsonl")
    }

    fn progress(&self) -> Progress {
        let (step, steps) = self.trainer.progress();
        Progress { step, steps, images: self.data.len(), recipe: self.trainer.recipe().clone() }
    }

    /// Goes back to the last saved state; false where there is none.
    ///
    /// # Errors
    /// When the state is of another training, or damaged.
    pub fn resume(&mut self) -> Result<bool> {
        let path = self.state_path();
        if !path.exists() {
            self.cut_log(0)?;
            return Ok(false);
        }
        let state = Checkpoint::open(&path)?;
        let told = state.metadata().get("progress");
        let told = told.with_context(|| format!("{}: no state of a training", path.display()))?;
        let found: Progress = serde_json::from_str(told).with_context(|| path.display().to_string())?;
        let mine = Progress { step: found.step, ..self.progress() };
        ensure!(
            found == mine,
            "{}: is of another training; use its options ({told}), or another folder",
            path.display()
        );
        let (mut weights, mut velocities) = (HashMap::new(), BTreeMap::new());
        for (name, info) in state.tensors() {
            let tensor = Tensor::from_vec(state.read_f32(name)?, info.shape.as_slice(), &Device::Cpu)?;
            match name.strip_prefix(VELOCITY) {
                Some(of) => drop(velocities.insert(of.to_owned(), tensor)),
                None => drop(weights.insert(name.clone(), tensor)),
            }
        }
        let context = || path.display().to_string();
        self.trainer.restore(found.step, &weights, velocities).with_context(context)?;
        self.cut_log(found.step)?;
        Ok(true)
    }

    /// Drops what the log says about steps that will be done again.
    fn cut_log(&self, step: usize) -> Result<()> {
        let path = self.log_path();
        let Ok(text) = std::fs::read_to_string(&path) else { return Ok(()) };
        let kept = text.lines().filter(|line| {
            let entry = serde_json::from_str::<serde_json::Value>(line);
            entry.ok().and_then(|entry| entry["step"].as_u64()).is_some_and(|at| at <= step as u64)
        });
        let kept: String = kept.flat_map(|line| [line, "\n"]).collect();
        write_atomically(&path, |out| out.write_all(kept.as_bytes()))
            .with_context(|| format!("{}: cannot write", path.display()))
    }

    /// All steps that are left; where none is, the network is written again. `see` is shown every step and epoch; an error
    /// of its own ends the training.
    ///
    /// # Errors
    /// An image that cannot be read, a loss that is no number, a file that cannot be written. The last saved state stays.
    pub fn run(&mut self, mut see: impl FnMut(&Event) -> Result<()>) -> Result<()> {
        let recipe = self.trainer.recipe().clone();
        let per_epoch = steps_per_epoch(self.data.len(), recipe.batch)?;
        let (mut step, steps) = self.trainer.progress();
        if step == steps {
            return self.export();
        }
        let mut order = (usize::MAX, Vec::new());
        while step < steps {
            let epoch = step / per_epoch;
            let draw = Random::named(recipe.seed, "epoch").next() ^ epoch as u64;
            if order.0 != epoch {
                order = (epoch, self.data.shuffled(draw));
            }
            let first = step % per_epoch * recipe.batch;
            let augment = match recipe.augment {
                true if recipe.crop < 1.0 => Augment::CropAndMirror { draw, least: recipe.crop },
                true => Augment::ShiftAndMirror { draw },
                false => Augment::Nothing,
            };
            let (images, labels) = self.batch(self.data, &order.1[first..first + recipe.batch], augment)?;
            let report = self.trainer.step(&images, &labels).with_context(|| self.last_good())?;
            step = report.step;
            self.note(Event::Step(report), &mut see)?;
            if step.is_multiple_of(per_epoch) || step == steps {
                let (top1, cost) = self.evaluate()?;
                let report = EpochReport { epoch: step.div_ceil(per_epoch), step, top1, cost };
                self.note(Event::Epoch(report), &mut see)?;
                self.save()?;
                self.export()?;
            } else if step.is_multiple_of(self.every) {
                self.save()?;
            }
        }
        Ok(())
    }

    /// Where to find what an error leaves.
    fn last_good(&self) -> String {
        let path = self.state_path();
        if path.exists() {
            format!("training stopped; the last good state is {}", path.display())
        } else {
            "training stopped before its first saved state".to_owned()
        }
    }

    fn batch(&self, of: &Batches, numbers: &[usize], augment: Augment) -> Result<(Tensor, Tensor)> {
        let (images, labels) = of.load(numbers, augment)?;
        let (channels, size) = (self.trainer.spec().input.channels, self.trainer.input());
        let shape = (numbers.len(), channels, size.h, size.w);
        Ok((Tensor::from_vec(images, shape, &Device::Cpu)?, Tensor::new(labels, &Device::Cpu)?))
    }

    /// Share of right answers on the validation images, and the cost of getting them.
    pub fn evaluate(&self) -> Result<(Option<f64>, Option<f64>)> {
        let Some(data) = self.validation else { return Ok((None, None)) };
        let all: Vec<usize> = (0..data.len()).collect();
        let (mut right, mut spent, mut known) = (0, 0.0, true);
        for numbers in all.chunks(EVALUATED_AT_ONCE) {
            let (images, labels) = self.batch(data, numbers, Augment::Nothing)?;
            let (logits, cost) = self.trainer.evaluate(&images)?;
            right += correct(&logits, &labels)?;
            known &= cost.is_some();
            spent += cost.unwrap_or(0.0) * numbers.len() as f64;
        }
        let n = data.len() as f64;
        Ok((Some(right as f64 / n), known.then_some(spent / n)))
    }

    /// Writes the event into the log, at once, and shows it.
    fn note(&self, event: Event, see: &mut impl FnMut(&Event) -> Result<()>) -> Result<()> {
        let path = self.log_path();
        let mut line = serde_json::to_vec(&event)?;
        line.push(b'\n');
        let append = || OpenOptions::new().create(true).append(true).open(&path)?.write_all(&line);
        append().with_context(|| format!("{}: cannot write; {}", path.display(), self.last_good()))?;
        see(&event)
    }

    /// Saves the state.
    pub fn save(&self) -> Result<()> {
        let mut tensors = self.trainer.weights();
        for (name, velocity) in self.trainer.velocities() {
            tensors.insert(format!("{VELOCITY}{name}"), velocity.clone());
        }
        let mut metadata = self.about.clone();
        metadata.insert("progress".into(), serde_json::to_string(&self.progress())?);
        write(&self.state_path(), &tensors, &metadata, Precision::Single).with_context(|| self.last_good())
    }

    /// Writes the network.
    pub fn export(&self) -> Result<()> {
        let mut metadata = self.about.clone();
        metadata.insert("config".into(), serde_json::to_string(&self.config)?);
        metadata.insert("training".into(), serde_json::to_string(&self.progress())?);
        let weights = self.trainer.weights();
        write(&self.model_path(), &weights, &metadata, self.precision).with_context(|| self.last_good())
    }
}

fn write(
    path: &Path,
    tensors: &BTreeMap<String, Tensor>,
    metadata: &BTreeMap<String, String>,
    precision: Precision,
) -> Result<()> {
    let bytes = tensors.iter().map(|(name, tensor)| {
        let values = tensor.flatten_all()?.to_vec1::<f32>()?;
        let halved = precision == Precision::Half && tensor.rank() > 1 && !is_gate(name);
        Ok(match halved {
            true => {
                (DType::F16, values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect::<Vec<u8>>())
            }
            false => (DType::F32, values.iter().flat_map(|v| v.to_le_bytes()).collect()),
        })
    });
    let bytes = bytes.collect::<Result<Vec<_>>>()?;
    let out = tensors.iter().zip(&bytes).map(|((name, tensor), (dtype, bytes))| {
        let out = TensorOut { shape: tensor.dims().to_vec(), data: TensorData::Raw(*dtype, bytes) };
        (name.clone(), out)
    });
    Ok(write_safetensors(path, &out.collect(), metadata)?)
}
