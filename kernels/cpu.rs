use crate::depthwise::{self, Depthwise};
use crate::gate::{self, Linear, PatchGate};
use crate::gather_gemm::{self, Filter, FilterSpec, GatherGemm, Scratch};
use crate::layout::{self, FromNchw};
use crate::max_pool::{self, MaxPool};
use crate::mean_pool::{self, MeanPool};
use crate::shortcut::{self, PadChannels};
use crate::squeeze_excite::{self, SqueezeExcite, Weights, WeightsSpec};
use crate::{Backend, Buffer, Element, Extent, Isa, Result, Team};
use std::marker::PhantomData;
use std::sync::Arc;

/// The CPU as a [`Backend`], storing activations and weights as `E`.
///
/// Inferences share the rayon pool they are given; see [`Team`]. Without a pool everything runs on the calling
/// thread.
#[derive(Clone)]
pub struct Cpu<E> {
    isa: Isa,
    pool: Option<Arc<rayon::ThreadPool>>,
    element: PhantomData<E>,
}

impl<E: Element> Cpu<E> {
    /// The CPU with the instruction set `isa` and the threads of `pool`.
    pub fn new(isa: Isa, pool: Option<Arc<rayon::ThreadPool>>) -> Self {
        Self { isa, pool, element: PhantomData }
    }

    /// Threads of an inference.
    pub fn threads(&self) -> usize {
        self.pool.as_ref().map_or(1, |pool| pool.current_num_threads())
    }
}

/// Operations of one inference on the CPU.
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
}

impl<E: Element> Backend for Cpu<E> {
    type Elem = E;
    type Buffer = Buffer<E>;
    type Filter = Filter<E>;
    type Depthwise = depthwise::Filter;
    type SqueezeExcite = Weights;
    type Scratch = CpuScratch<E>;
    type Queue<'q> = CpuQueue<'q, E>;

    fn describe(&self) -> String {
        format!("cpu, {}, {}, {} threads", E::DTYPE, self.isa.name(), self.threads())
    }

    fn buffer(&self, len: usize, what: &str) -> Result<Buffer<E>> {
        Buffer::zeroed(len, what)
    }

    fn filter(&self, spec: &FilterSpec<'_>) -> Result<Filter<E>> {
        Filter::pack(self.isa, spec)
    }

    fn depthwise_filter(&self, spec: &FilterSpec<'_>) -> Result<depthwise::Filter> {
        depthwise::Filter::pack(spec)
    }

    fn squeeze_excite_weights(&self, spec: &WeightsSpec<'_>) -> Result<Weights> {
        Weights::pack(spec)
    }

    fn scratch(&self) -> Result<CpuScratch<E>> {
        let gemm = (0..self.threads()).map(|_| Scratch::new()).collect::<Result<_>>()?;
        Ok(CpuScratch { gemm, squeeze: squeeze_excite::Scratch::new()? })
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

    fn run<R: Send>(
        &self,
        scratch: &mut CpuScratch<E>,
        program: impl FnOnce(&mut CpuQueue<'_, E>) -> R + Send,
    ) -> R {
        let isa = self.isa;
        Team::scope(self.pool.as_deref(), |team| program(&mut CpuQueue { isa, team, scratch }))
    }

    fn gather_gemm(
        queue: &mut CpuQueue<'_, E>,
        filter: &Filter<E>,
        call: GatherGemm<'_, Buffer<E>>,
    ) -> Result<()> {
        let GatherGemm { active, input, input_rows, output, output_rows, residual, act } = call;
        let (input, output) = (input.as_slice(), output.as_mut_slice());
        let call = GatherGemm { active, input, input_rows, output, output_rows, residual, act };
        gather_gemm::run(queue.isa, queue.team, filter, &mut queue.scratch.gemm, call)
    }

    fn depthwise(
        queue: &mut CpuQueue<'_, E>,
        filter: &depthwise::Filter,
        call: Depthwise<'_, Buffer<E>>,
    ) -> Result<()> {
        let Depthwise { rows, channels, input, input_channels, output, output_rows, act } = call;
        let (input, output) = (input.as_slice(), output.as_mut_slice());
        let call = Depthwise { rows, channels, input, input_channels, output, output_rows, act };
        depthwise::run(queue.isa, queue.team, filter, call)
    }

    fn max_pool(queue: &mut CpuQueue<'_, E>, call: MaxPool<'_, Buffer<E>>) -> Result<()> {
        let MaxPool { geometry, batch, input, output } = call;
        let (input, output) = (input.as_slice(), output.as_mut_slice());
        max_pool::run(queue.isa, queue.team, MaxPool { geometry, batch, input, output })
    }

    fn mean_pool(queue: &mut CpuQueue<'_, E>, call: MeanPool<'_, Buffer<E>>) -> Result<()> {
        let MeanPool { rows, channels, input, input_rows, mean, output } = call;
        let input = input.as_slice();
        mean_pool::run(queue.isa, queue.team, MeanPool { rows, channels, input, input_rows, mean, output })
    }

    fn squeeze_excite(
        queue: &mut CpuQueue<'_, E>,
        weights: &Weights,
        call: SqueezeExcite<'_, Buffer<E>>,
    ) -> Result<()> {
        let SqueezeExcite { rows, channels, data, data_rows, mean } = call;
        let data = data.as_mut_slice();
        let call = SqueezeExcite { rows, channels, data, data_rows, mean };
        squeeze_excite::run(queue.isa, queue.team, weights, &mut queue.scratch.squeeze, call)
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
        margins: &mut [f32],
    ) -> Result<()> {
        gate::patch(queue.isa, queue.team, gate, input.as_slice(), batch, map, margins)
    }

    fn linear(queue: &mut CpuQueue<'_, E>, layer: &Linear, input: &[f32], output: &mut [f32]) -> Result<()> {
        gate::linear(queue.isa, queue.team, layer, input, output)
    }

    fn from_nchw(queue: &mut CpuQueue<'_, E>, call: FromNchw<'_, Buffer<E>>) -> Result<()> {
        let FromNchw { batch, c, image, border, bordered, input, output } = call;
        let output = output.as_mut_slice();
        layout::from_nchw(queue.team, FromNchw { batch, c, image, border, bordered, input, output })
    }

    fn to_nchw(
        queue: &mut CpuQueue<'_, E>,
        batch: usize,
        map: Extent,
        c: usize,
        input: &Buffer<E>,
        output: &mut [f32],
    ) -> Result<()> {
        layout::to_nchw(queue.team, batch, map, c, input.as_slice(), output)
    }
}
