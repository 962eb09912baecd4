//! BatchNorm whose statistics were folded away gets them back.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Context, Result};
use candle_core::{Device, Tensor, Var};
use laud_models::{ConvSpec, NetSpec, NormSpec, Shortcut};

use super::decisions::Decisions;
use super::layers::Statistics;
use super::maps::MapOps;
use super::network::MaskedNetwork;

/// Gives each normalisation that has mean 0 and variance 1 in all channels, because its statistics were folded into weight and
/// bias, those of `images [n, c, h, w]`. The network computes the same, to rounding. A network that has none is left as it is,
/// as are normalisations with all weights 1: those of a network that was never trained.
///
/// A folded network cannot be trained: the batch's statistics are not what its weights were folded with, and with the stored
/// ones a weight's gradient is larger by the deviation of what it scales, 5 to 25 in ResNet-50.
pub fn unfold_norms(
    spec: &NetSpec,
    weights: &mut HashMap<String, Tensor>,
    maps: Arc<dyn MapOps>,
    images: impl FnOnce() -> Result<Tensor>,
) -> Result<()> {
    let spec = spec.without_gates();
    let mut folded = Vec::new();
    for norm in norms(&spec) {
        let all = |part: &str, value: f32| -> Result<bool> {
            Ok(values(weights, norm, part)?.iter().all(|found| *found == value))
        };
        if all("running_mean", 0.0)? && all("running_var", 1.0)? && !all("weight", 1.0)? {
            folded.push(norm);
        }
    }
    if folded.is_empty() {
        return Ok(());
    }
    // The statistics that move are copies.
    let mut tensors = weights.clone();
    for name in norms(&spec).flat_map(|norm| ["running_mean", "running_var"].map(|part| name(norm, part))) {
        let tensor = tensors.get_mut(&name).with_context(|| format!("no tensor {name}"))?;
        *tensor = Var::from_tensor(&tensor.copy()?)?.as_tensor().clone();
    }
    let network = MaskedNetwork::new(&spec, &tensors)?.with_maps(maps);
    network.forward_train(&images()?, &Decisions::Learned, Statistics::Measured)?;
    for norm in folded {
        let (mut weight, mut bias) = (values(weights, norm, "weight")?, values(weights, norm, "bias")?);
        let (mean, var) = (values(&tensors, norm, "running_mean")?, values(&tensors, norm, "running_var")?);
        let was = (1.0 + norm.eps).sqrt();
        for ((weight, bias), (mean, var)) in weight.iter_mut().zip(&mut bias).zip(mean.iter().zip(&var)) {
            *bias += *weight * mean / was;
            *weight *= (var + norm.eps).sqrt() / was;
        }
        let parts = [("weight", weight), ("bias", bias), ("running_mean", mean), ("running_var", var)];
        for (part, values) in parts {
            weights.insert(name(norm, part), Tensor::new(values, &Device::Cpu)?);
        }
    }
    Ok(())
}

/// The normalisations outside the gates.
fn norms(spec: &NetSpec) -> impl Iterator<Item = &NormSpec> {
    let projections = spec.blocks.iter().filter_map(|block| match &block.shortcut {
        Shortcut::Projection(conv) => Some(conv),
        _ => None,
    });
    let branches = spec.blocks.iter().flat_map(|block| &block.convs);
    let ends = std::iter::once(&spec.stem.conv).chain(&spec.head.conv);
    branches.chain(projections).chain(ends).filter_map(|conv: &ConvSpec| conv.norm.as_ref())
}

fn name(norm: &NormSpec, part: &str) -> String {
    format!("{}.{part}", norm.prefix)
}

fn values(weights: &HashMap<String, Tensor>, norm: &NormSpec, part: &str) -> Result<Vec<f32>> {
    let name = name(norm, part);
    Ok(weights.get(&name).with_context(|| format!("no tensor {name}"))?.to_vec1()?)
}
