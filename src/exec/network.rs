//! A network with its weights on a device.

use super::fold::{self, Between, Folded, Weights, act, extent, in_units, margin_rows};
use super::units::Units;
use anyhow::{Context, Result, ensure};
use laud_kernels::compact::Branch;
use laud_kernels::gate;
use laud_kernels::gather_gemm::FilterSpec;
use laud_kernels::squeeze_excite::WeightsSpec;
use laud_kernels::{Act, Backend, ConvGeometry, Extent};
use laud_models::{
    BlockSpec, ChannelGateSpec, ChannelHead, ConvSpec, LinearSpec, MapSize, MaskPoint, MaxPoolSpec, NetSpec,
    Padding, Shortcut, SpatialGateSpec, SqueezePooling,
};

/// Everything an inference reads and never writes.
pub(super) struct Network<B: Backend> {
    pub(super) stem: Conv<B>,
    /// Zero pixels laid around the image, so that the stem reads kernel rows as one run.
    pub(super) border: Padding,
    pub(super) image: Extent,
    /// What images are multiplied with, by channel.
    pub(super) image_scale: Option<Vec<f32>>,
    pub(super) pool: Option<ConvGeometry>,
    pub(super) blocks: Vec<Block<B>>,
    pub(super) head: Option<Conv<B>>,
    pub(super) classifier: Linear<B>,
}

/// A fully connected layer.
pub(super) struct Linear<B: Backend> {
    pub(super) weights: B::Linear,
    pub(super) c_in: usize,
    pub(super) c_out: usize,
}

/// A gate about patches, and what its decisions mean for the convolutions behind it.
pub(super) struct PatchGate<B: Backend> {
    pub(super) weights: B::PatchGate,
    pub(super) branch: Branch,
}

/// A convolution of either kind.
pub(super) struct Conv<B: Backend> {
    pub(super) weights: ConvWeights<B>,
    pub(super) geometry: ConvGeometry,
    pub(super) act: Act,
}

pub(super) enum ConvWeights<B: Backend> {
    Gemm(B::Filter),
    Depthwise(B::Depthwise),
}

pub(super) struct Block<B: Backend> {
    pub(super) name: String,
    pub(super) stage: usize,
    pub(super) input: Extent,
    pub(super) output: Extent,
    /// The residual branch.
    pub(super) convs: Vec<Conv<B>>,
    /// Squeeze-excitation before the last convolution.
    pub(super) squeeze: Option<(B::SqueezeExcite, SqueezePooling)>,
    pub(super) shortcut: PreparedShortcut<B>,
    pub(super) act: Act,
    /// What a stored number of the stream behind the block is worth, by channel; `None` where values are stored as they are.
    pub(super) units: Option<Vec<f32>>,
    pub(super) patch_gate: Option<PatchGate<B>>,
    pub(super) channel_gate: Option<ChannelGate<B>>,
}

pub(super) enum PreparedShortcut<B: Backend> {
    None,
    Identity,
    Projection(Conv<B>),
    PadChannels { stride: usize, before: usize },
}

pub(super) struct ChannelGate<B: Backend> {
    /// The 1×1 convolution of `conv_linear`, in front of the mean.
    pub(super) reduce: Option<Conv<B>>,
    pub(super) layers: Vec<Linear<B>>,
    pub(super) groups: usize,
    pub(super) group_size: usize,
}

impl<B: Backend> Conv<B> {
    /// Multiply-accumulates of one sample with everything active.
    pub(super) fn macs(&self) -> usize {
        self.geometry.output.pixels() * self.geometry.weights()
    }
}

impl<B: Backend> Block<B> {
    pub(super) fn c_in(&self) -> usize {
        self.convs[0].geometry.c_in
    }

    pub(super) fn c_out(&self) -> usize {
        self.convs[self.convs.len() - 1].geometry.c_out
    }

    /// Whether the block writes over the map it reads.
    pub(super) fn in_place(&self) -> bool {
        matches!(self.shortcut, PreparedShortcut::Identity)
    }
}

impl<B: Backend> PatchGate<B> {
    /// Units of one sample.
    pub(super) fn cells(&self) -> usize {
        self.branch.grid.pixels()
    }
}

