//! **compact**: decisions → ordered lists of what is active.
//!
//! A gate decides about the cells of a coarse grid. [`BitMap`] holds such decisions at the resolution of a feature
//! map, grows them backwards through a convolution (the *halo*: every input pixel that an active output pixel's
//! kernel touches) and lists them as [`Rows`]. Everything is in ascending order, so results do not depend on who
//! worked on what.
//!
//! [`BranchRows`] does all of that for a block at once. On the CPU this is a few operations per 64 pixels and runs on
//! the leading thread.

mod branch;
pub(crate) mod cuda;
#[cfg(test)]
mod tests;

pub use branch::{Branch, BranchRows, Schedule, Scratch, list_rows};

use crate::error::require;
use crate::{Channels, ConvGeometry, Error, Extent, Result, Rows};

/// One bit for every pixel of a batch of maps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BitMap {
    map: Extent,
    batch: usize,
    /// Words of one line of pixels; bit `x % 64` of word `x / 64`.
    words: usize,
    bits: Vec<u64>,
}

impl BitMap {
    /// Makes room for `batch` maps of size `map`, so that filling never allocates.
    pub fn reserve(&mut self, batch: usize, map: Extent) {
        let words = batch * map.h * map.w.div_ceil(64);
        self.bits.reserve(words.saturating_sub(self.bits.len()));
    }

    fn reset(&mut self, batch: usize, map: Extent) {
        (self.batch, self.map, self.words) = (batch, map, map.w.div_ceil(64));
        self.bits.clear();
        self.bits.resize(batch * map.h * self.words, 0);
    }

    fn line(&self, n: usize, y: usize) -> std::ops::Range<usize> {
        let start = (n * self.map.h + y) * self.words;
        start..start + self.words
    }

    /// Whether pixel `(y, x)` of sample `n` is active.
    pub fn get(&self, n: usize, y: usize, x: usize) -> bool {
        self.bits[self.line(n, y).start + x / 64] >> (x % 64) & 1 == 1
    }

    /// Nearest up-sampling of `keep` (`[batch, grid.h, grid.w]`) to maps of size `map`: pixel `i` takes cell
    /// `⌊i · grid / map⌋` along each axis, as PyTorch's `interpolate` does.
    ///
    /// # Panics
    /// When `keep` does not hold `batch` grids.
    pub fn upsample(&mut self, keep: &[bool], grid: Extent, batch: usize, map: Extent) {
        assert_eq!(keep.len(), batch * grid.pixels(), "compact: decisions of {batch} grids");
        self.reset(batch, map);
        for n in 0..batch {
            let mut drawn = None;
            for y in 0..map.h {
                let cells = &keep[(n * grid.h + y * grid.h / map.h) * grid.w..][..grid.w];
                let line = self.line(n, y);
                if drawn == Some(y * grid.h / map.h) {
                    let above = self.line(n, y - 1);
                    self.bits.copy_within(above, line.start);
                    continue;
                }
                drawn = Some(y * grid.h / map.h);
                let line = &mut self.bits[line];
                for (cell, _) in cells.iter().enumerate().filter(|(_, keep)| **keep) {
                    let start = (cell * map.w).div_ceil(grid.w);
                    let end = ((cell + 1) * map.w).div_ceil(grid.w);
                    set(line, start, end);
                }
            }
        }
    }

    /// Becomes a copy of `other`.
    pub fn copy_from(&mut self, other: &BitMap) {
        (self.batch, self.map, self.words) = (other.batch, other.map, other.words);
        self.bits.clear();
        self.bits.extend_from_slice(&other.bits);
    }

    /// Everything that `active`, the output of a convolution, reads of its input.
    ///
    /// # Panics
    /// When `active` is not a map of the convolution's output size.
    pub fn grow(&mut self, active: &BitMap, conv: &ConvGeometry) {
        assert_eq!(active.map, conv.output, "compact: active pixels of {conv}");
        self.reset(active.batch, conv.input);
        let mut wide = [0u64; 256];
        assert!(self.words <= wide.len(), "compact: maps are at most {} pixels wide", 64 * wide.len());
        for n in 0..active.batch {
            for oy in 0..conv.output.h {
                let line = &active.bits[active.line(n, oy)];
                if line.iter().all(|&word| word == 0) {
                    continue;
                }
                let wide = &mut wide[..self.words];
                widen(line, conv, wide);
                let first = (oy * conv.stride).saturating_sub(conv.pad_top);
                let end = (oy * conv.stride + conv.kernel).saturating_sub(conv.pad_top).min(conv.input.h);
                for iy in first..end {
                    let range = self.line(n, iy);
                    self.bits[range].iter_mut().zip(wide.iter()).for_each(|(bits, wide)| *bits |= wide);
                }
            }
        }
    }

