//! placeholder
pub mod vision;
