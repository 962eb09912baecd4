use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use laud::exec::Request;
use laud::gate::{Decisions, Policy, Rule, Units};
use laud::plan::{CPU_MAP_BYTES, Portions};
use laud::train::{random_images, random_weights};
use laud::{Element, Output, Session};
use laud_models::NetSpec;

use crate::compare::values;
use crate::execute::session;
use crate::oracle_cases::net;

/// Every kind of gate, type A shortcuts and a map that patches do not divide.
fn spec() -> NetSpec {
    net(
        r#"{"arch": "cifar_resnet", "depths": [2, 2, 2], "widths": [8, 12, 16], "stem_width": 8, "input_size": [14, 17],
            "dyn_mode": ["both", "spatial", "layer"], "spatial_granularity": 2, "channel_granularity": 4}"#,
    )
}

fn on(threads: usize) -> Session {
    session(&spec(), &random_weights(&spec(), 3).unwrap(), |builder| builder.threads(threads))
}

/// `n` different images, one behind the other.
fn images(n: usize) -> Vec<f32> {
    values(&random_images(&spec(), n, 5).unwrap())
}

fn image(n: usize) -> Vec<f32> {
    let all = images(n + 1);
    let size = all.len() / (n + 1);
    all[n * size..].to_vec()
}

/// Everything that an inference gives but times, as bits.
fn bits(output: &Output) -> (Vec<u32>, Vec<u32>, String) {
    let of = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<u32>>();
    let features = output.features.iter().flat_map(|map| of(&map.values)).collect();
    let rest = format!("{:?} {:?}", output.masks, output.trace);
    (of(&output.logits), features, rest)
}

fn everything(session: &Session, images: &[f32], batch: usize, output: &mut Output) {
    let request = Request { images, batch, features: true, masks: true, timed: false };
    session.infer_into(request, output).unwrap();
}

fn fresh(session: &Session, images: &[f32], batch: usize) -> Output {
    let mut output = Output::default();
    everything(session, images, batch, &mut output);
    output
}

#[test]
fn many_threads_get_what_one_gets() {
    let inputs: Vec<_> = (0..4).map(|i| (images(i + 1), i + 1)).collect();
    for session in [on(1), on(2), on(3)] {
        let alone: Vec<_> =
            inputs.iter().map(|(images, batch)| bits(&fresh(&session, images, *batch))).collect();
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let (session, inputs, alone) = (&session, &inputs, &alone);
                scope.spawn(move || {
                    let mut output = Output::default();
                    for round in 0..25 {
                        let i = (thread + round) % inputs.len();
                        everything(session, &inputs[i].0, inputs[i].1, &mut output);
                        assert!(bits(&output) == alone[i], "thread {thread}, round {round}");
                    }
                });
            }
        });
    }
}

/// Every sum has one order, whatever else is computed: in f32 and in bf16.
#[test]
fn a_sample_does_not_depend_on_its_batch() {
    for element in [Element::F32, Element::Bf16] {
        let session = session(&spec(), &random_weights(&spec(), 3).unwrap(), |builder| {
            builder.element(element).threads(1)
        });
        let all = fresh(&session, &images(5), 5);
        let classes = all.logits.len() / 5;
        for sample in 0..5 {
            let alone = fresh(&session, &image(sample), 1);
            assert_eq!(
                alone.logits,
                all.logits[sample * classes..(sample + 1) * classes],
                "{element:?} {sample}"
            );
            for (alone, all) in alone.features.iter().zip(&all.features) {
                let len = alone.values.len();
                assert!(alone.values == all.values[sample * len..(sample + 1) * len], "{element:?} {sample}");
            }
        }
    }
}

/// Large maps in front, which samples go through one by one, and small ones behind, where some go on together.
#[test]
fn a_sample_does_not_depend_on_those_it_goes_on_with() {
    let spec = net(
        r#"{"arch": "cifar_resnet", "depths": [1, 2, 2], "widths": [64, 64, 64], "stem_width": 64, "input_size": [96, 100],
            "dyn_mode": ["both", "spatial", "layer"], "spatial_granularity": 2, "channel_granularity": 8}"#,
    );
    portions_agree(&spec, Portions { cut: 2, front: 1, back: 3 });
    // Only what the stem writes is large.
    let spec = net(r#"{"arch": "resnet18", "input_size": 112, "widths": [16, 16, 24, 32], "num_classes": 10,
            "dyn_mode": ["spatial", "layer", "spatial", "layer"], "spatial_granularity": 2}"#);
    portions_agree(&spec, Portions { cut: 0, front: 2, back: 4 });
}

