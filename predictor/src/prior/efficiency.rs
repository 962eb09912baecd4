//! The three ways in which the modelled device falls short of its peak.
//!
//! Source: LAUDNet repository, DyNetSimulator/hardware_models/utils.py.

use crate::Density;

/// Fraction of `slots`-wide rounds that `work` items keep busy: `work / (⌈work/slots⌉ · slots)`.
pub(super) fn occupancy(work: f64, slots: f64) -> f64 {
    work / ((work / slots).ceil() * slots)
}

/// Useful fraction of the memory transactions, of `transaction` values each, that read runs of `run` contiguous values
/// with `gap` values between them.
pub(super) fn coalescing(run: u32, gap: u32, transaction: u32) -> f64 {
    if run > transaction {
        occupancy(f64::from(run), f64::from(transaction))
    } else if u64::from(run) + u64::from(gap) > u64::from(transaction) {
        f64::from(run) / f64::from(transaction)
    } else {
        f64::from(run) / (f64::from(run) + f64::from(gap))
    }
}

/// Expected density of the fullest of `tiles` channel tiles of `size` channels each, when every channel is active with
/// probability `density` on its own; never below `density`.
///
/// The official code draws this maximum a hundred times at random; this is the expectation of what it draws:
/// `1/size · Σ_k (1 − F(k)^tiles)`, k in `0..size`, F the distribution function of Binomial(size, density).
pub(super) fn fullest_tile(tiles: u32, size: u32, density: Density) -> f64 {
    let p = density.get();
    if p == 0.0 || p == 1.0 {
        return p;
    }
    // Probabilities relative to the mode's, walking outwards: no factorial, no underflow where it matters.
    let n = size as usize;
    let mode = ((f64::from(size) + 1.0) * p).floor().min(f64::from(size)) as usize;
    let odds = p / (1.0 - p);
    let mut weight = vec![0.0; n + 1];
    weight[mode] = 1.0;
    for k in mode + 1..=n {
        weight[k] = weight[k - 1] * odds * (n - k + 1) as f64 / k as f64;
    }
    for k in (0..mode).rev() {
        weight[k] = weight[k + 1] * (k + 1) as f64 / ((n - k) as f64 * odds);
    }
    let total: f64 = weight.iter().sum();

    let mut above = 0.0; // P(X > k)
    let mut sum = 0.0;
    for k in (0..n).rev() {
        above += weight[k + 1] / total;
        if above >= 1.0 {
            sum += (k + 1) as f64; // every remaining term is 1
            break;
        }
        if above > 0.0 {
            sum -= (f64::from(tiles) * (-above).ln_1p()).exp_m1();
        }
    }
    (sum / f64::from(size)).max(p)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn occupancy_counts_the_last_round_as_full() {
        assert_eq!(occupancy(256.0, 256.0), 1.0);
        assert_eq!(occupancy(257.0, 256.0), 257.0 / 512.0);
        assert_eq!(occupancy(64.0, 256.0), 0.25);
    }

    #[test]
    fn coalescing_by_case() {
        assert_eq!(coalescing(12, 3, 8), 0.75);
        assert_eq!(coalescing(4, 10, 8), 0.5);
        assert_eq!(coalescing(4, 2, 8), 4.0 / 6.0);
        assert_eq!(coalescing(8, 0, 8), 1.0);
        assert_eq!(coalescing(5, 9, 1), 1.0);
    }

    #[test]
    fn fullest_tile_against_enumeration() {
        // Every subset of 3 tiles × 2 channels, by probability.
        let p = 0.3;
        let mut expected = 0.0;
        for mask in 0..64u32 {
            let active = mask.count_ones() as i32;
            let probability = f64::powi(p, active) * f64::powi(1.0 - p, 6 - active);
            let fullest = (0..3).map(|tile| (mask >> (2 * tile) & 3).count_ones()).max().unwrap();
            expected += probability * f64::from(fullest) / 2.0;
        }
        let found = fullest_tile(3, 2, Density::new(p).unwrap());
        assert!((found - expected).abs() < 1e-15, "{found} {expected}");
    }

    #[test]
    fn fullest_tile_of_extremes() {
        let tiny = Density::new(1e-300).unwrap();
        let nearly = Density::new(1.0 - f64::EPSILON).unwrap();
        for density in [Density::ZERO, tiny, nearly, Density::ONE] {
            let found = fullest_tile(7, 4096, density);
            assert!((density.get()..=1.0).contains(&found), "{density} {found}");
        }
        assert_eq!(fullest_tile(1, 1, Density::new(0.4).unwrap()), 0.4);
    }
}
