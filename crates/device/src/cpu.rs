//! The CPU device: kernels on threads of its own.

use std::io;

use lowtide_tiers::numa;

/// A pool of threads of one lane, on which CPU kernels run.
///
/// A kernel call returns when its work is done. Kernels cut their work by shape alone, never by
/// the number of threads, so results do not depend on it.
#[derive(Debug)]
pub struct Pool {
    pool: rayon::ThreadPool,
    threads: usize,
}

impl Pool {
    /// A pool of `threads` threads, named after its lane.
    ///
    /// # Errors
    /// When the system refuses to start a thread.
    pub fn new(lane: &str, threads: usize) -> io::Result<Self> {
        Self::build(lane, threads, None, |_| ())
    }

    /// As [`Pool::new`]; where the machine has several NUMA nodes, each thread stays on a core of its own, on the nodes
    /// in turn, behind the `first` that others have. With `give_way` they leave their cores to whoever of the usual
    /// priority wakes ([`numa::give_way`]).
    ///
    /// # Errors
    /// As [`Pool::new`].
    pub fn spread(lane: &str, threads: usize, first: usize, give_way: bool) -> io::Result<Self> {
        Self::build(lane, threads, None, move |i| {
            if let Some(core) = numa::core_of(first + i) {
                numa::stay_on(&[core]);
            }
            if give_way {
                numa::give_way();
            }
        })
    }

    fn build(
        lane: &str,
        threads: usize,
        stack: Option<usize>,
        start: impl Fn(usize) + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let name = lane.to_owned();
        let mut pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(move |i| format!("{name}-{i}"))
            .start_handler(start);
        if let Some(bytes) = stack {
            pool = pool.stack_size(bytes);
        }
        let pool = pool.build().map_err(io::Error::other)?;
        Ok(Self { pool, threads })
    }

    /// How many threads it has.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Runs `work` on the pool's threads; `rayon`'s parallel iterators inside it use them.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.pool.install(work)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_that_cannot_be_started_are_an_error() {
        // No address space has room for such a stack.
        let error = Pool::build("gpu", 2, Some(1 << 62), |_| ()).unwrap_err();
        assert!(!error.to_string().is_empty());
        assert_eq!(Pool::new("gpu", 2).unwrap().threads(), 2);
    }
}
