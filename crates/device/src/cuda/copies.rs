//! What several GPUs of one process exchange where each reaches the memory of the others: copies.
//!
//! A collective moves bytes and computes nothing, so the GPUs' copy engines can make it. A kernel, as NCCL's
//! collectives are, has to wait until the running product frees multiprocessors, and the next product then waits for
//! those: on two H200s an all-gather of 67 MB to each GPU took 2.0 ms beside products of 2 ms in place of 0.3, and the
//! products 5.8 ms, where copies take 0.4 ms and products what they take alone (docs/journal.md).

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use cudarc::driver::sys;
use lowtide_units::Bytes;

use super::error::ok;
use super::nccl::ends_within;
use super::{CudaError, Event, Gpu, Queue};
use crate::comm::{
    Brought, Collective, Comm, CommError, Pattern, Stretch, Turn, World, described, exchange_now,
};
use crate::memory::{self, Memory};
use crate::view::{Dst, Place, Src};

/// Bytes that each rank sends to each other one before it is believed that copies arrive.
const TRIAL: usize = 1 << 20;

/// One GPU's way to the others of its process, each of which reaches its memory.
///
/// A collective is given to a stream and returns. Ranks meet on the host when they give it, so that one that does not
/// come is named there; no stream ever waits for something that is not given yet.
pub struct Copies {
    rank: usize,
    group: Arc<Group>,
}

/// What the ranks share.
struct Group {
    turn: Turn,
    limit: Duration,
    ranks: Vec<Rank>,
}

/// A GPU, and two points in the stream of its collectives.
struct Rank {
    gpu: Gpu,
    /// What it brings to the collective at hand is there.
    ready: Event,
    /// It has what it takes from the others.
    done: Event,
}

impl fmt::Debug for Copies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Copies({} of {})", self.rank, self.group.ranks.len())
    }
}

impl Copies {
    /// A group of these GPUs, a rank each, in order; none where one of them does not reach the memory of another, or
    /// where bytes that are copied between two of them do not arrive. A rank that does not come to a collective within
    /// `limit` is an error of those that wait for it.
    ///
    /// # Errors
    /// The driver's; copies that do not end within the limit.
    pub fn group(gpus: &[Gpu], limit: Duration) -> Result<Option<Vec<Self>>, CommError> {
        for gpu in gpus {
            for other in gpus.iter().filter(|o| o.ordinal() != gpu.ordinal()) {
                if !gpu.reach(other)? {
                    return Ok(None);
                }
            }
        }
        // The trial's group ends with its ranks.
        Ok(match arrives(&Self::connected(gpus, limit)?)? {
            true => Some(Self::connected(gpus, limit)?),
            false => None,
        })
    }

    fn connected(gpus: &[Gpu], limit: Duration) -> Result<Vec<Self>, CudaError> {
        let rank = |gpu: &Gpu| {
            Ok(Rank {
                gpu: gpu.clone(),
                ready: Event::new(gpu)?,
                done: Event::new(gpu)?,
            })
        };
        let group = Arc::new(Group {
            turn: Turn::new(gpus.len(), limit),
            limit,
            ranks: gpus.iter().map(rank).collect::<Result<_, CudaError>>()?,
        });
        let of = |rank| Self {
            rank,
            group: Arc::clone(&group),
        };
        Ok((0..gpus.len()).map(of).collect())
    }

