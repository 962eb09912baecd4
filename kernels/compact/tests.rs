use super::*;
use crate::testing::Random;
use proptest::prelude::*;

/// The definitions, pixel by pixel.
mod reference {
    use super::*;

    pub(super) fn upsample(keep: &[bool], grid: Extent, n: usize, y: usize, x: usize, map: Extent) -> bool {
        keep[(n * grid.h + y * grid.h / map.h) * grid.w + x * grid.w / map.w]
    }

    pub(super) fn grow(active: &BitMap, conv: &ConvGeometry, n: usize, iy: usize, ix: usize) -> bool {
        (0..conv.output.h).any(|oy| {
            (0..conv.output.w).any(|ox| {
                let (r, s) = (iy + conv.pad_top, ix + conv.pad_left);
                let reads =
                    |at: usize, o: usize| (o * conv.stride..o * conv.stride + conv.kernel).contains(&at);
                reads(r, oy) && reads(s, ox) && active.get(n, oy, ox)
            })
        })
    }
}

fn bools(random: &mut Random, len: usize, density: u64) -> Vec<bool> {
    (0..len).map(|_| random.next() % 4 < density).collect()
}

#[test]
fn a_pixel_behind_a_strided_convolution_asks_for_its_receptive_field() {
    let conv = ConvGeometry::padded(Extent { h: 8, w: 8 }, (1, 1), 3, 2, 1);
    let mut keep = [false; 16];
    keep[6] = true;
    let (mut active, mut halo, mut rows) = (BitMap::default(), BitMap::default(), Rows::default());
    active.upsample(&keep, conv.output, 1, conv.output);
    halo.grow(&active, &conv);
    halo.list(false, &mut rows);
    let pixels: Vec<_> = (0..rows.len()).map(|i| (rows.pixel(i) / 8, rows.pixel(i) % 8)).collect();
    assert_eq!(pixels, [(1, 3), (1, 4), (1, 5), (2, 3), (2, 4), (2, 5), (3, 3), (3, 4), (3, 5)]);
}

#[test]
fn channels_come_in_groups() {
    let mut channels = Channels::default();
    let keep = &[false, true, false, true, false, false, true][..];
    let call = ListChannels { batch: 2, group: 4, total: 12, keep, keep_at: 1, channels: &mut channels };
    list_channels(call).unwrap();
    assert_eq!(channels.sample(0), Some(&[0, 1, 2, 3, 8, 9, 10, 11][..]));
    assert_eq!(channels.sample(1), Some(&[8, 9, 10, 11][..]));
}

/// A bottleneck on a 6×6 map behind 3×3 cells: 1×1, 3×3 with stride 1, 1×1.
fn bottleneck(everywhere: bool) -> Branch {
    let map = Extent { h: 6, w: 6 };
    let pointwise = ConvGeometry::pointwise(map, 4, 4);
    let middle = ConvGeometry { kernel: 3, pad_top: 1, pad_left: 1, ..pointwise };
    Branch { grid: Extent { h: 3, w: 3 }, convs: vec![pointwise, middle, pointwise], everywhere }
}

/// Rows of the three convolutions, of what is left over, and how many the first two samples have of each convolution.
fn listed(branch: &Branch, keep: &[bool], schedule: (usize, f32)) -> ([Vec<usize>; 4], Vec<u32>) {
    let batch = keep.len() / branch.grid.pixels();
    let (mut rows, mut others) = ([(); 3].map(|()| Rows::default()), Rows::default());
    let mut starts = vec![7; 1 + 3 * (batch + 1)];
    // In front of what is asked for lies something else.
    let before: Vec<bool> = [true, false].into_iter().chain(keep.iter().copied()).collect();
    let call = BranchRows {
        branch,
        batch,
        keep: &before[..],
        keep_at: 2,
        schedule: Schedule { granularity: schedule.0, dense_above: schedule.1 },
        rows: &mut rows,
        others: Some(&mut others),
        starts: &mut starts[..],
        starts_at: 1,
    };
    list_rows(&mut Scratch::default(), call).unwrap();
    assert_eq!(starts.remove(0), 7);
    let counts = starts.chunks_exact(batch + 1).flat_map(|start| start.windows(2).map(|of| of[1] - of[0]));
    let pixels = |rows: &Rows| (0..rows.len()).map(|i| rows.pixel(i)).collect();
    ([&rows[0], &rows[1], &rows[2], &others].map(pixels), counts.collect())
}

