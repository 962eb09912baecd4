//! What is done with whole maps, and by whom.

use anyhow::Result;
use candle_core::Tensor;
use laud_models::MapSize;

use super::block::Residual;
use super::decisions::PerGate;
use super::layers::{Conv, Statistics};
use super::pool::adaptive_mean;

/// The operations on whole maps. A map is a tensor in a layout of the implementation's own, which every operation takes
/// and gives; gradients flow through all of them.
///
/// [`Plain`] is the definition. Others compute the same faster; the network does not care.
pub trait MapOps: Send + Sync {
    /// Images `[n, c, h, w]` as a map.
    fn enter(&self, images: &Tensor) -> Result<Tensor>;
    /// A map as `[n, c, h, w]`.
    fn leave(&self, map: &Tensor) -> Result<Tensor>;
    /// Convolution, normalisation, activation.
    fn conv(&self, conv: &Conv, map: &Tensor, statistics: Statistics) -> Result<Tensor>;
    /// A residual block, with `keep [n, u]` for each of its gates.
    fn residual(
        &self,
        block: &Residual,
        map: &Tensor,
        keep: &PerGate<Tensor>,
        statistics: Statistics,
    ) -> Result<Tensor>;
    /// PyTorch's adaptive average pooling: `[n, cells, c]`, cells row by row.
    fn pool(&self, map: &Tensor, grid: MapSize) -> Result<Tensor>;
}

/// candle's own operations, on maps `[n, c, h, w]`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plain;

impl MapOps for Plain {
    fn enter(&self, images: &Tensor) -> Result<Tensor> {
        Ok(images.clone())
    }

    fn leave(&self, map: &Tensor) -> Result<Tensor> {
        Ok(map.clone())
    }

    fn conv(&self, conv: &Conv, map: &Tensor, statistics: Statistics) -> Result<Tensor> {
        conv.forward(map, None, statistics)
    }

    fn residual(
        &self,
        block: &Residual,
        map: &Tensor,
        keep: &PerGate<Tensor>,
        statistics: Statistics,
    ) -> Result<Tensor> {
        block.forward(map, keep, statistics)
    }

    fn pool(&self, map: &Tensor, grid: MapSize) -> Result<Tensor> {
        let cells = adaptive_mean(map, grid)?;
        Ok(cells.flatten_from(2)?.transpose(1, 2)?.contiguous()?)
    }
}
