//! Maps that candle's graph knows by a stand-in only, so that their gradients are added up in place.

use std::any::Any;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use anyhow::{Context, Result};
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Shape, Tensor};
use laud_kernels::Element;

use super::op::{slice, with_values};
use super::shelf::{Buffer, Shelf};
use super::work::Workers;
use crate::train::Map;

/// A map `[n, h, w, c]` and, on the way back, its gradient. The stand-in is zeros `[n]`: what passes it orders the way back.
pub(super) struct Values<E> {
    pub(super) shape: [usize; 4],
    values: OnceLock<Buffer<E>>,
    grad: Mutex<Option<Buffer<f32>>>,
}

impl<E: Element> Values<E> {
    /// To be filled.
    pub(super) fn new(shape: [usize; 4]) -> Arc<Self> {
        Arc::new(Self { shape, values: OnceLock::new(), grad: Mutex::new(None) })
    }

    /// Those behind a map that [`map`](Self::map) made.
    pub(super) fn of(map: &Map) -> Result<Arc<Self>> {
        let held = map.held.clone().and_then(|held: Arc<dyn Any + Send + Sync>| held.downcast().ok());
        held.context("a map of another implementation")
    }

    /// The map whose stand-in is `tensor`.
    pub(super) fn map(self: Arc<Self>, tensor: Tensor) -> Map {
        Map { tensor, held: Some(self) }
    }

    /// Fills; once.
    pub(super) fn set(&self, values: Buffer<E>) -> candle_core::Result<()> {
        self.values.set(values).map_err(|_| candle_core::Error::Msg("a map is computed once".into()))
    }

    pub(super) fn get(&self) -> candle_core::Result<&[E]> {
        match self.values.get() {
            Some(values) => Ok(values),
            None => candle_core::bail!("a map that is not computed"),
        }
    }

    fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// What `forward` gives for the stand-in.
    pub(super) fn stand_in(&self) -> (CpuStorage, Shape) {
        (CpuStorage::F32(vec![0.0; self.shape[0]]), Shape::from(self.shape[0]))
    }

    /// The gradient, of which there is none before someone calls this.
    fn grad(&self) -> MutexGuard<'_, Option<Buffer<f32>>> {
        self.grad.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All that was added, for whoever made the map.
    pub(super) fn take_grad(&self, shelf: &Arc<Shelf<f32>>) -> Buffer<f32> {
        self.grad().take().unwrap_or_else(|| Shelf::zeros(shelf, self.len()))
    }

    /// Adds to the gradient.
    pub(super) fn add_grad(&self, more: Buffer<f32>) {
        let mut grad = self.grad();
        match grad.as_mut() {
            Some(grad) => grad.iter_mut().zip(more.iter()).for_each(|(grad, more)| *grad += more),
            None => *grad = Some(more),
        }
    }

    /// Lets `add` add to the gradient.
    pub(super) fn with_grad(&self, shelf: &Arc<Shelf<f32>>, add: impl FnOnce(&mut [f32])) {
        add(self.grad().get_or_insert_with(|| Shelf::zeros(shelf, self.len())));
    }

    /// Calls with every value's place here and in `[n, c, h, w]`.
    fn each(&self, mut f: impl FnMut(usize, usize)) {
        let [n, h, w, c] = self.shape;
        for at in 0..n * h * w * c {
            let (pixel, channel) = (at / c, at % c);
            f(at, (pixel / (h * w) * c + channel) * h * w + pixel % (h * w));
        }
    }
}

/// Images `[n, c, h, w]` to a stand-in.
pub(super) struct Enter<E: Element> {
    pub(super) values: Arc<Values<E>>,
    pub(super) workers: Arc<Workers<E>>,
}

impl<E: Element> CustomOp1 for Enter<E> {
    fn name(&self) -> &'static str {
        "enter"
    }

    fn cpu_fwd(&self, images: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let images = slice(images, layout)?;
        let mut values = Shelf::any(&self.workers.maps, images.len());
        self.values.each(|here, there| values[here] = E::from_f32(images[there]));
        self.values.set(values)?;
        Ok(self.values.stand_in())
    }

    fn bwd(&self, images: &Tensor, _: &Tensor, _: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let grad = self.values.take_grad(&self.workers.shelf);
        let mut out = vec![0.0; grad.len()];
        self.values.each(|here, there| out[there] = grad[here]);
        Ok(Some(Tensor::from_vec(out, images.shape(), images.device())?))
    }
}

/// A stand-in to its map as `[n, c, h, w]`.
pub(super) struct Leave<E: Element> {
    pub(super) values: Arc<Values<E>>,
    pub(super) workers: Arc<Workers<E>>,
}

impl<E: Element> CustomOp1 for Leave<E> {
    fn name(&self) -> &'static str {
        "leave"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let values = self.values.get()?;
        let mut out = vec![0.0; values.len()];
        self.values.each(|here, there| out[there] = values[here].to_f32());
        let [n, h, w, c] = self.values.shape;
        Ok((CpuStorage::F32(out), Shape::from((n, c, h, w))))
    }

    fn bwd(&self, stand_in: &Tensor, _: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        with_values(&[&grad.contiguous()?], |grads| {
            self.values.with_grad(&self.workers.shelf, |sum| {
                self.values.each(|here, there| sum[here] += grads[0][there]);
            });
            Ok(())
        })?;
        Ok(Some(Tensor::zeros(stand_in.shape(), DType::F32, stand_in.device())?))
    }
}
