//! Second moments of what a convolution reads.

use anyhow::Result;
use candle_core::Tensor;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::{Accum, Mat, MatRef, get_global_parallelism, unzip, zip};
use laud_models::ConvSpec;

use super::solve::pick;
use crate::random::Random;

/// Output positions of an image that are looked at, at most.
const POSITIONS: usize = 128;

/// Every so many-th batch of images is one that weights are judged on.
const JUDGES: usize = 5;

/// Whether the images of this batch, of several, are those that weights are judged on instead of fitted to.
pub(super) fn judges(batch: usize) -> bool {
    batch % JUDGES == 1
}

/// Second moments over the images that weights are fitted to, and over those that they are judged on.
pub(super) struct Evidence {
    pub(super) fitted: Moments,
    pub(super) judged: Moments,
}

impl Evidence {
    pub(super) fn new(columns: usize) -> Self {
        Self { fitted: Moments::new(columns), judged: Moments::new(columns) }
    }

    /// Adds rows of a batch; see [`Moments::add`].
    pub(super) fn add(&mut self, batch: usize, rows: &Rows, wanted: Option<&Rows>) {
        let to = if judges(batch) { &mut self.judged } else { &mut self.fitted };
        to.add(rows, wanted);
    }

    /// See [`Moments::want`].
    pub(super) fn want(&mut self, matrix: &Mat<f64>) {
        self.fitted.want(matrix);
        self.judged.want(matrix);
    }

    /// Over all images.
    pub(super) fn into_all(mut self) -> Moments {
        let (fitted, judged) = (self.fitted.count as f64, self.judged.count as f64);
        let share = judged / (fitted + judged).max(1.0);
        let mix = |to: &mut Mat<f64>, from: &Mat<f64>| {
            zip!(to, from).for_each(|unzip!(to, from)| *to += share * (from - *to));
        };
        if judged > 0.0 {
            mix(&mut self.fitted.gram, &self.judged.gram);
            mix(&mut self.fitted.cross, &self.judged.cross);
        }
        self.fitted.count += self.judged.count;
        self.fitted
    }
}

/// Means over rows: of a convolution's inputs with one another, and with what it should compute.
pub(super) struct Moments {
    /// `[d, d]`.
    pub(super) gram: Mat<f64>,
    /// `[d, o]`; empty until there are wanted values.
    pub(super) cross: Mat<f64>,
    count: usize,
}

impl Moments {
    fn new(columns: usize) -> Self {
        Self { gram: Mat::zeros(columns, columns), cross: Mat::zeros(columns, 0), count: 0 }
    }

    /// Whether there are no rows.
    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Takes the mean over all rows so far and these, `[r, d]`, and over what is wanted of them, `[r, o]`.
    fn add(&mut self, rows: &Rows, wanted: Option<&Rows>) {
        let count = rows.matrix().nrows();
        self.count += count;
        let share = count as f64 / self.count as f64;
        let each = 1.0 / count as f64;
        let mix = |to: &mut Mat<f64>, product: &Mat<f32>| {
            zip!(to, product).for_each(|unzip!(to, sum)| *to += share * (each * f64::from(*sum) - *to));
        };
        let rows = rows.matrix();
        let columns = rows.ncols();
        // Of a product that is its own mirror image one half is enough.
        let mut product = Mat::<f32>::zeros(columns, columns);
        let (half, full) = (BlockStructure::TriangularLower, BlockStructure::Rectangular);
        triangular::matmul(
            &mut product,
            half,
            Accum::Replace,
            rows.transpose(),
            full,
            rows,
            full,
            1.0,
            get_global_parallelism(),
        );
        for j in 1..columns {
            for i in 0..j {
                product[(i, j)] = product[(j, i)];
            }
        }
        mix(&mut self.gram, &product);
        if let Some(wanted) = wanted {
            let product = rows.transpose() * wanted.matrix();
            if self.cross.ncols() == 0 {
                self.cross = Mat::zeros(columns, product.ncols());
            }
            mix(&mut self.cross, &product);
        }
    }

    /// What is wanted is what `matrix` makes of the rows.
    pub(super) fn want(&mut self, matrix: &Mat<f64>) {
        self.cross = &self.gram * matrix;
    }

    /// With channels, of `taps` columns each, in this order; nothing is wanted of them any more.
    pub(super) fn sort(&mut self, order: &[usize], taps: usize) {
        let last = self.gram.ncols() - 1;
        let columns: Vec<usize> = order.iter().flat_map(|c| c * taps..(c + 1) * taps).chain([last]).collect();
        self.gram = pick(self.gram.as_ref(), &columns, &columns);
        self.cross = Mat::zeros(last + 1, 0);
    }
}

/// Values `[r, d]`, row by row.
pub(super) struct Rows {
    values: Vec<f32>,
    columns: usize,
}

impl Rows {
    #[cfg(test)]
    pub(super) fn of(rows: &Mat<f64>) -> Self {
        let values = rows.row_iter().flat_map(|row| row.iter().map(|&x| x as f32).collect::<Vec<_>>());
        Self { values: values.collect(), columns: rows.ncols() }
    }

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
