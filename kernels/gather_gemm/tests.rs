use super::*;
use crate::simd::Kind;
use crate::testing::{Density, Random, worst};
use crate::{Channels, ConvGeometry, Crew, DType, Extent, Isa, Team};
use proptest::prelude::*;

mod packing;

/// One case, by everything that distinguishes it.
#[derive(Clone, Debug)]
struct Case {
    geometry: ConvGeometry,
    batch: usize,
    rows: Density,
    channels: Option<(Density, usize)>,
    /// Of the input, of the output.
    listed: (bool, bool),
    /// What the filter is told about how its output channels come.
    group: Option<usize>,
    compact: bool,
    residual: bool,
    act: Act,
    /// Of inactive input channels, and of inactive output channels.
    constants: (bool, bool),
    threads: usize,
    seed: u64,
}

impl Case {
    fn of(geometry: ConvGeometry) -> Self {
        Case {
            geometry,
            batch: 2,
            rows: Density::All,
            channels: None,
            listed: (true, true),
            group: None,
            compact: false,
            residual: false,
            act: Act::Relu,
            constants: (false, false),
            threads: 2,
            seed: 1,
        }
    }
}

/// `c_in → c_out` convolution on an `h × w` map with the usual padding.
fn conv(
    h: usize,
    w: usize,
    c_in: usize,
    c_out: usize,
    kernel: usize,
    stride: usize,
    groups: usize,
) -> ConvGeometry {
    let pad = kernel / 2;
    let along = |n: usize| (n + 2 * pad - kernel) / stride + 1;
    let (input, output) = (Extent { h, w }, Extent { h: along(h), w: along(w) });
    ConvGeometry { input, output, c_in, c_out, kernel, stride, pad_top: pad, pad_left: pad, groups }
}

/// The same on the input as it is, where the kernel fits.
fn unpadded(g: ConvGeometry) -> ConvGeometry {
    let bare = ConvGeometry::padded(g.input, (g.c_in, g.c_out), g.kernel, g.stride, 0);
    match g.input.h.min(g.input.w) >= g.kernel {
        true => ConvGeometry { groups: g.groups, ..bare },
        false => g,
    }
}

/// Weights and other values of a case: for floating point elements of order one, of whole numbers so that every sum is exact.
struct Values {
    weight: Vec<f32>,
    /// What values are multiplied with and rounded to.
    scale: f32,
    whole: bool,
}

impl Values {
    fn new<E: Element>(g: &ConvGeometry, random: &mut Random) -> Self {
        let len = g.kernel * g.kernel * g.group_in();
        let weight = random.values(g.weights());
        if E::DTYPE != DType::Int8 {
            let scale = 1.0 / (len as f32).sqrt();
            let weight = weight.into_iter().map(|w| E::from_f32(w * scale).to_f32()).collect();
            return Self { weight, scale: 1.0, whole: false };
        }
        // Multiples of a power of two, of which the largest of each channel is 127 times that: they are packed as they are. Sums
        // are of order 40.
        let unit = (-(73.0f32 * (len as f32).sqrt() / 40.0 * 73.0).log2().round()).exp2();
        let whole = |(i, w): (usize, f32)| if i % len == 0 { 127.0 } else { (127.0 * w).round() };
        let weight = weight.into_iter().enumerate().map(|w| unit * whole(w)).collect();
        Self { weight, scale: 127.0, whole: true }
    }

    fn some(&self, random: &mut Random, len: usize) -> Vec<f32> {
        let round = |v: f32| if self.whole { (self.scale * v).round() } else { self.scale * v };
        random.values(len).into_iter().map(round).collect()
    }
}

fn check<E: Element>(case: &Case, isa: Isa, tolerance: f32) {
    let (got, want) = outputs::<E>(case, isa);
    let worst = worst(&got, &want, 1.0);
    assert!(worst <= tolerance, "{case:?} on {}: {worst:e}", isa.name());
}

