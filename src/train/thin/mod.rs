//! Channel gates that start at their target, with weights that make up for what is dropped.
//!
//! Gates that start by keeping everything need thousands of steps to find out what can be dropped, and what is left has to learn
//! to do without it. Both have a closed form, block by block, on a few hundred images without labels: from the second moments of
//! what a convolution reads follow the channels that the others make up for best, and the weights with which they do. What that
//! costs the network's answer is measured, block by block and level by level, and every block gives up channels where a
//! multiply-accumulate less costs least. Few images say little about weights of thousands of inputs: how far they may move is
//! found on a fifth of the images, to which they are not fitted.
//!
//! Removal with compensation: Hassibi, Stork, "Second order derivatives for network pruning: Optimal brain surgeon", 1992, for
//! a layer and its outputs (Frantar et al., "Optimal Brain Compression", 2022), whole channels at a time. Weights by least
//! squares on what the thinned network computes: He et al., "Channel Pruning for Accelerating Very Deep Neural Networks", 2017.

mod branch;
#[cfg(test)]
mod examples;
mod levels;
mod moments;
mod removal;
mod solve;

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use candle_nn::ops::{log_softmax, softmax};
use laud_models::{BlockSpec, ChannelGateSpec, NetSpec};

use super::cost::Cost;
use super::init::last_layer;
use super::maps::{Map, MapOps};
use super::network::MaskedNetwork;
use branch::Branch;
use levels::{Curve, check_reach, choose};
use moments::{Evidence, Moments, Sampling, judges};
use removal::removal_order;
use solve::{best_ridge, least, solve};

/// Images on which it is measured what a thinned block costs the answer.
const JUDGED_IMAGES: usize = 64;
/// Margins of fresh gates, keep logit − skip logit, lie within this.
const WIDEST_MARGIN: f64 = 4.0;

/// Weights by name.
type Tensors = HashMap<String, Tensor>;

/// Starts the channel gates of `weights` at `target`, a share of the full cost, on `batches` of images `[n, c, h, w]`: inner
/// channels are sorted, those first that others make up for least (the network without gates still computes the same); all
/// images keep the same groups, the first ones; and the convolutions that read them make up for those that are dropped.
///
/// Blocks with squeeze-excitation or grouped convolutions (other than a depthwise one behind another convolution) keep
/// everything. `see` is told the share of the work that is done. Linear algebra takes the threads of the rayon pool that this
/// is called in.
///
/// # Errors
/// No images, no block that can be thinned, a target below what is left with one group a block.
pub fn thin(
    spec: &NetSpec,
    weights: &mut Tensors,
    maps: &Arc<dyn MapOps>,
    batches: &[Tensor],
    (cost, target): (&Cost, f64),
    mut see: impl FnMut(f64),
) -> Result<()> {
    ensure!(!batches.is_empty(), "no images to thin the network on");
    let thinner = Thinner { spec: &spec.without_gates(), maps, batches };
    let gated = || spec.blocks.iter().map(|block| block.gate.channel.as_ref());
    let gates: Vec<_> = gated()
        .zip(&spec.blocks)
        .map(|(gate, block)| gate.filter(|_| branch::spaces(block).is_some()))
        .collect();
    ensure!(gates.iter().any(Option::is_some), "{}: has no block that can be thinned", spec.name);
    let all: Vec<_> = gates.iter().map(|gate| gate.map(|gate| gate.groups)).collect();
    check_reach(&all, cost, target)?;
    let curves = thinner.measure(&gates, weights, |done| see(done / 2.0))?;
    let groups = choose(&curves, cost, target);
    thinner.compensate(&gates, &groups, weights, |done| see(0.5 + done / 2.0))?;
    for (gate, kept) in gated().zip(&groups) {
        if let (Some(gate), Some(kept)) = (gate, kept) {
            start_gate(gate, *kept, weights)?;
        }
    }
    Ok(())
}

/// Keeps the first `kept` groups on every image, the more clearly the farther a group is from the last of them: the weights of
/// the gate's last layer are zero, so that all images are treated alike until it has learned.
fn start_gate(gate: &ChannelGateSpec, kept: usize, weights: &mut Tensors) -> Result<()> {
    let layer = last_layer(gate);
    let margin = |group: usize| WIDEST_MARGIN * (kept as f64 - group as f64 - 0.5) / gate.groups as f64;
    let halves = (0..2 * gate.groups).map(|i| match i < gate.groups {
        true => margin(i) / 2.0,
        false => -margin(i - gate.groups) / 2.0,
    });
    let bias: Vec<f32> = halves.map(|half| half as f32).collect();
    let name = format!("{layer}.weight");
    let weight = weights.get_mut(&name).with_context(|| format!("no tensor {name}"))?;
    *weight = weight.zeros_like()?;
    weights.insert(format!("{layer}.bias"), Tensor::new(bias, &Device::Cpu)?);
    Ok(())
}

/// What the convolution behind a space of channels reads and makes of it, and the ridge that this takes.
struct Read {
    moments: Moments,
    ridge: f64,
}

