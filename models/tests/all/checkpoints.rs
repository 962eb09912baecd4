use laud_models::{NetConfig, Shapes, canonical_name, infer, preset_names};

use crate::{net, shapes};

/// Reads lines of `name AxBxC`.
fn read(list: &str) -> Shapes {
    let line = |line: &str| {
        let (name, shape) = line.split_once(' ').unwrap();
        (name.to_owned(), shape.split('x').map(|n| n.parse().unwrap()).collect())
    };
    list.lines().map(line).collect()
}

/// A real state dict's tensors, and the configuration that must ask for exactly these.
const CHECKPOINTS: [(&str, &str); 5] = [
    (
        include_str!("../data/resnet_both.shapes"),
        r#"{"arch": "resnet", "depths": [2, 2, 2, 2], "width_mult": 0.125, "input_size": 128, "reduction": 4,
            "dyn_mode": "both", "spatial_granularity": [2, 2, 2, 1], "channel_granularity": [2, 2, 2, 2],
            "num_classes": 10, "seed": 615}"#,
    ),
    (
        include_str!("../data/resnet_conv_linear.shapes"),
        r#"{"arch": "resnet", "depths": [2, 2, 2, 2], "width_mult": 0.125, "input_size": 64, "reduction": 4,
            "dyn_mode": "channel", "channel_granularity": 2, "channel_masker": "conv_linear", "num_classes": 10}"#,
    ),
    (
        include_str!("../data/regnet_spatial.shapes"),
        r#"{"arch": "regnet", "depths": [1, 2, 2, 2], "widths": [16, 32, 48, 64], "group_widths": 8, "stem_width": 16,
            "width_mult": 0.25, "input_size": 64, "dyn_mode": "spatial", "spatial_granularity": [2, 2, 2, 1],
            "num_classes": 10}"#,
    ),
    (include_str!("../data/cifar_resnet20.shapes"), r#"{"arch": "resnet20"}"#),
    (include_str!("../data/mobilenet_v2_folded.shapes"), r#"{"arch": "mobilenet_v2_tf"}"#),
];

#[test]
fn names_and_shapes_are_those_of_real_checkpoints() {
    for (list, config) in CHECKPOINTS {
        let (found, config) = (read(list), NetConfig::from_json(config).unwrap());
        let net = config.build().unwrap();
        assert_eq!(shapes(&net), found);
        assert!(net.compare(&found).is_empty());
        let inferred = infer(&found, &config).unwrap();
        assert_eq!(inferred.build().unwrap().blocks, net.blocks);
    }
}

#[test]
fn a_checkpoint_without_spatial_gates_needs_no_hint() {
    let conv_linear = infer(&read(CHECKPOINTS[1].0), &NetConfig::default()).unwrap();
    assert_eq!(conv_linear.reduction, Some(4));
    let cifar = infer(&read(CHECKPOINTS[3].0), &NetConfig::default()).unwrap();
    assert_eq!(cifar.name.as_deref(), Some("resnet20"));
    assert_eq!(cifar.build().unwrap().input.size.h, 32);
}

#[test]
fn folded_mobilenets_must_say_how_they_pad() {
    let error = infer(&read(CHECKPOINTS[4].0), &NetConfig::default()).unwrap_err().to_string();
    assert!(error.contains("`padding`") && error.contains("`tf`"), "{error}");
    let net = net("mobilenet_v2_tf", r#""dyn_mode": "spatial", "spatial_granularity": 2"#);
    let pad = net.stem.conv.pad;
    assert_eq!((pad.top, pad.left, pad.bottom, pad.right), (0, 0, 1, 1));
    assert_eq!(net.blocks.iter().filter(|block| block.gate.is_some()).count(), 10);
}

/// Tensors, with `num_batches_tracked`, and learned parameters of the official networks.
#[test]
fn counts_are_the_official_ones() {
    let channel = |rest: &str| format!(r#""dyn_mode": "channel", "channel_granularity": {rest}"#);
    let spatial = r#""dyn_mode": "spatial", "spatial_granularity": [4, 4, 2, 1]"#.to_owned();
    let layer = r#""dyn_mode": "layer""#.to_owned();
    let both = r#""dyn_mode": "both", "channel_granularity": 2, "spatial_granularity": 1"#.to_owned();
    for (arch, keys, tensors, parameters) in [
        ("uni_resnet50", channel("2"), 384, Some(25_831_400)),
        ("uni_resnet50", channel("1"), 384, Some(26_026_712)),
        ("uni_resnet50", channel(r#"2, "channel_masker_layers": 1"#), 352, Some(29_890_280)),
        ("uni_resnet50", channel(r#"2, "channel_masker": "conv_linear""#), 448, Some(26_828_624)),
        ("uni_resnet50", spatial.clone(), 352, Some(25_583_304)),
        ("uni_resnet50", layer.clone(), 352, Some(25_583_304)),
        ("uni_resnet50", both, 416, Some(25_857_672)),
        ("uni_resnet101", channel("2"), 758, None),
        ("uni_resnet101", layer, 692, None),
        ("lad_regnet_y_400mf", channel("2"), 448, Some(4_478_056)),
        ("lad_regnet_y_400mf", spatial, 416, Some(4_351_856)),
        // torchvision's own counts
        ("resnet18", String::new(), 122, Some(11_689_512)),
        ("resnet34", String::new(), 218, Some(21_797_672)),
        ("resnet50", String::new(), 320, Some(25_557_032)),
        ("resnet152", String::new(), 932, Some(60_192_808)),
        ("regnet_y_800mf", String::new(), 340, Some(6_432_512)),
        ("regnet_y_1_6gf", String::new(), 626, Some(11_202_430)),
        ("regnet_y_3_2gf", String::new(), 494, Some(19_436_338)),
        ("mobilenet_v2", String::new(), 314, Some(3_504_872)),
    ] {
        let net = net(arch, &keys);
        let names = net.parameters();
        let norms = names.iter().filter(|p| p.name.ends_with(".running_mean")).count();
        assert_eq!(names.len() + norms, tensors, "{arch} {keys}");
        if let Some(parameters) = parameters {
            assert_eq!(net.parameter_count(), parameters, "{arch} {keys}");
        }
    }
}

#[test]
fn masker_shapes_follow_width_and_granularity() {
    let shapes =
        |g| shapes(&net("uni_resnet50", &format!(r#""dyn_mode": "channel", "channel_granularity": {g}"#)));
    let two = shapes(2);
    assert_eq!(two["layer1.0.masker_channel.conv.0.weight"], [16, 64]);
    assert_eq!(two["layer2.0.masker_channel.conv.2.weight"], [128, 16]);
    assert_eq!(two["layer4.2.masker_channel.conv.0.weight"], [16, 2048]);
    assert_eq!(shapes(1)["layer4.2.masker_channel.conv.0.weight"], [32, 2048]);
}

#[test]
fn regnets_have_torchvisions_stages() {
    for (name, depths, widths, group) in [
        ("regnet_y_400mf", [1, 3, 6, 6], [48, 104, 208, 440], 8),
        ("regnet_y_800mf", [1, 3, 8, 2], [64, 144, 320, 784], 16),
        ("regnet_y_1_6gf", [2, 6, 17, 2], [48, 120, 336, 888], 24),
        ("regnet_y_3_2gf", [2, 5, 13, 1], [72, 216, 576, 1512], 24),
    ] {
        let config = NetConfig::preset(name).unwrap();
        assert_eq!(config.depths.as_deref(), Some(&depths[..]), "{name}");
        assert_eq!(config.widths.as_deref(), Some(&widths[..]), "{name}");
        assert_eq!(config.group_widths, Some(laud_models::PerStage::Each(vec![group; 4])), "{name}");
    }
}

#[test]
fn preset_names_do_not_clash() {
    let names = preset_names();
    let unique: std::collections::BTreeSet<_> = names.iter().collect();
    assert_eq!(unique.len(), names.len());
    for name in names {
        let net = net(name, "");
        assert_eq!(net.name, name);
        // Static networks are found again by their tensors alone, name and all.
        let hints =
            if name == "mobilenet_v2_tf" { NetConfig::preset(name).unwrap() } else { NetConfig::default() };
        assert_eq!(infer(&shapes(&net), &hints).unwrap().build().unwrap(), net, "{name}");
    }
}

#[test]
fn differences_are_listed_by_name() {
    let net = net("resnet18", "");
    let mut found = shapes(&net);
    found.insert("layer1.0.bn1.num_batches_tracked".into(), vec![]);
    found.insert("fc.weight".into(), vec![1000, 512, 1, 1]);
    assert!(net.compare(&found).is_empty());
    found.remove("bn1.bias");
    found.insert("conv1.weight".into(), vec![64, 3, 3, 3]);
    found.insert("stray".into(), vec![1]);
    let mismatch = net.compare(&found);
    assert_eq!(mismatch.missing[0].name, "bn1.bias");
    assert_eq!(mismatch.extra, ["stray"]);
    assert_eq!(
        (mismatch.wrong[0].0.name.as_str(), &mismatch.wrong[0].1),
        ("conv1.weight", &vec![64, 3, 3, 3])
    );
    let shown = mismatch.to_string();
    assert!(
        shown.contains("bn1.bias [64]")
            && shown.contains("conv1.weight [64, 3, 3, 3] instead of [64, 3, 7, 7]")
    );
}

#[test]
fn without_gates_is_the_static_network() {
    let gated = net(
        "resnet56",
        r#""dyn_mode": ["both", "layer", "channel"], "spatial_granularity": 4,
        "channel_granularity": 4"#,
    );
    assert_ne!(gated, net("resnet56", ""));
    assert_eq!(gated.without_gates(), net("resnet56", ""));
}

#[test]
fn names_of_other_code_bases_are_known() {
    for (theirs, ours) in [
        ("module.layer1.0.conv1.weight", "layer1.0.conv1.weight"),
        ("layer2.1.masker.conv2.bias", "layer2.1.masker_spatial.conv.bias"),
        ("module.linear.weight", "fc.weight"),
        ("layer1.0.masker_channel.linear.weight", "layer1.0.masker_channel.linear.weight"),
    ] {
        assert_eq!(canonical_name(theirs), ours);
    }
}
