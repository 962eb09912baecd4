//! The architectures as data.
mod spec;
pub use spec::*;
