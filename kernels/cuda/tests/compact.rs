use crate::device::*;
use crate::testing::Random;
use crate::{Channels, Extent, Rows};
use laud_kernels::ConvGeometry;
use laud_kernels::compact::{BitMap, ListChannels, list_channels};
use laud_kernels::cuda::params::{CompactChannelsParams, CompactLevel, CompactRowsParams, MAX_LEVELS};
use proptest::prelude::*;

/// Memory for one level's lists.
struct Lists {
    index: Vec<u32>,
    start: Vec<u32>,
    other_index: Vec<u32>,
    other_start: Vec<u32>,
}

impl Lists {
    fn new(batch: usize, pixels: usize) -> Self {
        let (index, start) = (vec![u32::MAX; batch * pixels], vec![u32::MAX; batch + 1]);
        Self { other_index: index.clone(), other_start: start.clone(), index, start }
    }

    fn equal(index: &[u32], start: &[u32], rows: &Rows) -> bool {
        let listed: Vec<_> = (0..rows.len()).map(|i| rows.pixel(i) as u32).collect();
        let starts = (0..rows.batch()).map(|n| rows.sample(n).end as u32);
        let untouched = index[listed.len()..].iter().all(|&i| i == u32::MAX);
        index[..listed.len()] == listed && start[0] == 0 && start[1..].iter().copied().eq(starts) && untouched
    }
}

/// What the convolutions in front of a block's last read, the last first.
struct Chain {
    keep: Vec<bool>,
    grid: Extent,
    batch: usize,
    output: Extent,
    convs: Vec<ConvGeometry>,
    full_above: Option<u32>,
    /// Side of the squares, in cells, that all maps but the first are grown from.
    side: usize,
}

impl Chain {
    /// Active pixels of every map, as the CPU finds them.
    fn reference(&self) -> Vec<BitMap> {
        let mut active = BitMap::default();
        active.upsample(&self.keep, self.grid, self.batch, self.output);
        let mut grown = BitMap::default();
        grown.upsample(&self.squares(), self.grid, self.batch, self.output);
        let mut maps = vec![active];
        for conv in &self.convs {
            let mut halo = BitMap::default();
            halo.grow(&grown, conv);
            maps.push(halo.clone());
            grown = halo;
        }
        maps
    }

    /// Cells of squares of which any cell is kept.
    fn squares(&self) -> Vec<bool> {
        let (Extent { h, w }, side) = (self.grid, self.side);
        let square = |cell: usize| (cell / (h * w), cell / w % h / side, cell % w / side);
        let kept: Vec<_> = (0..self.keep.len()).filter(|&cell| self.keep[cell]).map(square).collect();
        (0..self.keep.len()).map(|cell| kept.contains(&square(cell))).collect()
    }

    fn check(&self) {
        let keep: Vec<u8> = self.keep.iter().map(|&keep| u8::from(keep)).collect();
        let maps: Vec<_> =
            std::iter::once(self.output).chain(self.convs.iter().map(|conv| conv.input)).collect();
        let kept = self.keep.iter().filter(|keep| **keep).count() as u32;
        let bytes = in_any_order(|emulator| {
            let mut lists: Vec<_> = maps.iter().map(|map| Lists::new(self.batch, map.pixels())).collect();
            let mut level = [CompactLevel::default(); MAX_LEVELS];
            for (i, (level, lists)) in level.iter_mut().zip(&mut lists).enumerate() {
                let Lists { index, start, other_index, other_start } = lists;
                let conv = if i == 0 { None } else { Some(&self.convs[i - 1]) };
                *level = CompactLevel {
                    index: address_mut(index),
                    start: address_mut(start),
                    // The others are wanted of the first map only.
                    other_index: if i == 0 { address_mut(other_index) } else { 0 },
                    other_start: if i == 0 { address_mut(other_start) } else { 0 },
                    h: maps[i].h as u32,
                    w: maps[i].w as u32,
                    kernel: conv.map_or(0, |conv| conv.kernel as u32),
                    stride: conv.map_or(0, |conv| conv.stride as u32),
                    pad_top: conv.map_or(0, |conv| conv.pad_top as u32),
                    pad_left: conv.map_or(0, |conv| conv.pad_left as u32),
                    full: u32::from(i > 0 && self.full_above.is_some()),
                    reserved: 0,
                };
            }
            let mut counted = vec![u32::MAX];
            let params = CompactRowsParams {
                keep: address(&keep),
                kept: address_mut(&mut counted),
                batch: self.batch as u32,
                grid_h: self.grid.h as u32,
                grid_w: self.grid.w as u32,
                levels: maps.len() as u32,
                full_above: self.full_above.unwrap_or(0),
                side: self.side as u32,
                level,
                ..Default::default()
            };
            let mut state = vec![0u32; params.state_len()];
            let params = CompactRowsParams { state: address_mut(&mut state), ..params };
            // Twice: the state is as it was.
            for _ in 0..2 {
                execute(emulator, &params.launch(), &params);
                assert!(state.iter().all(|&word| word == 0));
            }
            assert_eq!(counted, [kept]);
            let lists = lists.into_iter().flat_map(|l| [l.index, l.start, l.other_index, l.other_start]);
            lists.flatten().collect::<Vec<_>>()
        });
        let mut words = bytes.as_slice();
        let mut take = |len: usize| {
            let (list, rest) = words.split_at(len);
            words = rest;
            list
        };
        for (i, (map, active)) in maps.iter().zip(self.reference()).enumerate() {
            let (rows, starts) = (self.batch * map.pixels(), self.batch + 1);
            let (index, start, other_index, other_start) =
                (take(rows), take(starts), take(rows), take(starts));
            let (mut want, mut others) = (Rows::default(), Rows::default());
            active.list(false, &mut want);
            active.list(true, &mut others);
            if i > 0 && self.full_above.is_some_and(|above| kept > above) {
                want.clear(map.pixels());
                for _ in 0..self.batch {
                    (0..map.pixels() as u32).for_each(|pixel| want.push(pixel));
                    want.end_sample();
                }
            }
            assert!(Lists::equal(index, start, &want), "map {i}, {map:?}, {:?}", self.grid);
            if i == 0 {
                assert!(
                    Lists::equal(other_index, other_start, &others),
                    "others of {map:?}, {:?}",
                    self.grid
                );
            }
        }
    }
}

