//! What a kernel is launched with, apart from its parameters.
//!
//! Grids are as large as everything active asks for. How much is active is read on the device, and what has nothing to
//! do ends at once, so that a launch can be recorded once and replayed.

use super::params::{DecideParams, FromNchwParams, LinearParams, PatchGateParams, ToNchwParams};
use std::fmt::Display;

/// Name and shape of a launch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Kernel.
    pub kernel: String,
    /// Thread blocks along x, y, z; none is zero unless there is nothing to do.
    pub grid: [u32; 3],
    /// Threads of a thread block, along x.
    pub threads: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
}

impl Launch {
    fn new(kernel: String, grid: [u32; 3], threads: u32) -> Self {
        Self { kernel, grid, threads, shared: 0 }
    }

    /// Whether there is nothing to do: a grid must not be empty.
    pub fn is_empty(&self) -> bool {
        self.grid.contains(&0)
    }
}

impl FromNchwParams {
    /// `from_nchw_nhwc_*`.
    pub fn launch(&self, dtype: impl Display) -> Launch {
        let grid = [(self.out_h * self.out_w).div_ceil(32), self.pitch.div_ceil(32), self.batch];
        Launch::new(format!("from_nchw_nhwc_{dtype}"), grid, 256)
    }
}

impl ToNchwParams {
    /// `to_nchw_nhwc_*`.
    pub fn launch(&self, dtype: impl Display) -> Launch {
        let grid = [self.pixels.div_ceil(32), self.c.div_ceil(32), self.batch];
        Launch::new(format!("to_nchw_nhwc_{dtype}"), grid, 256)
    }
}

impl PatchGateParams {
    /// `patch_gate_nhwc_*`.
    pub fn launch(&self, dtype: impl Display) -> Launch {
        let grid = [self.grid_h * self.grid_w, self.batch, 1];
        Launch::new(format!("patch_gate_nhwc_{dtype}"), grid, 128)
    }
}

impl LinearParams {
    /// `linear_nc_f32`.
    pub fn launch(&self) -> Launch {
        Launch::new("linear_nc_f32".to_owned(), [self.c_out.div_ceil(8), self.batch.div_ceil(8), 1], 256)
    }
}

impl DecideParams {
    /// `decide_n_f32`.
    pub fn launch(&self) -> Launch {
        Launch::new("decide_n_f32".to_owned(), [self.len.div_ceil(256), 1, 1], 256)
    }
}
