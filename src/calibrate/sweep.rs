use crate::plan::{Activity, ActivityTable, ExecutionPlan, Setting, lower};
use anyhow::Result;
use laud_models::{NetConfig, NetSpec};
use laud_predictor::DeviceKind;
use laud_predictor::workload::{Cache, DType, Op, Route, Workload};

/// Networks whose calls are measured, and the gates they are measured with.
const NETWORKS: [(&str, &[&str]); 5] = [
    ("resnet50", &["", SPATIAL_4421, SPATIAL_1, CHANNEL_8, CHANNEL_2]),
    ("regnet_y_400mf", &["", SPATIAL_4421, SPATIAL_1, CHANNEL_8]),
    ("regnet_y_800mf", &["", SPATIAL_4421, CHANNEL_8]),
    ("mobilenet_v2", &[""]),
    ("cifar_resnet20", &["", SPATIAL_421, CHANNEL_8]),
];
const SPATIAL_4421: &str = r#""dyn_mode": "spatial", "spatial_granularity": [4, 4, 2, 1]"#;
const SPATIAL_421: &str = r#""dyn_mode": "spatial", "spatial_granularity": [4, 2, 1]"#;
const SPATIAL_1: &str = r#""dyn_mode": "spatial", "spatial_granularity": 1"#;
const CHANNEL_8: &str = r#""dyn_mode": "channel", "channel_granularity": 8"#;
const CHANNEL_2: &str = r#""dyn_mode": "channel", "channel_granularity": 2"#;
const DENSITIES: [f64; 5] = [0.15, 0.35, 0.5, 0.7, 0.9];

/// Channels of a drawn call at most: somewhat more than networks have, so that these lie inside of what was measured.
const MOST_CHANNELS: f64 = 2560.0;

/// What calls a kind of device is asked about.
#[derive(Clone, Copy)]
struct Range {
    /// Batches of the networks.
    batches: &'static [usize],
    /// Batches of drawn calls: the largest, the side of the largest map that there is more than one of, and how often.
    drawn: (f64, u32, f64),
    /// Multiply-accumulates of a drawn call at most: a few milliseconds.
    macs: f64,
    /// Values of an operand of a drawn call at most.
    values: u64,
    /// The same of a network's call.
    network_values: u64,
}

impl Range {
    fn of(kind: DeviceKind) -> Self {
        match kind {
            // No maps that a network would run in parts.
            DeviceKind::Cpu => Self {
                batches: &[1],
                drawn: (16.0, 16, 0.3),
                macs: 3e8,
                values: 2 << 20,
                network_values: u64::MAX,
            },
            DeviceKind::Cuda => Self {
                batches: &[1, 8, 64],
                drawn: (128.0, 64, 0.6),
                macs: 3e10,
                values: 1 << 25,
                network_values: 1 << 25,
            },
        }
    }
}

