//! Branches: a run that does not resume from the newest state of its output, but begins at a checkpoint that
//! `checkpoint.resume` names, or anew.
//!
//! The output's mark says which branch its run is on, from before anything of it is written. So a start by
//! itself resumes the branch that was begun last, and so does the command that named the checkpoint,
//! given again: from the newest state that the branch has saved itself, else from where it began. Until it has
//! saved, what it left stays as it is; the metrics, which are cut, have a copy.

use std::path::{Path, PathBuf};

use lowtide_config::{Resume, Run};
use serde_json::{Value, json};

use super::journal::Journal;
use super::left;
use super::start::{Start, kept_files};
use crate::checkpoint::{self, RunState};
use crate::error::TrainError;
use crate::metrics::last_step;
use crate::output::folder::Found;
use crate::output::mark::{Branch, Kept, Writes, within};
use crate::output::{FINISHED, METRICS, Output, resolved};

/// How a start comes to its state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// It resumes what the output's branch has saved; or nothing was there.
    GoesOn,
    /// It begins the output's branch again, which has saved nothing.
    Again,
    /// It begins this one.
    New(Branch),
}

/// A path as the mark has it, if it is in the output, by whatever way it is named.
fn mark_path(run: &Run, dir: &Path) -> PathBuf {
    let own = resolved(dir);
    match own.strip_prefix(resolved(&run.output)) {
        Ok(inside) => inside.to_owned(),
        Err(_) => within(&run.output, dir.to_owned()),
    }
}

/// The checksum of what a checkpoint says of its run; 0 where it cannot be read.
fn checksum(dir: &Path) -> u32 {
    std::fs::read(checkpoint::run_path(dir)).map_or(0, |bytes| crc32c::crc32c(&bytes))
}

/// A checksum of the settings that make another branch of the same checkpoint when they change. Only the last part of
/// a path counts, because all may have been moved together.
fn settings(run: &Run) -> u32 {
    let data = run.data.train.iter().map(|source| {
        let name = source.path.file_name();
        let name = name.map(|n| n.to_string_lossy().into_owned());
        // A file that has no weight is its name alone, as it was before there were weights.
        match source.weight {
            1.0 => json!(name),
            weight => json!([name, weight]),
        }
    });
    let data: Vec<Value> = data.collect();
    let mut key = run.numerics_key();
    // Patterns of frozen parameters may be other words for the same, and a checkpoint refuses another set. Groups of
    // the optimizer stay: other words for them begin the branch anew.
    if let Some(train) = key["train"].as_object_mut() {
        train.remove("freeze");
        train.remove("unfreeze");
    }
    let said = json!([key, data]);
    crc32c::crc32c(said.to_string().as_bytes())
}

/// Whether the branch of an output was begun at this checkpoint by such a run. A checkpoint that is no
/// longer there may have been pruned.
pub(super) fn began_at(run: &Run, output: &Output, dir: &Path) -> bool {
    output.kept().branch.as_ref().is_some_and(|branch| {
        let same = branch.at.as_ref() == Some(&mark_path(run, dir));
        let now = checksum(dir);
        same && branch.settings == settings(run) && [0, branch.checkpoint].contains(&now)
    })
}

/// Whether a checkpoint of this step in the output is of its branch and not from before that began.
pub(super) fn is_own(kept: &Kept, step: u64) -> bool {
    kept.branch
        .as_ref()
        .is_none_or(|branch| step > checkpoint::shared(branch))
}

/// Where the branch of an output began.
pub(super) fn beginning(output: &Output, branch: &Branch) -> Option<PathBuf> {
    let at = branch.at.as_ref()?;
    Some(output.folder().path().join(at))
}

impl Origin {
    /// Of a run that begins at a checkpoint, or anew.
    pub(super) fn new(
        run: &Run,
        output: &Output,
        at: Option<(&Path, &RunState)>,
    ) -> Result<Self, TrainError> {
        let all = checkpoint::list(&run.output);
        let there = output.kept().branch.is_some()
            || !all.is_empty()
            || output.folder().found(FINISHED)? != Found::Nothing
            || last_step(output.folder(), METRICS)?.is_some()
            || kept_files(run)?.iter().any(|k| k.ours);
        if at.is_none() && !there {
            return Ok(Self::GoesOn);
        }
        // The mark may be lost while records of branches are still there.
        let told = all
            .iter()
            .filter_map(|(_, dir)| checkpoint::read_run(dir).ok());
        let told = told.map(|state| state.branch).max().unwrap_or(0);
        let journal = Journal::find(run, &mut Vec::new()).ok().flatten();
        let journal = journal.map_or(0, |j| j.state().branch);
        Ok(Self::New(Branch {
            number: output.kept().number().max(told).max(journal) + 1,
            at: at.map(|(dir, _)| mark_path(run, dir)),
            step: at.map_or(0, |(_, state)| state.step),
            checkpoint: at.map_or(0, |(dir, _)| checksum(dir)),
            settings: settings(run),
            unsaved: true,
        }))
    }

