//! A conversation's messages as other programs write them, made into messages with a role and a text.
//!
//! Read are: ShareGPT's `from` and `value` with its names of who speaks, its calls of functions and what they give
//! back; a content that is a list of parts of text, as OpenAI's and multimodal data have it; and tools in a string,
//! as Arrow and Parquet keep them.

use lowtide_files::{Unique, json_words};
use serde_json::{Map, Value, json};

use super::foreign;
use super::jsonl::{names, wrong_type};
use crate::error::RecordProblem;

/// Who speaks, by ShareGPT's names and those that others use in its place.
const SPEAKERS: [(&str, &str); 15] = [
    ("system", "system"),
    ("developer", "developer"),
    ("human", "user"),
    ("user", "user"),
    ("gpt", "assistant"),
    ("assistant", "assistant"),
    ("chatgpt", "assistant"),
    ("model", "assistant"),
    ("bot", "assistant"),
    ("bing", "assistant"),
    ("bard", "assistant"),
    ("tool", "tool"),
    ("observation", "tool"),
    ("function_response", "tool"),
    ("function-response", "tool"),
];

/// Roles that a message of a function call has.
const CALLERS: [&str; 2] = ["function_call", "function-call"];

/// Makes a message of a list one with `role` and `content`, and checks it. `place` is its own, for errors.
pub(super) fn make_plain(message: &mut Value, place: &str) -> Result<(), RecordProblem> {
    let Value::Object(fields) = message else {
        return Err(wrong_type(place, "an object", message));
    };
    if foreign::is_sharegpt(fields) {
        from_sharegpt(fields, place)?;
    }
    if let Some(Value::Array(parts)) = fields.get("content") {
        let text = joined(parts, &format!("{place}.content"))?;
        fields.insert("content".to_owned(), Value::String(text));
    }
    check(fields, place)
}

/// ShareGPT's message in other words.
fn from_sharegpt(fields: &mut Map<String, Value>, place: &str) -> Result<(), RecordProblem> {
    let field = |name: &str| format!("{place}.{name}");
    let from = match &fields["from"] {
        Value::String(from) => from.to_lowercase(),
        other => return Err(wrong_type(&field("from"), "a string", other)),
    };
    let value = fields.remove("value").unwrap_or_default();
    if CALLERS.contains(&from.as_str()) {
        fields.insert("tool_calls".to_owned(), calls(&value, &field("value"))?);
        fields.insert("role".to_owned(), json!("assistant"));
        fields.remove("from");
        return Ok(());
    }
    let role = SPEAKERS.iter().find(|(name, _)| *name == from);
    let Some((_, role)) = role else {
        return Err(RecordProblem::UnknownRole {
            field: field("from"),
            role: from.chars().take(64).collect(),
        });
    };
    fields.remove("from");
    fields.insert("role".to_owned(), json!(role));
    fields.insert("content".to_owned(), value);
    Ok(())
}

/// Calls of functions, from one call or a list of them, as JSON or as a string that holds it.
fn calls(value: &Value, place: &str) -> Result<Value, RecordProblem> {
    let inner;
    let value = match value {
        Value::String(text) => {
            inner = inner_json(text, place)?;
            &inner
        }
        value => value,
    };
    let one = |call: &Value, place: &str| match call {
        Value::Object(call) if call.contains_key("name") => {
            Ok(json!({ "type": "function", "function": call }))
        }
        Value::Object(call) => Err(RecordProblem::MissingField {
            field: format!("{place}.name"),
            have: names(call),
        }),
        other => Err(wrong_type(place, "an object", other)),
    };
    let all: Result<Vec<Value>, _> = match value {
        Value::Array(list) => {
            let each = list.iter().enumerate();
            each.map(|(i, call)| one(call, &format!("{place}[{i}]")))
                .collect()
        }
        call => one(call, place).map(|call| vec![call]),
    };
    all.map(Value::Array)
}

/// The texts of a content in parts, one behind the other.
fn joined(parts: &[Value], place: &str) -> Result<String, RecordProblem> {
    let mut all = String::new();
    for (i, part) in parts.iter().enumerate() {
        let place = format!("{place}[{i}]");
        match part {
            Value::String(text) => all.push_str(text),
            Value::Object(part) => {
                match (part.get("type").filter(|t| !t.is_null()), part.get("text")) {
                    (None, Some(Value::String(text))) => all.push_str(text),
                    (Some(Value::String(kind)), Some(Value::String(text))) if kind == "text" => {
                        all.push_str(text);
                    }
                    (Some(Value::String(kind)), _) if kind != "text" => {
                        return Err(RecordProblem::Part {
                            field: place,
                            kind: kind.chars().take(64).collect(),
                        });
                    }
                    (_, Some(other)) => {
                        return Err(wrong_type(&format!("{place}.text"), "a string", other));
                    }
                    (_, None) => {
                        return Err(RecordProblem::MissingField {
                            field: format!("{place}.text"),
                            have: names(part),
                        });
                    }
                }
            }
            other => return Err(wrong_type(&place, "an object or a string", other)),
        }
    }
    Ok(all)
}

