//! The CUDA kernels on the host, each against the definition of its operation.
//!
//! | module | checks |
//! |---|---|
//! | [`gate`], [`compact`], [`gather_gemm`], [`layout`] | the kernels of that operation |
//! | [`pooling`] | max_pool, mean_pool |
//! | [`pointwise`] | depthwise, squeeze_excite, shortcut |
//! | [`emulation`] | that mistakes in a kernel are found |
//! | [`device`] | how tests run kernels: in several orders of threads and thread blocks, which must not matter |

mod compact;
mod device;
mod emulation;
mod gate;
mod gather_gemm;
mod layout;
mod pointwise;
mod pooling;
#[path = "../../testing.rs"]
#[allow(dead_code, reason = "shared with the tests of the CPU kernels")]
mod testing;

use laud_kernels::{Channels, DType, Element, Extent, Rows};
