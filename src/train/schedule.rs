//! What changes from step to step.

/// Learning rate at `step` of `steps`: half a cosine from `first` to 0.
pub fn cosine(first: f64, step: usize, steps: usize) -> f64 {
    0.5 * first * (1.0 + (std::f64::consts::PI * step as f64 / steps.max(1) as f64).cos())
}

/// Temperature at `step` of `steps`: from `first` to `last` by the same factor every step.
pub fn exponential(first: f64, last: f64, step: usize, steps: usize) -> f64 {
    first * (last / first).powf(step as f64 / steps.max(1) as f64)
}

/// Share of the full cost to aim at when `progress` of the training is over: from 1 down to `target`, evenly, until `by`.
pub fn lowered(target: f64, by: f64, progress: f64) -> f64 {
    let there = if progress < by { progress / by } else { 1.0 };
    1.0 - there * (1.0 - target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_start_and_end_where_they_say() {
        assert_eq!(cosine(0.08, 0, 10), 0.08);
        assert!((cosine(0.08, 5, 10) - 0.04).abs() < 1e-12 && cosine(0.08, 10, 10).abs() < 1e-12);
        assert_eq!(exponential(5.0, 0.1, 0, 100), 5.0);
        assert!((exponential(5.0, 0.1, 100, 100) - 0.1).abs() < 1e-12);
        assert!((exponential(5.0, 0.1, 50, 100) - 0.5f64.sqrt()).abs() < 1e-12);
        let near = |found: f64, want: f64| (found - want).abs() < 1e-12;
        assert!(near(lowered(0.4, 0.5, 0.0), 1.0) && near(lowered(0.4, 0.5, 0.25), 0.7));
        assert!(near(lowered(0.4, 0.5, 0.5), 0.4) && near(lowered(0.4, 0.5, 0.9), 0.4));
        assert!(near(lowered(0.4, 0.0, 0.0), 0.4));
    }
}
