//! Convolutions in a row and what is added behind the last: a residual block, or a single convolution. The way forward.

use anyhow::{Context, Result};
use laud_kernels::batch_norm::{Affine, Centre, Join, Sums, forward, join, moments};
use laud_kernels::{Act, Element, Isa};
use laud_models::{Activation, BlockSpec, ConvSpec, MapSize, MaskPoint, Shortcut};
use rayon::prelude::*;

use super::shelf::{Buffer, Shelf};
use super::unit::{Unit, act};
use super::work::{Work, Workers, samples};
use crate::train::Statistics;

/// What is behind the last convolution.
#[derive(Clone, Debug)]
pub(super) struct Link {
    pub(super) act: Act,
    pub(super) shortcut: Added,
    /// The spatial gate's grid.
    pub(super) grid: Option<MapSize>,
    pub(super) groups: Option<Groups>,
}

/// A channel gate's groups.
#[derive(Clone, Copy, Debug)]
pub(super) struct Groups {
    pub(super) count: usize,
    /// Channels of one.
    pub(super) size: usize,
    /// Where they are masked.
    point: MaskPoint,
}

impl Groups {
    /// Whether the way back through unit `index`, of which `last` is the last, meets a mask: the unit's own in front of its
    /// normalisation, or the one behind the activation of the unit before.
    pub(super) fn meets(self, index: usize, last: usize) -> bool {
        match self.point {
            MaskPoint::BeforeNorm => index < last,
            MaskPoint::AfterActivation => index > 0,
        }
    }
}

/// What is added to the branch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Added {
    Nothing,
    Input,
    /// Every `stride`-th pixel, behind `before` zero channels.
    Padded {
        stride: usize,
        before: usize,
    },
    /// The last link, of the input.
    Projection,
}

impl Link {
    /// Behind a single convolution with this activation.
    pub(super) fn plain(of: Activation) -> Self {
        Self { act: act(of), shortcut: Added::Nothing, grid: None, groups: None }
    }

    /// Of a residual block.
    pub(super) fn of(spec: &BlockSpec) -> Self {
        let groups = spec.gate.channel.as_ref().map(|gate| Groups {
            count: gate.groups,
            size: gate.group_size,
            point: gate.point,
        });
        let shortcut = match &spec.shortcut {
            Shortcut::None => Added::Nothing,
            Shortcut::Identity => Added::Input,
            &Shortcut::PadChannels { stride, before, .. } => Added::Padded { stride, before },
            Shortcut::Projection(_) => Added::Projection,
        };
        let grid = spec.gate.spatial.as_ref().map(|gate| gate.grid);
        Self { act: act(spec.act), shortcut, grid, groups }
    }

    /// Whether one decision a sample is all that masks.
    pub(super) fn is_layer(&self) -> bool {
        self.groups.is_none() && self.grid.is_some_and(|grid| grid.h * grid.w == 1)
    }
}

/// The chain on samples of one size.
#[derive(Clone, Debug)]
pub(super) struct Chain {
    /// The branch.
    pub(super) units: Vec<Unit>,
    pub(super) projection: Option<Unit>,
    pub(super) link: Link,
}

/// What one pass reads.
#[derive(Clone, Copy)]
pub(super) struct Inputs<'a, E> {
    pub(super) workers: &'a Workers<E>,
    pub(super) n: usize,
    pub(super) statistics: Statistics,
    /// The branch is computed for the samples alone whose only decision keeps it.
    pub(super) skips: bool,
    /// `[n, h, w, c]`.
    pub(super) x: &'a [E],
    pub(super) params: &'a [f32],
    /// Spatial decisions `[n, cells]`, then channel decisions `[n, groups]`.
    pub(super) keep: &'a [f32],
}

impl<E> Inputs<'_, E> {
    /// Whether the branch is computed for sample `i`.
    pub(super) fn computes(&self, i: usize) -> bool {
        !self.skips || self.keep[i] != 0.0
    }

    /// The same with every sample computed.
    pub(super) fn of_all(self) -> Self {
        Self { skips: false, ..self }
    }
}

/// A unit's output before normalisation, and how it is normalised.
pub(super) struct Normed<E> {
    /// `[n, h, w, c]`; anything for what is not computed.
    pub(super) z: Buffer<E>,
    pub(super) mean: Vec<f32>,
    pub(super) inv_std: Vec<f32>,
    pub(super) scale: Vec<f32>,
    pub(super) shift: Vec<f32>,
    pub(super) mask: Mask,
    /// Whether the statistics are the batch's.
    pub(super) of_batch: bool,
    /// Rows that are computed of the batch.
    pub(super) rows: usize,
}

/// A channel mask `[n, c]` on a unit's output.
pub(super) struct Mask {
    /// In front of the normalisation; ones where there is none.
    keep: Vec<f32>,
    /// Behind the activation.
    pub(super) behind: Option<Vec<f32>>,
}

