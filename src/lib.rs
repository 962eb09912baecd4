//! A runtime for input-adaptive vision networks.
#![forbid(unsafe_code)]

pub mod checkpoint;
pub mod exec;
pub mod files;
pub mod gate;
pub mod plan;
pub mod report;
mod session;
pub mod train;
pub mod vision;
mod weights;
pub mod zoo;

pub use exec::{Output, Trace};
pub use session::{Device, Element, Session, SessionBuilder};
pub use weights::{CheckpointWeights, FIXTURE_PREFIX, RandomWeights, TensorMap};
