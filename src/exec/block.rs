//! One residual block: **decide → compact → compute → return**. The file to read first.
//!
//! The block's input is the residual stream. A gate names the active units (*decide*); the mask is grown backwards
//! through the convolutions and listed (*compact*); the branch is computed for what is listed (*compute*); the last
//! convolution adds into the stream, active rows only (*return*). A block whose shortcut is the identity works in
//! place, so that what is inactive is never touched: the stream is behind an activation that changes nothing when
//! applied again. Any other shortcut writes every pixel of the other stream buffer first.

use super::network::{Block, ChannelGate, Conv, ConvWeights, PreparedShortcut};
use super::trace::{BlockTrace, Count};
use super::workspace::Lists;
use crate::gate::{Policy, UnitKind, Units};
use crate::plan::{BlockPlan, Route};
use anyhow::Result;
use laud_kernels::compact::{BitMap, list_channels};
use laud_kernels::depthwise::Depthwise;
use laud_kernels::gather_gemm::{GatherGemm, Placement};
use laud_kernels::mean_pool::{Mean, MeanPool};
use laud_kernels::shortcut::PadChannels;
use laud_kernels::squeeze_excite::SqueezeExcite;
use laud_kernels::{Act, ActiveSet, Backend, Channels, Extent, Rows};
use laud_models::SqueezePooling;
use std::time::Instant;

/// What stays the same from block to block of one inference.
pub(super) struct Run<'a> {
    /// Number of the first sample, and how many.
    pub(super) first: usize,
    pub(super) batch: usize,
    pub(super) policy: &'a dyn Policy,
    /// Whether to read the clock.
    pub(super) timed: bool,
}

/// Runs block number `index`. `stream[0]` holds its input; afterwards its output.
pub(super) fn run<B: Backend>(
    queue: &mut B::Queue<'_>,
    run: &Run<'_>,
    (index, block): (usize, &Block<B>),
    plan: &BlockPlan,
    stream: &mut [B::Buffer; 2],
    branch: &mut [B::Buffer; 2],
    lists: &mut Lists,
) -> Result<BlockTrace> {
    let mut trace = BlockTrace::default();
    let mut clock = Clock::start(run.timed);

    decide(queue, run, (index, block), &stream[0], branch, lists, &mut trace)?;
    trace.gate_ns = clock.lap();

    compact(run.batch, block, plan, lists, &mut trace);
    count(run.batch, block, lists, &mut trace);
    trace.compact_ns = clock.lap();

    let skipped = trace.patches.active == 0;
    shortcut(queue, run.batch, block, stream, lists, &trace)?;
    if !skipped {
        compute(queue, block, plan.granularity, stream, branch, lists, &trace)?;
    }
    if !block.in_place() {
        stream.swap(0, 1);
    }
    trace.compute_ns = clock.lap();
    Ok(trace)
}

/// Fills `keep_patches` and `keep_channels`.
fn decide<B: Backend>(
    queue: &mut B::Queue<'_>,
    run: &Run<'_>,
    (index, block): (usize, &Block<B>),
    input: &B::Buffer,
    branch: &mut [B::Buffer; 2],
    lists: &mut Lists,
    trace: &mut BlockTrace,
) -> Result<()> {
    let batch = run.batch;
    let units = |kind, per_sample| Units { block: index, kind, first: run.first, batch, per_sample };
    let count =
        |keep: &[bool]| Count { active: keep.iter().filter(|keep| **keep).count(), total: keep.len() };
    lists.all_input.set_all(batch, block.input.pixels());
    lists.all_output.set_all(batch, block.output.pixels());
    if let Some(gate) = &block.patch_gate {
        let n = batch * gate.grid.pixels();
        let (margins, keep) = (&mut lists.margins[..n], &mut lists.keep_patches[..n]);
        B::patch_gate(queue, gate, input, batch, block.input, margins)?;
        run.policy.decide(units(UnitKind::Patch, gate.grid.pixels()), margins, keep);
        trace.patches = count(keep);
    } else {
        trace.patches = Count { active: batch, total: batch };
    }
    if let Some(gate) = &block.channel_gate {
        channel_margins(queue, batch, block, gate, input, branch, lists)?;
        let n = batch * gate.groups;
        let (margins, keep) = (&lists.margins[..n], &mut lists.keep_channels[..n]);
        run.policy.decide(units(UnitKind::ChannelGroup, gate.groups), margins, keep);
        trace.channel_groups = count(keep);
    }
    Ok(())
}

