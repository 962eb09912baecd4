//! The official count of multiply–accumulates, which the paper calls FLOPs.
//!
//! LAUDNet, imagenet_classification/models/laud_resnet.py and laud_regnet.py, generalised from the bottleneck to any chain of
//! convolutions. It works with mean rates over a batch and multiplies them as means. BatchNorm, activations, additions,
//! biases and up-sampling count nothing; max pooling counts its window, average pooling its outputs. Deviation: a depthwise
//! convolution counts the channel rate once, since an inactive input channel has only inactive outputs.

use smallvec::SmallVec;

use crate::{
    BlockSpec, ChannelGateSpec, ChannelHead, ConvSpec, Error, MapSize, MaskGrid, NetSpec, Shortcut,
    SpatialGateSpec,
};

/// Densities of one block, means over a batch, each `0..=1` and 1 where there is no such gate.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockRates {
    /// Active fraction of the channel groups (the official `r_c`).
    pub channel: f64,
    /// Active fraction of every convolution's output positions, one for each convolution of the branch. In the official
    /// bottleneck: the dilated mask's (`r_1`), the up-sampled mask's (`r_2`), the coarse mask's (`r_3`).
    pub spatial: SmallVec<[f64; 3]>,
}

/// One sample's decisions in one block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SampleMasks {
    /// Coarse spatial mask, of the gate's grid; `None` without a spatial gate.
    pub spatial: Option<MaskGrid>,
    /// One decision for each channel group; `None` without a channel gate.
    pub channel: Option<Vec<bool>>,
}

/// Multiply–accumulates of one block for one sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BlockMacs {
    /// Maskers.
    pub masker: u64,
    /// Squeeze-excitation. The official fraction leaves it out, the official total does not.
    pub squeeze: u64,
    /// Maskers, branch and shortcut with everything active; without squeeze-excitation.
    pub dense: u64,
    /// The same at the given rates.
    pub sparse: f64,
}

/// Multiply–accumulates of a network for one sample.
#[derive(Clone, Debug, PartialEq)]
pub struct NetMacs {
    /// Stem convolution.
    pub stem: u64,
    /// Max pooling behind it.
    pub pool: u64,
    /// Blocks in the order of execution.
    pub blocks: Vec<BlockMacs>,
    /// Last convolution, average pooling and classifier.
    pub head: u64,
}

impl BlockMacs {
    /// Sparse ÷ dense, the official `flops_perc`.
    pub fn fraction(&self) -> f64 {
        self.sparse / self.dense as f64
    }
}

impl NetMacs {
    /// Everything, at the rates.
    pub fn total(&self) -> f64 {
        let blocks: f64 = self.blocks.iter().map(|block| block.sparse + block.squeeze as f64).sum();
        (self.stem + self.pool + self.head) as f64 + blocks
    }

    /// Everything, with all units active.
    pub fn dense_total(&self) -> u64 {
        let fixed = self.stem.saturating_add(self.pool).saturating_add(self.head);
        self.blocks
            .iter()
            .fold(fixed, |sum, block| sum.saturating_add(block.dense).saturating_add(block.squeeze))
    }
}

impl BlockRates {
    /// The same density for every gate of `block`.
    pub fn uniform(block: &BlockSpec, density: f64) -> Self {
        let gate = &block.gate;
        let spatial = if gate.spatial.is_some() { density } else { 1.0 };
        Self {
            channel: if gate.channel.is_some() { density } else { 1.0 },
            spatial: std::iter::repeat_n(spatial, block.convs.len()).collect(),
        }
    }

    /// The means over a batch's masks; all 1 for a block without gates. No sample, or masks that do not fit the gates, are
    /// an error.
    pub fn of(block: &BlockSpec, samples: &[SampleMasks]) -> Result<Self, Error> {
        if samples.is_empty() {
            return Err(Error::spec(&block.name, "rates of an empty batch"));
        }
        let mut rates = Self::uniform(block, 0.0);
        let share = 1.0 / samples.len() as f64;
        for sample in samples {
            match (&block.gate.spatial, &sample.spatial) {
                (Some(_), Some(coarse)) => {
                    let mut masks = block.masks(coarse)?;
                    if let Some(last) = masks.last_mut() {
                        last.clone_from(coarse);
                    }
                    for (rate, mask) in rates.spatial.iter_mut().zip(&masks) {
                        *rate += mask.density() * share;
                    }
                }
                (None, None) => {}
                (gate, _) => return Err(unexpected(block, "spatial", gate.is_some())),
            }
            match (&block.gate.channel, &sample.channel) {
                (Some(gate), Some(keep)) if keep.len() == gate.groups => {
                    rates.channel +=
                        keep.iter().filter(|&&keep| keep).count() as f64 * share / keep.len() as f64;
                }
                (Some(gate), Some(keep)) => {
                    let reason = format!("{} channel decisions for {} groups", keep.len(), gate.groups);
                    return Err(Error::spec(&block.name, reason));
                }
                (None, None) => {}
                (gate, _) => return Err(unexpected(block, "channel", gate.is_some())),
            }
        }
        Ok(rates)
    }
}

fn unexpected(block: &BlockSpec, kind: &str, gated: bool) -> Error {
    let reason = if gated { "mask is missing" } else { "mask for a block without such a gate" };
    Error::spec(&block.name, format!("{kind} {reason}"))
}

