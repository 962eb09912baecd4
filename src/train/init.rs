//! What weights are before training.

use std::collections::HashMap;

use anyhow::Result;
use candle_core::{Device, Tensor};
use laud_models::{ChannelGateSpec, ChannelHead, NetSpec, Parameter};

use crate::random::Random;

/// Biases of fresh gates: how willing they are to keep.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GateBias {
    /// Keep bias of a spatial or layer gate; its skip bias is 0. Official: 5.
    pub spatial: f64,
    /// Keep bias of a channel gate; its skip bias is the negative. Official: 2.
    pub channel: f64,
    /// Leave the first skip bias of every gate at PyTorch's default, as the official code does (its slice starts one too
    /// late: IC/models/utils.py).
    pub first_skip_unset: bool,
}

impl Default for GateBias {
    fn default() -> Self {
        Self { spatial: 5.0, channel: 2.0, first_skip_unset: false }
    }
}

/// Whether a tensor belongs to a gate.
pub fn is_gate(name: &str) -> bool {
    name.contains(".masker_")
}

/// Weights to start from: convolutions normal with variance `2 / fan-in` (He et al. 2015), BatchNorm the identity, linear
/// layers and gates uniform within `1 / √fan-in` as PyTorch, gate biases as `bias` says. A tensor depends on the seed and its
/// own name and shape only.
pub fn initial_weights(spec: &NetSpec, seed: u64, bias: GateBias) -> Result<HashMap<String, Tensor>> {
    spec.validate()?;
    let parameters = spec.parameters();
    let shape_of = |name: &str| parameters.iter().find(|p| p.name == name).map(|p| p.shape.clone());
    let mut weights = HashMap::new();
    for Parameter { name, shape, .. } in &parameters {
        let mut random = Random::named(seed, name);
        let weight_of = name.strip_suffix("bias").and_then(|stem| shape_of(&format!("{stem}weight")));
        let fan_in = |shape: &[usize]| shape.iter().skip(1).product::<usize>().max(1) as f64;
        let kind = name.rsplit('.').next().unwrap_or_default();
        let linear = is_gate(name) || name.starts_with("fc.");
        let mut value: Box<dyn FnMut() -> f64> = match (kind, weight_of.as_deref().unwrap_or(shape)) {
            ("running_var", _) => Box::new(|| 1.0),
            ("running_mean", _) => Box::new(|| 0.0),
            // Of a normalisation.
            ("weight", [_]) => Box::new(|| 1.0),
            ("bias", [_]) => Box::new(|| 0.0),
            (_, of) if linear => {
                let bound = 1.0 / fan_in(of).sqrt();
                Box::new(move || bound * (2.0 * random.uniform() - 1.0))
            }
            ("bias", _) => Box::new(|| 0.0),
            (_, of) => {
                let deviation = (2.0 / fan_in(of)).sqrt();
                Box::new(move || deviation * random.normal())
            }
        };
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| value() as f32).collect();
        weights.insert(name.clone(), Tensor::from_vec(values, shape.as_slice(), &Device::Cpu)?);
    }
    for (name, keep, skip) in gate_biases(spec, bias) {
        if let Some(tensor) = weights.get_mut(&name) {
            let mut values: Vec<f32> = tensor.to_vec1()?;
            let units = values.len() / 2;
            let unset = usize::from(bias.first_skip_unset);
            values[..units].fill(keep as f32);
            values[(units + unset).min(2 * units)..].fill(skip as f32);
            *tensor = Tensor::new(values, &Device::Cpu)?;
        }
    }
    Ok(weights)
}

/// Name of every gate's last bias, what its keep half and what its skip half is.
fn gate_biases(spec: &NetSpec, bias: GateBias) -> Vec<(String, f64, f64)> {
    let mut all = Vec::new();
    for gate in spec.blocks.iter().map(|block| &block.gate) {
        if let Some(spatial) = &gate.spatial {
            all.push((format!("{}.conv.bias", spatial.prefix), bias.spatial, 0.0));
        }
        if let Some(channel) = &gate.channel {
            all.push((format!("{}.bias", last_layer(channel)), bias.channel, -bias.channel));
        }
    }
    all
}

/// Module name of a channel gate's last layer.
pub(super) fn last_layer(gate: &ChannelGateSpec) -> String {
    let layer = match gate.head {
        ChannelHead::Mlp1 => "conv",
        ChannelHead::Mlp2 { .. } => "conv.2",
        ChannelHead::ConvLinear { .. } => "linear",
    };
    format!("{}.{layer}", gate.prefix)
}

#[cfg(test)]
mod tests {
    use super::*;
    use laud_models::NetConfig;

    fn bias_of(config: &str, name: &str, bias: GateBias) -> Vec<f32> {
        let spec = NetConfig::from_json(config).unwrap().build().unwrap();
        initial_weights(&spec, 1, bias).unwrap()[name].to_vec1().unwrap()
    }

    #[test]
    fn gates_start_willing_to_keep() {
        let layer = r#"{"arch": "resnet20", "dyn_mode": "layer"}"#;
        let name = "layer1.0.masker_spatial.conv.bias";
        assert_eq!(bias_of(layer, name, GateBias::default()), [5.0, 0.0]);
        let official = GateBias { first_skip_unset: true, ..GateBias::default() };
        let unset = bias_of(layer, name, official);
        // PyTorch's default is uniform within 1 / √16.
        assert!(unset[0] == 5.0 && unset[1] != 0.0 && unset[1].abs() <= 0.25, "{unset:?}");
        let channel = r#"{"arch": "resnet20", "dyn_mode": "channel", "channel_granularity": 8}"#;
        let name = "layer1.0.masker_channel.conv.2.bias";
        assert_eq!(bias_of(channel, name, GateBias::default()), [2.0, 2.0, -2.0, -2.0]);
        let unset = bias_of(channel, name, official);
        assert!(unset[2] != -2.0 && unset[3] == -2.0, "{unset:?}");
    }
}