impl<B: Backend> Network<B> {
    /// The stream's map and channels behind the first `blocks` blocks.
    pub(super) fn behind(&self, blocks: usize) -> (Extent, usize) {
        match self.blocks[..blocks].last() {
            Some(block) => (block.output, block.c_out()),
            None => {
                (self.pool.map_or(self.stem.geometry.output, |pool| pool.output), self.stem.geometry.c_out)
            }
        }
    }

    /// Whether block `i` is the last of its stage.
    pub(super) fn ends_stage(&self, i: usize) -> bool {
        self.blocks.get(i + 1).is_none_or(|next| next.stage != self.blocks[i].stage)
    }

    /// The last block of every stage.
    pub(super) fn stage_ends(&self) -> impl Iterator<Item = &Block<B>> {
        (0..self.blocks.len()).filter(|&i| self.ends_stage(i)).map(|i| &self.blocks[i])
    }

    /// Reads, folds and packs every tensor, one at a time, for values in `units`, or as they are.
    pub(super) fn prepare(
        spec: &NetSpec,
        backend: &B,
        weights: &dyn Weights,
        units: Option<&Units>,
    ) -> Result<Self> {
        let Padding { top, left, bottom, right } = spec.stem.conv.pad;
        let bordered = MapSize { h: spec.input.size.h + top + bottom, w: spec.input.size.w + left + right };
        let inner = ConvSpec { pad: Padding::default(), ..spec.stem.conv.clone() };
        let stem = fold::conv(weights, &inner, bordered)?;
        let stem = stem.between(units.map(|units| (&*units.input, &*units.stem))).context("stem")?;
        let stem = image_conv(backend, &stem)?;
        let (map, c) = (stem.geometry.output, stem.geometry.c_out);
        let pool = spec.stem.pool.map(|MaxPoolSpec { kernel, stride, pad }| {
            ConvGeometry::per_channel(map, c, kernel, stride, pad)
        });
        let map = pool.map_or(stem.geometry.output, |pool| pool.output);
        let block = |(i, block): (usize, &BlockSpec)| {
            let units = units.map(|units| (units, i));
            prepare_block(backend, weights, block, units).with_context(|| format!("block {}", block.name))
        };
        let blocks = spec.blocks.iter().enumerate().map(block).collect::<Result<Vec<_>>>()?;
        let last = spec.blocks.last().map_or(MapSize { h: map.h, w: map.w }, |block| block.output);
        let stream = units.map(|units| units.stream(blocks.len()));
        let behind = units.and_then(|units| units.head.as_deref());
        let head = spec.head.conv.as_ref();
        let head = head.map(|conv| gemm(backend, weights, conv, last, stream.zip(behind))).transpose()?;
        let mut classifier = fold::linear(weights, &spec.head.fc)?;
        fold::columns(&mut classifier.0, behind.or(stream));
        let classifier = linear(backend, classifier, false)?;
        let image = extent(spec.input.size);
        let image_scale = units.map(|units| units.input.iter().map(|unit| 1.0 / unit).collect());
        let border = spec.stem.conv.pad;
        Ok(Self { stem, border, image, image_scale, pool, blocks, head, classifier })
    }
}

