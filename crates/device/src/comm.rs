//! What several ranks exchange: bytes alone. One trait, four backends: for the CPU device [`Threads`] of one process
//! and [`Sockets`] between processes, and for GPUs [`cuda::Copies`](crate::cuda::Copies) of one process that reach each
//! other's memory and [`cuda::NcclComm`](crate::cuda::NcclComm) for all others.
//!
//! Every rank makes the same collectives in the same order. A collective moves bytes and computes nothing: sums of
//! what came are kernels of our own, in the order of ranks, so no library's algorithm decides a bit.

mod arrivals;
mod calls;
mod faulty;
mod frames;
mod life;
mod line;
mod processes;
#[cfg(test)]
mod processes_tests;
mod sockets;
mod threads;

pub use calls::Calls;
pub use faulty::{Fault, Faulty};
pub use frames::{receive, send};
pub use life::Ask;
pub use processes::{MeetError, Meeting, Party, Rendezvous};
pub use sockets::Sockets;
pub use threads::Threads;
pub(crate) use threads::{Brought, Turn};

use std::fmt;
use std::sync::Arc;

use crate::Queue;
use crate::cuda::{CudaError, Gpu, NcclComm, Queue as Stream};
use crate::view::{Dst, Place, Src};

/// Which rank of how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct World {
    /// From 0 up.
    pub rank: usize,
    /// How many ranks there are.
    pub size: usize,
}

/// A stretch of bytes of which each rank has an equal share. In the whole, the shares lie one after the other in the
/// order of ranks; in a rank's part, its own share lies alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// First byte in the whole.
    pub whole: usize,
    /// First byte in a part.
    pub part: usize,
    /// Bytes of one rank's share.
    pub bytes: usize,
}

/// Who sends which bytes to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// Each rank's part goes to every rank's whole.
    AllGather,
    /// Every rank gets its own share of each rank's whole. What it gets lies as parts, one after the other in the
    /// order of ranks.
    AllToAll,
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AllGather => "all-gather",
            Self::AllToAll => "all-to-all",
        })
    }
}

/// One collective, the same for every rank.
#[derive(Clone, Copy, Debug)]
pub struct Collective<'a> {
    /// Who sends what to whom.
    pub pattern: Pattern,
    /// Of what: a name for errors, by which ranks that are at different collectives are found.
    pub name: &'a str,
    /// Ranges of bytes that take part.
    pub stretches: &'a [Stretch],
}

impl Collective<'_> {
    /// Bytes that a rank sends to others, and gets from them.
    #[must_use]
    pub fn moved(&self, ranks: usize) -> u64 {
        let shares: usize = self.stretches.iter().map(|s| s.bytes).sum();
        shares as u64 * (ranks as u64 - 1)
    }

    /// Where stretch `s` of what rank `peer` brings goes in rank `rank`'s `to`, and where it lies in what that peer
    /// brings. In an all-to-all `row` are the bytes of `to` that each peer's parts have.
    pub(crate) fn places(
        &self,
        (rank, row): (usize, usize),
        s: &Stretch,
        peer: usize,
    ) -> (usize, usize) {
        match self.pattern {
            Pattern::AllGather => (s.whole + peer * s.bytes, s.part),
            Pattern::AllToAll => (peer * row + s.part, s.whole + rank * s.bytes),
        }
    }

    /// Bytes of a part at least.
    fn part(&self) -> usize {
        let ends = self.stretches.iter().map(|s| s.part + s.bytes);
        ends.max().unwrap_or(0)
    }

    /// Bytes of a whole at least.
    fn whole(&self, ranks: usize) -> usize {
        let ends = self.stretches.iter().map(|s| s.whole + ranks * s.bytes);
        ends.max().unwrap_or(0)
    }

    /// Panics unless both ranges lie on the rank's own device: a mistake in the plan.
    pub(crate) fn lies_on(&self, here: Place, from: Src<'_>, to: &Dst<'_>) {
        assert!(
            from.place() == here && to.place() == here,
            "{} of {} from {:?} to {:?}",
            self.pattern,
            self.name,
            from.place(),
            to.place()
        );
    }

    /// Whether the bytes given are enough for the bytes that it moves. Panics otherwise: a mistake in the plan.
    pub(crate) fn fits(&self, ranks: usize, from: Src<'_>, to: &Dst<'_>) {
        let (part, whole) = (self.part(), self.whole(ranks));
        let enough = match self.pattern {
            Pattern::AllGather => from.bytes() >= part && to.bytes() >= whole,
            Pattern::AllToAll => {
                let row = to.bytes() / ranks;
                from.bytes() >= whole && to.bytes().is_multiple_of(ranks) && row >= part
            }
        };
        assert!(
            enough,
            "{} of {} with {} and {} bytes",
            self.pattern,
            self.name,
            from.bytes(),
            to.bytes()
        );
    }
}

