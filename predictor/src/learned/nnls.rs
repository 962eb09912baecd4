//! Least squares with coefficients that are not negative.

/// Coefficients `c ≥ 0` that minimise `Σ (terms·c / value − 1)²` over rows `(terms, value)`: the relative error.
pub(crate) fn relative(rows: &[(Vec<f64>, f64)]) -> Vec<f64> {
    let n = rows.first().map_or(0, |(terms, _)| terms.len());
    let mut gram = vec![0.0; n * n];
    let mut right = vec![0.0; n];
    for (terms, value) in rows {
        for i in 0..n {
            let a = terms[i] / value;
            right[i] += a;
            for j in 0..n {
                gram[i * n + j] += a * terms[j] / value;
            }
        }
    }
    descend(&gram, &right)
}

/// Cyclic coordinate descent on the normal equations, which converges for any Gram matrix.
fn descend(gram: &[f64], right: &[f64]) -> Vec<f64> {
    const ROUNDS: usize = 20_000;
    let n = right.len();
    let mut solution = vec![0.0f64; n];
    for _ in 0..ROUNDS {
        let mut moved = 0.0f64;
        for i in 0..n {
            let diagonal = gram[i * n + i];
            if diagonal <= 0.0 {
                continue;
            }
            let slope = right[i] - (0..n).map(|j| gram[i * n + j] * solution[j]).sum::<f64>();
            let next = (solution[i] + slope / diagonal).max(0.0);
            // In units of what the term explains, so that large coefficients of small terms do not decide.
            moved = moved.max((next - solution[i]).abs() * diagonal.sqrt());
            solution[i] = next;
        }
        if moved < 1e-9 {
            break;
        }
    }
    solution
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
            assert!((found - expected).abs() < 1e-6, "{found} instead of {expected}");
        }
        let against: Vec<(Vec<f64>, f64)> =
            (1..20).map(|i| (vec![1.0, f64::from(i)], 100.0 - f64::from(i))).collect();
        assert_eq!(relative(&against)[1], 0.0);
    }
}