/// The calls of the shipped networks at several densities, and `drawn` others, with weights in memory and in the caches, as
/// a device of this kind is asked about. All are of f32.
///
/// # Errors
/// None of the shipped networks.
pub fn sweep(kind: DeviceKind, threads: &[u32], drawn: usize, seed: u64) -> Result<Vec<Workload>> {
    let range = Range::of(kind);
    let mut workloads = Vec::new();
    let mut random = Random::new(seed);
    for (network, gates) in NETWORKS {
        for gates in gates {
            let more = if gates.is_empty() { String::new() } else { format!(", {gates}") };
            let config = format!(r#"{{"arch": "{network}"{more}}}"#);
            let Ok(spec) = NetConfig::from_json(&config).and_then(|config| config.build()) else { continue };
            let table = ActivityTable::new(&spec, &[1])?;
            let densities = if gates.is_empty() { &[1.0][..] } else { &DENSITIES };
            for (&density, &batch) in densities.iter().flat_map(|d| range.batches.iter().map(move |b| (d, b)))
            {
                let setting = match kind {
                    DeviceKind::Cpu => Setting::cpu(batch),
                    DeviceKind::Cuda => Setting::cuda(batch, DType::F32),
                };
                calls(&spec, &table, density, &setting, &mut workloads);
            }
        }
    }
    workloads.retain(|w| largest(w) <= range.network_values);
    workloads.extend((0..drawn).map(|_| random.workload(&range)));
    let states = |w: &Workload| match w.op {
        Op::GatherGemm | Op::Depthwise | Op::Linear | Op::SqueezeExcite => vec![Cache::Cold, Cache::Warm],
        _ => vec![Cache::Warm],
    };
    let all = workloads.iter().filter(|w| timed(w.op)).flat_map(|w| {
        states(w)
            .into_iter()
            .flat_map(move |cache| threads.iter().map(move |&threads| Workload { cache, threads, ..*w }))
    });
    Ok(all.collect())
}

/// Values of its larger map.
fn largest(w: &Workload) -> u64 {
    let values =
        |h: u32, width: u32, c: u32| u64::from(w.batch) * u64::from(h) * u64::from(width) * u64::from(c);
    values(w.in_h, w.in_w, w.c_in).max(values(w.out_h, w.out_w, w.c_out))
}

fn timed(op: Op) -> bool {
    !matches!(op, Op::Overhead | Op::ToNchw)
}

/// The calls of one network with all gates at one density.
fn calls(
    spec: &NetSpec,
    table: &ActivityTable,
    density: f64,
    setting: &Setting,
    workloads: &mut Vec<Workload>,
) {
    let activities: Vec<Activity> = (0..spec.blocks.len())
        .map(|i| {
            let gate = &spec.blocks[i].gate;
            let of = |gated: bool| if gated { density } else { 1.0 };
            table.at(i, 1, of(gate.spatial.is_some()), of(gate.channel.is_some()))
        })
        .collect();
    let lowered = lower(spec, &ExecutionPlan::sparse(spec), &activities, setting);
    workloads.extend(lowered.calls().map(|call| call.workload));
}

/// Drawn numbers: Sebastiano Vigna's splitmix64.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `0..1`.
    fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Log-uniform in `low..=high`.
    fn log(&mut self, low: f64, high: f64) -> f64 {
        low * (high / low).powf(self.uniform())
    }

    pub(super) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.next() as usize % of.len()]
    }

    pub(super) fn shuffle<T>(&mut self, list: &mut [T]) {
        for i in (1..list.len()).rev() {
            list.swap(i, self.next() as usize % (i + 1));
        }
    }

    /// Channels: a multiple of 8, rarely of 2.
    fn channels(&mut self, low: f64, high: f64) -> u32 {
        let step = if self.uniform() < 0.9 { 8.0 } else { 2.0 };
        ((self.log(low, high) / step).round().max(1.0) * step) as u32
    }

    /// A kernel call of sizes that networks have, log-uniform.
    fn workload(&mut self, range: &Range) -> Workload {
        let op = match self.uniform() {
            u if u < 0.03 => return self.stem(range),
            u if u < 0.51 => Op::GatherGemm,
            u if u < 0.64 => Op::Depthwise,
            u if u < 0.74 => Op::SqueezeExcite,
            u if u < 0.79 => Op::MeanPool,
            u if u < 0.84 => Op::PatchGate,
            u if u < 0.90 => Op::Linear,
            u if u < 0.95 => Op::Compact,
            u if u < 0.98 => Op::PadChannels,
            _ => Op::MaxPool,
        };
        loop {
            let workload = self.of(op, range);
            let fits = workload.macs() < range.macs && largest(&workload) < range.values;
            if fits && workload.check().is_ok() {
                return workload;
            }
        }
    }

    /// What happens to images alone: they get a border, or the first convolution reads them with it.
    fn stem(&mut self, range: &Range) -> Workload {
        let (kernel, stride) = self.pick(&[(3, 1), (3, 2), (3, 2), (7, 2), (7, 2)]);
        let c = self.pick(&[1, 3, 3, 3]);
        let convolution = self.uniform() < 0.6;
        loop {
            let side = self.log(16.0, 512.0).round() as u32;
            let (bordered, output) = (side + kernel - 1, side / stride);
            let w = if convolution {
                let w = Workload::new(Op::GatherGemm, output, output, c, self.channels(16.0, 96.0));
                Workload { in_h: bordered, in_w: bordered, kernel, stride, ..w }
            } else {
                let w = Workload::new(Op::FromNchw, bordered, bordered, c, c);
                Workload { in_h: side, in_w: side, ..w }
            };
            if w.macs() < range.macs && largest(&w) < range.values {
                return w;
            }
        }
    }

    fn of(&mut self, op: Op, range: &Range) -> Workload {
        let side = self.log(4.0, 64.0).round() as u32;
        let (c_in, c_out) = (self.channels(16.0, MOST_CHANNELS), self.channels(16.0, MOST_CHANNELS));
        let mut w = Workload::new(op, side, side, c_in, c_out);
        let (most, largest, often) = range.drawn;
        w.batch =
            if side <= largest && self.uniform() < often { self.log(2.0, most).round() as u32 } else { 1 };
        match op {
            Op::GatherGemm => {
                w.kernel = self.pick(&[1, 1, 1, 3, 3]);
                w.stride = self.pick(&[1, 1, 1, 2]);
                w.residual = w.stride == 1 && self.uniform() < 0.3;
                if w.kernel == 3 && self.uniform() < 0.35 {
                    w.c_out = w.c_in;
                    w.groups = w.c_in / self.pick(&[8, 16, 24, 32]);
                }
            }
            Op::Depthwise => {
                (w.kernel, w.stride) = (3, self.pick(&[1, 1, 2]));
                (w.c_out, w.groups) = (w.c_in, w.c_in);
            }
            Op::SqueezeExcite => w.c_out = self.log(8.0, f64::from(c_in / 2).max(9.0)).round() as u32,
            Op::MeanPool => w.c_out = w.c_in,
            Op::PatchGate => w.c_out = 1,
            Op::Compact => {
                (w.c_in, w.c_out) = (1, 1);
                (w.kernel, w.stride) = (self.pick(&[1, 3]), self.pick(&[1, 1, 2]));
            }
            Op::Linear => {
                (w.in_h, w.in_w, w.out_h, w.out_w) = (1, 1, 1, 1);
            }
            Op::MaxPool => {
                (w.kernel, w.stride) = (self.pick(&[2, 3, 3]), 2);
                w.c_out = w.c_in;
            }
            _ => {
                w.stride = self.pick(&[1, 2]);
                w.c_out = c_in * w.stride;
            }
        }
        (w.in_h, w.in_w) = (w.out_h * w.stride, w.out_w * w.stride);
        w.groups = w.groups.max(1);
        (w.c_in_active, w.c_out_active) = (w.c_in.into(), w.c_out.into());
        (w.rows, w.runs) = (w.batch * w.out_h * w.out_w, w.batch * w.out_h);
        let listable = matches!(op, Op::GatherGemm | Op::Depthwise | Op::SqueezeExcite);
        if listable && w.stride == 1 && self.uniform() < 0.35 {
            self.list_channels(&mut w);
        } else if op == Op::Compact || listable && self.uniform() < 0.65 {
            self.list_rows(&mut w);
        }
        w
    }

    fn list_rows(&mut self, w: &mut Workload) {
        w.route = Route::Implicit;
        let pixels = f64::from(w.batch * w.out_h * w.out_w);
        w.rows = (pixels * self.log(0.02, 0.98)).ceil() as u32;
        let longest = f64::from(w.out_w);
        let length = self.log(1.0, longest);
        w.runs = ((f64::from(w.rows) / length).ceil() as u32).clamp(w.rows.div_ceil(w.out_w), w.rows);
        if w.op == Op::GatherGemm && w.kernel == 1 && w.stride == 1 {
            w.input_compact = self.uniform() < 0.3;
        }
        if w.op != Op::SqueezeExcite {
            w.output_compact = !w.residual && self.uniform() < 0.3;
        }
    }

    fn list_channels(&mut self, w: &mut Workload) {
        w.group_size = self.pick(&[1, 2, 4, 8, 16]);
        while !w.c_in.is_multiple_of(w.group_size) || !w.c_out.is_multiple_of(w.group_size) {
            w.group_size /= 2;
        }
        let density = self.uniform().clamp(0.05, 0.98);
        let active = |c: u32| (f64::from(c) * density).max(f64::from(w.group_size));
        let (c_in, c_out) = (active(w.c_in), active(w.c_out));
        let both = w.op == Op::Depthwise || w.groups > 1;
        let which = if both { 2 } else { self.next() % 3 };
        w.c_in_listed = w.op == Op::SqueezeExcite || which != 0;
        w.c_out_listed = w.op != Op::SqueezeExcite && which != 1;
        w.c_in_active = if w.c_in_listed { c_in } else { w.c_in_active };
        w.c_out_active = if w.c_out_listed { c_out } else { w.c_out_active };
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_workload_can_be_and_the_same_seed_draws_the_same() {
        let workloads = sweep(DeviceKind::Cpu, &[1, 2], 500, 3).unwrap();
        assert!(workloads.len() > 3000, "{}", workloads.len());
        for workload in &workloads {
            workload.check().unwrap_or_else(|error| panic!("{workload}: {error}"));
        }
        assert_eq!(workloads, sweep(DeviceKind::Cpu, &[1, 2], 500, 3).unwrap());
        for op in Op::ALL.into_iter().filter(|op| timed(*op)) {
            assert!(workloads.iter().filter(|workload| workload.op == op).count() >= 20, "{op}");
        }
        let stems = workloads.iter().filter(|workload| workload.reads_image());
        assert!(stems.map(|stem| (stem.kernel, stem.in_h)).collect::<HashSet<_>>().len() > 10);
        let listed = |w: &&Workload| w.c_in_listed && w.c_out_listed;
        assert!(workloads.iter().filter(listed).count() > 50);
    }

    #[test]
    fn a_gpu_is_asked_about_larger_batches_of_operands_that_can_be_measured() {
        let workloads = sweep(DeviceKind::Cuda, &[1], 500, 3).unwrap();
        for workload in &workloads {
            workload.check().unwrap_or_else(|error| panic!("{workload}: {error}"));
            assert!(largest(workload) <= 1 << 25, "{workload}");
        }
        let batches = |low, high| workloads.iter().filter(|w| (low..=high).contains(&w.batch)).count();
        assert!(
            batches(1, 1) > 500 && batches(2, 16) > 500 && batches(17, 63) > 50 && batches(64, 128) > 500
        );
    }
}
