//! Generated operands for the kernel tests.

use crate::{Channels, DType, Element, Rows};

/// Small deterministic generator (splitmix64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `-1..1`.
    pub(crate) fn value(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub(crate) fn values(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.value()).collect()
    }
}

/// How much of something is active.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Density {
    All,
    None,
    One,
    Half,
}

impl Density {
    pub(crate) const EVERY: [Density; 4] = [Density::All, Density::None, Density::One, Density::Half];

    fn choose(self, random: &mut Random, len: usize) -> Vec<u32> {
        match self {
            Density::All => (0..len as u32).collect(),
            Density::None => vec![],
            Density::One => vec![random.below(len) as u32],
            Density::Half => (0..len as u32).filter(|_| random.next() & 1 == 0).collect(),
        }
    }

    /// Rows of each sample, differing between samples; `All` lists them unless `implicit`.
    pub(crate) fn rows(self, random: &mut Random, batch: usize, pixels: usize, implicit: bool) -> Rows {
        if self == Density::All && implicit {
            return Rows::all(batch, pixels);
        }
        let mut rows = Rows::with_capacity(batch, pixels);
        rows.clear(pixels);
        for _ in 0..batch {
            self.choose(random, pixels).into_iter().for_each(|pixel| rows.push(pixel));
            rows.end_sample();
        }
        rows
    }

    /// Groups of `group` channels of each sample, differing between samples.
    pub(crate) fn channels(self, random: &mut Random, batch: usize, total: usize, group: usize) -> Channels {
        let mut channels = Channels::with_capacity(batch, total);
        channels.clear(total);
        for _ in 0..batch {
            for g in self.choose(random, total / group) {
                (0..group as u32).for_each(|c| channels.push(g * group as u32 + c));
            }
            channels.end_sample();
        }
        channels
    }
}

/// What values of order one are multiplied with to be stored: whole numbers fill their range.
pub(crate) fn scale<E: Element>() -> f32 {
    if E::DTYPE == DType::Int8 { 127.0 } else { 1.0 }
}

/// Elements of that order.
pub(crate) fn elements<E: Element>(random: &mut Random, len: usize) -> Vec<E> {
    random.values(len).into_iter().map(|v| E::from_f32(scale::<E>() * v)).collect()
}

/// Whole numbers differ by one where what was rounded lay in the middle.
pub(crate) const INT8_ROUNDING: f32 = 1.0;

/// Largest difference of elements: of whole numbers, and of others in relation to what they are (and one).
pub(crate) fn differ<E: Element>(got: &[E], want: &[E]) -> f32 {
    let values = |v: &[E]| v.iter().map(|v| v.to_f32()).collect::<Vec<_>>();
    let (got, want) = (values(got), values(want));
    match E::DTYPE {
        DType::Int8 => got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max),
        _ => worst(&got, &want, 1.0),
    }
}

/// Largest `|a - b| / (abs + |b|)`.
pub(crate) fn worst(got: &[f32], want: &[f32], abs: f32) -> f32 {
    assert_eq!(got.len(), want.len());
    got.iter()
        .zip(want)
        .map(|(a, b)| if a == b { 0.0 } else { (a - b).abs() / (abs + b.abs()) })
        .fold(0.0, |m: f32, d| if d > m || d.is_nan() { d } else { m })
}
