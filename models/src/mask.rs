//! Spatial masks on the pixel grid: up-sampling and dilation, written to be read.
//!
//! LAUDNet, imagenet_classification/models/laud_resnet.py (`Bottleneck.forward`) and utils.py (`ExpandMask`). This is the
//! definition that faster code is tested against.

use smallvec::SmallVec;

use crate::{BlockSpec, ConvSpec, Error, MapSize};

/// One sample's keep decisions on a grid of cells or pixels, row by row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MaskGrid {
    size: MapSize,
    cells: Vec<bool>,
}

impl MaskGrid {
    /// A mask of `size.h × size.w` decisions, rows first; `None` when their number is another.
    pub fn new(size: MapSize, cells: Vec<bool>) -> Option<Self> {
        (size.h.checked_mul(size.w) == Some(cells.len())).then_some(Self { size, cells })
    }

    /// The mask whose decision at `(row, column)` is `keep(row, column)`.
    pub fn from_fn(size: MapSize, mut keep: impl FnMut(usize, usize) -> bool) -> Self {
        let mut cells = Vec::with_capacity(size.h * size.w);
        for y in 0..size.h {
            cells.extend((0..size.w).map(|x| keep(y, x)));
        }
        Self { size, cells }
    }

    /// Rows and columns.
    pub fn size(&self) -> MapSize {
        self.size
    }

    /// The decisions, row by row.
    pub fn cells(&self) -> &[bool] {
        &self.cells
    }

    /// The decision at a position inside the grid.
    ///
    /// # Panics
    /// Outside the grid.
    pub fn get(&self, row: usize, column: usize) -> bool {
        assert!(column < self.size.w, "column {column} of {}", self.size.w);
        self.cells[row * self.size.w + column]
    }

    /// Number of active positions.
    pub fn active(&self) -> usize {
        self.cells.iter().filter(|&&keep| keep).count()
    }

    /// Active fraction, `0..=1`; 0 of an empty grid.
    pub fn density(&self) -> f64 {
        self.active() as f64 / self.cells.len().max(1) as f64
    }

    /// Nearest up-sampling: the source index is `⌊dst · grid / out⌋` in both directions.
    pub fn upsample(&self, out: MapSize) -> Self {
        Self::from_fn(out, |y, x| self.get(y * self.size.h / out.h, x * self.size.w / out.w))
    }

    /// The positions of `conv`'s input (a map of size `input`) that this mask's active outputs read; taps in the padding
    /// count for nothing. For a 3×3 convolution this is the mask grown by the halo; for stride 2 and padding 1, output
    /// `(i, j)` reads rows `2i − 1 ..= 2i + 1` and columns `2j − 1 ..= 2j + 1`.
    pub fn dilate(&self, conv: &ConvSpec, input: MapSize) -> Self {
        let mut read = Self::from_fn(input, |_, _| false);
        let taps = |output: usize, before: usize, end: usize| {
            let start = output * conv.stride;
            start.saturating_sub(before)..(start + conv.kernel).saturating_sub(before).min(end)
        };
        for y in 0..self.size.h {
            for x in 0..self.size.w {
                if self.get(y, x) {
                    for row in taps(y, conv.pad.top, input.h) {
                        for column in taps(x, conv.pad.left, input.w) {
                            read.cells[row * input.w + column] = true;
                        }
                    }
                }
            }
        }
        read
    }
}

