//! The emulation finds what it is there to find: each kernel of `faults.cu` has one mistake.

use crate::device::{address, address_mut};
use laud_emulation::Emulator;
use laud_kernels::cuda::params::Address;

#[repr(C)]
struct FaultParams {
    output: Address,
    input: Address,
}

fn launch(emulator: Emulator, kernel: &str, threads: u32, shared: usize) -> Result<Vec<u32>, String> {
    let input: Vec<u32> = (0..256).map(|i| i * i).collect();
    let mut output = vec![u32::MAX; 64];
    let mut params = FaultParams { output: address_mut(&mut output), input: address(&input) };
    let mut args = [(&raw mut params).cast()];
    // SAFETY: the kernels take this struct; they write 64 words and read 256.
    unsafe { emulator.launch(kernel, [1; 3], [threads, 1, 1], shared, &mut args) }.map(|()| output)
}

#[test]
fn what_a_gpu_would_not_survive_is_an_error() {
    for (kernel, reason) in [
        ("fault_divergent_barrier", "deadlock"),
        ("fault_foreign_lane", "mask"),
        ("fault_misaligned_copy", "multiple of 16"),
    ] {
        for seed in [0, 3] {
            let error = launch(Emulator { workers: 1, seed }, kernel, 64, 1024).unwrap_err();
            assert!(error.starts_with(kernel) && error.contains(reason), "{error}");
        }
    }
    let error = launch(Emulator::default(), "fault_missing_wait", 32, 1024).unwrap_err();
    assert!(error.contains("another size"), "{error}");
    let error = launch(Emulator::default(), "fault_missing_wait", 64, 1023).unwrap_err();
    assert!(error.contains("shared memory"), "{error}");
    let error = launch(Emulator::default(), "no_such_kernel", 64, 0).unwrap_err();
    assert!(error.contains("no such kernel"), "{error}");
}

#[test]
fn what_only_goes_wrong_sometimes_changes_with_the_order() {
    for kernel in ["fault_missing_barrier", "fault_missing_wait"] {
        let run = |seed| launch(Emulator { workers: 1, seed }, kernel, 64, 1024).unwrap();
        assert!((1..9).any(|seed| run(seed) != run(0)), "{kernel} gives the same in every order");
    }
}
