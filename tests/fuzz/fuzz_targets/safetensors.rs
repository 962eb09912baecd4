//! Whole files: whatever the bytes, they open and read or are an error. Also reaches the archive reader.

#![no_main]

use laud::checkpoint::Checkpoint;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(checkpoint) = Checkpoint::from_bytes("fuzz", bytes.to_vec()) else { return };
    for (name, info) in checkpoint.tensors() {
        if let Ok(values) = checkpoint.read_f32(name) {
            assert_eq!(values.len(), info.elements());
        }
        let _ = checkpoint.read_u8(name);
    }
});
