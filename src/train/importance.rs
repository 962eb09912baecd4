//! Which channels of a trained network matter, and channel gates that start from that.
//!
//! Gates that start by keeping everything need thousands of steps to find out what can be dropped. Measured importance says
//! it in a few dozen images: channels are sorted by it, so that a group holds channels that matter alike, and a gate's biases
//! start with the network at its target cost, the groups that matter least for what they cost dropped.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::ops::softmax;
use laud_models::{BlockSpec, ConvSpec, MaskPoint, NetSpec};

use super::cost::Cost;
use super::decisions::Decisions;
use super::init::last_layer;
use super::layers::Statistics;
use super::loss::cross_entropy;
use super::maps::MapOps;
use super::network::MaskedNetwork;
use crate::random::Random;

/// Margins of fresh gates, keep logit − skip logit, lie within this.
const WIDEST_MARGIN: f64 = 4.0;
/// Least of a group that is dropped, where it matters as much as one that stays.
const TIED_MARGIN: f64 = 0.01;
/// Of a group that stays because it is the last of its block.
const LAST_MARGIN: f64 = 1.0;

/// For every block, for every convolution that its channel gate masks, the importance of each output channel; empty where a
/// block has no such gate.
pub type Importance = Vec<Vec<Vec<f64>>>;

/// Measures on single images `[1, c, h, w]` what the loss would gain if a channel were not there: the mean over the images of
/// `(Σ w · ∂L/∂w)²` over the weights that scale the channel (the normalisation's where there is one), where `L` is the
/// cross-entropy of a label that is drawn from the network's own answer. No labels are needed.
///
/// Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019; with drawn labels, Fisher information as in
/// Theis et al., "Faster gaze prediction with dense networks and Fisher pruning", 2018.
pub fn importance(
    spec: &NetSpec,
    weights: &HashMap<String, Tensor>,
    maps: Arc<dyn MapOps>,
    images: impl IntoIterator<Item = Result<Tensor>>,
    seed: u64,
) -> Result<Importance> {
    let masked: Vec<Vec<Vec<String>>> = spec.blocks.iter().map(masked_tensors).collect();
    let mut tensors = weights.clone();
    let mut variables: HashMap<&str, Var> = HashMap::new();
    for name in masked.iter().flatten().flatten() {
        let tensor = weights.get(name).with_context(|| format!("no tensor {name}"))?;
        let variable = Var::from_tensor(&tensor.to_dtype(DType::F32)?.copy()?)?;
        tensors.insert(name.clone(), variable.as_tensor().clone());
        variables.insert(name, variable);
    }
    let network = MaskedNetwork::new(&spec.without_gates(), &tensors)?.with_maps(maps);
    let mut random = Random::named(seed, "labels");
    let mut sums: Importance = Vec::new();
    let mut count = 0;
    for image in images {
        let logits = network.forward_train(&image?, &Decisions::Learned, Statistics::Stored)?.logits;
        let label = Tensor::new(&[drawn(&logits, &mut random)?], &Device::Cpu)?;
        let grads = cross_entropy(&logits, &label)?.backward()?;
        let effect = |tensors: &Vec<String>| -> Result<Vec<f64>> {
            let mut effect: Vec<f64> = Vec::new();
            for variable in tensors.iter().filter_map(|name| variables.get(name.as_str())) {
                let grad = grads.get(variable).context("a gradient of every weight")?;
                let parts = (variable.as_tensor().detach() * grad)?.reshape((grad.dim(0)?, ()))?.sum(1)?;
                effect.resize(parts.dim(0)?, 0.0);
                effect
                    .iter_mut()
                    .zip(parts.to_vec1::<f32>()?)
                    .for_each(|(sum, part)| *sum += f64::from(part));
            }
            Ok(effect)
        };
        for (index, convs) in masked.iter().enumerate() {
            let effects = convs.iter().map(effect).collect::<Result<Vec<_>>>()?;
            match sums.get_mut(index) {
                None => sums
                    .push(effects.into_iter().map(|effect| effect.iter().map(|e| e * e).collect()).collect()),
                Some(sums) => sums
                    .iter_mut()
                    .flatten()
                    .zip(effects.iter().flatten())
                    .for_each(|(sum, effect)| *sum += effect * effect),
            }
        }
        count += 1;
    }
    ensure!(count > 0, "no images to measure the importance of channels on");
    sums.iter_mut().flatten().flatten().for_each(|sum| *sum /= f64::from(count));
    Ok(sums)
}

