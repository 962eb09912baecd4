use crate::device::*;
use crate::testing::{Density, Random, worst};
use crate::{Channels, Extent};
use laud_kernels::cuda::params::{
    DepthwiseParams, LinearParams, MeanPoolParams, PadChannelsParams, SIGMOID, ScaleParams,
};
use laud_kernels::depthwise::{self, Depthwise};
use laud_kernels::gather_gemm::{FilterSpec, Placement};
use laud_kernels::mean_pool::Mean;
use laud_kernels::squeeze_excite::{self, SqueezeExcite, WeightsSpec};
use laud_kernels::{Act, ConvGeometry};

/// f32 sums of up to a few hundred terms of order one, in another order.
const SUMMATION_ORDER: f32 = 1e-5;

#[derive(Clone, Copy)]
struct Active {
    rows: Density,
    channels: Option<(Density, usize)>,
    placement: Placement,
}

impl Active {
    fn lists(&self, random: &mut Random, batch: usize, pixels: usize, c: usize) -> (crate::Rows, Channels) {
        let rows = self.rows.rows(random, batch, pixels, true);
        let channels = match self.channels {
            Some((density, group)) => density.channels(random, batch, c, group),
            None => Channels::all(c),
        };
        (rows, channels)
    }

    fn group(&self) -> usize {
        self.channels.map_or(1, |(_, group)| group)
    }

    /// Every density of rows with every way to list channels, in both placements.
    fn every(c: usize) -> Vec<Active> {
        let mut all = Vec::new();
        for rows in Density::EVERY {
            for placement in [Placement::Natural, Placement::Compact] {
                all.push(Active { rows, channels: None, placement });
                for channels in Density::EVERY {
                    for group in [1, 4, 8].into_iter().filter(|group| c.is_multiple_of(*group)) {
                        all.push(Active { rows, channels: Some((channels, group)), placement });
                    }
                }
            }
        }
        all
    }
}

fn check_depthwise<T: Storage>(g: ConvGeometry, active: Active, constants: bool, packed: Placement) {
    let (mut random, batch, c) = (Random(11), 2, g.c_in);
    let (rows, channels) = active.lists(&mut random, batch, g.output.pixels(), c);
    let weight: Vec<f32> = random.values(g.weights()).into_iter().map(|w| w / g.kernel as f32).collect();
    let bias = random.values(c);
    let (input_constant, output_constant) = (random.values(c), random.values(c));
    let input = round::<T>(&random.values(batch * g.input.pixels() * c));
    let before = round::<T>(&random.values(batch * g.output.pixels() * c));
    let spec = FilterSpec {
        geometry: g,
        weight: &weight,
        bias: &bias,
        input_constant: constants.then_some(&input_constant),
        output_constant: constants.then_some(&output_constant),
        output_group: None,
    };
    let mut want = before.clone();
    let mut call = Depthwise {
        rows: &rows,
        channels: &channels,
        input: &input[..],
        input_channels: packed,
        output: &mut want[..],
        output_rows: active.placement,
        act: Act::Relu6,
    };
    depthwise::reference(&spec, &mut call);

    let taps = g.kernel * g.kernel;
    let by_tap: Vec<f32> = (0..taps * c).map(|i| weight[i % c * taps + i / c]).collect();
    let sum = |channel: usize| weight[channel * taps..][..taps].iter().sum::<f32>();
    let folded = |c: usize| bias[c] + if constants { sum(c) * input_constant[c] } else { 0.0 };
    let folded: Vec<f32> = (0..c).map(folded).collect();
    let minus: Vec<f32> = input_constant.iter().map(|v| -v).collect();
    let input: Vec<T> = store(&input);
    let (rows, channels) = (DeviceRows::new(&rows), DeviceChannels::new(&channels, batch, active.group()));
    let got = in_any_order(|emulator| {
        let mut output: Vec<T> = store(&before);
        let params = DepthwiseParams {
            rows: rows.params(),
            channels: channels.params(),
            window: (&g).into(),
            input: address(&input),
            output: address_mut(&mut output),
            weight: address(&by_tap),
            bias: address(&folded),
            minus_constant: if constants { address(&minus) } else { 0 },
            output_constant: if constants { address(&output_constant) } else { 0 },
            input_channels: packed.into(),
            output_rows: active.placement.into(),
            act: Act::Relu6.into(),
            reserved: 0,
        };
        execute(emulator, &params.launch(T::NAME, size_of::<T>() as u32, 5), &params);
        load(&output)
    });
    let error = worst(&got, &want, 1.0);
    assert!(error <= SUMMATION_ORDER.max(T::ROUNDING), "{g}, {}: {error:e}", T::NAME);
}

#[test]
fn depthwise_convolutions_equal_the_reference() {
    let conv =
        |h, w, c, kernel, stride| ConvGeometry::per_channel(Extent { h, w }, c, kernel, stride, kernel / 2);
    for geometry in [
        conv(7, 7, 40, 3, 1),
        conv(9, 6, 24, 5, 2),
        conv(5, 5, 33, 3, 1),
        conv(1, 1, 16, 3, 1),
        conv(6, 7, 8, 1, 1),
        ConvGeometry { pad_top: 0, pad_left: 0, ..conv(8, 8, 16, 3, 2) },
    ] {
        for active in Active::every(geometry.c_in) {
            for constants in [false, true] {
                let packed = if constants { Placement::Natural } else { Placement::Compact };
                for_each_storage!(check_depthwise(geometry, active, constants, packed));
            }
        }
    }
}

