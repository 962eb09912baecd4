//! What training makes small.
//!
//! ```text
//! L = CE(student, labels) + α · T² · KL(softmax(teacher / T) ‖ softmax(student / T)) + β · L_features + λ · L_cost
//! L_cost = (1/N) Σ_n [max(0, F_n − up)² + max(0, lo − F_n)²] + (total / full − t)²
//! up = 1 − g · (1 − t)     lo = g · t     g = cos²(min(p, 1) · π / 2)     p = epoch / (u · epochs)
//! ```
//!
//! LAUDNet, imagenet_classification/train/main.py and utils/sparsity_loss_unify.py (`SparsityCriterion_bounds`): `t` is the
//! target share, `F_n` a block's share of its own cost; the bounds start at the target and open over the first third,
//! `u = 0.33`.

use anyhow::Result;
use candle_core::{D, Tensor};
use candle_nn::ops::log_softmax;

use super::cost::Spent;

/// Cross-entropy of `logits [n, classes]` and `labels [n]` (u32), mean over the batch.
pub fn cross_entropy(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
    Ok(candle_nn::loss::cross_entropy(logits, labels)?)
}

/// Distillation: `T² · KL(softmax(teacher / T) ‖ softmax(student / T))`, mean over the batch.
pub fn distillation(student: &Tensor, teacher: &Tensor, temperature: f64) -> Result<Tensor> {
    let teacher = log_softmax(&(teacher.detach() / temperature)?, D::Minus1)?;
    let student = log_softmax(&(student / temperature)?, D::Minus1)?;
    let divergence = (teacher.exp()? * (teacher - student)?)?.sum(D::Minus1)?.mean_all()?;
    Ok((divergence * (temperature * temperature))?)
}

/// Bounds on the blocks' shares when `progress` (`0..=1`) of the epochs are over and they open `until` a share of them:
/// lower and upper.
pub fn bounds(progress: f64, until: f64, target: f64) -> (f64, f64) {
    let opened = if progress < until { progress / until } else { 1.0 };
    let closed = (opened * std::f64::consts::FRAC_PI_2).cos().powi(2);
    (closed * target, 1.0 - closed * (1.0 - target))
}

/// How far a cost is from its `target` and blocks' shares from their bounds, `(lower, upper)`; `full` is what the network
/// without gates costs.
pub fn cost_target(spent: &Spent, full: f64, target: f64, (lower, upper): (f64, f64)) -> Result<Tensor> {
    let mut loss = ((&spent.total / full)? - target)?.sqr()?;
    if !spent.shares.is_empty() {
        let shares = Tensor::stack(&spent.shares, 0)?;
        let over = (&shares - upper)?.relu()?.sqr()?;
        let under = (shares.neg()? + lower)?.relu()?.sqr()?;
        loss = (loss + (over + under)?.mean_all()?)?;
    }
    Ok(loss)
}

#[cfg(test)]
mod tests {
    use super::bounds;

    #[test]
    fn bounds_open_from_the_target_over_a_third() {
        assert_eq!(bounds(0.0, 0.33, 0.5), (0.5, 0.5));
        let (lower, upper) = bounds(0.5, 0.33, 0.5);
        assert!(lower.abs() < 1e-12 && (upper - 1.0).abs() < 1e-12);
        let (lower, upper) = bounds(0.165, 0.33, 0.4);
        assert!((lower - 0.2).abs() < 1e-12 && (upper - 0.7).abs() < 1e-12);
        let (lower, upper) = bounds(0.0, 0.0, 0.4);
        assert!(lower.abs() < 1e-12 && (upper - 1.0).abs() < 1e-12, "open from the start");
    }
}
