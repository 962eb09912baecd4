//! The CUDA kernels on the host, each against the definition of its operation.
//!
//! | module | checks |
//! |---|---|
//! | [`gate`], [`layout`] | the kernels of that operation |
//! | [`device`] | how tests run kernels: in several orders of threads and thread blocks, which must not matter |

#[allow(dead_code, reason = "what the kernels on listed rows are tested with")]
mod device;
mod gate;
mod layout;
#[path = "../../testing.rs"]
#[allow(dead_code, reason = "shared with the tests of the CPU kernels")]
mod testing;

use laud_kernels::{Channels, Extent, Rows};
