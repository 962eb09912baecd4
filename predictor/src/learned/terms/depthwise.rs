//! The CPU's depthwise convolution: neighbouring pixels in groups × vectors of channels; see `kernels/depthwise`.

use super::{Kind, Sizes, Work};
use crate::DeviceFacts;
use crate::workload::{Route, Workload};

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
    let flag = |is: bool| f64::from(u8::from(is));
    let listed = flag(w.c_out_listed);
    let share = s.share;
    let runs = f64::from(w.runs);
    let length = s.rows / runs.max(1.0);
    // A mean length stands for lengths around it.
    let (low, high) = (groups(length.floor().max(1.0)), groups(length.ceil().max(1.0)));
    let longer = length - length.floor();
    let [seven, four, two, one] =
        std::array::from_fn(|i| runs * ((1.0 - longer) * low[i] + longer * high[i]) * vectors * share);
    let all = seven + four + two + one;
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
