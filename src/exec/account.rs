//! What a block computed, told from its decisions and its numbers of rows.

use super::block::schedule;
use super::network::{Block, PreparedShortcut};
use super::trace::{BlockTrace, Count};
use super::workspace::Slot;
use crate::plan::BlockPlan;
use laud_kernels::Backend;

/// Decisions and numbers of rows of all blocks, as an inference of `batch` samples left them.
#[derive(Clone, Copy)]
pub(super) struct Records<'a> {
    pub(super) batch: usize,
    pub(super) keep: &'a [bool],
    pub(super) starts: &'a [u32],
}

impl<'a> Records<'a> {
    /// Decisions about patches of a block, `[batch, cells]`; none where it has no such gate.
    pub(super) fn patches<B: Backend>(&self, block: &Block<B>, slot: Slot) -> &'a [bool] {
        let cells = block.patch_gate.as_ref().map_or(0, |gate| gate.cells());
        &self.keep[slot.patches..][..self.batch * cells]
    }

    /// Decisions about channel groups, `[batch, groups]`.
    pub(super) fn groups<B: Backend>(&self, block: &Block<B>, slot: Slot) -> &'a [bool] {
        let groups = block.channel_gate.as_ref().map_or(0, |gate| gate.groups);
        &self.keep[slot.groups..][..self.batch * groups]
    }

    /// Everything about a block but its times.
    pub(super) fn trace<B: Backend>(&self, (block, plan, slot): (&Block<B>, &BlockPlan, Slot)) -> BlockTrace {
        let count =
            |keep: &[bool]| Count { active: keep.iter().filter(|keep| **keep).count(), total: keep.len() };
        let patches = match block.patch_gate {
            Some(_) => count(self.patches(block, slot)),
            None => Count { active: self.batch, total: self.batch },
        };
        let mut trace = BlockTrace {
            patches,
            channel_groups: count(self.groups(block, slot)),
            gathered: schedule(plan).gathers(patches.active, patches.total),
            ..BlockTrace::default()
        };
        for i in 0..block.convs.len() {
            trace.dense_macs += (self.batch * block.convs[i].macs()) as u64;
            for n in 0..self.batch {
                let rows = self.rows(block, slot, i, n);
                trace.rows[i] += rows as u64;
                trace.macs += rows as u64 * self.macs_per_row(block, slot, i, n);
            }
        }
        if let PreparedShortcut::Projection(conv) = &block.shortcut {
            trace.macs += (self.batch * conv.macs()) as u64;
            trace.dense_macs += (self.batch * conv.macs()) as u64;
        }
        trace
    }

    /// Rows of convolution `i` in sample `n`, as listed.
    fn rows<B: Backend>(&self, block: &Block<B>, slot: Slot, i: usize, n: usize) -> usize {
        let starts = &self.starts[slot.starts + i * (self.batch + 1) + n..];
        match block.patch_gate {
            Some(_) => (starts[1] - starts[0]) as usize,
            None => block.convs[i].geometry.output.pixels(),
        }
    }

    /// Multiply-accumulates of each of them.
    fn macs_per_row<B: Backend>(&self, block: &Block<B>, slot: Slot, i: usize, n: usize) -> u64 {
        let g = &block.convs[i].geometry;
        let inner = block.channel_gate.as_ref().map(|gate| {
            let keep = &self.groups(block, slot)[n * gate.groups..][..gate.groups];
            Inner { keep, group: gate.group_size }
        });
        let (inputs, outputs) = (inner.filter(|_| i > 0), inner.filter(|_| i + 1 < block.convs.len()));
        let pairs = match (inputs, outputs) {
            (None, None) => g.c_out * g.group_in(),
            (None, Some(outputs)) => outputs.count() * g.group_in(),
            (Some(inputs), None) => inputs.count() * g.group_out(),
            (Some(inner), Some(_)) if g.groups > 1 => inner.pairs(g.group_in(), g.group_out()),
            (Some(inner), Some(_)) => inner.count() * inner.count(),
        };
        (g.kernel * g.kernel * pairs) as u64
    }
}

/// Active channels inside a branch, in groups.
#[derive(Clone, Copy)]
struct Inner<'a> {
    keep: &'a [bool],
    group: usize,
}

impl Inner<'_> {
    fn count(self) -> usize {
        self.group * self.keep.iter().filter(|keep| **keep).count()
    }

    /// Active input × output channels that share a group of the convolution, where the same channels are active on both
    /// sides.
    fn pairs(self, group_in: usize, group_out: usize) -> usize {
        let channels = self.group * self.keep.len();
        (0..channels)
            .step_by(group_in)
            .map(|first| (first..first + group_in).filter(|c| self.keep[c / self.group]).count())
            .map(|active| active * active * group_out / group_in)
            .sum()
    }
}
