//! What an inference computed, skipped and took.

use laud_models::MapSize;
use serde::Serialize;

/// Longest branch of any family, convolutions.
pub const MAX_CONVS: usize = 3;

/// Record of one inference.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Trace {
    /// Samples.
    pub batch: usize,
    /// Those of them that went through the network: all that did not leave early.
    pub samples: usize,
    /// Early exits in front of the network, in the order in which they are asked.
    pub exits: Vec<ExitTrace>,
    /// One entry per block, in the order of execution. Samples that left early count as inactive.
    pub blocks: Vec<BlockTrace>,
    /// Multiply-accumulates of the stem with everything active, over the batch.
    pub stem_macs: u64,
    /// Multiply-accumulates behind the last block with everything active, over the batch.
    pub head_macs: u64,
    /// Times of the stem and of the head, when they were asked for.
    pub stem_ns: u64,
    /// See [`stem_ns`](Self::stem_ns).
    pub head_ns: u64,
    /// What watching over the plan found; `None` where the plan expects no times.
    pub watch: Option<Watch>,
}

/// Record of an early exit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ExitTrace {
    /// Size of the images that it looks at, pixels.
    pub size: MapSize,
    /// Samples that came to it.
    pub samples: usize,
    /// Of them it answered.
    pub answered: usize,
    /// Multiply-accumulates as executed, over the samples that came.
    pub macs: u64,
    /// Time of its network when times were asked for; else 0. Nanoseconds.
    pub ns: u64,
}

/// Expected against observed times of a plan, up to this inference.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Watch {
    /// What the plan expects of this inference, with what was active; nanoseconds.
    pub expected_ns: f64,
    /// Observed ÷ expected, lately: of the machine as a whole.
    pub drift: f64,
    /// The machine is not as it was calibrated: another clock, fewer cores, somebody else at work.
    pub drifted: bool,
    /// Blocks that run dense because gathering turned out slower.
    pub dense_blocks: usize,
}

/// Record of one block.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct BlockTrace {
    /// Patches that were kept, over the batch; all where the block has no such gate.
    pub patches: Count,
    /// Channel groups that were kept, over the batch.
    pub channel_groups: Count,
    /// Output pixels that each convolution of the branch computed, over the batch.
    pub rows: [u64; MAX_CONVS],
    /// Multiply-accumulates of the block's convolutions as executed, the halo included, over the batch. Gates are
    /// not counted, as in the literature.
    pub macs: u64,
    /// The same with everything active.
    pub dense_macs: u64,
    /// Whether patches were gathered, or all pixels computed.
    pub gathered: bool,
    /// Time of the gates, when times were asked for; else 0. Nanoseconds, as the others.
    pub gate_ns: u64,
    /// Time of compaction.
    pub compact_ns: u64,
    /// Time of everything else.
    pub compute_ns: u64,
}

/// Some of a total.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Count {
    /// Of which this many.
    pub active: usize,
    /// How many there are.
    pub total: usize,
}

impl BlockTrace {
    /// Sum of the recorded times, nanoseconds.
    pub fn total_ns(&self) -> u64 {
        self.gate_ns + self.compact_ns + self.compute_ns
    }

    /// Adds what further samples took.
    pub(super) fn add(&mut self, other: &BlockTrace) {
        self.patches.add(other.patches);
        self.channel_groups.add(other.channel_groups);
        self.rows.iter_mut().zip(other.rows).for_each(|(rows, other)| *rows += other);
        self.macs += other.macs;
        self.dense_macs += other.dense_macs;
        self.gathered |= other.gathered;
        self.gate_ns += other.gate_ns;
        self.compact_ns += other.compact_ns;
        self.compute_ns += other.compute_ns;
    }
}

impl Count {
    fn add(&mut self, other: Count) {
        self.active += other.active;
        self.total += other.total;
    }

    /// `active / total`; 1 of nothing.
    pub fn density(self) -> f64 {
        if self.total == 0 { 1.0 } else { self.active as f64 / self.total as f64 }
    }
}

impl Trace {
    /// Multiply-accumulates of everything as executed, early exits included, over the batch.
    pub fn macs(&self) -> u64 {
        let around = self.around_macs() / self.batch.max(1) as u64 * self.samples as u64;
        let exits = self.exits.iter().map(|exit| exit.macs).sum::<u64>();
        exits + around + self.blocks.iter().map(|block| block.macs).sum::<u64>()
    }

    /// The network's own with everything active and nobody leaving early.
    pub fn dense_macs(&self) -> u64 {
        self.around_macs() + self.blocks.iter().map(|block| block.dense_macs).sum::<u64>()
    }

    /// Of stem and head.
    fn around_macs(&self) -> u64 {
        self.stem_macs + self.head_macs
    }

    /// As if nobody had looked at the clock.
    pub(super) fn forget_times(&mut self) {
        (self.stem_ns, self.head_ns) = (0, 0);
        for block in &mut self.blocks {
            (block.gate_ns, block.compact_ns, block.compute_ns) = (0, 0, 0);
        }
    }

    /// Sum of the recorded times, nanoseconds.
    pub fn total_ns(&self) -> u64 {
        let exits = self.exits.iter().map(|exit| exit.ns).sum::<u64>();
        exits + self.stem_ns + self.head_ns + self.blocks.iter().map(BlockTrace::total_ns).sum::<u64>()
    }
}
