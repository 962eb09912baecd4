//! Stochastic gradient descent.

use std::collections::BTreeMap;

use anyhow::Result;
use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, InplaceOp3, Layout, Tensor, Var};

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
        let (grad, variable) = (grad.detach().contiguous()?, variable.as_tensor().detach());
        if !self.velocity.contains_key(name) {
            self.velocity.insert(name.to_owned(), variable.zeros_like()?);
        }
        let velocity = &self.velocity[name];
        let (momentum, decay) = (self.momentum as f32, self.weight_decay as f32);
        velocity.inplace_op3(&variable, &grad, &Step { kept: momentum, slope: 1.0, momentum: 0.0, decay })?;
        let lr = lr as f32;
        let step = Step { kept: 1.0 - lr * decay, slope: -lr, momentum: -lr * momentum, decay: 0.0 };
        Ok(variable.inplace_op3(velocity, &grad, &step)?)
    }
}

/// `x = kept · x + slope · (grad + decay · other) + momentum · other`.
struct Step {
    kept: f32,
    slope: f32,
    momentum: f32,
    decay: f32,
}

impl InplaceOp3 for Step {
    fn name(&self) -> &'static str {
        "sgd"
    }

    fn cpu_fwd(
        &self,
        x: &mut CpuStorage,
        x_layout: &Layout,
        other: &CpuStorage,
        other_layout: &Layout,
        grad: &CpuStorage,
        grad_layout: &Layout,
    ) -> candle_core::Result<()> {
        let range = |layout: &Layout| match layout.contiguous_offsets() {
            Some((start, end)) => Ok(start..end),
            None => candle_core::bail!("sgd: a tensor of shape {:?} is not contiguous", layout.shape()),
        };
        let CpuStorage::F32(x) = x else { candle_core::bail!("sgd: parameters are f32") };
        let (other, grad) = (other.as_slice::<f32>()?, grad.as_slice::<f32>()?);
        let read = other[range(other_layout)?].iter().zip(&grad[range(grad_layout)?]);
        for (x, (other, grad)) in x[range(x_layout)?].iter_mut().zip(read) {
            let slope = grad + self.decay * other;
            *x = self.kept * *x + self.slope * slope + self.momentum * other;
        }
        Ok(())
    }
}
