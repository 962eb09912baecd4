//! The whole network.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Tensor};
use laud_models::{Error, MapSize, MaxPoolSpec, Mismatch, NetSpec, StemSpec};

use super::block::Block;
use super::decisions::{BlockMargins, BlockMasks, Decisions, PerGate, bits, decide, margins};
use super::layers::{Conv, Linear, Statistics, Weights};
use super::maps::{Map, MapOps, Plain};

/// A network that computes everything and masks it.
///
/// ```text
/// BeforeNorm (ResNet)        a = act(bn1(conv1(x) ⊙ C))    b = act(bn2(conv2(a) ⊙ C))
/// AfterActivation (RegNet)   a = act(bn1(conv1(x))) ⊙ C    b = act(bn2(conv2(a))) ⊙ C
/// both                       out = act(shortcut(x) + M ⊙ bn3(conv3(se(b))))
/// ```
/// with the channel mask `C` and the spatial mask `M`, 1 where a block has no such gate.
///
/// Han et al., "Latency-aware Unified Dynamic Networks for Efficient Image Recognition", arXiv 2308.15949; the
/// points where the masks multiply are those of the official code. Slow on purpose: use it to train and to check.
pub struct MaskedNetwork {
    input: (usize, MapSize),
    stem: Stem,
    blocks: Vec<Block>,
    head: Option<Conv>,
    fc: Linear,
    maps: Arc<dyn MapOps>,
}

/// What a forward pass computed.
#[derive(Clone, Debug)]
pub struct Evaluation {
    /// `[n, classes]`.
    pub logits: Tensor,
    /// `[n, c, h, w]` behind the last block of each stage.
    pub stages: Vec<Tensor>,
    /// The decisions that were followed, one entry a block.
    pub masks: Vec<BlockMasks>,
    /// How clear the network's own gates were, one entry a block, also where their decisions were not followed.
    pub margins: Vec<BlockMargins>,
}

impl MaskedNetwork {
    /// The network on `weights`, by the names of [`NetSpec::parameters`]; other tensors are ignored. Trained variables are used
    /// where they are, so that gradients reach them (candle's gradient of a strided convolution needs square maps).
    ///
    /// A spec that does not hold together, and a missing tensor or one of another shape are errors.
    pub fn new(spec: &NetSpec, weights: &HashMap<String, Tensor>) -> Result<Self> {
        spec.validate()?;
        let shapes = weights.iter().map(|(name, tensor)| (name.clone(), tensor.dims().to_vec())).collect();
        let mismatch = Mismatch { extra: Vec::new(), ..spec.compare(&shapes) };
        if !mismatch.is_empty() {
            return Err(Error::Tensors(mismatch).into());
        }
        let weights = Weights(weights);
        Ok(Self {
            input: (spec.input.channels, spec.input.size),
            stem: Stem::load(&spec.stem, &weights)?,
            blocks: spec.blocks.iter().map(|block| Block::load(block, &weights)).collect::<Result<_>>()?,
            head: spec.head.conv.as_ref().map(|conv| Conv::load(conv, &weights)).transpose()?,
            fc: Linear::load(&spec.head.fc, &weights)?,
            maps: Arc::new(Plain),
        })
    }

    /// The same network with its maps computed by `maps`.
    #[must_use]
    pub fn with_maps(self, maps: Arc<dyn MapOps>) -> Self {
        Self { maps, ..self }
    }

    /// Evaluates `images [n, c, h, w]`, prepared as the spec's input says. Statistics of BatchNorm are the stored ones.
    pub fn forward(&self, images: &Tensor, decisions: &Decisions<'_>) -> Result<Evaluation> {
        let (mut stages, mut all_masks, mut all_margins) = (Vec::new(), Vec::new(), Vec::new());
        let logits = self.run(images, decisions, Statistics::Stored, |seen| {
            all_margins.push(seen.logits.as_ref().try_map(margins)?);
            all_masks.push(seen.keep.as_ref().try_map(bits)?);
            if seen.last_of_stage {
                stages.push(self.maps.leave(seen.map)?);
            }
            Ok(())
        })?;
        Ok(Evaluation { logits, stages, masks: all_masks, margins: all_margins })
    }

    /// The forward half of a training step.
    pub fn forward_train(
        &self,
        images: &Tensor,
        decisions: &Decisions<'_>,
        statistics: Statistics,
    ) -> Result<Activity> {
        let (mut keep, mut stages) = (Vec::with_capacity(self.blocks.len()), Vec::new());
        let logits = self.run(images, decisions, statistics, |seen| {
            keep.push(seen.keep.clone());
            stages.extend(seen.last_of_stage.then(|| seen.map.clone()));
            Ok(())
        })?;
        Ok(Activity { logits, keep, stages })
    }