/// What the kernel and the reference give.
fn outputs<E: Element>(case: &Case, isa: Isa) -> (Vec<f32>, Vec<f32>) {
    let g = case.geometry;
    let mut random = Random(case.seed);
    let values = Values::new::<E>(&g, &mut random);
    let bias = values.some(&mut random, g.c_out);
    let (input_constant, output_constant) =
        (values.some(&mut random, g.c_in), values.some(&mut random, g.c_out));
    let spec = FilterSpec {
        geometry: g,
        weight: &values.weight,
        bias: &bias,
        input_constant: case.constants.0.then_some(&input_constant),
        output_constant: case.constants.1.then_some(&output_constant),
        output_group: case.group,
    };
    let rows = case.rows.rows(&mut random, case.batch, g.output.pixels(), case.seed.is_multiple_of(2));
    let list = |total: usize, listed: bool, random: &mut Random| match case.channels {
        Some((density, group)) if listed => density.channels(random, case.batch, total, group),
        _ => Channels::all(total),
    };
    let c_in = list(g.c_in, case.listed.0, &mut random);
    let c_out = list(g.c_out, case.listed.1, &mut random);
    let compact_in = case.compact && g.is_pointwise();
    let placement = |compact| if compact { Placement::Compact } else { Placement::Natural };
    let mut map = |map: Extent, c: usize| -> Vec<E> {
        values.some(&mut random, case.batch * map.pixels() * c).into_iter().map(E::from_f32).collect()
    };
    let (input, before) = (map(g.input, g.c_in), map(g.output, g.c_out));

    let call = |output| GatherGemm {
        active: ActiveSet { rows: &rows, c_in: &c_in, c_out: &c_out },
        input: &input[..],
        input_rows: placement(compact_in),
        output,
        output_rows: placement(case.compact),
        residual: case.residual,
        act: case.act,
    };
    let mut want = before.clone();
    reference(&spec, &mut call(&mut want[..]));
    let mut got = before.clone();
    let filter = Filter::<E>::pack(isa, &spec).unwrap();
    let crew = Crew::start(case.threads).unwrap();
    let mut scratch: Vec<_> = (0..case.threads).map(|_| Scratch::new().unwrap()).collect();
    Team::scope(Some(&crew), |team| run(isa, team, &filter, &mut scratch, call(&mut got[..]))).unwrap();
    let floats = |v: &[E]| v.iter().map(|v| v.to_f32()).collect::<Vec<_>>();
    (floats(&got), floats(&want))
}

/// f32 sums of up to a few thousand terms of order one over √terms, in another order.
const SUMMATION_ORDER: f32 = 2e-5;
/// Whole numbers are summed exactly.
const EXACT: f32 = 0.0;
/// One rounding to bf16 of a value that differs by [`SUMMATION_ORDER`].
const BF16_ROUNDING: f32 = 8e-3;

fn check_everywhere(case: &Case) {
    for isa in Isa::available() {
        check::<f32>(case, isa, SUMMATION_ORDER);
    }
    for isa in Isa::available().into_iter().chain([Isa(Kind::SoftTiles)]) {
        check::<half::bf16>(case, isa, BF16_ROUNDING);
        check::<i8>(case, isa, EXACT);
    }
}

#[test]
fn geometries_by_name() {
    for geometry in [
        conv(7, 7, 64, 96, 1, 1, 1),
        conv(14, 14, 32, 48, 3, 1, 1),
        conv(15, 9, 24, 40, 3, 2, 1),
        conv(8, 8, 16, 16, 3, 1, 2),
        conv(8, 8, 48, 48, 3, 1, 2),
        conv(9, 9, 104, 104, 3, 2, 13),
        // Groups whose kernel rows are read where they were copied to, in whole steps of tiles and not, on wide maps and not.
        conv(14, 14, 96, 96, 3, 1, 6),
        conv(29, 40, 48, 48, 3, 2, 3),
        conv(9, 20, 104, 104, 3, 1, 13),
        conv(7, 33, 72, 72, 5, 2, 3),
        conv(12, 17, 80, 80, 3, 1, 2),
        conv(10, 34, 128, 64, 3, 2, 2),
        // Strides over copied lines, and rows that are read into the next.
        conv(32, 34, 64, 40, 3, 2, 1),
        conv(9, 20, 48, 40, 1, 1, 1),
        // Few channels, whose kernel rows are read where lines were copied to.
        conv(20, 21, 16, 24, 3, 1, 1),
        conv(9, 40, 24, 40, 3, 2, 1),
        conv(13, 18, 56, 40, 3, 1, 1),
        conv(1, 1, 300, 10, 1, 1, 1),
        conv(1, 5, 3, 7, 3, 1, 1),
        conv(2, 2, 8, 8, 3, 2, 1),
        conv(20, 20, 3, 64, 7, 2, 1),
        // Maps that are large enough for a wide tile, with one and with several parts of its reduction.
        conv(28, 28, 24, 64, 1, 1, 1),
        conv(30, 29, 13, 128, 3, 1, 1),
        conv(14, 14, 120, 64, 3, 1, 1),
        // More parts of the reduction than divide its segments evenly.
        conv(3, 2, 1030, 20, 3, 1, 1),
        ConvGeometry {
            pad_top: 0,
            pad_left: 0,
            output: Extent { h: 8, w: 7 },
            ..conv(22, 19, 3, 16, 7, 2, 1)
        },
        ConvGeometry { pad_top: 0, pad_left: 0, ..conv(8, 8, 12, 20, 3, 2, 1) },
        // Kernel rows that are read where they lie, the last ones up to the end of the input and not.
        ConvGeometry {
            pad_top: 0,
            pad_left: 0,
            output: Extent { h: 6, w: 37 },
            ..conv(17, 80, 3, 40, 7, 2, 1)
        },
        ConvGeometry {
            pad_top: 0,
            pad_left: 0,
            output: Extent { h: 3, w: 20 },
            ..conv(7, 24, 5, 24, 5, 1, 1)
        },
        ConvGeometry {
            pad_top: 0,
            pad_left: 0,
            output: Extent { h: 5, w: 16 },
            ..conv(7, 18, 8, 8, 3, 1, 1)
        },
        // The same with kernel rows of more than a step, and of more than one block of channels.
        unpadded(conv(14, 15, 16, 24, 3, 1, 1)),
        unpadded(conv(21, 19, 32, 16, 3, 2, 1)),
        unpadded(conv(9, 20, 72, 40, 3, 1, 1)),
    ] {
        for rows in Density::EVERY {
            check_everywhere(&Case { rows, ..Case::of(geometry) });
        }
    }
}

