//! [`Regression`]: time from amounts of work with coefficients that are not negative, and boosted trees on what they
//! leave over.

use serde::{Deserialize, Serialize};

use super::boost::{Boosted, Growth, Guess, Guesses};
use super::nnls;
use super::terms::Features;
use crate::Result;
use crate::random::Random;

/// One measurement, as the regression sees it.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// Amounts of work, each with a time a unit.
    pub(crate) terms: Vec<f64>,
    /// What the rest may depend on.
    pub(crate) features: Vec<f64>,
    /// Measured time.
    pub(crate) ns: f64,
}

/// How to fit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Settings {
    pub(crate) growth: Growth,
    /// Share of held-out measurements that the intervals are to hold.
    pub(crate) coverage: f64,
    /// Index of the term that is not part of the work: something the measuring session added. The residual is about the
    /// rest.
    pub(crate) session: Option<usize>,
}

/// `ns = (terms · coefficients) · exp(residual(features))`; a session's term is added to that.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Regression {
    pub(crate) coefficients: Vec<f64>,
    residual: Boosted,
    /// Factor on the residual that did best on held-out folds.
    trust: f64,
    /// Typical absolute error of the logarithm, on held-out folds.
    error: f64,
    /// The interval is this many times the expected error wide, to either side.
    width: f64,
}

/// Below this number of measurements the terms are all there is.
const FEWEST: usize = 40;
const FOLDS: usize = 4;

impl Regression {
    /// Fits rows of one length. Errors and intervals come from measurements that were held out.
    pub(crate) fn fit(rows: &[Row], settings: &Settings) -> Result<Self> {
        let mut whole = Self::without_errors(rows, settings)?;
        let order = Random::new(settings.growth.seed).permutation(rows.len());
        let mut held_out: Vec<(f64, Guess)> = Vec::new();
        if rows.len() >= 2 * FOLDS {
            for fold in 0..FOLDS {
                let part = |inside: bool| {
                    let of = move |(at, _): &(usize, &usize)| (at % FOLDS == fold) == inside;
                    order.iter().enumerate().filter(of).map(|(_, &i)| rows[i].clone()).collect::<Vec<_>>()
                };
                let model = Self::without_errors(&part(false), settings)?;
                held_out.extend(part(true).iter().map(|row| {
                    let (left, _) = model.left_over(row, settings.session);
                    (left, model.residual.predict(&narrow(&row.features)))
                }));
            }
        }
        whole.judge(&held_out, settings.coverage);
        Ok(whole)
    }

    fn without_errors(rows: &[Row], settings: &Settings) -> Result<Self> {
        let amounts: Vec<(Vec<f64>, f64)> = rows.iter().map(|row| (row.terms.clone(), row.ns)).collect();
        let coefficients = nnls::relative(&amounts);
        let residual = Boosted::default();
        let mut model = Self { coefficients, residual, trust: 1.0, error: 0.0, width: 1.0 };
        if rows.len() >= FEWEST {
            let features: Vec<Vec<f64>> = rows.iter().map(|row| row.features.clone()).collect();
            let (targets, weights): (Vec<f64>, Vec<f64>) =
                rows.iter().map(|row| model.left_over(row, settings.session)).unzip();
            model.residual = Boosted::fit(&features, &targets, &weights, &settings.growth)?;
        }
        Ok(model)
    }

    /// Sets trust, error and width from pairs of what was left over and what was guessed.
    fn judge(&mut self, held_out: &[(f64, Guess)], coverage: f64) {
        let (product, square) = held_out.iter().fold((0.0, 0.0), |(product, square), (left, guess)| {
            (product + left * guess.mean, square + guess.mean * guess.mean)
        });
        self.trust = if square > 0.0 { (product / square).clamp(0.0, 1.0) } else { 0.0 };
        let mut errors: Vec<f64> =
            held_out.iter().map(|(left, guess)| (left - self.trust * guess.mean).abs()).collect();
        self.error = quantile(&mut errors, 0.5).unwrap_or(0.5);
        let mut ratios: Vec<f64> = held_out
            .iter()
            .map(|(left, guess)| (left - self.trust * guess.mean).abs() / self.expected_error(guess))
            .collect();
        self.width = quantile(&mut ratios, coverage).unwrap_or(3.0);
    }

    /// What the terms leave over of a measurement's logarithm, and how much that says.
    fn left_over(&self, row: &Row, session: Option<usize>) -> (f64, f64) {
        let added = session.map_or(0.0, |at| self.coefficients[at] * row.terms[at]);
        let work = (self.analytic(&row.terms) - added).max(f64::MIN_POSITIVE);
        // Where the session added most of the time, little is known about the work.
        let rest = (row.ns - added).max(0.2 * work);
        ((rest / work).ln().clamp(-3.0, 3.0), work / (work + added))
    }

    /// The terms' time.
    pub(crate) fn analytic(&self, terms: &[f64]) -> f64 {
        terms.iter().zip(&self.coefficients).map(|(amount, each)| amount * each).sum()
    }