impl BlockSpec {
    /// What a coarse mask of this block's spatial gate makes of every convolution of the branch: the mask on each one's
    /// output. The last is the up-sampled mask, each before it what the next one reads.
    ///
    /// A mask of another size than the gate's grid is an error.
    pub fn masks(&self, coarse: &MaskGrid) -> Result<SmallVec<[MaskGrid; 3]>, Error> {
        let grid = self.gate.spatial.as_ref().map(|gate| gate.grid);
        if grid != Some(coarse.size) {
            return Err(Error::spec(
                &self.name,
                format!("a mask of {:?} for a grid of {grid:?}", coarse.size),
            ));
        }
        // Sizes of the convolutions' outputs.
        let mut sizes: SmallVec<[MapSize; 3]> = SmallVec::new();
        for conv in &self.convs {
            let input = sizes.last().copied().unwrap_or(self.input);
            let output = conv.output_size(input);
            sizes.push(output.ok_or_else(|| Error::spec(&self.name, "map smaller than the kernel"))?);
        }
        let mut masks: SmallVec<[MaskGrid; 3]> = SmallVec::new();
        for index in (0..self.convs.len()).rev() {
            let mask = match masks.last() {
                None => coarse.upsample(sizes[index]),
                Some(next) => next.dilate(&self.convs[index + 1], sizes[index]),
            };
            masks.push(mask);
        }
        masks.reverse();
        Ok(masks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NetConfig, Padding};
    use proptest::prelude::*;

    fn block(name: &str, stage: usize) -> BlockSpec {
        let config = NetConfig::from_json(&format!(
            r#"{{"arch": "{name}", "dyn_mode": "spatial", "spatial_granularity": 1, "input_size": 64}}"#
        ));
        let net = config.unwrap().build().unwrap();
        net.blocks.into_iter().find(|block| block.stage == stage).unwrap()
    }

    fn on(mask: &MaskGrid) -> Vec<(usize, usize)> {
        let all = (0..mask.size.h).flat_map(|y| (0..mask.size.w).map(move |x| (y, x)));
        all.filter(|&(y, x)| mask.get(y, x)).collect()
    }

    #[test]
    fn stride_two_reads_three_rows_and_columns() {
        // The official code's own check: (1, 2) on 4×4 switches on rows 1–3, columns 3–5 of 8×8.
        let conv2 = &block("resnet50", 1).convs[1];
        let single = MaskGrid::from_fn(MapSize { h: 4, w: 4 }, |y, x| (y, x) == (1, 2));
        let read = single.dilate(conv2, MapSize { h: 8, w: 8 });
        let expected: Vec<_> = (1..=3).flat_map(|y| (3..=5).map(move |x| (y, x))).collect();
        assert_eq!(on(&read), expected);
    }

    #[test]
    fn halo_is_cut_at_the_border() {
        let conv2 = &block("resnet50", 0).convs[1];
        let corner = MaskGrid::from_fn(MapSize { h: 3, w: 3 }, |y, x| (y, x) == (0, 2));
        assert_eq!(on(&corner.dilate(conv2, MapSize { h: 3, w: 3 })), [(0, 1), (0, 2), (1, 1), (1, 2)]);
    }

    #[test]
    fn bottom_right_padding_reads_from_the_output_on() {
        let mut conv = block("resnet50", 1).convs[1].clone();
        conv.pad = Padding { top: 0, left: 0, bottom: 1, right: 1 };
        let last = MaskGrid::from_fn(MapSize { h: 2, w: 2 }, |y, x| (y, x) == (1, 0));
        assert_eq!(
            on(&last.dilate(&conv, MapSize { h: 4, w: 4 })),
            [(2, 0), (2, 1), (2, 2), (3, 0), (3, 1), (3, 2)]
        );
    }

    #[test]
    fn uneven_cells_follow_the_floor_rule() {
        let coarse = MaskGrid::new(MapSize { h: 1, w: 3 }, vec![true, false, true]).unwrap();
        let up = coarse.upsample(MapSize { h: 1, w: 7 });
        assert_eq!(up.cells(), [true, true, true, false, false, true, true]);
    }

    #[test]
    fn a_mask_of_another_size_is_an_error() {
        let mask = MaskGrid::from_fn(MapSize { h: 2, w: 3 }, |_, _| true);
        assert!(block("resnet50", 3).masks(&mask).is_err());
        assert!(MaskGrid::new(MapSize { h: 2, w: 2 }, vec![true; 3]).is_none());
    }

    proptest! {
        /// A position is in the dilated mask exactly when some active output has a tap on it.
        #[test]
        fn dilation_is_the_receptive_field(
            stage in 0usize..4,
            bits in prop::collection::vec(any::<bool>(), 16 * 16),
        ) {
            let block = block("resnet50", stage);
            let (input, conv) = (block.input, &block.convs[1]);
            let mask = MaskGrid::from_fn(block.output, |y, x| bits[y * 16 + x]);
            let read = mask.dilate(conv, input);
            for y in 0..input.h {
                for x in 0..input.w {
                    let hit = on(&mask).iter().any(|&(i, j)| {
                        let reads = |out: usize, at: usize| {
                            (0..conv.kernel).any(|tap| out * conv.stride + tap == at + conv.pad.top)
                        };
                        reads(i, y) && reads(j, x)
                    });
                    prop_assert_eq!(read.get(y, x), hit);
                }
            }
        }
    }
}
