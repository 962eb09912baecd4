//! [`Cuda`]: the operations of a [`Backend`], as launches.

use super::driver::Driver;
use super::memory::{Buffer, Channels, Rows, Vector};
use super::precision::Precision;
use super::queue::{CudaQueue, CudaScratch, Images};
use super::shape::Shape;
use super::weights::{Depthwise, Filter, Linear, PatchGate, SqueezeExcite};
use crate::compact::{self, Branch, BranchRows, ListChannels};
use crate::gate::{self, Decide};
use crate::gather_gemm::{self, FilterSpec, GatherGemm};
use crate::layout::{self, FromNchw};
use crate::max_pool::{self, MaxPool};
use crate::mean_pool::{self, MeanPool};
use crate::shortcut::{self, PadChannels};
use crate::squeeze_excite::{self, WeightsSpec};
use crate::{Backend, Error, Extent, Result, Value, depthwise};
use std::sync::Arc;

/// A CUDA device as a [`Backend`].
///
/// An inference that comes again is one launch of a graph: nothing in it waits for this machine, or is allocated.
#[derive(Clone)]
pub struct Cuda {
    driver: Arc<dyn Driver>,
    precision: Precision,
}

impl Cuda {
    /// A device behind its driver, storing and multiplying as `precision` says.
    pub fn new(driver: Arc<dyn Driver>, precision: Precision) -> Self {
        Self { driver, precision }
    }

    /// What it runs on.
    pub fn driver(&self) -> &Arc<dyn Driver> {
        &self.driver
    }
}

impl Backend for Cuda {
    type Buffer = Buffer;
    type Vector<T: Value> = Vector<T>;
    type Rows = Rows;
    type Channels = Channels;
    type Images<'i> = Images;
    type Filter = Filter;
    type Depthwise = Depthwise;
    type SqueezeExcite = SqueezeExcite;
    type PatchGate = PatchGate;
    type Linear = Linear;
    type Scratch = CudaScratch;
    type Queue<'q> = CudaQueue<'q>;

    fn describe(&self) -> String {
        let p = self.driver.properties();
        let (major, minor) = (p.capability / 10, p.capability % 10);
        let multiprocessors = p.multiprocessors;
        format!("{}, {}, sm_{major}{minor}, {multiprocessors} multiprocessors", p.name, self.precision)
    }

    fn element_bytes(&self) -> usize {
        self.precision.bytes()
    }

    fn map_bytes(&self) -> usize {
        MAP_BYTES
    }

    fn buffer(&self, len: usize, what: &str) -> Result<Buffer> {
        Buffer::zeroed(&self.driver, len, self.precision.bytes(), what)
    }

    fn image(&self, batch: usize, bordered: Extent, c: usize) -> Result<Buffer> {
        self.buffer(batch * bordered.pixels() * self.pixel(c), "image")
    }

    fn vector<T: Value>(&self, len: usize, what: &str) -> Result<Vector<T>> {
        Vector::zeroed(&self.driver, len, what)
    }

    fn rows(&self, batch: usize, pixels: usize) -> Result<Rows> {
        Rows::with_capacity(&self.driver, batch, pixels)
    }

    fn channels(&self, batch: usize, total: usize) -> Result<Channels> {
        Channels::with_capacity(&self.driver, batch, total)
    }

    fn filter(&self, spec: &FilterSpec<'_>) -> Result<Filter> {
        Filter::pack(&self.driver, self.precision, spec, spec.geometry.c_in)
    }

    fn image_filter(&self, spec: &FilterSpec<'_>) -> Result<Filter> {
        Filter::pack(&self.driver, self.precision, spec, self.pixel(spec.geometry.c_in))
    }

    fn depthwise_filter(&self, spec: &FilterSpec<'_>) -> Result<Depthwise> {
        Depthwise::pack(&self.driver, spec)
    }

    fn squeeze_excite_weights(&self, spec: &WeightsSpec<'_>) -> Result<SqueezeExcite> {
        SqueezeExcite::new(&self.driver, spec)
    }

    fn patch_gate_weights(&self, gate: gate::PatchGate) -> Result<PatchGate> {
        PatchGate::new(&self.driver, &gate)
    }

