//! The weights with which a convolution makes up for channels that it does without.

use anyhow::{Result, anyhow};
use faer::linalg::solvers::{Llt, Solve};
use faer::{Mat, MatRef, Side, unzip, zip};

use super::branch::Folded;
use super::moments::{Evidence, Moments};

/// Ridges that are tried, from the one that is taken where there are no images to judge by.
pub(super) const RIDGE: f64 = 1e-3;
const LARGEST_RIDGE: f64 = 20.0;
const SMALLEST_RIDGE: f64 = 5e-6;
/// Added where nothing else is, against zeros.
const LEAST: f64 = 1e-9;

/// The reader's matrix with the weights of its first `kept` channels (and its bias) such that it comes nearest to what is wanted.
/// `start` is where they stay without evidence; it has nothing for the other channels. `ridge` says how much evidence it takes:
/// it is added to the diagonal of the moments, as a share of the diagonal's mean. The bias needs none.
pub(super) fn solve(
    Moments { gram, cross, .. }: &Moments,
    start: &Folded<'_>,
    kept: usize,
    ridge: f64,
) -> Result<Mat<f64>> {
    let columns = columns(gram, start, kept);
    let ridge = diagonal(gram, ridge);
    let weights = &columns[..kept * start.taps()];
    let mut wanted = rows(cross.as_ref(), &columns);
    for (row, &from) in weights.iter().enumerate() {
        zip!(wanted.row_mut(row), start.matrix.row(from)).for_each(|unzip!(to, start)| *to += ridge * start);
    }
    let solved = factor(pick(gram.as_ref(), &columns, &columns), ridge, weights.len())?.solve(&wanted);
    let mut out = start.matrix.clone();
    for (from, &to) in columns.iter().enumerate() {
        out.row_mut(to).copy_from(solved.row(from));
    }
    Ok(out)
}

/// The ridge with which weights fitted to some images compute best what is wanted on others: the more a convolution reads and
/// the fewer images there are, the more it takes.
pub(super) fn best_ridge(evidence: &Evidence, start: &Folded<'_>, kept: usize) -> Result<f64> {
    let Evidence { fitted, judged } = evidence;
    if judged.is_empty() {
        return Ok(RIDGE);
    }
    let columns = columns(&judged.gram, start, kept);
    let gram = pick(judged.gram.as_ref(), &columns, &columns);
    let cross = rows(judged.cross.as_ref(), &columns);
    // Mean square of what is missing, but for a constant.
    least(|ridge| {
        let weights = rows(solve(fitted, start, kept, ridge)?.as_ref(), &columns);
        let computed = &gram * &weights;
        let pairs = (0..weights.ncols()).flat_map(|o| (0..weights.nrows()).map(move |i| (i, o)));
        Ok(pairs.map(|at| weights[at] * (computed[at] - 2.0 * cross[at])).sum())
    })
}

/// The ridge with which `missing` is least: that gets smaller and smaller and then larger, in one of the two directions.
pub(super) fn least(mut missing: impl FnMut(f64) -> Result<f64>) -> Result<f64> {
    let mut best = (missing(RIDGE)?, RIDGE);
    for factor in [10.0, 0.1] {
        let mut ridge = RIDGE * factor;
        while (SMALLEST_RIDGE..=LARGEST_RIDGE).contains(&ridge) {
            let next = missing(ridge)?;
            if next >= best.0 {
                break;
            }
            best = (next, ridge);
            ridge *= factor;
        }
        if best.1 != RIDGE {
            break;
        }
    }
    Ok(best.1)
}

/// Rows of the reader's matrix that are solved for.
fn columns(gram: &Mat<f64>, start: &Folded<'_>, kept: usize) -> Vec<usize> {
    let ones = gram.ncols() - 1;
    (0..kept * start.taps()).chain(start.has_bias().then_some(ones)).collect()
}

/// What a ridge adds to the diagonal of `gram`, whose last column is of ones.
pub(super) fn diagonal(gram: &Mat<f64>, ridge: f64) -> f64 {
    let columns = gram.ncols() - 1;
    let mean = (0..columns).map(|i| gram[(i, i)]).sum::<f64>() / columns.max(1) as f64;
    (mean * ridge).max(LEAST)
}

