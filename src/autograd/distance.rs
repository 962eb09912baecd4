//! The distance of two maps as a candle operation.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use laud_kernels::Element;
use rayon::prelude::*;

use super::map::Values;
use super::op::with_values;
use super::work::Workers;

/// Values whose squares are summed in f32, on any number of threads.
const SUMMED: usize = 1 << 12;

/// `‖map − from‖² / ‖from‖²`.
pub(super) struct DistanceOp<E: Element> {
    pub(super) map: Arc<Values<E>>,
    pub(super) from: Arc<Values<E>>,
    pub(super) workers: Arc<Workers<E>>,
}

impl<E: Element> DistanceOp<E> {
    /// Sums of the squares of the differences, and of what they are from.
    fn squares(&self) -> Result<(f64, f64)> {
        let pairs = self.map.get()?.par_chunks(SUMMED).zip(self.from.get()?.par_chunks(SUMMED));
        let parts: Vec<(f32, f32)> = self.workers.install(|| {
            let part = |(map, from): (&[E], &[E])| {
                let values = map.iter().zip(from).map(|(map, from)| (map.to_f32(), from.to_f32()));
                values.fold((0.0, 0.0), |(apart, size), (map, from)| {
                    (apart + (map - from) * (map - from), size + from * from)
                })
            };
            pairs.map(part).collect()
        });
        let sums = parts
            .iter()
            .fold((0.0, 0.0), |(apart, size), part| (apart + f64::from(part.0), size + f64::from(part.1)));
        Ok((sums.0, sums.1.max(f64::MIN_POSITIVE)))
    }
}

impl<E: Element> CustomOp1 for DistanceOp<E> {
    fn name(&self) -> &'static str {
        "distance"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let (apart, size) = self.squares()?;
        Ok((CpuStorage::F32(vec![(apart / size) as f32]), Shape::from(())))
    }

    fn bwd(&self, stand_in: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (_, size) = self.squares()?;
        let (map, from) = (self.map.get()?, self.from.get()?);
        with_values(&[&grad.contiguous()?], |grad| {
            let factor = (2.0 * f64::from(grad[0][0]) / size) as f32;
            self.map.with_grad(&self.workers.shelf, |sum| {
                self.workers.install(|| {
                    let maps = map.par_chunks(SUMMED).zip(from.par_chunks(SUMMED));
                    sum.par_chunks_mut(SUMMED).zip(maps).for_each(|(sum, (map, from))| {
                        for (sum, (map, from)) in sum.iter_mut().zip(map.iter().zip(from)) {
                            *sum += factor * (map.to_f32() - from.to_f32());
                        }
                    });
                });
            });
            Ok(())
        })?;
        Ok(Some(stand_in.zeros_like()?))
    }
}
