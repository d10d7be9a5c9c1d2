//! Rule 6: what is durable.

use super::Fault;
use super::walk::{Clock, Walk};
use crate::plan::{Arg, Lane, Task, Use, Version, Work};

impl Walk<'_> {
    fn version(&self, a: &Arg) -> Option<Version> {
        self.plan.slots[a.slot].version.map(|v| v.0)
    }

    /// Rule 6, of one use: durable extents are written whole, once, and only as next versions.
    pub(super) fn unspoilt(&mut self, a: &Arg) -> Result<(), Fault> {
        let s = &self.plan.slots[a.slot];
        if a.access == Use::Read {
            return Ok(());
        }
        match s.version {
            Some((Version::Current, _)) => self.fault(format!(
                "writes the current version of {}",
                s.tensor.name(self.plan)
            )),
            Some((Version::Next, _)) if (a.offset, a.bytes) != (0, s.bytes) => self.fault(format!(
                "writes part of the next version of {}",
                s.tensor.name(self.plan)
            )),
            Some((Version::Next, _)) if !self.renewed.insert(a.slot) => self.fault(format!(
                "writes the next version of {} twice",
                s.tensor.name(self.plan)
            )),
            _ => Ok(()),
        }
    }

    /// Rule 6, of several ranks: until all of them have committed a version none writes over the one before, which is
    /// what they have in common if they end there.
    pub(super) fn behind_all_commits(
        &mut self,
        task: &Task,
        lane: Lane,
        clock: &Clock,
    ) -> Result<(), Fault> {
        if self.plan.ranks == 1 {
            return Ok(());
        }
        if task.work == Work::Commit {
            self.commit = Some((lane, self.count[lane] + 1));
            self.all_committed = None;
            return Ok(());
        }
        let Some((of, commit)) = self.commit else {
            return Ok(());
        };
        if lane == Lane::NET && clock[of] >= commit && self.all_committed.is_none() {
            self.all_committed = Some(self.count[lane] + 1);
        }
        let known = self.all_committed.is_some_and(|at| clock[Lane::NET] >= at);
        let next = |a: &&Arg| a.access != Use::Read && self.version(a) == Some(Version::Next);
        match task.args.iter().find(next) {
            Some(a) if !known => self.fault(format!(
                "writes the next version of {} before every rank has committed the one before",
                self.plan.slots[a.slot].tensor.name(self.plan)
            )),
            _ => Ok(()),
        }
    }

    /// Rule 6, of a commit: it holds every durable extent, and finds every next version new.
    pub(super) fn committed(&mut self, task: &Task, placed: &Task) -> Result<(), Fault> {
        for (i, s) in self.plan.slots.pairs() {
            let found = task.args.iter().position(|a| a.slot == i);
            match (s.version, found) {
                (None, _) => {}
                (Some(_), None) => {
                    return self.fault(format!("commits without {}", s.tensor.name(self.plan)));
                }
                (Some((Version::Current, _)), Some(_)) => {}
                (Some((Version::Next, _)), Some(k)) => {
                    self.read(&placed.args[k])?;
                }
            }
        }
        for (a, p) in task.args.iter().zip(&placed.args) {
            if self.version(a).is_none() {
                self.read(p)?;
            }
        }
        self.renewed.clear();
        Ok(())
    }

    /// Rule 6, of a part: an update and its commit come together.
    pub(super) fn ends_in_a_commit(&self, tasks: &[Task]) -> Result<(), Fault> {
        let count = |f: fn(&Work) -> bool| tasks.iter().filter(|t| f(&t.work)).count();
        let updates = count(|w| matches!(w, Work::Update { .. }));
        let commits = count(|w| matches!(w, Work::Commit));
        let wanted = usize::from(self.plan.choice.durable && updates > 0);
        if commits != wanted {
            return self.fault(format!("{commits} commits of {updates} updates"));
        }
        let last_commit = tasks.iter().rposition(|t| t.work == Work::Commit);
        let last_update = tasks
            .iter()
            .rposition(|t| matches!(t.work, Work::Update { .. }));
        if last_commit.is_some() && last_commit < last_update {
            return self.fault("commits before its last update".to_owned());
        }
        Ok(())
    }
}
