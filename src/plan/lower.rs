//! Network, plan and activity → the kernel calls of an inference, in numbers: what the predictor is asked about.
//!
//! The calls are those that the executor issues, in its order. An operation whose [`Workload`] has fields to spare uses
//! them so: of a [`PatchGate`](Op::PatchGate), a [`MeanPool`](Op::MeanPool) and a
//! [`SqueezeExcite`](Op::SqueezeExcite) both maps are what is read, of the last `c_out` are the hidden channels; a
//! [`Compact`](Op::Compact) has the maps and the kernel of the convolution that the mask grows through.

use super::activity::{Activity, maps};
use super::{BlockPlan, ExecutionPlan, Portions, Route};
use laud_models::{
    BlockSpec, ChannelGateSpec, ChannelHead, ConvSpec, LinearSpec, MapSize, NetSpec, Shortcut, SqueezePooling,
};
use laud_predictor::DeviceKind;
use laud_predictor::profile::Profile;
use laud_predictor::workload::{self, Cache, DType, Op, Workload};
use std::ops::Range;

/// What a network's calls depend on besides the network.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Setting {
    /// Images of an inference.
    pub batch: usize,
    /// What activations and weights are stored as.
    pub dtype: DType,
    /// Threads.
    pub threads: u32,
    /// Bytes of the cache that all threads share; 0: not known.
    pub l3_bytes: u64,
    /// Bytes that the maps of samples that run together should have; see [`Portions`].
    pub map_bytes: usize,
}

/// A kernel call, and how often it is made; a fraction where it is made for some of the samples or in one of two states
/// of the caches.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Call {
    /// In numbers.
    pub workload: Workload,
    /// How often.
    pub times: f64,
}

/// The calls of one inference.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Lowered {
    /// In front of the first block.
    pub stem: Vec<Call>,
    /// Of each block.
    pub blocks: Vec<Vec<Call>>,
    /// Behind the last block.
    pub head: Vec<Call>,
}

/// Bytes that the maps of samples that a CPU runs together should have.
pub const CPU_MAP_BYTES: usize = 2_000_000;
/// Bytes that the maps of samples that a CUDA device runs together may have.
pub const CUDA_MAP_BYTES: usize = 1 << 31;

impl Setting {
    /// One thread of a CPU that runs `batch` images in f32.
    pub fn cpu(batch: usize) -> Self {
        let (dtype, map_bytes) = (DType::F32, CPU_MAP_BYTES);
        Self { batch, dtype, threads: 1, l3_bytes: 0, map_bytes }
    }

    /// A CUDA device that runs `batch` images.
    pub fn cuda(batch: usize, dtype: DType) -> Self {
        Self { dtype, map_bytes: CUDA_MAP_BYTES, ..Self::cpu(batch) }
    }

    /// One image on a calibrated device; a CUDA device has no threads.
    pub fn of(profile: &Profile, threads: usize, dtype: DType) -> Self {
        let facts = profile.model.facts();
        let l3_bytes = profile.correction.kept_bytes.unwrap_or(facts.l3_bytes);
        match facts.kind {
            DeviceKind::Cpu => {
                let threads = u32::try_from(threads).unwrap_or(u32::MAX);
                Self { dtype, threads, l3_bytes, ..Self::cpu(1) }
            }
            DeviceKind::Cuda => Self { l3_bytes, ..Self::cuda(1, dtype) },
        }
    }
}

impl Lowered {
    /// All calls in order.
    pub fn calls(&self) -> impl Iterator<Item = &Call> {
        self.stem.iter().chain(self.blocks.iter().flatten()).chain(&self.head)
    }
}

/// All calls of one inference; `activities` has an entry per block.
pub fn lower(spec: &NetSpec, plan: &ExecutionPlan, activities: &[Activity], setting: &Setting) -> Lowered {
    let mut lowered = Lowered { blocks: vec![Vec::new(); spec.blocks.len()], ..Lowered::default() };
    let [front, back] = shares(spec, setting);
    for context in front.contexts(spec, setting) {
        lowered.stem.extend(context.stem(spec));
    }
    for (i, (block, activity)) in spec.blocks.iter().zip(activities).enumerate() {
        let share = if i < front.blocks { &front } else { &back };
        for context in share.contexts(spec, setting) {
            lowered.blocks[i].extend(context.block(block, &plan.blocks[i], activity));
        }
    }
    for context in back.contexts(spec, setting) {
        lowered.head.extend(context.head(spec));
    }
    lowered
}

/// The calls of one block alone.
pub fn lower_block(
    spec: &NetSpec,
    index: usize,
    plan: &BlockPlan,
    activity: &Activity,
    setting: &Setting,
) -> Vec<Call> {
    let [front, back] = shares(spec, setting);
    let share = if index < front.blocks { front } else { back };
    let block = |context: Context| context.block(&spec.blocks[index], plan, activity);
    share.contexts(spec, setting).flat_map(block).collect()
}

