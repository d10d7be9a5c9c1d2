//! The same disk with its bytes in memory and faults from a seed, for tests.
//!
//! What each fault must end in, on any disk of this crate:
//!
//! | fault | without `verify_reads` | with it |
//! |---|---|---|
//! | latency, interruption, short transfer | right bytes | right bytes |
//! | I/O error, no space | [`TierError::Io`] of the request it hit | the same |
//! | too small at the start | [`TierError::Space`] from [`RamDisk::open`] | the same |
//! | torn or misdirected write | nothing sees it | [`TierError::Corrupt`] when read |
//!
//! Chance depends on the seed, the place and how often that place was asked for, not on which
//! thread comes first, so a failure repeats.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lowtide_units::{Bytes, BytesPerSecond};

use crate::arbiter::Arbiter;
use crate::config::Layout;
use crate::disk::Disk;
use crate::journal::Place;
use crate::lane::Io;
use crate::record;
use crate::request::Kind;
use crate::stripe::Stripe;
use crate::threads::{Medium, Threads};
use crate::{ALIGN, Committed, Extent, TierError};

/// How a disk in memory is laid out, how fast it is and how it fails.
#[derive(Clone, Debug)]
pub struct RamConfig {
    /// Size of its address space.
    pub bytes: Bytes,
    /// The share of the traffic of each drive, relative to the others'; their number is that of the drives.
    pub weights: Vec<f64>,
    /// As in [`crate::DiskConfig`].
    pub block: Bytes,
    /// As in [`crate::DiskConfig`].
    pub stripe: Bytes,
    /// As in [`crate::DiskConfig`].
    pub depth: usize,
    /// As in [`crate::DiskConfig`].
    pub verify_reads: Option<Bytes>,
    /// Faults that its drives have; none by default.
    pub faults: Faults,
    /// How fast each drive is; `None`: as fast as memory.
    pub pace: Option<Pace>,
}

/// A drive that does one read and one write at a time, each at its own rate and without slowing the other. So only
/// how busy a schedule keeps the drive shows in its time.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Rate of reads, each drive's own.
    pub read: BytesPerSecond,
    /// Rate of writes, each drive's own.
    pub write: BytesPerSecond,
}

/// What goes wrong on a disk in memory. The default is nothing.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Seed of which operations fail and how: the same one gives the same faults.
    pub seed: u64,
    /// Every operation takes a random time up to this.
    pub latency_max: Duration,
    /// Faults and how likely each is, from 0 to 1, for an operation it applies to.
    pub random: Vec<(Fault, f64)>,
    /// Faults of given extents, beside the random ones.
    pub chosen: Vec<ChosenFault>,
    /// Bytes free at the start; less than the disk's bytes fails the opening.
    pub free: Option<Bytes>,
    /// This many writes to a drive work, all later ones find no space.
    pub writes_until_full: Option<u64>,
}

/// One kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// `EINTR` or `EAGAIN`, nothing moved.
    Interrupted,
    /// Only a prefix moves, of any length from one byte, and the count says so.
    Short,
    /// `EIO`.
    IoError,
    /// Writes only: `ENOSPC`.
    NoSpace,
    /// Writes only: a prefix reaches the medium, the count says all.
    Torn,
    /// Writes only: all of it reaches another place of the same drive.
    Misdirected,
}

/// A fault of every operation that touches an extent.
#[derive(Clone, Copy, Debug)]
pub struct ChosenFault {
    /// Bytes of the disk: an operation that touches any of them may fail.
    pub extent: Extent,
    /// Operations of this kind only; both when `None`.
    pub kind: Option<Kind>,
    /// What happens to such an operation.
    pub fault: Fault,
    /// How many times; `u32::MAX` is for ever.
    pub times: u32,
}

/// The back door to a disk in memory: what is on the medium, and what went wrong so far.
#[derive(Clone)]
pub struct RamDisk {
    drives: Vec<Arc<RamDrive>>,
    stripe: Arc<Stripe>,
    /// What a state file has before the drive's bytes: the journal.
    reserved: Arc<Mutex<Vec<u8>>>,
}

impl RamConfig {
    /// One drive of `bytes` bytes without faults; blocks and stripes of 64 KiB, depth 8.
    #[must_use]
    pub fn new(bytes: Bytes) -> Self {
        let (block, faults) = (Bytes::KIB * 64, Faults::default());
        Self {
            bytes,
            weights: vec![1.0],
            block,
            stripe: block,
            depth: 8,
            verify_reads: None,
            faults,
            pace: None,
        }
    }
}

