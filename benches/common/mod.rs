//! Shared by the benches: interleaved timing.

use std::time::Instant;

/// Median and median absolute deviation, nanoseconds.
#[derive(Clone, Copy)]
pub(crate) struct Timing {
    pub(crate) median_ns: f64,
    pub(crate) mad_ns: f64,
}

/// Times every candidate in turn, round after round, so that a disturbance hits all alike. Each sample repeats the
/// candidate until about `sample_ns` have passed.
pub(crate) fn interleave(
    candidates: &mut [Box<dyn FnMut() + '_>],
    rounds: usize,
    sample_ns: f64,
) -> Vec<Timing> {
    let repeats: Vec<usize> = candidates
        .iter_mut()
        .map(|run| {
            run();
            let start = Instant::now();
            run();
            (sample_ns / start.elapsed().as_nanos().max(1) as f64).ceil().clamp(1.0, 1e6) as usize
        })
        .collect();
    let mut samples = vec![Vec::new(); candidates.len()];
    for _ in 0..rounds {
        for (i, run) in candidates.iter_mut().enumerate() {
            let start = Instant::now();
            (0..repeats[i]).for_each(|_| run());
            samples[i].push(start.elapsed().as_nanos() as f64 / repeats[i] as f64);
        }
    }
    samples.into_iter().map(timing).collect()
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn timing(mut samples: Vec<f64>) -> Timing {
    let median_ns = median(&mut samples);
    let mut off: Vec<f64> = samples.iter().map(|s| (s - median_ns).abs()).collect();
    Timing { median_ns, mad_ns: median(&mut off) }
}

/// The largest median deviation among `times`, in percent of its median: how noisy the machine was.
pub(crate) fn noise(times: &[Timing]) -> f64 {
    times.iter().map(|time| 100.0 * time.mad_ns / time.median_ns).fold(0.0, f64::max)
}
