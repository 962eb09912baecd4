//! [`Scales`]: a known split of times into kinds, fitted to another device with a handful of measurements.

/// How far a device is expected to be from the split, in standard deviations of logarithms.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Priors<const N: usize> {
    /// Of a factor that all kinds share.
    pub(crate) common: f64,
    /// Of each kind's own factor.
    pub(crate) each: [f64; N],
    /// Of a measurement around the truth.
    pub(crate) noise: f64,
}

/// A factor for every kind.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Scales<const N: usize> {
    logs: [f64; N],
}

impl<const N: usize> Scales<N> {
    /// The most likely factors: `rows` are pairs of parts by kind and the measured whole.
    ///
    /// Outliers count less (a soft absolute error), as a vendor's library may take another algorithm here.
    pub(crate) fn fit(rows: &[([f64; N], f64)], priors: &Priors<N>) -> Self {
        const ROUNDS: usize = 60;
        let mut logs = [0.0; N];
        let mut damping = 1e-3;
        let mut cost = Self::cost(&logs, rows, priors);
        for _ in 0..ROUNDS {
            let mut gram = precision(priors);
            let mut right: [f64; N] =
                std::array::from_fn(|i| -(0..N).map(|j| gram[i][j] * logs[j]).sum::<f64>());
            for (parts, measured) in rows {
                let scaled: [f64; N] = std::array::from_fn(|i| parts[i] * f64::exp(logs[i]));
                let whole: f64 = scaled.iter().sum();
                let off = (measured / whole).ln() / priors.noise;
                // Derivative of the soft absolute error 2(√(1 + z²) − 1), as a weight on z².
                let weight = 1.0 / (1.0 + off * off).sqrt();
                let slope: [f64; N] = std::array::from_fn(|i| scaled[i] / whole / priors.noise);
                for i in 0..N {
                    right[i] += weight * slope[i] * off;
                    for j in 0..N {
                        gram[i][j] += weight * slope[i] * slope[j];
                    }
                }
            }
            for (i, row) in gram.iter_mut().enumerate() {
                row[i] *= 1.0 + damping;
            }
            let Some(step) = solve(gram, right) else { break };
            let next = std::array::from_fn(|i| (logs[i] + step[i]).clamp(-5.0, 5.0));
            let next_cost = Self::cost(&next, rows, priors);
            if next_cost < cost {
                let gained = cost - next_cost;
                (logs, cost, damping) = (next, next_cost, damping * 0.3);
                if gained < 1e-12 {
                    break;
                }
            } else {
                damping *= 10.0;
            }
        }
        Self { logs }
    }

    fn cost(logs: &[f64; N], rows: &[([f64; N], f64)], priors: &Priors<N>) -> f64 {
        let precision = precision(priors);
        let prior: f64 = (0..N)
            .flat_map(|i| (0..N).map(move |j| (i, j)))
            .map(|(i, j)| logs[i] * precision[i][j] * logs[j])
            .sum();
        let error = |(parts, measured): &([f64; N], f64)| {
            let whole: f64 = parts.iter().zip(logs).map(|(part, log)| part * log.exp()).sum();
            let off = (measured / whole).ln() / priors.noise;
            2.0 * ((1.0 + off * off).sqrt() - 1.0)
        };
        0.5 * (prior + rows.iter().map(error).sum::<f64>())
    }

    /// The factors.
    pub(crate) fn factors(&self) -> [f64; N] {
        self.logs.map(f64::exp)
    }

    /// The whole of these parts here.
    pub(crate) fn total(&self, parts: &[f64; N]) -> f64 {
        parts.iter().zip(self.factors()).map(|(part, factor)| part * factor).sum()
    }
}

/// Inverse of the covariance `diag(each²) + common²` (Sherman and Morrison).
fn precision<const N: usize>(priors: &Priors<N>) -> [[f64; N]; N] {
    let inverse = priors.each.map(|sd| 1.0 / (sd * sd));
    let common = priors.common * priors.common;
    let shared = common / (1.0 + common * inverse.iter().sum::<f64>());
    std::array::from_fn(|i| {
        std::array::from_fn(|j| {
            let own = if i == j { inverse[i] } else { 0.0 };
            own - shared * inverse[i] * inverse[j]
        })
    })
}

/// Solves a positive definite system by elimination; `None` when it is not.
fn solve<const N: usize>(mut a: [[f64; N]; N], mut b: [f64; N]) -> Option<[f64; N]> {
    for i in 0..N {
        if !(a[i][i] > 0.0 && a[i][i].is_finite()) {
            return None;
        }
        for k in i + 1..N {
            let factor = a[k][i] / a[i][i];
            let row = a[i];
            a[k].iter_mut().zip(row).for_each(|(to, from)| *to -= factor * from);
            b[k] -= factor * b[i];
        }
    }
    for i in (0..N).rev() {
        b[i] = (b[i] - (i + 1..N).map(|j| a[i][j] * b[j]).sum::<f64>()) / a[i][i];
    }
    Some(b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    const PRIORS: Priors<3> = Priors { common: 0.5, each: [0.5; 3], noise: 0.05 };

    fn rows(n: usize, factors: [f64; 3]) -> Vec<([f64; 3], f64)> {
        let mut random = Random::new(9);
        (0..n)
            .map(|_| {
                let parts = std::array::from_fn(|_| random.unit() + 0.01);
                (parts, parts.iter().zip(factors).map(|(part, factor)| part * factor).sum())
            })
            .collect()
    }

    #[test]
    fn many_measurements_give_the_factors_whatever_was_expected() {
        let found = Scales::fit(&rows(400, [2.0, 0.5, 1.3]), &PRIORS).factors();
        for (found, expected) in found.iter().zip([2.0, 0.5, 1.3]) {
            assert!((found / expected - 1.0).abs() < 0.05, "{found} instead of {expected}");
        }
    }

    #[test]
    fn no_measurement_changes_nothing_and_an_outlier_little() {
        assert_eq!(Scales::fit(&[], &PRIORS).factors(), [1.0; 3]);
        let mut some = rows(20, [2.0; 3]);
        let before = Scales::fit(&some, &PRIORS).total(&[1.0; 3]);
        some[0].1 *= 100.0;
        let after = Scales::fit(&some, &PRIORS).total(&[1.0; 3]);
        assert!((after / before - 1.0).abs() < 0.05, "{before} → {after}");
    }
}