    fn linear_weights(&self, layer: gate::Linear) -> Result<Linear> {
        Linear::new(&self.driver, &layer)
    }

    fn scratch(&self) -> Result<CudaScratch> {
        let p = self.driver.properties();
        let (capability, multiprocessors, shared_bytes) = (p.capability, p.multiprocessors, p.shared_bytes);
        let shape = Shape { precision: self.precision, capability, multiprocessors, shared_bytes };
        let mut scratch = CudaScratch::new(&self.driver, shape)?;
        let [counters, sums] = shape.parts_bytes();
        scratch.zeros.reserve(&self.driver, counters, "counters")?;
        scratch.partial.reserve(&self.driver, sums, "parts of sums")?;
        Ok(scratch)
    }

    fn reserve(&self, _scratch: &mut CudaScratch, _filter: &Filter, _channels: bool) -> Result<()> {
        Ok(())
    }

    fn reserve_squeeze_excite(
        &self,
        scratch: &mut CudaScratch,
        weights: &SqueezeExcite,
        batch: usize,
    ) -> Result<()> {
        squeeze_excite::cuda::reserve(&self.driver, scratch, weights, batch)
    }

    fn reserve_rows(&self, scratch: &mut CudaScratch, branch: &Branch, batch: usize) -> Result<()> {
        let words = 2 + batch.saturating_mul(branch.convs.len());
        scratch.zeros.reserve(&self.driver, words.saturating_mul(size_of::<u32>()), "compaction")
    }

    fn reserve_stamps(&self, _scratch: &mut CudaScratch, _count: usize) -> Result<()> {
        Ok(())
    }

