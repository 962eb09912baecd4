use super::{Decisions, Policy, Rule, UnitKind, Units};
use crate::random::Random;
use anyhow::{Result, ensure};

/// Keeps every unit with the same probability, whatever the image: what a learned gate has to beat. The same seed gives
/// the same decisions.
#[derive(Clone, Debug)]
pub struct RandomRate {
    rate: f64,
    seed: u64,
    name: String,
}

impl RandomRate {
    /// Keeps with probability `rate`.
    ///
    /// # Errors
    /// When that is not in `0..=1`.
    pub fn new(rate: f64, seed: u64) -> Result<Self> {
        ensure!((0.0..=1.0).contains(&rate), "rate {rate} is not in 0..=1");
        Ok(Self { rate, seed, name: format!("random {rate}") })
    }
}

impl Policy for RandomRate {
    fn name(&self) -> &str {
        &self.name
    }

    fn rule(&self) -> Rule<'_> {
        Rule::Given(self)
    }
}

impl Decisions for RandomRate {
    fn decide(&self, units: Units, keep: &mut [bool]) {
        let kind = if units.kind == UnitKind::Patch { "patch" } else { "channel group" };
        for (sample, keep) in keep.chunks_mut(units.per_sample.max(1)).enumerate() {
            let stream = (units.block as u64) << 32 | (units.first + sample) as u64;
            let mut random = Random::named(self.seed ^ stream, kind);
            keep.iter_mut().for_each(|keep| *keep = random.uniform() < self.rate);
        }
    }
}
