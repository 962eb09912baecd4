use crate::device::*;
use crate::testing::{Density, Random, worst};
use crate::{Channels, Extent};
use laud_kernels::ConvGeometry;
use laud_kernels::cuda::params::{MaxPoolParams, MeanPoolParams};
use laud_kernels::gather_gemm::Placement;
use laud_kernels::max_pool::{self, MaxPool};
use laud_kernels::mean_pool::Mean;

fn check_max<T: Storage>(geometry: ConvGeometry, batch: usize, nan: bool) {
    let g = geometry;
    let mut input = round::<T>(&Random(3).values(batch * g.input.pixels() * g.c_in));
    input.iter_mut().for_each(|v| *v -= 2.0);
    let mut input = round::<T>(&input);
    if nan {
        input[g.c_in - 1] = f32::NAN;
    }
    let mut want = vec![0.0; batch * g.output.pixels() * g.c_out];
    max_pool::reference(&mut MaxPool { geometry, batch, input: &input[..], output: &mut want[..] });
    let input: Vec<T> = store(&input);
    let got = in_any_order(|emulator| {
        let mut output = vec![T::from_f32(7.0); want.len()];
        let (input, out) = (address(&input), address_mut(&mut output));
        let (batch, c) = (batch as u32, g.c_in as u32);
        let params = MaxPoolParams { window: (&g).into(), input, output: out, batch, c };
        execute(emulator, &params.launch(T::NAME, size_of::<T>() as u32, 3), &params);
        load(&output)
    });
    let same = got.iter().zip(&want).all(|(a, b)| a == b || a.is_nan() && b.is_nan());
    assert!(same, "{geometry}, {}", T::NAME);
}

#[test]
fn max_pooling_equals_the_reference() {
    let pool =
        |h, w, c, kernel, stride, pad| ConvGeometry::per_channel(Extent { h, w }, c, kernel, stride, pad);
    for (geometry, batch) in [
        (pool(12, 12, 64, 3, 2, 1), 2),
        (pool(9, 7, 5, 3, 2, 1), 3),
        (pool(4, 6, 16, 2, 2, 0), 1),
        (pool(1, 1, 8, 3, 1, 1), 1),
        (pool(6, 5, 12, 5, 1, 2), 2),
    ] {
        for nan in [false, true] {
            for_each_storage!(check_max(geometry, batch, nan));
        }
    }
}

/// Sums of up to a few hundred terms of order one, in another order.
const SUMMATION_ORDER: f32 = 1e-5;

struct Case {
    pixels: usize,
    c: usize,
    batch: usize,
    rows: Density,
    channels: Option<(Density, usize)>,
    mean: Mean,
    placement: Placement,
    by_channel: bool,
    split: u32,
}

/// Behind the active channels, or where a mean was not asked for.
const UNTOUCHED: f32 = 7.0;

fn check_mean<T: Storage>(case: &Case) {
    let Case { pixels, c, batch, mean, placement, by_channel, split, .. } = *case;
    let mut random = Random(9);
    let rows = case.rows.rows(&mut random, batch, pixels, true);
    let (channels, group) = match case.channels {
        Some((density, group)) => (density.channels(&mut random, batch, c, group), group),
        None => (Channels::all(c), 1),
    };
    let input = round::<T>(&random.values(batch * pixels * c));
    let mut want = vec![if by_channel { 0.0 } else { UNTOUCHED }; batch * c];
    for n in 0..batch {
        let active = rows.sample(n);
        let read: Vec<usize> = match mean {
            Mean::AllPixels if active.is_empty() => vec![],
            Mean::AllPixels => (n * pixels..(n + 1) * pixels).collect(),
            _ if placement == Placement::Compact => active.collect(),
            _ => active.map(|i| rows.pixel(i)).collect(),
        };
        let divisor = if mean == Mean::Active { read.len().max(1) } else { pixels };
        for j in 0..channels.count(n) {
            let sum: f64 = read.iter().map(|row| f64::from(input[row * c + j])).sum();
            let at = if by_channel { channels.sample(n).map_or(j, |list| list[j] as usize) } else { j };
            want[n * c + at] = (sum / divisor as f64) as f32;
        }
    }
    let input: Vec<T> = store(&input);
    let (rows, channels) = (DeviceRows::new(&rows), DeviceChannels::new(&channels, batch, group));
    let got = in_any_order(|emulator| {
        let mut output = vec![UNTOUCHED; batch * c];
        let params = MeanPoolParams {
            rows: rows.params(),
            channels: channels.params(),
            input: address(&input),
            output: address_mut(&mut output),
            input_rows: placement.into(),
            mean: mean.into(),
            by_channel: u32::from(by_channel),
            split,
            ..Default::default()
        };
        let mut partial = vec![f32::NAN; params.partial_len()];
        let mut arrived = vec![0u32; params.arrived_len()];
        let params = MeanPoolParams {
            partial: address_mut(&mut partial),
            arrived: address_mut(&mut arrived),
            ..params
        };
        execute(emulator, &params.launch(T::NAME), &params);
        assert!(arrived.iter().all(|&count| count == 0));
        output
    });
    let error = worst(&got, &want, 1.0);
    assert!(error < SUMMATION_ORDER, "{pixels} × {c}, {mean:?}, {placement:?}, {}: {error:e}", T::NAME);
}

#[test]
fn means_equal_the_reference() {
    for rows in Density::EVERY {
        for (mean, placement) in [
            (Mean::Active, Placement::Natural),
            (Mean::Active, Placement::Compact),
            (Mean::InactiveAsZero, Placement::Natural),
            (Mean::InactiveAsZero, Placement::Compact),
            (Mean::AllPixels, Placement::Natural),
        ] {
            for (channels, by_channel, split) in [
                (None, false, 1),
                (None, true, 3),
                (Some((Density::Half, 8)), false, 2),
                (Some((Density::Half, 3)), true, 1),
                (Some((Density::None, 1)), true, 2),
                (Some((Density::One, 5)), true, 1),
            ] {
                for (pixels, c, batch) in [(49, 120, 2), (70, 105, 3)] {
                    let case = Case { pixels, c, batch, rows, channels, mean, placement, by_channel, split };
                    let group = channels.map_or(1, |(_, group)| group);
                    if c % group == 0 {
                        for_each_storage!(check_mean(&case));
                    }
                }
            }
        }
    }
}
