//! Compiles the kernels, unchanged, as host C++.

use std::path::{Path, PathBuf};

fn main() {
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++20")
        .opt_level(2)
        .include(&kernels)
        .include(kernels.join("cuda"))
        .include(kernels.join("cuda/emulation"));
    // What the dialect allows and a host compiler may not like.
    build.flag("-pthread").flag("-Wno-unknown-pragmas").flag("-Wno-unused-function").flag("-xc++");
    // Kernels make themselves known when the program starts; nothing refers to their objects.
    build.link_lib_modifier("+whole-archive").file("emulation.cpp").file("faults.cu");
    for folder in entries(&kernels).iter().chain([&kernels.join("cuda/emulation")]) {
        for file in entries(folder) {
            let end = file.extension().and_then(|end| end.to_str()).unwrap_or_default();
            if ["cu", "cuh", "h", "cpp"].contains(&end) {
                println!("cargo:rerun-if-changed={}", file.display());
            }
            // The folder of an operation has a `.cu` of its name.
            if end == "cu" && file.file_stem() == folder.file_name() {
                build.file(file);
            }
        }
    }
    println!("cargo:rerun-if-env-changed=CXXFLAGS");
    build.compile("laud_emulation");
}

/// What is in a folder, in order; nothing in a file.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let found = folder.read_dir().into_iter().flatten();
    let mut found: Vec<PathBuf> = found.filter_map(|entry| Some(entry.ok()?.path())).collect();
    found.sort();
    found
}