/// Mean, two layers, scale: four launches, one operation.
fn check_squeeze<T: Storage>(map: Extent, c: usize, q: usize, active: Active, mean: Mean) {
    let (mut random, batch) = (Random(12), 2);
    let (rows, channels) = active.lists(&mut random, batch, map.pixels(), c);
    let (fc1, bias1, fc2, bias2) =
        (random.values(q * c), random.values(q), random.values(c * q), random.values(c));
    let before = round::<T>(&random.values(batch * map.pixels() * c));
    let mut want = before.clone();
    let spec = WeightsSpec { c, q, fc1: &fc1, bias1: &bias1, fc2: &fc2, bias2: &bias2 };
    let (data, data_rows) = (&mut want[..], active.placement);
    squeeze_excite::reference(
        &spec,
        &mut SqueezeExcite { rows: &rows, channels: &channels, data, data_rows, mean },
    );
    let (rows, channels) = (DeviceRows::new(&rows), DeviceChannels::new(&channels, batch, active.group()));
    let got = in_any_order(|emulator| {
        let mut data: Vec<T> = store(&before);
        let mut means = vec![f32::NAN; batch * c];
        let (mut hidden, mut factor) = (vec![f32::NAN; batch * q], vec![f32::NAN; batch * c]);
        let pool = MeanPoolParams {
            rows: rows.params(),
            channels: channels.params(),
            input: address(&data),
            output: address_mut(&mut means),
            input_rows: active.placement.into(),
            mean: mean.into(),
            by_channel: 1,
            split: 1,
            ..Default::default()
        };
        execute(emulator, &pool.launch(T::NAME), &pool);
        let layer = |input: &[f32], (weight, bias): (&[f32], &[f32]), output: &mut [f32], act| {
            let params = LinearParams {
                input: address(input),
                weight: address(weight),
                bias: address(bias),
                output: address_mut(output),
                batch: batch as u32,
                c_in: (weight.len() / bias.len()) as u32,
                c_out: bias.len() as u32,
                act,
                ..Default::default()
            };
            execute(emulator, &params.launch(), &params);
        };
        layer(&means, (&fc1, &bias1), &mut hidden, Act::Relu.into());
        layer(&hidden, (&fc2, &bias2), &mut factor, SIGMOID);
        let scale = ScaleParams {
            rows: rows.params(),
            channels: channels.params(),
            data: address_mut(&mut data),
            factor: address(&factor),
            data_rows: active.placement.into(),
            reserved: 0,
        };
        execute(emulator, &scale.launch(T::NAME, size_of::<T>() as u32, 4), &scale);
        load(&data)
    });
    let error = worst(&got, &want, 1.0);
    assert!(error <= SUMMATION_ORDER.max(T::ROUNDING), "{map:?} × {c}, {mean:?}, {}: {error:e}", T::NAME);
}

#[test]
fn squeeze_excitation_equals_the_reference() {
    for (h, w, c, q) in [(5, 6, 40, 10), (3, 3, 36, 7)] {
        for active in Active::every(c) {
            for mean in [Mean::Active, Mean::AllPixels, Mean::InactiveAsZero] {
                if mean != Mean::AllPixels || active.placement == Placement::Natural {
                    for_each_storage!(check_squeeze(Extent { h, w }, c, q, active, mean));
                }
            }
        }
    }
}

fn check_padding<T: Storage>(from: Extent, to: Extent, c: (usize, usize), stride: usize, before: usize) {
    let batch = 2;
    let input: Vec<T> = store(&Random(13).values(batch * from.pixels() * c.0));
    let got = in_any_order(|emulator| {
        let mut output = vec![T::from_f32(7.0); batch * to.pixels() * c.1];
        let params = PadChannelsParams {
            input: address(&input),
            output: address_mut(&mut output),
            batch: batch as u32,
            in_h: from.h as u32,
            in_w: from.w as u32,
            out_h: to.h as u32,
            out_w: to.w as u32,
            c_in: c.0 as u32,
            c_out: c.1 as u32,
            stride: stride as u32,
            before: before as u32,
            reserved: 0,
        };
        execute(emulator, &params.launch(T::NAME, size_of::<T>() as u32, 3), &params);
        load(&output)
    });
    for (i, &value) in got.iter().enumerate() {
        let (row, channel) = (i / c.1, (i % c.1).wrapping_sub(before));
        let (n, y, x) = (row / to.pixels(), row % to.pixels() / to.w, row % to.w);
        let pixel = (n * from.h + y * stride) * from.w + x * stride;
        let want = if channel < c.0 { input[pixel * c.0 + channel].to_f32() } else { 0.0 };
        assert_eq!(value, want, "element {i}");
    }
}

#[test]
fn channels_are_padded_with_zeros() {
    let extent = |h, w| Extent { h, w };
    for_each_storage!(check_padding(extent(8, 8), extent(4, 4), (16, 32), 2, 8));
    for_each_storage!(check_padding(extent(7, 5), extent(4, 3), (6, 13), 2, 3));
    for_each_storage!(check_padding(extent(3, 3), extent(3, 3), (8, 8), 1, 0));
    for_each_storage!(check_padding(extent(4, 4), extent(2, 2), (8, 24), 2, 16));
}
