use crate::vision::{Dataset, Preprocess};
use anyhow::{Context, Result, ensure};
use laud_models::NetSpec;
use rayon::prelude::*;

/// Labelled images as a network reads them, some at a time.
pub struct Images<'a> {
    data: &'a Dataset,
    preprocess: Preprocess,
    count: usize,
    batch: usize,
}

/// Some images, one after the other.
pub struct Batch<'a> {
    /// Number of the first.
    pub first: usize,
    /// How many.
    pub n: usize,
    /// `[n, c, h, w]`.
    pub values: &'a [f32],
    /// Where they come from.
    pub data: &'a Dataset,
}

impl Batch<'_> {
    /// Label of image `i` of the batch.
    pub(super) fn label(&self, i: usize) -> usize {
        self.data.label(self.first + i).expect("an image of the set")
    }
}

impl<'a> Images<'a> {
    /// The first `limit` images of `data`, or all, `batch` at a time.
    ///
    /// # Errors
    /// When a label is none of the network's classes, or it reads something else than RGB images; no images.
    pub fn new(data: &'a Dataset, spec: &NetSpec, limit: Option<usize>, batch: usize) -> Result<Self> {
        let classes = spec.head.fc.c_out;
        ensure!(
            data.max_label() < classes,
            "has label {}, {} tells {classes} classes apart",
            data.max_label(),
            spec.name
        );
        let count = limit.map_or(data.len(), |limit| data.len().min(limit));
        ensure!(count > 0 && batch > 0, "no images");
        Ok(Self { data, preprocess: Preprocess::new(&spec.input)?, count, batch: batch.min(count) })
    }

    /// How many.
    #[expect(clippy::len_without_is_empty, reason = "there is at least one")]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Images of a batch; the last one may have fewer.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// How images are prepared.
    pub fn preprocess(&self) -> &Preprocess {
        &self.preprocess
    }

    /// Decodes and prepares batch after batch.
    ///
    /// # Errors
    /// Those of `each`; an image that cannot be read, which is named.
    pub fn for_each(&self, mut each: impl FnMut(&Batch<'_>) -> Result<()>) -> Result<()> {
        let size = self.preprocess.values();
        let mut values = vec![0.0; self.batch * size];
        for first in (0..self.count).step_by(self.batch) {
            let n = self.batch.min(self.count - first);
            let values = &mut values[..n * size];
            values.par_chunks_mut(size).enumerate().try_for_each(|(i, values)| {
                let sample = self.data.get(first + i)?;
                self.preprocess.write_nchw(&sample.image, values).context(sample.name)
            })?;
            each(&Batch { first, n, values, data: self.data })?;
        }
        Ok(())
    }
}
