//! A block, convolution by convolution, and what thinning does to its weights.

use std::ops::Range;

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use faer::Mat;
use laud_models::{Activation, BlockSpec, ConvSpec, MaskPoint, Shortcut};

use super::Tensors;
use crate::train::block::{Block, Residual};
use crate::train::decisions::PerGate;
use crate::train::layers::{Conv, Statistics, Weights};
use crate::train::maps::{Map, MapOps};

/// Runs of a block's masked convolutions whose outputs have the same channels: a full one and the depthwise ones behind it. The
/// convolution behind a run reads its channels. `None` where channels cannot change places.
pub(super) fn spaces(block: &BlockSpec) -> Option<Vec<Range<usize>>> {
    let last = block.convs.len() - 1;
    let mut spaces: Vec<Range<usize>> = Vec::new();
    for (index, conv) in block.convs.iter().enumerate() {
        let depthwise = conv.groups == conv.c_in && conv.c_in == conv.c_out;
        match conv.groups {
            1 if index < last => spaces.push(index..index + 1),
            1 => {}
            _ if depthwise && index < last => spaces.last_mut()?.end += 1,
            _ => return None,
        }
    }
    block.squeeze_excite.is_none().then_some(spaces)
}

/// A block without gates on its maps.
pub(super) struct Branch<'a> {
    pub(super) block: &'a BlockSpec,
    pub(super) spaces: Vec<Range<usize>>,
    residual: Residual,
    maps: &'a dyn MapOps,
}

impl<'a> Branch<'a> {
    pub(super) fn load(block: &'a BlockSpec, weights: &Tensors, maps: &'a dyn MapOps) -> Result<Self> {
        let residual = Block::load(block, &Weights(weights))?.residual;
        Ok(Self { block, spaces: spaces(block).unwrap_or_default(), residual, maps })
    }

    /// The whole block.
    pub(super) fn run(&self, map: &Map) -> Result<Map> {
        self.maps.residual(&self.residual, map, &PerGate::none(), Statistics::Stored)
    }

    /// Behind every convolution but the last.
    pub(super) fn inner(&self, map: &Map) -> Result<Vec<Map>> {
        let mut inner: Vec<Map> = Vec::new();
        for conv in &self.residual.convs[..self.residual.convs.len() - 1] {
            inner.push(self.maps.conv(conv, inner.last().unwrap_or(map), Statistics::Stored)?);
        }
        Ok(inner)
    }

    /// Behind convolution `index`, in front of its activation: `[n, c, h, w]`.
    pub(super) fn behind(&self, map: &Map, index: usize) -> Result<Tensor> {
        let mut map = map.clone();
        for conv in &self.residual.convs[..index] {
            map = self.maps.conv(conv, &map, Statistics::Stored)?;
        }
        let conv = &self.residual.convs[index];
        let linear = Conv {
            spec: ConvSpec { act: Activation::None, ..conv.spec.clone() },
            weight: conv.weight.clone(),
            bias: conv.bias.clone(),
            norm: conv.norm.clone(),
        };
        self.maps.leave(&self.maps.conv(&linear, &map, Statistics::Stored)?)
    }

    /// What the branch is added to: `[n, c, h, w]`.
    pub(super) fn shortcut(&self, map: &Map) -> Result<Option<Tensor>> {
        match (&self.block.shortcut, &self.residual.projection) {
            (Shortcut::Projection(_), Some(conv)) => {
                self.maps.leave(&self.maps.conv(conv, map, Statistics::Stored)?).map(Some)
            }
            _ => self.residual.shortcut(&self.maps.leave(map)?, Statistics::Stored),
        }
    }

    /// Puts the channels of a space in this order.
    pub(super) fn sort(&self, space: &Range<usize>, order: &[usize], weights: &mut Tensors) -> Result<()> {
        let order = order.iter().map(|&c| u32::try_from(c)).collect::<Result<Vec<_>, _>>()?;
        let order = Tensor::new(order, &Device::Cpu)?;
        let mut select = |name: &str, dim: usize| -> Result<()> {
            let tensor = named_mut(weights, name)?;
            *tensor = tensor.contiguous()?.index_select(&order, dim)?;
            Ok(())
        };
        for conv in &self.block.convs[space.clone()] {
            select(&conv.weight, 0)?;
            conv.bias.iter().try_for_each(|bias| select(bias, 0))?;
            if let Some(norm) = &conv.norm {
                for part in ["weight", "bias", "running_mean", "running_var"] {
                    select(&format!("{}.{part}", norm.prefix), 0)?;
                }
            }
        }
        select(&self.block.convs[space.end].weight, 1)
    }

    /// Gives the channels from `kept` on the values that a mask at `point` gives them.
    pub(super) fn mask(&self, point: MaskPoint, kept: usize, weights: &mut Tensors) -> Result<()> {
        for conv in self.spaces.iter().flat_map(|space| &self.block.convs[space.clone()]) {
            let norm = conv.norm.as_ref();
            let norm = norm.map(|norm| ["weight", "bias"].map(|part| format!("{}.{part}", norm.prefix)));
            let zero: Vec<String> = match (point, norm) {
                (MaskPoint::AfterActivation, Some(norm)) => norm.to_vec(),
                (MaskPoint::BeforeNorm, None) => vec![conv.weight.clone()],
                _ => std::iter::once(conv.weight.clone()).chain(conv.bias.clone()).collect(),
            };
            for name in zero {
                let tensor = named_mut(weights, &name)?;
                let first = tensor.narrow(0, 0, kept)?;
                let rest = tensor.narrow(0, kept, conv.c_out - kept)?.zeros_like()?;
                *tensor = Tensor::cat(&[first, rest], 0)?;
            }
        }
        Ok(())
    }

