//! placeholder
pub mod train;
