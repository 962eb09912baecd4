//! PyTorch's zip archives: `<name>/data.pkl` describes the tensors, `<name>/data/<key>` holds each storage.

use std::io::{self, BufReader, Read};
use std::sync::Arc;

use zip::read::ZipFileEntry;
use zip::result::ZipError;
use zip::{CompressionMethod, ZipArchive, ZipReadOptions};

use super::error::{ErrorKind, quote};
use super::pickle::{self, Heap, MAX_PROGRAM_BYTES, Tensor};
use super::source::Source;
use super::state_dict;
use super::tensor::{Layout, TensorInfo, Tensors};

/// The newest `version` entry that PyTorch itself knows.
const NEWEST_VERSION: u64 = 10;

/// The open archive: where its entries lie, and how their numbers are stored.
#[derive(Debug)]
pub(super) struct Archive {
    directory: Arc<zip::read::ZipArchiveMetadata>,
    /// The writer was big-endian.
    pub(super) big_endian: bool,
}

/// Reads the central directory and `data.pkl`, nothing else; `entry` as in `Checkpoint::open_entry`.
pub(super) fn open(source: &Source, entry: Option<&str>) -> Result<(Archive, Tensors), ErrorKind> {
    let zip = ZipArchive::new(BufReader::new(source.cursor())).map_err(archive_error)?;
    if zip.has_duplicate_names() {
        return Err(ErrorKind::damaged("the archive has two entries of one name"));
    }
    let mut programs = zip
        .file_names_raw()
        .filter_map(|name| name.strip_suffix(b"data.pkl"))
        .filter(|folder| folder.is_empty() || folder.ends_with(b"/"));
    let folder = match (programs.next(), programs.next()) {
        (Some(folder), None) => folder.to_vec(),
        (Some(_), Some(_)) => return Err(ErrorKind::damaged("the archive has more than one data.pkl")),
        _ => {
            return Err(ErrorKind::NotACheckpoint(
                "is a zip archive without data.pkl, not a PyTorch checkpoint".into(),
            ));
        }
    };
    let find = |name: &str| zip.index_for_name_raw(&[&folder, name.as_bytes()].concat());
    let mut archive = Archive { directory: zip.metadata(), big_endian: false };

    if let Some(at) = find("byteorder") {
        archive.big_endian = match archive.read_small(source, at, 16)?.as_slice() {
            b"little" => false,
            b"big" => true,
            _ => return Err(ErrorKind::damaged("the entry byteorder is neither little nor big")),
        };
    }
    if let Some(at) = find("version").or_else(|| find(".data/version")) {
        let text = archive.read_small(source, at, 16)?;
        match str::from_utf8(&text).ok().and_then(|text| text.trim().parse().ok()) {
            Some(0..=NEWEST_VERSION) => {}
            Some(version) => {
                return Err(ErrorKind::unsupported(format!(
                    "archive version {version} is newer than {NEWEST_VERSION}, the newest one known"
                )));
            }
            None => return Err(ErrorKind::damaged("the entry version is not a number")),
        }
    }

    let program = find("data.pkl").ok_or_else(|| ErrorKind::damaged("data.pkl is gone"))?;
    let program = archive.read_small(source, program, MAX_PROGRAM_BYTES)?;
    let (heap, root) = pickle::run(&program)?;
    let mut tensors = Tensors::default();
    for (name, tensor) in state_dict::find(&heap, root, entry)? {
        let info = archive.locate(source, &heap, tensor, &find).map_err(|fault| fault.of(name))?;
        tensors.insert(name, info)?;
    }
    Ok((archive, tensors))
}

/// What is wrong with a tensor whose name the caller knows.
enum Misfit {
    Damaged(String),
    Unsupported(String),
}

impl Misfit {
    fn of(self, name: &str) -> ErrorKind {
        match self {
            Self::Damaged(detail) => ErrorKind::damaged(format!("tensor {}: {detail}", quote(name))),
            Self::Unsupported(detail) => ErrorKind::unsupported(format!("tensor {}: {detail}", quote(name))),
        }
    }
}