/// What thins, block by block.
struct Thinner<'a> {
    /// Without gates.
    spec: &'a NetSpec,
    maps: &'a Arc<dyn MapOps>,
    batches: &'a [Tensor],
}

impl Thinner<'_> {
    fn network(&self, weights: &Tensors) -> Result<MaskedNetwork> {
        Ok(MaskedNetwork::new(self.spec, weights)?.with_maps(self.maps.clone()))
    }

    fn branch<'b>(&'b self, block: &'b BlockSpec, weights: &Tensors) -> Result<Branch<'b>> {
        Branch::load(block, weights, &**self.maps)
    }

    /// Images that weights are not fitted to, where there are some.
    fn judge(&self, network: &MaskedNetwork, inputs: &[Map]) -> Result<Judge> {
        let mut judge = Judge { answers: Vec::new(), images: 0 };
        for (number, map) in inputs.iter().enumerate() {
            if judge.images < JUDGED_IMAGES && (judges(number) || inputs.len() == 1) {
                judge.answers.push((number, network.logits_from(0, map)?));
                judge.images += self.batches[number].dim(0)?;
            }
        }
        Ok(judge)
    }

    /// Sorts the channels of every block with a gate, and measures what its levels cost.
    fn measure(
        &self,
        gates: &[Option<&ChannelGateSpec>],
        weights: &mut Tensors,
        mut see: impl FnMut(f64),
    ) -> Result<Vec<Option<Curve>>> {
        let network = self.network(weights)?;
        let mut inputs =
            self.batches.iter().map(|batch| network.first_map(batch)).collect::<Result<Vec<_>>>()?;
        let judge = self.judge(&network, &inputs)?;
        let mut curves = Vec::new();
        for (index, gate) in gates.iter().enumerate() {
            let branch = self.branch(&self.spec.blocks[index], weights)?;
            let curve = gate.map(|gate| {
                let evidence = self.evidence(&branch, &inputs)?;
                let read = self.sort(&branch, evidence, weights)?;
                let lost = |groups: usize| {
                    let thinned = self.alone(&branch, &read, (gate, groups), weights)?;
                    anyhow::Ok((groups, judge.lost(&self.network(&thinned)?, index, &inputs)?))
                };
                let points = levels::of(gate.groups).into_iter().map(lost).collect::<Result<_>>()?;
                anyhow::Ok(Curve::new(gate.groups, points))
            });
            curves.push(curve.transpose()?);
            on(&branch, &mut inputs)?;
            see((index + 1) as f64 / gates.len() as f64);
        }
        Ok(curves)
    }

    /// The weights with one block thinned to its first groups, the rest of the network as it is.
    fn alone(
        &self,
        branch: &Branch<'_>,
        read: &[Read],
        (gate, groups): (&ChannelGateSpec, usize),
        weights: &Tensors,
    ) -> Result<Tensors> {
        let (mut thinned, kept) = (weights.clone(), groups * gate.group_size);
        for (space, Read { moments, ridge }) in branch.spaces.iter().zip(read) {
            let mut reader = branch.reader(space, weights)?;
            reader.drop_inputs(kept);
            reader.matrix = solve(moments, &reader, kept, *ridge)?;
            reader.store(&mut thinned)?;
        }
        branch.mask(gate.point, kept, &mut thinned)?;
        Ok(thinned)
    }

    /// On what the convolution behind each space of channels reads, and what it makes of that.
    fn evidence(&self, branch: &Branch<'_>, inputs: &[Map]) -> Result<Vec<Evidence>> {
        let mut all: Vec<Evidence> = Vec::new();
        for (number, map) in inputs.iter().enumerate() {
            let inner = branch.inner(map)?;
            for (i, space) in branch.spaces.iter().enumerate() {
                let sampling = Sampling { conv: &branch.block.convs[space.end], seed: number as u64 };
                let rows = sampling.features(&self.maps.leave(&inner[space.end - 1])?)?;
                if all.len() == i {
                    all.push(Evidence::new(rows.columns()));
                }
                all[i].add(number, &rows, None);
            }
        }
        Ok(all)
    }

    /// Puts the channels that are removed last in front, in weights and in what is read.
    fn sort(&self, branch: &Branch<'_>, evidence: Vec<Evidence>, weights: &mut Tensors) -> Result<Vec<Read>> {
        let mut read = Vec::new();
        for (space, mut evidence) in branch.spaces.iter().zip(evidence) {
            let reader = branch.reader(space, weights)?;
            evidence.want(&reader.matrix);
            // Half of the channels stand for any number of them.
            let (mut half, some) = (branch.reader(space, weights)?, reader.channels() / 2);
            half.drop_inputs(some);
            let ridge = best_ridge(&evidence, &half, some)?;
            let mut moments = evidence.fitted;
            let mut order = removal_order(&moments.gram, &reader, ridge)?;
            order.reverse();
            moments.sort(&order, reader.taps());
            branch.sort(space, &order, weights)?;
            read.push(Read { moments, ridge });
        }
        // The outputs of a reader have changed places too, where they are a space of their own.
        for (space, Read { moments, .. }) in branch.spaces.iter().zip(&mut read) {
            moments.want(&branch.reader(space, weights)?.matrix);
        }
        Ok(read)
    }

    /// Solves for the weights, block by block, on what the thinned network hands on.
    fn compensate(
        &self,
        gates: &[Option<&ChannelGateSpec>],
        groups: &[Option<usize>],
        weights: &mut Tensors,
        mut see: impl FnMut(f64),
    ) -> Result<()> {
        let network = self.network(weights)?;
        let taught = self.batches.iter().map(|batch| network.first_map(batch));
        let mut taught = taught.collect::<Result<Vec<_>>>()?;
        let judge = self.judge(&network, &taught)?;
        let mut thinned = taught.clone();
        for (index, block) in self.spec.blocks.iter().enumerate() {
            let teacher = self.branch(block, weights)?;
            let mut masked = weights.clone();
            if let (Some(gate), Some(groups)) = (gates[index], groups[index]) {
                let kept = groups * gate.group_size;
                teacher.mask(gate.point, kept, &mut masked)?;
                for space in &teacher.spaces {
                    let student = self.branch(block, &masked)?;
                    let evidence = self.on_thinned((&teacher, &taught), (&student, &thinned), space.end)?;
                    let mut start = teacher.reader(space, weights)?;
                    start.drop_inputs(kept);
                    let with = |moments: &Moments, ridge: f64| {
                        let mut reader = teacher.reader(space, weights)?;
                        reader.matrix = solve(moments, &start, kept, ridge)?;
                        let mut solved = weights.clone();
                        reader.store(&mut solved)?;
                        anyhow::Ok(solved)
                    };
                    // Where the block ends it is the answer that counts.
                    let ridge = match space.end + 1 == block.convs.len() {
                        true => least(|ridge| {
                            let mut solved = with(&evidence.fitted, ridge)?;
                            teacher.mask(gate.point, kept, &mut solved)?;
                            judge.lost(&self.network(&solved)?, index, &thinned)
                        })?,
                        false => best_ridge(&evidence, &start, kept)?,
                    };
                    *weights = with(&evidence.into_all(), ridge)?;
                    masked.clone_from(weights);
                    teacher.mask(gate.point, kept, &mut masked)?;
                }
            }
            let student = self.branch(block, &masked)?;
            on(&student, &mut thinned)?;
            on(&teacher, &mut taught)?;
            see((index + 1) as f64 / gates.len() as f64);
        }
        Ok(())
    }

    /// What convolution `reader` reads in the thinned network, and what it should make of it: what the teacher makes, and for
    /// the last one also what the stream has lost on its way.
    fn on_thinned(
        &self,
        (teacher, taught): (&Branch<'_>, &[Map]),
        (student, thinned): (&Branch<'_>, &[Map]),
        reader: usize,
    ) -> Result<Evidence> {
        let mut evidence: Option<Evidence> = None;
        for (number, (taught, thinned)) in taught.iter().zip(thinned).enumerate() {
            let sampling = Sampling { conv: &teacher.block.convs[reader], seed: number as u64 };
            let rows = sampling.features(&self.maps.leave(&student.inner(thinned)?[reader - 1])?)?;
            let mut wanted = sampling.values(&teacher.behind(taught, reader)?)?;
            if reader + 1 == teacher.block.convs.len() {
                let shortcuts = (teacher.shortcut(taught)?, student.shortcut(thinned)?);
                if let (Some(teacher), Some(student)) = shortcuts {
                    wanted.add(1.0, &sampling.values(&teacher)?);
                    wanted.add(-1.0, &sampling.values(&student)?);
                }
            }
            let evidence = evidence.get_or_insert_with(|| Evidence::new(rows.columns()));
            evidence.add(number, &rows, Some(&wanted));
        }
        evidence.context("no images")
    }
}

/// From what a block reads to what it hands on, map by map: two copies of all of them would need much memory.
fn on(branch: &Branch<'_>, maps: &mut [Map]) -> Result<()> {
    for map in maps {
        *map = branch.run(map)?;
    }
    Ok(())
}

/// Images and what the network answers.
struct Judge {
    /// By number of the batch.
    answers: Vec<(usize, Tensor)>,
    images: usize,
}

impl Judge {
    /// Mean Kullback–Leibler divergence of `network`'s answers from the right ones, where block `index` gets `inputs`.
    fn lost(&self, network: &MaskedNetwork, index: usize, inputs: &[Map]) -> Result<f64> {
        let mut sum = 0.0;
        for (number, answer) in &self.answers {
            sum += divergence(&network.logits_from(index, &inputs[*number])?, answer)?;
        }
        Ok(sum / self.images as f64)
    }
}

/// Sum over the images of the Kullback–Leibler divergence of the answers from the right ones.
fn divergence(logits: &Tensor, right: &Tensor) -> Result<f64> {
    let (logits, right) = (logits.to_dtype(DType::F64)?, right.to_dtype(DType::F64)?);
    let apart = (log_softmax(&right, 1)? - log_softmax(&logits, 1)?)?;
    Ok((softmax(&right, 1)? * apart)?.sum_all()?.to_scalar()?)
}