/// With `more` on the first `count` places of the diagonal.
pub(super) fn factor(mut gram: Mat<f64>, more: f64, count: usize) -> Result<Llt<f64>> {
    for i in 0..gram.ncols() {
        gram[(i, i)] += if i < count { more } else { LEAST };
    }
    gram.llt(Side::Lower).map_err(|e| anyhow!("second moments that are not positive definite ({e:?})"))
}

pub(super) fn pick(of: MatRef<'_, f64>, rows: &[usize], columns: &[usize]) -> Mat<f64> {
    Mat::from_fn(rows.len(), columns.len(), |i, j| of[(rows[i], columns[j])])
}

pub(super) fn rows(of: MatRef<'_, f64>, rows: &[usize]) -> Mat<f64> {
    Mat::from_fn(rows.len(), of.ncols(), |i, j| of[(rows[i], j)])
}

#[cfg(test)]
mod tests {
    use super::super::examples::{best_without, inputs, reader};
    use super::super::moments::Rows;
    use super::*;
    use crate::random::Random;

    fn evidence(fitted: (&Mat<f64>, &Mat<f64>), judged: (&Mat<f64>, &Mat<f64>)) -> Evidence {
        let mut evidence = Evidence::new(fitted.0.ncols());
        for (batch, (x, y)) in [fitted, judged].into_iter().enumerate() {
            evidence.add(batch, &Rows::of(x), Some(&Rows::of(y)));
        }
        evidence
    }

    #[test]
    fn what_is_kept_comes_as_near_as_it_can() {
        let (conv, weights) = reader(1);
        let mut reader = Folded::load(&conv, &weights).unwrap();
        let x = inputs(5, 400);
        let y = &x * &reader.matrix;
        let all = evidence((&x, &y), (&x, &y)).into_all();
        let same = solve(&all, &reader, 5, RIDGE).unwrap();
        assert!((same - &reader.matrix).norm_l2() < 1e-2, "with all channels nothing changes");
        reader.drop_inputs(3);
        let got = solve(&all, &reader, 3, RIDGE).unwrap();
        let missing = |matrix: &Mat<f64>| (&x * matrix - &y).squared_norm_l2() / 400.0;
        let (left, best, before) =
            (missing(&got), best_without(&x, &y, &[0, 1, 2, 5]), missing(&reader.matrix));
        assert!(
            left >= best - 1e-6 && left <= 1.02 * best && before > 1.5 * best,
            "{before}, {left}, {best}"
        );
        assert!((0..3).all(|o| got[(3, o)] == 0.0 && got[(4, o)] == 0.0));
    }

    #[test]
    fn little_evidence_takes_a_larger_ridge() {
        let (conv, weights) = reader(3);
        let reader = Folded::load(&conv, &weights).unwrap();
        let mut random = Random::new(3);
        let other = Mat::from_fn(46, 3, |_, _| 0.5 * random.normal());
        let mut of = |rows: usize| {
            let x = inputs(45, rows);
            let mut y = &x * (&reader.matrix + &other);
            let noise = y.norm_l2() / (3.0 * rows as f64).sqrt();
            (0..3).for_each(|o| y.col_mut(o).iter_mut().for_each(|y| *y += noise * random.normal() + 7.0));
            (x, y)
        };
        let (few, many, others) = (of(60), of(6000), of(2000));
        let best = |fitted: &(Mat<f64>, Mat<f64>)| {
            let evidence = evidence((&fitted.0, &fitted.1), (&others.0, &others.1));
            let ridge = best_ridge(&evidence, &reader, 5).unwrap();
            let missing = |ridge: f64| {
                (&others.0 * solve(&evidence.fitted, &reader, 5, ridge).unwrap() - &others.1).norm_l2()
            };
            assert!([0.1, 10.0].iter().all(|factor| missing(ridge) <= 1.0001 * missing(ridge * factor)));
            (ridge, missing(ridge) / missing(RIDGE))
        };
        let ((much, gained), (little, _)) = (best(&few), best(&many));
        assert!(much > 5.0 * little && gained < 0.9, "{much}, {little}, {gained}");
        let only = evidence((&few.0, &few.1), (&few.0, &few.1));
        let only = Evidence { judged: Evidence::new(46).judged, ..only };
        assert_eq!(best_ridge(&only, &reader, 5).unwrap(), RIDGE);
    }
}
