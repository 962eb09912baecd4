/// Configurations of small networks that together need every operation and list that there is: what a device or a backend
/// is checked with. For [`NetConfig::from_json`](crate::NetConfig::from_json).
pub const SMALL_NETWORKS: [&str; 6] = [
    r#"{"arch": "resnet50", "width_mult": 0.5, "depths": [2, 1, 1], "input_size": [75, 90], "dyn_mode": "both",
        "spatial_granularity": 2, "channel_granularity": 8}"#,
    r#"{"arch": "resnet18", "width_mult": 0.25, "depths": [1, 2], "input_size": 64, "dyn_mode": ["layer", "channel"],
        "channel_granularity": 1, "channel_masker": "conv_linear"}"#,
    r#"{"arch": "cifar_resnet", "depths": [2, 2, 1], "dyn_mode": "both", "spatial_granularity": 3, "channel_granularity": 4}"#,
    r#"{"arch": "regnet", "depths": [1, 2], "widths": [16, 24], "group_widths": 8, "stem_width": 8, "input_size": 48,
        "dyn_mode": "both", "spatial_granularity": 2, "channel_granularity": 4, "squeeze_pooling": "dense"}"#,
    r#"{"arch": "regnet", "depths": [1, 2], "widths": [16, 24], "group_widths": 8, "stem_width": 8, "input_size": 48,
        "dyn_mode": "both", "spatial_granularity": 2, "channel_granularity": 4, "squeeze_pooling": "active"}"#,
    r#"{"arch": "mobilenet_v2", "width_mult": 0.25, "input_size": 64, "dyn_mode": "both", "spatial_granularity": 2,
        "channel_granularity": 4}"#,
];
