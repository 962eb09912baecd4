//! Kernels that pass over a map for one value a channel or a cell, and squeeze-excitation, which begins with that; see
//! `kernels/{mean_pool,max_pool,squeeze_excite,gate}`.

use super::{Kind, Sizes, Work, flag, near_bytes};
use crate::DeviceFacts;
use crate::workload::{Op, Workload};

/// Pixels up to which the threads share channels, and parts that the rows of larger maps are cut into.
const FEW_PIXELS: f64 = 144.0;
const PARTS: f64 = 8.0;
/// Rows that are added up together.
const ROWS: f64 = 8.0;
/// Channels that a chunk of means has at least, and chunks for each thread.
const NARROW: f64 = 16.0;
const CHUNKS_PER_THREAD: f64 = 2.0;
/// Hidden channels of a block of the first layer, and channels of a chunk of the second.
const HIDDEN: f64 = 16.0;
const EXCITED: f64 = 64.0;
/// Side of a cell; pieces of all lines of cells, and values that are worth a piece.
const CELL: u32 = 4;
const PIECES: f64 = 4.0;
const PIECE_VALUES: f64 = 16384.0;

/// The busiest thread's share of so many equal chunks.
pub(super) fn share_of(chunks: f64, s: &Sizes) -> f64 {
    ((chunks * s.share).ceil() / chunks.max(1.0)).max(s.share)
}

pub(super) fn fill(w: &Workload, facts: &DeviceFacts, work: &mut Work) {
    let s = Sizes::of(w, facts);
    match w.op {
        Op::PatchGate => cells(w, facts, &s, work),
        Op::MaxPool => maxima(w, facts, &s, work),
        Op::SqueezeExcite => {
            means(w, facts, &s, work);
            excitation(w, facts, &s, work);
        }
        _ => means(w, facts, &s, work),
    }
    work.add(Kind::Launch, &[1.0, s.cold, flag(w.threads > 1)]);
}

/// Bytes of the map, and of those the share outside of a core's cache.
fn map_bytes(w: &Workload, facts: &DeviceFacts, s: &Sizes) -> (f64, f64) {
    let bytes = w.pixels() as f64 * f64::from(w.c_in) * f64::from(w.dtype.bytes());
    (bytes, (1.0 - near_bytes(facts) * s.threads / bytes.max(1.0)).max(0.0))
}

fn means(w: &Workload, facts: &DeviceFacts, s: &Sizes, work: &mut Work) {
    let batch = f64::from(w.batch);
    let vectors = (w.c_in_active / f64::from(facts.lanes)).ceil();
    let few = f64::from(w.in_h) * f64::from(w.in_w) <= FEW_PIXELS;
    let blocks = if few {
        let wanted = if w.threads == 1 { 1.0 } else { (CHUNKS_PER_THREAD * s.threads / batch).ceil() };
        let c = f64::from(w.c_in);
        let width = ((c / wanted).ceil() / NARROW).ceil() * NARROW;
        (c / width).ceil()
    } else {
        1.0
    };
    let parts = if few { 1.0 } else { PARTS };
    let rows = s.rows / batch;
    let together = batch * parts * (rows / parts / ROWS).floor();
    let single = s.rows - ROWS * together;
    let share = share_of(batch * blocks * parts, s);
    let (_, outside) = map_bytes(w, facts, s);
    let listed = flag(w.c_in_listed);
    work.add(
        Kind::Compute,
        &[
            together * vectors * share,
            single * vectors * share,
            batch * vectors,
            batch * (parts - 1.0) * vectors,
            batch * blocks * parts * share,
        ],
    );
    work.add(Kind::Memory, &[s.input * share, s.input * outside * share]);
    work.add(Kind::Gather, &[s.rows * blocks * share, f64::from(w.runs) * share, batch * listed]);
}

/// Two layers on the means, then every row times its sample's factors.
fn excitation(w: &Workload, facts: &DeviceFacts, s: &Sizes, work: &mut Work) {
    let (batch, count) = (f64::from(w.batch), w.c_in_active);
    let lanes = f64::from(facts.lanes);
    let vectors = (count / lanes).ceil();
    let blocks = (f64::from(w.c_out) / HIDDEN).ceil();
    let first = share_of(batch * blocks, s);
    let second = share_of(batch * (f64::from(w.c_in) / EXCITED).ceil(), s);
    let steps = batch * count * blocks;
    let (_, outside) = map_bytes(w, facts, s);
    let weights = 2.0 * count * blocks * HIDDEN * 4.0;
    let listed = flag(w.c_in_listed);
    work.add(
        Kind::Compute,
        &[
            steps * first,
            steps * second,
            batch * count * second,
            batch * blocks * first,
            s.rows * vectors * s.share,
            s.rows * s.share,
        ],
    );
    let far = (1.0 - 0.5 * facts.l2_bytes.max(1) as f64 / weights.max(1.0)).max(0.0);
    work.add(
        Kind::Memory,
        &[weights * first * s.cold, weights * first * far, s.input * s.share, s.input * outside * s.share],
    );
    work.add(Kind::Gather, &[steps * listed * first, batch * count * listed * second]);
}

/// Scalar products of pixels and weights, over cells of the map.
fn cells(w: &Workload, facts: &DeviceFacts, s: &Sizes, work: &mut Work) {
    let batch = f64::from(w.batch);
    let (across, down) = (w.in_w.div_ceil(CELL), w.in_h.div_ceil(CELL));
    // Cells overlap where they do not divide the map. Four pixels of a cell's line are multiplied together.
    let length = |i: u32, cells: u32, pixels: u32| ((i + 1) * pixels).div_ceil(cells) - i * pixels / cells;
    let (mut fours, mut single) = (0, 0);
    for width in (0..across).map(|x| length(x, across, w.in_w)) {
        fours += width / 4;
        single += width % 4;
    }
    let lines = batch * f64::from((0..down).map(|y| length(y, down, w.in_h)).sum::<u32>());
    let (fours, single, each) =
        (lines * f64::from(fours), lines * f64::from(single), lines * f64::from(across));
    let lanes = f64::from(facts.lanes);
    let c = f64::from(w.c_in);
    let (whole, ragged) = ((c / lanes).floor(), flag(!w.c_in.is_multiple_of(facts.lanes)));
    let quads = (c / (4.0 * lanes)).floor();
    let rest = (c / lanes).ceil() - 4.0 * quads;
    let down = f64::from(down);
    let values = f64::from(w.in_h) * f64::from(w.in_w) * c / down;
    let pieces = (PIECES / down).ceil().min((values / PIECE_VALUES).floor()).max(1.0);
    let chunks = batch * down * pieces;
    let share = share_of(chunks, s);
    let (_, outside) = map_bytes(w, facts, s);
    work.add(
        Kind::Compute,
        &[
            fours * whole * share,
            fours * ragged * share,
            single * quads * share,
            single * rest * share,
            single * share,
            each * share,
            chunks * share,
            batch * down * f64::from(across),
        ],
    );
    work.add(Kind::Memory, &[s.input * share, s.input * outside * share]);
}

fn maxima(w: &Workload, facts: &DeviceFacts, s: &Sizes, work: &mut Work) {
    let vectors = (w.c_out_active / f64::from(facts.lanes)).ceil();
    let (_, outside) = map_bytes(w, facts, s);
    work.add(Kind::Compute, &[s.rows * vectors * s.taps * s.share, s.rows * s.share]);
    work.add(Kind::Memory, &[(s.input + s.output) * s.share, s.input * outside * s.share]);
}
