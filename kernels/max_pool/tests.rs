use super::*;
use crate::testing::{Random, scale};
use crate::{Crew, Extent, Isa, Team};
use half::bf16;
use proptest::prelude::*;

fn pooling(input: (usize, usize, usize), kernel: usize, stride: usize, pad: usize) -> ConvGeometry {
    let (h, w, c) = input;
    ConvGeometry::per_channel(Extent { h, w }, c, kernel, stride, pad)
}

/// Against the reference, bit for bit; every `nan`-th value is NaN, all others lie below `shift`.
fn check<E: Element>(geometry: ConvGeometry, batch: usize, isa: Isa, nan: usize, shift: f32) {
    let mut random = Random(geometry.c_in as u64 + batch as u64);
    let input: Vec<E> = (0..batch * geometry.input.pixels() * geometry.c_in)
        .map(
            |_| if random.below(nan) == 0 { f32::NAN } else { scale::<E>() * (random.value() - 1.0 + shift) },
        )
        .map(E::from_f32)
        .collect();
    let len = batch * geometry.output.pixels() * geometry.c_out;
    let (mut want, mut got) = (vec![E::from_f32(7.0); len], vec![E::from_f32(7.0); len]);
    reference(&mut MaxPool { geometry, batch, input: &input[..], output: &mut want[..] });
    let crew = Crew::start(3).unwrap();
    let call = MaxPool { geometry, batch, input: &input[..], output: &mut got[..] };
    Team::scope(Some(&crew), |team| run(isa, team, call)).unwrap();
    for (i, (got, want)) in got.iter().zip(&want).map(|(g, w)| (g.to_f32(), w.to_f32())).enumerate() {
        assert!(
            got == want || (got.is_nan() && want.is_nan()),
            "{geometry}, {}: {i}: {got} {want}",
            isa.name()
        );
    }
}

#[test]
fn shapes_by_name() {
    for isa in Isa::available() {
        for geometry in [
            pooling((112, 112, 64), 3, 2, 1),
            pooling((8, 8, 16), 2, 2, 0),
            pooling((7, 5, 3), 3, 2, 1),
            pooling((1, 1, 33), 3, 1, 1),
            pooling((13, 9, 24), 5, 1, 2),
            pooling((6, 6, 40), 3, 3, 0),
            // Ceiling mode: the last windows reach beyond the map.
            ConvGeometry { output: Extent { h: 4, w: 4 }, ..pooling((8, 8, 20), 3, 2, 0) },
        ] {
            for (nan, shift) in [(usize::MAX, 0.0), (usize::MAX, -5.0), (20, 0.0), (2, 0.0)] {
                check::<f32>(geometry, 2, isa, nan, shift);
                check::<bf16>(geometry, 1, isa, nan, shift);
                check::<i8>(geometry, 1, isa, usize::MAX, shift);
            }
        }
    }
}

#[test]
fn nan_wins_at_every_place_of_the_window() {
    for isa in Isa::available() {
        for at in 0..9 {
            let mut input = [1.0f32; 9 * 20];
            input[at * 20..][..20].fill(f32::NAN);
            let mut output = [0.0; 20];
            let geometry = pooling((3, 3, 20), 3, 1, 0);
            let call = MaxPool { geometry, batch: 1, input: &input[..], output: &mut output[..] };
            Team::scope(None, |team| run(isa, team, call)).unwrap();
            assert!(output.iter().all(|v| v.is_nan()), "{at} on {}", isa.name());
        }
    }
}

#[test]
fn operands_that_do_not_fit_are_refused() {
    let geometry = pooling((4, 4, 8), 3, 2, 1);
    let refuse = |geometry: ConvGeometry, batch: usize, inputs: usize, outputs: usize| {
        let (input, mut output) = (vec![0.0f32; inputs], vec![0.0; outputs]);
        let call = MaxPool { geometry, batch, input: &input[..], output: &mut output[..] };
        assert!(Team::scope(None, |team| run(Isa::detect(), team, call)).is_err());
    };
    refuse(geometry, 1, 127, 32);
    refuse(geometry, 1, 128, 31);
    refuse(geometry, usize::MAX, 128, 32);
    refuse(ConvGeometry { c_out: 16, ..geometry }, 1, 128, 64);
    refuse(ConvGeometry { pad_top: 3, ..geometry }, 1, 128, 32);
    refuse(ConvGeometry { input: Extent { h: 1 << 40, w: 1 << 40 }, ..geometry }, 1, 128, 32);
    refuse(ConvGeometry { stride: usize::MAX, ..geometry }, 1, 128, 32);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, rng_seed: proptest::test_runner::RngSeed::Fixed(7), ..Default::default() })]
    #[test]
    fn equals_the_reference(
        (h, w, c, batch) in (3usize..20, 3usize..20, 1usize..70, 1usize..4),
        (kernel, stride, nan, set) in (1usize..4, 1usize..4, 2usize..100, any::<usize>()),
    ) {
        let geometry = pooling((h, w, c), kernel, stride, kernel / 2);
        check::<f32>(geometry, batch, Isa::available()[set % Isa::available().len()], nan, 0.0);
    }
}
