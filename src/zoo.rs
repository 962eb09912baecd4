//! The small trained networks and the photographs that come with the program.

use crate::checkpoint::Checkpoint;
use crate::vision::{Dataset, RgbImage, image};
use anyhow::{Context, Result, bail};
use laud_models::zoo::{CIFAR10_IMAGES, NETWORKS, PHOTOS};

/// Names of the networks, for [`load`].
pub fn names() -> impl Iterator<Item = &'static str> {
    NETWORKS.iter().map(|file| file.name)
}

/// The checkpoint of a trained network; its configuration is in the metadata.
///
/// ```
/// let mobilenet = laud::zoo::load("mobilenet_v2")?;
/// assert!(mobilenet.metadata().contains_key("config"));
/// # anyhow::Ok(())
/// ```
///
/// # Errors
/// No network of this name.
pub fn load(name: &str) -> Result<Checkpoint> {
    let Some(file) = NETWORKS.iter().find(|file| file.name == name) else {
        bail!("no network {name} in the zoo; there are {}", names().collect::<Vec<_>>().join(", "))
    };
    Ok(Checkpoint::from_bytes(name, file.bytes.to_vec())?)
}

/// The photographs with their names, for networks of ImageNet.
///
/// # Errors
/// None of the files that come with the program.
pub fn photos() -> Result<Vec<(String, RgbImage)>> {
    let photo = |file: &laud_models::zoo::ZooFile| {
        Ok((file.name.to_owned(), image::decode(file.bytes).context(file.name)?))
    };
    PHOTOS.iter().map(photo).collect()
}

/// 32 labelled images of CIFAR-10, for networks of that.
///
/// # Errors
/// None of the files that come with the program.
pub fn cifar10_images() -> Result<Dataset> {
    Dataset::cifar10("cifar10_test_32.bin", CIFAR10_IMAGES.to_vec())
}
