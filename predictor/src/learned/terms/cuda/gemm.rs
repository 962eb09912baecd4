//! Which tile a call of `gather_gemm` is computed in, and in how many thread blocks; see `kernels/cuda/shape.rs`.

use super::{STEP, up, vector};
use crate::DeviceFacts;
use crate::workload::{DType, Workload};

/// A kernel of `gather_gemm`: what a thread block computes at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GemmTile {
    /// On tensor cores rather than in f32 arithmetic.
    pub tensor_cores: bool,
    /// Rows.
    pub rows: u32,
    /// Columns.
    pub columns: u32,
    /// Thread blocks that share a multiprocessor, as far as registers go.
    pub resident: u32,
    /// Bytes of shared memory of a thread block.
    pub(super) shared: u32,
}

const fn tile(tensor_cores: bool, rows: u32, columns: u32, resident: u32, shared: u32) -> GemmTile {
    GemmTile { tensor_cores, rows, columns, resident, shared }
}

/// The larger first.
const TENSOR_CORES: [GemmTile; 4] = [
    tile(true, 128, 256, 1, 100_352),
    tile(true, 128, 128, 2, 67_584),
    tile(true, 128, 64, 3, 51_200),
    tile(true, 64, 64, 4, 33_792),
];
const SIMT: [GemmTile; 2] = [tile(false, 128, 128, 1, 19_072), tile(false, 64, 64, 3, 9_856)];
pub(super) const TILES: usize = TENSOR_CORES.len() + SIMT.len();

/// Columns of the narrowest tiles.
const NARROWEST: f64 = 64.0;
/// Columns up to which groups of a grouped convolution share a tile.
const MERGED_COLUMNS: u32 = 64;
/// Elements that a row of a filter's taps is padded to where it is read as one: of images.
const FOLDED: u32 = 8;
/// Compute capability from which on products are computed on tensor cores.
const TENSOR_CORES_FROM: u32 = 80;

/// A convolution as the kernels see it.
pub(super) struct Gemm {
    pub(super) groups: f64,
    /// Columns of a group, all and the active ones.
    pub(super) group_out: f64,
    pub(super) active_out: f64,
    /// Input channels of a tap, all and the active ones, and taps.
    pub(super) group_in: f64,
    pub(super) inputs: f64,
    pub(super) taps: f64,
    pub(super) listed: bool,
    /// Whether vectors are whole, so that tensor cores can read them.
    pub(super) whole: bool,
}

impl Gemm {
    pub(super) fn of(w: &Workload) -> Self {
        let (group_in, group_out) = (w.c_in / w.groups.max(1), w.c_out / w.groups.max(1));
        let merges = |n: &u32| w.groups.is_multiple_of(*n) && n * group_out <= MERGED_COLUMNS;
        let merged = (1..=w.groups.min(MERGED_COLUMNS)).filter(merges).max().unwrap_or(1);
        let groups = (w.groups / merged).max(1);
        let image = w.reads_image();
        let n = vector(w.dtype);
        let pixel = if image { w.c_in.next_multiple_of(n) } else { w.c_in };
        let run = f64::from((w.kernel * pixel).next_multiple_of(FOLDED));
        let (all_in, inputs, taps) = match image {
            true => (run, run, f64::from(w.kernel)),
            false => {
                ((merged * group_in).into(), w.c_in_active / f64::from(groups), f64::from(w.kernel).powi(2))
            }
        };
        let in_vectors = image || (merged * group_in).is_multiple_of(n) || groups == 1 && w.kernel == 1;
        let lists = groups == 1 || !w.c_in_listed || w.group_size.is_multiple_of(n);
        Self {
            groups: groups.into(),
            group_out: (merged * group_out).into(),
            active_out: w.c_out_active / f64::from(groups),
            group_in: all_in,
            inputs,
            taps,
            listed: w.c_in_listed || w.c_out_listed,
            whole: pixel.is_multiple_of(n) && in_vectors && lists,
        }
    }

    /// Tiles with so many rows over the batch, if every column is active.
    pub(super) fn tiles(&self, w: &Workload, rows: f64, tile: &GemmTile) -> f64 {
        let columns = self.groups * up(self.group_out, tile.columns.into());
        let jobs = if self.listed { f64::from(w.batch) } else { 1.0 };
        jobs * up(rows / jobs, tile.rows.into()) * columns
    }
}

impl GemmTile {
    /// Steps of a sum over taps of so many channels.
    pub(super) fn steps(&self, w: &Workload, taps: f64, inputs: f64) -> f64 {
        let width = if self.tensor_cores { f64::from(vector(w.dtype)) } else { 4.0 };
        up(taps * up(inputs, width), STEP)
    }
}

