//! The architectures as data.
#![forbid(unsafe_code)]

mod config;
mod error;
mod family;
mod gates;
mod layers;
mod macs;
mod parameters;
mod spec;
mod validate;

pub use config::*;
pub use error::Error;
pub use family::preset_names;
pub use parameters::*;
pub use spec::*;
