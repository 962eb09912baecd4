//! One step after another.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor, Var};
use laud_models::{MapSize, NetSpec, ParameterKind};
use serde::Serialize;

use super::cost::Cost;
use super::decisions::{Decisions, Sampling};
use super::init::is_gate;
use super::layers::Statistics;
use super::loss::{bounds, cost_target, cross_entropy, distillation};
use super::maps::MapOps;
use super::network::MaskedNetwork;
use super::recipe::{Recipe, Trained};
use super::resized::resized;
use super::schedule::{cosine, exponential, lowered};
use super::sgd::Sgd;
use crate::random::Random;

/// A network in training.
pub struct Trainer {
    spec: NetSpec,
    recipe: Recipe,
    variables: BTreeMap<String, (Var, ParameterKind)>,
    network: MaskedNetwork,
    teacher: Option<(MaskedNetwork, MapSize)>,
    /// What images it learns from.
    input: MapSize,
    cost: Option<Cost>,
    sgd: Sgd,
    step: usize,
    steps: usize,
}

/// What a step did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepReport {
    /// Steps so far, this one included.
    pub step: usize,
    /// What was made smaller.
    pub loss: f64,
    /// Its parts, unweighted; absent where they are not part of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cross_entropy: Option<f64>,
    /// Distillation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub distillation: Option<f64>,
    /// Distance from the teacher's stages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub features: Option<f64>,
    /// Distance from the target cost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost_loss: Option<f64>,
    /// Cost ÷ that of the network without gates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<f64>,
    /// Images whose best class was the label.
    pub correct: usize,
    /// Images.
    pub images: usize,
    /// Learning rate.
    pub lr: f64,
}

/// What a [`Trainer`] is made of.
pub struct Setup {
    /// The network; every tensor must be in `weights`.
    pub spec: NetSpec,
    /// Where it starts.
    pub weights: HashMap<String, Tensor>,
    /// The network to distil from. Where one of the two reads smaller images, it gets the other's, resized: so a network
    /// learns to be an early exit.
    pub teacher: Option<(NetSpec, HashMap<String, Tensor>)>,
    /// What [`Recipe::target`] is a share of.
    pub cost: Option<Cost>,
    /// How.
    pub recipe: Recipe,
    /// Steps of the whole training.
    pub steps: usize,
    /// Who computes maps.
    pub maps: Arc<dyn MapOps>,
}

impl Trainer {
    /// Before the first step.
    pub fn new(setup: Setup) -> Result<Self> {
        let Setup { spec, weights, teacher, cost, recipe, steps, maps } = setup;
        recipe.check()?;
        ensure!(recipe.labels || teacher.is_some(), "without labels a teacher is needed to learn from");
        let hinted = recipe.distill_features > 0.0;
        ensure!(!hinted || teacher.is_some(), "distill_features needs a teacher to learn stages from");
        let gated = spec.blocks.iter().any(|block| block.gate.is_some());
        ensure!(recipe.train != Trained::Gates || gated, "{}: has no gates to train", spec.name);
        ensure!(recipe.target.is_none() || gated, "{}: has no gates to reach a target with", spec.name);
        let mut variables = BTreeMap::new();
        for parameter in spec.parameters() {
            let tensor =
                weights.get(&parameter.name).with_context(|| format!("no tensor {}", parameter.name))?;
            let variable =
                Var::from_tensor(&tensor.to_dtype(DType::F32)?.reshape(parameter.shape.as_slice())?.copy()?)?;
            variables.insert(parameter.name, (variable, parameter.kind));
        }
        // What does not move is no variable, so that nothing is computed for its gradient.
        let tensors = variables.iter().map(|(name, (variable, kind))| {
            let tensor = variable.as_tensor();
            let fixed = *kind == ParameterKind::Learned && !recipe.train.moves(name, tensor.rank());
            (name.clone(), if fixed { tensor.detach() } else { tensor.clone() })
        });
        let network = MaskedNetwork::new(&spec, &tensors.collect())?.with_maps(maps.clone());
        let own = spec.input.size;
        let teacher = teacher.map(|(spec, weights)| {
            let network = MaskedNetwork::new(&spec, &weights).context("teacher")?.with_maps(maps);
            Ok::<_, anyhow::Error>((network, spec.input.size))
        });
        let teacher = teacher.transpose()?;
        let taught = teacher.as_ref().map_or(own, |(_, size)| *size);
        ensure!(
            !hinted || taught == own,
            "distill_features: the teacher's stages are of {}×{} pixels, the network reads {}×{}",
            taught.h,
            taught.w,
            own.h,
            own.w
        );
        let sgd = Sgd::new(recipe.momentum, recipe.weight_decay);
        Ok(Self {
            spec,
            variables,
            network,
            teacher,
            input: if taught.h * taught.w > own.h * own.w { taught } else { own },
            cost,
            sgd,
            step: 0,
            steps,
            recipe,
        })
    }

