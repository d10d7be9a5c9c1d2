//! What a directory's drive gives: measured through the disk that a run would use.
//!
//! The file is written once first and every figure is of a later pass, as a run overwrites its
//! state each step; space that was only reserved reads as zeros without touching the drive.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lowtide_units::{Bytes, BytesPerSecond, Seconds};

use crate::Scratch;
use crate::header::DATA;
use crate::lane::Io;
use crate::threads::transfer;
use crate::{ALIGN, Arena, Backend, Disk, DiskConfig, Extent, Fill, Kind, Request, TierError};

/// How to measure.
#[derive(Clone, Copy, Debug)]
pub struct ProbeConfig {
    /// Bytes of the file; more than the drive's own cache, and free on it. Less than
    /// [`ProbeConfig::least`] is taken for that.
    pub bytes: Bytes,
    /// How long each of the three figures takes.
    pub time: Duration,
    /// Bytes of one operation, a multiple of [`ALIGN`].
    pub block: Bytes,
    /// Operations in flight at once.
    pub depth: usize,
    /// What performs the operations: io_uring or threads.
    pub backend: Backend,
}

impl Default for ProbeConfig {
    /// 4 GiB, 3 seconds a figure, and what [`DiskConfig::new`] gives.
    fn default() -> Self {
        let disk = DiskConfig::new([]);
        Self {
            bytes: Bytes::GIB * 4,
            time: Duration::from_secs(3),
            block: disk.block,
            depth: disk.depth,
            backend: disk.backend,
        }
    }
}

impl ProbeConfig {
    /// The same in a file of at most `most` bytes: with smaller operations where that is little, which a
    /// drive serves at a lower rate.
    #[must_use]
    pub fn within(self, most: Bytes) -> Self {
        let block = most.0 / (4 * self.depth as u64) / ALIGN * ALIGN;
        Self {
            bytes: self.bytes.min(most),
            block: Bytes(block.clamp(ALIGN, self.block.0)),
            ..self
        }
    }

    /// Bytes of memory from and to which blocks are moved.
    #[must_use]
    pub fn memory(&self) -> Bytes {
        self.block * self.in_hand() as u64
    }

    /// Requests that are unfinished at once: enough that the arbiter always has a next one.
    fn in_hand(&self) -> usize {
        self.depth * 2
    }

    /// The least that the file has: each kind of a mix has a part of its own, and twice the blocks in
    /// flight are in hand.
    #[must_use]
    pub fn least(&self) -> Bytes {
        self.block * (4 * self.depth as u64)
    }
}

/// What a directory's drive gives.
#[derive(Clone, Debug)]
pub struct Rates {
    /// Rate of reads alone.
    pub read: BytesPerSecond,
    /// Rate of writes alone.
    pub write: BytesPerSecond,
    /// Reads and writes one to one, both counted.
    pub mixed: BytesPerSecond,
    /// How it was measured: [`Disk::describe`].
    pub how: String,
}

/// Measures the drive that holds `dir`, in a directory inside it: a state file in `dir` may be a
/// durable run's. Removes what it made at the end.
///
/// # Errors
/// Whatever [`Disk::open`], [`Arena::new`] or the I/O gives.
pub fn probe(dir: &Path, config: &ProbeConfig) -> Result<Rates, TierError> {
    Run::new(dir, config)?.rates(config)
}

/// As [`probe()`], with blocks from and to the memory of a device, from `address` on as many bytes as
/// [`ProbeConfig::memory`] says. `reach` tells the disk [how its drives reach it](Disk::reach_by).
///
/// # Safety
/// Nobody else uses those bytes until this returns.
///
/// # Errors
/// What `reach` gives, or as [`probe()`].
pub unsafe fn probe_device<E: From<TierError>>(
    dir: &Path,
    config: &ProbeConfig,
    address: u64,
    reach: impl FnOnce(&Disk) -> Result<(), E>,
) -> Result<Rates, E> {
    let mut run = Run::new(dir, config)?;
    reach(&run.disk)?;
    run.device = Some(address);
    Ok(run.rates(config)?)
}

