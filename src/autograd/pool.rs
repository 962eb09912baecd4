//! Adaptive average pooling as a candle operation.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use laud_kernels::Element;
use laud_models::MapSize;
use rayon::prelude::*;

use super::map::Values;
use super::op::with_values;
use super::work::Workers;

/// PyTorch's adaptive average pooling, `[n, h, w, c]` to `[n, cells, c]`.
pub(super) struct PoolOp<E: Element> {
    pub(super) map: Arc<Values<E>>,
    pub(super) grid: MapSize,
    pub(super) workers: Arc<Workers<E>>,
}

/// Positions that cell `i` of `cells` averages.
fn span(i: usize, cells: usize, length: usize) -> Range<usize> {
    i * length / cells..((i + 1) * length).div_ceil(cells)
}

impl<E: Element> PoolOp<E> {
    /// Calls with every cell, every row of its pixels as a range of positions, and the share of a pixel.
    fn each_row(&self, (h, w): (usize, usize), mut f: impl FnMut(usize, Range<usize>, f32)) {
        for cell in 0..self.grid.h * self.grid.w {
            let rows = span(cell / self.grid.w, self.grid.h, h);
            let columns = span(cell % self.grid.w, self.grid.w, w);
            let share = 1.0 / (rows.len() * columns.len()) as f32;
            rows.for_each(|y| f(cell, y * w + columns.start..y * w + columns.end, share));
        }
    }
}

impl<E: Element> CustomOp1 for PoolOp<E> {
    fn name(&self) -> &'static str {
        "pool"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let [n, h, w, c] = self.map.shape;
        let (x, cells) = (self.map.get()?, self.grid.h * self.grid.w);
        let mut means = vec![0.0; n * cells * c];
        self.workers.install(|| {
            means.par_chunks_mut(cells * c).zip(x.par_chunks(h * w * c)).for_each(|(means, x)| {
                self.each_row((h, w), |cell, pixels, share| {
                    let mean = &mut means[cell * c..(cell + 1) * c];
                    for pixel in x[pixels.start * c..pixels.end * c].chunks_exact(c) {
                        mean.iter_mut().zip(pixel).for_each(|(mean, x)| *mean += x.to_f32() * share);
                    }
                });
            });
        });
        Ok((CpuStorage::F32(means), Shape::from((n, cells, c))))
    }

    fn bwd(&self, stand_in: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let [_, h, w, c] = self.map.shape;
        let cells = self.grid.h * self.grid.w;
        with_values(&[&grad.contiguous()?], |values| {
            let install = |dx: &mut [f32]| {
                self.workers.install(|| {
                    dx.par_chunks_mut(h * w * c).zip(values[0].par_chunks(cells * c)).for_each(
                        |(dx, grad)| {
                            self.each_row((h, w), |cell, pixels, share| {
                                let grad = &grad[cell * c..(cell + 1) * c];
                                for pixel in dx[pixels.start * c..pixels.end * c].chunks_exact_mut(c) {
                                    pixel.iter_mut().zip(grad).for_each(|(dx, grad)| *dx += grad * share);
                                }
                            });
                        },
                    );
                })
            };
            self.map.with_grad(&self.workers.shelf, install);
            Ok(())
        })?;
        Ok(Some(stand_in.zeros_like()?))
    }
}
