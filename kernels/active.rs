//! [`ActiveSet`]: what one operation computes.

/// The central value of the runtime: which rows, input channels and output channels of an implicit GEMM are
/// computed. Every kind of gating is a way to fill it; with everything active it describes the static network.
///
/// The lists are [`Rows`] and [`Channels`] in this machine's memory, or what a [`Backend`](crate::Backend) keeps on
/// its device instead.
#[derive(Debug)]
pub struct ActiveSet<'a, R = Rows, C = Channels> {
    /// Active output pixels.
    pub rows: &'a R,
    /// Active input channels of each sample.
    pub c_in: &'a C,
    /// Active output channels of each sample.
    pub c_out: &'a C,
}

impl<R, C> Clone for ActiveSet<'_, R, C> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<R, C> Copy for ActiveSet<'_, R, C> {}

/// Active pixels of a batch of feature maps, in ascending order.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    /// Flat pixel index `(n·h + y)·w + x` of every active pixel; unused while `all`.
    index: Vec<u32>,
    /// Where each sample's pixels start in `index`; one more entry than samples. Unused while `all`.
    start: Vec<u32>,
    /// Pixels of one map.
    pixels: usize,
    /// Every pixel of this many samples is active: row `i` is pixel `i`.
    all: Option<usize>,
}

impl Rows {
    /// Every pixel of `batch` maps with `pixels` pixels each.
    pub fn all(batch: usize, pixels: usize) -> Self {
        let mut rows = Self::default();
        rows.set_all(batch, pixels);
        rows
    }

    /// No pixel yet, with room for `batch` maps of `pixels` pixels, so that filling never allocates.
    pub fn with_capacity(batch: usize, pixels: usize) -> Self {
        Self {
            index: Vec::with_capacity(batch * pixels),
            start: Vec::with_capacity(batch + 1),
            ..Self::default()
        }
    }

    /// Makes every pixel of `batch` maps with `pixels` pixels active.
    pub fn set_all(&mut self, batch: usize, pixels: usize) {
        (self.pixels, self.all) = (pixels, Some(batch));
    }

    /// Becomes a copy of `other`.
    pub fn copy_from(&mut self, other: &Rows) {
        (self.pixels, self.all) = (other.pixels, other.all);
        self.index.clear();
        self.index.extend_from_slice(&other.index);
        self.start.clear();
        self.start.extend_from_slice(&other.start);
    }

    /// Forgets all samples; maps now have `pixels` pixels. [`push`](Self::push) and
    /// [`end_sample`](Self::end_sample) fill in samples again.
    pub fn clear(&mut self, pixels: usize) {
        self.pixels = pixels;
        self.all = None;
        self.index.clear();
        self.start.clear();
        self.start.push(0);
    }

    /// Adds a pixel (index within its map) to the sample being filled.
    ///
    /// # Panics
    /// When the pixel is outside the map or not above the one added before it: kernels rely on both.
    #[inline]
    pub fn push(&mut self, pixel: u32) {
        assert!((pixel as usize) < self.pixels, "pixel {pixel} of a map with {}", self.pixels);
        let first = ((self.start.len() - 1) * self.pixels) as u32;
        let fresh = self.index.len() == self.start[self.start.len() - 1] as usize;
        assert!(fresh || self.index[self.index.len() - 1] < first + pixel, "pixels of a sample must ascend");
        self.index.push(first + pixel);
    }

    /// Ends the sample being filled.
    pub fn end_sample(&mut self) {
        self.start.push(self.index.len() as u32);
    }

    /// Number of active pixels.
    pub fn len(&self) -> usize {
        match self.all {
            Some(batch) => batch * self.pixels,
            None => self.start.last().map_or(0, |&end| end as usize),
        }
    }

    /// Whether nothing is active.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether every pixel is active and row `i` is pixel `i`.
    pub fn is_all(&self) -> bool {
        self.len() == self.batch() * self.pixels
    }

    /// Samples.
    pub fn batch(&self) -> usize {
        self.all.unwrap_or(self.start.len().saturating_sub(1))
    }

    /// Pixels of one map, active or not.
    pub fn pixels(&self) -> usize {
        self.pixels
    }

    /// Rows of one sample.
    pub fn sample(&self, n: usize) -> std::ops::Range<usize> {
        match self.all {
            Some(_) => n * self.pixels..(n + 1) * self.pixels,
            None => self.start[n] as usize..self.start[n + 1] as usize,
        }
    }

    /// Pixel of row `i`, counted over the whole batch: `n · pixels + y · w + x`.
    #[inline(always)]
    pub fn pixel(&self, i: usize) -> usize {
        if self.all.is_some() { i } else { self.index[i] as usize }
    }
}

/// Active channels of each sample of a batch, in ascending order.
#[derive(Clone, Debug, Default)]
pub struct Channels {
    index: Vec<u32>,
    start: Vec<u32>,
    total: usize,
    all: bool,
}

impl Channels {
    /// All of `total` channels, in every sample.
    pub fn all(total: usize) -> Self {
        Self { total, all: true, ..Self::default() }
    }

    /// Nothing yet, with room for `batch` samples of `total` channels.
    pub fn with_capacity(batch: usize, total: usize) -> Self {
        Self {
            index: Vec::with_capacity(batch * total),
            start: Vec::with_capacity(batch + 1),
            total,
            all: false,
        }
    }

    /// Makes all of `total` channels active in every sample.
    pub fn set_all(&mut self, total: usize) {
        self.total = total;
        self.all = true;
    }

    /// Removes all samples of a layer with `total` channels.
    pub fn clear(&mut self, total: usize) {
        self.total = total;
        self.all = false;
        self.index.clear();
        self.start.clear();
        self.start.push(0);
    }

    /// Adds a channel to the sample being filled.
    ///
    /// # Panics
    /// When the channel is not one of the layer's or not above the one added before it: kernels rely on both.
    #[inline]
    pub fn push(&mut self, channel: u32) {
        assert!((channel as usize) < self.total, "channel {channel} of {}", self.total);
        let fresh = self.index.len() == self.start[self.start.len() - 1] as usize;
        assert!(fresh || self.index[self.index.len() - 1] < channel, "channels of a sample must ascend");
        self.index.push(channel);
    }

    /// Ends the sample being filled.
    pub fn end_sample(&mut self) {
        self.start.push(self.index.len() as u32);
    }

    /// Channels of the layer, active or not.
    pub fn total(&self) -> usize {
        self.total
    }

    /// Active channels of sample `n`; `None` when all are.
    pub fn sample(&self, n: usize) -> Option<&[u32]> {
        (!self.all).then(|| &self.index[self.start[n] as usize..self.start[n + 1] as usize])
    }

    /// Number of active channels of sample `n`.
    pub fn count(&self, n: usize) -> usize {
        self.sample(n).map_or(self.total, <[u32]>::len)
    }

    /// Samples it lists; `None` while all channels of any sample are active.
    pub fn batch(&self) -> Option<usize> {
        (!self.all).then(|| self.start.len().saturating_sub(1))
    }

    /// Whether all channels of every sample are active, listed or not.
    pub fn is_all(&self) -> bool {
        let samples = self.start.len().saturating_sub(1);
        self.all || samples > 0 && self.index.len() == samples * self.total
    }
}