/// How many blocks are read for how many that are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mix {
    /// Blocks read in a round.
    pub reads: u64,
    /// Blocks written in a round.
    pub writes: u64,
}

impl Mix {
    /// Nothing but reads.
    pub const READS: Self = Self::new(1, 0);
    /// Nothing but writes.
    pub const WRITES: Self = Self::new(0, 1);

    /// So many reads for so many writes.
    #[must_use]
    pub const fn new(reads: u64, writes: u64) -> Self {
        Self { reads, writes }
    }

    /// What the `n`-th block is, and how many of its kind came before it: evenly spread.
    fn at(self, n: u64) -> (Kind, u64) {
        let all = self.reads + self.writes;
        let reads = |n: u64| n * self.reads / all;
        if reads(n + 1) > reads(n) {
            (Kind::Read, reads(n))
        } else {
            (Kind::Write, n - reads(n))
        }
    }
}

/// The rates that the disk lane and plain threads reach with one mix of reads and writes.
#[derive(Clone, Debug)]
pub struct Share {
    /// How many blocks were read and written in turn.
    pub mix: Mix,
    /// Through the arbiter, bytes of both kinds.
    pub lane: BytesPerSecond,
    /// Blocking O_DIRECT calls on threads without order or checks: the best of their numbers.
    pub bound: BytesPerSecond,
    /// How many threads that was.
    pub threads: usize,
}

/// Numbers of threads among which the bound is looked for.
const PLAIN: [usize; 3] = [4, 8, 16];
/// How often lane and each of [`PLAIN`] are measured, alternating; the best counts.
const ROUNDS: u32 = 3;

/// Measures the disk lane against plain threads on the same drive and file, mix by mix, alternating. Lane and each
/// number of threads take `config.time` a mix. Also returns how I/O is done ([`Disk::describe`]).
///
/// # Errors
/// As [`probe()`].
///
/// # Panics
/// When a mix is empty.
pub fn shares(
    dir: &Path,
    config: &ProbeConfig,
    mixes: &[Mix],
) -> Result<(Vec<Share>, String), TierError> {
    let run = Run::new(dir, config)?;
    let path = run.disk.paths().next().expect("one drive").to_owned();
    let file = open_plain(&path)?;
    let time = config.time / ROUNDS;
    let faster = |a: BytesPerSecond, b: BytesPerSecond| if a.0 > b.0 { a } else { b };
    let mut shares = Vec::new();
    for &mix in mixes {
        assert!(mix.reads + mix.writes > 0, "a mix of nothing");
        let mut share = Share {
            mix,
            lane: BytesPerSecond(0.0),
            bound: BytesPerSecond(0.0),
            threads: 0,
        };
        for _ in 0..ROUNDS {
            // As many tries for the lane as for its bound: the best of more is more.
            for threads in PLAIN {
                let lane = run.moved(mix, |_, spent| spent < time)?;
                share.lane = faster(share.lane, lane);
                let rate = run.plain(&file, &path, mix, threads, time)?;
                if rate.0 > share.bound.0 {
                    (share.bound, share.threads) = (rate, threads);
                }
            }
        }
        shares.push(share);
    }
    Ok((shares, run.disk.describe().to_owned()))
}

/// The state file once more, for direct I/O where the file system allows.
fn open_plain(path: &Path) -> Result<File, TierError> {
    let open = |flags| {
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(flags);
        options.open(path)
    };
    open(libc::O_DIRECT | libc::O_CLOEXEC)
        .or_else(|_| open(libc::O_CLOEXEC))
        .map_err(|e| TierError::file("opening", path, &e))
}

struct Run {
    // Before the directory that its file is in.
    disk: Disk,
    _scratch: Scratch,
    arena: Arena,
    block: u64,
    n_blocks: u64,
    in_hand: usize,
    /// Blocks are moved from and to a device's memory, from here on, in place of the arena.
    device: Option<u64>,
}

