//! Do the operations that compute little per value run as fast as this machine copies memory?
//!
//! `cargo bench --bench memory_bound [-- THREADS]`

mod common;

use laud_kernels::gather_gemm::Placement;
use laud_kernels::layout::{self, FromNchw};
use laud_kernels::max_pool::{self, MaxPool};
use laud_kernels::mean_pool::{self, Mean, MeanPool};
use laud_kernels::squeeze_excite::{self, SqueezeExcite};
use laud_kernels::{Channels, ConvGeometry, Crew, Element, Extent, Isa, PartSums, Rows, Team};

/// Calls in one team, as in an inference.
const CALLS: usize = 8;

struct Row<'a> {
    name: String,
    /// Bytes that one call reads and writes at least once.
    bytes: usize,
    call: Box<dyn FnMut(&mut Team) + Send + 'a>,
}

fn main() {
    let threads: usize = std::env::args().filter_map(|arg| arg.parse().ok()).next().unwrap_or(1);
    let crew = Crew::start(threads).expect("threads");
    println!("{threads} threads, {}", Isa::detect().name());
    println!("{:>36} {:>10} {:>8}  copy of as many bytes: GB/s", "operation", "µs", "GB/s");
    measure::<f32>("f32", &crew);
    measure::<half::bf16>("bf16", &crew);
}

fn measure<E: Element>(dtype: &str, crew: &Crew) {
    let mut rows: Vec<Row<'_>> = vec![];
    rows.push(max_pooling::<E>(112, 64));
    for (side, c) in [(56, 256), (28, 512), (14, 1024), (7, 2048), (7, 1280)] {
        rows.push(mean_pooling::<E>(side, c));
    }
    for (side, c, q) in [(28, 144, 12), (14, 320, 36), (14, 440, 52), (7, 888, 222)] {
        rows.push(squeeze_exciting::<E>(side, c, q));
    }
    rows.push(image_in::<E>(224, 3));
    rows.push(map_out::<E>(56, 256));
    for row in &mut rows {
        let half = row.bytes / 2;
        let (from, mut to) = (vec![1u8; half], vec![0u8; half]);
        let mut candidates: Vec<Box<dyn FnMut() + '_>> = vec![
            Box::new(|| Team::scope(Some(crew), |team| (0..CALLS).for_each(|_| (row.call)(team)))),
            Box::new(|| to.copy_from_slice(std::hint::black_box(&from))),
        ];
        let times = common::interleave(&mut candidates, 9, 4e6);
        drop(candidates);
        let ns = times[0].median_ns / CALLS as f64;
        let (rate, copy) = (row.bytes as f64 / ns, 2.0 * half as f64 / times[1].median_ns);
        let (name, noise) = (format!("{} {dtype}", row.name), common::noise(&times));
        println!("{name:>36} {:10.1} {rate:8.1}  {copy:8.1}  ± {noise:.1} %", ns / 1e3);
    }
}

fn values<E: Element>(len: usize) -> Vec<E> {
    (0..len).map(|i| E::from_f32((i % 61) as f32 / 61.0)).collect()
}

fn max_pooling<E: Element>(side: usize, c: usize) -> Row<'static> {
    let geometry = ConvGeometry::per_channel(Extent { h: side, w: side }, c, 3, 2, 1);
    let ConvGeometry { input, output, .. } = geometry;
    let (x, mut y) = (values::<E>(input.pixels() * c), values::<E>(output.pixels() * c));
    Row {
        name: format!("max_pool 3×3/2, {side}²×{c}"),
        bytes: (x.len() + y.len()) * size_of::<E>(),
        call: Box::new(move |team| {
            let call = MaxPool { geometry, batch: 1, input: &x[..], output: &mut y[..] };
            max_pool::run(Isa::detect(), team, call).expect("operands fit");
        }),
    }
}

fn mean_pooling<E: Element>(side: usize, c: usize) -> Row<'static> {
    let (rows, channels) = (Rows::all(1, side * side), Channels::all(c));
    let (x, mut y) = (values::<E>(side * side * c), vec![0.0f32; c]);
    let mut parts = PartSums::new().expect("working memory");
    Row {
        name: format!("mean_pool, {side}²×{c}"),
        bytes: x.len() * size_of::<E>() + c * 4,
        call: Box::new(move |team| {
            let call = MeanPool {
                rows: &rows,
                channels: &channels,
                input: &x[..],
                input_rows: Placement::Natural,
                mean: Mean::Active,
                output: &mut y[..],
            };
            mean_pool::run(Isa::detect(), team, &mut parts, call).expect("operands fit");
        }),
    }
}

fn squeeze_exciting<E: Element>(side: usize, c: usize, q: usize) -> Row<'static> {
    let (rows, channels) = (Rows::all(1, side * side), Channels::all(c));
    // Factors of one, so that values stay what they are over many calls.
    let (w, b) = (vec![0.01; q * c], vec![20.0; c]);
    let spec = squeeze_excite::WeightsSpec { c, q, fc1: &w, bias1: &b[..q], fc2: &w, bias2: &b };
    let weights = squeeze_excite::Weights::pack(&spec).expect("sizes that fit");
    let mut scratch = squeeze_excite::Scratch::new().expect("scratch");
    let mut x = values::<E>(side * side * c);
    Row {
        name: format!("squeeze_excite, {side}²×{c}, q {q}"),
        bytes: 3 * x.len() * size_of::<E>() + weights.bytes(),
        call: Box::new(move |team| {
            let call = SqueezeExcite {
                rows: &rows,
                channels: &channels,
                data: &mut x[..],
                data_rows: Placement::Natural,
                mean: Mean::Active,
            };
            squeeze_excite::run(Isa::detect(), team, &weights, &mut scratch, call).expect("operands fit");
        }),
    }
}

fn image_in<E: Element>(side: usize, c: usize) -> Row<'static> {
    let (image, border) = (Extent { h: side, w: side }, Extent { h: 3, w: 3 });
    let bordered = Extent { h: side + 6, w: side + 6 };
    let (x, mut y) = (vec![0.5f32; image.pixels() * c], values::<E>(bordered.pixels() * c));
    Row {
        name: format!("from_nchw, {side}²×{c}"),
        bytes: x.len() * 4 + y.len() * size_of::<E>(),
        call: Box::new(move |team| {
            let (input, output) = (&x[..], &mut y[..]);
            let call = FromNchw { batch: 1, c, image, border, bordered, scale: None, input, output };
            layout::from_nchw(Isa::detect(), team, call).expect("operands fit");
        }),
    }
}

fn map_out<E: Element>(side: usize, c: usize) -> Row<'static> {
    let map = Extent { h: side, w: side };
    let (x, mut y) = (values::<E>(map.pixels() * c), vec![0.0f32; map.pixels() * c]);
    Row {
        name: format!("to_nchw, {side}²×{c}"),
        bytes: x.len() * size_of::<E>() + y.len() * 4,
        call: Box::new(move |team| {
            layout::to_nchw(team, 1, map, c, &x, &mut y).expect("operands fit");
        }),
    }
}
