//! **mean_pool**: one mean per sample and channel. Classifier heads, channel gates and squeeze-excitation start here.
//!
//! With `c` the `j`-th active channel of sample `n`:
//!
//! ```text
//! output[n, j] = Σ_{p in rows} input[p, j] ÷ divisor
//! ```
//!
//! where [`Mean`] says which rows and which divisor. A sample without active rows gets zeros. Sums are f32 and always
//! in the same order: bits do not depend on the number of threads.
//!
//! **Layout.** Input rows of `c` values, natural or compact, `[n, c]` means; the `j`-th active channel lies at
//! position `j`, and what lies behind the active channels stays as it is.

pub(crate) mod cpu;
pub(crate) mod cuda;
#[cfg(test)]
mod tests;

pub use cpu::run;

use crate::error::require;
use crate::gather_gemm::Placement;
use crate::{Channels, Element, Error, Result, Rows};

/// What the mean is taken of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mean {
    /// The active rows.
    Active,
    /// All pixels, those that are not active counting as zero: only active rows are read.
    InactiveAsZero,
    /// All pixels of a sample with at least one active row: the caller guarantees that every row holds data. Natural
    /// placement only.
    AllPixels,
}

/// One call.
pub struct MeanPool<'a, T: ?Sized, V: ?Sized = [f32], R = Rows, C = Channels> {
    /// Active pixels.
    pub rows: &'a R,
    /// Channels to average.
    pub channels: &'a C,
    /// Activations, `[rows, c]`.
    pub input: &'a T,
    /// Where the input rows lie.
    pub input_rows: Placement,
    /// What the mean is taken of.
    pub mean: Mean,
    /// `[n, c]`.
    pub output: &'a mut V,
}

/// What shape errors show.
pub(crate) struct Shape<'a>(pub(crate) &'a Rows, pub(crate) &'a Channels);

impl std::fmt::Display for Shape<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self(rows, channels) = self;
        write!(f, "batch {}, {} pixels, {} channels", rows.batch(), rows.pixels(), channels.total())
    }
}

/// Checks what every operation on listed rows and channels relies on.
pub(crate) fn check_rows<E>(
    op: &'static str,
    (rows, channels): (&Rows, &Channels),
    input: &[E],
    placement: Placement,
    mean: Mean,
) -> Result<()> {
    let (batch, shape) = (rows.batch(), Shape(rows, channels));
    if mean == Mean::AllPixels && placement == Placement::Compact {
        let why = "compact rows are not all pixels";
        return Err(Error::Geometry { op, why, geometry: shape.to_string() });
    }
    let c = channels.total();
    match placement {
        Placement::Natural => require(op, "input", input.len(), &[batch, rows.pixels(), c], &shape)?,
        Placement::Compact => require(op, "input", input.len(), &[rows.len(), c], &shape)?,
    }
    require(op, "active channels", channels.batch().unwrap_or(batch), &[batch], &shape)
}

impl<E: Element> MeanPool<'_, [E]> {
    fn check(&self) -> Result<()> {
        check_rows("mean_pool", (self.rows, self.channels), self.input, self.input_rows, self.mean)?;
        let need = [self.rows.batch(), self.channels.total()];
        require("mean_pool", "output", self.output.len(), &need, &Shape(self.rows, self.channels))
    }
}

/// The definition: plain loops, summed in f64.
pub fn reference<E: Element>(call: &mut MeanPool<'_, [E]>) {
    let (rows, c) = (call.rows, call.channels.total());
    for n in 0..rows.batch() {
        let active = rows.sample(n);
        let read: Vec<usize> = match (call.mean, call.input_rows) {
            (Mean::AllPixels, _) if active.is_empty() => vec![],
            (Mean::AllPixels, _) => (n * rows.pixels()..(n + 1) * rows.pixels()).collect(),
            (_, Placement::Natural) => active.map(|i| rows.pixel(i)).collect(),
            (_, Placement::Compact) => active.collect(),
        };
        let divisor = if call.mean == Mean::Active { read.len().max(1) } else { rows.pixels() };
        for j in 0..call.channels.count(n) {
            let sum: f64 = read.iter().map(|row| f64::from(call.input[row * c + j].to_f32())).sum();
            call.output[n * c + j] = (sum / divisor as f64) as f32;
        }
    }
}
