//! Blocks of rows × panels on processors that multiply tiles: rows that do not lie evenly are gathered next to each other,
//! and then every panel meets them.

mod gather;
mod write;

use super::cpu::{Job, epilogue, evenly, piece};
use super::filter::Tile;
use super::micro::{Epilogue, Segment};
use super::panel::{place, prepare, reduce};
use super::rows::point;
use super::scratch::Scratch;
use super::{Filter, GatherGemm, Placement};
use crate::simd::tiles::{DEPTH, Product, SIDE, Tiles};
use crate::{Element, Isa};
use smallvec::SmallVec;
use std::ops::Range;

/// What is computed at once: two tiles of rows × two of columns.
pub(super) const TILE: Tile = Tile { lanes: SIDE, columns: 2 * SIDE, rows: 2 * SIDE };
/// Sums of that.
const SUMS: usize = TILE.rows * TILE.columns;

/// Gathered rows stay in the second-level cache while panels pass by.
const GATHERED_BYTES: usize = 1200 << 10;
/// Rows of a block are at most so many.
pub(super) const MOST_ROWS: usize = 512;
/// Weights up to this size stay in the second-level cache next to a block of rows.
const RESIDENT_BYTES: usize = 512 << 10;

/// The most rows of a block.
fn block_rows(depth: usize) -> usize {
    (GATHERED_BYTES / gather::pitch(depth) / SIDE * SIDE).clamp(TILE.rows, MOST_ROWS)
}

/// Bytes that the gathered rows of a block take, for any reduction over up to `depth`.
pub(super) fn gathered_bytes(depth: usize) -> usize {
    (MOST_ROWS * gather::pitch(depth)).min(GATHERED_BYTES).max(TILE.rows * gather::pitch(depth))
}

/// Products whose rows meet a part of a panel while it is in the first-level cache.
const GROUP: usize = 2;
/// Steps of a reduction in such a part.
const PART_STEPS: usize = 8;
/// Sums that are kept: while those of a group are computed, the ones before are written.
pub(super) const KEPT_SUMS: usize = 2 * GROUP * SUMS;

/// Cuts a job of `rows` rows into blocks and parts; `bytes` of weights.
pub(super) fn cut<'a>(job: Job<'a>, rows: usize, depth: usize, bytes: usize, wanted: usize) -> Job<'a> {
    let tiles = rows.div_ceil(SIDE);
    let least = rows.div_ceil(block_rows(depth));
    let rows_first = bytes <= RESIDENT_BYTES && tiles >= 2 * wanted || job.columns < wanted;
    let blocks = if rows_first { least.max(wanted.min(tiles.div_ceil(2))) } else { least };
    let parts = evenly(job.columns, wanted.div_ceil(blocks));
    Job { tiles, blocks, parts, ..job }
}

/// The rows of a block.
fn rows_of(job: &Job<'_>, block: usize) -> Range<usize> {
    let row = |block: usize| job.rows.end.min(job.rows.start + piece(job.tiles, job.blocks, block) * SIDE);
    row(block)..row(block + 1)
}

/// Steps of a reduction.
fn depth(segments: &[Segment]) -> usize {
    segments.last().map_or(0, |last| (last.panel_row + last.inputs) as usize)
}

/// Rows that products read.
#[derive(Clone, Copy)]
struct Operand<E> {
    start: *const E,
    /// Bytes from row to row.
    pitch: usize,
    /// Rows that are no longer part of the block must not be read.
    ends: bool,
}

/// Sums that wait to be written.
struct Pending<E> {
    end: Epilogue<E>,
    rows: Range<usize>,
    sums: *const f32,
}