/// What the way back needs: one entry a unit, the projection last.
pub(super) struct Saved<E> {
    pub(super) normed: Vec<Normed<E>>,
}

/// Mean and variance of each channel.
pub(super) type Moments = (Vec<f32>, Vec<f32>);

/// Mean and unbiased variance of a batch, and the share of the samples that they are of.
pub(super) type Batch = (Moments, f64);

/// Of every unit that was normalised with the batch's statistics, these.
pub(super) type Moved = Vec<Option<Batch>>;

impl<E> Normed<E> {
    /// The normalisation of sample `i`, its mask folded in.
    pub(super) fn affine<'a>(&'a self, i: usize, scale: &'a mut Vec<f32>) -> Affine<'a> {
        scale.clear();
        scale.extend(self.scale.iter().zip(self.kept(i)).map(|(scale, keep)| scale * keep));
        Affine { scale, shift: &self.shift }
    }

    pub(super) fn kept(&self, i: usize) -> &[f32] {
        let c = self.mean.len();
        &self.mask.keep[i * c..(i + 1) * c]
    }

    /// The mask of sample `i` behind the activation.
    pub(super) fn kept_behind(&self, i: usize) -> Option<&[f32]> {
        let c = self.mean.len();
        self.mask.behind.as_ref().map(|keep| &keep[i * c..(i + 1) * c])
    }

    pub(super) fn centre(&self, i: usize) -> Centre<'_> {
        Centre { keep: self.kept(i), mean: &self.mean }
    }

    /// Sample `i` before normalisation.
    pub(super) fn sample(&self, i: usize, len: usize) -> &[E] {
        &self.z[i * len..(i + 1) * len]
    }
}

impl Chain {
    /// `None` where a convolution is one that only candle computes. With a projection, it is the last of `specs`.
    pub(super) fn new(specs: &[&ConvSpec], input: MapSize, link: Link) -> Option<Self> {
        let projected = usize::from(link.shortcut == Added::Projection);
        let (branch, projection) = specs.split_at(specs.len() - projected);
        let mut units: Vec<Unit> = Vec::with_capacity(branch.len());
        for spec in branch {
            let (map, at) = units.last().map_or((input, 0), |unit| (unit.output_map(), unit.params_end));
            units.push(Unit::new(spec, map, at)?);
        }
        let at = units.last()?.params_end;
        let projection = match projection.first() {
            Some(spec) => Some(Unit::new(spec, input, at)?),
            None => None,
        };
        // The activation of the last unit is the link's; one of its own is candle's.
        let last = branch.last()?;
        let own = branch.len() > 1 || link.shortcut != Added::Nothing || link.grid.is_some();
        if own && last.act != Activation::None {
            return None;
        }
        Some(Self { units, projection, link })
    }

    /// All units, the projection last.
    pub(super) fn all(&self) -> impl Iterator<Item = &Unit> {
        self.units.iter().chain(&self.projection)
    }

    pub(super) fn params(&self) -> usize {
        self.all().last().map_or(0, |unit| unit.params_end)
    }

    pub(super) fn last(&self) -> &Unit {
        &self.units[self.units.len() - 1]
    }

    /// Decisions of a batch of `n`: spatial and channel.
    pub(super) fn decisions(&self, n: usize) -> (usize, usize) {
        let cells = self.link.grid.map_or(0, |grid| grid.h * grid.w);
        (n * cells, n * self.link.groups.map_or(0, |groups| groups.count))
    }

    /// The map behind the chain, `[n, h, w, c]`. `stored` has running mean and variance of each unit with a normalisation.
    pub(super) fn forward<E: Element>(
        &self,
        inputs: Inputs<'_, E>,
        stored: &[Option<Moments>],
    ) -> Result<(Buffer<E>, Saved<E>, Moved)> {
        let mut normed: Vec<Normed<E>> = Vec::with_capacity(self.units.len() + 1);
        let mut moved = Vec::with_capacity(self.units.len() + 1);
        for (index, unit) in self.all().enumerate() {
            let projects = index == self.units.len();
            let previous = if projects || index == 0 { None } else { normed.last() };
            let mask = self.channel_mask(inputs, unit, index);
            let stored = stored.get(index).context("stored statistics of every unit")?;
            let source = Source { unit, before: previous.map(|normed| (normed, self.units[index - 1].act)) };
            let seen = if projects { inputs.of_all() } else { inputs };
            let (this, batch) = source.forward(seen, mask, stored.as_ref())?;
            normed.push(this);
            moved.push(batch);
        }
        let saved = Saved { normed };
        let y = self.join(inputs, &saved)?;
        Ok((y, saved, moved))
    }

