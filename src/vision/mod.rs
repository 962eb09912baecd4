//! Images in: decode, prepare, name the classes, walk labelled sets.

mod csv;
pub mod dataset;
pub mod image;
mod jpeg;
pub mod labels;
pub mod preprocess;

pub use self::dataset::{Dataset, Sample};
pub use self::image::RgbImage;
pub use self::labels::Labels;
pub use self::preprocess::Preprocess;
