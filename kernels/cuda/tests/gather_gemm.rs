mod gather;

use crate::device::*;
use crate::testing::{Density, Random, worst};
use crate::{Channels, Extent, Rows};
use laud_emulation::Counts;
use laud_kernels::cuda::launch::{GemmMath, GemmTile};
use laud_kernels::cuda::params::GatherGemmParams;
use laud_kernels::gather_gemm::cuda::Packed;
use laud_kernels::gather_gemm::{FilterSpec, GatherGemm, Placement, reference};
use laud_kernels::{Act, ActiveSet, ConvGeometry};
use proptest::prelude::*;

/// One case, by everything that distinguishes it.
#[derive(Clone, Debug)]
struct Case {
    geometry: ConvGeometry,
    batch: usize,
    rows: Density,
    implicit: bool,
    channels: Option<(Density, usize)>,
    compact: bool,
    residual: bool,
    act: Act,
    constants: bool,
    /// Elements from one input pixel to the next, beyond the channels.
    padding: usize,
    split: u32,
    most: u32,
    seed: u64,
}

impl Case {
    fn of(geometry: ConvGeometry) -> Self {
        Case {
            geometry,
            batch: 2,
            rows: Density::All,
            implicit: true,
            channels: None,
            compact: false,
            residual: false,
            act: Act::Relu,
            constants: false,
            padding: 0,
            split: 1,
            most: u32::MAX,
            seed: 1,
        }
    }
}

/// `c_in → c_out` convolution on an `h × w` map with the usual padding.
fn conv(
    (h, w): (usize, usize),
    c: (usize, usize),
    kernel: usize,
    stride: usize,
    groups: usize,
) -> ConvGeometry {
    ConvGeometry { groups, ..ConvGeometry::padded(Extent { h, w }, c, kernel, stride, kernel / 2) }
}

/// f32 sums of up to a few thousand terms of order one over √terms, in another order.
const SUMMATION_ORDER: f32 = 2e-5;
/// The same, of products that are rounded to 10 bits of mantissa.
const TF32_ROUNDING: f32 = 4e-3;

/// Everything a case computes with, rounded to what the storage holds.
struct Operands {
    weight: Vec<f32>,
    bias: Vec<f32>,
    input_constant: Vec<f32>,
    output_constant: Vec<f32>,
    rows: Rows,
    c_in: Channels,
    c_out: Channels,
    input: Vec<f32>,
    before: Vec<f32>,
}

impl Operands {
    fn new<T: Storage>(case: &Case) -> Self {
        let (g, mut random) = (case.geometry, Random(case.seed));
        let scale = 1.0 / ((g.kernel * g.kernel * g.group_in()) as f32).sqrt();
        let weight: Vec<_> = random.values(g.weights()).into_iter().map(|w| w * scale).collect();
        let bias = random.values(g.c_out);
        let (input_constant, output_constant) = (random.values(g.c_in), random.values(g.c_out));
        let rows = case.rows.rows(&mut random, case.batch, g.output.pixels(), case.implicit);
        let list = |total: usize, random: &mut Random| match case.channels {
            Some((density, group)) => density.channels(random, case.batch, total, group),
            None => Channels::all(total),
        };
        let (c_in, c_out) = (list(g.c_in, &mut random), list(g.c_out, &mut random));
        let input = round::<T>(&random.values(case.batch * g.input.pixels() * g.c_in));
        let before = round::<T>(&random.values(case.batch * g.output.pixels() * g.c_out));
        let weight = round::<T>(&weight);
        Self { weight, bias, input_constant, output_constant, rows, c_in, c_out, input, before }
    }