#[test]
fn tiles_give_the_same_bits_on_any_number_of_threads() {
    let stem = conv(39, 39, 3, 40, 7, 2, 1);
    for (geometry, batch) in [
        (conv(14, 14, 64, 96, 3, 1, 1), 1),
        (conv(21, 20, 96, 64, 3, 1, 1), 3),
        (conv(20, 20, 320, 64, 1, 1, 1), 2),
        (conv(20, 20, 48, 64, 1, 1, 1), 2),
        (conv(20, 20, 48, 64, 3, 1, 1), 2),
        // Blocks whose rows stay near while panels pass by.
        (conv(24, 25, 64, 144, 1, 1, 1), 1),
        (conv(28, 20, 80, 80, 3, 1, 5), 2),
        (conv(34, 36, 104, 104, 3, 2, 13), 2),
        (ConvGeometry { pad_top: 0, pad_left: 0, output: Extent { h: 17, w: 17 }, ..stem }, 2),
    ] {
        // An even seed: all rows are active without being listed.
        let case = Case { batch, seed: 4, ..Case::of(geometry) };
        for isa in Isa::named("amx").into_iter().chain([Isa(Kind::SoftTiles)]) {
            let (bits, _) = outputs::<half::bf16>(&Case { threads: 1, ..case.clone() }, isa);
            for threads in [2, 3, 7] {
                let (other, _) = outputs::<half::bf16>(&Case { threads, ..case.clone() }, isa);
                assert_eq!(bits, other, "{geometry} with {threads} threads on {}", isa.name());
            }
            // Rows among which others are inactive, near each other and far.
            for rows in [Density::Half, Density::One] {
                let case = Case { rows, ..case.clone() };
                let (some, _) = outputs::<half::bf16>(&case, isa);
                let (one, _) = outputs::<half::bf16>(&Case { threads: 1, ..case }, isa);
                assert_eq!(some, one, "{geometry} with {rows:?} rows on {}", isa.name());
            }
        }
    }
}

#[test]
fn channel_sets_differ_between_samples() {
    for (geometry, group) in [
        (conv(7, 7, 64, 64, 1, 1, 1), 8),
        (conv(7, 7, 64, 64, 3, 1, 1), 8),
        (conv(9, 7, 40, 72, 3, 2, 1), 1),
        (conv(6, 6, 128, 128, 3, 1, 1), 2),
        (conv(6, 6, 48, 48, 3, 1, 6), 4),
        (conv(6, 6, 48, 48, 3, 1, 2), 8),
        (conv(20, 20, 72, 40, 3, 2, 1), 8),
        (conv(5, 5, 160, 96, 3, 1, 1), 16),
    ] {
        for (density, told) in
            Density::EVERY.into_iter().flat_map(|density| [(density, false), (density, true)])
        {
            for constants in [(false, false), (true, false), (true, true)] {
                let (channels, group) = (Some((density, group)), told.then_some(group));
                let case = Case { channels, group, constants, ..Case::of(geometry) };
                check_everywhere(&Case { batch: 3, ..case.clone() });
                check_everywhere(&Case { rows: Density::Half, residual: true, ..case.clone() });
                check_everywhere(&Case { listed: (true, false), group: None, ..case.clone() });
                check_everywhere(&Case { listed: (false, true), group, ..case });
            }
        }
    }
}

