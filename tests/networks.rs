//! Small networks: some by name, and a strategy for any.

use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};

/// What is easily got wrong.
pub(crate) const NAMED: [(&str, &str); 13] = [
    (
        "bottlenecks, mixed modes, odd maps",
        r#"{"arch": "resnet50", "width_mult": 0.125, "depths": [2, 2, 1, 2], "input_size": [45, 67], "num_classes": 7,
            "dyn_mode": ["spatial", "both", "layer", "channel"], "spatial_granularity": [2, 3, 1, 1],
            "channel_granularity": 4}"#,
    ),
    (
        "bottlenecks, folded, one channel in a group",
        r#"{"arch": "resnet50", "width_mult": 0.125, "depths": [1, 2], "input_size": 32, "num_classes": 5, "norm": "folded",
            "dyn_mode": "both", "spatial_granularity": 1, "channel_granularity": 1, "channel_masker_layers": 1}"#,
    ),
    (
        "basic blocks whose patches do not divide the map",
        r#"{"arch": "resnet18", "width_mult": 0.125, "depths": [2, 2], "input_size": [41, 58], "num_classes": 5,
            "dyn_mode": "both", "spatial_granularity": [4, 3], "channel_granularity": 8, "reduction": 4}"#,
    ),
    (
        "basic blocks, static next to gated stages",
        r#"{"arch": "resnet34", "width_mult": 0.125, "depths": [1, 2, 2], "input_size": 64, "num_classes": 5,
            "dyn_mode": ["none", "spatial", "channel"], "spatial_granularity": 2, "channel_granularity": 2}"#,
    ),
    (
        "type A shortcuts that widen, odd maps",
        r#"{"arch": "cifar_resnet", "depths": [2, 2, 2], "widths": [4, 7, 10], "stem_width": 3, "input_size": [9, 13],
            "dyn_mode": ["layer", "spatial", "both"], "spatial_granularity": 2, "channel_granularity": [4, 7, 5]}"#,
    ),
    (
        "type A shortcuts, conv_linear, folded",
        r#"{"arch": "cifar_resnet", "depths": [2, 1], "widths": [8, 8], "stem_width": 8, "input_size": 8, "dyn_mode": "channel",
            "channel_granularity": 2, "channel_masker": "conv_linear", "reduction": 4, "norm": "folded"}"#,
    ),
    (
        "regnet pooling densely",
        r#"{"arch": "regnet", "depths": [1, 2], "widths": [16, 24], "group_widths": 8, "stem_width": 8, "input_size": 37,
            "num_classes": 5, "dyn_mode": "both", "spatial_granularity": [2, 3], "channel_granularity": 4,
            "squeeze_pooling": "dense"}"#,
    ),
    (
        "regnet pooling active positions",
        r#"{"arch": "regnet", "depths": [1, 2], "widths": [16, 24], "group_widths": 8, "stem_width": 8, "input_size": 38,
            "num_classes": 5, "dyn_mode": "both", "spatial_granularity": [2, 3], "channel_granularity": 2,
            "squeeze_pooling": "active"}"#,
    ),
    (
        "regnet whose channel groups cut across convolution groups",
        r#"{"arch": "regnet", "depths": [2, 1], "widths": [24, 36], "group_widths": [8, 12], "stem_width": 8, "input_size": 24,
            "num_classes": 5, "dyn_mode": "channel", "channel_granularity": [6, 9], "se_ratio": 0}"#,
    ),
    (
        "regnet with a group for every channel",
        r#"{"arch": "regnet", "depths": [2, 1], "widths": [12, 20], "group_widths": 1, "stem_width": 8, "input_size": 24,
            "num_classes": 5, "dyn_mode": "both", "spatial_granularity": 2, "channel_granularity": 2}"#,
    ),
    (
        "mobilenet, odd map",
        r#"{"arch": "mobilenet_v2", "width_mult": 0.25, "depths": [1, 2, 3, 2, 2, 1, 1], "head_width": 24, "input_size": [65, 50],
            "num_classes": 5, "dyn_mode": "both", "spatial_granularity": 2, "channel_granularity": 4}"#,
    ),
    (
        "mobilenet with TensorFlow's padding, folded",
        r#"{"arch": "mobilenet_v2_tf", "width_mult": 0.25, "depths": [1, 2, 2, 2, 1, 2, 1], "head_width": 24,
            "input_size": [64, 49], "num_classes": 5, "dyn_mode": ["spatial", "spatial", "channel", "layer", "both", "both", "both"],
            "spatial_granularity": 2, "channel_granularity": 8}"#,
    ),
    (
        "mobilenet blocks without expansion, gated with and without a shortcut",
        r#"{"arch": "mobilenet_v2", "widths": [8, 8, 8, 12, 12, 12, 12], "stem_width": 8, "expansions": [1, 1, 2, 1, 1, 1, 3],
            "depths": [2, 2, 1, 2, 1, 1, 1], "head_width": 16, "input_size": 48, "num_classes": 5, "dyn_mode": "channel",
            "channel_granularity": 2}"#,
    ),
];

