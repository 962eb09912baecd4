//! The one gating abstraction: **who decides** which units of a block are computed.
//!
//! A gate's arithmetic yields a margin per unit ([`laud_kernels::gate`]); a [`Policy`] turns margins into decisions.
//! The learned rule keeps where the margin is not negative. Other policies move the threshold or ignore the margins;
//! the executor neither knows nor cares, it computes what is kept.

mod budget;
mod given;
mod random_rate;
mod ranked;
mod threshold;
mod top;

pub use budget::{Budget, Price, Prices};
pub use given::{Given, Pattern, Recorded};
pub use random_rate::RandomRate;
pub use ranked::{BlockScores, Ranked, ScoredBy, Scores};
pub use threshold::Threshold;
pub use top::{Amount, Top};

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

/// Turns margins into decisions.
pub trait Policy: Send + Sync {
    /// Name shown to users.
    fn name(&self) -> &str;

    /// What the decisions depend on. Asked once in every inference.
    fn rule(&self) -> Rule<'_>;
}

/// What decisions depend on. All of them can be followed without waiting for a device to tell its margins.
#[derive(Clone, Copy)]
pub enum Rule<'a> {
    /// Keep where the margin, how far a unit's keep logit lies above its skip logit, is at least `at_least`.
    Margin {
        /// The smallest margin that is kept.
        at_least: f32,
    },
    /// Of each gate, keep the same number of units in every sample: those with the highest margins. On the CPU.
    Top(Amount),
    /// Keep the highest margins, as far as a sample can pay for units. On the CPU.
    Paid(&'a Prices),
    /// Decided beforehand, whatever the margins.
    Given(&'a dyn Decisions),
}

/// Decisions that do not look at margins.
pub trait Decisions: Send + Sync {
    /// Decides: `keep` is `[batch, per_sample]`. Called for every gate and every few samples, on the leading thread.
    fn decide(&self, units: Units, keep: &mut [bool]);
}

/// The trained rule: keep where `margin >= 0`, ties included (LAUDNet, `Masker_spatial` and `Masker_channel_*`).
#[derive(Clone, Copy, Debug, Default)]
pub struct Learned;

impl Policy for Learned {
    fn name(&self) -> &str {
        "learned"
    }

    fn rule(&self) -> Rule<'_> {
        Rule::Margin { at_least: 0.0 }
    }
}

/// Keeps everything: the static network, with its gates evaluated.
#[derive(Clone, Copy, Debug, Default)]
pub struct Always;

impl Policy for Always {
    fn name(&self) -> &str {
        "always"
    }

    fn rule(&self) -> Rule<'_> {
        Rule::Given(self)
    }
}

impl Decisions for Always {
    fn decide(&self, _units: Units, keep: &mut [bool]) {
        keep.fill(true);
    }
}

/// Keeps nothing: the shortcuts, and the biases behind masked channels.
#[derive(Clone, Copy, Debug, Default)]
pub struct Never;

impl Policy for Never {
    fn name(&self) -> &str {
        "never"
    }

    fn rule(&self) -> Rule<'_> {
        Rule::Given(self)
    }
}

impl Decisions for Never {
    fn decide(&self, _units: Units, keep: &mut [bool]) {
        keep.fill(false);
    }
}
