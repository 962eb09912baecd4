use super::*;
use crate::exec::{Executor, Output, Request, Runnable};
use crate::gate::{Given, Learned, Pattern, Policy};
use crate::plan::ExecutionPlan;
use crate::random::Random;
use crate::{RandomWeights, TensorMap};
use laud_kernels::{Cpu, Isa};
use laud_models::NetConfig;
use std::sync::Arc;

fn spec(config: &str) -> NetSpec {
    NetConfig::from_json(config).unwrap().build().unwrap()
}

/// Random weights, and ranges that differ from channel to channel.
struct Ranged {
    weights: RandomWeights,
    most: f64,
}

impl Weights for Ranged {
    fn tensor(&self, name: &str) -> Result<Vec<f32>> {
        let mut values = self.weights.tensor(name)?;
        if name.starts_with(RANGE_PREFIX) {
            let mut random = Random::named(3, name);
            values.fill_with(|| (self.most * random.uniform().powi(3)) as f32);
        }
        Ok(values)
    }
}

const NETWORKS: [(&str, f64, &str); 5] = [
    (
        "bottlenecks masked before the normalisation, projections",
        30.0,
        r#"{"arch": "resnet50", "width_mult": 0.125, "depths": [2, 2, 2], "input_size": [45, 67], "num_classes": 7,
            "dyn_mode": ["both", "channel", "spatial"], "spatial_granularity": [2, 3, 1], "channel_granularity": 4}"#,
    ),
    (
        "bottlenecks whose channel gates have a convolution, folded",
        30.0,
        r#"{"arch": "resnet50", "width_mult": 0.125, "depths": [1, 2], "input_size": 32, "num_classes": 5, "norm": "folded",
            "dyn_mode": "channel", "channel_granularity": 2, "channel_masker": "conv_linear", "reduction": 2}"#,
    ),
    (
        "basic blocks whose shortcuts pad channels",
        30.0,
        r#"{"arch": "cifar_resnet", "depths": [2, 2, 2], "widths": [4, 7, 10], "stem_width": 3, "input_size": [9, 13],
            "dyn_mode": ["layer", "spatial", "both"], "spatial_granularity": 2, "channel_granularity": [4, 7, 5],
            "channel_masker_layers": 1}"#,
    ),
    (
        "squeeze-excitation and grouped convolutions",
        30.0,
        r#"{"arch": "regnet", "depths": [1, 2], "widths": [16, 24], "group_widths": 8, "stem_width": 8, "input_size": 37,
            "num_classes": 5, "dyn_mode": "both", "spatial_granularity": [2, 3], "channel_granularity": 4}"#,
    ),
    (
        "depthwise convolutions and ReLU6",
        6.0,
        r#"{"arch": "mobilenet_v2", "width_mult": 0.25, "input_size": 64, "num_classes": 9, "dyn_mode": "both",
            "spatial_granularity": 2, "channel_granularity": 4}"#,
    ),
];

/// What it is stored in changes no answer: the same decisions, logits and feature maps, up to rounding.
#[test]
fn a_network_in_units_is_the_same_network() {
    for (name, most, config) in NETWORKS {
        let spec = Arc::new(spec(config));
        let weights = Ranged { weights: RandomWeights::new(&spec, 5), most };
        let units = Units::read(&spec, &weights).unwrap();
        let executor = |units: Option<&Units>| {
            let (cpu, plan) = (Cpu::<f32>::new(Isa::detect(), None), ExecutionPlan::sparse(&spec));
            Executor::prepare_in(units, spec.clone(), cpu, &weights, plan).unwrap()
        };
        let (plain, scaled) = (executor(None), executor(Some(&units)));
        let batch = 2;
        let mut random = Random::named(1, "images");
        let len = batch * spec.input.channels * spec.input.size.h * spec.input.size.w;
        let images: Vec<f32> = (0..len).map(|_| 2.0 * random.uniform() as f32 - 1.0).collect();
        let run = |executor: &Executor<Cpu<f32>>, policy: &dyn Policy| {
            let request = Request { images: &images, batch, features: true, masks: true, timed: false };
            let mut output = Output::default();
            executor.infer(request, policy, &mut output).unwrap();
            output
        };
        let half = Given::forced(&spec, batch, 0.5, Pattern::Scattered, 1).unwrap();
        for policy in [&Learned as &dyn Policy, &half] {
            let (wanted, found) = (run(&plain, policy), run(&scaled, policy));
            assert_eq!(wanted.masks, found.masks, "{name}");
            close(name, &wanted.logits, &found.logits);
            for (wanted, found) in wanted.features.iter().zip(&found.features) {
                close(name, &wanted.values, &found.values);
            }
        }
    }
}

#[track_caller]
fn close(name: &str, wanted: &[f32], found: &[f32]) {
    let largest = wanted.iter().fold(0.0, |largest: f32, value| largest.max(value.abs()));
    let apart = wanted.iter().zip(found).fold(0.0, |apart: f32, (a, b)| apart.max((a - b).abs()));
    assert!(largest > 0.0 && apart <= 1e-4 * largest, "{name}: {apart} of {largest}");
}

