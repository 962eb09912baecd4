//! The kernels' source, inside the program.

/// One translation unit.
pub(super) struct Unit {
    /// Operation.
    pub(super) name: &'static str,
    pub(super) text: &'static str,
}

macro_rules! units {
    ($($(#[$doc:meta])* $units:ident: $($name:literal),* ;)*) => {$(
        $(#[$doc])*
        pub(super) const $units: &[Unit] = &[$(Unit {
            name: $name,
            text: include_str!(concat!("../", $name, "/", $name, ".cu")),
        }),*];
    )*};
}

units!(
    /// Every operation's kernels.
    UNITS: "compact",
    "depthwise",
    "gate",
    "gather_gemm",
    "layout",
    "max_pool",
    "mean_pool",
    "shortcut",
    "squeeze_excite";
    /// What not every driver has: nothing depends on it but times.
    OPTIONAL: "condition";
);

/// What they include, by the name they include it by.
pub(super) const HEADERS: [(&str, &str); 5] = [
    ("device.h", include_str!("device.h")),
    ("params.h", include_str!("params.h")),
    ("gather_gemm/simt.cuh", include_str!("../gather_gemm/simt.cuh")),
    ("gather_gemm/tensor_cores.cuh", include_str!("../gather_gemm/tensor_cores.cuh")),
    ("gather_gemm/tile.cuh", include_str!("../gather_gemm/tile.cuh")),
];

/// How they are compiled, apart from the architecture.
pub(super) const OPTIONS: [&str; 1] = ["--std=c++17"];

/// A number that changes with the source of the kernels: FNV-1a.
pub fn hash() -> u64 {
    let headers = HEADERS.iter().flat_map(|(name, text)| [*name, *text]);
    let units = UNITS.iter().chain(OPTIONAL).flat_map(|unit| [unit.name, unit.text]);
    headers
        .chain(units)
        .chain(OPTIONS)
        .flat_map(|text| text.bytes().chain([0]))
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}
