//! Memory of one inference, made once and used again.

use super::network::{Block, Conv, ConvWeights, Network, PreparedShortcut};
use super::trace::MAX_CONVS;
use crate::plan::Portions;
use anyhow::Result;
use laud_kernels::{Backend, Extent};
use std::ops::Range;

/// Buffers, lists and decisions for inferences of up to so many samples at a time.
pub(super) struct Workspace<B: Backend> {
    pub(super) portions: Portions,
    pub(super) scratch: B::Scratch,
    pub(super) maps: Maps<B>,
    pub(super) lists: Lists<B>,
    pub(super) results: Results<B>,
}

/// Feature maps.
pub(super) struct Maps<B: Backend> {
    /// The image with its border.
    pub(super) image: B::Buffer,
    /// The residual stream: a block reads one and writes the same or the other.
    pub(super) stream: [B::Buffer; 2],
    /// Streams of the samples that the front has seen and the back has not; as large as the others, where there are both.
    pub(super) joined: B::Buffer,
    /// What the branch's convolutions hand on.
    pub(super) branch: [B::Buffer; 2],
}

/// What is active in the block being run, and the memory to find out.
pub(super) struct Lists<B: Backend> {
    pub(super) margins: B::Vector<f32>,
    /// What each sample has spent, where units cost something.
    pub(super) spent: B::Vector<f32>,
    /// Means and hidden features of channel gates, and of the head.
    pub(super) features: [B::Vector<f32>; 2],
    /// Active output pixels of each convolution of the branch.
    pub(super) rows: [B::Rows; MAX_CONVS],
    /// Pixels outside the mask, which a projection shortcut fills too.
    pub(super) others: B::Rows,
    /// Every pixel of the map that an operation reads or writes.
    pub(super) all_rows: B::Rows,
    /// Active channels inside the branch.
    pub(super) inner: B::Channels,
    /// Every channel, for operands that are not gated.
    pub(super) all_channels: [B::Channels; 2],
}

/// What is told when an inference is over.
pub(super) struct Results<B: Backend> {
    pub(super) logits: B::Vector<f32>,
    /// Feature maps behind the stages; made when somebody asks.
    pub(super) stages: Vec<B::Vector<f32>>,
    /// Decisions of every gate, and numbers of rows of every convolution behind one; see [`Slot`].
    pub(super) keep: B::Vector<bool>,
    pub(super) starts: B::Vector<u32>,
    /// One for every block.
    pub(super) slots: Vec<Slot>,
}

/// Where the results of a block begin.
#[derive(Clone, Copy, Default)]
pub(super) struct Slot {
    /// Decisions about patches, `[batch, cells]`.
    pub(super) patches: usize,
    /// Decisions about channel groups, `[batch, groups]`.
    pub(super) groups: usize,
    /// Where the rows of each sample start, `[convolutions, batch + 1]`.
    pub(super) starts: usize,
}

impl<B: Backend> Workspace<B> {
    /// Makes everything that inferences in such portions need.
    pub(super) fn new(backend: &B, network: &Network<B>, portions: Portions) -> Result<Self> {
        let Portions { cut, front, back: batch } = portions;
        let sizes = Sizes::of(network, 0..network.blocks.len());
        let (before, behind) = (Sizes::of(network, 0..cut), Sizes::of(network, cut..network.blocks.len()));
        let buffer = |of: fn(&Sizes) -> usize, what: &str| {
            backend.buffer((front * of(&before)).max(batch * of(&behind)), what)
        };
        let stream = || buffer(|sizes| sizes.stream, "residual stream");
        let rows = || backend.rows(batch, sizes.largest.pixels());
        let features = network.classifier.c_in.max(sizes.features);
        let features = || backend.vector(batch * features, "features of gates");
        let [inner, every_in, every_out] = [sizes.channels, 0, 0].map(|c| backend.channels(batch, c));
        let (slots, keep, starts) = slots(network, batch);
        Ok(Self {
            portions,
            scratch: scratch(backend, network, batch)?,
            maps: Maps {
                image: backend.image(front, network.stem.geometry.input, network.stem.geometry.c_in)?,
                stream: [stream()?, stream()?],
                joined: if portions.split() { stream()? } else { backend.buffer(0, "residual stream")? },
                branch: [
                    buffer(|sizes| sizes.branch[0], "branch")?,
                    buffer(|sizes| sizes.branch[1], "branch")?,
                ],
            },
            lists: Lists {
                margins: backend.vector(batch * sizes.units, "margins")?,
                spent: backend.vector(batch, "accounts")?,
                features: [features()?, features()?],
                rows: [rows()?, rows()?, rows()?],
                others: rows()?,
                all_rows: backend.rows(batch, 0)?,
                inner: inner?,
                all_channels: [every_in?, every_out?],
            },
            results: Results {
                logits: backend.vector(batch * network.classifier.c_out, "logits")?,
                stages: Vec::new(),
                keep: backend.vector(keep, "decisions")?,
                starts: backend.vector(starts, "numbers of rows")?,
                slots,
            },
        })
    }
}

