//! One drive's state file: found or made, its space reserved, opened for direct I/O. Its directory is
//! locked ([`crate::DirLock`]) by whoever opens it.
//!
//! Layout: a 4 KiB header at 0, the drive's bytes from 2 MiB on (so that blocks stay aligned to
//! whatever the drive has inside). A new file gets its name when it is whole: it is made under the
//! name [`PENDING`] and renamed, so a file of the name [`NAME`] that cannot be read was damaged.
//!
//! One file because making, finding and refusing a file are decisions about the same header.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use lowtide_units::Bytes;
use rustix::fs::{AtFlags, FallocateFlags};

use crate::config::Open;
use crate::header::{DATA, HEADER, Header, MAGIC, Unread};
use crate::lock::open_own;
use crate::{ALIGN, TierError, litter, process, record};

/// The name in every directory.
pub(crate) const NAME: &str = "lowtide-state.bin";
/// The name of a file that is not whole yet, or that shall not take the place of another one yet.
pub(crate) const PENDING: &str = "lowtide-state.bin.pending";

/// An open state file. Dropping it removes the file unless it has its name and its header says keep.
#[derive(Debug)]
pub(crate) struct StateFile {
    /// The name that it has or will have.
    pub(crate) path: PathBuf,
    /// Its directory, wherever that is by now.
    parent: File,
    /// Opened without O_DIRECT: for the header and the journal, and for blocks where `direct` is `None`.
    file: File,
    /// What blocks are moved through; `None` where the file system refuses O_DIRECT.
    direct: Option<File>,
    /// Why `direct` is `None`.
    pub(crate) note: Option<String>,
    keep: AtomicBool,
    /// It has the name [`NAME`]; before that a drop removes it.
    named: AtomicBool,
    /// Its name was taken away.
    gone: AtomicBool,
}

impl StateFile {
    /// The file in `dir`, which is locked. A new one still has to be named ([`StateFile::publish`]).
    pub(crate) fn open(
        dir: &Path,
        header: &Header,
        open: Open,
        direct: bool,
    ) -> Result<Self, TierError> {
        let path = dir.join(NAME);
        let bad = |what: String| TierError::BadFile {
            path: path.clone(),
            what,
        };
        let mut state = match (open, look(&path)?) {
            (_, Found::Foreign(what)) => return Err(bad(what)),
            (Open::Existing, Found::Nothing | Found::Stale) => {
                return Err(bad("it is missing".to_owned()));
            }
            (Open::Existing, Found::Ours(old)) if !old.goes_on_as(header) => {
                return Err(TierError::OtherDisk { path });
            }
            (Open::Existing, Found::Ours(old)) => Self::take(path, &old, header)?,
            (Open::Create, Found::Ours(old)) if old.keep => {
                return Err(TierError::Kept { path, run: old.run });
            }
            (Open::Replace, Found::Ours(old)) if old.keep => Self::make(path, header)?,
            (Open::Create | Open::Replace, found) => {
                // Of a run that was killed and asked for nothing to be kept. Its space is needed.
                if !matches!(found, Found::Nothing) {
                    let gone = std::fs::remove_file(&path);
                    gone.map_err(|e| TierError::file("removing", &path, &e))?;
                }
                Self::make(path, header)?
            }
        };
        let opened = if direct {
            state.open_direct()
        } else {
            Err("not asked for".to_owned())
        };
        match opened {
            Ok(file) => state.direct = Some(file),
            Err(why) => state.note = Some(format!("O_DIRECT {why}")),
        }
        Ok(state)
    }

    /// Goes on with a kept file, which has to be as long as its header says.
    fn take(path: PathBuf, old: &Header, header: &Header) -> Result<Self, TierError> {
        let file = open_own(&path, OpenOptions::new().read(true).write(true))?;
        let state = Self {
            parent: parent(&path)?,
            path,
            file,
            direct: None,
            note: None,
            // Whatever goes wrong from here on, it stays.
            keep: AtomicBool::new(true),
            named: AtomicBool::new(true),
            gone: AtomicBool::new(false),
        };
        let meta = state.meta()?;
        if let Some(what) = too_short(meta.len(), old) {
            return Err(TierError::BadFile {
                path: state.path.clone(),
                what,
            });
        }
        // What it lacks of the new header's share, and holes. Its own header stays as it is: a header
        // half written would lose the run.
        let need = DATA + header.share;
        let have = (meta.blocks() * 512).min(need);
        if meta.len() < need || have < need {
            state.reserve(need, have)?;
            let synced = state.file.sync_all();
            synced.map_err(|e| TierError::file("syncing", &state.path, &e))?;
        }
        Ok(state)
    }

