//! Steps that an output directory has a record of and that a start would not resume from.
//!
//! A run that was killed resumes from what it had kept and makes the steps behind that again: that is what
//! keeping is for. But where what was kept is no longer there (checkpoints that were deleted, a drive that
//! is not mounted, a `budget.disk` that leads elsewhere), resuming would lose steps that nobody gave up.
//! Three things tell of it: the output directory's mark (which checkpoint is the newest, where a durable
//! run's state is), `finished.json`, and the metrics.

use std::path::PathBuf;

use lowtide_config::{Resume, Run};
use lowtide_tiers as tiers;

use super::branch::Origin;
use super::ends;
use super::start::{Start, folders, ours};
use crate::checkpoint;
use crate::error::{Absent, TrainError};
use crate::metrics::last_step;
use crate::output::{FINISHED, METRICS, Output};

/// Refuses a start that would lose steps without being asked to, before anything is touched. Otherwise returns a
/// message on which steps of the metrics are made again.
///
/// # Errors
/// [`TrainError::Lost`] with what is not there and where it was expected.
pub(super) fn refuse(
    run: &Run,
    output: &Output,
    start: &Start,
    origin: &Origin,
) -> Result<Option<String>, TrainError> {
    if matches!(origin, Origin::New(_)) || run.checkpoint.resume == Resume::Never {
        return Ok(None);
    }
    let logged = last_step(output.folder(), METRICS)?.unwrap_or(0);
    let from = start.state().map_or(0, |s| s.step);
    let mark = output.kept();
    let lost = |path: PathBuf, absent, told: u64, by: &str| TrainError::Lost {
        path,
        absent,
        output: run.output.clone(),
        told,
        by: by.to_owned(),
        from,
        checkpoint: checkpoint::newest_of(output).map(|(_, dir)| dir),
    };
    if let (Some(path), Start::Anew | Start::Checkpoint(..)) = (output.state_file(), start)
        && logged > from
        && !state_is_there(run)
    {
        let dir = path.parent().unwrap_or(&path);
        // An error of looking there says no more than that it cannot be seen.
        let there = tiers::kept_by(dir).ok().flatten();
        let absent = match there {
            Some(by) if ours(run, dir, by) => Absent::Elsewhere,
            _ => Absent::State,
        };
        return Err(lost(path, absent, logged, METRICS));
    }
    // Of the branch that was left, until there is a checkpoint of this one.
    let finished = match mark.unsaved() {
        None => ends::finished_at(&run.output),
        Some(_) => None,
    };
    let saved = mark.saved.unwrap_or(0);
    let told = finished.unwrap_or(0).max(saved);
    if told > from {
        let by = match finished {
            Some(step) if step >= saved => FINISHED,
            _ => "lowtide's mark there",
        };
        let path = checkpoint::path_of(&run.output, told);
        return Err(lost(path, Absent::Checkpoint, told, by));
    }
    // Where nothing is saved the metrics may be those of the branch that was left, and its note says all.
    Ok((logged > from && *origin == Origin::GoesOn).then(|| match from {
        0 => format!(
            "begins at step 1: the run before made {logged} steps here and was ended before it had saved"
        ),
        _ => format!(
            "steps {} to {logged} of {METRICS} were not saved, and are made again",
            from + 1
        ),
    }))
}

/// Whether this run's state file is where its settings say: its records were looked at.
fn state_is_there(run: &Run) -> bool {
    folders(run)[0].first().is_some_and(|dir| {
        let by = tiers::kept_by(dir).ok().flatten();
        by.is_some_and(|by| ours(run, dir, by))
    })
}
