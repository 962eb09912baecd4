//! The checks that make a [`NetSpec`] safe to allocate and to run.

use crate::layers::{MAX_CHANNELS, MAX_CLASSES, MAX_SIDE};
use crate::macs::product;
use crate::{
    BlockSpec, ChannelHead, ConvSpec, Error, GateSpec, LinearSpec, MapSize, NetSpec, Shortcut,
    SqueezeExciteSpec,
};

/// Largest number of values of one sample's feature map.
const MAX_MAP: u64 = 1 << 31;
/// Largest number of parameters of a network.
const MAX_PARAMETERS: u64 = 1 << 32;

impl NetSpec {
    /// Whether all parts fit together and no size is absurd. [`NetConfig::build`](crate::NetConfig::build) has checked
    /// this; a spec read from elsewhere needs it before use.
    pub fn validate(&self) -> Result<(), Error> {
        check("input", (1..=MAX_CHANNELS).contains(&self.input.channels), || {
            format!("{} channels", self.input.channels)
        })?;
        map("input", self.input.channels, self.input.size)?;
        let stem = &self.stem.conv;
        equal("stem", "input channels", stem.c_in, self.input.channels)?;
        let mut size = conv("stem", stem, self.input.size)?;
        if let Some(pool) = &self.stem.pool {
            let sane = (1..=MAX_SIDE).contains(&pool.kernel) && pool.stride > 0 && pool.pad < pool.kernel;
            check("stem pool", sane, || format!("{pool:?}"))?;
            size = pool.output_size(size).ok_or_else(|| {
                Error::spec("stem pool", format!("window {} on a {}×{} map", pool.kernel, size.h, size.w))
            })?;
        }
        let mut channels = stem.c_out;
        for block in &self.blocks {
            equal(&block.name, "input size", block.input, size)?;
            channels = self::block(block, channels)?;
            size = block.output;
        }
        if let Some(head) = &self.head.conv {
            equal("head", "input channels", head.c_in, channels)?;
            conv("head", head, size)?;
            channels = head.c_out;
        }
        linear(&self.head.fc, channels, self.head.fc.c_out, MAX_CLASSES)?;
        let parameters = self.parameter_count();
        check("network", parameters <= MAX_PARAMETERS, || format!("{parameters} parameters are too many"))
    }
}

fn check(layer: &str, holds: bool, reason: impl FnOnce() -> String) -> Result<(), Error> {
    if holds { Ok(()) } else { Err(Error::spec(layer, reason())) }
}

fn equal<T: PartialEq + std::fmt::Debug>(layer: &str, what: &str, found: T, wanted: T) -> Result<(), Error> {
    check(layer, found == wanted, || format!("{what} {found:?}, expected {wanted:?}"))
}

fn map(layer: &str, channels: usize, size: MapSize) -> Result<(), Error> {
    let sane = (1..=MAX_SIDE).contains(&size.h) && (1..=MAX_SIDE).contains(&size.w);
    let values = product(&[channels, size.h, size.w]);
    check(layer, sane && values <= MAX_MAP, || {
        format!("a map of {channels} channels and {}×{} pixels is empty or too large", size.h, size.w)
    })
}

fn conv(layer: &str, conv: &ConvSpec, input: MapSize) -> Result<MapSize, Error> {
    let ConvSpec { c_in, c_out, kernel, stride, groups, pad, .. } = conv;
    let channels = [*c_in, *c_out, *groups].iter().all(|n| (1..=MAX_CHANNELS).contains(n));
    let window = [*kernel, *stride].iter().all(|n| (1..=MAX_SIDE).contains(n));
    let padded = [pad.top, pad.left, pad.bottom, pad.right].iter().all(|n| n < kernel);
    let divides = channels && c_in.is_multiple_of(*groups) && c_out.is_multiple_of(*groups);
    check(layer, window && padded && divides, || {
        format!(
            "convolution {} of {c_in} to {c_out} channels in {groups} groups, kernel {kernel}, stride {stride}, {pad:?}",
            conv.weight
        )
    })?;
    let output = conv.output_size(input).ok_or_else(|| {
        Error::spec(layer, format!("kernel {kernel} of {} on a {}×{} map", conv.weight, input.h, input.w))
    })?;
    map(layer, *c_out, output)?;
    Ok(output)
}

