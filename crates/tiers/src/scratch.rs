//! A directory for files that are measured on a drive, apart from a run's own state file.

use std::path::{Path, PathBuf};

use crate::state_file::remove_stale;
use crate::{DirLock, TierError, litter};

/// The name in the directory that is measured.
const DIR: &str = ".lowtide-probe";

/// A directory `.lowtide-probe` in another one, removed when it is dropped: a state file that a durable run has left
/// must not be opened, let alone overwritten, to measure its drive. The other directory is locked meanwhile, because
/// two probes, or a probe and a run, would measure each other.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    _lock: DirLock,
}

impl Scratch {
    /// Locks `dir` and makes it there.
    ///
    /// # Errors
    /// Those of [`DirLock::take`]; [`TierError::File`] when it cannot be made.
    pub fn new(dir: &Path) -> Result<Self, TierError> {
        let lock = DirLock::take(dir)?;
        Self::remove_stale(dir)?;
        let path = dir.join(DIR);
        match std::fs::create_dir(&path) {
            Err(e) => Err(TierError::file("creating", &path, &e)),
            Ok(()) => {
                litter::add(&path);
                Ok(Self { path, _lock: lock })
            }
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes from `dir` what a killed run or probe has left there and nobody asked to keep. Nothing where there is no
    /// such directory, and where somebody else has it now.
    ///
    /// # Errors
    /// [`TierError::File`] when something cannot be removed, [`TierError::BadFile`] for what is not lowtide's under its
    /// names.
    pub fn sweep(dir: &Path) -> Result<(), TierError> {
        if !dir.is_dir() {
            return Ok(());
        }
        match DirLock::take(dir) {
            Ok(_lock) => Self::remove_stale(dir).and_then(|()| remove_stale(dir)),
            Err(TierError::InUse { .. } | TierError::NoLocks { .. }) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Removes what a killed process has left of one in `dir`, which is locked: lowtide's files alone.
    pub(crate) fn remove_stale(dir: &Path) -> Result<(), TierError> {
        let path = dir.join(DIR);
        match std::fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_dir() => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(TierError::file("looking at", &path, &e)),
            Ok(_) => {
                return Err(TierError::BadFile {
                    path,
                    what: "it is no directory".to_owned(),
                });
            }
        }
        remove_stale(&path)?;
        let lock = path.join(DirLock::NAME);
        match std::fs::remove_file(&lock) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(TierError::file("removing", &lock, &e));
            }
            _ => {}
        }
        std::fs::remove_dir(&path).map_err(|e| TierError::file("removing", &path, &e))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // If it fails there is nobody to tell; who comes next removes it.
        let _ = std::fs::remove_dir(&self.path);
        litter::remove(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state_file::PENDING;

    fn names(dir: &Path) -> usize {
        std::fs::read_dir(dir).unwrap().count()
    }

    #[test]
    fn one_at_a_time_and_nothing_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let scratch = Scratch::new(dir.path()).unwrap();
        let second = Scratch::new(dir.path());
        assert!(matches!(second, Err(TierError::InUse { .. })));
        drop(scratch);
        assert_eq!(names(dir.path()), 0);
    }

    #[test]
    fn what_a_killed_probe_left_goes_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(DIR);
        let leave = |name: &str, bytes: &[u8]| {
            std::fs::create_dir_all(&path).unwrap();
            std::fs::write(path.join(name), bytes).unwrap();
        };
        leave(PENDING, &[0; 9000]);
        leave(DirLock::NAME, b"1\n");
        drop(Scratch::new(dir.path()).unwrap());
        assert_eq!(names(dir.path()), 0);
        leave("thesis", b"text");
        assert!(Scratch::new(dir.path()).is_err());
        assert_eq!(std::fs::read(path.join("thesis")).unwrap(), b"text");
        std::fs::remove_dir_all(&path).unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), &path).unwrap();
        let refused = Scratch::new(dir.path());
        assert!(matches!(refused, Err(TierError::BadFile { .. })));
    }
}
