//! The records of a journal as bytes: where they are in a state file, what they say, and which of them count.

use crate::header::DATA;

/// Where in the file the two records are. They are written alternately: one is whole whatever cuts the other off.
pub(crate) const RECORDS: [u64; 2] = [4096, 8192];
pub(crate) const RECORD: usize = 4096;
/// Where in the file the two places of `about` are, and how long they are: what is said with every commit fits a
/// record, the numerics key and the choices of products do not.
pub(crate) const ABOUTS: [u64; 2] = [64 << 10, 544 << 10];
const ABOUT: usize = 480 << 10;
/// Where in the file each version's table of checksums is, and how long it may be.
pub(crate) const TABLES: [u64; 2] = [1 << 20, 3 << 19];
/// The longest table of checksums, in bytes.
pub(crate) const TABLE_MAX: usize = 512 << 10;

const MAGIC: &[u8; 8] = b"LTJRNL02";
const HEAD: usize = 40;
pub(crate) const ABOUT_HEAD: usize = 8;
/// The version of a record that says that nothing was committed.
const NONE: u32 = u32::MAX;

/// The longest record, in bytes.
pub const RECORD_MAX: usize = RECORD - HEAD - 4;
/// The longest `about`, in bytes.
pub const ABOUT_MAX: usize = ABOUT - ABOUT_HEAD;

const _: () = assert!(ABOUTS[1] + ABOUT as u64 <= TABLES[0]);
const _: () = assert!(ABOUTS[0] + ABOUT as u64 <= ABOUTS[1] && RECORDS[1] + 4096 <= ABOUTS[0]);
const _: () = assert!(TABLES[0] + TABLE_MAX as u64 <= TABLES[1]);
const _: () = assert!(TABLES[1] + TABLE_MAX as u64 <= DATA);

/// One commit of a disk, as its record has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The run that made it.
    pub run: u128,
    /// How many commits came before it on this disk, and one.
    pub sequence: u64,
    /// Which of the two versions is whole, 0 or 1.
    pub version: u32,
    /// What holds for many commits.
    pub about: Vec<u8>,
    /// What holds for this one.
    pub record: Vec<u8>,
    /// Which place has its `about`.
    pub(crate) about_at: usize,
    /// Checksum of the table of its version's checksums.
    pub(crate) table_sum: u32,
}

/// What a kept state file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The run that asked to keep it.
    pub run: u128,
    /// The commits whose records can be read, the newest first: two, one, or none where nothing was
    /// committed. Which of their versions are whole, [`crate::Disk::prove`] says.
    pub commits: Vec<Committed>,
    /// What is wrong with the other record: a write of it that was cut off, or damage.
    pub damaged: Option<String>,
}

/// The record of a new file, and where it goes: nothing was committed.
pub(crate) fn born() -> (u64, [u8; RECORD]) {
    (RECORDS[0], encode(0, [NONE, 0, 0, 0, 0], &[]))
}

/// magic, sequence, then `words`: version, place and checksum of `about`, length, checksum of the
/// table; 4 bytes of zero, record, crc32c.
pub(crate) fn encode(sequence: u64, words: [u32; 5], record: &[u8]) -> [u8; RECORD] {
    let mut bytes = [0; RECORD];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..16].copy_from_slice(&sequence.to_le_bytes());
    for (i, word) in words.into_iter().enumerate() {
        bytes[16 + 4 * i..20 + 4 * i].copy_from_slice(&word.to_le_bytes());
    }
    bytes[HEAD..HEAD + record.len()].copy_from_slice(record);
    let sum = crc32c::crc32c(&bytes[..RECORD - 4]);
    bytes[RECORD - 4..].copy_from_slice(&sum.to_le_bytes());
    bytes
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4"))
}

