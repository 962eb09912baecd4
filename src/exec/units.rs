//! [`Units`]: what a step of each channel is worth in a network of whole numbers.
//!
//! Activation `x` of channel `c` is stored as `x / u[c]`, rounded, −127 to 127, with a *unit* `u[c]` > 0. ReLU does not care:
//! `relu(x / u) = relu(x) / u`. So the network in units is an ordinary one with other weights, and nothing that runs it knows
//! of units. Units come from the largest magnitude `m[c]` of each channel, the checkpoint's [ranges](NetSpec::ranges):
//!
//! ```text
//! u[c] = sqrt(max(m[c], M / 100) · M) / 127        M = the largest m[c] of the tensor
//! ```
//!
//! That is half-way, in logarithms, between a unit for the whole tensor, which wastes steps of small channels, and one of its
//! own for every channel, which leaves it to the weights behind to even out what channels differ by (Xiao et al., "SmoothQuant",
//! ICML 2023, section 4). As `127 u[c] ≥ m[c]`, nothing is clipped that was seen.
//!
//! What lies in one place has one unit: a block whose shortcut is the identity adds in place, and one that pads channels copies
//! them. ReLU6 is the clipping of a whole number whose unit is at most 6 / 127.

use super::fold::{self, Weights};
use anyhow::{Context, Result, ensure};
use laud_models::{Activation, BlockSpec, MaskPoint, NetSpec, RANGE_PREFIX, Shortcut};

/// The largest whole number.
const MOST: f32 = 127.0;
/// Least magnitude of a channel that counts, of the tensor's largest.
const LEAST: f32 = 0.01;
/// Tensors whose largest magnitude is below this are zero.
const NOTHING: f32 = 1e-12;
/// The largest unit in which clipping is ReLU6.
const UNIT_OF_RELU6: f32 = 6.0 / MOST;

/// Units of every point of a network, one for each channel.
#[derive(Debug)]
pub(super) struct Units {
    /// Of the image.
    pub(super) input: Vec<f32>,
    /// Behind the stem; pooling keeps them.
    pub(super) stem: Vec<f32>,
    /// One entry a block.
    pub(super) blocks: Vec<BlockUnits>,
    /// Behind the head's convolution.
    pub(super) head: Option<Vec<f32>>,
}

/// Units of a block.
#[derive(Debug)]
pub(super) struct BlockUnits {
    /// Behind the convolution of a `conv_linear` channel gate.
    pub(super) gate: Option<Vec<f32>>,
    /// Behind every convolution of the branch but the last.
    pub(super) inner: Vec<Vec<f32>>,
    /// Of the stream behind the block.
    pub(super) output: Vec<f32>,
}

impl Units {
    /// Units from the ranges among `weights`.
    ///
    /// # Errors
    /// A range that is missing, is not one magnitude for each channel, or goes beyond 6 behind a ReLU6.
    pub(super) fn read(spec: &NetSpec, weights: &dyn Weights) -> Result<Self> {
        let read = |point: &str, c: usize| {
            range(weights, &format!("{RANGE_PREFIX}{point}"), c)
                .context("int8 takes the largest value of every channel, which `laud quantize` measures")
        };
        let input = units(&read("input", spec.input.channels)?, Activation::None);
        let stem = &spec.stem.conv;
        let mut streams = vec![units(&read("stem", stem.c_out)?, stem.act)];
        let mut blocks = Vec::new();
        for block in &spec.blocks {
            let name = &block.name;
            let hidden = block.gate_hidden();
            let gate = hidden.map(|hidden| read(&format!("{name}.gate"), hidden)).transpose()?;
            let (last, inner) = block.convs.split_last().context("a block without convolutions")?;
            let inner = inner.iter().enumerate().map(|(i, conv)| {
                let mut range = read(&format!("{name}.{i}"), conv.c_out)?;
                if before_norm(block) {
                    let zeroed = fold::zeroed(weights, conv)?;
                    about(&mut range, &zeroed, conv.act).with_context(|| format!("block {name}"))?;
                }
                anyhow::Ok(filled(units(&range, conv.act), conv.act))
            });
            let inner = inner.collect::<Result<_>>()?;
            streams.push(units(&read(name, last.c_out)?, act_behind(block)));
            let gate = gate.map(|range| filled(units(&range, Activation::Relu), Activation::Relu));
            blocks.push(BlockUnits { gate, inner, output: Vec::new() });
        }
        let head = spec
            .head
            .conv
            .as_ref()
            .map(|conv| anyhow::Ok(filled(units(&read("head", conv.c_out)?, conv.act), conv.act)));
        let head = head.transpose()?;

        tie(spec, &mut streams)?;
        let mut streams = streams.into_iter();
        let stem = streams.next().context("no stem")?;
        blocks.iter_mut().zip(streams).for_each(|(block, units)| block.output = units);
        Ok(Self { input: filled(input, Activation::None), stem, blocks, head })
    }

