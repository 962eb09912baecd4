//! [`BranchRows`]: which pixels each convolution of a residual branch computes.

use super::BitMap;
use crate::{ConvGeometry, Error, Extent, Result, Rows};

/// A branch of convolutions behind a gate: what does not change from inference to inference.
#[derive(Clone, Debug)]
pub struct Branch {
    /// Cells of the mask.
    pub grid: Extent,
    /// The convolutions, first to last.
    pub convs: Vec<ConvGeometry>,
    /// Something in front of the last convolution reads every pixel: those before it compute all of them as soon as
    /// any is active.
    pub everywhere: bool,
}

/// Which rows convolutions before the last compute. More than what the last one needs changes times, never results.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// Side of the squares, in cells, that are computed as a whole where a cell of them is kept.
    pub granularity: usize,
    /// Density of decisions, `0..=1`, from which on every pixel is computed.
    pub dense_above: f32,
}

impl Schedule {
    /// Whether anything is left out when `active` of `total` cells are kept.
    pub fn gathers(&self, active: usize, total: usize) -> bool {
        active < total && ((active as f64 / total as f64) as f32) < self.dense_above
    }
}

/// One call: decisions about the cells of a grid → rows of every convolution.
///
/// The last convolution computes the pixels of kept cells, any other the pixels that the next one reads, or more where
/// the branch or the schedule ask for it. When nothing is kept in the whole batch, nothing is listed. Decisions
/// are `K`, numbers `N` and lists `R`: in this machine's memory here, on the device at the [`Backend`](crate::Backend).
pub struct BranchRows<'a, K: ?Sized, N: ?Sized, R> {
    /// Grid and convolutions.
    pub branch: &'a Branch,
    /// Samples.
    pub batch: usize,
    /// Decisions, `[batch, grid.h, grid.w]` from element `keep_at` on.
    pub keep: &'a K,
    /// See [`keep`](Self::keep).
    pub keep_at: usize,
    /// For convolutions before the last.
    pub schedule: Schedule,
    /// A list for each convolution.
    pub rows: &'a mut [R],
    /// Output pixels of the branch that are not active, where somebody wants them.
    pub others: Option<&'a mut R>,
    /// First row of each sample and, behind the last, the number of rows of each convolution: `[convs, batch + 1]` from
    /// element `starts_at` on.
    pub starts: &'a mut N,
    /// See [`starts`](Self::starts).
    pub starts_at: usize,
}

/// Working memory.
#[derive(Default)]
pub struct Scratch {
    /// One for each convolution.
    maps: Vec<BitMap>,
    /// Decisions about whole squares of cells.
    coarse: Vec<bool>,
}

impl Scratch {
    /// Makes room for `branch` with `batch` samples, so that listing never allocates.
    pub fn reserve(&mut self, branch: &Branch, batch: usize) {
        self.maps.resize_with(self.maps.len().max(branch.convs.len()), BitMap::default);
        self.maps.iter_mut().zip(&branch.convs).for_each(|(map, conv)| map.reserve(batch, conv.output));
        self.coarse.resize(self.coarse.len().max(batch * branch.grid.pixels()), false);
    }
}

