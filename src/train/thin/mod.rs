//! Channel gates that start at their target, with weights that make up for what is dropped.
//!
//! Gates that start by keeping everything need thousands of steps to find out what can be dropped, and what is left has to learn
//! to do without it. Both have a closed form, block by block, on a few hundred images without labels: from the second moments of
//! what a convolution reads follow the channels that the others make up for best, and the weights with which they do. What that
//! costs the network's answer is measured, block by block and level by level, and every block gives up channels where a
//! multiply-accumulate less costs least.
//!
//! Removal with compensation: Hassibi, Stork, "Second order derivatives for network pruning: Optimal brain surgeon", 1992, for
//! a layer and its outputs (Frantar et al., "Optimal Brain Compression", 2022), whole channels at a time. Weights by least
//! squares on what the thinned network computes: He et al., "Channel Pruning for Accelerating Very Deep Neural Networks", 2017.

mod branch;
mod levels;
mod moments;
mod removal;

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
use moments::{Moments, Sampling};
use removal::{kept_alone, removal_order};

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
/// everything. `see` is told the share of the work that is done.
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
        let (mut judges, mut judged) = (0, 0);
        while judges < self.batches.len() && judged < JUDGED_IMAGES {
            judged += self.batches[judges].dim(0)?;
            judges += 1;
        }
        let answers = inputs[..judges].iter().map(|map| network.logits_from(0, map));
        let answers = answers.collect::<Result<Vec<_>>>()?;
        let mut curves = Vec::new();
        for (index, gate) in gates.iter().enumerate() {
            let branch = self.branch(&self.spec.blocks[index], weights)?;
            let curve = gate.map(|gate| {
                let mut moments = self.moments(&branch, &inputs)?;
                self.sort(&branch, &mut moments, weights)?;
                let lost = |groups: usize| {
                    let thinned = self.alone(&branch, &moments, (gate, groups), weights)?;
                    let network = self.network(&thinned)?;
                    let mut lost = 0.0;
                    for (map, answer) in inputs.iter().zip(&answers) {
                        lost += divergence(&network.logits_from(index, map)?, answer)?;
                    }
                    anyhow::Ok((groups, lost / judged as f64))
                };
                let points = levels::of(gate.groups).into_iter().map(lost).collect::<Result<_>>()?;
                anyhow::Ok(Curve::new(gate.groups, points))
            });
            curves.push(curve.transpose()?);
            inputs = inputs.iter().map(|map| branch.run(map)).collect::<Result<_>>()?;
            see((index + 1) as f64 / gates.len() as f64);
        }
        Ok(curves)
    }

    /// The weights with one block thinned to its first groups, the rest of the network as it is.
    fn alone(
        &self,
        branch: &Branch<'_>,
        moments: &[Moments],
        (gate, groups): (&ChannelGateSpec, usize),
        weights: &Tensors,
    ) -> Result<Tensors> {
        let (mut thinned, kept) = (weights.clone(), groups * gate.group_size);
        for (space, moments) in branch.spaces.iter().zip(moments) {
            let mut reader = branch.reader(space, weights)?;
            let wanted = &moments.gram * &reader.matrix;
            reader.drop_inputs(kept);
            reader.matrix = kept_alone(&moments.gram, &wanted, &reader, kept)?;
            reader.store(&mut thinned)?;
        }
        branch.mask(gate.point, kept, &mut thinned)?;
        Ok(thinned)
    }

    /// Of what the last convolution behind each space of channels reads.
    fn moments(&self, branch: &Branch<'_>, inputs: &[Map]) -> Result<Vec<Moments>> {
        let mut all: Vec<Moments> = Vec::new();
        for (number, map) in inputs.iter().enumerate() {
            let inner = branch.inner(map)?;
            for (i, space) in branch.spaces.iter().enumerate() {
                let sampling = Sampling { conv: &branch.block.convs[space.end], seed: number as u64 };
                let rows = sampling.features(&self.maps.leave(&inner[space.end - 1])?)?;
                if all.len() == i {
                    all.push(Moments::new(rows.columns()));
                }
                all[i].add(&rows, None);
            }
        }
        Ok(all)
    }

    /// Puts the channels that are removed last in front, in weights and moments.
    fn sort(&self, branch: &Branch<'_>, moments: &mut [Moments], weights: &mut Tensors) -> Result<()> {
        for (space, moments) in branch.spaces.iter().zip(moments) {
            let reader = branch.reader(space, weights)?;
            let mut order = removal_order(&moments.gram, &reader)?;
            order.reverse();
            moments.sort(&order, reader.taps());
            branch.sort(space, &order, weights)?;
        }
        Ok(())
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
        let mut thinned = taught.clone();
        for (index, block) in self.spec.blocks.iter().enumerate() {
            let teacher = self.branch(block, weights)?;
            let mut masked = weights.clone();
            if let (Some(gate), Some(groups)) = (gates[index], groups[index]) {
                let kept = groups * gate.group_size;
                teacher.mask(gate.point, kept, &mut masked)?;
                for space in &teacher.spaces {
                    let student = self.branch(block, &masked)?;
                    let moments = self.on_thinned((&teacher, &taught), (&student, &thinned), space.end)?;
                    let mut reader = teacher.reader(space, weights)?;
                    reader.drop_inputs(kept);
                    reader.matrix = kept_alone(&moments.gram, &moments.cross, &reader, kept)?;
                    reader.store(weights)?;
                    masked.clone_from(weights);
                    teacher.mask(gate.point, kept, &mut masked)?;
                }
            }
            let student = self.branch(block, &masked)?;
            thinned = thinned.iter().map(|map| student.run(map)).collect::<Result<_>>()?;
            taught = taught.iter().map(|map| teacher.run(map)).collect::<Result<_>>()?;
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
    ) -> Result<Moments> {
        let mut moments: Option<Moments> = None;
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
            let moments = moments.get_or_insert_with(|| Moments::new(rows.columns()));
            moments.add(&rows, Some(&wanted));
        }
        moments.context("no images")
    }
}

/// Sum over the images of the Kullback–Leibler divergence of the answers from the right ones.
fn divergence(logits: &Tensor, right: &Tensor) -> Result<f64> {
    let (logits, right) = (logits.to_dtype(DType::F64)?, right.to_dtype(DType::F64)?);
    let apart = (log_softmax(&right, 1)? - log_softmax(&logits, 1)?)?;
    Ok((softmax(&right, 1)? * apart)?.sum_all()?.to_scalar()?)
}
