//! Commits on files: from which version a later process resumes, whatever happened to the files between.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use lowtide_tiers::{Disk, DiskConfig, Extent, Open, TierError, committed, kept};
use lowtide_units::Bytes;

use crate::{extent, noise, write};

const RUN: u128 = 77;
const DATA: u64 = 2 << 20;

/// Two versions of three extents, in turn, as a durable plan has them.
fn versions() -> [Vec<Extent>; 2] {
    let sizes = [64 << 10, 4 << 10, 300 << 10];
    let mut at = 0;
    let mut versions = [Vec::new(), Vec::new()];
    for bytes in sizes {
        for version in &mut versions {
            version.push(extent(at, bytes));
            at += bytes;
        }
    }
    versions
}

struct Dirs(tempfile::TempDir);

impl Dirs {
    fn new() -> Self {
        let dirs = Self(tempfile::tempdir().unwrap());
        for i in [0, 1] {
            std::fs::create_dir(dirs.dir(i)).unwrap();
        }
        dirs
    }

    fn dir(&self, i: usize) -> PathBuf {
        self.0.path().join(["a", "b"][i])
    }

    fn state(&self, i: usize) -> PathBuf {
        self.dir(i).join("lowtide-state.bin")
    }

    fn open(&self, how: Open) -> Result<Disk, TierError> {
        let mut config = DiskConfig::new([0, 1].map(|i| (self.dir(i), 1.0)));
        config.block = Bytes::KIB * 16;
        config.stripe = Bytes::KIB * 32;
        (config.keep, config.run, config.open) = (true, RUN, how);
        let disk = Disk::open(&config.fit(Bytes(1 << 20))?, None)?;
        disk.set_versions(versions())?;
        Ok(disk)
    }

    /// Files with `n` commits; `more`: some extents of the next were written when the process died.
    fn made(n: u64, more: usize) -> Self {
        let dirs = Self::new();
        let disk = dirs.open(Open::Create).unwrap();
        (1..=n).for_each(|i| commit(&disk, i));
        write_version(&disk, n + 1, more);
        drop(disk);
        dirs
    }

    /// The commit from which a later process resumes.
    fn proven(&self) -> Result<u64, TierError> {
        let disk = self.open(Open::Existing)?;
        let found = disk.prove()?;
        let i = found.sequence;
        assert_eq!(found.record, i.to_le_bytes());
        assert_eq!(u64::from(found.version), i % 2);
        for (e, bytes) in versions()[(i % 2) as usize].iter().zip(images(i)) {
            assert!(
                crate::read(&disk, e.offset, e.bytes).unwrap() == bytes,
                "{i}"
            );
        }
        // And goes on.
        commit(&disk, i + 1);
        assert_eq!(disk.prove().unwrap().sequence, i + 1);
        Ok(i)
    }
}

fn images(i: u64) -> Vec<Vec<u8>> {
    let each = versions()[0].clone().into_iter().enumerate();
    each.map(|(e, extent)| noise(100 * i + e as u64, extent.bytes))
        .collect()
}

fn write_version(disk: &Disk, i: u64, extents: usize) {
    let places = versions()[(i % 2) as usize].clone();
    for (e, bytes) in places.iter().zip(images(i)).take(extents) {
        write(disk, e.offset, &bytes).unwrap();
    }
}

fn commit(disk: &Disk, i: u64) {
    write_version(disk, i, 3);
    disk.commit((i % 2) as u32, b"about", &i.to_le_bytes())
        .unwrap();
}

fn patch(path: &Path, at: u64, bytes: &[u8]) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(bytes, at).unwrap();
}

#[test]
fn the_last_commit_is_gone_on_from() {
    for n in 1..5 {
        for more in 0..3 {
            let dirs = Dirs::made(n, more);
            assert_eq!(committed(&dirs.dir(0)).unwrap().unwrap().sequence, n);
            assert_eq!(dirs.proven().unwrap(), n);
        }
    }
    let none = Dirs::made(0, 2);
    assert_eq!(kept(&none.dir(0)).unwrap().unwrap().commits, []);
    assert!(matches!(none.proven(), Err(TierError::NotWhole { .. })));
}

/// The record before the newest counts only while nobody has written into its version.
#[test]
fn a_lost_record_falls_back_while_the_version_before_is_whole_and_never_later() {
    for n in [2, 3, 4] {
        for more in 0..4 {
            for (from, bytes) in [(100, vec![0x55; 1]), (0, vec![0; 4096])] {
                let dirs = Dirs::made(n, more);
                patch(&dirs.state(0), 4096 * (1 + n % 2) + from, &bytes);
                if more == 0 {
                    assert_eq!(dirs.proven().unwrap(), n - 1, "{n} commits");
                } else {
                    let error = dirs.proven().unwrap_err();
                    let TierError::NotWhole { path, what } = &error else {
                        panic!("{error}")
                    };
                    assert_eq!(*path, dirs.state(0));
                    assert!(what.contains("record") && what.contains("extent"), "{what}");
                }
            }
        }
    }
}

/// A commit that does not have all of its version is none.
#[test]
fn a_version_that_was_not_written_whole_is_not_committed() {
    let dirs = Dirs::new();
    let disk = dirs.open(Open::Create).unwrap();
    commit(&disk, 1);
    write_version(&disk, 2, 2);
    let error = disk.commit(0, b"about", b"2").unwrap_err();
    assert!(
        matches!(error, TierError::NotWritten { have: 0, .. }),
        "{error}"
    );
    assert_eq!(disk.prove().unwrap().sequence, 1);
}

