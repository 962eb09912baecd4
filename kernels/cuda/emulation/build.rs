//! Compiles the kernels, unchanged, as host C++.

use std::path::Path;

/// Folders of operations with a kernel, each with a `.cu` of its name.
const OPERATIONS: [&str; 9] = [
    "compact",
    "depthwise",
    "gate",
    "gather_gemm",
    "layout",
    "max_pool",
    "mean_pool",
    "shortcut",
    "squeeze_excite",
];

fn main() {
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++20")
        .opt_level(2)
        .include(kernels.join("cuda"))
        .include(kernels.join("cuda/emulation"));
    // What the dialect allows and a host compiler may not like.
    build.flag("-pthread").flag("-Wno-unknown-pragmas").flag("-Wno-unused-function").flag("-xc++");
    // Kernels make themselves known when the program starts; nothing refers to their objects.
    build.link_lib_modifier("+whole-archive").file("emulation.cpp").file("faults.cu");
    for operation in OPERATIONS {
        let source = kernels.join(operation).join(format!("{operation}.cu"));
        println!("cargo:rerun-if-changed={}", source.display());
        build.file(source);
    }
    for header in
        ["emulation/emulation.h", "emulation/emulation.cpp", "emulation/faults.cu", "device.h", "params.h"]
    {
        println!("cargo:rerun-if-changed={}", kernels.join("cuda").join(header).display());
    }
    println!("cargo:rerun-if-env-changed=CXXFLAGS");
    build.compile("laud_emulation");
}
