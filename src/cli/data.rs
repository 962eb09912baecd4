//! `--data`, `--limit`, `--batch`: labelled images.

use anyhow::{Context, Result};
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use laud::evaluate::Images;
use laud::vision::Dataset;
use laud_models::NetSpec;
use std::path::PathBuf;

#[derive(Args)]
pub(super) struct DataArgs {
    /// A folder with labels.csv or a folder a class, a .csv like that, a CIFAR-10 .bin, or a .jpk file
    #[arg(long, short, value_name = "DIR|FILE")]
    pub(super) data: PathBuf,
    /// Only the first images
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Images of an inference
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    batch: u16,
}

impl DataArgs {
    pub(super) fn open(&self) -> Result<Dataset> {
        Dataset::open(&self.data)
    }

    /// The images of `data` for a network.
    pub(super) fn images<'a>(&self, data: &'a Dataset, spec: &NetSpec) -> Result<Images<'a>> {
        let limit = self.limit.map(|limit| usize::try_from(limit).unwrap_or(usize::MAX));
        Images::new(data, spec, limit, self.batch.into()).with_context(|| self.data.display().to_string())
    }
}

/// A bar over images on a terminal, nothing elsewhere.
pub(super) fn bar(images: usize) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(images as u64), ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos} of {len}  {msg}  {eta} left") {
        bar.set_style(style);
    }
    bar
}
