//! The primitives of the laud runtime.

mod active;
mod buffer;
pub mod depthwise;
mod disjoint;
mod element;
mod error;
pub mod gather_gemm;
mod geometry;
pub mod max_pool;
pub mod mean_pool;
mod simd;
pub mod squeeze_excite;
mod team;
#[cfg(test)]
mod testing;

pub use active::{ActiveSet, Channels, Rows};
pub use buffer::Buffer;
pub(crate) use disjoint::Disjoint;
pub use element::{DType, Element};
pub use error::{Error, Result};
pub use geometry::{Act, ConvGeometry, Extent};
pub use simd::Isa;
pub use team::Team;
