//! Records: their formats, what each must have, and errors that name the field.
//!
//! One file because each format is its fields, its record and its checks, which are read together.

use std::fmt;

use lowtide_files::{Unique, json_words};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::foreign;
use super::marks;
use super::messages::{Instruction, make_plain, tools};
use crate::error::RecordProblem;

/// What the records of a file are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Format {
    /// A conversation: a list of messages with role and content, and optional tools. Its beginning may be apart: a
    /// prompt and its completion, two lists of messages, as TRL has them.
    Messages,
    /// A prompt and its completion, two strings.
    PromptCompletion,
    /// A string under one field.
    Text,
    /// Alpaca's: `instruction`, `output`, and perhaps `input` and `system`. A conversation where the tokenizer has a
    /// chat template, else a prompt in Alpaca's words and its completion.
    Alpaca,
    /// A text, perhaps a second one, and the class of both. No record is taken for one by itself: the model's kind
    /// decides.
    Classes,
    /// A source and its target, two strings, for a model with an encoder and a decoder. No record is taken for one by
    /// itself: the model's kind decides.
    Pair,
}

impl Format {
    /// Every format that a record can be recognised as, in the order in which it is tried.
    pub const ALL: [Self; 4] = [
        Self::Messages,
        Self::PromptCompletion,
        Self::Text,
        Self::Alpaca,
    ];

    /// Its name, as users write it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Messages => "messages",
            Self::PromptCompletion => "prompt/completion",
            Self::Text => "text",
            Self::Alpaca => "Alpaca",
            Self::Classes => "text/label",
            Self::Pair => "source/target",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The names of the fields in the file; by default the names of the [`Format`]s' parts.
#[derive(Clone, PartialEq, Eq)]
pub struct Fields {
    /// The list of messages.
    pub messages: String,
    /// The list of tools (optional in every record).
    pub tools: String,
    /// Field that holds the prompt.
    pub prompt: String,
    /// Field that holds the completion.
    pub completion: String,
    /// Field that holds plain text.
    pub text: String,
    /// Those that records of [`Format::Classes`] have beside it.
    pub class: Option<ClassFields>,
    /// Those that records of [`Format::Pair`] have.
    pub pair: Option<PairFields>,
}

/// The names of the fields of a pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairFields {
    /// Field that holds the source.
    pub source: String,
    /// Field that holds the target.
    pub target: String,
}

/// The names of fields beside a text that has a class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassFields {
    /// Field that holds a second text; a record may be without.
    pub text_pair: String,
    /// Field that holds the class: its number or its name.
    pub label: String,
}

/// As it was before there were [`ClassFields`] and [`PairFields`], where there are none: it is part of what names kept
/// tokens.
impl fmt::Debug for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut all = f.debug_struct("Fields");
        all.field("messages", &self.messages)
            .field("tools", &self.tools)
            .field("prompt", &self.prompt)
            .field("completion", &self.completion)
            .field("text", &self.text);
        if let Some(class) = &self.class {
            all.field("class", class);
        }
        if let Some(pair) = &self.pair {
            all.field("pair", pair);
        }
        all.finish()
    }
}

impl Fields {
    /// Whether a format of records reads a field of this name.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        let named = [
            &self.messages,
            &self.tools,
            &self.prompt,
            &self.completion,
            &self.text,
        ];
        let own = [CONVERSATIONS, SYSTEM, HISTORY, INPUT];
        let mut class = self.class.iter();
        if class.any(|class| class.text_pair == name || class.label == name) {
            return true;
        }
        let mut pair = self.pair.iter();
        if pair.any(|pair| pair.source == name || pair.target == name) {
            return true;
        }
        named.iter().any(|n| *n == name) || own.contains(&name) || ALPACA.contains(&name)
    }

    /// Whether a field is a list: a table that has only texts has it as JSON.
    pub(super) fn is_list(&self, name: &str) -> bool {
        name == self.messages || name == self.tools || [CONVERSATIONS, HISTORY].contains(&name)
    }
}

impl Default for Fields {
    fn default() -> Self {
        let [messages, tools, prompt, completion, text] =
            ["messages", "tools", "prompt", "completion", "text"].map(str::to_owned);
        Self {
            messages,
            tools,
            prompt,
            completion,
            text,
            class: None,
            pair: None,
        }
    }
}

