//! Proves what a journal says about a version: every byte of it is read and held against the checksums that were
//! committed with it.

use std::collections::VecDeque;

use lowtide_units::Bytes;

use crate::record::{self, Committed, Kept};
use crate::versions::Versions;
use crate::{Block, Disk, Extent, Fill, Kind, Movement, TierError};

/// Bytes read at a time.
const BLOCK: u64 = 4 << 20;
/// Reads in hand for each drive, and in all.
const IN_HAND: usize = 4;
const IN_HAND_MAX: usize = 16;

impl Disk {
    /// Says which extents hold the two versions of everything durable, each list in the same order:
    /// from then on a commit takes note of their checksums. To be called once, before any write.
    ///
    /// # Errors
    /// [`TierError::Journal`] when there are more than the journal has room for.
    pub fn set_versions(&self, extents: [Vec<Extent>; 2]) -> Result<(), TierError> {
        let versions = Versions::new(extents)?;
        // Set twice it would be the same: it follows from the plan.
        let _ = self.versions.set(versions);
        Ok(())
    }

    /// The newest commit whose version is whole, which the next commit then follows: the last one, or
    /// the one before it while nobody has written into its version. Reads all of a version. Nothing may
    /// have been submitted before.
    ///
    /// # Errors
    /// [`TierError::NotWhole`] when no version is; those of the journal's own file.
    ///
    /// # Panics
    /// Before [`Disk::set_versions`].
    pub fn prove(&self) -> Result<Committed, TierError> {
        let journal = self.journal.as_ref().expect("set where a disk is opened");
        let versions = self.versions.get().expect("versions are set");
        let bad = |what| TierError::NotWhole {
            path: self.first_path(),
            what,
        };
        let (kept, reserved) = self.journaled()?;
        let mut why = Vec::new();
        if let Some(damaged) = kept.damaged {
            why.push(damaged);
        }
        for commit in kept.commits {
            // What cannot be read is no reason to end where an older version can be: nothing is lost by it here.
            let broken = self.broken(&commit, &reserved);
            match broken.unwrap_or_else(|e| Some(format!("commit {}: {e}", commit.sequence))) {
                None => {
                    journal.go_on_behind(&commit);
                    (0..2).for_each(|version| versions.forget(version));
                    return Ok(commit);
                }
                Some(what) => why.push(what),
            }
        }
        Err(bad(why.join("; ")))
    }

    /// What the journal of a disk that several agree on says: the commits that can be read, the newest first.
    ///
    /// # Errors
    /// [`TierError::NotWhole`] where nothing can be read; those of the journal's own file.
    ///
    /// # Panics
    /// As [`Disk::prove`].
    pub fn commits(&self) -> Result<Vec<Committed>, TierError> {
        Ok(self.journaled()?.0.commits)
    }

    /// Whether the version of this commit is whole; if not, why. Reads all of it. Only its bytes decide that: where it
    /// is not whole, all that agree give this commit up.
    ///
    /// # Errors
    /// As [`Disk::commits`]; what could not be read, and memory that could not be had.
    ///
    /// # Panics
    /// As [`Disk::prove`].
    pub fn proves(&self, sequence: u64) -> Result<Option<String>, TierError> {
        let (kept, reserved) = self.journaled()?;
        let commit = kept.commits.into_iter().find(|c| c.sequence == sequence);
        Ok(match commit {
            None => Some(format!("its journal has no commit {sequence}")),
            Some(commit) => self.broken(&commit, &reserved)?,
        })
    }

    /// Goes on behind this commit, whose version is [whole](Disk::proves): one that came later is taken out of the
    /// journal first, because others do not have it.
    ///
    /// # Errors
    /// As [`Disk::commits`]; [`TierError::File`] when the system refuses.
    ///
    /// # Panics
    /// As [`Disk::prove`].
    pub fn go_back_to(&self, sequence: u64) -> Result<Committed, TierError> {
        let (kept, _) = self.journaled()?;
        let journal = self.journal.as_ref().expect("set where a disk is opened");
        let mut commits = kept.commits.into_iter();
        let commit = commits.find(|c| c.sequence == sequence);
        let commit = commit.ok_or_else(|| TierError::NotWhole {
            path: self.first_path(),
            what: format!("its journal has no commit {sequence}"),
        })?;
        journal.go_back_to(&commit)?;
        let versions = self.versions.get().expect("versions are set");
        (0..2).for_each(|version| versions.forget(version));
        Ok(commit)
    }

    /// What its journal says, and the journal's bytes.
    fn journaled(&self) -> Result<(Kept, Vec<u8>), TierError> {
        let journal = self.journal.as_ref().expect("set where a disk is opened");
        let (kept, reserved) = journal.read()?;
        let kept = kept.map_err(|what| TierError::NotWhole {
            path: self.first_path(),
            what,
        })?;
        Ok((kept, reserved))
    }

    /// Why a commit's version is not whole, if it is not.
    fn broken(&self, commit: &Committed, reserved: &[u8]) -> Result<Option<String>, TierError> {
        let versions = self.versions.get().expect("versions are set");
        let sequence = commit.sequence;
        let table = record::table(reserved, commit, versions.table_bytes());
        let Some(sums) = table.and_then(|t| versions.sums(commit.version, t)) else {
            return Ok(Some(format!(
                "the checksums of commit {sequence} are not those it was made with"
            )));
        };
        let differs = self.differs(versions.extents(commit.version), &sums)?;
        Ok(differs.map(|extent| format!("{extent} does not have the bytes of commit {sequence}")))
    }

    /// The first of these extents that does not have its checksum.
    fn differs(&self, extents: &[Extent], sums: &[u32]) -> Result<Option<Extent>, TierError> {
        let drives = self.stripe.n_drives();
        let in_hand = (IN_HAND * drives).min(IN_HAND_MAX);
        let memory = Block::new(Bytes(in_hand as u64 * BLOCK), Fill::Zero)?;
        let mut free = memory.cut(BLOCK as usize);
        let mut parts = extents.iter().enumerate().flat_map(|(i, e)| {
            let ends = e.offset + e.bytes;
            let starts = (e.offset..ends).step_by(BLOCK as usize);
            starts.map(move |at| (i, at, BLOCK.min(ends - at), at + BLOCK >= ends))
        });
        let mut flying: VecDeque<(Movement, usize, usize, bool)> = VecDeque::new();
        let (mut sent, mut sum) = (0u64, 0);
        loop {
            while !free.is_empty()
                && let Some((i, offset, bytes, last)) = parts.next()
            {
                let (block, extent) = (free.pop().expect("one is left"), Extent { offset, bytes });
                let moving = self.start(Kind::Read, extent, block, sent);
                flying.push_back((moving, bytes as usize, i, last));
                sent += 1;
            }
            let Some((moving, bytes, i, last)) = flying.pop_front() else {
                return Ok(None);
            };
            let (block, read) = moving.wait();
            read?;
            sum = crc32c::crc32c_append(sum, &block.as_slice()[..bytes]);
            free.push(block);
            if last {
                if sum != sums[i] {
                    return Ok(Some(extents[i]));
                }
                sum = 0;
            }
        }
    }
}