fn linear(linear: &LinearSpec, c_in: usize, c_out: usize, max: usize) -> Result<(), Error> {
    equal(&linear.weight, "input features", linear.c_in, c_in)?;
    equal(&linear.weight, "output features", linear.c_out, c_out)?;
    check(&linear.weight, (1..=max).contains(&c_out), || format!("{c_out} output features"))
}

/// Checks a block that reads `c_in` channels; the channels it writes.
fn block(block: &BlockSpec, c_in: usize) -> Result<usize, Error> {
    let name = block.name.as_str();
    let (mut channels, mut size) = (c_in, block.input);
    check(name, !block.convs.is_empty(), || "the branch has no convolution".into())?;
    for part in &block.convs {
        equal(name, "input channels", part.c_in, channels)?;
        size = conv(name, part, size)?;
        channels = part.c_out;
    }
    equal(name, "output size", block.output, size)?;
    let inner = block.convs.iter().rev().nth(1).map(|conv| conv.c_out);
    if let Some(SqueezeExciteSpec { fc1, fc2, .. }) = &block.squeeze_excite {
        let inner = inner.ok_or_else(|| Error::spec(name, "squeeze-excitation needs two convolutions"))?;
        linear(fc1, inner, fc1.c_out, MAX_CHANNELS)?;
        linear(fc2, fc1.c_out, inner, MAX_CHANNELS)?;
    }
    match &block.shortcut {
        Shortcut::None => check(name, block.gate.spatial.is_none(), || {
            "a spatial or layer gate needs a shortcut, which the block does not have".into()
        })?,
        Shortcut::Identity => {
            equal(name, "shortcut channels", c_in, channels)?;
            equal(name, "shortcut size", block.input, size)?;
        }
        Shortcut::Projection(projection) => {
            equal(name, "shortcut input channels", projection.c_in, c_in)?;
            equal(name, "shortcut size", conv(name, projection, block.input)?, size)?;
            equal(name, "shortcut channels", projection.c_out, channels)?;
        }
        &Shortcut::PadChannels { stride, before, after } => {
            let padded = before.checked_add(after).and_then(|added| added.checked_add(c_in));
            equal(name, "shortcut channels", padded, Some(channels))?;
            check(name, stride > 0, || "shortcut of stride 0".into())?;
            let kept = MapSize { h: block.input.h.div_ceil(stride), w: block.input.w.div_ceil(stride) };
            equal(name, "shortcut size", kept, size)?;
        }
    }
    gate(block, c_in)?;
    Ok(channels)
}

fn gate(block: &BlockSpec, c_in: usize) -> Result<(), Error> {
    let GateSpec { spatial, channel } = &block.gate;
    if let Some(gate) = spatial {
        equal(&gate.prefix, "input channels", gate.c_in, c_in)?;
        let MapSize { h, w } = block.output;
        let fits = (1..=h).contains(&gate.grid.h) && (1..=w).contains(&gate.grid.w);
        check(&gate.prefix, fits, || format!("a {}×{} grid on a {h}×{w} map", gate.grid.h, gate.grid.w))?;
    }
    if let Some(gate) = channel {
        equal(&gate.prefix, "input channels", gate.c_in, c_in)?;
        check(&gate.prefix, block.convs.len() > 1, || "a channel gate needs two convolutions".into())?;
        let width = gate.groups.checked_mul(gate.group_size);
        for conv in &block.convs[..block.convs.len() - 1] {
            equal(&gate.prefix, "groups × group size", width, Some(conv.c_out))?;
        }
        let hidden = match gate.head {
            ChannelHead::Mlp1 => 1,
            ChannelHead::Mlp2 { hidden } | ChannelHead::ConvLinear { hidden } => hidden,
        };
        check(&gate.prefix, (1..=MAX_CHANNELS).contains(&hidden), || format!("{hidden} hidden features"))?;
    }
    Ok(())
}
