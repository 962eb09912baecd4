use crate::buffer::Arena;
use crate::compact::{self, Branch, BranchRows, ListChannels};
use crate::depthwise::{self, Depthwise};
use crate::error::require;
use crate::gate::{self, Account, Decide, Linear, LinearWeights, Most, PatchGate};
use crate::gather_gemm::{Filter, FilterSpec, GatherGemm, Scratch};
use crate::layout::{self, FromNchw};
use crate::max_pool::MaxPool;
use crate::mean_pool::MeanPool;
use crate::shortcut::{self, PadChannels};
use crate::squeeze_excite::{self, SqueezeExcite, Weights, WeightsSpec};
use crate::{
    Backend, Buffer, Channels, Crew, DType, Element, Error, Extent, Isa, PartSums, Result, Rows, Team, Value,
};
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Instant;

/// The CPU as a [`Backend`], storing activations and weights as `E`.
///
/// Inferences share the rayon pool they are given; see [`Team`]. Without a pool everything runs on the calling
/// thread.
#[derive(Clone)]
pub struct Cpu<E> {
    isa: Isa,
    crew: Option<Arc<Crew>>,
    /// Where filters lie.
    arena: Arc<Arena>,
    element: PhantomData<E>,
}

impl<E: Element> Cpu<E> {
    /// The CPU with the instruction set `isa` and the threads of `pool`.
    pub fn new(isa: Isa, pool: Option<Arc<rayon::ThreadPool>>) -> Self {
        let crew = pool.map(|pool| Arc::new(Crew::new(pool)));
        Self { isa, crew, arena: Arc::default(), element: PhantomData }
    }

    /// Threads of an inference.
    pub fn threads(&self) -> usize {
        self.crew.as_ref().map_or(1, |crew| crew.threads())
    }
}

/// Operations of one inference on the CPU: they run as they are issued.
pub struct CpuQueue<'q, E> {
    isa: Isa,
    team: &'q mut Team,
    scratch: &'q mut CpuScratch<E>,
}

/// Working memory of one inference on the CPU.
pub struct CpuScratch<E> {
    /// One for each thread.
    gemm: Vec<Scratch<E>>,
    squeeze: squeeze_excite::Scratch,
    parts: PartSums,
    rows: compact::Scratch,
    stamps: Vec<Instant>,
}

/// Bytes of the feature maps of the samples that run together. More samples amortise the weights better, until their maps
/// no longer stay in the caches between two convolutions.
const MAP_BYTES: usize = 2_000_000;

impl<E: Element> Backend for Cpu<E> {
    type Buffer = Buffer<E>;
    type Vector<T: Value> = Vec<T>;
    type Rows = Rows;
    type Channels = Channels;
    type Images<'i> = &'i [f32];
    type Filter = Filter<E>;
    type Depthwise = depthwise::Filter;
    type SqueezeExcite = Weights;
    type PatchGate = PatchGate;
    type Linear = LinearWeights<E>;
    type Scratch = CpuScratch<E>;
    type Queue<'q> = CpuQueue<'q, E>;

    fn describe(&self) -> String {
        format!("cpu, {}, {}, {} threads", E::DTYPE, self.isa.name(), self.threads())
    }

    fn element_bytes(&self) -> usize {
        size_of::<E>()
    }

    fn integers(&self) -> bool {
        E::DTYPE == DType::Int8
    }

    fn map_bytes(&self) -> usize {
        MAP_BYTES
    }

    fn buffer(&self, len: usize, what: &str) -> Result<Buffer<E>> {
        Buffer::zeroed(len, what)
    }

    fn vector<T: Value>(&self, len: usize, what: &str) -> Result<Vec<T>> {
        let mut vector = Vec::new();
        let bytes = len.saturating_mul(size_of::<T>());
        vector.try_reserve_exact(len).map_err(|_| Error::OutOfMemory { what: what.to_owned(), bytes })?;
        vector.resize(len, T::default());
        Ok(vector)
    }

    fn rows(&self, batch: usize, pixels: usize) -> Result<Rows> {
        Ok(Rows::with_capacity(batch, pixels))
    }

    fn channels(&self, batch: usize, total: usize) -> Result<Channels> {
        Ok(Channels::with_capacity(batch, total))
    }

    fn filter(&self, spec: &FilterSpec<'_>) -> Result<Filter<E>> {
        Filter::pack_in(self.isa, spec, |len, what| self.arena.zeroed(len, what))
    }

    fn depthwise_filter(&self, spec: &FilterSpec<'_>) -> Result<depthwise::Filter> {
        depthwise::Filter::pack(spec)
    }

    fn squeeze_excite_weights(&self, spec: &WeightsSpec<'_>) -> Result<Weights> {
        Weights::pack(spec)
    }

    fn patch_gate_weights(&self, gate: PatchGate) -> Result<PatchGate> {
        Ok(gate)
    }

    fn linear_weights(&self, layer: Linear) -> Result<LinearWeights<E>> {
        LinearWeights::pack_in(&layer, |len, what| self.arena.zeroed(len, what))
    }