/// Mean over the map (of the input, or of a convolution of it), then fully connected layers.
fn channel_margins<B: Backend>(
    queue: &mut B::Queue<'_>,
    batch: usize,
    block: &Block<B>,
    gate: &ChannelGate<B>,
    input: &B::Buffer,
    branch: &mut [B::Buffer; 2],
    lists: &mut Lists,
) -> Result<()> {
    let Lists { features, margins, all_input: rows, all_channels, .. } = lists;
    let mut c = block.c_in();
    all_channels[0].set_all(c);
    let input = match &gate.reduce {
        None => input,
        Some(conv) => {
            c = conv.geometry.c_out;
            all_channels[1].set_all(c);
            let [c_in, c_out] = &*all_channels;
            let active = ActiveSet { rows, c_in, c_out };
            let io = Operands { input, output: &mut branch[0], residual: false };
            convolve(queue, conv, active, Placement::Natural, Placement::Natural, io)?;
            &branch[0]
        }
    };
    let channels = if gate.reduce.is_some() { &all_channels[1] } else { &all_channels[0] };
    let output = &mut features[0][..batch * c];
    let mean = Mean::Active;
    B::mean_pool(queue, MeanPool { rows, channels, input, input_rows: Placement::Natural, mean, output })?;
    let [from, to] = features;
    let (last, hidden) = gate.layers.split_last().expect("a gate has layers");
    let (mut from, mut to) = (from, to);
    for layer in hidden {
        B::linear(queue, layer, &from[..batch * layer.c_in()], &mut to[..batch * layer.c_out()])?;
        (from, to) = (to, from);
    }
    B::linear(queue, last, &from[..batch * last.c_in()], &mut margins[..batch * last.c_out()])?;
    Ok(())
}

/// Lists the active pixels of every convolution and the active channels.
fn compact<B: Backend>(
    batch: usize,
    block: &Block<B>,
    plan: &BlockPlan,
    lists: &mut Lists,
    trace: &mut BlockTrace,
) {
    let Lists { maps, rows, others, inner, coarse, .. } = lists;
    let last = block.convs.len() - 1;
    let kept = trace.patches;
    trace.gathered = kept.active < kept.total
        && plan.route == Route::Implicit
        && (kept.density() as f32) < plan.dense_above;
    if kept.active == kept.total {
        for (conv, rows) in block.convs.iter().zip(rows) {
            rows.set_all(batch, conv.geometry.output.pixels());
        }
    } else if let Some(gate) = block.patch_gate.as_ref().filter(|_| kept.active > 0) {
        let keep = &lists.keep_patches[..batch * gate.grid.pixels()];
        maps[last].upsample(keep, gate.grid, batch, block.output);
        maps[last].list(false, &mut rows[last]);
        if !block.in_place() {
            maps[last].list(true, others);
        }
        if trace.gathered && plan.granularity > 1 {
            let coarse = &mut coarse[..keep.len()];
            coarsen(keep, gate.grid, plan.granularity, coarse);
            maps[last].upsample(coarse, gate.grid, batch, block.output);
        }
        // The official squeeze-excitation averages pixels that are not active too.
        let everywhere = matches!(block.squeeze, Some((_, SqueezePooling::Dense)));
        for i in (0..last).rev() {
            let geometry = &block.convs[i + 1].geometry;
            if everywhere || !trace.gathered {
                rows[i].set_all(batch, geometry.input.pixels());
                continue;
            }
            let (before, after) = maps.split_at_mut(i + 1);
            grow(&mut before[i], &after[0], geometry);
            if geometry.is_pointwise() && (i + 1 < last || plan.granularity == 1) {
                let (before, after) = rows.split_at_mut(i + 1);
                before[i].copy_from(&after[0]);
            } else {
                before[i].list(false, &mut rows[i]);
            }
        }
    }
    if let Some(gate) = &block.channel_gate {
        let total = gate.groups * gate.group_size;
        match trace.channel_groups.active == trace.channel_groups.total {
            true => inner.set_all(total),
            false => list_channels(
                &lists.keep_channels[..batch * gate.groups],
                batch,
                gate.group_size,
                inner,
                total,
            ),
        }
    }
}

/// Keeps every cell of a square of `side` cells of which any is kept.
fn coarsen(keep: &[bool], grid: Extent, side: usize, coarse: &mut [bool]) {
    coarse.fill(false);
    for (sample, coarse) in keep.chunks_exact(grid.pixels()).zip(coarse.chunks_exact_mut(grid.pixels())) {
        for (cell, _) in sample.iter().enumerate().filter(|(_, keep)| **keep) {
            let first = |at: usize| at / side * side;
            let (y, x) = (first(cell / grid.w), first(cell % grid.w));
            for y in y..grid.h.min(y + side) {
                coarse[y * grid.w + x..y * grid.w + grid.w.min(x + side)].fill(true);
            }
        }
    }
}

