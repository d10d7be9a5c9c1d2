//! Where kernels run, on either device.

use std::io;

use crate::cpu::Pool;
use crate::view::{Dst, Src};
use crate::{Make, cuda, memory};

/// Where one lane's kernels and copies run.
///
/// On the CPU device a call returns when its work is done. On a CUDA device it returns when the
/// work is in the queue's stream, which runs it in order; events say when it is done.
#[derive(Debug)]
pub enum Queue {
    /// Threads of the host.
    Cpu(Pool),
    /// A stream of a CUDA device.
    Cuda(cuda::Queue),
}

impl Queue {
    /// A CPU queue of `threads` threads, named after its lane.
    ///
    /// # Panics
    /// When the system refuses to start a thread.
    #[must_use]
    pub fn new(lane: &str, threads: usize) -> Self {
        Self::start(lane, threads).expect("threads can be started")
    }

    /// The same, for whom a refusal is no bug.
    ///
    /// # Errors
    /// When the system refuses to start a thread.
    pub fn start(lane: &str, threads: usize) -> io::Result<Self> {
        Pool::new(lane, threads).map(Self::Cpu)
    }

    /// A CPU queue whose threads are spread over the machine's NUMA nodes and, on request, give way
    /// to others; `first` is how many threads others have spread before: [`Pool::spread`].
    ///
    /// # Errors
    /// When the system refuses to start a thread.
    pub fn spread(lane: &str, threads: usize, first: usize, give_way: bool) -> io::Result<Self> {
        Pool::spread(lane, threads, first, give_way).map(Self::Cpu)
    }

    /// The backend that its work runs on.
    #[must_use]
    pub fn make(&self) -> Make {
        match self {
            Self::Cpu(_) => Make::Cpu,
            Self::Cuda(_) => Make::Cuda,
        }
    }

    /// The stream, where this is a queue of a CUDA device.
    #[must_use]
    pub fn cuda(&self) -> Option<&cuda::Queue> {
        match self {
            Self::Cuda(q) => Some(q),
            Self::Cpu(_) => None,
        }
    }

    /// How many threads it has; none on a CUDA device.
    #[must_use]
    pub fn threads(&self) -> usize {
        match self {
            Self::Cpu(pool) => pool.threads(),
            Self::Cuda(_) => 0,
        }
    }

    /// Runs `work` on a CPU queue's threads; `rayon`'s parallel iterators inside it use them.
    ///
    /// # Panics
    /// On a CUDA queue: a kernel without a CUDA version was launched there.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        match self {
            Self::Cpu(pool) => pool.run(work),
            Self::Cuda(_) => panic!("this operation has no CUDA version"),
        }
    }

    /// Copies all bytes of `from` to `to`, both equally long and in the memory of the queue's device.
    pub fn copy(&self, to: Dst<'_>, from: Src<'_>) {
        match self {
            Self::Cpu(_) => memory::copy(to, from),
            Self::Cuda(q) => q.copy(to, from),
        }
    }

    /// Copies all bytes of `from` to `to`, both equally long, between the device and the host.
    ///
    /// # Safety
    /// On a CUDA queue the copy is done when the stream has come past it: until then both ranges stay
    /// allocated, nobody writes `from` and nobody uses `to`.
    pub unsafe fn transfer(&self, to: Dst<'_>, from: Src<'_>) {
        match self {
            Self::Cpu(_) => memory::copy(to, from),
            // SAFETY: the caller's promise.
            Self::Cuda(q) => unsafe { q.transfer(to, from) },
        }
    }

    /// Copies each pair, wherever its ranges lie. Done when it returns.
    ///
    /// # Errors
    /// The device's.
    ///
    /// # Panics
    /// When the lengths of a pair differ.
    pub fn copy_all(&self, pairs: cuda::Pairs<'_>) -> Result<(), cuda::CudaError> {
        match self {
            Self::Cpu(_) => {
                pairs
                    .into_iter()
                    .for_each(|(to, from)| memory::copy(to, from));
                Ok(())
            }
            Self::Cuda(q) => {
                let n = pairs.len() as u64;
                cuda::copy_rounds(&mut [(q, pairs)], n)
            }
        }
    }
}
