//! The operations on whole maps on the runtime's own kernels, as candle custom ops: what makes training fast.
//!
//! [`KernelMaps`] is a [`MapOps`] for [`MaskedNetwork::with_maps`](crate::train::MaskedNetwork::with_maps): the same
//! network, the same gradients, computed sample by sample in NHWC by `gather_gemm`, `filter_grad` and `batch_norm`. Between
//! two convolutions nothing is stored but the convolution's output; activations are made again where the gradient needs them.
//! A sample that no gradient reaches costs nothing on the way back, and one that a layer gate drops nothing at all where the
//! gate's decision is not to be learned.
//!
//! Sums over a batch are taken in an order that depends on the batch only: the same bits on any number of threads.
//!
//! Squeeze-excitation and grouped convolutions that are not depthwise take candle's way.

mod chain;
mod distance;
mod grads;
mod map;
mod max_pool;
mod op;
mod pool;
mod shelf;
mod unit;
mod work;

use std::sync::Arc;

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::BatchNorm;
use half::bf16;
use laud_kernels::{ConvGeometry, Element, Extent, Isa};
use laud_models::{ConvSpec, MapSize, MaxPoolSpec, Shortcut};

use crate::train::{Conv, Map, MapElement, MapOps, PerGate, Plain, Residual, Statistics, same_shape};
use chain::{Chain, Link, Moments};
use distance::DistanceOp;
use grads::Wanted;
use map::{Enter, Leave, Values};
use max_pool::MaxPoolOp;
use op::ChainOp;
use pool::PoolOp;
use work::Workers;

/// [`KernelMaps`] with maps of a type.
///
/// # Errors
/// As for [`KernelMaps::new`].
pub fn kernel_maps(dtype: MapElement, threads: usize) -> Result<Arc<dyn MapOps>> {
    Ok(match dtype {
        MapElement::F32 => Arc::new(KernelMaps::<f32>::new(threads)?),
        MapElement::Bf16 => Arc::new(KernelMaps::<bf16>::new(threads)?),
    })
}

/// Maps `[n, h, w, c]` on the CPU, computed by the runtime's kernels and held outside candle's graph.
///
/// Maps and packed weights are of the element type, and so is what a convolution reads on the way back; parameters, all other
/// gradients and every sum are f32. In bfloat16 training sees the rounding that inference in bfloat16 has, and takes a
/// processor that multiplies tiles of it to be faster than f32.
#[derive(Clone)]
pub struct KernelMaps<E: Element = f32> {
    workers: Arc<Workers<E>>,
}

impl<E: Element> KernelMaps<E> {
    /// With the instruction set of this machine that computes fastest with such elements, and `threads` threads.
    ///
    /// # Errors
    /// When threads cannot be started.
    pub fn new(threads: usize) -> Result<Self> {
        Ok(Self { workers: Arc::new(Workers::new(Isa::best_for(E::DTYPE), threads)?) })
    }

    /// A chain on a map, or `None` where candle has to do it.
    fn chain(
        &self,
        links: &[&Conv],
        link: Link,
        map: &Map,
        keep: &PerGate<Tensor>,
        statistics: Statistics,
    ) -> Result<Option<Map>> {
        let x = Values::<E>::of(map)?;
        let [_, h, w, _] = x.shape;
        let specs: Vec<&ConvSpec> = links.iter().map(|conv| &conv.spec).collect();
        let Some(chain) = Chain::new(&specs, MapSize { h, w }, link) else { return Ok(None) };
        let params = Tensor::cat(&parameters(links)?, 0)?;
        let flat = |keep: &Option<Tensor>| keep.as_ref().map(Tensor::flatten_all).transpose();
        let kept: Vec<Tensor> = [flat(&keep.spatial)?, flat(&keep.channel)?].into_iter().flatten().collect();
        let kept = match kept.is_empty() {
            true => Tensor::zeros(1, DType::F32, &Device::Cpu)?,
            false => Tensor::cat(&kept, 0)?,
        };
        let norms: Vec<Option<&BatchNorm>> = links.iter().map(|conv| conv.norm.as_ref()).collect();
        let stored = norms.iter().map(|norm| norm.map(stored).transpose()).collect::<Result<_>>()?;
        let filters = links.iter().any(|conv| conv.weight.track_op());
        let wanted =
            Wanted { x: map.tensor.track_op(), params: params.track_op(), filters, keep: kept.track_op() };
        let op = ChainOp::new(chain, self.workers.clone(), x, statistics, stored, wanted);
        let (moved, y) = (op.moved(), op.output());
        let out = map.tensor.apply_op3(&params, &kept, op)?;
        let moved = moved.lock().ok().and_then(|mut moved| moved.take()).unwrap_or_default();
        for (norm, moved) in norms.into_iter().zip(moved) {
            if let (Some(norm), Some(((mean, var), share))) = (norm, moved) {
                let all_the_way = statistics == Statistics::Measured;
                let momentum = if all_the_way { 1.0 } else { norm.momentum() * share };
                follow(norm.running_mean(), mean, momentum)?;
                follow(norm.running_var(), var, momentum)?;
            }
        }
        Ok(Some(y.map(out)))
    }