    /// Gives the stream the copies of what this rank takes from all that `brought`, itself among them.
    ///
    /// # Safety
    /// As [`Comm::exchange`], for the bytes that each rank brought, too: they stay until `done` of this rank has
    /// happened.
    unsafe fn take(
        &self,
        stream: &Queue,
        collective: Collective<'_>,
        brought: &[Brought],
        mut to: Dst<'_>,
    ) -> Result<(), CudaError> {
        let ranks = &self.group.ranks;
        let row = to.bytes() / ranks.len();
        // In each round every rank copies from a different one, so that no link has two copies while another has none.
        for peer in (0..ranks.len()).map(|i| (self.rank + i) % ranks.len()) {
            let Brought { address, bytes } = brought[peer];
            let place = ranks[peer].gpu.ordinal();
            if peer != self.rank {
                stream.wait(&ranks[peer].ready)?;
            }
            for s in collective.stretches {
                let (at, from) = collective.places((self.rank, row), s, peer);
                // SAFETY: the address and length of a view of that rank's, which it keeps (caller).
                let theirs = unsafe { Src::on_cuda(address as u64, bytes, place) };
                // SAFETY: both ranges stay, and nobody writes the one or uses the other (caller).
                unsafe {
                    stream.transfer(to.again().part(at, s.bytes), theirs.part(from, s.bytes))
                };
            }
        }
        stream.record(&ranks[self.rank].done)?;
        stream.take_error().map_or(Ok(()), Err)
    }
}

impl Comm for Copies {
    fn world(&self) -> World {
        World {
            rank: self.rank,
            size: self.group.ranks.len(),
        }
    }

    unsafe fn exchange(
        &self,
        queue: &crate::Queue,
        collective: Collective<'_>,
        from: Src<'_>,
        to: Dst<'_>,
    ) -> Result<(), CommError> {
        let ranks = &self.group.ranks;
        let own = &ranks[self.rank];
        collective.fits(ranks.len(), from, &to);
        collective.lies_on(Place::Cuda(own.gpu.ordinal()), from, &to);
        let stream = queue.cuda().expect("a stream of the rank's GPU");
        own.gpu.bind()?;
        // Others have waited for its record of the collective before: they are past that one's meeting.
        stream.record(&own.ready)?;
        let brought = Brought {
            address: from.address() as usize,
            bytes: from.bytes(),
        };
        let what = described(&collective, from.bytes());
        let mut given = None;
        let met = self.group.turn.meet(self.rank, what, brought, |all| {
            // SAFETY: the caller's promise, of every rank: what it brings stays until its stream is past its waits
            // below.
            let taken = unsafe { self.take(stream, collective, all, to) };
            if taken.is_err() {
                // The others do not wait for `done` of this collective: they leave when no copy is under way.
                let _ = stream.finish();
            }
            given = Some(taken);
        });
        let mut waits = Ok(());
        if given.is_some() {
            // All have given their copies. What this rank brought is free when they are done.
            for other in ranks.iter().filter(|o| !std::ptr::eq(*o, own)) {
                waits = waits.and(stream.wait(&other.done));
            }
        }
        met?;
        given.expect("met")?;
        Ok(waits?)
    }

    fn stop(&self, why: &str) {
        self.group.turn.stop(self.rank, why);
    }

    fn stopped(&self) -> Option<CommError> {
        self.group.turn.stopped()
    }

    fn wait(&self, stream: &Queue) -> Result<(), CommError> {
        // A stream ends by itself once all have met, whoever stops then: only copies that do not move stand still.
        match ends_within(self.group.limit, || stream.is_done(), || false)? {
            true => self.stopped().map_or(Ok(()), Err),
            false => Err(self.group.turn.end(CommError::Unended {
                rank: self.rank,
                number: self.group.turn.number().saturating_sub(1),
                collective: "copies between GPUs".to_owned(),
                seconds: self.group.limit.as_secs(),
            })),
        }
    }

    fn by(&self) -> String {
        "copies between them".to_owned()
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        self.stop("it has ended");
    }
}

/// The byte that rank `from` sends to rank `to` at a place of the trial. No two neighbours are the same, nor are those
/// of two pairs.
fn sent(from: usize, to: usize, at: usize) -> u8 {
    (at.wrapping_mul(0x9e37_79b9) >> 7) as u8 ^ (16 * from + to) as u8
}

