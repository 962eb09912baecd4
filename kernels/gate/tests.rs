use super::*;
use crate::testing::{Random, elements, scale, worst};
use crate::{Crew, Element, Isa, PartSums, Team};

fn parts() -> PartSums {
    PartSums::new().unwrap()
}

#[test]
fn patch_margins_equal_the_reference() {
    let mut random = Random(5);
    for (h, w, c, grid_h, grid_w, batch) in [
        (7, 7, 70, 7, 7, 2),
        (8, 8, 64, 2, 2, 3),
        (56, 56, 24, 14, 14, 1),
        (7, 5, 3, 3, 2, 2),
        (14, 14, 130, 1, 1, 2),
        (28, 28, 90, 1, 1, 3),
        (29, 28, 90, 2, 3, 70),
        (1, 1, 9, 1, 1, 1),
    ] {
        let (map, grid) = (Extent { h, w }, Extent { h: grid_h, w: grid_w });
        let gate = PatchGate { weight: random.values(c), bias: random.value(), grid };
        let input = random.values(batch * map.pixels() * c);
        let halves: Vec<_> = input.iter().map(|&x| half::bf16::from_f32(x)).collect();
        let bytes: Vec<i8> = elements(&mut random, input.len());
        let mut want = vec![0.0; batch * grid.pixels()];
        let mut got = want.clone();
        let crew = Crew::start(2).unwrap();
        for isa in Isa::available() {
            reference_patch(&gate, &input, batch, map, &mut want);
            Team::scope(Some(&crew), |team| {
                patch(isa, team, &mut parts(), &gate, &input, (batch, map), &mut got)
            })
            .unwrap();
            assert!(worst(&got, &want, 1.0) < 1e-5, "{h}×{w}×{c} on {}", isa.name());
            reference_patch(&gate, &halves, batch, map, &mut want);
            Team::scope(None, |team| patch(isa, team, &mut parts(), &gate, &halves, (batch, map), &mut got))
                .unwrap();
            assert!(worst(&got, &want, 1.0) < 1e-5, "bf16 {h}×{w}×{c} on {}", isa.name());
            reference_patch(&gate, &bytes, batch, map, &mut want);
            Team::scope(None, |team| patch(isa, team, &mut parts(), &gate, &bytes, (batch, map), &mut got))
                .unwrap();
            assert!(worst(&got, &want, 127.0) < 1e-5, "int8 {h}×{w}×{c} on {}", isa.name());
        }
        let short = Team::scope(None, |team| {
            patch(Isa::detect(), team, &mut parts(), &gate, &input[1..], (batch, map), &mut got)
        });
        assert!(short.is_err());
    }
}

#[test]
fn linear_layers_equal_the_reference() {
    linear_layers_of_a_type::<f32>();
    linear_layers_of_a_type::<half::bf16>();
    linear_layers_of_a_type::<i8>();
}

fn linear_layers_of_a_type<E: Element>() {
    let mut random = Random(6);
    for (c_in, c_out, batch, relu) in
        [(64, 16, 1, true), (2048, 1024, 2, false), (7, 3, 3, true), (1, 1, 1, false), (130, 9, 11, true)]
    {
        // Of whole numbers each feature has the largest, so that weights are stored as they are.
        let stored = |w: f32| E::from_f32(scale::<E>() * w).to_f32() / scale::<E>();
        let mut weight: Vec<f32> = random.values(c_in * c_out).into_iter().map(stored).collect();
        weight.iter_mut().step_by(c_in).for_each(|w| *w = 1.0);
        let layer = Linear::new(weight, random.values(c_out), relu).unwrap();
        let input = random.values(batch * c_in);
        let (mut want, mut got) = (vec![0.0; batch * c_out], vec![0.0; batch * c_out]);
        reference_linear(&layer, &input, &mut want);
        let weights = LinearWeights::<E>::pack(&layer).unwrap();
        let crew = Crew::start(2).unwrap();
        for isa in Isa::available() {
            Team::scope(Some(&crew), |team| linear(isa, team, &weights, &input, &mut got)).unwrap();
            assert!(worst(&got, &want, 1.0) < 1e-4, "{c_in} → {c_out} on {}", isa.name());
            // Alone a sample gets the same bits as among others.
            let mut alone = vec![0.0; c_out];
            let last = &input[(batch - 1) * c_in..];
            Team::scope(None, |team| linear(isa, team, &weights, last, &mut alone)).unwrap();
            assert_eq!(alone, got[(batch - 1) * c_out..]);
            if batch > 4 {
                Team::scope(None, |team| linear(isa, team, &weights, &input[..c_in], &mut alone)).unwrap();
                assert_eq!(alone, got[..c_out]);
            }
        }
        assert!(
            Team::scope(None, |team| linear(Isa::detect(), team, &weights, &input, &mut got[1..])).is_err()
        );
    }
    assert!(Linear::new(vec![0.0; 7], vec![0.0; 2], false).is_err());
}

