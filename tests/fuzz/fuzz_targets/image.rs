//! Images and labelled sets: the first byte chooses what the others are.

#![no_main]

use std::path::PathBuf;

use anyhow::Result;
use laud::models::NetConfig;
use laud::vision::image::{MAX_PIXELS, decode};
use laud::vision::{Dataset, Preprocess};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((kind, bytes)) = input.split_first() else { return };
    match kind % 4 {
        0 => prepare(bytes),
        1 => read(Dataset::cifar10("fuzz", bytes.to_vec())),
        2 => read(open("set.jpk", bytes, |file| file)),
        _ => read(open("labels.csv", bytes, |file| file.with_file_name(""))),
    }
});

/// What decodes is small enough and can be prepared.
fn prepare(bytes: &[u8]) {
    let Ok(image) = decode(bytes) else { return };
    assert!(u64::from(image.width()) * u64::from(image.height()) <= MAX_PIXELS);
    let spec = NetConfig::preset("resnet20").and_then(|config| config.build()).expect("a preset");
    let preprocess = Preprocess::new(&spec.input).expect("a preset");
    let mut values = vec![f32::NAN; preprocess.values()];
    preprocess.write_nchw(&image, &mut values).expect("an image");
    assert!(values.iter().all(|value| value.is_finite()));
}

/// Every record of a set decodes or is an error.
fn read(set: Result<Dataset>) {
    let Ok(set) = set else { return };
    assert!(
        set.len() > 0 && (0..set.len()).all(|i| set.label(i).is_some_and(|label| label <= set.max_label()))
    );
    for sample in set.iter().take(16).flatten() {
        assert!(sample.image.width() > 0 && sample.image.height() > 0);
    }
}

/// Opens a set whose only file holds `bytes`.
fn open(name: &str, bytes: &[u8], set: impl FnOnce(PathBuf) -> PathBuf) -> Result<Dataset> {
    let folder = std::env::temp_dir().join(format!("laud-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let file = folder.join(name);
    std::fs::write(&file, bytes)?;
    let set = Dataset::open(&set(file));
    std::fs::remove_dir_all(&folder)?;
    set
}
