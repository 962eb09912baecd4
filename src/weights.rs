//! Where a network's tensors come from.

use crate::checkpoint::Checkpoint;
use crate::exec::Weights;
use anyhow::{Context, Result, ensure};
use laud_models::{NetSpec, RANGE_PREFIX, Shapes, canonical_name};
use std::collections::{BTreeMap, HashMap};

/// Tensors of a checkpoint file under the names that network specifications use.
pub struct CheckpointWeights<'a> {
    checkpoint: &'a Checkpoint,
    /// Specification's name → name in the file.
    names: BTreeMap<String, String>,
}

/// Entries that are no weights but results recorded for tests begin with this.
pub const FIXTURE_PREFIX: &str = "fixture.";

impl<'a> CheckpointWeights<'a> {
    /// All tensors but those recorded for tests.
    pub fn new(checkpoint: &'a Checkpoint) -> Self {
        let names = checkpoint.tensors().keys().filter(|name| !name.starts_with(FIXTURE_PREFIX));
        let names = names.map(|name| (canonical_name(name).into_owned(), name.clone())).collect();
        Self { checkpoint, names }
    }

    /// Shapes of the weights under the specification's names; tensors of [ranges](NetSpec::ranges) are none.
    pub fn shapes(&self) -> Shapes {
        let shape = |file: &String| self.checkpoint.tensors()[file].shape.clone();
        let weights = self.names.iter().filter(|(name, _)| !name.starts_with(RANGE_PREFIX));
        weights.map(|(name, file)| (name.clone(), shape(file))).collect()
    }

    /// Whether the file has all the [ranges](NetSpec::ranges) that whole-number activations take.
    pub fn has_ranges(&self, spec: &NetSpec) -> bool {
        spec.ranges().iter().all(|range| self.names.contains_key(&range.name))
    }

    /// Checks that the file holds exactly what `spec` needs.
    ///
    /// # Errors
    /// Lists by name what is missing, extra and of another shape.
    pub fn check(&self, spec: &NetSpec) -> Result<()> {
        let mismatch = spec.compare(&self.shapes());
        ensure!(
            mismatch.is_empty(),
            "{}: does not fit {}: {mismatch}",
            self.checkpoint.path().display(),
            spec.name
        );
        Ok(())
    }
}

impl Weights for CheckpointWeights<'_> {
    fn tensor(&self, name: &str) -> Result<Vec<f32>> {
        let missing = || format!("{}: no tensor {name}", self.checkpoint.path().display());
        Ok(self.checkpoint.read_finite_f32(self.names.get(name).with_context(missing)?)?)
    }
}

/// Tensors in memory, by name.
#[derive(Clone, Debug, Default)]
pub struct TensorMap(pub HashMap<String, Vec<f32>>);

impl Weights for TensorMap {
    fn tensor(&self, name: &str) -> Result<Vec<f32>> {
        self.0.get(name).cloned().with_context(|| format!("no tensor {name}"))
    }
}

impl TensorMap {
    /// Takes over candle tensors, converted to f32.
    ///
    /// # Errors
    /// When a tensor cannot be converted.
    pub fn from_candle(tensors: &HashMap<String, candle_core::Tensor>) -> Result<Self> {
        let values = |tensor: &candle_core::Tensor| {
            tensor.to_dtype(candle_core::DType::F32)?.flatten_all()?.to_vec1::<f32>()
        };
        let entry =
            |(name, tensor): (&String, _)| Ok((name.clone(), values(tensor).with_context(|| name.clone())?));
        Ok(Self(tensors.iter().map(entry).collect::<Result<_>>()?))
    }
}

/// Largest value that whole-number activations hold on random weights: few are beyond, and behind a ReLU6 none.
const RANDOM_RANGE: f32 = 6.0;

/// Random weights for measuring: activations keep their scale through the network. The same seed gives the same. Ranges are all
/// alike: good for times, not for answers.
#[derive(Clone, Debug)]
pub struct RandomWeights {
    seed: u64,
    shapes: HashMap<String, Vec<usize>>,
}

impl RandomWeights {
    /// Weights for every parameter of `spec`.
    pub fn new(spec: &NetSpec, seed: u64) -> Self {
        let shapes = spec.parameters().into_iter().chain(spec.ranges());
        let shapes = shapes.map(|parameter| (parameter.name, parameter.shape)).collect();
        Self { seed, shapes }
    }
}

impl Weights for RandomWeights {
    fn tensor(&self, name: &str) -> Result<Vec<f32>> {
        let shape = self.shapes.get(name).with_context(|| format!("no parameter {name}"))?;
        let len: usize = shape.iter().product();
        if name.starts_with(RANGE_PREFIX) {
            return Ok(vec![RANDOM_RANGE; len]);
        }
        let fan_in: usize = shape.iter().skip(1).product();
        // FNV-1a of the name, so that the order of reading does not matter.
        let hash = name
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325, |h: u64, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
        let mut state = self.seed ^ hash;
        let mut uniform = || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 24) as f32
        };
        let (center, spread) = match name.rsplit('.').next() {
            Some("running_var") => (1.0, 0.5),
            Some("weight") if shape.len() == 1 => (0.7, 0.2),
            Some("weight") => (0.0, (6.0 / fan_in.max(1) as f32).sqrt()),
            _ => (0.0, 0.1),
        };
        Ok((0..len).map(|_| center + spread * (2.0 * uniform() - 1.0)).collect())
    }
}