    fn run<R: Send>(
        &self,
        scratch: &mut CudaScratch,
        inference: impl FnOnce(&mut CudaQueue<'_>) -> R + Send,
    ) -> R {
        inference(&mut scratch.queue())
    }

    fn play<X: From<Error>>(
        queue: &mut CudaQueue<'_>,
        key: Option<u64>,
        images: &[f32],
        program: impl FnOnce(&mut CudaQueue<'_>, Images) -> Result<(), X>,
    ) -> Result<(), X> {
        let images = queue.bring(images)?;
        let Some(key) = key else {
            queue.start_stamps();
            return program(queue, images);
        };
        if queue.replay(key)? {
            return Ok(());
        }
        if !queue.seen(key) {
            return program(queue, images);
        }
        queue.record(key, |queue| program(queue, images))
    }

    fn upload<T: Value>(
        queue: &mut CudaQueue<'_>,
        vector: &mut Vector<T>,
        fill: impl FnOnce(&mut [T]),
    ) -> Result<()> {
        queue.wait()?;
        // SAFETY: everything issued has been waited for.
        fill(unsafe { vector.values_mut() });
        queue.copy_in(&vector.memory, &vector.host, 0..vector.bytes())
    }

    fn fetch<T: Value>(queue: &mut CudaQueue<'_>, vector: &mut Vector<T>) -> Result<()> {
        queue.copy_out(&vector.host, &vector.memory, vector.bytes())
    }

    fn copy(queue: &mut CudaQueue<'_>, from: &Buffer, len: usize, to: &mut Buffer, at: usize) -> Result<()> {
        let element = from.memory.bytes() / from.len.max(1);
        queue.copy(&to.memory, at * element, &from.memory, len * element)
    }

    fn read<'v, T: Value>(queue: &mut CudaQueue<'_>, vector: &'v Vector<T>) -> Result<&'v [T]> {
        queue.wait()?;
        // SAFETY: everything issued has been waited for; operations that would write take the vector mutably, and a
        // replay is of a program that did.
        unsafe { vector.values() }
    }

    fn stamp(queue: &mut CudaQueue<'_>) {
        // A stamp that failed has no time, which is an error when somebody asks for it.
        let _ = queue.stamp();
    }

    fn lap(queue: &mut CudaQueue<'_>, i: usize) -> Result<u64> {
        queue.lap(i)
    }

    fn all_rows(rows: &mut Rows, batch: usize, pixels: usize) {
        rows.set_all(batch, pixels);
    }

    fn all_channels(channels: &mut Channels, total: usize) {
        channels.set_all(total);
    }

    fn when(queue: &mut CudaQueue<'_>, rows: &Rows) -> Result<bool> {
        queue.when(rows)
    }

    fn end_when(queue: &mut CudaQueue<'_>) -> Result<()> {
        queue.end_when()
    }

    /// What is in a list is known to the device only; and there a row found by its pixel is as quick to read.
    fn same_rows(_a: &Rows, _b: &Rows) -> bool {
        false
    }

    fn patch_gate(
        queue: &mut CudaQueue<'_>,
        gate: &PatchGate,
        input: &Buffer,
        batch: usize,
        map: Extent,
        margins: &mut Vector<f32>,
    ) -> Result<()> {
        gate::cuda::patch(queue, gate, input, batch, map, margins)
    }

    fn linear(
        queue: &mut CudaQueue<'_>,
        layer: &Linear,
        batch: usize,
        input: &Vector<f32>,
        output: &mut Vector<f32>,
    ) -> Result<()> {
        gate::cuda::linear(queue, layer, batch, input, output)
    }

    fn decide(queue: &mut CudaQueue<'_>, call: Decide<'_, Vector<f32>, Vector<bool>>) -> Result<()> {
        gate::cuda::decide(queue, call)
    }

    fn list_rows(
        queue: &mut CudaQueue<'_>,
        call: BranchRows<'_, Vector<bool>, Vector<u32>, Rows>,
    ) -> Result<()> {
        compact::cuda::list_rows(queue, call)
    }

    fn list_channels(
        queue: &mut CudaQueue<'_>,
        call: ListChannels<'_, Vector<bool>, Channels>,
    ) -> Result<()> {
        compact::cuda::list_channels(queue, call)
    }

    fn gather_gemm(
        queue: &mut CudaQueue<'_>,
        filter: &Filter,
        call: GatherGemm<'_, Buffer, Rows, Channels>,
    ) -> Result<()> {
        gather_gemm::cuda::run(queue, filter, call)
    }

    fn depthwise(
        queue: &mut CudaQueue<'_>,
        filter: &Depthwise,
        call: depthwise::Depthwise<'_, Buffer, Rows, Channels>,
    ) -> Result<()> {
        depthwise::cuda::run(queue, filter, call)
    }

    fn max_pool(queue: &mut CudaQueue<'_>, call: MaxPool<'_, Buffer>) -> Result<()> {
        max_pool::cuda::run(queue, call)
    }

    fn mean_pool(
        queue: &mut CudaQueue<'_>,
        call: MeanPool<'_, Buffer, Vector<f32>, Rows, Channels>,
    ) -> Result<()> {
        mean_pool::cuda::run(queue, call)
    }

    fn squeeze_excite(
        queue: &mut CudaQueue<'_>,
        weights: &SqueezeExcite,
        call: squeeze_excite::SqueezeExcite<'_, Buffer, Rows, Channels>,
    ) -> Result<()> {
        squeeze_excite::cuda::run(queue, weights, call)
    }

    fn pad_channels(queue: &mut CudaQueue<'_>, call: PadChannels<'_, Buffer>) -> Result<()> {
        shortcut::cuda::run(queue, call)
    }

    fn from_nchw(queue: &mut CudaQueue<'_>, call: FromNchw<'_, Buffer, Images>) -> Result<()> {
        layout::cuda::from_nchw(queue, call)
    }

    fn to_nchw(
        queue: &mut CudaQueue<'_>,
        batch: usize,
        map: Extent,
        c: usize,
        input: &Buffer,
        output: &mut Vector<f32>,
    ) -> Result<()> {
        layout::cuda::to_nchw(queue, batch, map, c, input, output)
    }
}

/// Bytes of the largest map of an inference: rows and elements are counted in 32 bits.
const MAP_BYTES: usize = 1 << 31;

impl Cuda {
    /// Elements from pixel to pixel of an image: whole vectors.
    fn pixel(&self, c: usize) -> usize {
        c.next_multiple_of(self.precision.vector())
    }
}
