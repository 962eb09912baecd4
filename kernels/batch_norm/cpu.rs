//! batch_norm on the CPU: some rows at a time, so that they stay in the first-level cache, and of these 16 channels at a time,
//! so that their coefficients and sums stay in registers while the rows pass by.

use super::{Affine, Centre, GradCoefficients, Join, JoinGrad, Sums, check};
use crate::simd::{Simd, dispatch};
use crate::{Act, Element, Isa, Result};

/// Channels whose sums stay in registers.
const LANES: usize = 16;
/// Values of a map that stay in the first-level cache.
const VALUES: usize = 4096;

/// Values of as many rows of `c` channels.
#[inline(always)]
fn block(c: usize) -> usize {
    (VALUES / c).max(4) * c
}

/// [`Act::apply`] in a form that all vectors have.
#[inline(always)]
fn activate(x: f32, (low, high): (f32, f32)) -> f32 {
    let x = if x < low { low } else { x };
    if x > high { high } else { x }
}

/// Calls `$block::<N>(first channel, ...)` for all channels.
macro_rules! by_channels {
    ($c:expr, $block:ident($($arg:expr),* $(,)?)) => {{
        let c = $c;
        let mut at = 0;
        while at + LANES <= c {
            $block::<E, LANES>(at, $($arg),*);
            at += LANES;
        }
        while at < c {
            $block::<E, 1>(at, $($arg),*);
            at += 1;
        }
    }};
}

#[inline(always)]
fn take<const N: usize>(x: &[impl Element], at: usize) -> [f32; N] {
    std::array::from_fn(|i| x[at..at + N][i].to_f32())
}

#[inline(always)]
fn add<const N: usize>(to: &mut [f32], at: usize, values: [f32; N]) {
    to[at..at + N].iter_mut().zip(values).for_each(|(to, value)| *to += value);
}

/// Adds a sample's moments around a pivot.
///
/// # Errors
/// When sizes differ.
pub fn moments<E: Element>(isa: Isa, x: &[E], centre: Centre<'_>, sums: &mut Sums<'_>) -> Result<()> {
    let c = centre.mean.len();
    let channels = [centre.mean, centre.keep, sums.first, sums.second];
    check("batch_norm moments", c, x.len() / c.max(1), &channels, &[x.len()])?;
    moments_isa(isa, x, centre, sums);
    Ok(())
}

dispatch! {
    fn moments_isa<E>(x: &[E], centre: Centre<'_>, sums: &mut Sums<'_>) = moments_set
}

#[inline(always)]
fn moments_set<S: Simd, E: Element>(x: &[E], centre: Centre<'_>, sums: &mut Sums<'_>) {
    let c = centre.mean.len();
    for x in x.chunks(block(c)) {
        by_channels!(c, moments_block(x, centre, sums));
    }
}

#[inline(always)]
fn moments_block<E: Element, const N: usize>(at: usize, x: &[E], centre: Centre<'_>, sums: &mut Sums<'_>) {
    let (keep, mean) = (take::<N>(centre.keep, at), take::<N>(centre.mean, at));
    let (mut first, mut second) = ([0.0; N], [0.0; N]);
    for row in x.chunks_exact(centre.mean.len()) {
        let x = take::<N>(row, at);
        for i in 0..N {
            let v = x[i] * keep[i] - mean[i];
            first[i] += v;
            second[i] += v * v;
        }
    }
    add(sums.first, at, first);
    add(sums.second, at, second);
}

/// Normalises a sample, or a part of it.
///
/// # Errors
/// When sizes differ.
pub fn forward<E: Element>(isa: Isa, x: &[E], affine: Affine<'_>, act: Act, y: &mut [E]) -> Result<()> {
    let c = affine.scale.len();
    check("batch_norm", c, x.len() / c.max(1), &[affine.scale, affine.shift], &[x.len(), y.len()])?;
    forward_isa(isa, x, affine, act, y);
    Ok(())
}

