//! A chain as a candle operation.

use std::sync::{Arc, Mutex};

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Storage, Tensor};
use laud_kernels::Element;

use super::chain::{Chain, Inputs, Moments, Moved, Saved};
use super::grads::Wanted;
use super::map::Values;
use super::work::Workers;
use crate::train::Statistics;

/// A [`Chain`] of map, parameters and decisions.
pub(super) struct ChainOp<E: Element> {
    chain: Chain,
    workers: Arc<Workers<E>>,
    x: Arc<Values<E>>,
    y: Arc<Values<E>>,
    n: usize,
    statistics: Statistics,
    stored: Vec<Option<Moments>>,
    wanted: Wanted,
    /// Samples that the decisions drop are not computed.
    skips: bool,
    saved: Mutex<Option<Saved<E>>>,
    moved: Arc<Mutex<Option<Moved>>>,
}

impl<E: Element> ChainOp<E> {
    pub(super) fn new(
        chain: Chain,
        workers: Arc<Workers<E>>,
        x: Arc<Values<E>>,
        statistics: Statistics,
        stored: Vec<Option<Moments>>,
        wanted: Wanted,
    ) -> Self {
        let (saved, moved) = (Mutex::new(None), Arc::default());
        let only_kept = statistics == Statistics::Kept || statistics == Statistics::Stored && !wanted.keep;
        let skips = only_kept && chain.link.is_layer();
        let wanted = Wanted { keep: wanted.keep && !skips, ..wanted };
        let (n, last) = (x.shape[0], chain.last());
        let y = Values::new([n, last.output_map().h, last.output_map().w, last.geometry.c_out]);
        Self { chain, workers, x, y, n, statistics, stored, wanted, skips, saved, moved }
    }

    /// Where the batch's statistics will be.
    pub(super) fn moved(&self) -> Arc<Mutex<Option<Moved>>> {
        self.moved.clone()
    }

    /// The map behind the chain.
    pub(super) fn output(&self) -> Arc<Values<E>> {
        self.y.clone()
    }

    fn inputs<'a>(&'a self, params: &'a [f32], keep: &'a [f32]) -> Result<Inputs<'a, E>> {
        let x = self.x.get()?;
        let (unit, (spatial, channel)) = (&self.chain.units[0], self.chain.decisions(self.n));
        let need = [self.n * unit.input_len(), self.chain.params(), (spatial + channel).max(1)];
        let got = [x.len(), params.len(), keep.len()];
        if got != need {
            candle_core::bail!("chain: map, parameters and decisions have {got:?} values, expected {need:?}");
        }
        let (workers, n, statistics, skips) = (&*self.workers, self.n, self.statistics, self.skips);
        Ok(Inputs { workers, n, statistics, skips, x, params, keep })
    }
}

pub(super) fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => candle_core::bail!("a map of shape {:?} is not contiguous", layout.shape()),
    }
}

/// Calls with the values of contiguous tensors on the CPU.
pub(super) fn with_values<R>(tensors: &[&Tensor], f: impl FnOnce(&[&[f32]]) -> Result<R>) -> Result<R> {
    let guards: Vec<_> = tensors.iter().map(|tensor| tensor.storage_and_layout()).collect();
    let values = guards.iter().map(|(storage, layout)| match &**storage {
        Storage::Cpu(storage) => slice(storage, layout),
        _ => candle_core::bail!("a map on another device than the CPU"),
    });
    f(&values.collect::<Result<Vec<_>>>()?)
}

pub(super) fn outside(error: anyhow::Error) -> candle_core::Error {
    candle_core::Error::Msg(format!("{error:#}"))
}

impl<E: Element> CustomOp3 for ChainOp<E> {
    fn name(&self) -> &'static str {
        "chain"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        params: &CpuStorage,
        params_layout: &Layout,
        keep: &CpuStorage,
        keep_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let inputs = self.inputs(slice(params, params_layout)?, slice(keep, keep_layout)?)?;
        let (y, saved, moved) = self.chain.forward(inputs, &self.stored).map_err(outside)?;
        let saved = self.wanted.any().then_some(saved);
        *self.saved.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = saved;
        *self.moved.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(moved);
        self.y.set(y)?;
        Ok(self.y.stand_in())
    }

    fn bwd(
        &self,
        x: &Tensor,
        params: &Tensor,
        keep: &Tensor,
        _: &Tensor,
        _: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let saved = self.saved.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        let Some(saved) = saved else { candle_core::bail!("chain: a second way back") };
        let (y, dy) = (self.y.get()?, self.y.take_grad(&self.workers.shelf));
        let grads = with_values(&[params, keep], |values| {
            let inputs = self.inputs(values[0], values[1])?;
            self.chain.backward(inputs, &saved, (y, dy), self.wanted).map_err(outside)
        })?;
        let tensor = |values: Vec<f32>, like: &Tensor| Tensor::from_vec(values, like.shape(), like.device());
        Ok((
            grads.x.map(|dx| self.x.add_grad(dx)).map(|()| x.zeros_like()).transpose()?,
            grads.params.map(|dparams| tensor(dparams, params)).transpose()?,
            keep.track_op().then(|| tensor(grads.keep, keep)).transpose()?,
        ))
    }
}
