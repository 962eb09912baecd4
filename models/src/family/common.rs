//! What the families share: finding blocks by name, reading widths from shapes, the input and the classifier.

use crate::layers::{MAX_DEPTH, MAX_STAGES};
use crate::{
    Error, InputSpec, LinearSpec, MapSize, Mismatch, NetConfig, Parameter, ParameterKind, Preprocess, Shapes,
};

/// Number of blocks of each stage, where `weight(stage, block)` names a tensor that every block has.
pub(super) fn depths(shapes: &Shapes, weight: impl Fn(usize, usize) -> String) -> Vec<usize> {
    (0..MAX_STAGES)
        .map(|stage| (0..=MAX_DEPTH).take_while(|&block| shapes.contains_key(&weight(stage, block))).count())
        .take_while(|&depth| depth > 0)
        .collect()
}

/// The shape of a tensor that must exist and have `rank` dimensions, none of them 0.
pub(super) fn shape<'a>(shapes: &'a Shapes, name: &str, rank: usize) -> Result<&'a [usize], Error> {
    let wanted = || Parameter { name: name.to_owned(), shape: vec![0; rank], kind: ParameterKind::Learned };
    match shapes.get(name) {
        None => Err(Error::Tensors(Mismatch { missing: vec![wanted()], ..Mismatch::default() })),
        Some(shape) if shape.len() != rank || shape.contains(&0) => {
            Err(Error::spec(name, format!("shape {shape:?}, expected {rank} dimensions of at least 1")))
        }
        Some(shape) => Ok(shape),
    }
}

/// First dimension of a convolution's weight.
pub(super) fn c_out(shapes: &Shapes, name: &str) -> Result<usize, Error> {
    Ok(shape(shapes, name, 4)?[0])
}

/// First dimension of the classifier's weight.
pub(super) fn classes(shapes: &Shapes, name: &str) -> Result<usize, Error> {
    match shapes.get(name) {
        Some(found) if found.len() == 4 => c_out(shapes, name),
        _ => Ok(shape(shapes, name, 2)?[0]),
    }
}

/// The classifier `{name}.weight`, `{name}.bias`.
pub(super) fn linear(name: &str, c_in: usize, c_out: usize) -> LinearSpec {
    let (weight, bias) = (format!("{name}.weight"), Some(format!("{name}.bias")));
    LinearSpec { weight, bias, c_in, c_out }
}

/// What the network reads: the configuration's size and preparation, or these defaults.
pub(super) fn input(config: &NetConfig, side: usize, preprocess: Preprocess) -> Result<InputSpec, Error> {
    let size = config.input_size.unwrap_or(MapSize { h: side, w: side });
    for side in [size.h, size.w] {
        crate::layers::count("input_size", side, crate::layers::MAX_SIDE)?;
    }
    let Preprocess { resize, mean, std } = config.preprocess.unwrap_or(preprocess);
    if let Some(side) = resize {
        crate::layers::count("preprocess.resize", side, crate::layers::MAX_SIDE)?;
    }
    if let Some(bad) = std.iter().find(|std| !(std.is_finite() && **std > 0.0)) {
        return Err(Error::invalid("preprocess.std", bad, "it must be positive"));
    }
    if let Some(bad) = mean.iter().find(|mean| !mean.is_finite()) {
        return Err(Error::invalid("preprocess.mean", bad, "it must be finite"));
    }
    Ok(InputSpec { channels: 3, size, resize, mean, std })
}

/// torchvision's evaluation of ImageNet networks: shorter side to 8/7 of the input's, then centre crop.
pub(super) fn imagenet(config: &NetConfig) -> Preprocess {
    let side = config.input_size.map_or(224, |size| size.h.max(size.w));
    let resize = Some(side.saturating_mul(8).div_ceil(7));
    Preprocess { resize, mean: super::IMAGENET_MEAN, std: super::IMAGENET_STD }
}

/// The multiple of `divisor` nearest to `width`, but not less than 90 % of it (torchvision's `_make_divisible`).
pub(super) fn divisible(width: f64, divisor: usize) -> usize {
    let near = ((width + divisor as f64 / 2.0) as usize / divisor * divisor).max(divisor);
    if (near as f64) < 0.9 * width { near + divisor } else { near }
}
