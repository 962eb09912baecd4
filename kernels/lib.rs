//! The primitives of the laud runtime.

mod active;
mod backend;
mod buffer;
pub mod compact;
mod cpu;
pub mod depthwise;
mod disjoint;
mod element;
mod error;
pub mod gate;
pub mod gather_gemm;
mod geometry;
pub mod layout;
pub mod max_pool;
pub mod mean_pool;
pub mod shortcut;
mod simd;
pub mod squeeze_excite;
mod team;
#[cfg(test)]
mod testing;

pub use active::{ActiveSet, Channels, Rows};
pub use backend::Backend;
pub use buffer::Buffer;
pub use cpu::{Cpu, CpuQueue};
pub(crate) use disjoint::Disjoint;
pub use element::{DType, Element};
pub use error::{Error, Result};
pub use geometry::{Act, ConvGeometry, Extent};
pub use simd::Isa;
pub use team::Team;
