//! The whole network.

use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Tensor};
use laud_models::{Error, MapSize, MaxPoolSpec, Mismatch, NetSpec, StemSpec};

use super::block::Block;
use super::decisions::{BlockMargins, BlockMasks, Decisions, bits, decide, margins};
use super::layers::{Conv, Linear, Weights};
use super::pool::{global_mean, max_pool};

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
        })
    }

    /// Evaluates `images [n, c, h, w]`, prepared as the spec's input says. Statistics of BatchNorm are the stored ones.
    pub fn forward(&self, images: &Tensor, decisions: &Decisions<'_>) -> Result<Evaluation> {
        let (channels, MapSize { h, w }) = self.input;
        match images.dims() {
            &[n, c, y, x] if n > 0 && (c, y, x) == (channels, h, w) => {}
            found => bail!("images of shape {found:?}, expected [n, {channels}, {h}, {w}]"),
        }
        if let Decisions::Given(masks) = decisions {
            let (given, blocks) = (masks.len(), self.blocks.len());
            ensure!(given == blocks, "decisions given for {given} blocks, the network has {blocks}");
        }
        let mut x = self.stem.forward(&images.to_dtype(DType::F32)?).context("stem")?;
        let (mut stages, mut all_masks, mut all_margins) = (Vec::new(), Vec::new(), Vec::new());
        for (index, block) in self.blocks.iter().enumerate() {
            let mut run = || -> Result<Tensor> {
                let logits = block.logits(&x)?;
                all_margins.push(logits.as_ref().try_map(margins)?);
                let keep = match decisions {
                    Decisions::Learned => logits.as_ref().try_map(decide)?,
                    Decisions::Given(masks) => block.given(&masks[index], &x)?,
                };
                all_masks.push(keep.as_ref().try_map(bits)?);
                block.forward(&x, &keep)
            };
            x = run().with_context(|| format!("block {}", block.spec.name))?;
            if self.blocks.get(index + 1).is_none_or(|next| next.spec.stage != block.spec.stage) {
                stages.push(x.clone());
            }
        }
        if let Some(conv) = &self.head {
            x = conv.forward(&x, None).context("head")?;
        }
        let logits = self.fc.forward(&global_mean(&x)?).context("classifier")?;
        Ok(Evaluation { logits, stages, masks: all_masks, margins: all_margins })
    }
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

    pub(super) fn forward(&self, images: &Tensor) -> Result<Tensor> {
        let x = self.conv.forward(images, None)?;
        self.pool.as_ref().map_or(Ok(x.clone()), |pool| max_pool(&x, pool))
    }
}
