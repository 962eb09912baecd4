//! The zero-shot latency prior: an analytical model of a GPU, after the official LAUDNet simulator.
//!
//! A device is a number of equal multiprocessors, each with a number of fp32 lanes, in front of an L2 and a DRAM
//! ([`DeviceSpec`]). An operator is cut into tiles, one per thread block; the model tries a set of tile sizes and keeps
//! the one with the least compute + memory time. Compute pays for idle lanes and for the last, partly filled round of
//! tiles; memory pays DRAM traffic once and on-chip traffic per tile; every operator pays a fixed launch. A block is the
//! sum of its operators ([`Block::operators`]), a [`Network`] the sum of its residual blocks.
//!
//! The numbers are the official ones (LAUDNet repository, DyNetSimulator/; arXiv 2308.15949), its simplifications
//! included: fp32, no overlap between operators, no halo around the active patches in conv1, the same number of active
//! patches in every sample. [`Prior`] memoises the tile search, so sweeping densities is cheap.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::{Density, Error, Result};

mod block;
mod conv;
mod device;
mod dynamic_ops;
mod efficiency;
mod latency;
mod machine;
mod mode;
mod network;
mod operator;
mod search;
mod static_ops;
mod sweep;
mod tiles;

pub use block::{BlockLatency, BlockOperator};
pub use conv::ConvShape;
pub use device::DeviceSpec;
pub use latency::Latency;
pub use mode::{BlockMode, Mode};
pub use network::{Block, Network, RegNetStage};
pub use operator::{MaskerLayers, Operator, PatchInput};
pub use sweep::SweepRow;
pub use tiles::TileOrder;

use machine::Machine;
use search::Search;
use tiles::Choice;

/// Whether scattered reads waste parts of memory transactions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transactions {
    /// A transaction moves 8 fp32 values, needed or not (the official default).
    #[default]
    Whole,
    /// Every value moves on its own, so nothing is wasted (the official flag `--consider_mem_concurrent_fp32`, which
    /// does the opposite of its name).
    Single,
}

impl Transactions {
    /// fp32 values per transaction.
    fn values(self) -> u32 {
        match self {
            Self::Whole => 8,
            Self::Single => 1,
        }
    }
}

/// Largest sizes for which the model's integer arithmetic is exact.
struct Limits {
    channels: u32,
    size: u32,
    extent: u32,
    batch: u32,
    depth: u32,
}

const LIMITS: Limits =
    Limits { channels: 1 << 16, size: 1 << 12, extent: 1 << 24, batch: 1 << 20, depth: 1 << 12 };

impl Limits {
    fn channels(&self, what: &'static str, value: u32) -> Result<()> {
        within(what, value, self.channels)
    }

    fn size(&self, what: &'static str, value: u32) -> Result<()> {
        within(what, value, self.size)
    }

    fn batch(&self, value: u32) -> Result<()> {
        within("batch", value, self.batch)
    }

    fn depth(&self, value: u32) -> Result<()> {
        within("blocks of a stage", value, self.depth)
    }
}

fn within(what: &'static str, value: u32, max: u32) -> Result<()> {
    if (1..=max).contains(&value) { Ok(()) } else { Err(Error::Size { what, value, max }) }
}

/// Latency predictions for one device, without a measurement. Owns the cache of its tile searches; may be shared between
/// threads.
#[derive(Debug)]
pub struct Prior {
    device: DeviceSpec,
    transactions: Transactions,
    order: TileOrder,
    searches: Mutex<HashMap<(Search, u32), Choice>>,
}

/// Searches kept at most. A sweep of a network needs a few hundred; only channel densities add new ones without end.
const MAX_SEARCHES: usize = 1 << 16;

impl Prior {
    /// A prior for `device`, with [`Transactions::Whole`] and ascending tile order; an error if a constant of the device
    /// is not finite and positive.
    pub fn new(device: DeviceSpec) -> Result<Self> {
        device.validate()?;
        Ok(Self {
            device,
            transactions: Transactions::default(),
            order: TileOrder::default(),
            searches: Mutex::default(),
        })
    }

    /// The same prior with another model of memory transactions.
    pub fn with_transactions(self, transactions: Transactions) -> Self {
        Self { transactions, searches: Mutex::default(), ..self }
    }

    /// The same prior with another order of trying tiles.
    pub fn with_tile_order(self, order: TileOrder) -> Self {
        Self { order, searches: Mutex::default(), ..self }
    }

    /// The device.
    pub fn device(&self) -> &DeviceSpec {
        &self.device
    }

    /// Latency of one operator for a batch of `batch` samples.
    pub fn operator(&self, operator: &Operator, batch: u32) -> Result<Latency> {
        LIMITS.batch(batch)?;
        operator.validate()?;
        Ok(self.cost(operator, &self.machine(batch)))
    }

    /// Latency of one block in `mode` at `density`, operator by operator, for a batch of `batch` samples.
    pub fn block(
        &self,
        block: &Block,
        mode: BlockMode,
        density: Density,
        batch: u32,
    ) -> Result<BlockLatency> {
        LIMITS.batch(batch)?;
        block.validate()?;
        let machine = self.machine(batch);
        let operators = block
            .operators(mode, density)
            .into_iter()
            .map(|part| {
                part.operator.validate()?;
                Ok((part, self.cost(&part.operator, &machine) * part.probability))
            })
            .collect::<Result<_>>()?;
        Ok(BlockLatency { operators })
    }

    /// Latency of a network's residual blocks, all in the same mode and at the same density, for a batch of `batch`
    /// samples.
    pub fn network(&self, network: &Network, mode: &Mode, density: Density, batch: u32) -> Result<Latency> {
        mode.validate(network)?;
        let per_block: Vec<_> = network
            .blocks()
            .iter()
            .filter_map(|block| Some((mode.of_stage(block.stage)?, density)))
            .collect();
        self.blocks(network, &per_block, batch)
    }

    /// Latency of a network's residual blocks with a mode and a density for each, for a batch of `batch` samples.
    pub fn blocks(
        &self,
        network: &Network,
        per_block: &[(BlockMode, Density)],
        batch: u32,
    ) -> Result<Latency> {
        if per_block.len() != network.blocks().len() {
            return Err(Error::Count {
                what: "modes and densities",
                network: network.name().to_owned(),
                expected: network.blocks().len(),
                found: per_block.len(),
            });
        }
        network
            .blocks()
            .iter()
            .zip(per_block)
            .map(|(block, &(mode, density))| Ok(self.block(block, mode, density, batch)?.total()))
            .sum()
    }

    fn machine(&self, batch: u32) -> Machine<'_> {
        Machine::new(&self.device, self.transactions, &self.order, batch)
    }

    fn cost(&self, operator: &Operator, machine: &Machine<'_>) -> Latency {
        operator.cost(machine, &|search| self.choice(search, machine))
    }

    fn choice(&self, search: Search, machine: &Machine<'_>) -> Choice {
        let key = (search, machine.batch as u32);
        // A panic elsewhere cannot leave half an entry behind, so a poisoned cache is still good.
        if let Some(&choice) = self.searches.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return choice;
        }
        let choice = search.run(machine);
        let mut searches = self.searches.lock().unwrap_or_else(PoisonError::into_inner);
        if searches.len() >= MAX_SEARCHES {
            searches.clear();
        }
        searches.insert(key, choice);
        choice
    }
}