/// One checked record.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// A conversation. Every message is an object with a known `role` and a string `content`
    /// (`content` may be null or absent beside `tool_calls`); other keys are as in the file, but for
    /// the marks and what other programs write otherwise.
    Messages {
        /// The messages, at least one.
        messages: Vec<Value>,
        /// For each of them, whether the file marks it for training or against it.
        marks: Vec<Option<bool>>,
        /// How many of them are the prompt, of which no answer is trained on; 0 where the record has one list.
        n_prompt: usize,
        /// The tools, if the record has any.
        tools: Option<Value>,
    },
    /// A prompt and its completion, neither empty.
    PromptCompletion {
        /// What is given, without loss.
        prompt: String,
        /// What is trained on.
        completion: String,
    },
    /// A text, not empty.
    Text(String),
    /// An instruction and its answer, neither empty.
    Instruction(Instruction),
    /// A text, perhaps a second one, and the class as it stands there.
    Classified {
        /// The first text, which has a character at least.
        text: String,
        /// Not empty where there is one.
        text_pair: Option<String>,
        /// A number or a string.
        label: Value,
    },
    /// A source and its target, neither empty.
    Pair {
        /// What the encoder reads.
        source: String,
        /// What the decoder learns to say.
        target: String,
    },
}

/// Which record format to expect, and under which names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schema {
    /// How the record is to be read.
    pub format: Format,
    /// The field names.
    pub fields: Fields,
}

impl Schema {
    /// The schema of data whose first record is `line`. Fails if the record fits no format or
    /// several.
    pub fn detect(line: &str, fields: &Fields) -> Result<Self, RecordProblem> {
        let object = object(line)?;
        let fits: Vec<Format> = Format::ALL
            .into_iter()
            .filter(|&format| fits(format, fields, &object))
            .collect();
        let is = |format| {
            Ok(Self {
                format,
                fields: fields.clone(),
            })
        };
        let usual = Fields::default();
        match fits[..] {
            [format] => is(format),
            // Alpaca's own records have prompt and answer as one text beside them.
            [Format::Text, Format::Alpaca] if fields.text == usual.text => is(Format::Alpaca),
            [Format::Text, Format::Alpaca] => is(Format::Text),
            // Whoever names Alpaca's fields as prompt and completion wants them so.
            [Format::PromptCompletion, Format::Alpaca]
                if (&fields.prompt, &fields.completion) != (&usual.prompt, &usual.completion) =>
            {
                is(Format::PromptCompletion)
            }
            [] => Err(RecordProblem::UnknownFormat {
                have: names(&object),
                looked_for: Format::ALL
                    .map(|f| required(f, fields).join(" + "))
                    .join(", "),
                like: foreign::record(&object),
            }),
            _ => Err(RecordProblem::AmbiguousFormat {
                formats: fits.iter().map(|f| f.name()).collect::<Vec<_>>().join(", "),
            }),
        }
    }

    /// The schema of data of a format that is named, whose first record is `line`: prompts and completions may be
    /// lists of messages.
    #[must_use]
    pub fn named(format: Format, line: Option<&str>, fields: &Fields) -> Self {
        let object = line.and_then(|line| object(line).ok());
        let parts = object.is_some_and(|object| in_parts(fields, &object));
        Self {
            format: match format {
                Format::PromptCompletion if parts => Format::Messages,
                format => format,
            },
            fields: fields.clone(),
        }
    }