/// A number of where stretches lie, by which ranks that place them differently are found. FNV-1a, by words.
fn places(stretches: &[Stretch]) -> u64 {
    let words = stretches.iter().flat_map(|s| [s.whole, s.part, s.bytes]);
    words.fold(0xcbf2_9ce4_8422_2325, |hash, word| {
        (hash ^ word as u64).wrapping_mul(0x0100_0000_01b3)
    })
}

/// What all ranks must agree on in a collective, as text; `have` bytes are what this rank brings.
pub(crate) fn described(collective: &Collective<'_>, have: usize) -> String {
    let shares: usize = collective.stretches.iter().map(|s| s.bytes).sum();
    let (pattern, name) = (collective.pattern, collective.name);
    let places = places(collective.stretches);
    format!("the {pattern} of {name} ({shares} bytes a share, of {have}; places {places:016x})")
}

/// Why ranks cannot continue together.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CommError {
    /// A rank stopped; the others must not wait for it.
    #[error("rank {rank} has stopped: {why}")]
    Stopped {
        /// Which, the first if there are several.
        rank: usize,
        /// What stopped it, as that rank reported it.
        why: String,
    },
    /// A signal ended a rank's process at once.
    #[error("the process of rank {rank} was ended by {name}")]
    Signalled {
        /// Rank whose process it was.
        rank: usize,
        /// The signal's number.
        signal: i32,
        /// The signal's name.
        name: String,
    },
    /// A rank's process is gone without a word.
    #[error("the process of rank {rank} has ended")]
    Gone {
        /// Rank whose process it was.
        rank: usize,
    },
    /// A rank's process says nothing any more, but its line is not cut: it is stopped, or its host is gone.
    #[error("nothing was heard of the process of rank {rank} for {seconds} s")]
    Silent {
        /// Rank whose process it is.
        rank: usize,
        /// How long nothing was heard.
        seconds: u64,
    },
    /// A rank does not come to where the others are.
    #[error("rank {rank} did not come to collective {number}, {collective}, within {seconds} s")]
    Missing {
        /// Which, the first of several.
        rank: usize,
        /// Collectives before it, the same count on every rank.
        number: u64,
        /// What the others exchange there: pattern, name and sizes.
        collective: String,
        /// How long the others waited.
        seconds: u64,
    },
    /// A collective does not end, and which rank does not come to it is unknown here.
    #[error(
        "collective {number}, {collective}, did not end on rank {rank} within {seconds} s: a rank did not come to it, or \
         nothing moves"
    )]
    Unended {
        /// The rank that has waited.
        rank: usize,
        /// Collectives before it, the same count on every rank.
        number: u64,
        /// What is exchanged there.
        collective: String,
        /// How long that rank has waited.
        seconds: u64,
    },
    /// The library does not connect a rank's GPU to those of the others.
    #[error(
        "NCCL did not connect the GPU of rank {rank} to those of {size} ranks within {seconds} s"
    )]
    Unconnected {
        /// The rank that has waited.
        rank: usize,
        /// How many ranks there are.
        size: usize,
        /// How long that rank has waited.
        seconds: u64,
    },
    /// The library found that it cannot go on, in something that it did beside the calls.
    #[error("NCCL on rank {rank}: {what}")]
    Library {
        /// The rank whose library it is.
        rank: usize,
        /// In its own words.
        what: String,
    },
    /// Two ranks are at different collectives.
    #[error("at collective {number} rank {rank} makes {collective}, rank {other} {others}")]
    Differs {
        /// Collectives before it, the same count on every rank.
        number: u64,
        /// The rank that came later.
        rank: usize,
        /// What that rank makes.
        collective: String,
        /// A rank that was there before.
        other: usize,
        /// What that other rank makes.
        others: String,
    },
    /// The environment asks for a way between GPUs that there is not.
    #[error(
        "{name}={value}: the ways between GPUs are 'nccl' and, where it is not set, copies if they can be made"
    )]
    Way {
        /// The variable that asks for it.
        name: &'static str,
        /// The value, which names no way.
        value: String,
    },
    /// The library or the device refused.
    #[error(transparent)]
    Cuda(#[from] CudaError),
}

