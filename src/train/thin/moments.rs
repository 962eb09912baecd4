//! Second moments of what a convolution reads.

use anyhow::Result;
use candle_core::Tensor;
use faer::{Mat, MatRef};
use laud_models::ConvSpec;

use crate::random::Random;

/// Output positions of an image that are looked at, at most.
const POSITIONS: usize = 128;

/// Sums over rows: of a convolution's inputs with one another, and with what it should compute.
pub(super) struct Moments {
    /// `[d, d]`.
    pub(super) gram: Mat<f64>,
    /// `[d, o]`; empty until there are wanted values.
    pub(super) cross: Mat<f64>,
    count: usize,
}

impl Moments {
    pub(super) fn new(columns: usize) -> Self {
        Self { gram: Mat::zeros(columns, columns), cross: Mat::zeros(columns, 0), count: 0 }
    }

    /// Takes the mean over all rows so far and these, `[r, d]`, and over what is wanted of them, `[r, o]`.
    pub(super) fn add(&mut self, rows: &Rows, wanted: Option<&Rows>) {
        let count = rows.matrix().nrows();
        let before = self.count as f64 / (self.count + count) as f64;
        self.count += count;
        let share = 1.0 / self.count as f64;
        let mix = |to: &mut Mat<f64>, with: &Rows| {
            let product = rows.matrix().transpose() * with.matrix();
            if to.ncols() < product.ncols() {
                *to = Mat::zeros(product.nrows(), product.ncols());
            }
            for (to, more) in to.col_iter_mut().zip(product.col_iter()) {
                to.iter_mut()
                    .zip(more.iter())
                    .for_each(|(to, &more)| *to = before * *to + share * f64::from(more));
            }
        };
        mix(&mut self.gram, rows);
        if let Some(wanted) = wanted {
            mix(&mut self.cross, wanted);
        }
    }

    /// With channels, of `taps` columns each, in this order.
    pub(super) fn sort(&mut self, order: &[usize], taps: usize) {
        let last = self.gram.ncols() - 1;
        let columns: Vec<usize> = order.iter().flat_map(|c| c * taps..(c + 1) * taps).chain([last]).collect();
        self.gram = Mat::from_fn(last + 1, last + 1, |i, j| self.gram[(columns[i], columns[j])]);
    }
}

/// Values `[r, d]`, row by row.
pub(super) struct Rows {
    values: Vec<f32>,
    columns: usize,
}

impl Rows {
    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    fn matrix(&self) -> MatRef<'_, f32> {
        MatRef::from_row_major_slice(&self.values, self.values.len() / self.columns, self.columns)
    }

    /// Adds `factor` times the others.
    pub(super) fn add(&mut self, factor: f32, others: &Self) {
        self.values.iter_mut().zip(&others.values).for_each(|(value, other)| *value += factor * other);
    }
}

/// Rows of a convolution's matrix product, some of each image.
pub(super) struct Sampling<'a> {
    pub(super) conv: &'a ConvSpec,
    /// Which positions.
    pub(super) seed: u64,
}

impl Sampling<'_> {
    /// Sorted positions of image `number` of the batch among `pixels`.
    fn positions(&self, number: usize, pixels: usize) -> Vec<usize> {
        if pixels <= POSITIONS {
            return (0..pixels).collect();
        }
        let mut random = Random::named(self.seed << 16 | number as u64, "positions");
        let mut some = random.permutation(pixels);
        some.truncate(POSITIONS);
        some.sort_unstable();
        some
    }

    /// What the convolution reads of `map [n, c, h, w]`: `[r, c·k·k + 1]`, in the order of its filters, and a one.
    pub(super) fn features(&self, map: &Tensor) -> Result<Rows> {
        let (_, c, h, w) = map.dims4()?;
        let ConvSpec { kernel, stride, pad, .. } = *self.conv;
        let (out_h, out_w) = (
            (h + pad.top + pad.bottom - kernel) / stride + 1,
            (w + pad.left + pad.right - kernel) / stride + 1,
        );
        let values = map.flatten_all()?.to_vec1::<f32>()?;
        let mut rows = Vec::new();
        for (number, image) in values.chunks_exact(c * h * w).enumerate() {
            for position in self.positions(number, out_h * out_w) {
                let (top, left) = (position / out_w * stride, position % out_w * stride);
                for channel in image.chunks_exact(h * w) {
                    for y in top..top + kernel {
                        for x in left..left + kernel {
                            let inside =
                                (pad.top..pad.top + h).contains(&y) && (pad.left..pad.left + w).contains(&x);
                            rows.push(if inside { channel[(y - pad.top) * w + x - pad.left] } else { 0.0 });
                        }
                    }
                }
                rows.push(1.0);
            }
        }
        Ok(Rows { values: rows, columns: c * kernel * kernel + 1 })
    }

    /// A map `[n, c, h, w]` of the convolution's output size at the same positions: `[r, c]`.
    pub(super) fn values(&self, map: &Tensor) -> Result<Rows> {
        let (_, c, h, w) = map.dims4()?;
        let values = map.flatten_all()?.to_vec1::<f32>()?;
        let mut rows = Vec::new();
        for (number, image) in values.chunks_exact(c * h * w).enumerate() {
            for position in self.positions(number, h * w) {
                rows.extend(image.chunks_exact(h * w).map(|channel| channel[position]));
            }
        }
        Ok(Rows { values: rows, columns: c })
    }
}
