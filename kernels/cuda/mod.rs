//! **cuda**: the GPU side of every operation.
//!
//! Each operation's folder holds its kernels, `<op>.cu`, written in the dialect of `device.h`: no header of a toolkit, so
//! that they compile at run time on a machine that has a driver only, by nvcc in the checks, and as host C++ for the
//! tests, against `emulation/`. A kernel `<op>_<layout>_<dtype>[_<variant>]` takes one struct of [`params`] by value; what
//! else a launch needs is in [`launch`].

//!
//! [`Cuda`] is the backend: it turns operations into launches on a [`Driver`]. `condition.cu` is no operation: by it a graph
//! finds out whether a part of it has anything to do.

mod backend;
pub(crate) mod check;
mod device;
mod driver;
pub mod launch;
mod memory;
mod nvrtc;
pub mod params;
mod precision;
mod queue;
mod shape;
mod source;
mod stream;
mod toolchain;
mod weights;

pub use backend::Cuda;
pub use device::{Device, count};
pub use driver::{Driver, Failure, Properties, Stream};
pub use memory::{Buffer, Channels, Rows, Vector};
pub use precision::Precision;
pub use queue::{CudaQueue, CudaScratch, Images};
pub use source::hash as source_hash;
pub use toolchain::{ARCHITECTURES, Toolchain};
pub use weights::{Depthwise, Filter, Linear, PatchGate, SqueezeExcite};
