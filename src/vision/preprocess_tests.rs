//! Preparation against torchvision's steps on Pillow images. `testdata/prepare/<resize>_<h>x<w>.png` is what Pillow 13
//! makes of `source.png`, 97×61 pixels.

use std::path::{Path, PathBuf};

use laud_models::{InputSpec, MapSize};

use super::Preprocess;
use super::image::{RgbImage, load};
use super::preprocess::{Window, resized};

fn spec(resize: Option<usize>, h: usize, w: usize) -> InputSpec {
    InputSpec {
        channels: 3,
        size: MapSize { h, w },
        resize,
        mean: [0.485, 0.456, 0.406],
        std: [0.229, 0.224, 0.225],
    }
}

fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/vision/testdata/prepare")
}

/// Smooth with a little texture, no two channels alike.
fn pattern(w: u32, h: u32) -> RgbImage {
    RgbImage::from_fn(w, h, |x, y| {
        image::Rgb([(x * 7 + y * 3) as u8, (x * y / 3) as u8, ((x ^ y) * 5) as u8])
    })
}

#[test]
fn views_are_torchvisions_within_one_level() {
    let source = load(&testdata().join("source.png")).unwrap();
    let cases = [
        (Some(48), 40, 40),
        (Some(24), 32, 32),
        (Some(80), 72, 72),
        (Some(31), 30, 29),
        (Some(61), 61, 61),
        (None, 56, 48),
        (None, 58, 64),
        (None, 64, 99),
    ];
    for (resize, h, w) in cases {
        let name = format!("{}_{h}x{w}.png", resize.map_or("none".to_owned(), |r| r.to_string()));
        let want = load(&testdata().join(&name)).unwrap();
        let got = Preprocess::new(&spec(resize, h, w)).unwrap().view(&source).unwrap();
        assert_eq!(got.dimensions(), want.dimensions(), "{name}");
        let differ = got.iter().zip(want.iter()).filter(|(a, b)| a != b).count();
        let worst = got.iter().zip(want.iter()).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        assert!(worst <= u8::from(resize.is_some()), "{name}: off by {worst} levels");
        assert!(differ * 50 <= got.len(), "{name}: {differ} of {} samples differ", got.len());
    }
}

#[test]
fn sizes_and_crops_round_like_python() {
    let size = |h, w| MapSize { h, w };
    assert_eq!(resized(size(480, 640), 256), size(256, 341));
    assert_eq!(resized(size(640, 480), 256), size(341, 256));
    assert_eq!(resized(size(500, 500), 256), size(256, 256));
    assert_eq!(resized(size(32, 32), 256), size(256, 256));
    // (full, crop) → round((full − crop) / 2), halves to even
    for (full, crop, start) in
        [(256, 224, 16), (341, 224, 58), (225, 224, 0), (227, 224, 2), (229, 224, 2), (231, 224, 4)]
    {
        assert_eq!(Window::centre(full, crop), Window { start, len: crop, before: 0 }, "{full} to {crop}");
    }
    assert_eq!(Window::centre(5, 8), Window { start: 0, len: 5, before: 1 });
}

/// Computing the crop alone gives the samples that cropping the whole resized image gives.
#[test]
fn a_crop_is_part_of_the_whole() {
    for (w, h, short) in [(200, 131, 60), (45, 333, 90), (64, 64, 64), (301, 150, 149)] {
        let image = pattern(w, h);
        let full = resized(MapSize { h: h as usize, w: w as usize }, short);
        let whole = Preprocess::new(&spec(Some(short), full.h, full.w)).unwrap().view(&image).unwrap();
        let crop = short - 7;
        let view = Preprocess::new(&spec(Some(short), crop, crop)).unwrap().view(&image).unwrap();
        let (x, y) = (Window::centre(full.w, crop).start, Window::centre(full.h, crop).start);
        let want = image::imageops::crop_imm(&whole, x as u32, y as u32, crop as u32, crop as u32).to_image();
        assert_eq!(view, want, "{w}×{h} to {short}");
    }
}