/// Runs one call.
///
/// # Errors
/// When an operand is too small.
pub fn list_rows(scratch: &mut Scratch, call: BranchRows<'_, [bool], [u32], Rows>) -> Result<()> {
    let BranchRows { branch, batch, schedule, rows, others, .. } = call;
    let (cells, convs) = (batch * branch.grid.pixels(), branch.convs.len());
    let size = |what, got: usize, need: usize| match got >= need && convs > 0 {
        true => Ok(()),
        false => {
            let (h, w) = (branch.grid.h, branch.grid.w);
            let geometry = format!("{h}×{w} cells, {convs} convolutions, batch {batch}");
            Err(Error::Size { op: "compact", what, got, need, geometry })
        }
    };
    size("decisions", call.keep.len().saturating_sub(call.keep_at), cells)?;
    size("lists", rows.len(), convs)?;
    size("starts", call.starts.len().saturating_sub(call.starts_at), convs * (batch + 1))?;
    size("granularity", schedule.granularity, 1)?;
    scratch.reserve(branch, batch);
    let keep = &call.keep[call.keep_at..][..cells];
    let active = keep.iter().filter(|keep| **keep).count();
    let rows = &mut rows[..convs];
    if active == 0 {
        for (rows, conv) in rows.iter_mut().zip(&branch.convs) {
            rows.clear(conv.output.pixels());
            (0..batch).for_each(|_| rows.end_sample());
        }
        others.into_iter().for_each(|others| others.set_all(batch, branch.convs[convs - 1].output.pixels()));
    } else if active == cells {
        for (rows, conv) in rows.iter_mut().zip(&branch.convs) {
            rows.set_all(batch, conv.output.pixels());
        }
        if let Some(others) = others {
            others.clear(branch.convs[convs - 1].output.pixels());
            (0..batch).for_each(|_| others.end_sample());
        }
    } else {
        let squares = (schedule.gathers(active, cells) && !branch.everywhere).then_some(schedule.granularity);
        list_some(scratch, branch, (batch, keep), squares, rows, others);
    }
    let starts = call.starts[call.starts_at..].chunks_exact_mut(batch + 1);
    for (starts, rows) in starts.zip(rows) {
        let (total, first) = starts.split_last_mut().expect("one more than samples");
        first.iter_mut().enumerate().for_each(|(n, start)| *start = rows.sample(n).start as u32);
        *total = rows.len() as u32;
    }
    Ok(())
}

/// Lists where something is active and something is not; `squares`: their side, unless all but the last convolution
/// compute every pixel.
fn list_some(
    scratch: &mut Scratch,
    branch: &Branch,
    (batch, keep): (usize, &[bool]),
    squares: Option<usize>,
    rows: &mut [Rows],
    others: Option<&mut Rows>,
) {
    let Scratch { maps, coarse } = scratch;
    let last = branch.convs.len() - 1;
    maps[last].upsample(keep, branch.grid, batch, branch.convs[last].output);
    maps[last].list(false, &mut rows[last]);
    if let Some(others) = others {
        maps[last].list(true, others);
    }
    let coarser = squares.filter(|&side| side > 1);
    if let Some(side) = coarser {
        let coarse = &mut coarse[..keep.len()];
        coarsen(keep, branch.grid, side, coarse);
        maps[last].upsample(coarse, branch.grid, batch, branch.convs[last].output);
    }
    for i in (0..last).rev() {
        if squares.is_none() {
            rows[i].set_all(batch, branch.convs[i].output.pixels());
            continue;
        }
        let next = &branch.convs[i + 1];
        let (map, next_map) = maps.split_at_mut(i + 1);
        let (list, next_list) = rows.split_at_mut(i + 1);
        match next.is_pointwise() {
            true => map[i].copy_from(&next_map[0]),
            false => map[i].grow(&next_map[0], next),
        }
        // The last convolution's list has kept cells only, its map whole squares.
        match next.is_pointwise() && (i + 1 < last || coarser.is_none()) {
            true => list[i].copy_from(&next_list[0]),
            false => map[i].list(false, &mut list[i]),
        }
    }
}

/// Keeps every cell of a square of `side` cells of which any is kept.
fn coarsen(keep: &[bool], grid: Extent, side: usize, coarse: &mut [bool]) {
    coarse.fill(false);
    for (sample, coarse) in keep.chunks_exact(grid.pixels()).zip(coarse.chunks_exact_mut(grid.pixels())) {
        for (cell, _) in sample.iter().enumerate().filter(|(_, keep)| **keep) {
            let (y, x) = (cell / grid.w / side * side, cell % grid.w / side * side);
            for y in y..grid.h.min(y.saturating_add(side)) {
                coarse[y * grid.w + x..y * grid.w + grid.w.min(x.saturating_add(side))].fill(true);
            }
        }
    }
}
