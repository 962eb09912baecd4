//! **filter_grad**: what a convolution's weights contribute to a loss, for training.
//!
//! With `g[y, x, k]` the gradient of the output of one sample and `in` its input, the border already in place:
//!
//! ```text
//! sum[r, s, c, k] += Σ_{y,x} in[y·stride + r, x·stride + s, c] · g[y, x, k]
//! ```
//!
//! It is the GEMM of the forward convolution turned around: the reduction runs over pixels, and output channels are the
//! columns. A kernel row's taps are neighbours in memory, so that `kernel · c_in` values are the rows of one strip.
//!
//! **Layout.** Maps are `[h, w, c]`, of any element type; the sum is `[r, s, c, k]`, f32, in an order of summation that depends on nothing but
//! the geometry.
//!
//! [`Summing`] adds sample after sample, bfloat16 with tiles where the processor multiplies them.

mod cpu;
#[cfg(test)]
mod tests;
mod tiles;

pub use cpu::run;
pub use tiles::Summing;

use crate::error::require;
use crate::{ConvGeometry, Element, Error, Result};

/// One sample.
pub struct FilterGrad<'a, E> {
    /// The convolution, with one group and no padding: the input has its border.
    pub geometry: ConvGeometry,
    /// `[input.h, input.w, c_in]`.
    pub input: &'a [E],
    /// `[output.h, output.w, c_out]`.
    pub grad: &'a [E],
    /// `[kernel, kernel, c_in, c_out]`, added to.
    pub sum: &'a mut [f32],
}

impl<E> FilterGrad<'_, E> {
    fn check(&self) -> Result<()> {
        let g = &self.geometry;
        g.check("filter_grad")?;
        let inside = (g.output.h - 1) * g.stride + g.kernel <= g.input.h
            && (g.output.w - 1) * g.stride + g.kernel <= g.input.w;
        if g.groups != 1 || (g.pad_top, g.pad_left) != (0, 0) || !inside {
            let why = "one group and an input with its border are needed";
            return Err(Error::Geometry { op: "filter_grad", why, geometry: g.to_string() });
        }
        require("filter_grad", "input", self.input.len(), &[g.input.pixels(), g.c_in], g)?;
        require("filter_grad", "gradient", self.grad.len(), &[g.output.pixels(), g.c_out], g)?;
        require("filter_grad", "sum", self.sum.len(), &[g.weights()], g)
    }
}

/// The definition.
pub fn reference<E: Element>(call: &mut FilterGrad<'_, E>) {
    let g = call.geometry;
    for (r, s, c, k) in (0..g.weights()).map(|i| {
        (
            i / (g.kernel * g.c_in * g.c_out),
            i / (g.c_in * g.c_out) % g.kernel,
            i / g.c_out % g.c_in,
            i % g.c_out,
        )
    }) {
        let mut sum = 0.0f64;
        for (y, x) in (0..g.output.pixels()).map(|p| (p / g.output.w, p % g.output.w)) {
            let pixel = (y * g.stride + r) * g.input.w + x * g.stride + s;
            let grad = call.grad[(y * g.output.w + x) * g.c_out + k].to_f32();
            sum += f64::from(call.input[pixel * g.c_in + c].to_f32()) * f64::from(grad);
        }
        call.sum[((r * g.kernel + s) * g.c_in + c) * g.c_out + k] += sum as f32;
    }
}
