//! A chain as a candle operation.

use std::sync::{Arc, Mutex};

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Storage, Tensor};

use super::chain::{Chain, Inputs, Moments, Moved, Saved};
use super::grads::Wanted;
use super::work::Workers;
use crate::train::Statistics;

/// A [`Chain`] of map, parameters and decisions.
pub(super) struct ChainOp {
    chain: Chain,
    workers: Arc<Workers>,
    n: usize,
    statistics: Statistics,
    stored: Vec<Option<Moments>>,
    wanted: Wanted,
    saved: Mutex<Option<Saved>>,
    moved: Arc<Mutex<Option<Moved>>>,
}

impl ChainOp {
    pub(super) fn new(
        chain: Chain,
        workers: Arc<Workers>,
        n: usize,
        statistics: Statistics,
        stored: Vec<Option<Moments>>,
        wanted: Wanted,
    ) -> Self {
        let (saved, moved) = (Mutex::new(None), Arc::default());
        Self { chain, workers, n, statistics, stored, wanted, saved, moved }
    }

    /// Where the batch's statistics will be.
    pub(super) fn moved(&self) -> Arc<Mutex<Option<Moved>>> {
        self.moved.clone()
    }

    fn inputs<'a>(&'a self, x: &'a [f32], params: &'a [f32], keep: &'a [f32]) -> Result<Inputs<'a>> {
        let (unit, (spatial, channel)) = (&self.chain.units[0], self.chain.decisions(self.n));
        let need = [self.n * unit.input_len(), self.chain.params(), (spatial + channel).max(1)];
        let got = [x.len(), params.len(), keep.len()];
        if got != need {
            candle_core::bail!("chain: map, parameters and decisions have {got:?} values, expected {need:?}");
        }
        Ok(Inputs { workers: &self.workers, n: self.n, statistics: self.statistics, x, params, keep })
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

fn outside(error: anyhow::Error) -> candle_core::Error {
    candle_core::Error::Msg(format!("{error:#}"))
}

impl CustomOp3 for ChainOp {
    fn name(&self) -> &'static str {
        "chain"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        params: &CpuStorage,
        params_layout: &Layout,
        keep: &CpuStorage,
        keep_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, params, keep) =
            (slice(x, x_layout)?, slice(params, params_layout)?, slice(keep, keep_layout)?);
        let inputs = self.inputs(x, params, keep)?;
        let (y, saved, moved) = self.chain.forward(inputs, &self.stored).map_err(outside)?;
        *self.saved.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(saved);
        *self.moved.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(moved);
        let last = self.chain.last();
        let (map, c) = (last.output_map(), last.geometry.c_out);
        Ok((CpuStorage::F32(y), Shape::from((self.n, map.h, map.w, c))))
    }

    fn bwd(
        &self,
        x: &Tensor,
        params: &Tensor,
        keep: &Tensor,
        y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let saved = self.saved.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        let Some(saved) = saved else { candle_core::bail!("chain: a second way back") };
        let dy = dy.contiguous()?;
        let grads = with_values(&[x, params, keep, y, &dy], |values| {
            let inputs = self.inputs(values[0], values[1], values[2])?;
            self.chain.backward(inputs, &saved, (values[3], values[4]), self.wanted).map_err(outside)
        })?;
        let tensor = |values: Vec<f32>, like: &Tensor| Tensor::from_vec(values, like.shape(), like.device());
        Ok((
            grads.x.map(|dx| tensor(dx, x)).transpose()?,
            grads.params.map(|dparams| tensor(dparams, params)).transpose()?,
            keep.track_op().then(|| tensor(grads.keep, keep)).transpose()?,
        ))
    }
}
