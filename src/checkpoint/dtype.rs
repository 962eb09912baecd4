//! Element types, and their conversion to `f32`.

use half::{bf16, f16};

/// The element types of the two formats that this room reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the variants are the types they name")]
pub enum DType {
    F64,
    F32,
    F16,
    BF16,
    I64,
    I32,
    I16,
    I8,
    U64,
    U32,
    U16,
    U8,
    Bool,
}

impl DType {
    pub(super) const ALL: [Self; 13] = [
        Self::F64,
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::I64,
        Self::I32,
        Self::I16,
        Self::I8,
        Self::U64,
        Self::U32,
        Self::U16,
        Self::U8,
        Self::Bool,
    ];

    /// Bytes of one element.
    pub const fn size_bytes(self) -> usize {
        match self {
            Self::F64 | Self::I64 | Self::U64 => 8,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F16 | Self::BF16 | Self::I16 | Self::U16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }

    /// The name that safetensors gives it, such as `BF16`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F64 => "F64",
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::I64 => "I64",
            Self::I32 => "I32",
            Self::I16 => "I16",
            Self::I8 => "I8",
            Self::U64 => "U64",
            Self::U32 => "U32",
            Self::U16 => "U16",
            Self::U8 => "U8",
            Self::Bool => "BOOL",
        }
    }

    pub(super) fn from_safetensors(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.name() == name)
    }

    /// The element type of `torch.<storage>`; `None` for complex, quantised and untyped storages.
    pub(super) fn from_torch_storage(storage: &str) -> Option<Self> {
        Some(match storage {
            "DoubleStorage" => Self::F64,
            "FloatStorage" => Self::F32,
            "HalfStorage" => Self::F16,
            "BFloat16Storage" => Self::BF16,
            "LongStorage" => Self::I64,
            "IntStorage" => Self::I32,
            "ShortStorage" => Self::I16,
            "CharStorage" => Self::I8,
            "ByteStorage" => Self::U8,
            "BoolStorage" => Self::Bool,
            _ => return None,
        })
    }

    /// Appends little-endian elements as `f32`, rounding to nearest; a `bool` byte other than 0 is 1.
    ///
    /// A trailing part of an element is ignored: callers pass whole elements.
    pub(super) fn extend_f32(self, bytes: &[u8], out: &mut Vec<f32>) {
        macro_rules! convert {
            ($ty:ty, $to_f32:expr) => {
                out.extend(bytes.as_chunks().0.iter().map(|&chunk| $to_f32(<$ty>::from_le_bytes(chunk))))
            };
        }
        match self {
            Self::F64 => convert!(f64, |x| x as f32),
            Self::F32 => convert!(f32, |x| x),
            Self::F16 => convert!(f16, f16::to_f32),
            Self::BF16 => convert!(bf16, bf16::to_f32),
            Self::I64 => convert!(i64, |x| x as f32),
            Self::I32 => convert!(i32, |x| x as f32),
            Self::I16 => convert!(i16, f32::from),
            Self::I8 => convert!(i8, f32::from),
            Self::U64 => convert!(u64, |x| x as f32),
            Self::U32 => convert!(u32, |x| x as f32),
            Self::U16 => convert!(u16, f32::from),
            Self::U8 => convert!(u8, f32::from),
            Self::Bool => convert!(u8, |x| f32::from(u8::from(x != 0))),
        }
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
