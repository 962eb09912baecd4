//! The runtime's kernels as candle operations: values and gradients against candle's own.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::Result;
use candle_core::{Tensor, Var};
use half::bf16;
use laud::autograd::KernelMaps;
use laud::train::{
    Decisions, MapOps, MaskedNetwork, Plain, Sampling, Statistics, random_images, random_weights,
};
use laud_models::{NetConfig, NetSpec, ParameterKind};

/// Networks that together have every kind of block, gate and shortcut; odd maps and widths among them.
const NETWORKS: [&str; 12] = [
    r#"{"arch": "resnet20", "input_size": 8}"#,
    r#"{"arch": "resnet20", "depths": [2, 2], "widths": [5, 9], "stem_width": 5, "input_size": 7}"#,
    r#"{"arch": "resnet20", "input_size": 12, "dyn_mode": "layer"}"#,
    r#"{"arch": "resnet20", "input_size": 12, "dyn_mode": "spatial", "spatial_granularity": [4, 2, 1]}"#,
    r#"{"arch": "resnet20", "input_size": 8, "dyn_mode": "channel", "channel_granularity": 4}"#,
    r#"{"arch": "resnet20", "depths": [1, 2], "widths": [8, 16], "stem_width": 8, "input_size": 8, "dyn_mode": "both",
        "spatial_granularity": 2, "channel_granularity": 2}"#,
    r#"{"arch": "resnet", "depths": [2, 1], "widths": [8, 16], "stem_width": 8, "input_size": 16, "num_classes": 5,
        "dyn_mode": "both", "spatial_granularity": 1, "channel_granularity": 2, "channel_masker": "conv_linear",
        "reduction": 2}"#,
    r#"{"arch": "regnet", "depths": [1, 1], "widths": [8, 16], "group_widths": 8, "stem_width": 8, "input_size": 16,
        "num_classes": 5, "dyn_mode": "channel", "channel_granularity": 2}"#,
    r#"{"arch": "mobilenet_v2", "width_mult": 0.25, "input_size": 32, "num_classes": 5, "dyn_mode": "layer"}"#,
    r#"{"arch": "mobilenet_v2_tf", "width_mult": 0.25, "input_size": 36, "num_classes": 5, "dyn_mode": "spatial",
        "spatial_granularity": 2}"#,
    r#"{"arch": "mobilenet_v2", "width_mult": 0.25, "input_size": 32, "num_classes": 5, "dyn_mode": "channel",
        "channel_granularity": 4}"#,
    r#"{"arch": "mobilenet_v2_tf", "width_mult": 0.25, "input_size": 36, "num_classes": 5, "dyn_mode": "both",
        "spatial_granularity": 2, "channel_granularity": 8}"#,
];

