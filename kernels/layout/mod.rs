//! **layout**: between the public edge (NCHW, f32) and the inside (NHWC, the backend's element type).

#[cfg(test)]
mod tests;

use crate::{Disjoint, Element, Error, Extent, Result, Team};

/// Images on their way in.
pub struct FromNchw<'a, T: ?Sized> {
    /// Samples.
    pub batch: usize,
    /// Channels.
    pub c: usize,
    /// Size of the image.
    pub image: Extent,
    /// Zero rows above and zero columns left of it.
    pub border: Extent,
    /// Size with the border on all sides.
    pub bordered: Extent,
    /// `[n, c, h, w]`.
    pub input: &'a [f32],
    /// `[n, bordered.h, bordered.w, c]`; the border is written too.
    pub output: &'a mut T,
}

/// Brings images in.
///
/// # Errors
/// When an operand is too small or the image does not fit its border.
pub fn from_nchw<E: Element>(team: &mut Team, call: FromNchw<'_, [E]>) -> Result<()> {
    let FromNchw { batch, c, image, border, bordered, input, output } = call;
    let geometry = || format!("batch {batch}, {c}×{}×{} in {}×{}", image.h, image.w, bordered.h, bordered.w);
    if image.h + border.h > bordered.h || image.w + border.w > bordered.w {
        return Err(Error::Geometry { op: "layout", why: "the image does not fit", geometry: geometry() });
    }
    check("layout", ("input", input.len()), batch * c * image.pixels(), geometry)?;
    check("layout", ("output", output.len()), batch * c * bordered.pixels(), geometry)?;
    let (line, zero) = (bordered.w * c, E::from_f32(0.0));
    let output = Disjoint::new(output);
    team.for_each(batch * bordered.h, |row, _| {
        let (n, y) = (row / bordered.h, row % bordered.h);
        // SAFETY: every line is one chunk's.
        let out = unsafe { output.slice(row * line..(row + 1) * line) };
        let Some(y) = y.checked_sub(border.h).filter(|&y| y < image.h) else { return out.fill(zero) };
        out[..border.w * c].fill(zero);
        out[(border.w + image.w) * c..].fill(zero);
        let inner = &mut out[border.w * c..(border.w + image.w) * c];
        for channel in 0..c {
            let plane = &input[((n * c + channel) * image.h + y) * image.w..][..image.w];
            for (pixel, &value) in inner.chunks_exact_mut(c).zip(plane) {
                pixel[channel] = E::from_f32(value);
            }
        }
    });
    Ok(())
}

/// Takes a map out: `input` is `[n, h, w, c]`, `output` `[n, c, h, w]`.
///
/// # Errors
/// When an operand is too small.
pub fn to_nchw<E: Element>(
    team: &mut Team,
    batch: usize,
    map: Extent,
    c: usize,
    input: &[E],
    output: &mut [f32],
) -> Result<()> {
    let geometry = || format!("batch {batch}, {c}×{}×{}", map.h, map.w);
    let len = batch * map.pixels() * c;
    check("layout", ("input", input.len()), len, geometry)?;
    check("layout", ("output", output.len()), len, geometry)?;
    let output = Disjoint::new(output);
    team.for_each(batch * c, |plane, _| {
        let (n, channel) = (plane / c, plane % c);
        // SAFETY: every plane is one chunk's.
        let out = unsafe { output.slice(plane * map.pixels()..(plane + 1) * map.pixels()) };
        let pixels = input[n * map.pixels() * c..].chunks_exact(c);
        out.iter_mut().zip(pixels).for_each(|(out, pixel)| *out = pixel[channel].to_f32());
    });
    Ok(())
}

pub(crate) fn check(
    op: &'static str,
    (what, got): (&'static str, usize),
    need: usize,
    geometry: impl Fn() -> String,
) -> Result<()> {
    if got >= need {
        return Ok(());
    }
    Err(Error::Size { op, what, got, need, geometry: geometry() })
}
