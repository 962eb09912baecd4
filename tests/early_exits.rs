//! Early exits: who answers, with what, and what is counted.

use laud::exec::Request;
use laud::train::{random_images, random_weights};
use laud::{Output, Session};
use laud_models::NetSpec;

use crate::compare::values;
use crate::execute::session;
use crate::oracle_cases::net;

/// Every kind of gate, for images of `h` × `w`.
fn spec(h: usize, w: usize) -> NetSpec {
    net(&format!(
        r#"{{"arch": "cifar_resnet", "depths": [2, 2, 2], "widths": [8, 12, 16], "stem_width": 8, "input_size": [{h}, {w}],
            "dyn_mode": ["both", "none", "layer"], "spatial_granularity": 2, "channel_granularity": 4}}"#,
    ))
}

fn ready(spec: &NetSpec) -> Session {
    session(spec, &random_weights(&self::spec(14, 17), 3).unwrap(), |builder| builder.threads(1))
}

fn leaving(exits: &[((usize, usize), f32)]) -> Session {
    session(&spec(14, 17), &random_weights(&spec(14, 17), 3).unwrap(), |builder| {
        exits.iter().fold(builder.threads(1), |builder, &((h, w), confidence)| {
            builder.early_exit(ready(&spec(h, w)), confidence)
        })
    })
}

/// Images of one color each, which are the same at every size.
fn plain_images(spec: &NetSpec, n: usize) -> Vec<f32> {
    let pixels = spec.input.size.h * spec.input.size.w;
    let color = |i: usize| ((i * i * 5 + 3 * i) % 23) as f32 / 8.0 - 1.2;
    (0..3 * n).flat_map(|i| vec![color(i); pixels]).collect()
}

fn infer(session: &Session, images: &[f32], batch: usize) -> Output {
    let mut output = Output::default();
    let request = Request { images, batch, features: false, masks: true, timed: true };
    session.infer_into(request, &mut output).unwrap();
    output
}

/// Probability of the best class of every sample.
fn probabilities(output: &Output) -> Vec<f32> {
    let classes = output.logits.len() / output.trace.batch;
    let best = |logits: &[f32]| {
        let weights: Vec<f64> = logits.iter().map(|logit| f64::from(*logit).exp()).collect();
        (weights.iter().copied().fold(0.0, f64::max) / weights.iter().sum::<f64>()) as f32
    };
    output.logits.chunks(classes).map(best).collect()
}

/// Half way between the `n`-th and the next of the values, the largest first.
fn between(mut values: Vec<f32>, n: usize) -> f32 {
    values.sort_by(|a, b| b.total_cmp(a));
    assert!(values[n - 1] > values[n] + 1e-4, "{values:?}");
    (values[n - 1] + values[n]) / 2.0
}

#[test]
fn who_is_sure_answers_and_the_others_go_on() {
    let (large, small, batch) = (spec(14, 17), spec(7, 9), 5);
    let images = plain_images(&large, batch);
    let alone = infer(&ready(&small), &plain_images(&small, batch), batch);
    let sure = probabilities(&alone);
    let confidence = between(sure.clone(), 2);
    let session = leaving(&[((7, 9), confidence)]);
    // Memory is used again by larger and smaller batches.
    infer(&session, &images[..2 * images.len() / batch], 2);
    let output = infer(&session, &images, batch);

    let (classes, image) = (alone.logits.len() / batch, images.len() / batch);
    let full = ready(&large);
    let mut macs = alone.trace.macs();
    for n in 0..batch {
        let logits = &output.logits[n * classes..][..classes];
        let masks = |output: &Output, n: usize, batch: usize| -> Vec<bool> {
            let all = output.masks.iter().flat_map(|masks| [&masks.patches, &masks.channel_groups]);
            all.flat_map(|keep| keep[n * keep.len() / batch..(n + 1) * keep.len() / batch].to_vec()).collect()
        };
        if sure[n] >= confidence {
            let expected = &alone.logits[n * classes..][..classes];
            let close = logits.iter().zip(expected).all(|(got, expected)| (got - expected).abs() < 1e-4);
            assert!(close, "{n}: {logits:?} {expected:?}");
            assert!(masks(&output, n, batch).iter().all(|keep| !keep), "{n}");
        } else {
            let expected = infer(&full, &images[n * image..][..image], 1);
            assert_eq!(logits, expected.logits, "{n}");
            assert_eq!(masks(&output, n, batch), masks(&expected, 0, 1), "{n}");
            macs += expected.trace.macs();
        }
    }
    let trace = &output.trace;
    let exit = trace.exits[0];
    assert_eq!((exit.size, exit.samples, exit.answered, trace.samples), (small.input.size, batch, 2, 3));
    assert!(exit.ns > 0 && trace.total_ns() > exit.ns);
    assert_eq!((trace.macs(), exit.macs), (macs, alone.trace.macs()));
    let everything = infer(&full, &images, batch);
    assert_eq!(trace.dense_macs(), everything.trace.dense_macs());
    for (block, whole) in trace.blocks.iter().zip(&everything.trace.blocks) {
        assert_eq!(block.patches.total, whole.patches.total);
        assert_eq!(block.channel_groups.total, whole.channel_groups.total);
        assert!(block.patches.active <= block.patches.total * 3 / batch);
    }
}

