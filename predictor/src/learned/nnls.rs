//! Least squares with coefficients that are not negative.

/// Coefficients `c ≥ 0` with a small error of `ln(terms·c / value)` over rows `(terms, value)`.
///
/// Starts from the least squares of the relative error, which prefers predictions that are too small, and weights rows anew
/// until the weighted squares are those of the logarithm; rows that stay far off count less.
pub(crate) fn relative(rows: &[(Vec<f64>, f64)]) -> Vec<f64> {
    const ROUNDS: usize = 6;
    /// Error from which on a row counts less.
    const FAR: f64 = 0.1;
    let mut weights = vec![1.0; rows.len()];
    let mut solution = vec![0.0; rows.first().map_or(0, |(terms, _)| terms.len())];
    for _ in 0..ROUNDS {
        let (gram, right) = normal(rows, &weights);
        descend(&gram, &right, &mut solution);
        for ((terms, value), weight) in rows.iter().zip(&mut weights) {
            let fitted: f64 = terms.iter().zip(&solution).map(|(term, each)| term * each).sum();
            let ratio = (fitted / value).clamp(0.05, 20.0);
            let off = ratio.ln();
            // (ratio − 1)² times this is the logarithm's square.
            let square = if off.abs() < 1e-6 { 1.0 } else { (off / (ratio - 1.0)).powi(2) };
            *weight = square * (FAR / off.abs()).min(1.0);
        }
    }
    solution
}

/// Gram matrix and right side of the weighted squares of the relative error.
fn normal(rows: &[(Vec<f64>, f64)], weights: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let n = rows.first().map_or(0, |(terms, _)| terms.len());
    let mut gram = vec![0.0; n * n];
    let mut right = vec![0.0; n];
    for ((terms, value), weight) in rows.iter().zip(weights) {
        for i in (0..n).filter(|&i| terms[i] != 0.0) {
            let a = weight * terms[i] / value;
            right[i] += a;
            gram[i * n..(i + 1) * n].iter_mut().zip(terms).for_each(|(sum, term)| *sum += a * term / value);
        }
    }
    (gram, right)
}

/// Cyclic coordinate descent on the normal equations, which converges for any Gram matrix.
fn descend(gram: &[f64], right: &[f64], solution: &mut [f64]) {
    const ROUNDS: usize = 3_000;
    let n = right.len();
    for _ in 0..ROUNDS {
        let mut moved = 0.0f64;
        for i in 0..n {
            let diagonal = gram[i * n + i];
            if diagonal <= 0.0 {
                continue;
            }
            let row = &gram[i * n..(i + 1) * n];
            let slope = right[i] - row.iter().zip(&*solution).map(|(g, x)| g * x).sum::<f64>();
            let next = (solution[i] + slope / diagonal).max(0.0);
            // In units of what the term explains, so that large coefficients of small terms do not decide.
            moved = moved.max((next - solution[i]).abs() * diagonal.sqrt());
            solution[i] = next;
        }
        if moved < 1e-7 {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recovers_coefficients_and_never_goes_below_zero() {
        let rows: Vec<(Vec<f64>, f64)> = (1..40)
            .map(|i| {
                let (a, b, c) = (f64::from(i), f64::from(i * i % 17 + 1), f64::from(i % 5));
                (vec![a, b, c], 3.0 * a + 0.5 * b)
            })
            .collect();
        let found = relative(&rows);
        for (found, expected) in found.iter().zip([3.0, 0.5, 0.0]) {
            assert!((found - expected).abs() < 1e-3, "{found} instead of {expected}");
        }
        let against: Vec<(Vec<f64>, f64)> =
            (1..20).map(|i| (vec![1.0, f64::from(i)], 100.0 - f64::from(i))).collect();
        assert_eq!(relative(&against)[1], 0.0);
    }

    #[test]
    fn a_few_wild_rows_do_not_decide() {
        let mut rows: Vec<(Vec<f64>, f64)> =
            (1..60).map(|i| (vec![1.0, f64::from(i)], 10.0 + 2.0 * f64::from(i))).collect();
        rows.iter_mut().step_by(12).for_each(|row| row.1 *= 4.0);
        let found = relative(&rows);
        assert!((found[1] - 2.0).abs() < 0.1 && (found[0] - 10.0).abs() < 1.5, "{found:?}");
    }
}
