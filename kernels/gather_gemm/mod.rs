//! **gather_gemm**: the one operation that every convolution and linear layer of the runtime is.
//!
//! A convolution over an [`ActiveSet`]: rows (output pixels), input channels and output channels that are not in
//! the set cost nothing. With `p = (n, y, x)` the pixel of row `i`, `o` the `j`-th active output channel and
//! `q(r, s) = (n, y·stride + r − pad_top, x·stride + s − pad_left)`:
//!
//! ```text
//! z          = bias[o] + Σ_{r,s: q inside} Σ_c w[o, r, s, c] · (input[q, c] + input_constant[c])
//! output[j]  = act(z + residual) − output_constant[o]
//! ```
//!
//! where `c` runs over *all* input channels, of which only the active ones are stored and read: an inactive channel
//! is worth `input_constant[c]`, which is folded into the bias when the filter is packed (LAUDNet's ResNet masks
//! before BatchNorm, so an inactive channel is `relu(bn(0))`, not zero). Stored activations have the constant
//! already subtracted. Padding is zero *after* the constant, hence one folded bias per set of taps that lie inside.
//!
//! Whole numbers are rounded before the residual is added, and behind the activation.
//!
//! **Layout.** Activations are rows of `c` values. Row `i` lies at the pixel's own place ([`Placement::Natural`]) or
//! at `i` ([`Placement::Compact`]). The `j`-th active channel of a sample lies at position `j` of its row.

pub(crate) mod cpu;
pub mod cuda;
mod epilogue;
mod filter;
mod micro;
mod pack;
mod panel;
mod rows;
mod scratch;
#[cfg(test)]
mod tests;
mod tiles;

pub use cpu::run;
pub use filter::{Filter, FilterSpec, Tile, tile};
pub use scratch::Scratch;

use crate::{Act, ActiveSet, Channels, DType, Element, Error, Result, Rows};

/// Where the rows of an operand lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Placement {
    /// Row of pixel `p` at `p`.
    Natural,
    /// Row `i` of the active set at `i`.
    Compact,
}

/// One call, over operands of type `T` and lists `R` and `C`: slices here, device memory at the
/// [`Backend`](crate::Backend).
pub struct GatherGemm<'a, T: ?Sized, R = Rows, C = Channels> {
    /// What to compute.
    pub active: ActiveSet<'a, R, C>,
    /// Input activations, `[rows, c_in]`.
    pub input: &'a T,
    /// Where the input rows lie; `Compact` only for pointwise geometries.
    pub input_rows: Placement,
    /// Output activations, `[rows, c_out]`; everything outside the active set stays as it is.
    pub output: &'a mut T,
    /// Where the output rows lie.
    pub output_rows: Placement,
    /// Add what the output holds before the activation: the residual connection, in place.
    pub residual: bool,
    /// Activation.
    pub act: Act,
}

impl<E: Element> GatherGemm<'_, [E]> {
    /// Checks every operand against the filter, so that the kernels can index without doing so.
    fn check(&self, filter: &Filter<E>) -> Result<()> {
        let geometry = filter.geometry();
        let batch = self.active.rows.batch();
        let size = |what, got, need| {
            if got >= need {
                return Ok(());
            }
            Err(Error::Size {
                op: "gather_gemm",
                what,
                got,
                need,
                geometry: format!("{geometry}, batch {batch}"),
            })
        };
        if self.active.rows.pixels() != geometry.output.pixels() {
            let why = "the active rows are pixels of another map";
            let geometry = format!("{geometry}, rows of maps with {} pixels", self.active.rows.pixels());
            return Err(Error::Geometry { op: "gather_gemm", why, geometry });
        }
        let rows = |placement, pixels| match placement {
            Placement::Natural => batch * pixels,
            Placement::Compact => self.active.rows.len(),
        };
        if self.input_rows == Placement::Compact && !geometry.is_pointwise() {
            let why = "compact input rows need a 1×1 kernel with stride 1";
            return Err(Error::Geometry { op: "gather_gemm", why, geometry: geometry.to_string() });
        }
        let (c_in, c_out) = (self.active.c_in.total(), self.active.c_out.total());
        if (c_in, c_out) != (geometry.c_in, geometry.c_out) {
            let why = "the active set is about other channel counts";
            let geometry = format!("{geometry}, active set {c_in} → {c_out}");
            return Err(Error::Geometry { op: "gather_gemm", why, geometry });
        }
        size("input", self.input.len(), rows(self.input_rows, geometry.input.pixels()) * geometry.c_in)?;
        size("output", self.output.len(), rows(self.output_rows, geometry.output.pixels()) * geometry.c_out)?;
        size("active channels", self.active.c_in.batch().unwrap_or(batch), batch)?;
        size("active channels", self.active.c_out.batch().unwrap_or(batch), batch)
    }
}

/// The definition: plain loops over everything, in f32. `spec` is what the filter was packed from.
pub fn reference<E: Element>(spec: &FilterSpec<'_>, call: &mut GatherGemm<'_, [E]>) {
    let g = spec.geometry;
    let every = |list: Option<&[u32]>, total: usize| match list {
        Some(list) => list.iter().map(|&c| c as usize).collect::<Vec<_>>(),
        None => (0..total).collect(),
    };
    let rows = call.active.rows;
    for n in 0..rows.batch() {
        let (c_in, c_out) = (call.active.c_in.sample(n), call.active.c_out.sample(n));
        let (c_in, c_out) = (every(c_in, g.c_in), every(c_out, g.c_out));
        for i in rows.sample(n) {
            let pixel = rows.pixel(i);
            let (y, x) = (pixel % g.output.pixels() / g.output.w, pixel % g.output.w);
            let at = match call.output_rows {
                Placement::Natural => pixel,
                Placement::Compact => i,
            };
            for (j, &o) in c_out.iter().enumerate() {
                let first = o / g.group_out() * g.group_in();
                let mut z = spec.bias[o];
                for (r, s) in (0..g.kernel).flat_map(|r| (0..g.kernel).map(move |s| (r, s))) {
                    let (iy, ix) = (
                        (y * g.stride + r).wrapping_sub(g.pad_top),
                        (x * g.stride + s).wrapping_sub(g.pad_left),
                    );
                    if iy >= g.input.h || ix >= g.input.w {
                        continue;
                    }
                    let row = match call.input_rows {
                        Placement::Natural => n * g.input.pixels() + iy * g.input.w + ix,
                        Placement::Compact => i,
                    };
                    let tap = ((o * g.kernel + r) * g.kernel + s) * g.group_in();
                    for c in 0..g.group_in() {
                        z += spec.weight[tap + c]
                            * spec.input_constant.map_or(0.0, |constant| constant[first + c]);
                    }
                    for (jj, &c) in c_in.iter().enumerate() {
                        if (first..first + g.group_in()).contains(&c) {
                            z += spec.weight[tap + c - first] * call.input[row * g.c_in + jj].to_f32();
                        }
                    }
                }
                let out = &mut call.output[at * g.c_out + j];
                if call.residual {
                    if E::DTYPE == DType::Int8 {
                        z = z.round_ties_even();
                    }
                    z += out.to_f32();
                }
                *out =
                    E::from_f32(call.act.apply(z) - spec.output_constant.map_or(0.0, |constant| constant[o]));
            }
        }
    }
}
