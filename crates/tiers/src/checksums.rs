//! One crc32c per unit of the disk, kept in memory: what was last written where.
//!
//! It catches what a drive reports as success: a torn write, a write that went elsewhere, rot.
//! Cost: 4 bytes of memory a unit and one pass over the bytes (10 to 20 GB/s a core), on the
//! thread of the drive's arbiter.

use std::sync::atomic::{AtomicU32, Ordering};

use lowtide_units::Bytes;

use crate::TierError;

const MAGIC: &[u8; 8] = b"LTCRC001";
const HEAD: usize = 24;
/// No unit has this value: nothing was written there yet, or nothing is known.
const UNKNOWN: u32 = 0;

/// The checksum table of one disk. A unit never written is not checked.
#[derive(Debug)]
pub struct Checksums {
    unit: u64,
    /// Order between threads: conflicting extents never overlap in time on a drive, so a unit's
    /// value has one user at a time; relaxed loads and stores are enough.
    table: Vec<AtomicU32>,
}

impl Checksums {
    pub(crate) fn new(total: u64, unit: u64) -> Self {
        let mut table = Vec::new();
        table.resize_with(total.div_ceil(unit) as usize, || AtomicU32::new(UNKNOWN));
        Self { unit, table }
    }

    /// Bytes a checksum stands for.
    #[must_use]
    pub fn unit(&self) -> Bytes {
        Bytes(self.unit)
    }

    /// Takes note of what is about to be written at flat `offset`, a multiple of the unit.
    pub(crate) fn record(&self, offset: u64, bytes: &[u8]) {
        for (entry, unit) in self.entries(offset).zip(bytes.chunks(self.unit as usize)) {
            entry.store(crc(unit), Ordering::Relaxed);
        }
    }

    /// The first unit, as flat offset, whose bytes are not those last written; `None` if none.
    pub(crate) fn differs(&self, offset: u64, bytes: &[u8]) -> Option<u64> {
        let mut at = offset;
        for (entry, unit) in self.entries(offset).zip(bytes.chunks(self.unit as usize)) {
            let want = entry.load(Ordering::Relaxed);
            if want != UNKNOWN && want != crc(unit) {
                return Some(at);
            }
            at += self.unit;
        }
        None
    }

    fn entries(&self, offset: u64) -> impl Iterator<Item = &AtomicU32> {
        debug_assert!(offset.is_multiple_of(self.unit));
        self.table[(offset / self.unit) as usize..].iter()
    }

    /// The table as bytes to keep beside the state, with a checksum of its own. No request may be
    /// unfinished.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD + 4 * self.table.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&self.unit.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]); // the checksum, known at the end
        bytes.extend_from_slice(&(self.table.len() as u32).to_le_bytes());
        for entry in &self.table {
            bytes.extend_from_slice(&entry.load(Ordering::Relaxed).to_le_bytes());
        }
        let sum = crc32c::crc32c(&bytes).to_le_bytes();
        bytes[16..20].copy_from_slice(&sum);
        bytes
    }

    /// Reads what [`Checksums::to_bytes`] wrote.
    ///
    /// # Errors
    /// [`TierError::Checksums`] when the bytes are damaged or no table.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, TierError> {
        let fail = |what: &str| TierError::Checksums {
            what: what.to_owned(),
        };
        if bytes.len() < HEAD || &bytes[..8] != MAGIC {
            return Err(fail("not a checksum table"));
        }
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4"));
        let unit = u64::from_le_bytes(bytes[8..16].try_into().expect("8"));
        let mut blank = bytes.to_vec();
        blank[16..20].fill(0);
        let n = u32_at(20) as usize;
        if bytes.len() != HEAD + 4 * n || u32_at(16) != crc32c::crc32c(&blank) || unit == 0 {
            return Err(fail("damaged"));
        }
        let table = (0..n)
            .map(|i| AtomicU32::new(u32_at(HEAD + 4 * i)))
            .collect();
        Ok(Self { unit, table })
    }

    /// Takes over the values of a saved table of the same disk. No request may be unfinished.
    pub(crate) fn load(&self, saved: &Self) -> Result<(), TierError> {
        let shape = |c: &Self| (c.table.len(), c.unit);
        let ((n, unit), (saved_n, saved_unit)) = (shape(self), shape(saved));
        if (n, unit) != (saved_n, saved_unit) {
            let what = format!("{saved_n} units of {saved_unit} bytes, the disk has {n} of {unit}");
            return Err(TierError::Checksums { what });
        }
        for (entry, saved) in self.table.iter().zip(&saved.table) {
            entry.store(saved.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        Ok(())
    }
}

fn crc(unit: &[u8]) -> u32 {
    // One value means "unknown"; giving its crc to a neighbour costs one chance in 2^32.
    crc32c::crc32c(unit).max(UNKNOWN + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_bit_is_found_where_it_is() {
        let sums = Checksums::new(64, 8);
        let mut bytes: Vec<u8> = (0..32).collect();
        assert_eq!(
            sums.differs(16, &bytes),
            None,
            "nothing was written, nothing is known"
        );
        sums.record(16, &bytes);
        assert_eq!(sums.differs(16, &bytes), None);
        bytes[17] ^= 1;
        assert_eq!(sums.differs(16, &bytes), Some(32));
        assert_eq!(sums.differs(24, &bytes[8..16]), None);
    }

    #[test]
    fn tables_survive_and_damage_shows() {
        let sums = Checksums::new(40, 8);
        sums.record(8, &[7; 24]);
        let bytes = sums.to_bytes();
        let back = Checksums::from_bytes(&bytes).unwrap();
        assert_eq!(back.differs(8, &[7; 24]), None);
        assert_eq!(back.differs(8, &[6; 24]), Some(8));
        let fresh = Checksums::new(40, 8);
        fresh.load(&back).unwrap();
        assert_eq!(fresh.differs(16, &[6; 8]), Some(16));
        assert!(Checksums::new(48, 8).load(&back).is_err());
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 0x10;
            assert!(Checksums::from_bytes(&bad).is_err(), "byte {at}");
        }
        assert!(Checksums::from_bytes(&bytes[..bytes.len() - 1]).is_err());
        assert!(Checksums::from_bytes(&[]).is_err());
    }
}
