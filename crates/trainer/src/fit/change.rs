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
    (numerics, total): (&Value, u64),
) -> Result<Vec<Change>, TrainError> {
    let named = &run.checkpoint.change;
    let mut changes = Vec::new();
    for (part, theirs, ours) in differences(&state.numerics, numerics) {
        let one_side = theirs.is_null() || ours.is_null();
        let Some(key) = named.iter().find(|k| may_change(k, &part, one_side)) else {
            if part.starts_with(LENGTH) {
                return Err(other_length(path, part, state, (numerics, total)));
            }
            let [theirs, ours] = brief(&theirs, &ours);
            return Err(TrainError::OtherRun {
                path: path.to_owned(),
                may_change: keys_that_change(&part).next(),
                key: part,
                theirs,
                ours,
                again: None,
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

/// Where settings have how long the run is.
const LENGTH: &str = "train.schedule.length";

/// The key that says how long a run of these settings is, with its value; `None` where nothing depends on it.
fn length_of(numerics: &Value) -> Option<(&'static str, f64)> {
    let length = &numerics["train"]["schedule"]["length"];
    [("steps", "train.steps"), ("epochs", "train.epochs")]
        .into_iter()
        .find_map(|(part, key)| Some((key, length[part].as_f64()?)))
}

/// A length for people.
fn text_of(length: Option<(&'static str, f64)>) -> String {
    length.map_or("none".to_owned(), |(key, n)| format!("{key} {n}"))
}

/// The run is of another length than the checkpoint's. One that would end before the checkpoint cannot go on from it
/// whatever it names.
fn other_length(
    path: &Path,
    part: String,
    state: &RunState,
    (numerics, total): (&Value, u64),
) -> TrainError {
    let [theirs, ours] = [length_of(&state.numerics), length_of(numerics)];
    let key = ours.or(theirs).map(|(key, _)| key);
    TrainError::OtherRun {
        path: path.to_owned(),
        may_change: key.filter(|_| state.step <= total),
        key: part,
        theirs: text_of(theirs),
        ours: text_of(ours),
        again: theirs.map(|(key, n)| format!("{key}={n}")),
    }
}

/// Lines about changes. That of a length is one, whichever of its two keys either side has.
fn lines(changes: &[Change], [theirs, ours]: [&Value; 2]) -> Vec<String> {
    let mut all = Vec::new();
    let mut of_length = false;
    for c in changes {
        if !c.part.starts_with(LENGTH) {
            let [from, to] = brief(&c.from, &c.to);
            all.push(format!("{}: {from} -> {to}", c.name()));
        } else if !std::mem::replace(&mut of_length, true) {
            all.push(match [length_of(theirs), length_of(ours)] {
                [Some((key, from)), Some((now, to))] if key == now => {
                    format!("{key}: {from} -> {to}")
                }
                [from, to] => format!("{} -> {}", text_of(from), text_of(to)),
            });
        }
    }
    all
}

/// Two values that differ, for a line: names of tensors are as many as a model has. Of long ones what comes before the
/// difference is left out, and what is far behind it.
fn brief(a: &Value, b: &Value) -> [String; 2] {
    const MOST: usize = 200;
    const BEFORE: usize = 60;
    // A key that only one of the two runs has.
    let text = |v: &Value| match v {
        Value::Null => "none".to_owned(),
        v => v.to_string(),
    };
    let texts = [text(a), text(b)];
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
        for line in lines(&changes, [&self.state.numerics, &self.numerics]) {
            self.observer
                .note(&format!("changed after step {step}: {line}"));
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

    fn of(length: Value) -> Value {
        json!({"train": {"schedule": {"length": length}}})
    }

    #[test]
    fn a_length_has_its_key() {
        let state = |step, length| {
            let mut state = RunState::new();
            (state.step, state.numerics) = (step, of(length));
            state
        };
        let refused = |state: &RunState, ours, total| match other_length(
            Path::new("c"),
            LENGTH.to_owned(),
            state,
            (&of(ours), total),
        ) {
            TrainError::OtherRun {
                may_change,
                theirs,
                ours,
                again,
                ..
            } => (may_change, theirs, ours, again.unwrap_or_default()),
            other => panic!("{other}"),
        };
        let epochs = |n: f64| json!({ "epochs": n });
        let want = |may, theirs: &str, ours: &str, again: &str| {
            (may, theirs.to_owned(), ours.to_owned(), again.to_owned())
        };
        assert_eq!(
            refused(&state(3, epochs(3.0)), epochs(40.0), 40),
            want(
                Some("train.epochs"),
                "train.epochs 3",
                "train.epochs 40",
                "train.epochs=3"
            )
        );
        // The run would end before the checkpoint: naming the key would not help.
        assert_eq!(
            refused(&state(40, epochs(40.0)), epochs(3.0), 3),
            want(None, "train.epochs 40", "train.epochs 3", "train.epochs=40")
        );
        assert_eq!(
            refused(&state(3, epochs(3.0)), json!({"steps": 60}), 60),
            want(
                Some("train.steps"),
                "train.epochs 3",
                "train.steps 60",
                "train.epochs=3"
            )
        );
        let change = |part: &str, from, to| Change {
            after_step: 3,
            key: "train.steps".to_owned(),
            part: format!("{LENGTH}.{part}"),
            from,
            to,
        };
        let both = [
            change("epochs", json!(50.0), Value::Null),
            change("steps", Value::Null, json!(60)),
        ];
        let sides = [&of(epochs(50.0)), &of(json!({"steps": 60}))];
        assert_eq!(lines(&both, sides), ["train.epochs 50 -> train.steps 60"]);
        let sides = [&of(epochs(40.0)), &of(epochs(50.0))];
        let one = [change("epochs", json!(40.0), json!(50.0))];
        assert_eq!(lines(&one, sides), ["train.epochs: 40 -> 50"]);
    }

    #[test]
    fn long_values_show_where_they_differ() {
        assert_eq!(brief(&json!(1.5), &json!(null)), ["1.5", "none"]);
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
