//! Blocks of rows × panels on processors that multiply tiles. A tile reads sixteen rows that lie evenly: where those of a
//! block do not, they are copied first, and then every panel meets them.

mod lines;
mod operand;
pub(super) mod pack;
mod write;

use super::cpu::{Job, epilogue, evenly, piece};
use super::filter::Tile;
use super::panel::{place, prepare, reduce};
use super::rows::point_out;
use super::scratch::Scratch;
use super::{Filter, GatherGemm, Placement};
use crate::simd::Kind;
use crate::simd::tiles::{COLUMNS_OF_TILES, MOST_COLUMNS, Product, ROWS_OF_VECTORS, SIDE, Tiles, step_len};
use crate::{Element, Isa};
pub(super) use operand::Operand;
use operand::Window;
use std::ops::Range;

/// What is computed at once for `c_out` columns: two tiles of rows × as many of columns as there are registers for.
pub(super) fn tile(isa: Isa, c_out: usize) -> Tile {
    let all = c_out.div_ceil(SIDE);
    let columns = match isa.0 {
        // One or two tiles that are left over read as much of the rows as all others together.
        #[cfg(target_arch = "x86_64")]
        Kind::Vnni if all.is_multiple_of(MOST_COLUMNS - 1) && (1..3).contains(&(all % MOST_COLUMNS)) => {
            MOST_COLUMNS - 1
        }
        #[cfg(target_arch = "x86_64")]
        Kind::Vnni => MOST_COLUMNS,
        _ => COLUMNS_OF_TILES,
    };
    let rows = if columns > COLUMNS_OF_TILES { ROWS_OF_VECTORS } else { ROWS };
    Tile { lanes: SIDE, columns: columns * SIDE, rows }
}

/// Rows of a product.
const ROWS: usize = 2 * SIDE;

/// Rows that blocks are cut between: whole tiles, of which vectors compute any rows.
fn grain<E>(filter: &Filter<E>) -> usize {
    if filter.tile.rows < SIDE { 1 } else { SIDE }
}
/// Sums of a product.
const SUMS: usize = ROWS * MOST_COLUMNS * SIDE;

/// Gathered rows stay in the second-level cache while panels pass by.
const GATHERED_BYTES: usize = 1200 << 10;
/// Rows of a block are at most so many.
pub(super) const MOST_ROWS: usize = 512;

/// The most rows of a block.
fn block_rows<E>(depth: usize) -> usize {
    (GATHERED_BYTES / operand::pitch::<E>(depth) / SIDE * SIDE).clamp(ROWS, MOST_ROWS)
}

/// Bytes that the gathered rows of a block take, for any reduction over up to `depth`.
pub(super) fn gathered_bytes<E>(depth: usize) -> usize {
    let pitch = operand::pitch::<E>(depth);
    (MOST_ROWS * pitch).min(GATHERED_BYTES).max(ROWS * pitch)
}

/// Products whose rows meet a part of a panel while it is in the first-level cache.
const GROUP: usize = 2;
/// Steps of a reduction in such a part.
const PART_STEPS: usize = 9;
/// Sums of a group.
pub(super) const KEPT_SUMS: usize = GROUP * SUMS;

/// Bytes of weights that are read as quickly as one of what a row reads, most of which another thread wrote.
const WEIGHTS_PER_INPUT: usize = 4;
/// Weights up to this size are read again for every block at little cost.
const NEAR_WEIGHTS: usize = 160 << 10;
/// What the rows of a block read stays in the first-level cache while panels pass by, if it is no more.
const NEAR_ROWS: usize = 28 << 10;
/// With fewer rows a block would not be worth fetching a panel for.
const FEWEST_ROWS: usize = 4 * SIDE;
/// Tiles of listed rows that are copied at a time.
const COPIED_TILES: usize = 3;

/// Cuts a job of `rows` rows into blocks and parts; `bytes` of weights.
pub(super) fn cut<'a, E: Element>(
    filter: &Filter<E>,
    call: &GatherGemm<'_, [E]>,
    job: Job<'a>,
    bytes: usize,
    (wanted, threads): (usize, usize),
) -> Job<'a> {
    let g = filter.geometry();
    let rows = job.rows.len();
    let tiles = rows.div_ceil(SIDE);
    let inputs = if g.groups > 1 { filter.panels[0].inputs } else { job.c_in.map_or(g.c_in, <[u32]>::len) };
    let depth = filter.depth_in_turns(inputs);
    let least = rows.div_ceil(block_rows::<E>(depth));
    // Where threads share the columns each reads all rows, where they share the rows all weights, or packs them.
    let row = (WEIGHTS_PER_INPUT * depth + job.columns * job.width) * size_of::<E>();
    let by_rows = bytes <= rows * row;
    let shares = (0..).map(|halves| threads >> halves).find(|shares| 2 * shares <= tiles).unwrap_or(1).max(1);
    let near = NEAR_ROWS / (depth * size_of::<E>()).max(1) / SIDE * SIDE;
    let listed = g.is_pointwise() && call.input_rows == Placement::Natural && !call.active.rows.is_all();
    let small = if bytes > NEAR_WEIGHTS {
        1
    } else if listed {
        (tiles / COPIED_TILES).min(2 * wanted)
    } else if g.groups == 1 && job.columns > 2 && near >= FEWEST_ROWS {
        rows.div_ceil(near)
    } else {
        1
    };
    let blocks = least.max(small).next_multiple_of(if by_rows { shares } else { 1 });
    let parts = evenly(job.columns, wanted.div_ceil(blocks));
    Job { tiles: rows.div_ceil(grain(filter)), blocks, parts, ..job }
}