#[test]
fn neither_threads_nor_batch_leave_a_trace_in_margins() {
    let mut random = Random(8);
    let (map, batch, c) = (Extent { h: 30, w: 28 }, 70, 90);
    let input = random.values(batch * map.pixels() * c);
    for grid in [Extent { h: 1, w: 1 }, Extent { h: 2, w: 3 }] {
        let gate = PatchGate { weight: random.values(c), bias: random.value(), grid };
        let margins = |threads: usize, input: &[f32]| {
            let batch = input.len() / (map.pixels() * c);
            let mut margins = vec![0.0; batch * grid.pixels()];
            let crew = Crew::start(threads).unwrap();
            let run = |team: &mut Team| {
                patch(Isa::detect(), team, &mut parts(), &gate, input, (batch, map), &mut margins)
            };
            Team::scope(Some(&crew), run).unwrap();
            margins
        };
        let all = margins(1, &input);
        assert_eq!(margins(3, &input), all);
        for batch in [1, 2, 7] {
            let part = margins(2, &input[..batch * map.pixels() * c]);
            assert_eq!(part, all[..batch * grid.pixels()], "batch {batch}");
        }
    }
}

type Run = dyn Fn(Decide<'_, [f32], [bool]>);

#[test]
fn decisions_equal_the_reference() {
    let mut random = Random(7);
    for (batch, per_sample, at_least) in
        [(1, 1, 0.0), (3, 7, 0.2), (2, 64, f32::NEG_INFINITY), (1, 3000, -0.3), (2, 5, 2.0)]
    {
        // Few different values: many are equal.
        let mut margins: Vec<f32> =
            random.values(batch * per_sample).iter().map(|x| (8.0 * x).round() / 8.0).collect();
        margins[0] = -0.0;
        margins[batch * per_sample - 1] = f32::NAN;
        for count in [0, 1, 2, per_sample / 2, per_sample, per_sample + 1] {
            let decide_by = |run: &Run| {
                let (mut keep, mut spent) = (vec![true; 3 + batch * per_sample], vec![0.25; batch]);
                let call = |most, keep: &mut Vec<bool>| {
                    run(Decide { batch, per_sample, margins: &margins, at_least, most, keep, keep_at: 3 })
                };
                call(Most::Count(count), &mut keep);
                let counted = keep.clone();
                let (pace, limit) = (0.25 + 0.5 * count as f32, 0.6 * count as f32);
                call(Most::Paid(Account { spent: &mut spent, price: 0.5, pace, limit }), &mut keep);
                (counted, keep, spent)
            };
            let want = decide_by(&|call| reference_decide(call));
            assert_eq!(decide_by(&|call| decide(call).unwrap()), want, "{batch}×{per_sample}, {count}");
            assert!(want.2.iter().all(|spent| *spent <= (0.6 * count as f32).max(0.25) + 1e-3));
        }
    }
    let (margins, keep) = (&[1.0; 4][..], &mut [false; 4][..]);
    let most = Most::All;
    assert!(
        decide(Decide { batch: 1, per_sample: 4, margins, at_least: 0.0, most, keep, keep_at: 1 }).is_err()
    );
}
