//! [`Shape`]: what launches depend on besides their operands.

use super::launch::{GemmMath, GemmTile};
use super::params::{GatherGemmParams, MeanPoolParams};
use super::precision::Precision;

/// Columns of the narrowest tiles.
const NARROWEST: u32 = 64;

/// What the operations of a queue depend on.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) precision: Precision,
    pub(crate) capability: u32,
    pub(crate) multiprocessors: u32,
    pub(crate) shared_bytes: u32,
}

impl Shape {
    pub(crate) fn dtype(self) -> &'static str {
        self.precision.storage()
    }

    pub(crate) fn bytes(self) -> u32 {
        self.precision.bytes() as u32
    }

    /// Thread blocks that keep the device busy; each goes on to further work.
    pub(crate) fn most(self) -> u32 {
        8 * self.multiprocessors.max(1)
    }

    /// The kernel for a call: the largest tiles that give every multiprocessor something to do and of whose columns few
    /// are nobody's, on tensor cores where the operands and the device allow it.
    pub(crate) fn tile(self, params: &GatherGemmParams) -> GemmTile {
        let on_tensor_cores = self.capability >= 80 && params.suits_tensor_cores(self.bytes());
        let math = match self.precision {
            Precision::F16 | Precision::Bf16 if on_tensor_cores => GemmMath::TensorCores,
            Precision::Tf32 if on_tensor_cores => GemmMath::Tf32,
            _ => GemmMath::Simt,
        };
        let fits = |tile: &&GemmTile| {
            let columns = |at_once: u32| u64::from(params.group_out.next_multiple_of(at_once));
            let wide = 4 * columns(tile.columns) > 5 * columns(NARROWEST);
            !wide && tile.shared <= self.shared_bytes && params.tiles(tile) >= self.multiprocessors as usize
        };
        let mut tiles = GemmTile::ALL.iter().filter(|tile| tile.math == math);
        tiles.find(fits).copied().unwrap_or(GemmTile::smallest(math))
    }

    /// Parts that the sums of a call are cut into where its tiles leave multiprocessors idle: no more than there are
    /// idle ones, nor than a part then has steps, as many as it takes to add them up.
    pub(crate) fn parts(self, params: &GatherGemmParams, tile: &GemmTile) -> u32 {
        match tile.has_parts() {
            true => self.idle(params.tiles(tile)).min(params.steps(tile, self.bytes()).isqrt()).max(1),
            false => 1,
        }
    }

    /// The same for a mean: every thread reads a few rows of a part.
    pub(crate) fn mean_parts(self, params: &MeanPoolParams) -> u32 {
        const ROWS: u32 = 4;
        let [x, _, z] = params.launch(self.dtype()).grid;
        let lines = params.lines(self.bytes());
        self.idle(x as usize * z as usize).min(params.rows.pixels / (ROWS * lines)).max(1)
    }

    /// Multiprocessors for each of so many pieces of work.
    fn idle(self, pieces: usize) -> u32 {
        (self.multiprocessors as usize / pieces.max(1)) as u32
    }

    /// Bytes of counters and of parts of sums that any call needs: work is only cut where multiprocessors are idle.
    pub(crate) fn parts_bytes(self) -> [usize; 2] {
        let cut = [GemmMath::TensorCores, GemmMath::Tf32, GemmMath::Simt].map(GemmTile::smallest);
        let largest = cut.into_iter().map(|tile| tile.rows * tile.columns).max().unwrap_or(0);
        [1, largest as usize].map(|values| self.multiprocessors as usize * values * size_of::<f32>())
    }
}
