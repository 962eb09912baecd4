//! How a network is trained: everything but data and weights.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::cost::RateGradient;
use super::init::{GateBias, is_gate};

/// Hyper-parameters. Defaults are those of the official LAUDNet scripts, except that what is a bug there is right here; the
/// `official_*` options bring each bug back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Recipe {
    /// Passes over the training images; 0: what happens before the first step is all.
    pub epochs: usize,
    /// Images of a step.
    pub batch: usize,
    /// Learning rate at the start; `None`: 0.02 for every 256 images of a step.
    pub lr: Option<f64>,
    /// Factor on the learning rate of gates.
    pub gate_lr: f64,
    /// Of SGD's velocity.
    pub momentum: f64,
    /// On every parameter, BatchNorm's and biases too.
    pub weight_decay: f64,
    /// Of everything random.
    pub seed: u64,
    /// What maps and packed weights are stored as while learning.
    pub dtype: MapElement,
    /// Shift by up to 4 pixels and mirror at random.
    pub augment: bool,
    /// Least share of an image that is cropped at random instead, and resized; 1: it is shifted.
    pub crop: f64,
    /// Which weights move.
    pub train: Trained,
    /// BatchNorm normalises with, and moves, the batch's statistics; else with the stored ones.
    pub batch_statistics: bool,
    /// Learn from labels; else from the teacher alone.
    pub labels: bool,
    /// Weight of distillation.
    pub distill: f64,
    /// Temperature of distillation.
    pub distill_temperature: f64,
    /// Weight of the distance between the student's and the teacher's stages; needs a teacher with the same shapes.
    pub distill_features: f64,
    /// Share of the full cost to aim at; `None`: no cost loss.
    pub target: Option<f64>,
    /// Share of the steps by which the target has come down, evenly, from the full cost. 0: it holds from the start.
    pub target_by: f64,
    /// Share of the steps by which the bounds on each block's share, at first the target, have opened. 0: there are none,
    /// for gates that have been trained before.
    pub bounds_until: f64,
    /// Weight of the cost loss.
    pub cost_weight: f64,
    /// Gumbel-softmax temperature at the start.
    pub temperature_first: f64,
    /// Gumbel-softmax temperature at the end.
    pub temperature_last: f64,
    /// Share of the steps after which gates decide without noise, as they will when the network is used; 1: never.
    pub noise_until: f64,
    /// Share of the steps after which a branch that a layer gate drops for an image is not computed for it. Its
    /// normalisations then see the other images only, and layer gates learn from the cost alone, which holds them at the
    /// target. Needs `batch_statistics`. 1: never.
    pub skip_from: f64,
    /// Keep bias of fresh spatial and layer gates.
    pub gate_bias_spatial: f64,
    /// Keep bias of fresh channel gates.
    pub gate_bias_channel: f64,
    /// Images to thin the network on: fresh channel gates start at the target with the channels that the others make up for
    /// dropped, and with weights that do so. 0: they start by their bias.
    pub thin_images: usize,
    /// First skip bias of each gate keeps PyTorch's default.
    pub official_unset_bias: bool,
    /// No gradient of the cost through dilated masks.
    pub official_last_rate_only: bool,
    /// `gate_lr` has no effect.
    pub official_ignore_gate_lr: bool,
}

/// What maps, packed weights and the gradients that convolutions read are stored as. Parameters, all other gradients and every
/// sum are f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MapElement {
    /// IEEE single precision.
    #[default]
    F32,
    /// bfloat16: faster where the processor multiplies tiles of it.
    Bf16,
}

/// Which weights move.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trained {
    /// All.
    #[default]
    All,
    /// The gates', and what is a number a channel: biases and normalisations.
    GatesAndBiases,
    /// The gates' only: a frozen backbone, statistics too.
    Gates,
}