dispatch! {
    fn forward_isa<E>(x: &[E], affine: Affine<'_>, act: Act, y: &mut [E]) = forward_set
}

#[inline(always)]
fn forward_set<S: Simd, E: Element>(x: &[E], affine: Affine<'_>, act: Act, y: &mut [E]) {
    let c = affine.scale.len();
    for (x, y) in x.chunks(block(c)).zip(y.chunks_mut(block(c))) {
        by_channels!(c, forward_block(x, affine, act, y));
    }
}

#[inline(always)]
fn forward_block<E: Element, const N: usize>(at: usize, x: &[E], affine: Affine<'_>, act: Act, y: &mut [E]) {
    let (scale, shift) = (take::<N>(affine.scale, at), take::<N>(affine.shift, at));
    let c = affine.scale.len();
    for (row, y) in x.chunks_exact(c).zip(y.chunks_exact_mut(c)) {
        let x = take::<N>(row, at);
        let y = &mut y[at..at + N];
        for i in 0..N {
            y[i] = E::from_f32(activate(x[i] * scale[i] + shift[i], act.range()));
        }
    }
}

/// Takes the gradient `grad` of a sample's output back through the activation, in place, and adds its sums. `affine` has
/// the mask folded in.
///
/// # Errors
/// When sizes differ.
pub fn grad_sums<E: Element>(
    isa: Isa,
    x: &[E],
    (affine, act): (Affine<'_>, Act),
    centre: Centre<'_>,
    grad: &mut [f32],
    sums: &mut Sums<'_>,
) -> Result<()> {
    let c = affine.scale.len();
    let channels = [affine.scale, affine.shift, centre.mean, centre.keep, sums.first, sums.second];
    check("batch_norm gradient", c, x.len() / c.max(1), &channels, &[x.len(), grad.len()])?;
    grad_sums_isa(isa, x, affine, act, centre, grad, sums);
    Ok(())
}

dispatch! {
    fn grad_sums_isa<E>(
        x: &[E], affine: Affine<'_>, act: Act, centre: Centre<'_>, grad: &mut [f32], sums: &mut Sums<'_>,
    ) = grad_sums_set
}

#[inline(always)]
fn grad_sums_set<S: Simd, E: Element>(
    x: &[E],
    affine: Affine<'_>,
    act: Act,
    centre: Centre<'_>,
    grad: &mut [f32],
    sums: &mut Sums<'_>,
) {
    let c = affine.scale.len();
    for (x, grad) in x.chunks(block(c)).zip(grad.chunks_mut(block(c))) {
        by_channels!(c, grad_sums_block(x, affine, act, centre, grad, sums));
    }
}

#[inline(always)]
fn grad_sums_block<E: Element, const N: usize>(
    at: usize,
    x: &[E],
    affine: Affine<'_>,
    act: Act,
    centre: Centre<'_>,
    grad: &mut [f32],
    sums: &mut Sums<'_>,
) {
    let (scale, shift) = (take::<N>(affine.scale, at), take::<N>(affine.shift, at));
    let (keep, mean) = (take::<N>(centre.keep, at), take::<N>(centre.mean, at));
    let (mut first, mut second) = ([0.0; N], [0.0; N]);
    let (low, high) = act.range();
    let c = affine.scale.len();
    for (row, grad) in x.chunks_exact(c).zip(grad.chunks_exact_mut(c)) {
        let x = take::<N>(row, at);
        let grad = &mut grad[at..at + N];
        for i in 0..N {
            let y = x[i] * scale[i] + shift[i];
            let g = if y > low && y < high { grad[i] } else { 0.0 };
            grad[i] = g;
            first[i] += g;
            second[i] += g * (x[i] * keep[i] - mean[i]);
        }
    }
    add(sums.first, at, first);
    add(sums.second, at, second);
}

/// Takes a gradient back through the normalisation of a sample; `dkeep [c]` is added to.
///
/// # Errors
/// When sizes differ.
pub fn grad<E: Element>(
    isa: Isa,
    (x, g): (&[E], &[f32]),
    coefficients: GradCoefficients<'_>,
    keep: &[f32],
    dx: &mut [E],
    dkeep: &mut [f32],
) -> Result<()> {
    let c = keep.len();
    let channels = [keep, coefficients.a, coefficients.b, coefficients.d, dkeep];
    check("batch_norm gradient", c, x.len() / c.max(1), &channels, &[x.len(), g.len(), dx.len()])?;
    grad_isa(isa, x, g, coefficients, keep, dx, dkeep);
    Ok(())
}

dispatch! {
    fn grad_isa<E>(
        x: &[E], g: &[f32], coefficients: GradCoefficients<'_>, keep: &[f32], dx: &mut [E], dkeep: &mut [f32],
    ) = grad_set
}

#[inline(always)]
fn grad_set<S: Simd, E: Element>(
    x: &[E],
    g: &[f32],
    coefficients: GradCoefficients<'_>,
    keep: &[f32],
    dx: &mut [E],
    dkeep: &mut [f32],
) {
    let c = keep.len();
    for ((x, g), dx) in x.chunks(block(c)).zip(g.chunks(block(c))).zip(dx.chunks_mut(block(c))) {
        by_channels!(c, grad_block(x, g, coefficients, keep, dx, dkeep));
    }
}

#[inline(always)]
fn grad_block<E: Element, const N: usize>(
    at: usize,
    x: &[E],
    g: &[f32],
    coefficients: GradCoefficients<'_>,
    keep: &[f32],
    dx: &mut [E],
    dkeep: &mut [f32],
) {
    let c = keep.len();
    let GradCoefficients { a, b, d } = coefficients;
    let (a, b, d, keep) = (take::<N>(a, at), take::<N>(b, at), take::<N>(d, at), take::<N>(keep, at));
    let mut sum = [0.0; N];
    for ((x, g), dx) in x.chunks_exact(c).zip(g.chunks_exact(c)).zip(dx.chunks_exact_mut(c)) {
        let (x, g) = (take::<N>(x, at), take::<N>(g, at));
        let dx = &mut dx[at..at + N];
        for i in 0..N {
            let dv = g[i] * a[i] + x[i] * keep[i] * b[i] + d[i];
            sum[i] += dv * x[i];
            dx[i] = E::from_f32(dv * keep[i]);
        }
    }
    add(dkeep, at, sum);
}

/// Adds branch and shortcut of a sample.
///
/// # Errors
/// When sizes differ.
pub fn join<E: Element>(isa: Isa, join: &Join<'_, E>, y: &mut [E]) -> Result<()> {
    let (c, rows) = (join.affine.scale.len(), join.weight.len());
    let shortcut = join.shortcut.map_or(y.len(), <[E]>::len);
    let channels = [join.affine.scale, join.affine.shift];
    check("residual sum", c, rows, &channels, &[join.x.len(), y.len(), shortcut])?;
    join_isa(isa, join, y);
    Ok(())
}

dispatch! {
    fn join_isa<E>(join: &Join<'_, E>, y: &mut [E]) = join_set
}

#[inline(always)]
fn join_set<S: Simd, E: Element>(join: &Join<'_, E>, y: &mut [E]) {
    let c = join.affine.scale.len();
    for (i, (x, y)) in join.x.chunks(block(c)).zip(y.chunks_mut(block(c))).enumerate() {
        let start = i * block(c);
        let weight = &join.weight[start / c..][..y.len() / c];
        let shortcut = join.shortcut.map(|shortcut| &shortcut[start..][..y.len()]);
        let join = Join { x, weight, shortcut, ..*join };
        by_channels!(c, join_block(&join, y));
    }
}

#[inline(always)]
fn join_block<E: Element, const N: usize>(at: usize, join: &Join<'_, E>, y: &mut [E]) {
    let &Join { x, affine, weight, shortcut, act } = join;
    let (scale, shift) = (take::<N>(affine.scale, at), take::<N>(affine.shift, at));
    let c = affine.scale.len();
    let rows = x.chunks_exact(c).zip(y.chunks_exact_mut(c)).zip(weight).enumerate();
    for (row, ((x, y), &weight)) in rows {
        let x = take::<N>(x, at);
        let y = &mut y[at..at + N];
        let shortcut = shortcut.map_or([0.0; N], |shortcut| take::<N>(shortcut, row * c + at));
        for i in 0..N {
            let sum = weight * (x[i] * scale[i] + shift[i]) + shortcut[i];
            y[i] = E::from_f32(activate(sum, act.range()));
        }
    }
}

/// Takes the gradient of a sample's residual sum back to shortcut, branch and spatial mask. The join's `affine` has the
/// channel mask folded in; its shortcut is not read.
///
/// # Errors
/// When sizes differ.
pub fn join_grad<E: Element>(isa: Isa, call: JoinGrad<'_, E>, sums: &mut Sums<'_>) -> Result<()> {
    let (c, rows) = (call.join.affine.scale.len(), call.join.weight.len());
    let (affine, centre) = (call.join.affine, call.centre);
    let channels = [affine.scale, affine.shift, centre.mean, centre.keep, sums.first, sums.second];
    let maps = [call.join.x.len(), call.y.len(), call.dy.len(), call.g.len(), call.dweight.len() * c];
    check("residual sum gradient", c, rows, &channels, &maps)?;
    call.dweight.fill(0.0);
    join_grad_isa(isa, call, sums);
    Ok(())
}

dispatch! {
    fn join_grad_isa<E>(call: JoinGrad<'_, E>, sums: &mut Sums<'_>) = join_grad_set
}

#[inline(always)]
fn join_grad_set<S: Simd, E: Element>(call: JoinGrad<'_, E>, sums: &mut Sums<'_>) {
    let JoinGrad { join, y, dy, centre, g, dweight } = call;
    let c = join.affine.scale.len();
    let (some, rows) = (block(c), block(c) / c);
    let maps = join.x.chunks(some).zip(y.chunks(some)).zip(dy.chunks_mut(some).zip(g.chunks_mut(some)));
    let weights = join.weight.chunks(rows).zip(dweight.chunks_mut(rows));
    for (((x, y), (dy, g)), (weight, dweight)) in maps.zip(weights) {
        let join = Join { x, weight, ..join };
        let mut call = JoinGrad { join, y, dy, centre, g, dweight };
        by_channels!(c, join_grad_block(&mut call, sums));
    }
}

#[inline(always)]
fn join_grad_block<E: Element, const N: usize>(at: usize, call: &mut JoinGrad<'_, E>, sums: &mut Sums<'_>) {
    let Join { x, affine, weight, act, .. } = &call.join;
    let (scale, shift) = (take::<N>(affine.scale, at), take::<N>(affine.shift, at));
    let (keep, mean) = (take::<N>(call.centre.keep, at), take::<N>(call.centre.mean, at));
    let (mut first, mut second) = ([0.0; N], [0.0; N]);
    let (low, high) = act.range();
    let c = affine.scale.len();
    let rows = x.chunks_exact(c).zip(call.y.chunks_exact(c)).zip(*weight).zip(call.dweight.iter_mut());
    let grads = call.dy.chunks_exact_mut(c).zip(call.g.chunks_exact_mut(c));
    for ((((x, y), &weight), dweight), (dy, g)) in rows.zip(grads) {
        let (x, y) = (take::<N>(x, at), take::<N>(y, at));
        let (dy, g) = (&mut dy[at..at + N], &mut g[at..at + N]);
        let mut products = [0.0; N];
        for i in 0..N {
            let shortcut = if y[i] > low && y[i] < high { dy[i] } else { 0.0 };
            dy[i] = shortcut;
            products[i] = shortcut * (x[i] * scale[i] + shift[i]);
            let branch = shortcut * weight;
            g[i] = branch;
            first[i] += branch;
            second[i] += branch * (x[i] * keep[i] - mean[i]);
        }
        *dweight += halves(products);
    }
    add(sums.first, at, first);
    add(sums.second, at, second);
}

/// Sum, in an order that vectors like.
#[inline(always)]
fn halves<const N: usize>(mut values: [f32; N]) -> f32 {
    let mut n = N;
    while n > 1 {
        n /= 2;
        for i in 0..n {
            values[i] += values[i + n];
        }
    }
    values[0]
}
