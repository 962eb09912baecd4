//! Convolutions in a row: the way back.

use anyhow::Result;
use laud_kernels::batch_norm::{GradCoefficients, Join, JoinGrad, Sums, forward, grad, grad_sums, join_grad};
use laud_kernels::{Act, Element};
use rayon::prelude::*;

use super::chain::{Added, Chain, Inputs, Normed, Saved, Source, cell};
use super::shelf::{Buffer, Shelf};
use super::unit::{Filter, Unit};
use super::work::{Work, Workers, samples, samples_summed};

/// Weights whose pieces are summed together.
const SUMMED: usize = 1 << 14;

/// Which gradients are wanted.
#[derive(Clone, Copy)]
pub(super) struct Wanted {
    pub(super) x: bool,
    pub(super) params: bool,
    /// The filters' among the parameters'; else zeros.
    pub(super) filters: bool,
    /// The decisions'; else zeros.
    pub(super) keep: bool,
}

impl Wanted {
    pub(super) fn any(self) -> bool {
        self.x || self.params || self.keep
    }
}

/// Gradients of a chain's arguments.
pub(super) struct Grads {
    /// `[n, h, w, c]`, where it was asked for.
    pub(super) x: Option<Buffer<f32>>,
    /// Where they were asked for.
    pub(super) params: Option<Vec<f32>>,
    /// As the decisions.
    pub(super) keep: Vec<f32>,
}

/// A gradient behind a unit's normalisation, and its sums over the batch.
struct Behind {
    /// `[n, h, w, c]`.
    g: Buffer<f32>,
    first: Vec<f32>,
    second: Vec<f32>,
}

impl Behind {
    /// From the sums of the pieces, `[2, c]` each.
    fn new(g: Buffer<f32>, pieces: &[f32], c: usize) -> Self {
        let total =
            |at: usize| pieces.chunks_exact(2 * c).map(|sums| f64::from(sums[at])).sum::<f64>() as f32;
        Self { g, first: (0..c).map(total).collect(), second: (c..2 * c).map(total).collect() }
    }

    /// Writes the gradients of the normalisation's parameters and gives the coefficients of its input's.
    fn coefficients<E>(&self, unit: &Unit, normed: &Normed<E>, params: &mut [f32]) -> [Vec<f32>; 3] {
        let c = self.first.len();
        if let Some(at) = unit.gamma_at {
            let gammas = self.second.iter().zip(&normed.inv_std).map(|(sum, inv)| sum * inv);
            params[at..at + c].iter_mut().zip(gammas).for_each(|(to, gamma)| *to += gamma);
        }
        if let Some(at) = unit.beta_at {
            params[at..at + c].iter_mut().zip(&self.first).for_each(|(to, beta)| *to += beta);
        }
        let (mut b, mut d) = (vec![0.0; c], vec![0.0; c]);
        if normed.of_batch {
            let m = normed.rows as f32;
            for i in 0..c {
                let (scale, inv) = (normed.scale[i], normed.inv_std[i]);
                b[i] = -scale * inv * inv * self.second[i] / m;
                d[i] = -scale * self.first[i] / m - b[i] * normed.mean[i];
            }
        }
        [normed.scale.clone(), b, d]
    }
}

/// Where a unit's input gradient goes.
enum Target<'a, E> {
    /// Through the activation of the unit before: its gradient and the sums of that.
    Before(&'a Normed<E>, Act),
    /// Added to the chain's input gradient.
    Input,
    /// Nowhere.
    Unused,
}

