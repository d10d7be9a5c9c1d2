//! One drive's state file: found or made, locked, its space reserved, opened for direct I/O.
//!
//! Layout: a 4 KiB header at 0, the drive's bytes from 1 MiB on (so that blocks stay aligned to
//! whatever the drive has inside). The lock (`flock`) lives as long as the open file, so a killed
//! process leaves none behind.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use lowtide_units::Bytes;
use rustix::fs::{FallocateFlags, FlockOperation};

use crate::disk::Open;
use crate::stripe::Stripe;
use crate::{ALIGN, TierError, process};

/// The name in every directory.
pub(crate) const NAME: &str = "lowtide-state.bin";
/// Where in the file the drive's bytes begin.
pub(crate) const DATA: u64 = 1 << 20;

const HEADER: usize = 4096;
const MAGIC: &[u8; 8] = b"LOWTIDE\n";
const VERSION: u32 = 1;
const KEEP: u32 = 1;

/// What a header says. A file can be used again only by a disk that would write the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) run: u128,
    pub(crate) keep: bool,
    pub(crate) drive: u32,
    /// Bytes of data in this file.
    pub(crate) share: u64,
    pub(crate) stripe: Stripe,
}

/// An open state file. Dropping it removes the file unless its header says keep.
#[derive(Debug)]
pub(crate) struct StateFile {
    pub(crate) path: PathBuf,
    /// Holds the lock; page cache I/O.
    file: File,
    /// What blocks are moved through; `None` where the file system refuses O_DIRECT.
    direct: Option<File>,
    /// Why `direct` is `None`.
    pub(crate) note: Option<String>,
    keep: AtomicBool,
}

impl StateFile {
    pub(crate) fn open(
        dir: &Path,
        header: &Header,
        open: Open,
        direct: bool,
    ) -> Result<Self, TierError> {
        let path = dir.join(NAME);
        let file = lock(&path, open)?;
        let found = found(&path, &file)?;
        // From here on a failure must not leave a file of ours behind, nor remove another's.
        let mut state = Self {
            path,
            file,
            direct: None,
            note: None,
            keep: AtomicBool::new(true),
        };
        match (open, found) {
            (Open::Existing, Found::Ours(old)) if old.goes_on_as(header) => state.grow(header)?,
            (Open::Existing, _) => return Err(state.bad("written by another run or striping")),
            (Open::Create, Found::Ours(old)) if old.keep => {
                return Err(TierError::Kept {
                    path: state.path.clone(),
                    run: old.run,
                });
            }
            (_, Found::Foreign) => return Err(state.bad("not a state file of lowtide")),
            (Open::Create | Open::Replace, _) => state.fill(header)?,
        }
        let opened = if direct {
            state.open_direct()
        } else {
            Err("not asked for".to_owned())
        };
        match opened {
            Ok(file) => state.direct = Some(file),
            Err(why) => state.note = Some(format!("O_DIRECT {why}")),
        }
        state.set_keep(header.keep);
        Ok(state)
    }

    /// Empties the file, reserves all of its space, and only then writes the header.
    fn fill(&mut self, header: &Header) -> Result<(), TierError> {
        self.set_keep(false); // whatever it held is gone now
        let fail = |action, e: io::Error| TierError::file(action, &self.path, &e);
        self.file.set_len(0).map_err(|e| fail("emptying", e))?;
        self.reserve(DATA + header.share, 0)?;
        self.file
            .write_all_at(&header.encode(), 0)
            .map_err(|e| fail("writing", e))?;
        self.file.sync_all().map_err(|e| fail("syncing", e))?;
        if header.keep {
            // Its name must survive a power loss too.
            let dir = self.dir();
            let synced = File::open(dir).and_then(|d| d.sync_all());
            synced.map_err(|e| TierError::file("syncing", dir, &e))?;
        }
        Ok(())
    }

