//! The journal of a durable run, in the first 2 MiB of the first drive's state file: which of two
//! versions of everything is whole, and what its owner wants to know of it.
//!
//! Two records of 4 KiB are written alternately, each with a sequence number and a checksum. A record names, by their
//! checksums, the `about` it was made with (what does not change with every commit; two places, written in turn when
//! it changes) and the table of checksums of its version (two places, one a version). So a record can be held against
//! the bytes of its version ([`crate::Disk::prove`]), and only a version that has them is resumed: the newest, or the
//! one before while nobody has written into it.
//!
//! A new file has a first record that says that nothing was committed. A file without a record that can
//! be read was therefore damaged.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::TierError;
use crate::header::DATA;
use crate::record::{
    ABOUT_HEAD, ABOUT_MAX, ABOUTS, Committed, Kept, RECORD, RECORD_MAX, RECORDS, TABLE_MAX, TABLES,
    born, encode, read,
};
use crate::state_file::StateFile;

/// Where a journal's bytes are.
#[derive(Clone)]
pub(crate) enum Place {
    File(Arc<StateFile>),
    Memory(Arc<Mutex<Vec<u8>>>),
}

impl Place {
    /// The reserved bytes of a disk in memory.
    pub(crate) fn memory() -> Arc<Mutex<Vec<u8>>> {
        let mut bytes = vec![0; DATA as usize];
        let (at, born) = born();
        bytes[at as usize..at as usize + RECORD].copy_from_slice(&born);
        Arc::new(Mutex::new(bytes))
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

    fn read(&self) -> Result<Vec<u8>, TierError> {
        match self {
            Self::File(file) => file.read_reserved(),
            Self::Memory(memory) => {
                let memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
                Ok(memory.clone())
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
    /// Checksum of the table that was written for the next record.
    table: u32,
}

impl Next {
    fn behind(last: Option<&Committed>) -> Self {
        Self {
            // The first record of a new file has number 0.
            sequence: last.map_or(1, |c| c.sequence + 1),
            about: last.map(|c| (c.about_at, crc32c::crc32c(&c.about))),
            table: 0,
        }
    }
}

/// A journal that is being written.
pub(crate) struct Journal {
    place: Place,
    run: u128,
    next: Mutex<Next>,
}

impl Journal {
    /// Goes on behind `last`, or begins.
    pub(crate) fn new(place: Place, run: u128, last: Option<&Committed>) -> Self {
        Self {
            place,
            run,
            next: Mutex::new(Next::behind(last)),
        }
    }

    fn next(&self) -> MutexGuard<'_, Next> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it says, and its bytes.
    pub(crate) fn read(&self) -> Result<(Result<Kept, String>, Vec<u8>), TierError> {
        let reserved = self.place.read()?;
        Ok((read(self.run, &reserved), reserved))
    }

    /// Goes on behind this commit: later ones count no more.
    pub(crate) fn go_on_behind(&self, last: &Committed) {
        *self.next() = Next::behind(Some(last));
    }

    /// As [`Journal::go_on_behind`], where the commit after this one is to be forgotten also if nothing is committed
    /// any more: its record is overwritten and synced.
    pub(crate) fn go_back_to(&self, last: &Committed) -> Result<(), TierError> {
        let (kept, _) = self.read()?;
        let later = |kept: Kept| kept.commits.iter().any(|c| c.sequence > last.sequence);
        if kept.is_ok_and(later) {
            let place = RECORDS[((last.sequence + 1) % 2) as usize];
            self.place.write(place, &[0; RECORD])?;
            self.place.sync()?;
        }
        self.go_on_behind(last);
        Ok(())
    }

    /// Writes `about` beside the one in force, if it differs, and the table of checksums of `version`.
    /// To be synced before the record.
    pub(crate) fn prepare(
        &self,
        version: u32,
        about: &[u8],
        table: &[u8],
    ) -> Result<(), TierError> {
        let mut next = self.next();
        check("table of checksums", table.len(), TABLE_MAX)?;
        self.place.write(TABLES[version as usize % 2], table)?;
        next.table = crc32c::crc32c(table);
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

    /// Writes and syncs a record for what was prepared.
    pub(crate) fn commit(&self, version: u32, record: &[u8]) -> Result<(), TierError> {
        let mut next = self.next();
        check("record", record.len(), RECORD_MAX)?;
        let (at, sum) = next.about.expect("prepared before");
        let words = [version, at as u32, sum, record.len() as u32, next.table];
        let bytes = encode(next.sequence, words, record);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::table;

    fn made(commits: u64) -> (Arc<Mutex<Vec<u8>>>, Journal) {
        let memory = Place::memory();
        let journal = Journal::new(Place::Memory(Arc::clone(&memory)), 7, None);
        for i in 1..=commits {
            commit(&journal, i);
        }
        (memory, journal)
    }

    fn about(i: u64) -> String {
        format!("about {}", i / 3)
    }

    /// `about` changes every third time.
    fn commit(journal: &Journal, i: u64) {
        let (version, table) = ((i % 2) as u32, format!("table {i}"));
        journal
            .prepare(version, about(i).as_bytes(), table.as_bytes())
            .unwrap();
        let record = format!("record {i}");
        journal.commit(version, record.as_bytes()).unwrap();
    }

    /// The numbers of the commits that can be read, each of which is what it was.
    fn numbers(bytes: &[u8]) -> Result<Vec<u64>, String> {
        let kept = read(7, bytes)?;
        assert_eq!(kept.run, 7);
        let numbers = kept.commits.iter().map(|c| {
            assert_eq!(c.record, format!("record {}", c.sequence).as_bytes());
            assert_eq!(c.about, about(c.sequence).as_bytes());
            assert_eq!(u64::from(c.version), c.sequence % 2);
            c.sequence
        });
        Ok(numbers.collect())
    }

    fn bytes(memory: &Mutex<Vec<u8>>) -> Vec<u8> {
        memory.lock().unwrap().clone()
    }

    #[test]
    fn the_newest_record_and_the_one_before_are_read() {
        assert_eq!(numbers(&bytes(&made(0).0)), Ok(vec![]));
        assert_eq!(numbers(&bytes(&made(1).0)), Ok(vec![1]));
        for n in 2..10 {
            let whole = bytes(&made(n).0);
            // The one before may have had another `about`, whose place is still there.
            assert_eq!(numbers(&whole), Ok(vec![n, n - 1]), "{n}");
            let kept = read(7, &whole).unwrap();
            assert_eq!(kept.damaged, None);
            for c in &kept.commits {
                let want = format!("table {}", c.sequence);
                assert_eq!(table(&whole, c, want.len()), Some(want.as_bytes()));
                assert_eq!(table(&whole, c, want.len() - 1), None);
                assert_eq!(table(&whole, c, TABLE_MAX + 1), None);
            }
        }
    }

    #[test]
    fn a_torn_record_leaves_the_one_before() {
        for n in 1..10 {
            let (whole, old) = (bytes(&made(n).0), bytes(&made(n - 1).0));
            let at = RECORDS[(n % 2) as usize] as usize;
            for torn in [0, 8, 16, 40, 512, 2048, 4088, 4095] {
                let mut bytes = whole.clone();
                bytes[at + torn..at + RECORD].copy_from_slice(&old[at + torn..at + RECORD]);
                let mut want: Vec<u64> = (1..=n).rev().take(2).collect();
                if bytes != whole {
                    want.remove(0);
                    // What was there before stands there whole when nothing of the new was written; the
                    // first 8 bytes are the same in both.
                    if torn <= 8 && n > 2 {
                        want.push(n - 2);
                    }
                }
                assert_eq!(numbers(&bytes), Ok(want), "{n} commits, torn at {torn}");
            }
        }
    }

    #[test]
    fn a_changed_byte_is_never_read_as_another_commit_or_as_nothing() {
        for n in [0, 1, 2, 7] {
            let whole = bytes(&made(n).0);
            let newest: Vec<u64> = (1..=n).rev().take(2).collect();
            let abouts = ABOUTS.iter().flat_map(|&a| a as usize..a as usize + 20);
            let records = RECORDS
                .iter()
                .flat_map(|&a| a as usize..a as usize + RECORD);
            for at in records.chain(abouts) {
                let mut bad = whole.clone();
                bad[at] ^= 4;
                // The commits that are left, or an error; nothing was committed only where that is so
                // or where the first record alone was lost.
                match numbers(&bad) {
                    Ok(left) if left.is_empty() => assert!(n <= 1, "byte {at} of {n} commits"),
                    Ok(left) => assert!(left.iter().all(|n| newest.contains(n)), "byte {at}"),
                    Err(what) => assert!(what.contains("journal"), "{what}"),
                }
            }
        }
    }

    #[test]
    fn zeroed_records_are_damage() {
        for n in [0, 1, 2, 7] {
            let whole = bytes(&made(n).0);
            let mut both = whole.clone();
            both[4096..12288].fill(0);
            assert!(numbers(&both).is_err(), "{n} commits");
            for slot in [0, 1] {
                let mut one = whole.clone();
                one[RECORDS[slot] as usize..][..RECORD].fill(0);
                if one != whole {
                    let left = (1..=n).rev().take(2).find(|i| i % 2 != slot as u64);
                    match left {
                        Some(i) => {
                            assert_eq!(numbers(&one), Ok(vec![i]));
                            assert!(read(7, &one).unwrap().damaged.is_some());
                        }
                        // Record 1 gone looks like a file in which nothing was committed.
                        None if n == 1 => assert_eq!(numbers(&one), Ok(vec![])),
                        None => assert!(numbers(&one).is_err(), "{n} commits, {slot}"),
                    }
                }
            }
        }
    }

    #[test]
    fn a_journal_goes_on_behind_its_last_record_and_behind_the_one_before() {
        let (memory, _) = made(5);
        let last = read(7, &bytes(&memory)).unwrap().commits;
        let again = Journal::new(Place::Memory(Arc::clone(&memory)), 7, Some(&last[0]));
        for i in 6..9 {
            commit(&again, i);
            assert_eq!(numbers(&bytes(&memory)), Ok(vec![i, i - 1]));
        }
        let last = read(7, &bytes(&memory)).unwrap().commits;
        again.go_on_behind(&last[1]);
        for i in 8..12 {
            commit(&again, i);
            assert_eq!(numbers(&bytes(&memory)), Ok(vec![i, i - 1]));
        }
        // One that others do not have is gone at once, and the one before it stays.
        let last = read(7, &bytes(&memory)).unwrap().commits;
        again.go_back_to(&last[1]).unwrap();
        assert_eq!(numbers(&bytes(&memory)), Ok(vec![10]));
        again.go_back_to(&last[1]).unwrap();
        for i in 11..14 {
            commit(&again, i);
            assert_eq!(numbers(&bytes(&memory)).unwrap()[0], i);
        }
    }

    #[test]
    fn what_is_too_long_is_refused() {
        let (_, journal) = made(1);
        let long = vec![0; TABLE_MAX + 1];
        let about = &long[..=ABOUT_MAX];
        let too_long = |what: &str, problem: Result<(), TierError>| match problem {
            Err(TierError::Journal { what: problem, .. }) => assert_eq!(problem, what),
            other => panic!("{other:?}"),
        };
        too_long("about", journal.prepare(0, about, &[]));
        too_long("table of checksums", journal.prepare(0, &about[1..], &long));
        journal.prepare(0, &about[1..], &long[1..]).unwrap();
        let record = &long[..=RECORD_MAX];
        too_long("record", journal.commit(0, record));
        journal.commit(0, &record[1..]).unwrap();
    }
}
