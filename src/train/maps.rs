//! What is done with whole maps, and by whom.

use std::any::Any;
use std::sync::Arc;

use anyhow::{Result, ensure};
use candle_core::Tensor;
use laud_models::{MapSize, MaxPoolSpec};

use super::block::Residual;
use super::decisions::PerGate;
use super::layers::{Conv, Statistics};
use super::pool::{adaptive_mean, max_pool};

/// A map `[n, …]` in a layout of the implementation's own.
#[derive(Clone)]
pub struct Map {
    /// What candle's graph knows of it, `n` first: the values, or a stand-in that orders the way back.
    pub tensor: Tensor,
    /// The values, where an implementation has them outside the graph.
    pub held: Option<Arc<dyn Any + Send + Sync>>,
}

impl std::fmt::Debug for Map {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Map").field("tensor", &self.tensor).finish_non_exhaustive()
    }
}

/// The operations on whole maps; gradients flow through all of them.
///
/// [`Plain`] is the definition. Others compute the same faster; the network does not care.
pub trait MapOps: Send + Sync {
    /// Images `[n, c, h, w]` as a map.
    fn enter(&self, images: &Tensor) -> Result<Map>;
    /// A map as `[n, c, h, w]`.
    fn leave(&self, map: &Map) -> Result<Tensor>;
    /// Convolution, normalisation, activation.
    fn conv(&self, conv: &Conv, map: &Map, statistics: Statistics) -> Result<Map>;
    /// A residual block, with `keep [n, u]` for each of its gates.
    fn residual(
        &self,
        block: &Residual,
        map: &Map,
        keep: &PerGate<Tensor>,
        statistics: Statistics,
    ) -> Result<Map>;
    /// Max pooling; padding never wins.
    fn max_pool(&self, map: &Map, pool: &MaxPoolSpec) -> Result<Map>;
    /// How far a map is from another of its shape: `‖map − from‖² / ‖from‖²`, over the batch. No gradient reaches `from`.
    ///
    /// # Errors
    /// Maps of different shapes.
    fn distance(&self, map: &Map, from: &Map) -> Result<Tensor>;
    /// PyTorch's adaptive average pooling: `[n, cells, c]`, cells row by row.
    fn pool(&self, map: &Map, grid: MapSize) -> Result<Tensor>;
}

/// candle's own operations, on maps `[n, c, h, w]`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plain;

impl MapOps for Plain {
    fn enter(&self, images: &Tensor) -> Result<Map> {
        Ok(Map { tensor: images.clone(), held: None })
    }

    fn leave(&self, map: &Map) -> Result<Tensor> {
        Ok(map.tensor.clone())
    }

    fn conv(&self, conv: &Conv, map: &Map, statistics: Statistics) -> Result<Map> {
        self.enter(&conv.forward(&map.tensor, None, statistics)?)
    }

    fn residual(
        &self,
        block: &Residual,
        map: &Map,
        keep: &PerGate<Tensor>,
        statistics: Statistics,
    ) -> Result<Map> {
        self.enter(&block.forward(&map.tensor, keep, statistics)?)
    }

    fn max_pool(&self, map: &Map, pool: &MaxPoolSpec) -> Result<Map> {
        self.enter(&max_pool(&map.tensor, pool)?)
    }

    fn distance(&self, map: &Map, from: &Map) -> Result<Tensor> {
        let (map, from) = (&map.tensor, from.tensor.detach());
        same_shape(map.dims(), from.dims())?;
        let size = f64::from(from.sqr()?.sum_all()?.to_scalar::<f32>()?).max(f64::MIN_POSITIVE);
        Ok(((map - from)?.sqr()?.sum_all()? / size)?)
    }

    fn pool(&self, map: &Map, grid: MapSize) -> Result<Tensor> {
        let cells = adaptive_mean(&map.tensor, grid)?;
        Ok(cells.flatten_from(2)?.transpose(1, 2)?.contiguous()?)
    }
}

/// Refuses a distance between maps of different shapes.
pub(crate) fn same_shape(map: &[usize], from: &[usize]) -> Result<()> {
    ensure!(map == from, "features: the student has a map {map:?}, the teacher {from:?}");
    Ok(())
}
