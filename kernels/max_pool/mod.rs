//! **max_pool**: the largest value of every window, per channel; dense.
//!
//! ```text
//! output[n, y, x, c] = max_{r, s: q inside} input[q, c],   q = (n, y·stride + r − pad_top, x·stride + s − pad_left)
//! ```
//!
//! Padding never wins, also where everything inside is negative. A NaN in the window makes the output NaN.
//!
//! **Layout.** NHWC, `[n, h, w, c]`. The geometry has as many output as input channels; its groups are not looked at.

pub(crate) mod cpu;
pub(crate) mod cuda;
#[cfg(test)]
mod tests;

pub use cpu::run;

use crate::error::require;
use crate::{ConvGeometry, Element, Error, Result};

/// One call.
pub struct MaxPool<'a, T: ?Sized> {
    /// Maps, window, stride, padding.
    pub geometry: ConvGeometry,
    /// Samples.
    pub batch: usize,
    /// `[n, h, w, c]`.
    pub input: &'a T,
    /// `[n, h, w, c]`.
    pub output: &'a mut T,
}

impl<E: Element> MaxPool<'_, [E]> {
    fn check(&self) -> Result<()> {
        let g = &self.geometry;
        g.check("max_pool")?;
        if g.c_in != g.c_out {
            let why = "pooling keeps the number of channels";
            return Err(Error::Geometry { op: "max_pool", why, geometry: g.to_string() });
        }
        let (input, output) = (self.input.len(), self.output.len());
        require("max_pool", "input", input, &[self.batch, g.input.pixels(), g.c_in], g)?;
        require("max_pool", "output", output, &[self.batch, g.output.pixels(), g.c_out], g)
    }
}

/// The definition: plain loops.
pub fn reference<E: Element>(call: &mut MaxPool<'_, [E]>) {
    let g = call.geometry;
    for n in 0..call.batch {
        for (y, x) in (0..g.output.h).flat_map(|y| (0..g.output.w).map(move |x| (y, x))) {
            for c in 0..g.c_out {
                let mut largest = f32::NEG_INFINITY;
                for (r, s) in (0..g.kernel).flat_map(|r| (0..g.kernel).map(move |s| (r, s))) {
                    let iy = (y * g.stride + r).wrapping_sub(g.pad_top);
                    let ix = (x * g.stride + s).wrapping_sub(g.pad_left);
                    if iy < g.input.h && ix < g.input.w {
                        let value = call.input[((n * g.input.h + iy) * g.input.w + ix) * g.c_in + c].to_f32();
                        if value > largest || value.is_nan() {
                            largest = if largest.is_nan() { largest } else { value };
                        }
                    }
                }
                call.output[((n * g.output.h + y) * g.output.w + x) * g.c_out + c] = E::from_f32(largest);
            }
        }
    }
}
