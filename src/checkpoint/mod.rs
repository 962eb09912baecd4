//! Weights files: safetensors and PyTorch archives, read lazily and without trust.
//!
//! [`Checkpoint::open`] reads a file's tables; each tensor is then read by itself, by positional reads, so that many
//! threads can read from one `&Checkpoint` and nothing but the tensor at hand is in memory.
//!
//! ```no_run
//! use laud::checkpoint::Checkpoint;
//!
//! let weights = Checkpoint::open("resnet50.pth.tar".as_ref())?;
//! for (name, info) in weights.tensors() {
//!     println!("{name}: {} {:?}", info.dtype, info.shape);
//! }
//! let fc = weights.read_finite_f32("fc.weight")?;
//! # Ok::<(), laud::checkpoint::CheckpointError>(())
//! ```
//!
//! # What is promised about files from strangers
//!
//! * Nothing in a file is executed. The pickle inside a PyTorch archive is interpreted as data; one that names a
//!   dangerous function is refused by name.
//! * Every size is proven against the file before memory is reserved for it. A file of `n` bytes makes `open` use
//!   memory proportional to `n`, and reading a tensor at most what the file really holds of it (compressed entries:
//!   at most 1032 times their size, the limit of the compression).
//! * Nothing panics. An error is one line: the file, then what is wrong.
//!
//! # What counts as the weights
//!
//! Names are cleaned: `module.` and `_orig_mod.` prefixes go, `num_batches_tracked` goes. In a PyTorch archive the
//! weights are the top-level entry `state_dict`, `model`, `model_state_dict` or `model_ema`, or else the top level itself; optimizers
//! and other entries are passed over. If several of those entries hold weights, [`Checkpoint::open`] says so and
//! [`Checkpoint::open_entry`] chooses.

mod detect;
mod dtype;
mod error;
mod pickle;
mod read;
mod safetensors;
mod source;
mod state_dict;
mod tensor;
#[cfg(test)]
mod tests;
mod torch;
mod write;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use detect::Format;
use source::Source;
use tensor::Tensors;

pub use dtype::DType;
pub use error::{CheckpointError, ErrorKind, Result};
pub use tensor::TensorInfo;
pub use write::{TensorData, TensorOut, write_safetensors};

/// An open weights file.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    source: Source,
    /// Present for PyTorch files.
    archive: Option<torch::Archive>,
    metadata: BTreeMap<String, String>,
    tensors: Tensors,
}

impl Checkpoint {
    /// Opens a safetensors or PyTorch file, told apart by content. Reads the tables only.
    ///
    /// # Errors
    /// A file that is missing, damaged, of another format, refused, or ambiguous about which weights it holds.
    pub fn open(path: &Path) -> Result<Self> {
        Self::from_source(path, None, Source::open(path))
    }

    /// Opens the weights under one top-level key of a PyTorch file, such as `model_ema`.
    ///
    /// # Errors
    /// As [`open`](Self::open); also if there is no such entry, or the format has none (safetensors).
    pub fn open_entry(path: &Path, entry: &str) -> Result<Self> {
        Self::from_source(path, Some(entry), Source::open(path))
    }

    /// Opens a file that is already in memory; `name` stands for its path in messages.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_bytes(name: &str, bytes: Vec<u8>) -> Result<Self> {
        Self::from_source(Path::new(name), None, Ok(Source::from_bytes(bytes)))
    }

    fn from_source(
        path: &Path,
        entry: Option<&str>,
        source: std::result::Result<Source, ErrorKind>,
    ) -> Result<Self> {
        source.and_then(|source| Self::read_tables(path, entry, source)).map_err(|kind| kind.at(path))
    }

    fn read_tables(path: &Path, entry: Option<&str>, source: Source) -> std::result::Result<Self, ErrorKind> {
        let path = path.to_owned();
        match (detect::format(&source)?, entry) {
            (Format::Safetensors, None) => {
                let (tensors, metadata) = safetensors::read_header(&source)?;
                Ok(Self { path, source, archive: None, metadata, tensors })
            }
            (Format::Safetensors, Some(_)) => {
                Err(ErrorKind::unsupported("is a safetensors file, which has no entries to choose from"))
            }
            (Format::Torch, entry) => {
                let (archive, tensors) = torch::open(&source, entry)?;
                Ok(Self { path, source, archive: Some(archive), metadata: BTreeMap::new(), tensors })
            }
        }
    }

    /// Where it was opened, or the name given to [`from_bytes`](Self::from_bytes).
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The last component of the path.
    pub fn name(&self) -> Cow<'_, str> {
        self.path.file_name().unwrap_or(self.path.as_os_str()).to_string_lossy()
    }

    /// The safetensors `__metadata__`; empty for PyTorch files.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Every tensor under its cleaned name.
    pub fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors.by_name
    }
}
