//! Regret: what it costs to choose by prediction rather than by measuring everything.

use serde::Serialize;

/// One of several ways to do the same thing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Alternative {
    /// What the model says it takes.
    pub predicted_ns: f64,
    /// What it takes.
    pub measured_ns: f64,
}

/// Regrets of many choices; a regret is the measured time of the pick ÷ that of the best, minus one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Regrets {
    /// Choices.
    pub choices: usize,
    /// Mean regret, as a fraction.
    pub mean: f64,
    /// Largest regret.
    pub worst: f64,
    /// Share of the choices that picked the best, in `0..=1`.
    pub top_1: f64,
}

/// Regret of taking the alternative that is predicted to be the fastest, the first of equals; `None` of no alternatives.
pub fn regret(alternatives: &[Alternative]) -> Option<f64> {
    let least = |of: fn(&Alternative) -> f64| alternatives.iter().min_by(|a, b| of(a).total_cmp(&of(b)));
    let (pick, best) = (least(|a| a.predicted_ns)?, least(|a| a.measured_ns)?);
    Some(pick.measured_ns / best.measured_ns - 1.0)
}

/// Regrets of many choices. A pick within `tie` (a fraction, the measurements' repeatability) of the best counts as the
/// best.
pub fn regrets<'a>(choices: impl IntoIterator<Item = &'a [Alternative]>, tie: f64) -> Regrets {
    let mut all = Regrets::default();
    for regret in choices.into_iter().filter_map(regret) {
        all.choices += 1;
        all.mean += regret;
        all.worst = all.worst.max(regret);
        all.top_1 += f64::from(u8::from(regret <= tie));
    }
    let n = all.choices.max(1) as f64;
    Regrets { mean: all.mean / n, top_1: all.top_1 / n, ..all }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(list: &[(f64, f64)]) -> Vec<Alternative> {
        list.iter().map(|&(predicted_ns, measured_ns)| Alternative { predicted_ns, measured_ns }).collect()
    }

    #[test]
    fn the_pick_is_by_prediction_and_the_price_by_measurement() {
        assert_eq!(regret(&of(&[(3.0, 10.0), (2.0, 12.0), (5.0, 9.0)])), Some(12.0 / 9.0 - 1.0));
        assert_eq!(regret(&of(&[(2.0, 8.0), (2.0, 4.0)])), Some(1.0));
        assert_eq!(regret(&[]), None);
    }

    #[test]
    fn many_choices_have_a_mean_a_worst_and_a_share_of_best_picks() {
        let right = of(&[(1.0, 1.0), (2.0, 2.0)]);
        let close = of(&[(1.0, 1.01), (2.0, 1.0)]);
        let wrong = of(&[(1.0, 1.5), (2.0, 1.0)]);
        let choices = [&right[..], &close, &wrong, &[]];
        let Regrets { choices: n, mean, worst, top_1 } = regrets(choices, 0.02);
        assert_eq!((n, worst), (3, 0.5));
        assert!((mean - 0.17).abs() < 1e-12 && (top_1 - 2.0 / 3.0).abs() < 1e-12);
    }
}
