//! Operators that compute the whole map: what each tile costs, and the search for the best one.
//!
//! Source: LAUDNet repository, DyNetSimulator/hardware_models/static_predictor.py.

use super::Latency;
use super::conv::ConvShape;
use super::efficiency::{coalescing, fullest_tile, occupancy};
use super::machine::Machine;
use super::tiles::{Choice, TileGrid};
use crate::Density;

impl Machine<'_> {
    /// Dense convolution whose input and output channels are active at densities `input` and `output`.
    pub(super) fn conv(&self, conv: &ConvShape, input: Density, output: Density) -> Choice {
        let size = conv.out_size();
        let active = input * output;
        let (input, output) = (input.get(), output.get());
        // The weights of inactive channels can only be left out where all samples agree: in a batch of one.
        let (weight_density, weight_rows) =
            if self.batch == 1.0 { (active.get(), output) } else { (1.0, 1.0) };
        let dram_values = conv.weights() * weight_rows
            + conv.input_values() * self.batch * input
            + conv.output_values() * self.batch * output;
        let axis = self.order.sizes(size);
        let mut best = Choice::NONE;
        for channels in self.order.sizes(conv.out_channels) {
            let fullest = fullest_tile(conv.out_channels.div_ceil(channels), channels, active);
            let grid = TileGrid { patches: &[1], channels: &[channels], rows: &axis, cols: &axis };
            best = best.or_better(
                grid,
                |tile| {
                    let outputs = tile.volume();
                    let tiles = tile.count(conv.out_channels, size, size);
                    outputs * conv.macs_per_output() * self.batch / self.clock / self.lanes * input * fullest
                        / occupancy(outputs, self.slots)
                        * self.rounds(tiles)
                },
                |tile| {
                    let on_chip = (conv.tile_weights(&tile) * weight_density
                        + conv.tile_inputs(&tile) * input * self.batch
                        + tile.volume() * output * self.batch)
                        * tile.count(conv.out_channels, size, size);
                    let gap = size.saturating_sub(tile.cols);
                    dram_values / self.dram + on_chip / self.l2 / coalescing(tile.cols, gap, self.transaction)
                },
            );
        }
        best
    }

    /// Elementwise addition of two maps. Its traffic has no L2 term in the official model.
    pub(super) fn add(&self, channels: u32, size: u32) -> Choice {
        let axis = self.order.sizes(size);
        let grid =
            TileGrid { patches: &[1], channels: &self.order.sizes(channels), rows: &axis, cols: &axis };
        Choice::NONE.or_better(
            grid,
            |tile| {
                let values = tile.volume();
                values / self.clock / self.lanes / occupancy(values, self.slots)
                    * self.rounds(tile.count(channels, size, size))
                    * self.batch
            },
            |tile| 3.0 * tile.volume() / self.dram * tile.count(channels, size, size) * self.batch,
        )
    }

    /// Product of every channel of a map with one factor (the last step of squeeze-excitation).
    pub(super) fn multiply(&self, channels: u32, size: u32) -> Choice {
        let axis = self.order.sizes(size);
        let grid =
            TileGrid { patches: &[1], channels: &self.order.sizes(channels), rows: &axis, cols: &axis };
        let dram_values = 2.0 * map_values(channels, size) + f64::from(channels);
        Choice::NONE.or_better(
            grid,
            |tile| {
                let values = tile.volume();
                values / self.clock / self.lanes / occupancy(values, self.slots)
                    * self.rounds(tile.count(channels, size, size))
                    * self.batch
            },
            |tile| {
                let on_chip =
                    (2.0 * tile.volume() + f64::from(tile.channels)) * tile.count(channels, size, size);
                let gap = size.saturating_sub(tile.cols);
                (dram_values / self.dram + on_chip / self.l2 / coalescing(tile.cols, gap, self.transaction))
                    * self.batch
            },
        )
    }

    /// Global average pool of squeeze-excitation: one position per tile, then a pairwise reduction.
    pub(super) fn global_pool(&self, channels: u32, size: u32) -> Choice {
        let channel_tiles: Vec<u32> = (0..8).map(|k| 1 << k).filter(|&tile| tile <= 2 * channels).collect();
        let positions = u64::from(size) * u64::from(size);
        let grid = TileGrid { patches: &[1], channels: &channel_tiles, rows: &[1], cols: &[1] };
        Choice::NONE.or_better(
            grid,
            |tile| {
                let values = tile.volume();
                // The batch multiplies the reduction but not this first pass, as in the official model.
                values / self.clock / self.lanes / occupancy(values, self.slots)
                    * self.rounds(tile.count(channels, size, size))
                    + self.reduction_s(tile.channels, positions)
            },
            |tile| {
                let values = f64::from(tile.channels);
                let first = (values / self.dram + values / self.l2) * tile.count(channels, size, size);
                let second = (values * positions as f64 / self.l2 + values / self.l2)
                    * f64::from(channels.div_ceil(tile.channels));
                (first + second) * self.batch
            },
        )
    }

    /// Linear layer. As in the official model, tiles are counted as the product of the tile's sides and the weights
    /// are read once per sample.
    pub(super) fn linear(&self, inputs: u32, outputs: u32) -> Choice {
        let (a, b) = (f64::from(inputs), f64::from(outputs));
        let dram_values = (a * b + a + b) * self.batch;
        let grid = TileGrid {
            patches: &[1],
            channels: &self.order.sizes(outputs),
            rows: &[1],
            cols: &self.order.sizes(inputs),
        };
        Choice::NONE.or_better(
            grid,
            |tile| {
                let macs = tile.volume();
                macs * self.batch / self.clock / self.lanes / occupancy(macs * self.batch, self.slots)
                    * self.rounds(macs)
            },
            |tile| {
                let macs = tile.volume();
                let on_chip = (macs + f64::from(tile.cols) + f64::from(tile.channels)) * macs * self.batch;
                dram_values / self.dram + on_chip / self.l2 / coalescing(tile.cols, inputs, self.transaction)
            },
        )
    }

    /// Average pool of the channel masker down to one position: traffic only.
    pub(super) fn avg_pool(&self, channels: u32, size: u32) -> Latency {
        let values = (map_values(channels, size) + f64::from(channels)) * self.batch;
        Latency { compute_s: 0.0, memory_s: values / self.dram + values / self.l2, launch_s: self.launch_s }
    }
}

/// Values of a square map: `channels · size²`.
pub(super) fn map_values(channels: u32, size: u32) -> f64 {
    f64::from(channels) * f64::from(size) * f64::from(size)
}