#[test]
fn large_maps_pack_the_active_channels() {
    for (geometry, threads) in [
        (conv(32, 32, 16, 40, 3, 1, 1), 2),
        (conv(33, 32, 32, 64, 1, 1, 1), 3),
        (conv(64, 66, 24, 72, 3, 2, 1), 1),
    ] {
        for density in Density::EVERY {
            let (channels, group) = (Some((density, 8)), Some(8));
            let case = Case { channels, group, threads, ..Case::of(geometry) };
            check_everywhere(&Case { constants: (true, true), ..case.clone() });
            check_everywhere(&Case { rows: Density::Half, residual: true, ..case });
        }
    }
}

#[test]
fn what_is_packed_for_several_blocks_of_rows_stays() {
    // Panels of other lengths, from one group or sample to the next.
    for geometry in
        [conv(20, 21, 48, 48, 3, 1, 2), conv(20, 21, 40, 96, 3, 1, 1), conv(17, 17, 72, 72, 1, 1, 3)]
    {
        for (density, threads) in [(Density::Half, 1), (Density::Half, 2), (Density::One, 1)] {
            for seed in 0..4 {
                let channels = Some((density, 4));
                check_everywhere(&Case { channels, threads, seed, batch: 3, ..Case::of(geometry) });
            }
        }
    }
}

#[test]
fn channels_that_come_otherwise_than_the_filter_was_told() {
    let geometry = conv(6, 7, 64, 44, 3, 1, 1);
    for group in [Some(8), Some(4), None] {
        for channels in [(Density::Half, 1), (Density::Half, 4), (Density::One, 4), (Density::All, 1)] {
            let case = Case { channels: Some(channels), group, ..Case::of(geometry) };
            check_everywhere(&Case { constants: (true, true), ..case.clone() });
            check_everywhere(&Case { listed: (true, false), ..case.clone() });
            check_everywhere(&Case { act: Act::Relu6, residual: true, ..case });
        }
        let case = Case { group, ..Case::of(geometry) };
        check_everywhere(&case);
        check_everywhere(&Case { rows: Density::Half, residual: true, ..case });
    }
}

#[test]
fn input_channels_that_come_in_runs_of_a_map_that_has_others() {
    // Two groups of six are three runs of four, but the next tap's begin in the middle of one.
    for seed in 0..8 {
        let (geometry, channels) = (conv(5, 5, 18, 20, 3, 1, 1), Some((Density::Half, 6)));
        check_everywhere(&Case { channels, listed: (true, false), seed, batch: 3, ..Case::of(geometry) });
    }
}

#[test]
fn residual_adds_in_place_and_leaves_inactive_rows() {
    for act in [Act::None, Act::Relu, Act::Relu6] {
        for rows in Density::EVERY {
            check_everywhere(&Case { rows, act, residual: true, ..Case::of(conv(10, 6, 40, 100, 1, 1, 1)) });
        }
    }
}

#[test]
fn nan_in_the_input_is_not_swallowed() {
    let geometry = ConvGeometry::pointwise(Extent { h: 1, w: 1 }, 4, 40);
    let spec = FilterSpec {
        geometry,
        weight: &[0.5; 160],
        bias: &[0.0; 40],
        input_constant: None,
        output_constant: None,
        output_group: None,
    };
    for isa in Isa::available() {
        for act in [Act::None, Act::Relu, Act::Relu6] {
            let filter = Filter::pack(isa, &spec).unwrap();
            let (rows, c_in, c_out) = (Rows::all(1, 1), Channels::all(4), Channels::all(40));
            let mut output = [0.0f32; 40];
            let call = GatherGemm {
                active: ActiveSet { rows: &rows, c_in: &c_in, c_out: &c_out },
                input: &[1.0, f32::NAN, 0.0, 0.0][..],
                input_rows: Placement::Natural,
                output: &mut output[..],
                output_rows: Placement::Natural,
                residual: false,
                act,
            };
            Team::scope(None, |team| run(isa, team, &filter, &mut [Scratch::new().unwrap()], call)).unwrap();
            assert!(output.iter().all(|v| v.is_nan()), "{act:?} on {}", isa.name());
        }
    }
}

