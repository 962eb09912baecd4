//! What a kernel is launched with, apart from its parameters.
//!
//! Grids are as large as everything active asks for. How much is active is read on the device, and what has nothing to
//! do ends at once, so that a launch can be recorded once and replayed.

use super::params::{
    CompactChannelsParams, CompactRowsParams, ConditionParams, DecideHighestParams, DecideParams,
    DepthwiseParams, FromNchwParams, GatherGemmParams, GatherParams, LinearParams, MaxPoolParams,
    MeanPoolParams, PadChannelsParams, PatchGateParams, Rows, ScaleParams, ToNchwParams, Window,
};
use std::fmt::Display;

/// Name and shape of a launch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Kernel.
    pub kernel: String,
    /// Thread blocks along x, y, z; none is zero unless there is nothing to do.
    pub grid: [u32; 3],
    /// Threads of a thread block, along x.
    pub threads: u32,
    /// Bytes of dynamic shared memory. A kernel has to be allowed more than 48 KiB before it is launched with it.
    pub shared: u32,
}

impl Launch {
    fn new(kernel: String, grid: [u32; 3], threads: u32) -> Self {
        Self { kernel, grid, threads, shared: 0 }
    }

    /// Whether there is nothing to do: a grid must not be empty.
    pub fn is_empty(&self) -> bool {
        self.grid.contains(&0)
    }
}

/// What a kernel of `gather_gemm` multiplies with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GemmMath {
    /// Halves on tensor cores, from sm_80 on.
    TensorCores,
    /// f32 on tensor cores, with 10 bits of mantissa, from sm_80 on.
    Tf32,
    /// f32 arithmetic, on every device and for every operand.
    Simt,
}

/// A kernel of `gather_gemm`: what a thread block computes at a time, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GemmTile {
    /// How it multiplies.
    pub math: GemmMath,
    /// Rows.
    pub rows: u32,
    /// Columns.
    pub columns: u32,
    /// Threads of a thread block.
    pub threads: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
}

impl GemmTile {
    /// All of them; of each way to multiply the largest first.
    pub const ALL: [GemmTile; 10] = {
        use GemmMath::{Simt, TensorCores, Tf32};
        [
            tile(TensorCores, 128, 256, 256, 100_352),
            tile(TensorCores, 128, 128, 128, 67_584),
            tile(TensorCores, 128, 64, 128, 51_200),
            tile(TensorCores, 64, 64, 128, 33_792),
            tile(Tf32, 128, 256, 256, 100_352),
            tile(Tf32, 128, 128, 128, 67_584),
            tile(Tf32, 128, 64, 128, 51_200),
            tile(Tf32, 64, 64, 128, 33_792),
            tile(Simt, 128, 128, 256, 0),
            tile(Simt, 64, 64, 256, 0),
        ]
    };

    /// Whether sums of such a tile can be cut into parts.
    pub const fn has_parts(&self) -> bool {
        self.rows * self.columns <= 64 * 64
    }

    /// The one that is taken where others leave multiprocessors idle.
    pub(crate) fn smallest(math: GemmMath) -> Self {
        *Self::ALL.iter().rfind(|tile| tile.math == math).expect("every way to multiply has tiles")
    }

    fn kernel(&self, dtype: impl Display) -> String {
        let math = match self.math {
            GemmMath::TensorCores => "mma",
            GemmMath::Tf32 => "tf32",
            GemmMath::Simt => "simt",
        };
        format!("gather_gemm_nhwc_{dtype}_{math}_{}x{}", self.rows, self.columns)
    }
}

const fn tile(math: GemmMath, rows: u32, columns: u32, threads: u32, shared: u32) -> GemmTile {
    GemmTile { math, rows, columns, threads, shared }
}

impl GatherGemmParams {
    /// Tiles of everything active: counters that `arrived` needs when the sum is split.
    pub fn tiles(&self, tile: &GemmTile) -> usize {
        let [x, _, z] = self.tile_grid(tile);
        x as usize * z as usize
    }

    /// Values that `partial` needs.
    pub fn partial_len(&self, tile: &GemmTile) -> usize {
        match self.split {
            1 => 0,
            split => self.tiles(tile) * split as usize * (tile.rows * tile.columns) as usize,
        }
    }

    /// Steps of the sum of a tile if everything is active, elements having `bytes`.
    pub fn steps(&self, tile: &GemmTile, bytes: u32) -> u32 {
        /// Vectors of a step.
        const VECTORS: u32 = 4;
        let vector = if tile.math == GemmMath::Simt { 4 } else { 16 / bytes };
        (self.window.kernel_h * self.window.kernel_w * self.group_in.div_ceil(vector)).div_ceil(VECTORS)
    }