    /// Reserves what a kept file lacks of the header's share. Its own header stays as it is: a
    /// header half written would lose the run.
    fn grow(&self, header: &Header) -> Result<(), TierError> {
        let meta = self.file.metadata();
        let have = meta.map_err(|e| TierError::file("looking at", &self.path, &e))?;
        let need = DATA + header.share;
        if have.len() >= need {
            return Ok(());
        }
        self.reserve(need, have.len())?;
        let synced = self.file.sync_all();
        synced.map_err(|e| TierError::file("syncing", &self.path, &e))
    }

    fn dir(&self) -> &Path {
        self.path.parent().expect("a file in a directory")
    }

    /// Reserves the first `need` bytes, of which it has `have`.
    fn reserve(&self, need: u64, have: u64) -> Result<(), TierError> {
        let free = process::disk_free(self.dir())?;
        let space = || TierError::Space {
            path: self.path.clone(),
            need: Bytes(need - have),
            free,
        };
        if need - have > free.0 {
            return Err(space());
        }
        match reserve(&self.file, need) {
            Ok(()) => Ok(()),
            Err(e) if e.raw_os_error() == Some(libc::ENOSPC) => Err(space()),
            Err(e) => Err(TierError::file("reserving space for", &self.path, &e)),
        }
    }

    /// Writes among the reserved bytes before the drive's. To be synced.
    pub(crate) fn write_reserved(&self, at: u64, bytes: &[u8]) -> Result<(), TierError> {
        debug_assert!(at >= HEADER as u64 && at + bytes.len() as u64 <= DATA);
        let written = self.file.write_all_at(bytes, at);
        written.map_err(|e| TierError::file("writing", &self.path, &e))
    }

    /// The reserved bytes before the drive's, header included.
    pub(crate) fn read_reserved(&self) -> Result<Vec<u8>, TierError> {
        let mut bytes = vec![0; DATA as usize];
        let read = self.file.read_exact_at(&mut bytes, 0);
        read.map_err(|e| TierError::file("reading", &self.path, &e))?;
        Ok(bytes)
    }

    /// The file goes when it is closed, whatever its header says.
    pub(crate) fn discard(&self) {
        self.set_keep(false);
    }

    fn set_keep(&self, keep: bool) {
        self.keep.store(keep, Ordering::Relaxed);
        let mut unkept = UNKEPT.lock().unwrap_or_else(PoisonError::into_inner);
        match keep {
            true => unkept.remove(&self.path),
            false => unkept.insert(self.path.clone()),
        };
    }

    /// Opens it again for direct I/O and reads the header through that, as a trial.
    fn open_direct(&self) -> Result<File, String> {
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .custom_flags(libc::O_DIRECT | libc::O_CLOEXEC);
        let file = options
            .open(&self.path)
            .map_err(|e| format!("refused: {e}"))?;
        let mut trial = Aligned([0; HEADER]);
        let n = file
            .read_at(&mut trial.0, 0)
            .map_err(|e| format!("fails to read: {e}"))?;
        if n != HEADER || &trial.0[..8] != MAGIC {
            return Err("does not read what was written".to_owned());
        }
        Ok(file)
    }

    /// Makes all finished writes survive a power loss.
    pub(crate) fn sync(&self) -> Result<(), TierError> {
        self.file
            .sync_data()
            .map_err(|e| TierError::file("syncing", &self.path, &e))
    }

    /// What blocks are moved through.
    pub(crate) fn fd(&self) -> RawFd {
        self.direct.as_ref().unwrap_or(&self.file).as_raw_fd()
    }

    fn bad(&self, what: &str) -> TierError {
        TierError::BadFile {
            path: self.path.clone(),
            what: what.to_owned(),
        }
    }
}

impl Drop for StateFile {
    fn drop(&mut self) {
        if !self.keep.load(Ordering::Relaxed) {
            // Still under the lock; if it fails there is nobody to tell and nothing is lost.
            let _ = std::fs::remove_file(&self.path);
            self.set_keep(true);
        }
    }
}

/// Files of this process that go with it.
static UNKEPT: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// Removes the state files of this process that are not kept. For a process that ends at once, without
/// closing anything: nothing may be read or written by them afterwards.
pub fn abandon() {
    // Whoever holds the lock holds it for a moment; a process that ends does not wait for more.
    if let Ok(unkept) = UNKEPT.try_lock() {
        for path in unkept.iter() {
            let _ = std::fs::remove_file(path);
        }
    }
}

