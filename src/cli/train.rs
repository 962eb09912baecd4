//! `laud train`: weights and gates from images.

use super::model::{Model, ModelArgs};
use super::output::percent;
use anyhow::{Context, Result, bail, ensure};
use candle_core::{Device, Tensor};
use clap::Args;
use laud::CheckpointWeights;
use laud::autograd::kernel_maps;
use laud::exec::Weights;
use laud::train::{
    BlockLatency, Cost, Course, Event, LatencyModel, MapElement, Precision, Recipe, Setup, Trained, Trainer,
    goes_on, initial_weights, resized, steps_per_epoch, thin, unfold_norms,
};
use laud::vision::{Augment, Batches, Dataset};
use laud_models::{InputSpec, NetSpec};
use std::collections::{BTreeMap, HashMap};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Images that statistics are measured on.
const MEASURED_IMAGES: usize = 32;
/// Images of a batch while a network is thinned.
const THINNED_AT_ONCE: usize = 16;

/// Train a network or its gates
#[derive(Args)]
pub(super) struct Train {
    /// Images to learn from: a folder with labels.csv or a folder a class, a .csv like that, a CIFAR-10 .bin, or a .jpk
    #[arg(long, short, value_name = "DIR|FILE")]
    data: PathBuf,
    /// Folder for network, state and log; a training found there goes on
    #[arg(long, short, value_name = "DIR")]
    out: PathBuf,
    /// Images to measure accuracy on behind every epoch
    #[arg(long, value_name = "DIR|FILE")]
    validation: Option<PathBuf>,
    /// The same on the last images of --data, which are then not learned from
    #[arg(long, value_name = "N", conflicts_with = "validation", value_parser = clap::value_parser!(u32).range(1..))]
    hold_back: Option<u32>,
    /// Images that must not be learned from; an image that is in both is an error
    #[arg(long, value_name = "DIR|FILE")]
    held_out: Vec<PathBuf>,
    /// Network to distil from [default: the one that gates are added to]; where it reads larger images, as of a network with
    /// --input-size, that learns from those made smaller, which is what an early exit sees
    #[arg(long, value_name = "NAME|FILE")]
    teacher: Option<String>,
    /// All hyper-parameters as JSON; the flags below go before it
    #[arg(long, value_name = "FILE")]
    recipe: Option<PathBuf>,
    /// Milliseconds of each block as JSON, to aim at a latency instead of multiply-accumulates:
    /// {"rest": 0.1, "blocks": [[idle, full], ...]}
    #[arg(long, value_name = "FILE")]
    latency: Option<PathBuf>,
    /// Steps between two saved states
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    save_every: u32,
    /// Write the network's filters in half precision
    #[arg(long)]
    half: bool,
    /// Threads [default: the cores at hand]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    #[command(flatten)]
    changes: Changes,
    #[command(flatten)]
    model: ModelArgs,
}

