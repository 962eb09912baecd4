//! Operators that compute active patches only. Their tile is chosen once, at the mean number of patches, and then
//! costed at the actual number.
//!
//! Source: LAUDNet repository, DyNetSimulator/hardware_models/dynamic_conv.py and multi_cores.py.

use super::conv::ConvShape;
use super::efficiency::{coalescing, occupancy};
use super::machine::Machine;
use super::operator::PatchInput;
use super::static_ops::map_values;
use super::tiles::{Choice, Tile, TileGrid};
use crate::Density;

/// Most patches of any tile of a dynamic convolution that are computed side by side.
const MAX_PARALLEL_PATCHES: u32 = 256;

/// A square map of `size`² positions cut into patches of `patch`² positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Patches {
    pub(super) size: u32,
    pub(super) patch: u32,
}

impl Patches {
    /// All patches of the map, the ragged ones at its edge included.
    pub(super) fn total(&self) -> u32 {
        let side = self.size.div_ceil(self.patch);
        side * side
    }

    /// Patches executed at a density: a whole number, rounded up.
    pub(super) fn active(&self, density: Density) -> f64 {
        let side = f64::from(self.size.div_ceil(self.patch));
        (density.get() * side * side).ceil()
    }

    /// Mean of 1 to [`Patches::total`]: the number of patches that tiles are chosen for.
    fn mean(&self) -> f64 {
        (f64::from(self.total()) + 1.0) / 2.0
    }
}

