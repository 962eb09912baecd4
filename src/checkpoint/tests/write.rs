//! Writing, and what a failed write leaves behind.

use std::collections::BTreeMap;

use crate::checkpoint::{Checkpoint, DType, TensorData, TensorOut, write_safetensors};

fn tensors<'a>() -> BTreeMap<String, TensorOut<'a>> {
    BTreeMap::from([
        ("mask".into(), TensorOut { shape: vec![3], data: TensorData::U8(&[1, 0, 1]) }),
        ("w".into(), TensorOut { shape: vec![2, 2], data: TensorData::F32(&[1.0, 2.0, 3.0, -4.5]) }),
        ("macs".into(), TensorOut { shape: vec![], data: TensorData::F64(&[1e300]) }),
        ("half".into(), TensorOut { shape: vec![1], data: TensorData::Raw(DType::F16, &[0, 0x3e]) }),
    ])
}

#[test]
fn what_is_written_reads_back_here_and_elsewhere() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("net.safetensors");
    let metadata = BTreeMap::from([("config".to_owned(), "{\"a\":1}\n".to_owned())]);
    write_safetensors(&path, &tensors(), &metadata).unwrap();
    let first = std::fs::read(&path).unwrap();
    write_safetensors(&path, &tensors(), &metadata).unwrap();
    assert_eq!(first, std::fs::read(&path).unwrap(), "the same input gives the same bytes");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "nothing temporary is left");

    let checkpoint = Checkpoint::open(&path).unwrap();
    assert_eq!(checkpoint.metadata(), &metadata);
    assert_eq!(checkpoint.read_f32("w").unwrap(), [1.0, 2.0, 3.0, -4.5]);
    assert_eq!(checkpoint.read_f32("half").unwrap(), [1.5]);
    assert_eq!(checkpoint.read_u8("mask").unwrap(), [1, 0, 1]);
    assert_eq!(checkpoint.read_bytes("macs").unwrap(), 1e300f64.to_le_bytes());
    assert!(checkpoint.read_finite_f32("macs").is_err(), "1e300 is not finite as f32");

    let reference = safetensors::SafeTensors::deserialize(&first).unwrap();
    assert_eq!(reference.tensor("w").unwrap().shape(), [2, 2]);
    assert_eq!(reference.tensor("mask").unwrap().data(), [1, 0, 1]);
}

#[test]
fn nothing_at_all_can_be_written() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("empty");
    write_safetensors(&path, &BTreeMap::new(), &BTreeMap::new()).unwrap();
    assert!(Checkpoint::open(&path).unwrap().tensors().is_empty());
}

#[test]
fn a_failed_write_leaves_what_was_there() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("net.safetensors");
    std::fs::write(&path, "before").unwrap();

    let mut wrong = tensors();
    wrong.insert("v".into(), TensorOut { shape: vec![3], data: TensorData::F32(&[1.0]) });
    let message = write_safetensors(&path, &wrong, &BTreeMap::new()).unwrap_err().to_string();
    assert!(
        message.starts_with(path.to_str().unwrap()) && message.contains("tensor `v` has shape [3]"),
        "{message}"
    );

    let reserved = BTreeMap::from([("__metadata__".into(), tensors().remove("w").unwrap())]);
    assert!(write_safetensors(&path, &reserved, &BTreeMap::new()).is_err());

    // The name is taken by a directory that is not empty, so the rename fails after everything was written.
    let taken = directory.path().join("taken");
    std::fs::create_dir_all(taken.join("inside")).unwrap();
    let message = write_safetensors(&taken, &tensors(), &BTreeMap::new()).unwrap_err().to_string();
    assert!(message.starts_with(taken.to_str().unwrap()), "{message}");

    let nowhere = directory.path().join("none/net.safetensors");
    let message = write_safetensors(&nowhere, &tensors(), &BTreeMap::new()).unwrap_err().to_string();
    assert!(message.starts_with(nowhere.to_str().unwrap()), "{message}");

    assert_eq!(std::fs::read(&path).unwrap(), b"before");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2, "nothing temporary is left");
}
