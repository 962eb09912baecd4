//! What a network's decisions cost, as a differentiable number: multiply–accumulates, or a latency.

use std::sync::Arc;

use anyhow::{Result, ensure};
use candle_core::{CpuStorage, CustomOp1, Device, Layout, Shape, Tensor};
use laud_models::{BlockRates, BlockSpec, MaskGrid, NetSpec};

use super::decisions::PerGate;

/// Where gradients of the cost flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RateGradient {
    /// Through every convolution's rate.
    #[default]
    All,
    /// Through the last convolution's only: the official LAUDNet code, whose dilated masks are booleans.
    LastOnly,
}

/// Milliseconds of one block as they are measured or predicted: linear in the share of its multiply–accumulates that are
/// done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BlockLatency {
    /// With nothing active: gates and what else is always done.
    pub idle: f64,
    /// With everything active.
    pub full: f64,
}

/// Milliseconds of a network, as they are measured or predicted.
#[derive(Clone, Debug, PartialEq)]
pub struct LatencyModel {
    /// Outside the blocks.
    pub rest: f64,
    /// Of each block.
    pub blocks: Vec<BlockLatency>,
}

/// Cost of a network as a function of its decisions.
///
/// A block costs `fixed + Σ slope · r_c^sides · r` over the convolutions of its branch, with the rates of
/// [`BlockSpec::macs`]: the channel rate `r_c` enters once for each masked side, `r` is the share of the convolution's
/// output positions that are needed. Rates are means over the batch and are multiplied as means (LAUDNet, laud_resnet.py).
pub struct Cost {
    rest: f64,
    /// What the network costs without gates; targets are shares of it.
    full: f64,
    blocks: Vec<BlockCost>,
    gradient: RateGradient,
}

struct BlockCost {
    gated: bool,
    fixed: f64,
    terms: Vec<Term>,
}

struct Term {
    slope: f64,
    /// Sides of the convolution that the channel mask thins.
    sides: usize,
    /// `None`: every position, or the coarse mask itself.
    readers: Option<Readers>,
    last: bool,
}

/// For every position of a map, the cells whose outputs need it.
type Readers = Arc<Vec<Vec<u32>>>;

/// Cost of one batch's decisions.
pub struct Spent {
    /// Per sample.
    pub total: Tensor,
    /// Share of each gated block's own cost at full activity.
    pub shares: Vec<Tensor>,
}

impl Cost {
    /// Multiply–accumulates. The full cost is that of the network without gates.
    pub fn macs(spec: &NetSpec, gradient: RateGradient) -> Result<Self> {
        let all = spec.macs_at(1.0)?;
        let full = spec.without_gates().macs_at(1.0)?.dense_total() as f64;
        let squeeze: u64 = all.blocks.iter().map(|block| block.squeeze).sum();
        let rest = (all.stem + all.pool + all.head + squeeze) as f64;
        let blocks = spec.blocks.iter().map(BlockCost::macs).collect::<Result<_>>()?;
        Ok(Self { rest, full, blocks, gradient })
    }

    /// Milliseconds. The full cost is that with everything active, without what gates cost.
    pub fn latency(spec: &NetSpec, model: &LatencyModel, gradient: RateGradient) -> Result<Self> {
        ensure!(
            model.blocks.len() == spec.blocks.len(),
            "latencies of {} blocks, {} has {}",
            model.blocks.len(),
            spec.name,
            spec.blocks.len()
        );
        let numbers = model.blocks.iter().flat_map(|block| [block.idle, block.full]).chain([model.rest]);
        ensure!(
            numbers.clone().all(|ms| ms.is_finite() && ms >= 0.0) && numbers.sum::<f64>() > 0.0,
            "latencies must be finite, not negative and not all zero"
        );
        let mut cost = Self::macs(spec, gradient)?;
        for (block, latency) in cost.blocks.iter_mut().zip(&model.blocks) {
            let slopes: f64 = block.terms.iter().map(|term| term.slope).sum();
            block.fixed = if block.gated { latency.idle } else { latency.full };
            let span = if block.gated { latency.full - latency.idle } else { 0.0 };
            block.terms.iter_mut().for_each(|term| term.slope *= span / slopes);
        }
        cost.rest = model.rest;
        cost.full = model.rest + model.blocks.iter().map(|block| block.full).sum::<f64>();
        Ok(cost)
    }

