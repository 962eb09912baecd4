use crate::Extent;
use crate::device::*;
use crate::testing::{Random, worst};
use laud_kernels::cuda::params::{DecideHighestParams, DecideParams, LinearParams, PatchGateParams};
use laud_kernels::gate::{
    Account, Decide, Linear, Most, PatchGate, reference_decide, reference_linear, reference_patch,
};

/// Sums of up to a few thousand terms of order one, in another order, divided by their number.
const SUMMATION_ORDER: f32 = 1e-5;

fn check_patch<T: Storage>(map: Extent, c: usize, grid: Extent, batch: usize) {
    let mut random = Random(5);
    let gate = PatchGate { weight: random.values(c), bias: random.value(), grid };
    let values = round::<T>(&random.values(batch * map.pixels() * c));
    let input: Vec<T> = store(&values);
    let mut want = vec![0.0; batch * grid.pixels()];
    reference_patch(&gate, &values, batch, map, &mut want);
    let (margins, keep) = in_any_order(|emulator| {
        let (mut margins, mut keep) = (vec![f32::NAN; want.len()], vec![7u8; want.len()]);
        let params = PatchGateParams {
            input: address(&input),
            weight: address(&gate.weight),
            margin: address_mut(&mut margins),
            keep: address_mut(&mut keep),
            batch: batch as u32,
            h: map.h as u32,
            w: map.w as u32,
            c: c as u32,
            grid_h: grid.h as u32,
            grid_w: grid.w as u32,
            bias: gate.bias,
            threshold: 0.25,
        };
        execute(emulator, &params.launch(T::NAME), &params);
        (margins, keep)
    });
    let error = worst(&margins, &want, 1.0);
    assert!(error < SUMMATION_ORDER, "{map:?}, {c} channels, {grid:?}, {}: {error:e}", T::NAME);
    assert!(keep.iter().zip(&margins).all(|(&keep, &margin)| keep == u8::from(margin >= 0.25)));
}

#[test]
fn patch_margins_equal_the_reference() {
    for (h, w, c, grid_h, grid_w, batch) in [
        (7, 7, 70, 7, 7, 2),
        (8, 8, 64, 2, 2, 3),
        (24, 24, 24, 6, 6, 1),
        (7, 5, 3, 3, 2, 2),
        (14, 14, 136, 1, 1, 2),
        (1, 1, 9, 1, 1, 1),
    ] {
        for_each_storage!(check_patch(Extent { h, w }, c, Extent { h: grid_h, w: grid_w }, batch));
    }
}

#[test]
fn linear_layers_equal_the_reference() {
    let mut random = Random(6);
    for (c_in, c_out, batch, relu) in
        [(64, 16, 1, true), (516, 101, 2, false), (7, 3, 3, true), (1, 1, 1, false), (40, 9, 19, true)]
    {
        let layer = Linear::new(random.values(c_in * c_out), random.values(c_out), relu).unwrap();
        let input = random.values(batch * c_in);
        let mut want = vec![0.0; batch * c_out];
        reference_linear(&layer, &input, &mut want);
        let (got, keep) = in_any_order(|emulator| {
            let (mut output, mut keep) = (vec![f32::NAN; want.len()], vec![7u8; want.len()]);
            let params = LinearParams {
                input: address(&input),
                weight: address(&layer.weight),
                bias: address(&layer.bias),
                output: address_mut(&mut output),
                keep: address_mut(&mut keep),
                batch: batch as u32,
                c_in: c_in as u32,
                c_out: c_out as u32,
                act: u32::from(relu),
                threshold: 0.5,
                reserved: 0,
            };
            execute(emulator, &params.launch(), &params);
            (output, keep)
        });
        assert!(worst(&got, &want, 1.0) < SUMMATION_ORDER, "{c_in} → {c_out}, batch {batch}");
        assert!(keep.iter().zip(&got).all(|(&keep, &margin)| keep == u8::from(margin >= 0.5)));
    }
}

#[test]
fn ties_are_kept_and_nan_is_not() {
    let margin = [0.0, -0.0, 1e-30, -1e-30, f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
    let keep = in_any_order(|emulator| {
        let mut keep = vec![7u8; margin.len()];
        let (len, threshold) = (margin.len() as u32, 0.0);
        let params = DecideParams { margin: address(&margin), keep: address_mut(&mut keep), len, threshold };
        execute(emulator, &params.launch(), &params);
        keep
    });
    assert_eq!(keep, [1, 1, 1, 0, 0, 1, 0]);
}

/// Decisions and what was spent, by the definition and by the kernel.
fn check_highest(margins: &[f32], (batch, per_sample): (usize, usize), at_least: f32, count: usize) {
    let (price, pace, limit) = (0.5, 0.25 + 0.5 * count as f32, 0.6 * count as f32);
    for paid in [false, true] {
        let (mut keep, mut spent) = (vec![true; margins.len()], vec![0.25; batch]);
        let most = match paid {
            false => Most::Count(count),
            true => Most::Paid(Account { spent: &mut spent[..], price, pace, limit }),
        };
        let keep_at = 0;
        reference_decide(Decide { batch, per_sample, margins, at_least, most, keep: &mut keep, keep_at });
        let got = in_any_order(|emulator| {
            let (mut keep, mut spent) = (vec![7u8; margins.len()], vec![0.25; batch]);
            let params = DecideHighestParams {
                margin: address(margins),
                keep: address_mut(&mut keep),
                spent: if paid { address_mut(&mut spent) } else { 0 },
                batch: batch as u32,
                per_sample: per_sample as u32,
                most: count as u32,
                threshold: at_least,
                price,
                pace,
                limit,
                reserved: 0,
            };
            execute(emulator, &params.launch(), &params);
            (keep, spent)
        });
        let keep = keep.into_iter().map(u8::from).collect::<Vec<_>>();
        assert_eq!(got, (keep, spent), "{batch}×{per_sample}, {count} of at least {at_least}, paid: {paid}");
    }
}

#[test]
fn the_highest_margins_are_kept_of_equals_the_first() {
    let mut random = Random(7);
    for (batch, per_sample, at_least) in
        [(1, 1, 0.0), (3, 7, 0.2), (2, 64, f32::NEG_INFINITY), (1, 3000, -0.3), (2, 257, 2.0), (2, 256, -4.0)]
    {
        let values = random.values(batch * per_sample);
        // Few different values, so that many are equal; and each its own.
        for steps in [8.0, 1e6] {
            let mut margins: Vec<f32> = values.iter().map(|x| (steps * x).round() / steps).collect();
            margins[0] = -0.0;
            margins[batch * per_sample - 1] = f32::NAN;
            for count in [0, 1, 2, per_sample / 2, per_sample, per_sample + 1] {
                check_highest(&margins, (batch, per_sample), at_least, count);
            }
        }
    }
    check_highest(&[f32::INFINITY, 3.0, f32::NEG_INFINITY, f32::INFINITY], (1, 4), f32::NEG_INFINITY, 3);
    check_highest(&[0.5; 600], (2, 300), 0.5, 299);
}
