//! The disk from outside: every backend against a model, faults, and what opening refuses.

mod committed;
mod faults;
mod files;
mod model;

use lowtide_tiers::{Arena, Disk, Extent, Fill, Kind, RawRange, Request, TierError};
use lowtide_units::Bytes;

/// Memory for one request, and the bytes in it.
struct Memory {
    arena: Arena,
}

impl Memory {
    fn new(bytes: u64) -> Self {
        Self {
            arena: Arena::new(Bytes(bytes), Fill::Poison).unwrap(),
        }
    }

    fn range(&self, offset: u64, bytes: u64) -> RawRange {
        self.arena.range(offset, bytes).unwrap()
    }

    fn set(&self, offset: u64, bytes: &[u8]) {
        let range = self.range(offset, bytes.len() as u64);
        // SAFETY: tests change a range only while no request on it is unfinished.
        unsafe { range.as_mut_slice() }.copy_from_slice(bytes);
    }

    fn get(&self, offset: u64, bytes: u64) -> Vec<u8> {
        let range = self.range(offset, bytes);
        // SAFETY: tests look at a range only while no request on it is unfinished.
        unsafe { range.as_slice() }.to_vec()
    }
}

fn extent(offset: u64, bytes: u64) -> Extent {
    Extent { offset, bytes }
}

/// Writes and waits.
fn write(disk: &Disk, at: u64, bytes: &[u8]) -> Result<(), TierError> {
    let memory = Memory::new(bytes.len() as u64);
    memory.set(0, bytes);
    let all = memory.range(0, bytes.len() as u64);
    let extent = extent(at, bytes.len() as u64);
    // SAFETY: the memory is not used before the ticket is done.
    unsafe {
        disk.submit(Request {
            kind: Kind::Write,
            extent,
            memory: all,
            deadline: 0,
        })
    }
    .wait()
}

/// Reads and waits.
fn read(disk: &Disk, at: u64, bytes: u64) -> Result<Vec<u8>, TierError> {
    let memory = Memory::new(bytes);
    let (extent, all) = (extent(at, bytes), memory.range(0, bytes));
    // SAFETY: the memory is not used before the ticket is done.
    unsafe {
        disk.submit(Request {
            kind: Kind::Read,
            extent,
            memory: all,
            deadline: 0,
        })
    }
    .wait()?;
    Ok(memory.get(0, bytes))
}

/// Bytes that differ from place to place and from seed to seed.
fn noise(seed: u64, bytes: u64) -> Vec<u8> {
    let mut rng = Rng(seed);
    (0..bytes / 8)
        .flat_map(|_| rng.next().to_le_bytes())
        .collect()
}

/// SplitMix64.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}
