//! Labelled images for evaluation, decoded one at a time.
//!
//! Five forms are read:
//!
//! | what | labels from |
//! |---|---|
//! | a folder with `labels.csv`, columns `file` and `label`, others passed over | the `label` column, a class index |
//! | a `.csv` file like that, its files in its own folder: a part of a set | the same |
//! | a folder of class folders | the folders' names: all WordNet ids → ImageNet classes; all numbers → themselves; all CIFAR-10 names → their index; else the rank in byte order |
//! | `.bin`, CIFAR-10 binary: label byte, then 32×32 planes of red, green, blue | the byte, 0..=9 |
//! | `.jpk`: `JPK1`, u32le count, then per image label byte, u32le length, image file | the byte, 0..=9 |
//!
//! Opening reads the index (and a `.bin` or `.jpk` file's bytes) and checks every count, length and label against what
//! is there; [`Dataset::get`] decodes. Records are numbered from 0 in messages, as in [`Dataset::get`]; lines from 1.

use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::image::{self, RgbImage};
use super::labels::{Labels, imagenet_class_of_wnid};

/// Most bytes of a `.bin`, `.jpk` or `labels.csv` file: 1 GiB.
const MAX_INDEX_BYTES: u64 = 1 << 30;
/// Side of a CIFAR image, pixels.
const CIFAR_SIDE: usize = 32;
const CIFAR_PLANE: usize = CIFAR_SIDE * CIFAR_SIDE;
const CIFAR_RECORD: usize = 1 + 3 * CIFAR_PLANE;
const CIFAR_CLASSES: u8 = 10;
const JPK_MAGIC: &[u8] = b"JPK1";
const JPK_RECORD_HEAD: usize = 5;

/// One labelled image.
#[derive(Clone, Debug)]
pub struct Sample {
    /// The pixels.
    pub image: RgbImage,
    /// The class index.
    pub label: usize,
    /// Where it comes from: the file's path, or `file, record 17`.
    pub name: String,
}

/// A set of labelled images that are decoded when asked for. Reading does not change it: share it between threads.
#[derive(Debug)]
pub struct Dataset {
    path: PathBuf,
    source: Source,
    labels: Vec<u32>,
}

#[derive(Debug)]
enum Source {
    /// One image file a record.
    Files(Vec<PathBuf>),
    /// CIFAR-10 binary records, back to back.
    Cifar(Vec<u8>),
    /// Image files inside one file.
    Packed { bytes: Vec<u8>, images: Vec<Range<usize>> },
}

impl Dataset {
    /// Opens the set at `path`: a folder, a `.csv`, a `.bin` or a `.jpk` file.
    ///
    /// # Errors
    /// Nothing there; an unknown form; no images; an index that disagrees with the data. The message names the file and
    /// the record or line.
    pub fn open(path: &Path) -> Result<Self> {
        let (source, labels) = open(path).with_context(|| path.display().to_string())?;
        ensure!(!labels.is_empty(), "{}: no images", path.display());
        Ok(Self { path: path.to_owned(), source, labels })
    }