    fn tile_grid(&self, tile: &GemmTile) -> [u32; 3] {
        let columns = self.groups * self.group_out.div_ceil(tile.columns);
        let Self { rows, c_in, c_out, .. } = self;
        match (c_in.index, c_out.index) {
            (0, 0) => [(rows.batch * rows.pixels).div_ceil(tile.rows) * columns, 1, 1],
            _ => [rows.pixels.div_ceil(tile.rows) * columns, 1, rows.batch],
        }
    }

    /// Whether the kernels on tensor cores can read the operands, elements having `bytes`: vectors of 16 bytes have to be
    /// whole. `Simt` kernels can always.
    pub fn suits_tensor_cores(&self, bytes: u32) -> bool {
        let n = 16 / bytes;
        let listed_groups = self.groups > 1 && self.c_in.index != 0;
        self.input_pitch.is_multiple_of(n)
            && self.weight_pitch.is_multiple_of(n)
            && (self.group_in.is_multiple_of(n) || self.groups == 1 && self.window.kernel_h == 1)
            && (!listed_groups || self.c_in.group.is_multiple_of(n))
            && self.input.is_multiple_of(16)
            && self.weight.is_multiple_of(16)
    }

    /// `gather_gemm_nhwc_*` with the given tile, in at most `most` thread blocks along x.
    ///
    /// # Panics
    /// When the sum is split in a tile without parts.
    pub fn launch(&self, dtype: impl Display, tile: &GemmTile, most: u32) -> Launch {
        assert!(self.split == 1 || tile.has_parts(), "gather_gemm: {tile:?} has no parts");
        let [x, y, z] = self.tile_grid(tile);
        let grid = [x.saturating_mul(self.split).min(most), y, z];
        Launch { kernel: tile.kernel(dtype), grid, threads: tile.threads, shared: tile.shared }
    }
}

impl GatherParams {
    /// `gather_nhwc_*`, in at most `most` thread blocks.
    pub fn launch(&self, dtype: impl Display, most: u32) -> Launch {
        let taps = self.window.kernel_h * self.window.kernel_w;
        let tasks = u64::from(self.rows.batch) * u64::from(self.rows.pixels) * u64::from(taps);
        let blocks = tasks.div_ceil(8).min(u64::from(most)) as u32;
        Launch::new(format!("gather_nhwc_{dtype}"), [blocks, 1, 1], 256)
    }
}

impl ConditionParams {
    /// `condition_u32`.
    pub fn launch() -> Launch {
        Launch::new("condition_u32".to_owned(), [1, 1, 1], 32)
    }
}

impl FromNchwParams {
    /// `from_nchw_nhwc_*`.
    pub fn launch(&self, dtype: impl Display) -> Launch {
        let grid = [(self.out_h * self.out_w).div_ceil(32), self.pitch.div_ceil(32), self.batch];
        Launch::new(format!("from_nchw_nhwc_{dtype}"), grid, 256)
    }
}

impl ToNchwParams {
    /// `to_nchw_nhwc_*`.
    pub fn launch(&self, dtype: impl Display) -> Launch {
        let grid = [self.pixels.div_ceil(32), self.c.div_ceil(32), self.batch];
        Launch::new(format!("to_nchw_nhwc_{dtype}"), grid, 256)
    }
}

impl PatchGateParams {
    /// `patch_gate_nhwc_*`.
    pub fn launch(&self, dtype: impl Display) -> Launch {
        let grid = [self.grid_h * self.grid_w, self.batch, 1];
        Launch::new(format!("patch_gate_nhwc_{dtype}"), grid, 128)
    }
}

impl LinearParams {
    /// `linear_nc_f32`.
    pub fn launch(&self) -> Launch {
        Launch::new("linear_nc_f32".to_owned(), [self.c_out.div_ceil(8), self.batch.div_ceil(8), 1], 256)
    }
}

impl DecideParams {
    /// `decide_n_f32`.
    pub fn launch(&self) -> Launch {
        Launch::new("decide_n_f32".to_owned(), [self.len.div_ceil(256), 1, 1], 256)
    }
}

impl DecideHighestParams {
    /// `decide_n_f32_highest`.
    pub fn launch(&self) -> Launch {
        Launch::new("decide_n_f32_highest".to_owned(), [self.batch, 1, 1], 256)
    }
}

