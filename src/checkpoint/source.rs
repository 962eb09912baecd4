//! Positional reads, so that many threads can share one open file without sharing a cursor.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use super::error::ErrorKind;

/// A file or bytes in memory, with a length that was true when it was opened.
#[derive(Debug)]
pub(super) struct Source {
    data: Data,
    len: u64,
}

#[derive(Debug)]
enum Data {
    File(File),
    Bytes(Vec<u8>),
}

impl Source {
    /// Opens a regular file; anything else (a directory, a pipe, a device) is an error.
    pub(super) fn open(path: &Path) -> Result<Self, ErrorKind> {
        // Asked before opening: opening a pipe would wait for its writer.
        if !std::fs::metadata(path)?.is_file() {
            return Err(ErrorKind::NotACheckpoint("is not a regular file".into()));
        }
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        Ok(Self { data: Data::File(file), len })
    }

    pub(super) fn from_bytes(bytes: Vec<u8>) -> Self {
        let len = bytes.len() as u64;
        Self { data: Data::Bytes(bytes), len }
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Reads up to `buffer.len()` bytes at `offset`; 0 at or past the end.
    pub(super) fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        match &self.data {
            #[cfg(unix)]
            Data::File(file) => std::os::unix::fs::FileExt::read_at(file, buffer, offset),
            #[cfg(windows)]
            Data::File(file) => std::os::windows::fs::FileExt::seek_read(file, buffer, offset),
            Data::Bytes(bytes) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
                let count = buffer.len().min(bytes.len() - start);
                buffer[..count].copy_from_slice(&bytes[start..start + count]);
                Ok(count)
            }
        }
    }

    /// Fills `buffer` from `offset`; `UnexpectedEof` where the source ends first.
    pub(super) fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.cursor_at(offset).read_exact(buffer)
    }

    /// A reader of its own position, at the start.
    pub(super) fn cursor(&self) -> Cursor<'_> {
        self.cursor_at(0)
    }

    /// A reader of its own position, at `position`.
    pub(super) fn cursor_at(&self, position: u64) -> Cursor<'_> {
        Cursor { source: self, position }
    }
}

/// `Read + Seek` over positional reads.
#[derive(Clone, Debug)]
pub(super) struct Cursor<'a> {
    source: &'a Source,
    position: u64,
}

impl Read for Cursor<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read_at(buffer, self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}

impl Seek for Cursor<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::End(delta) => self.source.len.checked_add_signed(delta),
            SeekFrom::Current(delta) => self.position.checked_add_signed(delta),
        };
        // Positions past i64::MAX are refused by the operating system, so they are here.
        match position.filter(|&p| i64::try_from(p).is_ok()) {
            Some(position) => {
                self.position = position;
                Ok(position)
            }
            None => Err(io::Error::from(io::ErrorKind::InvalidInput)),
        }
    }
}
