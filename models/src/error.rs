//! What can be wrong with a configuration, a spec, or a set of tensors.

use crate::parameters::Mismatch;

/// Why a network could not be described. Every message names the key, layer or tensor and its value.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No family and no preset has this name.
    #[error("unknown network `{name}`; known: {known}")]
    UnknownNetwork {
        /// What was asked for.
        name: String,
        /// Families and presets, separated by commas.
        known: String,
    },
    /// The configuration is not JSON or not an object.
    #[error("network configuration: {0}")]
    Json(#[from] serde_json::Error),
    /// A key that this network needs is absent.
    #[error("`{key}` is missing: {reason}")]
    Missing {
        /// Configuration key.
        key: &'static str,
        /// Who needs it and what to give.
        reason: String,
    },
    /// A key has a value that no network can have.
    #[error("`{key}` is {value}: {reason}")]
    Invalid {
        /// Configuration key, with the index of the stage where there is one.
        key: String,
        /// The value as the user wrote it.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A per-stage list that is not as long as the network has stages.
    #[error("`{key}` has {found} entries, the network has {stages} stages (give {stages}, or one for all)")]
    StageCount {
        /// Configuration key.
        key: &'static str,
        /// Entries in the list.
        found: usize,
        /// Stages of the network.
        stages: usize,
    },
    /// A channel granularity that does not divide the width it groups.
    #[error(
        "`channel_granularity[{stage}]` is {granularity}, which does not divide the {width} channels of {block}"
    )]
    ChannelGranularity {
        /// Stage, counted from 0.
        stage: usize,
        /// Channels in a group.
        granularity: usize,
        /// Inner width of the block.
        width: usize,
        /// Block name.
        block: String,
    },
    /// A spec whose parts do not fit together.
    #[error("{layer}: {reason}")]
    Spec {
        /// Block or layer name.
        layer: String,
        /// What does not fit, with both values.
        reason: String,
    },
    /// Tensor names that no known family has.
    #[error("the tensors are of no known network family ({known}): {reason}")]
    UnknownTensors {
        /// Families, separated by commas.
        known: String,
        /// What was looked for.
        reason: String,
    },
    /// A configuration key and the tensors say different things.
    #[error("`{key}` is given as {given}, but the tensors say {found}")]
    Contradiction {
        /// Configuration key.
        key: &'static str,
        /// Value in the configuration.
        given: String,
        /// Value that the tensor shapes imply.
        found: String,
    },
    /// Tensors that are missing, left over or of another shape than the network needs.
    #[error("{0}")]
    Tensors(Mismatch),
}

impl Error {
    pub(crate) fn invalid(
        key: impl Into<String>,
        value: impl std::fmt::Display,
        reason: impl Into<String>,
    ) -> Self {
        Self::Invalid { key: key.into(), value: value.to_string(), reason: reason.into() }
    }

    pub(crate) fn spec(layer: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Spec { layer: layer.into(), reason: reason.into() }
    }
}
