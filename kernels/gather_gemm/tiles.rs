//! Blocks of rows × panels on processors that multiply tiles: the rows' input is gathered next to each other, and then
//! every panel meets it.

use super::cpu::{Job, evenly};
use super::filter::Tile;
use super::micro::{Segment, Strip, finish};
use super::scratch::Scratch;
use crate::simd::tiles::{DEPTH, Product, SIDE, Tiles};
use crate::simd::{Simd, dispatch};
use crate::{Element, Isa};
use std::ops::Range;

/// What is computed at once: two tiles of rows × two of columns.
pub(super) const TILE: Tile = Tile { lanes: SIDE, columns: 2 * SIDE, rows: 2 * SIDE };

/// Gathered rows stay in the second-level cache while panels pass by.
const GATHERED_BYTES: usize = 1200 << 10;
/// Rows of a block are at most so many.
pub(super) const MOST_ROWS: usize = 512;
/// Weights up to this size stay in the second-level cache next to a block of rows.
const RESIDENT_BYTES: usize = 512 << 10;

/// Bytes from one gathered row to the next, for a reduction over `depth`: an odd number of cache lines, so that rows lie in
/// different sets of the first-level cache.
pub(super) fn pitch(depth: usize) -> usize {
    let lines = depth.div_ceil(DEPTH);
    64 * (lines + usize::from(lines.is_multiple_of(2)))
}

/// The most rows of a block.
fn block_rows(depth: usize) -> usize {
    (GATHERED_BYTES / pitch(depth) / SIDE * SIDE).clamp(TILE.rows, MOST_ROWS)
}

/// Bytes that the gathered rows of a block take, for any reduction over up to `depth`.
pub(super) fn gathered_bytes(depth: usize) -> usize {
    (MOST_ROWS * pitch(depth)).min(GATHERED_BYTES).max(TILE.rows * pitch(depth))
}

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
pub(super) fn block(job: &Job<'_>, block: usize) -> Range<usize> {
    let row = |block: usize| job.rows.end.min(job.rows.start + job.tiles * block / job.blocks * SIDE);
    row(block)..row(block + 1)
}

/// Copies what the `rows` rows of a block read next to each other, unless that was done. `block`: its sample and number.
pub(super) fn gather<E: Element>(
    isa: Isa,
    scratch: &mut Scratch<E>,
    block: (usize, usize),
    (rows, n_taps): (usize, usize),
) {
    // Of the first tap; folded taps are longer than a pixel's channels.
    let first = scratch.segments.first().map_or(0, |segment| segment.c_in as usize);
    let depth = depth(&scratch.segments);
    let of = Some((block.0, block.1, first..depth));
    if scratch.gathered_of == of {
        return;
    }
    assert!(rows * pitch(depth) <= scratch.gathered.len() * size_of::<E>());
    let to = scratch.gathered.as_mut_slice().as_mut_ptr();
    copy_rows(isa, &scratch.taps[..rows * n_taps], n_taps, first, depth / n_taps, to);
    scratch.gathered_of = of;
}

/// Steps of a reduction.
fn depth(segments: &[Segment]) -> usize {
    segments.last().map_or(0, |last| (last.panel_row + last.inputs) as usize)
}

dispatch! {
    /// `taps` are `[n_taps][rows]` pointers to whole pixels; `to` has room for as many rows.
    fn copy_rows<E>(taps: &[*const E], n_taps: usize, first: usize, len: usize, to: *mut E) = copy_rows_set
}

#[inline(always)]
fn copy_rows_set<S: Simd, E: Element>(
    taps: &[*const E],
    n_taps: usize,
    first: usize,
    len: usize,
    to: *mut E,
) {
    let rows = taps.len() / n_taps;
    let (depth, pitch) = (n_taps * len, pitch(n_taps * len));
    for row in 0..rows {
        let to = to.wrapping_byte_add(row * pitch);
        // SAFETY: a row of `pitch` bytes, no less than `depth` elements rounded up to whole lines, lies at `to`; every tap
        // has `first + len` channels.
        unsafe {
            for tap in 0..n_taps {
                let (from, to) = (taps[tap * rows + row].add(first), to.add(tap * len));
                if len.is_multiple_of(DEPTH) {
                    for at in (0..len).step_by(DEPTH) {
                        let line = from.add(at).cast::<[u8; 64]>().read_unaligned();
                        to.add(at).cast::<[u8; 64]>().write_unaligned(line);
                    }
                } else {
                    std::ptr::copy_nonoverlapping(from, to, len);
                }
            }
            to.add(depth).write_bytes(0, depth.next_multiple_of(DEPTH) - depth);
        }
    }
}

/// Multiplies the gathered rows of a strip with its panel.
pub(super) fn compute<E: Element>(isa: Isa, tiles: &Tiles, strip: &Strip<'_, E>, gathered: *const E) {
    let depth = depth(strip.segments);
    let (steps, pitch) = (depth.div_ceil(DEPTH), pitch(depth));
    let two_columns = strip.stored > SIDE;
    let ahead = strip.next.map_or(std::ptr::null(), |next| next.units[0].cast::<u8>());
    // Tiles of a panel, and turns among which asking for the next one's lines is shared.
    let panel_lines = steps * SIDE * (1 + usize::from(two_columns));
    let strips = strip.rows.div_ceil(2 * SIDE);
    let per_step = if ahead.is_null() { 0 } else { panel_lines.div_ceil((steps * strips).max(1)) };
    let mut asked = 0;
    for first in (0..strip.rows).step_by(2 * SIDE) {
        let rows = (strip.rows - first).min(2 * SIDE);
        let lines = if asked < panel_lines { per_step } else { 0 };
        let product = Product {
            a: gathered.wrapping_byte_add(first * pitch).cast(),
            pitch,
            two_rows: rows > SIDE,
            b: std::array::from_fn(|i| strip.panel.units[i].cast()),
            two_columns,
            steps,
            sums: strip.sums,
            ahead: ahead.wrapping_add(asked * 64),
            lines,
        };
        asked += lines * steps;
        // SAFETY: whole tiles of rows were gathered, and the sums have room for four tiles.
        unsafe {
            match steps {
                0 => strip.sums.write_bytes(0, TILE.rows * TILE.columns),
                _ => tiles.multiply(&product),
            }
        }
        write(isa, strip, first..first + rows);
    }
}

dispatch! {
    /// Finishes `rows` of a strip.
    fn write<E>(strip: &Strip<'_, E>, rows: Range<usize>) = write_set
}

#[inline(always)]
fn write_set<S: Simd, E: Element>(strip: &Strip<'_, E>, rows: Range<usize>) {
    // SAFETY: the caller of `compute` vouches for the pointers; `dispatch` for the instruction set.
    unsafe { finish::<S, E>(strip, rows, strip.stored / S::LANES, strip.sums) }
}