impl<B: Backend> Workspace<B> {
    /// Whether it is large enough for such portions.
    pub(super) fn fits(&self, portions: Portions) -> bool {
        let own = self.portions;
        own.front >= portions.front && own.back >= portions.back && (own.split() || !portions.split())
    }
}

/// Working memory of every operation.
fn scratch<B: Backend>(backend: &B, network: &Network<B>, batch: usize) -> Result<B::Scratch> {
    let mut scratch = backend.scratch()?;
    let mut reserve = |conv: &Conv<B>, channels| match &conv.weights {
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
    for block in &network.blocks {
        if let Some((weights, _)) = &block.squeeze {
            backend.reserve_squeeze_excite(&mut scratch, weights, batch)?;
        }
        if let Some(gate) = &block.patch_gate {
            backend.reserve_rows(&mut scratch, &gate.branch, batch)?;
        }
    }
    backend.reserve_stamps(&mut scratch, super::program::stamps(network.blocks.len()))?;
    Ok(scratch)
}

/// Slots of all blocks, and how many decisions and numbers of rows that makes.
fn slots<B: Backend>(network: &Network<B>, batch: usize) -> (Vec<Slot>, usize, usize) {
    let (mut keep, mut starts) = (0, 0);
    let slot = |block: &Block<B>| {
        let cells = block.patch_gate.as_ref().map_or(0, |gate| gate.cells());
        let groups = block.channel_gate.as_ref().map_or(0, |gate| gate.groups);
        let slot = Slot { patches: keep, groups: keep + batch * cells, starts };
        keep += batch * (cells + groups);
        starts += (batch + 1) * block.convs.len();
        slot
    };
    (network.blocks.iter().map(slot).collect(), keep, starts)
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
    /// Of some blocks, with the stem in front of the first and the head behind the last.
    fn of<B: Backend>(network: &Network<B>, blocks: Range<usize>) -> Self {
        let mut sizes = Self::default();
        let stem = &network.stem.geometry;
        if blocks.start == 0 {
            sizes.stream(stem.output, stem.c_out);
        }
        let (map, c) = network.behind(blocks.start);
        sizes.stream(map, c);
        network.blocks[blocks.clone()].iter().for_each(|block| sizes.block(block));
        if let Some(conv) = network.head.as_ref().filter(|_| blocks.end == network.blocks.len()) {
            sizes.stream(conv.geometry.output, conv.geometry.c_out);
        }
        sizes
    }

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
            self.units = self.units.max(gate.cells());
        }
        if let Some(gate) = &block.channel_gate {
            self.units = self.units.max(gate.groups);
            self.features = self.features.max(block.c_in());
            for layer in &gate.layers {
                self.features = self.features.max(layer.c_in).max(layer.c_out);
            }
            if let Some(conv) = &gate.reduce {
                let size = &mut self.branch[0];
                *size = (*size).max(conv.geometry.output.pixels() * conv.geometry.c_out);
            }
        }
    }
}
