//! Latency prediction for input-adaptive vision networks: pure numbers, no device, no clock.
//!
//! [`prior`] is the zero-shot predictor: an analytical model of a GPU that needs a handful of published constants
//! and not one measurement. It answers which granularity and density pay off on a device nobody has at hand.
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
#![forbid(unsafe_code)]

mod density;
mod error;
pub mod prior;

pub use density::Density;
pub use error::{Error, Result};
