//! placeholder
pub mod report;
pub mod vision;
