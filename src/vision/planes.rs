//! Prepared images made smaller.

use anyhow::{Context, Result, ensure};
use fast_image_resize as fir;
use fir::images::{TypedImage, TypedImageRef};
use fir::pixels::F32;
use laud_models::MapSize;

/// Resizes prepared images, and keeps the memory that takes.
#[derive(Default)]
pub(crate) struct Planes(fir::Resizer);

impl Planes {
    /// Resizes every plane `[c][h][w]` of an image: bicubic, antialiased, as torchvision's `Resize` of a tensor. (MobileNetV2 is
    /// right on one in a hundred photographs more at 160×160 pixels than with the bilinear one.)
    ///
    /// # Errors
    /// Planes of another size.
    pub(crate) fn resize(
        &mut self,
        (input, from): (&[f32], MapSize),
        (output, to): (&mut [f32], MapSize),
    ) -> Result<()> {
        let (before, after) = (from.h * from.w, to.h * to.w);
        ensure!(
            before > 0
                && after > 0
                && input.len() % before == 0
                && input.len() / before * after == output.len(),
            "planes of {}×{} and {}×{}: {} and {} values",
            from.h,
            from.w,
            to.h,
            to.w,
            input.len(),
            output.len()
        );
        let bicubic =
            fir::ResizeOptions::new().resize_alg(fir::ResizeAlg::Convolution(fir::FilterType::CatmullRom));
        for (input, output) in input.chunks_exact(before).zip(output.chunks_exact_mut(after)) {
            let (w, h) = (u32::try_from(from.w)?, u32::try_from(from.h)?);
            let input = TypedImageRef::<F32>::from_buffer(w, h, bytemuck::cast_slice(input));
            let (w, h) = (u32::try_from(to.w)?, u32::try_from(to.h)?);
            let output = TypedImage::<F32>::from_buffer(w, h, bytemuck::cast_slice_mut(output));
            let (input, mut output) = (input.context("resize")?, output.context("resize")?);
            self.0.resize_typed(&input, &mut output, &bicubic).context("resize")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keys's cubic with a = −½.
    fn cubic(x: f64) -> f64 {
        let x = x.abs();
        match x {
            _ if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
            _ if x < 2.0 => ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0,
            _ => 0.0,
        }
    }

    /// Every output pixel as the sum over a cubic as wide as four steps between output pixels.
    fn reference(input: &[f32], n: usize, to: usize) -> Vec<f64> {
        let scale = n as f64 / to as f64;
        let along = |at: usize| {
            let centre = (at as f64 + 0.5) * scale;
            let weight = |i: usize| cubic((i as f64 + 0.5 - centre) / scale.max(1.0));
            let all: Vec<f64> = (0..n).map(weight).collect();
            let sum: f64 = all.iter().sum();
            all.into_iter().map(move |weight| weight / sum).collect::<Vec<_>>()
        };
        let pixel = |(y, x): (usize, usize)| {
            let (rows, columns) = (along(y), along(x));
            let row = |(i, weight): (usize, &f64)| {
                let line = &input[i * n..][..n];
                weight * line.iter().zip(&columns).map(|(value, w)| f64::from(*value) * w).sum::<f64>()
            };
            rows.iter().enumerate().map(row).sum()
        };
        (0..to * to).map(|i| pixel((i / to, i % to))).collect()
    }

    #[test]
    fn planes_are_resized_as_their_definition_says() {
        let mut planes = Planes::default();
        for (n, to) in [(32, 20), (33, 32), (7, 3), (16, 16), (9, 1), (7, 12)] {
            let input: Vec<f32> =
                (0..2 * n * n).map(|i| ((i * i * 7 + i) % 101) as f32 / 37.0 - 1.0).collect();
            let mut output = vec![0.0; 2 * to * to];
            let size = |n| MapSize { h: n, w: n };
            planes.resize((&input, size(n)), (&mut output, size(to))).unwrap();
            let expected = input.chunks(n * n).flat_map(|plane| reference(plane, n, to));
            for (i, (got, expected)) in output.iter().zip(expected).enumerate() {
                assert!((f64::from(*got) - expected).abs() < 1e-5, "{n} to {to}, {i}: {got} {expected}");
            }
        }
    }

    #[test]
    fn planes_that_do_not_fit_are_an_error() {
        let size = |n| MapSize { h: n, w: n };
        let mut small = [0.0; 4];
        for (input, from) in [(&[0.0; 16][..], size(3)), (&[0.0; 32], size(4)), (&[], size(0))] {
            assert!(Planes::default().resize((input, from), (&mut small, size(2))).is_err());
        }
    }
}
