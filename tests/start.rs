//! What a network in training starts from: sorted channels, gates at their target, statistics that had been folded.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::Tensor;
use laud::autograd::KernelMaps;
use laud::train::{
    Cost, Decisions, Importance, MapOps, MaskedNetwork, Plain, RateGradient, Statistics, importance,
    initial_weights, random_images, random_weights, sort_channels, start_gates, unfold_norms,
};
use laud_models::{NetConfig, NetSpec};

/// Blocks of every kind that has a channel gate: basic, bottleneck, inverted residual, and one whose channels cannot change places.
const NETWORKS: [&str; 4] = [
    r#"{"arch": "resnet20", "input_size": 8, "dyn_mode": "channel", "channel_granularity": 4}"#,
    r#"{"arch": "resnet", "depths": [2, 1], "widths": [8, 16], "stem_width": 8, "input_size": 16, "num_classes": 5,
        "dyn_mode": "channel", "channel_granularity": 2}"#,
    r#"{"arch": "mobilenet_v2_tf", "width_mult": 0.25, "input_size": 32, "num_classes": 5, "dyn_mode": "channel",
        "channel_granularity": 4}"#,
    r#"{"arch": "regnet", "depths": [1, 1], "widths": [8, 16], "group_widths": 8, "stem_width": 8, "input_size": 16,
        "num_classes": 5, "dyn_mode": "channel", "channel_granularity": 2}"#,
];

fn spec(config: &str) -> NetSpec {
    NetConfig::from_json(config).unwrap().build().unwrap()
}

fn kernels() -> Arc<dyn MapOps> {
    Arc::new(KernelMaps::new(2).unwrap())
}

fn logits(spec: &NetSpec, weights: &HashMap<String, Tensor>, statistics: Statistics) -> Vec<f32> {
    let network = MaskedNetwork::new(spec, weights).unwrap().with_maps(kernels());
    let images = random_images(spec, 4, 5).unwrap();
    let activity = network.forward_train(&images, &Decisions::Learned, statistics).unwrap();
    activity.logits.flatten_all().unwrap().to_vec1().unwrap()
}

fn apart(a: &[f32], b: &[f32]) -> f32 {
    let scale = b.iter().fold(0.0f32, |most, b| most.max(b.abs()));
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / scale
}

fn each_alone(spec: &NetSpec) -> Vec<anyhow::Result<Tensor>> {
    let images = random_images(spec, 6, 9).unwrap();
    (0..6).map(|i| Ok(images.narrow(0, i, 1)?)).collect()
}

#[test]
fn sorted_channels_compute_the_same() {
    for config in NETWORKS {
        let spec = spec(config);
        let mut weights = random_weights(&spec, 3).unwrap();
        let mut scores = importance(&spec, &weights, kernels(), each_alone(&spec), 1).unwrap();
        let plain = importance(&spec, &weights, Arc::new(Plain), each_alone(&spec), 1).unwrap();
        for (got, want) in scores.iter().flatten().flatten().zip(plain.iter().flatten().flatten()) {
            assert!((got - want).abs() <= 1e-3 * want.abs() + 1e-9, "{got} and candle's {want}, {config}");
        }
        let free = spec.without_gates();
        let before = logits(&free, &weights, Statistics::Stored);
        let unsorted = weights.clone();
        sort_channels(&spec, &mut weights, &mut scores).unwrap();
        assert!(apart(&logits(&free, &weights, Statistics::Stored), &before) < 1e-5, "{config}");
        let again = importance(&spec, &weights, kernels(), each_alone(&spec), 1).unwrap();
        for (block, (scores, again)) in spec.blocks.iter().zip(scores.iter().zip(&again)) {
            let fixed = block.squeeze_excite.is_some() || block.convs[0].groups > 1;
            let moved = block.convs.iter().any(|conv| {
                apart(
                    &weights[&conv.weight].flatten_all().unwrap().to_vec1().unwrap(),
                    &unsorted[&conv.weight].flatten_all().unwrap().to_vec1().unwrap(),
                ) > 0.0
            });
            assert_eq!(moved, !fixed && !scores.is_empty(), "{} of {config}", block.name);
            for (scores, again) in scores.iter().zip(again) {
                let most = again.iter().copied().fold(0.0, f64::max);
                assert!(scores.iter().zip(again).all(|(a, b)| (a - b).abs() < 1e-3 * most), "{config}");
            }
        }
    }
}

#[test]
fn a_channel_that_nobody_reads_does_not_matter() {
    let spec = spec(NETWORKS[1]);
    let mut weights = random_weights(&spec, 3).unwrap();
    let last = &spec.blocks[0].convs[2];
    let kept = Tensor::from_vec(
        (0..last.c_in).map(|c| if c == 3 { 0.0f32 } else { 1.0 }).collect::<Vec<_>>(),
        (1, last.c_in, 1, 1),
        &candle_core::Device::Cpu,
    );
    let weight = weights[&last.weight].broadcast_mul(&kept.unwrap()).unwrap();
    weights.insert(last.weight.clone(), weight);
    let scores = importance(&spec, &weights, kernels(), each_alone(&spec), 1).unwrap();
    let second = &scores[0][1];
    assert!(second[3] == 0.0 && second.iter().filter(|score| **score > 0.0).count() == second.len() - 1);
}

