//! The CPU device: kernels on threads of its own.

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
    /// # Panics
    /// When the system refuses to start a thread.
    #[must_use]
    pub fn new(lane: &str, threads: usize) -> Self {
        Self::build(lane, threads, |_| ())
    }

    /// As [`Pool::new`]; where the machine has several NUMA nodes, each thread stays on a core of
    /// its own, on the nodes in turn. With `give_way` they leave their cores to whoever of the usual
    /// priority wakes ([`numa::give_way`]).
    ///
    /// # Panics
    /// As [`Pool::new`].
    #[must_use]
    pub fn spread(lane: &str, threads: usize, give_way: bool) -> Self {
        Self::build(lane, threads, move |i| {
            if let Some(core) = numa::core_of(i) {
                numa::stay_on(&[core]);
            }
            if give_way {
                numa::give_way();
            }
        })
    }

    fn build(lane: &str, threads: usize, start: impl Fn(usize) + Send + Sync + 'static) -> Self {
        let name = lane.to_owned();
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(move |i| format!("{name}-{i}"))
            .start_handler(start)
            .build()
            .expect("threads can be started");
        Self { pool, threads }
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