    /// Lists the active pixels, or with `inactive` the others.
    pub fn list(&self, inactive: bool, rows: &mut Rows) {
        rows.clear(self.map.pixels());
        let flip = if inactive { u64::MAX } else { 0 };
        let last = match self.map.w % 64 {
            0 => u64::MAX,
            used => (1 << used) - 1,
        };
        for n in 0..self.batch {
            for y in 0..self.map.h {
                for (i, &word) in self.bits[self.line(n, y)].iter().enumerate() {
                    let mut word = (word ^ flip) & if i + 1 == self.words { last } else { u64::MAX };
                    let first = (y * self.map.w + i * 64) as u32;
                    while word != 0 {
                        rows.push(first + word.trailing_zeros());
                        word &= word - 1;
                    }
                }
            }
            rows.end_sample();
        }
    }

    /// Active pixels of the batch.
    pub fn count(&self) -> usize {
        self.bits.iter().map(|word| word.count_ones() as usize).sum()
    }
}

/// Sets bits `start..end` of a line.
fn set(line: &mut [u64], start: usize, end: usize) {
    let mut at = start;
    while at < end {
        let stop = end.min(at / 64 * 64 + 64);
        let ones = if stop - at == 64 { u64::MAX } else { (1 << (stop - at)) - 1 };
        line[at / 64] |= ones << (at % 64);
        at = stop;
    }
}

/// Input columns that the active output columns of one line read.
fn widen(line: &[u64], conv: &ConvGeometry, wide: &mut [u64]) {
    wide.fill(0);
    if conv.stride == 1 && wide.len() == 1 && line.len() == 1 {
        let used = if conv.input.w == 64 { u64::MAX } else { (1 << conv.input.w) - 1 };
        for s in 0..conv.kernel {
            wide[0] |= if s >= conv.pad_left {
                line[0] << (s - conv.pad_left)
            } else {
                line[0] >> (conv.pad_left - s)
            };
        }
        wide[0] &= used;
        return;
    }
    for (i, &word) in line.iter().enumerate() {
        let mut word = word;
        while word != 0 {
            let x = i * 64 + word.trailing_zeros() as usize;
            word &= word - 1;
            let start = (x * conv.stride).saturating_sub(conv.pad_left);
            let end = (x * conv.stride + conv.kernel).saturating_sub(conv.pad_left).min(conv.input.w);
            set(wide, start, end);
        }
    }
}

/// Decisions about groups of channels → lists of channels. Decisions are `K`, lists `C`.
pub struct ListChannels<'a, K: ?Sized, C = Channels> {
    /// Samples.
    pub batch: usize,
    /// Channels of a group.
    pub group: usize,
    /// Channels of the layer.
    pub total: usize,
    /// Decisions, `[batch, total / group]` from element `keep_at` on.
    pub keep: &'a K,
    /// See [`keep`](Self::keep).
    pub keep_at: usize,
    /// The list.
    pub channels: &'a mut C,
}

/// Runs one call.
///
/// # Errors
/// When the decisions are too few or the groups do not divide the channels.
pub fn list_channels(call: ListChannels<'_, [bool]>) -> Result<()> {
    let ListChannels { batch, group, total, keep, keep_at, channels } = call;
    let geometry = format_args!("{total} channels in groups of {group}, batch {batch}");
    if group == 0 || !total.is_multiple_of(group) {
        let why = "the groups do not divide the channels";
        return Err(Error::Geometry { op: "compact", why, geometry: geometry.to_string() });
    }
    let groups = total / group;
    require("compact", "decisions", keep.len().saturating_sub(keep_at), &[batch, groups], &geometry)?;
    let keep = &keep[keep_at..][..batch * groups];
    if keep.iter().all(|keep| *keep) {
        channels.set_all(total);
        return Ok(());
    }
    channels.clear(total);
    for sample in keep.chunks_exact(groups.max(1)) {
        for (g, _) in sample.iter().enumerate().filter(|(_, keep)| **keep) {
            (g * group..(g + 1) * group).for_each(|c| channels.push(c as u32));
        }
        channels.end_sample();
    }
    Ok(())
}
