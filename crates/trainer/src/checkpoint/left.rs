//! Which checkpoints of an output are those of the branch that its run is on, and which go.
//!
//! A run that begins at an older checkpoint, or anew, leaves those of later steps. They keep their names until
//! it has saved one of its own: until then nothing is lost by a start that was a mistake. Then they are
//! renamed to `step-00000120.left`, from which no start resumes by itself; they count for
//! `checkpoint.keep`, and go first.

use std::path::PathBuf;

use super::{list, name_of, read_run, shelf, step_of};
use crate::error::TrainError;
use crate::output::folder::{Folder, Found};
use crate::output::mark::Branch;
use crate::output::{CHECKPOINTS, FINISHED, Output};

const LEFT: &str = ".left";

/// The step of a checkpoint that was set aside, and the how manieth of that step it is; `None` of other names.
fn left_of(name: &str) -> Option<(u64, u64)> {
    let (step, rest) = name.split_once(LEFT)?;
    let nth = match rest.strip_prefix('-') {
        None if rest.is_empty() => 1,
        Some(n) => n.parse().ok()?,
        None => return None,
    };
    let step = step_of(step)?;
    (left_name(step, nth) == name).then_some((step, nth))
}

fn left_name(step: u64, nth: u64) -> String {
    match nth {
        1 => format!("{}{LEFT}", name_of(step)),
        n => format!("{}{LEFT}-{n}", name_of(step)),
    }
}

/// Whether it is what a checkpoint is called, one that was set aside included.
pub(crate) fn is_name(name: &str) -> bool {
    step_of(name).is_some() || left_of(name).is_some()
}

/// The newest checkpoint of the branch that the run of an output is on.
#[must_use]
pub fn newest_of(output: &Output) -> Option<(u64, PathBuf)> {
    list_of(output).pop()
}

/// The checkpoints of the branch that an output's run is on, by step. Once the branch has saved, those from before it
/// began count, too, where they are in the same output.
#[must_use]
pub fn list_of(output: &Output) -> Vec<(u64, PathBuf)> {
    let mut all = list(output.folder().path());
    if let Some(branch) = output.kept().unsaved() {
        // Killed between its first checkpoint and the mark that says so.
        all.retain(|(_, dir)| is_of(branch, dir));
    }
    all
}

fn is_of(branch: &Branch, dir: &std::path::Path) -> bool {
    read_run(dir).is_ok_and(|state| state.branch == branch.number)
}

/// The step up to which earlier checkpoints of the output belong to the branch, too: that of the checkpoint at which
/// it began; 0 if that one is in another output or of a branch that was left before.
#[must_use]
pub fn shared(branch: &Branch) -> u64 {
    let at = branch.at.as_ref().filter(|at| at.starts_with(CHECKPOINTS));
    let name = at.and_then(|at| at.file_name()?.to_str());
    name.and_then(step_of).map_or(0, |_| branch.step)
}

/// At the branch's first save, renames the checkpoints that it has left, and removes what says that a run has
/// finished. Returns their new names. What is no checkpoint, such as a file or a link to nothing, stays.
pub(super) fn set_aside(output: &Output, checkpoints: &Folder) -> Result<Vec<String>, TrainError> {
    let kept = output.kept();
    let Some(branch) = kept.unsaved() else {
        return Ok(Vec::new());
    };
    let shared = shared(branch);
    let later = steps(checkpoints)?.into_iter().filter(|s| *s > shared);
    let mut told = Vec::new();
    for step in later {
        let name = name_of(step);
        let path = checkpoints.at(&name);
        if !path.is_dir() || is_of(branch, &path) {
            continue;
        }
        let mut nth = 1;
        while !checkpoints.rename_new(&name, checkpoints, left_name(step, nth))? {
            nth += 1;
        }
        told.push(format!(
            "{}: of the branch that was left, is called {} now",
            checkpoints.at(&name).display(),
            left_name(step, nth)
        ));
    }
    if !told.is_empty() {
        checkpoints.sync()?;
    }
    if output.folder().found(FINISHED)? != Found::Nothing {
        output.folder().remove(FINISHED)?;
    }
    Ok(told)
}

/// The same for a run that was killed between its branch's first checkpoint and the end of that.
///
/// # Errors
/// Files.
pub fn set_aside_in(output: &Output) -> Result<Vec<String>, TrainError> {
    let checkpoints = output.folder().sub(CHECKPOINTS)?;
    checkpoints.map_or(Ok(Vec::new()), |folder| set_aside(output, &folder))
}

