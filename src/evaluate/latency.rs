use anyhow::Result;
use laud_predictor::distribution::Distribution;
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// How long images take, in milliseconds each. A quantile is a latency that was there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Latency {
    /// Mean.
    pub mean: f64,
    /// Half of the images take no longer.
    pub p50: f64,
    /// 95 of a hundred.
    pub p95: f64,
    /// 99 of a hundred.
    pub p99: f64,
    /// The fastest, then what 1, 2, … 100 of a hundred do not exceed.
    pub percentiles: Vec<f64>,
}

impl Latency {
    /// Of latencies in milliseconds.
    ///
    /// # Errors
    /// None of them, or one that is no time.
    pub fn of(ms: &[f64]) -> Result<Self> {
        let all = Distribution::new(ms.iter().map(|ms| ms * 1e6).collect())?;
        let at = |share: f64| all.quantile_ns(share) / 1e6;
        Ok(Self {
            mean: all.quantiles().mean_ns / 1e6,
            p50: at(0.5),
            p95: at(0.95),
            p99: at(0.99),
            percentiles: (0..=100).map(|percent| at(f64::from(percent) / 100.0)).collect(),
        })
    }
}

/// Times of the same inference, of which the median counts.
pub(super) struct Times {
    ms: Vec<f64>,
    keep: usize,
}

impl Times {
    /// Of which the last `keep` are looked at.
    pub(super) fn new(keep: usize) -> Self {
        Self { ms: Vec::new(), keep }
    }

    pub(super) fn time(&mut self, run: impl FnOnce() -> Result<()>) -> Result<()> {
        let clock = Instant::now();
        run()?;
        self.ms.push(clock.elapsed().as_secs_f64() * 1e3);
        Ok(())
    }

    /// Their median, 0 of none; the next ones are of another inference.
    pub(super) fn take(&mut self) -> f64 {
        let from = self.ms.len().saturating_sub(self.keep);
        let last = &mut self.ms[from..];
        last.sort_by(f64::total_cmp);
        let median = last.get(last.len() / 2).copied().unwrap_or(0.0);
        self.ms.clear();
        median
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_latencies_that_were_there() {
        let latency = Latency::of(&(1..=200).rev().map(f64::from).collect::<Vec<_>>()).unwrap();
        assert_eq!([latency.mean, latency.p50, latency.p95, latency.p99], [100.5, 100.0, 190.0, 198.0]);
        assert_eq!(
            (latency.percentiles.len(), latency.percentiles[0], latency.percentiles[100]),
            (101, 1.0, 200.0)
        );
        assert!(Latency::of(&[]).is_err() && Latency::of(&[f64::NAN]).is_err());
    }

    #[test]
    fn the_median_of_the_last_counts() {
        let mut times = Times { ms: vec![99.0, 3.0, 1.0, 2.0], keep: 3 };
        assert_eq!((times.take(), times.take()), (2.0, 0.0));
    }
}
