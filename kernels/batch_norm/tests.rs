//! Against the formulas in f64, on every instruction set, and the gradients against differences of the forward.

use super::*;
use crate::Isa;
use crate::testing::{Random, worst};
use half::bf16;

/// Widths with whole blocks of channels, a rest, and both; of the last, rows come in more than one block.
const WIDTHS: [usize; 5] = [16, 5, 19, 48, 1040];
const ROWS: usize = 7;

#[derive(Clone)]
struct Case {
    c: usize,
    x: Vec<f32>,
    scale: Vec<f32>,
    shift: Vec<f32>,
    keep: Vec<f32>,
    mean: Vec<f32>,
    weight: Vec<f32>,
    shortcut: Vec<f32>,
    dy: Vec<f32>,
}

fn cases() -> impl Iterator<Item = Case> {
    WIDTHS.into_iter().enumerate().map(|(seed, c)| {
        let mut random = Random(seed as u64);
        let mut values = |n: usize| random.values(n);
        let bits =
            |values: Vec<f32>| values.iter().map(|v| f32::from(u8::from(*v > 0.0))).collect::<Vec<_>>();
        Case {
            c,
            x: values(ROWS * c),
            scale: values(c),
            shift: values(c),
            keep: bits(values(c)),
            mean: values(c),
            weight: bits(values(ROWS)),
            shortcut: values(ROWS * c),
            dy: values(ROWS * c),
        }
    })
}

impl Case {
    fn affine(&self) -> Affine<'_> {
        Affine { scale: &self.scale, shift: &self.shift }
    }

    fn centre(&self) -> Centre<'_> {
        Centre { keep: &self.keep, mean: &self.mean }
    }

    /// `f(row, channel)` for every element.
    fn map(&self, f: impl Fn(usize, usize) -> f32) -> Vec<f32> {
        (0..ROWS * self.c).map(|i| f(i / self.c, i % self.c)).collect()
    }

    fn column_sums(&self, f: impl Fn(usize, usize) -> f32) -> Vec<f32> {
        (0..self.c).map(|c| (0..ROWS).map(|row| f64::from(f(row, c))).sum::<f64>() as f32).collect()
    }

    fn z(&self, row: usize, c: usize) -> f32 {
        self.x[row * self.c + c] * self.scale[c] + self.shift[c]
    }

    fn centred(&self, row: usize, c: usize) -> f32 {
        self.x[row * self.c + c] * self.keep[c] - self.mean[c]
    }
}

