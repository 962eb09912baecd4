//! How much can channel skipping bring at all? The bottlenecks of a ResNet with every other channel group active, against
//! the same network static, and against a static network whose bottlenecks are half as wide: as many multiply-accumulates
//! on the same residual stream, with nothing to skip.
//!
//! `cargo bench --bench channel_bound -- [THREADS] [batch=N] [101]`

mod common;

use laud_kernels::gather_gemm::{self, Filter, FilterSpec, GatherGemm, Placement, Scratch};
use laud_kernels::{Act, ActiveSet, Buffer, Channels, ConvGeometry, Crew, Extent, Isa, Rows, Team};

/// Channels that are active or not together.
const GROUP: usize = 8;

/// The residual stream's two buffers and the branch's two.
const STREAMS: [usize; 2] = [0, 1];
const BRANCH: [usize; 2] = [2, 3];

struct Conv {
    filter: Filter<f32>,
    rows: Rows,
    c_in: Channels,
    c_out: Channels,
    from: usize,
    to: usize,
    residual: bool,
    macs: f64,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Static,
    HalfTheChannels,
    HalfAsWide,
}

/// Half of the groups of `total` channels, drawn by a fixed hash, in every sample.
fn half(total: usize, batch: usize, salt: u32) -> Channels {
    let mut order: Vec<u32> = (0..(total / GROUP) as u32).collect();
    order.sort_by_key(|group| (group + 1 + salt).wrapping_mul(2_654_435_761));
    order.truncate(total / GROUP / 2);
    order.sort_unstable();
    let mut channels = Channels::with_capacity(batch, total);
    channels.clear(total);
    for _ in 0..batch {
        let every = order.iter().flat_map(|group| (0..GROUP as u32).map(move |c| group * GROUP as u32 + c));
        every.for_each(|channel| channels.push(channel));
        channels.end_sample();
    }
    channels
}

fn conv(
    geometry: ConvGeometry,
    batch: usize,
    (c_in, c_out): (Channels, Channels),
    (from, to): (usize, usize),
    residual: bool,
) -> Conv {
    let g = geometry;
    let (weight, bias) = (vec![0.01; g.weights()], vec![0.1; g.c_out]);
    let (input, output) = (vec![0.1; g.c_in], vec![0.1; g.c_out]);
    let spec = FilterSpec {
        geometry,
        weight: &weight,
        bias: &bias,
        input_constant: (!c_in.is_all()).then_some(&input),
        output_constant: (!c_out.is_all()).then_some(&output),
        output_group: (!c_out.is_all()).then_some(GROUP),
    };
    let filter = Filter::pack(Isa::detect(), &spec).expect("a valid filter");
    let rows = Rows::all(batch, g.output.pixels());
    let macs = (rows.len() * g.kernel * g.kernel * c_in.count(0) * c_out.count(0)) as f64;
    Conv { filter, rows, c_in, c_out, from, to, residual, macs }
}

fn network(depths: [usize; 4], batch: usize, kind: Kind) -> Vec<Conv> {
    let mut convs = Vec::new();
    let (mut c, mut side, mut stream) = (64, 56, 0);
    for (stage, depth) in depths.into_iter().enumerate() {
        let (full, c_out) = (64 << stage, 256 << stage);
        let width = if kind == Kind::HalfAsWide { full / 2 } else { full };
        for block in 0..depth {
            let stride = if block == 0 && stage > 0 { 2 } else { 1 };
            let (input, output) =
                (Extent { h: side, w: side }, Extent { h: side / stride, w: side / stride });
            let geometry = |input, output, c_in, c_out, kernel: usize, stride| {
                let pad = kernel / 2;
                ConvGeometry {
                    input,
                    output,
                    c_in,
                    c_out,
                    kernel,
                    stride,
                    pad_top: pad,
                    pad_left: pad,
                    groups: 1,
                }
            };
            let inner = || match kind {
                Kind::HalfTheChannels => half(width, batch, (stage * 100 + block) as u32),
                _ => Channels::all(width),
            };
            let mut to = stream;
            if block == 0 {
                to = 1 - stream;
                let every = (Channels::all(c), Channels::all(c_out));
                let g = geometry(input, output, c, c_out, 1, stride);
                convs.push(conv(g, batch, every, (STREAMS[stream], STREAMS[to]), false));
            }
            let [first, second] = BRANCH;
            let g = geometry(input, input, c, width, 1, 1);
            convs.push(conv(g, batch, (Channels::all(c), inner()), (STREAMS[stream], first), false));
            let g = geometry(input, output, width, width, 3, stride);
            convs.push(conv(g, batch, (inner(), inner()), (first, second), false));
            let g = geometry(output, output, width, c_out, 1, 1);
            convs.push(conv(g, batch, (inner(), Channels::all(c_out)), (second, STREAMS[to]), true));
            (stream, c, side) = (to, c_out, side / stride);
        }
    }
    convs
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let deep = words.iter().any(|word| word == "101");
    let threads = words.iter().filter(|word| *word != "101").find_map(|word| word.parse().ok()).unwrap_or(2);
    let batch: usize = words.iter().find_map(|word| word.strip_prefix("batch=")?.parse().ok()).unwrap_or(1);
    let depths = if deep { [3, 4, 23, 3] } else { [3, 4, 6, 3] };
    let isa = Isa::detect();
    let crew = Crew::start(threads).expect("threads");
    let networks =
        [Kind::Static, Kind::HalfTheChannels, Kind::HalfAsWide].map(|kind| network(depths, batch, kind));
    let largest = batch * 56 * 56 * 256;
    let mut candidates: Vec<Box<dyn FnMut() + '_>> = Vec::new();
    for network in &networks {
        let mut maps: Vec<Buffer<f32>> =
            (0..4).map(|_| Buffer::zeroed(largest, "feature map").expect("a map")).collect();
        let mut scratch: Vec<_> = (0..threads).map(|_| Scratch::new().expect("scratch")).collect();
        let crew = &crew;
        candidates.push(Box::new(move || {
            Team::scope(Some(crew), |team| {
                for conv in network {
                    let [from, to] = maps.get_disjoint_mut([conv.from, conv.to]).expect("two maps");
                    let call = GatherGemm {
                        active: ActiveSet { rows: &conv.rows, c_in: &conv.c_in, c_out: &conv.c_out },
                        input: from.as_slice(),
                        input_rows: Placement::Natural,
                        output: to.as_mut_slice(),
                        output_rows: Placement::Natural,
                        residual: conv.residual,
                        act: Act::Relu,
                    };
                    gather_gemm::run(isa, team, &conv.filter, &mut scratch, call).expect("operands fit");
                }
            });
        }));
    }
    let times = common::interleave(&mut candidates, 21, 1.0);
    let depth = depths.iter().sum::<usize>() * 3 + 2;
    println!("bottlenecks of ResNet-{depth}, batch {batch}, {threads} threads, {}", isa.name());
    let macs = [0, 1, 2].map(|i: usize| networks[i].iter().map(|conv| conv.macs).sum::<f64>());
    for (i, label) in ["static", "½ channels", "half as wide"].into_iter().enumerate() {
        let (ns, rate) = (times[i].median_ns, 2.0 * macs[i] / times[i].median_ns);
        let efficiency = times[0].median_ns / ns / (macs[0] / macs[i]);
        println!("  {label:14} {:8.2} ms  {rate:6.0} GFLOP/s  η {efficiency:.3}", ns / 1e6);
    }
    println!("  noise ± {:.1} %", common::noise(&times));
}