impl BlockSpec {
    /// Multiply–accumulates per sample at `rates`. A number of spatial rates other than that of the convolutions, or a
    /// rate outside `0..=1`, is an error.
    pub fn macs(&self, rates: &BlockRates) -> Result<BlockMacs, Error> {
        let mut all = rates.spatial.iter().chain([&rates.channel]);
        if rates.spatial.len() != self.convs.len() || !all.all(|rate| (0.0..=1.0).contains(rate)) {
            return Err(Error::spec(&self.name, format!("{rates:?} for {} convolutions", self.convs.len())));
        }
        let spatial = self.gate.spatial.as_ref().map_or(0, SpatialGateSpec::macs);
        let masker =
            spatial.saturating_add(self.gate.channel.as_ref().map_or(0, |gate| gate.macs(self.input)));
        let mut macs = BlockMacs { masker, squeeze: 0, dense: masker, sparse: masker as f64 };
        let (mut size, last) = (self.input, self.convs.len() - 1);
        for (index, (conv, &rate)) in self.convs.iter().zip(&rates.spatial).enumerate() {
            size = conv.output_size(size).unwrap_or(size);
            let dense = conv.macs(size);
            let depthwise = conv.groups > 1 && conv.groups == conv.c_in;
            let masked_sides = if depthwise { 1 } else { i32::from(index > 0) + i32::from(index < last) };
            macs.dense = macs.dense.saturating_add(dense);
            macs.sparse += dense as f64 * rates.channel.powi(masked_sides) * rate;
        }
        if let Shortcut::Projection(conv) = &self.shortcut {
            let dense = conv.macs(self.output);
            macs.dense = macs.dense.saturating_add(dense);
            macs.sparse += dense as f64;
        }
        if let Some(se) = &self.squeeze_excite {
            macs.squeeze =
                product(&[se.fc1.c_in, se.fc1.c_out]).saturating_add(product(&[se.fc2.c_in, se.fc2.c_out]));
        }
        Ok(macs)
    }
}

impl NetSpec {
    /// Multiply–accumulates per sample at the blocks' rates, one entry a block.
    pub fn macs(&self, rates: &[BlockRates]) -> Result<NetMacs, Error> {
        if rates.len() != self.blocks.len() {
            let reason = format!("rates of {} blocks, the network has {}", rates.len(), self.blocks.len());
            return Err(Error::spec(&self.name, reason));
        }
        let blocks = self.blocks.iter().zip(rates).map(|(block, rates)| block.macs(rates));
        let blocks = blocks.collect::<Result<_, _>>()?;
        let size = self.stem.conv.output_size(self.input.size).unwrap_or(self.input.size);
        let stem = self.stem.conv.macs(size);
        let pool = self.stem.pool.map_or(0, |pool| {
            let size = pool.output_size(size).unwrap_or(size);
            product(&[self.stem.conv.c_out, size.h, size.w, pool.kernel, pool.kernel])
        });
        let last = self.blocks.last().map_or(size, |block| block.output);
        let conv = self.head.conv.as_ref().map_or(0, |conv| conv.macs(last));
        let fc = &self.head.fc;
        let head = conv.saturating_add(fc.c_in as u64).saturating_add(product(&[fc.c_in, fc.c_out]));
        Ok(NetMacs { stem, pool, blocks, head })
    }

    /// Multiply–accumulates per sample with the same density at every gate.
    pub fn macs_at(&self, density: f64) -> Result<NetMacs, Error> {
        let rates: Vec<_> = self.blocks.iter().map(|block| BlockRates::uniform(block, density)).collect();
        self.macs(&rates)
    }
}

impl ConvSpec {
    /// Multiply–accumulates for one sample with an output map of size `output`.
    pub fn macs(&self, output: MapSize) -> u64 {
        let per_output = product(&[self.c_in / self.groups.max(1), self.kernel, self.kernel]);
        per_output.saturating_mul(product(&[self.c_out, output.h, output.w]))
    }
}

impl SpatialGateSpec {
    /// Pool and convolution as the official code counts them: `(c + 2c + c)` for every cell.
    pub fn macs(&self) -> u64 {
        product(&[4, self.c_in, self.grid.h, self.grid.w])
    }
}

impl ChannelGateSpec {
    /// Multiply–accumulates on a block input of size `input`. As in the official code, the convolution of `conv_linear` counts
    /// for one pixel only.
    pub fn macs(&self, input: MapSize) -> u64 {
        let (c, logits) = (self.c_in, self.groups.saturating_mul(2));
        let pool = |channels: usize| product(&[channels, input.h, input.w]);
        let layers = |hidden: usize| product(&[c, hidden]).saturating_add(product(&[hidden, logits]));
        match self.head {
            ChannelHead::Mlp1 => pool(c).saturating_add(product(&[c, logits])),
            ChannelHead::Mlp2 { hidden } => pool(c).saturating_add(layers(hidden)),
            ChannelHead::ConvLinear { hidden } => pool(hidden).saturating_add(layers(hidden)),
        }
    }
}

/// Product, saturating.
pub(crate) fn product(factors: &[usize]) -> u64 {
    factors.iter().fold(1, |product: u64, &factor| product.saturating_mul(factor as u64))
}