impl RamDisk {
    /// Makes the disk, zero-filled, and its back door.
    ///
    /// # Errors
    /// [`TierError::Setting`] as for files; [`TierError::Space`] when [`Faults::free`] says so.
    pub fn open(config: &RamConfig) -> Result<(Disk, Self), TierError> {
        let RamConfig {
            block,
            depth,
            verify_reads,
            ref faults,
            ..
        } = *config;
        let layout = Layout {
            weights: &config.weights,
            block,
            stripe: config.stripe,
            depth,
            verify_reads,
        };
        let stripe = Arc::new(layout.checked()?);
        let need = config.bytes.align_up(ALIGN);
        if let Some(free) = faults.free.filter(|&free| free < need) {
            return Err(TierError::Space {
                path: PathBuf::from("ram"),
                need,
                free,
            });
        }
        let mut disk = Disk::without_arbiters(need.0, Arc::clone(&stripe), verify_reads);
        let mut drives = Vec::new();
        for drive in 0..config.weights.len() {
            let medium = Arc::new(RamDrive::new(drive, Arc::clone(&stripe), need.0, config));
            drives.push(Arc::clone(&medium));
            let setup = disk.setup(PathBuf::from(format!("ram:{drive}")), 0, block, depth);
            let make = move || {
                Ok(Threads::on(
                    medium,
                    depth,
                    format!("memory, {depth} threads"),
                ))
            };
            let (arbiter, how) = Arbiter::spawn(setup, make)?;
            disk.add(arbiter, &how);
        }
        let reserved = Place::memory();
        disk.journal_in(Place::Memory(Arc::clone(&reserved)));
        let door = Self {
            drives,
            stripe,
            reserved,
        };
        Ok((disk, door))
    }

    /// How often a fault has happened.
    #[must_use]
    pub fn count(&self, fault: Fault) -> u64 {
        let count = |drive: &Arc<RamDrive>| drive.lock().counts.get(&fault).copied().unwrap_or(0);
        self.drives.iter().map(count).sum()
    }

    /// The bytes of an extent as they are on the medium now.
    #[must_use]
    pub fn peek(&self, extent: Extent) -> Vec<u8> {
        let mut bytes = vec![0; extent.bytes as usize];
        self.each_byte(extent, |i, byte| bytes[i] = *byte);
        bytes
    }

    /// The last commit, as [`crate::committed`] tells it of files.
    #[must_use]
    pub fn committed(&self) -> Option<Committed> {
        let reserved = self.reserved.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = record::read(0, &reserved).expect("a record that can be read");
        kept.commits.into_iter().next()
    }

    /// Flips a bit of every byte of an extent on the medium.
    pub fn rot(&self, extent: Extent) {
        self.each_byte(extent, |_, byte| *byte ^= 1);
    }

    fn each_byte(&self, extent: Extent, mut f: impl FnMut(usize, &mut u8)) {
        for (drive, medium) in self.drives.iter().enumerate() {
            let mut state = medium.lock();
            for local in self
                .stripe
                .local(drive, extent.offset..extent.offset + extent.bytes)
            {
                let (flat, _) = self.stripe.flat(drive, local);
                f(
                    (flat - extent.offset) as usize,
                    &mut state.bytes[local as usize],
                );
            }
        }
    }
}

impl fmt::Debug for RamDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RamDisk({} drives)", self.drives.len())
    }
}

struct RamDrive {
    drive: usize,
    stripe: Arc<Stripe>,
    faults: Faults,
    pace: Option<Pace>,
    state: Mutex<RamState>,
}

struct RamState {
    bytes: Vec<u8>,
    /// How often each place was asked for.
    asked: HashMap<(Kind, u64), u64>,
    n_writes: u64,
    /// How often each chosen fault may still happen.
    left: Vec<u32>,
    counts: HashMap<Fault, u64>,
    /// By kind, when what was asked so far will have moved.
    busy_until: [Instant; 2],
}

impl RamDrive {
    fn new(drive: usize, stripe: Arc<Stripe>, total: u64, config: &RamConfig) -> Self {
        let faults = &config.faults;
        let state = RamState {
            bytes: vec![0; stripe.local_len(drive, total) as usize],
            asked: HashMap::new(),
            n_writes: 0,
            left: faults.chosen.iter().map(|chosen| chosen.times).collect(),
            counts: HashMap::new(),
            busy_until: [Instant::now(); 2],
        };
        Self {
            drive,
            stripe,
            faults: faults.clone(),
            pace: config.pace,
            state: Mutex::new(state),
        }
    }

