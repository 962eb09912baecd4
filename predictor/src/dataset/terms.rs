//! What a vendor's convolution may cost: the algorithms that the library chooses from, counted in milliseconds at the
//! published rates of the device.

use super::{Conv, GpuSpec};

/// The terms of a convolution, by what they are, each in milliseconds at full rate.
pub(super) struct Terms {
    /// A launch.
    pub(super) launch: f64,
    /// Arithmetic of the algorithms.
    pub(super) compute: [f64; COMPUTE],
    /// Traffic of input, output, weights and intermediate results.
    pub(super) memory: [f64; MEMORY],
}

pub(super) const COMPUTE: usize = 9;
pub(super) const MEMORY: usize = 5;
/// Tiles of an implicit GEMM in pixels and output channels.
const GEMM_TILES: [(f64, f64); 4] = [(128.0, 128.0), (128.0, 64.0), (128.0, 32.0), (64.0, 64.0)];
/// Nominal time of a launch.
const LAUNCH_MS: f64 = 0.05;

/// Sizes that everything is made of.
struct Sizes {
    batch: f64,
    c_in: f64,
    c_out: f64,
    side: f64,
    taps: f64,
    pixels: f64,
    flops: f64,
    input: f64,
    output: f64,
    weights: f64,
    winograd: bool,
}

impl Sizes {
    fn of(conv: &Conv) -> Self {
        let [batch, c_in, c_out, input_size] =
            [conv.batch, conv.in_channels, conv.out_channels, conv.input_size].map(f64::from);
        let side = f64::from(conv.output_size());
        let taps = f64::from(conv.kernel).powi(2);
        let pixels = batch * side * side;
        Self {
            batch,
            c_in,
            c_out,
            side,
            taps,
            pixels,
            flops: 2.0 * pixels * c_in * c_out * taps,
            input: 4.0 * batch * c_in * input_size * input_size,
            output: 4.0 * pixels * c_out,
            weights: 4.0 * c_in * c_out * taps,
            winograd: conv.kernel == 3 && conv.stride == 1,
        }
    }

    /// Tiles of `m × m` output pixels.
    fn tiles(&self, m: f64) -> f64 {
        self.batch * (self.side / m).ceil().powi(2)
    }

    /// Work ÷ useful work of a GEMM over `rows × c_out` in whole tiles and whole waves of them.
    fn waste(&self, rows: f64, (tile_rows, tile_columns): (f64, f64), multiprocessors: f64) -> f64 {
        let tiles = (rows / tile_rows).ceil() * (self.c_out / tile_columns).ceil();
        let waves = (tiles / multiprocessors).ceil();
        waves * multiprocessors * tile_rows * tile_columns / (rows * self.c_out)
    }
}

impl Terms {
    pub(super) fn of(conv: &Conv, spec: &GpuSpec) -> Self {
        let s = Sizes::of(conv);
        let sms = spec.multiprocessors;
        let flops_per_ms = spec.gflops * 1e6;
        let bytes_per_ms = spec.bandwidth_gb_per_s * 1e6;
        // F(2×2, 3×3) and F(4×4, 3×3); Lavin and Gray, Fast algorithms for convolutional neural networks, CVPR 2016.
        let winograd = |m: f64, tile: Option<(f64, f64)>| match s.winograd {
            false => 0.0,
            true => {
                let waste = tile.map_or(1.0, |tile| s.waste(s.tiles(m), tile, sms));
                2.0 * s.tiles(m) * (m + 2.0).powi(2) * s.c_in * s.c_out * waste
            }
        };
        let [a, b, c, d] = GEMM_TILES.map(|tile| s.flops * s.waste(s.pixels, tile, sms));
        let compute = [
            winograd(4.0, None),
            winograd(2.0, None),
            winograd(2.0, Some((32.0, 64.0))),
            winograd(4.0, Some((128.0, 128.0))),
            a,
            b,
            c,
            d,
            s.flops,
        ]
        .map(|flops| flops / flops_per_ms);
        let transformed = if s.winograd { s.tiles(4.0) * 144.0 } else { 0.0 };
        let memory = [s.input, s.output, s.weights, transformed * s.c_in, transformed * s.c_out]
            .map(|bytes| bytes / bytes_per_ms);
        Self { launch: LAUNCH_MS, compute, memory }
    }

    /// One after another, [`LEN`](Self::LEN) of them.
    pub(super) fn values(&self) -> Vec<f64> {
        [&[self.launch][..], &self.compute, &self.memory].concat()
    }

    pub(super) const LEN: usize = 1 + COMPUTE + MEMORY;
}

/// What the choice of algorithm, and so the rest, may depend on.
pub(super) fn features(conv: &Conv, spec: &GpuSpec) -> Vec<f64> {
    let s = Sizes::of(conv);
    let sms = spec.multiprocessors;
    let bytes = s.input + s.output + s.weights;
    let mut list: Vec<f64> = [
        s.batch,
        s.c_in,
        s.c_out,
        s.side,
        s.taps,
        s.pixels,
        s.flops,
        bytes,
        s.flops / bytes,
        s.input,
        s.output,
        s.weights,
    ]
    .into_iter()
    .chain(GEMM_TILES.map(|tile| s.waste(s.pixels, tile, sms)))
    .chain(GEMM_TILES.map(|(rows, columns)| (s.pixels / rows).ceil() * (s.c_out / columns).ceil()))
    .chain(
        GEMM_TILES
            .map(|(rows, columns)| (s.pixels / rows).ceil() * (s.c_out / columns).ceil() * rows * columns)
            .map(|padded| padded / (s.pixels * s.c_out)),
    )
    .chain([2.0, 4.0].into_iter().flat_map(|m| {
        let tiles = s.tiles(m);
        let wasted = [(32.0, 128.0), (128.0, 64.0), (128.0, 128.0)].map(|tile| s.waste(tiles, tile, sms));
        [tiles * m * m / s.pixels].into_iter().chain(wasted)
    }))
    .chain([32.0, 64.0, 128.0].map(|tile| (s.c_out / tile).ceil() * tile / s.c_out))
    .chain([8.0, 32.0].map(|tile| (s.c_in / tile).ceil() * tile / s.c_in))
    .map(f64::ln)
    .collect();
    list.extend([s.side % 2.0, s.side % 4.0, s.c_in % 8.0, s.c_in % 4.0]);
    list
}