impl Machine<'_> {
    /// Best tile of a convolution over patches of its output.
    pub(super) fn patch_conv(&self, conv: &ConvShape, patches: Patches, input: PatchInput) -> Tile {
        let mean = patches.mean();
        let axis = self.order.sizes(patches.patch);
        let grid = TileGrid {
            patches: &self.order.sizes(MAX_PARALLEL_PATCHES),
            channels: &self.order.sizes(conv.out_channels),
            rows: &axis,
            cols: &axis,
        };
        let best = Choice::NONE.or_better(
            grid,
            |tile| self.patch_conv_compute_s(conv, patches, mean, tile),
            |tile| self.patch_conv_memory_s(conv, patches, input, mean, tile),
        );
        best.tile
    }

    /// Cost of a convolution over `active` patches with a given tile.
    pub(super) fn patch_conv_at(
        &self,
        conv: &ConvShape,
        patches: Patches,
        input: PatchInput,
        active: f64,
        tile: Tile,
    ) -> Choice {
        Choice {
            tile,
            compute_s: self.patch_conv_compute_s(conv, patches, active, tile),
            memory_s: self.patch_conv_memory_s(conv, patches, input, active, tile),
        }
    }

    fn patch_conv_compute_s(&self, conv: &ConvShape, patches: Patches, active: f64, tile: Tile) -> f64 {
        let parallel = f64::from(tile.patches);
        let tiles = tile.count(conv.out_channels, patches.patch, patches.patch);
        tile.volume() * conv.macs_per_output() * parallel
            / self.clock
            / self.lanes
            / occupancy(tile.volume() * self.batch * parallel, self.slots)
            * (active / parallel).ceil()
            * self.batch
            * self.rounds(tiles)
    }

    /// Unlike that of the dense operators, this traffic is free of transaction effects in the official model.
    fn patch_conv_memory_s(
        &self,
        conv: &ConvShape,
        patches: Patches,
        input: PatchInput,
        active: f64,
        tile: Tile,
    ) -> f64 {
        let on_chip = (conv.tile_weights(&tile)
            + conv.tile_inputs(&tile) * active * self.batch
            + tile.volume() * active * self.batch)
            * tile.count(conv.out_channels, patches.patch, patches.patch);
        let input_values = match input {
            PatchInput::Indexed => conv.input_values(),
            PatchInput::Gathered => {
                let side = f64::from(patches.patch + conv.kernel - 1) * f64::from(conv.stride);
                active * f64::from(conv.in_channels) * side * side
            }
        };
        let dram_values = conv.weights()
            + input_values * self.batch
            + active * map_values(conv.out_channels, patches.patch) * self.batch;
        dram_values / self.dram + on_chip / self.l2
    }

    /// Best tile of adding computed patches to a residual map.
    pub(super) fn scatter_add(&self, channels: u32, patches: Patches) -> Tile {
        let active = patches.mean();
        let axis = self.order.sizes(patches.patch);
        let grid = TileGrid {
            patches: &self.order.sizes(patches.total()),
            channels: &self.order.sizes(channels),
            rows: &axis,
            cols: &axis,
        };
        let best = Choice::NONE.or_better(
            grid,
            |tile| self.scatter_add_compute_s(channels, patches, active, tile),
            |tile| self.scatter_add_memory_s(channels, patches, active, tile),
        );
        best.tile
    }

    /// Cost of adding `active` patches to a residual map with a given tile.
    pub(super) fn scatter_add_at(&self, channels: u32, patches: Patches, active: f64, tile: Tile) -> Choice {
        Choice {
            tile,
            compute_s: self.scatter_add_compute_s(channels, patches, active, tile),
            memory_s: self.scatter_add_memory_s(channels, patches, active, tile),
        }
    }

    fn scatter_add_compute_s(&self, channels: u32, patches: Patches, active: f64, tile: Tile) -> f64 {
        let parallel = f64::from(tile.patches);
        tile.volume() * parallel
            / self.clock
            / self.lanes
            / occupancy(tile.volume() * self.batch * parallel, self.slots)
            * (active / parallel).ceil()
            * self.batch
            * self.rounds(tile.count(channels, patches.patch, patches.patch))
    }

    /// Reads the computed patches and the whole residual map, writes the whole map.
    fn scatter_add_memory_s(&self, channels: u32, patches: Patches, active: f64, tile: Tile) -> f64 {
        let on_chip =
            3.0 * tile.volume() * active * tile.count(channels, patches.patch, patches.patch) * self.batch;
        let dram_values = (active * map_values(channels, patches.patch)
            + 2.0 * map_values(channels, patches.size))
            * self.batch;
        let gap = patches.patch.saturating_sub(tile.cols);
        dram_values / self.dram + on_chip / self.l2 / coalescing(tile.cols, gap, self.transaction)
    }

    /// Best tile of averaging computed patches per channel (the first step of squeeze-excitation).
    pub(super) fn patch_pool(&self, channels: u32, patches: Patches) -> Tile {
        let active = patches.mean();
        let axis = self.order.sizes(patches.patch);
        let grid = TileGrid {
            patches: &self.order.sizes(patches.total()),
            channels: &self.order.sizes(channels),
            rows: &axis,
            cols: &axis,
        };
        let best = Choice::NONE.or_better(
            grid,
            // The search reduces over the tiles of one patch, the final cost over those of the map.
            |tile| self.patch_pool_compute_s(channels, patches, patches.patch, active, tile),
            |tile| self.patch_pool_memory_s(channels, patches, active, tile),
        );
        best.tile
    }

    /// Cost of averaging `active` patches per channel with a given tile.
    pub(super) fn patch_pool_at(&self, channels: u32, patches: Patches, active: f64, tile: Tile) -> Choice {
        Choice {
            tile,
            compute_s: self.patch_pool_compute_s(channels, patches, patches.size, active, tile),
            memory_s: self.patch_pool_memory_s(channels, patches, active, tile),
        }
    }

    fn patch_pool_compute_s(
        &self,
        channels: u32,
        patches: Patches,
        reduced_size: u32,
        active: f64,
        tile: Tile,
    ) -> f64 {
        let parallel = f64::from(tile.patches);
        let width = f64::from(tile.channels);
        let within =
            tile.volume() * parallel / self.clock / self.lanes / occupancy(width * parallel, self.slots)
                * (active / parallel).ceil();
        let across = width * parallel / self.clock / self.lanes / occupancy(width, self.slots);
        let partial_sums =
            u64::from(reduced_size.div_ceil(tile.rows)) * u64::from(reduced_size.div_ceil(tile.cols));
        (within + across) * self.batch * self.rounds(tile.count(channels, patches.patch, patches.patch))
            + self.reduction_s(tile.channels, partial_sums)
    }

    fn patch_pool_memory_s(&self, channels: u32, patches: Patches, active: f64, tile: Tile) -> f64 {
        let width = f64::from(tile.channels);
        let partial_sums =
            f64::from(patches.size.div_ceil(tile.rows)) * f64::from(patches.size.div_ceil(tile.cols));
        let on_chip = (tile.volume() * active + width) * tile.count(channels, patches.patch, patches.patch)
            + width * partial_sums
            + width;
        let dram_values = active * map_values(channels, patches.patch) + map_values(channels, patches.size);
        let gap = patches.patch.saturating_sub(tile.cols);
        (dram_values / self.dram + on_chip / self.l2 / coalescing(tile.cols, gap, self.transaction))
            * self.batch
    }
}
