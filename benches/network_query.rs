//! How long does it take to predict a whole network, what is active in each block being known?
//!
//! `cargo bench --bench network_query [-- PROFILE.json]`; without a profile that of the first CPU, one thread.

use laud::models::NetConfig;
use laud::plan::{ActivityTable, ExecutionPlan, Setting, lower, network_ns};
use laud::predictor::profile::Profile;
use laud::predictor::workload::DType;
use std::hint::black_box;
use std::time::Instant;

/// Queries of one round.
const QUERIES: usize = 50;

fn main() -> anyhow::Result<()> {
    let given = std::env::args().skip(1).find(|arg| !arg.starts_with("--"));
    let path = given.as_deref().unwrap_or("predictor/profiles/xeon-emr-1.json");
    let profile = Profile::from_json(&std::fs::read_to_string(path)?, None)?;
    let setting = Setting::of(&profile, 1, DType::F32);
    println!("{:>14} {:>6} {:>8} {:>8}", "spatial gates", "calls", "median", "best");
    for arch in ["mobilenet_v2", "cifar_resnet56", "resnet50", "resnet101"] {
        let config = format!(r#"{{"arch": "{arch}", "dyn_mode": "spatial", "spatial_granularity": 2}}"#);
        let spec = NetConfig::from_json(&config)?.build()?;
        let (plan, table) = (ExecutionPlan::sparse(&spec), ActivityTable::new(&spec, &[1])?);
        // Every block has a density of its own, as in a trace: no two calls are alike.
        let density = |block: usize| 0.3 + 0.5 * block as f64 / spec.blocks.len() as f64;
        let activities: Vec<_> =
            (0..spec.blocks.len()).map(|block| table.at(block, 1, density(block), 1.0)).collect();
        let calls = lower(&spec, &plan, &activities, &setting).calls().count();
        let mut rounds: Vec<f64> = (0..21)
            .map(|_| {
                let start = Instant::now();
                for _ in 0..QUERIES {
                    let lowered = lower(&spec, &plan, black_box(&activities), &setting);
                    black_box(network_ns(&profile, lowered.calls()));
                }
                start.elapsed().as_secs_f64() * 1e6 / QUERIES as f64
            })
            .collect();
        rounds.sort_by(f64::total_cmp);
        println!("{arch:>14} {calls:6} {:5.0} µs {:5.0} µs", rounds[10], rounds[0]);
    }
    Ok(())
}