    /// A file without its name: all of its space reserved, and only then its header written.
    fn make(path: PathBuf, header: &Header) -> Result<Self, TierError> {
        let pending = path.with_file_name(PENDING);
        remove_pending(&pending)?;
        let mut new = OpenOptions::new();
        let parent = parent(&path)?;
        let file = open_own(&pending, new.read(true).write(true).create_new(true))?;
        let state = Self {
            parent,
            path,
            file,
            direct: None,
            note: None,
            keep: AtomicBool::new(header.keep),
            named: AtomicBool::new(false),
            gone: AtomicBool::new(false),
        };
        litter::add(&pending);
        let fail = |action, e: io::Error| TierError::file(action, &pending, &e);
        state.reserve(DATA + header.share, 0)?;
        let written = state.file.write_all_at(&header.encode(), 0);
        written.map_err(|e| fail("writing", e))?;
        if header.drive == 0 {
            let (at, born) = record::born();
            let written = state.file.write_all_at(&born, at);
            written.map_err(|e| fail("writing", e))?;
        }
        state.file.sync_all().map_err(|e| fail("syncing", e))?;
        Ok(state)
    }

    /// Gives a new file its name, in the place of one that had it. Its name survives a power loss too.
    pub(crate) fn publish(&self) -> Result<(), TierError> {
        if self.named.load(Ordering::Relaxed) {
            return Ok(());
        }
        let renamed = std::fs::rename(self.path.with_file_name(PENDING), &self.path);
        renamed.map_err(|e| TierError::file("naming", &self.path, &e))?;
        self.named.store(true, Ordering::Relaxed);
        litter::remove(&self.path.with_file_name(PENDING));
        if !self.keep.load(Ordering::Relaxed) {
            litter::add(&self.path);
        }
        let dir = self.dir();
        let synced = File::open(dir).and_then(|d| d.sync_all());
        synced.map_err(|e| TierError::file("syncing", dir, &e))
    }

