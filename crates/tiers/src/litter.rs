//! Files and directories of this process that are removed when it ends, even when it ends at once, without dropping
//! anything.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Files and directories. A directory comes before what is in it.
static LITTER: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

fn all() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    LITTER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `path` goes with the process.
pub(crate) fn add(path: &Path) {
    all().insert(path.to_owned());
}

/// `path` is gone, or stays.
pub(crate) fn remove(path: &Path) {
    all().remove(path);
}

/// Removes what goes with this process: state files that are not kept or do not have their name yet,
/// locks, places of probes. For a process that ends at once, without closing anything: nothing may be
/// read or written by them afterwards.
pub fn abandon() {
    // Whoever holds the lock holds it for a moment; a process that ends does not wait for more.
    if let Ok(litter) = LITTER.try_lock() {
        for path in litter.iter().rev() {
            let _ = std::fs::remove_file(path).or_else(|_| std::fs::remove_dir(path));
        }
    }
}
