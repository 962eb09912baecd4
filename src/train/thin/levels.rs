//! How many groups every block keeps.

use anyhow::{Result, ensure};

use crate::train::cost::Cost;

/// Levels that are measured, beside everything.
const LEVELS: usize = 8;

/// Numbers of groups to measure, from many to one.
pub(super) fn of(groups: usize) -> Vec<usize> {
    let mut levels: Vec<usize> = (1..LEVELS).rev().map(|level| (groups * level).div_ceil(LEVELS)).collect();
    levels.push(1);
    levels.dedup();
    levels.retain(|level| *level < groups);
    levels
}

/// What keeping fewer groups of a block costs, by groups: `0` with all of them, convex.
#[derive(Clone, Debug)]
pub(super) struct Curve {
    /// What each group costs that is given up, the first one first.
    steps: Vec<f64>,
}

impl Curve {
    /// Through measured `(groups, loss)`, fewer and fewer groups.
    pub(super) fn new(groups: usize, points: Vec<(usize, f64)>) -> Self {
        // Slopes between neighbours; where one is less steep than the one before, both get their mean.
        let mut pools: Vec<(f64, usize)> = Vec::new();
        let mut from = (groups, 0.0);
        for (to, loss) in points {
            let mut pool = (loss - from.1, from.0 - to);
            from = (to, loss);
            while let Some(last) =
                pools.last().filter(|last| last.0 * pool.1 as f64 >= pool.0 * last.1 as f64)
            {
                pool = (pool.0 + last.0, pool.1 + last.1);
                pools.pop();
            }
            pools.push(pool);
        }
        let steps = pools.iter().flat_map(|(loss, steps)| std::iter::repeat_n(loss / *steps as f64, *steps));
        Self { steps: steps.collect() }
    }
}

/// # Errors
/// When the cost of one group a block, of so many, is above `target` of the full one.
pub(super) fn check_reach(groups: &[Option<usize>], cost: &Cost, target: f64) -> Result<()> {
    let rates: Vec<f64> = groups.iter().map(|groups| groups.map_or(1.0, |all| 1.0 / all as f64)).collect();
    let left = cost.at_channel_rates(&rates) / cost.full();
    ensure!(
        left <= target,
        "a target of {target} is out of reach: with one group a block, {left:.3} of the cost is left"
    );
    Ok(())
}

/// Groups that each block keeps, so that the cost is at most `target` of the full one: one group after the other goes where that
/// loses least for what it saves, but never a block's last.
pub(super) fn choose(curves: &[Option<Curve>], cost: &Cost, target: f64) -> Vec<Option<usize>> {
    let all = |curve: &Curve| curve.steps.len() + 1;
    let mut gone = vec![0; curves.len()];
    let mut rates = vec![1.0; curves.len()];
    let rate = |curve: &Curve, gone: usize| (all(curve) - gone) as f64 / all(curve) as f64;
    let mut now = cost.at_channel_rates(&rates);
    while now > target * cost.full() {
        let mut best: Option<(f64, usize, f64)> = None;
        for (block, curve) in curves.iter().enumerate() {
            let Some((curve, loss)) =
                curve.as_ref().and_then(|curve| Some((curve, curve.steps.get(gone[block])?)))
            else {
                continue;
            };
            let before = std::mem::replace(&mut rates[block], rate(curve, gone[block] + 1));
            let then = cost.at_channel_rates(&rates);
            rates[block] = before;
            let price = loss / (now - then).max(f64::MIN_POSITIVE);
            if best.is_none_or(|(least, ..)| price < least) {
                best = Some((price, block, then));
            }
        }
        let Some((_, block, then)) = best else { break };
        gone[block] += 1;
        now = then;
        rates[block] = curves[block].as_ref().map_or(1.0, |curve| rate(curve, gone[block]));
    }
    curves.iter().zip(gone).map(|(curve, gone)| curve.as_ref().map(|curve| all(curve) - gone)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_come_down_to_one_group() {
        assert_eq!(of(16), [14, 12, 10, 8, 6, 4, 2, 1]);
        assert_eq!(of(8), [7, 6, 5, 4, 3, 2, 1]);
        assert_eq!(of(3), [2, 1]);
        assert!(of(1).is_empty());
    }

    #[test]
    fn a_curve_is_convex_and_ends_where_it_was_measured() {
        let curve = Curve::new(8, vec![(6, 0.4), (4, 0.5), (3, 0.6), (1, 3.0)]);
        assert_eq!(curve.steps.len(), 7);
        assert!(curve.steps.windows(2).all(|pair| pair[0] <= pair[1]));
        assert!((curve.steps.iter().sum::<f64>() - 3.0).abs() < 1e-12);
        assert!((curve.steps[..5].iter().sum::<f64>() - 0.6).abs() < 1e-12);
        let better = Curve::new(4, vec![(2, -0.2), (1, 0.1)]);
        assert_eq!(better.steps, [-0.1, -0.1, 0.30000000000000004]);
    }
}