/// JSON of any small network.
pub(crate) fn networks() -> impl Strategy<Value = String> {
    let family =
        select(vec!["bottleneck", "basic", "cifar_resnet", "regnet", "mobilenet_v2", "mobilenet_v2_tf"]);
    family.prop_flat_map(|family| {
        let stages = if family.starts_with("mobilenet") { 7..=7usize } else { 1..=3 };
        let parts = stages.prop_flat_map(move |n| (prop::collection::vec(stage(), n), any_of_all(family)));
        parts.prop_map(move |(stages, all)| network(family, &stages, all).to_string())
    })
}

/// What stages may differ in.
#[derive(Clone, Debug)]
struct Stage {
    depth: usize,
    mode: &'static str,
    /// `S`.
    spatial: usize,
    /// Channels in a convolution group, and number of these.
    group_width: usize,
    groups: usize,
    /// Which of the width's divisors is `G`.
    divisor: usize,
    masker: &'static str,
    layers: usize,
    expansion: usize,
}

fn stage() -> impl Strategy<Value = Stage> {
    let mode = select(vec!["none", "spatial", "layer", "channel", "both", "both"]);
    let masker = select(vec!["MLP", "conv_linear"]);
    let numbers = (1..=2usize, 1..=4usize, 1..=6usize, 4..=6usize, 0..8usize, 1..=2usize, 1..=3usize);
    (mode, masker, numbers).prop_map(
        |(mode, masker, (depth, spatial, group_width, groups, divisor, layers, expansion))| Stage {
            depth,
            mode,
            spatial,
            group_width,
            groups,
            divisor,
            masker,
            layers,
            expansion,
        },
    )
}

/// What a network has once.
fn any_of_all(family: &str) -> impl Strategy<Value = Value> + use<> {
    let size = match family {
        "cifar_resnet" => 5..=20usize,
        "regnet" => 16..=40,
        _ => 32..=60,
    };
    let norm = select(vec!["batch", "folded"]);
    let pooling = select(vec!["dense", "active"]);
    (size.clone(), size, 4..=9usize, norm, pooling, select(vec![0.0, 0.25, 0.5])).prop_map(
        |(h, w, stem, norm, pooling, se)| {
            json!({"input_size": [h, w], "stem_width": stem, "norm": norm, "squeeze_pooling": pooling, "se_ratio": se,
                   "reduction": 2, "num_classes": 5, "head_width": 16})
        },
    )
}

fn network(family: &str, stages: &[Stage], mut json: Value) -> Value {
    let mut widths: Vec<usize> = stages.iter().map(|stage| stage.group_width * stage.groups).collect();
    let stem = json["stem_width"].as_u64().unwrap() as usize;
    if family == "cifar_resnet" {
        let mut least = stem;
        for width in &mut widths {
            least = least.max(*width);
            *width = least;
        }
    }
    // A stage's channel groups have to divide the inner channels of its blocks; a MobileNet's widen what a block reads.
    let inner = |i: usize| match family.starts_with("mobilenet") {
        true => [if i == 0 { stem } else { widths[i - 1] }, widths[i]].map(|c_in| c_in * stages[i].expansion),
        false => [widths[i]; 2],
    };
    let granularity = |i: usize| {
        let [first, others] = inner(i);
        let divides = |n: &usize| first.is_multiple_of(*n) && others.is_multiple_of(*n);
        let divisors: Vec<usize> = (1..=first).filter(divides).collect();
        divisors[stages[i].divisor % divisors.len()]
    };
    let each = |of: &dyn Fn(&Stage) -> Value| Value::from(stages.iter().map(of).collect::<Vec<_>>());
    let (arch, block) = match family {
        "bottleneck" | "basic" => ("resnet", family),
        other => (other, "basic"),
    };
    json["arch"] = arch.into();
    json["block"] = block.into();
    json["channel_granularity"] = (0..stages.len()).map(granularity).collect();
    json["depths"] = each(&|stage| stage.depth.into());
    json["widths"] = widths.into();
    json["dyn_mode"] = each(&|stage| stage.mode.into());
    json["spatial_granularity"] = each(&|stage| stage.spatial.into());
    json["group_widths"] = each(&|stage| stage.group_width.into());
    json["channel_masker"] = each(&|stage| stage.masker.into());
    json["channel_masker_layers"] = each(&|stage| stage.layers.into());
    json["expansions"] = each(&|stage| stage.expansion.into());
    json
}