impl Trained {
    /// Whether a learned tensor of this name and rank moves.
    pub fn moves(self, name: &str, rank: usize) -> bool {
        match self {
            Self::All => true,
            Self::GatesAndBiases => is_gate(name) || rank == 1,
            Self::Gates => is_gate(name),
        }
    }
}

impl Default for Recipe {
    fn default() -> Self {
        let bias = GateBias::default();
        Self {
            epochs: 100,
            batch: 256,
            lr: None,
            gate_lr: 1.0,
            momentum: 0.9,
            weight_decay: 5e-5,
            seed: 0,
            dtype: MapElement::F32,
            augment: true,
            crop: 1.0,
            train: Trained::All,
            batch_statistics: true,
            labels: true,
            distill: 0.5,
            distill_temperature: 4.0,
            distill_features: 0.0,
            target: None,
            target_by: 0.0,
            bounds_until: 0.33,
            cost_weight: 10.0,
            temperature_first: 5.0,
            temperature_last: 0.1,
            noise_until: 1.0,
            skip_from: 1.0,
            gate_bias_spatial: bias.spatial,
            gate_bias_channel: bias.channel,
            thin_images: 0,
            official_unset_bias: false,
            official_last_rate_only: false,
            official_ignore_gate_lr: false,
        }
    }
}

impl Recipe {
    /// Learning rate at the start.
    pub fn first_lr(&self) -> f64 {
        self.lr.unwrap_or(0.02 * self.batch as f64 / 256.0)
    }

    /// Biases of fresh gates.
    pub fn gate_bias(&self) -> GateBias {
        GateBias {
            spatial: self.gate_bias_spatial,
            channel: self.gate_bias_channel,
            first_skip_unset: self.official_unset_bias,
        }
    }

    /// Where gradients of the cost flow.
    pub fn rate_gradient(&self) -> RateGradient {
        if self.official_last_rate_only { RateGradient::LastOnly } else { RateGradient::All }
    }

    /// Factor on the learning rate of gates, as it takes effect.
    pub fn gate_factor(&self) -> f64 {
        if self.official_ignore_gate_lr { 1.0 } else { self.gate_lr }
    }

    /// Rejects numbers that mean nothing.
    pub fn check(&self) -> Result<()> {
        let positive = [
            ("batch", self.batch as f64),
            ("lr", self.first_lr()),
            ("distill_temperature", self.distill_temperature),
            ("temperature_first", self.temperature_first),
            ("temperature_last", self.temperature_last),
        ];
        for (name, value) in positive {
            ensure!(value.is_finite() && value > 0.0, "{name} is {value}, it must be positive");
        }
        let not_negative = [
            ("gate_lr", self.gate_lr),
            ("momentum", self.momentum),
            ("weight_decay", self.weight_decay),
            ("distill", self.distill),
            ("distill_features", self.distill_features),
            ("target_by", self.target_by),
            ("bounds_until", self.bounds_until),
            ("cost_weight", self.cost_weight),
            ("noise_until", self.noise_until),
            ("skip_from", self.skip_from),
        ];
        for (name, value) in not_negative {
            ensure!(value.is_finite() && value >= 0.0, "{name} is {value}, it must not be negative");
        }
        if let Some(target) = self.target {
            ensure!((0.0..=1.0).contains(&target), "target is {target}, a share in 0..=1 is needed");
        }
        ensure!(self.crop > 0.0 && self.crop <= 1.0, "crop is {}, a share above 0 is needed", self.crop);
        ensure!(
            self.thin_images == 0 || self.target.is_some(),
            "thin_images is {}: gates that start at a target need one",
            self.thin_images
        );
        ensure!(
            self.skip_from >= 1.0 || self.batch_statistics && self.train != Trained::Gates,
            "skip_from is {}: it needs the batch's statistics and a backbone that moves",
            self.skip_from
        );
        ensure!(
            self.labels || self.distill > 0.0,
            "without labels there is nothing to learn from but the teacher: distill must be positive"
        );
        Ok(())
    }
}