    fn channel_mask<E>(&self, inputs: Inputs<'_, E>, unit: &Unit, index: usize) -> Mask {
        let ones = || vec![1.0; inputs.n * unit.geometry.c_out];
        let Some(groups) = self.link.groups.filter(|_| index + 1 < self.units.len()) else {
            return Mask { keep: ones(), behind: None };
        };
        let decided = &inputs.keep[self.decisions(inputs.n).0..];
        let keep = decided.iter().flat_map(|&keep| std::iter::repeat_n(keep, groups.size)).collect();
        match groups.point {
            MaskPoint::BeforeNorm => Mask { keep, behind: None },
            MaskPoint::AfterActivation => Mask { keep: ones(), behind: Some(keep) },
        }
    }

    /// The spatial mask of sample `i` on the output's pixels.
    pub(super) fn spatial_mask(&self, keep: &[f32], i: usize, weight: &mut Vec<f32>) {
        let MapSize { h, w } = self.last().output_map();
        weight.clear();
        match self.link.grid {
            None => weight.resize(h * w, 1.0),
            Some(grid) => {
                let cells = &keep[i * grid.h * grid.w..][..grid.h * grid.w];
                weight.extend((0..h * w).map(|p| cells[cell(p, grid, MapSize { h, w })]));
            }
        }
    }

    fn join<E: Element>(&self, inputs: Inputs<'_, E>, saved: &Saved<E>) -> Result<Buffer<E>> {
        let Inputs { workers, n, .. } = inputs;
        let (unit, last) = (self.last(), &saved.normed[self.units.len() - 1]);
        let (len, per) = (unit.output_len(), samples(n));
        let mut y = Shelf::any(&workers.maps, n * len);
        workers.install(|| {
            y.par_chunks_mut(per * len).enumerate().try_for_each(|(piece, y)| {
                workers.with(|work| {
                    for (i, y) in y.chunks_exact_mut(len).enumerate() {
                        let i = piece * per + i;
                        self.spatial_mask(inputs.keep, i, &mut work.weight);
                        let shortcut = self.shortcut(inputs, saved, i, work)?;
                        let shortcut = match shortcut {
                            Lies::Nowhere => None,
                            Lies::InInput => Some(&inputs.x[i * len..(i + 1) * len]),
                            Lies::InMap => Some(&work.map[..]),
                        };
                        let join_of = Join {
                            // A branch that is not computed has weight 0.
                            x: shortcut.filter(|_| !inputs.computes(i)).unwrap_or(last.sample(i, len)),
                            affine: last.affine(i, &mut work.scale),
                            weight: &work.weight,
                            shortcut,
                            act: self.link.act,
                        };
                        join(workers.isa, &join_of, y)?;
                    }
                    Ok(())
                })
            })
        })?;
        Ok(y)
    }

    fn shortcut<E: Element>(
        &self,
        inputs: Inputs<'_, E>,
        saved: &Saved<E>,
        i: usize,
        work: &mut Work<E>,
    ) -> Result<Lies> {
        let unit = &self.units[0];
        let c = unit.geometry.c_in;
        match self.link.shortcut {
            Added::Nothing => Ok(Lies::Nowhere),
            Added::Input => Ok(Lies::InInput),
            Added::Padded { stride, before } => {
                let x = &inputs.x[i * unit.input_len()..][..unit.input_len()];
                let (out, c_out) = (self.last().output_map(), self.last().geometry.c_out);
                work.map.clear();
                work.map.resize(out.h * out.w * c_out, E::from_f32(0.0));
                for (p, to) in work.map.chunks_exact_mut(c_out).enumerate() {
                    let from = p / out.w * stride * unit.input.w + p % out.w * stride;
                    to[before..before + c].copy_from_slice(&x[from * c..(from + 1) * c]);
                }
                Ok(Lies::InMap)
            }
            Added::Projection => {
                let projected = saved.normed.last().context("a projection")?;
                let len = self.last().output_len();
                work.map.resize(len, E::from_f32(0.0));
                let affine = projected.affine(i, &mut work.shift);
                forward(inputs.workers.isa, projected.sample(i, len), affine, Act::None, &mut work.map)?;
                Ok(Lies::InMap)
            }
        }
    }
}

/// Where a sample's shortcut lies.
enum Lies {
    Nowhere,
    InInput,
    InMap,
}

/// The cell of pixel `p`.
pub(super) fn cell(p: usize, grid: MapSize, map: MapSize) -> usize {
    p / map.w * grid.h / map.h * grid.w + p % map.w * grid.w / map.w
}

/// A unit and where its input comes from.
pub(super) struct Source<'a, E> {
    pub(super) unit: &'a Unit,
    /// The unit before, or the chain's input.
    pub(super) before: Option<(&'a Normed<E>, Act)>,
}