    /// The network.
    pub fn spec(&self) -> &NetSpec {
        &self.spec
    }

    /// Size of the images that it learns from: its teacher's where those are larger than its own.
    pub fn input(&self) -> MapSize {
        self.input
    }

    /// How it is trained.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// Steps so far, and of the whole training.
    pub fn progress(&self) -> (usize, usize) {
        (self.step, self.steps)
    }

    /// All tensors of the network, by name.
    pub fn weights(&self) -> BTreeMap<String, Tensor> {
        self.variables
            .iter()
            .map(|(name, (variable, _))| (name.clone(), variable.as_tensor().clone()))
            .collect()
    }

    /// The optimiser's velocities, by name.
    pub fn velocities(&self) -> &BTreeMap<String, Tensor> {
        &self.sgd.velocity
    }

    /// Goes on from where another training was after `step` steps.
    pub fn restore(
        &mut self,
        step: usize,
        weights: &HashMap<String, Tensor>,
        velocities: BTreeMap<String, Tensor>,
    ) -> Result<()> {
        ensure!(step <= self.steps, "step {step} of {}", self.steps);
        for (name, (variable, _)) in &self.variables {
            let tensor = weights.get(name).with_context(|| format!("no tensor {name}"))?;
            variable.set(tensor).with_context(|| name.clone())?;
        }
        for (name, velocity) in &velocities {
            let (variable, _) =
                self.variables.get(name).with_context(|| format!("velocity of unknown {name}"))?;
            ensure!(velocity.dims() == variable.dims(), "velocity of {name} has shape {:?}", velocity.dims());
        }
        self.sgd.velocity = velocities;
        self.step = step;
        Ok(())
    }

    /// One step on `images [n, c, h, w]` and `labels [n]` (u32).
    ///
    /// # Errors
    /// When the loss is not a finite number; the weights are then as before.
    pub fn step(&mut self, images: &Tensor, labels: &Tensor) -> Result<StepReport> {
        let losses = self.losses(images, labels)?;
        let loss = scalar(&losses.total)?;
        if !loss.is_finite() {
            bail!("step {}: the loss is {loss}; a smaller learning rate may help", self.step + 1);
        }
        let lr = cosine(self.recipe.first_lr(), self.step, self.steps);
        self.descend(&losses, lr)?;
        Ok(StepReport {
            step: self.step,
            loss,
            cross_entropy: losses.cross_entropy.as_ref().map(scalar).transpose()?,
            distillation: losses.distillation.as_ref().map(scalar).transpose()?,
            features: losses.features.as_ref().map(scalar).transpose()?,
            cost_loss: losses.cost_loss.as_ref().map(scalar).transpose()?,
            cost: losses.cost.as_ref().map(scalar).transpose()?,
            correct: correct(&losses.logits, labels)?,
            images: images.dim(0)?,
            lr,
        })
    }

    /// Moves the weights down the gradient of the losses' total; counts as a step.
    pub fn descend(&mut self, losses: &Losses, lr: f64) -> Result<()> {
        let grads = losses.total.backward()?;
        for (name, (variable, kind)) in &self.variables {
            if *kind == ParameterKind::Learned && self.recipe.train.moves(name, variable.rank()) {
                let factor = if is_gate(name) { self.recipe.gate_factor() } else { 1.0 };
                self.sgd.step(name, variable, &grads, lr * factor)?;
            }
        }
        self.step += 1;
        Ok(())
    }

    /// The losses of the next step, with their graph.
    pub fn losses(&self, images: &Tensor, labels: &Tensor) -> Result<Losses> {
        let recipe = &self.recipe;
        let done = self.step as f64 / self.steps.max(1) as f64;
        let temperature =
            exponential(recipe.temperature_first, recipe.temperature_last, self.step, self.steps);
        let noisy = done < recipe.noise_until;
        let seed = Random::named(recipe.seed, "noise").next() ^ self.step as u64;
        let noise = |name: &str, shape: &[usize]| {
            let mut random = Random::named(seed, name);
            let count = shape.iter().product();
            let value = |_| if noisy { random.gumbel() as f32 } else { 0.0 };
            Ok(Tensor::from_vec((0..count).map(value).collect::<Vec<f32>>(), shape, &Device::Cpu)?)
        };
        // By steps; the official bounds move by whole epochs, which for many epochs is the same.
        self.losses_under(images, labels, Sampling { temperature, noise: &noise }, done)
    }

