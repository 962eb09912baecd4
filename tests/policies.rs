//! Policies by name, run: which units they keep of a network with every kind of gate, and what that costs.

use laud::exec::Request;
use laud::gate::Policy;
use laud::policy::{Subject, named};
use laud::predictor::DeviceKind;
use laud::predictor::workload::DType;
use laud::train::{random_images, random_weights};
use laud::{Output, Session};
use laud_models::NetSpec;

use crate::compare::values;
use crate::execute::session;
use crate::oracle_cases::net;

fn spec(modes: &str) -> NetSpec {
    net(&format!(
        r#"{{"arch": "cifar_resnet", "depths": [2, 2, 2], "widths": [8, 12, 16], "stem_width": 8, "input_size": [14, 17],
            "dyn_mode": {modes}, "spatial_granularity": 2, "channel_granularity": 4}}"#,
    ))
}

fn ready(spec: &NetSpec) -> Session {
    session(spec, &random_weights(spec, 3).unwrap(), |builder| builder.threads(1))
}

fn policy(spec: &NetSpec, text: &str) -> Box<dyn Policy> {
    named(text, Subject { spec, seed: 1, threads: 1, dtype: DType::F32, kind: DeviceKind::Cpu }).unwrap()
}

fn infer(session: &Session, images: &[f32], batch: usize, text: &str) -> Output {
    let mut output = Output::default();
    let request = Request { images, batch, features: false, masks: true, timed: false };
    session.infer_with(request, &*policy(session.spec(), text), &mut output).unwrap();
    output
}

/// Decisions of every gate of every sample, and how many units it has.
fn gates(output: &Output) -> Vec<(usize, usize)> {
    let batch = output.trace.batch;
    let masks = output.masks.iter().flat_map(|masks| [&masks.patches, &masks.channel_groups]);
    masks
        .filter(|keep| !keep.is_empty())
        .flat_map(|keep| keep.chunks_exact(keep.len() / batch))
        .map(|keep| (keep.iter().filter(|keep| **keep).count(), keep.len()))
        .collect()
}

/// Whether `some` keeps nothing that `more` does not; of the first gate, which both decide about the same map.
fn within(some: &Output, more: &Output) -> bool {
    some.masks[0].patches.iter().zip(&more.masks[0].patches).all(|(some, more)| *more || !some)
}

#[test]
fn topk_keeps_the_same_number_of_every_sample() {
    let spec = spec(r#"["both", "spatial", "channel"]"#);
    let (session, images) = (ready(&spec), values(&random_images(&spec, 3, 5).unwrap()));
    let half = infer(&session, &images, 3, "topk:0.5");
    for (kept, units) in gates(&half) {
        assert_eq!(kept, (units as f64 / 2.0).round() as usize);
    }
    let three = infer(&session, &images, 3, "topk:3");
    for (kept, units) in gates(&three) {
        assert_eq!(kept, units.min(3));
    }
    assert!(within(&three, &half) && !within(&half, &three));
    // The threshold that keeps as many keeps the same.
    let learned = infer(&session, &images[..images.len() / 3], 1, "learned");
    let (kept, units) = gates(&learned)[0];
    let same = infer(&session, &images[..images.len() / 3], 1, &format!("topk:{kept}"));
    assert!(kept > 0 && kept < units);
    assert_eq!(same.masks[0].patches, learned.masks[0].patches);
}

#[test]
fn budgets_hold_for_every_sample_and_change_nothing_where_there_is_enough() {
    for mode in ["layer", "spatial", "channel"] {
        let spec = spec(&format!(r#""{mode}""#));
        let (session, images) = (ready(&spec), values(&random_images(&spec, 4, 5).unwrap()));
        let learned = infer(&session, &images, 4, "learned");
        let enough = infer(&session, &images, 4, "budget:1.0");
        assert_eq!(enough.masks, learned.masks, "{mode}");
        let share = |output: &Output| output.trace.macs() as f64 / output.trace.dense_macs() as f64;
        let mut last = 0.0;
        for part in [0.7, 0.8, 0.9] {
            let limit = part * share(&learned);
            let together = infer(&session, &images, 4, &format!("budget:{limit}"));
            assert!(within(&together, &learned), "{mode}");
            for n in 0..4 {
                let image = &images[n * images.len() / 4..(n + 1) * images.len() / 4];
                let alone = infer(&session, image, 1, &format!("budget:{limit}"));
                // Exact where units have no halo. Prices of patches are those of clustered ones; these are scattered.
                let off = if mode == "spatial" { 0.15 } else { 0.01 };
                assert!(share(&alone) < limit + off, "{mode}: {} of {limit}", share(&alone));
                for (alone, together) in alone.masks.iter().zip(&together.masks) {
                    let part = |all: &[bool]| all[n * all.len() / 4..(n + 1) * all.len() / 4].to_vec();
                    assert_eq!(alone.patches, part(&together.patches), "{mode}");
                    assert_eq!(alone.channel_groups, part(&together.channel_groups), "{mode}");
                }
            }
            assert!(share(&together) > last, "{mode}: {limit}");
            last = share(&together);
        }
    }
}
