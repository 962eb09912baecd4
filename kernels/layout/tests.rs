use super::*;
use crate::Crew;
use crate::testing::Random;

#[test]
fn images_come_in_with_a_zero_border_and_go_out_again() {
    let crew = Crew::start(2).unwrap();
    for (batch, c, h, w, top, left, bottom, right) in [
        (1, 3, 4, 5, 0, 0, 0, 0),
        (2, 3, 5, 4, 3, 3, 3, 3),
        (1, 3, 9, 37, 1, 1, 1, 1),
        (2, 1, 1, 1, 0, 0, 1, 1),
        (1, 4, 3, 3, 1, 0, 0, 2),
    ] {
        let (image, border) = (Extent { h, w }, Extent { h: top, w: left });
        let bordered = Extent { h: h + top + bottom, w: w + left + right };
        let input = Random(1).values(batch * c * h * w);
        let mut output = vec![f32::NAN; batch * c * bordered.pixels()];
        for isa in Isa::available() {
            let mut one = vec![f32::NAN; output.len()];
            let call = FromNchw {
                batch,
                c,
                image,
                border,
                bordered,
                scale: None,
                input: &input[..],
                output: &mut one[..],
            };
            Team::scope(Some(&crew), |team| from_nchw(isa, team, call)).unwrap();
            assert!(output[0].is_nan() || output == one, "{}", isa.name());
            output = one;
        }
        for n in 0..batch {
            for (y, x, channel) in (0..bordered.h)
                .flat_map(|y| (0..bordered.w).flat_map(move |x| (0..c).map(move |k| (y, x, k))))
            {
                let inside = (top..top + h).contains(&y) && (left..left + w).contains(&x);
                let want = if inside { input[((n * c + channel) * h + y - top) * w + x - left] } else { 0.0 };
                assert_eq!(output[((n * bordered.h + y) * bordered.w + x) * c + channel], want);
            }
        }
        let mut back = vec![0.0; output.len()];
        Team::scope(Some(&crew), |team| to_nchw(team, batch, bordered, c, &output, &mut back)).unwrap();
        assert_eq!(back[(c - 1) * bordered.pixels() + top * bordered.w + left], input[(c - 1) * h * w]);
        let mut again = vec![0.0; output.len()];
        let plain = Extent { h: 0, w: 0 };
        let call = FromNchw {
            batch,
            c,
            image: bordered,
            border: plain,
            bordered,
            scale: None,
            input: &back[..],
            output: &mut again[..],
        };
        Team::scope(None, |team| from_nchw(Isa::detect(), team, call)).unwrap();
        assert_eq!(again, output);
        let call = FromNchw {
            batch,
            c,
            image,
            border,
            bordered,
            scale: None,
            input: &input[1..],
            output: &mut output[..],
        };
        assert!(Team::scope(None, |team| from_nchw(Isa::detect(), team, call)).is_err());
    }
}

#[test]
fn images_are_scaled_by_channel() {
    for c in [1, 3, 5] {
        let image = Extent { h: 3, w: 7 };
        let (border, input) = (Extent { h: 0, w: 0 }, Random(2).values(2 * c * image.pixels()));
        let scale: Vec<f32> = (0..c).map(|channel| 0.5 + channel as f32).collect();
        for isa in Isa::available() {
            let mut output = vec![f32::NAN; input.len()];
            let mut bring = |scale: &[f32]| {
                let (scale, input, output) = (Some(scale), &input[..], &mut output[..]);
                let call = FromNchw { batch: 2, c, image, border, bordered: image, scale, input, output };
                Team::scope(None, |team| from_nchw(isa, team, call))
            };
            bring(&scale).unwrap();
            assert!(bring(&scale[1..]).is_err());
            for (i, &value) in input.iter().enumerate() {
                let (plane, pixel) = (i / image.pixels(), i % image.pixels());
                let (n, channel) = (plane / c, plane % c);
                let got = output[(n * image.pixels() + pixel) * c + channel];
                assert_eq!(got, value * scale[channel], "{c}, {i}");
            }
        }
    }
}

#[test]
fn maps_go_out_whatever_their_size() {
    let crew = Crew::start(3).unwrap();
    for (batch, c, h, w) in [(1, 1000, 1, 1), (2, 40, 7, 7), (3, 16, 8, 8), (1, 17, 13, 11), (2, 3, 1, 65)] {
        let map = Extent { h, w };
        let input: Vec<half::bf16> =
            Random(1).values(batch * c * map.pixels()).into_iter().map(half::bf16::from_f32).collect();
        let mut output = vec![f32::NAN; input.len()];
        Team::scope(Some(&crew), |team| to_nchw(team, batch, map, c, &input, &mut output)).unwrap();
        for (i, &got) in output.iter().enumerate() {
            let (plane, pixel) = (i / map.pixels(), i % map.pixels());
            let want = input[(plane / c * map.pixels() + pixel) * c + plane % c];
            assert_eq!(got, want.to_f32(), "{batch}×{c}×{h}×{w}: {i}");
        }
    }
}

#[test]
fn sizes_that_overflow_are_refused() {
    let huge = Extent { h: usize::MAX, w: usize::MAX };
    let one = Extent { h: 1, w: 1 };
    let mut output = [0.0f32; 4];
    assert!(Team::scope(None, |team| to_nchw(team, 1, huge, 3, &[0.0f32; 4], &mut output)).is_err());
    let call = FromNchw {
        batch: 1,
        c: 3,
        image: one,
        border: huge,
        bordered: one,
        scale: None,
        input: &[0.0; 4][..],
        output: &mut output[..],
    };
    assert!(Team::scope(None, |team| from_nchw(Isa::detect(), team, call)).is_err());
}
