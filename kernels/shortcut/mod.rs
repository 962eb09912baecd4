//! **shortcut**: the parameter-free shortcut of the CIFAR ResNets (He et al., arXiv 1512.03385, option A).
//!
//! ```text
//! output[n, y, x] = [0; before] ++ input[n, y·stride, x·stride] ++ [0; c_out − before − c_in]
//! ```

pub(crate) mod cuda;
#[cfg(test)]
mod tests;

use crate::error::require;
use crate::{Disjoint, Element, Error, Extent, Result, Team};

/// One call.
pub struct PadChannels<'a, T: ?Sized> {
    /// Samples.
    pub batch: usize,
    /// Size of the input map.
    pub input_map: Extent,
    /// Size of the output map.
    pub output_map: Extent,
    /// Input channels.
    pub c_in: usize,
    /// Output channels.
    pub c_out: usize,
    /// Distance of the pixels that are kept.
    pub stride: usize,
    /// Zero channels in front.
    pub before: usize,
    /// `[n, h, w, c_in]`.
    pub input: &'a T,
    /// `[n, h, w, c_out]`, written everywhere.
    pub output: &'a mut T,
}

impl<T: ?Sized> PadChannels<'_, T> {
    /// Checks operands of so many elements.
    pub(crate) fn check(&self, input: usize, output: usize) -> Result<()> {
        let Self { batch, input_map: from, output_map: to, c_in, c_out, stride, before, .. } = *self;
        let geometry = format_args!(
            "batch {batch}, {}×{}×{c_in} → {}×{}×{c_out}, stride {stride}",
            from.h, from.w, to.h, to.w
        );
        let last = |n: usize| n.saturating_sub(1).saturating_mul(stride);
        if before.saturating_add(c_in) > c_out || last(to.h) >= from.h || last(to.w) >= from.w {
            let why = "the output does not fit the input";
            return Err(Error::Geometry { op: "shortcut", why, geometry: geometry.to_string() });
        }
        require("shortcut", "input", input, &[batch, from.h, from.w, c_in], &geometry)?;
        require("shortcut", "output", output, &[batch, to.h, to.w, c_out], &geometry)
    }
}

/// Runs one call.
///
/// # Errors
/// When an operand is too small or the maps do not fit the stride.
pub fn run<E: Element>(team: &mut Team, call: PadChannels<'_, [E]>) -> Result<()> {
    call.check(call.input.len(), call.output.len())?;
    let PadChannels { batch, input_map, output_map, c_in, c_out, stride, before, input, output } = call;
    let to = output_map;
    if [batch, to.h, to.w, c_out].contains(&0) {
        return Ok(());
    }
    let line = output_map.w * c_out;
    let output = Disjoint::new(output);
    team.for_each(batch * output_map.h, |row, _| {
        let (n, y) = (row / output_map.h, row % output_map.h);
        // SAFETY: every line is one chunk's.
        let out = unsafe { output.slice(row * line..(row + 1) * line) };
        for (x, pixel) in out.chunks_exact_mut(c_out).enumerate() {
            let from = ((n * input_map.h + y * stride) * input_map.w + x * stride) * c_in;
            pixel.fill(E::from_f32(0.0));
            pixel[before..before + c_in].copy_from_slice(&input[from..from + c_in]);
        }
    });
    Ok(())
}
