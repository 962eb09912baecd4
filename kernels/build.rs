//! Hashes the sources of the kernels, so that measured times can say which kernels they are of.

use std::fs;
use std::path::{Path, PathBuf};

fn main() {
    // Where it runs, not where it was compiled: several checkouts may share a target folder.
    let root =
        &PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("Cargo says where the package is"));
    let mut files = Vec::new();
    sources(root, &mut files);
    // It says what there is to compute, not how.
    files.retain(|file| *file != root.join("backend.rs"));
    files.sort();
    // What runs on a GPU says nothing about times on a CPU.
    let (gpu, cpu): (Vec<PathBuf>, Vec<PathBuf>) = files.into_iter().partition(|file| {
        let inner = file.strip_prefix(root).expect("below the root");
        inner.components().any(|part| part.as_os_str().to_string_lossy().starts_with("cuda"))
            || file.extension().is_some_and(|end| end != "rs")
    });
    println!("cargo::rustc-env=LAUD_KERNELS_HASH={}", hash(root, &cpu));
    println!("cargo::rustc-env=LAUD_CUDA_KERNELS_HASH={}", hash(root, &gpu));
}

fn hash(root: &Path, files: &[PathBuf]) -> String {
    // 64-bit FNV-1a over names and lines of code: what is said about it takes no time.
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut add = |line: &str| {
        for &byte in line.as_bytes().iter().chain(b"\n") {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    for file in files {
        println!("cargo::rerun-if-changed={}", file.display());
        let name = file.strip_prefix(root).expect("below the root").to_string_lossy().replace('\\', "/");
        add(&name);
        let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let code = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("//"));
        code.for_each(&mut add);
    }
    format!("{hash:016x}")
}

/// What no inference runs: tests and what only they need, and the kernels of training.
const ELSEWHERE: [&str; 7] =
    ["tests", "testing", "emulation", "build", "target", "batch_norm", "filter_grad"];

/// Rust and CUDA files of what inferences run. A folder is watched for files to come.
fn sources(folder: &Path, files: &mut Vec<PathBuf>) {
    println!("cargo::rerun-if-changed={}", folder.display());
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    for path in entries.map(|entry| entry.expect("an entry of a folder").path()) {
        let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        if ELSEWHERE.contains(&stem.as_str()) {
            continue;
        }
        let source =
            path.extension().is_some_and(|end| ["rs", "cu", "cuh", "h"].iter().any(|known| end == *known));
        if path.is_dir() {
            sources(&path, files);
        } else if source {
            files.push(path);
        }
    }
}
