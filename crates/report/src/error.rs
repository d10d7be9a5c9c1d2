//! Why a run cannot be shown.

use std::path::PathBuf;

use lowtide_files::FileError;

/// Why a run cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The directory has no `run.json`.
    #[error("{}: not the output directory of a run: it has no run.json", dir.display())]
    NoRun {
        /// The directory that is no output of a run.
        dir: PathBuf,
    },
    /// A file of the run cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// A JSON file of the run holds something else than an object.
    #[error("{}: not as a run writes it: an object is expected", path.display())]
    NotWritten {
        /// Path that could not be read.
        path: PathBuf,
    },
    /// A JSON file of the run holds an object that no run writes.
    #[error("{}: not as a run writes it: {what}", path.display())]
    Unlike {
        /// Path of the file with another format.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A line is none that a run writes.
    #[error("{}:{line}: {what}", path.display())]
    Line {
        /// Path of the file that is broken.
        path: PathBuf,
        /// Which line, from 1.
        line: u64,
        /// What is wrong with it.
        what: String,
    },
}