    /// Candle's way.
    fn plainly(&self, map: &Map, way: impl FnOnce(&Map) -> Result<Map>) -> Result<Map> {
        let map = Plain.enter(&self.leave(map)?)?;
        self.enter(&Plain.leave(&way(&map)?)?)
    }
}

impl<E: Element> MapOps for KernelMaps<E> {
    fn enter(&self, images: &Tensor) -> Result<Map> {
        let (n, c, h, w) = images.dims4()?;
        let (values, workers) = (Values::<E>::new([n, h, w, c]), self.workers.clone());
        let stand_in = images.contiguous()?.apply_op1(Enter { values: values.clone(), workers })?;
        Ok(values.map(stand_in))
    }

    fn leave(&self, map: &Map) -> Result<Tensor> {
        let (values, workers) = (Values::<E>::of(map)?, self.workers.clone());
        Ok(map.tensor.apply_op1(Leave { values, workers })?)
    }

    fn conv(&self, conv: &Conv, map: &Map, statistics: Statistics) -> Result<Map> {
        let link = Link::plain(conv.spec.act);
        match self.chain(&[conv], link, map, &PerGate::none(), statistics)? {
            Some(out) => Ok(out),
            None => self.plainly(map, |map| Plain.conv(conv, map, statistics)),
        }
    }

    fn residual(
        &self,
        block: &Residual,
        map: &Map,
        keep: &PerGate<Tensor>,
        statistics: Statistics,
    ) -> Result<Map> {
        let mut links: Vec<&Conv> = block.convs.iter().collect();
        if let (Shortcut::Projection(_), Some(projection)) = (&block.spec.shortcut, &block.projection) {
            links.push(projection);
        }
        let fast = match block.squeezes() {
            false => self.chain(&links, Link::of(&block.spec), map, keep, statistics)?,
            true => None,
        };
        match fast {
            Some(out) => Ok(out),
            None => self.plainly(map, |map| Plain.residual(block, map, keep, statistics)),
        }
    }

    fn max_pool(&self, map: &Map, pool: &MaxPoolSpec) -> Result<Map> {
        let x = Values::<E>::of(map)?;
        let [n, h, w, c] = x.shape;
        let output = pool.output_size(MapSize { h, w });
        let output = output.with_context(|| format!("max pooling {pool:?} on a {h}×{w} map"))?;
        let geometry = ConvGeometry {
            output: Extent { h: output.h, w: output.w },
            ..ConvGeometry::padded(Extent { h, w }, (c, c), pool.kernel, pool.stride, pool.pad)
        };
        let y = Values::new([n, output.h, output.w, c]);
        let op = MaxPoolOp { geometry, x, y: y.clone(), workers: self.workers.clone() };
        let stand_in = map.tensor.apply_op1(op)?;
        Ok(y.map(stand_in))
    }

    fn distance(&self, map: &Map, from: &Map) -> Result<Tensor> {
        let (values, from) = (Values::<E>::of(map)?, Values::<E>::of(from)?);
        same_shape(&values.shape, &from.shape)?;
        let workers = self.workers.clone();
        Ok(map.tensor.apply_op1(DistanceOp { map: values, from, workers })?)
    }

    fn pool(&self, map: &Map, grid: MapSize) -> Result<Tensor> {
        let workers = self.workers.clone();
        Ok(map.tensor.apply_op1(PoolOp { map: Values::<E>::of(map)?, grid, workers })?)
    }
}

/// All that is trained in the links, flat, in the order that [`Chain`] expects.
fn parameters(links: &[&Conv]) -> Result<Vec<Tensor>> {
    let mut parts = Vec::new();
    for conv in links {
        parts.push(conv.weight.flatten_all()?);
        match conv.norm.as_ref().and_then(BatchNorm::weight_and_bias) {
            Some((weight, bias)) => parts.extend([weight.clone(), bias.clone()]),
            None => parts.extend(conv.bias.clone()),
        }
    }
    Ok(parts)
}

/// Running mean and variance.
fn stored(norm: &BatchNorm) -> Result<Moments> {
    Ok((norm.running_mean().to_vec1()?, norm.running_var().to_vec1()?))
}

/// Moves a stored statistic towards the batch's.
fn follow(stored: &Tensor, batch: Vec<f32>, momentum: f64) -> Result<()> {
    let variable = Var::from_tensor(stored).context("a running statistic is a variable")?;
    let batch = Tensor::new(batch, stored.device())?;
    Ok(variable.set(&((stored * (1.0 - momentum))? + (batch * momentum)?)?)?)
}
