//! The one gating abstraction: **who decides** which units of a block are computed.
//!
//! A gate's arithmetic yields a margin per unit ([`laud_kernels::gate`]); a [`Policy`] turns margins into decisions.
//! The learned rule keeps where the margin is not negative. Other policies ignore or reinterpret the margins; the
//! executor neither knows nor cares, it computes what is kept.

mod given;

pub use given::{Given, Pattern, Recorded};

/// What a policy decides about in one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Units {
    /// Block, counted from 0 in the order of execution.
    pub block: usize,
    /// Whether units are patches or channel groups.
    pub kind: UnitKind,
    /// The first sample's number in the inference: large batches are run a few samples at a time.
    pub first: usize,
    /// Samples.
    pub batch: usize,
    /// Units of one sample.
    pub per_sample: usize,
}

/// What a unit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum UnitKind {
    /// A cell of the mask grid; the whole map where the grid is 1×1 (layer skipping).
    Patch,
    /// A group of consecutive channels.
    ChannelGroup,
}

/// Turns margins into decisions. Called for every gate and every few samples, on the leading thread.
pub trait Policy: Send + Sync {
    /// Name shown to users.
    fn name(&self) -> &str;

    /// Decides: `keep` and `margins` are `[batch, per_sample]`. A margin is how far a unit's keep logit lies above
    /// its skip logit.
    fn decide(&self, units: Units, margins: &[f32], keep: &mut [bool]);
}

/// The trained rule: keep where `margin >= 0`, ties included (LAUDNet, `Masker_spatial` and `Masker_channel_*`).
#[derive(Clone, Copy, Debug, Default)]
pub struct Learned;

impl Policy for Learned {
    fn name(&self) -> &str {
        "learned"
    }

    fn decide(&self, _units: Units, margins: &[f32], keep: &mut [bool]) {
        keep.iter_mut().zip(margins).for_each(|(keep, margin)| *keep = *margin >= 0.0);
    }
}

/// Keeps everything: the static network, with its gates evaluated.
#[derive(Clone, Copy, Debug, Default)]
pub struct Always;

impl Policy for Always {
    fn name(&self) -> &str {
        "always"
    }

    fn decide(&self, _units: Units, _margins: &[f32], keep: &mut [bool]) {
        keep.fill(true);
    }
}
