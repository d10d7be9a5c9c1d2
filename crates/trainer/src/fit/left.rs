//! Whose metrics a branch continues: those of the curve that its checkpoint is of.
//!
//! A checkpoint has the losses of its last steps. Metrics with the same losses at those steps belong to its curve up
//! to there; others do not, whatever they are called: the output may belong to another run, and a checkpoint that was
//! set aside to a branch that was left.

use std::io::{BufRead, BufReader, copy};

use serde_json::Value;

use crate::checkpoint::{self, RunState};
use crate::error::TrainError;
use crate::output::folder::{Folder, Found};
use crate::output::mark::Branch;
use crate::output::{ANSWERS, ANSWERS_LEFT, ANSWERS_LEFT_2, METRICS, METRICS_LEFT, METRICS_LEFT_2};

/// The names of a run's metrics and answers, those of the branch that was left last, and those of the one
/// that was left before, where the branch that is begun goes back to that.
const NAMES: [[&str; 2]; 3] = [
    [METRICS, ANSWERS],
    [METRICS_LEFT, ANSWERS_LEFT],
    [METRICS_LEFT_2, ANSWERS_LEFT_2],
];

/// Copies the metrics and answers of a branch that is left, before the output's mark says that another is begun.
/// Those of the one left before go, unless they are of the curve that the checkpoint `at` is of.
pub(super) fn keep(folder: &Folder, at: Option<&RunState>) -> Result<(), TrainError> {
    let [now, left, before] = NAMES;
    // A process that died here has set them aside already.
    if let Some(at) = at
        && is_of(folder, now[0], at)? != Some(true)
        && is_of(folder, left[0], at)? == Some(true)
        && is_of(folder, before[0], at)? != Some(true)
    {
        put(folder, left, before)?;
    }
    put(folder, now, left)
}

/// Gives a branch that begins, or begins again, the metrics and answers of the curve that its checkpoint belongs to,
/// as far as they are known: where the run's own are those of a branch that never saved (`given_up`), the ones that
/// `keep` has copied. Lines after its step are not cut yet.
pub(super) fn put_back(
    folder: &Folder,
    branch: &Branch,
    at: Option<&RunState>,
    given_up: bool,
) -> Result<(), TrainError> {
    let [now, left, before] = NAMES;
    let order = match given_up {
        true => [left, now, before],
        false => [now, left, before],
    };
    let mut found = None;
    for names in order {
        let fits = match at {
            None => true,
            Some(at) => {
                let same = is_of(folder, names[0], at)?;
                same.unwrap_or(names == order[0] && checkpoint::shared(branch) > 0)
            }
        };
        found = found.or(fits.then_some(names));
    }
    match found {
        Some(names) if names != now => put(folder, names, now)?,
        Some(_) => (),
        None => {
            for name in now.into_iter().rev() {
                remove(folder, name)?;
            }
        }
    }
    for name in before {
        remove(folder, name)?;
    }
    Ok(())
}

/// Whether a metrics file is of the curve of a checkpoint; `None` where it has none of the steps of which the
/// checkpoint knows the loss.
fn is_of(folder: &Folder, name: &str, at: &RunState) -> Result<Option<bool>, TrainError> {
    let known = &at.totals.last_losses;
    let mut same = None;
    each(folder, name, |record| {
        let step = record["step"].as_u64();
        let known = known.iter().find(|(of, _)| Some(*of) == step);
        if let (Some((_, bits)), Some(loss)) = (known, record["loss"].as_f64()) {
            // Parsing may be off by the last bit.
            let fits = (loss - f64::from_bits(*bits)).abs() <= 1e-12 * loss.abs();
            same = Some(same.unwrap_or(true) && fits);
        }
    })?;
    Ok(same)
}

/// Calls `take` with each record of a file up to the first line that is none.
fn each(folder: &Folder, name: &str, mut take: impl FnMut(&Value)) -> Result<(), TrainError> {
    if folder.found(name)? == Found::Nothing {
        return Ok(());
    }
    let path = folder.at(name);
    let mut reader = BufReader::new(folder.read(name)?);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = reader.read_until(b'\n', &mut line);
        if read.map_err(TrainError::io(&path))? == 0 {
            return Ok(());
        }
        let Ok(record) = serde_json::from_slice(&line) else {
            return Ok(());
        };
        take(&record);
    }
}

/// Has the files `to` be what `from` are. Metrics come last: they say whose both are.
fn put(folder: &Folder, from: [&str; 2], to: [&str; 2]) -> Result<(), TrainError> {
    for (from, to) in from.into_iter().zip(to).rev() {
        if folder.found(from)? == Found::Nothing {
            remove(folder, to)?;
            continue;
        }
        let mut file = folder.read(from)?;
        folder.write(to, |out| copy(&mut file, out).map(drop))?;
    }
    Ok(())
}

fn remove(folder: &Folder, name: &str) -> Result<(), TrainError> {
    if folder.found(name)? != Found::Nothing {
        folder.remove(name)?;
    }
    Ok(())
}
