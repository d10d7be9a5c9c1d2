//! What a directory's drive gives: measured through the disk that a run would use.
//!
//! The file is written once first and every figure is of a later pass, as a run overwrites its
//! state each step; space that was only reserved reads as zeros without touching the drive.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lowtide_units::{Bytes, BytesPerSecond, Seconds};

use crate::{Arena, Backend, Disk, DiskConfig, Extent, Fill, Kind, Request, TierError};

/// How to measure.
#[derive(Clone, Copy, Debug)]
pub struct ProbeConfig {
    /// Bytes of the file; more than the drive's own cache, and free on it.
    pub bytes: Bytes,
    /// How long each of the three figures takes.
    pub time: Duration,
    /// Bytes of one operation.
    pub block: Bytes,
    /// Operations in flight.
    pub depth: usize,
    /// How I/O is done.
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

/// What a directory's drive gives.
#[derive(Clone, Debug)]
pub struct Rates {
    /// Reads alone.
    pub read: BytesPerSecond,
    /// Writes alone.
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
    // Enough requests that the arbiter always has a next one.
    let in_hand = config.depth * 2;
    let arena = Arena::new(config.block * in_hand as u64, Fill::Poison)?;
    let scratch = Scratch::new(dir)?;
    let mut disk = DiskConfig::new([(scratch.0.clone(), 1.0)]);
    disk.block = config.block;
    disk.stripe = config.block;
    disk.depth = config.depth;
    disk.backend = config.backend;
    let n_blocks = (config.bytes.0 / config.block.0).max(2 * in_hand as u64);
    let disk = Disk::open(&disk.fit(config.block * n_blocks)?, Some(&arena))?;
    let run = Run {
        disk: &disk,
        arena: &arena,
        block: config.block.0,
        n_blocks,
        in_hand,
    };
    run.moved(&[Kind::Write], |sent, _| sent < n_blocks)?;
    let timed = |kinds: &[Kind]| run.moved(kinds, |_, time| time < config.time);
    let read = timed(&[Kind::Read])?;
    let write = timed(&[Kind::Write])?;
    let mixed = timed(&[Kind::Read, Kind::Write])?;
    Ok(Rates {
        read,
        write,
        mixed,
        how: disk.describe().to_owned(),
    })
}

/// A directory that goes when it is dropped, if it is empty then.
struct Scratch(PathBuf);

impl Scratch {
    fn new(dir: &Path) -> Result<Self, TierError> {
        let path = dir.join(".lowtide-probe");
        match std::fs::create_dir(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
                Err(TierError::file("creating", &path, &e))
            }
            _ => Ok(Self(path)),
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Not empty: another probe runs there, and removes it.
        let _ = std::fs::remove_dir(&self.0);
    }
}

struct Run<'a> {
    disk: &'a Disk,
    arena: &'a Arena,
    block: u64,
    n_blocks: u64,
    in_hand: usize,
}

impl Run<'_> {
    /// Sends blocks of these kinds in turn while `more(sent, time)`, each kind sequentially over
    /// its own part of the file and round again, and returns the rate until the last one ended.
    fn moved(
        &self,
        kinds: &[Kind],
        more: impl Fn(u64, Duration) -> bool,
    ) -> Result<BytesPerSecond, TierError> {
        let (n_kinds, begin) = (kinds.len() as u64, Instant::now());
        let part = self.n_blocks / n_kinds;
        let mut tickets = VecDeque::new();
        let mut sent = 0;
        while more(sent, begin.elapsed()) {
            if tickets.len() == self.in_hand {
                let oldest: crate::Ticket = tickets.pop_front().expect("some are in hand");
                oldest.wait()?;
            }
            let (which, turn) = (sent % n_kinds, sent / n_kinds);
            let offset = (which * part + turn % part) * self.block;
            // In order of age, so the memory of the one just waited for.
            let memory = (sent % self.in_hand as u64) * self.block;
            tickets.push_back(self.disk.submit(Request {
                kind: kinds[which as usize],
                extent: Extent {
                    offset,
                    bytes: self.block,
                },
                memory: self.arena.range(memory, self.block)?,
                deadline: sent,
            }));
            sent += 1;
        }
        tickets.iter().try_for_each(crate::Ticket::wait)?;
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
}