/// Whether bytes arrive that the ranks of a new group exchange. Some machines say that their GPUs reach each other, and
/// an IOMMU between them loses what is written.
fn arrives(ranks: &[Copies]) -> Result<bool, CommError> {
    let rank = |comm: &Copies| {
        let found = received(comm);
        if let Err(error) = &found {
            comm.stop(&error.to_string());
        }
        found
    };
    let all: Vec<_> = std::thread::scope(|scope| {
        let ranks: Vec<_> = ranks.iter().map(|c| scope.spawn(|| rank(c))).collect();
        ranks
            .into_iter()
            .map(std::thread::ScopedJoinHandle::join)
            .collect()
    });
    let mut arrived = true;
    for found in all {
        match found.unwrap_or_else(|panic| std::panic::resume_unwind(panic)) {
            Ok(found) => arrived &= found,
            // Another rank's error is returned by that one.
            Err(error) if error.is_consequence() => arrived = false,
            Err(error) => return Err(error),
        }
    }
    Ok(arrived)
}

/// Sends each rank its bytes, and says whether this one has got its own.
fn received(comm: &Copies) -> Result<bool, CommError> {
    let World { rank, size } = comm.world();
    let gpu = &comm.group.ranks[rank].gpu;
    let queue = crate::Queue::Cuda(Queue::first(gpu)?);
    let bytes = (size * TRIAL) as u64;
    let mut memory = Memory::cuda(gpu, Bytes(2 * bytes))?;
    let mut host: Vec<u8> = (0..size * TRIAL)
        .map(|i| sent(rank, i / TRIAL, i % TRIAL))
        .collect();
    let [mut from, mut to] = memory.parts([(0, bytes), (bytes, bytes)]);
    memory::copy(from.again(), Src::of(&host));
    memory::copy(to.again(), Src::of(&vec![0u8; size * TRIAL]));
    let stretch = [Stretch {
        whole: 0,
        part: 0,
        bytes: TRIAL,
    }];
    let collective = Collective {
        pattern: Pattern::AllToAll,
        name: "a trial",
        stretches: &stretch,
    };
    if let Err(error) = exchange_now(comm, &queue, collective, from.into_src(), to.again()) {
        // Copies may be under way that do not move, and the driver waits for them before it frees memory or a stream.
        std::mem::forget((memory, queue));
        return Err(error);
    }
    memory::copy(Dst::of(&mut host), to.into_src());
    let mut got = host.iter().enumerate();
    Ok(got.all(|(i, &byte)| byte == sent(i / TRIAL, rank, i % TRIAL)))
}

impl Gpu {
    /// Lets this GPU's copies reach the memory of another one. False where the machine has no way between them.
    ///
    /// # Errors
    /// The driver's.
    fn reach(&self, other: &Self) -> Result<bool, CudaError> {
        let mut can = 0;
        let (own, peer) = (self.device()?, other.device()?);
        // SAFETY: writes one number; both devices exist.
        ok("cuDeviceCanAccessPeer", unsafe {
            sys::cuDeviceCanAccessPeer(&raw mut can, own, peer)
        })?;
        if can == 0 {
            return Ok(false);
        }
        self.bind()?;
        // SAFETY: a context that is never released; this GPU's is current.
        let status = unsafe { sys::cuCtxEnablePeerAccess(other.context(), 0) };
        match status {
            sys::CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED => Ok(true),
            sys::CUresult::CUDA_ERROR_PEER_ACCESS_UNSUPPORTED
            | sys::CUresult::CUDA_ERROR_TOO_MANY_PEERS => Ok(false),
            status => ok("cuCtxEnablePeerAccess", status).map(|()| true),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_tells_one_pair_of_ranks_and_one_place_from_another() {
        let pairs: Vec<_> = (0..4).flat_map(|a| (0..4).map(move |b| (a, b))).collect();
        for &(a, b) in &pairs {
            for &(c, d) in pairs.iter().filter(|&&pair| pair != (a, b)) {
                assert!((0..64).all(|at| sent(a, b, at) != sent(c, d, at)));
            }
            let same = (0..TRIAL - 1).filter(|&at| sent(a, b, at) == sent(a, b, at + 1));
            assert!(same.count() < TRIAL / 64, "places look alike");
        }
    }
}
