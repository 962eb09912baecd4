//! Timing several things in turns, and what is said about the times.

use anyhow::Result;
use serde::Serialize;
use std::time::{Duration, Instant};

/// When to stop.
#[derive(Clone, Copy)]
pub(super) struct Limit {
    /// Rounds that are not counted.
    pub(super) warm_up: usize,
    /// At least this many rounds are counted.
    pub(super) rounds: usize,
    /// Further rounds are added for this long.
    pub(super) duration: Duration,
    /// But no more than this many in all.
    pub(super) most: usize,
    /// Between a run and the next nothing happens for this long.
    pub(super) pause: Duration,
}

/// Runs contestants `0..count` in turns, A B A B, and gives each one's times in milliseconds.
pub(super) fn interleave(
    count: usize,
    limit: Limit,
    mut run: impl FnMut(usize) -> Result<()>,
) -> Result<Vec<Times>> {
    for _ in 0..limit.warm_up {
        (0..count).try_for_each(&mut run)?;
    }
    let mut times = vec![Vec::new(); count];
    let start = Instant::now();
    for round in 0..limit.most {
        if round >= limit.rounds && start.elapsed() >= limit.duration {
            break;
        }
        for (contestant, times) in times.iter_mut().enumerate() {
            if !limit.pause.is_zero() {
                std::thread::sleep(limit.pause);
            }
            let start = Instant::now();
            run(contestant)?;
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
    }
    Ok(times.into_iter().map(Times::new).collect())
}

/// Times, ascending; at least one.
pub(super) struct Times(Vec<f64>);

impl Times {
    fn new(mut times: Vec<f64>) -> Self {
        times.sort_by(f64::total_cmp);
        Self(times)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The value below which a share `q` of the times lies, interpolated between neighbours.
    pub(super) fn quantile(&self, q: f64) -> f64 {
        let at = q * (self.0.len().saturating_sub(1)) as f64;
        let (low, high) = (at.floor() as usize, at.ceil() as usize);
        let value = |i: usize| self.0.get(i).copied().unwrap_or(f64::NAN);
        value(low) + (value(high) - value(low)) * at.fract()
    }

    pub(super) fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    pub(super) fn summary(&self) -> Summary {
        Summary {
            min: self.quantile(0.0),
            mean: self.0.iter().sum::<f64>() / self.0.len() as f64,
            median: self.median(),
            p90: self.quantile(0.9),
            p95: self.quantile(0.95),
            p99: self.quantile(0.99),
        }
    }
}

/// What is reported of a distribution of times; the unit is that of the times.
#[derive(Clone, Copy, Serialize)]
pub(super) struct Summary {
    pub(super) min: f64,
    pub(super) mean: f64,
    pub(super) median: f64,
    pub(super) p90: f64,
    pub(super) p95: f64,
    pub(super) p99: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_interpolate() {
        let times = Times::new(vec![4.0, 1.0, 3.0, 2.0]);
        assert_eq!(times.median(), 2.5);
        assert_eq!((times.quantile(0.0), times.quantile(1.0)), (1.0, 4.0));
        assert_eq!(Times::new(vec![7.0]).summary().p99, 7.0);
    }

    #[test]
    fn contestants_alternate() {
        let mut order = Vec::new();
        let limit = Limit {
            warm_up: 1,
            rounds: 2,
            duration: Duration::ZERO,
            most: 9,
            pause: Duration::from_millis(2),
        };
        let start = Instant::now();
        let times = interleave(2, limit, |i| {
            order.push(i);
            Ok(())
        });
        assert_eq!(order, [0, 1, 0, 1, 0, 1]);
        assert_eq!(times.unwrap()[1].len(), 2);
        assert!(start.elapsed() >= 4 * limit.pause);
    }
}