/// `units`: with the block's number.
fn prepare_block<B: Backend>(
    backend: &B,
    weights: &dyn Weights,
    spec: &BlockSpec,
    units: Option<(&Units, usize)>,
) -> Result<Block<B>> {
    let stream = units.map(|(units, i)| units.stream(i));
    let units = units.map(|(units, i)| &units.blocks[i]);
    let behind = units.map(|units| &*units.output);
    let act = if units.is_some() { in_units(act(spec.act)) } else { act(spec.act) };
    let before_norm = spec.gate.channel.as_ref().is_some_and(|gate| gate.point == MaskPoint::BeforeNorm);
    ensure!(
        !(before_norm && spec.squeeze_excite.is_some()),
        "a channel mask before the normalisation cannot be combined with squeeze-excitation"
    );
    let mut convs = Vec::with_capacity(spec.convs.len());
    let mut map = spec.input;
    let mut worth: Option<Vec<f32>> = None;
    for (i, conv) in spec.convs.iter().enumerate() {
        let last = i + 1 == spec.convs.len();
        let mut folded = fold::conv(weights, conv, map)?;
        if last {
            // The activation belongs behind the shortcut.
            ensure!(
                folded.act == Act::None || spec.shortcut == Shortcut::None,
                "{}: activation before the addition",
                conv.weight
            );
            folded.act = if spec.shortcut == Shortcut::None { folded.act } else { act };
        }
        let of = |i: usize| units.and_then(|units| units.inner.get(i).map(|units| &**units)).or(behind);
        let from = if i == 0 { stream } else { of(i - 1) };
        let mut folded = folded.between(from.zip(of(i))).with_context(|| conv.weight.clone())?;
        let output_constant = (before_norm && !last).then(|| std::mem::take(&mut folded.zeroed));
        let group = spec.gate.channel.as_ref().map(|gate| gate.group_size);
        let group = group.filter(|_| !last);
        convs.push(pack(backend, &folded, worth.as_deref(), output_constant.as_deref(), group)?);
        worth = output_constant;
        map = MapSize { h: folded.geometry.output.h, w: folded.geometry.output.w };
    }
    ensure!(
        map == spec.output,
        "the branch ends in a {}×{} map, the block in {}×{}",
        map.h,
        map.w,
        spec.output.h,
        spec.output.w
    );
    let squeeze = spec.squeeze_excite.as_ref();
    let squeeze = squeeze.map(|se| {
        let (mut fc1, fc2) = (fold::linear(weights, &se.fc1)?, fold::linear(weights, &se.fc2)?);
        // Excitation is a factor: what it scales keeps its units.
        fold::columns(&mut fc1.0, units.and_then(|units| units.inner.last()).map(|units| &**units));
        let (c, q) = (se.fc1.c_in, se.fc1.c_out);
        let weights = WeightsSpec { c, q, fc1: &fc1.0, bias1: &fc1.1, fc2: &fc2.0, bias2: &fc2.1 };
        anyhow::Ok((backend.squeeze_excite_weights(&weights)?, se.pooling))
    });
    let squeeze = squeeze.transpose()?;
    let shortcut = match &spec.shortcut {
        Shortcut::None => PreparedShortcut::None,
        Shortcut::Identity => PreparedShortcut::Identity,
        Shortcut::Projection(conv) => {
            PreparedShortcut::Projection(gemm(backend, weights, conv, spec.input, stream.zip(behind))?)
        }
        Shortcut::PadChannels { stride, before, .. } => {
            PreparedShortcut::PadChannels { stride: *stride, before: *before }
        }
    };
    let everywhere = squeeze.as_ref().is_some_and(|(_, pooling)| *pooling == SqueezePooling::Dense);
    let branch = |grid| Branch { grid, convs: convs.iter().map(|conv| conv.geometry).collect(), everywhere };
    let patch_gate = spec.gate.spatial.as_ref();
    let patch_gate = patch_gate
        .map(|gate| prepare_patch_gate(backend, weights, gate, branch(extent(gate.grid)), stream))
        .transpose()?;
    let channel_gate = spec.gate.channel.as_ref();
    let channel_gate = channel_gate
        .map(|gate| {
            let reduced = units.and_then(|units| units.gate.as_deref());
            prepare_channel_gate(backend, weights, gate, spec.input, (stream, reduced))
        })
        .transpose()?;
    Ok(Block {
        name: spec.name.clone(),
        stage: spec.stage,
        input: extent(spec.input),
        output: extent(spec.output),
        convs,
        squeeze,
        shortcut,
        act,
        units: behind.map(<[f32]>::to_vec),
        patch_gate,
        channel_gate,
    })
}

fn linear<B: Backend>(backend: &B, (weight, bias): (Vec<f32>, Vec<f32>), relu: bool) -> Result<Linear<B>> {
    let layer = gate::Linear::new(weight, bias, relu)?;
    let (c_in, c_out) = (layer.c_in(), layer.c_out());
    Ok(Linear { weights: backend.linear_weights(layer)?, c_in, c_out })
}

