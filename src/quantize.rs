//! What a network of whole numbers ([`Element::Int8`](crate::Element::Int8)) needs besides weights: how large its values become.
//!
//! [`ranges`] looks at a few hundred images and finds the largest magnitude of each channel wherever activations are stored; no
//! labels, no training. [`write()`] puts that beside the weights, as tensors that everything else passes over. What unit a
//! channel is stored in follows from it when a session is built, and weights are rounded then too: the file stays a network of
//! floating-point numbers.

use crate::autograd::kernel_maps;
use crate::checkpoint::{Checkpoint, TensorData, TensorOut, write_safetensors};
use crate::exec::Weights;
use crate::train::{MapElement, Ranges};
use crate::vision::{Preprocess, RgbImage};
use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor};
use laud_models::{NetSpec, RANGE_PREFIX};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// Images that are looked at together.
const BATCH: usize = 16;

/// The [ranges](NetSpec::ranges) of the network on `weights` over `images`, prepared as the spec says: a value for each channel,
/// by the tensors' names. Gates decide as they do in the network. `see` is told how many images are done.
///
/// ```
/// use laud::models::NetConfig;
/// use laud::{RandomWeights, quantize, zoo};
///
/// let spec = NetConfig::from_json(r#"{"arch": "resnet20"}"#)?.build()?;
/// let set = zoo::cifar10_images()?;
/// let images = set.iter().take(4).map(|sample| Ok(sample?.image));
/// let ranges = quantize::ranges(&spec, &RandomWeights::new(&spec, 1), images, 1, |_| {})?;
/// assert_eq!(ranges["range.layer3.2"].len(), 64);
/// # anyhow::Ok(())
/// ```
///
/// # Errors
/// No images, or one that cannot be read; a weight that is missing or does not fit; values that are not finite.
pub fn ranges(
    spec: &NetSpec,
    weights: &dyn Weights,
    images: impl IntoIterator<Item = Result<RgbImage>>,
    threads: usize,
    mut see: impl FnMut(usize),
) -> Result<BTreeMap<String, Vec<f32>>> {
    let preprocess = Preprocess::new(&spec.input)?;
    let tensor = |parameter: laud_models::Parameter| {
        let tensor = Tensor::from_vec(weights.tensor(&parameter.name)?, parameter.shape, &Device::Cpu);
        Ok((parameter.name.clone(), tensor.context(parameter.name)?))
    };
    let tensors = spec.parameters().into_iter().map(tensor).collect::<Result<HashMap<_, _>>>()?;
    let mut found = Ranges::new(spec, &tensors, kernel_maps(MapElement::F32, threads)?)?;
    let (mut images, mut done) = (images.into_iter(), 0);
    loop {
        let mut values = Vec::new();
        let mut batch = 0;
        for image in images.by_ref().take(BATCH) {
            let at = values.len();
            values.resize(at + preprocess.values(), 0.0);
            preprocess.write_nchw(&image?, &mut values[at..])?;
            batch += 1;
        }
        if batch == 0 {
            break;
        }
        let size = preprocess.size();
        found.see(&Tensor::from_vec(values, (batch, spec.input.channels, size.h, size.w), &Device::Cpu)?)?;
        done += batch;
        see(done);
    }
    ensure!(done > 0, "no images to measure ranges on");
    Ok(found.largest().clone())
}

/// Writes every tensor of `checkpoint` as it is, `ranges` in place of those that it has, its metadata and `metadata` over that.
///
/// # Errors
/// A tensor that cannot be read; a file that cannot be written. What was at `path` is then untouched.
pub fn write(
    path: &Path,
    checkpoint: &Checkpoint,
    ranges: &BTreeMap<String, Vec<f32>>,
    metadata: BTreeMap<String, String>,
) -> Result<()> {
    let weights = checkpoint.tensors().iter().filter(|(name, _)| !name.starts_with(RANGE_PREFIX));
    let weights = weights.map(|(name, info)| Ok((name, info, checkpoint.read_bytes(name)?)));
    let weights = weights.collect::<Result<Vec<_>>>()?;
    let mut tensors: BTreeMap<String, TensorOut<'_>> = BTreeMap::new();
    for (name, info, bytes) in &weights {
        let data = TensorData::Raw(info.dtype, bytes);
        tensors.insert((*name).clone(), TensorOut { shape: info.shape.clone(), data });
    }
    for (name, values) in ranges {
        tensors.insert(name.clone(), TensorOut { shape: vec![values.len()], data: TensorData::F32(values) });
    }
    let mut all = checkpoint.metadata().clone();
    all.extend(metadata);
    Ok(write_safetensors(path, &tensors, &all)?)
}