#[test]
fn a_branch_gathers_active_patches_with_their_halo() {
    let (mut keep, every) = ([false; 18], (0..72).collect::<Vec<_>>());
    let branch = bottleneck(false);
    let nothing = ([vec![], vec![], vec![], every.clone()], vec![0; 6]);
    assert_eq!(listed(&branch, &keep, (1, 1.0)), nothing);
    assert_eq!(listed(&bottleneck(true), &keep, (2, 0.0)), nothing);
    // The corner cell of the second sample.
    keep[9] = true;
    let patch = vec![36, 37, 42, 43];
    let halo = vec![36, 37, 38, 42, 43, 44, 48, 49, 50];
    let others: Vec<usize> = every.iter().copied().filter(|pixel| !patch.contains(pixel)).collect();
    let gathered = ([halo, patch.clone(), patch.clone(), others.clone()], vec![0, 9, 0, 4, 0, 4]);
    assert_eq!(listed(&branch, &keep, (1, 1.0)), gathered);
    assert_eq!(listed(&branch, &keep, (1, 0.06)), gathered);
    let square: Vec<usize> = (6..10).flat_map(|y| (0..4).map(move |x| y * 6 + x)).collect();
    let halo: Vec<usize> = (6..11).flat_map(|y| (0..5).map(move |x| y * 6 + x)).collect();
    let coarse = ([halo, square, patch.clone(), others.clone()], vec![0, 25, 0, 16, 0, 4]);
    assert_eq!(listed(&branch, &keep, (2, 1.0)), coarse);
    let dense = ([every.clone(), every.clone(), patch, others], vec![36, 36, 36, 36, 0, 4]);
    assert_eq!(listed(&branch, &keep, (2, 1.0 / 18.0)), dense);
    assert_eq!(listed(&bottleneck(true), &keep, (2, 1.0)), dense);
    let all = ([every.clone(), every.clone(), every, vec![]], vec![36; 6]);
    assert_eq!(listed(&branch, &[true; 18], (1, 1.0)), all);
}

#[test]
fn a_branch_refuses_what_is_too_small() {
    let branch = bottleneck(false);
    let refuse = |keep: &[bool], lists: usize, starts: usize, granularity| {
        let (mut rows, mut starts) = (vec![Rows::default(); lists], vec![0; starts]);
        let schedule = Schedule { granularity, dense_above: 1.0 };
        let (keep_at, others, starts_at) = (1, None, 0);
        let (rows, starts) = (&mut rows[..], &mut starts[..]);
        let branch = &branch;
        let call = BranchRows { branch, batch: 2, keep, keep_at, schedule, rows, others, starts, starts_at };
        list_rows(&mut Scratch::default(), call).err().map(|error| error.to_string())
    };
    assert_eq!(refuse(&[true; 19], 3, 9, 1), None);
    assert!(refuse(&[true; 18], 3, 9, 1).unwrap().contains("decisions holds 17"));
    assert!(refuse(&[true; 19], 2, 9, 1).unwrap().contains("lists holds 2"));
    assert!(refuse(&[true; 19], 3, 8, 1).unwrap().contains("starts holds 8"));
    assert!(refuse(&[true; 19], 3, 9, 0).unwrap().contains("granularity"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, rng_seed: proptest::test_runner::RngSeed::Fixed(3), ..Default::default() })]
    #[test]
    fn equals_the_reference(
        (h, w, grid_h, grid_w) in (1usize..20, 1usize..140, 1usize..20, 1usize..80),
        (kernel, stride, batch) in (prop_oneof![Just(1usize), Just(3), Just(5), Just(7)], 1usize..3, 1usize..4),
        (density, seed) in (0u64..5, any::<u64>()),
    ) {
        let (input, grid) = (Extent { h, w }, Extent { h: grid_h.min(h), w: grid_w.min(w) });
        let conv = ConvGeometry::padded(input, (1, 1), kernel, stride, kernel / 2);
        let output = conv.output;
        let grid = Extent { h: grid.h.min(output.h), w: grid.w.min(output.w) };
        let keep = bools(&mut Random(seed), batch * grid.pixels(), density);
        let (mut active, mut halo) = (BitMap::default(), BitMap::default());
        active.upsample(&keep, grid, batch, output);
        halo.grow(&active, &conv);
        let (mut rows, mut others) = (Rows::default(), Rows::default());
        halo.list(false, &mut rows);
        halo.list(true, &mut others);
        prop_assert_eq!(rows.len() + others.len(), batch * input.pixels());
        prop_assert_eq!(rows.len(), halo.count());
        let mut listed = vec![false; batch * input.pixels()];
        (0..rows.len()).for_each(|i| listed[rows.pixel(i)] = true);
        for n in 0..batch {
            for y in 0..output.h {
                for x in 0..output.w {
                    prop_assert_eq!(active.get(n, y, x), reference::upsample(&keep, grid, n, y, x, output));
                }
            }
            for y in 0..h {
                for x in 0..w {
                    prop_assert_eq!(listed[(n * h + y) * w + x], reference::grow(&active, &conv, n, y, x));
                }
            }
        }
    }
}
