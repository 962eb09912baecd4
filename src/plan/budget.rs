//! What units cost, for a [`Budget`] on each image.

use super::{Activity, ActivityTable, ExecutionPlan, Setting, lower, network_ns};
use crate::gate::Budget;
use anyhow::{Result, ensure};
use laud_models::{BlockRates, NetSpec};
use laud_predictor::profile::Profile;

/// What every image may spend.
#[derive(Clone, Copy, Debug)]
pub enum Spending<'a> {
    /// A share of the multiply-accumulates with everything active, `0..=1`.
    Macs(f64),
    /// Milliseconds of an inference of one image, as a profile predicts them.
    Milliseconds(f64, &'a Profile, Setting),
}

/// Costs of an image with every gate at one density.
struct Costs {
    /// Of what is no block.
    around: f64,
    blocks: Vec<f64>,
}

impl Costs {
    fn total(&self) -> f64 {
        self.around + self.blocks.iter().sum::<f64>()
    }
}

/// Prices units so that an image which spends evenly reaches the limit. A unit costs what it does on average at the density
/// that the limit allows, in clustered masks: their halo costs too.
///
/// # Errors
/// When nothing is left behind what is never skipped, or the network has no gates or blocks with two.
pub fn budget(spec: &NetSpec, name: String, spending: Spending<'_>) -> Result<Budget> {
    let table = ActivityTable::new(spec, &[1])?;
    let at = |density: f64| -> Result<Costs> {
        let activities: Vec<Activity> = (spec.blocks.iter().enumerate())
            .map(|(i, block)| {
                let of = |gated: bool| if gated { density } else { 1.0 };
                table.at(i, 1, of(block.gate.spatial.is_some()), of(block.gate.channel.is_some()))
            })
            .collect();
        match spending {
            Spending::Macs(_) => macs(spec, &activities),
            Spending::Milliseconds(_, profile, setting) => Ok(time(spec, profile, &activities, &setting)),
        }
    };
    let (nothing, everything) = (at(0.0)?, at(1.0)?);
    let limit = match spending {
        Spending::Macs(share) => share * everything.total(),
        Spending::Milliseconds(ms, ..) => 1e6 * ms,
    };
    ensure!(limit > 0.0 && limit.is_finite(), "a budget of {limit}");
    let (mut low, mut high) = (0.0, 1.0);
    if everything.total() > limit {
        for _ in 0..30 {
            let middle = 0.5 * (low + high);
            if at(middle)?.total() > limit { high = middle } else { low = middle }
        }
    }
    let (density, level) = (high, at(high)?);
    let least = 1e-9 * everything.total();
    let unit = |(i, block): (usize, &laud_models::BlockSpec)| {
        let patches = block.gate.spatial.as_ref().map(|gate| gate.grid.h * gate.grid.w);
        let units = patches.or(block.gate.channel.as_ref().map(|gate| gate.groups)).unwrap_or(1) as f64;
        // A gate with one unit keeps all or nothing of an image.
        let (costs, density) = if units == 1.0 { (&everything, 1.0) } else { (&level, density) };
        ((costs.blocks[i] - nothing.blocks[i]) / (density * units)).max(least)
    };
    let units: Vec<f64> = spec.blocks.iter().enumerate().map(unit).collect();
    Budget::new(name, spec, &units, nothing.total(), limit)
}

fn macs(spec: &NetSpec, activities: &[Activity]) -> Result<Costs> {
    let rates = spec.blocks.iter().zip(activities).map(|(block, activity)| {
        let full = Activity::full(block);
        let of = |i: usize| (activity.rows[i] / full.rows[i].max(1.0)).min(1.0);
        BlockRates { channel: activity.channels, spatial: (0..block.convs.len()).map(of).collect() }
    });
    let macs = spec.macs(&rates.collect::<Vec<_>>())?;
    let blocks = macs.blocks.iter().map(|block| block.sparse + block.squeeze as f64).collect();
    Ok(Costs { around: (macs.stem + macs.pool + macs.head) as f64, blocks })
}

fn time(spec: &NetSpec, profile: &Profile, activities: &[Activity], setting: &Setting) -> Costs {
    let lowered = lower(spec, &ExecutionPlan::sparse(spec), activities, setting);
    let around = network_ns(profile, lowered.stem.iter().chain(&lowered.head));
    Costs { around, blocks: lowered.blocks.iter().map(|calls| network_ns(profile, calls)).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::UnitKind;
    use laud_models::NetConfig;

    #[test]
    fn limits_are_shares_of_what_everything_costs() {
        for mode in ["layer", "spatial", "channel"] {
            let config = format!(
                r#"{{"arch": "resnet20", "dyn_mode": "{mode}", "spatial_granularity": 2, "channel_granularity": 4}}"#
            );
            let spec = NetConfig::from_json(&config).unwrap().build().unwrap();
            let of = |share| budget(&spec, "b".into(), Spending::Macs(share));
            assert!(of(0.001).unwrap_err().to_string().contains("never skipped"), "{mode}");
            assert!(of(-1.0).is_err());
            let policy = of(0.5).unwrap();
            let crate::gate::Rule::Paid(prices) = crate::gate::Policy::rule(&policy) else {
                panic!("{mode}")
            };
            assert!((0.3..0.6).contains(&prices.limit), "{mode}: {}", prices.limit);
            let kind = if mode == "channel" { UnitKind::ChannelGroup } else { UnitKind::Patch };
            let pace: Vec<f32> = (0..spec.blocks.len()).map(|block| prices.of(block, kind).pace).collect();
            assert!(pace.windows(2).all(|pair| pair[0] < pair[1]), "{mode}: {pace:?}");
            assert!((pace[8] / prices.limit - 1.0).abs() < 1e-5, "{mode}");
        }
    }
}