/// What stands in the place of a record.
enum Stands {
    /// No record was ever written there.
    Zeros,
    /// The first one of a new file.
    Born,
    Commit(Committed),
    Damaged(&'static str),
}

/// What the reserved bytes say; or why that is unknown.
pub(crate) fn read(run: u128, reserved: &[u8]) -> Result<Kept, String> {
    let kept = |commits, damaged: Option<&str>| {
        Ok(Kept {
            run,
            commits,
            damaged: damaged.map(str::to_owned),
        })
    };
    match (stands(run, reserved, 0), stands(run, reserved, 1)) {
        (Stands::Born, Stands::Zeros) => kept(vec![], None),
        // Record 1 alone can be there while the first one is: nothing was committed before it.
        (Stands::Born, Stands::Damaged(what)) => kept(vec![], Some(what)),
        (Stands::Born, Stands::Commit(c)) if c.sequence == 1 => kept(vec![c], None),
        (Stands::Commit(a), Stands::Commit(b)) if a.sequence.abs_diff(b.sequence) == 1 => {
            let newer_first = if a.sequence > b.sequence {
                [a, b]
            } else {
                [b, a]
            };
            kept(newer_first.into(), None)
        }
        (Stands::Commit(c), Stands::Damaged(what)) | (Stands::Damaged(what), Stands::Commit(c)) => {
            kept(vec![c], Some(what))
        }
        (Stands::Commit(c), Stands::Zeros) | (Stands::Zeros, Stands::Commit(c)) => {
            kept(vec![c], Some("one of its journal's records is gone"))
        }
        (Stands::Damaged(what), _) | (_, Stands::Damaged(what)) => Err(format!(
            "neither of its journal's records can be read: {what}"
        )),
        (Stands::Zeros, Stands::Zeros) => Err("both of its journal's records are gone".to_owned()),
        _ => Err("its journal's records do not belong to each other".to_owned()),
    }
}

fn stands(run: u128, reserved: &[u8], slot: usize) -> Stands {
    let at = RECORDS[slot] as usize;
    let bytes = &reserved[at..at + RECORD];
    if bytes.iter().all(|&b| b == 0) {
        return Stands::Zeros;
    }
    if &bytes[..8] != MAGIC || u32_at(bytes, RECORD - 4) != crc32c::crc32c(&bytes[..RECORD - 4]) {
        return Stands::Damaged("a record of its journal does not have its checksum");
    }
    let sequence = u64::from_le_bytes(bytes[8..16].try_into().expect("8"));
    let (version, place, len) = (u32_at(bytes, 16), u32_at(bytes, 20), u32_at(bytes, 28));
    if version == NONE && sequence == 0 && slot == 0 {
        return Stands::Born;
    }
    let record = bytes[HEAD..RECORD - 4].get(..len as usize);
    let (Some(&about_at), Some(record)) = (ABOUTS.get(place as usize), record) else {
        return Stands::Damaged("a record of its journal is not one of this program");
    };
    if version > 1 || sequence % 2 != slot as u64 {
        return Stands::Damaged("a record of its journal is not one of this program");
    }
    let about = &reserved[about_at as usize..about_at as usize + ABOUT];
    let about = about[ABOUT_HEAD..].get(..u32_at(about, 0) as usize);
    let about = about.filter(|a| crc32c::crc32c(a) == u32_at(bytes, 24));
    let Some(about) = about else {
        return Stands::Damaged("what its journal says of the run does not have its checksum");
    };
    Stands::Commit(Committed {
        run,
        sequence,
        version,
        about: about.to_vec(),
        record: record.to_vec(),
        about_at: place as usize,
        table_sum: u32_at(bytes, 32),
    })
}

/// The table of a commit's version among the reserved bytes, `bytes` long; `None` when it is not the
/// one that the commit was made with.
pub(crate) fn table<'a>(reserved: &'a [u8], commit: &Committed, bytes: usize) -> Option<&'a [u8]> {
    let from = TABLES[commit.version as usize] as usize;
    let table = reserved[from..from + TABLE_MAX].get(..bytes)?;
    (crc32c::crc32c(table) == commit.table_sum).then_some(table)
}
