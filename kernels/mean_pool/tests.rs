use super::*;
use crate::testing::{Density, Random, elements, worst};
use crate::{Crew, Isa, PartSums, Team};
use proptest::prelude::*;

/// One case, by everything that distinguishes it.
#[derive(Clone, Debug)]
struct Case {
    batch: usize,
    pixels: usize,
    c: usize,
    rows: Density,
    channels: Option<(Density, usize)>,
    placement: Placement,
    mean: Mean,
    seed: u64,
}

impl Case {
    fn of(batch: usize, pixels: usize, c: usize) -> Self {
        let (placement, mean) = (Placement::Natural, Mean::Active);
        Case { batch, pixels, c, rows: Density::All, channels: None, placement, mean, seed: 1 }
    }
}

/// f32 sums against f64 sums.
const SUMMATION: f32 = 2e-6;

fn check<E: Element>(case: &Case, isa: Isa) {
    let mut random = Random(case.seed);
    let rows = case.rows.rows(&mut random, case.batch, case.pixels, case.seed.is_multiple_of(2));
    let channels = match case.channels {
        Some((density, group)) => density.channels(&mut random, case.batch, case.c, group),
        None => Channels::all(case.c),
    };
    let input: Vec<E> = elements(&mut random, case.batch * case.pixels * case.c);
    let before = random.values(case.batch * case.c);
    fn call<'a, E>(
        case: &Case,
        rows: &'a Rows,
        channels: &'a Channels,
        input: &'a [E],
        output: &'a mut [f32],
    ) -> MeanPool<'a, [E]> {
        MeanPool { rows, channels, input, input_rows: case.placement, mean: case.mean, output }
    }
    let mut want = before.clone();
    reference(&mut call(case, &rows, &channels, &input, &mut want));
    let mut first: Option<Vec<f32>> = None;
    for threads in [1, 2, 9] {
        let crew = Crew::start(threads).unwrap();
        let mut got = before.clone();
        let mut parts = PartSums::new().unwrap();
        let call = call(case, &rows, &channels, &input, &mut got);
        Team::scope(Some(&crew), |team| run(isa, team, &mut parts, call)).unwrap();
        let worst = worst(&got, &want, 1.0);
        assert!(worst <= SUMMATION, "{case:?} on {}: {worst:e}", isa.name());
        assert_eq!(first.get_or_insert(got.clone()), &got, "{case:?}: {threads} threads");
    }
}

fn check_everywhere(case: &Case) {
    for isa in Isa::available() {
        check::<f32>(case, isa);
        check::<half::bf16>(case, isa);
        check::<i8>(case, isa);
    }
}

const MEANS: [Mean; 3] = [Mean::Active, Mean::InactiveAsZero, Mean::AllPixels];

#[test]
fn shapes_by_name() {
    for (batch, pixels, c) in
        [(1, 49, 512), (2, 1, 3), (3, 64, 24), (1, 1000, 1), (2, 131, 40), (1, 67, 17), (3, 200, 33)]
    {
        for rows in Density::EVERY {
            for mean in MEANS {
                check_everywhere(&Case { rows, mean, ..Case::of(batch, pixels, c) });
            }
        }
    }
}

#[test]
fn channel_sets_differ_between_samples() {
    for density in Density::EVERY {
        for rows in Density::EVERY {
            for mean in MEANS {
                let channels = Some((density, 4));
                check_everywhere(&Case { channels, rows, mean, ..Case::of(3, 50, 136) });
            }
        }
    }
}

#[test]
fn compact_rows() {
    for rows in Density::EVERY {
        for mean in [Mean::Active, Mean::InactiveAsZero] {
            let placement = Placement::Compact;
            check_everywhere(&Case { rows, mean, placement, ..Case::of(3, 70, 40) });
        }
    }
}

#[test]
fn operands_that_do_not_fit_are_refused() {
    let refuse = |rows: &Rows, channels: &Channels, inputs: usize, outputs: usize, input_rows, mean| {
        let (input, mut output) = (vec![0.0f32; inputs], vec![0.0; outputs]);
        let call = MeanPool { rows, channels, input: &input[..], input_rows, mean, output: &mut output[..] };
        assert!(
            Team::scope(None, |team| run(Isa::detect(), team, &mut PartSums::new().unwrap(), call)).is_err()
        );
    };
    use Placement::{Compact, Natural};
    let (rows, channels) = (Rows::all(2, 9), Channels::all(8));
    refuse(&rows, &channels, 143, 16, Natural, Mean::Active);
    refuse(&rows, &channels, 144, 15, Natural, Mean::Active);
    refuse(&rows, &channels, 144, 16, Compact, Mean::AllPixels);
    refuse(&rows, &Channels::all(usize::MAX), 144, 16, Natural, Mean::Active);
    let one = Density::All.channels(&mut Random(1), 1, 8, 1);
    refuse(&rows, &one, 144, 16, Natural, Mean::Active);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, rng_seed: proptest::test_runner::RngSeed::Fixed(7), ..Default::default() })]
    #[test]
    fn equals_the_reference(
        (batch, pixels, group, groups) in (1usize..4, 1usize..200, 1usize..9, 1usize..20),
        (rows, channels, mean, compact) in (0usize..4, 0usize..8, 0usize..3, any::<bool>()),
        seed in any::<u64>(),
    ) {
        let (mean, rows) = (MEANS[mean], Density::EVERY[rows]);
        let channels = Density::EVERY.get(channels).map(|&density| (density, group));
        let placement = if compact && mean != Mean::AllPixels { Placement::Compact } else { Placement::Natural };
        let case = Case { rows, channels, mean, placement, seed, ..Case::of(batch, pixels, group * groups) };
        check::<f32>(&case, Isa::available()[seed as usize % Isa::available().len()]);
    }
}