impl Chain {
    /// Gradients, from that of the output `y`.
    pub(super) fn backward<E: Element>(
        &self,
        inputs: Inputs<'_, E>,
        saved: &Saved<E>,
        (y, dy): (&[E], Buffer<f32>),
        wanted: Wanted,
    ) -> Result<Grads> {
        let (spatial, channel) = self.decisions(inputs.n);
        let mut keep = vec![0.0; (spatial + channel).max(1)];
        let mut params = vec![0.0; self.params()];
        let last = self.units.len() - 1;
        let (added, mut behind) = self.through_join(inputs, saved, (y, dy), &mut keep[..spatial])?;
        let (mut dx, added) = self.shortcut_grad(inputs, added, wanted.x);
        for index in (0..=last).rev() {
            let (unit, normed) = (&self.units[index], &saved.normed[index]);
            let before = (index > 0).then(|| (&saved.normed[index - 1], self.units[index - 1].act));
            let target = match before {
                Some((normed, act)) => Target::Before(normed, act),
                None if wanted.x => Target::Input,
                None => Target::Unused,
            };
            let len = unit.input_len();
            let mut to = match target {
                Target::Before(..) => Some(Shelf::any(&inputs.workers.shelf, inputs.n * len)),
                Target::Input => dx.take(),
                Target::Unused => None,
            };
            let source = Source { unit, before };
            let back = UnitBack { source, normed, behind: &behind, target, filters: wanted.filters };
            let (dkeep, sums) = back.run(inputs, &mut params, to.as_deref_mut())?;
            if let Some(groups) = self.link.groups.filter(|groups| groups.meets(index, last)) {
                for (to, kept) in keep[spatial..].iter_mut().zip(dkeep.chunks_exact(groups.size)) {
                    *to += kept.iter().sum::<f32>();
                }
            }
            match (index, to) {
                (0, to) => dx = to,
                (_, Some(to)) => behind = Behind::new(to, &sums, unit.geometry.c_in),
                (_, None) => {}
            }
        }
        if let (Some(unit), Some(normed), Some(added)) = (&self.projection, saved.normed.get(last + 1), added)
        {
            let inputs = inputs.of_all();
            let behind = through_norm(inputs, unit, normed, added)?;
            let target = if wanted.x { Target::Input } else { Target::Unused };
            let source = Source { unit, before: None };
            let back = UnitBack { source, normed, behind: &behind, target, filters: wanted.filters };
            back.run(inputs, &mut params, dx.as_deref_mut())?;
        }
        if !wanted.keep {
            keep.fill(0.0);
        }
        Ok(Grads { x: dx, params: wanted.params.then_some(params), keep })
    }

    /// Back through the residual sum: the shortcut's gradient and the branch's; `dkeep` gets the spatial decisions'.
    fn through_join<E: Element>(
        &self,
        inputs: Inputs<'_, E>,
        saved: &Saved<E>,
        (y, mut added): (&[E], Buffer<f32>),
        dkeep: &mut [f32],
    ) -> Result<(Buffer<f32>, Behind)> {
        let Inputs { workers, n, .. } = inputs;
        let (unit, last) = (self.last(), &saved.normed[self.units.len() - 1]);
        let (len, c, per) = (unit.output_len(), unit.geometry.c_out, samples(n));
        let grid = self.link.grid;
        let cells = grid.map_or(1, |grid| grid.h * grid.w);
        let mut g = Shelf::any(&workers.shelf, n * len);
        let mut sums = vec![0.0f32; n.div_ceil(per) * 2 * c];
        let mut dcells = vec![0.0; n * cells];
        workers.install(|| {
            let maps = added.par_chunks_mut(per * len).zip(g.par_chunks_mut(per * len));
            let rest = sums.par_chunks_mut(2 * c).zip(dcells.par_chunks_mut(per * cells));
            maps.zip(rest).enumerate().try_for_each(|(piece, ((added, g), (sums, dcells)))| {
                workers.with(|work| {
                    let (first, second) = sums.split_at_mut(c);
                    let samples = added.chunks_exact_mut(len).zip(g.chunks_exact_mut(len));
                    for (i, ((dy, g), dcells)) in samples.zip(dcells.chunks_exact_mut(cells)).enumerate() {
                        let i = piece * per + i;
                        let Work { weight, scale, dots, .. } = work;
                        self.spatial_mask(inputs.keep, i, weight);
                        dots.resize(weight.len(), 0.0);
                        // Of a branch that was not computed; its weight is 0.
                        let x =
                            if inputs.computes(i) { last.sample(i, len) } else { &y[i * len..(i + 1) * len] };
                        let affine = last.affine(i, scale);
                        let call = JoinGrad {
                            join: Join { x, affine, weight, shortcut: None, act: self.link.act },
                            y: &y[i * len..(i + 1) * len],
                            dy,
                            centre: last.centre(i),
                            g,
                            dweight: dots,
                        };
                        join_grad(workers.isa, call, &mut Sums { first, second })?;
                        if let Some(grid) = grid {
                            let map = unit.output_map();
                            dots.iter().enumerate().for_each(|(p, dot)| dcells[cell(p, grid, map)] += dot);
                        }
                    }
                    Ok::<_, anyhow::Error>(())
                })
            })
        })?;
        if grid.is_some() {
            dkeep.copy_from_slice(&dcells);
        }
        Ok((added, Behind::new(g, &sums, c)))
    }

