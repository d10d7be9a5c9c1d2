//! How blocks reach a medium: what an arbiter asks of a backend.

use std::io;
use std::sync::Arc;

use crate::request::Kind;

/// One operation for a backend. The memory stays valid until its end is reported.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Io {
    pub(crate) kind: Kind,
    pub(crate) memory: *mut u8,
    pub(crate) bytes: usize,
    /// First byte in the state file, a multiple of [`crate::ALIGN`].
    pub(crate) at: u64,
}

// SAFETY: an address that the arbiter keeps valid, of bytes that are the request's (`Disk::submit`).
unsafe impl Send for Io {}

/// How blocks reach a medium. At most `depth` are started and not yet reported at any time. Dropping it
/// blocks until all of them have ended.
pub(crate) trait Lane {
    /// Starts an operation, or prepares to start it with the next `wait`.
    fn start(&mut self, slot: usize, io: Io);

    /// Sleeps until at least one operation ended or `wake` was called since the last return;
    /// appends the slots that ended and what the system said of each: bytes moved, or an error.
    fn wait(&mut self, ended: &mut Vec<(usize, io::Result<usize>)>);
}

/// Ends the sleep of a lane from another thread.
pub(crate) trait Wake: Send + Sync {
    fn wake(&self);
}

/// A lane, its waker, and a line on how it works.
pub(crate) type Made = (Box<dyn Lane>, Arc<dyn Wake>, String);
