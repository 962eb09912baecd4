use half::{bf16, f16};

/// How activations and weights are stored on a device, and multiplied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// f32, multiplied as f32.
    #[default]
    F32,
    /// f32, multiplied on tensor cores with 10 bits of mantissa.
    Tf32,
    /// IEEE half precision, summed in f32.
    F16,
    /// bfloat16, summed in f32.
    Bf16,
}

impl Precision {
    /// Bytes of an element.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 | Self::Tf32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// Storage type in the names of kernels.
    pub fn storage(self) -> &'static str {
        match self {
            Self::F32 | Self::Tf32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }

    /// Elements of a vector of 16 bytes.
    pub(crate) fn vector(self) -> usize {
        16 / self.bytes()
    }

    /// Values, rounded to nearest even, as bytes.
    pub(crate) fn store(self, values: &[f32]) -> Vec<u8> {
        match self {
            Self::F32 | Self::Tf32 => bytemuck::cast_slice(values).to_vec(),
            Self::F16 => values.iter().flat_map(|&x| f16::from_f32(x).to_ne_bytes()).collect(),
            Self::Bf16 => values.iter().flat_map(|&x| bf16::from_f32(x).to_ne_bytes()).collect(),
        }
    }
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tf32 => "tf32",
            other => other.storage(),
        })
    }
}