fn grow(input: &mut BitMap, active: &BitMap, geometry: &laud_kernels::ConvGeometry) {
    if geometry.is_pointwise() { input.copy_from(active) } else { input.grow(active, geometry) }
}

/// Rows and multiply-accumulates of the block as listed, and the latter with everything active.
fn count<B: Backend>(batch: usize, block: &Block<B>, lists: &Lists, trace: &mut BlockTrace) {
    for (i, conv) in block.convs.iter().enumerate() {
        let g = &conv.geometry;
        trace.dense_macs += (batch * conv.macs()) as u64;
        if trace.patches.active == 0 {
            continue;
        }
        trace.rows[i] = lists.rows[i].len() as u64;
        for n in 0..batch {
            let active = |total: usize, gated: bool| match gated && block.channel_gate.is_some() {
                true => (lists.inner.count(n), lists.inner.sample(n)),
                false => (total, None),
            };
            let (c_in, inputs) = active(g.c_in, i > 0);
            let (c_out, outputs) = active(g.c_out, i + 1 < block.convs.len());
            let pairs = match (inputs, outputs) {
                (None, _) => c_out * g.group_in(),
                (Some(_), None) => c_in * g.group_out(),
                (Some(list), Some(_)) if g.groups > 1 => pairs_in_groups(list, g.group_in(), g.group_out()),
                _ => c_in * c_out,
            };
            trace.macs += (lists.rows[i].sample(n).len() * g.kernel * g.kernel * pairs) as u64;
        }
    }
    if let PreparedShortcut::Projection(conv) = &block.shortcut {
        trace.macs += (batch * conv.macs()) as u64;
        trace.dense_macs += (batch * conv.macs()) as u64;
    }
}

/// Active input × output channels that share a group, where the same channels are active on both sides.
fn pairs_in_groups(list: &[u32], group_in: usize, group_out: usize) -> usize {
    list.chunk_by(|a, b| *a as usize / group_in == *b as usize / group_in)
        .map(|group| group.len() * group.len() * group_out / group_in)
        .sum()
}

/// Writes what the branch will be added to, unless that is the stream as it is.
fn shortcut<B: Backend>(
    queue: &mut B::Queue<'_>,
    batch: usize,
    block: &Block<B>,
    stream: &mut [B::Buffer; 2],
    lists: &mut Lists,
    trace: &BlockTrace,
) -> Result<()> {
    let [input, output] = stream;
    lists.all_channels[0].set_all(block.c_in());
    lists.all_channels[1].set_all(block.c_out());
    let [c_in, c_out] = &lists.all_channels;
    match &block.shortcut {
        PreparedShortcut::None | PreparedShortcut::Identity => {}
        PreparedShortcut::PadChannels { stride, before } => {
            let call = PadChannels {
                batch,
                input_map: block.input,
                output_map: block.output,
                c_in: block.c_in(),
                c_out: block.c_out(),
                stride: *stride,
                before: *before,
                input,
                output,
            };
            B::pad_channels(queue, call)?;
        }
        PreparedShortcut::Projection(conv) => {
            let last = &lists.rows[block.convs.len() - 1];
            // Where nothing will be added, the block's activation comes now.
            let parts: [(&Rows, Act); 2] = match trace.patches.active {
                0 => [(&lists.all_output, block.act), (&lists.all_output, Act::None)],
                active if active == trace.patches.total => [(&lists.all_output, Act::None); 2],
                _ => [(last, Act::None), (&lists.others, block.act)],
            };
            let once = trace.patches.active == 0 || trace.patches.active == trace.patches.total;
            for (rows, act) in parts.into_iter().take(if once { 1 } else { 2 }) {
                let ConvWeights::Gemm(filter) = &conv.weights else { continue };
                let call = GatherGemm {
                    active: ActiveSet { rows, c_in, c_out },
                    input: &*input,
                    input_rows: Placement::Natural,
                    output: &mut *output,
                    output_rows: Placement::Natural,
                    residual: false,
                    act,
                };
                B::gather_gemm(queue, filter, call)?;
            }
        }
    }
    Ok(())
}