/// The tile that the backend takes for a call of `gather_gemm`: the largest that gives every multiprocessor something to
/// do and of whose columns few are nobody's, by what could be active.
pub fn gemm_tile(w: &Workload, facts: &DeviceFacts) -> GemmTile {
    choose(&Gemm::of(w), w, facts)
}

pub(super) fn choose(gemm: &Gemm, w: &Workload, facts: &DeviceFacts) -> GemmTile {
    let capability = facts.isa.trim_start_matches("sm_").trim_end_matches('a').parse::<u32>();
    let on_tensor_cores =
        w.dtype != DType::F32 && gemm.whole && capability.is_ok_and(|number| number >= TENSOR_CORES_FROM);
    let all: &[GemmTile] = if on_tensor_cores { &TENSOR_CORES } else { &SIMT };
    let fits = |tile: &&GemmTile| {
        let columns = |at_once: f64| up(gemm.group_out, at_once) * at_once;
        let wide = 4.0 * columns(tile.columns.into()) > 5.0 * columns(NARROWEST);
        !wide && gemm.tiles(w, w.pixels() as f64, tile) >= f64::from(facts.cores)
    };
    all.iter().find(fits).copied().unwrap_or(all[all.len() - 1])
}

/// Thread blocks that a call of `gather_gemm` is launched with, if all of them fit.
pub fn gemm_thread_blocks(w: &Workload, facts: &DeviceFacts) -> f64 {
    let gemm = Gemm::of(w);
    let tile = choose(&gemm, w, facts);
    gemm.tiles(w, w.pixels() as f64, &tile) * parts(&gemm, w, &tile, facts)
}

/// Parts that the sums of a call are cut into, by what could be active.
pub(super) fn parts(gemm: &Gemm, w: &Workload, tile: &GemmTile, facts: &DeviceFacts) -> f64 {
    let idle = (f64::from(facts.cores) / gemm.tiles(w, w.pixels() as f64, tile).max(1.0)).floor();
    idle.min(tile.steps(w, gemm.taps, gemm.group_in).sqrt().floor()).max(1.0)
}

/// Which of all tiles.
pub(super) fn place(tile: &GemmTile) -> usize {
    TENSOR_CORES.iter().chain(&SIMT).position(|known| known == tile).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{call, facts};
    use super::*;
    use crate::workload::Op;

    #[test]
    fn tiles_are_as_large_as_the_device_can_be_filled_with() {
        let of = |w: Workload| {
            let tile = gemm_tile(&w, &facts());
            (tile.tensor_cores, tile.rows, tile.columns)
        };
        let half = |side, c, batch| Workload { dtype: DType::F16, ..call(Op::GatherGemm, side, c, batch) };
        assert_eq!(of(half(56, 256, 8)), (true, 128, 256));
        assert_eq!(of(half(56, 128, 8)), (true, 128, 128), "no wider than the columns");
        assert_eq!(of(half(56, 64, 8)), (true, 128, 64));
        assert_eq!(of(half(56, 192, 8)), (true, 128, 64), "three narrow ones are less than one wide one");
        assert_eq!(of(half(56, 208, 8)), (true, 128, 256));
        assert_eq!(of(half(7, 256, 1)), (true, 64, 64));
        assert_eq!(of(call(Op::GatherGemm, 56, 256, 8)), (false, 128, 128), "f32 is exact");
        assert_eq!(of(half(56, 250, 8)), (false, 128, 128), "vectors are not whole");
        assert_eq!(of(Workload { dtype: DType::Tf32, ..call(Op::GatherGemm, 56, 256, 8) }), (true, 128, 256));
        let old = DeviceFacts { isa: "sm_75".to_owned(), ..facts() };
        assert!(!gemm_tile(&half(56, 256, 8), &old).tensor_cores);
        // Images come in whole vectors.
        let mut stem = Workload { dtype: DType::F16, ..Workload::new(Op::GatherGemm, 112, 112, 3, 64) };
        (stem.in_h, stem.in_w, stem.kernel, stem.stride) = (230, 230, 7, 2);
        assert!(stem.reads_image());
        assert!(gemm_tile(&stem, &facts()).tensor_cores);
        // Narrow groups share a tile.
        let grouped = Workload { groups: 16, kernel: 3, ..half(28, 128, 32) };
        assert_eq!(Gemm::of(&grouped).groups, 2.0);
    }
}
