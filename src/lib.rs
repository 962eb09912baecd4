//! A runtime for input-adaptive vision networks.
#![forbid(unsafe_code)]

pub mod checkpoint;
pub mod exec;
pub mod gate;
pub mod plan;
pub mod report;
mod session;
pub mod train;
pub mod vision;
mod weights;

pub use exec::{Output, Trace};
pub use session::{Device, Element, Session, SessionBuilder};
pub use weights::{CheckpointWeights, RandomWeights, TensorMap};