    fn meta(&self) -> Result<std::fs::Metadata, TierError> {
        let meta = self.file.metadata();
        meta.map_err(|e| TierError::file("looking at", &self.path, &e))
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

    /// The file goes, whatever its header says: its name now, its bytes when it is closed. So a kill between the
    /// two leaves no name that leads to part of a state.
    pub(crate) fn discard(&self) {
        self.keep.store(false, Ordering::Relaxed);
        self.unlink();
        // A name that comes back with a power loss is one of a state that is saved elsewhere.
        let _ = self.parent.sync_all();
    }

    /// Takes the name away, once. The directory is locked, so the name is still this file's.
    fn unlink(&self) {
        if self.gone.swap(true, Ordering::Relaxed) {
            return;
        }
        // If it fails there is nobody to tell and nothing is lost. By the directory: what its path leads to by now may
        // be another one, with another's state.
        let named = self.named.load(Ordering::Relaxed);
        let name = if named { NAME } else { PENDING };
        let _ = rustix::fs::unlinkat(&self.parent, name, AtFlags::empty());
        litter::remove(&self.now());
    }

    /// Opens it again for direct I/O and reads the header through that, as a trial.
    fn open_direct(&self) -> Result<File, String> {
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .custom_flags(libc::O_DIRECT | libc::O_NOFOLLOW | libc::O_CLOEXEC);
        let file = options
            .open(self.now())
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

    /// Opens it once more for direct I/O, with no other flag: cuFile refuses files that were opened with `O_NOFOLLOW`,
    /// which [`StateFile::open_direct`] needs because it goes by the name. This goes by the descriptor.
    pub(crate) fn for_device(&self) -> Result<File, TierError> {
        if let Some(note) = &self.note {
            return Err(TierError::Backend {
                path: self.path.clone(),
                reason: note.clone(),
            });
        }
        let fail = |e: &io::Error| TierError::file("opening once more", &self.path, e);
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .custom_flags(libc::O_DIRECT | libc::O_CLOEXEC);
        let file = options
            .open(format!("/proc/self/fd/{}", self.fd()))
            .map_err(|e| fail(&e))?;
        let place = |file: &File| file.metadata().map(|meta| (meta.dev(), meta.ino()));
        match (place(&file), place(&self.file)) {
            (Ok(a), Ok(b)) if a == b => Ok(file),
            (Ok(_), Ok(_)) => Err(fail(&io::Error::other("it is another file"))),
            (Err(e), _) | (_, Err(e)) => Err(fail(&e)),
        }
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

    /// The name that it has now.
    fn now(&self) -> PathBuf {
        if self.named.load(Ordering::Relaxed) {
            self.path.clone()
        } else {
            self.path.with_file_name(PENDING)
        }
    }
}

impl Drop for StateFile {
    fn drop(&mut self) {
        let named = self.named.load(Ordering::Relaxed);
        if !named || !self.keep.load(Ordering::Relaxed) {
            self.unlink();
        }
    }
}

/// The open directory of a file.
fn parent(path: &Path) -> Result<File, TierError> {
    let dir = path.parent().expect("a file in a directory");
    File::open(dir).map_err(|e| TierError::file("opening", dir, &e))
}

#[repr(align(4096))]
struct Aligned([u8; HEADER]);

/// What has the name of a state file.
pub(crate) enum Found {
    Nothing,
    Ours(Box<Header>),
    /// Of an earlier version of lowtide, which asked for nothing to be kept.
    Stale,
    /// Something that must not be touched, and why.
    Foreign(String),
}

/// What is at a path, by its header alone. Follows no link and waits for nobody.
pub(crate) fn look(path: &Path) -> Result<Found, TierError> {
    let file = match open_own(path, OpenOptions::new().read(true)) {
        Ok(file) => file,
        Err(TierError::File { os, .. }) if matches!(os.0, libc::ENOENT | libc::ENOTDIR) => {
            return Ok(Found::Nothing);
        }
        Err(TierError::BadFile { what, .. }) => return Ok(Found::Foreign(what)),
        Err(e) => return Err(e),
    };
    let mut bytes = [0; HEADER];
    match file.read_exact_at(&mut bytes, 0) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
            let meta = file.metadata();
            let len = meta.map_err(|e| TierError::file("looking at", path, &e))?;
            let what = format!(
                "it has {} bytes, less than a header: its end was cut off, or it is no state file of lowtide",
                len.len()
            );
            return Ok(Found::Foreign(what));
        }
        Err(e) => return Err(TierError::file("reading", path, &e)),
    }
    Ok(match Header::decode(&bytes) {
        Ok(header) => Found::Ours(Box::new(header)),
        Err(Unread::Format { keep: false, .. }) => Found::Stale,
        Err(unread) => Found::Foreign(unread.tell()),
    })
}

/// Why a file of this length does not hold what its header says.
pub(crate) fn too_short(len: u64, header: &Header) -> Option<String> {
    // The header may say anything: it is the file's own.
    let need = DATA.saturating_add(header.share);
    (len < need)
        .then(|| format!("it has {len} bytes where its header says {need}: its end was cut off"))
}

/// Removes what a killed process has left under the name of a file that was not whole yet.
fn remove_pending(path: &Path) -> Result<(), TierError> {
    let file = match open_own(path, OpenOptions::new().read(true)) {
        Ok(file) => file,
        Err(TierError::File { os, .. }) if os.0 == libc::ENOENT => return Ok(()),
        Err(e) => return Err(e),
    };
    let mut first = [0; 8];
    let n = file.read_at(&mut first, 0);
    let n = n.map_err(|e| TierError::file("reading", path, &e))?;
    // Nothing, reserved space, or a header.
    if first[..n].iter().any(|&b| b != 0) && first != *MAGIC {
        return Err(TierError::BadFile {
            path: path.to_owned(),
            what: "it is no state file of lowtide".to_owned(),
        });
    }
    std::fs::remove_file(path).map_err(|e| TierError::file("removing", path, &e))
}

/// Removes from a locked directory what killed processes left there and nobody asked to keep: a state
/// file, one that was not whole yet.
pub(crate) fn remove_stale(dir: &Path) -> Result<(), TierError> {
    let path = dir.join(NAME);
    let stale = match look(&path)? {
        Found::Ours(header) => !header.keep,
        Found::Stale => true,
        Found::Nothing | Found::Foreign(_) => false,
    };
    if stale {
        std::fs::remove_file(&path).map_err(|e| TierError::file("removing", &path, &e))?;
    }
    remove_pending(&dir.join(PENDING))
}

fn reserve(file: &File, bytes: u64) -> io::Result<()> {
    loop {
        match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, bytes) {
            Err(rustix::io::Errno::OPNOTSUPP) => break,
            // A signal does not end it.
            Err(rustix::io::Errno::INTR) => {}
            other => return other.map_err(io::Error::from),
        }
    }
    // The C library then writes into every block itself: slow, but the space is ours.
    let len = libc::off_t::try_from(bytes).map_err(|_| io::ErrorKind::FileTooLarge)?;
    // SAFETY: an open file and plain numbers.
    match unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, len) } {
        0 => Ok(()),
        os => Err(io::Error::from_raw_os_error(os)),
    }
}