struct Outcome {
    logits: Vec<f32>,
    /// By name: gradients, and running statistics afterwards.
    tensors: HashMap<String, Vec<f32>>,
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Fixed numbers of a shape: no two tensors have the same.
fn numbers(name: &str, shape: &[usize]) -> Result<Tensor> {
    let mut state = name.bytes().fold(7u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
    let mut number = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    let count = shape.iter().product();
    Ok(Tensor::from_vec(
        (0..count).map(|_| number()).collect::<Vec<f32>>(),
        shape,
        &candle_core::Device::Cpu,
    )?)
}

fn step(spec: &NetSpec, maps: Arc<dyn MapOps>, statistics: Statistics) -> Outcome {
    let noisy = Decisions::Sampled(Sampling { temperature: 1.5, noise: &numbers });
    step_by(spec, maps, &noisy, statistics)
}

fn step_by(
    spec: &NetSpec,
    maps: Arc<dyn MapOps>,
    decisions: &Decisions<'_>,
    statistics: Statistics,
) -> Outcome {
    let kinds: HashMap<String, ParameterKind> =
        spec.parameters().into_iter().map(|parameter| (parameter.name, parameter.kind)).collect();
    let vars: HashMap<String, Var> = random_weights(spec, 3)
        .unwrap()
        .iter()
        .map(|(name, tensor)| {
            // Undecided gates: a channel that nobody keeps has no variance, and its gradient no digits.
            let balanced = name.contains(".masker_channel.") && name.ends_with("bias");
            let tensor = if balanced { tensor.zeros_like().unwrap() } else { tensor.clone() };
            (name.clone(), Var::from_tensor(&tensor).unwrap())
        })
        .collect();
    let tensors = vars.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect();
    let network = MaskedNetwork::new(spec, &tensors).unwrap().with_maps(maps);
    let images = random_images(spec, 6, 5).unwrap();
    let activity = network.forward_train(&images, decisions, statistics).unwrap();
    let mut loss =
        (&activity.logits * numbers("loss", activity.logits.dims()).unwrap()).unwrap().sum_all().unwrap();
    for (index, keep) in activity.keep.iter().enumerate() {
        for keep in [&keep.spatial, &keep.channel].into_iter().flatten() {
            let part = (keep * numbers(&format!("keep {index}"), keep.dims()).unwrap()).unwrap();
            loss = (loss + part.sum_all().unwrap()).unwrap();
        }
    }
    let grads = loss.backward().unwrap();
    let noisy = matches!(decisions, Decisions::Sampled(_));
    let tensors = vars.iter().map(|(name, var)| {
        let tensor = match kinds[name] {
            ParameterKind::Learned => match grads.get(var) {
                Some(grad) => values(grad),
                // Of a gate that is not learned, and of a branch that no sample is kept for.
                None if !noisy || statistics == Statistics::Kept => vec![0.0; var.elem_count()],
                None => panic!("no gradient of {name}"),
            },
            ParameterKind::Statistic => values(var),
        };
        (name.clone(), tensor)
    });
    Outcome { logits: values(&activity.logits), tensors: tensors.collect() }
}

/// Of the largest value of a tensor, from rounding in another order.
const ROUNDING: f32 = 1e-3;
/// The same where a channel, or a branch, that hardly any sample keeps has hardly any variance: BatchNorm then multiplies gradients, and
/// their rounding, a hundredfold in every layer.
const HARDLY_ANY_VARIANCE: f32 = 1e-2;

fn assert_near(got: &[f32], want: &[f32], tolerance: f32, what: &str) {
    let scale = want.iter().fold(1e-2f32, |most, value| most.max(value.abs()));
    let worst = got.iter().zip(want).map(|(got, want)| (got - want).abs()).fold(0.0, f32::max);
    assert!(got.len() == want.len() && worst <= tolerance * scale, "{what}: {worst} off, largest {scale}");
}

/// With masks behind the activation, depthwise channels that few samples keep follow one another: with the batch's
/// statistics, weights changed by a millionth then change candle's own gradients by up to 15 %.
fn comparable(spec: &NetSpec) -> Vec<Statistics> {
    let deep = spec.blocks.iter().any(|block| block.convs.iter().any(|conv| conv.groups == conv.c_in));
    match deep && spec.blocks.iter().any(|block| block.gate.channel.is_some()) {
        true => vec![Statistics::Stored],
        false => vec![Statistics::Stored, Statistics::Batch, Statistics::Kept],
    }
}

#[test]
fn values_and_gradients_equal_candles() {
    for config in NETWORKS {
        let spec = NetConfig::from_json(config).unwrap().build().unwrap();
        for statistics in comparable(&spec) {
            let want = step(&spec, Arc::new(Plain), statistics);
            let got = step(&spec, Arc::new(KernelMaps::<f32>::new(2).unwrap()), statistics);
            let masked = spec.blocks.iter().any(|block| block.gate.channel.is_some());
            let thin = masked && statistics == Statistics::Batch || statistics == Statistics::Kept;
            let tolerance = if thin { HARDLY_ANY_VARIANCE } else { ROUNDING };
            assert_near(&got.logits, &want.logits, tolerance, config);
            for (name, want) in &want.tensors {
                assert_near(
                    &got.tensors[name],
                    want,
                    tolerance,
                    &format!("{name} of {config}, {statistics:?}"),
                );
            }
        }
    }
}

/// Networks in bfloat16, and how far their gradients may be off, of their length. Roundings grow in a row of convolutions with
/// random weights; another gradient is as far away as it is long.
const HALF: [(&str, f32); 5] = [
    (
        r#"{"arch": "resnet20", "depths": [1, 1], "widths": [16, 24], "stem_width": 16, "input_size": 12}"#,
        0.2,
    ),
    (
        r#"{"arch": "resnet20", "depths": [1, 1], "widths": [16, 24], "stem_width": 16, "input_size": 12,
            "dyn_mode": "channel", "channel_granularity": 4}"#,
        0.2,
    ),
    (
        r#"{"arch": "resnet20", "depths": [1, 1], "widths": [5, 9], "stem_width": 5, "input_size": 7,
            "dyn_mode": "spatial", "spatial_granularity": 2}"#,
        0.2,
    ),
    (
        r#"{"arch": "resnet", "depths": [1, 1], "widths": [8, 16], "stem_width": 40, "input_size": 40,
            "num_classes": 5}"#,
        0.2,
    ),
    (r#"{"arch": "mobilenet_v2_tf", "width_mult": 0.25, "input_size": 36, "num_classes": 5}"#, 0.7),
];