    fn spec(&self, case: &Case) -> FilterSpec<'_> {
        FilterSpec {
            geometry: case.geometry,
            weight: &self.weight,
            bias: &self.bias,
            input_constant: case.constants.then_some(&self.input_constant),
            output_constant: case.constants.then_some(&self.output_constant),
            output_group: None,
        }
    }

    fn reference(&self, case: &Case) -> Vec<f32> {
        let mut want = self.before.clone();
        let place = |compact| if compact { Placement::Compact } else { Placement::Natural };
        let active = ActiveSet { rows: &self.rows, c_in: &self.c_in, c_out: &self.c_out };
        let mut call = GatherGemm {
            active,
            input: &self.input[..],
            input_rows: place(case.compact && case.geometry.is_pointwise()),
            output: &mut want[..],
            output_rows: place(case.compact),
            residual: case.residual,
            act: case.act,
        };
        reference(&self.spec(case), &mut call);
        want
    }

    /// What a launch reads and multiplies, from the lists alone: every active input channel of every tap that lies inside,
    /// once for each tile of columns, and every weight once for each tile of rows; whole tiles are multiplied.
    fn claim(&self, case: &Case, tile: &GemmTile, shape: &GatherGemmParams, bytes: usize) -> Counts {
        let (g, vector) = (&case.geometry, 16 / bytes);
        let (rows_at_once, columns_at_once) = (tile.rows as usize, tile.columns as usize);
        let [group_in, group_out] = [shape.group_in, shape.group_out].map(|n| n as usize);
        let taps = (shape.window.kernel_h * shape.window.kernel_w) as usize;
        let per_sample = case.channels.is_some();
        // A kernel row that is read as one tap lies inside as a whole.
        let folded = shape.window.kernel_w as usize != g.kernel;
        let inside = |pixel: usize| {
            let (y, x) = (pixel % g.output.pixels() / g.output.w, pixel % g.output.w);
            let hit = |at: usize, pad: usize, n: usize| {
                (0..g.kernel).filter(|r| (at * g.stride + r).wrapping_sub(pad) < n).count()
            };
            hit(y, g.pad_top, g.input.h) * if folded { 1 } else { hit(x, g.pad_left, g.input.w) }
        };
        let within = |list: Option<&[u32]>, group: usize, width: usize| match list {
            Some(list) => list.iter().filter(|&&c| c as usize / width == group).count(),
            None => width,
        };
        // Samples whose rows share tiles.
        let samples = if per_sample { case.batch } else { 1 };
        let mut counts = Counts { copied: 0, products: 0 };
        for n in 0..samples {
            let rows = if per_sample { self.rows.sample(n) } else { 0..self.rows.len() };
            let rows: Vec<_> = rows.map(|i| self.rows.pixel(i)).collect();
            for group in 0..shape.groups as usize {
                let list = |channels: &'_ Channels| channels.sample(n).map(<[u32]>::to_vec);
                let (c_in, c_out) = match per_sample {
                    true => (list(&self.c_in), list(&self.c_out)),
                    false => (None, None),
                };
                let inputs = within(c_in.as_deref(), group, group_in);
                let columns = within(c_out.as_deref(), group, group_out);
                // Single channels of weights are not copied but stored.
                let runs = case.channels.is_none_or(|(_, group)| group % vector == 0);
                for rows in rows.chunks(rows_at_once) {
                    for first in (0..columns).step_by(columns_at_once) {
                        let width = columns_at_once.min(columns - first);
                        let left: usize = rows.iter().map(|&pixel| inside(pixel) * inputs).sum();
                        let right = if runs { width * taps * inputs } else { 0 };
                        counts.copied += ((left + right) * bytes) as u64;
                        let steps = (taps * inputs.div_ceil(vector)).div_ceil(4);
                        counts.products += (steps * 4 * vector * rows_at_once * columns_at_once) as u64;
                    }
                }
            }
        }
        counts
    }

    /// `None` where the tile cannot. Whatever lies in an output is never written outside the active set, so `before` comes back there.
    fn run<T: Storage>(&self, case: &Case, tile: &GemmTile) -> Option<Vec<f32>> {
        let g = &case.geometry;
        let pixel = g.c_in + case.padding;
        let packed = Packed::new(&self.spec(case), pixel).unwrap();
        // Padding of pixels holds numbers that must not matter, and some follow the last pixel.
        let mut input = vec![T::from_f32(3.0); self.input.len() / g.c_in * pixel + 8];
        for (to, from) in input.chunks_exact_mut(pixel).zip(self.input.chunks_exact(g.c_in)) {
            to.iter_mut().zip(from).for_each(|(to, &from)| *to = T::from_f32(from));
        }
        let weight: Vec<T> = store(&packed.weight);
        let rows = DeviceRows::new(&self.rows);
        let group = case.channels.map_or(1, |(_, group)| group);
        let c_in = DeviceChannels::new(&self.c_in, case.batch, group);
        let c_out = DeviceChannels::new(&self.c_out, case.batch, group);
        let params = GatherGemmParams {
            rows: rows.params(),
            c_in: c_in.params(),
            c_out: c_out.params(),
            input: address(&input),
            weight: address(&weight),
            bias: address(&packed.bias),
            output_constant: packed.output_constant.as_ref().map_or(0, |constant| address(constant)),
            input_rows: u32::from(case.compact && g.is_pointwise()),
            output_rows: u32::from(case.compact),
            residual: u32::from(case.residual),
            act: case.act.into(),
            split: case.split,
            ..packed.params()
        };
        if case.split > 1 && !tile.has_parts() {
            return None;
        }
        if tile.math != GemmMath::Simt && !params.suits_tensor_cores(size_of::<T>() as u32) {
            return None;
        }
        Some(in_any_order(|emulator| {
            let mut output: Vec<T> = store(&self.before);
            let mut partial = vec![f32::NAN; params.partial_len(tile)];
            let mut arrived = vec![0u32; if case.split > 1 { params.tiles(tile) } else { 0 }];
            let params = GatherGemmParams {
                output: address_mut(&mut output),
                partial: address_mut(&mut partial),
                arrived: address_mut(&mut arrived),
                ..params
            };
            let counts = execute(emulator, &params.launch(T::NAME, tile, case.most), &params);
            if tile.math != GemmMath::Simt {
                assert_eq!(
                    counts,
                    self.claim(case, tile, &packed.params(), size_of::<T>()),
                    "{case:?} {tile:?}"
                );
            }
            assert!(arrived.iter().all(|&count| count == 0), "a counter is not zero behind the launch");
            load(&output)
        }))
    }
}

