use super::{Policy, Rule};
use anyhow::{Result, ensure};
use laud_models::NetSpec;

/// The same number of units for every sample, those with the highest margins: what adapts is where an image is looked at,
/// not how much is spent on it.
#[derive(Clone, Debug)]
pub struct Top {
    amount: Amount,
    name: String,
}

/// How many units of a gate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Amount {
    /// A share, `0..=1`, rounded to the nearest number.
    Share(f32),
    /// So many, or all where a gate has fewer; below 2³¹.
    Count(u32),
}

impl Amount {
    /// Of a gate with `units` units for each sample.
    pub fn of(self, units: usize) -> usize {
        match self {
            Self::Share(share) => (f64::from(share) * units as f64).round() as usize,
            Self::Count(count) => (count as usize).min(units),
        }
    }
}

impl Top {
    /// Keeps `amount` of each gate's units.
    ///
    /// # Errors
    /// A share outside `0..=1` or a number of 2³¹ and more; a network whose gates have a single unit each (layer skipping), of
    /// which there is nothing to rank.
    pub fn new(spec: &NetSpec, amount: Amount) -> Result<Self> {
        let name = match amount {
            Amount::Share(share) => {
                ensure!((0.0..=1.0).contains(&share), "share {share} is not in 0..=1");
                format!("top {} %", 100.0 * share)
            }
            Amount::Count(count) => {
                ensure!(count < 1 << 31, "{count} units are more than any gate has");
                format!("top {count}")
            }
        };
        let several = spec.blocks.iter().any(|block| {
            block.gate.spatial.as_ref().is_some_and(|gate| gate.grid.h * gate.grid.w > 1)
                || block.gate.channel.as_ref().is_some_and(|gate| gate.groups > 1)
        });
        ensure!(
            several,
            "the highest of a gate's units: those of {} have one unit each, or there are none",
            spec.name
        );
        Ok(Self { amount, name })
    }
}

impl Policy for Top {
    fn name(&self) -> &str {
        &self.name
    }

    fn rule(&self) -> Rule<'_> {
        Rule::Top(self.amount)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use laud_models::NetConfig;

    #[test]
    fn amounts_are_numbers_of_units() {
        assert_eq!([0.0, 0.1, 0.5, 1.0].map(|share| Amount::Share(share).of(9)), [0, 1, 5, 9]);
        assert_eq!([0, 4, 99].map(|count| Amount::Count(count).of(9)), [0, 4, 9]);
    }

    #[test]
    fn gates_of_one_unit_have_no_highest() {
        let spec = |mode: &str| {
            let config = format!(r#"{{"arch": "resnet20", "dyn_mode": "{mode}", "channel_granularity": 4}}"#);
            NetConfig::from_json(&config).unwrap().build().unwrap()
        };
        assert!(Top::new(&spec("channel"), Amount::Share(0.5)).is_ok());
        assert!(
            Top::new(&spec("layer"), Amount::Share(0.5)).unwrap_err().to_string().contains("one unit each")
        );
        assert!(Top::new(&spec("channel"), Amount::Share(1.5)).is_err());
    }
}
