//! `laud quantize`: how large a network's values become, for int8.

use super::data::bar;
use super::model::ModelArgs;
use super::output::json;
use super::train::file_name;
use anyhow::{Context, Result, ensure};
use clap::Args;
use laud::quantize::{ranges, write};
use laud::vision::dataset::image_files;
use laud::vision::{Dataset, RgbImage, image};
use serde_json::json;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Metadata that says what ranges were measured on.
pub(super) const RANGES_ABOUT: &str = "ranges";

/// Measure on images what int8 needs to know of a trained network, and write it beside the weights
#[derive(Args)]
pub(super) struct Quantize {
    /// Images like those to come, without labels: image files, folders of them, or sets as eval reads them
    #[arg(long, short, value_name = "DIR|FILE", required = true, num_args = 1..)]
    images: Vec<PathBuf>,
    /// Most images to look at, evenly spread over all
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// Safetensors file to write: the weights as they are and their ranges
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// Threads [default: the cores at hand]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model: ModelArgs,
}

/// Images that are read when it is their turn.
enum Source {
    Files(Vec<PathBuf>),
    Set(Dataset),
}

impl Source {
    fn open(path: &Path) -> Result<Self> {
        let set = |name: &str| ["csv", "bin", "jpk"].iter().any(|set| name.eq_ignore_ascii_case(set));
        if path.is_dir() {
            let files = image_files(path)?;
            let plain = !files.is_empty() && !path.join("labels.csv").exists();
            return if plain { Ok(Self::Files(files)) } else { Dataset::open(path).map(Self::Set) };
        }
        match path.extension().and_then(|extension| extension.to_str()) {
            Some(extension) if set(extension) => Dataset::open(path).map(Self::Set),
            _ => Ok(Self::Files(vec![path.to_owned()])),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Files(files) => files.len(),
            Self::Set(set) => set.len(),
        }
    }

    fn get(&self, i: usize) -> Result<RgbImage> {
        match self {
            Self::Files(files) => image::load(&files[i]),
            Self::Set(set) => Ok(set.get(i)?.image),
        }
    }
}

impl Quantize {
    pub(super) fn run(self, out: &mut dyn Write) -> Result<()> {
        let output = self.output.display().to_string();
        ensure!(
            !self.output.exists(),
            "{output}: is there already and stays as it is; take another --output, or remove it first"
        );
        let model = self.model.for_training(0)?;
        let checkpoint = model.checkpoint();
        let checkpoint = checkpoint.with_context(|| {
            format!(
                "--model {}: has random weights, whose ranges say nothing; take a file or a trained network",
                model.label
            )
        })?;
        ensure!(!model.attached, "--mode: {} has no such gates, and new ones are not trained", model.label);
        let sources = self.images.iter().map(|path| Source::open(path)).collect::<Result<Vec<_>>>()?;
        let all: Vec<(&Source, usize)> =
            sources.iter().flat_map(|source| (0..source.len()).map(move |i| (source, i))).collect();
        let count = all.len().min(self.limit as usize);
        let images = (0..count).map(|i| all[i * all.len() / count]).map(|(source, i)| source.get(i));
        let threads = self
            .threads
            .map_or_else(|| std::thread::available_parallelism().map_or(1, usize::from), usize::from);
        let bar = bar(count);
        let weights = model.weights()?;
        let found = ranges(&model.spec, &*weights, images, threads, |done| bar.set_position(done as u64));
        bar.finish_and_clear();
        let found = found.with_context(|| model.label.clone())?;
        let names = self.images.iter().map(|path| file_name(path)).collect::<Vec<_>>();
        let about = json!({ "images": count, "from": names }).to_string();
        let mut metadata = BTreeMap::from([(RANGES_ABOUT.to_owned(), about)]);
        if !checkpoint.metadata().contains_key("config") {
            let mut config = model.config.clone();
            if !model.spec.blocks.iter().any(|block| block.gate.is_some()) {
                // Gates may be attached to what has none.
                config.dyn_mode = None;
            }
            let config = serde_json::to_string(&config).context("cannot write the configuration")?;
            metadata.insert("config".to_owned(), config);
        }
        write(&self.output, checkpoint, &found, metadata)?;
        if self.json {
            return json(
                out,
                &json!({ "model": model.spec.name, "output": self.output, "images": count, "ranges": found.len() }),
            );
        }
        writeln!(
            out,
            "{output}: {} with the ranges of its channels at {} points, measured on {count} images",
            model.spec.name,
            found.len()
        )?;
        Ok(writeln!(out, "next: laud eval --model {output} --dtype int8 --data …")?)
    }
}