/// Removes checkpoints beyond `keep`, but never that of `step`, which was saved just now, nor that of `best`, which
/// does not count: first those of branches that were left, then those of later steps, then the oldest. Says which of
/// a branch that was left went, and of each that stays why it does.
///
/// # Errors
/// When the checkpoints' directory cannot be opened.
pub fn prune(
    output: &Output,
    step: u64,
    best: Option<u64>,
    keep: usize,
) -> Result<Vec<String>, TrainError> {
    let Some(checkpoints) = output.folder().sub(CHECKPOINTS)? else {
        return Ok(Vec::new());
    };
    let mut told = Vec::new();
    let mut own = steps(&checkpoints)?;
    own.retain(|own| *own == step || Some(*own) != best);
    for name in superfluous(&lefts(&checkpoints)?, &own, step, keep) {
        match shelf(&checkpoints).give_up(&name) {
            Ok(kept) => {
                if left_of(&name).is_some() {
                    let path = checkpoints.at(&name);
                    told.push(format!(
                        "{}: removed (checkpoint.keep: {keep})",
                        path.display()
                    ));
                }
                told.extend(kept);
            }
            Err(e) => told.push(format!("warning: an old checkpoint stays: {e}")),
        }
    }
    Ok(told)
}

/// How many checkpoints an output has, those of branches that were left included.
///
/// # Errors
/// When their directory cannot be read.
pub fn count(output: &Output) -> Result<usize, TrainError> {
    let checkpoints = output.folder().sub(CHECKPOINTS)?;
    checkpoints.map_or(Ok(0), |folder| {
        Ok(steps(&folder)?.len() + lefts(&folder)?.len())
    })
}

/// The steps of the checkpoints in their directory, ascending.
fn steps(checkpoints: &Folder) -> Result<Vec<u64>, TrainError> {
    let names = checkpoints.entries()?.into_iter();
    let mut steps: Vec<u64> = names
        .filter(|(_, found)| !matches!(found, Found::File | Found::Other))
        .filter_map(|(name, _)| step_of(name.to_str()?))
        .collect();
    steps.sort_unstable();
    Ok(steps)
}

/// Checkpoints that were set aside, by step.
fn lefts(checkpoints: &Folder) -> Result<Vec<(u64, u64)>, TrainError> {
    let names = checkpoints.entries()?.into_iter();
    let mut lefts: Vec<(u64, u64)> = names
        .filter(|(_, found)| *found == Found::Folder)
        .filter_map(|(name, _)| left_of(name.to_str()?))
        .collect();
    lefts.sort_unstable();
    Ok(lefts)
}

/// Which of those that were set aside, and of these steps, both in ascending order, go.
fn superfluous(lefts: &[(u64, u64)], steps: &[u64], just_saved: u64, keep: usize) -> Vec<String> {
    let lefts_first = lefts.iter().map(|(step, nth)| left_name(*step, *nth));
    let later = steps.iter().rev().filter(|s| **s > just_saved);
    let older = steps.iter().filter(|s| **s < just_saved);
    let n = (lefts.len() + steps.len()).saturating_sub(keep.max(1));
    let own = later.chain(older).map(|step| name_of(*step));
    lefts_first.chain(own).take(n).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_saved_now_stays_and_what_was_given_up_goes_first() {
        let superfluous = |steps: &[u64], saved, keep| super::superfluous(&[], steps, saved, keep);
        let names = |steps: &[u64]| steps.iter().map(|s| name_of(*s)).collect::<Vec<_>>();
        assert_eq!(superfluous(&[1, 2, 3], 3, 2), names(&[1]));
        assert_eq!(superfluous(&[3], 3, 1), names(&[]));
        // A link that could not be set aside.
        assert_eq!(superfluous(&[4, 5, 6], 5, 2), names(&[6]));
        assert_eq!(superfluous(&[2, 3, 50, 100], 3, 1), names(&[100, 50, 2]));
        assert_eq!(superfluous(&[1, 2, 3], 3, 0), names(&[1, 2]));
        // Branches that were left.
        let lefts = [(8, 1), (8, 2), (10, 1)];
        let gone = super::superfluous(&lefts, &[4, 6], 6, 3);
        assert_eq!(gone, ["step-00000008.left", "step-00000008.left-2"]);
        let gone = super::superfluous(&lefts, &[4, 6], 6, 1);
        assert_eq!(gone[2..], ["step-00000010.left", "step-00000004"]);
    }

    #[test]
    fn only_names_that_are_given_are_taken_for_left() {
        for (step, nth) in [(8, 1), (8, 2), (123_456_789, 17)] {
            let name = left_name(step, nth);
            assert_eq!(left_of(&name), Some((step, nth)), "{name}");
            assert!(is_name(&name) && step_of(&name).is_none());
        }
        for other in [
            "step-00000008",
            "step-00000008.left-1",
            "step-00000008.left-02",
            "step-00000008.left2",
            "step-00000008.left-",
            "step-8.left",
            "step-00000008.kept",
        ] {
            assert_eq!(left_of(other), None, "{other}");
        }
    }
}
