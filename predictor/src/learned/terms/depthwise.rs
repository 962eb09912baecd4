//! The CPU's depthwise convolution: neighbouring pixels in groups × vectors of channels; see `kernels/depthwise`.

use super::pooling::share_of;
use super::{Kind, Sizes, Work, flag};
use crate::DeviceFacts;
use crate::workload::{Route, Workload};

const CHUNKS_PER_THREAD: f64 = 4.0;
/// Channels that a chunk has at least where channels are cut.
const CHANNELS: f64 = 64.0;
/// Groups that are passed over together, and the input that they read.
const GROUPS: f64 = 128.0;
const INPUT_BYTES: f64 = 262144.0;
/// Sizes that runs of neighbours are cut into.
const SIZES: [f64; 4] = [7.0, 4.0, 2.0, 1.0];

/// Groups of each size in a run of `length` neighbours.
fn groups(length: f64) -> [f64; 4] {
    let mut rest = length;
    SIZES.map(|size| {
        let groups = (rest / size).floor();
        rest -= groups * size;
        groups
    })
}

pub(super) fn fill(w: &Workload, facts: &DeviceFacts, work: &mut Work) {
    let s = Sizes::of(w, facts);
    let lanes = f64::from(facts.lanes);
    let vectors = (w.c_out_active / lanes).ceil();
    let listed = flag(w.c_out_listed);
    let runs = f64::from(w.runs);
    let length = s.rows / runs.max(1.0);
    // Rows, by whole lines where all are computed, are cut for the threads, and channels where that is not enough.
    let jobs = if w.c_out_listed { f64::from(w.batch) } else { 1.0 };
    let wanted = if w.threads == 1 { 1.0 } else { (CHUNKS_PER_THREAD * s.threads / jobs).ceil() };
    let unit = if w.row_density() < 1.0 { 1.0 } else { f64::from(w.out_w) };
    let most_blocks = (w.c_out_active / CHANNELS).floor().max(1.0);
    let (pieces, blocks) = if w.c_out_listed {
        let blocks = wanted.min(most_blocks);
        ((wanted / blocks).floor(), blocks)
    } else {
        let pieces = wanted.min((s.rows / unit).floor()).max(1.0);
        (pieces, (wanted / pieces).floor().min(most_blocks))
    };
    let share = share_of(jobs * pieces * blocks, &s);
    // A mean length stands for lengths around it.
    let (low, high) = (groups(length.floor().max(1.0)), groups(length.ceil().max(1.0)));
    let longer = length - length.floor();
    let [seven, four, two, one] =
        std::array::from_fn(|i| runs * ((1.0 - longer) * low[i] + longer * high[i]) * vectors * share);
    let all = seven + four + two + one;
    let width = w.c_in_active / blocks * f64::from(w.stride).powi(2) * f64::from(w.dtype.bytes());
    let most_rows = (INPUT_BYTES / width.max(1.0)).floor().max(SIZES[0]);
    let (rows, groups) = (s.rows / (jobs * pieces), all / (vectors * share * jobs * pieces).max(1e-9));
    let passes = jobs * pieces * (rows / most_rows).ceil().max((groups / GROUPS).ceil());
    // Groups that reach over the border take longer.
    let per_line = f64::from(w.out_w) / (s.rows * vectors * share / all.max(1e-9)).max(1.0);
    let inside = (1.0 - 2.0 / f64::from(w.out_h)).max(0.0) * (1.0 - (2.0 / per_line).min(1.0));
    let work_of = |taps: f64| [seven * taps, four * taps, two * taps, one * taps];
    let strided = flag(w.stride > 1);
    work.add(Kind::Compute, &work_of(s.taps));
    work.add(
        Kind::Compute,
        &[
            seven * s.taps * (1.0 - inside),
            (four + two + one) * s.taps * (1.0 - inside),
            s.rows * vectors * s.taps * strided * share,
            s.rows * s.taps * flag(w.c_out_active < lanes) * w.c_out_active * share,
            passes * vectors * share,
        ],
    );
    let (input, output) = (s.input * share, s.output * share);
    // A vector of channels of one pixel after another: lines far apart, which nothing asks for ahead of time.
    let strided_lines = (w.c_in_active / 128.0).min(1.0);
    work.add(
        Kind::Memory,
        &[
            input,
            input * s.outside,
            input * s.cold,
            input * s.outside * s.cold,
            s.reached * share,
            (s.input + s.output) * s.outside * share * strided_lines,
            s.reached * s.outside * share,
            s.reached * s.cold * share,
            output * s.outside * s.cold,
            output,
            output * s.outside,
            output * s.cold,
            s.weights * s.cold,
        ],
    );
    let chunks = if w.threads == 1 { 1.0 } else { 4.0 };
    work.add(
        Kind::Gather,
        &[
            all / vectors.max(1.0),
            s.rows * share * flag(w.route != Route::Dense),
            runs * share * flag(w.route != Route::Dense),
            f64::from(w.batch) * vectors * s.taps * listed * chunks,
            f64::from(w.batch) * vectors * s.taps * listed * s.cold,
            s.rows * vectors * s.taps * listed * share,
        ],
    );
    work.add(Kind::Launch, &[1.0, s.cold, s.threads - 1.0, flag(w.threads > 1)]);
}
