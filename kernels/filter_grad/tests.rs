use super::*;
use crate::simd::Kind;
use crate::testing::{Random, worst};
use crate::{Extent, Isa};
use half::bf16;

fn geometry(output: (usize, usize), c_in: usize, c_out: usize, kernel: usize, stride: usize) -> ConvGeometry {
    let side = |n: usize| (n - 1) * stride + kernel;
    ConvGeometry {
        input: Extent { h: side(output.0), w: side(output.1) + 1 },
        output: Extent { h: output.0, w: output.1 },
        c_in,
        c_out,
        kernel,
        stride,
        pad_top: 0,
        pad_left: 0,
        groups: 1,
    }
}

#[test]
fn equals_the_definition_on_every_instruction_set() {
    let cases = [
        geometry((1, 1), 1, 1, 1, 1),
        geometry((5, 4), 3, 16, 3, 1),
        geometry((8, 8), 16, 16, 3, 1),
        geometry((4, 4), 16, 32, 3, 2),
        geometry((3, 5), 32, 33, 3, 1),
        geometry((2, 2), 64, 64, 3, 1),
        geometry((4, 3), 20, 40, 1, 2),
        geometry((3, 3), 7, 5, 5, 1),
    ];
    for (seed, geometry) in cases.into_iter().enumerate() {
        let mut random = Random(seed as u64);
        let input = random.values(geometry.input.pixels() * geometry.c_in);
        let grad = random.values(geometry.output.pixels() * geometry.c_out);
        let start = random.values(geometry.weights());
        let mut want = start.clone();
        reference(&mut FilterGrad { geometry, input: &input, grad: &grad, sum: &mut want });
        for isa in Isa::available() {
            let mut got = start.clone();
            run(isa, FilterGrad { geometry, input: &input, grad: &grad, sum: &mut got }).unwrap();
            assert!(worst(&got, &want, 1.0) < 1e-5, "{} on {geometry}", isa.name());
        }
    }
}

#[test]
fn waiting_samples_are_finished_before_those_of_another_convolution() {
    let (one, other) = (geometry((2, 2), 16, 16, 1, 1), geometry((2, 2), 16, 8, 1, 1));
    let (values, mut sum) = (vec![bf16::ONE; 6 * 16], vec![0.0; one.weights()]);
    let mut memory = Summing::default();
    let isa = Isa(Kind::SoftTiles);
    let add = |memory: &mut Summing, geometry, sum: &mut [f32]| {
        memory.add(isa, FilterGrad { geometry, input: &values[..], grad: &values[..], sum })
    };
    add(&mut memory, one, &mut sum).unwrap();
    let message = add(&mut memory, other, &mut sum).unwrap_err().to_string();
    assert!(message.contains("wait to be finished"), "{message}");
    memory.finish(isa, &mut sum).unwrap();
    assert!(sum.iter().all(|&sum| sum == 4.0), "of the first alone");
    add(&mut memory, other, &mut sum).unwrap();
    assert!(memory.finish(isa, &mut sum[1..100]).unwrap_err().to_string().contains("sum holds"));
}

#[test]
fn what_does_not_fit_is_an_error_that_names_it() {
    let fine = geometry((4, 4), 2, 3, 3, 1);
    let message = |geometry: ConvGeometry, input: usize, grad: usize, sum: usize| {
        let (input, grad, mut sum) = (vec![0.0f32; input], vec![0.0; grad], vec![0.0; sum]);
        let call = FilterGrad { geometry, input: &input, grad: &grad, sum: &mut sum };
        run(Isa::detect(), call).unwrap_err().to_string()
    };
    let (input, grad, sum) = (fine.input.pixels() * 2, 16 * 3, fine.weights());
    assert!(message(fine, input - 1, grad, sum).contains("input holds"));
    assert!(message(fine, input, grad - 1, sum).contains("gradient holds"));
    assert!(message(fine, input, grad, sum - 1).contains("sum holds"));
    let padded = ConvGeometry { pad_top: 1, ..fine };
    assert!(message(padded, input, grad, sum).contains("border"));
    let cut = ConvGeometry { input: Extent { h: 5, ..fine.input }, ..fine };
    assert!(message(cut, input, grad, sum).contains("border"));
}

#[test]
fn samples_of_bfloat16_equal_the_definition() {
    let cases = [
        (geometry((1, 1), 1, 1, 1, 1), 1),
        (geometry((5, 4), 3, 16, 3, 1), 3),
        (geometry((8, 8), 33, 48, 3, 1), 2),
        (geometry((4, 6), 16, 40, 3, 2), 3),
        (geometry((7, 7), 64, 32, 1, 1), 4),
        (geometry((4, 3), 20, 40, 1, 2), 2),
        (geometry((6, 5), 3, 17, 7, 2), 2),
        (geometry((5, 5), 18, 5, 5, 3), 2),
        // More than is taken together.
        (geometry((30, 31), 96, 20, 3, 1), 7),
    ];
    let mut memory = Summing::default();
    let isas = Isa::available().into_iter().chain([Isa(Kind::SoftTiles)]);
    for (isa, (seed, (geometry, samples))) in
        isas.flat_map(|isa| cases.into_iter().enumerate().map(move |case| (isa, case)))
    {
        let mut random = Random(seed as u64);
        let start = random.values(geometry.weights());
        let (mut got, mut want) = (start.clone(), start);
        for _ in 0..samples {
            let mut values =
                |len: usize| -> Vec<bf16> { random.values(len).into_iter().map(bf16::from_f32).collect() };
            let input = &values(geometry.input.pixels() * geometry.c_in)[..];
            let grad = &values(geometry.output.pixels() * geometry.c_out)[..];
            memory.add(isa, FilterGrad { geometry, input, grad, sum: &mut got }).unwrap();
            reference(&mut FilterGrad { geometry, input, grad, sum: &mut want });
        }
        memory.finish(isa, &mut got).unwrap();
        assert!(worst(&got, &want, 1.0) < 1e-4, "{} on {geometry}", isa.name());
    }
}