#[test]
fn gates_start_at_the_target_with_what_matters_most() {
    for config in NETWORKS {
        let spec = spec(config);
        let mut weights = initial_weights(&spec, 1, Default::default()).unwrap();
        let scores = importance(&spec, &weights, kernels(), each_alone(&spec), 1).unwrap();
        let cost = Cost::macs(&spec, RateGradient::All).unwrap();
        let all = {
            let network = MaskedNetwork::new(&spec, &weights).unwrap();
            let images = random_images(&spec, 2, 1).unwrap();
            let activity = network.forward_train(&images, &Decisions::Learned, Statistics::Stored).unwrap();
            f64::from(cost.of(&activity.keep).unwrap().total.to_scalar::<f32>().unwrap()) / cost.full()
        };
        assert!(all > 0.99, "fresh gates keep everything: {all}");
        let share_at = |scores: &Importance, target: f64| {
            let mut weights = weights.clone();
            start_gates(&spec, &mut weights, scores, &cost, target).unwrap();
            let network = MaskedNetwork::new(&spec, &weights).unwrap();
            let images = random_images(&spec, 2, 1).unwrap();
            let activity = network.forward_train(&images, &Decisions::Learned, Statistics::Stored).unwrap();
            f64::from(cost.of(&activity.keep).unwrap().total.to_scalar::<f32>().unwrap()) / cost.full()
        };
        assert!(share_at(&scores, 1.1) > all - 1e-6, "nothing has to go");
        // Channels that are dead matter alike.
        let mut dead = scores.clone();
        dead.iter_mut().flatten().flatten().for_each(|score| *score = 0.0);
        let tied = share_at(&dead, all - 0.12);
        assert!(tied <= all - 0.12 + 1e-6 && tied > all - 0.27, "{tied} of {all}, {config}");
        let target = all - 0.12;
        start_gates(&spec, &mut weights, &scores, &cost, target).unwrap();
        let network = MaskedNetwork::new(&spec, &weights).unwrap();
        let images = random_images(&spec, 3, 2).unwrap();
        let activity = network.forward_train(&images, &Decisions::Learned, Statistics::Stored).unwrap();
        let share =
            f64::from(cost.of(&activity.keep).unwrap().total.to_scalar::<f32>().unwrap()) / cost.full();
        assert!(share <= target + 1e-6 && share > target - 0.15, "{share} for {target}, {config}");
        for (block, keep) in spec.blocks.iter().zip(&activity.keep) {
            let (Some(gate), Some(keep)) = (&block.gate.channel, &keep.channel) else { continue };
            let keep: Vec<Vec<f32>> = keep.to_vec2().unwrap();
            assert!(keep.iter().all(|sample| *sample == keep[0]), "all images alike");
            assert!(keep[0].contains(&1.0), "{}: a group is left", block.name);
            assert_eq!(keep[0].len(), gate.groups);
        }
        let low = start_gates(&spec, &mut weights, &scores, &cost, 0.01).unwrap_err().to_string();
        assert!(low.contains("0.01 is out of reach"), "{low}");
    }
}

/// The network with its statistics in weight and bias.
fn folded(weights: &HashMap<String, Tensor>) -> HashMap<String, Tensor> {
    let mut out = weights.clone();
    for prefix in weights.keys().filter_map(|name| name.strip_suffix(".running_var")) {
        let get = |part: &str| weights[&format!("{prefix}.{part}")].clone();
        let deviation = (get("running_var") + 1e-5).unwrap().sqrt().unwrap();
        let scale = (get("weight") / &deviation).unwrap();
        let bias = (get("bias") - (&scale * get("running_mean")).unwrap()).unwrap();
        let one = f64::from((1.0f32 + 1e-5).sqrt());
        out.insert(format!("{prefix}.weight"), (scale * one).unwrap());
        out.insert(format!("{prefix}.bias"), bias);
        out.insert(format!("{prefix}.running_mean"), get("running_mean").zeros_like().unwrap());
        out.insert(format!("{prefix}.running_var"), get("running_var").ones_like().unwrap());
    }
    out
}

#[test]
fn folded_statistics_come_back() {
    let spec = spec(
        r#"{"arch": "resnet", "depths": [2, 1], "widths": [8, 16], "stem_width": 8, "input_size": 32, "num_classes": 5}"#,
    );
    let weights = random_weights(&spec, 3).unwrap();
    let folded = folded(&weights);
    let stored = logits(&spec, &folded, Statistics::Stored);
    assert!(apart(&stored, &logits(&spec, &weights, Statistics::Stored)) < 1e-4);
    for maps in [kernels(), Arc::new(Plain)] {
        let mut unfolded = folded.clone();
        let images = || random_images(&spec, 4, 5);
        unfold_norms(&spec, &mut unfolded, maps.clone(), images).unwrap();
        assert!(apart(&logits(&spec, &unfolded, Statistics::Stored), &stored) < 1e-4, "computes the same");
        // The images are those of `logits`; a batch's variance is biased, the stored one is not.
        let by_batch = |weights: &HashMap<String, Tensor>| {
            let copies = weights.iter().map(|(name, tensor)| {
                (name.clone(), candle_core::Var::from_tensor(tensor).unwrap().as_tensor().clone())
            });
            apart(&logits(&spec, &copies.collect(), Statistics::Batch), &stored)
        };
        assert!(by_batch(&unfolded) < 0.05, "{}", by_batch(&unfolded));
        assert!(by_batch(&folded) > 0.5, "{}", by_batch(&folded));
        let once = unfolded.clone();
        unfold_norms(&spec, &mut unfolded, maps, || panic!("nothing is left to measure")).unwrap();
        assert!(once.iter().all(|(name, tensor)| unfolded[name].id() == tensor.id()));
    }
    let mut fresh = initial_weights(&spec, 1, Default::default()).unwrap();
    unfold_norms(&spec, &mut fresh, kernels(), || panic!("a fresh network has no folded statistics"))
        .unwrap();
}
