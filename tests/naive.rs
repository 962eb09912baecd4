//! The masked network once more, in f64 loops without a tensor library: what the letters mean, to be read beside
//! `laud::train`. Gates do not decide here; masks are given.

use std::collections::HashMap;

use candle_core::Tensor;
use laud::train::BlockMasks;
use laud_models::{
    Activation, BlockSpec, ConvSpec, LinearSpec, MapSize, MaskGrid, MaskPoint, MaxPoolSpec, NetSpec,
    Shortcut, SqueezePooling,
};

use crate::compare::values;

/// One sample's map `[c, h, w]`.
#[derive(Clone, Debug)]
pub(crate) struct Map {
    pub(crate) c: usize,
    pub(crate) size: MapSize,
    pub(crate) v: Vec<f64>,
}

impl Map {
    fn new(c: usize, size: MapSize, mut value: impl FnMut(usize, usize, usize) -> f64) -> Self {
        let MapSize { h, w } = size;
        let v = (0..c * h * w).map(|i| value(i / (h * w), i / w % h, i % w)).collect();
        Self { c, size, v }
    }

    pub(crate) fn at(&self, c: usize, y: usize, x: usize) -> f64 {
        self.v[(c * self.size.h + y) * self.size.w + x]
    }

    /// 0, or another value, outside the map.
    fn padded(&self, c: usize, y: isize, x: isize, outside: f64) -> f64 {
        let inside = (0..self.size.h as isize).contains(&y) && (0..self.size.w as isize).contains(&x);
        if inside { self.at(c, y as usize, x as usize) } else { outside }
    }

    fn mean(&self, active: impl Fn(usize, usize) -> bool) -> Vec<f64> {
        let positions: Vec<_> = (0..self.size.h)
            .flat_map(|y| (0..self.size.w).map(move |x| (y, x)))
            .filter(|&(y, x)| active(y, x))
            .collect();
        let sum = |c| positions.iter().map(|&(y, x)| self.at(c, y, x)).sum::<f64>();
        (0..self.c).map(|c| sum(c) / positions.len() as f64).collect()
    }
}

/// Samples of a tensor `[n, c, h, w]`.
pub(crate) fn samples(tensor: &Tensor) -> Vec<Map> {
    let (n, c, h, w) = tensor.dims4().unwrap();
    let all = values(tensor);
    let sample = |i| all[i * c * h * w..][..c * h * w].iter().map(|&value| f64::from(value)).collect();
    (0..n).map(|i| Map { c, size: MapSize { h, w }, v: sample(i) }).collect()
}

/// Weights in f64.
pub(crate) struct Naive(HashMap<String, Vec<f64>>);

impl Naive {
    pub(crate) fn new(weights: &HashMap<String, Tensor>) -> Self {
        let wide = |tensor: &Tensor| values(tensor).into_iter().map(f64::from).collect();
        Self(weights.iter().map(|(name, tensor)| (name.clone(), wide(tensor))).collect())
    }

    /// One sample through the network: the maps behind each stage, and the logits. `masks` as given for all samples.
    pub(crate) fn network(
        &self,
        net: &NetSpec,
        image: &Map,
        sample: usize,
        masks: &[BlockMasks],
    ) -> (Vec<Map>, Vec<f64>) {
        let mut x = self.conv(&net.stem.conv, image, None);
        if let Some(pool) = &net.stem.pool {
            x = max_pool(pool, &x);
        }
        let mut stages: Vec<Map> = Vec::new();
        for (block, masks) in net.blocks.iter().zip(masks) {
            x = self.block(block, &x, sample, masks);
            stages.truncate(block.stage);
            stages.push(x.clone());
        }
        if let Some(conv) = &net.head.conv {
            x = self.conv(conv, &x, None);
        }
        (stages, self.linear(&net.head.fc, &x.mean(|_, _| true)))
    }

