use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Mul;

use crate::{Error, Result};

/// Active fraction of the units of a block, in `0..=1` (the paper's activation rate).
///
/// Holding one proves that the number is in range, so it can be compared, hashed and used as a cache key.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Density(f64);

impl Density {
    /// Nothing is active.
    pub const ZERO: Self = Self(0.0);
    /// Everything is active.
    pub const ONE: Self = Self(1.0);

    /// `value` as a density; [`Error::Density`] if it is NaN or outside `0..=1`.
    pub fn new(value: f64) -> Result<Self> {
        if (0.0..=1.0).contains(&value) {
            // Adding zero turns -0.0 into 0.0, so that equal densities have equal bits.
            Ok(Self(value + 0.0))
        } else {
            Err(Error::Density { value })
        }
    }

    /// The fraction, in `0..=1`.
    pub fn get(self) -> f64 {
        self.0
    }
}

/// Density of what is active in both of two independent choices.
impl Mul for Density {
    type Output = Self;

    fn mul(self, other: Self) -> Self {
        Self(self.0 * other.0)
    }
}

impl TryFrom<f64> for Density {
    type Error = Error;

    fn try_from(value: f64) -> Result<Self> {
        Self::new(value)
    }
}

impl fmt::Display for Density {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

// Never NaN and never -0.0, by construction.
impl Eq for Density {}

impl Hash for Density {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.to_bits().hash(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_fractions_are_densities() {
        for bad in [f64::NAN, -1e-9, 1.0 + 1e-9, f64::INFINITY] {
            assert!(matches!(Density::new(bad), Err(Error::Density { .. })), "{bad}");
        }
        assert_eq!(Density::new(-0.0).unwrap().get().to_bits(), 0);
    }
}
