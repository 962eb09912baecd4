//! The gather alone, and the product of what it gathered.

use super::*;
use laud_kernels::cuda::params::{GatherParams, Window};

fn check_gather<T: Storage>(geometry: ConvGeometry, rows: Density, batch: usize) {
    let case = Case { rows, batch, implicit: rows == Density::All, ..Case::of(geometry) };
    let operands = Operands::new::<T>(&case);
    let g = &geometry;
    let taps = g.kernel * g.kernel;
    let input: Vec<T> = store(&operands.input);
    let rows = DeviceRows::new(&operands.rows);
    let len = operands.rows.len() * taps * g.c_in;
    let got = in_any_order(|emulator| {
        let mut output = vec![T::from_f32(f32::NAN); len];
        let params = GatherParams {
            rows: rows.params(),
            window: Window::from(g),
            input: address(&input),
            output: address_mut(&mut output),
            c: g.c_in as u32,
            input_pitch: g.c_in as u32,
            output_pitch: (taps * g.c_in) as u32,
            reserved: 0,
        };
        execute(emulator, &params.launch(T::NAME, 5), &params);
        load(&output)
    });
    for i in 0..operands.rows.len() {
        let pixel = operands.rows.pixel(i);
        let (n, at) = (pixel / g.output.pixels(), pixel % g.output.pixels());
        for tap in 0..taps {
            let y = (at / g.output.w * g.stride + tap / g.kernel).wrapping_sub(g.pad_top);
            let x = (at % g.output.w * g.stride + tap % g.kernel).wrapping_sub(g.pad_left);
            let got = &got[(i * taps + tap) * g.c_in..][..g.c_in];
            if y < g.input.h && x < g.input.w {
                let from = ((n * g.input.h + y) * g.input.w + x) * g.c_in;
                assert_eq!(got, &operands.input[from..][..g.c_in], "row {i}, tap {tap}");
            } else {
                assert!(got.iter().all(|&v| v == 0.0), "row {i}, tap {tap}");
            }
        }
    }

    // The product of what was gathered is the convolution.
    let want = operands.reference(&case);
    let packed = Packed::new(&operands.spec(&case), g.c_in).unwrap();
    let (gathered, weight): (Vec<T>, Vec<T>) = (store(&got), store(&packed.weight));
    for tile in GemmTile::ALL.iter().filter(|tile| exists::<T>(tile)) {
        let params = GatherGemmParams {
            rows: rows.params(),
            c_in: laud_kernels::cuda::params::Channels { total: g.c_in as u32, ..Default::default() },
            c_out: laud_kernels::cuda::params::Channels { total: g.c_out as u32, ..Default::default() },
            input: address(&gathered),
            weight: address(&weight),
            bias: address(&packed.bias),
            input_rows: 1,
            input_pitch: (taps * g.c_in) as u32,
            act: 1,
            ..packed.params()
        };
        if tile.math != GemmMath::Simt && !params.suits_tensor_cores(size_of::<T>() as u32) {
            continue;
        }
        let got = in_any_order(|emulator| {
            let mut output: Vec<T> = store(&operands.before);
            let params = GatherGemmParams { output: address_mut(&mut output), ..params };
            execute(emulator, &params.launch(T::NAME, tile, 7), &params);
            load(&output)
        });
        let tolerance =
            if tile.math == GemmMath::Tf32 { TF32_ROUNDING } else { SUMMATION_ORDER.max(T::ROUNDING) };
        let error = worst(&got, &want, 1.0);
        assert!(error <= tolerance, "{geometry}, {} {tile:?}: {error:e}", T::NAME);
    }
}

#[test]
fn gathered_rows_multiply_to_the_same() {
    for rows in Density::EVERY {
        for_each_storage!(check_gather(conv((7, 6), (24, 40), 3, 1, 1), rows, 2));
        for_each_storage!(check_gather(conv((9, 7), (16, 24), 3, 2, 1), rows, 3));
        for_each_storage!(check_gather(conv((5, 5), (40, 64), 1, 1, 1), rows, 1));
        for_each_storage!(check_gather(conv((5, 4), (5, 6), 3, 1, 1), rows, 2));
    }
}