/// The branch, for what is listed.
fn compute<B: Backend>(
    queue: &mut B::Queue<'_>,
    block: &Block<B>,
    granularity: usize,
    stream: &mut [B::Buffer; 2],
    branch: &mut [B::Buffer; 2],
    lists: &mut Lists,
    trace: &BlockTrace,
) -> Result<()> {
    let last = block.convs.len() - 1;
    let mut input_rows = Placement::Natural;
    for (i, conv) in block.convs.iter().enumerate() {
        let g = &conv.geometry;
        lists.all_channels[0].set_all(g.c_in);
        lists.all_channels[1].set_all(g.c_out);
        let gated = block.channel_gate.is_some();
        let c_in: &Channels = if gated && i > 0 { &lists.inner } else { &lists.all_channels[0] };
        let c_out: &Channels = if gated && i < last { &lists.inner } else { &lists.all_channels[1] };
        let rows = &lists.rows[i];
        let active = ActiveSet { rows, c_in, c_out };
        // The next convolution finds a pixel's neighbours by their place, or reads the same list one to one.
        let next = block.convs.get(i + 1);
        let same_list =
            next.is_some_and(|next| next.geometry.is_pointwise() && lists.rows[i + 1].len() == rows.len());
        let output_rows = if same_list { Placement::Compact } else { Placement::Natural };
        let [first, second] = &mut *branch;
        let (even, odd) = if i % 2 == 0 { (first, second) } else { (second, first) };
        let in_place = block.in_place();
        let [from, to] = &mut *stream;
        match (i == 0, i == last) {
            (true, false) => {
                let io = Operands { input: from, output: even, residual: false };
                convolve(queue, conv, active, input_rows, output_rows, io)?;
            }
            (false, false) => {
                let io = Operands { input: odd, output: even, residual: false };
                convolve(queue, conv, active, input_rows, output_rows, io)?;
            }
            (first, true) => {
                let output = if in_place { &mut *from } else { &mut *to };
                debug_assert!(!first, "a branch has at least two convolutions");
                let residual = !matches!(block.shortcut, PreparedShortcut::None);
                let io = Operands { input: odd, output, residual };
                convolve(queue, conv, active, input_rows, Placement::Natural, io)?;
            }
        }
        input_rows = output_rows;
        if let Some((weights, pooling)) = block.squeeze.as_ref().filter(|_| i + 1 == last) {
            let patches_all = trace.patches.active == trace.patches.total;
            let exact = trace.gathered && granularity == 1;
            let (rows, mean) = match pooling {
                SqueezePooling::Dense if !patches_all => (&lists.rows[last], Mean::AllPixels),
                SqueezePooling::Active if !exact && !patches_all => (&lists.rows[last], Mean::Active),
                _ => (rows, Mean::Active),
            };
            let data = &mut branch[i % 2];
            let channels = c_out;
            B::squeeze_excite(
                queue,
                weights,
                SqueezeExcite { rows, channels, data_rows: input_rows, mean, data },
            )?;
        }
    }
    Ok(())
}

pub(super) struct Operands<'a, T> {
    pub(super) input: &'a T,
    pub(super) output: &'a mut T,
    pub(super) residual: bool,
}

pub(super) fn convolve<B: Backend>(
    queue: &mut B::Queue<'_>,
    conv: &Conv<B>,
    active: ActiveSet<'_>,
    input_rows: Placement,
    output_rows: Placement,
    io: Operands<'_, B::Buffer>,
) -> Result<()> {
    let Operands { input, output, residual } = io;
    let act = conv.act;
    match &conv.weights {
        ConvWeights::Gemm(filter) => {
            let call = GatherGemm { active, input, input_rows, output, output_rows, residual, act };
            B::gather_gemm(queue, filter, call)?;
        }
        ConvWeights::Depthwise(filter) => {
            let ActiveSet { rows, c_in, c_out: channels } = active;
            // The block's input holds every channel, what a gated convolution wrote only the active ones.
            let input_channels = if c_in.is_all() { Placement::Natural } else { Placement::Compact };
            let call = Depthwise { rows, channels, input, input_channels, output, output_rows, act };
            B::depthwise(queue, filter, call)?;
        }
    }
    Ok(())
}

/// Nanoseconds between laps; 0 when nobody asked.
struct Clock(Option<Instant>);

impl Clock {
    fn start(timed: bool) -> Self {
        Self(timed.then(Instant::now))
    }

    fn lap(&mut self) -> u64 {
        self.0.as_mut().map_or(0, |last| {
            let now = Instant::now();
            let lap = now.duration_since(*last).as_nanos() as u64;
            *last = now;
            lap
        })
    }
}
