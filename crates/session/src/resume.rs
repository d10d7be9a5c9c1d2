//! Where a durable run goes on: from the newest state that all ranks have committed and that is whole on all of them.
//!
//! Each rank commits by itself, so ranks that end together may be one step apart. None begins to write over a version
//! before all have committed the one behind it (rule 6 of the plan's checker), so the older of the two steps is whole
//! on all of them.

use std::path::Path;

use lowtide_tiers::{Committed, Disk, TierError};
use serde::{Deserialize, Serialize};

use crate::commit::CommitRecord;
use crate::ranks::{Rank, Ranks};

/// A commit of a rank, as its journal has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Said {
    /// Its number in that journal.
    pub sequence: u64,
    /// Which of the two versions is whole.
    pub version: u32,
    /// Updates of the run that were made.
    pub step: u64,
}

impl Said {
    /// Of a commit; none where it has no place in a run.
    fn of(commit: &Committed) -> Option<Self> {
        let record: CommitRecord = serde_json::from_slice(&commit.record).ok()?;
        Some(Self {
            sequence: commit.sequence,
            version: commit.version,
            step: record.mark.step,
        })
    }
}

/// The newest commits that all ranks have, newest first: of each rank's list of its own those to go on behind, by the
/// numbers in its journal.
pub(crate) fn common(said: &[Vec<Said>]) -> Vec<Vec<Said>> {
    let (first, others) = said.split_first().expect("a rank");
    let of_all = |own: &Said| {
        let alike = |list: &Vec<Said>| {
            let mut list = list.iter();
            list.find(|s| (s.step, s.version) == (own.step, own.version))
                .copied()
        };
        let rest = others.iter().map(alike).collect::<Option<Vec<_>>>()?;
        Some(std::iter::once(*own).chain(rest).collect())
    };
    first.iter().filter_map(of_all).collect()
}

/// Of what the journal of each rank says, the newest first: the commits of the first rank that all others have made,
/// too, by their numbers.
///
/// # Panics
/// Without a rank.
#[must_use]
pub fn committed_by_all(commits: &[Vec<Committed>]) -> Vec<u64> {
    let said: Vec<Vec<Said>> = commits
        .iter()
        .map(|list| list.iter().filter_map(Said::of).collect())
        .collect();
    let common = common(&said).into_iter();
    common.map(|all| all[0].sequence).collect()
}

impl Rank {
    fn durable(&self) -> &Disk {
        self.runner.disk().expect("a durable plan has a disk")
    }

    /// What its journal says, the newest first.
    pub fn commits(&self) -> Result<Vec<Said>, TierError> {
        let commits = self.durable().commits()?;
        Ok(commits.iter().filter_map(Said::of).collect())
    }

    /// Whether the version of a commit is whole; if not, why.
    pub fn proves(&self, sequence: u64) -> Result<Option<String>, TierError> {
        self.durable().proves(sequence)
    }

    /// Goes on behind a commit that is whole.
    pub fn go_back_to(&mut self, sequence: u64) -> Result<Committed, TierError> {
        let found = self.durable().go_back_to(sequence)?;
        self.runner.flip(found.version == 1);
        Ok(found)
    }
}

impl Ranks {
    /// Lets every rank go on behind the newest step that all have committed and that is whole on all. What the first
    /// rank's journal says of it.
    pub fn resume(&mut self) -> Result<Committed, TierError> {
        if let ([only], []) = (&mut self.here[..], &self.there[..]) {
            let found = only.durable().prove()?;
            only.runner.flip(found.version == 1);
            return Ok(found);
        }
        let here = self.here.iter().map(Rank::commits);
        let there = self.there.iter().map(|remote| remote.commits());
        let said = here.chain(there).collect::<Result<Vec<_>, _>>()?;
        let mut why = Vec::new();
        for commits in common(&said) {
            let broken = self.prove(&commits)?;
            if broken.is_empty() {
                let mut found = None;
                for (rank, commit) in self.here.iter_mut().zip(&commits) {
                    let own = rank.go_back_to(commit.sequence)?;
                    found.get_or_insert(own);
                }
                for (remote, commit) in self.there.iter().zip(&commits[self.here.len()..]) {
                    remote.go_back_to(commit.sequence)?;
                }
                return Ok(found.expect("a rank of this process"));
            }
            why.extend(broken);
        }
        if why.is_empty() {
            let steps = |list: &Vec<Said>| list.first().map_or(0, |s| s.step).to_string();
            let steps: Vec<String> = said.iter().map(steps).collect();
            why.push(format!(
                "ranks have committed up to steps {}, and none that all have",
                steps.join(", ")
            ));
        }
        let path = self.here[0].durable().paths().next();
        Err(TierError::NotWhole {
            path: path.map(Path::to_owned).unwrap_or_default(),
            what: why.join("; "),
        })
    }

    /// Why ranks' commits are not whole; nothing where all are. All ranks read at once.
    fn prove(&self, commits: &[Said]) -> Result<Vec<String>, TierError> {
        let ends: Vec<_> = std::thread::scope(|scope| {
            let (here, there) = commits.split_at(self.here.len());
            let here = self.here.iter().zip(here);
            let here = here.map(|(rank, c)| scope.spawn(move || rank.proves(c.sequence)));
            let here: Vec<_> = here.collect();
            let there = self.there.iter().zip(there);
            let there = there.map(|(remote, c)| scope.spawn(move || remote.proves(c.sequence)));
            let all: Vec<_> = here.into_iter().chain(there.collect::<Vec<_>>()).collect();
            let join = |end: std::thread::ScopedJoinHandle<'_, _>| {
                let end = end.join();
                end.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            all.into_iter().map(join).collect()
        });
        let mut broken = Vec::new();
        for (rank, end) in ends.into_iter().enumerate() {
            let why: Option<String> = end?;
            broken.extend(why.map(|why| format!("rank {rank}: {why}")));
        }
        Ok(broken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(of: &[(u64, u64)]) -> Vec<Said> {
        let said = of.iter().map(|&(sequence, step)| Said {
            sequence,
            version: (step % 2) as u32,
            step,
        });
        said.collect()
    }

    #[test]
    fn the_newest_step_of_all_ranks_is_taken() {
        let of = |ranks: &[&[(u64, u64)]]| {
            let ranks: Vec<_> = ranks.iter().map(|r| said(r)).collect();
            let steps = common(&ranks).into_iter().map(|all| {
                assert_eq!(all.len(), ranks.len());
                assert!(all.iter().all(|s| s.step == all[0].step));
                (all[0].step, all.iter().map(|s| s.sequence).collect())
            });
            steps.collect::<Vec<(u64, Vec<u64>)>>()
        };
        let both = [(6, 6), (5, 5)];
        assert_eq!(of(&[&both, &both]), [(6, vec![6, 6]), (5, vec![5, 5])]);
        // One is a step ahead, whichever; by its own numbers.
        assert_eq!(of(&[&[(7, 7), (6, 6)], &both]), [(6, vec![6, 6])]);
        assert_eq!(of(&[&both, &[(9, 7), (8, 6)], &both]), [(6, vec![6, 8, 6])]);
        assert!(of(&[&both, &[(8, 8), (7, 7)]]).is_empty());
        assert!(of(&[&both, &[]]).is_empty());
        // The same step in the other version is of another run.
        let mut other = said(&both);
        other.iter_mut().for_each(|s| s.version ^= 1);
        assert!(common(&[said(&both), other]).is_empty());
    }
}
