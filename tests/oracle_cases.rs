//! Small networks whose results are known without the official code: by loops, or by hand.

use candle_core::{Device, Tensor, Var};
use laud::train::{BlockMasks, Decisions, MaskedNetwork, PerGate, random_images, random_weights};
use laud_models::{MapSize, NetConfig, NetSpec, ParameterKind, Shortcut};

use crate::compare::{assert_close, values};
use crate::naive::{Map, Naive, samples};
use crate::oracle::{FLOOR, RELATIVE};

pub(crate) fn net(json: &str) -> NetSpec {
    NetConfig::from_json(json).and_then(|config| config.build()).unwrap_or_else(|e| panic!("{json}: {e}"))
}

/// Networks that together have every part a spec can have. On an even number of pixels TensorFlow pads one side only.
const NETWORKS: [&str; 9] = [
    r#"{"arch": "mobilenet_v2", "width_mult": 0.25, "depths": [1, 2, 1, 2, 1, 1, 1], "head_width": 24, "input_size": [32, 35],
        "num_classes": 5, "dyn_mode": "both", "spatial_granularity": 2, "channel_granularity": 4}"#,
    r#"{"arch": "mobilenet_v2_tf", "width_mult": 0.25, "depths": [1, 2, 1, 2, 1, 1, 1], "head_width": 24, "input_size": [32, 35],
        "num_classes": 5, "dyn_mode": "both", "spatial_granularity": 2, "channel_granularity": 4}"#,
    r#"{"arch": "resnet18", "width_mult": 0.125, "depths": [1, 2], "input_size": [33, 40], "num_classes": 5, "dyn_mode": "both",
        "spatial_granularity": [3, 2], "channel_granularity": 2, "reduction": 4}"#,
    r#"{"arch": "resnet50", "width_mult": 0.125, "depths": [1, 2], "input_size": 32, "num_classes": 5, "norm": "folded",
        "dyn_mode": "channel", "channel_granularity": 4, "reduction": 4}"#,
    r#"{"arch": "cifar_resnet", "depths": [1, 2, 2], "widths": [4, 7, 10], "stem_width": 4, "input_size": [9, 12], "dyn_mode": ["layer", "none", "both"],
        "spatial_granularity": 2, "channel_granularity": 1}"#,
    r#"{"arch": "regnet", "depths": [1, 2], "widths": [16, 24], "group_widths": 8, "stem_width": 8, "input_size": 24, "num_classes": 5,
        "dyn_mode": "both", "spatial_granularity": [2, 3], "channel_granularity": 4, "squeeze_pooling": "active"}"#,
    r#"{"arch": "regnet", "depths": [1, 2], "widths": [16, 24], "group_widths": 8, "stem_width": 8, "input_size": 24, "num_classes": 5,
        "dyn_mode": "spatial", "spatial_granularity": [2, 3], "squeeze_pooling": "dense"}"#,
    r#"{"arch": "regnet", "depths": [1, 1], "widths": [16, 24], "group_widths": 8, "stem_width": 8, "input_size": 24, "num_classes": 5,
        "dyn_mode": "none", "se_ratio": 0, "norm": "folded"}"#,
    r#"{"arch": "cifar_resnet", "depths": [2, 1], "widths": [8, 8], "stem_width": 8, "input_size": 8, "dyn_mode": "channel", "channel_granularity": 2,
        "channel_masker": "conv_linear", "reduction": 4, "norm": "folded"}"#,
];

/// Sample 0 skips everything, sample 1 nothing, the others some.
fn mixed(spec: &NetSpec, n: usize) -> Vec<BlockMasks> {
    let mut state = 1u32;
    let mut bits = |units: usize| -> Vec<bool> {
        let mut bit = |i: usize| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            i / units == 1 || (i / units > 1 && state >> 31 == 1)
        };
        (0..n * units).map(&mut bit).collect()
    };
    let block = |block: &laud_models::BlockSpec| PerGate {
        spatial: block.gate.spatial.as_ref().map(|gate| bits(gate.grid.h * gate.grid.w)),
        channel: block.gate.channel.as_ref().map(|gate| bits(gate.groups)),
    };
    spec.blocks.iter().map(block).collect()
}