/// Samples that run together, and how often that is, up to some block.
struct Share {
    blocks: usize,
    portions: Vec<(usize, f64)>,
}

impl Share {
    fn new(blocks: usize, ranges: impl Iterator<Item = Range<usize>>) -> Self {
        let mut portions: Vec<(usize, f64)> = Vec::new();
        for samples in ranges.map(|range| range.len()) {
            match portions.iter_mut().find(|(known, _)| *known == samples) {
                Some((_, times)) => *times += 1.0,
                None => portions.push((samples, 1.0)),
            }
        }
        Self { blocks, portions }
    }

    fn contexts(&self, spec: &NetSpec, setting: &Setting) -> impl Iterator<Item = Context> {
        self.portions.iter().map(|(samples, times)| Context::new(spec, setting, *samples, *times))
    }
}

/// Front and back of an inference.
fn shares(spec: &NetSpec, setting: &Setting) -> [Share; 2] {
    let Setting { batch, dtype, map_bytes, .. } = *setting;
    let portions = Portions::of(spec, dtype.bytes() as usize, map_bytes, batch);
    let front = portions.groups(batch).flat_map(|group| portions.parts(group));
    [Share::new(portions.cut, front), Share::new(spec.blocks.len(), portions.groups(batch))]
}

/// What is the same for all calls of some samples.
struct Context {
    samples: usize,
    times: f64,
    dtype: DType,
    threads: u32,
    /// Share of the weights that has left the caches between two inferences.
    cold: f64,
}

/// Which rows and channels a convolution computes.
struct Extent {
    rows: u32,
    runs: u32,
    all: bool,
    channels: f64,
    c_in_listed: bool,
    c_out_listed: bool,
}

impl Context {
    fn new(spec: &NetSpec, setting: &Setting, samples: usize, times: f64) -> Self {
        let half = setting.l3_bytes as f64 / 2.0;
        let bytes = weight_count(spec) as f64 * f64::from(setting.dtype.bytes());
        let cold = if half > 0.0 { ((bytes - half) / half).clamp(0.0, 1.0) } else { 1.0 };
        Self { samples, times, dtype: setting.dtype, threads: setting.threads, cold }
    }

    fn workload(&self, op: Op, map: MapSize, c_in: usize, c_out: usize) -> Workload {
        let lines = (self.samples * map.h) as u32;
        Workload {
            batch: self.samples as u32,
            rows: lines * map.w as u32,
            runs: lines,
            dtype: self.dtype,
            threads: self.threads,
            ..Workload::new(op, map.h as u32, map.w as u32, c_in as u32, c_out as u32)
        }
    }

    fn call(&self, workload: Workload) -> Call {
        Call { workload, times: self.times }
    }

    /// A call that reads weights: in memory or in the caches, or some of either.
    fn weighted(&self, workload: Workload, times: f64) -> impl Iterator<Item = Call> + use<> {
        let states = [(Cache::Cold, self.cold), (Cache::Warm, 1.0 - self.cold)];
        let all = self.times * times;
        states
            .into_iter()
            .filter(|(_, share)| *share > 0.0)
            .map(move |(cache, share)| Call { workload: Workload { cache, ..workload }, times: all * share })
    }

    fn convolution(&self, conv: &ConvSpec, input: MapSize, output: MapSize) -> Workload {
        let depthwise = conv.groups > 1 && conv.groups == conv.c_in && conv.c_in == conv.c_out;
        let op = if depthwise { Op::Depthwise } else { Op::GatherGemm };
        Workload {
            in_h: input.h as u32,
            in_w: input.w as u32,
            kernel: conv.kernel as u32,
            stride: conv.stride as u32,
            groups: conv.groups as u32,
            ..self.workload(op, output, conv.c_in, conv.c_out)
        }
    }

    fn linear(&self, c_in: usize, c_out: usize) -> impl Iterator<Item = Call> + use<> {
        self.weighted(self.workload(Op::Linear, MapSize { h: 1, w: 1 }, c_in, c_out), 1.0)
    }