    /// Logarithm of the factor on the terms' time, and its spread.
    pub(crate) fn residual(&self, features: &[f32]) -> Guess {
        self.trusted(self.residual.predict(features))
    }

    /// As [`residual`](Self::residual), for `len` at once, whose features `features` writes.
    pub(crate) fn residuals(&self, len: usize, features: impl FnMut(usize, &mut Features)) -> Guesses {
        let mut guesses = self.residual.predict_together(len, features);
        guesses.iter_mut().for_each(|guess| *guess = self.trusted(*guess));
        guesses
    }

    fn trusted(&self, Guess { mean, spread }: Guess) -> Guess {
        Guess { mean: mean * self.trust, spread: spread * self.trust }
    }

    /// Expected absolute error of the logarithm where the bags differ so much.
    pub(crate) fn expected_error(&self, guess: &Guess) -> f64 {
        self.error.max(1e-4) + guess.spread
    }

    /// Sets the typical error to at least `error`.
    pub(crate) fn widen(&mut self, error: f64) {
        self.error = self.error.max(error);
        self.width = self.width.max(2.0);
    }

    /// Half width of the interval around the logarithm.
    pub(crate) fn half_width(&self, guess: &Guess) -> f64 {
        self.width * self.expected_error(guess)
    }

    /// Checks what was read from a file for `terms` amounts.
    pub(crate) fn check(&self, terms: usize) -> Result<(), String> {
        if self.coefficients.len() != terms {
            return Err(format!("{} coefficients instead of {terms}", self.coefficients.len()));
        }
        let numbers = [("trust", self.trust), ("error", self.error), ("width", self.width)];
        let coefficients = self.coefficients.iter().map(|&each| ("coefficient", each));
        match coefficients.chain(numbers).find(|(_, value)| !(value.is_finite() && *value >= 0.0)) {
            Some((what, value)) => Err(format!("{what} {value} is not a number from 0 on")),
            None => Ok(()),
        }
    }
}

/// Features as the trees compare them.
pub(crate) fn narrow(features: &[f64]) -> Vec<f32> {
    features.iter().map(|&x| x as f32).collect()
}

/// The value that a share of all values does not exceed; `None` of nothing. Conservative: of n values the
/// ⌈share · (n + 1)⌉-th.
fn quantile(values: &mut [f64], share: f64) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let at = (share * (values.len() + 1) as f64).ceil() as usize;
    values.get(at.clamp(1, values.len().max(1)) - 1).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(session: Option<usize>) -> Settings {
        let growth = Growth {
            bags: 2,
            trees: 80,
            leaves: 8,
            depth: 5,
            columns: 0.5,
            learning_rate: 0.1,
            leaf: 3.0,
            seed: 5,
        };
        Settings { growth, coverage: 0.9, session }
    }

    /// Two terms, a factor that depends on a feature, noise of ±2 %.
    fn rows(n: usize, seed: u64) -> Vec<Row> {
        let mut random = Random::new(seed);
        (0..n)
            .map(|i| {
                let (a, b, x) = (random.unit() * 9.0 + 1.0, random.unit() * 5.0, random.unit());
                let factor = if x > 0.5 { 1.3 } else { 0.9 } * (1.0 + 0.04 * (random.unit() - 0.5));
                let line = i as f64 / n as f64;
                Row { terms: vec![a, b, line], features: vec![x, a, b], ns: (5.0 * a + 2.0 * b) * factor }
            })
            .collect()
    }

    #[test]
    fn finds_terms_and_factor_and_its_intervals_hold() {
        let model = Regression::fit(&rows(500, 1), &settings(None)).unwrap();
        let test = rows(300, 2);
        let (mut inside, mut error) = (0.0, 0.0);
        for row in &test {
            let guess = model.residual(&narrow(&row.features));
            let off = (model.analytic(&row.terms) * guess.mean.exp() / row.ns).ln().abs();
            error += off / test.len() as f64;
            inside += f64::from(u8::from(off <= model.half_width(&guess))) / test.len() as f64;
        }
        assert!(error < 0.05, "mean error {error}");
        assert!((0.82..=0.98).contains(&inside), "{inside} instead of 0.9");
    }

    #[test]
    fn what_the_session_added_is_told_apart_from_the_work() {
        let mut drifting = rows(500, 3);
        drifting.iter_mut().for_each(|row| row.ns += 40.0 * row.terms[2]);
        let model = Regression::fit(&drifting, &settings(Some(2))).unwrap();
        assert!((model.coefficients[2] - 40.0).abs() < 6.0, "{}", model.coefficients[2]);
    }

    #[test]
    fn few_measurements_make_a_model_of_terms_alone() {
        let model = Regression::fit(&rows(6, 4), &settings(None)).unwrap();
        assert_eq!(model.residual(&[0.1, 2.0, 3.0]), Guess::default());
        assert!(model.check(3).is_ok() && model.check(2).is_err());
    }
}
