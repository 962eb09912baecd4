use super::Filter;
use super::cpu::{BLOCK_ROWS, FEW_ROWS};
use super::filter::SLACK;
use super::micro::Segment;
use crate::{Buffer, Element, Result};
use std::ops::Range;

/// Working memory of one thread.
pub struct Scratch<E> {
    /// Where each row's input of each tap starts; tile after tile, `[n_taps][rows of the tile]`.
    pub(super) taps: Vec<*const E>,
    pub(super) out: Vec<*mut E>,
    pub(super) class: Vec<u32>,
    pub(super) segments: Vec<Segment>,
    /// Positions of the input channels that the reduction reads.
    pub(super) inputs: Range<usize>,
    /// The filter's units are multiplied with where they lie.
    pub(super) units: bool,
    /// Row of a panel that each step of the reduction meets (with `units`: each first of a unit's steps); empty: they
    /// follow each other, or are made to.
    pub(super) listed: Vec<u32>,
    pub(super) zeros: Buffer<E>,
    pub(super) sums: Buffer<f32>,
    pub(super) packed: Buffer<E>,
    pub(super) packed_bias: Vec<f32>,
    pub(super) packed_constant: Vec<f32>,
}

// SAFETY: the pointers are written and read within one call and mean nothing in between.
unsafe impl<E: Send> Send for Scratch<E> {}

impl<E: Element> Scratch<E> {
    /// Empty working memory; [`reserve`](Self::reserve) makes it large enough for a filter.
    pub fn new() -> Result<Self> {
        let empty = || Buffer::zeroed(0, "scratch");
        let (zeros, packed) = (empty()?, empty()?);
        let (packed_bias, packed_constant) = (Vec::new(), Vec::new());
        Ok(Self {
            taps: vec![],
            out: vec![],
            class: vec![],
            segments: vec![],
            inputs: 0..0,
            units: false,
            listed: vec![],
            zeros,
            sums: Buffer::zeroed(0, "scratch")?,
            packed,
            packed_bias,
            packed_constant,
        })
    }

    /// Grows to what calls with `filter` need; `channels`: also for calls with only some channels active.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn reserve(&mut self, filter: &Filter<E>, channels: bool) -> Result<()> {
        let g = filter.geometry();
        let grow = |buffer: &mut Buffer<E>, len: usize, what: &str| -> Result<()> {
            if buffer.len() < len {
                *buffer = Buffer::zeroed(len, what)?;
            }
            Ok(())
        };
        grow(&mut self.zeros, g.c_in.max(g.kernel * g.c_in * usize::from(filter.folded)) + SLACK, "padding")?;
        let rows = if channels { FEW_ROWS } else { BLOCK_ROWS } + filter.max_rows;
        let taps = rows * g.kernel * g.kernel;
        self.taps.resize(self.taps.len().max(taps), std::ptr::null());
        let sums = rows * filter.panel_width * if filter.units { 2 } else { 1 };
        if self.sums.len() < sums {
            self.sums = Buffer::zeroed(sums, "sums")?;
        }
        self.out.resize(self.out.len().max(rows), std::ptr::null_mut());
        self.class.resize(self.class.len().max(rows), 0);
        let inputs = filter.panels.iter().map(|panel| panel.inputs).max().unwrap_or(0);
        self.segments.clear();
        self.segments.reserve(g.kernel * g.kernel * (inputs / 64 + 1));
        if channels || filter.units {
            self.listed.clear();
            self.listed.reserve(g.kernel * g.kernel * inputs);
        }
        if channels {
            let width = filter.panel_width;
            grow(&mut self.packed, g.kernel * g.kernel * inputs * width + SLACK, "packed active columns")?;
            let bias = filter.bias.len() / filter.bias_stride * width + SLACK;
            self.packed_bias.resize(self.packed_bias.len().max(bias), 0.0);
            self.packed_constant.resize(self.packed_constant.len().max(width + SLACK), 0.0);
        }
        Ok(())
    }
}