    fn stem(&self, spec: &NetSpec) -> Vec<Call> {
        let conv = &spec.stem.conv;
        let (size, pad) = (spec.input.size, conv.pad);
        let bordered = MapSize { h: size.h + pad.top + pad.bottom, w: size.w + pad.left + pad.right };
        let image = Workload {
            in_h: size.h as u32,
            in_w: size.w as u32,
            ..self.workload(Op::FromNchw, bordered, spec.input.channels, spec.input.channels)
        };
        let output = conv.output_size(size).unwrap_or(size);
        let mut calls = vec![self.call(image)];
        calls.extend(self.weighted(self.convolution(conv, bordered, output), 1.0));
        if let Some(pool) = spec.stem.pool {
            let pooled = pool.output_size(output).unwrap_or(output);
            calls.push(self.call(Workload {
                in_h: output.h as u32,
                in_w: output.w as u32,
                kernel: pool.kernel as u32,
                stride: pool.stride as u32,
                ..self.workload(Op::MaxPool, pooled, conv.c_out, conv.c_out)
            }));
        }
        calls
    }

    fn head(&self, spec: &NetSpec) -> Vec<Call> {
        let stem = spec.stem.conv.output_size(spec.input.size).unwrap_or(spec.input.size);
        let mut map = spec.blocks.last().map_or(stem, |block| block.output);
        let mut calls = Vec::new();
        if let Some(conv) = &spec.head.conv {
            let output = conv.output_size(map).unwrap_or(map);
            calls.extend(self.weighted(self.convolution(conv, map, output), 1.0));
            map = output;
        }
        let LinearSpec { c_in, c_out, .. } = spec.head.fc;
        calls.push(self.call(self.workload(Op::MeanPool, map, c_in, c_in)));
        calls.extend(self.linear(c_in, c_out));
        calls
    }

    fn block(&self, block: &BlockSpec, plan: &BlockPlan, activity: &Activity) -> Vec<Call> {
        let mut calls = Vec::new();
        if let Some(gate) = &block.gate.spatial {
            calls.push(self.call(self.workload(Op::PatchGate, block.input, gate.c_in, 1)));
        }
        if let Some(gate) = &block.gate.channel {
            self.channel_gate(gate, block.input, &mut calls);
        }
        let partly = block.gate.spatial.is_some() && activity.patches < 1.0;
        if partly && activity.patches > 0.0 {
            calls.push(self.compaction(block, activity));
        }
        // Samples of which nothing is active cost nothing; less than one sample at a time is one, some of the time.
        let active = activity.samples * self.samples as f64;
        let (often, scale) = if active < 1.0 {
            (active, 1.0 / activity.samples.max(f64::MIN_POSITIVE))
        } else {
            (1.0, self.samples as f64)
        };
        let last = block.convs.len() - 1;
        self.shortcut(block, (activity.rows[last], activity.runs[last]), scale, often, partly, &mut calls);
        if activity.patches > 0.0 && often > 0.0 {
            let gathered =
                partly && plan.route == Route::Implicit && (activity.patches as f32) < plan.dense_above;
            self.branch(block, activity, (gathered, partly), (often, scale), &mut calls);
        }
        calls
    }

    fn branch(
        &self,
        block: &BlockSpec,
        activity: &Activity,
        (gathered, partly): (bool, bool),
        (often, scale): (f64, f64),
        calls: &mut Vec<Call>,
    ) {
        let last = block.convs.len() - 1;
        let listed = block.gate.channel.is_some() && activity.channels < 1.0;
        let everywhere = block.squeeze_excite.as_ref().is_some_and(|se| se.pooling == SqueezePooling::Dense);
        let group = block.gate.channel.as_ref().map_or(1, |gate| gate.group_size);
        let extent = |i: usize, output: MapSize| {
            let pixels = self.samples * output.h * output.w;
            // A dense route computes every sample, also one of which nothing is active.
            let all = !partly || (i < last && (!gathered || everywhere));
            let count = |mean: f64, most: usize| ((mean * scale).round() as usize).clamp(1, most) as u32;
            let rows = if all { pixels as u32 } else { count(activity.rows[i], pixels) };
            // A list of every pixel is none.
            let all = all || rows == pixels as u32;
            Extent {
                rows,
                runs: match all {
                    true => (self.samples * output.h) as u32,
                    false => count(activity.runs[i], pixels).min(rows),
                },
                all,
                channels: activity.channels,
                c_in_listed: listed && i > 0,
                c_out_listed: listed && i < last,
            }
        };
        let mut compact = false;
        for (i, ((input, output), conv)) in maps(block).zip(&block.convs).enumerate() {
            let extent = extent(i, output);
            let mut workload = self.convolution(conv, input, output);
            (workload.rows, workload.runs) = (extent.rows, extent.runs);
            workload.route = if extent.all { workload::Route::Dense } else { workload::Route::Implicit };
            workload.input_compact = compact;
            let next = block.convs.get(i + 1);
            compact = next.is_some_and(|next| next.kernel == 1 && next.stride == 1)
                && !extent.all
                && !everywhere
                && (activity.rows[i] - activity.rows[i + 1]).abs() < 0.5;
            workload.output_compact = compact;
            (workload.c_in_listed, workload.c_out_listed) = (extent.c_in_listed, extent.c_out_listed);
            if extent.c_in_listed {
                workload.c_in_active = (conv.c_in as f64 * extent.channels).max(1.0);
            }
            if extent.c_out_listed {
                workload.c_out_active = (conv.c_out as f64 * extent.channels).max(1.0);
            }
            workload.group_size = if listed { group as u32 } else { 1 };
            workload.residual = i == last && block.shortcut != Shortcut::None;
            calls.extend(self.weighted(workload, often));
            if let Some(se) = block.squeeze_excite.as_ref().filter(|_| i + 1 == last) {
                let mut squeeze = self.workload(Op::SqueezeExcite, output, se.fc1.c_in, se.fc1.c_out);
                (squeeze.rows, squeeze.runs) = (extent.rows, extent.runs);
                squeeze.c_in_listed = extent.c_out_listed;
                squeeze.c_in_active = workload.c_out_active;
                squeeze.input_compact = compact;
                calls.extend(self.weighted(squeeze, often));
            }
        }
    }

