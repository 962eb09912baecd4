//! Element types of activations and weights.

use crate::compiled::Compiled;
use half::bf16;

/// Name of an element type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE single precision.
    F32,
    /// bfloat16: the upper half of an f32.
    Bf16,
    /// Whole numbers of one byte.
    Int8,
}

/// What activations and weights are stored as. Products of floating point elements are summed in f32.
///
/// Whole numbers stand for themselves: who wants to store other values brings them to that range. What a filter multiplies
/// with is brought there when it is packed, one factor for each output channel. Tiles sum their products exactly in 32 bits,
/// vectors in f32.
pub trait Element: bytemuck::Pod + Send + Sync + std::fmt::Debug + Compiled {
    /// Its name.
    const DTYPE: DType;
    /// Rounds to nearest even; whole numbers saturate.
    fn from_f32(x: f32) -> Self;
    /// Exact.
    fn to_f32(self) -> f32;
    /// What the weights of each of `c_out` output channels are stored as multiples of.
    fn weight_units(_weight: &[f32], c_out: usize) -> Vec<f32> {
        vec![1.0; c_out]
    }
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        x
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
}

impl Element for bf16 {
    const DTYPE: DType = DType::Bf16;
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        bf16::from_f32(x)
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        bf16::to_f32(self)
    }
}

impl Element for i8 {
    const DTYPE: DType = DType::Int8;
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        x.round_ties_even() as i8
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from(self)
    }
    /// The largest becomes the largest number.
    fn weight_units(weight: &[f32], c_out: usize) -> Vec<f32> {
        let largest = |weight: &[f32]| weight.iter().fold(0.0f32, |largest, w| largest.max(w.abs()));
        let unit = |weight| match largest(weight) / f32::from(i8::MAX) {
            unit if unit.is_normal() => unit,
            _ => 1.0,
        };
        weight.chunks_exact((weight.len() / c_out).max(1)).map(unit).collect()
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            DType::F32 => "f32",
            DType::Bf16 => "bf16",
            DType::Int8 => "int8",
        })
    }
}