#[test]
fn nobody_or_everybody_leaves() {
    let (full, batch) = (ready(&spec(14, 17)), 3);
    let images = values(&random_images(&spec(14, 17), batch, 5).unwrap());
    let whole = infer(&full, &images, batch);

    let nobody = infer(&leaving(&[((7, 9), 1.0), ((10, 10), 1.0)]), &images, batch);
    assert_eq!((&nobody.logits, &nobody.masks), (&whole.logits, &whole.masks));
    assert!(nobody.trace.exits.iter().all(|exit| (exit.samples, exit.answered) == (batch, 0)));
    let exits: u64 = nobody.trace.exits.iter().map(|exit| exit.macs).sum();
    assert_eq!((nobody.trace.samples, nobody.trace.macs()), (batch, whole.trace.macs() + exits));

    let everybody = infer(&leaving(&[((7, 9), 0.0), ((10, 10), 0.0)]), &images, batch);
    let [first, second] = everybody.trace.exits[..] else { panic!("two exits") };
    assert_eq!((first.answered, second.samples, second.macs, second.ns), (batch, 0, 0, 0));
    assert_eq!((everybody.trace.samples, everybody.trace.macs()), (0, first.macs));
    assert_eq!(everybody.trace.dense_macs(), whole.trace.dense_macs());
    let kept = |output: &Output| output.masks.iter().any(|masks| masks.patches.iter().any(|keep| *keep));
    assert!(kept(&whole) && !kept(&everybody));
    for (masks, whole) in everybody.masks.iter().zip(&whole.masks) {
        assert_eq!(masks.patches.len(), whole.patches.len());
        assert_eq!(masks.channel_groups.len(), whole.channel_groups.len());
    }
}

#[test]
fn an_output_holds_nothing_of_before() {
    let large = spec(14, 17);
    let sure = probabilities(&infer(&ready(&spec(7, 9)), &plain_images(&spec(7, 9), 4), 4));
    let session = leaving(&[((7, 9), between(sure, 2))]);
    let images = plain_images(&large, 4);
    let mut output = infer(&ready(&large), &images, 4);
    for (batch, masks) in [(4, true), (1, false), (3, true), (2, false)] {
        let images = &images[..batch * images.len() / 4];
        let request = Request { images, batch, features: false, masks, timed: false };
        session.infer_into(request, &mut output).unwrap();
        let fresh = session.infer(images, batch).unwrap();
        assert_eq!((&output.logits, output.trace == fresh.trace), (&fresh.logits, true), "{batch}");
        assert_eq!((output.trace.total_ns(), output.masks.is_empty()), (0, !masks));
    }
}

#[test]
fn exits_that_cannot_be_are_errors_that_say_so() {
    let build = |exit: Session, confidence: f32| {
        let session = Session::builder(spec(14, 17)).threads(1).early_exit(exit, confidence);
        let weights = laud::RandomWeights::new(&spec(14, 17), 1);
        session.build(&weights).err().map_or(String::new(), |error| format!("{error:#}"))
    };
    let text = build(ready(&spec(7, 9)), 1.5);
    assert!(text.contains("1.5 is not in 0..=1"), "{text}");
    assert!(build(ready(&spec(7, 9)), f32::NAN).contains("NaN"));
    let other = |more: &str| {
        let spec = net(&format!(r#"{{"arch": "resnet20", {more}}}"#));
        Session::builder(spec.clone()).threads(1).build(&laud::RandomWeights::new(&spec, 1)).unwrap()
    };
    let text = build(other(r#""num_classes": 7"#), 0.5);
    assert!(text.contains("7 classes") && text.contains("has 10"), "{text}");
    let text = build(other(r#""preprocess": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}"#), 0.5);
    assert!(text.contains("prepared otherwise"), "{text}");

    let session = leaving(&[((7, 9), 0.5)]);
    let images = plain_images(&spec(14, 17), 2);
    let mut output = Output::default();
    let request = Request { images: &images, batch: 2, features: true, masks: false, timed: false };
    let text = format!("{:#}", session.infer_into(request, &mut output).unwrap_err());
    assert!(text.contains("feature maps") && text.contains("without early exits"), "{text}");
    let plain = ready(&spec(14, 17));
    for (values, batch) in [(&images[1..], 2), (&images[..], 3), (&[], 0)] {
        let texts = [&session, &plain].map(|session| session.infer(values, batch).unwrap_err().to_string());
        assert_eq!(texts[0], texts[1]);
    }
}
