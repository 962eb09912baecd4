//! What ships: every network loads, and those with gates decide.

use std::path::Path;

use laud::models::{NetConfig, infer};
use laud::vision::Preprocess;
use laud::{CheckpointWeights, Output, Session, zoo};

fn session(name: &str) -> Session {
    let checkpoint = zoo::load(name).unwrap();
    let weights = CheckpointWeights::new(&checkpoint);
    let stated = NetConfig::from_json(&checkpoint.metadata()["config"]).unwrap();
    let spec = infer(&weights.shapes(), &stated).unwrap().build().unwrap();
    weights.check(&spec).unwrap();
    Session::builder(spec).threads(2).build(&weights).unwrap()
}

/// Every shipped CIFAR-10 image: the label, and what one inference of it alone gives.
fn outputs(session: &Session) -> Vec<(usize, Output)> {
    let preprocess = Preprocess::new(&session.spec().input).unwrap();
    let mut image = vec![0.0; preprocess.values()];
    let of = |sample: anyhow::Result<laud::vision::Sample>| {
        let sample = sample.unwrap();
        preprocess.write_nchw(&sample.image, &mut image).unwrap();
        (sample.label, session.infer(&image, 1).unwrap())
    };
    zoo::cifar10_images().unwrap().iter().map(of).collect()
}

fn right(outputs: &[(usize, Output)]) -> usize {
    let best = |logits: &[f32]| (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
    outputs.iter().filter(|(label, output)| best(&output.logits) == Some(*label)).count()
}

#[test]
fn every_network_has_a_card_and_fits_its_description() {
    for name in zoo::names() {
        session(name);
        let zoo = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/zoo");
        let cards = std::fs::read_dir(zoo)
            .unwrap()
            .filter_map(|entry| std::fs::read_to_string(entry.ok()?.path().join("README.md")).ok());
        let file = format!("`{name}.safetensors`");
        let of_this: Vec<String> = cards.filter(|card| card.contains(&file)).collect();
        assert_eq!(of_this.len(), 1, "{name}");
        for told in ["licence", "training data", "**Accuracy.**"] {
            assert!(of_this[0].contains(told), "{name}: {told}");
        }
    }
}

#[test]
fn trained_gates_decide_image_by_image_and_answers_stay_right() {
    let fixed = outputs(&session("cifar_resnet56_jpeg"));
    for (name, percent) in [("cifar_resnet56_jpeg_layer", 55), ("cifar_resnet56_jpeg_channel", 62)] {
        let gated = outputs(&session(name));
        let done: Vec<u64> = gated.iter().map(|(_, output)| output.trace.macs()).collect();
        let dense = gated[0].1.trace.dense_macs();
        let most = percent * dense * done.len() as u64;
        assert!(done.iter().sum::<u64>() * 100 < most, "{name}: {done:?} of {dense}");
        assert!(done.iter().any(|macs| *macs != done[0]), "{name}: the same for every image: {done:?}");
        // Of 32; one image is three points.
        assert!(right(&fixed) >= 27 && right(&gated) >= 26, "{name}: {}, {}", right(&fixed), right(&gated));
    }
}

#[test]
fn most_images_leave_at_24_pixels_and_answers_stay_right() {
    let (mut leaving, spec) = (session("cifar_resnet56_jpeg_layer_24"), session("cifar_resnet56_jpeg"));
    assert_eq!((leaving.spec().input.size.h, spec.spec().input.size.h), (24, 32));
    let checkpoint = zoo::load("cifar_resnet56_jpeg").unwrap();
    let weights = CheckpointWeights::new(&checkpoint);
    leaving =
        Session::builder(spec.spec().clone()).threads(2).early_exit(leaving, 0.8).build(&weights).unwrap();
    let (fixed, found) = (outputs(&spec), outputs(&leaving));
    let left: usize = found.iter().map(|(_, output)| output.trace.exits[0].answered).sum();
    let done: u64 = found.iter().map(|(_, output)| output.trace.macs()).sum();
    let dense: u64 = found.iter().map(|(_, output)| output.trace.dense_macs()).sum();
    assert!((20..32).contains(&left) && done * 100 < dense * 55, "{left} of 32 leave, {done} of {dense}");
    assert!(right(&found) + 1 >= right(&fixed), "{} and {}", right(&found), right(&fixed));
}
