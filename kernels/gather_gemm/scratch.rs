use super::Filter;
use super::cpu::{BLOCK_ROWS, WIDE_BLOCK_ROWS};
use super::filter::{Layout, SLACK};
use super::micro::Segment;
use super::pack::LONGEST;
use super::panel::Meets;
use super::tiles::{self, Operand};
use crate::simd::tiles::step_len;
use crate::{Buffer, Element, Result};
use std::ops::Range;

/// Panels that a thread packs for a call are kept up to this size, for all its rows. About half of a second-level cache.
const PACKED_BYTES: usize = 640 << 10;

/// Working memory of one thread.
pub struct Scratch<E> {
    /// Where each row's input of each tap starts; tile after tile, `[n_taps][rows of the tile]`.
    pub(super) taps: Vec<*const E>,
    pub(super) out: Vec<*mut E>,
    pub(super) class: Vec<u32>,
    pub(super) segments: Vec<Segment>,
    /// Positions of the input channels that the reduction reads.
    pub(super) inputs: Range<usize>,
    /// How the reduction meets the panels.
    pub(super) meets: Meets,
    /// Which run or unit of a panel's rows each run or unit of the reduction meets; empty unless they are met so.
    pub(super) listed: Vec<u32>,
    /// Which rows in turns panels are packed from.
    pub(super) turns: tiles::pack::Listed,
    pub(super) zeros: Buffer<E>,
    pub(super) sums: Buffer<f32>,
    /// What tiles read of a block of rows, copies of it, and which sample's block it is.
    pub(super) operand: Operand<E>,
    pub(super) gathered: Buffer<E>,
    pub(super) block: Option<(usize, usize)>,
    /// Panels packed for this call, one after another, as many as there is space for.
    pub(super) packed: Buffer<E>,
    /// From one to the next: the same for all of a call, however many channels are active.
    pub(super) packed_len: usize,
    /// Sample and column that each of them is of.
    pub(super) packed_of: Vec<(usize, usize)>,
    pub(super) packed_bias: Vec<f32>,
    pub(super) packed_scale: Vec<f32>,
    pub(super) packed_constant: Vec<f32>,
}

// SAFETY: the pointers are written and read within one call and mean nothing in between.
unsafe impl<E: Send> Send for Scratch<E> {}

impl<E: Element> Scratch<E> {
    /// Empty working memory; [`reserve`](Self::reserve) makes it large enough for a filter.
    pub fn new() -> Result<Self> {
        let empty = || Buffer::zeroed(0, "scratch");
        let (zeros, packed, gathered) = (empty()?, empty()?, empty()?);
        let (packed_bias, packed_scale, packed_constant) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Self {
            taps: vec![],
            out: vec![],
            class: vec![],
            segments: vec![],
            inputs: 0..0,
            meets: Meets::Stream,
            listed: vec![],
            turns: tiles::pack::Listed::default(),
            zeros,
            sums: Buffer::zeroed(0, "scratch")?,
            gathered,
            operand: Operand::default(),
            block: None,
            packed,
            packed_len: 0,
            packed_of: vec![],
            packed_bias,
            packed_scale,
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
        let packs = channels || filter.layout == Layout::Units;
        let inputs = filter.panels.iter().map(|panel| panel.inputs).max().unwrap_or(0);
        let depth = g.kernel * g.kernel * inputs;
        let rows = match filter.layout {
            Layout::Turns => tiles::MOST_ROWS,
            _ if packs => WIDE_BLOCK_ROWS + filter.tile.rows.max(filter.units_tile.rows),
            _ => BLOCK_ROWS + filter.tile.rows,
        };
        let taps = rows * g.kernel * g.kernel;
        self.taps.resize(self.taps.len().max(taps), std::ptr::null());
        let sums = match filter.layout {
            Layout::Turns => tiles::KEPT_SUMS,
            _ => rows * filter.tile.columns.max(2 * filter.units_tile.columns),
        };
        if self.sums.len() < sums {
            self.sums = Buffer::zeroed(sums, "sums")?;
        }
        self.out.resize(self.out.len().max(rows), std::ptr::null_mut());
        self.class.resize(self.class.len().max(rows), 0);
        self.segments.clear();
        self.segments.reserve(g.kernel * g.kernel * (inputs / LONGEST + 1));
        if packs {
            self.listed.clear();
            self.listed.reserve(depth);
            self.turns.reserve(depth + step_len::<E>());
        }
        // What an earlier call packed is of other weights, and what it gathered of other rows.
        self.packed_of.clear();
        self.block = None;
        if filter.layout == Layout::Turns {
            let depth = filter.depth_in_turns(inputs);
            grow(&mut self.gathered, tiles::gathered_bytes::<E>(depth) / size_of::<E>(), "gathered rows")?;
            self.operand.reserve(rows, depth);
        }
        if packs {
            self.packed_len = (depth.next_multiple_of(step_len::<E>()) * filter.tile.columns).max(1);
            let panels = (PACKED_BYTES / size_of::<E>() / self.packed_len).clamp(1, filter.panels.len());
            grow(&mut self.packed, panels * self.packed_len + SLACK, "packed active columns")?;
            self.packed_of.reserve(filter.panels.len());
            let bias = filter.bias.len() / filter.bias_stride * filter.tile.columns + SLACK;
            self.packed_bias.resize(self.packed_bias.len().max(bias), 0.0);
            self.packed_scale.resize(self.packed_scale.len().max(filter.tile.columns + SLACK), 0.0);
            self.packed_constant.resize(self.packed_constant.len().max(filter.tile.columns + SLACK), 0.0);
        }
        Ok(())
    }
}