    /// Takes CIFAR-10 binary records that lie in memory; `name` stands for their path in messages.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn cifar10(name: &str, records: Vec<u8>) -> Result<Self> {
        let (source, labels) = cifar_index(records).context(name.to_owned())?;
        ensure!(!labels.is_empty(), "{name}: no images");
        Ok(Self { path: name.into(), source, labels })
    }

    /// The set without its last `count` images, and these.
    ///
    /// # Errors
    /// When one of the two would be empty.
    pub fn split(mut self, count: usize) -> Result<(Self, Self)> {
        let (path, all) = (self.path.clone(), self.len());
        ensure!((1..all).contains(&count), "{}: {count} of {all} images cannot be set apart", path.display());
        let first = all - count;
        let source = match &mut self.source {
            Source::Files(files) => Source::Files(files.split_off(first)),
            Source::Cifar(bytes) => Source::Cifar(bytes.split_off(first * CIFAR_RECORD)),
            Source::Packed { bytes, images } => {
                Source::Packed { bytes: bytes.clone(), images: images.split_off(first) }
            }
        };
        let labels = self.labels.split_off(first);
        Ok((self, Self { path, source, labels }))
    }

    /// Images in the set, at least one.
    #[expect(clippy::len_without_is_empty, reason = "a set is never empty")]
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Label of image `i`; `None` behind the last.
    pub fn label(&self, i: usize) -> Option<usize> {
        self.labels.get(i).map(|&label| label as usize)
    }

    /// The largest label: a network needs more classes than this.
    pub fn max_label(&self) -> usize {
        self.labels.iter().max().map_or(0, |&label| label as usize)
    }

    /// Decodes image `i`.
    ///
    /// # Errors
    /// No such record; an image that [`image::load`] or [`image::decode`] refuses.
    pub fn get(&self, i: usize) -> Result<Sample> {
        let Some(label) = self.label(i) else {
            bail!("{}: no record {i}, the set has {}", self.path.display(), self.len())
        };
        let record = || format!("{}, record {i}", self.path.display());
        let (image, name) = match &self.source {
            Source::Files(files) => (image::load(&files[i])?, files[i].display().to_string()),
            Source::Cifar(bytes) => (cifar_image(&bytes[i * CIFAR_RECORD..][..CIFAR_RECORD]), record()),
            Source::Packed { bytes, images } => {
                (image::decode(&bytes[images[i].clone()]).with_context(record)?, record())
            }
        };
        Ok(Sample { image, label, name })
    }

    /// All images in order. A record that fails does not end the iteration.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Result<Sample>> + '_ {
        (0..self.len()).map(|i| self.get(i))
    }
}

fn open(path: &Path) -> Result<(Source, Vec<u32>)> {
    if std::fs::metadata(path)?.is_dir() {
        let csv = path.join("labels.csv");
        let (files, labels) =
            if csv.exists() { csv_index(&csv).context("labels.csv")? } else { class_folders(path)? };
        return Ok((Source::Files(files), labels));
    }
    match path.extension().and_then(|e| e.to_str()) {
        Some("bin") => cifar_index(image::read_bounded(path, MAX_INDEX_BYTES)?),
        Some("jpk") => jpk_index(image::read_bounded(path, MAX_INDEX_BYTES)?),
        Some("csv") => csv_index(path).map(|(files, labels)| (Source::Files(files), labels)),
        _ => bail!("not a folder, a .csv, a CIFAR-10 .bin or a .jpk file"),
    }
}

fn csv_index(csv: &Path) -> Result<(Vec<PathBuf>, Vec<u32>)> {
    let root = csv.parent().unwrap_or(Path::new(""));
    let text = String::from_utf8(image::read_bounded(csv, MAX_INDEX_BYTES)?).context("not UTF-8")?;
    let mut records = super::csv::parse(&text)?.into_iter();
    let header = records.next().context("empty")?.fields;
    let column = |name: &str| {
        header.iter().position(|h| h.trim() == name).with_context(|| format!("no column `{name}`"))
    };
    let (file, label) = (column("file")?, column("label")?);
    records
        .map(|record| {
            let field = |i: usize, name: &str| {
                record
                    .fields
                    .get(i)
                    .map(|f| f.trim())
                    .filter(|f| !f.is_empty())
                    .with_context(|| format!("line {}: no {name}", record.line))
            };
            let (file, label) = (field(file, "file")?, field(label, "label")?);
            ensure!(
                Path::new(file).components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir)),
                "line {}: `{file}` is not inside the folder",
                record.line
            );
            let label = label
                .parse::<u32>()
                .ok()
                .with_context(|| format!("line {}: label `{label}` is not a class index", record.line))?;
            Ok((root.join(file), label))
        })
        .collect()
}

