//! The program of a PyTorch archive: the bytes become `data.pkl` beside one honest storage, so that the fuzzer spends
//! its time in the pickle machine and not on archive checksums.

#![no_main]

use std::io::{Cursor, Write};

use laud::checkpoint::Checkpoint;
use libfuzzer_sys::fuzz_target;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

fuzz_target!(|program: &[u8]| {
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in [("net/data.pkl", program), ("net/data/0", &[0; 256])] {
        zip.start_file(name, stored).expect("in memory");
        zip.write_all(bytes).expect("in memory");
    }
    let file = zip.finish().expect("in memory").into_inner();
    let Ok(checkpoint) = Checkpoint::from_bytes("fuzz", file) else { return };
    for (name, info) in checkpoint.tensors() {
        assert_eq!(checkpoint.read_f32(name).expect("proven when opened").len(), info.elements());
    }
});
