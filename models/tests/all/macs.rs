use laud_models::{BlockRates, MapSize, MaskGrid, NetConfig, SampleMasks, Shortcut};
use serde_json::Value;

use crate::net;

/// A gate configuration and the official totals at 224 × 224 with every gate off and every gate on.
const TOTALS: [(&str, &str, f64, f64); 11] = [
    ("uni_resnet50", LAYER, 481_584_384.0, 4_091_045_120.0),
    ("uni_resnet50", S4421, 484_442_112.0, 4_093_902_848.0),
    ("uni_resnet50", G2, 487_421_952.0, 4_096_882_688.0),
    ("uni_resnet101", LAYER, 481_654_016.0, 7_803_335_936.0),
    ("uni_resnet101", S4421, 487_854_080.0, 7_809_536_000.0),
    ("uni_resnet101", S8471, 483_368_192.0, 7_805_050_112.0),
    ("uni_resnet101", G2, 491_182_080.0, 7_812_864_000.0),
    ("lad_regnet_y_400mf", S4421, 30_167_704.0, 402_614_744.0),
    ("lad_regnet_y_400mf", G2, 30_674_608.0, 403_121_648.0),
    ("lad_regnet_y_800mf", S4421, 48_213_776.0, 834_634_768.0),
    ("lad_regnet_y_800mf", G2, 49_074_336.0, 835_495_328.0),
];
const LAYER: &str = r#""dyn_mode": "layer""#;
const S4421: &str = r#""dyn_mode": "spatial", "spatial_granularity": [4, 4, 2, 1]"#;
const S8471: &str = r#""dyn_mode": "spatial", "spatial_granularity": [8, 4, 7, 1]"#;
const G2: &str = r#""dyn_mode": "channel", "channel_granularity": 2"#;

#[test]
fn totals_are_the_official_ones() {
    for (arch, keys, off, on) in TOTALS {
        let net = net(arch, keys);
        for (density, official) in [(0.0, off), (1.0, on)] {
            let ours = net.macs_at(density).unwrap().total();
            // The official tensors are f32: ResNet-101's totals may be off in the last digits.
            let tolerance = if arch.ends_with("101") { 1e-6 * official } else { 0.0 };
            assert!(
                (ours - official).abs() <= tolerance,
                "{arch} {keys} at {density}: {ours}, official {official}"
            );
        }
        assert_eq!(net.macs_at(0.5).unwrap().dense_total() as f64, net.macs_at(1.0).unwrap().total());
    }
}

/// Recorded masks of the official code, and its accounting of them.
#[test]
fn recorded_masks_cost_what_the_official_code_says() {
    let cases: Value = serde_json::from_str(include_str!("../data/official_macs.json")).unwrap();
    let cases = cases.as_array().unwrap();
    assert_eq!(cases.len(), 10);
    for case in cases {
        let net = NetConfig::from_value(case["config"].clone()).unwrap().build().unwrap();
        let samples = |prefix: &str| -> Vec<Vec<bool>> {
            let bits = case["masks"][prefix].as_array().unwrap_or_else(|| panic!("{}: {prefix}", net.name));
            bits.iter().map(|bits| bits.as_str().unwrap().bytes().map(|bit| bit == b'1').collect()).collect()
        };
        let mut rates = Vec::new();
        for block in &net.blocks {
            let mut masks = vec![SampleMasks::default(); case["config"]["batch"].as_u64().unwrap() as usize];
            if let Some(gate) = &block.gate.spatial {
                for (mask, bits) in masks.iter_mut().zip(samples(&gate.prefix)) {
                    mask.spatial = Some(MaskGrid::new(gate.grid, bits).unwrap());
                }
            }
            if let Some(gate) = &block.gate.channel {
                for (mask, bits) in masks.iter_mut().zip(samples(&gate.prefix)) {
                    mask.channel = Some(bits);
                }
            }
            rates.push(BlockRates::of(block, &masks).unwrap());
        }
        let macs = net.macs(&rates).unwrap();
        let official = case["macs_total"].as_f64().unwrap();
        let relative = (macs.total() - official).abs() / official;
        assert!(relative < 1e-6, "{}: {}, official {official}", net.name, macs.total());
        let fractions = case["fractions"].as_array().unwrap();
        assert_eq!(fractions.len(), macs.blocks.len());
        for ((block, ours), official) in net.blocks.iter().zip(&macs.blocks).zip(fractions) {
            let (ours, official) = (ours.fraction(), official.as_f64().unwrap());
            assert!(
                (ours - official).abs() < 1e-6,
                "{} {}: {ours}, official {official}",
                net.name,
                block.name
            );
        }
    }
}

