//! Kernels whose time is that of passing over rows, or a matrix times a vector.

use super::{Kind, Sizes, Work};
use crate::DeviceFacts;
use crate::workload::{Op, Workload};

pub(super) fn fill(w: &Workload, facts: &DeviceFacts, work: &mut Work) {
    let s = Sizes::of(w, facts);
    let lanes = f64::from(facts.lanes);
    let flag = |is: bool| f64::from(u8::from(is));
    let batch = f64::from(w.batch);
    let share = s.share;
    let (vectors_in, vectors_out) = ((w.c_in_active / lanes).ceil(), (w.c_out_active / lanes).ceil());
    let all = f64::from(w.in_h) * f64::from(w.in_w) * batch;
    let listed = flag(w.c_in_listed || w.c_out_listed);
    // What each sample or row is multiplied with.
    let times = if w.op == Op::Linear { s.rows } else { batch };
    let products = match w.op {
        Op::Linear | Op::SqueezeExcite => times * w.c_in_active * w.c_out_active,
        _ => 0.0,
    };
    // A scalar product takes four vectors at a time and then one by one.
    let dots = match w.op {
        Op::Linear => s.rows * w.c_out_active,
        Op::PatchGate => all,
        _ => 0.0,
    };
    let fours = (w.c_in_active / (4.0 * lanes)).floor();
    let rest = ((w.c_in_active - 4.0 * lanes * fours) / lanes).ceil();
    work.add(
        Kind::Compute,
        &[
            dots * share,
            dots * fours * share,
            dots * rest * share,
            dots * flag(w.c_in_active % lanes > 0.0) * share,
            s.rows * vectors_in * share,
            s.rows * vectors_out * s.taps * share,
            s.rows * vectors_in,
            products,
            times * (w.c_in_active + w.c_out_active),
            s.rows * vectors_in * listed * share,
        ],
    );
    let (input, output) = (s.input * share, s.output * share);
    work.add(
        Kind::Memory,
        &[
            input,
            input * s.outside,
            input * s.cold,
            input * s.outside * s.cold,
            output,
            output * s.outside,
            output * s.cold,
            s.weights * s.cold,
            s.weights * s.outside * times,
        ],
    );
    let pixels = w.pixels() as f64;
    work.add(
        Kind::Gather,
        &[
            s.rows * share,
            s.rows,
            f64::from(w.runs),
            all,
            pixels * s.taps,
            batch,
            batch * w.c_in_active * listed,
        ],
    );
    work.add(Kind::Launch, &[1.0, s.cold, s.threads - 1.0, flag(w.threads > 1)]);
}