impl CommError {
    /// Whether it only reports that another rank has ended.
    #[must_use]
    pub fn is_consequence(&self) -> bool {
        matches!(self, Self::Stopped { .. } | Self::Signalled { .. })
    }
}

/// One rank's way to the others.
pub trait Comm: Send + Sync + fmt::Debug {
    /// Which rank, of how many.
    fn world(&self) -> World;

    /// Makes the next collective of this rank: `from` is its part and `to` the whole of an all-gather, `from` the
    /// whole and `to` the parts of all ranks of an all-to-all. On a CPU queue done when it returns.
    ///
    /// # Safety
    /// On a CUDA queue it is done when the stream has come past it: until then both ranges stay allocated, nobody
    /// writes `from` and nobody uses `to`.
    ///
    /// # Errors
    /// A rank that stopped, does not come, or makes another collective.
    ///
    /// # Panics
    /// When the ranges are shorter than the stretches.
    unsafe fn exchange(
        &self,
        queue: &Queue,
        collective: Collective<'_>,
        from: Src<'_>,
        to: Dst<'_>,
    ) -> Result<(), CommError>;

    /// This rank makes no collectives any more: whoever waits for it gets an error. The first reason of all ranks
    /// counts.
    fn stop(&self, why: &str);

    /// Why the group makes no collectives any more, if it does not. From then on what a collective was to bring may be
    /// anything, also where the device's queue came past it without an error: whoever uses it asks here first.
    fn stopped(&self) -> Option<CommError>;

    /// Waits until a stream is done with the collectives that this rank gave it.
    ///
    /// # Errors
    /// The device's. Where the way has a limit: collectives that do not end, and then the group has stopped. What they
    /// were to bring may be anything.
    fn wait(&self, stream: &Stream) -> Result<(), CommError> {
        Ok(stream.synchronize()?)
    }

    /// What moves the bytes, for people.
    fn by(&self) -> String;
}

/// The way of a rank to others that are processes of their own: between GPUs, which rank 0 has said where to meet
/// ([`NcclComm::id`], its [word](Party::word)), and on the CPU device. All of them ask for it at once.
///
/// # Errors
/// NCCL cannot connect them; that one of them has ended before it came.
pub fn way(party: &Arc<Party>, gpu: Option<&Gpu>) -> Result<Arc<dyn Comm>, CommError> {
    match gpu {
        None => Ok(party.comm()),
        Some(gpu) => Ok(Arc::new(NcclComm::of_process(gpu, party)?)),
    }
}

/// Makes a collective and waits for it: done when it returns.
///
/// # Errors
/// As [`Comm::exchange`], and the device's.
///
/// # Panics
/// As [`Comm::exchange`].
pub fn exchange_now(
    comm: &dyn Comm,
    queue: &Queue,
    collective: Collective<'_>,
    from: Src<'_>,
    to: Dst<'_>,
) -> Result<(), CommError> {
    // SAFETY: both ranges are borrowed until this returns, which it does when the stream is done, or when its context
    // is lost, with which all that was in it ends. A way that has a limit stops its group at it and waits on for the
    // stream; where even that does not free it, the ranges are the device's, which gives none to anybody else before
    // what uses it has ended.
    unsafe { comm.exchange(queue, collective, from, to)? };
    match queue.cuda() {
        Some(stream) => comm.wait(stream),
        None => Ok(()),
    }
}