/// Whether a kernel is there for the storage.
fn exists<T: Storage>(tile: &GemmTile) -> bool {
    match tile.math {
        GemmMath::TensorCores => size_of::<T>() == 2,
        GemmMath::Tf32 => size_of::<T>() == 4,
        GemmMath::Simt => true,
    }
}

/// Runs every kernel that can; returns how many of those on tensor cores could.
fn check<T: Storage>(case: &Case) -> usize {
    let operands = Operands::new::<T>(case);
    let want = operands.reference(case);
    let mut on_tensor_cores = 0;
    for tile in GemmTile::ALL.iter().filter(|tile| exists::<T>(tile)) {
        let Some(got) = operands.run::<T>(case, tile) else { continue };
        let tolerance = match tile.math {
            GemmMath::Tf32 => TF32_ROUNDING,
            _ => SUMMATION_ORDER.max(T::ROUNDING),
        };
        let error = worst(&got, &want, 1.0);
        assert!(error <= tolerance, "{case:?}, {} {tile:?}: {error:e}", T::NAME);
        on_tensor_cores += usize::from(tile.math != GemmMath::Simt);
    }
    on_tensor_cores
}

fn check_everywhere(case: &Case) -> usize {
    check::<f32>(case) + check::<half::f16>(case) + check::<half::bf16>(case)
}

