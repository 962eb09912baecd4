use super::*;
use crate::testing::{Density, INT8_ROUNDING, Random, differ, elements, scale};
use crate::{Crew, Extent, Isa, Team};
use proptest::prelude::*;

/// One case, by everything that distinguishes it.
#[derive(Clone, Debug)]
struct Case {
    geometry: ConvGeometry,
    batch: usize,
    rows: Density,
    channels: Option<(Density, usize)>,
    placement: Placement,
    input_channels: Placement,
    act: Act,
    constants: bool,
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
            placement: Placement::Natural,
            input_channels: Placement::Compact,
            act: Act::Relu,
            constants: false,
            threads: 2,
            seed: 1,
        }
    }
}

/// Depthwise convolution on an `h × w` map with the usual padding.
fn conv(h: usize, w: usize, c: usize, kernel: usize, stride: usize) -> ConvGeometry {
    ConvGeometry::per_channel(Extent { h, w }, c, kernel, stride, kernel / 2)
}

/// f32 sums of up to 121 terms of order one over the kernel's side, in another order.
const SUMMATION_ORDER: f32 = 5e-6;
/// One rounding to bf16.
const BF16_ROUNDING: f32 = 8e-3;

/// Operands of a case.
struct Operands<E> {
    weight: Vec<f32>,
    bias: Vec<f32>,
    input_constant: Vec<f32>,
    output_constant: Vec<f32>,
    rows: Rows,
    channels: Channels,
    input: Vec<E>,
    before: Vec<E>,
}

