//! Weights on the device.

use super::check;
use super::driver::{DeviceMemory, Driver};
use super::params::{self, GatherGemmParams};
use super::precision::Precision;
use crate::gather_gemm::FilterSpec;
use crate::gather_gemm::cuda::Packed;
use crate::squeeze_excite::WeightsSpec;
use crate::{ConvGeometry, Result, depthwise, gate};
use std::sync::Arc;

type Driven<'a> = &'a Arc<dyn Driver>;

/// Weights of a convolution.
pub struct Filter {
    pub(crate) geometry: ConvGeometry,
    /// Elements from one input pixel to the next.
    pub(crate) pixel: usize,
    /// What calls have in common.
    pub(crate) params: GatherGemmParams,
    pub(crate) weight: Arc<DeviceMemory>,
    pub(crate) bias: Arc<DeviceMemory>,
    pub(crate) output_constant: Option<Arc<DeviceMemory>>,
}

impl Filter {
    /// Weights for an input whose pixels are `pixel` elements apart.
    pub(crate) fn pack(
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
    pub(crate) geometry: ConvGeometry,
    pub(crate) weight: Arc<DeviceMemory>,
    pub(crate) bias: Arc<DeviceMemory>,
    pub(crate) minus_constant: Option<Arc<DeviceMemory>>,
    pub(crate) output_constant: Option<Arc<DeviceMemory>>,
}

impl Depthwise {
    pub(crate) fn pack(driver: Driven<'_>, spec: &FilterSpec<'_>) -> Result<Self> {
        let filter = depthwise::Filter::pack(spec)?;
        check::fits(&spec.geometry)?;
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
    pub(crate) weight: Arc<DeviceMemory>,
    pub(crate) bias: Arc<DeviceMemory>,
    pub(crate) c_in: usize,
    pub(crate) c_out: usize,
    pub(crate) act: u32,
}

impl Linear {
    pub(crate) fn new(driver: Driven<'_>, layer: &gate::Linear) -> Result<Self> {
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
    pub(crate) squeeze: Linear,
    pub(crate) excite: Linear,
}

impl SqueezeExcite {
    pub(crate) fn new(driver: Driven<'_>, spec: &WeightsSpec<'_>) -> Result<Self> {
        spec.check()?;
        let relu = crate::Act::Relu.into();
        let squeeze = Linear::with(driver, spec.fc1, spec.bias1, relu)?;
        let excite = Linear::with(driver, spec.fc2, spec.bias2, params::SIGMOID)?;
        Ok(Self { squeeze, excite })
    }
}

/// Weights of a gate that decides about the cells of a grid.
pub struct PatchGate {
    pub(crate) weight: Arc<DeviceMemory>,
    pub(crate) c: usize,
    pub(crate) bias: f32,
    pub(crate) grid: crate::Extent,
}

impl PatchGate {
    pub(crate) fn new(driver: Driven<'_>, gate: &gate::PatchGate) -> Result<Self> {
        let weight = DeviceMemory::holding(driver, &gate.weight, "a gate")?;
        Ok(Self { weight, c: gate.weight.len(), bias: gate.bias, grid: gate.grid })
    }
}