    /// How far stages are from those of a teacher in [`forward_train`](Self::forward_train): the mean of their
    /// [distances](MapOps::distance) (Romero et al., "FitNets: Hints for Thin Deep Nets", 2015, without a regressor: the maps have
    /// one shape).
    ///
    /// # Errors
    /// Other stages, or maps of another shape.
    pub fn feature_distance(&self, student: &Activity, teacher: &Activity) -> Result<Tensor> {
        let (count, taught) = (student.stages.len(), teacher.stages.len());
        ensure!(
            count == taught && count > 0,
            "features: the student has {count} stages, the teacher {taught}"
        );
        let pairs = student.stages.iter().zip(&teacher.stages);
        let distances = pairs.map(|(student, teacher)| self.maps.distance(student, teacher));
        Ok(Tensor::stack(&distances.collect::<Result<Vec<_>>>()?, 0)?.mean_all()?)
    }

    /// What the first block gets of `images [n, c, h, w]`.
    pub(super) fn first_map(&self, images: &Tensor) -> Result<Map> {
        self.stem.forward(&images.to_dtype(DType::F32)?, &*self.maps, Statistics::Stored)
    }

    /// Logits `[n, classes]` of a network without gates, from the input of block `first` on.
    pub(super) fn logits_from(&self, first: usize, map: &Map) -> Result<Tensor> {
        let mut x = map.clone();
        for block in &self.blocks[first..] {
            x = self.maps.residual(&block.residual, &x, &PerGate::none(), Statistics::Stored)?;
        }
        self.classify(x, Statistics::Stored)
    }

    /// Logits `[n, classes]`, and every block shown to `see`.
    fn run(
        &self,
        images: &Tensor,
        decisions: &Decisions<'_>,
        statistics: Statistics,
        mut see: impl FnMut(Seen<'_>) -> Result<()>,
    ) -> Result<Tensor> {
        let (channels, MapSize { h, w }) = self.input;
        match images.dims() {
            &[n, c, y, x] if n > 0 && (c, y, x) == (channels, h, w) => {}
            found => bail!("images of shape {found:?}, expected [n, {channels}, {h}, {w}]"),
        }
        if let Decisions::Given(masks) = decisions {
            let (given, blocks) = (masks.len(), self.blocks.len());
            ensure!(given == blocks, "decisions given for {given} blocks, the network has {blocks}");
        }
        let of_gates = if statistics == Statistics::Kept { Statistics::Stored } else { statistics };
        let maps = &*self.maps;
        let images = images.to_dtype(DType::F32)?;
        let mut x = self.stem.forward(&images, maps, statistics).context("stem")?;
        for (index, block) in self.blocks.iter().enumerate() {
            let mut run = || -> Result<Map> {
                let logits = block.logits(&x, maps, of_gates)?;
                let keep = match decisions {
                    Decisions::Learned => logits.as_ref().try_map(decide)?,
                    Decisions::Given(masks) => block.given(&masks[index], &x.tensor)?,
                    Decisions::Sampled(sampling) => block.sample(&logits, sampling)?,
                };
                let map = maps.residual(&block.residual, &x, &keep, statistics)?;
                let next = self.blocks.get(index + 1).map(|next| next.residual.spec.stage);
                let last_of_stage = next != Some(block.residual.spec.stage);
                see(Seen { logits: &logits, keep: &keep, map: &map, last_of_stage })?;
                Ok(map)
            };
            x = run().with_context(|| format!("block {}", block.residual.spec.name))?;
        }
        self.classify(x, statistics)
    }

    /// Behind the blocks.
    fn classify(&self, mut x: Map, statistics: Statistics) -> Result<Tensor> {
        let maps = &*self.maps;
        if let Some(conv) = &self.head {
            x = maps.conv(conv, &x, statistics).context("head")?;
        }
        let mean = maps.pool(&x, MapSize { h: 1, w: 1 })?.squeeze(1)?;
        self.fc.forward(&mean).context("classifier")
    }
}

/// What a training step's forward half computed.
#[derive(Clone, Debug)]
pub struct Activity {
    /// `[n, classes]`.
    pub logits: Tensor,
    /// Decisions `[n, u]` of each block's gates, with their gradient.
    pub keep: Vec<PerGate<Tensor>>,
    /// Behind the last block of each stage.
    pub stages: Vec<Map>,
}

/// A block that was just computed.
struct Seen<'a> {
    logits: &'a PerGate<Tensor>,
    keep: &'a PerGate<Tensor>,
    map: &'a Map,
    last_of_stage: bool,
}

/// Convolution and max pooling in front of the blocks.
pub(super) struct Stem {
    conv: Conv,
    pool: Option<MaxPoolSpec>,
}

impl Stem {
    pub(super) fn load(spec: &StemSpec, weights: &Weights<'_>) -> Result<Self> {
        Ok(Self { conv: Conv::load(&spec.conv, weights)?, pool: spec.pool })
    }

    pub(super) fn forward(&self, images: &Tensor, maps: &dyn MapOps, statistics: Statistics) -> Result<Map> {
        let x = maps.conv(&self.conv, &maps.enter(images)?, statistics)?;
        match &self.pool {
            Some(pool) => maps.max_pool(&x, pool),
            None => Ok(x),
        }
    }
}
