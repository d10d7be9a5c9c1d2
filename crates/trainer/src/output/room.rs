//! Room on disk for all that a run will write, known and held before its first step.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use lowtide_tiers::process;
use lowtide_units::Bytes;

use super::folder::{self, Folder};
use crate::error::TrainError;

/// Something that will be written: where, what, how much.
#[derive(Clone, Debug)]
pub struct Need {
    /// A directory on its file system.
    pub dir: PathBuf,
    /// What it is, for people.
    pub what: String,
    /// Bytes beyond what is there.
    pub bytes: u64,
}

/// Compares what will be written with what each file system has free for this user.
///
/// # Errors
/// [`TrainError::Room`] with the first file system that has too little.
pub fn check(needs: &[Need]) -> Result<(), TrainError> {
    let mut systems: Vec<(u64, Vec<&Need>)> = Vec::new();
    for need in needs.iter().filter(|n| n.bytes > 0) {
        let meta = fs::metadata(&need.dir).map_err(TrainError::io(&need.dir))?;
        match systems.iter_mut().find(|s| s.0 == meta.dev()) {
            Some(system) => system.1.push(need),
            None => systems.push((meta.dev(), vec![need])),
        }
    }
    for (_, needs) in systems {
        let dir = &needs[0].dir;
        let have = process::disk_free(dir)?;
        let need = needs
            .iter()
            .fold(0u64, |sum, n| sum.saturating_add(n.bytes));
        if need > have.0 {
            return Err(TrainError::Room {
                path: mounted_at(dir),
                need: Bytes(need),
                have,
                parts: needs
                    .iter()
                    .map(|n| (n.what.clone(), Bytes(n.bytes)))
                    .collect(),
            });
        }
    }
    Ok(())
}

/// The highest directory above `dir` that is on the same file system.
fn mounted_at(dir: &Path) -> PathBuf {
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    let device = |p: &Path| fs::metadata(p).map(|m| m.dev()).ok();
    let own = device(&dir);
    let root = dir.ancestors().take_while(|p| device(p) == own).last();
    root.unwrap_or(&dir).to_owned()
}

/// Room that is kept free for what will be written later. It is a file without a name, so a process that
/// dies leaves nothing; where the file system has no such files nothing is kept.
#[derive(Debug)]
pub struct Room {
    file: Option<File>,
    bytes: u64,
}

impl Room {
    /// Reserves `bytes` bytes on the file system for later writes.
    ///
    /// # Errors
    /// [`TrainError::Room`] when they are not there.
    pub fn keep(folder: &Folder, bytes: u64) -> Result<Self, TrainError> {
        let dir = folder.path();
        match folder.reserve(bytes) {
            Ok(file) => Ok(Self { file, bytes }),
            Err(e) if is_full(&e) => Err(TrainError::Room {
                path: mounted_at(dir),
                need: Bytes(bytes),
                have: process::disk_free(dir)?,
                parts: vec![("for checkpoints and the model".to_owned(), Bytes(bytes))],
            }),
            Err(e) => Err(TrainError::io(dir)(e)),
        }
    }

    /// Gives up `bytes` of what is kept, but `least` of it, for what is about to be written. Returns a message as
    /// [`Room::resize`].
    pub fn lend(&mut self, folder: &Folder, bytes: u64, least: u64) -> Option<String> {
        let left = self.bytes.saturating_sub(bytes).max(least);
        self.resize(folder, left.min(self.bytes))
    }

    /// Changes how many bytes are kept. Returns a message for the user if there are not as many.
    pub fn resize(&mut self, folder: &Folder, bytes: u64) -> Option<String> {
        if bytes <= self.bytes {
            self.bytes = bytes;
            // Where it cannot be cut, it goes as a whole.
            if self
                .file
                .as_ref()
                .is_some_and(|f| f.set_len(bytes).is_err())
            {
                self.file = None;
            }
            return None;
        }
        let file = self.file.as_ref()?;
        match folder::allocate(file, bytes) {
            Ok(()) => {
                self.bytes = bytes;
                None
            }
            Err(e) => {
                // What was taken before the disk was full would keep it full for everybody.
                let _ = file.set_len(self.bytes);
                Some(format!(
                    "warning: {}: no room is left for the checkpoints to come ({e})",
                    folder.path().display()
                ))
            }
        }
    }
}

fn is_full(e: &std::io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::NOSPC, Errno::DQUOT]
        .iter()
        .any(|full| e.raw_os_error() == Some(full.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lent_for_one_checkpoint_leaves_that_of_the_others() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        let mut room = Room::keep(&folder, 7 << 20).unwrap();
        let held = |room: &Room| {
            let file = room.file.as_ref().expect("a file system that has them");
            (room.bytes, file.metadata().unwrap().blocks() * 512)
        };
        for (want, note) in [
            (5, "one of three"),
            (3, "one of two"),
            (1, "the last"),
            (1, "none"),
        ] {
            assert_eq!(room.lend(&folder, 2 << 20, 1 << 20), None);
            assert_eq!(held(&room), (want << 20, want << 20), "{note}");
        }
        // What was not there to be kept is not asked for now.
        room.resize(&folder, 1 << 19);
        assert_eq!(room.lend(&folder, 2 << 20, 1 << 20), None);
        assert_eq!(held(&room), (1 << 19, 1 << 19));
    }
}
