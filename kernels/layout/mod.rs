//! **layout**: between the public edge (NCHW, f32) and the inside (NHWC, the backend's element type).

pub(crate) mod cuda;
#[cfg(test)]
mod tests;

use crate::error::require;
use crate::simd::{Simd, dispatch};
use crate::{Disjoint, Element, Error, Extent, Isa, Result, Team};

/// Planes that are written together: a cache line of every pixel.
const PLANES: usize = 16;
/// Chunks for each thread, so that a thread that is held up does not hold up the others.
const CHUNKS_PER_THREAD: usize = 4;
/// Pixels whose channels stay in the first-level cache while the planes take theirs.
const PIXELS: usize = 64;

/// Images on their way in.
pub struct FromNchw<'a, T: ?Sized, I = &'a [f32]> {
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
    /// What every value of a channel is multiplied with, `[c]`; `None`: they come in as they are.
    pub scale: Option<&'a [f32]>,
    /// `[n, c, h, w]`.
    pub input: I,
    /// `[n, bordered.h, bordered.w, c]`; the border is written too.
    pub output: &'a mut T,
}

impl<T: ?Sized, I> FromNchw<'_, T, I> {
    /// Checks operands of so many elements, pixels of the output being `pixel` elements apart.
    pub(crate) fn check(&self, input: usize, output: usize, pixel: usize) -> Result<()> {
        let Self { batch, c, image, border, bordered, scale, .. } = self;
        let geometry =
            format_args!("batch {batch}, {c}×{}×{} in {}×{}", image.h, image.w, bordered.h, bordered.w);
        let fits = |image: usize, border: usize, bordered: usize| image.saturating_add(border) <= bordered;
        if !fits(image.h, border.h, bordered.h) || !fits(image.w, border.w, bordered.w) {
            let why = "the image does not fit";
            return Err(Error::Geometry { op: "layout", why, geometry: geometry.to_string() });
        }
        if let Some(scale) = scale {
            require("layout", "scale", scale.len(), &[*c], &geometry)?;
        }
        require("layout", "input", input, &[*batch, *c, image.h, image.w], &geometry)?;
        require("layout", "output", output, &[*batch, pixel, bordered.h, bordered.w], &geometry)
    }
}

/// Brings images in.
///
/// # Errors
/// When an operand is too small or the image does not fit its border.
pub fn from_nchw<E: Element>(isa: Isa, team: &mut Team, call: FromNchw<'_, [E]>) -> Result<()> {
    call.check(call.input.len(), call.output.len(), call.c)?;
    let FromNchw { batch, c, image, border, bordered, scale, input, output } = call;
    if [batch, c, bordered.h, bordered.w].contains(&0) {
        return Ok(());
    }
    let (line, zero) = (bordered.w * c, E::from_f32(0.0));
    let lines = batch * bordered.h;
    let chunks = lines.min(CHUNKS_PER_THREAD * team.threads());
    let output = Disjoint::new(output);
    team.for_each(chunks, |chunk, _| {
        for row in lines * chunk / chunks..lines * (chunk + 1) / chunks {
            let (n, y) = (row / bordered.h, row % bordered.h);
            // SAFETY: every line is one chunk's.
            let out = unsafe { output.slice(row * line..(row + 1) * line) };
            let Some(y) = y.checked_sub(border.h).filter(|&y| y < image.h) else {
                out.fill(zero);
                continue;
            };
            out[..border.w * c].fill(zero);
            out[(border.w + image.w) * c..].fill(zero);
            let planes = &input[n * c * image.pixels() + y * image.w..];
            mix(isa, planes, image, c, scale, &mut out[border.w * c..(border.w + image.w) * c]);
        }
    });
    Ok(())
}

dispatch! {
    /// Writes a line of pixels of `c` channels, the planes of which start where `planes` does.
    fn mix<E>(planes: &[f32], image: Extent, c: usize, scale: Option<&[f32]>, line: &mut [E]) = mix_set
}

#[inline(always)]
fn mix_set<S: Simd, E: Element>(
    planes: &[f32],
    image: Extent,
    c: usize,
    scale: Option<&[f32]>,
    line: &mut [E],
) {
    // A factor of 1 changes no bit.
    let factor = |channel: usize| scale.map_or(1.0, |scale| scale[channel]);
    let plane = |channel: usize| &planes[channel * image.pixels()..][..image.w];
    if c == 3 {
        // Together: the compiler then writes whole vectors.
        let [red, green, blue] = [0, 1, 2].map(factor);
        let colours = plane(0).iter().zip(plane(1)).zip(plane(2));
        for (pixel, ((&r, &g), &b)) in line.as_chunks_mut::<3>().0.iter_mut().zip(colours) {
            *pixel = [r * red, g * green, b * blue].map(E::from_f32);
        }
        return;
    }
    for channel in 0..c {
        let factor = factor(channel);
        for (pixel, &value) in line.chunks_exact_mut(c).zip(plane(channel)) {
            pixel[channel] = E::from_f32(value * factor);
        }
    }
}

/// Values that are worth a chunk of a copy.
const COPY: usize = 16 << 10;

/// Copies `from` to `to`.
///
/// # Panics
/// When they are not of the same length.
pub fn copy<E: Element>(team: &mut Team, from: &[E], to: &mut [E]) {
    assert_eq!(from.len(), to.len());
    let to = Disjoint::new(to);
    team.for_each(from.len().div_ceil(COPY), |chunk, _| {
        let range = chunk * COPY..from.len().min((chunk + 1) * COPY);
        // SAFETY: each range is one chunk's.
        unsafe { to.slice(range.clone()) }.copy_from_slice(&from[range]);
    });
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
    let geometry = format_args!("batch {batch}, {c}×{}×{}", map.h, map.w);
    require("layout", "input", input.len(), &[batch, c, map.h, map.w], &geometry)?;
    require("layout", "output", output.len(), &[batch, c, map.h, map.w], &geometry)?;
    if [batch, c, map.h, map.w].contains(&0) {
        return Ok(());
    }
    let (pixels, blocks) = (map.pixels(), c.div_ceil(PLANES));
    let output = Disjoint::new(output);
    team.for_each(batch * blocks, |chunk, _| {
        let (n, first) = (chunk / blocks, chunk % blocks * PLANES);
        let last = c.min(first + PLANES);
        // SAFETY: every plane is one chunk's.
        let planes = unsafe { output.slice((n * c + first) * pixels..(n * c + last) * pixels) };
        let sample = &input[n * pixels * c..(n + 1) * pixels * c];
        for start in (0..pixels).step_by(PIXELS) {
            let end = pixels.min(start + PIXELS);
            for (channel, plane) in (first..last).zip(planes.chunks_exact_mut(pixels)) {
                let tile = sample[start * c..end * c].chunks_exact(c);
                plane[start..end]
                    .iter_mut()
                    .zip(tile)
                    .for_each(|(out, pixel)| *out = pixel[channel].to_f32());
            }
        }
    });
    Ok(())
}