#[test]
fn every_part_is_what_the_loops_say() {
    for json in NETWORKS {
        let spec = net(json);
        let weights = random_weights(&spec, 3).unwrap();
        let (network, naive) = (MaskedNetwork::new(&spec, &weights).unwrap(), Naive::new(&weights));
        let images = random_images(&spec, 4, 5).unwrap();
        let masks = mixed(&spec, 4);
        for decisions in [Decisions::Learned, Decisions::Given(&masks)] {
            let found = network.forward(&images, &decisions).unwrap();
            if matches!(decisions, Decisions::Given(_)) {
                assert_eq!(found.masks, masks);
            }
            for (sample, image) in samples(&images).iter().enumerate() {
                let (stages, logits) = naive.network(&spec, image, sample, &found.masks);
                assert_eq!(found.stages.len(), stages.len());
                for (stage, expected) in found.stages.iter().zip(&stages) {
                    let what = format!("{json} sample {sample} {:?}", expected.size);
                    assert_close(&what, &stage.get(sample).unwrap(), &tensor(expected), RELATIVE, FLOOR);
                }
                let expected: Vec<f32> = logits.iter().map(|&logit| logit as f32).collect();
                let expected = Tensor::new(expected, &Device::Cpu).unwrap();
                assert_close(json, &found.logits.get(sample).unwrap(), &expected, RELATIVE, FLOOR);
            }
        }
    }
}

fn tensor(map: &Map) -> Tensor {
    let values: Vec<f32> = map.v.iter().map(|&value| value as f32).collect();
    Tensor::from_vec(values, (map.c, map.size.h, map.size.w), &Device::Cpu).unwrap()
}

#[test]
fn type_a_shortcuts_keep_every_second_pixel_and_add_zero_channels() {
    let spec = net(
        r#"{"arch": "cifar_resnet", "depths": [1, 1], "widths": [2, 5], "stem_width": 2, "input_size": 5}"#,
    );
    assert_eq!(spec.blocks[1].shortcut, Shortcut::PadChannels { stride: 2, before: 1, after: 2 });
    let mut weights = random_weights(&spec, 1).unwrap();
    for name in ["layer1.0.bn2.weight", "layer1.0.bn2.bias", "layer2.0.bn2.weight", "layer2.0.bn2.bias"] {
        let off = weights[name].zeros_like().unwrap();
        weights.insert(name.into(), off);
    }
    let images = random_images(&spec, 1, 2).unwrap();
    let found = MaskedNetwork::new(&spec, &weights).unwrap().forward(&images, &Decisions::Learned).unwrap();
    let (before, after) = (values(&found.stages[0]), values(&found.stages[1]));
    assert_eq!(found.stages[1].dims(), [1, 5, 3, 3]);
    assert!(before.iter().any(|&value| value > 0.0));
    for (c, y, x) in (0..45).map(|i| (i / 9, i / 3 % 3, i % 3)) {
        let expected = if (1..3).contains(&c) { before[(c - 1) * 25 + 2 * y * 5 + 2 * x] } else { 0.0 };
        assert_eq!(after[c * 9 + y * 3 + x], expected);
    }
}