const _: () = assert!(DATA.is_multiple_of(ALIGN) && DATA >= HEADER as u64);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::header::tests::header;
    use crate::{DirLock, Scratch};

    fn opened(dir: &Path, header: &Header, open: Open) -> Result<StateFile, TierError> {
        let state = StateFile::open(dir, header, open, true)?;
        state.publish()?;
        Ok(state)
    }

    fn refused(dir: &Path, header: &Header, open: Open) -> String {
        match StateFile::open(dir, header, open, true) {
            Err(TierError::BadFile { what, .. }) => what,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_file_is_reserved_named_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        let state = StateFile::open(dir.path(), &header(false), Open::Create, true).unwrap();
        assert!(!path.exists() && dir.path().join(PENDING).exists());
        state.publish().unwrap();
        let meta = std::fs::metadata(&path).unwrap();
        assert_eq!(meta.len(), DATA + (5 << 20));
        assert!(meta.blocks() * 512 >= 5 << 20, "space is not reserved");
        drop(state);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn kept_and_foreign_files_are_safe() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        drop(opened(dir.path(), &header(true), Open::Create).unwrap());
        let kept = std::fs::read(&path).unwrap();
        let error = opened(dir.path(), &header(false), Open::Create).unwrap_err();
        let want = TierError::Kept {
            path: path.clone(),
            run: 0xfeed << 100,
        };
        assert_eq!(error, want);
        let mut other = header(true);
        other.drive = 0;
        let error = StateFile::open(dir.path(), &other, Open::Existing, true).unwrap_err();
        assert_eq!(error, TierError::OtherDisk { path: path.clone() });
        drop(opened(dir.path(), &header(true), Open::Existing).unwrap());
        // What replaces it does so on request, not before.
        let new = StateFile::open(dir.path(), &header(false), Open::Replace, true).unwrap();
        assert!(std::fs::read(&path).unwrap() == kept);
        drop(new);
        assert!(std::fs::read(&path).unwrap() == kept);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        drop(opened(dir.path(), &header(false), Open::Replace).unwrap());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);

        let long = "somebody's thesis ".repeat(400);
        for text in ["", "somebody's thesis", &long] {
            for name in [NAME, PENDING] {
                let path = dir.path().join(name);
                std::fs::write(&path, text).unwrap();
                for how in [Open::Create, Open::Replace, Open::Existing] {
                    if name == NAME || (how != Open::Existing && !text.is_empty()) {
                        let what = refused(dir.path(), &header(false), how);
                        assert!(what.contains("state file"), "{what}");
                    }
                }
                assert_eq!(std::fs::read(&path).unwrap(), text.as_bytes());
                std::fs::remove_file(path).unwrap();
            }
        }
    }

    #[test]
    fn a_kept_file_of_another_format_is_refused_and_another_one_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        let old = |keep| {
            let mut bytes = header(keep).encode();
            bytes[8] = 1;
            let sum = crc32c::crc32c(&bytes[..HEADER - 4]).to_le_bytes();
            bytes[HEADER - 4..].copy_from_slice(&sum);
            std::fs::write(&path, bytes).unwrap();
        };
        for how in [Open::Create, Open::Replace, Open::Existing] {
            old(true);
            let what = refused(dir.path(), &header(true), how);
            assert!(what.contains("format 1"), "{what}");
            assert!(crate::kept(dir.path()).is_err());
        }
        old(false);
        assert_eq!(crate::kept(dir.path()), Ok(None));
        drop(opened(dir.path(), &header(false), Open::Create).unwrap());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn nothing_but_a_regular_file_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let thesis = dir.path().join("thesis");
        for name in [NAME, PENDING] {
            let path = dir.path().join(name);
            let how = |open| refused(dir.path(), &header(false), open);
            std::fs::write(&thesis, "somebody's").unwrap();
            std::os::unix::fs::symlink(&thesis, &path).unwrap();
            assert!(how(Open::Create).contains("symbolic link"));
            assert!(how(Open::Replace).contains("symbolic link"));
            std::fs::remove_file(&path).unwrap();
            std::os::unix::fs::symlink(dir.path().join("nowhere"), &path).unwrap();
            assert!(how(Open::Create).contains("symbolic link"));
            std::fs::remove_file(&path).unwrap();
            std::fs::create_dir(&path).unwrap();
            assert!(how(Open::Create).contains("directory"));
            std::fs::remove_dir(&path).unwrap();
            let made = std::process::Command::new("mkfifo").arg(&path).status();
            assert!(made.unwrap().success());
            assert!(how(Open::Create).contains("FIFO"));
            std::fs::remove_file(&path).unwrap();
            assert_eq!(std::fs::read(&thesis).unwrap(), b"somebody's");
            std::fs::remove_file(&thesis).unwrap();
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn what_a_killed_process_left_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        let state = opened(dir.path(), &header(false), Open::Create).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        drop(state);
        for (name, bytes) in [
            (NAME, &bytes[..]),
            (PENDING, &bytes[..]),
            (PENDING, &[0; 5000]),
            (PENDING, &[]),
        ] {
            std::fs::write(dir.path().join(name), bytes).unwrap();
            drop(opened(dir.path(), &header(false), Open::Create).unwrap());
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
            std::fs::write(dir.path().join(name), bytes).unwrap();
            remove_stale(dir.path()).unwrap();
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        }
        std::fs::write(&path, &bytes).unwrap();
        let other = DirLock::take(dir.path()).unwrap();
        Scratch::sweep(dir.path()).unwrap();
        assert!(path.exists(), "somebody else has the directory");
        drop(other);
        Scratch::sweep(dir.path()).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        Scratch::sweep(&dir.path().join("none")).unwrap();
        drop(opened(dir.path(), &header(true), Open::Create).unwrap());
        remove_stale(dir.path()).unwrap();
        Scratch::sweep(dir.path()).unwrap();
        assert!(path.exists(), "a kept file is not stale");
    }

    #[test]
    fn a_file_that_is_shorter_than_its_header_says_is_refused_and_a_hole_is_filled() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        drop(opened(dir.path(), &header(true), Open::Create).unwrap());
        let whole = DATA + (5 << 20);
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        for len in [whole - 1, whole - 4096, 3 << 20, DATA, DATA - 1, 4096] {
            file.set_len(len).unwrap();
            let what = refused(dir.path(), &header(true), Open::Existing);
            assert!(
                what.contains(&len.to_string()) && what.contains("cut off"),
                "{what}"
            );
            assert_eq!(path.metadata().unwrap().len(), len, "it was touched");
        }
        file.set_len(whole).unwrap();
        drop(opened(dir.path(), &header(true), Open::Existing).unwrap());
        assert!(
            path.metadata().unwrap().blocks() * 512 >= whole,
            "a hole stayed"
        );
        // A longer file is one that has grown.
        file.set_len(whole + 8192).unwrap();
        drop(opened(dir.path(), &header(true), Open::Existing).unwrap());
    }
}
