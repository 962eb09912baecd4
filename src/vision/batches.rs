//! Labelled images as training reads them: shuffled, shifted, mirrored, normalised.

use anyhow::{Context, Result};
use laud_models::{InputSpec, MapSize};
use rayon::prelude::*;

use super::dataset::Dataset;
use super::image::RgbImage;
use super::preprocess::Preprocess;
use crate::random::Random;

/// Most pixels, in bytes, that are kept decoded.
const MAX_CACHE_BYTES: usize = 1 << 30;
/// Most pixels an image is shifted by.
const SHIFT: usize = 4;

/// A set of images, ready for a network.
pub struct Batches {
    data: Dataset,
    preprocess: Preprocess,
    /// Every image as the network sees it, before normalisation; `None` where that is too large.
    cache: Option<Vec<RgbImage>>,
}

/// How an image is changed at random.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Augment {
    /// Not at all.
    Nothing,
    /// Shifted by up to 4 pixels, black coming in, and mirrored one time in two (He et al., "Deep Residual Learning",
    /// section 4.2). The same `draw` gives the same change.
    ShiftAndMirror {
        /// A different number for every epoch.
        draw: u64,
    },
    /// A random part of the whole image with sides 3 : 4 to 4 : 3, resized, and mirrored one time in two (Szegedy et al.,
    /// "Going Deeper with Convolutions", 2015, section 6). The same `draw` gives the same change.
    CropAndMirror {
        /// A different number for every epoch.
        draw: u64,
        /// Least share of the image's pixels, `0..=1`.
        least: f64,
    },
}

/// Parts that are drawn before it is the largest square.
const DRAWS: usize = 10;

/// Corner and size of a random part.
fn random_part(image: MapSize, least: f64, random: &mut Random) -> ((usize, usize), MapSize) {
    let (log, pixels) = ((4.0f64 / 3.0).ln(), (image.h * image.w) as f64);
    let mut within = |least: f64, most: f64| least + (most - least) * random.uniform();
    let drawn = (0..DRAWS).find_map(|_| {
        let (area, ratio) = (pixels * within(least, 1.0), within(-log, log).exp());
        let (h, w) = ((area / ratio).sqrt().round() as usize, (area * ratio).sqrt().round() as usize);
        ((1..=image.h).contains(&h) && (1..=image.w).contains(&w)).then_some(MapSize { h, w })
    });
    let side = image.h.min(image.w);
    let part = drawn.unwrap_or(MapSize { h: side, w: side });
    let corner = (random.below(image.w - part.w + 1), random.below(image.h - part.h + 1));
    (corner, part)
}

impl Batches {
    /// Decodes all images once if they fit into a gigabyte; in parallel.
    ///
    /// # Errors
    /// An image that cannot be read, by name.
    pub fn new(data: Dataset, input: &InputSpec) -> Result<Self> {
        let preprocess = Preprocess::new(input)?;
        let mut batches = Self { data, preprocess, cache: None };
        let bytes = input.size.h * input.size.w * 3;
        if batches.len().saturating_mul(bytes) <= MAX_CACHE_BYTES {
            let views = (0..batches.len()).into_par_iter().map(|i| batches.view(i)).collect::<Result<_>>()?;
            batches.cache = Some(views);
        }
        Ok(batches)
    }

    /// Images.
    #[expect(clippy::len_without_is_empty, reason = "a set is never empty")]
    pub fn len(&self) -> usize {
        self.data.len()
    }

    /// The set.
    pub fn data(&self) -> &Dataset {
        &self.data
    }

    /// All images in the order of a pass; the same for the same seed.
    pub fn shuffled(&self, seed: u64) -> Vec<usize> {
        Random::named(seed, "order").permutation(self.len())
    }

