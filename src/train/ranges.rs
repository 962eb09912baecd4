//! How large values become inside a network.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use candle_core::Tensor;
use laud_models::{NetSpec, RANGE_PREFIX};

use super::block::Block;
use super::decisions::decide;
use super::layers::{Conv, Statistics, Weights};
use super::maps::{Map, MapOps};

/// The largest magnitude of every channel at every point of [`NetSpec::ranges`], as the network's gates decide: samples in which a
/// block keeps nothing do not count in its branch, and channels that are not kept have the value they are replaced with.
pub struct Ranges {
    spec: NetSpec,
    stem: Conv,
    blocks: Vec<(Block, Option<Conv>)>,
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
        let blocks = spec.blocks.iter().map(|block| {
            let gate = block.gate.channel.as_ref().zip(block.gate_hidden());
            let reduce = gate.map(|(gate, hidden)| Conv::load(&gate.reduce_conv(hidden), &weights));
            Ok((Block::load(block, &weights)?, reduce.transpose()?))
        });
        Ok(Self {
            stem: Conv::load(&spec.stem.conv, &weights)?,
            blocks: blocks.collect::<Result<_>>()?,
            head: spec.head.conv.as_ref().map(|conv| Conv::load(conv, &weights)).transpose()?,
            spec: spec.clone(),
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
        let mut note =
            |point: &str, map: &Map, counts: &[bool]| raise(largest, point, &maps.leave(map)?, counts);
        let mut x = maps.enter(images)?;
        note("input", &x, &[])?;
        x = conv(stem, &x).context("stem")?;
        note("stem", &x, &[])?;
        if let Some(pool) = &spec.stem.pool {
            x = maps.max_pool(&x, pool)?;
        }
        for (block, reduce) in blocks {
            let residual = &block.residual;
            let name = &residual.spec.name;
            let mut run = || {
                if let Some(reduce) = reduce {
                    note(&format!("{name}.gate"), &conv(reduce, &x)?, &[])?;
                }
                let keep = block.logits(&x, &**maps, Statistics::Stored)?.as_ref().try_map(decide)?;
                let kept = keep.spatial.as_ref().map(some_of_each).transpose()?.unwrap_or_default();
                let inner = residual.inner(&x, keep.channel.as_ref(), &**maps)?;
                for (i, inner) in inner.iter().enumerate() {
                    note(&format!("{name}.{i}"), inner, &kept)?;
                }
                if let Some(projection) = &residual.projection {
                    note(name, &conv(projection, &x)?, &[])?;
                }
                let y = maps.residual(residual, &x, &keep, Statistics::Stored)?;
                note(name, &y, &[])?;
                anyhow::Ok(y)
            };
            x = run().with_context(|| format!("block {name}"))?;
        }
        if let Some(head) = head {
            note("head", &conv(head, &x).context("head")?, &[])?;
        }
        Ok(())
    }

    /// What was found: a tensor `[c]` under each name of [`NetSpec::ranges`]; none before images were seen.
    pub fn largest(&self) -> &BTreeMap<String, Vec<f32>> {
        &self.largest
    }
}

/// Whether any unit of each sample is kept.
fn some_of_each(keep: &Tensor) -> Result<Vec<bool>> {
    Ok(keep.to_vec2::<f32>()?.iter().map(|units| units.iter().any(|&keep| keep > 0.0)).collect())
}

/// Takes `map [n, c, h, w]` into account, of samples that count; without any word about that of all.
fn raise(largest: &mut BTreeMap<String, Vec<f32>>, point: &str, map: &Tensor, counts: &[bool]) -> Result<()> {
    let (_, c, h, w) = map.dims4()?;
    let values = map.flatten_all()?.to_vec1::<f32>()?;
    let name = format!("{RANGE_PREFIX}{point}");
    let channels = largest.entry(name).or_insert_with(|| vec![0.0; c]);
    for (at, plane) in values.chunks_exact((h * w).max(1)).enumerate() {
        let (sample, channel) = (at / c, at % c);
        if counts.get(sample) == Some(&false) {
            continue;
        }
        let (all_finite, most) = plane.iter().fold((true, channels[channel]), |(finite, most), value| {
            (finite & value.is_finite(), most.max(value.abs()))
        });
        ensure!(all_finite, "{point}: channel {channel} has a value that is not finite");
        channels[channel] = most;
    }
    Ok(())
}
