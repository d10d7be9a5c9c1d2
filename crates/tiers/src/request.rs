//! What is asked of a disk: a range of it, which way, and where in memory.

use lowtide_units::Bytes;

use crate::arena::RawRange;
use crate::extent::Extent;

/// Whether bytes go from disk to memory or the other way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// From disk to memory.
    Read,
    /// From memory to disk.
    Write,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

/// One transfer between a disk and memory.
#[derive(Clone, Debug)]
pub struct Request {
    /// Whether bytes are read or written.
    pub kind: Kind,
    /// The bytes on disk, a multiple of [`ALIGN`](crate::ALIGN).
    pub extent: Extent,
    /// Where in memory: as long as the extent, its address a multiple of [`ALIGN`](crate::ALIGN).
    pub memory: RawRange,
    /// Smaller is served sooner; for instance the index of the task that waits for it.
    pub deadline: u64,
}

/// What a disk has moved since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes that were read.
    pub read: Bytes,
    /// Bytes that were written.
    pub written: Bytes,
}