    /// The convolution behind a space.
    pub(super) fn reader(&self, space: &Range<usize>, weights: &Tensors) -> Result<Folded<'a>> {
        Folded::load(&self.block.convs[space.end], weights)
    }
}

/// A convolution with its normalisation as one matrix.
pub(super) struct Folded<'a> {
    conv: &'a ConvSpec,
    /// `[c_in·k·k + 1, c_out]`, the bias last.
    pub(super) matrix: Mat<f64>,
    /// What the normalisation multiplies each output with, what it takes from it before, and its stored deviation.
    scale: Vec<f64>,
    shift: Vec<f64>,
    deviation: Vec<f64>,
}

impl<'a> Folded<'a> {
    pub(super) fn load(conv: &'a ConvSpec, weights: &Tensors) -> Result<Self> {
        let vector = |name: &str| -> Result<Vec<f64>> {
            let tensor = weights.get(name).with_context(|| format!("no tensor {name}"))?;
            Ok(tensor.flatten_all()?.to_dtype(DType::F64)?.to_vec1()?)
        };
        let outputs = conv.c_out;
        let bias = conv.bias.as_ref().map_or_else(|| Ok(vec![0.0; outputs]), |name| vector(name))?;
        let (mut scale, mut shift, mut offset) = (vec![1.0; outputs], vec![0.0; outputs], bias.clone());
        let mut deviation = vec![1.0; outputs];
        if let Some(norm) = &conv.norm {
            let part = |part: &str| vector(&format!("{}.{part}", norm.prefix));
            let (weight, beta, mean, var) =
                (part("weight")?, part("bias")?, part("running_mean")?, part("running_var")?);
            for o in 0..outputs {
                deviation[o] = (var[o] + f64::from(norm.eps)).sqrt();
                scale[o] = weight[o] / deviation[o];
                shift[o] = mean[o] - bias[o];
                offset[o] = beta[o] - scale[o] * shift[o];
            }
        }
        let values = vector(&conv.weight)?;
        let inputs = values.len() / outputs;
        let matrix = Mat::from_fn(inputs + 1, outputs, |i, o| match i < inputs {
            true => scale[o] * values[o * inputs + i],
            false => offset[o],
        });
        Ok(Self { conv, matrix, scale, shift, deviation })
    }

    /// Weights of a channel for one output.
    pub(super) fn taps(&self) -> usize {
        self.conv.kernel * self.conv.kernel
    }

    /// Channels that it reads.
    pub(super) fn channels(&self) -> usize {
        self.conv.c_in
    }

    /// Whether its outputs can be shifted.
    pub(super) fn has_bias(&self) -> bool {
        self.conv.norm.is_some() || self.conv.bias.is_some()
    }

    /// Without the input channels from `kept` on.
    pub(super) fn drop_inputs(&mut self, kept: usize) {
        let last = self.matrix.nrows() - 1;
        let from = kept * self.taps();
        self.matrix.as_mut().subrows_mut(from, last - from).fill(0.0);
    }

    /// Writes the matrix into the tensors. With a normalisation filters keep their length and its weights tell how much they
    /// count, so that what it was trained to normalise stays as large as it was.
    pub(super) fn store(&self, weights: &mut Tensors) -> Result<()> {
        let tensor = named_mut(weights, &self.conv.weight)?;
        let mut values: Vec<f32> = tensor.flatten_all()?.to_dtype(DType::F32)?.to_vec1()?;
        let inputs = values.len() / self.conv.c_out;
        let mut scale = vec![1.0; self.conv.c_out];
        for (o, row) in values.chunks_exact_mut(inputs).enumerate() {
            let new = self.matrix.col(o).subrows(0, inputs);
            let before = row.iter().map(|&w| f64::from(w).powi(2)).sum::<f64>().sqrt();
            if self.conv.norm.is_some() && before > 0.0 {
                scale[o] = new.norm_l2() / before * self.scale[o].signum();
            }
            if scale[o] != 0.0 {
                row.iter_mut().zip(new.iter()).for_each(|(w, new)| *w = (new / scale[o]) as f32);
            }
        }
        *tensor = Tensor::from_vec(values, tensor.shape(), &Device::Cpu)?;
        let per_output = |value: &dyn Fn(usize) -> f64| {
            let values: Vec<f32> = (0..self.conv.c_out).map(|o| value(o) as f32).collect();
            Tensor::new(values, &Device::Cpu)
        };
        let offset = |o: usize| self.matrix[(inputs, o)];
        match (&self.conv.norm, &self.conv.bias) {
            (Some(norm), _) => {
                let bias = per_output(&|o| offset(o) + scale[o] * self.shift[o])?;
                weights.insert(format!("{}.bias", norm.prefix), bias);
                let weight = per_output(&|o| scale[o] * self.deviation[o])?;
                weights.insert(format!("{}.weight", norm.prefix), weight);
            }
            (None, Some(name)) => drop(weights.insert(name.clone(), per_output(&offset)?)),
            (None, None) => {}
        }
        Ok(())
    }
}

fn named_mut<'a>(weights: &'a mut Tensors, name: &str) -> Result<&'a mut Tensor> {
    weights.get_mut(name).with_context(|| format!("no tensor {name}"))
}
