use laud_models::{ChannelMasker, GateMode, MapSize, NetConfig, PerStage, Shapes, infer};
use proptest::prelude::*;

use crate::{net, shapes};

fn hints(json: &str) -> NetConfig {
    NetConfig::from_json(json).unwrap()
}

fn refused(shapes: &Shapes, json: &str) -> String {
    infer(shapes, &hints(json)).unwrap_err().to_string()
}

#[test]
fn contradictions_name_both_values() {
    let keys = r#""dyn_mode": ["channel", "both", "channel", "none"], "channel_granularity": [2, 4, 2, 1],
        "spatial_granularity": 2, "num_classes": 10"#;
    let found = shapes(&net("resnet50", keys));
    let modes = r#""dyn_mode": ["channel", "both", "channel", "none"], "spatial_granularity": 2"#;
    infer(&found, &hints(&format!("{{{keys}}}"))).unwrap();
    infer(&found, &hints(&format!("{{{modes}}}"))).unwrap();
    for (json, parts) in [
        (r#""arch": "resnet20""#, vec!["`arch`", "resnet20", "resnet"]),
        (r#""arch": "resnet101""#, vec!["`depths`", "[3,4,23,3]", "[3,4,6,3]"]),
        (r#""block": "basic""#, vec!["`block`", "basic", "bottleneck"]),
        (r#""num_classes": 1000"#, vec!["`num_classes`", "1000", "10"]),
        (r#""width_mult": 0.5"#, vec!["width_mult", "[32,64,128,256]", "[64,128,256,512]"]),
        (r#""channel_granularity": 2"#, vec!["`channel_granularity`", "[2,2,2,2]", "[2,4,2,null]"]),
        (r#""channel_masker": "conv_linear""#, vec!["`channel_masker`", "conv_linear", "MLP"]),
        (r#""channel_masker_layers": 1"#, vec!["`channel_masker_layers`", "[1,1,1,1]", "[2,2,2,null]"]),
        (r#""reduction": 2"#, vec!["`reduction`", "2", "16"]),
        (r#""norm": "folded""#, vec!["`norm`", "folded", "batch"]),
    ] {
        let error = refused(&found, &format!("{{{modes}, {json}}}"));
        for part in parts {
            assert!(error.contains(part), "{json}: {error} without {part}");
        }
    }
    let error =
        refused(&found, r#"{"dyn_mode": ["channel", "both", "layer", "none"], "spatial_granularity": 2}"#);
    assert!(error.contains("`dyn_mode`") && error.contains("layer") && error.contains("channel"), "{error}");
}

#[test]
fn unknown_granularity_says_what_to_give() {
    let layer = shapes(&net("resnet50", r#""dyn_mode": "layer""#));
    let error = refused(&layer, "{}");
    assert!(error.contains("`dyn_mode`") && error.contains("`spatial_granularity`"), "{error}");
    let error = refused(&layer, r#"{"dyn_mode": "spatial"}"#);
    assert!(error.contains("`spatial_granularity`") && error.contains("output pixels"), "{error}");
    let spatial = infer(&layer, &hints(r#"{"spatial_granularity": [4, 4, 2, 1]}"#)).unwrap();
    assert_eq!(spatial.dyn_mode, Some(PerStage::Each(vec![GateMode::Spatial; 4])));
    let error = refused(&layer, r#"{"dyn_mode": "none"}"#);
    assert!(error.contains("none") && error.contains("layer"), "{error}");
    let error = refused(&shapes(&net("resnet50", "")), r#"{"dyn_mode": "layer"}"#);
    assert!(error.contains("layer") && error.contains("no gates"), "{error}");
}

#[test]
fn what_no_family_has_is_refused() {
    assert!(refused(&Shapes::new(), "{}").contains("resnet"));
    let mut wide = shapes(&net("resnet50", ""));
    wide.insert("layer1.0.conv2.weight".into(), vec![64, 2, 3, 3]); // a ResNeXt's
    assert!(refused(&wide, "{}").contains("layer1.0.conv2.weight"));
    let mut stray = shapes(&net("resnet50", ""));
    stray.insert("layer1.0.masker_spatial.conv.bias".into(), vec![2]);
    assert!(refused(&stray, "{}").contains("masker_spatial.conv.bias"));
    let mut mixed = shapes(&net("resnet50", r#""dyn_mode": "layer""#));
    mixed.retain(|name, _| !name.starts_with("layer3.4.masker"));
    let error = refused(&mixed, r#"{"dyn_mode": "layer"}"#);
    assert!(error.contains("layer3.4") && error.contains("layer3.0"), "{error}");
    let mut mixed = shapes(&net("mobilenet_v2", r#""dyn_mode": "channel", "channel_granularity": 8"#));
    mixed.retain(|name, _| !name.starts_with("features.2.masker"));
    let error = refused(&mixed, "{}");
    assert!(error.contains("features.2") && error.contains("features.3"), "{error}");
}

#[test]
fn spatial_gates_of_a_stage_without_shortcuts_are_the_hints() {
    let mode = |of: &NetConfig| of.dyn_mode.as_ref().unwrap().resolve("dyn_mode", 7).unwrap()[0];
    let with = |first: &str| {
        format!(
            r#"{{"dyn_mode": ["{first}", "none", "none", "none", "none", "none", "none"],
        "spatial_granularity": 2, "channel_granularity": 8}}"#
        )
    };
    let gated = shapes(&hints(&with("both")).or(hints(r#"{"arch": "mobilenet_v2"}"#)).build().unwrap());
    assert_eq!(mode(&infer(&gated, &NetConfig::default()).unwrap()), GateMode::Channel);
    for given in ["channel", "both"] {
        assert_eq!(<&str>::from(mode(&infer(&gated, &hints(&with(given))).unwrap())), given);
    }
    let plain = shapes(&net("mobilenet_v2", ""));
    infer(&plain, &hints(&with("layer"))).unwrap();
    for (shapes, given) in [(&gated, "layer"), (&gated, "none"), (&plain, "channel"), (&plain, "both")] {
        let error = refused(shapes, &with(given));
        assert!(error.contains("`dyn_mode`") && error.contains(given), "{error}");
    }
}

#[test]
fn shapes_that_make_no_sense_are_errors() {
    let good = shapes(&net("mobilenet_v2", ""));
    for name in [
        "features.0.0.weight",
        "features.3.conv.0.0.weight",
        "features.3.conv.2.weight",
        "classifier.1.weight",
    ] {
        for shape in [vec![], vec![0, 0, 0, 0], vec![usize::MAX; 4], vec![1]] {
            let mut bad = good.clone();
            bad.insert(name.to_owned(), shape);
            assert!(infer(&bad, &NetConfig::default()).is_err());
        }
    }
}

#[test]
fn stages_of_narrow_mobilenets_need_no_change_of_width() {
    let narrow = net("mobilenet_v2", r#""width_mult": 0.1, "num_classes": 3"#);
    let found = infer(&shapes(&narrow), &NetConfig::default()).unwrap();
    assert_eq!(found.build().unwrap().blocks, narrow.blocks);
}

/// The metadata of the official code's networks are hints that agree with their tensors.
#[test]
fn official_metadata_is_a_hint() {
    let cases: serde_json::Value = serde_json::from_str(include_str!("../data/official_macs.json")).unwrap();
    for case in cases.as_array().unwrap() {
        let config = NetConfig::from_value(case["config"].clone()).unwrap();
        let net = config.build().unwrap();
        assert_eq!(infer(&shapes(&net), &config).unwrap().build().unwrap(), net);
    }
}

fn any_config() -> impl Strategy<Value = NetConfig> {
    let arch =
        prop::sample::select(vec!["resnet18", "resnet50", "resnet20", "regnet_y_400mf", "mobilenet_v2"]);
    let modes = [GateMode::None, GateMode::Spatial, GateMode::Layer, GateMode::Channel, GateMode::Both];
    let modes = prop::collection::vec(prop::sample::select(modes.to_vec()), 7);
    let gates =
        (prop::collection::vec(prop::sample::select(vec![1, 2, 4]), 7), 1usize..9, any::<bool>(), 1usize..3);
    (arch, modes, gates, 2usize..33, 1usize..30).prop_map(|(arch, modes, gates, reduction, classes)| {
        let (granularity, patch, conv_linear, layers) = gates;
        let stages = if arch == "resnet20" { 3 } else { 4 };
        let stages = if arch == "mobilenet_v2" { 7 } else { stages };
        NetConfig {
            arch: Some(arch.to_owned()),
            num_classes: Some(classes),
            input_size: Some(MapSize { h: 64, w: 96 }),
            dyn_mode: Some(PerStage::Each(modes[..stages].to_vec())),
            spatial_granularity: Some(PerStage::All(patch)),
            channel_granularity: Some(PerStage::Each(granularity[..stages].to_vec())),
            channel_masker: Some(PerStage::All(if conv_linear {
                ChannelMasker::ConvLinear
            } else {
                ChannelMasker::Mlp
            })),
            channel_masker_layers: Some(PerStage::All(layers)),
            reduction: Some(reduction.min(16)),
            ..NetConfig::default()
        }
    })
}

proptest! {
    /// The tensors of a network, with its own configuration as hints or only what shapes cannot tell, give it back.
    #[test]
    fn networks_are_found_again(config in any_config()) {
        let net = config.build().unwrap();
        let found = shapes(&net);
        prop_assert_eq!(&infer(&found, &config).unwrap().build().unwrap(), &net);
        let fewest = NetConfig {
            input_size: config.input_size,
            dyn_mode: config.dyn_mode,
            spatial_granularity: config.spatial_granularity,
            ..NetConfig::default()
        };
        prop_assert_eq!(&infer(&found, &fewest).unwrap().build().unwrap().blocks, &net.blocks);
    }
}
