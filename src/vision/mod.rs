//! Images in: decode, prepare, name the classes, walk labelled sets.

mod batches;
mod csv;
pub mod dataset;
#[cfg(test)]
mod dataset_tests;
pub mod image;
#[cfg(test)]
mod image_tests;
mod jpeg;
pub mod labels;
mod planes;
pub mod preprocess;
#[cfg(test)]
mod preprocess_tests;

pub use self::batches::{Augment, Batches};
pub use self::dataset::{Dataset, Sample};
pub use self::image::RgbImage;
pub use self::labels::Labels;
pub(crate) use self::planes::Planes;
pub use self::preprocess::Preprocess;
