//! Whether data files are still what they were when their key was made.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::super::kept;

/// A key, and what its data files were when they were read for it.
pub(crate) struct KeyOf {
    pub(crate) key: kept::Key,
    /// What a run that goes on compares.
    pub(crate) data: kept::Key,
    pub(super) stamps: Vec<Option<Stamp>>,
}

impl KeyOf {
    /// The first of the files that somebody has written to since, or put another in its place.
    pub(crate) fn changed(&self, paths: &[PathBuf]) -> Option<PathBuf> {
        let mut both = paths.iter().zip(&self.stamps);
        let (path, _) = both.find(|(path, then)| stamp(path) != **then)?;
        Some(path.clone())
    }
}

/// What changes when a file is written to; the last two also where somebody sets the time of the last write.
pub(super) type Stamp = [i64; 7];

pub(super) fn stamp(path: &Path) -> Option<Stamp> {
    let m = std::fs::metadata(path).ok()?;
    let file = [m.dev() as i64, m.ino() as i64, m.len() as i64];
    let times = [m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec()];
    let ([a, b, c], [d, e, f, g]) = (file, times);
    Some([a, b, c, d, e, f, g])
}
