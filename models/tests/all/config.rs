use laud_models::{Activation, GateMode, MapSize, MaskPoint, NetConfig, PerStage, Shortcut, SqueezePooling};
use proptest::prelude::*;

use crate::{error, net};

#[test]
fn every_mode_works_on_every_family_and_mixes() {
    for (arch, stages) in
        [("resnet18", 4), ("resnet50", 4), ("resnet20", 3), ("regnet_y_400mf", 4), ("mobilenet_v2", 7)]
    {
        let modes = ["none", "spatial", "layer", "channel", "both"];
        for shift in 0..modes.len() {
            let list: Vec<_> = (0..stages).map(|stage| modes[(stage + shift) % modes.len()]).collect();
            let net = net(
                arch,
                &format!(r#""dyn_mode": {list:?}, "spatial_granularity": 2, "channel_granularity": 4"#),
            );
            for block in &net.blocks {
                let gate = &block.gate;
                let skips = block.shortcut != Shortcut::None;
                let (spatial, layer) =
                    (gate.spatial.is_some(), gate.spatial.as_ref().is_some_and(|gate| gate.layer));
                let expected = match list[block.stage] {
                    "none" => (false, false, false),
                    "spatial" => (skips, false, false),
                    "layer" => (skips, skips, false),
                    "channel" => (false, false, true),
                    _ => (skips, false, true),
                };
                assert_eq!((spatial, layer, gate.channel.is_some()), expected, "{arch} {}", block.name);
            }
        }
    }
}

#[test]
fn grids_are_output_size_over_granularity() {
    let net = net(
        "resnet50",
        r#""input_size": [480, 200], "dyn_mode": ["spatial", "spatial", "spatial", "layer"],
           "spatial_granularity": [4, 4, 20, 1]"#,
    );
    let grid = |stage| {
        let block = net.blocks.iter().find(|block| block.stage == stage).unwrap();
        (block.output, block.gate.spatial.as_ref().unwrap().grid)
    };
    assert_eq!(grid(0), (MapSize { h: 120, w: 50 }, MapSize { h: 30, w: 12 }));
    assert_eq!(grid(2), (MapSize { h: 30, w: 13 }, MapSize { h: 1, w: 1 }));
    assert_eq!(grid(3), (MapSize { h: 15, w: 7 }, MapSize { h: 1, w: 1 }));
}

#[test]
fn user_errors_name_key_and_value() {
    let gated = |keys: &str| format!(r#"{{"arch": "resnet50", {keys}}}"#);
    for (json, parts) in [
        (r#"{}"#.to_owned(), vec!["`arch`"]),
        (r#"{"arch": "resnet51"}"#.to_owned(), vec!["`resnet51`", "resnet50", "cifar_resnet"]),
        (gated(r#""dyn_mode": "spacial""#), vec!["`dyn_mode`", "spacial", "spatial"]),
        (gated(r#""dyn_mode": ["layer", "layer"]"#), vec!["`dyn_mode`", "2 entries", "4 stages"]),
        (gated(r#""depths": [3, -1]"#), vec!["`depths`", "-1"]),
        (gated(r#""depths": [3, 0]"#), vec!["`depths[1]`", "is 0"]),
        (gated(r#""depths": []"#), vec!["depths", "is 0"]),
        (gated(r#""depths": [3, 100000000]"#), vec!["`depths[1]`", "100000000"]),
        (gated(r#""widths": [64, 64]"#), vec!["`widths`", "2 entries"]),
        (
            gated(r#""widths": [64, 64, 64, 18446744073709551615]"#),
            vec!["`widths[3]`", "18446744073709551615"],
        ),
        (gated(r#""width_mult": -2.5"#), vec!["`width_mult`", "-2.5"]),
        (gated(r#""width_mult": 1e300"#), vec!["`width_mult`"]),
        (gated(r#""input_size": 0"#), vec!["`input_size`", "is 0"]),
        (gated(r#""input_size": [224]"#), vec!["`input_size`", "[224]", "[h, w]"]),
        (gated(r#""input_size": 100000"#), vec!["`input_size`", "100000"]),
        (gated(r#""num_classes": 0"#), vec!["`num_classes`", "is 0"]),
        (gated(r#""dyn_mode": "spatial""#), vec!["`spatial_granularity`", "stage 0", "spatial"]),
        (
            gated(r#""dyn_mode": "spatial", "spatial_granularity": 0"#),
            vec!["`spatial_granularity[0]`", "is 0"],
        ),
        (
            gated(r#""dyn_mode": [null, null, "both", "none"], "spatial_granularity": 1"#),
            vec!["`channel_granularity`", "stage 2"],
        ),
        (
            gated(r#""dyn_mode": "channel", "channel_granularity": [3, 2, 2, 2]"#),
            vec!["channel_granularity[0]", "is 3", "64", "layer1.0"],
        ),
        (
            gated(r#""dyn_mode": "channel", "channel_granularity": 2, "channel_masker": "mpl""#),
            vec!["`channel_masker`", "mpl"],
        ),
        (
            gated(r#""dyn_mode": "channel", "channel_granularity": 2, "channel_masker_layers": 3"#),
            vec!["`channel_masker_layers[0]`", "is 3"],
        ),
        (
            gated(
                r#""dyn_mode": "channel", "channel_granularity": 2, "channel_masker": "conv_linear",
                   "reduction": 1000"#,
            ),
            vec!["`reduction`", "1000", "layer1.0"],
        ),
        (
            gated(r#""dyn_mode": "layer", "spatial_mask_channel_group": [1, 1, 2, 1]"#),
            vec!["`spatial_mask_channel_group[2]`", "is 2"],
        ),
        (gated(r#""preprocess": {"mean": [0, 0, 0], "std": [1, 0, 1]}"#), vec!["`preprocess.std`", "0"]),
        (r#"{"arch": "regnet"}"#.to_owned(), vec!["`depths`"]),
        (
            r#"{"arch": "regnet_y_400mf", "width_mult": 0.5}"#.to_owned(),
            vec!["`width_mult`", "0.5", "widths"],
        ),
        (
            r#"{"arch": "regnet", "depths": [1], "widths": [20], "group_widths": [8]}"#.to_owned(),
            vec!["`group_widths[0]`", "is 8", "20"],
        ),
        (r#"{"arch": "regnet_y_400mf", "se_ratio": 0.001}"#.to_owned(), vec!["`se_ratio`", "0.001"]),
        (
            r#"{"arch": "regnet", "regnet": {"depth": 9, "w_0": 8, "w_a": 1e9, "w_m": 2, "group_width": 8}}"#
                .to_owned(),
            vec!["`regnet.w_a`", "1000000000"],
        ),
        (r#"{"arch": "mobilenet_v2", "depths": [1, 2, 3]}"#.to_owned(), vec!["depths", "is 3", "7 stages"]),
        (r#"{"arch": "resnet20", "widths": [16, 8, 8]}"#.to_owned(), vec!["`widths[1]`", "is 8", "16"]),
        ("[1]".to_owned(), vec!["configuration"]),
        ("{".to_owned(), vec!["configuration", "EOF"]),
    ] {
        let error = error(&json);
        for part in parts {
            assert!(error.contains(part), "{json}\n  says: {error}\n  without: {part}");
        }
    }
}

#[test]
fn json_round_trips_and_ignores_what_it_does_not_know() {
    let json = r#"{"arch": "regnet_y_400mf", "seed": 7, "batch": 2, "input_size": [64, 96], "squeeze_pooling": "active",
        "dyn_mode": [null, "spatial", "layer", "both"], "spatial_granularity": 2, "channel_granularity": [1, 1, 1, 4],
        "preprocess": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}}"#;
    let config = NetConfig::from_json(json).unwrap();
    let modes = [GateMode::None, GateMode::Spatial, GateMode::Layer, GateMode::Both];
    assert_eq!(config.dyn_mode, Some(PerStage::Each(modes.to_vec())));
    let again = NetConfig::from_json(&serde_json::to_string(&config).unwrap()).unwrap();
    assert_eq!(again, config);
    let net = config.build().unwrap();
    assert_eq!(net.input.resize, None);
    assert_eq!(net.blocks[1].squeeze_excite.as_ref().unwrap().pooling, SqueezePooling::Active);
    let complete = config.clone().complete().unwrap();
    assert_eq!(complete.arch.as_deref(), Some("regnet"));
    assert_eq!(complete.build().unwrap(), net);
    let spec = serde_json::from_str(&serde_json::to_string(&net).unwrap());
    assert_eq!(net, spec.unwrap());
}

#[test]
fn presets_differ_where_their_papers_do() {
    let (cifar, imagenet) = (net("resnet20", ""), net("resnet18", ""));
    assert!(cifar.stem.pool.is_none() && imagenet.stem.pool.is_some());
    assert_eq!(cifar.blocks[3].shortcut, Shortcut::PadChannels { stride: 2, before: 8, after: 8 });
    assert_eq!(cifar.blocks.last().unwrap().output, MapSize { h: 8, w: 8 });
    assert_eq!(imagenet.input.resize, Some(256));
    assert_eq!(imagenet.blocks[0].shortcut, Shortcut::Identity);
    assert!(matches!(net("resnet50", "").blocks[0].shortcut, Shortcut::Projection(_)));
    let mobile = net("mobilenet_v2", r#""width_mult": 1.4"#);
    let widths: Vec<_> =
        (0..7).map(|stage| mobile.blocks.iter().find(|b| b.stage == stage).unwrap()).collect();
    let widths: Vec<_> = widths.iter().map(|block| block.convs.last().unwrap().c_out).collect();
    assert_eq!(widths, [24, 32, 48, 88, 136, 224, 448]);
    assert_eq!(mobile.head.fc.c_in, 1792);
}

#[test]
fn activations_and_mask_points_are_the_familys() {
    use Activation::{None, Relu, Relu6};
    for (arch, inner, behind, point) in [
        ("resnet18", Relu, Relu, MaskPoint::BeforeNorm),
        ("resnet50", Relu, Relu, MaskPoint::BeforeNorm),
        ("resnet20", Relu, Relu, MaskPoint::BeforeNorm),
        ("regnet_y_400mf", Relu, Relu, MaskPoint::AfterActivation),
        ("mobilenet_v2", Relu6, None, MaskPoint::AfterActivation),
    ] {
        let net = net(arch, r#""dyn_mode": "channel", "channel_granularity": 2"#);
        assert_eq!(net.stem.conv.act, inner, "{arch}");
        for block in &net.blocks {
            let (last, before) = block.convs.split_last().unwrap();
            assert!(last.act == None && before.iter().all(|conv| conv.act == inner), "{arch} {}", block.name);
            assert_eq!(block.act, behind, "{arch}");
            if let Shortcut::Projection(conv) = &block.shortcut {
                assert_eq!(conv.act, None, "{arch} {}", block.name);
            }
            if let Some(gate) = &block.gate.channel {
                assert_eq!(gate.point, point, "{arch}");
            }
        }
    }
}

#[test]
fn a_broken_spec_does_not_validate() {
    let good =
        net("regnet_y_400mf", r#""dyn_mode": "both", "spatial_granularity": 2, "channel_granularity": 4"#);
    good.validate().unwrap();
    let broken = |change: fn(&mut laud_models::NetSpec)| {
        let mut net = good.clone();
        change(&mut net);
        net.validate().unwrap_err().to_string()
    };
    assert!(broken(|net| net.blocks[2].convs[1].stride = 0).contains("stride 0"));
    assert!(broken(|net| net.blocks[2].convs[1].groups = 7).contains("7 groups"));
    assert!(broken(|net| net.blocks[2].input.h = 5).contains("input size"));
    assert!(broken(|net| net.blocks[2].convs.clear()).contains("no convolution"));
    assert!(
        broken(|net| net.blocks[2].gate.channel.as_mut().unwrap().groups += 1)
            .contains("groups × group size")
    );
    assert!(broken(|net| net.blocks[2].gate.spatial.as_mut().unwrap().grid.h = 0).contains("0×14 grid"));
    assert!(broken(|net| net.blocks[0].shortcut = Shortcut::Identity).contains("shortcut"));
    let alone = broken(|net| net.blocks[2].shortcut = Shortcut::None);
    assert!(alone.contains(&good.blocks[2].name) && alone.contains("gate needs a shortcut"), "{alone}");
    let mut channels = good.clone();
    (channels.blocks[2].shortcut, channels.blocks[2].gate.spatial) = (Shortcut::None, None);
    channels.validate().unwrap();
    assert!(broken(|net| net.head.fc.c_in = 1).contains("fc.weight"));
    assert!(broken(|net| net.blocks[2].squeeze_excite.as_mut().unwrap().fc2.c_out = 1).contains("se.fc2"));
}

proptest! {
    /// Whatever the numbers, a configuration is built or refused; what is built is consistent.
    #[test]
    fn no_configuration_panics(
        arch in prop::sample::select(vec!["resnet", "resnet18", "cifar_resnet", "regnet", "regnet_y_400mf", "mobilenet_v2"]),
        depths in prop::option::of(prop::collection::vec(0usize..4, 0..8)),
        widths in prop::option::of(prop::collection::vec(prop::sample::select(vec![0, 1, 7, 16, 65536, usize::MAX]), 0..8)),
        mult in prop::option::of(prop::num::f64::ANY),
        size in prop::sample::select(vec![0, 1, 2, 33, 224, 16384, usize::MAX]),
        small in prop::collection::vec(prop::sample::select(vec![0, 1, 2, 3, 8, usize::MAX]), 5),
        mode in prop::sample::select(vec![GateMode::Spatial, GateMode::Layer, GateMode::Channel, GateMode::Both]),
        padding in prop::sample::select(vec![laud_models::PaddingStyle::Tf, laud_models::PaddingStyle::Torchvision]),
    ) {
        let config = NetConfig {
            arch: Some(arch.to_owned()),
            depths,
            widths,
            width_mult: mult,
            input_size: Some(MapSize { h: size, w: 64 }),
            group_widths: Some(PerStage::All(small[0])),
            spatial_granularity: Some(PerStage::All(small[1])),
            channel_granularity: Some(PerStage::All(small[2])),
            channel_masker_layers: Some(PerStage::All(small[3])),
            reduction: Some(small[4]),
            dyn_mode: Some(PerStage::All(mode)),
            padding: Some(padding),
            ..NetConfig::default()
        };
        if let Ok(net) = config.build() {
            prop_assert!(net.validate().is_ok());
            prop_assert!(net.macs_at(0.5).is_ok());
        }
    }
}
