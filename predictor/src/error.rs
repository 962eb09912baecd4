use std::path::PathBuf;

/// What a caller of this crate can get wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A density is not a number in `0..=1`.
    #[error("density {value} is not in 0..=1")]
    Density {
        /// The rejected value.
        value: f64,
    },
    /// A count or size is zero or larger than the model's arithmetic is exact for.
    #[error("{what} = {value} is not in 1..={max}")]
    Size {
        /// What the number counts.
        what: &'static str,
        /// The rejected value.
        value: u32,
        /// Largest accepted value.
        max: u32,
    },
    /// A number of channels is not a multiple of the number of convolution groups.
    #[error("{channels} channels do not divide into {groups} groups")]
    Groups {
        /// Number of channels.
        channels: u32,
        /// Number of convolution groups.
        groups: u32,
    },
    /// A name is not one of those shipped.
    #[error("unknown {kind} `{name}`; known: {known}")]
    UnknownName {
        /// What was being looked up: `device`, `network` or `mode`.
        kind: &'static str,
        /// The name that was not found.
        name: String,
        /// The names that exist, separated by `, `.
        known: String,
    },
    /// A list of granularities is not a list of positive integers like `4-4-2-1`.
    #[error("`{text}` is not a granularity list such as 4-4-2-1")]
    GranularityList {
        /// The rejected text.
        text: String,
    },
    /// A list does not have one entry per item.
    #[error("{found} {what} given for the {expected} of network `{network}`")]
    Count {
        /// What is listed, and per what.
        what: &'static str,
        /// Name of the network.
        network: String,
        /// Number of entries needed.
        expected: usize,
        /// Number of entries found.
        found: usize,
    },
    /// A network has no blocks, or its stages are not numbered 0, 1, 2 … in order.
    #[error("network `{network}`: {reason}")]
    Network {
        /// Name of the network.
        network: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A device constant is not finite and positive.
    #[error("device `{device}`: {field} = {value} is not finite and positive")]
    Device {
        /// Name of the device.
        device: String,
        /// The field.
        field: &'static str,
        /// The rejected value.
        value: f64,
    },
    /// A tile order is not a permutation of the tile sizes of its extent.
    #[error("tile order of extent {extent} is not a permutation of {expected:?}")]
    TileOrder {
        /// The extent that is tiled.
        extent: u32,
        /// The tile sizes of that extent, ascending.
        expected: Vec<u32>,
    },
    /// A workload or its measurement has an impossible number.
    #[error("{field} = {value} is not {need}")]
    Workload {
        /// The field.
        field: &'static str,
        /// The rejected value.
        value: f64,
        /// What it must be.
        need: &'static str,
    },
    /// A line of a CSV file is not one of its table.
    #[error("{what}, line {line}{}: {reason}", column.as_ref().map(|c| format!(", column {c}")).unwrap_or_default())]
    Csv {
        /// The table.
        what: String,
        /// Line, from 1.
        line: u64,
        /// Column, where it is one that is wrong.
        column: Option<String>,
        /// What is wrong.
        reason: String,
    },
    /// There is nothing, or too little, to fit.
    #[error("cannot fit: {reason}")]
    Fit {
        /// What is missing.
        reason: String,
    },
    /// A profile is not usable here.
    #[error("profile: {reason}")]
    Profile {
        /// Why.
        reason: String,
    },
    /// JSON text does not describe the value that is read.
    #[error("cannot parse {what}")]
    Json {
        /// The kind of value that was expected.
        what: &'static str,
        /// The parser's report.
        source: serde_json::Error,
    },
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's report.
        source: std::io::Error,
    },
}

/// Result of this crate's fallible functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;
