//! Kernels as functions without type parameters. A generic function is compiled in every crate that calls it; the tiles of
//! one kernel for every instruction set take long, and the backend is named in several.

use crate::depthwise::{self, Depthwise};
use crate::gate::{self, PatchGate};
use crate::gather_gemm::{self, GatherGemm};
use crate::max_pool::{self, MaxPool};
use crate::mean_pool::{self, MeanPool};
use crate::squeeze_excite::{self, SqueezeExcite};
use crate::{Extent, Isa, PartSums, Result, Team};
use half::bf16;

/// The `run` of each operation on elements of one type.
pub trait Compiled: Sized {
    fn gather_gemm(
        isa: Isa,
        team: &mut Team,
        filter: &gather_gemm::Filter<Self>,
        scratch: &mut [gather_gemm::Scratch<Self>],
        call: GatherGemm<'_, [Self]>,
    ) -> Result<()>;
    fn depthwise(
        isa: Isa,
        team: &mut Team,
        filter: &depthwise::Filter,
        call: Depthwise<'_, [Self]>,
    ) -> Result<()>;
    fn max_pool(isa: Isa, team: &mut Team, call: MaxPool<'_, [Self]>) -> Result<()>;
    fn mean_pool(isa: Isa, team: &mut Team, parts: &mut PartSums, call: MeanPool<'_, [Self]>) -> Result<()>;
    fn squeeze_excite(
        isa: Isa,
        team: &mut Team,
        weights: &squeeze_excite::Weights,
        scratch: &mut squeeze_excite::Scratch,
        call: SqueezeExcite<'_, [Self]>,
    ) -> Result<()>;
    fn patch_gate(
        isa: Isa,
        team: &mut Team,
        parts: &mut PartSums,
        gate: &PatchGate,
        input: &[Self],
        maps: (usize, Extent),
        margins: &mut [f32],
    ) -> Result<()>;
}

macro_rules! compile {
    ($($element:ty),*) => {$(
        impl Compiled for $element {
            fn gather_gemm(
                isa: Isa,
                team: &mut Team,
                filter: &gather_gemm::Filter<Self>,
                scratch: &mut [gather_gemm::Scratch<Self>],
                call: GatherGemm<'_, [Self]>,
            ) -> Result<()> {
                gather_gemm::run(isa, team, filter, scratch, call)
            }
            fn depthwise(
                isa: Isa,
                team: &mut Team,
                filter: &depthwise::Filter,
                call: Depthwise<'_, [Self]>,
            ) -> Result<()> {
                depthwise::run(isa, team, filter, call)
            }
            fn max_pool(isa: Isa, team: &mut Team, call: MaxPool<'_, [Self]>) -> Result<()> {
                max_pool::run(isa, team, call)
            }
            fn mean_pool(
                isa: Isa,
                team: &mut Team,
                parts: &mut PartSums,
                call: MeanPool<'_, [Self]>,
            ) -> Result<()> {
                mean_pool::run(isa, team, parts, call)
            }
            fn squeeze_excite(
                isa: Isa,
                team: &mut Team,
                weights: &squeeze_excite::Weights,
                scratch: &mut squeeze_excite::Scratch,
                call: SqueezeExcite<'_, [Self]>,
            ) -> Result<()> {
                squeeze_excite::run(isa, team, weights, scratch, call)
            }
            fn patch_gate(
                isa: Isa,
                team: &mut Team,
                parts: &mut PartSums,
                gate: &PatchGate,
                input: &[Self],
                maps: (usize, Extent),
                margins: &mut [f32],
            ) -> Result<()> {
                gate::patch(isa, team, parts, gate, input, maps, margins)
            }
        }
    )*};
}

compile!(f32, bf16, i8);