#[repr(align(4096))]
struct Aligned([u8; HEADER]);

/// The run whose state file begins with these bytes, if it asked to keep it.
pub(crate) fn kept_run(bytes: &[u8]) -> Option<u128> {
    let header = Header::decode(bytes.first_chunk()?)?;
    header.keep.then_some(header.run)
}

/// Opens or makes the file and takes its lock.
fn lock(path: &Path, open: Open) -> Result<File, TierError> {
    let fail = |action, e: &io::Error| TierError::file(action, path, e);
    loop {
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .create(open != Open::Existing)
            .truncate(false)
            .mode(0o600);
        let file = options.open(path).map_err(|e| fail("opening", &e))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(TierError::InUse {
                    path: path.to_owned(),
                });
            }
            Err(e) => return Err(TierError::file("locking", path, e)),
        }
        // Its last holder may have removed it between our open and our lock: then the name now
        // means another file, or none, and ours is a ghost.
        let ours = file.metadata().map_err(|e| fail("looking at", &e))?;
        match std::fs::metadata(path) {
            Ok(named) if (named.dev(), named.ino()) == (ours.dev(), ours.ino()) => return Ok(file),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound && open != Open::Existing => {}
            Err(e) => return Err(fail("looking at", &e)),
        }
    }
}

enum Found {
    Nothing,
    Ours(Box<Header>),
    Foreign,
}

fn found(path: &Path, file: &File) -> Result<Found, TierError> {
    let fail = |e: &io::Error| TierError::file("reading", path, e);
    if file.metadata().map_err(|e| fail(&e))?.len() == 0 {
        return Ok(Found::Nothing);
    }
    let mut bytes = [0; HEADER];
    match file.read_exact_at(&mut bytes, 0) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(Found::Foreign),
        Err(e) => return Err(fail(&e)),
    }
    // All zeros: space was reserved, and the process died before it wrote the header.
    if bytes.iter().all(|&b| b == 0) {
        return Ok(Found::Nothing);
    }
    Ok(Header::decode(&bytes).map_or(Found::Foreign, |header| Found::Ours(Box::new(header))))
}

fn reserve(file: &File, bytes: u64) -> io::Result<()> {
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, bytes) {
        Err(rustix::io::Errno::OPNOTSUPP) => {}
        other => return other.map_err(io::Error::from),
    }
    // The C library then writes into every block itself: slow, but the space is ours.
    let len = libc::off_t::try_from(bytes).map_err(|_| io::ErrorKind::FileTooLarge)?;
    // SAFETY: an open file and plain numbers.
    match unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, len) } {
        0 => Ok(()),
        os => Err(io::Error::from_raw_os_error(os)),
    }
}

impl Header {
    /// Whether a disk of the header `new` finds its bytes where this one's put them. Each drive's
    /// bytes lie the same whatever its share is.
    fn goes_on_as(&self, new: &Self) -> bool {
        let share = new.share;
        Self {
            share,
            ..self.clone()
        } == *new
    }

    /// magic, version, flags, run, share, drive, drives, unit, units, pattern, crc32c.
    fn encode(&self) -> [u8; HEADER] {
        let (pattern, unit) = self.stripe.pattern();
        let mut text = Vec::with_capacity(HEADER);
        text.extend_from_slice(MAGIC);
        text.extend_from_slice(&VERSION.to_le_bytes());
        text.extend_from_slice(&(if self.keep { KEEP } else { 0 }).to_le_bytes());
        text.extend_from_slice(&self.run.to_le_bytes());
        text.extend_from_slice(&self.share.to_le_bytes());
        text.extend_from_slice(&self.drive.to_le_bytes());
        text.extend_from_slice(&(self.stripe.n_drives() as u32).to_le_bytes());
        text.extend_from_slice(&unit.to_le_bytes());
        text.extend_from_slice(&(pattern.len() as u32).to_le_bytes());
        text.extend(pattern.iter().flat_map(|drive| drive.to_le_bytes()));
        let mut bytes = [0; HEADER];
        bytes[..text.len()].copy_from_slice(&text);
        let sum = crc32c::crc32c(&bytes[..HEADER - 4]).to_le_bytes();
        bytes[HEADER - 4..].copy_from_slice(&sum);
        bytes
    }

