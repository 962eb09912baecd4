//! How close does gather_gemm come to the machine's peak at the shapes of ResNet-50 and RegNet-Y-800MF, and does it stay
//! there when only half of the rows or channels are active, or when all are of a filter that is laid out for some? And would
//! it pay to copy what half of the rows read into a dense matrix first ("copied"), or to multiply with one that is already
//! there ("there")?
//!
//! `cargo bench --bench gather_gemm [-- THREADS]`

mod common;

use laud_kernels::gather_gemm::{self, Filter, FilterSpec, GatherGemm, Placement, Scratch};
use laud_kernels::{Act, ActiveSet, Channels, ConvGeometry, Crew, Extent, Isa, Rows, Team};
use std::sync::Mutex;

fn main() {
    let threads: usize = std::env::args().filter_map(|arg| arg.parse().ok()).next().unwrap_or(1);
    let isa = Isa::detect();
    let crew = Crew::start(threads).expect("threads");
    println!("{} threads, {}", threads, isa.name());
    println!(
        "{:>32} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10}  GFLOP/s (useful)",
        "shape", "dense", "½ rows", "½ channels", "in units", "copied", "there"
    );
    for (side, c_in, c_out, kernel, stride, width) in [
        (56, 64, 64, 1, 1, 64),
        (56, 64, 64, 3, 1, 64),
        (56, 64, 256, 1, 1, 64),
        (56, 256, 64, 1, 1, 256),
        (56, 256, 128, 1, 1, 256),
        (56, 128, 128, 3, 2, 128),
        (28, 128, 128, 3, 1, 128),
        (28, 128, 512, 1, 1, 128),
        (28, 512, 128, 1, 1, 512),
        (14, 256, 256, 3, 1, 256),
        (14, 256, 1024, 1, 1, 256),
        (14, 1024, 256, 1, 1, 1024),
        (7, 512, 512, 3, 1, 512),
        (7, 512, 2048, 1, 1, 512),
        (7, 2048, 512, 1, 1, 2048),
        (14, 1024, 2048, 1, 2, 1024),
        (224, 3, 32, 3, 2, 3),
        (112, 32, 64, 1, 1, 32),
        (112, 32, 64, 1, 2, 32),
        (112, 64, 64, 3, 2, 16),
        (56, 64, 144, 1, 1, 64),
        (56, 144, 144, 3, 2, 16),
        (28, 144, 144, 1, 1, 144),
        (28, 144, 144, 3, 1, 16),
        (28, 144, 320, 1, 1, 144),
        (14, 320, 320, 1, 1, 320),
        (14, 320, 320, 3, 1, 16),
        (7, 784, 784, 1, 1, 784),
        (7, 784, 784, 3, 1, 16),
    ] {
        let input = Extent { h: side, w: side };
        let groups = c_in / width;
        let geometry =
            ConvGeometry { groups, ..ConvGeometry::padded(input, (c_in, c_out), kernel, stride, kernel / 2) };
        let output = geometry.output;
        let weight = vec![0.01; geometry.weights()];
        let bias = vec![0.1; c_out];
        let spec = |group| FilterSpec {
            geometry,
            weight: &weight,
            bias: &bias,
            input_constant: None,
            output_constant: None,
            output_group: group,
        };
        // As many copies as keep the weights out of the private caches, as inside a network.
        let copies = (24 << 20) / (geometry.weights() * 4) + 1;
        let pack = |group| {
            let filter = |_| Filter::<f32>::pack(isa, &spec(group)).expect("a valid filter");
            (0..copies).map(filter).collect::<Vec<_>>()
        };
        // What is compared reads the same memory.
        let (plain, units) = (pack(None), pack(Some(8)));
        let x = vec![0.5f32; input.pixels() * c_in];
        let (all_rows, all_in, all_out) =
            (Rows::all(1, output.pixels()), Channels::all(c_in), Channels::all(c_out));
        let mut half_rows = Rows::with_capacity(1, output.pixels());
        half_rows.clear(output.pixels());
        (0..output.pixels() as u32)
            .filter(|p| (p / 2 + p / output.w as u32 / 2).is_multiple_of(2))
            .for_each(|p| half_rows.push(p));
        half_rows.end_sample();
        let half = |total: usize| {
            let mut half = Channels::with_capacity(1, total);
            half.clear(total);
            (0..total as u32)
                .filter(|c| (c / 8).wrapping_mul(2654435761) >> 16 & 1 == 0)
                .for_each(|c| half.push(c));
            half.end_sample();
            half
        };
        let (half_in, half_out) = (half(c_in), half(c_out));
        let sets = [
            ActiveSet { rows: &all_rows, c_in: &all_in, c_out: &all_out },
            ActiveSet { rows: &half_rows, c_in: &all_in, c_out: &all_out },
            ActiveSet { rows: &all_rows, c_in: &half_in, c_out: &half_out },
            ActiveSet { rows: &all_rows, c_in: &all_in, c_out: &all_out },
        ];
        let flops = sets.map(|set| {
            2.0 * (set.rows.len() * set.c_in.count(0) * set.c_out.count(0) * kernel * kernel / groups) as f64
        });
        let taps = kernel * kernel;
        let flat = FilterSpec { geometry: ConvGeometry::pointwise(output, taps * c_in, c_out), ..spec(None) };
        let pack_flat = |_| Filter::<f32>::pack(isa, &flat).expect("a valid filter");
        let flat_filters: Vec<_> =
            (0..if groups == 1 && !geometry.is_pointwise() { copies } else { 0 }).map(pack_flat).collect();
        let flat_in = Channels::all(taps * c_in);
        let mut candidates: Vec<Box<dyn FnMut() + '_>> = Vec::new();
        let mut calls: Vec<_> = sets
            .into_iter()
            .zip([&plain, &plain, &units, &units])
            .map(|(set, filters)| (set, filters, Input::Gathered))
            .collect();
        if groups == 1 {
            let set = ActiveSet { rows: &half_rows, c_in: &flat_in, c_out: &all_out };
            let filters = if geometry.is_pointwise() { &plain } else { &flat_filters };
            calls.extend([Input::Copied, Input::There].map(|input| (set, filters, input)));
        }
        for (set, filters, from) in calls {
            let mut scratch: Vec<_> = (0..threads).map(|_| Scratch::new().expect("scratch")).collect();
            let mut y = vec![0.0f32; output.pixels() * c_out];
            let gathers = from == Input::Gathered;
            let mut matrix = vec![0.0f32; if gathers { 0 } else { half_rows.len() * taps * c_in }];
            let (x, crew) = (&x, &crew);
            let mut turn = 0;
            candidates.push(Box::new(move || {
                // One team for a batch of calls, as in an inference.
                Team::scope(Some(crew), |team| {
                    for _ in 0..8 {
                        turn = (turn + 1) % filters.len();
                        if from == Input::Copied {
                            copy(team, &geometry, set.rows, x, &mut matrix);
                        }
                        let (input, input_rows) = match gathers {
                            true => (&x[..], Placement::Natural),
                            false => (&matrix[..], Placement::Compact),
                        };
                        let call = GatherGemm {
                            active: set,
                            input,
                            input_rows,
                            output: &mut y[..],
                            output_rows: Placement::Natural,
                            residual: false,
                            act: Act::Relu,
                        };
                        gather_gemm::run(isa, team, &filters[turn], &mut scratch, call)
                            .expect("operands fit");
                    }
                });
            }));
        }
        let times = common::interleave(&mut candidates, 9, 4e6);
        let rate = |i: usize| 8.0 * flops[i] / times[i].median_ns;
        let explicit = |i: usize| match times.get(i) {
            Some(time) => format!("{:.0}", 8.0 * flops[1] / time.median_ns),
            None => "–".to_owned(),
        };
        let grouped = if groups > 1 { format!(", {groups} groups") } else { String::new() };
        let shape = format!("{side}²×{c_in} → {c_out}, {kernel}×{kernel}/{stride}{grouped}");
        let noise = common::noise(&times);
        let [dense, rows, channels, grouped] = [0, 1, 2, 3].map(rate);
        println!(
            "{shape:>32} {dense:10.0} {rows:10.0} {channels:10.0} {grouped:10.0} {:>10} {:>10}  ± {noise:.1} %",
            explicit(4),
            explicit(5)
        );
    }
}