fn prepare_patch_gate<B: Backend>(
    backend: &B,
    weights: &dyn Weights,
    spec: &SpatialGateSpec,
    branch: Branch,
    units: Option<&[f32]>,
) -> Result<PatchGate<B>> {
    let mut weight = fold::tensor(weights, &format!("{}.conv.weight", spec.prefix), 2 * spec.c_in)?;
    fold::columns(&mut weight, units);
    let bias = fold::tensor(weights, &format!("{}.conv.bias", spec.prefix), 2)?;
    let gate = gate::PatchGate { weight: margin_rows(&weight), bias: bias[0] - bias[1], grid: branch.grid };
    Ok(PatchGate { weights: backend.patch_gate_weights(gate)?, branch })
}

fn prepare_channel_gate<B: Backend>(
    backend: &B,
    weights: &dyn Weights,
    spec: &ChannelGateSpec,
    input: MapSize,
    (stream, reduced): (Option<&[f32]>, Option<&[f32]>),
) -> Result<ChannelGate<B>> {
    let name = |part: &str| format!("{}.{part}", spec.prefix);
    let layer = |part: &str, (c_in, units): (usize, Option<&[f32]>), c_out: usize| {
        let (weight, bias) = (name(&format!("{part}.weight")), Some(name(&format!("{part}.bias"))));
        let mut layer = fold::linear(weights, &LinearSpec { weight, bias, c_in, c_out })?;
        fold::columns(&mut layer.0, units);
        anyhow::Ok(layer)
    };
    let last = |(weight, bias): (Vec<f32>, Vec<f32>)| {
        linear(backend, (margin_rows(&weight), margin_rows(&bias)), false)
    };
    let logits = 2 * spec.groups;
    let mut reduce = None;
    let layers = match spec.head {
        ChannelHead::Mlp1 => vec![last(layer("conv", (spec.c_in, stream), logits)?)?],
        ChannelHead::Mlp2 { hidden } => vec![
            linear(backend, layer("conv.0", (spec.c_in, stream), hidden)?, true)?,
            last(layer("conv.2", (hidden, None), logits)?)?,
        ],
        ChannelHead::ConvLinear { hidden } => {
            let conv = spec.reduce_conv(hidden);
            reduce = Some(gemm(backend, weights, &conv, input, stream.zip(reduced))?);
            vec![last(layer("linear", (hidden, reduced), logits)?)?]
        }
    };
    Ok(ChannelGate { reduce, layers, groups: spec.groups, group_size: spec.group_size })
}

/// A convolution without inactive channels.
fn gemm<B: Backend>(
    backend: &B,
    weights: &dyn Weights,
    spec: &ConvSpec,
    input: MapSize,
    units: Between<'_>,
) -> Result<Conv<B>> {
    let folded = fold::conv(weights, spec, input)?.between(units).with_context(|| spec.weight.clone())?;
    pack(backend, &folded, None, None, None)
}

/// A convolution that reads images.
fn image_conv<B: Backend>(backend: &B, folded: &Folded) -> Result<Conv<B>> {
    let Folded { geometry, weight, bias, act, .. } = folded;
    let (input_constant, output_constant, output_group) = (None, None, None);
    let geometry = *geometry;
    let spec = FilterSpec { geometry, weight, bias, input_constant, output_constant, output_group };
    let weights = ConvWeights::Gemm(backend.image_filter(&spec)?);
    Ok(Conv { weights, geometry, act: *act })
}

fn pack<B: Backend>(
    backend: &B,
    folded: &Folded,
    input_constant: Option<&[f32]>,
    output_constant: Option<&[f32]>,
    output_group: Option<usize>,
) -> Result<Conv<B>> {
    let Folded { geometry, ref weight, ref bias, .. } = *folded;
    let spec = FilterSpec { geometry, weight, bias, input_constant, output_constant, output_group };
    let depthwise =
        geometry.groups > 1 && geometry.groups == geometry.c_in && geometry.c_in == geometry.c_out;
    let weights = match depthwise {
        true => ConvWeights::Depthwise(backend.depthwise_filter(&spec)?),
        false => ConvWeights::Gemm(backend.filter(&spec)?),
    };
    Ok(Conv { weights, geometry, act: folded.act })
}