    /// What the network costs without gates.
    pub fn full(&self) -> f64 {
        self.full
    }

    /// Cost with this share of each block's channels and every position.
    pub fn at_channel_rates(&self, rates: &[f64]) -> f64 {
        let block = |(block, rate): (&BlockCost, &f64)| {
            let term = |term: &Term| term.slope * (0..term.sides).map(|_| rate).product::<f64>();
            block.fixed + block.terms.iter().map(term).sum::<f64>()
        };
        self.rest + self.blocks.iter().zip(rates).map(block).sum::<f64>()
    }

    /// Cost of the decisions `[n, u]` of each block's gates.
    pub fn of(&self, keep: &[PerGate<Tensor>]) -> Result<Spent> {
        ensure!(
            keep.len() == self.blocks.len(),
            "decisions of {} blocks for {}",
            keep.len(),
            self.blocks.len()
        );
        let mut fixed = self.rest;
        let (mut moving, mut shares) =
            (Tensor::zeros((), candle_core::DType::F32, &Device::Cpu)?, Vec::new());
        for (block, keep) in self.blocks.iter().zip(keep) {
            fixed += block.fixed;
            if !block.gated {
                fixed += block.terms.iter().map(|term| term.slope).sum::<f64>();
                continue;
            }
            let spent = block.spent(keep, self.gradient)?;
            shares.push(((&spent + block.fixed)? / block.full())?);
            // In units of the full cost: f32 has no digits to spare.
            moving = (moving + (spent / self.full)?)?;
        }
        Ok(Spent { total: ((moving + fixed / self.full)? * self.full)?, shares })
    }
}

impl BlockCost {
    fn macs(block: &BlockSpec) -> Result<Self> {
        let dense = block.macs(&BlockRates::uniform(block, 1.0))?;
        let last = block.convs.len() - 1;
        let readers = readers(block)?;
        let (mut size, mut terms) = (block.input, Vec::new());
        for (index, conv) in block.convs.iter().enumerate() {
            size = conv.output_size(size).unwrap_or(size);
            let depthwise = conv.groups > 1 && conv.groups == conv.c_in;
            let sides = if depthwise { 1 } else { usize::from(index > 0) + usize::from(index < last) };
            let readers = readers.as_ref().map(|readers| readers[index].clone());
            terms.push(Term { slope: conv.macs(size) as f64, sides, readers, last: index == last });
        }
        let branch: f64 = terms.iter().map(|term| term.slope).sum();
        Ok(Self { gated: block.gate.is_some(), fixed: dense.dense as f64 - branch, terms })
    }

    fn full(&self) -> f64 {
        self.fixed + self.terms.iter().map(|term| term.slope).sum::<f64>()
    }

    /// Without the fixed part.
    fn spent(&self, keep: &PerGate<Tensor>, gradient: RateGradient) -> Result<Tensor> {
        let channel = keep.channel.as_ref().map(Tensor::mean_all).transpose()?;
        let mut sum: Option<Tensor> = None;
        for term in &self.terms {
            let mut rate = Tensor::full(term.slope as f32, (), &Device::Cpu)?;
            for _ in 0..term.sides {
                if let Some(channel) = &channel {
                    rate = (rate * channel)?;
                }
            }
            if let Some(spatial) = &keep.spatial {
                let share = match &term.readers {
                    Some(readers) if !term.last => {
                        spatial.contiguous()?.apply_op1(CoveredShare(readers.clone()))?
                    }
                    _ => spatial.mean_all()?,
                };
                let frozen = gradient == RateGradient::LastOnly && !term.last;
                rate = (rate * if frozen { share.detach() } else { share })?;
            }
            sum = Some(match sum {
                Some(sum) => (sum + rate)?,
                None => rate,
            });
        }
        match sum {
            Some(sum) => Ok(sum),
            None => Ok(Tensor::zeros((), candle_core::DType::F32, &Device::Cpu)?),
        }
    }
}

