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
            let [theirs, ours] = brief(&theirs, &ours);
            return Err(TrainError::OtherRun {
                path: path.to_owned(),
                may_change: keys_that_change(&part).next(),
                key: part,
                theirs,
                ours,
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

/// Two values that differ, for a line: names of tensors are as many as a model has. Of long ones what comes before the
/// difference is left out, and what is far behind it.
fn brief(a: &Value, b: &Value) -> [String; 2] {
    const MOST: usize = 200;
    const BEFORE: usize = 60;
    let texts = [a.to_string(), b.to_string()];
    if texts.iter().all(|text| text.chars().count() <= MOST) {
        return texts;
    }
    let alike = texts[0].chars().zip(texts[1].chars());
    let from = alike.take_while(|(x, y)| x == y).count();
    let from = from.saturating_sub(BEFORE);
    texts.map(|text| {
        let part: String = text.chars().skip(from).take(MOST).collect();
        let before = if from > 0 { "... " } else { "" };
        let after = match text.chars().nth(from + MOST) {
            Some(_) => " ...",
            None => "",
        };
        format!("{before}{part}{after}")
    })
}

impl Fit<'_> {
    /// Takes the changes over and reports them.
    pub(super) fn change(&mut self, changes: Vec<Change>) {
        let step = self.state.step;
        for c in &changes {
            let [from, to] = brief(&c.from, &c.to);
            let name = c.name();
            self.observer.note(&format!(
                "changed after step {step}: {name}: {from} -> {to}"
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
    fn long_values_show_where_they_differ() {
        assert_eq!(brief(&json!(1.5), &json!(null)), ["1.5", "null"]);
        let names = |n: usize| json!(vec!["größer"; n]);
        let [a, b] = brief(&names(99), &names(98));
        assert_ne!(a, b);
        for text in [&a, &b] {
            assert!(
                text.starts_with("... ") && text.chars().count() < 209,
                "{text}"
            );
        }
        let mut other = vec!["größer"; 99];
        other[0] = "kleiner";
        let [a, b] = brief(&names(99), &json!(other));
        assert!(
            a.starts_with("[\"größer") && b.starts_with("[\"kleiner"),
            "{a} {b}"
        );
        assert!(a.ends_with(" ..."), "{a}");
    }
}
