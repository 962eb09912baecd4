//! Latency prediction for input-adaptive vision networks: pure numbers, no device, no clock.
//!
//! [`prior`] is the zero-shot predictor: an analytical model of a GPU that needs a handful of published constants
//! and not one measurement. It answers which granularity and density pay off on a device nobody has at hand.
//!
//! # In order of use
//!
//! 1. [`DeviceSpec`](prior::DeviceSpec) is the device: [one of twelve](prior::DeviceSpec::names) by name, or constants of
//!    one's own.
//! 2. [`Network`](prior::Network) is the network as a chain of residual blocks, [`Mode`](prior::Mode) what it skips and
//!    at which granularity, [`Density`] how much is left.
//! 3. [`Prior`](prior::Prior) gives the [`Latency`](prior::Latency) of an operator, a block or a network, split into
//!    arithmetic, memory and launches.
//!
//! ```
//! use laud_predictor::prior::{DeviceSpec, Mode, Network, Prior};
//! use laud_predictor::Density;
//!
//! let prior = Prior::new(DeviceSpec::named("v100")?)?;
//! let resnet50 = Network::named("resnet50")?;
//! let batch = 128;
//! let dense = prior.network(&resnet50, &Mode::Static, Density::ONE, batch)?;
//! let spatial = prior.network(&resnet50, &"spatial:4-4-2-1".parse()?, Density::new(0.4)?, batch)?;
//! assert!(spatial.total_s() < dense.total_s());
//! # Ok::<(), laud_predictor::Error>(())
//! ```
//!
//! # Letters and units
//!
//! Times are seconds (`_s`) for the whole batch, bandwidths bytes per second (`_bytes_per_s`), clocks hertz (`_hz`).
//! A granularity list such as `4-4-2-1` has an entry per stage: `S`, a patch's side in output positions, where patches are
//! skipped; `G`, consecutive channels that are skipped together, where channels are. *Density* is the active fraction,
//! `0..=1`.
#![forbid(unsafe_code)]

pub mod correction;
pub mod dataset;
mod density;
pub mod distribution;
mod error;
mod facts;
pub mod learned;
pub mod measurements;
pub mod prior;
pub mod profile;
mod random;
pub mod regret;
pub mod workload;

pub use density::Density;
pub use error::{Error, Result};
pub use facts::{DeviceFacts, DeviceKind};
