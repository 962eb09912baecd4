//! Weights on the device.

use super::driver::{DeviceMemory, Driver};
use super::params::{self, GatherGemmParams};
use super::precision::Precision;
use crate::gather_gemm::FilterSpec;
use crate::gather_gemm::cuda::Packed;
use crate::squeeze_excite::WeightsSpec;
use crate::{ConvGeometry, Error, Result, depthwise, gate};
use std::sync::Arc;

type Driven<'a> = &'a Arc<dyn Driver>;

/// Weights of a convolution.
pub struct Filter {
    pub(super) geometry: ConvGeometry,
    /// Elements from one input pixel to the next.
    pub(super) pixel: usize,
    /// What calls have in common.
    pub(super) params: GatherGemmParams,
    pub(super) weight: Arc<DeviceMemory>,
    pub(super) bias: Arc<DeviceMemory>,
    pub(super) output_constant: Option<Arc<DeviceMemory>>,
}

impl Filter {
    /// Weights for an input whose pixels are `pixel` elements apart.
    pub(super) fn pack(
        driver: Driven<'_>,
        precision: Precision,
        spec: &FilterSpec<'_>,
        pixel: usize,
    ) -> Result<Self> {
        let packed = Packed::new(spec, pixel)?;
        let weight = DeviceMemory::holding(driver, &precision.store(&packed.weight), "weights")?;
        let bias = DeviceMemory::holding(driver, &packed.bias, "biases")?;
        let constant = packed.output_constant.as_deref();
        let constant =
            constant.map(|values| DeviceMemory::holding(driver, values, "constants")).transpose()?;
        let (geometry, params) = (spec.geometry, packed.params());
        Ok(Self { geometry, pixel, params, weight, bias, output_constant: constant })
    }
}

/// Weights of a depthwise convolution, in f32.
pub struct Depthwise {
    pub(super) geometry: ConvGeometry,
    pub(super) weight: Arc<DeviceMemory>,
    pub(super) bias: Arc<DeviceMemory>,
    pub(super) minus_constant: Option<Arc<DeviceMemory>>,
    pub(super) output_constant: Option<Arc<DeviceMemory>>,
}

impl Depthwise {
    pub(super) fn pack(driver: Driven<'_>, spec: &FilterSpec<'_>) -> Result<Self> {
        let filter = depthwise::Filter::pack(spec)?;
        check_fits(&spec.geometry)?;
        let hold = |values: &[f32]| DeviceMemory::holding(driver, values, "depthwise weights");
        let depthwise::Tables { weight, bias, minus_constant, output_constant } = filter.tables();
        Ok(Self {
            geometry: spec.geometry,
            weight: hold(weight)?,
            bias: hold(bias)?,
            minus_constant: minus_constant.map(hold).transpose()?,
            output_constant: output_constant.map(hold).transpose()?,
        })
    }
}

/// A fully connected layer.
pub struct Linear {
    pub(super) weight: Arc<DeviceMemory>,
    pub(super) bias: Arc<DeviceMemory>,
    pub(super) c_in: usize,
    pub(super) c_out: usize,
    pub(super) act: u32,
}

impl Linear {
    pub(super) fn new(driver: Driven<'_>, layer: &gate::Linear) -> Result<Self> {
        let act = if layer.relu { crate::Act::Relu } else { crate::Act::None };
        Self::with(driver, &layer.weight, &layer.bias, act.into())
    }

    fn with(driver: Driven<'_>, weight: &[f32], bias: &[f32], act: u32) -> Result<Self> {
        let (c_in, c_out) = (weight.len() / bias.len().max(1), bias.len());
        let hold = |values| DeviceMemory::holding(driver, values, "a fully connected layer");
        Ok(Self { weight: hold(weight)?, bias: hold(bias)?, c_in, c_out, act })
    }
}

/// The two layers of a squeeze-excitation.
pub struct SqueezeExcite {
    pub(super) squeeze: Linear,
    pub(super) excite: Linear,
}

impl SqueezeExcite {
    pub(super) fn new(driver: Driven<'_>, spec: &WeightsSpec<'_>) -> Result<Self> {
        spec.check()?;
        let relu = crate::Act::Relu.into();
        let squeeze = Linear::with(driver, spec.fc1, spec.bias1, relu)?;
        let excite = Linear::with(driver, spec.fc2, spec.bias2, params::SIGMOID)?;
        Ok(Self { squeeze, excite })
    }
}

/// Weights of a gate that decides about the cells of a grid.
pub struct PatchGate {
    pub(super) weight: Arc<DeviceMemory>,
    pub(super) c: usize,
    pub(super) bias: f32,
    pub(super) grid: crate::Extent,
}

impl PatchGate {
    pub(super) fn new(driver: Driven<'_>, gate: &gate::PatchGate) -> Result<Self> {
        let weight = DeviceMemory::holding(driver, &gate.weight, "a gate")?;
        Ok(Self { weight, c: gate.weight.len(), bias: gate.bias, grid: gate.grid })
    }
}

/// Kernels count in 32 bits.
pub(super) fn check_fits(g: &ConvGeometry) -> Result<()> {
    let sizes = [g.input.pixels(), g.output.pixels(), g.c_in, g.c_out, g.kernel, g.stride];
    let (h, w) = (g.output.h.saturating_mul(g.stride), g.output.w.saturating_mul(g.stride));
    if sizes.into_iter().chain([h, w]).all(|size| size < 1 << 30) {
        return Ok(());
    }
    Err(Error::Geometry { op: "cuda", why: "sizes do not fit 32 bits", geometry: g.to_string() })
}