    fn block(&self, block: &BlockSpec, x: &Map, sample: usize, masks: &BlockMasks) -> Map {
        let spatial = block.gate.spatial.as_ref().zip(masks.spatial.as_ref()).map(|(gate, bits)| {
            let cells = gate.grid.h * gate.grid.w;
            MaskGrid::new(gate.grid, bits[sample * cells..][..cells].to_vec()).unwrap().upsample(block.output)
        });
        let channel = block.gate.channel.as_ref().zip(masks.channel.as_ref()).map(|(gate, bits)| {
            let groups = &bits[sample * gate.groups..][..gate.groups];
            (groups.iter().flat_map(|&keep| vec![keep; gate.group_size]).collect::<Vec<_>>(), gate.point)
        });
        let active = |y: usize, x: usize| spatial.as_ref().is_none_or(|mask| mask.get(y, x));
        let branch = spatial.as_ref().is_none_or(|mask| mask.active() > 0).then(|| {
            let (last, inner) = block.convs.split_last().unwrap();
            let mut y = x.clone();
            for conv in inner {
                y = self.conv(conv, &y, channel.as_ref().map(|(keep, point)| (keep.as_slice(), *point)));
            }
            if let Some(se) = &block.squeeze_excite {
                let pooled = y.mean(|i, j| se.pooling == SqueezePooling::Dense || active(i, j));
                let squeezed: Vec<_> = self.linear(&se.fc1, &pooled).iter().map(|v| v.max(0.0)).collect();
                let scale = self.linear(&se.fc2, &squeezed);
                y = Map::new(y.c, y.size, |c, i, j| y.at(c, i, j) / (1.0 + (-scale[c]).exp()));
            }
            self.conv(last, &y, None)
        });
        let projected = match &block.shortcut {
            Shortcut::Projection(conv) => Some(self.conv(conv, x, None)),
            _ => None,
        };
        Map::new(block.convs.last().unwrap().c_out, block.output, |c, i, j| {
            let shortcut = match (&block.shortcut, &projected) {
                (&Shortcut::PadChannels { stride, before, .. }, _) => {
                    let inside = (before..before + x.c).contains(&c);
                    if inside { x.at(c - before, i * stride, j * stride) } else { 0.0 }
                }
                (Shortcut::None, _) => 0.0,
                (_, Some(projected)) => projected.at(c, i, j),
                (_, None) => x.at(c, i, j),
            };
            let branch = branch.as_ref().filter(|_| active(i, j)).map_or(0.0, |branch| branch.at(c, i, j));
            activate(shortcut + branch, block.act)
        })
    }

    pub(crate) fn conv(&self, conv: &ConvSpec, x: &Map, mask: Option<(&[bool], MaskPoint)>) -> Map {
        let weight = &self.0[&conv.weight];
        let bias = conv.bias.as_ref().map(|name| &self.0[name]);
        let &ConvSpec { c_in, c_out, kernel, stride, groups, pad, .. } = conv;
        let (deep, wide) = (c_in / groups, c_out / groups);
        Map::new(c_out, conv.output_size(x.size).unwrap(), |o, i, j| {
            let mut sum = 0.0;
            for (c, ky, kx) in
                (0..deep * kernel * kernel).map(|t| (t / kernel / kernel, t / kernel % kernel, t % kernel))
            {
                let row = (i * stride + ky) as isize - pad.top as isize;
                let column = (j * stride + kx) as isize - pad.left as isize;
                let tap = weight[((o * deep + c) * kernel + ky) * kernel + kx];
                sum += tap * x.padded(o / wide * deep + c, row, column, 0.0);
            }
            let keep = |here| mask.is_none_or(|(keep, point)| point != here || keep[o]);
            if !keep(MaskPoint::BeforeNorm) {
                sum = 0.0;
            }
            sum += bias.map_or(0.0, |bias| bias[o]);
            if let Some(norm) = &conv.norm {
                let get = |suffix: &str| self.0[&format!("{}.{suffix}", norm.prefix)][o];
                let deviation = (get("running_var") + f64::from(norm.eps)).sqrt();
                sum = (sum - get("running_mean")) / deviation * get("weight") + get("bias");
            }
            if keep(MaskPoint::AfterActivation) { activate(sum, conv.act) } else { 0.0 }
        })
    }

    fn linear(&self, linear: &LinearSpec, x: &[f64]) -> Vec<f64> {
        let weight = &self.0[&linear.weight];
        let bias = linear.bias.as_ref().map(|name| &self.0[name]);
        let row = |o: usize| weight[o * linear.c_in..][..linear.c_in].iter();
        let product = |o| row(o).zip(x).map(|(weight, x)| weight * x).sum::<f64>();
        (0..linear.c_out).map(|o| product(o) + bias.map_or(0.0, |bias| bias[o])).collect()
    }
}

pub(crate) fn max_pool(pool: &MaxPoolSpec, x: &Map) -> Map {
    Map::new(x.c, pool.output_size(x.size).unwrap(), |c, i, j| {
        let taps = (0..pool.kernel * pool.kernel).map(|t| (t / pool.kernel, t % pool.kernel));
        let value = |(ky, kx)| {
            let at = |out: usize, tap: usize| (out * pool.stride + tap) as isize - pool.pad as isize;
            x.padded(c, at(i, ky), at(j, kx), f64::NEG_INFINITY)
        };
        taps.map(value).fold(f64::NEG_INFINITY, f64::max)
    })
}

fn activate(x: f64, act: Activation) -> f64 {
    match act {
        Activation::None => x,
        Activation::Relu => x.max(0.0),
        Activation::Relu6 => x.clamp(0.0, 6.0),
    }
}
