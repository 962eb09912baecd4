//! Checkpoint tensors → the folded, `krsc` operands of the kernels.

use anyhow::{Context, Result, ensure};
use laud_kernels::{Act, ConvGeometry, Extent};
use laud_models::{Activation, ConvSpec, LinearSpec, MapSize, NormSpec};

/// Where tensors come from: a checkpoint, a map in memory, a generator of random ones.
pub trait Weights {
    /// All values of tensor `name`, row-major.
    ///
    /// # Errors
    /// When there is none or it cannot be read.
    fn tensor(&self, name: &str) -> Result<Vec<f32>>;
}

/// A convolution with its BatchNorm folded.
pub(super) struct Folded {
    pub(super) geometry: ConvGeometry,
    /// `[c_out, k, k, c_in / groups]`.
    pub(super) weight: Vec<f32>,
    /// `[c_out]`.
    pub(super) bias: Vec<f32>,
    /// `[c_out]`: what the activation makes of a channel whose convolution output is zero.
    pub(super) zeroed: Vec<f32>,
    pub(super) act: Act,
}

pub(super) fn extent(size: MapSize) -> Extent {
    Extent { h: size.h, w: size.w }
}

pub(super) fn act(activation: Activation) -> Act {
    match activation {
        Activation::None => Act::None,
        Activation::Relu => Act::Relu,
        Activation::Relu6 => Act::Relu6,
    }
}

/// Units of what a layer reads and of what it writes, by channel; `None` where values are stored as they are.
pub(super) type Between<'a> = Option<(&'a [f32], &'a [f32])>;

impl Folded {
    /// The same convolution of values that are stored in units.
    ///
    /// # Errors
    /// Weights that are beyond what f32 holds then.
    pub(super) fn between(mut self, units: Between<'_>) -> Result<Self> {
        let Some((from, to)) = units else { return Ok(self) };
        let (inputs, outputs) = (self.geometry.group_in(), self.geometry.group_out());
        let filter = self.weight.len() / self.geometry.c_out;
        for (o, (weight, to)) in self.weight.chunks_exact_mut(filter).zip(to).enumerate() {
            let from = &from[o / outputs * inputs..][..inputs];
            for tap in weight.chunks_exact_mut(inputs) {
                tap.iter_mut().zip(from).for_each(|(weight, from)| *weight *= from / to);
            }
        }
        for values in [&mut self.bias, &mut self.zeroed] {
            values.iter_mut().zip(to).for_each(|(value, to)| *value /= to);
        }
        let mut all = self.weight.iter().chain(&self.bias).chain(&self.zeroed);
        ensure!(all.all(|value| value.is_finite()), "weights are too large for the ranges of their channels");
        self.act = in_units(self.act);
        Ok(self)
    }
}

/// What an activation is to values in units: ReLU6 clips where whole numbers end.
pub(super) fn in_units(act: Act) -> Act {
    if act == Act::Relu6 { Act::Relu } else { act }
}

/// The same layer `[…, c]` of values that are stored in units.
pub(super) fn columns(weight: &mut [f32], units: Option<&[f32]>) {
    let Some(units) = units else { return };
    for row in weight.chunks_exact_mut(units.len()) {
        row.iter_mut().zip(units).for_each(|(weight, unit)| *weight *= unit);
    }
}

/// What the activation makes of each channel of a convolution whose output is zero.
pub(super) fn zeroed(weights: &dyn Weights, spec: &ConvSpec) -> Result<Vec<f32>> {
    let zeroed = norm(weights, spec.norm.as_ref(), spec.bias.as_deref(), spec.c_out)?.zeroed;
    Ok(zeroed.into_iter().map(|z| act(spec.act).apply(z)).collect())
}

/// Reads and folds one convolution whose input map has size `input`.
pub(super) fn conv(weights: &dyn Weights, spec: &ConvSpec, input: MapSize) -> Result<Folded> {
    let output = spec.output_size(input).with_context(|| {
        format!("{}: a {}×{} map is smaller than its kernel", spec.weight, input.h, input.w)
    })?;
    let geometry = ConvGeometry {
        input: extent(input),
        output: extent(output),
        c_in: spec.c_in,
        c_out: spec.c_out,
        kernel: spec.kernel,
        stride: spec.stride,
        pad_top: spec.pad.top,
        pad_left: spec.pad.left,
        groups: spec.groups,
    };
    let norm = norm(weights, spec.norm.as_ref(), spec.bias.as_deref(), spec.c_out)?;
    let source = tensor(weights, &spec.weight, geometry.weights())?;
    let (taps, inputs) = (spec.kernel * spec.kernel, geometry.group_in());
    let mut weight = vec![0.0; source.len()];
    for (o, (krsc, kcrs)) in
        weight.chunks_exact_mut(taps * inputs).zip(source.chunks_exact(taps * inputs)).enumerate()
    {
        for c in 0..inputs {
            for tap in 0..taps {
                krsc[tap * inputs + c] = kcrs[c * taps + tap] * norm.scale[o];
            }
        }
    }
    let act = act(spec.act);
    let zeroed = norm.zeroed.iter().map(|&z| act.apply(z)).collect();
    Ok(Folded { geometry, weight, bias: norm.bias, zeroed, act })
}

/// `y = scale · conv + bias`, and what `y` is where the mask zeroed `conv` and its bias.
struct Norm {
    scale: Vec<f32>,
    bias: Vec<f32>,
    zeroed: Vec<f32>,
}

fn norm(weights: &dyn Weights, spec: Option<&NormSpec>, conv_bias: Option<&str>, c: usize) -> Result<Norm> {
    let conv_bias = conv_bias.map_or_else(|| Ok(vec![0.0; c]), |name| tensor(weights, name, c))?;
    let Some(spec) = spec else {
        // Folded into the convolution: its bias is what the normalisation makes of zero.
        return Ok(Norm { scale: vec![1.0; c], zeroed: conv_bias.clone(), bias: conv_bias });
    };
    let part = |what: &str| tensor(weights, &format!("{}.{what}", spec.prefix), c);
    let (gamma, beta) = (part("weight")?, part("bias")?);
    let (mean, var) = (part("running_mean")?, part("running_var")?);
    let scale: Vec<f32> = gamma.iter().zip(&var).map(|(g, v)| g / (v + spec.eps).sqrt()).collect();
    let zeroed: Vec<f32> = (0..c).map(|o| beta[o] - mean[o] * scale[o]).collect();
    let bias = (0..c).map(|o| zeroed[o] + conv_bias[o] * scale[o]).collect();
    Ok(Norm { scale, bias, zeroed })
}

/// Keep rows minus skip rows of a masker's last layer, whose `2g` outputs are `g` keep logits, then `g` skip logits.
pub(super) fn margin_rows(rows: &[f32]) -> Vec<f32> {
    let (keep, skip) = rows.split_at(rows.len() / 2);
    keep.iter().zip(skip).map(|(k, s)| k - s).collect()
}

pub(super) fn linear(weights: &dyn Weights, spec: &LinearSpec) -> Result<(Vec<f32>, Vec<f32>)> {
    let weight = tensor(weights, &spec.weight, spec.c_in * spec.c_out)?;
    let bias = spec.bias.as_deref();
    let bias = bias.map_or_else(|| Ok(vec![0.0; spec.c_out]), |name| tensor(weights, name, spec.c_out))?;
    Ok((weight, bias))
}

pub(super) fn tensor(weights: &dyn Weights, name: &str, need: usize) -> Result<Vec<f32>> {
    let values = weights.tensor(name)?;
    ensure!(values.len() == need, "{name}: {} values, the network needs {need}", values.len());
    Ok(values)
}
