//! A checkpoint that the official training script wrote.

use std::path::{Path, PathBuf};

use crate::checkpoint::{Checkpoint, DType};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// Expected values were computed with Python's own unpickler.
#[test]
fn official_checkpoint_reads() {
    let checkpoint = Checkpoint::open(&fixture("checkpoint_official.pth.tar")).unwrap();
    assert_eq!(checkpoint.name(), "checkpoint_official.pth.tar");
    assert!(checkpoint.metadata().is_empty());
    assert_eq!(checkpoint.tensors().len(), 179);
    for name in checkpoint.tensors().keys() {
        assert!(!name.starts_with("module.") && !name.ends_with("num_batches_tracked"), "{name}");
        checkpoint.read_finite_f32(name).unwrap();
    }

    let stem = &checkpoint.tensors()["conv1.weight"];
    assert_eq!((stem.dtype, stem.shape.as_slice()), (DType::F32, [8, 3, 7, 7].as_slice()));
    let stem = checkpoint.read_f32("conv1.weight").unwrap();
    assert_eq!((stem.len(), stem[0], stem[1175]), (1176, 0.005_938_681, -0.068_734_99));

    let fc = checkpoint.read_f32("fc.weight").unwrap();
    assert_eq!((fc[0], fc[2559]), (0.055_410_69, 0.056_175_52));
    let sum: f64 = fc.iter().copied().map(f64::from).sum();
    assert!((sum - 1.544_803_878_618).abs() < 1e-9, "{sum}");
    assert!(checkpoint.read_f32("bn1.running_var").unwrap().iter().all(|&v| v > 0.0));
}

#[test]
fn official_values_read() {
    let expected = Checkpoint::open(&fixture("checkpoint_official.expected.safetensors")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&expected.metadata()["config"]).unwrap();
    assert_eq!(config["arch"], "resnet");
    assert_eq!(expected.tensors()["fixture.logits"].shape, [2, 10]);
    assert_eq!(expected.read_finite_f32("fixture.logits").unwrap().len(), 20);
    let mask = expected.read_u8("fixture.mask.layer1.0.masker_channel").unwrap();
    assert!(mask.len() == 8 && mask.iter().all(|&bit| bit <= 1));
    let message = expected.read_u8("fixture.logits").unwrap_err().to_string();
    assert!(message.ends_with("tensor `fixture.logits` is F32, not U8"), "{message}");
    assert_eq!(expected.tensors()["fixture.macs_total"].dtype, DType::F64);
}

/// Every tensor, as the reference implementation of the format sees it.
#[test]
fn safetensors_agrees_with_the_reference_reader() {
    let path = fixture("checkpoint_official.expected.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let ours = Checkpoint::open(&path).unwrap();
    let theirs = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(ours.tensors().len(), theirs.len());
    for (name, view) in theirs.iter() {
        assert_eq!(ours.tensors()[name].shape, view.shape());
        assert_eq!(ours.read_bytes(name).unwrap(), view.data());
    }
}

#[test]
fn threads_share_one_checkpoint() {
    let checkpoint = Checkpoint::open(&fixture("checkpoint_official.pth.tar")).unwrap();
    let serial: Vec<Vec<f32>> =
        checkpoint.tensors().keys().map(|n| checkpoint.read_f32(n).unwrap()).collect();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for (name, expected) in checkpoint.tensors().keys().zip(&serial) {
                    assert_eq!(&checkpoint.read_f32(name).unwrap(), expected);
                }
            });
        }
    });
}