    /// Reads and checks one line. Long because each format has its arm.
    pub fn parse(&self, line: &str) -> Result<Record, RecordProblem> {
        let mut object = object(line)?;
        let fields = &self.fields;
        if !fits(self.format, fields, &object) {
            let required = required(self.format, fields).into_iter();
            let field = required.clone().find(|f| !object.contains_key(*f));
            if matches!(self.format, Format::Classes | Format::Pair) {
                return Err(RecordProblem::MissingField {
                    field: field.unwrap_or(&fields.text).to_owned(),
                    have: names(&object),
                });
            }
            return Err(self.missing(field.unwrap_or(&fields.messages), &object));
        }
        match self.format {
            Format::Messages => {
                let whole = [fields.messages.as_str(), CONVERSATIONS];
                let whole = whole.into_iter().find(|list| object.contains_key(*list));
                let (mut messages, mut marks, mut n_prompt) = (Vec::new(), Vec::new(), 0);
                match whole {
                    Some(list) => said(&mut object, list, &mut messages, &mut marks)?,
                    None => {
                        said(&mut object, &fields.prompt, &mut messages, &mut marks)?;
                        n_prompt = messages.len();
                        said(&mut object, &fields.completion, &mut messages, &mut marks)?;
                    }
                }
                // Some have it beside the list: ShareGPT's records, Anthropic's.
                let system = optional(&mut object, SYSTEM)?;
                let has = ["system", "developer"].map(|role| messages[0]["role"] == role);
                if !system.is_empty() && has == [false; 2] {
                    messages.insert(0, json!({ "role": "system", "content": system }));
                    marks.insert(0, None);
                    n_prompt += usize::from(n_prompt > 0);
                }
                let tools = tools(object.remove(&fields.tools), &fields.tools)?;
                Ok(Record::Messages {
                    messages,
                    marks,
                    n_prompt,
                    tools,
                })
            }
            Format::PromptCompletion => Ok(Record::PromptCompletion {
                prompt: text(&mut object, &fields.prompt)?,
                completion: text(&mut object, &fields.completion)?,
            }),
            Format::Text => Ok(Record::Text(text(&mut object, &fields.text)?)),
            Format::Classes => {
                let class = fields.class.as_ref().expect("named with the format");
                let pair = optional(&mut object, &class.text_pair)?;
                let label = object.remove(&class.label).unwrap_or(Value::Null);
                if !label.is_string() && !label.is_i64() && !label.is_u64() {
                    let expected = "a class: a whole number or a string";
                    return Err(wrong_type(&class.label, expected, &label));
                }
                Ok(Record::Classified {
                    text: text(&mut object, &fields.text)?,
                    text_pair: (!pair.is_empty()).then_some(pair),
                    label,
                })
            }
            Format::Pair => {
                let pair = fields.pair.as_ref().expect("named with the format");
                Ok(Record::Pair {
                    source: text(&mut object, &pair.source)?,
                    target: text(&mut object, &pair.target)?,
                })
            }
            Format::Alpaca => {
                let [instruction, output] = ALPACA.map(|field| text(&mut object, field));
                let system = optional(&mut object, SYSTEM)?;
                let input = optional(&mut object, INPUT)?;
                match object.remove(HISTORY) {
                    None | Some(Value::Null) => {}
                    Some(Value::Array(list)) if list.is_empty() => {}
                    Some(_) => return Err(RecordProblem::History),
                }
                Ok(Record::Instruction(Instruction {
                    system: (!system.is_empty()).then_some(system),
                    instruction: instruction?,
                    input,
                    output: output?,
                }))
            }
        }
    }

    /// A record of another format says so; one of none names the field it lacks.
    fn missing(&self, field: &str, object: &Map<String, Value>) -> RecordProblem {
        let mut all = Format::ALL.into_iter();
        match all.find(|&f| fits(f, &self.fields, object)) {
            Some(found) => RecordProblem::MixedFormats {
                first: self.format.name(),
                found: found.name(),
            },
            None => match foreign::record(object) {
                Some(like) => RecordProblem::Foreign {
                    field: field.to_owned(),
                    like,
                },
                None => RecordProblem::MissingField {
                    field: field.to_owned(),
                    have: names(object),
                },
            },
        }
    }
}

/// Where ShareGPT's records have their messages.
const CONVERSATIONS: &str = "conversations";
/// What comes before a conversation, where it is not the first message.
const SYSTEM: &str = "system";
/// Turns before an Alpaca record's own, which are not read.
const HISTORY: &str = "history";
/// What an Alpaca record's instruction is about.
const INPUT: &str = "input";
/// The fields that an Alpaca record has.
const ALPACA: [&str; 2] = ["instruction", "output"];

fn required(format: Format, fields: &Fields) -> Vec<&str> {
    match format {
        Format::Messages => vec![&fields.messages],
        Format::PromptCompletion => vec![&fields.prompt, &fields.completion],
        Format::Text => vec![&fields.text],
        Format::Classes => {
            let label = fields.class.iter().map(|class| class.label.as_str());
            std::iter::once(fields.text.as_str()).chain(label).collect()
        }
        Format::Pair => {
            let pair = fields.pair.iter();
            pair.flat_map(|pair| [pair.source.as_str(), pair.target.as_str()])
                .collect()
        }
        Format::Alpaca => ALPACA.to_vec(),
    }
}

/// Whether a record has the fields of a format. A list of messages that nobody has named otherwise may be called
/// `conversations`, or be in two parts.
fn fits(format: Format, fields: &Fields, object: &Map<String, Value>) -> bool {
    let has = |field: &&str| object.contains_key(*field);
    let all = required(format, fields).iter().all(has);
    match format {
        Format::Messages => {
            all || fields.messages == Fields::default().messages
                && (object.get(CONVERSATIONS).is_some_and(Value::is_array)
                    || in_parts(fields, object))
        }
        Format::PromptCompletion => all && !in_parts(fields, object),
        _ => all,
    }
}