    /// Of the stream that block `i` reads, or the head for the number of blocks.
    pub(super) fn stream(&self, i: usize) -> &[f32] {
        i.checked_sub(1).map_or(&self.stem, |before| &self.blocks[before].output)
    }
}

/// The tensor of magnitudes `name`.
fn range(weights: &dyn Weights, name: &str, c: usize) -> Result<Vec<f32>> {
    let range = fold::tensor(weights, name, c)?;
    let wrong = range.iter().position(|m| !(m.is_finite() && *m >= 0.0));
    ensure!(wrong.is_none(), "{name}: {} is no magnitude", range[wrong.unwrap_or(0)]);
    Ok(range)
}

/// Whether the branch's channels are masked in front of their normalisation: they are stored as what they are above the value
/// of a masked one.
fn before_norm(block: &BlockSpec) -> bool {
    block.gate.channel.as_ref().is_some_and(|gate| gate.point == MaskPoint::BeforeNorm)
}

/// Magnitudes of values that are up to `range` large, less `zeroed`.
fn about(range: &mut [f32], zeroed: &[f32], act: Activation) -> Result<()> {
    ensure!(act != Activation::Relu6, "int8 has no ReLU6 behind a channel mask before the normalisation");
    for (range, zeroed) in range.iter_mut().zip(zeroed) {
        *range = match act {
            Activation::None => *range + zeroed.abs(),
            // Not negative, both of them.
            _ => zeroed.max(*range - zeroed),
        };
    }
    Ok(())
}

/// The activation that the stream behind a block has.
fn act_behind(block: &BlockSpec) -> Activation {
    match (&block.shortcut, block.convs.last()) {
        (Shortcut::None, Some(last)) => last.act,
        _ => block.act,
    }
}

/// Units for values that are up to `range` large; zeros where all of them are zero.
fn units(range: &[f32], act: Activation) -> Vec<f32> {
    let most = range.iter().copied().fold(0.0, f32::max);
    if most < NOTHING {
        return vec![0.0; range.len()];
    }
    let cap = if act == Activation::Relu6 { UNIT_OF_RELU6 } else { f32::INFINITY };
    let unit = |&m: &f32| {
        let (m, most) = (f64::from(m.max(LEAST * most)), f64::from(most));
        (((m * most).sqrt() / f64::from(MOST)) as f32).max(m as f32 / MOST).min(cap)
    };
    range.iter().map(unit).collect()
}

/// Units of a tensor that is tied to no other; any will do for zeros.
fn filled(mut units: Vec<f32>, act: Activation) -> Vec<f32> {
    let any = if act == Activation::Relu6 { UNIT_OF_RELU6 } else { 1.0 };
    units.iter_mut().filter(|unit| **unit == 0.0).for_each(|unit| *unit = any);
    units
}

/// Gives the channels of `streams`, behind the stem and behind every block, the same unit where a shortcut leaves them where
/// they are or copies them.
fn tie(spec: &NetSpec, streams: &mut [Vec<f32>]) -> Result<()> {
    let blocks = spec.blocks.len();
    for i in (0..blocks).chain((0..blocks).rev()) {
        let before = match spec.blocks[i].shortcut {
            Shortcut::Identity => 0,
            Shortcut::PadChannels { before, .. } => before,
            Shortcut::None | Shortcut::Projection(_) => continue,
        };
        let (from, to) = streams.split_at_mut(i + 1);
        for (from, to) in from[i].iter_mut().zip(&mut to[0][before..]) {
            let unit = from.max(*to);
            (*from, *to) = (unit, unit);
        }
    }
    let acts = std::iter::once(spec.stem.conv.act).chain(spec.blocks.iter().map(act_behind));
    for (i, (units, act)) in streams.iter_mut().zip(acts).enumerate() {
        *units = filled(std::mem::take(units), act);
        let clips = act != Activation::Relu6 || units.iter().all(|unit| *unit <= UNIT_OF_RELU6);
        let name = i.checked_sub(1).map_or("stem", |block| &spec.blocks[block].name);
        ensure!(clips, "{name}: int8 has no ReLU6 on a stream that goes beyond 6 elsewhere");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
