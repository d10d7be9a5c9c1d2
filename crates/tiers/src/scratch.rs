//! A place for what is measured on a drive, beside a run's own state file.

use std::path::{Path, PathBuf};

use crate::TierError;

/// A directory `.lowtide-probe` in another one, that goes when it is dropped: a state file that a
/// durable run has left must not be opened, let alone overwritten, to measure its drive.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// Makes it in `dir`, or shares it with whoever measures there too.
    ///
    /// # Errors
    /// [`TierError::File`] when it cannot be made.
    pub fn new(dir: &Path) -> Result<Self, TierError> {
        let path = dir.join(".lowtide-probe");
        match std::fs::create_dir(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
                Err(TierError::file("creating", &path, &e))
            }
            _ => Ok(Self(path)),
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Not empty: another probe runs there, and removes it.
        let _ = std::fs::remove_dir(&self.0);
    }
}
