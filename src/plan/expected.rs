use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

/// How long a block is expected to take, nanoseconds an inference: lines between densities, of patches where the block
/// has a gate about them, else of channel groups.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expected {
    /// Ascending, the last one 1.
    pub densities: Vec<f32>,
    /// As the plan says.
    pub gathered_ns: Vec<f32>,
    /// With all convolutions but the last on every pixel.
    pub dense_ns: Vec<f32>,
}

/// How long what is no block is expected to take, and what the times of a plan are about.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Times {
    /// Images of an inference.
    pub batch: usize,
    /// Threads.
    pub threads: u32,
    /// In front of the first block, nanoseconds.
    pub stem_ns: f32,
    /// Behind the last block.
    pub head_ns: f32,
}

impl Expected {
    /// Time at a density: the plan's way, or dense.
    pub fn ns(&self, density: f64, dense: bool) -> f64 {
        let times = if dense { &self.dense_ns } else { &self.gathered_ns };
        let density = density as f32;
        let after = self.densities.iter().position(|knot| *knot >= density).unwrap_or(times.len() - 1);
        let before = after.saturating_sub(1);
        let width = self.densities[after] - self.densities[before];
        let t = if width > 0.0 { ((density - self.densities[before]) / width).clamp(0.0, 1.0) } else { 1.0 };
        f64::from(times[before] + t * (times[after] - times[before]))
    }

    /// Checks that the numbers are times at densities.
    ///
    /// # Errors
    /// Says what they are instead.
    pub fn check(&self) -> Result<()> {
        let Self { densities, gathered_ns, dense_ns } = self;
        let ascending = densities.windows(2).all(|pair| pair[0] < pair[1]);
        let inside = densities.iter().all(|density| (0.0..=1.0).contains(density));
        ensure!(
            ascending && inside && !densities.is_empty(),
            "the densities {densities:?} of the expected times do not ascend within 0..=1"
        );
        for times in [gathered_ns, dense_ns] {
            let positive = times.iter().all(|ns| ns.is_finite() && *ns >= 0.0);
            ensure!(
                times.len() == densities.len() && positive,
                "expected times {times:?} at {} densities",
                densities.len()
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_between_densities() {
        let expected = Expected {
            densities: vec![0.0, 0.5, 1.0],
            gathered_ns: vec![10.0, 20.0, 40.0],
            dense_ns: vec![30.0; 3],
        };
        expected.check().unwrap();
        assert_eq!([0.0, 0.25, 0.75, 1.0].map(|d| expected.ns(d, false)), [10.0, 15.0, 30.0, 40.0]);
        assert_eq!(expected.ns(0.3, true), 30.0);
        assert!(Expected { densities: vec![0.5, 0.5, 1.0], ..expected.clone() }.check().is_err());
        assert!(Expected { dense_ns: vec![f32::NAN; 3], ..expected.clone() }.check().is_err());
        assert!(Expected { dense_ns: vec![1.0], ..expected }.check().is_err());
    }
}
