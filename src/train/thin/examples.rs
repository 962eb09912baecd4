//! What the tests of this folder thin.

use candle_core::{Device, Tensor};
use faer::Mat;
use laud_models::{Activation, ConvSpec, Padding};

use super::Tensors;
use crate::random::Random;

/// A 1×1 or 3×3 convolution of five channels to three.
pub(super) fn reader(kernel: usize) -> (ConvSpec, Tensors) {
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

/// Rows of inputs, correlated the same whatever their number, and a one.
pub(super) fn inputs(columns: usize, rows: usize) -> Mat<f64> {
    let mut random = Random::new(2);
    let mixing = Mat::from_fn(columns, columns, |_, _| random.normal());
    let mut random = Random::new(rows as u64);
    let raw = Mat::from_fn(rows, columns, |_, _| random.normal());
    let mixed = raw * mixing;
    Mat::from_fn(rows, columns + 1, |i, j| if j < columns { mixed[(i, j)] } else { 1.0 })
}

/// Mean over rows of products.
pub(super) fn means(x: &Mat<f64>, y: &Mat<f64>) -> Mat<f64> {
    x.transpose() * y * faer::Scale(1.0 / x.nrows() as f64)
}

/// Mean squared distance of the best outputs of these columns alone, by QR instead of moments.
pub(super) fn best_without(x: &Mat<f64>, y: &Mat<f64>, columns: &[usize]) -> f64 {
    let some = Mat::from_fn(x.nrows(), columns.len(), |i, j| x[(i, columns[j])]);
    let best = faer::linalg::solvers::SolveLstsq::solve_lstsq(&some.qr(), y.as_ref());
    (&some * best - y).squared_norm_l2() / x.nrows() as f64
}
