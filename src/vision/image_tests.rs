//! Decoding against Pillow's pixels, and hostile files. `testdata/decode/<file>.rgb` is what Pillow 13 gives
//! for `<file>`, for 16-bit grey its high byte.

use std::path::{Path, PathBuf};

use super::image::{MAX_PIXELS, decode, load};

fn testdata(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/vision/testdata").join(folder)
}

fn refusal(bytes: &[u8]) -> String {
    let error = format!("{:#}", decode(bytes).expect_err("is refused"));
    assert!(!error.contains('\n'), "{error}");
    error
}

#[test]
fn pixels_are_pillows() {
    let mut files = 0;
    for entry in std::fs::read_dir(testdata("decode")).unwrap() {
        let path = entry.unwrap().path();
        let extension = path.extension().unwrap().to_str().unwrap();
        if extension == "rgb" {
            continue;
        }
        files += 1;
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let want = std::fs::read(path.with_file_name(format!("{name}.rgb"))).unwrap();
        let image = load(&path).unwrap();
        let (got, size) = (image.as_raw(), image.dimensions());
        assert_eq!(got.len(), want.len(), "{name}: {size:?}");
        let worst = got.iter().zip(&want).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        // Lossy formats: decoders round their inverse transform and chroma up-sampling differently.
        let allowed = match name.as_str() {
            _ if extension == "jpg" => 4,
            "lossy.webp" => 2,
            _ => 0,
        };
        assert!(worst <= allowed, "{name}: off by {worst} levels");
    }
    assert_eq!(files, 20);
}

#[test]
fn the_name_does_not_decide_the_format() {
    let folder = tempfile::tempdir().unwrap();
    let misnamed = folder.path().join("really_a.png.jpg");
    std::fs::copy(testdata("decode/rgb.png"), &misnamed).unwrap();
    assert_eq!(load(&misnamed).unwrap().dimensions(), (20, 12));
}

#[test]
fn refusals_name_the_file_and_the_reason_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let gif = b"GIF89a\x01\0\x01\0\0\0\0;".as_slice();
    let cases = [
        ("empty.jpg", b"".as_slice(), "the file is empty"),
        ("text.png", b"hello, world", "not a JPEG, PNG, WebP or BMP image"),
        ("moving.gif", gif, "Gif images are not supported"),
    ];
    for (name, bytes, reason) in cases {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let error = load(&path).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains(reason) && !error.contains('\n'), "{error}");
    }
    let error = load(folder.path()).unwrap_err().to_string();
    assert!(error.ends_with("not a regular file"), "{error}");
    let error = load(&folder.path().join("absent.jpg")).unwrap_err().to_string();
    assert!(error.contains("absent.jpg: No such file"), "{error}");
}

#[test]
fn every_truncation_is_refused() {
    for name in [
        "baseline420.jpg",
        "progressive.jpg",
        "rgb.png",
        "grey16.png",
        "lossless.webp",
        "lossy.webp",
        "rgb.bmp",
    ] {
        let bytes = std::fs::read(testdata("decode").join(name)).unwrap();
        // A PNG is whole without its end chunk's last bytes, as for Pillow.
        let tail = if name.ends_with("png") { 16 } else { 1 };
        for len in 0..=bytes.len() - tail {
            assert!(decode(&bytes[..len]).is_err(), "{name} cut to {len} of {} bytes", bytes.len());
        }
    }
}

#[test]
fn a_header_that_lies_is_refused_before_it_costs_anything() {
    let mut jpeg = std::fs::read(testdata("decode/progressive.jpg")).unwrap();
    let frame = jpeg.windows(2).position(|w| w == [0xFF, 0xC2]).unwrap();
    jpeg[frame + 5..frame + 9].copy_from_slice(&[0x1F, 0xFF, 0x1F, 0xFF]);
    assert!(refusal(&jpeg).contains("more than"), "{}", refusal(&jpeg));
    jpeg[frame + 5..frame + 9].copy_from_slice(&[0xFF; 4]);
    assert!(refusal(&jpeg).contains("at most 67 million"));
    jpeg[frame + 5..frame + 9].copy_from_slice(&[0; 4]);
    refusal(&jpeg);

    let mut bmp = std::fs::read(testdata("decode/rgb.bmp")).unwrap();
    bmp[18..26].copy_from_slice(&[0xFF, 0xFF, 0, 0, 0xFF, 0xFF, 0, 0]);
    assert!(refusal(&bmp).contains("65535×65535"));

    let mut webp = std::fs::read(testdata("decode/lossless.webp")).unwrap();
    let head = webp.windows(4).position(|w| w == b"VP8L").unwrap() + 9;
    webp[head..head + 3].copy_from_slice(&[0xFF; 3]);
    refusal(&webp);
}

/// A PNG of zeros compresses a thousandfold: below the limit it decodes, above it is refused by its header.
#[test]
fn decompression_bombs_are_bounded_by_their_pixels() {
    let bomb = |w: u32, h: u32| {
        let mut png = Vec::new();
        let encoder = image::codecs::png::PngEncoder::new(&mut png);
        let zeros = vec![0; w as usize * h as usize];
        image::ImageEncoder::write_image(encoder, &zeros, w, h, image::ExtendedColorType::L8).unwrap();
        png
    };
    let side = (MAX_PIXELS as f64).sqrt() as u32;
    assert!(refusal(&bomb(side + 8, side)).contains("at most"));
    assert_eq!(decode(&bomb(2000, 1500)).unwrap().dimensions(), (2000, 1500));
}

#[test]
fn noise_never_panics() {
    use proptest::{prelude::*, test_runner::RngSeed};
    let seeds: Vec<Vec<u8>> = std::fs::read_dir(testdata("decode"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e != "rgb"))
        .map(|p| std::fs::read(p).unwrap())
        .collect();
    let edits = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12);
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(3000);
    proptest!(ProptestConfig { cases, failure_persistence: None, rng_seed: RngSeed::Fixed(1), ..ProptestConfig::default() },
        |(seed in 0..seeds.len(), edits in edits, keep in any::<prop::sample::Index>(), cut: bool, head in any::<u8>())| {
        let mut bytes = seeds[seed].clone();
        for (at, value) in edits {
            // Three in four edits fall into the headers, where they do the most.
            let reach = if head & 3 > 0 { bytes.len().min(200) } else { bytes.len() };
            let at = at.index(reach);
            bytes[at] = value;
        }
        if cut {
            bytes.truncate(keep.index(bytes.len()));
        }
        let _ = decode(&bytes);
    });
}
