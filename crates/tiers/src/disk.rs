//! The disk: a flat address space of bytes over several drives, and the way to ask for I/O.

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use lowtide_units::Bytes;

use crate::arbiter::{Arbiter, Piece, Setup};
use crate::config::{Backend, DiskConfig, Open};
use crate::extent::Extent;
use crate::header::{DATA, Header};
use crate::journal::{Journal, Place};
use crate::reach::{Memory, Reach};
use crate::request::{Counters, Kind, Request};
use crate::state_file::StateFile;
use crate::stripe::Stripe;
use crate::threads::Threads;
use crate::uring::Uring;
use crate::versions::Versions;
use crate::{ALIGN, Arena, Checksums, DirLock, Scratch, Ticket, TierError};

/// Drives striped to one flat address space, each served by an arbiter thread of its own.
///
/// Dropping it finishes what was submitted, then removes the state files unless they are to be kept.
pub struct Disk {
    arbiters: Vec<Arbiter>,
    files: Vec<Arc<StateFile>>,
    /// Of each directory; dropped after the files.
    locks: Vec<DirLock>,
    pub(crate) stripe: Arc<Stripe>,
    bytes: u64,
    /// Extents must be multiples of this: [`ALIGN`], or the unit of checksums.
    align: u64,
    checksums: Option<Arc<Checksums>>,
    /// Set where commits are proven; the drives' threads look in here.
    pub(crate) versions: Arc<OnceLock<Versions>>,
    /// Whether the drives reach a device's memory.
    reaches: OnceLock<()>,
    pub(crate) journal: Option<Journal>,
    /// Held while a request's parts are handed out, so that all drives see one order.
    order: Mutex<()>,
    description: String,
}

impl Disk {
    /// Locks the directories, makes or takes over the state files, reserves all space, chooses a backend
    /// for each drive by trial and starts the arbiters. `host` is the arena most requests will come from: with
    /// io_uring its pages are registered once, where the limit on locked memory allows.
    ///
    /// # Errors
    /// [`TierError::Setting`], [`TierError::Space`], [`TierError::InUse`], [`TierError::NoLocks`], [`TierError::Kept`],
    /// [`TierError::BadFile`], [`TierError::OtherDisk`], [`TierError::File`], [`TierError::Backend`]; files made so far
    /// are removed again.
    pub fn open(config: &DiskConfig, host: Option<&Arena>) -> Result<Self, TierError> {
        let stripe = Arc::new(config.checked()?);
        let shares: Vec<u64> = config.drives.iter().map(|d| d.bytes.0).collect();
        let bytes = stripe.capacity(&shares);
        let locks = config.drives.iter().map(|d| DirLock::take(&d.dir));
        let locks: Vec<DirLock> = locks.collect::<Result<_, _>>()?;
        let mut files = Vec::new();
        for (i, drive) in config.drives.iter().enumerate() {
            let header = Header {
                run: config.run,
                keep: config.keep,
                drive: i as u32,
                share: stripe.local_len(i, bytes),
                stripe: (*stripe).clone(),
            };
            // What a killed probe has left takes space.
            Scratch::remove_stale(&drive.dir)?;
            let file = StateFile::open(&drive.dir, &header, config.open, config.direct)?;
            files.push(Arc::new(file));
        }
        let mut disk = Self::without_arbiters(bytes, stripe, config.verify_reads);
        for file in &files {
            let setup = disk.setup(file.path.clone(), DATA, config.block, config.depth);
            let (file, host) = (Arc::clone(file), host.cloned());
            let (depth, backend) = (config.depth, config.backend);
            let (arbiter, how) = Arbiter::spawn(setup, move || match backend {
                Backend::Threads => Ok(Threads::on_file(file, depth, "as asked")),
                Backend::Uring => Uring::on_file(&file, depth, host.as_ref()).map_err(|reason| {
                    TierError::Backend {
                        path: file.path.clone(),
                        reason,
                    }
                }),
                Backend::Auto => Ok(Uring::on_file(&file, depth, host.as_ref())
                    .unwrap_or_else(|why| Threads::on_file(file, depth, &why))),
            })?;
            disk.add(arbiter, &how);
        }
        let place = Place::File(Arc::clone(&files[0]));
        let last = match config.open {
            Open::Existing => {
                let (kept, _) = Journal::new(place.clone(), config.run, None).read()?;
                let kept = kept.map_err(|what| TierError::BadFile {
                    path: files[0].path.clone(),
                    what,
                })?;
                kept.commits.into_iter().next()
            }
            Open::Create | Open::Replace => None,
        };
        disk.journal = Some(Journal::new(place, config.run, last.as_ref()));
        (disk.files, disk.locks) = (files, locks);
        if config.open == Open::Create {
            disk.publish()?;
        }
        Ok(disk)
    }

    pub(crate) fn without_arbiters(
        bytes: u64,
        stripe: Arc<Stripe>,
        verify_reads: Option<Bytes>,
    ) -> Self {
        Self {
            arbiters: Vec::new(),
            files: Vec::new(),
            locks: Vec::new(),
            versions: Arc::default(),
            reaches: OnceLock::new(),
            stripe,
            bytes,
            align: verify_reads.map_or(ALIGN, |unit| unit.0),
            checksums: verify_reads.map(|unit| Arc::new(Checksums::new(bytes, unit.0))),
            journal: None,
            order: Mutex::new(()),
            description: String::new(),
        }
    }

