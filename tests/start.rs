//! What a network in training starts from: gates at their target with weights that make up for what is dropped, statistics that
//! had been folded.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use laud::autograd::KernelMaps;
use laud::train::{
    Cost, Decisions, MapOps, MaskedNetwork, Plain, RateGradient, Statistics, initial_weights, is_gate,
    random_images, random_weights, thin, unfold_norms,
};
use laud_models::{BlockSpec, NetConfig, NetSpec};

/// Blocks of every kind that is thinned: basic, bottleneck, inverted residual.
const THINNED: [&str; 3] = [
    r#"{"arch": "resnet20", "input_size": 8, "dyn_mode": "channel", "channel_granularity": 4}"#,
    r#"{"arch": "resnet", "depths": [2, 1], "widths": [8, 16], "stem_width": 8, "input_size": 16, "num_classes": 5,
        "dyn_mode": "channel", "channel_granularity": 2}"#,
    r#"{"arch": "mobilenet_v2_tf", "width_mult": 0.25, "input_size": 32, "num_classes": 5, "dyn_mode": "channel",
        "channel_granularity": 4}"#,
];
const REGNET: &str = r#"{"arch": "regnet", "depths": [1, 1], "widths": [8, 16], "group_widths": 8, "stem_width": 8,
    "input_size": 16, "num_classes": 5, "dyn_mode": "channel", "channel_granularity": 2}"#;

fn spec(config: &str) -> NetSpec {
    NetConfig::from_json(config).unwrap().build().unwrap()
}

