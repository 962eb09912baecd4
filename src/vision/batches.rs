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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Augment {
    /// Not at all.
    Nothing,
    /// Shifted by up to 4 pixels, black coming in, and mirrored one time in two (He et al., "Deep Residual Learning",
    /// section 4.2). The same `draw` gives the same change.
    ShiftAndMirror {
        /// A different number for every epoch.
        draw: u64,
    },
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
            let (shift, mirror) = match augment {
                Augment::Nothing => ((SHIFT, SHIFT), false),
                Augment::ShiftAndMirror { draw } => {
                    let mut random = Random::named(draw, "augment");
                    let mut random = Random::new(random.next() ^ number as u64);
                    let shift = (random.below(2 * SHIFT + 1), random.below(2 * SHIFT + 1));
                    (shift, random.uniform() < 0.5)
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
