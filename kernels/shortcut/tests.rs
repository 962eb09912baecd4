use super::*;
use crate::testing::Random;

#[test]
fn keeps_every_second_pixel_between_zero_channels() {
    let (input_map, output_map) = (Extent { h: 5, w: 4 }, Extent { h: 3, w: 2 });
    let input = Random(2).values(2 * input_map.pixels() * 3);
    let mut output = vec![f32::NAN; 2 * output_map.pixels() * 7];
    let run_with = |output: &mut [f32], before| {
        let (batch, c_in, c_out, stride, input) = (2, 3, 7, 2, &input[..]);
        let call = PadChannels { batch, input_map, output_map, c_in, c_out, stride, before, input, output };
        Team::scope(None, |team| run(team, call))
    };
    run_with(&mut output, 2).unwrap();
    for (n, y, x) in [(0, 0, 0), (1, 2, 1), (0, 1, 1), (1, 0, 1)] {
        let out = &output[((n * 3 + y) * 2 + x) * 7..][..7];
        let from = &input[((n * 5 + 2 * y) * 4 + 2 * x) * 3..][..3];
        assert_eq!(out, [0.0, 0.0, from[0], from[1], from[2], 0.0, 0.0]);
    }
    assert!(run_with(&mut output, 5).is_err());
    assert!(run_with(&mut output[1..], 2).is_err());
}
