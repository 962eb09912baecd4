use super::*;
use crate::testing::{Random, worst};
use crate::{Isa, Team};

#[test]
fn patch_margins_equal_the_reference() {
    let mut random = Random(5);
    for (h, w, c, grid_h, grid_w, batch) in [
        (7, 7, 70, 7, 7, 2),
        (8, 8, 64, 2, 2, 3),
        (56, 56, 24, 14, 14, 1),
        (7, 5, 3, 3, 2, 2),
        (14, 14, 130, 1, 1, 2),
        (1, 1, 9, 1, 1, 1),
    ] {
        let (map, grid) = (Extent { h, w }, Extent { h: grid_h, w: grid_w });
        let gate = PatchGate { weight: random.values(c), bias: random.value(), grid };
        let input = random.values(batch * map.pixels() * c);
        let halves: Vec<_> = input.iter().map(|&x| half::bf16::from_f32(x)).collect();
        let mut want = vec![0.0; batch * grid.pixels()];
        let mut got = want.clone();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        for isa in Isa::available() {
            reference_patch(&gate, &input, batch, map, &mut want);
            Team::scope(Some(&pool), |team| patch(isa, team, &gate, &input, batch, map, &mut got)).unwrap();
            assert!(worst(&got, &want, 1.0) < 1e-5, "{h}×{w}×{c} on {}", isa.name());
            reference_patch(&gate, &halves, batch, map, &mut want);
            Team::scope(None, |team| patch(isa, team, &gate, &halves, batch, map, &mut got)).unwrap();
            assert!(worst(&got, &want, 1.0) < 1e-5, "bf16 {h}×{w}×{c} on {}", isa.name());
        }
        let short =
            Team::scope(None, |team| patch(Isa::detect(), team, &gate, &input[1..], batch, map, &mut got));
        assert!(short.is_err());
    }
}

#[test]
fn linear_layers_equal_the_reference() {
    let mut random = Random(6);
    for (c_in, c_out, batch, relu) in
        [(64, 16, 1, true), (2048, 1024, 2, false), (7, 3, 3, true), (1, 1, 1, false)]
    {
        let layer = Linear::new(random.values(c_in * c_out), random.values(c_out), relu).unwrap();
        let input = random.values(batch * c_in);
        let (mut want, mut got) = (vec![0.0; batch * c_out], vec![0.0; batch * c_out]);
        reference_linear(&layer, &input, &mut want);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        for isa in Isa::available() {
            Team::scope(Some(&pool), |team| linear(isa, team, &layer, &input, &mut got)).unwrap();
            assert!(worst(&got, &want, 1.0) < 1e-4, "{c_in} → {c_out} on {}", isa.name());
        }
        assert!(
            Team::scope(None, |team| linear(Isa::detect(), team, &layer, &input, &mut got[1..])).is_err()
        );
    }
    assert!(Linear::new(vec![0.0; 7], vec![0.0; 2], false).is_err());
}