    /// What people should know of it.
    pub(super) fn note(&self, run: &Run, output: &Output, start: &Start) -> Option<String> {
        let branch = match self {
            Self::GoesOn => {
                let Resume::Path(named) = &run.checkpoint.resume else {
                    return None;
                };
                return Some(format!(
                    "goes on with what was saved since the run began at {}; to begin there again choose \
                     another output",
                    named.display()
                ));
            }
            Self::Again => output.kept().unsaved()?,
            Self::New(branch) => branch,
        };
        let shared = checkpoint::shared(branch);
        let left = checkpoint::list(&run.output).into_iter().rev();
        let mut left = left.filter(|(_, dir)| checkpoint::read_run(dir).is_ok());
        let left = left.next().filter(|(step, _)| *step > shared);
        let stays = left.map(|(_, dir)| {
            format!(
                "what was there stays until this run has saved, and --set checkpoint.resume={} goes on with that",
                dir.display()
            )
        });
        let begun = match start.state() {
            Some(state) => format!(
                "after step {} of {}",
                state.step,
                beginning(output, branch).unwrap_or_default().display()
            ),
            None => "at step 1".to_owned(),
        };
        match self {
            Self::Again => Some(format!(
                "begins {begun}, as the run before did, which was ended before it had saved{}",
                stays.map_or(String::new(), |s| format!("; {s}"))
            )),
            _ => stays.map(|stays| format!("begins {begun}; {stays}")),
        }
    }

    /// Once its state has loaded, has the output's mark say which branch the run is on, and the metrics be those of
    /// that branch. `writes`: to the drives. `publish` makes what was loaded the state on the drives and returns the
    /// first state file of a durable run. Returns lines for the user.
    ///
    /// # Errors
    /// Files; what the run before has kept is as it was.
    pub(super) fn begin(
        &self,
        run: &Run,
        start: &Start,
        output: &mut Output,
        writes: Option<Writes>,
        publish: impl FnOnce() -> Result<Option<PathBuf>, TrainError>,
    ) -> Result<Vec<String>, TrainError> {
        let before = output.kept().clone();
        let branch = match self {
            Self::New(branch) => Some(branch.clone()),
            _ => before.branch.clone(),
        };
        if let Self::New(_) = self {
            if before.unsaved().is_none() {
                left::keep(output.folder(), start.state())?;
            }
            // A process that dies from here on has left the branch of before.
            output.keep(Kept {
                writes,
                ..Kept::of(&run.output, None, None, branch.clone())
            })?;
        }
        let file = publish()?;
        let own = |dir: &Path| dir.starts_with(checkpoint::directory(&run.output));
        let saved = match (self, start) {
            (Self::GoesOn, Start::Checkpoint(dir, state)) => own(dir).then_some(state.step),
            (Self::GoesOn, Start::Journal(_)) => before.saved,
            _ => None,
        };
        let mut told = Vec::new();
        let mut branch = branch;
        if let (Self::GoesOn, Start::Checkpoint(..), Some(branch)) = (self, start, &mut branch)
            && branch.unsaved
        {
            told = checkpoint::set_aside_in(output)?;
            branch.unsaved = false;
        }
        output.keep(Kept {
            writes,
            ..Kept::of(&run.output, saved, file, branch)
        })?;
        if let (Self::New(_) | Self::Again, Some(branch)) = (self, &output.kept().branch) {
            let given_up = before.unsaved().is_some();
            left::put_back(output.folder(), branch, start.state(), given_up)?;
        }
        // This run has not ended; what the branch before has left stays until this one has saved.
        if output.kept().unsaved().is_none() {
            forget_finished(output)?;
        }
        Ok(told)
    }
}

/// Records in the output's mark that a checkpoint of this step was saved, the first of its branch or a later one.
///
/// # Errors
/// Files: the mark then says what it said before, and the next start finds the checkpoint all the same.
pub(super) fn saved(output: &mut Output, step: u64) -> Result<(), TrainError> {
    let mut kept = Kept {
        saved: Some(step),
        ..output.kept().clone()
    };
    if let Some(branch) = &mut kept.branch {
        branch.unsaved = false;
    }
    output.keep(kept)
}

/// Removes what says that a run has finished, which this one has not.
fn forget_finished(output: &Output) -> Result<(), TrainError> {
    if output.folder().found(FINISHED)? != Found::Nothing {
        output.folder().remove(FINISHED)?;
    }
    Ok(())
}

#[cfg(test)]
#[path = "branch_tests.rs"]
mod tests;