#[test]
fn geometries_by_name() {
    for (geometry, padding, tensor_cores) in [
        (conv((7, 7), (64, 96), 1, 1, 1), 0, true),
        (conv((9, 6), (32, 48), 3, 1, 1), 0, true),
        (conv((15, 9), (24, 136), 3, 2, 1), 0, true),
        (conv((8, 8), (16, 16), 3, 1, 2), 0, true),
        (conv((8, 8), (48, 48), 3, 1, 2), 0, true),
        (conv((5, 5), (104, 104), 3, 2, 13), 0, true),
        (conv((1, 1), (300, 10), 1, 1, 1), 4, true),
        (conv((1, 5), (3, 7), 3, 1, 1), 0, false),
        (conv((2, 2), (8, 8), 3, 2, 1), 0, true),
        (conv((12, 12), (3, 64), 7, 2, 1), 0, false),
        (conv((6, 6), (8, 72), 1, 2, 1), 0, true),
    ] {
        for rows in Density::EVERY {
            let kernels = check_everywhere(&Case { rows, padding, ..Case::of(geometry) });
            assert_eq!(kernels > 0, tensor_cores, "{geometry}");
        }
    }
}

#[test]
fn a_stem_reads_kernel_rows_as_one_tap() {
    // Behind a border; pixels of three channels padded to four (two of them to a vector of halves) or eight.
    for (input, stride, padding) in [((21, 22), 2, 1), ((13, 12), 1, 5), ((22, 19), 2, 0), ((9, 8), 1, 1)] {
        let (h, w) = input;
        let along = |n: usize| (n - 7) / stride + 1;
        let output = Extent { h: along(h), w: along(w) };
        let geometry = ConvGeometry { pad_top: 0, pad_left: 0, output, ..conv(input, (3, 16), 7, stride, 1) };
        for rows in [Density::All, Density::Half] {
            check_everywhere(&Case { rows, padding, ..Case::of(geometry) });
        }
    }
}

#[test]
fn channel_sets_differ_between_samples() {
    for (geometry, group) in [
        (conv((7, 7), (64, 64), 1, 1, 1), 8),
        (conv((5, 4), (64, 64), 3, 1, 1), 8),
        (conv((9, 7), (40, 72), 3, 2, 1), 1),
        (conv((4, 4), (128, 128), 3, 1, 1), 2),
        (conv((4, 4), (48, 48), 3, 1, 6), 4),
        (conv((6, 6), (48, 48), 3, 1, 2), 8),
        (conv((4, 4), (144, 144), 3, 1, 2), 8),
    ] {
        for density in Density::EVERY {
            let channels = Some((density, group));
            check_everywhere(&Case { channels, batch: 3, ..Case::of(geometry) });
            let (rows, constants, compact) = (Density::Half, true, true);
            check_everywhere(&Case { channels, constants, rows, compact, ..Case::of(geometry) });
        }
    }
}

#[test]
fn constants_are_worth_nothing_outside_the_input() {
    for geometry in [
        conv((6, 5), (16, 24), 3, 1, 1),
        conv((7, 8), (8, 8), 3, 2, 1),
        conv((2, 2), (8, 16), 5, 1, 1),
        conv((6, 6), (16, 16), 3, 1, 2),
        ConvGeometry { pad_top: 0, pad_left: 0, ..conv((9, 9), (8, 16), 3, 2, 1) },
    ] {
        for rows in Density::EVERY {
            check_everywhere(&Case { rows, constants: true, ..Case::of(geometry) });
        }
    }
}

#[test]
fn residual_adds_in_place_and_leaves_inactive_rows() {
    for act in [Act::None, Act::Relu, Act::Relu6] {
        for rows in Density::EVERY {
            for c_out in [100, 104] {
                let geometry = conv((10, 6), (40, c_out), 1, 1, 1);
                check_everywhere(&Case { rows, act, residual: true, ..Case::of(geometry) });
            }
        }
    }
}