#[test]
fn layouts_hold_the_same_normalised_values() {
    let prepare = Preprocess::new(&spec(Some(20), 16, 12)).unwrap();
    let image = pattern(50, 40);
    let view = prepare.view(&image).unwrap();
    let (mut nchw, mut nhwc) = (vec![0.0; prepare.values()], vec![0.0; prepare.values()]);
    prepare.write_nchw(&image, &mut nchw).unwrap();
    prepare.write_nhwc(&image, &mut nhwc).unwrap();
    for (x, y, pixel) in view.enumerate_pixels() {
        for c in 0..3 {
            let (x, y) = (x as usize, y as usize);
            let want = (f32::from(pixel[c]) / 255.0 - spec(None, 1, 1).mean[c]) / spec(None, 1, 1).std[c];
            assert_eq!(nchw[(c * 16 + y) * 12 + x], want);
            assert_eq!(nhwc[(y * 12 + x) * 3 + c], want);
        }
    }
}

#[test]
fn extreme_shapes_cost_no_more_than_their_pixels() {
    let prepare = Preprocess::new(&spec(Some(256), 224, 224)).unwrap();
    for (w, h) in [(1, 1), (1, 60_000), (60_000, 1), (2, 3), (3, 9000)] {
        assert_eq!(prepare.view(&pattern(w, h)).unwrap().dimensions(), (224, 224), "{w}×{h}");
    }
    // A constant image stays constant, right up to its edges.
    let grey = RgbImage::from_pixel(60_000, 3, image::Rgb([77; 3]));
    assert!(prepare.view(&grey).unwrap().iter().all(|&v| v == 77));
}

#[test]
fn nonsense_is_an_error() {
    let bad = |change: fn(&mut InputSpec)| {
        let mut spec = spec(Some(256), 224, 224);
        change(&mut spec);
        Preprocess::new(&spec).map(|_| ()).unwrap_err().to_string()
    };
    assert!(bad(|s| s.channels = 1).contains("reads 1"));
    assert!(bad(|s| s.size.h = 0).contains("height 0"));
    assert!(bad(|s| s.size.w = usize::MAX).contains("width"));
    assert!(bad(|s| s.resize = Some(0)).contains("resize 0"));
    assert!(bad(|s| s.std[1] = 0.0).contains("channel 1"));
    assert!(bad(|s| s.mean[2] = f32::NAN).contains("channel 2"));

    let prepare = Preprocess::new(&spec(None, 4, 5)).unwrap();
    let error = prepare.write_nchw(&pattern(9, 9), &mut [0.0; 59]).unwrap_err().to_string();
    assert_eq!(error, "write_nchw: output holds 59 values, 3×4×5 needed");
    assert!(prepare.view(&RgbImage::new(0, 4)).is_err());
}

#[test]
fn a_part_is_resized_to_what_the_network_reads() {
    let spec = laud_models::NetConfig::from_json(r#"{"arch": "resnet20", "input_size": [4, 6]}"#)
        .unwrap()
        .build()
        .unwrap();
    let preprocess = Preprocess::new(&spec.input).unwrap();
    let image = RgbImage::from_fn(12, 9, |x, y| image::Rgb([x as u8 * 10, y as u8 * 10, 7]));
    let size = |w, h| laud_models::MapSize { h, w };
    let part = preprocess.part(&image, (3, 2), size(6, 4)).unwrap();
    assert_eq!(part, image::imageops::crop_imm(&image, 3, 2, 6, 4).to_image(), "nothing to resize");
    let shrunk = preprocess.part(&image, (0, 0), size(12, 8)).unwrap();
    assert_eq!((shrunk.width(), shrunk.height()), (6, 4));
    assert!((40..=60).contains(&shrunk.get_pixel(2, 0).0[0]), "two columns are averaged");
    assert!(preprocess.part(&image, (7, 0), size(6, 4)).unwrap_err().to_string().contains("12×9"));
    assert!(preprocess.part(&image, (0, 0), size(0, 4)).is_err());
}
