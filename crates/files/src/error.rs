//! Why a file cannot be used.

use std::io;
use std::path::{Path, PathBuf};

use crate::foreign::{Foreign, NotRegular};
use crate::json::JsonProblem;

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// There is nothing under this name.
    #[error("{}: no such file or directory", path.display())]
    Missing {
        /// What was looked for.
        path: PathBuf,
    },
    /// A symbolic link to nothing.
    #[error("{}: a symbolic link to {}, which is not there", path.display(), target.display())]
    Dangling {
        /// Path of the link itself.
        path: PathBuf,
        /// What it names.
        target: PathBuf,
    },
    /// The system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// Path that could not be opened.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Not a regular file: reading it could wait for ever or never end.
    #[error("{}: {kind}, not a file", path.display())]
    NotRegular {
        /// Path with a name that is not allowed.
        path: PathBuf,
        /// What stands there.
        kind: NotRegular,
    },
    /// A file of this kind never has as many bytes.
    #[error("{}: {have} bytes, at most {most} are read of such a file", path.display())]
    TooLarge {
        /// Path of the file that is too large.
        path: PathBuf,
        /// Its bytes, as far as they were counted.
        have: u64,
        /// The limit, in bytes.
        most: u64,
    },
    /// Nothing is in it.
    #[error("{}: the file is empty", path.display())]
    Empty {
        /// Path of what is no such file.
        path: PathBuf,
    },
    /// A file of another format.
    #[error("{}: {kind} stands in the place of the file", path.display())]
    Foreign {
        /// Path of the file that is not UTF-8.
        path: PathBuf,
        /// What it is.
        kind: Foreign,
    },
    /// A text file that is not UTF-8.
    #[error("{}: not UTF-8 after {valid} bytes", path.display())]
    NotUtf8 {
        /// Path of the file with broken JSON.
        path: PathBuf,
        /// Bytes that are, from the beginning.
        valid: usize,
    },
    /// A JSON file that is not JSON, or does not say what it must.
    #[error("{}: {problem}", path.display())]
    Json {
        /// Path that could not be read.
        path: PathBuf,
        /// What is wrong, with line and column.
        problem: JsonProblem,
    },
}

impl FileError {
    /// Path of the file that the error is about.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Missing { path }
            | Self::Dangling { path, .. }
            | Self::Io { path, .. }
            | Self::NotRegular { path, .. }
            | Self::TooLarge { path, .. }
            | Self::Empty { path }
            | Self::Foreign { path, .. }
            | Self::NotUtf8 { path, .. }
            | Self::Json { path, .. } => path,
        }
    }

    /// There is nothing under the name, not even a link to nothing.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Missing { .. })
    }
}