/// Where the operands of a product come from.
#[derive(Clone, Copy, PartialEq)]
enum Input {
    /// From the map, while they are loaded.
    Gathered,
    /// From a dense matrix that is filled first.
    Copied,
    /// From a dense matrix that somebody else filled.
    There,
}

/// What every row of the product reads, `[rows, taps, c_in]`; zeros outside of the map.
fn copy(team: &mut Team, g: &ConvGeometry, rows: &Rows, x: &[f32], matrix: &mut [f32]) {
    let width = g.kernel * g.kernel * g.c_in;
    let pieces = 4 * team.threads();
    let each = rows.len().div_ceil(pieces).max(1);
    let shares: Vec<_> = matrix.chunks_mut(each * width).map(Mutex::new).collect();
    team.for_each(shares.len(), |piece, _| {
        let mut share = shares[piece].lock().expect("nobody panics");
        for (i, row) in share.chunks_exact_mut(width).enumerate() {
            let pixel = rows.pixel(piece * each + i);
            let (oy, ox) = (pixel / g.output.w, pixel % g.output.w);
            for (tap, to) in row.chunks_exact_mut(g.c_in).enumerate() {
                let y = (oy * g.stride + tap / g.kernel).wrapping_sub(g.pad_top);
                let x_at = (ox * g.stride + tap % g.kernel).wrapping_sub(g.pad_left);
                match y < g.input.h && x_at < g.input.w {
                    true => to.copy_from_slice(&x[(y * g.input.w + x_at) * g.c_in..][..g.c_in]),
                    false => to.fill(0.0),
                }
            }
        }
    });
}