/// For each of a channel gate's convolutions the tensors whose product with their gradients is the effect of the mask.
fn masked_tensors(block: &BlockSpec) -> Vec<Vec<String>> {
    let Some(gate) = &block.gate.channel else { return Vec::new() };
    let of = |conv: &ConvSpec| {
        let (weight, bias) = (conv.weight.clone(), conv.bias.clone());
        let norm =
            conv.norm.as_ref().map(|norm| ["weight", "bias"].map(|part| format!("{}.{part}", norm.prefix)));
        match (gate.point, norm) {
            (MaskPoint::AfterActivation, Some(norm)) => norm.to_vec(),
            (MaskPoint::AfterActivation, None) => std::iter::once(weight).chain(bias).collect(),
            // The effect of the mean in the place of every value: what is left of a channel that is never kept once the next
            // normalisation has got used to it.
            (MaskPoint::BeforeNorm, Some([weight, _])) => vec![weight],
            (MaskPoint::BeforeNorm, None) => vec![weight],
        }
    };
    block.convs[..block.convs.len() - 1].iter().map(of).collect()
}

/// A class, by its probability.
fn drawn(logits: &Tensor, random: &mut Random) -> Result<u32> {
    let probabilities: Vec<f32> = softmax(&logits.detach(), 1)?.flatten_all()?.to_vec1()?;
    let mut left = random.uniform();
    for (class, probability) in (0..).zip(&probabilities) {
        left -= f64::from(*probability);
        if left < 0.0 {
            return Ok(class);
        }
    }
    Ok(u32::try_from(probabilities.len() - 1)?)
}

/// Sorts the inner channels of channel-gated blocks by importance, the most important first, in `weights` and `importance`.
/// The network computes the same. A block with squeeze-excitation, or with grouped convolutions other than a depthwise one
/// behind another, is left as it is.
pub fn sort_channels(
    spec: &NetSpec,
    weights: &mut HashMap<String, Tensor>,
    importance: &mut Importance,
) -> Result<()> {
    for (block, scores) in spec.blocks.iter().zip(importance) {
        let Some(spaces) = spaces(block).filter(|_| !scores.is_empty()) else { continue };
        for space in spaces {
            let mut order: Vec<u32> = (0..u32::try_from(block.convs[space.start].c_out)?).collect();
            let total = |c: u32| scores[space.clone()].iter().map(|scores| scores[c as usize]).sum::<f64>();
            order.sort_by(|&a, &b| total(b).total_cmp(&total(a)));
            let sorted = Tensor::new(order.as_slice(), &Device::Cpu)?;
            let mut select = |name: &str, dim: usize| -> Result<()> {
                let tensor = weights.get_mut(name).with_context(|| format!("no tensor {name}"))?;
                *tensor = tensor.contiguous()?.index_select(&sorted, dim)?;
                Ok(())
            };
            for conv in &block.convs[space.clone()] {
                select(&conv.weight, 0)?;
                conv.bias.iter().try_for_each(|bias| select(bias, 0))?;
                if let Some(norm) = &conv.norm {
                    for part in ["weight", "bias", "running_mean", "running_var"] {
                        select(&format!("{}.{part}", norm.prefix), 0)?;
                    }
                }
            }
            select(&block.convs[space.end].weight, 1)?;
            for scores in &mut scores[space] {
                *scores = order.iter().map(|&c| scores[c as usize]).collect();
            }
        }
    }
    Ok(())
}

