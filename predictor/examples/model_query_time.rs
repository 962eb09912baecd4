//! How long does it take to fit a model to measurements, and to ask it? `cargo run --release --example model_query_time
//! -- MEASUREMENTS.csv`

use std::hint::black_box;
use std::time::Instant;

use laud_predictor::learned::{FitOptions, Model};
use laud_predictor::{DeviceFacts, measurements};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("usage: model_query_time MEASUREMENTS.csv")?;
    let samples = measurements::read(&std::fs::read_to_string(path)?)?;
    // Only times are printed, for which it does not matter which device it was.
    let facts = DeviceFacts::example("example");
    let start = Instant::now();
    let model = Model::fit(&samples, &facts, &FitOptions::default())?;
    println!("fit to {} measurements: {:.2} s", samples.len(), start.elapsed().as_secs_f64());

    let mut rounds: Vec<f64> = (0..21)
        .map(|_| {
            let start = Instant::now();
            for sample in &samples {
                black_box(model.predict(black_box(&sample.workload)));
            }
            start.elapsed().as_secs_f64() * 1e6 / samples.len() as f64
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    println!("one query: median {:.2} µs, best {:.2} µs of 21 rounds", rounds[10], rounds[0]);
    Ok(())
}