/// Hyper-parameters by flag.
#[derive(Args)]
#[command(next_help_heading = "Recipe")]
struct Changes {
    /// Passes over the images; with 0 the network is written as training would start [default: 100]
    #[arg(long, value_name = "N")]
    epochs: Option<usize>,
    /// Images of a step [default: 256]
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// Learning rate at the start [default: 0.02 for every 256 images of a step]
    #[arg(long, value_name = "LR", allow_negative_numbers = true)]
    lr: Option<f64>,
    /// Factor on the learning rate of gates [default: 1]
    #[arg(long, value_name = "F")]
    gate_lr: Option<f64>,
    /// Share of the full cost to aim at, 0..=1
    #[arg(long, value_name = "SHARE")]
    target: Option<f64>,
    /// Share of the steps by which the target has come down from the full cost [default: 0, it holds from the start]
    #[arg(long, value_name = "SHARE")]
    target_by: Option<f64>,
    /// Share of the steps by which the bounds on each block's share have opened; 0 for gates trained before [default: 0.33]
    #[arg(long, value_name = "SHARE")]
    bounds_until: Option<f64>,
    /// Weight of the cost [default: 10]
    #[arg(long, value_name = "W")]
    cost_weight: Option<f64>,
    /// Weight of distillation [default: 0.5]
    #[arg(long, value_name = "W")]
    distill: Option<f64>,
    /// Temperature of distillation [default: 4]
    #[arg(long, value_name = "T")]
    distill_temperature: Option<f64>,
    /// Weight of the distance between the stages of network and teacher [default: 0]
    #[arg(long, value_name = "W")]
    distill_features: Option<f64>,
    /// Learn from the teacher only
    #[arg(long)]
    no_labels: bool,
    /// Move the gates only
    #[arg(long, conflicts_with = "freeze_filters")]
    freeze_backbone: bool,
    /// Move gates, biases and normalisations only
    #[arg(long)]
    freeze_filters: bool,
    /// What maps and packed weights are stored as while learning; bf16 takes a processor that multiplies tiles of it to be faster
    #[arg(long, value_name = "TYPE", value_parser = ["f32", "bf16"])]
    dtype: Option<String>,
    /// Normalise with the stored statistics
    #[arg(long)]
    stored_statistics: bool,
    /// Least share of an image that is cropped at random and resized, instead of shifting it [default: 1, images are shifted]
    #[arg(long, value_name = "SHARE")]
    crop: Option<f64>,
    /// Change images in no way: neither shift or crop nor mirror them
    #[arg(long)]
    no_augment: bool,
    /// Keep bias of fresh gates [default: 5 spatial, 2 channel]
    #[arg(long, value_name = "B", allow_negative_numbers = true)]
    gate_bias: Option<f64>,
    /// Images to thin the network on, without labels: fresh channel gates start at the target with the channels that the others
    /// make up for dropped, and with weights that do so [default: 0, gates start with their keep bias]
    #[arg(long, value_name = "N")]
    thin_images: Option<usize>,
    /// Share of the steps after which gates decide without noise [default: 1, never]
    #[arg(long, value_name = "SHARE")]
    noise_until: Option<f64>,
    /// Share of the steps after which what a layer gate drops is not computed, and these gates learn from the cost alone
    /// [default: 1, never]
    #[arg(long, value_name = "SHARE")]
    skip_from: Option<f64>,
    /// Seed of everything random [default: 0]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

impl Changes {
    fn apply(&self, mut recipe: Recipe) -> Recipe {
        fn set<T: Copy>(to: &mut T, value: Option<T>) {
            *to = value.unwrap_or(*to);
        }
        set(&mut recipe.epochs, self.epochs);
        set(&mut recipe.batch, self.batch);
        set(&mut recipe.crop, self.crop);
        set(&mut recipe.gate_lr, self.gate_lr);
        set(&mut recipe.target_by, self.target_by);
        set(&mut recipe.bounds_until, self.bounds_until);
        set(&mut recipe.cost_weight, self.cost_weight);
        set(&mut recipe.distill, self.distill);
        set(&mut recipe.distill_temperature, self.distill_temperature);
        set(&mut recipe.distill_features, self.distill_features);
        set(&mut recipe.gate_bias_spatial, self.gate_bias);
        set(&mut recipe.gate_bias_channel, self.gate_bias);
        set(&mut recipe.thin_images, self.thin_images);
        set(&mut recipe.noise_until, self.noise_until);
        set(&mut recipe.skip_from, self.skip_from);
        set(&mut recipe.seed, self.seed);
        match self.dtype.as_deref() {
            Some("bf16") => recipe.dtype = MapElement::Bf16,
            Some(_) => recipe.dtype = MapElement::F32,
            None => {}
        }
        recipe.lr = self.lr.or(recipe.lr);
        recipe.target = self.target.or(recipe.target);
        recipe.labels &= !self.no_labels;
        recipe.batch_statistics &= !self.stored_statistics;
        recipe.augment &= !self.no_augment;
        if self.freeze_backbone {
            recipe.train = Trained::Gates;
        }
        if self.freeze_filters {
            recipe.train = Trained::GatesAndBiases;
        }
        recipe
    }
}

impl Train {
    pub(super) fn run(self, out: &mut dyn Write) -> Result<()> {
        let recipe = match &self.recipe {
            Some(file) => read_json(file)?,
            None => Recipe::default(),
        };
        let recipe = self.changes.apply(recipe);
        recipe.check()?;
        let model = self.model.for_training(recipe.seed)?;
        let threads = self
            .threads
            .map_or_else(|| std::thread::available_parallelism().map_or(1, usize::from), usize::from);
        self.train(&model, recipe, threads, out)
    }

