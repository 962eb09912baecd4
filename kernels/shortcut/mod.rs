//! **shortcut**: the parameter-free shortcut of the CIFAR ResNets (He et al., arXiv 1512.03385, option A).
//!
//! ```text
//! output[n, y, x] = [0; before] ++ input[n, y·stride, x·stride] ++ [0; c_out − before − c_in]
//! ```

#[cfg(test)]
mod tests;

use crate::layout::check;
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

/// Runs one call.
///
/// # Errors
/// When an operand is too small or the maps do not fit the stride.
pub fn run<E: Element>(team: &mut Team, call: PadChannels<'_, [E]>) -> Result<()> {
    let PadChannels { batch, input_map, output_map, c_in, c_out, stride, before, input, output } = call;
    let geometry = || {
        let (from, to) = (input_map, output_map);
        format!("batch {batch}, {}×{}×{c_in} → {}×{}×{c_out}, stride {stride}", from.h, from.w, to.h, to.w)
    };
    let last = |n: usize| n.saturating_sub(1) * stride;
    if before + c_in > c_out || last(output_map.h) >= input_map.h || last(output_map.w) >= input_map.w {
        return Err(Error::Geometry {
            op: "shortcut",
            why: "the output does not fit the input",
            geometry: geometry(),
        });
    }
    check("shortcut", ("input", input.len()), batch * input_map.pixels() * c_in, geometry)?;
    check("shortcut", ("output", output.len()), batch * output_map.pixels() * c_out, geometry)?;
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
