//! What can go wrong with host memory and disks, with the facts and units of each case.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use lowtide_units::Bytes;

use crate::extent::Extent;

/// An error number of the operating system. Shown as its message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Os(pub i32);

impl fmt::Display for Os {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        io::Error::from_raw_os_error(self.0).fmt(f)
    }
}

impl From<&io::Error> for Os {
    fn from(e: &io::Error) -> Self {
        Self(e.raw_os_error().unwrap_or(libc::EIO))
    }
}

impl From<rustix::io::Errno> for Os {
    fn from(e: rustix::io::Errno) -> Self {
        Self(e.raw_os_error())
    }
}

/// Why memory or disk could not be had, or why bytes could not be moved.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TierError {
    /// An arena would not fit beside what already lives in host memory.
    #[error("host memory: {need} needed, {have} available ({limit})")]
    HostMemory {
        /// Bytes asked for.
        need: Bytes,
        /// Bytes that can still be touched.
        have: Bytes,
        /// What limits it: the machine or a control group.
        limit: crate::HostLimit,
    },
    /// The system refused address space.
    #[error("mapping {need} of memory: {os}")]
    Map {
        /// Bytes asked for.
        need: Bytes,
        /// The system's reason, with its number.
        os: Os,
    },
    /// A range that is not all inside its arena.
    #[error("bytes {offset}+{bytes} of an arena of {have} bytes")]
    Range {
        /// First byte asked for, from the arena's first.
        offset: u64,
        /// Bytes asked for.
        bytes: u64,
        /// Bytes of the arena.
        have: u64,
    },
    /// A setting that no disk can have.
    #[error("disk setting {key}: {value}, but it must be {need}")]
    Setting {
        /// Key of the run file that sets the limit.
        key: &'static str,
        /// The value that was given.
        value: String,
        /// What it may be, in words.
        need: &'static str,
    },
    /// An offset, length or address off the needed alignment.
    #[error("{what} {value:#x} is not a multiple of {need}")]
    Misaligned {
        /// The quantity that is off: an offset, a length or an address.
        what: &'static str,
        /// Its value, in bytes.
        value: u64,
        /// The alignment needed, in bytes.
        need: u64,
    },
    /// A request whose extent and memory differ in length.
    #[error("{extent} on disk and {memory} bytes of memory differ in length")]
    Lengths {
        /// The extent that was asked for.
        extent: Extent,
        /// Bytes of memory given.
        memory: u64,
    },
    /// An extent that is not all inside the disk.
    #[error("{extent} of a disk of {have} bytes")]
    OutOfDisk {
        /// The extent that was asked for.
        extent: Extent,
        /// Size of the disk in bytes.
        have: u64,
    },
    /// A drive has less free space than its share of the disk.
    #[error("{}: {need} needed, {free} free", path.display())]
    Space {
        /// The state file that would not fit.
        path: PathBuf,
        /// Bytes of the shares that lie on its file system.
        need: Bytes,
        /// Bytes that this user can write there, with those of files that would go.
        free: Bytes,
    },
    /// Another live process, or another disk of this one, holds the directory.
    #[error("{} is in use by {}", path.display(), who(*holder))]
    InUse {
        /// The directory of state files.
        path: PathBuf,
        /// The process that says so of itself, perhaps on another machine.
        holder: Option<u32>,
    },
    /// A file system that has no locks, so two processes could use the directory at once.
    #[error("{} cannot be locked: {os}", path.display())]
    NoLocks {
        /// The directory of state files.
        path: PathBuf,
        /// The system's reason.
        os: Os,
    },
    /// A state file that an earlier run asked to keep.
    #[error("{} holds the kept state of run {run:032x}", path.display())]
    Kept {
        /// The kept state file.
        path: PathBuf,
        /// The run that wrote it.
        run: u128,
    },
    /// A file of the right name that is no state file, or does not fit what was asked of it.
    #[error("{}: {what}", path.display())]
    BadFile {
        /// The file, or where it should be.
        path: PathBuf,
        /// What is wrong with it, as `it is missing`.
        what: String,
    },
    /// A kept state file that does not go with this disk.
    #[error("{}: written by another run, for another drive or another striping", path.display())]
    OtherDisk {
        /// The kept state file of the other disk.
        path: PathBuf,
    },
    /// The system failed an operation on a file as a whole.
    #[error("{} {}: {os}", action, path.display())]
    File {
        /// The operation, as `removing` or `syncing`.
        action: &'static str,
        /// The file or directory that it was tried on.
        path: PathBuf,
        /// The system's reason.
        os: Os,
    },
    /// The system refused the backend that was asked for.
    #[error("I/O backend for {}: {reason}", path.display())]
    Backend {
        /// The state file.
        path: PathBuf,
        /// What was refused and why.
        reason: String,
    },
    /// A device's memory was asked for, and nothing says how the drives reach it.
    #[error("the drives reach no device's memory")]
    NoReach,
    /// The system failed to read or write part of an extent. Its bytes, or the memory they were
    /// to be read into, are unspecified.
    #[error("{action} of {extent} ({} at {offset}): {os}", path.display())]
    Io {
        /// `read` or `write`.
        action: &'static str,
        /// The part of the request's extent that failed.
        extent: Extent,
        /// The state file.
        path: PathBuf,
        /// Where in the file, in bytes.
        offset: u64,
        /// The system's reason.
        os: Os,
    },
    /// A read or write that reports success again and again but moves nothing.
    #[error("{action} of {extent} ({} at {offset}) moves no bytes", path.display())]
    Stalled {
        /// `read` or `write`.
        action: &'static str,
        /// The part of the request's extent that is left.
        extent: Extent,
        /// The state file.
        path: PathBuf,
        /// Where in the file, in bytes.
        offset: u64,
    },
    /// Bytes that are not those last written there.
    #[error("{extent} read back with another checksum than written ({} at {offset})",
        path.display())]
    Corrupt {
        /// The first unit that differs.
        extent: Extent,
        /// The state file.
        path: PathBuf,
        /// Where in the file, in bytes.
        offset: u64,
    },
    /// A saved checksum table that is damaged or belongs to another disk.
    #[error("checksum table: {what}")]
    Checksums {
        /// What of the table does not fit, or is damaged.
        what: String,
    },
    /// What a commit has to say does not fit the journal of a durable run.
    #[error("the journal's {what} is {have} bytes, it has room for {max}")]
    Journal {
        /// Which part of it.
        what: &'static str,
        /// Bytes it has.
        have: usize,
        /// Bytes there are.
        max: usize,
    },
    /// A version that is to be committed was not written once from end to end.
    #[error("{extent} is to be committed, and {have} bytes were written into it")]
    NotWritten {
        /// The first extent that was not.
        extent: Extent,
        /// Bytes that were written into it since its last commit.
        have: u64,
    },
    /// No version of what was committed is whole.
    #[error("{}: no committed version is whole: {what}", path.display())]
    NotWhole {
        /// The first drive's state file.
        path: PathBuf,
        /// What is wrong with each.
        what: String,
    },
    /// Memory or disk of another process.
    #[error("{what}")]
    Elsewhere {
        /// What happened, in its own words.
        what: String,
    },
    /// The disk was shut down, or its arbiter died, before the request was done.
    #[error("the disk stopped before the request was done")]
    Stopped,
}

impl TierError {
    /// A failed operation on the file at `path` as a whole.
    pub(crate) fn file(action: &'static str, path: &Path, os: impl Into<Os>) -> Self {
        Self::File {
            action,
            path: path.to_owned(),
            os: os.into(),
        }
    }
}

fn who(holder: Option<u32>) -> String {
    holder.map_or_else(
        || "another process".to_owned(),
        |pid| format!("process {pid}"),
    )
}