    /// The network to distil from and its tensors.
    fn teacher(
        &self,
        model: &Model,
        start: &HashMap<String, Tensor>,
    ) -> Result<Option<(NetSpec, HashMap<String, Tensor>)>> {
        let Some(name) = &self.teacher else {
            return Ok(model.attached.then(|| (model.spec.without_gates(), start.clone())));
        };
        let teacher = ModelArgs::named(name).for_training(0)?;
        let tensors = trained_tensors(&teacher)?;
        ensure!(!tensors.is_empty(), "--teacher {name}: has no trained weights");
        Ok(Some((teacher.spec, tensors)))
    }

    fn train(&self, model: &Model, recipe: Recipe, threads: usize, out: &mut dyn Write) -> Result<()> {
        let start = trained_tensors(model)?;
        let teacher = self.teacher(model, &start)?;
        let input = larger(&model.spec, teacher.as_ref().map(|(spec, _)| spec))?;
        let (data, held_back) = match self.hold_back {
            Some(count) => {
                let (data, last) = Dataset::open(&self.data)?.split(count as usize)?;
                (data, Some(last))
            }
            None => (Dataset::open(&self.data)?, None),
        };
        let data = fitting(data, &self.data, &model.spec, &input)?;
        for held_out in &self.held_out {
            keep_apart(&data, &self.data, &Dataset::open(held_out)?, held_out)?;
        }
        let (validation, path) = match (&self.validation, held_back) {
            (Some(path), _) => (Some(Dataset::open(path)?), path),
            (None, held_back) => (held_back, &self.data),
        };
        let validation = validation.map(|set| fitting(set, path, &model.spec, &input)).transpose()?;
        if let Some(validation) = &validation {
            keep_apart(&data, &self.data, validation.data(), path)?;
        }
        let steps = recipe.epochs
            * steps_per_epoch(data.len(), recipe.batch).with_context(|| self.data.display().to_string())?;
        // What happens once, before the first step, is exact.
        let maps = kernel_maps(MapElement::F32, threads)?;
        let mut weights = initial_weights(&model.spec, recipe.seed, recipe.gate_bias())?;
        weights.extend(start);
        let cost = match &self.latency {
            Some(file) => Cost::latency(&model.spec, &read_latency(file)?, recipe.rate_gradient())
                .with_context(|| file.display().to_string())?,
            None => Cost::macs(&model.spec, recipe.rate_gradient())?,
        };
        // A training that goes on has its weights from its state.
        let fresh = !goes_on(&self.out);
        let order = data.shuffled(recipe.seed);
        let some = |count: usize| &order[..count.min(order.len())];
        if fresh {
            unfold_norms(&model.spec, &mut weights, maps.clone(), || {
                images(&data, some(MEASURED_IMAGES), (&input, &model.spec))
            })?;
        }
        if let Some(target) = recipe.target.filter(|_| recipe.thin_images > 0 && fresh) {
            let name = &model.spec.name;
            let channels = model.spec.blocks.iter().any(|block| block.gate.channel.is_some());
            ensure!(
                model.attached && channels,
                "--thin-images: starts new channel gates on a trained network; {name} {}",
                if model.attached { "gets others, use --mode channel" } else { "has its own gates or none" }
            );
            let batches = some(recipe.thin_images).chunks(THINNED_AT_ONCE);
            let batches = batches.map(|numbers| images(&data, numbers, (&input, &model.spec)));
            let batches = batches.collect::<Result<Vec<_>>>()?;
            let terminal = std::io::stderr().is_terminal();
            let see = |done: f64| {
                if terminal {
                    eprint!("\r[{:<30}] thinning   ", "#".repeat((30.0 * done) as usize));
                }
            };
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().context("--threads")?;
            pool.install(|| thin(&model.spec, &mut weights, &maps, &batches, (&cost, target), see))?;
            if terminal {
                eprint!("\r{:90}\r", "");
            }
        }
        let cost = model.is_gated().then_some(cost);
        writeln!(
            out,
            "{}  ·  {}  ·  {} images, {steps} steps of {}",
            model.spec.name,
            if model.is_gated() { model.gates_text() } else { "no gates".into() },
            data.len(),
            recipe.batch
        )?;
        out.flush()?;
        let about = BTreeMap::from([("data".to_owned(), file_name(&self.data))]);
        let spec = model.spec.clone();
        let maps = kernel_maps(recipe.dtype, threads)?;
        let trainer = Trainer::new(Setup { spec, weights, teacher, cost, recipe, steps, maps })?;
        let every = self.save_every as usize;
        let parts = (trainer, model.config.clone());
        let precision = if self.half { Precision::Half } else { Precision::Single };
        let course = Course::new(&self.out, parts, &data, validation.as_ref(), every, about)?;
        let mut course = course.written_in(precision);
        if course.resume()? {
            writeln!(out, "{} of {steps} steps are done", course.trainer().progress().0)?;
        }
        let mut shown = Progress::new(course.trainer().progress());
        course.run(|event| shown.show(event, out))?;
        writeln!(out, "{}", course.model_path().display())?;
        Ok(())
    }
}

/// The images, prepared as `input` says.
fn fitting(data: Dataset, path: &Path, spec: &NetSpec, input: &InputSpec) -> Result<Batches> {
    let (most, classes) = (data.max_label(), spec.head.fc.c_out);
    ensure!(
        most < classes,
        "{}: has label {most}, {} tells {classes} classes apart",
        path.display(),
        spec.name
    );
    Batches::new(data, input)
}

/// Images `[n, c, h, w]` as the network reads them, unchanged.
fn images(data: &Batches, numbers: &[usize], (input, spec): (&InputSpec, &NetSpec)) -> Result<Tensor> {
    let (values, _) = data.load(numbers, Augment::Nothing)?;
    let shape = (numbers.len(), input.channels, input.size.h, input.size.w);
    resized(&Tensor::from_vec(values, shape, &Device::Cpu)?, spec.input.size)
}

/// How images are prepared that are as large as the larger of the two wants them.
fn larger(spec: &NetSpec, teacher: Option<&NetSpec>) -> Result<InputSpec> {
    let own = &spec.input;
    let Some(teacher) = teacher else { return Ok(own.clone()) };
    let other = &teacher.input;
    ensure!(
        (own.channels, own.mean, own.std) == (other.channels, other.mean, other.std),
        "--teacher: {} has its images prepared otherwise than {}",
        teacher.name,
        spec.name
    );
    let pixels = |input: &InputSpec| input.size.h * input.size.w;
    Ok(if pixels(other) > pixels(own) { other.clone() } else { own.clone() })
}

pub(super) fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// What the file or zoo has of the network's tensors.
fn trained_tensors(model: &Model) -> Result<HashMap<String, Tensor>> {
    let Some(checkpoint) = model.checkpoint() else { return Ok(HashMap::new()) };
    let weights = CheckpointWeights::new(checkpoint);
    let there = weights.shapes();
    let parameters =
        model.spec.parameters().into_iter().filter(|parameter| there.contains_key(&parameter.name));
    parameters
        .map(|parameter| {
            let values = weights.tensor(&parameter.name)?;
            let tensor = Tensor::from_vec(values, parameter.shape.as_slice(), &Device::Cpu);
            Ok((parameter.name.clone(), tensor.with_context(|| parameter.name)?))
        })
        .collect()
}

/// Refuses to learn from an image that is also in `other`.
fn keep_apart(data: &Batches, path: &Path, other: &Dataset, other_path: &Path) -> Result<()> {
    let pixels = |set: &Dataset, i: usize| Ok::<_, anyhow::Error>(set.get(i)?.image.into_raw());
    let mut held: HashMap<Vec<u8>, usize> = HashMap::new();
    for i in 0..other.len() {
        held.insert(pixels(other, i)?, i);
    }
    for i in 0..data.len() {
        if let Some(there) = held.get(&pixels(data.data(), i)?) {
            bail!(
                "{}: image {i} is also in {}, as image {there}; what is measured on must not be learned from",
                path.display(),
                other_path.display()
            );
        }
    }
    Ok(())
}

fn read_json<T: serde::de::DeserializeOwned>(file: &Path) -> Result<T> {
    let text = std::fs::read_to_string(file).with_context(|| format!("{}: cannot read", file.display()))?;
    serde_json::from_str(&text).with_context(|| file.display().to_string())
}

fn read_latency(file: &Path) -> Result<LatencyModel> {
    #[derive(serde::Deserialize)]
    struct Written {
        rest: f64,
        blocks: Vec<(f64, f64)>,
    }
    let Written { rest, blocks } = read_json(file)?;
    let blocks = blocks.into_iter().map(|(idle, full)| BlockLatency { idle, full }).collect();
    Ok(LatencyModel { rest, blocks })
}

/// A line that is written over on a terminal, and lines behind every epoch.
struct Progress {
    start: Instant,
    first: usize,
    steps: usize,
    terminal: bool,
    /// Since the last epoch.
    loss: f64,
    right: usize,
    images: usize,
    counted: usize,
}

impl Progress {
    fn new((first, steps): (usize, usize)) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let start = Instant::now();
        Self { start, first, steps, terminal, loss: 0.0, right: 0, images: 0, counted: 0 }
    }

