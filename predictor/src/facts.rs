use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// What the learned model is told about the device that the measurements are from, and its kernels' tile.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceFacts {
    /// What the device calls itself.
    pub name: String,
    /// Kind of device.
    pub kind: DeviceKind,
    /// Instruction set or compute capability, as the kernels name it.
    pub isa: String,
    /// Cores of a CPU, multiprocessors of a GPU.
    pub cores: u32,
    /// Clock in Hz; 0: not known.
    pub clock_hz: f64,
    /// fp32 values of a vector, or of a warp.
    pub lanes: u32,
    /// Rows of the GEMM tile, of several the largest.
    pub tile_rows: u32,
    /// Columns of that tile.
    pub tile_columns: u32,
    /// Bytes of the cache that a core has to itself, of the shared memory that a thread block may have; 0: not known.
    pub l2_bytes: u64,
    /// Bytes of the cache that all share: a CPU's third level, a GPU's second; 0: not known.
    pub l3_bytes: u64,
}

/// Kinds of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceKind {
    /// Threads over the cores of a CPU.
    Cpu,
    /// Thread blocks over the multiprocessors of a CUDA GPU.
    Cuda,
}

impl DeviceKind {
    /// As in files and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        }
    }
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl DeviceFacts {
    /// A CPU with two cores and AVX-512, for examples and tests.
    pub fn example(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            kind: DeviceKind::Cpu,
            isa: "avx512".to_owned(),
            cores: 2,
            clock_hz: 0.0,
            lanes: 16,
            tile_rows: 12,
            tile_columns: 32,
            l2_bytes: 1 << 20,
            l3_bytes: 32 << 20,
        }
    }

    /// A GPU with 132 multiprocessors and tensor cores, for examples and tests.
    pub fn example_gpu(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            kind: DeviceKind::Cuda,
            isa: "sm_90".to_owned(),
            cores: 132,
            clock_hz: 1.98e9,
            lanes: 32,
            tile_rows: 128,
            tile_columns: 128,
            l2_bytes: 227 << 10,
            l3_bytes: 50 << 20,
        }
    }

    /// Checks that counts are positive and the clock is a frequency.
    pub fn check(&self) -> Result<()> {
        let counts = [
            ("cores", self.cores),
            ("lanes", self.lanes),
            ("tile_rows", self.tile_rows),
            ("tile_columns", self.tile_columns),
        ];
        let device = || self.name.clone();
        if let Some((field, value)) = counts.into_iter().find(|(_, value)| !(1..=1 << 20).contains(value)) {
            return Err(Error::Device { device: device(), field, value: value.into() });
        }
        if !(self.clock_hz.is_finite() && self.clock_hz >= 0.0) {
            return Err(Error::Device { device: device(), field: "clock_hz", value: self.clock_hz });
        }
        Ok(())
    }
}
