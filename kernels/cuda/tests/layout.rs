use crate::Extent;
use crate::device::*;
use crate::testing::Random;
use laud_kernels::cuda::params::{FromNchwParams, ToNchwParams};

fn check<T: Storage>(batch: usize, c: usize, image: Extent, border: Extent, bordered: Extent, pitch: usize) {
    let images = Random(3).values(batch * c * image.pixels());
    let got = in_any_order(|emulator| {
        let mut output = vec![T::from_f32(f32::NAN); batch * bordered.pixels() * pitch];
        let params = FromNchwParams {
            input: address(&images),
            output: address_mut(&mut output),
            batch: batch as u32,
            c: c as u32,
            h: image.h as u32,
            w: image.w as u32,
            border_top: border.h as u32,
            border_left: border.w as u32,
            out_h: bordered.h as u32,
            out_w: bordered.w as u32,
            pitch: pitch as u32,
            reserved: 0,
        };
        execute(emulator, &params.launch(T::NAME), &params);
        load(&output)
    });
    for (i, &value) in got.iter().enumerate() {
        let (pixel, channel) = (i / pitch, i % pitch);
        let (n, y, x) =
            (pixel / bordered.pixels(), pixel % bordered.pixels() / bordered.w, pixel % bordered.w);
        let (iy, ix) = (y.wrapping_sub(border.h), x.wrapping_sub(border.w));
        let want = match iy < image.h && ix < image.w && channel < c {
            true => T::from_f32(images[((n * c + channel) * image.h + iy) * image.w + ix]).to_f32(),
            false => 0.0,
        };
        assert_eq!(value, want, "element {i}");
    }

    let values = Random(4).values(batch * bordered.pixels() * pitch);
    let input: Vec<T> = store(&values);
    let got = in_any_order(|emulator| {
        let mut output = vec![f32::NAN; values.len()];
        let (batch, c, pixels) = (batch as u32, pitch as u32, bordered.pixels() as u32);
        let (input, output_at) = (address(&input), address_mut(&mut output));
        let params = ToNchwParams { input, output: output_at, batch, c, pixels, reserved: 0 };
        execute(emulator, &params.launch(T::NAME), &params);
        output
    });
    for (i, &value) in got.iter().enumerate() {
        let (plane, pixel) = (i / bordered.pixels(), i % bordered.pixels());
        let from = (plane / pitch * bordered.pixels() + pixel) * pitch + plane % pitch;
        assert_eq!(value, input[from].to_f32(), "element {i}");
    }
}

#[test]
fn images_come_in_and_maps_go_out_unchanged() {
    let extent = |h, w| Extent { h, w };
    for_each_storage!(check(2, 3, extent(9, 7), extent(3, 2), extent(15, 12), 3));
    for_each_storage!(check(1, 3, extent(8, 8), extent(0, 0), extent(8, 8), 4));
    for_each_storage!(check(2, 3, extent(5, 6), extent(1, 1), extent(7, 8), 8));
    for_each_storage!(check(3, 70, extent(4, 9), extent(0, 1), extent(4, 11), 70));
}
