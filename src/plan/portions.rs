//! How many samples of an inference go through the network together.

use super::activity::maps;
use laud_models::{BlockSpec, MapSize, NetSpec};
use std::ops::Range;

/// How many samples run together, front and back: large maps should stay in the caches between two convolutions, where
/// maps are small the weights and the steps of the threads are shared by some samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Portions {
    /// Blocks of the front, which has the stem; those behind them and the head are the back.
    pub cut: usize,
    /// Samples at a time in front.
    pub front: usize,
    /// Samples at a time behind; at least as many, a multiple where not all are left.
    pub back: usize,
}

/// Samples that the back takes at a time.
const BACK: usize = 4;

impl Portions {
    /// Portions of `batch` samples whose values have `element` bytes, where the maps of samples that run together should
    /// have `map_bytes`: in front the largest map, behind all maps of a block for each sample.
    pub fn of(spec: &NetSpec, element: usize, map_bytes: usize, batch: usize) -> Self {
        let bytes = |map: MapSize, c: usize| map.h * map.w * c * element;
        let stem = spec.stem.conv.output_size(spec.input.size).unwrap_or(spec.input.size);
        let largest = spec.blocks.iter().flat_map(written).chain([(stem, spec.stem.conv.c_out)]);
        let largest = largest.map(|(map, c)| bytes(map, c)).max();
        let front = (map_bytes / largest.unwrap_or(1).max(1)).clamp(1, batch.max(1));
        let small = |block: &&BlockSpec| {
            let read = block.convs.first().map_or(0, |conv| bytes(block.input, conv.c_in));
            read + written(block).map(|(map, c)| bytes(map, c)).sum::<usize>() <= map_bytes
        };
        let cut = spec.blocks.len() - spec.blocks.iter().rev().take_while(small).count();
        if front >= BACK.min(batch) || cut == spec.blocks.len() {
            return Self::even(spec, front);
        }
        let groups = batch.div_ceil(BACK.next_multiple_of(front));
        Self { cut, front, back: batch.div_ceil(groups).next_multiple_of(front).min(batch) }
    }

    /// The same number from end to end.
    pub fn even(spec: &NetSpec, samples: usize) -> Self {
        Self { cut: spec.blocks.len(), front: samples, back: samples }
    }

    /// Whether front and back differ.
    pub fn split(&self) -> bool {
        self.front != self.back
    }

    /// Samples of `batch` that go through the back together.
    pub fn groups(&self, batch: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        pieces(0..batch, self.back)
    }

    /// Samples of a group that go through the front together.
    pub fn parts(&self, group: Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
        pieces(group, self.front)
    }
}

/// Maps and channels that the convolutions of a block write.
fn written(block: &BlockSpec) -> impl Iterator<Item = (MapSize, usize)> + '_ {
    maps(block).zip(&block.convs).map(|((_, output), conv)| (output, conv.c_out))
}

fn pieces(samples: Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> {
    let end = samples.end;
    samples.step_by(size).map(move |first| first..end.min(first + size))
}
