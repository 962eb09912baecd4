//! Max pooling as a candle operation.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use laud_kernels::max_pool::{self, MaxPool};
use laud_kernels::{ConvGeometry, Element, Team};
use rayon::prelude::*;

use super::map::Values;
use super::op::outside;
use super::shelf::Shelf;
use super::work::Workers;

/// Max pooling, `[n, h, w, c]` to `[n, h', w', c]`. The first of equal values gets the gradient, as in PyTorch.
pub(super) struct MaxPoolOp<E: Element> {
    pub(super) geometry: ConvGeometry,
    pub(super) x: Arc<Values<E>>,
    pub(super) y: Arc<Values<E>>,
    pub(super) workers: Arc<Workers<E>>,
}

impl<E: Element> MaxPoolOp<E> {
    /// Adds the gradient of one sample's output to its input's.
    fn add_grad(&self, (x, y, dy): (&[E], &[E], &[f32]), dx: &mut [f32]) {
        let g = &self.geometry;
        let c = g.c_in;
        let mut given = vec![false; c];
        for (pixel, (y, dy)) in y.chunks_exact(c).zip(dy.chunks_exact(c)).enumerate() {
            let (top, left) = (pixel / g.output.w * g.stride, pixel % g.output.w * g.stride);
            given.fill(false);
            for tap in 0..g.kernel * g.kernel {
                let row = (top + tap / g.kernel).wrapping_sub(g.pad_top);
                let column = (left + tap % g.kernel).wrapping_sub(g.pad_left);
                if row >= g.input.h || column >= g.input.w {
                    continue;
                }
                let start = (row * g.input.w + column) * c;
                let input = x[start..start + c].iter().zip(&mut dx[start..start + c]);
                for ((x, dx), ((y, dy), given)) in input.zip(y.iter().zip(dy).zip(&mut given)) {
                    let won = !*given & (x.to_f32() == y.to_f32());
                    *dx += if won { *dy } else { 0.0 };
                    *given |= won;
                }
            }
        }
    }
}

impl<E: Element> CustomOp1 for MaxPoolOp<E> {
    fn name(&self) -> &'static str {
        "max pool"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let (g, workers) = (&self.geometry, &self.workers);
        let (size, out) = (g.input.pixels() * g.c_in, g.output.pixels() * g.c_out);
        let mut y = Shelf::any(&workers.maps, self.y.shape[0] * out);
        let x = self.x.get()?;
        let done = workers.install(|| {
            y.par_chunks_mut(out).zip(x.par_chunks(size)).try_for_each(|(output, input)| {
                let call = MaxPool { geometry: *g, batch: 1, input, output };
                Team::scope(None, |team| max_pool::run(workers.isa, team, call))
            })
        });
        done.map_err(|error| outside(error.into()))?;
        self.y.set(y)?;
        Ok(self.y.stand_in())
    }

    fn bwd(&self, stand_in: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        let (g, workers) = (&self.geometry, &self.workers);
        let (size, out) = (g.input.pixels() * g.c_in, g.output.pixels() * g.c_out);
        let (x, y, dy) = (self.x.get()?, self.y.get()?, self.y.take_grad(&workers.shelf));
        self.x.with_grad(&workers.shelf, |dx| {
            workers.install(|| {
                let read = x.par_chunks(size).zip(y.par_chunks(out)).zip(dy.par_chunks(out));
                dx.par_chunks_mut(size).zip(read).for_each(|(dx, ((x, y), dy))| {
                    self.add_grad((x, y, dy), dx);
                });
            });
        });
        Ok(Some(stand_in.zeros_like()?))
    }
}
