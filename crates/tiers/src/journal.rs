//! The journal of a durable run, in the first MiB of the first drive's state file: which of two
//! versions of everything is whole, and what its owner wants to know of it.
//!
//! Two records of 4 KiB are written in turn, each with a sequence number and a checksum; the newer
//! whole one counts, so a torn write leaves the one before. What does not change with every commit
//! (`about`) has two places of its own, written in turn too, only when it changes; a record names
//! the one it was made with by its checksum.

use std::io::ErrorKind::{NotADirectory, NotFound, UnexpectedEof};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::TierError;
use crate::state_file::{self, StateFile};

/// Where in the file the two records are.
const RECORDS: [u64; 2] = [4096, 8192];
const RECORD: usize = 4096;
/// Where in the file the two places of `about` are, and how long they are.
const ABOUTS: [u64; 2] = [64 << 10, 544 << 10];
const ABOUT: usize = 480 << 10;

const MAGIC: &[u8; 8] = b"LTJRNL01";
const HEAD: usize = 32;
const ABOUT_HEAD: usize = 8;

/// The longest record, in bytes.
pub const RECORD_MAX: usize = RECORD - HEAD - 4;
/// The longest `about`, in bytes.
pub const ABOUT_MAX: usize = ABOUT - ABOUT_HEAD;

const _: () = assert!(ABOUTS[1] + ABOUT as u64 <= state_file::DATA);
const _: () = assert!(ABOUTS[0] + ABOUT as u64 <= ABOUTS[1] && RECORDS[1] + 4096 <= ABOUTS[0]);

/// The last commit of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The run that made it.
    pub run: u128,
    /// How many commits came before it on this disk.
    pub sequence: u64,
    /// Which version is whole.
    pub version: u32,
    /// What holds for many commits.
    pub about: Vec<u8>,
    /// What holds for this one.
    pub record: Vec<u8>,
}

/// Where a journal's bytes are.
pub(crate) enum Place {
    File(Arc<StateFile>),
    Memory(Arc<Mutex<Vec<u8>>>),
}