    /// What the shortcut alone gives the input, where it is wanted, and what is left for the projection.
    fn shortcut_grad<E: Element>(
        &self,
        inputs: Inputs<'_, E>,
        added: Buffer<f32>,
        wanted: bool,
    ) -> (Option<Buffer<f32>>, Option<Buffer<f32>>) {
        let unit = &self.units[0];
        let (c, len) = (unit.geometry.c_in, unit.input_len());
        let zeros = || wanted.then(|| Shelf::zeros(&inputs.workers.shelf, inputs.n * len));
        match self.link.shortcut {
            Added::Input => (wanted.then_some(added), None),
            Added::Nothing => (zeros(), None),
            Added::Projection => (zeros(), Some(added)),
            Added::Padded { stride, before } => {
                let (out, c_out) = (self.last().output_map(), self.last().geometry.c_out);
                let mut dx = zeros();
                for (i, dx) in dx.iter_mut().flat_map(|dx| dx.chunks_exact_mut(len)).enumerate() {
                    let sample = &added[i * out.h * out.w * c_out..][..out.h * out.w * c_out];
                    for (p, from) in sample.chunks_exact(c_out).enumerate() {
                        let to = p / out.w * stride * unit.input.w + p % out.w * stride;
                        dx[to * c..(to + 1) * c].copy_from_slice(&from[before..before + c]);
                    }
                }
                (dx, None)
            }
        }
    }
}

/// Back to a normalisation without activation, whose output's gradient is `g`.
fn through_norm<E: Element>(
    inputs: Inputs<'_, E>,
    unit: &Unit,
    normed: &Normed<E>,
    mut g: Buffer<f32>,
) -> Result<Behind> {
    let Inputs { workers, n, .. } = inputs;
    let (len, c, per) = (unit.output_len(), unit.geometry.c_out, samples(n));
    let mut sums = vec![0.0f32; n.div_ceil(per) * 2 * c];
    workers.install(|| {
        let pieces = g.par_chunks_mut(per * len).zip(sums.par_chunks_mut(2 * c)).enumerate();
        pieces.try_for_each(|(piece, (g, sums))| {
            workers.with(|work| {
                for (i, g) in g.chunks_exact_mut(len).enumerate() {
                    norm_sums(workers, normed, (piece * per + i, Act::None), g, sums, work)?;
                }
                Ok(())
            })
        })
    })?;
    Ok(Behind::new(g, &sums, c))
}

/// Takes the gradient of sample `i` back through an activation, in place, and adds its sums `[2, c]`.
fn norm_sums<E: Element>(
    workers: &Workers<E>,
    normed: &Normed<E>,
    (i, act): (usize, Act),
    g: &mut [f32],
    sums: &mut [f32],
    work: &mut Work<E>,
) -> Result<()> {
    let (first, second) = sums.split_at_mut(normed.mean.len());
    let affine = normed.affine(i, &mut work.scale);
    let x = normed.sample(i, g.len());
    Ok(grad_sums(workers.isa, x, (affine, act), normed.centre(i), g, &mut Sums { first, second })?)
}

/// Takes the gradient `g` of `keep · y` back to `y`, in place, and adds the mask's.
fn through_mask(g: &mut [f32], y: &[impl Element], keep: &[f32], dkeep: &mut [f32]) {
    let c = keep.len();
    for (g, y) in g.chunks_exact_mut(c).zip(y.chunks_exact(c)) {
        for ((g, y), (keep, dkeep)) in g.iter_mut().zip(y).zip(keep.iter().zip(&mut *dkeep)) {
            *dkeep += *g * y.to_f32();
            *g *= keep;
        }
    }
}

/// The way back through one unit.
struct UnitBack<'a, E> {
    source: Source<'a, E>,
    normed: &'a Normed<E>,
    behind: &'a Behind,
    target: Target<'a, E>,
    /// Whether the filters' gradient is wanted.
    filters: bool,
}

