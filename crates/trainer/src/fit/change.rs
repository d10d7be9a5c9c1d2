//! Resuming with other settings than the checkpoint's: those that the run names, and no others.

use std::path::Path;

use lowtide_config::{Run, keys_that_change, may_change};
use serde_json::Value;

use super::Fit;
use crate::checkpoint::{Change, RunState, differences};
use crate::error::TrainError;

/// What differs between the settings of a checkpoint (or a journal) at `path` and this run's.
///
/// # Errors
/// [`TrainError::OtherRun`] with the first difference that the run does not name.
pub(super) fn changes(
    run: &Run,
    path: &Path,
    state: &RunState,
    ours: &Value,
) -> Result<Vec<Change>, TrainError> {
    let named = &run.checkpoint.change;
    let mut changes = Vec::new();
    for (part, theirs, ours) in differences(&state.numerics, ours) {
        let one_side = theirs.is_null() || ours.is_null();
        let Some(key) = named.iter().find(|k| may_change(k, &part, one_side)) else {
            return Err(TrainError::OtherRun {
                path: path.to_owned(),
                may_change: keys_that_change(&part).next(),
                key: part,
                theirs: brief(&theirs),
                ours: brief(&ours),
            });
        };
        changes.push(Change {
            after_step: state.step,
            key: (*key).to_owned(),
            part,
            from: theirs,
            to: ours,
        });
    }
    Ok(changes)
}

/// A value for a line: names of tensors are as many as a model has.
fn brief(value: &Value) -> String {
    const MOST: usize = 200;
    let text = value.to_string();
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{} ...", &text[..end]),
        None => text,
    }
}

impl Fit<'_> {
    /// Takes the changes over and reports them.
    pub(super) fn change(&mut self, changes: Vec<Change>) {
        let step = self.state.step;
        for c in &changes {
            self.observer.note(&format!(
                "changed after step {step}: {}: {} -> {}",
                c.name(),
                brief(&c.from),
                brief(&c.to)
            ));
        }
        let of_rate =
            |c: &Change| c.part.starts_with("train.schedule") || c.part == "train.learning_rate";
        if changes.iter().any(of_rate) && step < self.total {
            self.observer.note(&format!(
                "the learning rate goes on at step {} of {} of the new curve, with {:.3e}: not the steps that a \
                 run with these settings from the start would have made",
                step + 1,
                self.total,
                self.schedule.lr(step, self.total),
            ));
        }
        self.state.changes.extend(changes);
        self.state.numerics = self.numerics.clone();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn long_values_are_cut_between_characters() {
        assert_eq!(brief(&json!(1.5)), "1.5");
        let long = brief(&json!(vec!["größer"; 99]));
        assert!(
            long.chars().count() == 204 && long.ends_with(" ..."),
            "{long}"
        );
    }
}