    fn scratch(&self) -> Result<CpuScratch<E>> {
        let gemm = (0..self.threads()).map(|_| Scratch::new()).collect::<Result<_>>()?;
        let (rows, stamps) = (compact::Scratch::default(), Vec::new());
        let (squeeze, parts) = (squeeze_excite::Scratch::new()?, PartSums::new()?);
        Ok(CpuScratch { gemm, squeeze, parts, rows, stamps })
    }

    fn reserve(&self, scratch: &mut CpuScratch<E>, filter: &Filter<E>, channels: bool) -> Result<()> {
        scratch.gemm.iter_mut().try_for_each(|scratch| scratch.reserve(filter, channels))
    }

    fn reserve_squeeze_excite(
        &self,
        scratch: &mut CpuScratch<E>,
        weights: &Weights,
        batch: usize,
    ) -> Result<()> {
        scratch.squeeze.reserve(weights, batch)
    }

    fn reserve_rows(&self, scratch: &mut CpuScratch<E>, branch: &Branch, batch: usize) -> Result<()> {
        scratch.rows.reserve(branch, batch);
        Ok(())
    }

    fn reserve_stamps(&self, scratch: &mut CpuScratch<E>, count: usize) -> Result<()> {
        scratch.stamps.clear();
        scratch.stamps.reserve(count);
        Ok(())
    }

