//! Files built in memory, byte by byte where they must be wrong.

mod build;
mod fixtures;
mod hostile_pickles;
mod mutations;
mod pytorch;
mod safetensors;
mod write;

use super::Checkpoint;

fn open(bytes: &[u8]) -> super::Result<Checkpoint> {
    Checkpoint::from_bytes("test.bin", bytes.to_vec())
}

/// The message of a file that must not open: one line, led by the file's name.
#[track_caller]
fn rejection(bytes: &[u8]) -> String {
    let message = open(bytes).expect_err("the file is wrong").to_string();
    assert!(message.starts_with("test.bin: "), "{message}");
    assert!(!message.contains(['\n', '\r']) && message.chars().count() < 2000, "{message}");
    message
}

#[track_caller]
fn assert_rejects(bytes: &[u8], reason: &str) {
    let message = rejection(bytes);
    assert!(message.contains(reason), "{message:?} does not say {reason:?}");
}

/// Opens and reads everything; the outcome does not matter, only that there is one.
fn exercise(bytes: Vec<u8>) {
    let Ok(checkpoint) = Checkpoint::from_bytes("mutated", bytes) else { return };
    for name in checkpoint.tensors().keys() {
        let _ = checkpoint.read_finite_f32(name);
        let _ = checkpoint.read_bytes(name);
        let _ = checkpoint.read_u8(name);
    }
}

#[test]
fn threads_can_use_one_checkpoint() {
    fn any_thread<T: Send + Sync>() {}
    any_thread::<Checkpoint>();
}

#[test]
fn other_formats_are_named() {
    assert_rejects(b"", "is empty");
    assert_rejects(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M", "before 1.6; convert it once");
    assert_rejects(b"\x80\x04}.", "bare pickle");
    assert_rejects(b"\x1f\x8b\x08\0\0\0\0\0\0\0", "gzip");
    assert_rejects(b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer");
    assert_rejects(b"<!DOCTYPE html><html>", "neither a safetensors nor a PyTorch file");
    assert_rejects(b"\x10\0\0", "cut short");
    let mut tar = vec![b'a'; 512];
    tar[257..262].copy_from_slice(b"ustar");
    assert_rejects(&tar, "tar archive");
}

#[test]
fn only_regular_files_open() {
    let directory = tempfile::tempdir().unwrap();
    let message = Checkpoint::open(directory.path()).unwrap_err().to_string();
    assert!(message.ends_with("is not a regular file"), "{message}");
    let missing = directory.path().join("none.safetensors");
    let message = Checkpoint::open(&missing).unwrap_err().to_string();
    assert!(message.starts_with(missing.to_str().unwrap()), "{message}");
}
