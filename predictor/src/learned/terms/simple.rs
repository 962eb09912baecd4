//! A matrix times vectors, lists from decisions, and kernels that copy; see `kernels/{gate,compact,shortcut,layout}`.

use super::pooling::share_of;
use super::{Kind, Sizes, Work, flag};
use crate::DeviceFacts;
use crate::workload::{Op, Workload};

/// Products that are worth a piece of their own, and pieces for each thread at most.
const PIECE_PRODUCTS: f64 = 65536.0;
const PIECES_PER_THREAD: f64 = 4.0;
/// Pixels of a word of a bit map.
const WORD: f64 = 64.0;
/// Time of a byte from memory and of a multiply-add of vectors, of current server CPUs: which of them the other waits for.
const MEMORY_NS_PER_BYTE: f64 = 0.08;
const STEP_NS: f64 = 0.25;

pub(super) fn fill(w: &Workload, facts: &DeviceFacts, work: &mut Work) {
    let s = Sizes::of(w, facts);
    match w.op {
        Op::Linear => linear(w, facts, &s, work),
        Op::Compact => compact(w, &s, work),
        _ => copy(w, &s, work),
    }
}

/// A scalar product for every output: four vectors at a time, then one by one.
fn linear(w: &Workload, facts: &DeviceFacts, s: &Sizes, work: &mut Work) {
    let lanes = f64::from(facts.lanes);
    let (c_in, c_out) = (f64::from(w.c_in), f64::from(w.c_out));
    let pieces = ((s.rows * c_in * c_out / PIECE_PRODUCTS).floor() + 1.0).min(PIECES_PER_THREAD * s.threads);
    let pieces = pieces.min(c_out).max(1.0);
    let share = share_of(pieces, s);
    let dots = s.rows * c_out;
    let quads = (c_in / (4.0 * lanes)).floor();
    let rest = (c_in / lanes).ceil() - 4.0 * quads;
    let steps = dots * (c_in / lanes).ceil() * share;
    let bytes = s.weights * share;
    let far = (1.0 - 0.5 * facts.l2_bytes.max(1) as f64 / bytes.max(1.0)).max(0.0);
    let waits = (bytes * MEMORY_NS_PER_BYTE - steps * STEP_NS).max(0.0);
    work.add(
        Kind::Compute,
        &[
            dots * share,
            dots * quads * share,
            dots * rest * share,
            dots * flag(!w.c_in.is_multiple_of(facts.lanes)) * share,
        ],
    );
    work.add(Kind::Memory, &[bytes * s.cold, waits * s.cold, bytes * far, bytes.min(16384.0) * s.cold]);
    work.add(Kind::Launch, &[1.0, s.cold, flag(w.threads > 1 && pieces > 1.0)]);
}

/// Bit maps of the decisions, grown through the convolution, and lists of both.
fn compact(w: &Workload, s: &Sizes, work: &mut Work) {
    let batch = f64::from(w.batch);
    let all = batch * f64::from(w.out_h) * f64::from(w.out_w);
    let some = flag(w.rows > 0 && s.rows < all);
    let words = |h: u32, w: u32| batch * f64::from(h) * (f64::from(w) / WORD).ceil();
    let reached = s.reached / (w.c_in_active * f64::from(w.dtype.bytes())).max(1.0);
    let (output, input) = (words(w.out_h, w.out_w), words(w.in_h, w.in_w));
    let deep = flag(w.kernel > 1 || w.stride > 1);
    let runs = f64::from(w.runs);
    work.add(
        Kind::Gather,
        &[
            all,
            all * some,
            output * some,
            input * some * deep,
            input * some * deep * f64::from(w.kernel),
            s.rows * some,
            runs * some,
            reached * some * deep,
            runs * some * deep,
            f64::from(w.in_w) * flag(w.stride > 1) * some,
            batch,
        ],
    );
    work.add(Kind::Launch, &[1.0, some, flag(w.threads > 1)]);
}

fn copy(w: &Workload, s: &Sizes, work: &mut Work) {
    let pixels = f64::from(w.batch) * f64::from(w.out_h) * f64::from(w.out_w);
    let element = f64::from(w.dtype.bytes());
    let (input, output) = (s.rows * f64::from(w.c_in) * element, pixels * f64::from(w.c_out) * element);
    work.add(
        Kind::Memory,
        &[input * s.share, output * s.share, (input + output) * s.outside * s.share, pixels * s.share],
    );
    work.add(Kind::Gather, &[f64::from(w.batch) * f64::from(w.out_h) * s.share]);
    work.add(Kind::Launch, &[1.0, flag(w.threads > 1)]);
}