#[test]
fn nothing_seen_is_clipped_and_small_channels_have_small_steps() {
    let range = [8.0, 2.0, 0.01, 0.0];
    let found = units(&range, Activation::None);
    let wanted = [8.0f32, 4.0, 0.8, 0.8].map(|step| step / 127.0);
    for (found, wanted) in found.iter().zip(wanted) {
        assert!((found / wanted - 1.0).abs() < 1e-6, "{found} {wanted}");
    }
    assert!(found.iter().zip(range).all(|(unit, m)| unit * 127.0 >= m * (1.0 - 1e-6)));
    assert_eq!(filled(units(&[0.0; 2], Activation::None), Activation::None), [1.0; 2]);
    assert_eq!(units(&[6.0, 6.5], Activation::Relu6), [UNIT_OF_RELU6; 2]);
}

/// What is above the value of a masked channel is stored, and below it down to zero.
#[test]
fn masked_values_are_part_of_the_range() {
    let mut range = [5.0, 1.0, 2.0];
    about(&mut range, &[2.0, 3.0, 0.0], Activation::Relu).unwrap();
    assert_eq!(range, [3.0, 3.0, 2.0]);
    about(&mut range, &[-1.0, 1.0, 0.0], Activation::None).unwrap();
    assert_eq!(range, [4.0, 4.0, 2.0]);
    about(&mut range, &[0.0; 3], Activation::Relu6).unwrap_err();
}

#[test]
fn streams_that_lie_in_one_place_have_one_unit() {
    let spec = spec(
        r#"{"arch": "cifar_resnet", "depths": [1, 2, 1], "widths": [2, 4, 4], "stem_width": 2, "input_size": 8}"#,
    );
    assert!(matches!(spec.blocks[1].shortcut, Shortcut::PadChannels { before: 1, .. }));
    let mut streams = vec![
        vec![1.0, 2.0],
        vec![3.0, 1.0],
        vec![1.0, 1.0, 5.0, 9.0],
        vec![2.0, 0.0, 1.0, 1.0],
        vec![0.0, 0.0, 0.0, 0.0],
    ];
    tie(&spec, &mut streams).unwrap();
    assert_eq!(streams[0], [3.0, 5.0]);
    assert_eq!(streams[1], [3.0, 5.0]);
    let Shortcut::PadChannels { before, .. } = spec.blocks[3].shortcut else { panic!() };
    let wide = [2.0, 3.0, 5.0, 9.0];
    assert_eq!(
        (before, &streams[2][..], &streams[3][..], &streams[4][..]),
        (0, &wide[..], &wide[..], &wide[..])
    );
}

#[test]
fn a_projection_starts_anew() {
    let spec = spec(r#"{"arch": "resnet50", "width_mult": 0.125, "depths": [2], "input_size": 32}"#);
    assert!(matches!(spec.blocks[0].shortcut, Shortcut::Projection(_)));
    let mut streams = vec![vec![9.0; 8], vec![1.0; 32], vec![2.0; 32]];
    tie(&spec, &mut streams).unwrap();
    assert_eq!(streams, [vec![9.0; 8], vec![2.0; 32], vec![2.0; 32]]);
}

#[test]
fn a_clipped_stream_that_goes_on_unclipped_is_refused() {
    let mut spec =
        spec(r#"{"arch": "cifar_resnet", "depths": [1], "widths": [2], "stem_width": 2, "input_size": 8}"#);
    spec.stem.conv.act = Activation::Relu6;
    let behind = |unit: f32| tie(&spec, &mut [vec![UNIT_OF_RELU6; 2], vec![unit; 2]]);
    behind(UNIT_OF_RELU6).unwrap();
    assert!(behind(1.0).unwrap_err().to_string().starts_with("stem: int8 has no ReLU6"));
}

#[test]
fn ranges_that_are_none_are_named() {
    let spec = spec(r#"{"arch": "resnet20", "input_size": 8}"#);
    let weights = RandomWeights::new(&spec, 1);
    let mut map = TensorMap::default();
    for parameter in spec.parameters().into_iter().chain(spec.ranges()) {
        map.0.insert(parameter.name.clone(), weights.tensor(&parameter.name).unwrap());
    }
    Units::read(&spec, &map).unwrap();
    let refused = |name: &str, range: Option<Vec<f32>>, words: &str| {
        let mut map = map.clone();
        map.0.remove(name);
        map.0.extend(range.map(|range| (name.to_owned(), range)));
        let error = format!("{:#}", Units::read(&spec, &map).unwrap_err());
        assert!(error.contains("laud quantize") && error.contains(words), "{error}");
    };
    refused("range.input", None, "no tensor range.input");
    refused("range.layer2.1", None, "no tensor range.layer2.1");
    refused("range.layer1.0.0", Some(vec![1.0; 15]), "range.layer1.0.0: 15 values, the network needs 16");
    refused("range.stem", Some(vec![-1.0; 16]), "range.stem: -1 is no magnitude");
    refused("range.stem", Some(vec![f32::NAN; 16]), "range.stem: NaN is no magnitude");
}
