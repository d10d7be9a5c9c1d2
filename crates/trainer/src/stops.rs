//! The tokens at which an answer ends: what the tokenizer, the chat template and the model's own files say.

use std::collections::BTreeSet;
use std::path::Path;

use lowtide_config::{ModelSource, Run};
use serde_json::{Map, Value};

use crate::error::TrainError;
use crate::planning::shape_of;
use lowtide_data::{Tokenizer, end_of_turn};

/// The token ids at which decoding stops. An answer is what stands before the first of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stops {
    ids: BTreeSet<i32>,
    end_of_turn: Option<(i32, String)>,
}

impl Stops {
    /// Stops at these ids, none of which ends a turn of a conversation.
    #[must_use]
    pub fn of(ids: impl IntoIterator<Item = i32>) -> Self {
        Self {
            ids: ids.into_iter().collect(),
            end_of_turn: None,
        }
    }

    /// Whether an answer ends at `token`.
    #[must_use]
    pub fn contains(&self, token: i32) -> bool {
        self.ids.contains(&token)
    }

    /// The ids, ascending.
    pub fn ids(&self) -> impl Iterator<Item = i32> + '_ {
        self.ids.iter().copied()
    }

    /// The same, and for chats the tokens with which the chat template ends the assistant's turns.
    #[must_use]
    pub fn with_turns(mut self, tokenizer: &Tokenizer) -> Self {
        if let Ok(Some(end)) = end_of_turn(tokenizer) {
            self.ids.extend(end.tokens.iter().map(|(id, _)| id));
            self.end_of_turn = end.tokens.into_iter().next();
        }
        self
    }

    /// The token with which the chat template ends a turn, and its text; none if the data are no chats.
    #[must_use]
    pub fn end_of_turn(&self) -> Option<(i32, &str)> {
        self.end_of_turn
            .as_ref()
            .map(|(id, text)| (*id, text.as_str()))
    }

    /// What stands before the first stop.
    #[must_use]
    pub fn before<'a>(&self, answer: &'a [i32]) -> &'a [i32] {
        let end = answer.iter().position(|&t| self.contains(t));
        &answer[..end.unwrap_or(answer.len())]
    }
}

/// The stops of a run: the tokenizer's end of sequence, and every `eos_token_id` of the model's
/// `generation_config.json` and `config.json`.
///
/// # Errors
/// A file that is there and is not what it must be; an id that is not one of the model's tokens.
pub fn stops_of(run: &Run, tokenizer: &Tokenizer) -> Result<Stops, TrainError> {
    let mut ids: BTreeSet<i32> = tokenizer.eos().into_iter().collect();
    if let ModelSource::Path(dir) = &run.model.source {
        let shape = shape_of(run)?;
        if !shape.objective.is_next_token() {
            return Ok(Stops::default());
        }
        let vocab = shape.vocab;
        for name in ["generation_config.json", "config.json"] {
            ids.extend(eos_ids(&dir.join(name), vocab)?);
        }
    }
    Ok(Stops::of(ids))
}

/// What people should hear before chats are trained on: an end of turn that is not the tokenizer's end
/// of sequence, or one that no answer can stop at.
#[must_use]
pub fn note_of_ends(tokenizer: &Tokenizer) -> Option<String> {
    let end = match end_of_turn(tokenizer) {
        Ok(end) => end?,
        Err(reason) => {
            return Some(format!(
                "chat template: where it ends a turn cannot be told ({reason}): decoding stops at the \
                 tokenizer's end of sequence alone"
            ));
        }
    };
    let names: Vec<&str> = end.tokens.iter().map(|(_, text)| text.as_str()).collect();
    let eos = tokenizer.eos_text();
    if names.is_empty() {
        let text = end.text.chars().take(40).collect::<String>();
        return Some(format!(
            "chat template: it writes {text:?} behind an answer, which is no token to stop at: the model does \
             not learn where to stop"
        ));
    }
    if end.unmarked {
        return Some(format!(
            "chat template: its {{% generation %}} leaves out {}, with which it ends a turn: the model does not \
             learn where to stop",
            names[0]
        ));
    }
    if eos.is_some_and(|eos| names.contains(&eos)) {
        return None;
    }
    Some(format!(
        "chat template: it ends turns with {}, the tokenizer names {} as the end of sequence: decoding stops \
         at {} too, and so does the exported model",
        names.join(" and "),
        eos.unwrap_or("no token"),
        if names.len() == 1 { "it" } else { "them" }
    ))
}

/// The `eos_token_id` of a JSON file, a number or a list of them; none where there is no file. Each is one of a
/// model's `vocab` tokens: at another nothing can stop, and the export would name it to others.
fn eos_ids(path: &Path, vocab: u32) -> Result<Vec<i32>, TrainError> {
    let file = json_object(path, lowtide_files::SMALL)?.unwrap_or_default();
    let id = |id: i64| match i32::try_from(id) {
        Ok(token) if token >= 0 && id < i64::from(vocab) => Ok(token),
        _ => Err(TrainError::File {
            path: path.to_owned(),
            what: format!(
                "eos_token_id has {id}, and the model's tokens are 0 to {}; leave the key out where there is no \
                 such token",
                vocab - 1
            ),
        }),
    };
    eos_values(&file, path)?.into_iter().map(id).collect()
}

/// What `eos_token_id` lists in the object of a JSON file, as it stands there; `path` is for errors.
pub(crate) fn eos_values(file: &Map<String, Value>, path: &Path) -> Result<Vec<i64>, TrainError> {
    let fail = |what: String| TrainError::File {
        path: path.to_owned(),
        what,
    };
    let ids: Vec<&Value> = match file.get("eos_token_id") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(list)) => list.iter().collect(),
        Some(one) => vec![one],
    };
    let id = |value: &Value| {
        value.as_i64().ok_or_else(|| {
            fail(format!(
                "eos_token_id has {value} where a token id must stand"
            ))
        })
    };
    ids.into_iter().map(id).collect()
}

/// The object in a JSON file of a model of at most `most` bytes, or nothing where there is no file.
pub(crate) fn json_object(
    path: &Path,
    most: u64,
) -> Result<Option<Map<String, Value>>, TrainError> {
    let fail = |what: String| TrainError::File {
        path: path.to_owned(),
        what,
    };
    let bytes = match lowtide_files::read(path, most) {
        Ok(bytes) => bytes,
        Err(e) if e.is_missing() => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    let object = lowtide_files::json_from_slice(&bytes);
    object
        .map(Some)
        .map_err(|e| fail(format!("not a JSON object: {e}")))
}

#[cfg(test)]
#[path = "stops_tests.rs"]
mod tests;