#[test]
fn split_sums_and_short_grids_give_the_same() {
    for (split, grids) in [(1, [1, 3]), (2, [2, u32::MAX]), (3, [5, u32::MAX]), (40, [7, u32::MAX])] {
        for most in grids {
            for channels in [None, Some((Density::Half, 8))] {
                let geometry = conv((13, 11), (40, 136), 3, 1, 1);
                let (rows, residual) = (Density::Half, true);
                check_everywhere(&Case { split, most, channels, rows, residual, ..Case::of(geometry) });
            }
        }
    }
}

#[test]
fn a_row_does_not_depend_on_the_others_or_its_place() {
    let (geometry, mut runs) = (conv((9, 8), (40, 72), 3, 1, 1), 0);
    for split in [1, 3] {
        let case = Case { split, batch: 1, ..Case::of(geometry) };
        let alone = Operands::new::<half::f16>(&case);
        for tile in GemmTile::ALL.iter().filter(|tile| exists::<half::f16>(tile)) {
            let Some(dense) = alone.run::<half::f16>(&case, tile) else { continue };
            runs += 1;
            // Twice in a batch, at half density.
            let case = Case { batch: 3, rows: Density::Half, implicit: false, ..case.clone() };
            let mut operands = Operands::new::<half::f16>(&case);
            let before = operands.before.clone();
            operands.weight.clone_from(&alone.weight);
            operands.bias.clone_from(&alone.bias);
            operands.input = alone.input.repeat(3);
            let sparse = operands.run::<half::f16>(&case, tile).unwrap();
            for (pixel, row) in sparse.chunks_exact(72).enumerate() {
                let active = (0..operands.rows.len()).any(|i| operands.rows.pixel(i) == pixel);
                let want = if active { &dense[pixel % 72 * 72..][..72] } else { &before[pixel * 72..][..72] };
                assert_eq!(row, want, "pixel {pixel}, {tile:?}");
            }
        }
    }
    assert_eq!(runs, 6 + 2, "every tile, and those with parts again");
}

#[test]
fn nan_in_the_input_is_not_swallowed() {
    for act in [Act::None, Act::Relu, Act::Relu6] {
        let case = Case { act, batch: 1, ..Case::of(conv((1, 1), (8, 40), 1, 1, 1)) };
        let mut operands = Operands::new::<half::bf16>(&case);
        operands.input[1] = f32::NAN;
        operands.weight.fill(0.5);
        for tile in GemmTile::ALL.iter().filter(|tile| exists::<half::bf16>(tile)) {
            let got = operands.run::<half::bf16>(&case, tile).unwrap();
            assert!(got.iter().all(|v| v.is_nan()), "{act:?}, {tile:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, rng_seed: proptest::test_runner::RngSeed::Fixed(7), ..Default::default() })]
    #[test]
    fn equals_the_reference(
        (h, w, kernel, stride) in (1usize..12, 1usize..12, prop_oneof![Just(1usize), Just(3), Just(5)], 1usize..3),
        (group, in_groups, out_groups, conv_groups) in (1usize..9, 1usize..9, 1usize..9, 1usize..4),
        (batch, rows, channels, padding) in (1usize..4, 0usize..4, 0usize..8, 0usize..9),
        (compact, residual, constants, implicit) in any::<(bool, bool, bool, bool)>(),
        (split, most, seed) in (1u32..4, 1u32..9, any::<u64>()),
    ) {
        let c = (group * in_groups * conv_groups, group * out_groups * conv_groups);
        let geometry = conv((h, w), c, kernel, stride, conv_groups);
        let channels = Density::EVERY.get(channels).map(|&density| (density, group));
        let rows = Density::EVERY[rows];
        let case = Case {
            geometry, batch, rows, implicit, channels, compact, residual, act: Act::Relu, constants, padding, split, most, seed,
        };
        check_everywhere(&case);
    }
}
