//! How long a whole-network query of the prior takes: cold (first query of a new prior) and cached.
//!
//! `cargo run --release -p laud-predictor --example prior_query_time`

use std::time::Instant;

use laud_predictor::Density;
use laud_predictor::prior::{DeviceSpec, Mode, Network, Prior};

fn main() -> laud_predictor::Result<()> {
    println!(
        "{:<12} {:<20} {:>12} {:>16} {:>12}",
        "network", "mode", "cold ms", "new density µs", "cached µs"
    );
    let modes =
        ["static", "layer", "spatial:1-1-1-1", "spatial:4-4-2-1", "spatial:56-28-14-7", "channel:2-2-2-2"];
    for name in Network::NAMES {
        let network = Network::named(name)?;
        for mode in modes {
            let mode: Mode = mode.parse()?;
            let mut times: [Vec<f64>; 3] = Default::default();
            for _ in 0..11 {
                let prior = Prior::new(DeviceSpec::named("v100")?)?;
                for (times, density) in times.iter_mut().zip([0.5, 0.37, 0.37]) {
                    let density = Density::new(density)?;
                    let start = Instant::now();
                    std::hint::black_box(prior.network(&network, &mode, density, 128)?);
                    times.push(start.elapsed().as_secs_f64());
                }
            }
            let [cold, new, cached] = times.map(median);
            let mode = mode.to_string();
            println!("{name:<12} {mode:<20} {:>12.2} {:>16.1} {:>12.1}", cold * 1e3, new * 1e6, cached * 1e6);
        }
    }
    Ok(())
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
