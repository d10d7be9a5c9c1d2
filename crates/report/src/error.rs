//! Why a run cannot be shown.

use std::path::PathBuf;

use lowtide_files::FileError;

/// Why a run cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The directory has no `run.json`.
    #[error("{}: not the output directory of a run: it has no run.json", dir.display())]
    NoRun {
        /// The directory.
        dir: PathBuf,
    },
    /// A file of the run cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// A JSON file of the run holds something else than an object.
    #[error("{}: not as a run writes it: an object is expected", path.display())]
    NotWritten {
        /// The file.
        path: PathBuf,
    },
    /// A JSON file of the run holds an object that no run writes.
    #[error("{}: not as a run writes it: {what}", path.display())]
    Unlike {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A line is none that a run writes.
    #[error("{}:{line}: {what}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Which line, from 1.
        line: u64,
        /// What is wrong with it.
        what: String,
    },
}