impl Place {
    /// The reserved bytes of a disk in memory.
    pub(crate) fn memory() -> Arc<Mutex<Vec<u8>>> {
        Arc::new(Mutex::new(vec![0; state_file::DATA as usize]))
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<(), TierError> {
        match self {
            Self::File(file) => file.write_reserved(at, bytes),
            Self::Memory(memory) => {
                let mut memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
                memory[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
                Ok(())
            }
        }
    }

    fn sync(&self) -> Result<(), TierError> {
        match self {
            Self::File(file) => file.sync(),
            Self::Memory(_) => Ok(()),
        }
    }
}

/// What the next commit has to know.
#[derive(Clone, Copy, Default)]
struct Next {
    sequence: u64,
    /// Place and checksum of the `about` in force.
    about: Option<(usize, u32)>,
}

/// A journal that is being written.
pub(crate) struct Journal {
    place: Place,
    next: Mutex<Next>,
}

impl Journal {
    /// Goes on behind `last`, or begins.
    pub(crate) fn new(place: Place, last: Option<&Committed>, about_at: usize) -> Self {
        let next = last.map_or_else(Next::default, |c| Next {
            sequence: c.sequence + 1,
            about: Some((about_at, crc32c::crc32c(&c.about))),
        });
        Self {
            place,
            next: Mutex::new(next),
        }
    }

    fn next(&self) -> MutexGuard<'_, Next> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes `about` beside the one in force, if it differs. To be synced before the record.
    pub(crate) fn prepare(&self, about: &[u8]) -> Result<(), TierError> {
        let mut next = self.next();
        let sum = crc32c::crc32c(about);
        if next.about.is_some_and(|(_, old)| old == sum) {
            return Ok(());
        }
        check("about", about.len(), ABOUT_MAX)?;
        let at = next.about.map_or(0, |(at, _)| 1 - at);
        let mut bytes = Vec::with_capacity(ABOUT_HEAD + about.len());
        bytes.extend_from_slice(&(about.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&sum.to_le_bytes());
        bytes.extend_from_slice(about);
        self.place.write(ABOUTS[at], &bytes)?;
        next.about = Some((at, sum));
        Ok(())
    }

    /// Writes and syncs a record for the prepared `about`.
    pub(crate) fn commit(&self, version: u32, record: &[u8]) -> Result<(), TierError> {
        let mut next = self.next();
        check("record", record.len(), RECORD_MAX)?;
        let (at, sum) = next.about.expect("prepared before");
        let bytes = encode(next.sequence, version, at as u32, sum, record);
        let place = RECORDS[(next.sequence % 2) as usize];
        self.place.write(place, &bytes)?;
        self.place.sync()?;
        next.sequence += 1;
        Ok(())
    }
}

fn check(what: &'static str, have: usize, max: usize) -> Result<(), TierError> {
    if have <= max {
        return Ok(());
    }
    Err(TierError::Journal { what, have, max })
}

/// magic, sequence, version, place and checksum of `about`, length, record, crc32c.
fn encode(sequence: u64, version: u32, at: u32, about: u32, record: &[u8]) -> [u8; RECORD] {
    let mut bytes = [0; RECORD];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..16].copy_from_slice(&sequence.to_le_bytes());
    let words = [version, at, about, record.len() as u32];
    for (i, word) in words.into_iter().enumerate() {
        bytes[16 + 4 * i..20 + 4 * i].copy_from_slice(&word.to_le_bytes());
    }
    bytes[HEAD..HEAD + record.len()].copy_from_slice(record);
    let sum = crc32c::crc32c(&bytes[..RECORD - 4]);
    bytes[RECORD - 4..].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// The newest whole record among the reserved bytes, with the place of its `about`.
pub(crate) fn newest(run: u128, reserved: &[u8]) -> Option<(Committed, usize)> {
    let records = RECORDS.iter().filter_map(|&at| decode(run, reserved, at));
    records.max_by_key(|(c, _)| c.sequence)
}

fn decode(run: u128, reserved: &[u8], at: u64) -> Option<(Committed, usize)> {
    let bytes = reserved.get(at as usize..at as usize + RECORD)?;
    let u32_at = |b: &[u8], at: usize| u32::from_le_bytes(b[at..at + 4].try_into().expect("4"));
    if &bytes[..8] != MAGIC || u32_at(bytes, RECORD - 4) != crc32c::crc32c(&bytes[..RECORD - 4]) {
        return None;
    }
    let len = u32_at(bytes, 28) as usize;
    let place = u32_at(bytes, 20) as usize;
    let about = reserved.get(*ABOUTS.get(place)? as usize..)?;
    let about_len = u32_at(about, 0) as usize;
    let about = about.get(ABOUT_HEAD..ABOUT_HEAD + about_len)?;
    if crc32c::crc32c(about) != u32_at(bytes, 24) {
        return None;
    }
    let committed = Committed {
        run,
        sequence: u64::from_le_bytes(bytes[8..16].try_into().expect("8")),
        version: u32_at(bytes, 16),
        about: about.to_vec(),
        record: bytes.get(HEAD..HEAD + len)?.to_vec(),
    };
    Some((committed, place))
}

/// The last commit of the durable run whose first state file is in `dir`; `None` where there is no
/// such file, it is not kept, or nothing was committed. Takes no lock and changes nothing.
///
/// # Errors
/// [`TierError::File`] when there is a file that cannot be read.
pub fn committed(dir: &Path) -> Result<Option<Committed>, TierError> {
    let Some(reserved) = reserved_in(dir)? else {
        return Ok(None);
    };
    let newest = state_file::kept_run(&reserved).and_then(|run| newest(run, &reserved));
    Ok(newest.map(|found| found.0))
}

/// The run that asked to keep the state file in `dir`, whether it committed anything or not; `None`
/// where there is no such file. Takes no lock.
///
/// # Errors
/// [`TierError::File`] when there is a file that cannot be read.
pub fn kept_by(dir: &Path) -> Result<Option<u128>, TierError> {
    Ok(reserved_in(dir)?.and_then(|bytes| state_file::kept_run(&bytes)))
}

/// The name of the state file in a directory.
#[must_use]
pub fn state_path(dir: &Path) -> PathBuf {
    dir.join(state_file::NAME)
}

fn reserved_in(dir: &Path) -> Result<Option<Vec<u8>>, TierError> {
    let path = state_path(dir);
    let file = match std::fs::File::open(&path) {
        Ok(file) => file,
        Err(e) if matches!(e.kind(), NotFound | NotADirectory) => return Ok(None),
        Err(e) => return Err(TierError::file("opening", &path, &e)),
    };
    let mut reserved = vec![0; state_file::DATA as usize];
    match file.read_exact_at(&mut reserved, 0) {
        Ok(()) => Ok(Some(reserved)),
        Err(e) if e.kind() == UnexpectedEof => Ok(None),
        Err(e) => Err(TierError::file("reading", &path, &e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(commits: u64) -> (Arc<Mutex<Vec<u8>>>, Journal) {
        let memory = Place::memory();
        let journal = Journal::new(Place::Memory(Arc::clone(&memory)), None, 0);
        for i in 0..commits {
            commit(&journal, i);
        }
        (memory, journal)
    }

    /// `about` changes every third time.
    fn commit(journal: &Journal, i: u64) {
        journal
            .prepare(format!("about {}", i / 3).as_bytes())
            .unwrap();
        journal
            .commit((i % 2) as u32, format!("record {i}").as_bytes())
            .unwrap();
    }

    fn number(memory: &Mutex<Vec<u8>>) -> Option<u64> {
        let (c, _) = newest(7, &memory.lock().unwrap())?;
        assert_eq!(c.record, format!("record {}", c.sequence).as_bytes());
        assert_eq!(c.about, format!("about {}", c.sequence / 3).as_bytes());
        assert_eq!((c.run, u64::from(c.version)), (7, c.sequence % 2));
        Some(c.sequence)
    }

    #[test]
    fn the_newest_whole_record_counts() {
        assert_eq!(number(&made(0).0), None);
        for n in 1..10 {
            let (memory, _) = made(n);
            assert_eq!(number(&memory), Some(n - 1));
            // The last record's write is torn: any prefix of it over the one before the last.
            let whole = memory.lock().unwrap().clone();
            let old = if n > 2 {
                made(n - 1).0.lock().unwrap().clone()
            } else {
                vec![0; whole.len()]
            };
            let at = RECORDS[((n - 1) % 2) as usize] as usize;
            for torn in [0, 8, 16, 40, 512, 2048, 4088, 4095] {
                let mut bytes = whole.clone();
                bytes[at + torn..at + RECORD].copy_from_slice(&old[at + torn..at + RECORD]);
                let changed = bytes != whole;
                *memory.lock().unwrap() = bytes;
                let want = if changed {
                    (n > 1).then(|| n - 2)
                } else {
                    Some(n - 1)
                };
                assert_eq!(number(&memory), want, "{n} commits, torn at {torn}");
            }
        }
    }

    #[test]
    fn damage_of_any_byte_of_a_record_or_its_about_falls_back() {
        let (memory, _) = made(7);
        let whole = memory.lock().unwrap().clone();
        // Record 6 is the first with about 2, at the place of about 0.
        let about = ABOUTS[0] as usize;
        let record = RECORDS[0] as usize;
        for at in (record..record + RECORD)
            .step_by(7)
            .chain(about..about + 15)
        {
            if (about + 4..about + 8).contains(&at) {
                continue; // the copy of the checksum beside it, for people
            }
            let mut bytes = whole.clone();
            bytes[at] ^= 4;
            *memory.lock().unwrap() = bytes;
            assert_eq!(number(&memory), Some(5), "byte {at}");
        }
    }

    #[test]
    fn a_journal_goes_on_behind_its_last_record() {
        let (memory, _) = made(5);
        let (last, at) = newest(7, &memory.lock().unwrap()).unwrap();
        let again = Journal::new(Place::Memory(Arc::clone(&memory)), Some(&last), at);
        for i in 5..9 {
            commit(&again, i);
            assert_eq!(number(&memory), Some(i));
        }
    }

    #[test]
    fn what_is_too_long_is_refused() {
        let (_, journal) = made(1);
        let long = vec![0; ABOUT_MAX + 1];
        assert!(matches!(
            journal.prepare(&long),
            Err(TierError::Journal { what: "about", .. })
        ));
        journal.prepare(&long[1..]).unwrap();
        let record = &long[..=RECORD_MAX];
        assert!(journal.commit(0, record).is_err());
        journal.commit(0, &record[1..]).unwrap();
    }
}
