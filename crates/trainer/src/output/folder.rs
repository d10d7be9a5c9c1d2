//! A directory that is written through its open descriptor: no name in it is followed as a link, and
//! another directory takes a name only as a whole.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FallocateFlags, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::steps::{exchanges, step};
use crate::error::TrainError;

/// What directories and files are made with, before the user's mask.
const DIRECTORY: Mode = Mode::from_raw_mode(0o777);
const FILE: Mode = Mode::from_raw_mode(0o666);

/// An open directory.
#[derive(Debug)]
pub struct Folder {
    fd: OwnedFd,
    path: PathBuf,
}

/// What kind of entry a directory has under a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// No entry has the name.
    Nothing,
    /// A plain file.
    File,
    /// A directory, whoever made it.
    Folder,
    /// A symbolic link, wherever it leads.
    Link,
    /// A pipe, a socket or a device.
    Other,
}

/// What became of a directory whose path does not lead to it any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Moved {
    /// It still exists, under this path.
    To(PathBuf),
    /// It was removed: nothing can be made in it.
    Gone,
}

impl From<FileType> for Found {
    fn from(kind: FileType) -> Self {
        match kind {
            FileType::RegularFile => Self::File,
            FileType::Directory => Self::Folder,
            FileType::Symlink => Self::Link,
            _ => Self::Other,
        }
    }
}