/// For every convolution of a spatially gated block, who reads what.
fn readers(block: &BlockSpec) -> Result<Option<Vec<Readers>>> {
    let Some(gate) = &block.gate.spatial else { return Ok(None) };
    let cells = gate.grid.h * gate.grid.w;
    let mut lists: Vec<Vec<Vec<u32>>> = vec![Vec::new(); block.convs.len()];
    for cell in 0..cells {
        let alone = MaskGrid::from_fn(gate.grid, |y, x| y * gate.grid.w + x == cell);
        for (lists, mask) in lists.iter_mut().zip(block.masks(&alone)?) {
            lists.resize(mask.cells().len(), Vec::new());
            for (list, _) in lists.iter_mut().zip(mask.cells()).filter(|(_, needed)| **needed) {
                list.push(u32::try_from(cell)?);
            }
        }
    }
    Ok(Some(lists.into_iter().map(Arc::new).collect()))
}

/// Share of positions that any active cell reads, mean over a batch: `[n, cells]` to a scalar. Its gradient is the exact
/// effect of a single cell: that of `1 − Π (1 − keep)`.
struct CoveredShare(Readers);

impl CoveredShare {
    fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<&'a [f32]> {
        match layout.contiguous_offsets() {
            Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
            None => candle_core::bail!("covered share: decisions are not contiguous"),
        }
    }
}