/// Whether a record has a conversation in two parts: a prompt and a completion that are lists.
fn in_parts(fields: &Fields, object: &Map<String, Value>) -> bool {
    let parts = [&fields.prompt, &fields.completion];
    parts
        .iter()
        .all(|part| object.get(*part).is_some_and(Value::is_array))
}

/// Adds the messages of a list and their marks.
fn said(
    object: &mut Map<String, Value>,
    list: &str,
    messages: &mut Vec<Value>,
    marks: &mut Vec<Option<bool>>,
) -> Result<(), RecordProblem> {
    let all = match object.remove(list) {
        Some(Value::Array(list)) => list,
        Some(Value::String(text)) if text.trim_start().starts_with('[') => inner_list(list, &text)?,
        other => return Err(wrong_type(list, "a list", &other.into())),
    };
    if all.is_empty() {
        return Err(RecordProblem::Empty {
            field: list.to_owned(),
        });
    }
    for (i, mut message) in all.into_iter().enumerate() {
        let place = format!("{list}[{i}]");
        make_plain(&mut message, &place)?;
        marks.push(marks::take(
            message.as_object_mut().expect("checked"),
            &place,
        )?);
        messages.push(message);
    }
    Ok(())
}

/// A list that a text has as JSON.
fn inner_list(field: &str, text: &str) -> Result<Vec<Value>, RecordProblem> {
    match serde_json::from_str(text) {
        Ok(Unique(Value::Array(list))) => Ok(list),
        Ok(Unique(other)) => Err(wrong_type(field, "a list", &other)),
        Err(e) => Err(RecordProblem::InnerJson {
            field: field.to_owned(),
            reason: json_words(&e),
        }),
    }
}

fn object(line: &str) -> Result<Map<String, Value>, RecordProblem> {
    match serde_json::from_str(line) {
        Ok(Unique(Value::Object(object))) => Ok(object),
        Ok(Unique(other)) => Err(RecordProblem::NotAnObject {
            found: type_name(&other),
        }),
        Err(e) => Err(
            match not_a_number(line, before(line, e.line()) + e.column()) {
                Some((found, column)) => RecordProblem::NotANumber { found, column },
                // The file's line is said with the record.
                None => RecordProblem::NotJson {
                    reason: json_words(&e).replace(" at line 1 column ", " at column "),
                },
            },
        ),
    }
}

/// Bytes of a text before one of its lines, from 1: an element of an array may have several.
fn before(text: &str, line: usize) -> usize {
    let lines = text.split_inclusive('\n');
    lines.take(line.saturating_sub(1)).map(str::len).sum()
}

/// The word at or just before a parser's place (in bytes, from 1) that Python writes for a number
/// that is none, and its column in its own line, in characters.
fn not_a_number(line: &str, column: usize) -> Option<(&'static str, usize)> {
    ["-Infinity", "Infinity", "NaN"]
        .into_iter()
        .find_map(|word| {
            let found = (column.saturating_sub(3)..=column).find(|&at| {
                line.as_bytes()
                    .get(at..)
                    .is_some_and(|rest| rest.starts_with(word.as_bytes()))
            })?;
            let own = line[..found].rfind('\n').map_or(0, |end| end + 1);
            Some((word, line[own..found].chars().count() + 1))
        })
}

/// A text that may be missing: then it is empty.
fn optional(object: &mut Map<String, Value>, field: &str) -> Result<String, RecordProblem> {
    match object.remove(field) {
        None | Some(Value::Null) => Ok(String::new()),
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(wrong_type(field, "a string", &other)),
    }
}

fn text(object: &mut Map<String, Value>, field: &str) -> Result<String, RecordProblem> {
    match object.remove(field) {
        Some(Value::String(s)) if s.is_empty() => Err(RecordProblem::Empty {
            field: field.to_owned(),
        }),
        Some(Value::String(s)) => Ok(s),
        other => Err(wrong_type(field, "a string", &other.into())),
    }
}

pub(super) fn wrong_type(field: &str, expected: &'static str, found: &Value) -> RecordProblem {
    RecordProblem::WrongType {
        field: field.to_owned(),
        expected,
        found: type_name(found),
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The names of an object's fields, cut where an error message would become a page.
pub(super) fn names(object: &Map<String, Value>) -> String {
    let mut all: Vec<String> = object
        .keys()
        .take(16)
        .map(|k| k.chars().take(40).collect())
        .collect();
    match object.len() {
        0 => return "none".into(),
        n if n > 16 => all.push(format!("and {} more", n - 16)),
        _ => {}
    }
    all.join(", ")
}

#[cfg(test)]
#[path = "jsonl_tests.rs"]
mod tests;
