//! Steps that an output directory has a record of and that a start would not resume from.
//!
//! A run that was killed resumes from what it had kept and makes the steps behind that again: that is what
//! keeping is for. But where what was kept is no longer there (checkpoints that were deleted, a drive that
//! is not mounted, a `budget.disk` that leads elsewhere), resuming would lose steps that nobody gave up.
//! Three things tell of it: the output directory's mark (which checkpoint is the newest, where a durable
//! run's state is), `finished.json`, and the metrics.

use std::fs;
use std::path::PathBuf;

use lowtide_config::{Resume, Run};
use lowtide_report::{REPORT, account};
use lowtide_tiers as tiers;
use serde_json::Value;

use super::branch::Origin;
use super::ends;
use super::start::{Start, folders, ours};
use crate::checkpoint;
use crate::error::{Absent, TrainError};
use crate::metrics::last_step;
use crate::output::folder::Found;
use crate::output::{FINISHED, METRICS, Output, RUN};

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
    if *origin == Origin::GoesOn
        && let Some(gap) = gap(output, logged, from)
    {
        return Ok(Some(gap));
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

/// Says which steps before the one that a run resumes from have no line in its metrics, beyond those between two lines.
fn gap(output: &Output, logged: u64, from: u64) -> Option<String> {
    if from == 0 {
        return None;
    }
    let path = output.folder().at(METRICS);
    let named = path.display();
    if logged == 0 {
        let how = match output.folder().found(METRICS) {
            Ok(Found::Nothing) => "is not there",
            _ => "has no step",
        };
        return Some(format!(
            "warning: {named} {how}: of the steps up to {from} nothing is known but what the checkpoint has; the file \
             begins with the next one"
        ));
    }
    // Steps between two lines have none; the process before may have written fewer lines.
    let settings = fs::read_to_string(output.folder().at(RUN)).unwrap_or_default();
    let settings: Value = serde_json::from_str(&settings).unwrap_or_default();
    let before = settings["log"]["every_steps"].as_u64().unwrap_or(1);
    // Who made the steps says more than who began last, or who goes on.
    let told = account(&output.folder().at(REPORT));
    let processes = told.ok().flatten().unwrap_or_default().processes;
    let due = match account::lines(&processes, logged, from) {
        Some((lines, _)) => lines > 0,
        None => logged.saturating_add(before) < from,
    };
    due.then(|| {
        let steps = match logged + 1 {
            first if first == from => format!("no line of step {from}"),
            first => format!("no lines of steps {first} to {from}"),
        };
        format!("warning: {named} ends at step {logged}: it has {steps}")
    })
}

/// Whether this run's state file is where its settings say: its records were looked at.
fn state_is_there(run: &Run) -> bool {
    folders(run)[0].first().is_some_and(|dir| {
        let by = tiers::kept_by(dir).ok().flatten();
        by.is_some_and(|by| ours(run, dir, by))
    })
}
