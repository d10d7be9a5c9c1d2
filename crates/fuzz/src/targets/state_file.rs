//! The file of a durable run's state: header, journal, tables of checksums.
//!
//! The file is 2 MiB and more, mostly zeros, so the input is a list of changes to a whole one, of eight
//! bytes each: what to change, where, and to what ([`Edit`]). Checksums stop nearly every change at once;
//! one kind of change puts them right again, as a program that writes nonsense would.

use std::path::Path;
use std::sync::OnceLock;

use lowtide_tiers::{Backend, Block, Disk, DiskConfig, DriveConfig, Extent, Fill, Kind, Open};
use lowtide_units::Bytes;

use super::message;
use crate::scratch;

/// Bytes of the disk's data, in one drive.
const DISK: u64 = 64 << 10;
/// Where records and what they name lie in the file (docs/formats.md).
const PAGE: usize = 4096;
const RECORDS: [usize; 2] = [4096, 8192];
const ABOUTS: [usize; 2] = [64 << 10, 544 << 10];
const TABLES: [usize; 2] = [1 << 20, 3 << 19];
const DATA: usize = 2 << 20;

/// A change of some bytes of one region of the file.
struct Edit {
    kind: u8,
    region: u8,
    at: usize,
    value: u32,
}

impl Edit {
    fn of(bytes: &[u8]) -> Self {
        Self {
            kind: bytes[0],
            region: bytes[1],
            at: usize::from(u16::from_le_bytes([bytes[2], bytes[3]])),
            value: u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
        }
    }

    fn apply(&self, file: &mut Vec<u8>) {
        let regions = [
            0, RECORDS[0], RECORDS[1], ABOUTS[0], ABOUTS[1], TABLES[0], TABLES[1], DATA,
        ];
        let region = regions[usize::from(self.region) % regions.len()];
        // Most fields lie in the first bytes of their page.
        let at = region + self.at % if self.region & 0x80 == 0 { 128 } else { PAGE };
        match self.kind % 8 {
            0 => put(file, at, &self.value.to_le_bytes()[..1]),
            1 | 2 => put(file, at, &self.value.to_le_bytes()),
            3 => put(
                file,
                at,
                &u64::from(self.value).wrapping_neg().to_le_bytes(),
            ),
            4 => put(file, region, &vec![self.value as u8; PAGE]),
            5 => {
                let length = DATA + DISK as usize;
                file.resize((self.value as usize) % (length + 1), 0);
            }
            _ => seal(file),
        }
    }
}

fn put(file: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(to) = file.get_mut(at..at + bytes.len()) {
        to.copy_from_slice(bytes);
    }
}

/// Puts the checksums of header and records right.
fn seal(file: &mut [u8]) {
    for (slot, about) in RECORDS.into_iter().zip(ABOUTS) {
        let length = |at: usize| {
            let word = file.get(at..at + 4)?;
            Some(u32::from_le_bytes(word.try_into().ok()?) as usize)
        };
        let about_sum = length(about)
            .and_then(|n| file.get(about + 8..(about + 8).checked_add(n)?))
            .map(crc32c::crc32c);
        if let Some(sum) = about_sum {
            put(file, slot + 24, &sum.to_le_bytes());
        }
    }
    for page in [0, RECORDS[0], RECORDS[1]] {
        if let Some(bytes) = file.get(page..page + PAGE - 4) {
            let sum = crc32c::crc32c(bytes).to_le_bytes();
            put(file, page + PAGE - 4, &sum);
        }
    }
}

pub(super) fn read(bytes: &[u8]) -> Result<(), String> {
    let mut file = whole().clone();
    bytes
        .chunks_exact(8)
        .for_each(|edit| Edit::of(edit).apply(&mut file));
    let dir = scratch::folder("state");
    scratch::write(&lowtide_tiers::state_path(&dir), &file);
    let looks = [
        lowtide_tiers::kept(&dir).map(|k| k.is_some()),
        lowtide_tiers::committed(&dir).map(|c| c.is_some()),
        lowtide_tiers::kept_by(&dir).map(|r| r.is_some()),
    ];
    for look in &looks {
        assert!(!look.as_ref().is_err_and(|e| e.to_string().is_empty()));
    }
    let disk = Disk::open(&config(&dir, Open::Existing), None).map_err(message)?;
    let proven = disk.set_versions(versions()).and_then(|()| disk.prove());
    proven.map(drop).map_err(message)
}

fn config(dir: &Path, open: Open) -> DiskConfig {
    DiskConfig {
        drives: vec![DriveConfig {
            dir: dir.to_owned(),
            bytes: Bytes(DISK),
            weight: 1.0,
        }],
        block: Bytes(4 << 10),
        stripe: Bytes(4 << 10),
        depth: 1,
        backend: Backend::Threads,
        direct: false,
        open,
        keep: true,
        run: 77,
        verify_reads: Some(Bytes(4 << 10)),
    }
}

/// Two versions of one extent.
fn versions() -> [Vec<Extent>; 2] {
    [0, 32 << 10].map(|offset| {
        vec![Extent {
            offset,
            bytes: 8 << 10,
        }]
    })
}

/// The file after three commits.
fn whole() -> &'static Vec<u8> {
    static WHOLE: OnceLock<Vec<u8>> = OnceLock::new();
    WHOLE.get_or_init(|| {
        let dir = scratch::folder("whole");
        let disk = Disk::open(&config(&dir, Open::Create), None).expect("a disk");
        disk.set_versions(versions()).expect("versions that fit");
        disk.publish().expect("the file gets its name");
        let mut block = Block::new(Bytes(8 << 10), Fill::Zero).expect("a little memory");
        for step in 0..3u32 {
            let extent = versions()[step as usize % 2][0];
            let (back, written) = disk.start(Kind::Write, extent, block, 0).wait();
            written.expect("written");
            block = back;
            let about = format!("about {}", step / 2);
            let record = format!("{{\"step\":{step}}}");
            disk.commit(step % 2, about.as_bytes(), record.as_bytes())
                .expect("committed");
        }
        drop(disk);
        std::fs::read(lowtide_tiers::state_path(&dir)).expect("the kept file")
    })
}
