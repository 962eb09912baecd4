//! How large values become inside a network.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use candle_core::Tensor;
use laud_models::{NetSpec, RANGE_PREFIX};

use super::block::{Block, Residual};
use super::decisions::PerGate;
use super::layers::{Conv, Statistics, Weights};
use super::maps::{Map, MapOps};

/// The largest magnitude of every channel at every point of [`NetSpec::ranges`], with everything computed: gates decide nothing.
pub struct Ranges {
    spec: NetSpec,
    stem: Conv,
    blocks: Vec<(Residual, Option<Conv>)>,
    head: Option<Conv>,
    maps: Arc<dyn MapOps>,
    largest: BTreeMap<String, Vec<f32>>,
}

impl Ranges {
    /// Of the network on `weights`, by the names of [`NetSpec::parameters`].
    ///
    /// # Errors
    /// A spec that does not hold together; a missing tensor or one of another shape.
    pub fn new(spec: &NetSpec, weights: &HashMap<String, Tensor>, maps: Arc<dyn MapOps>) -> Result<Self> {
        spec.validate()?;
        let weights = Weights(weights);
        let plain = spec.without_gates();
        let blocks = spec.blocks.iter().zip(&plain.blocks).map(|(block, plain)| {
            let gate = block.gate.channel.as_ref().zip(block.gate_hidden());
            let reduce = gate.map(|(gate, hidden)| Conv::load(&gate.reduce_conv(hidden), &weights));
            Ok((Block::load(plain, &weights)?.residual, reduce.transpose()?))
        });
        Ok(Self {
            stem: Conv::load(&spec.stem.conv, &weights)?,
            blocks: blocks.collect::<Result<_>>()?,
            head: spec.head.conv.as_ref().map(|conv| Conv::load(conv, &weights)).transpose()?,
            spec: plain,
            maps,
            largest: BTreeMap::new(),
        })
    }

    /// Takes `images [n, c, h, w]` into account, prepared as the spec's input says.
    ///
    /// # Errors
    /// Images of another shape; values that are not finite, with the point where that is.
    pub fn see(&mut self, images: &Tensor) -> Result<()> {
        let Self { spec, stem, blocks, head, maps, largest } = self;
        let conv = |conv: &Conv, map: &Map| maps.conv(conv, map, Statistics::Stored);
        let mut note = |point: &str, map: &Map| raise(largest, point, &maps.leave(map)?);
        let mut x = maps.enter(images)?;
        note("input", &x)?;
        x = conv(stem, &x).context("stem")?;
        note("stem", &x)?;
        if let Some(pool) = &spec.stem.pool {
            x = maps.max_pool(&x, pool)?;
        }
        for (block, reduce) in blocks {
            let name = &block.spec.name;
            let mut run = || {
                if let Some(reduce) = reduce {
                    note(&format!("{name}.gate"), &conv(reduce, &x)?)?;
                }
                let last = block.convs.len() - 1;
                let mut inner = x.clone();
                for (i, link) in block.convs[..last].iter().enumerate() {
                    inner = conv(link, &inner)?;
                    note(&format!("{name}.{i}"), &inner)?;
                }
                if let Some(projection) = &block.projection {
                    note(name, &conv(projection, &x)?)?;
                }
                let y = maps.residual(block, &x, &PerGate::none(), Statistics::Stored)?;
                note(name, &y)?;
                anyhow::Ok(y)
            };
            x = run().with_context(|| format!("block {name}"))?;
        }
        if let Some(head) = head {
            note("head", &conv(head, &x).context("head")?)?;
        }
        Ok(())
    }

    /// What was found: a tensor `[c]` under each name of [`NetSpec::ranges`]; none before images were seen.
    pub fn largest(&self) -> &BTreeMap<String, Vec<f32>> {
        &self.largest
    }
}

/// Takes `map [n, c, h, w]` into account.
fn raise(largest: &mut BTreeMap<String, Vec<f32>>, point: &str, map: &Tensor) -> Result<()> {
    let (_, c, h, w) = map.dims4()?;
    let values = map.flatten_all()?.to_vec1::<f32>()?;
    let name = format!("{RANGE_PREFIX}{point}");
    let channels = largest.entry(name).or_insert_with(|| vec![0.0; c]);
    for (plane, channel) in values.chunks_exact((h * w).max(1)).zip((0..c).cycle()) {
        let (all_finite, most) = plane.iter().fold((true, channels[channel]), |(finite, most), value| {
            (finite & value.is_finite(), most.max(value.abs()))
        });
        ensure!(all_finite, "{point}: channel {channel} has a value that is not finite");
        channels[channel] = most;
    }
    Ok(())
}