/// Five images in such portions are as five inferences.
fn portions_agree(spec: &NetSpec, portions: Portions) {
    assert_eq!(Portions::of(spec, 4, CPU_MAP_BYTES, 5), portions);
    let images = values(&random_images(spec, 5, 5).unwrap());
    let size = images.len() / 5;
    for threads in [1, 2] {
        let session = session(spec, &random_weights(spec, 3).unwrap(), |builder| builder.threads(threads));
        let all = fresh(&session, &images, 5);
        let mut macs = vec![0; spec.blocks.len()];
        for sample in 0..5 {
            let alone = fresh(&session, &images[sample * size..(sample + 1) * size], 1);
            let part = |len: usize| sample * len..(sample + 1) * len;
            assert_eq!(alone.logits, all.logits[part(alone.logits.len())], "sample {sample}");
            for (alone, all) in alone.features.iter().zip(&all.features) {
                assert!(alone.values == all.values[part(alone.values.len())], "sample {sample}");
            }
            for (alone, all) in alone.masks.iter().zip(&all.masks) {
                assert_eq!(alone.patches, all.patches[part(alone.patches.len())]);
                assert_eq!(alone.channel_groups, all.channel_groups[part(alone.channel_groups.len())]);
            }
            macs.iter_mut().zip(&alone.trace.blocks).for_each(|(sum, block)| *sum += block.macs);
        }
        assert_eq!(all.trace.blocks.iter().map(|block| block.macs).collect::<Vec<_>>(), macs);
        let again = fresh(&session, &images[..2 * size], 2);
        assert_eq!(again.logits, all.logits[..again.logits.len()]);
        let mut timed = Output::default();
        let request = Request { images: &images, batch: 5, features: false, masks: false, timed: true };
        session.infer_into(request, &mut timed).unwrap();
        assert_eq!(timed.logits, all.logits);
        assert!(timed.trace.stem_ns > 0 && timed.trace.head_ns > 0);
        assert!(timed.trace.blocks.iter().all(|block| block.gate_ns + block.compute_ns > 0));
    }
}

#[test]
fn threads_change_no_bit() {
    let expected = bits(&fresh(&on(1), &images(3), 3));
    for threads in [2, 3, 7] {
        assert!(bits(&fresh(&on(threads), &images(3), 3)) == expected, "{threads} threads");
    }
}

#[test]
fn sessions_share_a_pool_also_with_work_inside_it() {
    let pool = Arc::new(rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap());
    let weights = random_weights(&spec(), 3).unwrap();
    let [first, second] = [0, 1].map(|_| session(&spec(), &weights, |builder| builder.pool(pool.clone())));
    let expected = bits(&fresh(&on(1), &images(2), 2));
    let check = |session: &Session| {
        for _ in 0..20 {
            assert!(bits(&fresh(session, &images(2), 2)) == expected);
        }
    };
    std::thread::scope(|scope| {
        for session in [&first, &second, &first, &second] {
            scope.spawn(|| check(session));
        }
        // The pool's own threads infer too.
        scope.spawn(|| pool.install(|| rayon::join(|| check(&first), || check(&second))));
    });
}

#[test]
fn batches_may_grow_and_shrink() {
    for threads in [1, 2] {
        let session = on(threads);
        let mut output = Output::default();
        for batch in [1, 4, 2, 1, 6, 3, 6, 1] {
            everything(&session, &images(batch), batch, &mut output);
            assert!(bits(&output) == bits(&fresh(&on(1), &images(batch), batch)), "batch {batch}");
        }
    }
}

#[test]
fn a_reused_output_holds_nothing_of_before() {
    let session = on(1);
    let (two, one) = (images(2), image(0));
    let mut output = Output::default();
    for (images, batch, asked) in [(&two, 2, true), (&one, 1, false), (&one, 1, true), (&two, 2, false)] {
        let request = Request { images, batch, features: asked, masks: asked, timed: asked };
        session.infer_into(request, &mut output).unwrap();
        let again = session.infer(images, batch).unwrap();
        assert_eq!(output.logits, again.logits);
        assert_eq!((output.features.len(), output.masks.len()), if asked { (3, 6) } else { (0, 0) });
        assert_eq!(output.trace.total_ns() > 0, asked);
        assert_eq!((output.trace.batch, output.trace.macs()), (batch, again.trace.macs()));
    }
}

