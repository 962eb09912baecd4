use super::{Policy, Rule, UnitKind};
use anyhow::{Result, ensure};
use laud_models::NetSpec;

/// A limit on what each sample costs: the trained rule, highest margins first, as far as the sample can pay.
///
/// Blocks come one after the other, so a sample's money is spread over them in proportion to what they cost with everything
/// active; what a block does not need is left to those behind it. With gates that keep less than the budget nothing changes.
#[derive(Clone, Debug)]
pub struct Budget {
    name: String,
    prices: Prices,
}

/// What units cost, and what may be spent: shares of what all units of a sample cost together.
#[derive(Clone, Debug, PartialEq)]
pub struct Prices {
    /// The smallest margin that is worth any money.
    pub at_least: f32,
    /// What a sample may spend in all.
    pub limit: f32,
    /// Of each block: patches, channel groups.
    blocks: Vec<[Price; 2]>,
}

/// What a unit of a gate costs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Price {
    /// Of a unit, above 0.
    pub unit: f32,
    /// What a sample should have spent at most behind this gate.
    pub pace: f32,
}

impl Prices {
    /// Of a gate's units.
    pub fn of(&self, block: usize, kind: UnitKind) -> Price {
        self.blocks[block][usize::from(kind == UnitKind::ChannelGroup)]
    }
}

impl Budget {
    /// Lets every sample spend `limit`. `units` is the cost of one unit of each block; `fixed` what is spent whatever is
    /// decided. All three are in the same unit, such as multiply-accumulates or nanoseconds.
    ///
    /// # Errors
    /// When nothing is left behind `fixed`, costs are not positive numbers or not one a block, or a block has two gates.
    pub fn new(name: String, spec: &NetSpec, units: &[f64], fixed: f64, limit: f64) -> Result<Self> {
        ensure!(
            units.len() == spec.blocks.len(),
            "costs of {} blocks for the {} of {}",
            units.len(),
            spec.blocks.len(),
            spec.name
        );
        ensure!(fixed.is_finite() && limit.is_finite(), "costs that are no numbers");
        let mut all = 0.0;
        let mut gates = Vec::new();
        for (block, &unit) in spec.blocks.iter().zip(units) {
            let patches = block.gate.spatial.as_ref().map(|gate| gate.grid.h * gate.grid.w);
            let groups = block.gate.channel.as_ref().map(|gate| gate.groups);
            ensure!(
                patches.is_none() || groups.is_none(),
                "{}: a budget prices patches or channel groups, not both",
                block.name
            );
            let count = patches.or(groups).unwrap_or(0);
            ensure!(count == 0 || unit > 0.0 && unit.is_finite(), "{}: a unit that costs {unit}", block.name);
            all += count as f64 * unit;
            gates.push((count, usize::from(groups.is_some())));
        }
        ensure!(all > 0.0, "{} has no gates: nothing to save", spec.name);
        let left = limit - fixed;
        ensure!(left > 0.0, "what is never skipped costs {:.1} % of the limit", 100.0 * fixed / limit);
        let limit = (left / all).min(1.0);
        let mut before = 0.0;
        let price = |(&unit, &(count, kind)): (&f64, &(usize, usize))| {
            before += count as f64 * unit / all;
            let mut prices = [Price::default(); 2];
            prices[kind] = Price { unit: (unit / all) as f32, pace: (limit * before) as f32 };
            prices
        };
        let blocks = units.iter().zip(&gates).map(price).collect();
        Ok(Self { name, prices: Prices { at_least: 0.0, limit: limit as f32, blocks } })
    }
}

impl Policy for Budget {
    fn name(&self) -> &str {
        &self.name
    }

    fn rule(&self) -> Rule<'_> {
        Rule::Paid(&self.prices)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use laud_models::NetConfig;

    #[test]
    fn money_is_spread_in_proportion_and_what_is_fixed_is_paid_first() {
        let config = r#"{"arch": "resnet20", "depths": [2, 2], "widths": [8, 8], "stem_width": 8, "dyn_mode": "layer"}"#;
        let spec = NetConfig::from_json(config).unwrap().build().unwrap();
        let budget = |units: &[f64], limit| Budget::new("b".into(), &spec, units, 10.0, limit);
        let Budget { prices, .. } = budget(&[10.0, 30.0, 20.0, 20.0], 50.0).unwrap();
        assert_eq!(prices.limit, 0.5);
        let pace: Vec<f32> = (0..4).map(|block| prices.of(block, UnitKind::Patch).pace).collect();
        assert_eq!(pace, [0.0625, 0.25, 0.375, 0.5]);
        assert_eq!(prices.of(1, UnitKind::Patch).unit, 0.375);
        assert!(budget(&[10.0; 4], 10.0).unwrap_err().to_string().contains("100.0 %"));
        assert!(budget(&[0.0; 4], 50.0).is_err());
        assert!(budget(&[1.0; 3], 50.0).is_err());
    }
}
