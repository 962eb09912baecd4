//! What the official LAUDNet PyTorch code computed (evaluation mode, f32, CPU) with random weights of shrunk networks.
//!
//! `fixtures/<name>.safetensors` holds the state dict under the official names, the network's configuration as metadata
//! `config`, `fixture.input`, `fixture.logits`, `fixture.stage1..`, and `fixture.mask.<gate>` as u8. Seeds were
//! picked so that no gate decision is near its threshold: a mask that differs is an error, not rounding.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use laud::train::{BlockMasks, PerGate};
use laud_models::{NetConfig, NetSpec};
use safetensors::SafeTensors;

/// All fixtures that hold weights.
pub(crate) const NAMES: [&str; 8] = [
    "regnety_channel_g4",
    "regnety_spatial_s2221",
    "resnet_both_s2221_g2",
    "resnet_channel_convlinear_g2",
    "resnet_channel_g4_mlp1",
    "resnet_channel_mlp2",
    "resnet_layer",
    "resnet_spatial_s4421",
];

/// One network, one batch, and the official results.
pub(crate) struct Fixture {
    pub(crate) spec: NetSpec,
    pub(crate) weights: HashMap<String, Tensor>,
    /// `[n, c, h, w]`.
    pub(crate) input: Tensor,
    pub(crate) logits: Tensor,
    /// Behind each stage, `[n, c, h, w]`.
    pub(crate) stages: Vec<Tensor>,
    /// One entry a block.
    pub(crate) masks: Vec<BlockMasks>,
}

impl Fixture {
    pub(crate) fn load(name: &str) -> Self {
        let path = format!("{}/tests/fixtures/{name}.safetensors", env!("CARGO_MANIFEST_DIR"));
        let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let config = &header.metadata().as_ref().unwrap()["config"];
        let spec = NetConfig::from_json(config).unwrap().build().unwrap();
        let mut weights = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).unwrap();
        let official: HashMap<_, _> = weights
            .iter()
            .filter_map(|(name, tensor)| Some((name.strip_prefix("fixture.")?.to_owned(), tensor.clone())))
            .collect();
        weights.retain(|name, _| !name.starts_with("fixture."));
        let mask = |prefix: &str| -> Vec<bool> {
            let mask = official[&format!("mask.{prefix}")].to_dtype(DType::U8).unwrap();
            let bits: Vec<u8> = mask.flatten_all().unwrap().to_vec1().unwrap();
            bits.into_iter().map(|bit| bit != 0).collect()
        };
        let masks = spec.blocks.iter().map(|block| PerGate {
            spatial: block.gate.spatial.as_ref().map(|gate| mask(&gate.prefix)),
            channel: block.gate.channel.as_ref().map(|gate| mask(&gate.prefix)),
        });
        Self {
            masks: masks.collect(),
            stages: (1..).map_while(|stage| official.get(&format!("stage{stage}")).cloned()).collect(),
            input: official["input"].clone(),
            logits: official["logits"].clone(),
            weights,
            spec,
        }
    }
}