    fn decode(bytes: &[u8; HEADER]) -> Option<Self> {
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4"));
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8"));
        let sum = crc32c::crc32c(&bytes[..HEADER - 4]);
        if &bytes[..8] != MAGIC || u32_at(8) != VERSION || u32_at(HEADER - 4) != sum {
            return None;
        }
        let n = u32_at(56) as usize;
        let pattern: Vec<u32> = (0..n.min(1000)).map(|i| u32_at(60 + 4 * i)).collect();
        Some(Self {
            keep: u32_at(12) & KEEP != 0,
            run: u128::from_le_bytes(bytes[16..32].try_into().expect("16")),
            share: u64_at(32),
            drive: u32_at(40),
            stripe: Stripe::from_pattern(u64_at(48), u32_at(44) as usize, pattern)?,
        })
    }
}

const _: () = assert!(DATA.is_multiple_of(ALIGN) && DATA >= HEADER as u64);

#[cfg(test)]
mod tests {
    use super::*;

    fn header(keep: bool) -> Header {
        let stripe = Stripe::new(1 << 20, &[3.0, 2.0]);
        Header {
            run: 0xfeed << 100,
            keep,
            drive: 1,
            share: 5 << 20,
            stripe,
        }
    }

    #[test]
    fn headers_survive_and_damage_shows() {
        let bytes = header(true).encode();
        assert_eq!(Header::decode(&bytes), Some(header(true)));
        for at in [0, 8, 12, 17, 33, 40, 44, 50, 56, 60, 100, 4000, 4095] {
            let mut bad = bytes;
            bad[at] ^= 1;
            assert_eq!(Header::decode(&bad), None, "byte {at}");
        }
    }

    #[test]
    fn a_file_is_reserved_locked_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        let state = StateFile::open(dir.path(), &header(false), Open::Create, true).unwrap();
        let meta = std::fs::metadata(&path).unwrap();
        assert_eq!(meta.len(), DATA + (5 << 20));
        assert!(meta.blocks() * 512 >= 5 << 20, "space is not reserved");
        for open in [Open::Create, Open::Replace, Open::Existing] {
            let error = StateFile::open(dir.path(), &header(false), open, true).unwrap_err();
            assert_eq!(error, TierError::InUse { path: path.clone() });
        }
        drop(state);
        assert!(!path.exists(), "the state file stayed");
    }

    #[test]
    fn kept_and_foreign_files_are_safe() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        let open = |header: &Header, open| StateFile::open(dir.path(), header, open, true);
        drop(open(&header(true), Open::Create).unwrap());
        let error = open(&header(false), Open::Create).unwrap_err();
        assert_eq!(
            error,
            TierError::Kept {
                path: path.clone(),
                run: 0xfeed << 100
            }
        );
        let mut other = header(true);
        other.drive = 0;
        assert!(matches!(
            open(&other, Open::Existing),
            Err(TierError::BadFile { .. })
        ));
        drop(open(&header(true), Open::Existing).unwrap());
        assert!(path.exists());
        drop(open(&header(false), Open::Replace).unwrap());
        assert!(!path.exists());

        std::fs::write(&path, "somebody's thesis").unwrap();
        for how in [Open::Create, Open::Replace, Open::Existing] {
            assert!(matches!(
                open(&header(false), how),
                Err(TierError::BadFile { .. })
            ));
        }
        assert_eq!(std::fs::read(&path).unwrap(), b"somebody's thesis");
    }

    #[test]
    fn a_stale_file_of_a_killed_run_is_used_again() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateFile::open(dir.path(), &header(false), Open::Create, true).unwrap();
        std::fs::copy(dir.path().join(NAME), dir.path().join("copy")).unwrap();
        drop(state);
        std::fs::rename(dir.path().join("copy"), dir.path().join(NAME)).unwrap();
        StateFile::open(dir.path(), &header(false), Open::Create, true).unwrap();
    }
}