impl Run {
    /// Opens a disk in the directory and writes all of it once.
    fn new(dir: &Path, config: &ProbeConfig) -> Result<Self, TierError> {
        let in_hand = config.in_hand();
        let blocks = in_hand.max(PLAIN[PLAIN.len() - 1]) as u64;
        let arena = Arena::new(config.block * blocks, Fill::Poison)?;
        let scratch = Scratch::new(dir)?;
        let mut disk = DiskConfig::new([(scratch.path().to_owned(), 1.0)]);
        disk.block = config.block;
        disk.stripe = config.block;
        disk.depth = config.depth;
        disk.backend = config.backend;
        let n_blocks = config.bytes.max(config.least()).0 / config.block.0;
        let disk = Disk::open(&disk.fit(config.block * n_blocks)?, Some(&arena))?;
        let run = Self {
            disk,
            _scratch: scratch,
            arena,
            block: config.block.0,
            n_blocks,
            in_hand,
            device: None,
        };
        run.moved(Mix::WRITES, |sent, _| sent < n_blocks)?;
        Ok(run)
    }

    /// The three figures.
    fn rates(&self, config: &ProbeConfig) -> Result<Rates, TierError> {
        let timed = |mix| self.moved(mix, |_, time| time < config.time);
        let read = timed(Mix::READS)?;
        let write = timed(Mix::WRITES)?;
        let mixed = timed(Mix::new(1, 1))?;
        Ok(Rates {
            read,
            write,
            mixed,
            how: self.disk.describe().to_owned(),
        })
    }

    /// Where the `turn`-th block of its kind lies: each kind goes round in its own part of the file.
    fn place(&self, mix: Mix, kind: Kind, turn: u64) -> u64 {
        let kinds = u64::from(mix.reads > 0) + u64::from(mix.writes > 0);
        let part = self.n_blocks / kinds;
        let first = if kind == Kind::Write {
            (kinds - 1) * part
        } else {
            0
        };
        (first + turn % part) * self.block
    }

    /// Sends blocks of a mix while `more(sent, time)`, and returns the rate until the last one
    /// ended.
    fn moved(
        &self,
        mix: Mix,
        more: impl Fn(u64, Duration) -> bool,
    ) -> Result<BytesPerSecond, TierError> {
        let begin = Instant::now();
        let mut tickets = VecDeque::new();
        let mut sent = 0;
        while more(sent, begin.elapsed()) {
            if tickets.len() == self.in_hand {
                let oldest: crate::Ticket = tickets.pop_front().expect("some are in hand");
                oldest.wait()?;
            }
            let (kind, turn) = mix.at(sent);
            // In order of age, so the memory of the one just waited for.
            let memory = (sent % self.in_hand as u64) * self.block;
            let extent = Extent {
                offset: self.place(mix, kind, turn),
                bytes: self.block,
            };
            // SAFETY: each block of the arena, or of the device's bytes that are this run's, has one request at a time,
            // and nothing else uses it while this runs; after an error nothing uses it any more.
            tickets.push_back(unsafe {
                match self.device {
                    Some(address) => self
                        .disk
                        .submit_device(kind, extent, address + memory, sent),
                    None => self.disk.submit(Request {
                        kind,
                        extent,
                        memory: self.arena.range(memory, self.block)?,
                        deadline: sent,
                    }),
                }
            });
            sent += 1;
        }
        tickets.iter().try_for_each(crate::Ticket::wait)?;
        Ok(Bytes(sent * self.block) / Seconds(begin.elapsed().as_secs_f64()))
    }