/// Whether a message has a role that chat data has, and a text or calls of tools.
fn check(fields: &Map<String, Value>, place: &str) -> Result<(), RecordProblem> {
    let field = |name: &str| format!("{place}.{name}");
    match fields.get("role") {
        Some(Value::String(role)) => match role.as_str() {
            "system" | "developer" | "user" | "assistant" | "tool" => {}
            role => {
                let role = role.chars().take(64).collect();
                return Err(RecordProblem::UnknownRole {
                    field: field("role"),
                    role,
                });
            }
        },
        Some(other) => return Err(wrong_type(&field("role"), "a string", other)),
        None => {
            return Err(RecordProblem::MissingField {
                field: field("role"),
                have: names(fields),
            });
        }
    }
    let calls_tools = fields
        .get("tool_calls")
        .is_some_and(|calls| !calls.is_null());
    match fields.get("content") {
        Some(Value::String(_)) => Ok(()),
        None | Some(Value::Null) if calls_tools => Ok(()),
        Some(other) => Err(wrong_type(&field("content"), "a string", other)),
        None => Err(RecordProblem::MissingField {
            field: field("content"),
            have: names(fields),
        }),
    }
}

/// JSON that stands in a string, in which no key may be there twice.
fn inner_json(text: &str, field: &str) -> Result<Value, RecordProblem> {
    let read = serde_json::from_str::<Unique>(text);
    let read = read.map_err(|e| RecordProblem::InnerJson {
        field: field.to_owned(),
        reason: json_words(&e),
    })?;
    Ok(read.0)
}

/// The tools of a record. Arrow and Parquet hold lists of objects as strings, so a string is read as
/// the JSON in it; so is one that stands for a single tool.
pub(super) fn tools(value: Option<Value>, field: &str) -> Result<Option<Value>, RecordProblem> {
    let value = match value {
        Some(Value::String(text)) if text.trim().is_empty() => None,
        Some(Value::String(text)) => Some(inner_json(&text, field)?),
        value => value,
    };
    let mut list = match value {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Array(list)) => list,
        Some(other) => return Err(wrong_type(field, "a list", &other)),
    };
    for (i, tool) in list.iter_mut().enumerate() {
        let place = format!("{field}[{i}]");
        if let Value::String(text) = tool {
            *tool = inner_json(text, &place)?;
        }
        if !tool.is_object() {
            return Err(wrong_type(&place, "an object", tool));
        }
    }
    Ok((!list.is_empty()).then_some(Value::Array(list)))
}

/// An instruction with its answer, as Stanford Alpaca's data have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// What comes before the conversation, if the record has it.
    pub system: Option<String>,
    /// What is asked.
    pub instruction: String,
    /// What it is asked about; may be empty.
    pub input: String,
    /// What is trained on, as Alpaca names it.
    pub output: String,
}

impl Instruction {
    /// With this system prompt where it brings none.
    pub(super) fn with_system(self, system: Option<&String>) -> Self {
        Self {
            system: self.system.or_else(|| system.cloned()),
            ..self
        }
    }

    /// As a conversation: input on a line below the instruction, as LLaMA-Factory joins them.
    pub(super) fn conversation(self) -> Vec<Value> {
        let asked = match self.input.trim().is_empty() {
            true => self.instruction,
            false => format!("{}\n{}", self.instruction, self.input),
        };
        let mut all = Vec::new();
        all.extend(
            self.system
                .map(|text| json!({ "role": "system", "content": text })),
        );
        all.push(json!({ "role": "user", "content": asked }));
        all.push(json!({ "role": "assistant", "content": self.output }));
        all
    }

    /// As a prompt and its completion, in the words of Stanford Alpaca (github.com/tatsu-lab/stanford_alpaca,
    /// "Data Release").
    pub(super) fn prompt_completion(self) -> (String, String) {
        let (system, asked) = (self.system, self.instruction);
        let prompt = match self.input.trim().is_empty() {
            true => {
                let begin = system.unwrap_or_else(|| {
                    "Below is an instruction that describes a task. Write a response that appropriately completes \
                     the request."
                        .to_owned()
                });
                format!("{begin}\n\n### Instruction:\n{asked}\n\n### Response:\n")
            }
            false => {
                let begin = system.unwrap_or_else(|| {
                    "Below is an instruction that describes a task, paired with an input that provides further \
                     context. Write a response that appropriately completes the request."
                        .to_owned()
                });
                let input = self.input;
                format!(
                    "{begin}\n\n### Instruction:\n{asked}\n\n### Input:\n{input}\n\n### Response:\n"
                )
            }
        };
        (prompt, self.output)
    }
}

#[cfg(test)]
#[path = "messages_tests.rs"]
mod tests;