fn kernels() -> Arc<dyn MapOps> {
    Arc::new(KernelMaps::<f32>::new(2).unwrap())
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

/// The network with random weights and gates as training starts them.
fn with_fresh_gates(config: &str) -> (NetSpec, HashMap<String, Tensor>) {
    let spec = spec(config);
    let mut weights = random_weights(&spec, 3).unwrap();
    let fresh = initial_weights(&spec, 1, Default::default()).unwrap();
    weights.extend(fresh.into_iter().filter(|(name, _)| is_gate(name)));
    (spec, weights)
}

fn batches(spec: &NetSpec) -> Vec<Tensor> {
    (0..6).map(|seed| random_images(spec, 16, 20 + seed).unwrap()).collect()
}

fn thinned(
    spec: &NetSpec,
    weights: &HashMap<String, Tensor>,
    target: f64,
) -> anyhow::Result<HashMap<String, Tensor>> {
    let cost = Cost::macs(spec, RateGradient::All).unwrap();
    let mut weights = weights.clone();
    thin(spec, &mut weights, &kernels(), &batches(spec), (&cost, target), |_| ())?;
    Ok(weights)
}

/// Decisions `[n, groups]` of each block's channel gate, and the share of the cost.
fn decisions(spec: &NetSpec, weights: &HashMap<String, Tensor>) -> (Vec<Option<Vec<Vec<f32>>>>, f64) {
    let network = MaskedNetwork::new(spec, weights).unwrap();
    let images = random_images(spec, 3, 2).unwrap();
    let activity = network.forward_train(&images, &Decisions::Learned, Statistics::Stored).unwrap();
    let cost = Cost::macs(spec, RateGradient::All).unwrap();
    let spent = f64::from(cost.of(&activity.keep).unwrap().total.to_scalar::<f32>().unwrap());
    let keep = activity.keep.iter().map(|keep| keep.channel.as_ref().map(|keep| keep.to_vec2().unwrap()));
    (keep.collect(), spent / cost.full())
}

#[test]
fn with_nothing_to_drop_the_network_computes_the_same() {
    for config in THINNED {
        let (spec, weights) = with_fresh_gates(config);
        let before = logits(&spec.without_gates(), &weights, Statistics::Stored);
        let after = thinned(&spec, &weights, 1.1).unwrap();
        assert!(apart(&logits(&spec, &after, Statistics::Stored), &before) < 1e-3, "{config}");
        let moved = spec.blocks.iter().filter(|block| block.convs[0].groups == 1).all(|block| {
            let first = |weights: &HashMap<String, Tensor>| {
                weights[&block.convs[0].weight].flatten_all().unwrap().to_vec1::<f32>().unwrap()
            };
            apart(&first(&after), &first(&weights)) > 0.0
        });
        assert!(moved, "channels are sorted, {config}");
    }
}

/// In these blocks every second inner channel computes the same as the one before it.
fn with_twins(blocks: &[BlockSpec], weights: &HashMap<String, Tensor>) -> HashMap<String, Tensor> {
    let mut twins = weights.clone();
    for block in blocks {
        for conv in &block.convs[..block.convs.len() - 1] {
            let order = Tensor::from_iter((0..conv.c_out as u32).map(|c| c / 2 * 2), &Device::Cpu).unwrap();
            let norm = conv.norm.iter().flat_map(|norm| {
                ["weight", "bias", "running_mean", "running_var"]
                    .map(|part| format!("{}.{part}", norm.prefix))
            });
            for name in norm.chain([conv.weight.clone()]).chain(conv.bias.clone()) {
                let tensor = twins[&name].index_select(&order, 0).unwrap();
                twins.insert(name, tensor);
            }
        }
    }
    twins
}

/// How far the answers of the network are from what they were before `thinned` was made of it, the target it was made for, and
/// the same with what is dropped masked but not made up for.
fn losses(spec: &NetSpec, weights: &HashMap<String, Tensor>, target: f64) -> (f32, f32) {
    let before = logits(&spec.without_gates(), weights, Statistics::Stored);
    let after = thinned(spec, weights, target).unwrap();
    let mut masked = thinned(spec, weights, 1.1).unwrap();
    masked.extend(after.iter().filter(|(name, _)| is_gate(name)).map(|(n, t)| (n.clone(), t.clone())));
    let lost = |weights: &HashMap<String, Tensor>| apart(&logits(spec, weights, Statistics::Stored), &before);
    (lost(&after), lost(&masked))
}

#[test]
fn what_is_dropped_is_made_up_for() {
    for config in THINNED {
        let (spec, weights) = with_fresh_gates(config);
        let cost = Cost::macs(&spec, RateGradient::All).unwrap();
        let sorted = spec.blocks.iter().map(|block| block.convs[0].groups == 1);
        let rates: Vec<f64> = sorted.map(|sorted| if sorted { 0.5 } else { 1.0 }).collect();
        let half = cost.at_channel_rates(&rates) / cost.full() + 1e-6;
        let (lost, masked) = losses(&spec, &weights, half);
        assert!(lost < masked, "{lost} and {masked}, {config}");
        let (lost, masked) = losses(&spec, &with_twins(&spec.blocks, &weights), half);
        assert!(lost < 0.2 * masked, "twins: {lost} and {masked}, {config}");
    }
}

#[test]
fn channels_go_where_that_costs_least() {
    // Both spaces of a bottleneck; with random weights others have blocks that hardly matter anyway.
    let (spec, weights) = with_fresh_gates(THINNED[1]);
    let cost = Cost::macs(&spec, RateGradient::All).unwrap();
    for idle in 0..spec.blocks.len() {
        let weights = with_twins(&spec.blocks[idle..=idle], &weights);
        let rate = |block: usize| if block == idle { 0.5 } else { 1.0 };
        let target = cost.at_channel_rates(&(0..spec.blocks.len()).map(rate).collect::<Vec<_>>());
        let after = thinned(&spec, &weights, target / cost.full() + 1e-6).unwrap();
        let kept = decisions(&spec, &after).0.into_iter().map(|keep| {
            let keep = keep.unwrap().swap_remove(0);
            keep.iter().sum::<f32>() / keep.len() as f32
        });
        for (block, kept) in kept.enumerate() {
            let right = if block == idle { kept <= 0.5 } else { kept >= 0.75 };
            assert!(right, "with twins in block {idle}: block {block} keeps {kept}");
        }
    }
}

#[test]
fn thinned_networks_start_at_the_target() {
    for config in THINNED {
        let (spec, weights) = with_fresh_gates(config);
        let target = decisions(&spec, &weights).1 - 0.12;
        let after = thinned(&spec, &weights, target).unwrap();
        let (keep, share) = decisions(&spec, &after);
        assert!(share <= target + 1e-6 && share > target - 0.15, "{share} for {target}, {config}");
        for keep in keep.iter().flatten() {
            assert!(keep.iter().all(|sample| *sample == keep[0]), "all images alike");
            assert!(keep[0].windows(2).all(|pair| pair[0] >= pair[1]) && keep[0][0] == 1.0, "the first ones");
        }
        // What is dropped has no weights: with every gate open the answer is the same.
        let open = logits(&spec.without_gates(), &after, Statistics::Stored);
        assert!(apart(&logits(&spec, &after, Statistics::Stored), &open) < 1e-4, "{config}");
        let low = thinned(&spec, &weights, 0.01).unwrap_err().to_string();
        assert!(low.contains("0.01 is out of reach"), "{low}");
    }
}

#[test]
fn a_network_that_cannot_be_thinned_says_so() {
    let (spec, weights) = with_fresh_gates(REGNET);
    assert!(thinned(&spec, &weights, 0.9).unwrap_err().to_string().contains("no block that can be thinned"));
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

#[test]
fn filters_keep_their_length_where_a_normalisation_can_tell_how_much_they_count() {
    let (spec, weights) = with_fresh_gates(THINNED[1]);
    let after = thinned(&spec, &weights, 0.8).unwrap();
    let lengths = |weights: &HashMap<String, Tensor>, name: &str| {
        let rows = weights[name].flatten_from(1).unwrap().sqr().unwrap().sum(1).unwrap();
        rows.to_vec1::<f32>().unwrap()
    };
    for block in &spec.blocks {
        let last = &block.convs[2].weight;
        assert!(apart(&lengths(&after, last), &lengths(&weights, last)) < 1e-4, "{last}");
        let filters =
            |weights: &HashMap<String, Tensor>| weights[last].flatten_all().unwrap().to_vec1().unwrap();
        assert!(apart(&filters(&after), &filters(&weights)) > 0.01, "{last} is another");
    }
}
