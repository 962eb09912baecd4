//! Random networks and images for tests and benches, the same for the same seed.

use std::collections::HashMap;

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use laud_models::{NetSpec, Parameter, Shortcut};

use super::block::Block;
use super::decisions::{decide, margins};
use super::gate::Gate;
use super::layers::{Statistics, Weights};
use super::maps::{MapOps, Plain};
use super::network::Stem;
use crate::random::Random;

/// Images that the gates are balanced on.
const SAMPLES: usize = 4;
/// Factor on the last convolution of residual branches, so that the stream does not outgrow the biases with depth.
const BRANCH_END: f64 = 0.4;
/// Spread of BatchNorm's means and of all biases: an inactive channel is far from 0.
const OFFSET: f64 = 0.3;

/// Random weights on the CPU, such that everything in a network matters.
///
/// Convolutions and linear layers are normal with variance `2 / fan-in` (He et al. 2015), BatchNorm's variance and weight are
/// uniform in `0.5..1.5`, its mean and bias and all other biases normal. A tensor depends on the seed and its own name
/// and shape only, so the same backbone has the same weights under other gates.
///
/// The keep biases of gates are then shifted, block by block, so that on noise ([`random_images`]) every spatial gate keeps
/// 30 to 70 % of its cells, and channel groups range from never to always kept. This runs the network on four images; the
/// last bits of these biases are those of this machine's arithmetic.
pub fn random_weights(spec: &NetSpec, seed: u64) -> Result<HashMap<String, Tensor>> {
    spec.validate()?;
    let parameters = spec.parameters();
    let drawn = parameters.into_iter().map(|parameter| Ok((parameter.name.clone(), draw(&parameter, seed)?)));
    let mut weights: HashMap<_, _> = drawn.collect::<Result<_>>()?;
    for block in spec.blocks.iter().filter(|block| block.shortcut != Shortcut::None) {
        if let Some(conv) = block.convs.last() {
            let weight = weights.get_mut(&conv.weight).context("the last convolution has a weight")?;
            *weight = (&*weight * BRANCH_END)?;
        }
    }
    if spec.blocks.iter().any(|block| block.gate.is_some()) {
        balance(spec, &mut weights, seed)?;
    }
    Ok(weights)
}

/// Images `[n, c, h, w]` of normal noise, as they look after preparation.
pub fn random_images(spec: &NetSpec, n: usize, seed: u64) -> Result<Tensor> {
    let shape = [n, spec.input.channels, spec.input.size.h, spec.input.size.w];
    let mut random = Random::named(seed, "images");
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| random.normal() as f32).collect();
    Ok(Tensor::from_vec(values, &shape, &Device::Cpu)?)
}

fn draw(parameter: &Parameter, seed: u64) -> Result<Tensor> {
    let Parameter { name, shape, .. } = parameter;
    let mut random = Random::named(seed, name);
    let scale = (2.0 / shape.iter().skip(1).product::<usize>() as f64).sqrt();
    let mut value = || match name.rsplit('.').next() {
        _ if shape.len() > 1 => scale * random.normal(),
        Some("weight" | "running_var") => 0.5 + random.uniform(),
        _ => OFFSET * random.normal(),
    };
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| value() as f32).collect();
    Ok(Tensor::from_vec(values, shape.as_slice(), &Device::Cpu)?)
}

/// Shifts the keep biases of all gates. A block's input depends on the gates before it, so they go in order.
fn balance(spec: &NetSpec, weights: &mut HashMap<String, Tensor>, seed: u64) -> Result<()> {
    let images = random_images(spec, SAMPLES, seed)?;
    let mut x = Stem::load(&spec.stem, &Weights(weights))?.forward(&images, &Plain, Statistics::Stored)?;
    for block in &spec.blocks {
        let loaded = Block::load(block, &Weights(weights))?;
        let random = &mut Random::named(seed, &block.name);
        if let Some(gate) = &loaded.gates.spatial {
            let margins = margins(&gate.logits(&x, &Plain, Statistics::Stored)?)?;
            let active = (margins.len() as f64 * (0.3 + 0.4 * random.uniform())).round() as usize;
            let active = active.clamp(1, margins.len() - 1);
            shift(gate, &[threshold(margins, active)], weights)?;
        }
        if let Some(gate) = &loaded.gates.channel {
            let margins = margins(&gate.logits(&x, &Plain, Statistics::Stored)?)?;
            let thresholds: Vec<f32> = (0..gate.units())
                .map(|group| {
                    let samples = margins.iter().skip(group).step_by(gate.units()).copied().collect();
                    threshold(samples, random.below(SAMPLES + 1))
                })
                .collect();
            shift(gate, &thresholds, weights)?;
        }
        let balanced = Block::load(block, &Weights(weights))?;
        let keep = balanced.logits(&x, &Plain, Statistics::Stored)?.as_ref().try_map(decide)?;
        x = Plain.residual(&balanced.residual, &x, &keep, Statistics::Stored)?;
    }
    Ok(())
}

/// A value that `active` of the margins lie above: half-way to the next, or beyond the last by their spread.
fn threshold(mut margins: Vec<f32>, active: usize) -> f32 {
    margins.sort_by(|a, b| b.total_cmp(a));
    let (most, least) = (margins[0], margins[margins.len() - 1]);
    let spread = (most - least).max(0.1);
    match active {
        0 => most + spread,
        all if all == margins.len() => least - spread,
        some => (margins[some - 1] + margins[some]) / 2.0,
    }
}

/// Lowers the gate's first keep biases by `thresholds`.
fn shift(gate: &Gate, thresholds: &[f32], weights: &mut HashMap<String, Tensor>) -> Result<()> {
    let bias = weights.get_mut(&gate.bias()).context("the gate has a bias")?;
    let mut values: Vec<f32> = bias.to_vec1()?;
    values.iter_mut().zip(thresholds).for_each(|(bias, threshold)| *bias -= threshold);
    *bias = Tensor::new(values, bias.device())?;
    Ok(())
}
