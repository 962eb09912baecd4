//! Pooling and strided picking, from differentiable parts.

use anyhow::{Result, ensure};
use candle_core::{D, Tensor};
use laud_models::{MapSize, MaxPoolSpec};

/// Entries `start, start + step, …` along `dim`, `count` of them.
fn every(x: &Tensor, dim: usize, start: usize, step: usize, count: usize) -> Result<Tensor> {
    if (start, step, count) == (0, 1, x.dim(dim)?) {
        return Ok(x.clone());
    }
    let index: Vec<u32> = (0..count).map(|i| u32::try_from(start + i * step)).collect::<Result<_, _>>()?;
    Ok(x.contiguous()?.index_select(&Tensor::new(index, x.device())?, dim)?)
}

/// Every `stride`-th row and column.
pub(super) fn subsample(x: &Tensor, stride: usize) -> Result<Tensor> {
    let (_, _, h, w) = x.dims4()?;
    every(&every(x, 2, 0, stride, h.div_ceil(stride))?, 3, 0, stride, w.div_ceil(stride))
}

/// Max pooling, rows and columns in turn. Padding is −∞ and never wins.
pub(super) fn max_pool(x: &Tensor, pool: &MaxPoolSpec) -> Result<Tensor> {
    let (_, _, h, w) = x.dims4()?;
    let size = pool.output_size(MapSize { h, w });
    let Some(size) = size else { anyhow::bail!("max pooling {pool:?} on a {h}×{w} map") };
    let x = max_along(x, 2, pool, size.h)?;
    max_along(&x, 3, pool, size.w)
}

fn max_along(x: &Tensor, dim: usize, pool: &MaxPoolSpec, count: usize) -> Result<Tensor> {
    let mut x = x.clone();
    if pool.pad > 0 {
        let mut dims = x.dims().to_vec();
        dims[dim] = pool.pad;
        let border = Tensor::full(f32::NEG_INFINITY, dims, x.device())?;
        x = Tensor::cat(&[&border, &x, &border], dim)?;
    }
    let first = every(&x, dim, 0, pool.stride, count)?;
    (1..pool.kernel)
        .try_fold(first, |best, tap| Ok(best.maximum(&every(&x, dim, tap, pool.stride, count)?)?))
}

/// Mean over all positions: `[n, c, h, w]` to `[n, c]`.
pub(super) fn global_mean(x: &Tensor) -> Result<Tensor> {
    Ok(x.mean((2, 3))?)
}

/// Mean over the positions where `keep [n, 1, h, w]` is 1; 0 for a sample without any.
pub(super) fn active_mean(x: &Tensor, keep: &Tensor) -> Result<Tensor> {
    let sum = x.broadcast_mul(keep)?.sum((2, 3))?;
    let count = keep.sum((2, 3))?.maximum(1f64)?;
    Ok(sum.broadcast_div(&count)?)
}

/// PyTorch's adaptive average pooling: cell `i` of `m` averages `⌊i·h / m⌋ .. ⌈(i + 1)·h / m⌉`, which overlap where `m` does
/// not divide `h`. `[n, c, h, w]` to `[n, c, grid.h, grid.w]`.
pub(super) fn adaptive_mean(x: &Tensor, grid: MapSize) -> Result<Tensor> {
    let (n, c, h, w) = x.dims4()?;
    ensure!(grid.h > 0 && grid.w > 0 && h > 0 && w > 0, "a {h}×{w} map to {}×{} cells", grid.h, grid.w);
    if (h, w) == (grid.h, grid.w) {
        return Ok(x.clone());
    }
    let columns = along_last(&x.reshape((n * c * h, w))?, grid.w)?;
    let columns = columns.reshape((n * c, h, grid.w))?.transpose(1, 2)?.contiguous()?;
    let cells = along_last(&columns.reshape((n * c * grid.w, h))?, grid.h)?;
    let cells = cells.reshape((n * c, grid.w, grid.h))?.transpose(1, 2)?.contiguous()?;
    Ok(cells.reshape((n, c, grid.h, grid.w))?)
}

/// Means of the cells along the last of two dimensions: `[rows, length]` to `[rows, m]`.
fn along_last(x: &Tensor, m: usize) -> Result<Tensor> {
    let length = x.dim(D::Minus1)?;
    let cell = |i: usize| i * length / m..((i + 1) * length).div_ceil(m);
    let mut member = vec![0f32; length * m];
    for i in 0..m {
        cell(i).for_each(|position| member[position * m + i] = 1.0);
    }
    let member = Tensor::from_vec(member, (length, m), x.device())?;
    let sizes: Vec<f32> = (0..m).map(|i| cell(i).len() as f32).collect();
    Ok(x.matmul(&member)?.broadcast_div(&Tensor::new(sizes, x.device())?)?)
}
