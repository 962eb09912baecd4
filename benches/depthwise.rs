//! How close does the depthwise convolution come to the machine's speed at the shapes of MobileNetV2, and does it stay
//! there when only half of the rows or channels are active?
//!
//! `cargo bench --bench depthwise [-- THREADS]`

mod common;

use laud_kernels::depthwise::{self, Depthwise, Filter};
use laud_kernels::gather_gemm::{FilterSpec, Placement};
use laud_kernels::{Act, Channels, ConvGeometry, Crew, Element, Extent, Isa, Rows, Team};

/// Calls in one team, as in an inference.
const CALLS: usize = 8;

fn main() {
    let threads: usize = std::env::args().filter_map(|arg| arg.parse().ok()).next().unwrap_or(1);
    let crew = Crew::start(threads).expect("threads");
    println!("{threads} threads, {}; GB/s: input and output once", Isa::detect().name());
    println!(
        "{:>24} {:>9} {:>7} {:>8} {:>8} {:>11}",
        "shape", "µs", "GB/s", "GFLOP/s", "½ rows", "½ channels"
    );
    for (side, c, kernel, stride) in [
        (112, 32, 3, 1),
        (112, 96, 3, 2),
        (56, 144, 3, 1),
        (56, 144, 3, 2),
        (28, 192, 3, 1),
        (28, 192, 3, 2),
        (14, 384, 3, 1),
        (14, 576, 3, 1),
        (14, 576, 3, 2),
        (7, 960, 3, 1),
        (28, 240, 5, 1),
        (14, 672, 5, 2),
    ] {
        measure::<f32>("f32", &crew, side, c, kernel, stride);
        measure::<half::bf16>("bf16", &crew, side, c, kernel, stride);
    }
}

fn measure<E: Element>(dtype: &str, crew: &Crew, side: usize, c: usize, kernel: usize, stride: usize) {
    let geometry = ConvGeometry::per_channel(Extent { h: side, w: side }, c, kernel, stride, kernel / 2);
    let ConvGeometry { input, output, .. } = geometry;
    let (weight, bias) = (vec![0.01; geometry.weights()], vec![0.1; c]);
    let spec = FilterSpec {
        geometry,
        weight: &weight,
        bias: &bias,
        input_constant: None,
        output_constant: None,
        output_group: None,
    };
    let filter = Filter::pack(&spec).expect("a valid filter");
    let x = vec![E::from_f32(0.5); input.pixels() * c];
    let (all_rows, all_channels) = (Rows::all(1, output.pixels()), Channels::all(c));
    let mut half_rows = Rows::with_capacity(1, output.pixels());
    half_rows.clear(output.pixels());
    (0..output.pixels())
        .filter(|p| (p % output.w / 4 + p / output.w / 4).is_multiple_of(2))
        .for_each(|p| half_rows.push(p as u32));
    half_rows.end_sample();
    let mut half_channels = Channels::with_capacity(1, c);
    half_channels.clear(c);
    (0..c as u32)
        .filter(|c| (c / 8).wrapping_mul(2654435761) >> 16 & 1 == 0)
        .for_each(|c| half_channels.push(c));
    half_channels.end_sample();
    let sets = [(&all_rows, &all_channels), (&half_rows, &all_channels), (&all_rows, &half_channels)];
    let mut candidates: Vec<Box<dyn FnMut() + '_>> = Vec::new();
    for (rows, channels) in sets {
        let mut y = vec![E::from_f32(0.0); output.pixels() * c];
        let (filter, x) = (&filter, &x);
        candidates.push(Box::new(move || {
            Team::scope(Some(crew), |team| {
                for _ in 0..CALLS {
                    let call = Depthwise {
                        rows,
                        channels,
                        input: &x[..],
                        input_channels: Placement::Compact,
                        output: y.as_mut_slice(),
                        output_rows: Placement::Natural,
                        act: Act::Relu6,
                    };
                    depthwise::run(Isa::detect(), team, filter, call).expect("operands fit");
                }
            });
        }));
    }
    let times = common::interleave(&mut candidates, 9, 4e6);
    let ns = |i: usize| times[i].median_ns / CALLS as f64;
    let rate = |i: usize| {
        let (rows, channels) = sets[i];
        2.0 * (rows.len() * channels.count(0) * kernel * kernel) as f64 / ns(i)
    };
    let bytes = (input.pixels() + output.pixels()) * c * size_of::<E>();
    println!(
        "{:>24} {:9.1} {:7.1} {:8.1} {:8.1} {:11.1}  ± {:.1} %",
        format!("{side}²×{c}, {kernel}×{kernel}/{stride} {dtype}"),
        ns(0) / 1e3,
        bytes as f64 / ns(0),
        rate(0),
        rate(1),
        rate(2),
        common::noise(&times)
    );
}
