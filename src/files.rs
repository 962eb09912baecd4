//! Files that appear complete or not at all, and files that grow by whole lines.

use anyhow::{Context, Result, bail};
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// Writes a file that either appears complete under `path` or not at all.
///
/// The bytes go to a temporary file in the same directory, reach the disk, and take the name by a rename; a file that
/// was there before is replaced in that instant.
///
/// # Errors
/// What `write` returns, or any failure to write; what was at `path` is then untouched and the temporary file is gone.
pub fn write_atomically(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let (file, temporary) = Temporary::create(directory, path)?;
    let mut out = BufWriter::with_capacity(1 << 18, file);
    write(&mut out)?;
    out.into_inner()?.sync_all()?;
    temporary.persist(path)?;
    // The rename itself reaches the disk with the directory; not every file system can sync one.
    if let Ok(directory) = File::open(directory) {
        let _ = directory.sync_all();
    }
    Ok(())
}

/// A text file that only grows, a line reaching the disk as soon as it is there: whatever stops the program, whole lines
/// stay.
#[derive(Debug)]
pub struct Lines {
    path: PathBuf,
    file: File,
}

impl Lines {
    /// Opens the file at `path`, or begins one. `read` is shown its whole lines; where that likes them, a last line that was
    /// cut off is removed.
    ///
    /// # Errors
    /// Those of `read`; a file that cannot be read or written, or that somebody else writes.
    pub fn open<T>(path: &Path, read: impl FnOnce(&str) -> Result<T>) -> Result<(Self, T)> {
        let name = || path.display().to_string();
        let write = || format!("{}: cannot write", name());
        let file = OpenOptions::new().create(true).append(true).open(path).with_context(write)?;
        // Not every file system can lock; then nobody is kept out.
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            bail!("{}: somebody else is writing it", name());
        }
        let text = fs::read_to_string(path).with_context(|| format!("{}: cannot read", name()))?;
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        let value = read(&text[..whole])?;
        if whole < text.len() {
            file.set_len(whole as u64).and_then(|()| file.sync_data()).with_context(write)?;
        }
        Ok((Self { path: path.to_owned(), file }, value))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a line, which is on the disk when this returns.
    ///
    /// # Errors
    /// When the disk does not take it; everything before stays.
    pub fn append(&mut self, line: &str) -> Result<()> {
        let line = format!("{}\n", line.trim_end());
        self.file.write_all(line.as_bytes()).and_then(|()| self.file.sync_data()).with_context(|| {
            format!("{}: cannot write; the lines before this one are kept", self.path.display())
        })
    }
}

/// A file that is removed again unless it is given its final name.
struct Temporary(Option<PathBuf>);

impl Temporary {
    fn create(directory: &Path, target: &Path) -> io::Result<(File, Self)> {
        let name = target.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        for attempt in 0.. {
            let mut hidden = OsString::from(".");
            hidden.push(name);
            hidden.push(format!(".{}-{attempt}.tmp", std::process::id()));
            let path = directory.join(hidden);
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => return Ok((file, Self(Some(path)))),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && attempt < 1000 => {}
                Err(error) => return Err(error),
            }
        }
        unreachable!("the last attempt returns")
    }

    fn persist(mut self, target: &Path) -> io::Result<()> {
        let path = self.0.as_ref().expect("set until persisted or dropped");
        fs::rename(path, target)?;
        self.0 = None;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = fs::remove_file(path);
        }
    }
}
