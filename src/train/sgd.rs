//! Stochastic gradient descent.

use std::collections::BTreeMap;

use anyhow::Result;
use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};

/// SGD with Nesterov momentum and weight decay, as PyTorch computes it:
///
/// ```text
/// d = grad + decay · w      v = momentum · v + d      w -= lr · (d + momentum · v)
/// ```
///
/// with `v = d` at the first step.
#[derive(Clone, Debug)]
pub struct Sgd {
    /// Of the velocity.
    pub momentum: f64,
    /// Of all parameters, BatchNorm's and biases too, as the official code does.
    pub weight_decay: f64,
    /// Velocities, by name.
    pub velocity: BTreeMap<String, Tensor>,
}

impl Sgd {
    /// At rest.
    pub fn new(momentum: f64, weight_decay: f64) -> Self {
        Self { momentum, weight_decay, velocity: BTreeMap::new() }
    }

    /// One step of `variable` at learning rate `lr`; nothing where no gradient reached it.
    pub fn step(&mut self, name: &str, variable: &Var, grads: &GradStore, lr: f64) -> Result<()> {
        let Some(grad) = grads.get(variable) else { return Ok(()) };
        let grad = grad.detach();
        let slope = (&grad + (variable.as_tensor().detach() * self.weight_decay)?)?;
        let velocity = match self.velocity.get(name) {
            Some(velocity) => ((velocity * self.momentum)? + &slope)?,
            None => slope.clone(),
        };
        let step = (slope + (&velocity * self.momentum)?)?;
        variable.set(&(variable.as_tensor().detach() - (step * lr)?)?)?;
        self.velocity.insert(name.to_owned(), velocity);
        Ok(())
    }
}