    /// The same by blocking calls, each thread taking the next block.
    fn plain(
        &self,
        file: &File,
        path: &Path,
        mix: Mix,
        threads: usize,
        time: Duration,
    ) -> Result<BytesPerSecond, TierError> {
        let (next, begin) = (AtomicU64::new(0), Instant::now());
        let work = |thread: usize| -> Result<(), TierError> {
            let memory = self.arena.range(thread as u64 * self.block, self.block)?;
            while begin.elapsed() < time {
                let (kind, turn) = mix.at(next.fetch_add(1, Ordering::Relaxed));
                let io = Io {
                    kind,
                    memory: memory.as_ptr(),
                    bytes: memory.bytes(),
                    at: DATA + self.place(mix, kind, turn),
                };
                // SAFETY: an open file; a range of the arena that no other thread has, while no
                // request is unfinished.
                let done = unsafe { transfer(file.as_raw_fd(), &io) };
                let short = || std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
                done.and_then(|n| if n == io.bytes { Ok(()) } else { Err(short()) })
                    .map_err(|e| TierError::file("moving blocks of", path, &e))?;
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let work = &work;
            let all: Vec<_> = (0..threads).map(|t| scope.spawn(move || work(t))).collect();
            all.into_iter()
                .try_for_each(|t| t.join().unwrap_or_else(|e| std::panic::resume_unwind(e)))
        })?;
        let sent = next.load(Ordering::Relaxed);
        Ok(Bytes(sent * self.block) / Seconds(begin.elapsed().as_secs_f64()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_positive_and_nothing_is_left() {
        let dir = tempfile::tempdir().unwrap();
        for backend in [Backend::Auto, Backend::Threads] {
            let config = ProbeConfig {
                bytes: Bytes::MIB * 16,
                time: Duration::from_millis(30),
                block: Bytes::MIB,
                depth: 2,
                backend,
            };
            let rates = probe(dir.path(), &config).unwrap();
            for rate in [rates.read, rates.write, rates.mixed] {
                assert!(rate.0 > 1e6 && rate.0 < 1e12, "{rates:?}");
            }
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        }
    }

    /// Less than a good figure takes is what there is.
    #[test]
    fn a_probe_keeps_within_what_it_may_write() {
        let dir = tempfile::tempdir().unwrap();
        for most in [Bytes::MIB * 200, Bytes::MIB * 20, Bytes::KIB * 200] {
            let config = ProbeConfig {
                bytes: Bytes::GIB,
                time: Duration::from_millis(5),
                ..ProbeConfig::default()
            };
            let run = Run::new(dir.path(), &config.within(most)).unwrap();
            let path = run.disk.paths().next().unwrap();
            let bytes = path.metadata().unwrap().len();
            assert!(
                bytes <= DATA + most.0 && bytes > DATA + most.0 / 2,
                "{bytes}"
            );
            run.moved(Mix::new(1, 1), |sent, _| sent < 100).unwrap();
        }
    }

    #[test]
    fn a_mix_is_spread_evenly_and_complete() {
        for (reads, writes) in [(1, 1), (10, 12), (1, 0), (0, 1), (3, 1)] {
            let (mix, all) = (Mix::new(reads, writes), reads + writes);
            let mut seen = [0, 0];
            for n in 0..5 * all {
                let (kind, turn) = mix.at(n);
                let seen = &mut seen[usize::from(kind == Kind::Write)];
                assert_eq!(turn, *seen, "{mix:?} at {n}");
                *seen += 1;
            }
            assert_eq!(seen, [5 * reads, 5 * writes]);
        }
    }

    #[test]
    fn a_share_has_a_bound_and_nothing_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let config = ProbeConfig {
            bytes: Bytes::MIB * 16,
            time: Duration::from_millis(30),
            block: Bytes::MIB,
            depth: 2,
            backend: Backend::Auto,
        };
        let mixes = [Mix::READS, Mix::WRITES, Mix::new(10, 12)];
        let (shares, how) = shares(dir.path(), &config, &mixes).unwrap();
        assert!(!how.is_empty());
        for (share, mix) in shares.iter().zip(mixes) {
            assert_eq!(share.mix, mix);
            assert!(share.lane.0 > 1e6 && share.bound.0 > 1e6, "{share:?}");
            assert!(PLAIN.contains(&share.threads));
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