fn sums(c: usize, run: impl FnOnce(&mut Sums<'_>) -> Result<()>) -> (Vec<f32>, Vec<f32>) {
    let (mut first, mut second) = (vec![0.0; c], vec![0.0; c]);
    run(&mut Sums { first: &mut first, second: &mut second }).unwrap();
    (first, second)
}

fn assert_near(got: &[f32], want: &[f32], what: &str) {
    assert!(worst(got, want, 1.0) < 1e-5, "{what}");
}

/// The derivative where the result is `y`.
fn slope(act: Act, y: f32) -> f32 {
    let (low, high) = act.range();
    if y > low && y < high { 1.0 } else { 0.0 }
}

const ACTS: [Act; 3] = [Act::None, Act::Relu, Act::Relu6];

#[test]
fn forward_and_moments_equal_their_formulas() {
    for (c, isa) in WIDTHS.into_iter().flat_map(|c| Isa::available().into_iter().map(move |isa| (c, isa))) {
        let case = cases().find(|case| case.c == c).unwrap();
        let (first, second) = sums(case.c, |sums| moments(isa, &case.x, case.centre(), sums));
        assert_near(&first, &case.column_sums(|row, c| case.centred(row, c)), "first moment");
        assert_near(&second, &case.column_sums(|row, c| case.centred(row, c).powi(2)), "second moment");
        for act in ACTS {
            let mut y = vec![f32::NAN; case.x.len()];
            forward(isa, &case.x, case.affine(), act, &mut y).unwrap();
            assert_near(&y, &case.map(|row, c| act.apply(case.z(row, c))), "forward");
            let summed = |shortcut: Option<&[f32]>| {
                let (x, affine, weight) = (&case.x[..], case.affine(), &case.weight[..]);
                let mut y = vec![f32::NAN; case.x.len()];
                join(isa, &Join { x, affine, weight, shortcut, act }, &mut y).unwrap();
                y
            };
            let want = |add: bool| {
                case.map(|row, c| {
                    let shortcut = if add { case.shortcut[row * case.c + c] } else { 0.0 };
                    act.apply(case.weight[row] * case.z(row, c) + shortcut)
                })
            };
            assert_near(&summed(Some(&case.shortcut)), &want(true), "join");
            assert_near(&summed(None), &want(false), "join without shortcut");
        }
    }
}

#[test]
fn gradients_equal_their_formulas() {
    for case in cases() {
        for isa in Isa::available() {
            for act in ACTS {
                let want = case.map(|row, c| case.dy[row * case.c + c] * slope(act, case.z(row, c)));
                let mut g = case.dy.clone();
                let (first, second) = sums(case.c, |sums| {
                    grad_sums(isa, &case.x, (case.affine(), act), case.centre(), &mut g, sums)
                });
                assert_near(&g, &want, "through the activation");
                assert_near(&first, &case.column_sums(|row, c| want[row * case.c + c]), "first");
                let product = |row: usize, c: usize| want[row * case.c + c] * case.centred(row, c);
                assert_near(&second, &case.column_sums(product), "second");
            }
            let (a, b, d) = (&case.scale[..], &case.shift[..], &case.mean[..]);
            let (mut dx, mut dkeep) = (vec![f32::NAN; case.x.len()], vec![0.0; case.c]);
            let coefficients = GradCoefficients { a, b, d };
            grad(isa, (&case.x, &case.dy), coefficients, &case.keep, &mut dx, &mut dkeep).unwrap();
            let dv = |row: usize, c: usize| {
                let i = row * case.c + c;
                case.dy[i] * a[c] + case.x[i] * case.keep[c] * b[c] + d[c]
            };
            assert_near(&dx, &case.map(|row, c| dv(row, c) * case.keep[c]), "input");
            assert_near(&dkeep, &case.column_sums(|row, c| dv(row, c) * case.x[row * case.c + c]), "mask");
        }
    }
}

#[test]
fn gradients_of_the_residual_sum_equal_their_formulas() {
    for case in cases() {
        for (isa, act) in Isa::available().into_iter().flat_map(|isa| ACTS.map(|act| (isa, act))) {
            let (x, affine, weight) = (&case.x[..], case.affine(), &case.weight[..]);
            let joined = |shortcut| Join { x, affine, weight, shortcut, act };
            let mut y = vec![0.0; x.len()];
            join(isa, &joined(Some(&case.shortcut[..])), &mut y).unwrap();
            let (mut dy, mut g, mut dweight) =
                (case.dy.clone(), vec![f32::NAN; x.len()], vec![f32::NAN; ROWS]);
            let (first, second) = sums(case.c, |sums| {
                let centre = case.centre();
                let (dy, g, dweight) = (&mut dy[..], &mut g[..], &mut dweight[..]);
                join_grad(isa, JoinGrad { join: joined(None), y: &y, dy, centre, g, dweight }, sums)
            });
            let shortcut = case.map(|row, c| case.dy[row * case.c + c] * slope(act, y[row * case.c + c]));
            let branch = |row: usize, c: usize| shortcut[row * case.c + c] * weight[row];
            assert_near(&dy, &shortcut, "shortcut");
            assert_near(&g, &case.map(branch), "branch");
            assert_near(&first, &case.column_sums(branch), "first");
            assert_near(&second, &case.column_sums(|row, c| branch(row, c) * case.centred(row, c)), "second");
            let dot =
                |row: usize| (0..case.c).map(|c| shortcut[row * case.c + c] * case.z(row, c)).sum::<f32>();
            assert_near(&dweight, &(0..ROWS).map(dot).collect::<Vec<_>>(), "spatial mask");
        }
    }
}

#[test]
fn maps_in_bfloat16_are_what_those_in_f32_round_to() {
    let rounded = |values: &[f32]| values.iter().map(|&v| bf16::from_f32(v)).collect::<Vec<_>>();
    let wide = |values: &[bf16]| values.iter().map(|v| v.to_f32()).collect::<Vec<_>>();
    for (case, isa) in
        cases().flat_map(|case| Isa::available().into_iter().map(move |isa| (case.clone(), isa)))
    {
        let (x, shortcut) = (rounded(&case.x), rounded(&case.shortcut));
        let case = Case { x: wide(&x), shortcut: wide(&shortcut), ..case };
        let (affine, centre, act, weight) = (case.affine(), case.centre(), Act::Relu, &case.weight[..]);
        assert_eq!(
            sums(case.c, |sums| moments(isa, &x, centre, sums)),
            sums(case.c, |sums| moments(isa, &case.x, centre, sums))
        );
        let (mut got, mut want) = (x.clone(), case.x.clone());
        forward(isa, &x, affine, act, &mut got).unwrap();
        forward(isa, &case.x, affine, act, &mut want).unwrap();
        assert_eq!(got, rounded(&want));
        join(isa, &Join { x: &x, affine, weight, shortcut: Some(&shortcut), act }, &mut got).unwrap();
        let sum = Join { x: &case.x, affine, weight, shortcut: Some(&case.shortcut[..]), act };
        join(isa, &sum, &mut want).unwrap();
        assert_eq!(got, rounded(&want));
        let coefficients = GradCoefficients { a: &case.scale, b: &case.shift, d: &case.mean };
        let (mut dkeep, mut wide_dkeep) = (vec![0.0; case.c], vec![0.0; case.c]);
        grad(isa, (&x, &case.dy), coefficients, &case.keep, &mut got, &mut dkeep).unwrap();
        grad(isa, (&case.x, &case.dy), coefficients, &case.keep, &mut want, &mut wide_dkeep).unwrap();
        assert_eq!((got, dkeep), (rounded(&want), wide_dkeep));
    }
}

#[test]
fn operands_of_another_size_are_errors() {
    let case = cases().next().unwrap();
    let short = &case.x[1..];
    let mut y = vec![0.0; case.x.len()];
    assert!(forward(Isa::detect(), short, case.affine(), Act::Relu, &mut y).is_err());
    let affine = Affine { scale: &[], shift: &[] };
    assert!(forward(Isa::detect(), &case.x, affine, Act::Relu, &mut y).is_err());
    let mut sums = Sums { first: &mut [0.0], second: &mut [0.0] };
    let message = moments(Isa::detect(), &case.x, case.centre(), &mut sums).unwrap_err().to_string();
    assert!(message.contains("batch_norm moments"), "{message}");
}
