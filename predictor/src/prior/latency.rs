use std::iter::Sum;
use std::ops::{Add, AddAssign, Mul};

/// Predicted time of an operator, a block or a network for the whole batch, by cause. All parts in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Latency {
    /// Arithmetic.
    pub compute_s: f64,
    /// DRAM and L2 traffic.
    pub memory_s: f64,
    /// Fixed launch times.
    pub launch_s: f64,
}

impl Latency {
    /// Compute + memory + launches, in seconds: nothing overlaps (the official `latency_mode="add"`).
    pub fn total_s(&self) -> f64 {
        self.compute_s + self.memory_s + self.launch_s
    }
}

impl Add for Latency {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            compute_s: self.compute_s + other.compute_s,
            memory_s: self.memory_s + other.memory_s,
            launch_s: self.launch_s + other.launch_s,
        }
    }
}

impl AddAssign for Latency {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sum for Latency {
    fn sum<I: Iterator<Item = Self>>(parts: I) -> Self {
        parts.fold(Self::default(), Add::add)
    }
}

/// Expected latency of something that runs with the given probability.
impl Mul<f64> for Latency {
    type Output = Self;

    fn mul(self, probability: f64) -> Self {
        Self {
            compute_s: self.compute_s * probability,
            memory_s: self.memory_s * probability,
            launch_s: self.launch_s * probability,
        }
    }
}