impl CustomOp1 for CoveredShare {
    fn name(&self) -> &'static str {
        "covered share"
    }

    fn cpu_fwd(&self, keep: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (n, cells) = layout.shape().dims2()?;
        let keep = Self::values(keep, layout)?;
        let covered = keep.chunks_exact(cells).map(|keep| {
            self.0
                .iter()
                .map(|list| 1.0 - list.iter().map(|&i| 1.0 - keep[i as usize]).product::<f32>())
                .sum::<f32>()
        });
        let share = covered.map(f64::from).sum::<f64>() / (n * self.0.len()) as f64;
        Ok((CpuStorage::F32(vec![share as f32]), Shape::from(())))
    }

    fn bwd(&self, keep: &Tensor, _: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let (n, cells) = keep.dims2()?;
        let scale = grad.to_scalar::<f32>()? / (n * self.0.len()) as f32;
        let values = keep.flatten_all()?.to_vec1::<f32>()?;
        let mut out = vec![0.0f32; n * cells];
        for (keep, out) in values.chunks_exact(cells).zip(out.chunks_exact_mut(cells)) {
            for list in self.0.iter() {
                // The product over all others; at most one zero factor leaves anything.
                let zeros = list.iter().filter(|&&i| keep[i as usize] == 1.0).count();
                if zeros > 1 {
                    continue;
                }
                let rest: f32 =
                    list.iter().map(|&i| 1.0 - keep[i as usize]).filter(|off| *off != 0.0).product();
                for &i in list {
                    let off = 1.0 - keep[i as usize];
                    out[i as usize] += match (zeros, off == 0.0) {
                        (0, _) => scale * rest / off,
                        (_, true) => scale * rest,
                        _ => 0.0,
                    };
                }
            }
        }
        Ok(Some(Tensor::from_vec(out, keep.shape(), keep.device())?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::{Decisions, MaskedNetwork, random_images, random_weights};
    use candle_core::Var;
    use laud_models::{NetConfig, SampleMasks};

    fn nets() -> Vec<NetSpec> {
        let gated = [
            r#""dyn_mode": "layer""#,
            r#""dyn_mode": "spatial", "spatial_granularity": [4, 2, 1]"#,
            r#""dyn_mode": "both", "spatial_granularity": [3, 2, 1], "channel_granularity": 4"#,
            r#""dyn_mode": ["none", "channel", "layer"], "channel_granularity": 2"#,
        ];
        let configs = gated.map(|gates| format!(r#"{{"arch": "resnet20", "input_size": 12, {gates}}}"#));
        configs.iter().map(|config| NetConfig::from_json(config).unwrap().build().unwrap()).collect()
    }

    fn scalar(tensor: &Tensor) -> f64 {
        f64::from(tensor.to_scalar::<f32>().unwrap())
    }

    #[test]
    fn macs_are_those_of_the_official_count() {
        for spec in nets() {
            let network = MaskedNetwork::new(&spec, &random_weights(&spec, 1).unwrap()).unwrap();
            let images = random_images(&spec, 3, 2).unwrap();
            let seen = network.forward(&images, &Decisions::Learned).unwrap();
            let activity = network
                .forward_train(&images, &Decisions::Given(&seen.masks), super::super::Statistics::Stored)
                .unwrap();
            let rates: Vec<BlockRates> = (spec.blocks.iter().zip(&seen.masks))
                .map(|(block, masks)| {
                    let sample = |i: usize| {
                        let of =
                            |mask: &Vec<bool>| mask[mask.len() / 3 * i..mask.len() / 3 * (i + 1)].to_vec();
                        let grid = |gate: &laud_models::SpatialGateSpec| {
                            MaskGrid::new(gate.grid, of(masks.spatial.as_ref().unwrap())).unwrap()
                        };
                        SampleMasks {
                            spatial: block.gate.spatial.as_ref().map(grid),
                            channel: masks.channel.as_ref().map(of),
                        }
                    };
                    BlockRates::of(block, &[sample(0), sample(1), sample(2)]).unwrap()
                })
                .collect();
            let want = spec.macs(&rates).unwrap();
            let cost = Cost::macs(&spec, RateGradient::All).unwrap();
            let spent = cost.of(&activity.keep).unwrap();
            assert!((scalar(&spent.total) / want.total() - 1.0).abs() < 1e-5, "{}", spec.name);
            let gated = spec.blocks.iter().zip(&want.blocks).filter(|(block, _)| block.gate.is_some());
            for (share, (_, block)) in spent.shares.iter().zip(gated) {
                assert!((scalar(share) - block.fraction()).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn a_dilated_rate_moves_as_a_single_cell_does() {
        let spec = &nets()[1];
        let block = &spec.blocks[3];
        let readers = readers(block).unwrap().unwrap()[0].clone();
        let share = |keep: &[f32]| {
            let keep = Var::new(keep, &Device::Cpu).unwrap();
            let share = keep.reshape((1, 9)).unwrap().apply_op1(CoveredShare(readers.clone())).unwrap();
            let grads = share.backward().unwrap();
            (scalar(&share), grads.get(&keep).unwrap().to_vec1::<f32>().unwrap())
        };
        let keep = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0];
        let (here, grads) = share(&keep);
        for (cell, grad) in grads.iter().enumerate() {
            let mut other = keep;
            other[cell] = 1.0 - keep[cell];
            let change = (share(&other).0 - here) / f64::from(other[cell] - keep[cell]);
            assert!((change - f64::from(*grad)).abs() < 1e-6, "cell {cell}: {change}, {grad}");
        }
    }

    #[test]
    fn the_official_gradient_misses_the_dilated_masks() {
        let spec = &nets()[1];
        let keep: Vec<Var> = spec
            .blocks
            .iter()
            .map(|block| {
                let grid = block.gate.spatial.as_ref().unwrap().grid;
                Var::ones((1, grid.h * grid.w), candle_core::DType::F32, &Device::Cpu).unwrap()
            })
            .collect();
        let gates: Vec<PerGate<Tensor>> = keep
            .iter()
            .map(|keep| PerGate { spatial: Some(keep.as_tensor().clone()), channel: None })
            .collect();
        let grad = |gradient| {
            let spent = Cost::macs(spec, gradient).unwrap().of(&gates).unwrap();
            let grads = spent.total.backward().unwrap();
            scalar(&grads.get(&keep[0]).unwrap().sum_all().unwrap())
        };
        let last = spec.blocks[0].convs[1].macs(spec.blocks[0].output) as f64;
        assert!((grad(RateGradient::LastOnly) / last - 1.0).abs() < 1e-5);
    }

    #[test]
    fn latency_is_linear_between_idle_and_full() {
        let spec = &nets()[0];
        let blocks = vec![BlockLatency { idle: 0.1, full: 0.5 }; spec.blocks.len()];
        let model = LatencyModel { rest: 0.2, blocks };
        let cost = Cost::latency(spec, &model, RateGradient::All).unwrap();
        let at = |rate: f32| {
            let gate = || Tensor::full(rate, (2, 1), &Device::Cpu).unwrap();
            let keep: Vec<_> =
                spec.blocks.iter().map(|_| PerGate { spatial: Some(gate()), channel: None }).collect();
            scalar(&cost.of(&keep).unwrap().total)
        };
        assert!((at(0.0) - (0.2 + 0.9)).abs() < 1e-5 && (at(1.0) - (0.2 + 4.5)).abs() < 1e-5);
        assert!((at(0.25) - (0.2 + 0.9 + 0.9)).abs() < 1e-5);
        assert!(Cost::latency(spec, &LatencyModel { rest: 1.0, blocks: vec![] }, RateGradient::All).is_err());
    }
}