impl Archive {
    /// Proves that the tensor lies in its storage, the storage in its entry and the entry in the file.
    fn locate(
        &self,
        source: &Source,
        heap: &Heap<'_>,
        tensor: &Tensor<'_>,
        find: &impl Fn(&str) -> Option<usize>,
    ) -> Result<TensorInfo, Misfit> {
        let damaged = |detail: &str| Misfit::Damaged(detail.to_owned());
        let storage = &tensor.storage;
        let Some(dtype) = storage.dtype else {
            return Err(Misfit::Unsupported(format!("its type torch.{} is not supported", storage.class)));
        };
        let (Some(first), Some(shape), Some(strides)) =
            (heap.size(tensor.first), heap.sizes(tensor.shape), heap.sizes(tensor.strides))
        else {
            return Err(damaged("its offset, shape or strides are not sizes"));
        };
        if shape.len() != strides.len() {
            return Err(damaged("it has strides for another number of dimensions"));
        }
        let extents = shape.iter().zip(&strides);
        let last = extents.clone().try_fold(first, |last, (&dim, &stride)| {
            dim.saturating_sub(1).checked_mul(stride).and_then(|reach| last.checked_add(reach))
        });
        let key = storage.key;
        let entry = find(&format!("data/{key}"))
            .ok_or_else(|| Misfit::Damaged(format!("its storage data/{} is missing", quote(key))))?;
        let layout = Layout::Storage { entry, first, strides };
        let info = TensorInfo::new(dtype, shape, layout).ok_or_else(|| damaged("its size overflows"))?;
        if info.elements() == 0 {
            return Ok(info);
        }
        if last.is_none_or(|last| last >= storage.elements) {
            return Err(damaged("it reaches past its storage"));
        }
        // Without this, a broadcast view of one element could claim any size.
        if info.elements() > storage.elements {
            return Err(Misfit::Unsupported("it is an expanded view, larger than its storage".into()));
        }
        let entry = self.entry(entry).map_err(|_| damaged("its storage is missing"))?;
        let (size, packed) = (entry.size(), entry.compressed_size());
        let wanted = storage.elements.checked_mul(dtype.size_bytes());
        if wanted.is_none_or(|wanted| wanted as u64 > size) {
            return Err(Misfit::Damaged(format!(
                "its storage claims {} elements of {dtype}, its archive entry has {size} bytes",
                storage.elements
            )));
        }
        let fits = entry.header_start().checked_add(packed).is_some_and(|end| end <= source.len())
            && match entry.compression() {
                CompressionMethod::Stored => packed == size,
                // Deflate cannot shrink anything further than 1032 to 1.
                _ => size / 1032 <= packed,
            };
        if !fits {
            return Err(Misfit::Damaged(format!(
                "its archive entry claims {size} bytes, which the file cannot hold"
            )));
        }
        Ok(info)
    }

    fn entry(&self, index: usize) -> Result<ZipFileEntry<'_>, ErrorKind> {
        self.directory.entry(index).map_err(archive_error)
    }

    /// A whole entry of at most `limit` bytes, checksum included.
    fn read_small(&self, source: &Source, index: usize, limit: u64) -> Result<Vec<u8>, ErrorKind> {
        let entry = self.entry(index)?;
        let name = String::from_utf8_lossy(entry.name_raw()).into_owned();
        if entry.size() > limit {
            return Err(ErrorKind::unsupported(format!(
                "the entry {} has {} bytes, more than {limit}",
                quote(&name),
                entry.size()
            )));
        }
        let mut cursor = source.cursor();
        let reader = entry.with_reader(&mut cursor, ZipReadOptions::new()).map_err(archive_error)?;
        let mut bytes = Vec::new();
        reader.take(limit + 1).read_to_end(&mut bytes).map_err(|error| read_error(&name, error))?;
        Ok(bytes)
    }

    /// Passes bytes `from..from + length` of an entry to `sink` in order, in pieces of whole multiples of 8 bytes but
    /// for the last. Reading all of an entry also proves its checksum.
    pub(super) fn stream(
        &self,
        source: &Source,
        index: usize,
        (from, length): (u64, u64),
        sink: &mut dyn FnMut(&[u8]),
    ) -> Result<(), ErrorKind> {
        let entry = self.entry(index)?;
        let name = String::from_utf8_lossy(entry.name_raw()).into_owned();
        let (whole, stored) =
            (from == 0 && length == entry.size(), entry.compression() == CompressionMethod::Stored);
        let mut cursor = source.cursor();
        let mut reader = entry.with_reader(&mut cursor, ZipReadOptions::new()).map_err(archive_error)?;
        let failed = |error| read_error(&name, error);

        // A part of a stored entry needs no walk through what lies before it.
        if let (true, Some(start)) = (stored && !whole, reader.data_start()) {
            let start =
                start.checked_add(from).ok_or_else(|| ErrorKind::damaged("an entry lies past the file"))?;
            return pieces(&mut source.cursor_at(start), length, sink).map_err(failed);
        }
        let skipped = io::copy(&mut reader.by_ref().take(from), &mut io::sink()).map_err(failed)?;
        if skipped < from {
            return Err(failed(io::ErrorKind::UnexpectedEof.into()));
        }
        pieces(&mut reader, length, sink).map_err(failed)?;
        // The checksum is compared when the end is seen.
        if whole && reader.read(&mut [0]).map_err(failed)? != 0 {
            return Err(ErrorKind::damaged(format!("the entry {} is longer than it says", quote(&name))));
        }
        Ok(())
    }
}

/// Reads `length` bytes in pieces of bounded size.
pub(super) fn pieces(reader: &mut impl Read, length: u64, sink: &mut dyn FnMut(&[u8])) -> io::Result<()> {
    let mut buffer = vec![0; length.min(1 << 18) as usize];
    let mut left = length;
    while left > 0 {
        let piece = &mut buffer[..left.min(1 << 18) as usize];
        reader.read_exact(piece)?;
        sink(piece);
        left -= piece.len() as u64;
    }
    Ok(())
}

fn read_error(entry: &str, error: io::Error) -> ErrorKind {
    match error.kind() {
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::InvalidData
        | io::ErrorKind::InvalidInput
        | io::ErrorKind::Other => {
            ErrorKind::damaged(format!("the archive entry {} is damaged: {error}", quote(entry)))
        }
        _ => ErrorKind::Io(error),
    }
}

fn archive_error(error: ZipError) -> ErrorKind {
    match error {
        ZipError::Io(error) => ErrorKind::from(error),
        ZipError::CompressionMethodNotSupported(_) | ZipError::UnsupportedArchive(_) => {
            ErrorKind::unsupported(format!("the archive cannot be read: {error}"))
        }
        error => ErrorKind::damaged(format!("the archive is damaged: {error}")),
    }
}
