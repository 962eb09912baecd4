use super::device::DeviceSpec;
use super::efficiency::occupancy;
use super::tiles::{Choice, TileOrder};
use super::{Latency, Transactions};

/// A device at work on a batch: the constants in the units of the cost formulas, which are in `static_ops` and
/// `dynamic_ops`. A *value* is an fp32 number.
pub(super) struct Machine<'a> {
    /// Multiprocessors.
    pub(super) multiprocessors: f64,
    /// fp32 lanes of one multiprocessor.
    pub(super) lanes: f64,
    /// Operations that fill one multiprocessor: lanes × cycles in flight.
    pub(super) slots: f64,
    /// Clock, in Hz.
    pub(super) clock: f64,
    /// DRAM bandwidth, in values per second.
    pub(super) dram: f64,
    /// L2 bandwidth, in values per second.
    pub(super) l2: f64,
    /// Values that one memory transaction moves.
    pub(super) transaction: u32,
    /// Time of one launch, in seconds.
    pub(super) launch_s: f64,
    /// Samples in the batch.
    pub(super) batch: f64,
    /// Order in which tiles are tried.
    pub(super) order: &'a TileOrder,
}

/// Bytes of one fp32 value.
const VALUE_BYTES: f64 = 4.0;

impl<'a> Machine<'a> {
    pub(super) fn new(
        device: &DeviceSpec,
        transactions: Transactions,
        order: &'a TileOrder,
        batch: u32,
    ) -> Self {
        let dram = device.dram_bytes_per_s / VALUE_BYTES;
        Self {
            multiprocessors: f64::from(device.multiprocessors),
            lanes: f64::from(device.lanes),
            slots: f64::from(device.lanes) * f64::from(device.fp32_cycles),
            clock: device.clock_hz,
            dram,
            l2: dram * device.l2_bandwidth_ratio,
            transaction: transactions.values(),
            launch_s: device.launch_s,
            batch: f64::from(batch),
            order,
        }
    }

    /// Rounds that `tiles` tiles take on all multiprocessors.
    pub(super) fn rounds(&self, tiles: f64) -> f64 {
        (tiles / self.multiprocessors).ceil()
    }

    /// A chosen tile's cost as one launch.
    pub(super) fn launched(&self, choice: Choice) -> Latency {
        Latency { compute_s: choice.compute_s, memory_s: choice.memory_s, launch_s: self.launch_s }
    }

    /// Pairwise reduction of `count` values in each of `channels` channels, for the batch; in seconds.
    pub(super) fn reduction_s(&self, channels: u32, count: u64) -> f64 {
        let mut left = count.div_ceil(2);
        let mut time = 0.0;
        while left > 1 {
            let work = left as f64 * f64::from(channels);
            time += (work / self.lanes).ceil() / occupancy(work, self.slots) / self.clock;
            left = left.div_ceil(2);
        }
        time * self.batch
    }
}
