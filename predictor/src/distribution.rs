//! Not only the mean: how long inferences take when every input decides for itself.

use serde::Serialize;

use crate::{Error, Result};

/// Latencies of many inferences, in nanoseconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Distribution {
    sorted_ns: Vec<f64>,
}

/// What is said about a distribution, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Quantiles {
    /// Mean.
    pub mean_ns: f64,
    /// Half of the inferences take no longer.
    pub p50_ns: f64,
    /// Nine of ten take no longer.
    pub p90_ns: f64,
    /// 99 of a hundred take no longer.
    pub p99_ns: f64,
}

impl Distribution {
    /// One latency for each recorded inference, in nanoseconds.
    ///
    /// # Errors
    /// [`Error::Fit`] without any, [`Error::Workload`] for one that is not a time.
    pub fn new(mut latencies_ns: Vec<f64>) -> Result<Self> {
        if latencies_ns.is_empty() {
            return Err(Error::Fit { reason: "a distribution of no inference".to_owned() });
        }
        if let Some(&value) = latencies_ns.iter().find(|ns| !(ns.is_finite() && **ns >= 0.0)) {
            return Err(Error::Workload { field: "latency_ns", value, need: "a time" });
        }
        latencies_ns.sort_by(f64::total_cmp);
        Ok(Self { sorted_ns: latencies_ns })
    }

    /// The latency that a share of the inferences, in `0..=1`, does not exceed (nearest rank).
    pub fn quantile_ns(&self, share: f64) -> f64 {
        let n = self.sorted_ns.len();
        let rank = (share.clamp(0.0, 1.0) * n as f64).ceil() as usize;
        self.sorted_ns[rank.clamp(1, n) - 1]
    }

    /// Mean and the usual quantiles.
    pub fn quantiles(&self) -> Quantiles {
        Quantiles {
            mean_ns: self.sorted_ns.iter().sum::<f64>() / self.sorted_ns.len() as f64,
            p50_ns: self.quantile_ns(0.5),
            p90_ns: self.quantile_ns(0.9),
            p99_ns: self.quantile_ns(0.99),
        }
    }

    /// Share of the inferences that take no longer than `budget_ns`, in `0..=1`.
    pub fn share_within(&self, budget_ns: f64) -> f64 {
        self.sorted_ns.partition_point(|&ns| ns <= budget_ns) as f64 / self.sorted_ns.len() as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_latencies_that_were_there() {
        let distribution = Distribution::new((1..=200).rev().map(f64::from).collect()).unwrap();
        let Quantiles { mean_ns, p50_ns, p90_ns, p99_ns } = distribution.quantiles();
        assert_eq!((mean_ns, p50_ns, p90_ns, p99_ns), (100.5, 100.0, 180.0, 198.0));
        assert_eq!(distribution.share_within(50.0), 0.25);
        assert_eq!((distribution.share_within(0.5), distribution.share_within(1e9)), (0.0, 1.0));
        assert_eq!((distribution.quantile_ns(0.0), distribution.quantile_ns(1.0)), (1.0, 200.0));
    }

    #[test]
    fn no_inference_and_no_time_are_errors() {
        assert!(Distribution::new(vec![]).is_err());
        assert!(Distribution::new(vec![1.0, f64::NAN]).is_err());
        assert!(Distribution::new(vec![1.0, -1.0]).is_err());
    }
}
