//! Threads and their working memory.

use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use laud_kernels::depthwise::{self, Depthwise};
use laud_kernels::gather_gemm::{self, GatherGemm, Placement, Scratch};
use laud_kernels::{Act, ActiveSet, Channels, Extent, Isa, Rows, Team};
use rayon::ThreadPool;

use super::shelf::Shelf;
use super::unit::Filter;

/// Pieces that a batch is cut into, on any number of threads.
const PIECES: usize = 16;

/// The threads that share a batch.
pub(super) struct Workers {
    pub(super) isa: Isa,
    pool: Arc<ThreadPool>,
    idle: Mutex<Vec<Work>>,
    pub(super) shelf: Arc<Shelf>,
}

/// Working memory of one thread.
pub(super) struct Work {
    gemm: [Scratch<f32>; 1],
    /// Maps of one sample.
    pub(super) bordered: Framed,
    pub(super) spread: Framed,
    pub(super) grad: Vec<f32>,
    pub(super) map: Vec<f32>,
    /// Per channel.
    pub(super) scale: Vec<f32>,
    pub(super) shift: Vec<f32>,
    /// Per pixel.
    pub(super) weight: Vec<f32>,
    pub(super) dots: Vec<f32>,
}

impl Workers {
    pub(super) fn new(isa: Isa, threads: usize) -> Result<Self> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().context("threads")?;
        Ok(Self { isa, pool: Arc::new(pool), idle: Mutex::new(Vec::new()), shelf: Arc::default() })
    }

    /// Samples of a piece of a batch of `n`.
    pub(super) fn samples(n: usize) -> usize {
        n.div_ceil(PIECES).max(1)
    }

    /// Runs `program` with the pool's threads.
    pub(super) fn install<R: Send>(&self, program: impl FnOnce() -> R + Send) -> R {
        self.pool.install(program)
    }

    /// Lends working memory.
    pub(super) fn with<R>(&self, job: impl FnOnce(&mut Work) -> Result<R>) -> Result<R> {
        let idle = || self.idle.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let borrowed = idle().pop();
        let mut work = match borrowed {
            Some(work) => work,
            None => Work::new()?,
        };
        let outcome = job(&mut work);
        idle().push(work);
        outcome
    }
}

impl Work {
    fn new() -> Result<Self> {
        Ok(Self {
            gemm: [Scratch::new()?],
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
#[derive(Default)]
pub(super) struct Framed {
    values: Vec<f32>,
    of: Option<Places>,
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

impl Framed {
    /// To write in these places, all of them.
    pub(super) fn frame(&mut self, places: Places) -> &mut [f32] {
        if self.of != Some(places) {
            self.values.clear();
            self.values.resize(places.map.pixels() * places.c, 0.0);
            self.of = Some(places);
        }
        &mut self.values
    }

    pub(super) fn values(&self) -> &[f32] {
        &self.values
    }
}

/// A convolution of one sample whose border is in place.
pub(super) fn convolve(
    isa: Isa,
    gemm: &mut [Scratch<f32>; 1],
    filter: &Filter,
    input: &[f32],
    output: &mut [f32],
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

impl Work {
    /// [`convolve`] of `self.bordered` to `output`.
    pub(super) fn forward(&mut self, isa: Isa, filter: &Filter, output: &mut [f32]) -> Result<()> {
        convolve(isa, &mut self.gemm, filter, self.bordered.values(), output)
    }

    /// [`convolve`] of `self.spread` to `self.map`.
    pub(super) fn backward(&mut self, isa: Isa, filter: &Filter) -> Result<()> {
        let g = filter.geometry();
        self.map.resize(g.output.pixels() * g.c_out, 0.0);
        convolve(isa, &mut self.gemm, filter, self.spread.values(), &mut self.map)
    }
}
