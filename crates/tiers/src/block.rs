//! Memory that goes with a request and comes back with its end, so that both are safe.

use lowtide_units::Bytes;

use crate::{Arena, Disk, Extent, Fill, Kind, RawRange, Request, Ticket, TierError};

/// Bytes of host memory of one holder, aligned for requests.
#[derive(Debug)]
pub struct Block {
    memory: RawRange,
}

/// A movement of bytes that has a block until it is done.
#[derive(Debug)]
#[must_use = "it has the block, and says of the end or an error"]
pub struct Movement {
    block: Block,
    ticket: Ticket,
}

impl Block {
    /// Bytes of their own.
    ///
    /// # Errors
    /// As [`Arena::new`].
    pub fn new(bytes: Bytes, fill: Fill) -> Result<Self, TierError> {
        Ok(Self::of(Arena::new(bytes, fill)?))
    }

    /// All of an arena.
    ///
    /// # Panics
    /// When somebody else has a handle of it.
    #[must_use]
    pub fn of(arena: Arena) -> Self {
        assert!(arena.is_unshared(), "an arena with another handle");
        let memory = arena.range(0, arena.bytes().0).expect("all of it");
        Self { memory }
    }

    /// The first `bytes` bytes, and the rest.
    ///
    /// # Panics
    /// When there are not as many.
    #[must_use]
    pub fn split_at(self, bytes: usize) -> (Self, Self) {
        let rest = self.memory.bytes() - bytes;
        let of = |at, n| Self {
            memory: self.memory.part(at, n),
        };
        (of(0, bytes), of(bytes, rest))
    }

    /// Blocks of `bytes` bytes each, one behind the other; what does not fill one is left out.
    #[must_use]
    pub fn cut(self, bytes: usize) -> Vec<Self> {
        let n = self.memory.bytes() / bytes;
        let part = |i| self.memory.part(i * bytes, bytes);
        (0..n).map(|i| Self { memory: part(i) }).collect()
    }

    /// A handle of the arena that it is of, for [`Disk::open`] to register.
    #[must_use]
    pub fn arena(&self) -> Arena {
        self.memory.arena()
    }

    /// Length in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.memory.bytes()
    }

    /// The bytes, to read.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: nobody else has these bytes: a block's range is in no other block, and a request has
        // them only while the block is in its `Movement`.
        unsafe { self.memory.as_slice() }
    }

    /// The bytes, to write.
    #[must_use]
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as `as_slice`.
        unsafe { self.memory.as_mut_slice() }
    }
}

impl Movement {
    /// Blocks until it is done or has failed; the block comes back either way.
    pub fn wait(self) -> (Block, Result<(), TierError>) {
        let done = self.ticket.wait();
        (self.block, done)
    }
}

impl Disk {
    /// Queues a movement of as many bytes as `extent` has to or from the start of a block, and returns
    /// at once; otherwise as [`Disk::submit`].
    pub fn start(&self, kind: Kind, extent: Extent, block: Block, deadline: u64) -> Movement {
        let ticket = match usize::try_from(extent.bytes) {
            Ok(bytes) if bytes <= block.bytes() => {
                let memory = block.memory.part(0, bytes);
                let request = Request {
                    kind,
                    extent,
                    memory,
                    deadline,
                };
                // SAFETY: the movement has the block, whose bytes nobody else has, until the ticket is done.
                // Where it is dropped before, so is the block, and the request keeps the memory mapped.
                unsafe { self.submit(request) }
            }
            _ => Ticket::refused(TierError::Range {
                offset: 0,
                bytes: extent.bytes,
                have: block.bytes() as u64,
            }),
        };
        Movement { block, ticket }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{RamConfig, RamDisk};

    #[test]
    fn a_block_goes_with_its_request_and_comes_back() {
        let (disk, _) = RamDisk::open(&RamConfig::new(Bytes(64 << 10))).unwrap();
        let all = Block::new(Bytes(12 << 10), Fill::Zero).unwrap();
        let mut blocks = all.cut(4 << 10).into_iter();
        let mut next = || blocks.next().expect("one of three");
        let (mut written, read) = (next(), next());
        written.as_mut_slice().fill(7);
        let extent = Extent {
            offset: 8 << 10,
            bytes: 4 << 10,
        };
        let (written, done) = disk.start(Kind::Write, extent, written, 0).wait();
        done.unwrap();
        let (read, done) = disk.start(Kind::Read, extent, read, 0).wait();
        done.unwrap();
        assert_eq!(read.as_slice(), written.as_slice());
        // More than the block has.
        let extent = Extent {
            bytes: 8 << 10,
            ..extent
        };
        let (third, refused) = disk.start(Kind::Read, extent, next(), 0).wait();
        assert!(matches!(refused, Err(TierError::Range { bytes: 8192, .. })));
        assert_eq!(third.as_slice(), [0; 4 << 10]);
    }
}