impl<E: Element> Operands<E> {
    fn new(case: &Case) -> Self {
        let (g, mut random) = (case.geometry, Random(case.seed));
        let c = g.c_in;
        let weight = random.values(g.weights()).into_iter().map(|w| w / g.kernel as f32).collect();
        let channels = match case.channels {
            Some((density, group)) => density.channels(&mut random, case.batch, c, group),
            None => Channels::all(c),
        };
        let mut activations = |pixels: usize| elements(&mut random, case.batch * pixels * c);
        let (input, before) = (activations(g.input.pixels()), activations(g.output.pixels()));
        let some = |random: &mut Random| random.values(c).into_iter().map(|v| scale::<E>() * v).collect();
        Self {
            weight,
            bias: some(&mut random),
            input_constant: some(&mut random),
            output_constant: some(&mut random),
            rows: case.rows.rows(&mut random, case.batch, g.output.pixels(), case.seed.is_multiple_of(2)),
            channels,
            input,
            before,
        }
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

    fn call<'a>(&'a self, case: &Case, output: &'a mut [E]) -> Depthwise<'a, [E]> {
        let Self { rows, channels, input, .. } = self;
        let &Case { input_channels, placement: output_rows, act, .. } = case;
        Depthwise { rows, channels, input, input_channels, output, output_rows, act }
    }

    fn run(&self, case: &Case, isa: Isa) -> Vec<E> {
        let filter = Filter::pack(&self.spec(case)).unwrap();
        let crew = Crew::start(case.threads).unwrap();
        let mut output = self.before.clone();
        Team::scope(Some(&crew), |team| run(isa, team, &filter, self.call(case, &mut output))).unwrap();
        output
    }
}

fn check<E: Element>(case: &Case, isa: Isa, tolerance: f32) {
    let operands = Operands::<E>::new(case);
    let mut want = operands.before.clone();
    reference(&operands.spec(case), &mut operands.call(case, &mut want));
    let got = operands.run(case, isa);
    let worst = differ(&got, &want);
    assert!(worst <= tolerance, "{case:?} on {}: {worst:e}", isa.name());
}

fn check_everywhere(case: &Case) {
    for isa in Isa::available() {
        check::<f32>(case, isa, SUMMATION_ORDER);
        check::<half::bf16>(case, isa, BF16_ROUNDING);
        check::<i8>(case, isa, INT8_ROUNDING);
    }
}

#[test]
fn geometries_by_name() {
    for geometry in [
        conv(7, 7, 96, 3, 1),
        conv(14, 14, 40, 3, 2),
        conv(15, 9, 24, 3, 2),
        conv(11, 13, 33, 5, 1),
        conv(12, 10, 16, 5, 2),
        conv(9, 9, 20, 7, 1),
        conv(13, 12, 64, 11, 1),
        conv(10, 10, 24, 3, 3),
        conv(8, 8, 3, 3, 1),
        conv(1, 1, 17, 3, 1),
        conv(1, 30, 8, 1, 1),
        conv(2, 2, 32, 5, 1),
        ConvGeometry { pad_top: 0, pad_left: 0, ..conv(8, 8, 16, 3, 2) },
        ConvGeometry { output: Extent { h: 3, w: 3 }, ..conv(9, 9, 16, 3, 2) },
    ] {
        for rows in Density::EVERY {
            for constants in [false, true] {
                check_everywhere(&Case { rows, constants, ..Case::of(geometry) });
            }
        }
    }
}

#[test]
fn channel_sets_differ_between_samples() {
    for (geometry, group) in
        [(conv(7, 7, 256, 3, 1), 8), (conv(9, 7, 40, 3, 2), 1), (conv(6, 6, 48, 5, 1), 4)]
    {
        for density in Density::EVERY {
            for constants in [false, true] {
                let case =
                    Case { channels: Some((density, group)), constants, batch: 3, ..Case::of(geometry) };
                check_everywhere(&case);
                let placement = Placement::Compact;
                check_everywhere(&Case { rows: Density::Half, placement, threads: 3, ..case.clone() });
                check_everywhere(&Case { input_channels: Placement::Natural, ..case });
            }
        }
    }
}

#[test]
fn activations_and_placements() {
    for act in [Act::None, Act::Relu, Act::Relu6] {
        for rows in Density::EVERY {
            for placement in [Placement::Natural, Placement::Compact] {
                check_everywhere(&Case { rows, act, placement, ..Case::of(conv(10, 6, 40, 3, 1)) });
            }
        }
    }
}

#[test]
fn a_pixel_does_not_depend_on_which_others_are_active() {
    for isa in Isa::available() {
        for geometry in [conv(12, 12, 40, 3, 1), conv(12, 12, 36, 5, 2), conv(9, 9, 20, 7, 1)] {
            for constants in [false, true] {
                let case = Case { constants, threads: 3, ..Case::of(geometry) };
                let mut operands = Operands::<f32>::new(&case);
                let dense = operands.run(&case, isa);
                operands.rows = Density::Half.rows(&mut Random(3), 2, geometry.output.pixels(), false);
                let sparse = operands.run(&Case { threads: 1, ..case }, isa);
                for row in (0..operands.rows.len()).map(|i| operands.rows.pixel(i)) {
                    let row = row * geometry.c_out..(row + 1) * geometry.c_out;
                    assert_eq!(dense[row.clone()], sparse[row], "{geometry} on {}", isa.name());
                }
            }
        }
    }
}

#[test]
fn nan_in_the_input_is_not_swallowed() {
    for isa in Isa::available() {
        for act in [Act::None, Act::Relu, Act::Relu6] {
            let case = Case { act, ..Case::of(conv(7, 7, 20, 3, 1)) };
            let mut operands = Operands::<f32>::new(&case);
            operands.input[24 * 20..25 * 20].fill(f32::NAN);
            let output = operands.run(&case, isa);
            let nan = |pixel: usize| output[pixel * 20..][..20].iter().all(|v| v.is_nan());
            let hit = |pixel: usize| (2..5).contains(&(pixel / 7)) && (2..5).contains(&(pixel % 7));
            assert!((0..49).all(|pixel| nan(pixel) == hit(pixel)), "{act:?} on {}", isa.name());
        }
    }
}

#[test]
fn operands_that_do_not_fit_are_refused() {
    let geometry = conv(4, 4, 8, 3, 1);
    let case = Case::of(geometry);
    let operands = Operands::<f32>::new(&case);
    let spec = operands.spec(&case);
    assert!(matches!(
        Filter::pack(&FilterSpec { weight: &spec.weight[1..], ..spec }),
        Err(Error::Size { what: "weight", .. })
    ));
    for geometry in [
        ConvGeometry { groups: 1, ..geometry },
        ConvGeometry { c_out: 16, ..geometry },
        ConvGeometry { kernel: 1 << 40, ..geometry },
        conv(20, 20, 8, 13, 1),
    ] {
        assert!(matches!(Filter::pack(&FilterSpec { geometry, ..spec }), Err(Error::Geometry { .. })));
    }
    let filter = Filter::pack(&spec).unwrap();
    let refuse = |rows: &Rows, channels: &Channels, inputs: usize, outputs: usize| {
        let (input, mut output) = (vec![0.0f32; inputs], vec![0.0; outputs]);
        let output_rows = Placement::Natural;
        let call = Depthwise {
            rows,
            channels,
            input: &input[..],
            input_channels: Placement::Compact,
            output: &mut output[..],
            output_rows,
            act: Act::None,
        };
        assert!(Team::scope(None, |team| run(Isa::detect(), team, &filter, call)).is_err());
    };
    refuse(&Rows::all(1, 16), &Channels::all(8), 127, 128);
    refuse(&Rows::all(1, 16), &Channels::all(8), 128, 127);
    refuse(&Rows::all(1, 17), &Channels::all(8), 200, 200);
    refuse(&Rows::all(2, 16), &Channels::all(8), 255, 256);
    refuse(&Rows::all(1, 16), &Channels::all(9), 200, 200);
    refuse(&Rows::all(2, 16), &Density::All.channels(&mut Random(1), 1, 8, 1), 256, 256);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, rng_seed: proptest::test_runner::RngSeed::Fixed(7), ..Default::default() })]
    #[test]
    fn equals_the_reference(
        (h, w, kernel, stride) in (1usize..20, 1usize..20, prop_oneof![Just(1usize), Just(3), Just(5), Just(7)], 1usize..4),
        (group, groups, batch, rows) in (1usize..9, 1usize..30, 1usize..4, 0usize..4),
        (channels, compact, packed, constants) in (0usize..8, any::<bool>(), any::<bool>(), any::<bool>()),
        (threads, seed) in (1usize..4, any::<u64>()),
    ) {
        let channels = Density::EVERY.get(channels).map(|&density| (density, group));
        let place = |compact| if compact { Placement::Compact } else { Placement::Natural };
        let (placement, input_channels) = (place(compact), place(packed));
        let geometry = conv(h, w, group * groups, kernel, stride);
        let (rows, act) = (Density::EVERY[rows], Act::Relu6);
        let case = Case {
            geometry, batch, rows, channels, placement, input_channels, act, constants, threads, seed,
        };
        check::<f32>(&case, Isa::available()[seed as usize % Isa::available().len()], SUMMATION_ORDER);
    }
}