/// Runs of a block's masked convolutions whose outputs have the same channels: a full one and the depthwise ones behind it.
/// `None` where channels cannot change places.
fn spaces(block: &BlockSpec) -> Option<Vec<std::ops::Range<usize>>> {
    let last = block.convs.len() - 1;
    let mut spaces: Vec<std::ops::Range<usize>> = Vec::new();
    for (index, conv) in block.convs.iter().enumerate() {
        let depthwise = conv.groups == conv.c_in && conv.c_in == conv.c_out;
        match conv.groups {
            1 if index < last => spaces.push(index..index + 1),
            1 => {}
            _ if depthwise && index < last => spaces.last_mut()?.end += 1,
            _ => return None,
        }
    }
    block.squeeze_excite.is_none().then_some(spaces)
}

/// Starts channel gates at `target`, a share of the full cost: of all groups those are dropped that matter least for what they
/// cost, but never a block's last. A gate's margin is the logarithm of how much more than the first that stays a group
/// matters; the weights of its last layer are zero, so that all images are treated alike until it has learned.
pub fn start_gates(
    spec: &NetSpec,
    weights: &mut HashMap<String, Tensor>,
    importance: &Importance,
    cost: &Cost,
    target: f64,
) -> Result<()> {
    struct Unit {
        block: usize,
        group: usize,
        worth: f64,
    }
    let mut units = Vec::new();
    let mut rates = vec![(0usize, 0usize); spec.blocks.len()];
    for (index, (block, scores)) in spec.blocks.iter().zip(importance).enumerate() {
        let Some(gate) = &block.gate.channel else { continue };
        let price = cost.of_a_group(index, gate.groups);
        for group in 0..gate.groups {
            let channels = group * gate.group_size..(group + 1) * gate.group_size;
            let matters: f64 = scores.iter().map(|scores| scores[channels.clone()].iter().sum::<f64>()).sum();
            units.push(Unit { block: index, group, worth: (matters / price).max(f64::MIN_POSITIVE) });
        }
        rates[index] = (gate.groups, gate.groups);
    }
    units.sort_by(|a, b| a.worth.total_cmp(&b.worth));
    let share = |rates: &[(usize, usize)]| {
        let rates: Vec<f64> =
            rates.iter().map(|&(kept, of)| if of == 0 { 1.0 } else { kept as f64 / of as f64 }).collect();
        cost.at_channel_rates(&rates) / cost.full()
    };
    // Those in front are dropped, but for the last of a block.
    let mut first_kept = 0;
    let mut last = vec![];
    while share(&rates) > target {
        let unit = units.get(first_kept).with_context(|| {
            let left = share(&rates);
            format!(
                "a target of {target} is out of reach: with one group a block, {left:.3} of the cost is left"
            )
        })?;
        match &mut rates[unit.block].0 {
            1 => last.push(first_kept),
            kept => *kept -= 1,
        }
        first_kept += 1;
    }
    let bar = units.get(first_kept).or(units.last()).map_or(1.0, |unit| unit.worth);
    let mut margins: Vec<Vec<f64>> = rates.iter().map(|&(_, groups)| vec![0.0; groups]).collect();
    for (at, unit) in units.iter().enumerate() {
        let margin = (unit.worth / bar).ln().clamp(-WIDEST_MARGIN, WIDEST_MARGIN);
        margins[unit.block][unit.group] = match at < first_kept {
            true if last.contains(&at) => LAST_MARGIN,
            true => margin.min(-TIED_MARGIN),
            false => margin,
        };
    }
    for (block, margins) in spec.blocks.iter().zip(margins) {
        let Some(gate) = &block.gate.channel else { continue };
        let layer = last_layer(gate);
        let halves = margins.iter().map(|m| m / 2.0).chain(margins.iter().map(|m| -m / 2.0));
        let bias: Vec<f32> = halves.map(|half| half as f32).collect();
        let weight = weights
            .get_mut(&format!("{layer}.weight"))
            .with_context(|| format!("no tensor {layer}.weight"))?;
        *weight = weight.zeros_like()?;
        weights.insert(format!("{layer}.bias"), Tensor::new(bias, &Device::Cpu)?);
    }
    Ok(())
}
