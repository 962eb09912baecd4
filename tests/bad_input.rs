//! Files from outside that are damaged, hostile or do not fit, and places that cannot be written: one line each, and nothing
//! half-written.

use std::fs;
use std::io::{Cursor, Write};

use image::{ImageFormat, RgbImage};
use laud::checkpoint::{TensorData, TensorOut, write_safetensors};

use crate::cli::{fails, file_with, files_in, fixture, laud, photo, prints};

fn png(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    RgbImage::from_pixel(width, height, image::Rgb([90, 120, 30]))
        .write_to(&mut bytes, ImageFormat::Png)
        .unwrap();
    bytes.into_inner()
}

#[test]
fn damaged_checkpoints_are_errors_and_nothing_else() {
    let recorded = fixture("resnet_layer.safetensors");
    for (name, file) in
        [("cut.safetensors", "resnet_layer.safetensors"), ("cut.pth.tar", "checkpoint_official.pth.tar")]
    {
        let whole = fs::read(fixture(file)).unwrap();
        for length in [0, 1, 7, 8, 9, 1000, whole.len() / 2, whole.len() - 1] {
            let (_folder, path) = file_with(name, &whole[..length]);
            fails(&format!("inspect {path}"), &[&path]);
            fails(&format!("run --model {path}"), &[&path]);
        }
        // A flipped bit may only change a weight; whatever it does, it is a result or one line.
        for at in (0..whole.len()).step_by(whole.len() / 40) {
            let mut flipped = whole.clone();
            flipped[at] ^= 1 << (at % 8);
            let (_folder, path) = file_with(name, &flipped);
            let output = laud([
                "infer",
                "--model",
                &path,
                "--input",
                recorded.to_str().unwrap(),
                "--output",
                &format!("{path}.out"),
            ]);
            let errors = String::from_utf8(output.stderr).unwrap();
            assert!(matches!(output.status.code(), Some(0 | 1)), "bit at {at}: {errors}");
            assert!(errors.lines().count() <= 1 && !errors.contains("panicked"), "bit at {at}: {errors}");
        }
    }
}

#[test]
fn a_pickle_that_calls_is_refused() {
    let mut archive = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    archive.start_file("archive/data.pkl", stored).unwrap();
    archive.write_all(b"\x80\x02cposix\nsystem\nX\x0d\x00\x00\x00touch /tmp/xyz\x85R.").unwrap();
    archive.start_file("archive/version", stored).unwrap();
    archive.write_all(b"3\n").unwrap();
    let (_folder, path) = file_with("evil.pth", archive.finish().unwrap().get_ref());
    fails(&format!("run --model {path}"), &["evil.pth", "posix.system", "refused"]);
}

#[test]
fn images_that_are_none_are_errors() {
    let (_folder, path) = file_with("empty.jpg", b"");
    fails(&format!("run {path}"), &["empty.jpg", "empty"]);
    let (_folder, path) = file_with("text.png", b"hello");
    fails(&format!("run {path}"), &["text.png"]);
    let jpeg = fs::read(photo()).unwrap();
    let (_folder, path) = file_with("cut.jpg", &jpeg[..jpeg.len() / 2]);
    fails(&format!("run {path}"), &["cut.jpg"]);
    fails("run /no/such/image.jpg", &["/no/such/image.jpg"]);
    fails("run /", &["/: not a regular file"]);
    // What came before is printed, and the bad one is named.
    let output = laud(["run", "--time", "1ms", &photo(), &path]);
    assert!(String::from_utf8(output.stdout).unwrap().contains("zebra") && output.status.code() == Some(1));
}

#[test]
fn large_images_are_read_and_absurd_ones_refused() {
    let (_folder, path) = file_with("large.png", &png(6000, 5000));
    assert!(prints(&format!("run --time 1ms {path}")).contains("large.png"));
    let (_folder, path) = file_with("one.png", &png(1, 1));
    assert!(prints(&format!("run --time 1ms {path}")).contains("one.png"));
    let mut bytes = png(8, 8);
    // Width and height of the header, and a checksum that no longer fits either.
    bytes[16..24].copy_from_slice(&[0, 1, 0, 0, 0, 1, 0, 0]);
    let (_folder, path) = file_with("absurd.png", &bytes);
    fails(&format!("run {path}"), &["absurd.png"]);
}

#[test]
fn inputs_that_do_not_fit_are_errors_and_leave_no_output() {
    let model = fixture("resnet_layer.safetensors");
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in.safetensors");
    let write = |name: &str, shape: &[usize], value: f32| {
        let mut values = vec![0.5; shape.iter().product()];
        if let Some(last) = values.last_mut() {
            *last = value;
        }
        let tensor = TensorOut { shape: shape.to_vec(), data: TensorData::F32(&values) };
        write_safetensors(&input, &[(name.to_owned(), tensor)].into(), &Default::default()).unwrap();
    };
    let line = format!("infer --input {} --model {} --output", input.display(), model.display());
    let out = folder.path().join("out.safetensors");
    for (name, shape, value, words) in [
        ("input", vec![1, 3, 64, 64], f32::NAN, ["`input` holds NaN", "12287"]),
        ("input", vec![1, 3, 64, 64], f32::INFINITY, ["inf", "finite"]),
        ("input", vec![1, 3, 64, 63], 0.0, ["[1, 3, 64, 63]", "3, 64, 64"]),
        ("input", vec![0, 3, 64, 64], 0.0, ["[0, 3, 64, 64]", "in.safetensors"]),
        ("input", vec![3, 64, 64], 0.0, ["[3, 64, 64]", "in.safetensors"]),
        ("image", vec![1, 3, 64, 64], 0.0, ["`fixture.input`", "in.safetensors"]),
    ] {
        write(name, &shape, value);
        fails(&format!("{line} {}", out.display()), &words);
        assert_eq!(files_in(folder.path()), ["in.safetensors"]);
    }
    write("input", &[2, 3, 64, 64], 0.0);
    prints(&format!("{line} {}", out.display()));
    assert_eq!(files_in(folder.path()), ["in.safetensors", "out.safetensors"]);
}

#[test]
fn outputs_that_cannot_be_written_are_errors_and_leave_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let taken = folder.path().join("taken");
    fs::create_dir(&taken).unwrap();
    fs::write(taken.join("kept"), b"").unwrap();
    let model = fixture("resnet_layer.safetensors");
    let cases = [
        format!("infer --input {0} --model {0} --output", model.display()),
        "bench --model cifar_resnet20 --iterations 1 --trace".to_owned(),
        format!("run {} --time 1ms --record-densities", photo()),
    ];
    for case in cases {
        fails(&format!("{case} {}", taken.display()), &["taken"]);
        fails(&format!("{case} {}/no/such/file", folder.path().display()), &["no/such/file"]);
        assert_eq!(files_in(folder.path()), ["taken"], "{case}");
    }
    fails(&format!("run {} --density 0.5 --masks {}/kept", photo(), taken.display()), &["kept"]);
}