impl<E: Element> UnitBack<'_, E> {
    /// Adds to `params` and `to`, the target's; gives the gradient of a channel mask, that behind the activation of the unit
    /// before `[n, c_in]` where there is one, else this unit's `[n, c_out]`, and the sums of what is in `to`.
    fn run(
        &self,
        inputs: Inputs<'_, E>,
        params: &mut [f32],
        to: Option<&mut [f32]>,
    ) -> Result<(Vec<f32>, Vec<f32>)> {
        let Inputs { workers, n, .. } = inputs;
        let unit = self.source.unit;
        let g = &unit.geometry;
        let (len, per) = (unit.input_len(), samples_summed(n, g.weights()));
        let coefficients = self.behind.coefficients(unit, self.normed, params);
        let filter = match self.target {
            Target::Unused => None,
            _ => Some(workers.install(|| unit.back_filter(workers.isa, inputs.params))?),
        };
        // Nobody reads it where the target is unused.
        let (mut unused, len) = (vec![0.0; n], if to.is_some() { len } else { 1 });
        let to = to.unwrap_or(&mut unused);
        let pieces = n.div_ceil(per);
        let mut weights = Shelf::any(&workers.shelf, pieces * g.weights());
        let mut dkeep = vec![0.0f32; n * g.c_out];
        let mut dkeep_before = vec![0.0f32; n * g.c_in];
        let mut sums = vec![0.0f32; pieces * 2 * g.c_in];
        workers.install(|| {
            let keeps = dkeep.par_chunks_mut(per * g.c_out).zip(dkeep_before.par_chunks_mut(per * g.c_in));
            let outputs = to.par_chunks_mut(per * len).zip(keeps);
            let partial = weights.par_chunks_mut(g.weights()).zip(sums.par_chunks_mut(2 * g.c_in));
            outputs.zip(partial).enumerate().try_for_each(|(piece, ((to, keeps), (weights, sums)))| {
                weights.fill(0.0);
                workers.with(|work| {
                    let keeps = keeps.0.chunks_exact_mut(g.c_out).zip(keeps.1.chunks_exact_mut(g.c_in));
                    for (i, (to, (dkeep, dkeep_before))) in to.chunks_exact_mut(len).zip(keeps).enumerate() {
                        let i = piece * per + i;
                        if !inputs.computes(i) {
                            continue;
                        }
                        let there =
                            self.input_grad(inputs, &coefficients, i, weights, dkeep, filter.as_ref(), work)?;
                        match self.target {
                            Target::Input if there => {
                                to.iter_mut().zip(&work.map).for_each(|(to, grad)| *to += grad.to_f32());
                            }
                            Target::Before(..) if !there => to.fill(0.0),
                            Target::Before(before, act) => {
                                to.iter_mut().zip(&work.map).for_each(|(to, grad)| *to = grad.to_f32());
                                if let Some(keep) = before.kept_behind(i) {
                                    let affine = before.affine(i, &mut work.scale);
                                    forward(workers.isa, before.sample(i, len), affine, act, &mut work.map)?;
                                    through_mask(to, &work.map, keep, dkeep_before);
                                }
                                norm_sums(workers, before, (i, act), to, sums, work)?;
                            }
                            _ => {}
                        }
                    }
                    work.summing.finish(workers.isa, weights)?;
                    Ok::<_, anyhow::Error>(())
                })
            })
        })?;
        let (total, others) = weights.split_at_mut(g.weights());
        workers.install(|| {
            total.par_chunks_mut(SUMMED).enumerate().for_each(|(i, total)| {
                for piece in others.chunks_exact(g.weights()) {
                    let piece = &piece[i * SUMMED..][..total.len()];
                    total.iter_mut().zip(piece).for_each(|(total, piece)| *total += piece);
                }
            });
            unit.add_weight_grad(total, params);
        });
        let masked = matches!(self.target, Target::Before(before, _) if before.mask.behind.is_some());
        Ok((if masked { dkeep_before } else { dkeep }, sums))
    }

    /// Sample `i`: adds to the weights' gradient, puts the input's gradient into `work.map`; false where that is zero or
    /// not wanted.
    #[expect(clippy::too_many_arguments, reason = "one step of `run`")]
    fn input_grad(
        &self,
        inputs: Inputs<'_, E>,
        [a, b, d]: &[Vec<f32>; 3],
        i: usize,
        weights: &mut [f32],
        dkeep: &mut [f32],
        filter: Option<&Filter<E>>,
        work: &mut Work<E>,
    ) -> Result<bool> {
        let (unit, isa) = (self.source.unit, inputs.workers.isa);
        let len = unit.output_len();
        let g = &self.behind.g[i * len..(i + 1) * len];
        // With the batch's statistics every sample moves every other.
        if !self.normed.of_batch && g.iter().all(|g| *g == 0.0) {
            return Ok(false);
        }
        let mut dz = std::mem::take(&mut work.grad);
        dz.resize(len, E::from_f32(0.0));
        let z = self.normed.sample(i, len);
        grad(isa, (z, g), GradCoefficients { a, b, d }, self.normed.kept(i), &mut dz, dkeep)?;
        if self.filters {
            self.source.fill(isa, inputs.x, i, work)?;
            unit.weight_grad(isa, (work.bordered.values(), &dz), &mut work.summing, weights)?;
        }
        if let Some(filter) = filter {
            unit.spread(&dz, &mut work.spread);
            work.backward(isa, filter)?;
        }
        work.grad = dz;
        Ok(filter.is_some())
    }
}
