//! One residual block: **decide → compact → compute → return**. The file to read first.
//!
//! The block's input is the residual stream. A gate names the active units (*decide*); the mask is grown backwards
//! through the convolutions and listed (*compact*); the branch is computed for what is listed (*compute*); the last
//! convolution adds into the stream, active rows only (*return*). A block whose shortcut is the identity works in
//! place, so that what is inactive is never touched: the stream is behind an activation that changes nothing when
//! applied again. Any other shortcut writes every pixel of the other stream buffer first. Without a shortcut the last
//! convolution writes them all: such a block has no spatial gate.
//!
//! The operations are the same whatever is active: on an empty list they do nothing. So nobody has to know the
//! decisions to issue them, and a device may run behind.

use super::network::{Block, ChannelGate, Conv, ConvWeights, PreparedShortcut};
use super::workspace::{Lists, Maps, Results, Slot};
use crate::gate::{Price, Rule, UnitKind};
use crate::plan::{BlockPlan, Route};
use anyhow::Result;
use laud_kernels::compact::{BranchRows, ListChannels, Schedule};
use laud_kernels::depthwise::Depthwise;
use laud_kernels::gate::{Account, Decide, Most};
use laud_kernels::gather_gemm::{GatherGemm, Placement};
use laud_kernels::mean_pool::{Mean, MeanPool};
use laud_kernels::shortcut::PadChannels;
use laud_kernels::squeeze_excite::SqueezeExcite;
use laud_kernels::{Act, ActiveSet, Backend};
use laud_models::SqueezePooling;

/// What stays the same from block to block of one inference.
#[derive(Clone, Copy)]
pub(super) struct Run<'a> {
    /// Samples.
    pub(super) batch: usize,
    /// What decisions depend on.
    pub(super) rule: Rule<'a>,
    /// Whether to note the time between the steps.
    pub(super) timed: bool,
}

/// Runs a block. `maps.stream[0]` holds its input; afterwards its output.
pub(super) fn run<B: Backend>(
    queue: &mut B::Queue<'_>,
    run: Run<'_>,
    (number, block, plan, slot): (usize, &Block<B>, &BlockPlan, Slot),
    maps: &mut Maps<B>,
    lists: &mut Lists<B>,
    results: &mut Results<B>,
) -> Result<()> {
    run.stamp::<B>(queue);
    decide(queue, run, (number, block, slot), maps, lists, results)?;
    run.stamp::<B>(queue);
    compact(queue, run.batch, (block, plan, slot), lists, results)?;
    run.stamp::<B>(queue);
    shortcut(queue, run.batch, block, maps, lists)?;
    // A single decision about a single sample: mostly it is worth asking whether there is anything to do.
    let whole = run.batch == 1 && block.patch_gate.as_ref().is_some_and(|gate| gate.cells() == 1);
    let asked = whole && B::when(queue, &lists.rows[block.convs.len() - 1])?;
    compute(queue, block, maps, lists)?;
    if asked {
        B::end_when(queue)?;
    }
    if !block.in_place() {
        maps.stream.swap(0, 1);
    }
    run.stamp::<B>(queue);
    Ok(())
}

impl Run<'_> {
    pub(super) fn stamp<B: Backend>(self, queue: &mut B::Queue<'_>) {
        if self.timed {
            B::stamp(queue);
        }
    }
}

/// Evaluates the gates and, unless that was done beforehand, decides.
fn decide<B: Backend>(
    queue: &mut B::Queue<'_>,
    run: Run<'_>,
    (number, block, slot): (usize, &Block<B>, Slot),
    maps: &mut Maps<B>,
    lists: &mut Lists<B>,
    results: &mut Results<B>,
) -> Result<()> {
    if let Some(gate) = &block.patch_gate {
        let margins = &mut lists.margins;
        B::patch_gate(queue, &gate.weights, &maps.stream[0], run.batch, block.input, margins)?;
        let units = (UnitKind::Patch, gate.cells());
        keep(queue, run, (number, units), lists, (&mut results.keep, slot.patches))?;
    }
    if let Some(gate) = &block.channel_gate {
        channel_margins(queue, run.batch, block, gate, maps, lists)?;
        let units = (UnitKind::ChannelGroup, gate.groups);
        keep(queue, run, (number, units), lists, (&mut results.keep, slot.groups))?;
    }
    Ok(())
}

/// Margins to decisions about the units of a block's gate, as many for each sample; those that were decided beforehand
/// stay.
fn keep<B: Backend>(
    queue: &mut B::Queue<'_>,
    run: Run<'_>,
    (block, (kind, per_sample)): (usize, (UnitKind, usize)),
    lists: &mut Lists<B>,
    (keep, keep_at): (&mut B::Vector<bool>, usize),
) -> Result<()> {
    let Lists { margins, spent, .. } = lists;
    let (at_least, most) = match run.rule {
        Rule::Given(_) => return Ok(()),
        Rule::Margin { at_least } => (at_least, Most::All),
        Rule::Top(amount) => (f32::NEG_INFINITY, Most::Count(amount.of(per_sample))),
        Rule::Paid(prices) => {
            let (Price { unit: price, pace }, limit) = (prices.of(block, kind), prices.limit);
            (prices.at_least, Most::Paid(Account { spent, price, pace, limit }))
        }
    };
    let (batch, margins) = (run.batch, &*margins);
    Ok(B::decide(queue, Decide { batch, per_sample, margins, at_least, most, keep, keep_at })?)
}

