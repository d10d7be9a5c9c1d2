//! What a run is about to reserve, held against every limit before any of it is touched.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use lowtide_units::Bytes;

use crate::header::DATA;
use crate::state_file::{Found, NAME, PENDING, look};
use crate::{DiskConfig, HostMemory, Open, TierError, process};

/// What a process takes beside its arenas: threads, libraries, staging, data. Budgets that are left
/// open keep more than this free.
pub const BESIDE: Bytes = Bytes(128 << 20);

/// Compares what a run will reserve with what there is: `arenas` bytes of host memory in all, in addition to what the
/// process will hold in the end (`process`, where that is known; what it holds already is then not counted again),
/// and what all of `disks` together ask of each file system. Touches nothing.
///
/// # Errors
/// [`TierError::HostMemory`] with the limit that is too low, [`TierError::Space`] with the first
/// directory whose file system has too little for all that would lie on it.
pub fn check(arenas: Bytes, process: Bytes, disks: &[&DiskConfig]) -> Result<(), TierError> {
    let held = process::rss_bytes().unwrap_or_default();
    let host = HostMemory::now();
    holds(&host, arenas, process.saturating_sub(held))?;
    space(disks)
}

fn holds(host: &HostMemory, arenas: Bytes, beside: Bytes) -> Result<(), TierError> {
    let need = Bytes(arenas.0.saturating_add(beside.max(BESIDE).0));
    if need <= host.available {
        return Ok(());
    }
    Err(TierError::HostMemory {
        need,
        have: host.available,
        limit: host.limit,
    })
}

/// Bytes that a directory's state file of an earlier run takes; a run empties it before it makes its own.
#[must_use]
pub fn state_file_bytes(dir: &Path) -> Bytes {
    Bytes(fs::metadata(dir.join(NAME)).map_or(0, |m| m.blocks() * 512))
}

/// Directories may share a file system: then their state files must fit together.
fn space(disks: &[&DiskConfig]) -> Result<(), TierError> {
    let mut systems: Vec<(u64, &Path, u64, u64)> = Vec::new();
    let drives = disks.iter();
    for (disk, drive) in drives.flat_map(|disk| disk.drives.iter().map(move |d| (*disk, d))) {
        let meta =
            fs::metadata(&drive.dir).map_err(|e| TierError::file("looking at", &drive.dir, &e))?;
        let file = drive.dir.join(NAME);
        let size = |path: &Path| fs::symlink_metadata(path).map_or(0, |m| m.blocks() * 512);
        // A file of an earlier run is resumed or removed first, unless it was to be kept: then it
        // stays until what replaces it is whole.
        let stays = disk.open == Open::Replace
            && matches!(look(&file)?, Found::Ours(header) if header.keep);
        let pending = size(&drive.dir.join(PENDING));
        let old = pending + if stays { 0 } else { size(&file) };
        let need = DATA.saturating_add(drive.bytes.0);
        match systems.iter_mut().find(|s| s.0 == meta.dev()) {
            Some(system) => {
                system.2 = system.2.saturating_add(need);
                system.3 += old;
            }
            None => systems.push((meta.dev(), &drive.dir, need, old)),
        }
    }
    for (_, dir, need, old) in systems {
        let free = Bytes(process::disk_free(dir)?.0.saturating_add(old));
        if need > free.0 {
            return Err(TierError::Space {
                path: dir.join(NAME),
                need: Bytes(need),
                free,
            });
        }
    }
    Ok(())
}

/// The limit on memory that this process may lock (`RLIMIT_MEMLOCK`); `None` without one, or where
/// the system does not say. io_uring's registered memory counts against it; a GPU's driver may or
/// may not count what it pins.
#[must_use]
pub fn locked_memory() -> Option<Bytes> {
    locked(&fs::read_to_string(PathBuf::from("/proc/self/limits")).ok()?)
}

/// The soft limit in the text of `/proc/<pid>/limits`.
fn locked(text: &str) -> Option<Bytes> {
    let line = text
        .lines()
        .find_map(|l| l.strip_prefix("Max locked memory"))?;
    line.split_whitespace().next()?.parse().ok().map(Bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_of_all_arenas_counts_with_what_the_process_needs() {
        let host = HostMemory {
            total: Bytes::GIB,
            available: Bytes::GIB,
            limit: crate::HostLimit::GroupV2,
        };
        let none = Bytes::ZERO;
        assert_eq!(holds(&host, Bytes::GIB - BESIDE, none), Ok(()));
        let error = holds(&host, Bytes::GIB - BESIDE + Bytes(1), none).unwrap_err();
        let expected = TierError::HostMemory {
            need: Bytes::GIB + Bytes(1),
            have: Bytes::GIB,
            limit: crate::HostLimit::GroupV2,
        };
        assert_eq!(error, expected);
        assert!(error.to_string().contains("cgroup v2"), "{error}");
        assert!(holds(&host, Bytes(u64::MAX), none).is_err());
        // A GPU's context and libraries are more than the usual.
        let more = BESIDE * 4;
        assert_eq!(holds(&host, Bytes::GIB - more, more), Ok(()));
        assert!(holds(&host, Bytes::GIB - BESIDE, more).is_err());
    }

    #[test]
    fn directories_of_one_file_system_must_fit_together() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let free = process::disk_free(a.path()).unwrap().0;
        let disk = |each: u64| {
            let dirs = [a.path(), b.path()].map(|d| (d.to_owned(), 1.0));
            let mut disk = DiskConfig::new(dirs);
            disk.drives.iter_mut().for_each(|d| d.bytes = Bytes(each));
            disk
        };
        assert_eq!(check(Bytes::ZERO, Bytes::ZERO, &[&disk(1 << 20)]), Ok(()));
        // Each fits alone, both do not.
        let short = |disks: &[&DiskConfig]| {
            let error = check(Bytes::ZERO, Bytes::ZERO, disks).unwrap_err();
            assert!(
                matches!(&error, TierError::Space { need, free, path }
                if need > free && path.starts_with(a.path())),
                "{error}"
            );
        };
        short(&[&disk(free / 4 * 3)]);
        // Those of one rank do, those of two do not.
        let rank = disk(free / 8 * 3);
        assert_eq!(check(Bytes::ZERO, Bytes::ZERO, &[&rank]), Ok(()));
        short(&[&rank, &rank]);
        for dir in [a.path(), b.path()] {
            assert_eq!(fs::read_dir(dir).unwrap().count(), 0, "something was made");
        }
    }

    #[test]
    fn the_limit_of_locked_memory_is_read() {
        let child = std::process::Command::new("sh")
            .args(["-c", "ulimit -l 48 && cat /proc/self/limits"])
            .output()
            .unwrap();
        let text = String::from_utf8(child.stdout).unwrap();
        assert_eq!(locked(&text), Some(Bytes::KIB * 48), "{text}");
        let unlimited = "Max locked memory         unlimited            unlimited            bytes";
        assert_eq!(locked(unlimited), None);
    }
}
