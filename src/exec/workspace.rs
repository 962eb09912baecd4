//! Memory of one inference, made once and used again.

use super::network::{Block, ConvWeights, Network, PreparedShortcut};
use super::trace::MAX_CONVS;
use anyhow::Result;
use laud_kernels::compact::BitMap;
use laud_kernels::{Backend, Channels, Extent, Rows};

/// Buffers, lists and decisions for inferences of up to `batch` samples.
pub(super) struct Workspace<B: Backend> {
    pub(super) batch: usize,
    pub(super) scratch: B::Scratch,
    /// The image with its border.
    pub(super) image: B::Buffer,
    /// The residual stream: a block reads one and writes the same or the other.
    pub(super) stream: [B::Buffer; 2],
    /// What the branch's convolutions hand on.
    pub(super) branch: [B::Buffer; 2],
    pub(super) lists: Lists,
}

/// What is active in the block being run, and the memory to find out.
pub(super) struct Lists {
    /// Decisions about patches and channel groups.
    pub(super) margins: Vec<f32>,
    pub(super) keep_patches: Vec<bool>,
    pub(super) keep_channels: Vec<bool>,
    /// Decisions about patches at the granularity of the plan.
    pub(super) coarse: Vec<bool>,
    /// Means and hidden features of channel gates, and of the head.
    pub(super) features: [Vec<f32>; 2],
    /// Active output pixels of each convolution of the branch.
    pub(super) maps: [BitMap; MAX_CONVS],
    pub(super) rows: [Rows; MAX_CONVS],
    /// Pixels outside the mask, which a projection shortcut fills too.
    pub(super) others: Rows,
    /// Every pixel of the block's input map and of its output map.
    pub(super) all_input: Rows,
    pub(super) all_output: Rows,
    /// Active channels inside the branch.
    pub(super) inner: Channels,
    /// Every channel, for operands that are not gated.
    pub(super) all_channels: [Channels; 2],
}

impl<B: Backend> Workspace<B> {
    /// Makes everything that inferences of up to `batch` samples need.
    pub(super) fn new(backend: &B, network: &Network<B>, batch: usize) -> Result<Self> {
        let mut sizes = Sizes::default();
        let stem = &network.stem.geometry;
        sizes.stream(stem.output, stem.c_out);
        if let Some(pool) = network.pool {
            sizes.stream(pool.output, stem.c_out);
        }
        for block in &network.blocks {
            sizes.block(block);
        }
        if let Some(conv) = &network.head {
            sizes.stream(conv.geometry.output, conv.geometry.c_out);
        }
        let features = network.classifier.c_in().max(network.classifier.c_out()).max(sizes.features);
        let buffer = |per_sample: usize, what: &str| backend.buffer(batch * per_sample, what);
        let mut scratch = backend.scratch()?;
        let mut reserve = |conv: &super::network::Conv<B>, channels| match &conv.weights {
            ConvWeights::Gemm(filter) => backend.reserve(&mut scratch, filter, channels),
            ConvWeights::Depthwise(_) => Ok(()),
        };
        reserve(&network.stem, false)?;
        network.head.iter().try_for_each(|conv| reserve(conv, false))?;
        for block in &network.blocks {
            block.convs.iter().try_for_each(|conv| reserve(conv, block.channel_gate.is_some()))?;
            if let PreparedShortcut::Projection(conv) = &block.shortcut {
                reserve(conv, false)?;
            }
            if let Some(conv) = block.channel_gate.as_ref().and_then(|gate| gate.reduce.as_ref()) {
                reserve(conv, false)?;
            }
        }
        for (weights, _) in network.blocks.iter().filter_map(|block| block.squeeze.as_ref()) {
            backend.reserve_squeeze_excite(&mut scratch, weights, batch)?;
        }
        let lists = Lists {
            margins: vec![0.0; batch * sizes.units],
            keep_patches: vec![false; batch * sizes.units],
            keep_channels: vec![false; batch * sizes.units],
            coarse: vec![false; batch * sizes.units],
            features: std::array::from_fn(|_| vec![0.0; batch * features]),
            maps: std::array::from_fn(|_| BitMap::with_capacity(batch, sizes.largest)),
            rows: std::array::from_fn(|_| Rows::with_capacity(batch, sizes.largest.pixels())),
            others: Rows::with_capacity(batch, sizes.largest.pixels()),
            all_input: Rows::with_capacity(batch, 0),
            all_output: Rows::with_capacity(batch, 0),
            inner: Channels::with_capacity(batch, sizes.channels),
            all_channels: [Channels::all(0), Channels::all(0)],
        };
        Ok(Self {
            batch,
            scratch,
            image: buffer(stem.input.pixels() * stem.c_in, "image")?,
            stream: [buffer(sizes.stream, "residual stream")?, buffer(sizes.stream, "residual stream")?],
            branch: [buffer(sizes.branch[0], "branch")?, buffer(sizes.branch[1], "branch")?],
            lists,
        })
    }
}

/// Largest of everything over the blocks, per sample.
#[derive(Default)]
struct Sizes {
    stream: usize,
    branch: [usize; 2],
    units: usize,
    features: usize,
    channels: usize,
    largest: Extent,
}

impl Sizes {
    fn stream(&mut self, map: Extent, c: usize) {
        self.stream = self.stream.max(map.pixels() * c);
    }

    fn block<B: Backend>(&mut self, block: &Block<B>) {
        self.stream(block.input, block.c_in());
        self.stream(block.output, block.c_out());
        for (i, conv) in block.convs.iter().enumerate() {
            let map = conv.geometry.output;
            if i + 1 < block.convs.len() {
                let size = &mut self.branch[i % 2];
                *size = (*size).max(map.pixels() * conv.geometry.c_out);
                self.channels = self.channels.max(conv.geometry.c_out);
            }
            for map in [map, conv.geometry.input] {
                if map.pixels() > self.largest.pixels() {
                    self.largest = map;
                }
            }
        }
        if let Some(gate) = &block.patch_gate {
            self.units = self.units.max(gate.grid.pixels());
        }
        if let Some(gate) = &block.channel_gate {
            self.units = self.units.max(gate.groups);
            self.features = self.features.max(block.c_in());
            for layer in &gate.layers {
                self.features = self.features.max(layer.c_in()).max(layer.c_out());
            }
            if let Some(conv) = &gate.reduce {
                let size = &mut self.branch[0];
                *size = (*size).max(conv.geometry.output.pixels() * conv.geometry.c_out);
            }
        }
    }
}