/// Mean over the map (of the input, or of a convolution of it), then fully connected layers.
fn channel_margins<B: Backend>(
    queue: &mut B::Queue<'_>,
    batch: usize,
    block: &Block<B>,
    gate: &ChannelGate<B>,
    maps: &mut Maps<B>,
    lists: &mut Lists<B>,
) -> Result<()> {
    let mut input = &maps.stream[0];
    let mut c = block.c_in();
    if let Some(conv) = &gate.reduce {
        everywhere(queue, conv, batch, input, &mut maps.branch[0], lists)?;
        (input, c) = (&maps.branch[0], conv.geometry.c_out);
    }
    let Lists { features, margins, all_rows, all_channels: [channels, _], .. } = lists;
    B::all_rows(all_rows, batch, block.input.pixels());
    B::all_channels(channels, c);
    let [from, to] = features;
    let (rows, mean, output) = (&*all_rows, Mean::Active, &mut *from);
    B::mean_pool(queue, MeanPool { rows, channels, input, input_rows: Placement::Natural, mean, output })?;
    let (last, hidden) = gate.layers.split_last().expect("a gate has layers");
    let (mut from, mut to) = (from, to);
    for layer in hidden {
        B::linear(queue, &layer.weights, batch, from, to)?;
        (from, to) = (to, from);
    }
    B::linear(queue, &last.weights, batch, from, margins)?;
    Ok(())
}

/// Lists the active pixels of every convolution, as the plan schedules them, and the active channels.
fn compact<B: Backend>(
    queue: &mut B::Queue<'_>,
    batch: usize,
    (block, plan, slot): (&Block<B>, &BlockPlan, Slot),
    lists: &mut Lists<B>,
    results: &mut Results<B>,
) -> Result<()> {
    match &block.patch_gate {
        Some(gate) => {
            let call = BranchRows {
                branch: &gate.branch,
                batch,
                keep: &results.keep,
                keep_at: slot.patches,
                schedule: schedule(plan),
                rows: &mut lists.rows,
                others: (!block.in_place()).then_some(&mut lists.others),
                starts: &mut results.starts,
                starts_at: slot.starts,
            };
            B::list_rows(queue, call)?;
        }
        None => {
            for (conv, rows) in block.convs.iter().zip(&mut lists.rows) {
                B::all_rows(rows, batch, conv.geometry.output.pixels());
            }
        }
    }
    if let Some(gate) = &block.channel_gate {
        let (group, total) = (gate.group_size, gate.groups * gate.group_size);
        let (keep, keep_at, channels) = (&results.keep, slot.groups, &mut lists.inner);
        B::list_channels(queue, ListChannels { batch, group, total, keep, keep_at, channels })?;
    }
    Ok(())
}

/// When the plan has a block gather, and in squares of which size.
pub(super) fn schedule(plan: &BlockPlan) -> Schedule {
    let dense_above = match plan.route {
        Route::Dense => 0.0,
        Route::Implicit => plan.dense_above,
    };
    Schedule { granularity: plan.granularity, dense_above }
}