use crate::Rows;

#[test]
fn sums_beyond_32_bits_are_refused_at_load() {
    let geometry = conv(4, 4, 8, 8, 3, 1, 1);
    let pack = |weight: f32, bias: f32| {
        let (weight, bias) = (vec![weight; geometry.weights()], [bias; 8]);
        let (input_constant, output_constant, output_group) = (None, None, None);
        let spec = FilterSpec {
            geometry,
            weight: &weight,
            bias: &bias,
            input_constant,
            output_constant,
            output_group,
        };
        Filter::<i8>::pack(Isa::best_for(DType::Int8), &spec).map(|_| ())
    };
    pack(1e4, 1e8).unwrap();
    for (weight, bias) in [(1e6, 0.0), (1.0, -2e9)] {
        assert!(pack(weight, bias).unwrap_err().to_string().contains("too large for whole numbers"));
    }
}

#[test]
fn operands_that_do_not_fit_are_refused() {
    let geometry = conv(4, 4, 8, 8, 3, 1, 1);
    let weight = vec![0.0; geometry.weights()];
    let spec = |weight| FilterSpec {
        geometry,
        weight,
        bias: &[0.0; 8],
        input_constant: None,
        output_constant: None,
        output_group: None,
    };
    assert!(matches!(
        Filter::<f32>::pack(Isa::detect(), &spec(&weight[1..])),
        Err(Error::Size { what: "weight", .. })
    ));
    let filter = Filter::<f32>::pack(Isa::detect(), &spec(&weight)).unwrap();
    let full = vec![0.0f32; 128];
    let refuse = |rows: &Rows, c_in: &Channels, input: &[f32], outputs: usize, input_rows| {
        let c_out = Channels::all(8);
        let call = GatherGemm {
            active: ActiveSet { rows, c_in, c_out: &c_out },
            input,
            input_rows,
            output: &mut vec![0.0; outputs][..],
            output_rows: Placement::Natural,
            residual: false,
            act: Act::None,
        };
        let outcome =
            Team::scope(None, |team| run(Isa::detect(), team, &filter, &mut [Scratch::new().unwrap()], call));
        assert!(outcome.is_err());
    };
    use Placement::{Compact, Natural};
    refuse(&Rows::all(1, 16), &Channels::all(8), &full[1..], 128, Natural);
    refuse(&Rows::all(1, 16), &Channels::all(8), &full, 127, Natural);
    refuse(&Rows::all(1, 16), &Channels::all(8), &full, 128, Compact);
    refuse(&Rows::all(1, 17), &Channels::all(8), &full, 200, Natural);
    refuse(&Rows::all(2, 16), &Channels::all(8), &full, 256, Natural);
    refuse(&Rows::all(1, 16), &Channels::all(9), &full, 128, Natural);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, rng_seed: proptest::test_runner::RngSeed::Fixed(7), ..Default::default() })]
    #[test]
    fn equals_the_reference(
        (h, w, kernel, stride) in (1usize..12, 1usize..12, prop_oneof![Just(1usize), Just(3), Just(5)], 1usize..3),
        (group, in_groups, out_groups, conv_groups) in (1usize..9, 1usize..9, 1usize..9, 1usize..4),
        (batch, rows, channels) in (1usize..4, 0usize..4, 0usize..8),
        (compact, residual, constants) in any::<(bool, bool, (bool, bool))>(),
        (threads, seed, listed) in (1usize..4, any::<u64>(), any::<(bool, bool)>()),
    ) {
        let geometry = conv(h, w, group * in_groups * conv_groups, group * out_groups * conv_groups, kernel, stride, conv_groups);
        let geometry = if seed & 64 == 0 { geometry } else { unpadded(geometry) };
        let channels = Density::EVERY.get(channels).map(|&density| (density, group));
        let told = [None, Some(group), Some(8)][seed as usize % 3];
        let rows = Density::EVERY[rows];
        let case = Case { geometry, batch, rows, channels, listed, group: told, compact, residual, act: Act::Relu, constants, threads, seed };
        check::<f32>(&case, Isa::available()[seed as usize % Isa::available().len()], SUMMATION_ORDER);
        for isa in Isa::named("amx").into_iter().chain([Isa(Kind::SoftTiles)]) {
            check::<half::bf16>(&case, isa, BF16_ROUNDING);
            check::<i8>(&case, isa, EXACT);
        }
    }
}