/// Whatever is done to the files: the run resumes from a version that is whole, at most one commit back,
/// or is refused with the file's name. Never another version, never "nothing there".
#[test]
fn a_damaged_file_gives_a_whole_version_or_a_refusal() {
    let mut x = 0x5eed_u64;
    let mut draw = |n: u64| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x % n
    };
    let n = 3;
    let whole = Dirs::made(n, 1);
    let images = [0, 1].map(|i| std::fs::read(whole.state(i)).unwrap());
    let (mut on, mut refused) = (0, 0);
    for round in 0..400 {
        let drive = usize::from(draw(3) == 0);
        let mut bytes = images[drive].clone();
        // Metadata mostly: it is the smaller part.
        let at = match draw(5) {
            0 => draw(4096),
            1 => 4096 + draw(8192),
            2 => [64 << 10, 544 << 10][draw(2) as usize] + draw(16),
            3 => [1 << 20, 3 << 19][draw(2) as usize] + draw(24),
            _ => DATA + draw(images[drive].len() as u64 - DATA),
        } as usize;
        let len = [1, 64, 4096, 100_000][draw(4) as usize].min(bytes.len() - at);
        match draw(4) {
            0 => bytes[at] ^= 1 << draw(8),
            1 => bytes[at..at + len].fill(0),
            2 => bytes[at..at + len]
                .iter_mut()
                .for_each(|b| *b = draw(256) as u8),
            _ => bytes.truncate(at),
        }
        let dirs = Dirs::new();
        for (i, image) in images.iter().enumerate() {
            let bytes = if i == drive { &bytes } else { image };
            std::fs::write(dirs.state(i), bytes).unwrap();
        }
        match dirs.proven() {
            // `proven` has compared every byte of the version.
            Ok(i) => {
                on += 1;
                assert!(
                    i == n,
                    "round {round}: commit {i}, and the version before was written into"
                );
            }
            Err(TierError::BadFile { path, what } | TierError::NotWhole { path, what }) => {
                refused += 1;
                assert!(path == dirs.state(0) || path == dirs.state(1));
                assert!(!what.is_empty());
                // The journal itself never says that nothing was committed.
                let found = kept(&dirs.dir(0));
                assert!(
                    found.map_or(true, |k| !k.unwrap().commits.is_empty()),
                    "round {round}"
                );
            }
            Err(e) => panic!("round {round}: {e}"),
        }
    }
    assert!(
        on > 50 && refused > 50,
        "{on} went on, {refused} were refused"
    );
}

#[test]
fn files_of_other_drives_runs_and_times_are_refused() {
    let swapped = Dirs::made(3, 0);
    let aside = swapped.0.path().join("aside");
    std::fs::rename(swapped.state(0), &aside).unwrap();
    std::fs::rename(swapped.state(1), swapped.state(0)).unwrap();
    std::fs::rename(&aside, swapped.state(1)).unwrap();
    assert!(matches!(swapped.proven(), Err(TierError::OtherDisk { .. })));
    for gone in [0, 1] {
        let dirs = Dirs::made(3, 0);
        std::fs::remove_file(dirs.state(gone)).unwrap();
        let error = dirs.proven().unwrap_err();
        assert!(error.to_string().contains("missing"), "{error}");
        assert!(dirs.state(1 - gone).exists());
    }
    // The second drive's file of two commits before: same run, same header.
    let (old, new) = (Dirs::made(1, 0), Dirs::made(3, 0));
    std::fs::copy(old.state(1), new.state(1)).unwrap();
    assert!(matches!(new.proven(), Err(TierError::NotWhole { .. })));
    // Everything of both drives, consistently older, is that commit: nobody can tell.
    std::fs::copy(old.state(0), new.state(0)).unwrap();
    assert_eq!(new.proven().unwrap(), 1);
}

#[test]
fn kept_files_stay_until_what_replaces_them_is_published() {
    let dirs = Dirs::made(3, 0);
    let before = [0, 1].map(|i| std::fs::read(dirs.state(i)).unwrap());
    let disk = dirs.open(Open::Replace).unwrap();
    write_version(&disk, 1, 3);
    drop(disk);
    for i in [0, 1] {
        assert!(
            std::fs::read(dirs.state(i)).unwrap() == before[i],
            "drive {i}"
        );
        assert_eq!(std::fs::read_dir(dirs.dir(i)).unwrap().count(), 1);
    }
    assert_eq!(dirs.proven().unwrap(), 3);
    let disk = dirs.open(Open::Replace).unwrap();
    disk.publish().unwrap();
    assert_eq!(kept(&dirs.dir(0)).unwrap().unwrap().commits, []);
    commit(&disk, 1);
    drop(disk);
    assert_eq!(dirs.proven().unwrap(), 1);
}

#[test]
fn a_discarded_state_has_no_name_any_more_and_works_until_it_is_closed() {
    let dirs = Dirs::made(3, 0);
    let disk = dirs.open(Open::Existing).unwrap();
    assert_eq!(disk.prove().unwrap().sequence, 3);
    disk.discard();
    for i in [0, 1] {
        assert!(!dirs.state(i).exists(), "drive {i}");
    }
    commit(&disk, 4);
    for (e, bytes) in versions()[0].iter().zip(images(4)) {
        assert!(crate::read(&disk, e.offset, e.bytes).unwrap() == bytes);
    }
    // Somebody who is killed here, as this process will be, leaves files without names, which a start does not see.
    assert!(kept(&dirs.dir(0)).unwrap().is_none());
    drop(disk);
    for i in [0, 1] {
        assert_eq!(std::fs::read_dir(dirs.dir(i)).unwrap().count(), 0);
    }
}
