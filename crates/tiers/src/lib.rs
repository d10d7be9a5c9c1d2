//! Where bytes live outside the device: one host arena, and a disk made of several drives.
//!
//! An [`Arena`] is one sealed allocation that the plan cuts into ranges. A [`Disk`] is one flat address space of
//! bytes, striped over state files in a list of directories; [`Disk::submit`] moves an [`Extent`] of it from or to a
//! [`RawRange`] of an arena, and the returned [`Ticket`] says when that is done. One arbiter per drive owns all I/O
//! on it: it alternates reads and writes, each kind by earliest deadline, keeps a few blocks in flight, and never
//! reorders conflicting extents. [`RamDisk`] is the same disk with bytes in memory and seeded faults.
//!
//! Bound: the sum of the drives' bandwidths (reads and writes share it). O_DIRECT into huge pages
//! and blocks of 4 MiB reach it at a depth of 4 to 8; ordinary 4 KiB pages reach half.

mod arbiter;
mod arena;
mod block;
mod checksums;
mod config;
mod direct_file;
mod disk;
mod error;
mod extent;
mod header;
mod journal;
mod kept;
mod lane;
pub mod limits;
mod litter;
mod lock;
mod made;
mod memory;
pub mod numa;
mod probe;
pub mod process;
mod prove;
mod queue;
mod ram;
mod reach;
mod record;
mod request;
mod scratch;
mod state_file;
mod stripe;
mod threads;
mod ticket;
mod uring;
mod versions;

pub use arena::{Arena, Fill, RawRange};
pub use block::{Block, Movement};
pub use checksums::Checksums;
pub use config::{Backend, DiskConfig, DriveConfig, Open};
pub use direct_file::{DirectFile, Window};
pub use disk::Disk;
pub use error::{Os, TierError};
pub use extent::Extent;
pub use kept::{committed, kept, kept_by, state_path};
pub use litter::abandon;
pub use lock::DirLock;
pub use made::MadeDirs;
pub use memory::{HostLimit, HostMemory};
pub use probe::{Mix, ProbeConfig, Rates, Share, probe, probe_device, shares};
pub use ram::{ChosenFault, Fault, Faults, Pace, RamConfig, RamDisk};
pub use reach::{DeviceIo, Reach};
pub use record::{ABOUT_MAX, Committed, Kept, RECORD_MAX};
pub use request::{Counters, Kind, Request};
pub use scratch::Scratch;
pub use ticket::{Ticket, Times};

/// Extents, and the memory they are read into or written from, start and end on multiples of this
/// many bytes: what O_DIRECT asks of every common file system and drive.
pub const ALIGN: u64 = 4096;