#[test]
fn uneven_mask_cells_overlap_as_pytorchs_do() {
    let spec = net(
        r#"{"arch": "cifar_resnet", "depths": [1], "widths": [1], "stem_width": 1, "input_size": [5, 4], "dyn_mode": "spatial",
            "spatial_granularity": 2}"#,
    );
    let mut weights = random_weights(&spec, 1).unwrap();
    let mut set = |name: &str, shape: &[usize], values: &[f32]| {
        weights.insert(name.into(), Tensor::from_slice(values, shape, &Device::Cpu).unwrap());
    };
    // The stem passes the first image channel on; the gate's margin is the cell's mean − 10.
    set("conv1.weight", &[1, 3, 3, 3], &std::array::from_fn::<f32, 27, _>(|i| f32::from(u8::from(i == 4))));
    for (name, value) in [("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0 - 1e-5)]
    {
        set(&format!("bn1.{name}"), &[1], &[value]);
    }
    set("layer1.0.masker_spatial.conv.weight", &[2, 1, 1, 1], &[1.0, 0.0]);
    set("layer1.0.masker_spatial.conv.bias", &[2], &[0.5, 10.5]);
    let ramp: Vec<f32> = (0..60).map(|i| (i % 20) as f32).collect();
    let images = Tensor::from_vec(ramp, (1, 3, 5, 4), &Device::Cpu).unwrap();
    let found = MaskedNetwork::new(&spec, &weights).unwrap().forward(&images, &Decisions::Learned).unwrap();
    // Rows 0..3 and 2..5 of values 4·row + column; columns 0..2 and 2..4.
    let expected = [4.5 - 10.0, 6.5 - 10.0, 12.5 - 10.0, 14.5 - 10.0];
    let margins = found.margins[0].spatial.clone().unwrap();
    for (margin, expected) in margins.iter().zip(expected) {
        assert!((margin - expected).abs() < 1e-4, "{margins:?}");
    }
    assert_eq!(found.masks[0].spatial, Some(vec![false, false, true, true]));
}

#[test]
fn equal_logits_keep() {
    let spec = net(r#"{"arch": "cifar_resnet", "depths": [1], "input_size": 4, "dyn_mode": "layer"}"#);
    let mut weights = random_weights(&spec, 1).unwrap();
    for name in ["weight", "bias"] {
        let tensor = weights.get_mut(&format!("layer1.0.masker_spatial.conv.{name}")).unwrap();
        *tensor = tensor.ones_like().unwrap();
    }
    let images = random_images(&spec, 2, 2).unwrap();
    let found = MaskedNetwork::new(&spec, &weights).unwrap().forward(&images, &Decisions::Learned).unwrap();
    assert_eq!(found.masks[0].spatial, Some(vec![true; 2]));
    assert_eq!(found.margins[0].spatial, Some(vec![0.0; 2]));
}

#[test]
fn what_does_not_fit_is_an_error() {
    let spec = net(NETWORKS[4]);
    let weights = random_weights(&spec, 1).unwrap();
    let network = MaskedNetwork::new(&spec, &weights).unwrap();
    let images = random_images(&spec, 2, 2).unwrap();
    let given = |change: &dyn Fn(&mut Vec<BlockMasks>)| {
        let mut masks = mixed(&spec, 2);
        change(&mut masks);
        format!("{:#}", network.forward(&images, &Decisions::Given(&masks)).unwrap_err())
    };
    let error = given(&|masks| masks[0].spatial = None);
    assert_eq!(error, "block layer1.0: no decisions given for the spatial gate");
    let error = given(&|masks| masks[1].channel = Some(vec![]));
    assert_eq!(error, "block layer2.0: decisions given, but there is no channel gate");
    let error = given(&|masks| masks[3].channel.as_mut().unwrap().truncate(19));
    assert_eq!(error, "block layer3.0: decisions for the channel gate: 19 decisions, expected 2 × 10");
    let error = given(&|masks| masks.truncate(3));
    assert_eq!(error, "decisions given for 3 blocks, the network has 5");
    let small = images.narrow(3, 0, 8).unwrap();
    let error = network.forward(&small, &Decisions::Learned).unwrap_err().to_string();
    assert_eq!(error, "images of shape [2, 3, 9, 8], expected [n, 3, 9, 12]");
    let mut fewer = weights.clone();
    fewer.remove("layer3.1.bn2.running_var");
    let error = MaskedNetwork::new(&spec, &fewer).err().unwrap().to_string();
    assert!(error.contains("layer3.1.bn2.running_var [10]"), "{error}");
}

#[test]
fn random_networks_are_reproducible_and_their_gates_mixed() {
    for json in NETWORKS {
        let spec = net(json);
        let (first, second) = (random_weights(&spec, 8).unwrap(), random_weights(&spec, 8).unwrap());
        let other = random_weights(&spec, 9).unwrap();
        let bare = random_weights(&spec.without_gates(), 8).unwrap();
        for (name, tensor) in &first {
            assert_eq!(values(tensor), values(&second[name]), "{json} {name}");
            assert_ne!(values(tensor), values(&other[name]), "{json} {name}");
            assert!(bare.get(name).is_none_or(|bare| values(bare) == values(tensor)), "{json} {name}");
        }
        let network = MaskedNetwork::new(&spec, &first).unwrap();
        let found = network.forward(&random_images(&spec, 4, 1).unwrap(), &Decisions::Learned).unwrap();
        let all: Vec<bool> = found
            .masks
            .into_iter()
            .flat_map(|masks| [masks.spatial, masks.channel])
            .flatten()
            .flatten()
            .collect();
        let density = all.iter().filter(|&&keep| keep).count() as f32 / all.len().max(1) as f32;
        assert!(all.is_empty() || (0.2..0.8).contains(&density), "{json}: density {density}");
    }
}

#[test]
fn gradients_reach_every_weight_but_the_gates() {
    for json in NETWORKS {
        // candle's gradient of a strided convolution needs square maps.
        let mut config = NetConfig::from_json(json).unwrap();
        config.input_size = Some(MapSize { h: 32, w: 32 });
        let spec = config.build().unwrap();
        let mut weights = random_weights(&spec, 2).unwrap();
        for parameter in spec.parameters().iter().filter(|p| p.kind == ParameterKind::Learned) {
            let tensor = weights.get_mut(&parameter.name).unwrap();
            *tensor = Var::from_tensor(tensor).unwrap().into_inner();
        }
        let network = MaskedNetwork::new(&spec, &weights).unwrap();
        let images = random_images(&spec, 4, 1).unwrap();
        let logits = network.forward(&images, &Decisions::Learned).unwrap().logits;
        let gradients = logits.sqr().unwrap().mean_all().unwrap().backward().unwrap();
        for (name, tensor) in weights.iter().filter(|(_, tensor)| tensor.is_variable()) {
            // Decisions are steps: nothing flows back through them in evaluation.
            assert_eq!(gradients.get(tensor).is_some(), !name.contains("masker"), "{json} {name}");
        }
    }
}
