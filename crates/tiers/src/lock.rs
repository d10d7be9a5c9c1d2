//! A lock on a directory that dies with the process that holds it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FlockOperation};
use rustix::io::Errno;

use crate::{TierError, litter};

/// Held on a directory by an open file in it (`flock`): it ends with the process, however that ends.
/// Dropping it removes the file; a killed process leaves an empty one, which the next holder takes over.
#[derive(Debug)]
pub struct DirLock {
    path: PathBuf,
    /// The directory, wherever it is by now.
    dir: File,
    /// The lock is this open file's.
    _file: File,
}

impl DirLock {
    /// The name of the file in every locked directory.
    pub const NAME: &str = ".lowtide.lock";

    /// Locks a directory that exists.
    ///
    /// # Errors
    /// [`TierError::InUse`] when somebody else holds it, with who; [`TierError::NoLocks`] where the
    /// file system has no locks; [`TierError::BadFile`] when something else has the file's name;
    /// [`TierError::File`] when the directory cannot be written.
    pub fn take(dir: &Path) -> Result<Self, TierError> {
        let path = dir.join(Self::NAME);
        loop {
            let file = open_own(
                &path,
                OpenOptions::new().read(true).write(true).create(true),
            )?;
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => {
                    return Err(TierError::InUse {
                        path: dir.to_owned(),
                        holder: holder(&file),
                    });
                }
                Err(e @ (Errno::NOLCK | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL)) => {
                    return Err(TierError::NoLocks {
                        path: dir.to_owned(),
                        os: e.into(),
                    });
                }
                Err(e) => return Err(TierError::file("locking", &path, e)),
            }
            // Its last holder may have removed it between our open and our lock: then the name means
            // another file by now, or none, and a lock on ours keeps nobody out.
            let ours = file.metadata();
            let ours = ours.map_err(|e| TierError::file("looking at", &path, &e))?;
            match std::fs::symlink_metadata(&path) {
                Ok(named) if (named.dev(), named.ino()) == (ours.dev(), ours.ino()) => {}
                Ok(_) => continue,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(TierError::file("looking at", &path, &e)),
            }
            // For whoever finds it locked; nothing depends on it.
            let text = format!("{:<20}\n", std::process::id());
            let _ = file.write_all_at(text.as_bytes(), 0);
            let opened = File::open(dir);
            let dir = opened.map_err(|e| TierError::file("opening", dir, &e))?;
            litter::add(&path);
            return Ok(Self {
                path,
                dir,
                _file: file,
            });
        }
    }
}

impl Drop for DirLock {
    fn drop(&mut self) {
        // Still under the lock; if it fails there is nobody to tell, and the next holder takes it over. By
        // the directory: what its path leads to by now may be another one, with another's lock.
        let _ = rustix::fs::unlinkat(&self.dir, Self::NAME, AtFlags::empty());
        litter::remove(&self.path);
    }
}

/// The process that says it holds the lock.
fn holder(file: &File) -> Option<u32> {
    let mut text = [0; 20];
    let n = file.read_at(&mut text, 0).ok()?;
    std::str::from_utf8(&text[..n]).ok()?.trim().parse().ok()
}

/// Opens a file of lowtide's by its name: what is opened is a regular file in that directory, no link,
/// and the call never waits for anybody, as a FIFO would have it.
pub(crate) fn open_own(path: &Path, options: &mut OpenOptions) -> Result<File, TierError> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC;
    let bad = |what: &str| TierError::BadFile {
        path: path.to_owned(),
        what: what.to_owned(),
    };
    let file = options.mode(0o600).custom_flags(flags).open(path);
    let file = file.map_err(|e| match e.raw_os_error() {
        Some(libc::ELOOP) => bad("it is a symbolic link, which is not followed"),
        Some(libc::EISDIR) => bad("it is a directory"),
        Some(libc::ENXIO) => bad("it is a FIFO or a socket"),
        _ => TierError::file("opening", path, &e),
    })?;
    let meta = file.metadata();
    let meta = meta.map_err(|e| TierError::file("looking at", path, &e))?;
    if !meta.is_file() {
        return Err(bad(
            "it is a directory, a FIFO or a device, not a regular file",
        ));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holder_at_a_time_and_nothing_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let lock = DirLock::take(dir.path()).unwrap();
        let error = DirLock::take(dir.path()).unwrap_err();
        let want = TierError::InUse {
            path: dir.path().to_owned(),
            holder: Some(std::process::id()),
        };
        assert_eq!(error, want);
        assert!(error.to_string().contains(&std::process::id().to_string()));
        drop(lock);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        // What a killed process leaves is no lock.
        std::fs::write(dir.path().join(DirLock::NAME), "4242\n").unwrap();
        drop(DirLock::take(dir.path()).unwrap());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn many_takers_never_hold_it_together() {
        use std::sync::atomic::{AtomicU32, Ordering};
        let dir = tempfile::tempdir().unwrap();
        let (holders, taken) = (AtomicU32::new(0), AtomicU32::new(0));
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    for _ in 0..300 {
                        if let Ok(lock) = DirLock::take(dir.path()) {
                            assert_eq!(holders.fetch_add(1, Ordering::SeqCst), 0);
                            taken.fetch_add(1, Ordering::SeqCst);
                            holders.fetch_sub(1, Ordering::SeqCst);
                            drop(lock);
                        }
                    }
                });
            }
        });
        assert!(taken.load(Ordering::SeqCst) > 10);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn links_fifos_and_directories_are_not_opened() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(DirLock::NAME);
        let elsewhere = dir.path().join("thesis");
        std::fs::write(&elsewhere, "text").unwrap();
        let refused = |word: &str| match DirLock::take(dir.path()) {
            Err(TierError::BadFile { path: named, what }) => {
                assert!(named == path && what.contains(word), "{what}");
            }
            other => panic!("{other:?}"),
        };
        std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
        refused("symbolic link");
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        refused("directory");
        std::fs::remove_dir(&path).unwrap();
        let made = std::process::Command::new("mkfifo").arg(&path).status();
        assert!(made.unwrap().success());
        refused("FIFO");
        assert_eq!(std::fs::read(&elsewhere).unwrap(), b"text");
    }
}