fn class_folders(root: &Path) -> Result<(Vec<PathBuf>, Vec<u32>)> {
    let classes = visible_entries(root, |path| path.is_dir())?;
    ensure!(!classes.is_empty(), "neither a labels.csv nor class folders in it");
    let names = classes
        .iter()
        .map(|path| path.file_name().and_then(|n| n.to_str()))
        .collect::<Option<Vec<_>>>()
        .context("a class folder's name is not UTF-8")?;
    let by = |label: &dyn Fn(&str) -> Option<u32>| names.iter().map(|n| label(n)).collect::<Option<Vec<_>>>();
    let labels = by(&|n| imagenet_class_of_wnid(n).map(|i| i as u32))
        .or_else(|| by(&|n| n.parse().ok()))
        .or_else(|| by(&|n| Labels::Cifar10.index_of(n).map(|i| i as u32)))
        .unwrap_or_else(|| (0..names.len() as u32).collect());
    let mut index = (Vec::new(), Vec::new());
    for (class, label) in classes.iter().zip(labels) {
        let images = visible_entries(class, is_image_name).with_context(|| class.display().to_string())?;
        index.1.extend(images.iter().map(|_| label));
        index.0.extend(images);
    }
    Ok(index)
}

/// Image files in a folder, by their names' extensions, without hidden ones, in byte order.
///
/// # Errors
/// A folder that cannot be read.
pub fn image_files(folder: &Path) -> Result<Vec<PathBuf>> {
    visible_entries(folder, |path| is_image_name(path) && path.is_file())
        .with_context(|| folder.display().to_string())
}

/// Entries of a folder that `keep` accepts, without hidden ones, in byte order.
fn visible_entries(folder: &Path, keep: impl Fn(&Path) -> bool) -> Result<Vec<PathBuf>> {
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if !entry.file_name().as_encoded_bytes().starts_with(b".") && keep(&entry.path()) {
            entries.push(entry.path());
        }
    }
    entries.sort();
    Ok(entries)
}

fn is_image_name(path: &Path) -> bool {
    let extension = path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
    matches!(extension.as_deref(), Some("jpg" | "jpeg" | "png" | "webp" | "bmp"))
}

fn cifar_index(bytes: Vec<u8>) -> Result<(Source, Vec<u32>)> {
    let over = bytes.len() % CIFAR_RECORD;
    let count = bytes.len() / CIFAR_RECORD;
    ensure!(over == 0, "record {count}: cut short, {over} of {CIFAR_RECORD} bytes");
    let labels = bytes
        .iter()
        .step_by(CIFAR_RECORD)
        .enumerate()
        .map(|(i, &l)| cifar_label(i, l))
        .collect::<Result<_>>()?;
    Ok((Source::Cifar(bytes), labels))
}

fn jpk_index(bytes: Vec<u8>) -> Result<(Source, Vec<u32>)> {
    ensure!(bytes.starts_with(JPK_MAGIC), "does not start with JPK1");
    let announced = u32_at(&bytes, JPK_MAGIC.len()).context("cut short in the header")?;
    let mut at = JPK_MAGIC.len() + size_of::<u32>();
    let (mut images, mut labels) = (Vec::new(), Vec::new());
    while at < bytes.len() {
        let record = labels.len();
        labels.push(cifar_label(record, bytes[at])?);
        let len = u32_at(&bytes, at + 1).with_context(|| format!("record {record}: cut short"))? as usize;
        at += JPK_RECORD_HEAD;
        let left = bytes.len() - at;
        ensure!(len <= left, "record {record}: {len} bytes announced, {left} left");
        images.push(at..at + len);
        at += len;
    }
    ensure!(labels.len() == announced as usize, "{announced} records announced, {} found", labels.len());
    Ok((Source::Packed { bytes, images }, labels))
}

fn cifar_label(record: usize, label: u8) -> Result<u32> {
    ensure!(label < CIFAR_CLASSES, "record {record}: label {label} is not in 0..{CIFAR_CLASSES}");
    Ok(u32::from(label))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|b| u32::from_le_bytes(*b))
}

/// The image of one whole record.
fn cifar_image(record: &[u8]) -> RgbImage {
    RgbImage::from_fn(CIFAR_SIDE as u32, CIFAR_SIDE as u32, |x, y| {
        let at = 1 + y as usize * CIFAR_SIDE + x as usize;
        ::image::Rgb([0, 1, 2].map(|c| record[at + c * CIFAR_PLANE]))
    })
}