impl Folder {
    /// Opens a directory by its path. Links on the way are followed: the path is the user's.
    pub fn open(path: &Path) -> Result<Self, TrainError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(fail(path))?;
        let path = path.to_owned();
        Ok(Self { fd, path })
    }

    /// The path by which people know it.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path to it through its open descriptor, for code that takes paths and not descriptors (such as the export of
    /// a model). It leads to this directory even after that was renamed or another one took its name. See
    /// [`Folder::known`].
    pub(crate) fn reach(&self) -> PathBuf {
        let by_descriptor = PathBuf::from(format!("/proc/self/fd/{}", self.fd.as_raw_fd()));
        if by_descriptor.exists() {
            by_descriptor
        } else {
            self.path.clone()
        }
    }

    /// An error about a path that begins with [`Folder::reach`], with the path that people know.
    pub(crate) fn known(&self, mut error: TrainError) -> TrainError {
        use lowtide_model::ModelError;
        if let TrainError::File { path, .. }
        | TrainError::Model(ModelError::Io { path, .. } | ModelError::ExportExists { path }) =
            &mut error
            && let Ok(rest) = path.strip_prefix(self.reach())
        {
            *path = self.path.join(rest);
        }
        error
    }

    /// Whether its path leads elsewhere now, or nowhere.
    pub(super) fn moved(&self) -> Option<Moved> {
        let own = rustix::fs::fstat(&self.fd).ok()?;
        if own.st_nlink == 0 {
            return Some(Moved::Gone);
        }
        match rustix::fs::stat(&self.path) {
            Ok(named) if (named.st_dev, named.st_ino) == (own.st_dev, own.st_ino) => return None,
            _ => {}
        }
        let now = std::fs::read_link(self.reach()).ok()?;
        (now != self.path).then_some(Moved::To(now))
    }

    /// Calls it by the path that it has now.
    pub(super) fn call(&mut self, path: PathBuf) {
        self.path = path;
    }

    /// Where `name` is in it.
    #[must_use]
    pub fn at(&self, name: impl AsRef<OsStr>) -> PathBuf {
        self.path.join(name.as_ref())
    }

    /// What kind of entry has this name. Follows no link.
    pub fn found(&self, name: impl AsRef<OsStr>) -> Result<Found, TrainError> {
        let name = name.as_ref();
        match rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(FileType::from_raw_mode(stat.st_mode).into()),
            Err(Errno::NOENT) => Ok(Found::Nothing),
            Err(e) => Err(fail(&self.at(name))(e)),
        }
    }

    /// Whether this name leads to this open file.
    pub fn leads_to(&self, name: impl AsRef<OsStr>, file: &File) -> Result<bool, TrainError> {
        let name = name.as_ref();
        let path = self.at(name);
        let fail = fail(&path);
        let own = rustix::fs::fstat(file).map_err(&fail)?;
        match rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(named) => Ok((named.st_dev, named.st_ino) == (own.st_dev, own.st_ino)),
            Err(Errno::NOENT) => Ok(false),
            Err(e) => Err(fail(e)),
        }
    }

    /// Refuses a link, and anything but `want` or nothing.
    pub fn expect(&self, name: impl AsRef<OsStr>, want: Found) -> Result<bool, TrainError> {
        let name = name.as_ref();
        match self.found(name)? {
            Found::Nothing => Ok(false),
            found if found == want => Ok(true),
            Found::Link => Err(TrainError::Link {
                path: self.at(name),
            }),
            _ => Err(TrainError::File {
                path: self.at(name),
                what: match want {
                    Found::Folder => "is not a directory".to_owned(),
                    _ => "is not a plain file".to_owned(),
                },
            }),
        }
    }

    /// The directory of this name, if there is one.
    pub fn sub(&self, name: impl AsRef<OsStr>) -> Result<Option<Self>, TrainError> {
        let name = name.as_ref();
        if !self.expect(name, Found::Folder)? {
            return Ok(None);
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let path = self.at(name);
        let fd = rustix::fs::openat(&self.fd, name, flags, Mode::empty()).map_err(fail(&path))?;
        Ok(Some(Self { fd, path }))
    }

    /// The directory of this name, made where there is none.
    pub fn make(&self, name: impl AsRef<OsStr>) -> Result<Self, TrainError> {
        let name = name.as_ref();
        if !self.expect(name, Found::Folder)? {
            self.make_new(name)?;
        }
        let made = self.sub(name)?;
        made.ok_or_else(|| fail(&self.at(name))(Errno::NOENT))
    }

    /// Makes the directory of this name, which has nothing yet.
    pub fn make_new(&self, name: impl AsRef<OsStr>) -> Result<(), TrainError> {
        let name = name.as_ref();
        step(|| rustix::fs::mkdirat(&self.fd, name, DIRECTORY)).map_err(fail(&self.at(name)))
    }

    /// Opens the plain file of this name with `flags`; neither a link nor a pipe is waited for.
    fn file(&self, name: &OsStr, flags: OFlags) -> Result<File, TrainError> {
        self.expect(name, Found::File)?;
        let path = self.at(name);
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = step(|| rustix::fs::openat(&self.fd, name, flags, FILE)).map_err(fail(&path))?;
        let file = File::from(fd);
        let meta = file.metadata().map_err(TrainError::io(&path))?;
        if !meta.is_file() {
            let what = "is not a plain file".to_owned();
            return Err(TrainError::File { path, what });
        }
        Ok(file)
    }

    /// Opens a file for reading.
    pub fn read(&self, name: impl AsRef<OsStr>) -> Result<File, TrainError> {
        self.file(name.as_ref(), OFlags::RDONLY)
    }

    /// Opens a file for reading and writing at its end, made where there is none.
    pub fn append(&self, name: impl AsRef<OsStr>) -> Result<File, TrainError> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::APPEND;
        self.file(name.as_ref(), flags)
    }

    /// Opens a file for reading and writing, made where there is none.
    pub fn open_or_make(&self, name: impl AsRef<OsStr>) -> Result<File, TrainError> {
        self.file(name.as_ref(), OFlags::RDWR | OFlags::CREATE)
    }

    /// Makes a file of a name that has nothing yet, open for writing at its end.
    pub fn create_new(&self, name: impl AsRef<OsStr>) -> Result<File, TrainError> {
        let name = name.as_ref();
        let path = self.at(name);
        let new = OFlags::CREATE | OFlags::EXCL;
        let flags = OFlags::RDWR | OFlags::APPEND | OFlags::CLOEXEC | new;
        let fd = step(|| rustix::fs::openat(&self.fd, name, flags, FILE)).map_err(fail(&path))?;
        Ok(File::from(fd))
    }

    /// Reserves bytes of the file system in a file without a name: they are free again when the file is
    /// closed, however the process ends. `None` where the file system cannot.
    pub fn reserve(&self, bytes: u64) -> io::Result<Option<File>> {
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        let fd = match rustix::fs::openat(&self.fd, ".", flags, FILE) {
            Ok(fd) => fd,
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOENT) => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        let file = File::from(fd);
        match allocate(&file, bytes) {
            Ok(()) => Ok(Some(file)),
            Err(e) => match Errno::from_io_error(&e) {
                // No such files here, or none so long: it stands for several shorter ones.
                Some(Errno::OPNOTSUPP | Errno::FBIG) => Ok(None),
                _ => Err(e),
            },
        }
    }

    /// Gives a file its new bytes by renaming: it has the old ones or the new ones, whole.
    pub fn write(
        &self,
        name: &str,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), TrainError> {
        self.write_with(name, |file| {
            let mut out = io::BufWriter::new(file);
            write(&mut out)?;
            out.flush()
        })
    }

    /// The same with the open file itself, which becomes the one of that name.
    pub fn write_with(
        &self,
        name: &str,
        write: impl FnOnce(&File) -> io::Result<()>,
    ) -> Result<(), TrainError> {
        self.expect(name, Found::File)?;
        let pending = pending(name);
        if self.expect(&pending, Found::File)? {
            self.remove(&pending)?;
        }
        let file = self.create_new(&pending)?;
        let done = step(|| {
            write(&file)?;
            file.sync_all()
        })
        .map_err(TrainError::io(&self.at(name)))
        .and_then(|()| self.rename(&pending, self, name));
        if done.is_err() {
            // The failure is on its way already.
            let _ = self.remove(&pending);
        }
        done
    }

    /// Removes a file, or a link itself.
    pub fn remove(&self, name: impl AsRef<OsStr>) -> Result<(), TrainError> {
        let name = name.as_ref();
        step(|| rustix::fs::unlinkat(&self.fd, name, AtFlags::empty()))
            .map_err(fail(&self.at(name)))
    }

    /// Removes a directory that is empty.
    pub fn remove_empty(&self, name: impl AsRef<OsStr>) -> Result<(), TrainError> {
        let name = name.as_ref();
        step(|| rustix::fs::unlinkat(&self.fd, name, AtFlags::REMOVEDIR))
            .map_err(fail(&self.at(name)))
    }

    /// Renames, over a plain file of that name if there is one.
    pub fn rename(
        &self,
        from: impl AsRef<OsStr>,
        to: &Self,
        name: impl AsRef<OsStr>,
    ) -> Result<(), TrainError> {
        let (from, name) = (from.as_ref(), name.as_ref());
        step(|| rustix::fs::renameat(&self.fd, from, &to.fd, name)).map_err(fail(&to.at(name)))
    }

    /// Renames to a name that has nothing; false when it has something.
    pub fn rename_new(
        &self,
        from: impl AsRef<OsStr>,
        to: &Self,
        name: impl AsRef<OsStr>,
    ) -> Result<bool, TrainError> {
        let (from, name) = (from.as_ref(), name.as_ref());
        let renamed = step(|| {
            rustix::fs::renameat_with(&self.fd, from, &to.fd, name, RenameFlags::NOREPLACE)
        });
        match renamed {
            Ok(()) => Ok(true),
            Err(Errno::EXIST | Errno::NOTEMPTY) => Ok(false),
            // The file system has no such flag. Only this process, which has the lock, takes names here.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                if to.found(name)? != Found::Nothing {
                    return Ok(false);
                }
                self.rename(from, to, name).map(|()| true)
            }
            Err(e) => Err(fail(&to.at(name))(e)),
        }
    }

    /// Has two names change places at once; false where the file system cannot.
    pub fn exchange(&self, a: &str, b: &str) -> Result<bool, TrainError> {
        if !exchanges() {
            return Ok(false);
        }
        match step(|| rustix::fs::renameat_with(&self.fd, a, &self.fd, b, RenameFlags::EXCHANGE)) {
            Ok(()) => Ok(true),
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => Ok(false),
            Err(e) => Err(fail(&self.at(b))(e)),
        }
    }

    /// Makes renames in it survive a power loss.
    pub fn sync(&self) -> Result<(), TrainError> {
        match step(|| rustix::fs::fsync(&self.fd)) {
            // A file system without it keeps its order itself.
            Ok(()) | Err(Errno::INVAL) => Ok(()),
            Err(e) => Err(fail(&self.path)(e)),
        }
    }

    /// All names in it with what they are, sorted.
    pub fn entries(&self) -> Result<Vec<(OsString, Found)>, TrainError> {
        let dir = Dir::read_from(&self.fd).map_err(fail(&self.path))?;
        let mut all = Vec::new();
        for entry in dir {
            let name = entry.map_err(fail(&self.path))?.file_name().to_owned();
            let name = OsString::from_vec(name.into_bytes());
            if !matches!(name.as_bytes(), b"." | b"..") {
                let found = self.found(&name)?;
                all.push((name, found));
            }
        }
        all.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(all)
    }
}

/// Has the file system set bytes aside for a file. A signal does not end it.
pub(super) fn allocate(file: &File, bytes: u64) -> io::Result<()> {
    loop {
        match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, bytes.max(1)) {
            Err(Errno::INTR) => {}
            done => return Ok(done?),
        }
    }
}

/// What a file or directory is called while it is written.
#[must_use]
pub fn pending(name: &str) -> String {
    format!(".{name}.pending")
}

fn fail(path: &Path) -> impl Fn(Errno) -> TrainError + '_ {
    move |e| match e {
        Errno::LOOP => TrainError::Link {
            path: path.to_owned(),
        },
        e => TrainError::io(path)(e.into()),
    }
}