impl<E: Element> Source<'_, E> {
    /// Puts the input of sample `i` into `work.bordered`.
    pub(super) fn fill(&self, isa: Isa, x: &[E], i: usize, work: &mut Work<E>) -> Result<()> {
        let unit = self.unit;
        let (len, line) = (unit.input_len(), unit.input.w * unit.geometry.c_in);
        let Work { bordered, scale, .. } = work;
        match self.before {
            None => {
                let x = &x[i * len..(i + 1) * len];
                unit.place(bordered, |y, to| {
                    to.copy_from_slice(&x[y * line..][..to.len()]);
                    Ok(())
                })
            }
            Some((before, act)) => {
                let (z, affine, keep) =
                    (before.sample(i, len), before.affine(i, scale), before.kept_behind(i));
                unit.place(bordered, |y, to| {
                    forward(isa, &z[y * line..][..to.len()], affine, act, to)?;
                    if let Some(keep) = keep {
                        for pixel in to.chunks_exact_mut(keep.len()) {
                            for (value, keep) in pixel.iter_mut().zip(keep) {
                                *value = E::from_f32(value.to_f32() * keep);
                            }
                        }
                    }
                    Ok(())
                })
            }
        }
    }

    fn forward(
        &self,
        inputs: Inputs<'_, E>,
        mask: Mask,
        stored: Option<&Moments>,
    ) -> Result<(Normed<E>, Option<Batch>)> {
        let Inputs { workers, n, params, .. } = inputs;
        let (unit, isa) = (self.unit, workers.isa);
        let (len, c, per) = (unit.output_len(), unit.geometry.c_out, samples(n));
        let filter = workers.install(|| unit.filter(isa, params))?;
        let computed = (0..n).filter(|&i| inputs.computes(i)).count();
        let summed = inputs.statistics != Statistics::Stored && stored.is_some() && computed > 0;
        let of_batch = summed && !inputs.statistics.are_stored();
        let zeros = vec![0.0; c];
        let pivot = stored.map_or(&zeros, |(mean, _)| mean);
        let mut z = Shelf::any(&workers.maps, n * len);
        let mut sums = vec![0.0f32; n.div_ceil(per) * 2 * c];
        workers.install(|| {
            let pieces = z.par_chunks_mut(per * len).zip(sums.par_chunks_mut(2 * c)).enumerate();
            pieces.try_for_each(|(piece, (z, sums))| {
                workers.with(|work| {
                    let (first, second) = sums.split_at_mut(c);
                    for (i, z) in z.chunks_exact_mut(len).enumerate() {
                        let i = piece * per + i;
                        if !inputs.computes(i) {
                            continue;
                        }
                        self.fill(isa, inputs.x, i, work)?;
                        work.forward(isa, &filter, z)?;
                        if summed {
                            let centre = Centre { keep: &mask.keep[i * c..(i + 1) * c], mean: pivot };
                            moments(isa, z, centre, &mut Sums { first, second })?;
                        }
                    }
                    Ok(())
                })
            })
        })?;
        let rows = computed * unit.geometry.output.pixels();
        let (gamma, beta) =
            (unit.channels(params, unit.gamma_at, 1.0), unit.channels(params, unit.beta_at, 0.0));
        let (mean, var, moved) = match stored {
            None => (zeros, vec![1.0; c], None),
            Some((mean, var)) if !summed => (mean.clone(), var.clone(), None),
            Some((stored_mean, stored_var)) => {
                let total = |at: usize| sums.chunks_exact(2 * c).map(|sums| f64::from(sums[at])).sum::<f64>();
                let m = rows as f64;
                let off: Vec<f64> = (0..c).map(|at| total(at) / m).collect();
                let var: Vec<f64> =
                    (0..c).map(|at| (total(c + at) / m - off[at] * off[at]).max(0.0)).collect();
                let mean: Vec<f32> =
                    pivot.iter().zip(&off).map(|(pivot, off)| (f64::from(*pivot) + off) as f32).collect();
                let unbiased = var.iter().map(|var| (var * m / (m - 1.0).max(1.0)) as f32).collect();
                let moved = ((mean.clone(), unbiased), computed as f64 / n as f64);
                match of_batch {
                    true => (mean, var.iter().map(|var| *var as f32).collect(), Some(moved)),
                    false => (stored_mean.clone(), stored_var.clone(), Some(moved)),
                }
            }
        };
        let eps = if stored.is_some() { unit.eps.unwrap_or(0.0) } else { 0.0 };
        let inv_std: Vec<f32> = var.iter().map(|var| 1.0 / (var + eps).sqrt()).collect();
        let scale: Vec<f32> = gamma.iter().zip(&inv_std).map(|(gamma, inv)| gamma * inv).collect();
        let shift = beta.iter().zip(&mean).zip(&scale).map(|((beta, mean), s)| beta - mean * s).collect();
        Ok((Normed { z, mean, inv_std, scale, shift, mask, of_batch, rows }, moved))
    }
}