/// Thread blocks of 256 threads for `rows · chunks` tasks, at most `most`.
fn spread(rows: u64, chunks: u32, most: u32) -> [u32; 3] {
    [(rows * u64::from(chunks)).div_ceil(256).min(u64::from(most)) as u32, 1, 1]
}

/// Vectors of `bytes` wide elements that `c` channels are moved in where they are whole.
fn vectors(c: u32, bytes: u32) -> u32 {
    let n = 16 / bytes;
    if c.is_multiple_of(n) { c / n } else { c }
}

impl Rows {
    fn most(&self) -> u64 {
        u64::from(self.batch) * u64::from(self.pixels)
    }
}

impl Window {
    fn out_pixels(&self) -> u64 {
        u64::from(self.out_h) * u64::from(self.out_w)
    }
}

impl DepthwiseParams {
    /// `depthwise_nhwc_*` on elements of `bytes`, in at most `most` thread blocks.
    pub fn launch(&self, dtype: impl Display, bytes: u32, most: u32) -> Launch {
        let grid = spread(self.rows.most(), vectors(self.channels.total, bytes), most);
        Launch::new(format!("depthwise_nhwc_{dtype}"), grid, 256)
    }
}

impl MaxPoolParams {
    /// `max_pool_nhwc_*` on elements of `bytes`, in at most `most` thread blocks.
    pub fn launch(&self, dtype: impl Display, bytes: u32, most: u32) -> Launch {
        let grid = spread(u64::from(self.batch) * self.window.out_pixels(), vectors(self.c, bytes), most);
        Launch::new(format!("max_pool_nhwc_{dtype}"), grid, 256)
    }
}

impl MeanPoolParams {
    /// `mean_pool_nhwc_*`.
    pub fn launch(&self, dtype: impl Display) -> Launch {
        let grid = [self.channels.total.div_ceil(64), self.split, self.rows.batch];
        Launch::new(format!("mean_pool_nhwc_{dtype}"), grid, 256)
    }

    /// Rows that a thread block reads at a time, elements having `bytes`.
    pub fn lines(&self, bytes: u32) -> u32 {
        256 / (64 * bytes / 16)
    }

    /// Values that `partial` needs.
    pub fn partial_len(&self) -> usize {
        if self.split == 1 {
            0
        } else {
            (self.rows.batch * self.split) as usize * self.channels.total as usize
        }
    }

    /// Counters that `arrived` needs.
    pub fn arrived_len(&self) -> usize {
        if self.split == 1 { 0 } else { self.rows.batch as usize * self.channels.total.div_ceil(64) as usize }
    }
}

impl ScaleParams {
    /// `squeeze_excite_nhwc_*` on elements of `bytes`, in at most `most` thread blocks.
    pub fn launch(&self, dtype: impl Display, bytes: u32, most: u32) -> Launch {
        let grid = spread(self.rows.most(), vectors(self.channels.total, bytes), most);
        Launch::new(format!("squeeze_excite_nhwc_{dtype}"), grid, 256)
    }
}

impl PadChannelsParams {
    /// `pad_channels_nhwc_*` on elements of `bytes`, in at most `most` thread blocks.
    pub fn launch(&self, dtype: impl Display, bytes: u32, most: u32) -> Launch {
        let pixels = u64::from(self.batch) * u64::from(self.out_h) * u64::from(self.out_w);
        Launch::new(
            format!("pad_channels_nhwc_{dtype}"),
            spread(pixels, vectors(self.c_out, bytes), most),
            256,
        )
    }
}

impl CompactRowsParams {
    /// `compact_rows_n_u32`. Maps have to fit shared memory: 227 KiB, 48 without asking for more, for all levels.
    pub fn launch(&self) -> Launch {
        let words = |level: &super::params::CompactLevel| (level.h * level.w).div_ceil(32);
        let maps: u32 = self.level[..self.levels as usize].iter().map(|level| 8 * words(level)).sum();
        let squares = match self.side {
            0 | 1 => 0,
            side => 4 * (words(&self.level[0]) + self.grid_h.div_ceil(side) * self.grid_w.div_ceil(side)),
        };
        let shared = maps + squares;
        Launch { shared, ..Launch::new("compact_rows_n_u32".to_owned(), [self.batch, 1, 1], 512) }
    }

    /// Words that `state` needs.
    pub fn state_len(&self) -> usize {
        2 + self.batch as usize * self.levels as usize
    }
}

impl CompactChannelsParams {
    /// `compact_channels_n_u32`.
    pub fn launch(&self) -> Launch {
        Launch::new("compact_channels_n_u32".to_owned(), [self.batch, 1, 1], 256)
    }
}