    fn run<R: Send>(
        &self,
        scratch: &mut CpuScratch<E>,
        inference: impl FnOnce(&mut CpuQueue<'_, E>) -> R + Send,
    ) -> R {
        let isa = self.isa;
        Team::scope(self.crew.as_deref(), |team| inference(&mut CpuQueue { isa, team, scratch }))
    }

    fn play<X: From<Error>>(
        queue: &mut CpuQueue<'_, E>,
        _key: Option<u64>,
        images: &[f32],
        program: impl FnOnce(&mut CpuQueue<'_, E>, &[f32]) -> Result<(), X>,
    ) -> Result<(), X> {
        queue.scratch.stamps.clear();
        program(queue, images)
    }

    fn upload<T: Value>(
        _queue: &mut CpuQueue<'_, E>,
        vector: &mut Vec<T>,
        fill: impl FnOnce(&mut [T]),
    ) -> Result<()> {
        fill(vector);
        Ok(())
    }

    fn fetch<T: Value>(_queue: &mut CpuQueue<'_, E>, _vector: &mut Vec<T>) -> Result<()> {
        Ok(())
    }

    fn copy(
        queue: &mut CpuQueue<'_, E>,
        from: &Buffer<E>,
        len: usize,
        to: &mut Buffer<E>,
        at: usize,
    ) -> Result<()> {
        layout::copy(queue.team, &from.as_slice()[..len], &mut to.as_mut_slice()[at..at + len]);
        Ok(())
    }

    fn read<'v, T: Value>(_queue: &mut CpuQueue<'_, E>, vector: &'v Vec<T>) -> Result<&'v [T]> {
        Ok(vector)
    }

    fn stamp(queue: &mut CpuQueue<'_, E>) {
        queue.scratch.stamps.push(Instant::now());
    }

    fn lap(queue: &mut CpuQueue<'_, E>, i: usize) -> Result<u64> {
        let stamps = queue.scratch.stamps.get(i).zip(queue.scratch.stamps.get(i + 1));
        Ok(stamps.map_or(0, |(from, to)| to.duration_since(*from).as_nanos() as u64))
    }

    fn all_rows(rows: &mut Rows, batch: usize, pixels: usize) {
        rows.set_all(batch, pixels);
    }

    fn all_channels(channels: &mut Channels, total: usize) {
        channels.set_all(total);
    }

    fn same_rows(a: &Rows, b: &Rows) -> bool {
        a.len() == b.len()
    }

    fn gather_gemm(
        queue: &mut CpuQueue<'_, E>,
        filter: &Filter<E>,
        call: GatherGemm<'_, Buffer<E>>,
    ) -> Result<()> {
        let GatherGemm { active, input, input_rows, output, output_rows, residual, act } = call;
        let (input, output) = (input.as_slice(), output.as_mut_slice());
        let call = GatherGemm { active, input, input_rows, output, output_rows, residual, act };
        E::gather_gemm(queue.isa, queue.team, filter, &mut queue.scratch.gemm, call)
    }

    fn depthwise(
        queue: &mut CpuQueue<'_, E>,
        filter: &depthwise::Filter,
        call: Depthwise<'_, Buffer<E>>,
    ) -> Result<()> {
        let Depthwise { rows, channels, input, input_channels, output, output_rows, act } = call;
        let (input, output) = (input.as_slice(), output.as_mut_slice());
        let call = Depthwise { rows, channels, input, input_channels, output, output_rows, act };
        E::depthwise(queue.isa, queue.team, filter, call)
    }

    fn max_pool(queue: &mut CpuQueue<'_, E>, call: MaxPool<'_, Buffer<E>>) -> Result<()> {
        let MaxPool { geometry, batch, input, output } = call;
        let (input, output) = (input.as_slice(), output.as_mut_slice());
        E::max_pool(queue.isa, queue.team, MaxPool { geometry, batch, input, output })
    }

    fn mean_pool(queue: &mut CpuQueue<'_, E>, call: MeanPool<'_, Buffer<E>, Vec<f32>>) -> Result<()> {
        let MeanPool { rows, channels, input, input_rows, mean, output } = call;
        let (input, output) = (input.as_slice(), &mut output[..]);
        let call = MeanPool { rows, channels, input, input_rows, mean, output };
        E::mean_pool(queue.isa, queue.team, &mut queue.scratch.parts, call)
    }

    fn squeeze_excite(
        queue: &mut CpuQueue<'_, E>,
        weights: &Weights,
        call: SqueezeExcite<'_, Buffer<E>>,
    ) -> Result<()> {
        let SqueezeExcite { rows, channels, data, data_rows, mean } = call;
        let data = data.as_mut_slice();
        let call = SqueezeExcite { rows, channels, data, data_rows, mean };
        E::squeeze_excite(queue.isa, queue.team, weights, &mut queue.scratch.squeeze, call)
    }

    fn pad_channels(queue: &mut CpuQueue<'_, E>, call: PadChannels<'_, Buffer<E>>) -> Result<()> {
        let PadChannels { batch, input_map, output_map, c_in, c_out, stride, before, input, output } = call;
        let (input, output) = (input.as_slice(), output.as_mut_slice());
        let call = PadChannels { batch, input_map, output_map, c_in, c_out, stride, before, input, output };
        shortcut::run(queue.team, call)
    }

    fn patch_gate(
        queue: &mut CpuQueue<'_, E>,
        gate: &PatchGate,
        input: &Buffer<E>,
        batch: usize,
        map: Extent,
        margins: &mut Vec<f32>,
    ) -> Result<()> {
        let parts = &mut queue.scratch.parts;
        E::patch_gate(queue.isa, queue.team, parts, gate, input.as_slice(), (batch, map), margins)
    }

    fn linear(
        queue: &mut CpuQueue<'_, E>,
        layer: &LinearWeights<E>,
        batch: usize,
        input: &Vec<f32>,
        output: &mut Vec<f32>,
    ) -> Result<()> {
        let (c_in, c_out) = (layer.c_in(), layer.c_out());
        let geometry = format_args!("{c_in} → {c_out}, batch {batch}");
        require("linear", "input", input.len(), &[batch, c_in], &geometry)?;
        require("linear", "output", output.len(), &[batch, c_out], &geometry)?;
        let (input, output) = (&input[..batch * c_in], &mut output[..batch * c_out]);
        gate::linear(queue.isa, queue.team, layer, input, output)
    }

    fn decide(_queue: &mut CpuQueue<'_, E>, call: Decide<'_, Vec<f32>, Vec<bool>>) -> Result<()> {
        let Decide { batch, per_sample, margins, at_least, most, keep, keep_at } = call;
        let most = match most {
            Most::All => Most::All,
            Most::Count(count) => Most::Count(count),
            Most::Paid(Account { spent, price, pace, limit }) => {
                Most::Paid(Account { spent: &mut spent[..], price, pace, limit })
            }
        };
        let (margins, keep) = (&margins[..], &mut keep[..]);
        gate::decide(Decide { batch, per_sample, margins, at_least, most, keep, keep_at })
    }

    fn list_rows(queue: &mut CpuQueue<'_, E>, call: BranchRows<'_, Vec<bool>, Vec<u32>, Rows>) -> Result<()> {
        let BranchRows { branch, batch, keep, keep_at, schedule, rows, others, starts, starts_at } = call;
        let (keep, starts) = (&keep[..], &mut starts[..]);
        let call = BranchRows { branch, batch, keep, keep_at, schedule, rows, others, starts, starts_at };
        compact::list_rows(&mut queue.scratch.rows, call)
    }

    fn list_channels(_queue: &mut CpuQueue<'_, E>, call: ListChannels<'_, Vec<bool>>) -> Result<()> {
        let ListChannels { batch, group, total, keep, keep_at, channels } = call;
        compact::list_channels(ListChannels { batch, group, total, keep: &keep[..], keep_at, channels })
    }

    fn from_nchw(queue: &mut CpuQueue<'_, E>, call: FromNchw<'_, Buffer<E>, &[f32]>) -> Result<()> {
        let FromNchw { batch, c, image, border, bordered, scale, input, output } = call;
        let output = output.as_mut_slice();
        layout::from_nchw(
            queue.isa,
            queue.team,
            FromNchw { batch, c, image, border, bordered, scale, input, output },
        )
    }

    fn to_nchw(
        queue: &mut CpuQueue<'_, E>,
        batch: usize,
        map: Extent,
        c: usize,
        input: &Buffer<E>,
        output: &mut Vec<f32>,
    ) -> Result<()> {
        layout::to_nchw(queue.team, batch, map, c, input.as_slice(), output)
    }
}
