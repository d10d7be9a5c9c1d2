//! A range of a disk.

use std::fmt;

/// A range of the disk's flat address space; both numbers are multiples of [`ALIGN`](crate::ALIGN).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Extent {
    /// The first byte.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "extent {}+{}", self.offset, self.bytes)
    }
}
