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
    let conv = ConvGeometry {
        input: Extent { h: 8, w: 8 },
        output: Extent { h: 4, w: 4 },
        c_in: 1,
        c_out: 1,
        kernel: 3,
        stride: 2,
        pad_top: 1,
        pad_left: 1,
        groups: 1,
    };
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
    list_channels(&[true, false, true, false, false, true], 2, 4, &mut channels, 12);
    assert_eq!(channels.sample(0), Some(&[0, 1, 2, 3, 8, 9, 10, 11][..]));
    assert_eq!(channels.sample(1), Some(&[8, 9, 10, 11][..]));
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
        let pad = kernel / 2;
        let along = |n: usize| (n + 2 * pad - kernel) / stride + 1;
        let output = Extent { h: along(h), w: along(w) };
        let conv = ConvGeometry { input, output, c_in: 1, c_out: 1, kernel, stride, pad_top: pad, pad_left: pad, groups: 1 };
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
