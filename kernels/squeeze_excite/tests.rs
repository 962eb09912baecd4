use super::*;
use crate::testing::{Density, INT8_ROUNDING, Random, differ, elements, scale};
use crate::{Crew, Isa, Team};
use proptest::prelude::*;

/// One case, by everything that distinguishes it.
#[derive(Clone, Debug)]
struct Case {
    batch: usize,
    pixels: usize,
    c: usize,
    q: usize,
    rows: Density,
    channels: Option<(Density, usize)>,
    placement: Placement,
    mean: Mean,
    seed: u64,
}

impl Case {
    fn of(batch: usize, pixels: usize, c: usize, q: usize) -> Self {
        let (placement, mean) = (Placement::Natural, Mean::Active);
        Case { batch, pixels, c, q, rows: Density::All, channels: None, placement, mean, seed: 1 }
    }
}

/// f32 sums in another order than f64 sums, through two layers.
const SUMMATION_ORDER: f32 = 1e-5;
/// One rounding to bf16.
const BF16_ROUNDING: f32 = 8e-3;

fn check<E: Element>(case: &Case, isa: Isa, tolerance: f32) {
    let Case { batch, pixels, c, q, .. } = *case;
    let mut random = Random(case.seed);
    let fc1: Vec<f32> = random.values(q * c).into_iter().map(|w| w / scale::<E>()).collect();
    let fc2 = random.values(c * q);
    let (bias1, bias2) = (random.values(q), random.values(c));
    let spec = WeightsSpec { c, q, fc1: &fc1, bias1: &bias1, fc2: &fc2, bias2: &bias2 };
    let rows = case.rows.rows(&mut random, batch, pixels, case.seed.is_multiple_of(2));
    let channels = match case.channels {
        Some((density, group)) => density.channels(&mut random, batch, c, group),
        None => Channels::all(c),
    };
    let before: Vec<E> = elements(&mut random, batch * pixels * c);
    fn call<'a, E>(
        case: &Case,
        rows: &'a Rows,
        channels: &'a Channels,
        data: &'a mut [E],
    ) -> SqueezeExcite<'a, [E]> {
        SqueezeExcite { rows, channels, data, data_rows: case.placement, mean: case.mean }
    }
    let mut want = before.clone();
    reference(&spec, &mut call(case, &rows, &channels, &mut want));
    let weights = Weights::pack(&spec).unwrap();
    for threads in [1, 3] {
        let crew = Crew::start(threads).unwrap();
        let mut got = before.clone();
        let mut scratch = Scratch::new().unwrap();
        Team::scope(Some(&crew), |team| {
            run(isa, team, &weights, &mut scratch, call(case, &rows, &channels, &mut got))
        })
        .unwrap();
        let worst = differ(&got, &want);
        assert!(worst <= tolerance, "{case:?} on {}: {worst:e}", isa.name());
    }
}

fn check_everywhere(case: &Case) {
    for isa in Isa::available() {
        check::<f32>(case, isa, SUMMATION_ORDER);
        check::<half::bf16>(case, isa, BF16_ROUNDING);
        check::<i8>(case, isa, INT8_ROUNDING);
    }
}

const MEANS: [Mean; 3] = [Mean::Active, Mean::InactiveAsZero, Mean::AllPixels];

#[test]
fn shapes_by_name() {
    for (batch, pixels, c, q) in [(1, 49, 440, 52), (2, 1, 3, 1), (3, 64, 24, 16), (1, 30, 65, 17)] {
        for rows in Density::EVERY {
            for mean in MEANS {
                check_everywhere(&Case { rows, mean, ..Case::of(batch, pixels, c, q) });
            }
        }
    }
}

#[test]
fn inactive_channels_count_as_zero() {
    for density in Density::EVERY {
        for rows in Density::EVERY {
            for mean in MEANS {
                let channels = Some((density, 4));
                check_everywhere(&Case { channels, rows, mean, ..Case::of(3, 20, 136, 24) });
            }
        }
    }
}

#[test]
fn compact_rows() {
    for rows in Density::EVERY {
        for mean in [Mean::Active, Mean::InactiveAsZero] {
            let (placement, channels) = (Placement::Compact, Some((Density::Half, 2)));
            check_everywhere(&Case { rows, mean, placement, channels, ..Case::of(3, 30, 40, 8) });
        }
    }
}

#[test]
fn operands_that_do_not_fit_are_refused() {
    let (w, b) = ([0.0; 32], [0.0; 8]);
    let spec = WeightsSpec { c: 8, q: 4, fc1: &w, bias1: &b[..4], fc2: &w, bias2: &b };
    assert!(matches!(
        Weights::pack(&WeightsSpec { fc1: &w[1..], ..spec }),
        Err(Error::Size { what: "fc1", .. })
    ));
    assert!(matches!(Weights::pack(&WeightsSpec { bias2: &b[1..], ..spec }), Err(Error::Size { .. })));
    assert!(Weights::pack(&WeightsSpec { q: 0, ..spec }).is_err());
    assert!(Weights::pack(&WeightsSpec { c: usize::MAX, q: usize::MAX, ..spec }).is_err());
    let weights = Weights::pack(&spec).unwrap();
    let refuse = |rows: &Rows, channels: &Channels, len: usize, data_rows, mean| {
        let mut data = vec![0.0f32; len];
        let call = SqueezeExcite { rows, channels, data: &mut data[..], data_rows, mean };
        let outcome =
            Team::scope(None, |team| run(Isa::detect(), team, &weights, &mut Scratch::new().unwrap(), call));
        assert!(outcome.is_err());
    };
    refuse(&Rows::all(2, 9), &Channels::all(8), 143, Placement::Natural, Mean::Active);
    refuse(&Rows::all(2, 9), &Channels::all(8), 144, Placement::Compact, Mean::AllPixels);
    refuse(&Rows::all(2, 9), &Channels::all(9), 200, Placement::Natural, Mean::Active);
    let one = Density::All.channels(&mut Random(1), 1, 8, 1);
    refuse(&Rows::all(2, 9), &one, 144, Placement::Natural, Mean::Active);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, rng_seed: proptest::test_runner::RngSeed::Fixed(7), ..Default::default() })]
    #[test]
    fn equals_the_reference(
        (batch, pixels, group, groups, q) in (1usize..4, 1usize..60, 1usize..9, 1usize..20, 1usize..40),
        (rows, channels, mean, compact) in (0usize..4, 0usize..8, 0usize..3, any::<bool>()),
        seed in any::<u64>(),
    ) {
        let (mean, rows) = (MEANS[mean], Density::EVERY[rows]);
        let channels = Density::EVERY.get(channels).map(|&density| (density, group));
        let placement = if compact && mean != Mean::AllPixels { Placement::Compact } else { Placement::Natural };
        let case = Case { rows, channels, mean, placement, seed, ..Case::of(batch, pixels, group * groups, q) };
        check::<f32>(&case, Isa::available()[seed as usize % Isa::available().len()], SUMMATION_ORDER);
    }
}
