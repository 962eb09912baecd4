//! Which channels a convolution can do without, and the weights with which it does.

use anyhow::{Context, Result, anyhow};
use faer::linalg::solvers::{DenseSolveCore, Solve};
use faer::{Mat, MatRef, Side};

use super::branch::Folded;

/// Rounds in which channels are removed.
const ROUNDS: usize = 16;
/// Added to the diagonal of second moments, as a share of its mean: what is learned from few images stays near what it was.
const RIDGE: f64 = 1e-3;

/// A reader's input channels in the order in which they are removed: always the one whose removal, made up for by all that are
/// left, changes the reader's outputs least. `gram` is of columns `(channel, tap)` and a last one of ones.
///
/// What is left is solved anew in every round. In between one channel after the other goes from those that matter least at the
/// round's start, with what its removal changes for the rest of those: of two that say the same only one goes.
pub(super) fn removal_order(gram: &Mat<f64>, reader: &Folded<'_>) -> Result<Vec<usize>> {
    let taps = reader.taps();
    let ones = gram.ncols() - 1;
    let channels = ones / taps;
    let wanted = gram * &reader.matrix;
    let ridge = ridge(gram, ones);
    let columns = |of: &[usize]| -> Vec<usize> { of.iter().flat_map(|c| c * taps..(c + 1) * taps).collect() };
    let mut alive: Vec<usize> = (0..channels).collect();
    let mut order = Vec::with_capacity(channels);
    while alive.len() > 1 {
        let some: Vec<usize> = columns(&alive).into_iter().chain([ones]).collect();
        let inverse = factor(pick(gram.as_ref(), &some, &some), ridge)?.inverse();
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
            let block = factor(pick(inverse.as_ref(), &own, &own), 0.0)?;
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
    let solved = factor(own, 0.0)?.solve(weights);
    Ok((0..weights.ncols()).map(|o| (0..taps).map(|t| weights[(t, o)] * solved[(t, o)]).sum::<f64>()).sum())
}

/// The reader's matrix with the weights of its first `kept` channels (and its bias) such that it comes nearest to what `cross`,
/// the moments of its inputs with what it should compute, asks for. `start` is where they stay without evidence; it has nothing
/// for the other channels.
pub(super) fn kept_alone(
    gram: &Mat<f64>,
    cross: &Mat<f64>,
    start: &Folded<'_>,
    kept: usize,
) -> Result<Mat<f64>> {
    let ones = gram.ncols() - 1;
    let columns: Vec<usize> = (0..kept * start.taps()).chain(start.has_bias().then_some(ones)).collect();
    let ridge = ridge(gram, ones);
    let wanted = rows(cross.as_ref(), &columns) + rows(start.matrix.as_ref(), &columns) * faer::Scale(ridge);
    let solved = factor(pick(gram.as_ref(), &columns, &columns), ridge)?.solve(&wanted);
    let mut out = start.matrix.clone();
    for (from, &to) in columns.iter().enumerate() {
        out.row_mut(to).copy_from(solved.row(from));
    }
    Ok(out)
}

fn ridge(gram: &Mat<f64>, columns: usize) -> f64 {
    let mean = (0..columns).map(|i| gram[(i, i)]).sum::<f64>() / columns.max(1) as f64;
    (mean * RIDGE).max(1e-9)
}

fn factor(mut gram: Mat<f64>, ridge: f64) -> Result<faer::linalg::solvers::Llt<f64>> {
    for i in 0..gram.ncols() {
        gram[(i, i)] += ridge;
    }
    gram.llt(Side::Lower).map_err(|e| anyhow!("second moments that are not positive definite ({e:?})"))
}

fn pick(of: MatRef<'_, f64>, rows: &[usize], columns: &[usize]) -> Mat<f64> {
    Mat::from_fn(rows.len(), columns.len(), |i, j| of[(rows[i], columns[j])])
}

fn rows(of: MatRef<'_, f64>, rows: &[usize]) -> Mat<f64> {
    Mat::from_fn(rows.len(), of.ncols(), |i, j| of[(rows[i], j)])
}

#[cfg(test)]
mod tests {
    use super::super::Tensors;
    use super::*;
    use crate::random::Random;
    use candle_core::{Device, Tensor};
    use laud_models::{Activation, ConvSpec, Padding};

    /// A 1×1 or 3×3 convolution of five channels to three.
    fn reader(kernel: usize) -> (ConvSpec, Tensors) {
        let conv = ConvSpec {
            weight: "w".into(),
            bias: Some("b".into()),
            norm: None,
            c_in: 5,
            c_out: 3,
            kernel,
            stride: 1,
            groups: 1,
            pad: Padding::default(),
            act: Activation::None,
        };
        let mut random = Random::new(1);
        let mut tensor = |shape: &[usize]| {
            let values: Vec<f32> = (0..shape.iter().product()).map(|_| random.normal() as f32).collect();
            Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
        };
        let weights =
            [("w".into(), tensor(&[3, 5, kernel, kernel])), ("b".into(), tensor(&[3]))].into_iter().collect();
        (conv, weights)
    }

    /// Correlated inputs and a one.
    fn inputs(columns: usize) -> Mat<f64> {
        let mut random = Random::new(2);
        let mixing = Mat::from_fn(columns, columns, |_, _| random.normal());
        let raw = Mat::from_fn(400, columns, |_, _| random.normal());
        let mixed = raw * mixing;
        Mat::from_fn(400, columns + 1, |i, j| if j < columns { mixed[(i, j)] } else { 1.0 })
    }

    fn moments(x: &Mat<f64>, y: &Mat<f64>) -> Mat<f64> {
        x.transpose() * y * faer::Scale(1.0 / x.nrows() as f64)
    }

    /// Mean squared distance of the best outputs of these columns alone, by QR instead of moments.
    fn best_without(x: &Mat<f64>, y: &Mat<f64>, columns: &[usize]) -> f64 {
        let some = Mat::from_fn(x.nrows(), columns.len(), |i, j| x[(i, columns[j])]);
        let best = faer::linalg::solvers::SolveLstsq::solve_lstsq(&some.qr(), y.as_ref());
        (&some * best - y).squared_norm_l2() / x.nrows() as f64
    }

    #[test]
    fn the_channel_goes_that_the_others_make_up_for_best() {
        for kernel in [1, 3] {
            let taps = kernel * kernel;
            let (conv, weights) = reader(kernel);
            let reader = Folded::load(&conv, &weights).unwrap();
            let x = inputs(5 * taps);
            let y = &x * &reader.matrix;
            let order = removal_order(&moments(&x, &x), &reader).unwrap();
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
    fn what_is_kept_comes_as_near_as_it_can() {
        let (conv, weights) = reader(1);
        let mut reader = Folded::load(&conv, &weights).unwrap();
        let x = inputs(5);
        let y = &x * &reader.matrix;
        reader.drop_inputs(3);
        let got = kept_alone(&moments(&x, &x), &moments(&x, &y), &reader, 3).unwrap();
        let left = (&x * &got - &y).squared_norm_l2() / 400.0;
        let (best, before) =
            (best_without(&x, &y, &[0, 1, 2, 5]), { (&x * &reader.matrix - &y).squared_norm_l2() / 400.0 });
        assert!(
            left >= best - 1e-9 && left <= 1.02 * best && before > 1.5 * best,
            "{before}, {left}, {best}"
        );
        assert!((0..3).all(|o| got[(3, o)] == 0.0 && got[(4, o)] == 0.0));
        let same = kept_alone(&moments(&x, &x), &moments(&x, &y), &Folded::load(&conv, &weights).unwrap(), 5);
        let start = Folded::load(&conv, &weights).unwrap().matrix;
        assert!((same.unwrap() - start).norm_l2() < 1e-6, "with all channels nothing changes");
    }

    #[test]
    fn nothing_to_read_is_no_error() {
        let (conv, weights) = reader(1);
        let reader = Folded::load(&conv, &weights).unwrap();
        assert_eq!(removal_order(&Mat::zeros(6, 6), &reader).unwrap().len(), 5);
    }
}
