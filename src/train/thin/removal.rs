//! Which channels a convolution can do without.

use anyhow::{Context, Result};
use faer::Mat;
use faer::linalg::solvers::{DenseSolveCore, Solve};

use super::branch::Folded;
use super::solve::{diagonal, factor, pick, rows};

/// Rounds in which channels are removed.
const ROUNDS: usize = 16;

/// A reader's input channels in the order in which they are removed: always the one whose removal, made up for by all that are
/// left, changes the reader's outputs least. `gram` is of columns `(channel, tap)` and a last one of ones, `ridge` as for
/// [`solve`](super::solve::solve).
///
/// What is left is solved anew in every round. In between one channel after the other goes from those that matter least at the
/// round's start, with what its removal changes for the rest of those: of two that say the same only one goes.
pub(super) fn removal_order(gram: &Mat<f64>, reader: &Folded<'_>, ridge: f64) -> Result<Vec<usize>> {
    let taps = reader.taps();
    let ones = gram.ncols() - 1;
    let channels = ones / taps;
    let wanted = gram * &reader.matrix;
    let ridge = diagonal(gram, ridge);
    let columns = |of: &[usize]| -> Vec<usize> { of.iter().flat_map(|c| c * taps..(c + 1) * taps).collect() };
    let mut alive: Vec<usize> = (0..channels).collect();
    let mut order = Vec::with_capacity(channels);
    while alive.len() > 1 {
        let some: Vec<usize> = columns(&alive).into_iter().chain([ones]).collect();
        let inverse = factor(pick(gram.as_ref(), &some, &some), ridge, some.len() - 1)?.inverse();
        let weights = &inverse * rows(wanted.as_ref(), &some);
        let scores = (0..alive.len()).map(|at| lost(&inverse, &weights, at, taps));
        let scores = scores.collect::<Result<Vec<_>>>()?;
        let mut places: Vec<usize> = (0..alive.len()).collect();
        places.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]));
        let now = channels.div_ceil(ROUNDS).min(alive.len() - 1);
        places.truncate(2 * now);
        let some = columns(&places);
        let mut inverse = pick(inverse.as_ref(), &some, &some);
        let mut weights = rows(weights.as_ref(), &some);
        for _ in 0..now {
            let scores = (0..places.len()).map(|at| lost(&inverse, &weights, at, taps));
            let scores = scores.collect::<Result<Vec<_>>>()?;
            let least = (0..places.len()).min_by(|&a, &b| scores[a].total_cmp(&scores[b]));
            let at = least.context("a channel that is left")?;
            order.push(alive[places[at]]);
            let kept: Vec<usize> = (0..places.len()).filter(|other| *other != at).collect();
            let (kept, own) = (columns(&kept), columns(&[at]));
            let across = pick(inverse.as_ref(), &kept, &own);
            let block = factor(pick(inverse.as_ref(), &own, &own), 0.0, own.len())?;
            weights = rows(weights.as_ref(), &kept) - &across * block.solve(rows(weights.as_ref(), &own));
            inverse = pick(inverse.as_ref(), &kept, &kept) - &across * block.solve(across.transpose());
            places.remove(at);
        }
        alive.retain(|channel| !order.contains(channel));
    }
    order.extend(alive);
    Ok(order)
}

/// By how much the mean square of the reader's outputs changes without the channel `at`, made up for by the others whose inverse
/// moments and weights these are.
fn lost(inverse: &Mat<f64>, weights: &Mat<f64>, at: usize, taps: usize) -> Result<f64> {
    let own = inverse.as_ref().submatrix(at * taps, at * taps, taps, taps).to_owned();
    let weights = weights.as_ref().subrows(at * taps, taps);
    let solved = factor(own, 0.0, taps)?.solve(weights);
    Ok((0..weights.ncols()).map(|o| (0..taps).map(|t| weights[(t, o)] * solved[(t, o)]).sum::<f64>()).sum())
}

#[cfg(test)]
mod tests {
    use super::super::examples::{best_without, inputs, means, reader};
    use super::super::solve::RIDGE;
    use super::*;

    #[test]
    fn the_channel_goes_that_the_others_make_up_for_best() {
        for kernel in [1, 3] {
            let taps = kernel * kernel;
            let (conv, weights) = reader(kernel);
            let reader = Folded::load(&conv, &weights).unwrap();
            let x = inputs(5 * taps, 400);
            let y = &x * &reader.matrix;
            let order = removal_order(&means(&x, &x), &reader, RIDGE).unwrap();
            let mut alive: Vec<usize> = (0..5).collect();
            for gone in &order[..4] {
                let without = |channel: usize| {
                    let left = alive.iter().filter(|c| **c != channel).flat_map(|c| c * taps..(c + 1) * taps);
                    best_without(&x, &y, &left.chain([5 * taps]).collect::<Vec<_>>())
                };
                let best = alive.iter().map(|&c| without(c)).fold(f64::INFINITY, f64::min);
                assert!(without(*gone) <= 1.05 * best, "{gone} of {alive:?}, kernel {kernel}");
                alive.retain(|c| c != gone);
            }
            assert_eq!(order[4..], alive);
        }
    }

    #[test]
    fn nothing_to_read_is_no_error() {
        let (conv, weights) = reader(1);
        let reader = Folded::load(&conv, &weights).unwrap();
        assert_eq!(removal_order(&Mat::zeros(6, 6), &reader, RIDGE).unwrap().len(), 5);
    }
}
