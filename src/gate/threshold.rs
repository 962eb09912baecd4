use super::{Policy, Rule};
use anyhow::{Result, ensure};

/// The trained rule with its threshold moved: one knob from everything (−∞) over the trained density (0) to nothing (∞).
#[derive(Clone, Debug)]
pub struct Threshold {
    at_least: f32,
    name: String,
}

impl Threshold {
    /// Keeps where the margin is at least `at_least`.
    ///
    /// # Errors
    /// NaN.
    pub fn new(at_least: f32) -> Result<Self> {
        ensure!(!at_least.is_nan(), "a threshold that is no number");
        Ok(Self { at_least, name: format!("threshold {at_least}") })
    }
}

impl Policy for Threshold {
    fn name(&self) -> &str {
        &self.name
    }

    fn rule(&self) -> Rule<'_> {
        Rule::Margin { at_least: self.at_least }
    }
}
