//! `laud rank`: which units matter, whatever the image.

use super::data::{DataArgs, bar};
use super::device::DeviceArgs;
use super::model::ModelArgs;
use super::output::{Table, percent};
use anyhow::Result;
use clap::{Args, ValueEnum};
use laud::evaluate::{importance, usage};
use laud::gate::{Learned, ScoredBy, Scores};
use std::io::Write;
use std::path::PathBuf;

/// Measure which units matter, for the policies pruned and importance
#[derive(Args)]
pub(super) struct Rank {
    #[command(flatten)]
    data: DataArgs,
    /// What to measure
    #[arg(long, value_name = "WHAT")]
    by: By,
    /// File to write: JSON, a score for every unit
    #[arg(long, short, value_name = "FILE")]
    out: PathBuf,
    /// Seed of the weights of gates that are not trained
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

#[derive(Clone, Copy, ValueEnum)]
enum By {
    /// For how many images the trained gates keep a unit
    Usage,
    /// How much the loss grows without a unit: an inference for each unit and image
    Importance,
}

impl Rank {
    pub(super) fn run(self, out: &mut dyn Write) -> Result<()> {
        let model = self.model.for_training(self.seed)?;
        let data = self.data.open()?;
        let images = self.data.images(&data, &model.spec)?;
        let session = self.device.builder()?.session(&model)?;
        let bar = bar(images.len());
        let mut progress = |done: usize| bar.set_position(done as u64);
        let scores = match self.by {
            By::Usage => usage(&session, &Learned, &images, &mut progress),
            By::Importance => importance(&session, &images, &mut progress),
        };
        bar.finish_and_clear();
        let scores = scores?;
        scores.save(&self.out)?;
        let of = |block: &laud::gate::BlockScores| [block.patches.clone(), block.channels.clone()].concat();
        let units: usize = scores.blocks.iter().map(|block| of(block).len()).sum();
        writeln!(out, "{}: scores of {units} units on {} images", self.out.display(), images.len())?;
        print(&scores, of, out)
    }
}

/// Block by block, the least and the largest score.
fn print(
    scores: &Scores,
    of: impl Fn(&laud::gate::BlockScores) -> Vec<f64>,
    out: &mut dyn Write,
) -> Result<()> {
    let text = |score: f64| match scores.by {
        ScoredBy::Usage => percent(score),
        ScoredBy::Importance => format!("{score:+.4}"),
    };
    let mut table = Table::new(["block", "units", "least", "mean", "most"]);
    for block in &scores.blocks {
        let all = of(block);
        if all.is_empty() {
            continue;
        }
        let (least, most) = all.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), score| {
            (low.min(*score), high.max(*score))
        });
        let mean = all.iter().sum::<f64>() / all.len() as f64;
        table.row([block.block.clone(), all.len().to_string(), text(least), text(mean), text(most)]);
    }
    table.print(out)
}
