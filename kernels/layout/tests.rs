use super::*;
use crate::testing::Random;

#[test]
fn images_come_in_with_a_zero_border_and_go_out_again() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    for (batch, c, h, w, top, left, bottom, right) in [
        (1, 3, 4, 5, 0, 0, 0, 0),
        (2, 3, 5, 4, 3, 3, 3, 3),
        (2, 1, 1, 1, 0, 0, 1, 1),
        (1, 4, 3, 3, 1, 0, 0, 2),
    ] {
        let (image, border) = (Extent { h, w }, Extent { h: top, w: left });
        let bordered = Extent { h: h + top + bottom, w: w + left + right };
        let input = Random(1).values(batch * c * h * w);
        let mut output = vec![f32::NAN; batch * c * bordered.pixels()];
        let call = FromNchw { batch, c, image, border, bordered, input: &input, output: &mut output[..] };
        Team::scope(Some(&pool), |team| from_nchw(team, call)).unwrap();
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
        Team::scope(Some(&pool), |team| to_nchw(team, batch, bordered, c, &output, &mut back)).unwrap();
        assert_eq!(back[(c - 1) * bordered.pixels() + top * bordered.w + left], input[(c - 1) * h * w]);
        let mut again = vec![0.0; output.len()];
        let plain = Extent { h: 0, w: 0 };
        let call = FromNchw {
            batch,
            c,
            image: bordered,
            border: plain,
            bordered,
            input: &back,
            output: &mut again[..],
        };
        Team::scope(None, |team| from_nchw(team, call)).unwrap();
        assert_eq!(again, output);
        let call =
            FromNchw { batch, c, image, border, bordered, input: &input[1..], output: &mut output[..] };
        assert!(Team::scope(None, |team| from_nchw(team, call)).is_err());
    }
}