    fn show(&mut self, event: &Event, out: &mut dyn Write) -> Result<()> {
        match event {
            Event::Step(step) => {
                self.loss += step.loss;
                self.right += step.correct;
                self.images += step.images;
                self.counted += 1;
                if self.terminal {
                    let done = 30 * step.step / self.steps.max(1);
                    let cost = step.cost.map_or_else(String::new, |cost| format!("  cost {}", percent(cost)));
                    let each = self.start.elapsed().as_secs_f64() / (step.step - self.first).max(1) as f64;
                    write!(
                        std::io::stderr(),
                        "\r[{:<30}] {} of {}  loss {:.3}{cost}  {:.0} s left   ",
                        "#".repeat(done),
                        step.step,
                        self.steps,
                        self.loss / self.counted as f64,
                        each * (self.steps - step.step) as f64
                    )?;
                }
            }
            Event::Epoch(epoch) => {
                if self.terminal {
                    write!(std::io::stderr(), "\r{:90}\r", "")?;
                }
                write!(
                    out,
                    "epoch {}: loss {:.3}, right while learning {}",
                    epoch.epoch,
                    self.loss / self.counted.max(1) as f64,
                    percent(self.right as f64 / self.images.max(1) as f64)
                )?;
                if let Some(top1) = epoch.top1 {
                    write!(out, "  ·  validation top-1 {}", percent(top1))?;
                }
                if let Some(cost) = epoch.cost {
                    write!(out, ", cost {}", percent(cost))?;
                }
                writeln!(out, "  ({:.0} s)", self.start.elapsed().as_secs_f64())?;
                out.flush()?;
                (self.loss, self.right, self.images, self.counted) = (0.0, 0, 0, 0);
            }
        }
        Ok(())
    }
}
