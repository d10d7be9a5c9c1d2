//! Messages that say themselves whether the model learns to say them.
//!
//! Data files of other trainers mark an assistant's turn as context: OpenAI and Mistral with
//! `weight: 0`, axolotl with `train: false` or `training: false`, others with `loss`, `loss_mask`,
//! `trainable`. A mark that is not read is a turn that is trained on against the file's word.
//!
//! Marks are for the trainer. They are taken out of the message, so that no template sees them.

use serde_json::{Map, Value};

use crate::error::RecordProblem;

/// The keys of a message that mark it. Each has `true` or 1 for a turn that is trained on, `false` or 0
/// for one that is not.
const MARKS: [&str; 8] = [
    "weight",
    "train",
    "training",
    "trainable",
    "train_on_turn",
    "loss",
    "loss_mask",
    "loss_scale",
];

/// Keys of a message that chat templates are known to read.
const KNOWN: [&str; 16] = [
    "role",
    "content",
    "name",
    "tool_calls",
    "tool_call_id",
    "tool_responses",
    "tool_plan",
    "function_call",
    "reasoning",
    "reasoning_content",
    "thinking",
    "thoughts",
    "citations",
    "channel",
    "recipient",
    "prefix",
];

/// Whether templates are known to read a key of a message.
pub(super) fn is_known(key: &str) -> bool {
    KNOWN.contains(&key)
}

/// Whether a message is the assistant's.
pub(super) fn is_assistant(message: &Value) -> bool {
    message["role"] == "assistant"
}

/// Takes the marks out of a message. `None`: it has none. `place` is the message's, for errors.
pub(super) fn take(
    message: &mut Map<String, Value>,
    place: &str,
) -> Result<Option<bool>, RecordProblem> {
    let mut mark: Option<(&str, bool)> = None;
    for key in MARKS {
        // `shift_remove`, because templates may print a message, in the order of its keys.
        let Some(value) = message.shift_remove(key) else {
            continue;
        };
        let Some(trained) = trained(key, &value, place)? else {
            continue;
        };
        match mark {
            Some((other, before)) if before != trained => {
                return Err(RecordProblem::MarksDisagree {
                    place: place.to_owned(),
                    one: other,
                    other: key,
                });
            }
            _ => mark = Some((key, trained)),
        }
    }
    Ok(mark.map(|(_, trained)| trained))
}

fn trained(key: &str, value: &Value, place: &str) -> Result<Option<bool>, RecordProblem> {
    match value {
        Value::Null => return Ok(None),
        Value::Bool(trained) => return Ok(Some(*trained)),
        Value::Number(n) if n.as_f64() == Some(0.0) => return Ok(Some(false)),
        Value::Number(n) if n.as_f64() == Some(1.0) => return Ok(Some(true)),
        _ => {}
    }
    Err(RecordProblem::Mark {
        field: format!("{place}.{key}"),
        found: value.to_string().chars().take(40).collect(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn taken(message: Value) -> (Result<Option<bool>, RecordProblem>, Value) {
        let Value::Object(mut message) = message else {
            panic!("not an object");
        };
        let mark = take(&mut message, "messages[1]");
        (mark, Value::Object(message))
    }

    #[test]
    fn every_mark_is_read_and_taken_out() {
        for key in MARKS {
            for (value, want) in [
                (json!(0), Some(false)),
                (json!(0.0), Some(false)),
                (json!(false), Some(false)),
                (json!(1), Some(true)),
                (json!(1.0), Some(true)),
                (json!(true), Some(true)),
                (json!(null), None),
            ] {
                let (mark, rest) = taken(json!({key: value, "role": "assistant", "z": 1}));
                assert_eq!(mark, Ok(want), "{key}: {value}");
                assert_eq!(rest.to_string(), r#"{"role":"assistant","z":1}"#);
            }
            for wrong in [json!(0.5), json!(2), json!(-1), json!("0"), json!([0])] {
                let problem = taken(json!({ key: wrong })).0.unwrap_err().to_string();
                let want =
                    format!("'messages[1].{key}' is {wrong}, expected 0 or 1, false or true");
                assert_eq!(problem, want);
            }
        }
    }

    #[test]
    fn marks_that_disagree_are_refused() {
        assert_eq!(
            taken(json!({"weight": 0, "train": false})).0,
            Ok(Some(false))
        );
        let problem = taken(json!({"train": true, "weight": 0})).0.unwrap_err();
        assert_eq!(
            problem.to_string(),
            "messages[1]: 'weight' and 'train' say the opposite of each other"
        );
    }
}
