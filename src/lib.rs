//! A runtime for input-adaptive vision networks.
#![forbid(unsafe_code)]

pub mod checkpoint;
pub mod report;
pub mod train;
pub mod vision;