/// The rows of a block.
fn rows_of(job: &Job<'_>, grain: usize, block: usize) -> Range<usize> {
    let row = |block: usize| job.rows.end.min(job.rows.start + piece(job.tiles, job.blocks, block) * grain);
    row(block)..row(block + 1)
}

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
    let rows = rows_of(job, grain(filter), block);
    let g = filter.geometry();
    let folded = filter.folded && job.c_in.is_none() && job.c_out.is_none();
    let n_taps = if folded { g.kernel } else { g.kernel * g.kernel };
    if scratch.block != Some((job.sample, block)) {
        scratch.block = Some((job.sample, block));
        scratch.operand.forget();
        point_out(filter, call, rows.start, 0..rows.len(), scratch, output);
        reduce(filter, job, folded, scratch);
    }
    let tiles = Tiles::new(isa);
    let kept = scratch.sums.as_mut_slice();
    assert!(kept.len() >= KEPT_SUMS);
    let kept = kept.as_mut_ptr();
    for column in columns {
        let Some(panel) = prepare(isa, filter, job, column, scratch) else { continue };
        operand::ready(isa, filter, call, (rows.start, rows.len()), n_taps, scratch);
        let next = column + 1;
        let next = if g.groups == 1 && next < job.columns { place(filter, job, next, scratch) } else { None };
        let end = epilogue(filter, call, job, &panel, scratch);
        let columns = panel.stored / SIDE;
        let Operand { windows, at, offsets, turns, begin, pitch, .. } = &scratch.operand;
        let lines = offsets.len() * SIDE * columns;
        let mut ahead =
            Ahead::new(next.map(|next| next.units[0]), lines, offsets.len() * windows.len().div_ceil(2));
        for (first, group) in (0..).step_by(2 * GROUP).zip(windows.chunks(2 * GROUP)) {
            let parts = if group.len() > 2 { offsets.len().div_ceil(PART_STEPS) } else { 1 }.max(1);
            for part in 0..parts {
                let steps = piece(offsets.len(), parts, part)..piece(offsets.len(), parts, part + 1);
                for (product, windows) in group.chunks(2).enumerate() {
                    let (first, sums) = (first + 2 * product, kept.wrapping_add(product * SUMS));
                    let (coming, lines) = ahead.take(steps.len());
                    let (one, two) = (&windows[0], windows.get(1));
                    let asked_of = |window: &Window<E>| {
                        let rows = rows_of_windows(std::slice::from_ref(window));
                        let place = |row: usize| usize::from(at[row]) % SIDE;
                        (place(rows.start), place(rows.end - 1) + 1 - place(rows.start))
                    };
                    let product = Product {
                        a: [one.start, two.unwrap_or(one).start],
                        offsets: offsets[steps.clone()].as_ptr(),
                        pitch: *pitch,
                        two_rows: two.is_some(),
                        asked: [asked_of(one), two.map_or((0, 0), asked_of)],
                        b: panel.rows.units.map(|b| b.wrapping_add(steps.start * step_len::<E>() * SIDE)),
                        columns,
                        steps: steps.len(),
                        sums,
                        adds: part > 0,
                        turns: turns[steps.clone()].as_ptr(),
                        begin: [0, 1].map(|i| begin.get(first + i).map_or(std::ptr::null(), |b| b.as_ptr())),
                        ahead: coming,
                        lines,
                    };
                    // SAFETY: windows are of sixteen rows that can be read; the panel has as many columns; the sums have room
                    // for four tiles.
                    unsafe {
                        match steps.len() {
                            0 => product.sums.write_bytes(0, SUMS),
                            _ => tiles.multiply(&product),
                        }
                    }
                    if part + 1 == parts {
                        write::run(isa, &end, rows_of_windows(windows), (at.as_ptr(), sums));
                    }
                }
            }
        }
    }
}

/// The rows of a block that some windows, one after another, are of.
fn rows_of_windows<E>(windows: &[Window<E>]) -> Range<usize> {
    let (first, last) = (&windows[0], &windows[windows.len() - 1]);
    first.first as usize..(last.first + last.rows) as usize
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
