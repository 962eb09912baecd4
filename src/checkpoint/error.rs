//! What can be wrong with a weights file.

use std::io;
use std::path::{Path, PathBuf};

/// The result of everything in this room.
pub type Result<T> = std::result::Result<T, CheckpointError>;

/// One line: the file, then what is wrong with it.
///
/// Text that comes from the file is escaped and cut short, so that the message stays one line of bounded length
/// whatever the file says.
#[derive(Debug, thiserror::Error)]
#[error("{}: {kind}", path.display())]
pub struct CheckpointError {
    path: PathBuf,
    kind: ErrorKind,
}

impl CheckpointError {
    pub(super) fn new(path: &Path, kind: ErrorKind) -> Self {
        Self { path: path.to_owned(), kind }
    }

    /// The file, or the name given to [`Checkpoint::from_bytes`](super::Checkpoint::from_bytes).
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is wrong.
    pub fn kind(&self) -> &ErrorKind {
        &self.kind
    }
}

/// The kinds a caller can act on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The operating system refused, or the file changed under us.
    #[error("{0}")]
    Io(io::Error),
    /// Not a format this room reads; the text says what it looks like and, where known, how to convert it.
    #[error("{0}")]
    NotACheckpoint(String),
    /// The right format, but its content contradicts itself: truncated, bit-flipped or made to mislead.
    #[error("{0}")]
    Damaged(String),
    /// The pickle asks for something that a checkpoint has no business asking for.
    #[error("{program} wants to call {global}; refused: nothing in a checkpoint is executed")]
    Refused {
        /// The pickle inside the archive.
        program: String,
        /// `module.name` as the pickle spells it.
        global: String,
    },
    /// Well formed, but beyond what this reader knows (a dtype, a way to build a tensor, a newer version).
    #[error("{0}")]
    Unsupported(String),
    /// Several entries hold weights; [`Checkpoint::open_entry`](super::Checkpoint::open_entry) takes one by name.
    #[error("several entries hold weights ({}); say which one to open", candidates.join(", "))]
    Ambiguous {
        /// The top-level keys, in file order.
        candidates: Vec<String>,
    },
    /// No tensor has this (cleaned) name.
    #[error("has no tensor {}", quote(.0))]
    MissingTensor(String),
    /// A weight is infinite or not a number.
    #[error("tensor {} holds {value} at element {index}", quote(tensor))]
    NonFinite {
        /// The tensor's cleaned name.
        tensor: String,
        /// Row-major position of the first such element.
        index: usize,
        /// The value there.
        value: f32,
    },
}

impl ErrorKind {
    pub(super) fn damaged(detail: impl AsRef<str>) -> Self {
        Self::Damaged(one_line(detail.as_ref()))
    }

    pub(super) fn unsupported(detail: impl AsRef<str>) -> Self {
        Self::Unsupported(one_line(detail.as_ref()))
    }

    pub(super) fn at(self, path: &Path) -> CheckpointError {
        CheckpointError::new(path, self)
    }
}

impl From<io::Error> for ErrorKind {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Damaged("ends before its own tables say it does".into()),
            _ => Self::Io(error),
        }
    }
}

/// A name from the file, quoted, escaped and cut to a readable length.
pub(super) fn quote(name: &str) -> String {
    format!("`{}`", shorten(name, 120))
}

/// A message that may carry text from the file, on one line of bounded length.
pub(super) fn one_line(text: &str) -> String {
    shorten(text, 400)
}

fn shorten(text: &str, limit: usize) -> String {
    let mut out = String::new();
    for c in text.chars() {
        if out.len() >= limit {
            out.push('…');
            break;
        }
        // `escape_debug` would also escape quotes and accents, which are harmless on one line.
        if c.is_control()
            || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    out
}