    fn channel_gate(&self, gate: &ChannelGateSpec, input: MapSize, calls: &mut Vec<Call>) {
        let mut c = gate.c_in;
        if let ChannelHead::ConvLinear { hidden } = gate.head {
            let conv = gate.reduce_conv(hidden);
            calls.extend(self.weighted(self.convolution(&conv, input, input), 1.0));
            c = hidden;
        }
        calls.push(self.call(self.workload(Op::MeanPool, input, c, c)));
        if let ChannelHead::Mlp2 { hidden } = gate.head {
            calls.extend(self.linear(c, hidden));
            c = hidden;
        }
        calls.extend(self.linear(c, gate.groups));
    }

    fn compaction(&self, block: &BlockSpec, activity: &Activity) -> Call {
        let last = block.convs.len() - 1;
        let widest = maps(block).zip(&block.convs).max_by_key(|(_, conv)| conv.kernel);
        let ((input, output), conv) = widest.expect("a branch has convolutions");
        let count = |mean: f64| (mean * self.samples as f64).round().max(1.0) as u32;
        let mut workload = Workload {
            in_h: input.h as u32,
            in_w: input.w as u32,
            kernel: conv.kernel as u32,
            stride: conv.stride as u32,
            ..self.workload(Op::Compact, output, 1, 1)
        };
        workload.rows = count(activity.rows[last]).min(workload.rows);
        workload.runs = count(activity.runs[last]).min(workload.rows);
        self.call(workload)
    }

    fn shortcut(
        &self,
        block: &BlockSpec,
        (rows, runs): (f64, f64),
        scale: f64,
        often: f64,
        partly: bool,
        calls: &mut Vec<Call>,
    ) {
        match &block.shortcut {
            Shortcut::None | Shortcut::Identity => {}
            Shortcut::PadChannels { stride, .. } => calls.push(self.call(Workload {
                in_h: block.input.h as u32,
                in_w: block.input.w as u32,
                stride: *stride as u32,
                ..self.workload(Op::PadChannels, block.output, block.convs[0].c_in, last_c_out(block))
            })),
            Shortcut::Projection(conv) => {
                let whole = self.convolution(conv, block.input, block.output);
                let active = (rows * scale).round().min(f64::from(whole.rows)) as u32;
                if !partly || often == 0.0 || active == whole.rows {
                    calls.extend(self.weighted(whole, 1.0));
                    return;
                }
                // What is active, then the rest.
                let runs = ((runs * scale).round() as u32).max(1);
                for rows in [active, whole.rows - active].into_iter().filter(|rows| *rows > 0) {
                    let route = workload::Route::Implicit;
                    let part = Workload { rows, runs: runs.min(rows), route, ..whole };
                    calls.extend(self.weighted(part, often));
                }
                if often < 1.0 {
                    calls.extend(self.weighted(whole, 1.0 - often));
                }
            }
        }
    }
}

fn last_c_out(block: &BlockSpec) -> usize {
    block.convs.last().map_or(0, |conv| conv.c_out)
}

/// Weights of every convolution and linear layer.
fn weight_count(spec: &NetSpec) -> usize {
    let conv = |conv: &ConvSpec| conv.c_out * conv.kernel * conv.kernel * conv.c_in / conv.groups.max(1);
    let blocks = spec.blocks.iter().map(|block| {
        let shortcut = match &block.shortcut {
            Shortcut::Projection(projection) => conv(projection),
            _ => 0,
        };
        block.convs.iter().map(conv).sum::<usize>() + shortcut
    });
    let head = spec.head.conv.as_ref().map_or(0, conv) + spec.head.fc.c_in * spec.head.fc.c_out;
    conv(&spec.stem.conv) + blocks.sum::<usize>() + head
}