#[test]
fn every_kind_of_convolution_counts_its_masked_sides() {
    let keys = r#""dyn_mode": "both", "spatial_granularity": 2, "channel_granularity": 8"#;
    let half = |arch| {
        let net = net(arch, keys);
        let block = net.blocks.into_iter().rfind(|block| block.gate.is_some()).unwrap();
        let macs =
            block.macs(&BlockRates { channel: 0.5, spatial: vec![1.0; block.convs.len()].into() }).unwrap();
        let mut sizes = vec![block.input];
        for conv in &block.convs {
            sizes.push(conv.output_size(sizes[sizes.len() - 1]).unwrap());
        }
        let dense: Vec<_> =
            block.convs.iter().zip(&sizes[1..]).map(|(conv, &size)| conv.macs(size) as f64).collect();
        (macs.sparse - macs.masker as f64, dense)
    };
    let (basic, dense) = half("resnet18");
    assert_eq!(basic, 0.5 * dense[0] + 0.5 * dense[1]);
    let (bottleneck, dense) = half("resnet50");
    assert_eq!(bottleneck, 0.5 * dense[0] + 0.25 * dense[1] + 0.5 * dense[2]);
    let (inverted, dense) = half("mobilenet_v2");
    assert_eq!(inverted, 0.5 * dense[0] + 0.5 * dense[1] + 0.5 * dense[2]);
}

#[test]
fn channel_gates_thin_every_block_of_a_mobilenet() {
    let net = net("mobilenet_v2", r#""dyn_mode": "channel", "channel_granularity": 8"#);
    assert_eq!(net.blocks.iter().filter(|block| block.shortcut == Shortcut::None).count(), 7);
    let none = net.macs_at(0.0).unwrap();
    assert!(none.blocks.iter().all(|block| block.sparse == block.masker as f64));
    // Stem, head and maskers; with 268,585,856 in the blocks' convolutions.
    assert_eq!((none.total(), none.dense_total()), (33_195_744.0, 301_781_600));
}

#[test]
fn rates_that_do_not_fit_are_errors() {
    let net = net("resnet50", S4421);
    assert!(net.macs(&[]).is_err());
    let block = &net.blocks[0];
    let rates = |channel, spatial: &[f64]| BlockRates { channel, spatial: spatial.into() };
    assert!(block.macs(&rates(1.0, &[1.0, 1.0])).is_err());
    assert!(block.macs(&rates(f64::NAN, &[1.0; 3])).is_err());
    assert!(block.macs(&rates(1.0, &[1.0, 1.0, 1.5])).is_err());
    assert!(BlockRates::of(block, &[]).is_err());
    assert!(BlockRates::of(block, &[SampleMasks::default()]).is_err());
    let mask = MaskGrid::from_fn(MapSize { h: 14, w: 14 }, |_, _| true);
    let unexpected = SampleMasks { spatial: Some(mask.clone()), channel: Some(vec![true; 32]) };
    assert!(BlockRates::of(block, &[unexpected]).is_err());
    let fitting = SampleMasks { spatial: Some(mask), channel: None };
    assert_eq!(BlockRates::of(block, &[fitting]).unwrap(), BlockRates::uniform(block, 1.0));
}

#[test]
fn absurd_specs_saturate_instead_of_overflowing() {
    let mut net = net("resnet50", S4421);
    for conv in &mut net.blocks[0].convs {
        (conv.c_in, conv.c_out) = (usize::MAX, usize::MAX);
    }
    assert!(net.validate().is_err());
    assert_eq!(net.macs_at(1.0).unwrap().dense_total(), u64::MAX);
    assert_eq!(net.parameter_count(), u64::MAX);
}