    /// Where commits of a new disk are noted.
    pub(crate) fn journal_in(&mut self, place: Place) {
        self.journal = Some(Journal::new(place, 0, None));
    }

    /// Gives new files their names, in place of kept ones, which are then gone. To be called when what the kept ones
    /// hold is on this disk or no longer wanted.
    ///
    /// # Errors
    /// [`TierError::File`] when the system refuses.
    pub fn publish(&self) -> Result<(), TierError> {
        self.files.iter().try_for_each(|file| file.publish())
    }

    /// The first drive's state file, which has the journal; `ram` of a disk in memory.
    pub(crate) fn first_path(&self) -> PathBuf {
        let first = self.files.first();
        first.map_or_else(|| PathBuf::from("ram"), |file| file.path.clone())
    }

    /// What the next arbiter needs to know.
    pub(crate) fn setup(&self, path: PathBuf, data: u64, block: Bytes, depth: usize) -> Setup {
        Setup {
            drive: self.arbiters.len(),
            stripe: Arc::clone(&self.stripe),
            path,
            data,
            block: block.0,
            depth,
            checksums: self.checksums.clone(),
            versions: Arc::clone(&self.versions),
        }
    }

    pub(crate) fn add(&mut self, arbiter: Arbiter, how: &str) {
        if !self.description.is_empty() {
            self.description.push('\n');
        }
        let path = arbiter.path().to_owned();
        self.description
            .push_str(&format!("{}: {how}", path.display()));
        self.arbiters.push(arbiter);
    }

    /// Bytes of the flat address space: the most that the drives' shares allow.
    #[must_use]
    pub fn bytes(&self) -> Bytes {
        Bytes(self.bytes)
    }

    /// One line a drive: its file, the backend, and why not a faster one.
    #[must_use]
    pub fn describe(&self) -> &str {
        &self.description
    }