fn conv(input: Extent, kernel: usize, stride: usize) -> ConvGeometry {
    ConvGeometry::padded(input, (1, 1), kernel, stride, kernel / 2)
}

#[test]
fn the_lists_of_a_bottleneck() {
    for stride in [1, 2] {
        let conv2 = conv(Extent { h: 28, w: 28 }, 3, stride);
        let conv3 = conv(conv2.output, 1, 1);
        for density in 0..=4 {
            let (mut random, grid, batch) = (Random(density), Extent { h: 7, w: 7 }, 3);
            let keep = (0..batch * grid.pixels()).map(|_| random.next() % 4 < density).collect();
            for (full_above, side) in
                [(None, 1), (Some(60), 1), (None, 2), (Some(60), 3), (None, 7), (None, 100)]
            {
                let (keep, convs) = (Vec::clone(&keep), vec![conv3, conv2]);
                Chain { keep, grid, batch, output: conv3.output, convs, full_above, side }.check();
            }
        }
    }
}

#[test]
fn one_cell_of_many_samples_and_of_a_wide_map() {
    for at in [0, 5, 31, 36 * 5 - 1] {
        let conv = conv(Extent { h: 11, w: 70 }, 5, 2);
        let (grid, batch) = (Extent { h: 6, w: 6 }, 5);
        let keep = (0..batch * grid.pixels()).map(|i| i == at).collect::<Vec<_>>();
        for side in [1, 4] {
            let (keep, convs) = (Vec::clone(&keep), vec![conv]);
            Chain { keep, grid, batch, output: conv.output, convs, full_above: None, side }.check();
        }
    }
}

#[test]
fn channels_come_in_groups() {
    for (groups, group, batch, density) in
        [(3, 4, 2, 2), (8, 8, 1, 0), (8, 8, 3, 4), (700, 1, 2, 2), (300, 3, 3, 1), (1, 1, 1, 4)]
    {
        let mut random = Random(groups as u64);
        let keep: Vec<bool> = (0..batch * groups).map(|_| random.next() % 4 < density).collect();
        let mut want = Channels::default();
        let (total, channels) = (groups * group, &mut want);
        list_channels(ListChannels { batch, group, total, keep: &keep[..], keep_at: 0, channels }).unwrap();
        let keep: Vec<u8> = keep.into_iter().map(u8::from).collect();
        let (index, count) = in_any_order(|emulator| {
            let mut index = vec![u32::MAX; batch * groups * group];
            let mut count = vec![u32::MAX; batch];
            let params = CompactChannelsParams {
                keep: address(&keep),
                index: address_mut(&mut index),
                count: address_mut(&mut count),
                batch: batch as u32,
                groups: groups as u32,
                group: group as u32,
                reserved: 0,
            };
            execute(emulator, &params.launch(), &params);
            (index, count)
        });
        for n in 0..batch {
            let list = &index[n * groups * group..][..count[n] as usize];
            let all: Vec<u32> = (0..total as u32).collect();
            assert_eq!(list, want.sample(n).unwrap_or(&all), "{groups} groups of {group}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, rng_seed: proptest::test_runner::RngSeed::Fixed(3), ..Default::default() })]
    #[test]
    fn equals_the_reference(
        (h, w, grid_h, grid_w) in (1usize..20, 1usize..70, 1usize..20, 1usize..40),
        kernels in prop::collection::vec((prop_oneof![Just(1usize), Just(3), Just(5), Just(7)], 1usize..3), 0..4),
        (batch, density, seed, above) in (1usize..4, 0u64..5, any::<u64>(), prop::option::of(0u32..30)),
        side in 1usize..6,
    ) {
        let mut map = Extent { h, w };
        let mut convs = Vec::new();
        for (kernel, stride) in kernels {
            let conv = conv(map, kernel, stride);
            map = conv.output;
            convs.push(conv);
        }
        convs.reverse();
        let grid = Extent { h: grid_h.min(map.h), w: grid_w.min(map.w) };
        let mut random = Random(seed);
        let keep = (0..batch * grid.pixels()).map(|_| random.next() % 4 < density).collect();
        Chain { keep, grid, batch, output: map, convs, full_above: above, side }.check();
    }
}