    fn lock(&self) -> MutexGuard<'_, RamState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The numbers of chance for one operation.
    fn chance(&self, state: &mut RamState, io: &Io) -> Chance {
        let asked = state.asked.entry((io.kind, io.at)).or_default();
        *asked += 1;
        let mut seed = Chance(self.faults.seed);
        for part in [self.drive as u64, io.kind as u64, io.at, *asked] {
            seed = Chance(seed.next() ^ part);
        }
        seed
    }

    /// The fault of this operation, if any, taken note of.
    fn fault(&self, state: &mut RamState, io: &Io, chance: &mut Chance) -> Option<Fault> {
        let writing = io.kind == Kind::Write;
        let applies =
            |fault| writing || !matches!(fault, Fault::NoSpace | Fault::Torn | Fault::Misdirected);
        state.n_writes += u64::from(writing);
        let full = self
            .faults
            .writes_until_full
            .is_some_and(|n| state.n_writes > n);
        let mut fault = (writing && full).then_some(Fault::NoSpace);
        for (i, chosen) in self.faults.chosen.iter().enumerate() {
            let flat = chosen.extent.offset..chosen.extent.offset + chosen.extent.bytes;
            let local = self.stripe.local(self.drive, flat);
            let hit = io.at < local.end && local.start < io.at + io.bytes as u64;
            let kind = chosen.kind.is_none_or(|kind| kind == io.kind);
            if fault.is_none() && hit && kind && applies(chosen.fault) && state.left[i] > 0 {
                state.left[i] -= u32::from(chosen.times != u32::MAX);
                fault = Some(chosen.fault);
            }
        }
        for &(random, rate) in &self.faults.random {
            if chance.unit() < rate && applies(random) {
                fault = fault.or(Some(random));
            }
        }
        let room = state.bytes.len() > io.bytes;
        let fault = fault.filter(|&f| f != Fault::Misdirected || room)?;
        *state.counts.entry(fault).or_default() += 1;
        Some(fault)
    }
}

impl Medium for RamDrive {
    unsafe fn run(&self, io: &Io) -> io::Result<usize> {
        // As strict as direct I/O, so that no caller gets used to less.
        if [io.at, io.bytes as u64, io.memory as u64]
            .iter()
            .any(|n| !n.is_multiple_of(ALIGN))
        {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let mut state = self.lock();
        let mut chance = self.chance(&mut state, io);
        let latency = self.faults.latency_max.mul_f64(chance.unit());
        if !latency.is_zero() {
            drop(state);
            std::thread::sleep(latency);
            state = self.lock();
        }
        if let Some(pace) = self.pace {
            let rate = match io.kind {
                Kind::Read => pace.read,
                Kind::Write => pace.write,
            };
            let busy = &mut state.busy_until[io.kind as usize];
            let time = Duration::from_secs_f64(io.bytes as f64 / rate.0);
            let end = Instant::now().max(*busy) + time;
            *busy = end;
            drop(state);
            std::thread::sleep(end.saturating_duration_since(Instant::now()));
            state = self.lock();
        }
        let fault = self.fault(&mut state, io, &mut chance);
        let (mut at, mut moved, mut reported) = (io.at as usize, io.bytes, io.bytes);
        match fault {
            None => {}
            Some(Fault::Interrupted) => {
                let os = if chance.unit() < 0.5 {
                    libc::EINTR
                } else {
                    libc::EAGAIN
                };
                return Err(io::Error::from_raw_os_error(os));
            }
            Some(Fault::IoError) => return Err(io::Error::from_raw_os_error(libc::EIO)),
            Some(Fault::NoSpace) => return Err(io::Error::from_raw_os_error(libc::ENOSPC)),
            Some(Fault::Short) => {
                moved = 1 + chance.below(io.bytes - 1);
                reported = moved;
            }
            Some(Fault::Torn) => moved = chance.below(io.bytes / 512) * 512,
            Some(Fault::Misdirected) => {
                let places = (state.bytes.len() - io.bytes) / ALIGN as usize + 1;
                let here = at / ALIGN as usize;
                at = (here + 1 + chance.below(places - 1)) % places * ALIGN as usize;
            }
        }
        let medium = &mut state.bytes[at..at + moved];
        // SAFETY: the request's memory is valid for `io.bytes >= moved` (caller) and is no part
        // of the medium.
        unsafe {
            match io.kind {
                Kind::Read => io.memory.copy_from_nonoverlapping(medium.as_ptr(), moved),
                Kind::Write => io.memory.copy_to_nonoverlapping(medium.as_mut_ptr(), moved),
            }
        }
        Ok(reported)
    }
}

/// SplitMix64.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to below 1.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// From 0 to below `n`; 0 when `n` is 0.
    fn below(&mut self, n: usize) -> usize {
        if n == 0 {
            0
        } else {
            (self.next() % n as u64) as usize
        }
    }
}