    /// What was moved so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let mut sum = Counters::default();
        for arbiter in &self.arbiters {
            let moved = arbiter.counters();
            sum.read += moved.read;
            sum.written += moved.written;
        }
        sum
    }

    /// The checksums of what was written, when the disk verifies its reads.
    #[must_use]
    pub fn checksums(&self) -> Option<&Checksums> {
        self.checksums.as_deref()
    }

    /// Takes over the checksums saved with a kept run. No request may be unfinished. Does nothing
    /// on a disk that does not verify.
    ///
    /// # Errors
    /// [`TierError::Checksums`] when they are another disk's.
    pub fn load_checksums(&self, saved: &Checksums) -> Result<(), TierError> {
        self.checksums
            .as_ref()
            .map_or(Ok(()), |sums| sums.load(saved))
    }

    /// Queues a movement of bytes and returns at once. A request that cannot be (misaligned,
    /// outside, lengths that differ) gives a ticket that has failed already.
    ///
    /// Requests of one kind are served in order of their deadlines, and reads and writes alternate. But of two
    /// requests whose extents overlap, one of them a write, the one submitted first is served first.
    ///
    /// # Safety
    /// From the call until the ticket is done ([`Ticket::wait`] has returned, well or badly) the memory
    /// belongs to the request: nobody writes it, and during a read nobody reads it either. That includes other
    /// requests: two that share a byte of memory and are not done must both be writes to a drive. The disk itself
    /// reads and writes it by the processor: where reads are verified, checksums are recorded or commits are proven,
    /// and on a disk in memory. [`Disk::start`] keeps all this by itself.
    ///
    /// ```compile_fail,E0133
    /// fn f(disk: &lowtide_tiers::Disk, request: lowtide_tiers::Request) {
    ///     let _ = disk.submit(request);
    /// }
    /// ```
    #[must_use = "the ticket is the only way to learn of the end or an error"]
    pub unsafe fn submit(&self, request: Request) -> Ticket {
        if let Err(error) = self.check(&request) {
            return Ticket::refused(error);
        }
        let Request {
            kind,
            extent,
            memory,
            deadline,
        } = request;
        self.hand_out(kind, extent, Memory::Host(memory), deadline)
    }

    /// From now on the drives reach a device's memory so. Only the first call counts.
    ///
    /// # Errors
    /// [`TierError::File`] when the system has no threads for it.
    pub fn reach_by(&self, reach: Arc<dyn Reach>) -> Result<(), TierError> {
        let pools = self.arbiters.iter().map(|arbiter| arbiter.pool(&reach));
        let pools = pools.collect::<Result<Vec<_>, _>>()?;
        if self.reaches.set(()).is_ok() {
            let pairs = self.arbiters.iter().zip(pools);
            pairs.for_each(|(arbiter, pool)| arbiter.give(pool));
        }
        Ok(())
    }

    /// As [`Disk::submit`], from or to the memory of the device that the drives reach, from `address` on. Refused
    /// where they reach none, and where reads are verified: the processor does not see these bytes.
    ///
    /// # Safety
    /// As of [`Disk::submit`], of the bytes of the device's memory.
    #[must_use = "the ticket is the only way to learn of the end or an error"]
    pub unsafe fn submit_device(
        &self,
        kind: Kind,
        extent: Extent,
        address: u64,
        deadline: u64,
    ) -> Ticket {
        let checked = match (self.reaches.get(), &self.checksums) {
            (None, _) => Err(TierError::NoReach),
            (_, Some(sums)) => Err(TierError::Setting {
                key: "verify_reads",
                value: sums.unit().to_string(),
                need: "off where drives reach a device's memory",
            }),
            _ => self.check_places(extent, address),
        };
        match checked {
            Ok(()) => self.hand_out(kind, extent, Memory::Device(address), deadline),
            Err(error) => Ticket::refused(error),
        }
    }

    /// Gives each drive its part of a request that was checked.
    fn hand_out(&self, kind: Kind, extent: Extent, memory: Memory, deadline: u64) -> Ticket {
        let flat = extent.offset..extent.offset + extent.bytes;
        let local = |drive| self.stripe.local(drive, flat.clone());
        let drives = (0..self.arbiters.len()).filter(|&drive| !local(drive).is_empty());
        let drives: Vec<usize> = drives.collect();
        let (ticket, parts) = Ticket::new(drives.len());
        let _one_order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        for (drive, part) in drives.into_iter().zip(parts) {
            let memory = memory.clone();
            let piece = Piece {
                kind,
                extent,
                memory,
                deadline,
                local: local(drive),
                part,
            };
            self.arbiters[drive].submit(piece);
        }
        ticket
    }

    fn check(&self, request: &Request) -> Result<(), TierError> {
        let Request { extent, memory, .. } = request;
        self.check_places(*extent, memory.as_ptr() as u64)?;
        match extent.bytes == memory.bytes() as u64 {
            true => Ok(()),
            false => Err(TierError::Lengths {
                extent: *extent,
                memory: memory.bytes() as u64,
            }),
        }
    }

    fn check_places(&self, extent: Extent, address: u64) -> Result<(), TierError> {
        let need = self.align;
        for (what, value, need) in [
            ("extent offset", extent.offset, need),
            ("extent length", extent.bytes, need),
            ("memory address", address, ALIGN),
        ] {
            if !value.is_multiple_of(need) {
                return Err(TierError::Misaligned { what, value, need });
            }
        }
        match extent.offset.checked_add(extent.bytes) {
            Some(end) if end <= self.bytes => Ok(()),
            _ => Err(TierError::OutOfDisk {
                extent,
                have: self.bytes,
            }),
        }
    }

    /// Makes every write whose ticket is done survive a power loss. Blocks until it does.
    ///
    /// # Errors
    /// [`TierError::File`] when a drive refuses; then nothing is known of the writes before.
    pub fn sync(&self) -> Result<(), TierError> {
        self.files.iter().try_for_each(|file| file.sync())
    }

    /// Makes every write whose ticket is done survive a power loss, then says so in the journal:
    /// that `version` is whole, its checksums, and `about` and `record` of it. When this returns,
    /// [`Disk::prove`] finds exactly that, whatever happens to the process or the machine; until then it
    /// finds the commit before.
    ///
    /// # Errors
    /// [`TierError::Journal`] for what is too long; [`TierError::NotWritten`] when not all of the
    /// version was written; [`TierError::File`] when a drive refuses.
    pub fn commit(&self, version: u32, about: &[u8], record: &[u8]) -> Result<(), TierError> {
        let journal = self.journal.as_ref().expect("set where a disk is opened");
        let versions = self.versions.get();
        let table = versions.map(|v| v.table(version)).transpose()?;
        journal.prepare(version, about, &table.unwrap_or_default())?;
        self.sync()?;
        journal.commit(version, record)?;
        if let Some(versions) = versions {
            // The other one is written next.
            versions.forget(1 - version);
        }
        Ok(())
    }

    /// The state files go, also those that were to be kept: their names when this returns, the one with the journal
    /// first, without which the others are nothing; their bytes when the disk is dropped. Until then it works on.
    pub fn discard(&self) {
        self.files.iter().for_each(|file| file.discard());
    }

    /// The state file of each drive, opened once more for direct I/O and without any flag that a device's library
    /// refuses; none for a disk in memory.
    ///
    /// # Errors
    /// [`TierError::Backend`] where a file system has no direct I/O; [`TierError::File`] where a file cannot be opened.
    pub fn for_device(&self) -> Result<Vec<File>, TierError> {
        self.files.iter().map(|file| file.for_device()).collect()
    }

    /// The state file of each drive; none for a disk in memory.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|file| file.path.as_path())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // All get the request before any is waited for.
        self.arbiters.iter().for_each(Arbiter::stop);
        self.arbiters.clear();
        self.journal = None;
        // The first drive's file has the journal and goes last: without it the others say nothing.
        while self.files.pop().is_some() {}
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Disk({} bytes; {})", self.bytes, self.description)
    }
}