    /// What normalisations see when `progress` of the training is over.
    fn statistics(&self, progress: f64) -> Statistics {
        let frozen = self.recipe.train == Trained::Gates || !self.recipe.batch_statistics;
        match progress >= self.recipe.skip_from {
            _ if frozen => Statistics::Stored,
            true => Statistics::Kept,
            false => Statistics::Batch,
        }
    }

    /// The losses under given noise, when `progress` (`0..=1`) of the training is over.
    pub fn losses_under(
        &self,
        images: &Tensor,
        labels: &Tensor,
        sampling: Sampling<'_>,
        progress: f64,
    ) -> Result<Losses> {
        let recipe = &self.recipe;
        let decisions = Decisions::Sampled(sampling);
        let own = resized(images, self.spec.input.size)?;
        let activity = self.network.forward_train(&own, &decisions, self.statistics(progress))?;
        let mut total = Tensor::zeros((), DType::F32, &Device::Cpu)?;
        let mut losses = Losses {
            total: total.clone(),
            cross_entropy: None,
            distillation: None,
            features: None,
            cost_loss: None,
            cost: None,
            logits: activity.logits.detach(),
        };
        if recipe.labels {
            let loss = cross_entropy(&activity.logits, labels)?;
            total = (total + &loss)?;
            losses.cross_entropy = Some(loss);
        }
        let taught = recipe.distill > 0.0 || recipe.distill_features > 0.0;
        if let Some((teacher, size)) = self.teacher.as_ref().filter(|_| taught) {
            let images = resized(images, *size)?;
            let taught = teacher.forward_train(&images, &Decisions::Learned, Statistics::Stored)?;
            if recipe.distill > 0.0 {
                let loss = distillation(&activity.logits, &taught.logits, recipe.distill_temperature)?;
                total = (total + (&loss * recipe.distill)?)?;
                losses.distillation = Some(loss);
            }
            if recipe.distill_features > 0.0 {
                let loss = self.network.feature_distance(&activity, &taught)?;
                total = (total + (&loss * recipe.distill_features)?)?;
                losses.features = Some(loss);
            }
        }
        if let Some(cost) = &self.cost {
            let spent = cost.of(&activity.keep)?;
            losses.cost = Some((&spent.total / cost.full())?.detach());
            if let Some(target) = recipe.target {
                let target = lowered(target, recipe.target_by, progress);
                let bounds = bounds(progress, recipe.bounds_until, target);
                let loss = cost_target(&spent, cost.full(), target, bounds)?;
                total = (total + (&loss * recipe.cost_weight)?)?;
                losses.cost_loss = Some(loss);
            }
        }
        losses.total = total;
        Ok(losses)
    }

    /// The network as it will be used: logits `[n, classes]`, and the cost ÷ that of the network without gates.
    pub fn evaluate(&self, images: &Tensor) -> Result<(Tensor, Option<f64>)> {
        let images = resized(images, self.spec.input.size)?;
        let activity = self.network.forward_train(&images, &Decisions::Learned, Statistics::Stored)?;
        let cost = match &self.cost {
            Some(cost) => Some(scalar(&cost.of(&activity.keep)?.total)? / cost.full()),
            None => None,
        };
        Ok((activity.logits.detach(), cost))
    }
}

/// The losses of a step.
pub struct Losses {
    /// What is made smaller.
    pub total: Tensor,
    /// Unweighted.
    pub cross_entropy: Option<Tensor>,
    /// Unweighted.
    pub distillation: Option<Tensor>,
    /// Unweighted.
    pub features: Option<Tensor>,
    /// Unweighted.
    pub cost_loss: Option<Tensor>,
    /// Cost ÷ that of the network without gates.
    pub cost: Option<Tensor>,
    /// `[n, classes]`.
    pub logits: Tensor,
}

fn scalar(tensor: &Tensor) -> Result<f64> {
    Ok(f64::from(tensor.to_scalar::<f32>()?))
}

/// Images whose best class is the label.
pub fn correct(logits: &Tensor, labels: &Tensor) -> Result<usize> {
    let best = logits.argmax(1)?;
    Ok(best.eq(labels)?.to_dtype(DType::U32)?.sum_all()?.to_scalar::<u32>()? as usize)
}
