//! Does skipping pay? Whole networks with decisions forced to density ½ and 1 against the same network without gates,
//! interleaved, and the realised efficiency η = (T_static ÷ T_dynamic) ÷ (MACs_static ÷ MACs_dynamic).
//!
//! `cargo bench --bench network -- [THREADS] [NETWORK…] [batch=N] [profile]`

mod common;

use laud::exec::{Output, Request};
use laud::gate::{Always, Given, Pattern, Policy};
use laud::{RandomWeights, Session};
use laud_models::{NetConfig, NetSpec};

/// Label, gate mode, patch granularity of each stage, channel group size.
const MODES: [(&str, &str, [usize; 4], usize); 4] = [
    ("spatial 4-4-2-1", "spatial", [4, 4, 2, 1], 8),
    ("spatial 1-1-1-1", "spatial", [1, 1, 1, 1], 8),
    ("channel G=8", "channel", [1, 1, 1, 1], 8),
    ("layer", "layer", [1, 1, 1, 1], 8),
];

fn spec(network: &str, mode: Option<(&str, [usize; 4], usize)>) -> NetSpec {
    let mut config = NetConfig::preset(network).expect("a preset");
    if let Some((mode, spatial, group)) = mode {
        let gates = format!(
            r#"{{"dyn_mode": ["{mode}", "{mode}", "{mode}", "{mode}"], "spatial_granularity": {spatial:?},
                "channel_granularity": {group}, "channel_masker": "MLP", "channel_masker_layers": 2}}"#
        );
        config = NetConfig::from_json(&gates).expect("gates").or(config);
    }
    config.build().expect("a network")
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let threads = words.iter().find_map(|word| word.parse().ok()).unwrap_or(2);
    let batch: usize = words.iter().find_map(|word| word.strip_prefix("batch=")?.parse().ok()).unwrap_or(1);
    let profile = words.iter().any(|word| word == "profile");
    let only: Vec<_> = words.iter().filter(|word| word.contains("net")).map(String::as_str).collect();
    let networks = if only.is_empty() { vec!["resnet50", "resnet101"] } else { only };
    for network in networks {
        let plain = spec(network, None);
        let images: Vec<f32> =
            (0..batch * 3 * 224 * 224).map(|i| ((i * 37 % 255) as f32 / 127.5) - 1.0).collect();
        let session = |spec: &NetSpec| {
            let builder = Session::builder(spec.clone()).threads(threads);
            builder.build(&RandomWeights::new(spec, 1)).expect("a session")
        };
        let fixed = session(&plain);
        println!("{network}, batch {batch}, {}", fixed.describe());
        if profile {
            profile_of(&fixed, &Always, &images, batch);
        }
        for (label, mode, spatial, group) in MODES {
            if network.starts_with("regnet") && mode == "channel" && network.contains("1_6gf") {
                continue;
            }
            let gated = spec(network, Some((mode, spatial, group)));
            let dynamic = session(&gated);
            let half = Given::forced(&gated, batch, 0.5, Pattern::Clustered, 1).expect("density ½");
            let infer = |session: &Session, policy: &dyn Policy, output: &mut Output| {
                let request = Request { images: &images, batch, features: false, masks: false, timed: false };
                session.infer_with(request, policy, output).expect("an inference");
            };
            let mut outputs: [Output; 3] = Default::default();
            let [a, b, c] = &mut outputs;
            let mut candidates: Vec<Box<dyn FnMut() + '_>> = vec![
                Box::new(|| infer(&fixed, &Always, a)),
                Box::new(|| infer(&dynamic, &half, b)),
                Box::new(|| infer(&dynamic, &Always, c)),
            ];
            let times = common::interleave(&mut candidates, 15, 1.0);
            drop(candidates);
            let ms = |i: usize| times[i].median_ns / 1e6;
            let trace = &outputs[1].trace;
            let ratio = trace.dense_macs() as f64 / trace.macs() as f64;
            println!(
                "  {label:16} static {:8.2} ms   ½ {:8.2} ms ({:.2}× for {ratio:.2}× fewer MACs, η {:.3})   1 {:8.2} ms ({:+.1} %), noise ± {:.1} %",
                ms(0),
                ms(1),
                ms(0) / ms(1),
                ms(0) / ms(1) / ratio,
                ms(2),
                100.0 * (ms(2) / ms(0) - 1.0),
                common::noise(&times),
            );
            if profile {
                profile_of(&dynamic, &half, &images, batch);
            }
        }
    }
}

fn profile_of(session: &Session, policy: &dyn Policy, images: &[f32], batch: usize) {
    let request = Request { images, batch, features: false, masks: false, timed: true };
    let mut output = Output::default();
    let mut best: Option<Output> = None;
    for _ in 0..9 {
        session.infer_with(request, policy, &mut output).expect("an inference");
        if best.as_ref().is_none_or(|best| output.trace.total_ns() < best.trace.total_ns()) {
            best = Some(output.clone());
        }
    }
    let trace = best.expect("nine runs").trace;
    let us = |ns: u64| ns as f64 / 1e3;
    println!("    {:14} {:>9} {:>9} {:>9} {:>9}", "", "gate µs", "compact", "compute", "GFLOP/s");
    let line = |name: &str, [gate, compact, compute]: [u64; 3], macs: u64| {
        let rate = 2.0 * macs as f64 / compute.max(1) as f64;
        println!("    {name:14} {:9.1} {:9.1} {:9.1} {rate:9.1}", us(gate), us(compact), us(compute));
    };
    line("stem", [0, 0, trace.stem_ns], trace.stem_macs);
    let mut sum = [0; 3];
    for (block, spec) in trace.blocks.iter().zip(&session.spec().blocks) {
        let times = [block.gate_ns, block.compact_ns, block.compute_ns];
        line(&spec.name, times, block.macs);
        sum.iter_mut().zip(times).for_each(|(sum, time)| *sum += time);
    }
    line("head", [0, 0, trace.head_ns], trace.head_macs);
    line("all", [sum[0], sum[1], trace.total_ns() - sum[0] - sum[1]], trace.macs());
}