/// Writes what the branch will be added to, unless that is the stream as it is.
fn shortcut<B: Backend>(
    queue: &mut B::Queue<'_>,
    batch: usize,
    block: &Block<B>,
    maps: &mut Maps<B>,
    lists: &mut Lists<B>,
) -> Result<()> {
    let [input, output] = &mut maps.stream;
    match &block.shortcut {
        PreparedShortcut::None | PreparedShortcut::Identity => {}
        PreparedShortcut::PadChannels { stride, before } => {
            let (input_map, output_map, stride, before) = (block.input, block.output, *stride, *before);
            let (c_in, c_out) = (block.c_in(), block.c_out());
            let call =
                PadChannels { batch, input_map, output_map, c_in, c_out, stride, before, input, output };
            B::pad_channels(queue, call)?;
        }
        PreparedShortcut::Projection(conv) => {
            let ConvWeights::Gemm(filter) = &conv.weights else { return Ok(()) };
            let Lists { rows, others, all_channels: [c_in, c_out], .. } = lists;
            B::all_channels(c_in, block.c_in());
            B::all_channels(c_out, block.c_out());
            // Where nothing will be added, the block's activation comes now.
            let active = (&rows[block.convs.len() - 1], Act::None);
            let inactive = block.patch_gate.is_some().then_some((&*others, block.act));
            for (rows, act) in [Some(active), inactive].into_iter().flatten() {
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
    maps: &mut Maps<B>,
    lists: &mut Lists<B>,
) -> Result<()> {
    let Maps { stream, branch, .. } = maps;
    let Lists { rows, inner, all_channels: [all_in, all_out], .. } = lists;
    let last = block.convs.len() - 1;
    let gated = block.channel_gate.is_some();
    let mut input_rows = Placement::Natural;
    for (i, conv) in block.convs.iter().enumerate() {
        B::all_channels(all_in, conv.geometry.c_in);
        B::all_channels(all_out, conv.geometry.c_out);
        let c_in = if gated && i > 0 { &*inner } else { &*all_in };
        let c_out = if gated && i < last { &*inner } else { &*all_out };
        let active = ActiveSet { rows: &rows[i], c_in, c_out };
        let output_rows = hand_over::<B>(block, i, rows);
        // Only a block's input holds every channel; what a gated convolution wrote are the active ones.
        let input_channels = if gated && i > 0 { Placement::Compact } else { Placement::Natural };
        let place = Place { input_rows, input_channels, output_rows };
        let [even, odd] = &mut *branch;
        let (written, read) = if i % 2 == 0 { (even, &*odd) } else { (odd, &*even) };
        let [from, to] = &mut *stream;
        if i == last {
            debug_assert!(i > 0, "a branch has at least two convolutions");
            let output = if block.in_place() { from } else { to };
            let residual = !matches!(block.shortcut, PreparedShortcut::None);
            convolve(queue, conv, active, place, Operands { input: read, output, residual })?;
        } else {
            let input = if i == 0 { &*from } else { read };
            convolve(queue, conv, active, place, Operands { input, output: written, residual: false })?;
        }
        input_rows = output_rows;
        if let Some((weights, pooling)) = block.squeeze.as_ref().filter(|_| i + 1 == last) {
            let mean = match pooling {
                SqueezePooling::Dense => Mean::AllPixels,
                SqueezePooling::Active => Mean::Active,
            };
            let (rows, channels, data) = (&rows[last], c_out, &mut branch[i % 2]);
            let call = SqueezeExcite { rows, channels, data_rows: input_rows, mean, data };
            B::squeeze_excite(queue, weights, call)?;
        }
    }
    Ok(())
}

/// How convolution `i` leaves its rows for the next one: that finds a pixel's neighbours by their place, or reads the
/// same list one to one.
fn hand_over<B: Backend>(block: &Block<B>, i: usize, rows: &[B::Rows]) -> Placement {
    let pools_everywhere = matches!(block.squeeze, Some((_, SqueezePooling::Dense)));
    match block.convs.get(i + 1) {
        Some(next)
            if next.geometry.is_pointwise() && !pools_everywhere && B::same_rows(&rows[i], &rows[i + 1]) =>
        {
            Placement::Compact
        }
        _ => Placement::Natural,
    }
}

/// Where the operands of a convolution lie.
#[derive(Clone, Copy)]
struct Place {
    input_rows: Placement,
    input_channels: Placement,
    output_rows: Placement,
}

struct Operands<'a, T> {
    input: &'a T,
    output: &'a mut T,
    residual: bool,
}

/// A convolution of every pixel and channel.
pub(super) fn everywhere<B: Backend>(
    queue: &mut B::Queue<'_>,
    conv: &Conv<B>,
    batch: usize,
    input: &B::Buffer,
    output: &mut B::Buffer,
    lists: &mut Lists<B>,
) -> Result<()> {
    let Lists { all_rows: rows, all_channels: [c_in, c_out], .. } = lists;
    B::all_rows(rows, batch, conv.geometry.output.pixels());
    B::all_channels(c_in, conv.geometry.c_in);
    B::all_channels(c_out, conv.geometry.c_out);
    let natural = Placement::Natural;
    let place = Place { input_rows: natural, input_channels: natural, output_rows: natural };
    let io = Operands { input, output, residual: false };
    convolve(queue, conv, ActiveSet { rows, c_in, c_out }, place, io)
}

fn convolve<B: Backend>(
    queue: &mut B::Queue<'_>,
    conv: &Conv<B>,
    active: ActiveSet<'_, B::Rows, B::Channels>,
    place: Place,
    io: Operands<'_, B::Buffer>,
) -> Result<()> {
    let Operands { input, output, residual } = io;
    let Place { input_rows, input_channels, output_rows } = place;
    let act = conv.act;
    match &conv.weights {
        ConvWeights::Gemm(filter) => {
            let call = GatherGemm { active, input, input_rows, output, output_rows, residual, act };
            B::gather_gemm(queue, filter, call)?;
        }
        ConvWeights::Depthwise(filter) => {
            let ActiveSet { rows, c_out: channels, .. } = active;
            let call = Depthwise { rows, channels, input, input_channels, output, output_rows, act };
            B::depthwise(queue, filter, call)?;
        }
    }
    Ok(())
}