#[test]
fn in_bfloat16_values_and_gradients_are_near_candles() {
    for (config, tolerance) in HALF {
        let spec = NetConfig::from_json(config).unwrap().build().unwrap();
        let want = step(&spec, Arc::new(Plain), Statistics::Stored);
        let got = step(&spec, Arc::new(KernelMaps::<bf16>::new(2).unwrap()), Statistics::Stored);
        let off = |got: &[f32], want: &[f32]| {
            let off: f32 = got.iter().zip(want).map(|(got, want)| (got - want).powi(2)).sum();
            (off / want.iter().map(|want| want * want).sum::<f32>().max(1e-6)).sqrt()
        };
        assert!(off(&got.logits, &want.logits) < tolerance / 10.0, "{config}");
        for (name, want) in &want.tensors {
            let off = off(&got.tensors[name], want);
            assert!(off < tolerance, "{name} of {config}: {off}");
        }
    }
}

#[test]
fn maps_are_apart_by_a_relative_distance() {
    let map = |values: &[f32]| Tensor::from_slice(values, (1, 2, 1, 1), &candle_core::Device::Cpu).unwrap();
    let every: [Arc<dyn MapOps>; 3] = [
        Arc::new(Plain),
        Arc::new(KernelMaps::<f32>::new(2).unwrap()),
        Arc::new(KernelMaps::<bf16>::new(1).unwrap()),
    ];
    for maps in every {
        let student = Var::from_tensor(&map(&[1.0, 2.0])).unwrap();
        let from = maps.enter(&map(&[3.0, 4.0])).unwrap();
        let apart = maps.distance(&maps.enter(&student).unwrap(), &from).unwrap();
        // (2² + 2²) / 5², and 2 (s − t) / ‖t‖².
        assert!((apart.to_scalar::<f32>().unwrap() - 0.32).abs() < 1e-6);
        let grads = (apart * 3.0).unwrap().backward().unwrap();
        let grad = values(grads.get(&student).unwrap());
        assert!(grad.iter().all(|grad| (grad + 0.48).abs() < 1e-6), "{grad:?}");
        let turned = maps.enter(&map(&[3.0, 4.0]).reshape((1, 1, 2, 1)).unwrap()).unwrap();
        let message = maps.distance(&turned, &from).unwrap_err().to_string();
        assert!(message.contains("[1, 2, 1, 1]") || message.contains("[1, 1, 1, 2]"), "{message}");
    }
}

/// With stored statistics a branch that is not computed and one that is masked are the same.
#[test]
fn what_a_layer_gate_drops_changes_no_gradient() {
    let config = r#"{"arch": "resnet20", "input_size": 12, "dyn_mode": "layer"}"#;
    let spec = NetConfig::from_json(config).unwrap().build().unwrap();
    let run = |maps: Arc<dyn MapOps>| step_by(&spec, maps, &Decisions::Learned, Statistics::Stored);
    let (want, got) = (run(Arc::new(Plain)), run(Arc::new(KernelMaps::<f32>::new(2).unwrap())));
    assert_near(&got.logits, &want.logits, ROUNDING, "logits");
    for (name, want) in &want.tensors {
        assert_near(&got.tensors[name], want, ROUNDING, name);
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let config = r#"{"arch": "resnet20", "input_size": 8, "dyn_mode": "layer"}"#;
    let spec = NetConfig::from_json(config).unwrap().build().unwrap();
    let run = |threads| step(&spec, Arc::new(KernelMaps::<f32>::new(threads).unwrap()), Statistics::Batch);
    let (one, three) = (run(1), run(3));
    assert_eq!(one.logits, three.logits);
    assert_eq!(one.tensors, three.tensors);
}