#[test]
fn input_that_does_not_fit_is_an_error() {
    let session = on(1);
    let good = images(2);
    let infer = |images: &[f32], batch: usize| {
        let mut output = Output::default();
        let request = Request { images, batch, features: false, masks: false, timed: false };
        let errors = [
            session.infer(images, batch).err(),
            session.infer_into(request, &mut output).err(),
            session.infer_with(request, &laud::gate::Always, &mut output).err(),
        ];
        let [one, two, three] = errors.map(|error| error.expect("an error").to_string());
        assert!(one == two && two == three, "{one}; {two}; {three}");
        one
    };
    let size = good.len() / 2;
    assert_eq!(
        infer(&good, 3),
        format!("{} values for 3 images of 3×14×17, which are {}", 2 * size, 3 * size)
    );
    assert_eq!(
        infer(&good[1..], 2),
        format!("{} values for 2 images of 3×14×17, which are {}", 2 * size - 1, 2 * size)
    );
    assert_eq!(infer(&[], 0), "an inference needs at least one image");
    infer(&[], 1 << 63);
    infer(&good, usize::MAX);
    for (at, value, shown) in
        [(0, f32::NAN, "NaN"), (size, f32::INFINITY, "inf"), (2 * size - 1, -f32::INFINITY, "-inf")]
    {
        let mut images = good.clone();
        images[at] = value;
        assert_eq!(infer(&images, 2), format!("value {at} of the images is {shown}; inputs must be finite"));
    }
    assert!(session.infer(&good, 2).is_ok());
}

#[test]
fn very_wide_maps_run() {
    let spec = net(
        r#"{"arch": "cifar_resnet", "depths": [1, 1], "widths": [4, 4], "stem_width": 4, "input_size": [2, 16384],
            "dyn_mode": "spatial", "spatial_granularity": 2}"#,
    );
    let session =
        Session::builder(spec.clone()).threads(1).build(&laud::RandomWeights::new(&spec, 1)).unwrap();
    let half = laud::gate::Given::forced(&spec, 1, 0.5, laud::gate::Pattern::Scattered, 1).unwrap();
    let images = vec![0.5; 3 * 2 * 16384];
    let request = Request { images: &images, batch: 1, features: false, masks: false, timed: false };
    session.infer_with(request, &half, &mut Output::default()).unwrap();
}

/// A policy that fails.
struct Fails;

impl Policy for Fails {
    fn name(&self) -> &str {
        "fails"
    }

    fn rule(&self) -> Rule<'_> {
        Rule::Given(self)
    }
}

impl Decisions for Fails {
    fn decide(&self, units: Units, _keep: &mut [bool]) {
        assert!(units.block < 3, "no decision");
    }
}

#[test]
fn a_panic_in_a_policy_leaves_the_session_usable() {
    for threads in [1, 2] {
        let session = on(threads);
        let (images, mut output) = (images(2), Output::default());
        let expected = bits(&fresh(&session, &images, 2));
        let request = Request { images: &images, batch: 2, features: true, masks: true, timed: false };
        for _ in 0..3 {
            let outcome = catch_unwind(AssertUnwindSafe(|| session.infer_with(request, &Fails, &mut output)));
            assert!(outcome.is_err());
            everything(&session, &images, 2, &mut output);
            assert!(bits(&output) == expected);
        }
    }
}

#[test]
fn what_cannot_be_built_is_an_error() {
    let (spec, weights) = (spec(), laud::RandomWeights::new(&spec(), 1));
    let pool = Arc::new(rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap());
    let build = |change: &dyn Fn(laud::SessionBuilder) -> laud::SessionBuilder| {
        change(Session::builder(spec.clone())).build(&weights).err().map(|error| format!("{error:#}"))
    };
    assert_eq!(build(&|b| b), None);
    assert_eq!(build(&|b| b.threads(0)).unwrap(), "a session needs at least one thread");
    assert_eq!(
        build(&|b| b.threads(2).pool(pool.clone())).unwrap(),
        "give either a pool or a number of threads"
    );
    assert!(build(&|b| b.isa("sse9")).unwrap().contains("sse9"));
    let other = laud::plan::ExecutionPlan::sparse(&net(r#"{"arch": "resnet20"}"#));
    assert!(build(&|b| b.plan(other.clone())).unwrap().contains("9 blocks"));
    let mut broken = spec.clone();
    broken.blocks[0].convs[0].groups = 0;
    let error = Session::builder(broken).build(&weights).err().unwrap();
    assert!(format!("{error:#}").starts_with("layer1.0"), "{error:#}");
    let error = Session::builder(spec.clone()).build(&laud::TensorMap::default()).err().unwrap();
    assert_eq!(format!("{error:#}"), "no tensor bn1.weight");
}
