//! [`Shape`]: what launches depend on besides their operands.

use super::launch::{GemmMath, GemmTile};
use super::params::GatherGemmParams;
use super::precision::Precision;

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

    /// The kernel for a call: the largest tiles that give every multiprocessor something to do, on tensor cores where
    /// the operands and the device allow it.
    pub(crate) fn tile(self, params: &GatherGemmParams) -> GemmTile {
        let on_tensor_cores = self.capability >= 80 && params.suits_tensor_cores(self.bytes());
        let math = match self.precision {
            Precision::F16 | Precision::Bf16 if on_tensor_cores => GemmMath::TensorCores,
            Precision::Tf32 if on_tensor_cores => GemmMath::Tf32,
            _ => GemmMath::Simt,
        };
        let fits = |tile: &&GemmTile| {
            let wide = tile.columns > 64 && params.group_out <= 64;
            !wide && params.tiles(tile) >= self.multiprocessors as usize
        };
        let mut tiles = GemmTile::ALL.iter().filter(|tile| tile.math == math);
        let smallest = *tiles.clone().next_back().expect("every way to multiply has tiles");
        tiles.find(fits).copied().unwrap_or(smallest)
    }
}