    /// Images `[n, 3, h, w]` and labels `[n]` by number.
    ///
    /// # Errors
    /// No such image, or one that cannot be read, by name.
    pub fn load(&self, numbers: &[usize], augment: Augment) -> Result<(Vec<f32>, Vec<u32>)> {
        let values = self.preprocess.values();
        let mut images = vec![0.0; numbers.len() * values];
        images.par_chunks_mut(values).zip(numbers).try_for_each(|(out, &number)| {
            let random = |draw| Random::new(Random::named(draw, "augment").next() ^ number as u64);
            let (shift, mirror) = match augment {
                Augment::Nothing => ((SHIFT, SHIFT), false),
                Augment::ShiftAndMirror { draw } => {
                    let mut random = random(draw);
                    let shift = (random.below(2 * SHIFT + 1), random.below(2 * SHIFT + 1));
                    (shift, random.uniform() < 0.5)
                }
                Augment::CropAndMirror { draw, least } => {
                    let mut random = random(draw);
                    let view = self.part(number, least, &mut random)?;
                    self.write(&view, (SHIFT, SHIFT), random.uniform() < 0.5, out);
                    return Ok(());
                }
            };
            match self.cache.as_ref().map(|cache| cache.get(number)) {
                Some(view) => self.write(view.context("no such image")?, shift, mirror, out),
                None => self.write(&self.view(number)?, shift, mirror, out),
            }
            Ok::<_, anyhow::Error>(())
        })?;
        let label = |&number: &usize| {
            let label = self.data.label(number).with_context(|| format!("no image {number}"))?;
            Ok(u32::try_from(label)?)
        };
        Ok((images, numbers.iter().map(label).collect::<Result<_>>()?))
    }

    fn view(&self, number: usize) -> Result<RgbImage> {
        let sample = self.data.get(number)?;
        self.preprocess.view(&sample.image).context(sample.name)
    }

    /// A random part of an image.
    fn part(&self, number: usize, least: f64, random: &mut Random) -> Result<RgbImage> {
        let sample = self.data.get(number)?;
        let size = MapSize { h: sample.image.height() as usize, w: sample.image.width() as usize };
        let (corner, part) = random_part(size, least, random);
        self.preprocess.part(&sample.image, corner, part).context(sample.name)
    }

    /// Normalised planes of the view, moved by `shift − SHIFT`. What comes in is black.
    fn write(&self, view: &RgbImage, shift: (usize, usize), mirror: bool, out: &mut [f32]) {
        let MapSize { h, w } = self.preprocess.size();
        let pixels = view.as_raw();
        for (c, plane) in out.chunks_exact_mut(h * w).enumerate() {
            for (y, line) in plane.chunks_exact_mut(w).enumerate() {
                let row = (y + shift.0).wrapping_sub(SHIFT);
                for (x, out) in line.iter_mut().enumerate() {
                    let x = if mirror { w - 1 - x } else { x };
                    let column = (x + shift.1).wrapping_sub(SHIFT);
                    let inside = row < h && column < w;
                    let value = if inside { pixels[(row * w + column) * 3 + c] } else { 0 };
                    *out = self.preprocess.level(c, value);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use laud_models::NetConfig;

    #[test]
    fn parts_lie_inside_and_are_as_large_as_asked_for() {
        let mut random = Random::new(3);
        for (h, w) in [(375, 500), (224, 224), (32, 32), (3, 40), (1, 1)] {
            let image = MapSize { h, w };
            for _ in 0..200 {
                let ((x, y), part) = random_part(image, 0.4, &mut random);
                assert!(
                    part.w > 0 && part.h > 0 && x + part.w <= w && y + part.h <= h,
                    "{part:?} of {h}×{w}"
                );
                let (share, ratio) =
                    ((part.w * part.h) as f64 / (w * h) as f64, part.w as f64 / part.h as f64);
                let whole = part.w == part.h && part.w == h.min(w);
                assert!(whole || share > 0.36 && (0.72..1.4).contains(&ratio), "{part:?} of {h}×{w}");
            }
        }
    }

    #[test]
    fn a_draw_crops_the_same_part_every_time() {
        let spec = NetConfig::from_json(r#"{"arch": "resnet20"}"#).unwrap().build().unwrap();
        let batches = Batches::new(crate::zoo::cifar10_images().unwrap(), &spec.input).unwrap();
        let load = |augment| batches.load(&[4, 7], augment).unwrap().0;
        let crop = |draw, least| load(Augment::CropAndMirror { draw, least });
        assert_eq!(crop(1, 0.5), crop(1, 0.5));
        assert_ne!(crop(1, 0.5), crop(2, 0.5));
        // Nothing but the whole image has all of its pixels: mirrored or not.
        let (whole, plain) = (crop(5, 1.0), load(Augment::Nothing));
        let line = &plain[..32];
        let mirrored: Vec<f32> = line.iter().rev().copied().collect();
        assert!(whole[..32] == *line || whole[..32] == mirrored);
    }
}
