//! Threads and their working memory.

use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use laud_kernels::depthwise::{self, Depthwise};
use laud_kernels::filter_grad::Summing;
use laud_kernels::gather_gemm::{self, GatherGemm, Placement, Scratch};
use laud_kernels::{Act, ActiveSet, Channels, Element, Extent, Isa, Rows, Team};
use rayon::ThreadPool;

use super::shelf::Shelf;
use super::unit::Filter;

/// Pieces that a batch is cut into, on any number of threads.
const PIECES: usize = 16;
/// The same where each has a sum as large as a filter: no fewer, and no more than so many values of them.
const LEAST_PIECES: usize = 4;
const MOST_SUMS: usize = 4 << 20;

/// The threads that share a batch.
pub(super) struct Workers<E> {
    pub(super) isa: Isa,
    pool: Arc<ThreadPool>,
    idle: Mutex<Vec<Work<E>>>,
    /// Of gradients.
    pub(super) shelf: Arc<Shelf<f32>>,
    pub(super) maps: Arc<Shelf<E>>,
}

/// Samples of a piece of a batch of `n`.
pub(super) fn samples(n: usize) -> usize {
    n.div_ceil(PIECES).max(1)
}

/// The same where each piece sums `len` values.
pub(super) fn samples_summed(n: usize, len: usize) -> usize {
    n.div_ceil((MOST_SUMS / len.max(1)).clamp(LEAST_PIECES, PIECES)).max(1)
}

/// Working memory of one thread.
pub(super) struct Work<E> {
    gemm: [Scratch<E>; 1],
    pub(super) summing: Summing,
    /// Maps of one sample.
    pub(super) bordered: Framed<E>,
    pub(super) spread: Framed<E>,
    pub(super) grad: Vec<E>,
    pub(super) map: Vec<E>,
    /// Per channel.
    pub(super) scale: Vec<f32>,
    pub(super) shift: Vec<f32>,
    /// Per pixel.
    pub(super) weight: Vec<f32>,
    pub(super) dots: Vec<f32>,
}

impl<E: Element> Workers<E> {
    pub(super) fn new(isa: Isa, threads: usize) -> Result<Self> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().context("threads")?;
        let (shelf, maps) = (Arc::default(), Arc::default());
        Ok(Self { isa, pool: Arc::new(pool), idle: Mutex::new(Vec::new()), shelf, maps })
    }

    /// Runs `program` with the pool's threads.
    pub(super) fn install<R: Send>(&self, program: impl FnOnce() -> R + Send) -> R {
        self.pool.install(program)
    }

    /// Lends working memory.
    pub(super) fn with<R>(&self, job: impl FnOnce(&mut Work<E>) -> Result<R>) -> Result<R> {
        let idle = || self.idle.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let borrowed = idle().pop();
        let mut work = match borrowed {
            Some(work) => work,
            None => Work::new()?,
        };
        let outcome = job(&mut work)?;
        // After an error something may be left half done in it.
        idle().push(work);
        Ok(outcome)
    }
}

impl<E: Element> Work<E> {
    fn new() -> Result<Self> {
        Ok(Self {
            gemm: [Scratch::new()?],
            summing: Summing::default(),
            bordered: Framed::default(),
            spread: Framed::default(),
            grad: vec![],
            map: vec![],
            scale: vec![],
            shift: vec![],
            weight: vec![],
            dots: vec![],
        })
    }
}

/// A map that is written in the same places again and again, zero elsewhere.
pub(super) struct Framed<E> {
    values: Vec<E>,
    of: Option<Places>,
}

impl<E> Default for Framed<E> {
    fn default() -> Self {
        Self { values: vec![], of: None }
    }
}

/// What tells where a map is written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Places {
    pub(super) map: Extent,
    pub(super) c: usize,
    pub(super) first: Extent,
    pub(super) written: Extent,
    pub(super) stride: usize,
}

impl<E: Element> Framed<E> {
    /// To write in these places, all of them.
    pub(super) fn frame(&mut self, places: Places) -> &mut [E] {
        if self.of != Some(places) {
            self.values.clear();
            self.values.resize(places.map.pixels() * places.c, E::from_f32(0.0));
            self.of = Some(places);
        }
        &mut self.values
    }

    pub(super) fn values(&self) -> &[E] {
        &self.values
    }
}

/// A convolution of one sample whose border is in place.
fn convolve<E: Element>(
    isa: Isa,
    gemm: &mut [Scratch<E>; 1],
    filter: &Filter<E>,
    input: &[E],
    output: &mut [E],
) -> Result<()> {
    let g = filter.geometry();
    let (rows, c_in, c_out) =
        (Rows::all(1, g.output.pixels()), Channels::all(g.c_in), Channels::all(g.c_out));
    let (input_rows, output_rows) = (Placement::Natural, Placement::Natural);
    Ok(Team::scope(None, |team| match filter {
        Filter::Gemm(filter) => {
            let active = ActiveSet { rows: &rows, c_in: &c_in, c_out: &c_out };
            let call = GatherGemm {
                active,
                input,
                input_rows,
                output,
                output_rows,
                residual: false,
                act: Act::None,
            };
            gather_gemm::run(isa, team, filter, gemm, call)
        }
        Filter::Depthwise(filter) => {
            let (rows, channels, input_channels) = (&rows, &c_in, Placement::Natural);
            let call =
                Depthwise { rows, channels, input, input_channels, output, output_rows, act: Act::None };
            depthwise::run(isa, team, filter, call)
        }
    })?)
}

impl<E: Element> Work<E> {
    /// [`convolve`] of `self.bordered` to `output`.
    pub(super) fn forward(&mut self, isa: Isa, filter: &Filter<E>, output: &mut [E]) -> Result<()> {
        convolve(isa, &mut self.gemm, filter, self.bordered.values(), output)
    }

    /// [`convolve`] of `self.spread` to `self.map`.
    pub(super) fn backward(&mut self, isa: Isa, filter: &Filter<E>) -> Result<()> {
        let g = filter.geometry();
        self.map.resize(g.output.pixels() * g.c_out, E::from_f32(0.0));
        convolve(isa, &mut self.gemm, filter, self.spread.values(), &mut self.map)
    }
}