#[allow(clippy::too_many_arguments)]
pub(super) fn run_chunk<E: Element>(
    isa: Isa,
    filter: &Filter<E>,
    call: &GatherGemm<'_, [E]>,
    job: &Job<'_>,
    chunk: usize,
    scratch: &mut Scratch<E>,
    output: *mut E,
) {
    let (block, part) = (chunk / job.parts, chunk % job.parts);
    let columns = piece(job.columns, job.parts, part)..piece(job.columns, job.parts, part + 1);
    let rows = rows_of(job, block);
    let g = filter.geometry();
    let folded = filter.folded && job.c_in.is_none() && job.c_out.is_none();
    let n_taps = if folded { g.kernel } else { g.kernel * g.kernel };
    if scratch.block != Some((job.sample, block)) {
        scratch.block = Some((job.sample, block));
        scratch.gathered_of = None;
        point(filter, call, rows.start, 0..rows.len(), n_taps, scratch, output);
        reduce(filter, job, folded, scratch);
    }
    let even = g.is_pointwise() && (call.input_rows == Placement::Compact || call.active.rows.is_all());
    let tiles = Tiles::new(isa);
    let kept = scratch.sums.as_mut_slice();
    assert!(kept.len() >= KEPT_SUMS);
    let kept = kept.as_mut_ptr();
    let mut pending = SmallVec::<[Pending<E>; GROUP]>::new();
    let mut turn = 0;
    for column in columns {
        if job.c_out.is_some() {
            // Their bias lies where that of the next panel will.
            pending.drain(..).for_each(|pending| write::run(isa, &pending));
        }
        let Some(panel) = prepare(isa, filter, job, column, scratch) else { continue };
        let depth = depth(&scratch.segments);
        let operand = if even && rows.len() >= TILE.rows && depth.is_multiple_of(DEPTH) && depth > 0 {
            let start = scratch.taps[0].wrapping_add(scratch.segments[0].c_in as usize);
            Operand { start, pitch: g.c_in * size_of::<E>(), ends: true }
        } else {
            gather::run(isa, scratch, rows.len(), n_taps, depth)
        };
        let next = column + 1;
        let next = if g.groups == 1 && next < job.columns { place(filter, job, next, scratch) } else { None };
        let end = epilogue(filter, call, job, &panel, scratch);
        let two_columns = panel.stored > SIDE;
        let steps = depth.div_ceil(DEPTH);
        let strips = rows.len().div_ceil(TILE.rows);
        let lines = steps * SIDE * (1 + usize::from(two_columns));
        let mut ahead = Ahead::new(next.map(|next| next.units[0]), lines, steps * strips);
        for group in (0..strips).step_by(GROUP) {
            let group = group..strips.min(group + GROUP);
            turn = 1 - turn;
            let sums = |strip: usize| kept.wrapping_add((turn * GROUP + strip % GROUP) * SUMS);
            let place = |strip: usize| {
                let rows = strip * TILE.rows..rows.len().min((strip + 1) * TILE.rows);
                let two = rows.len() > SIDE;
                let tall = SIDE * (1 + usize::from(two));
                let start = if operand.ends { rows.start.min(rows.end - tall) } else { rows.start };
                (rows, start, two)
            };
            let parts = if group.len() > 1 { steps.div_ceil(PART_STEPS) } else { 1 }.max(1);
            for (part, strip) in (0..parts).flat_map(|part| group.clone().map(move |strip| (part, strip))) {
                let steps = piece(steps, parts, part)..piece(steps, parts, part + 1);
                let (_, start, two_rows) = place(strip);
                let (asked, lines) = ahead.take(steps.len());
                let a = operand.start.wrapping_byte_add(start * operand.pitch);
                let product = Product {
                    a: a.wrapping_add(steps.start * DEPTH).cast(),
                    pitch: operand.pitch,
                    two_rows,
                    b: panel.rows.units.map(|b| b.wrapping_add(steps.start * DEPTH * SIDE).cast()),
                    two_columns,
                    steps: steps.len(),
                    sums: sums(strip),
                    adds: part > 0,
                    ahead: asked,
                    lines,
                };
                // SAFETY: the operand has as many rows, or whole tiles of them were gathered; the panel has as many columns;
                // the sums have room for four tiles.
                unsafe {
                    match steps.len() {
                        0 => product.sums.write_bytes(0, SUMS),
                        _ => tiles.multiply(&product),
                    }
                }
            }
            let done = group.map(|strip| {
                let (rows, start, _) = place(strip);
                let skipped = (rows.start - start) * SIDE * (1 + usize::from(two_columns));
                Pending { end, rows, sums: sums(strip).wrapping_add(skipped) }
            });
            pending.drain(..).for_each(|pending| write::run(isa, &pending));
            pending.extend(done);
        }
    }
    pending.iter().for_each(|pending| write::run(isa, pending));
}

/// Progress through the panel that will be multiplied with next, of which every step asks for a share.
struct Ahead {
    at: *const u8,
    /// Cache lines that are left, and those that a step asks for.
    left: usize,
    per_step: usize,
}

impl Ahead {
    /// A panel of so many `lines`, shared among `steps`.
    fn new<E>(panel: Option<*const E>, lines: usize, steps: usize) -> Self {
        let left = if panel.is_some() { lines } else { 0 };
        Self { at: panel.unwrap_or(std::ptr::null()).cast(), left, per_step: left.div_ceil(steps.max(1)) }
    }

    /// Where the share of `steps` starts, and lines for each of them.
    fn take(&mut self, steps: usize) -> (*const u8, usize) {
        let (at, lines) = (self.at, if self.left > 0 { self.per_step } else { 0 });
        self.at = at.wrapping_add(64 * lines * steps);
        self.left = self.left.saturating_sub(lines * steps);
        (at, lines)
    }
}
