//! Which tiles the simulator tries, in which order, and how the best is kept.
//!
//! Source: LAUDNet repository, DyNetSimulator/hardware_models/utils.py.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::LIMITS;
use crate::{Error, Result};

/// Tile sizes tried along an axis of `extent` values, ascending: powers of two up to 128 and twice the extent, the
/// extent divided by 1 to 7 rounded up, and the small integers.
pub(super) fn tile_sizes(extent: u32) -> Vec<u32> {
    let few = extent.min(8);
    let powers = (0..8).map(|k| 1 << k).filter(|&size| size <= 2 * extent);
    let parts = (1..few).map(|parts| extent.div_ceil(parts));
    let mut sizes: Vec<u32> = powers.chain(parts).chain(2..few).collect();
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}

/// The order in which tile sizes are tried, which decides between equally good tiles: the first is kept.
///
/// Ties have a consequence for dynamic operators only, whose tile is chosen at the mean number of patches and then
/// used at the actual one; modes static and layer have none. The official simulator iterates over Python sets. Relative
/// to it, ascending order stays within 3e-4 in mode spatial and 1e-5 in mode channel; a table of its iteration orders
/// stays within rounding.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TileOrder {
    table: BTreeMap<u32, Vec<u32>>,
}

impl TileOrder {
    /// Ascending order for every extent (the default).
    pub fn ascending() -> Self {
        Self::default()
    }

    /// The orders in `table`, by extent; ascending for an extent that is not in it. An entry that is not a permutation
    /// of the tile sizes of its extent is [`Error::TileOrder`].
    pub fn from_table(table: BTreeMap<u32, Vec<u32>>) -> Result<Self> {
        for (&extent, order) in &table {
            let max = LIMITS.extent;
            if !(1..=max).contains(&extent) {
                return Err(Error::Size { what: "extent of a tile order", value: extent, max });
            }
            let expected = tile_sizes(extent);
            let mut sorted = order.clone();
            sorted.sort_unstable();
            if sorted != expected {
                return Err(Error::TileOrder { extent, expected });
            }
        }
        Ok(Self { table })
    }

    /// [`TileOrder::from_table`] of the JSON object `{"orders": {"<extent>": [sizes…], …}}`.
    pub fn from_json(text: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct File {
            orders: BTreeMap<u32, Vec<u32>>,
        }
        let file: File = serde_json::from_str(text)
            .map_err(|source| Error::Json { what: "a tile order table", source })?;
        Self::from_table(file.orders)
    }

    /// Tile sizes of `extent`, in this order.
    pub(super) fn sizes(&self, extent: u32) -> Vec<u32> {
        self.table.get(&extent).cloned().unwrap_or_else(|| tile_sizes(extent))
    }
}

/// What one thread block computes: `channels × rows × cols` outputs of each of `patches` patches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tile {
    pub(super) patches: u32,
    pub(super) channels: u32,
    pub(super) rows: u32,
    pub(super) cols: u32,
}

impl Tile {
    /// Outputs of one patch: `channels · rows · cols`.
    pub(super) fn volume(&self) -> f64 {
        f64::from(self.channels) * f64::from(self.rows) * f64::from(self.cols)
    }

    /// Number of tiles that cover `channels × rows × cols` outputs.
    pub(super) fn count(&self, channels: u32, rows: u32, cols: u32) -> f64 {
        f64::from(channels.div_ceil(self.channels))
            * f64::from(rows.div_ceil(self.rows))
            * f64::from(cols.div_ceil(self.cols))
    }
}

/// The tiles to try: every combination, the first axis slowest.
#[derive(Clone, Copy)]
pub(super) struct TileGrid<'a> {
    pub(super) patches: &'a [u32],
    pub(super) channels: &'a [u32],
    pub(super) rows: &'a [u32],
    pub(super) cols: &'a [u32],
}

/// A tile and its cost in seconds, launch not included.
#[derive(Clone, Copy, Debug)]
pub(super) struct Choice {
    pub(super) tile: Tile,
    pub(super) compute_s: f64,
    pub(super) memory_s: f64,
}

impl Choice {
    /// Worse than every tile: where a search starts.
    pub(super) const NONE: Self = Self {
        tile: Tile { patches: 1, channels: 1, rows: 1, cols: 1 },
        compute_s: f64::INFINITY,
        memory_s: 0.0,
    };

    /// This choice or the first tile of `grid` that has the smallest compute + memory, if that is strictly smaller.
    pub(super) fn or_better(
        self,
        grid: TileGrid<'_>,
        compute: impl Fn(Tile) -> f64,
        memory: impl Fn(Tile) -> f64,
    ) -> Self {
        let mut best = self;
        let mut best_s = best.compute_s + best.memory_s;
        for &patches in grid.patches {
            for &channels in grid.channels {
                for &rows in grid.rows {
                    for &cols in grid.cols {
                        let tile = Tile { patches, channels, rows, cols };
                        let compute_s = compute(tile);
                        // Memory only adds: a tile that loses on compute alone has lost.
                        if compute_s >= best_s {
                            continue;
                        }
                        let memory_s = memory(tile);
                        if compute_s + memory_s < best_s {
                            best = Self { tile, compute_s, memory_s };
                            best_s = compute_s + memory_s;
                        }
                    }
                }
            }
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tile_sizes_of_small_and_large_extents() {
        assert_eq!(tile_sizes(1), [1, 2]);
        assert_eq!(tile_sizes(5), [1, 2, 3, 4, 5, 8]);
        assert_eq!(tile_sizes(14), [1, 2, 3, 4, 5, 6, 7, 8, 14, 16]);
        assert_eq!(tile_sizes(440).len(), 19);
    }

    #[test]
    fn a_tile_order_is_a_permutation() {
        let json = |list: &str| TileOrder::from_json(&format!(r#"{{"orders": {{"2": {list}}}}}"#));
        assert_eq!(json("[4, 1, 2]").unwrap().sizes(2), [4, 1, 2]);
        assert_eq!(json("[4, 1, 2]").unwrap().sizes(3), [1, 2, 3, 4]);
        assert!(matches!(json("[1, 2]"), Err(Error::TileOrder { extent: 2, .. })));
        assert!(matches!(TileOrder::from_json("[]"), Err(Error::Json { .. })));
        assert!(matches!(
            TileOrder::from_table(BTreeMap::from([(0, vec![])])),
            Err(Error::Size { value: 0, .. })
        ));
    }
}
