//! Reading JSONL: lines with a bound, records with a format, errors with file and line.

use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::foreign::{self, ForeignRecord};
use super::marks;
use crate::error::{DataError, RecordProblem};

/// Longest line accepted unless told otherwise: a file that is not JSONL (one line of many
/// gigabytes) must end in an error, not fill the memory.
pub const LINE_BYTES_MAX: usize = 16 << 20;

/// What the records of a file are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A conversation: a list of messages with role and content, and optional tools.
    Messages,
    /// A prompt and its completion, two strings.
    PromptCompletion,
    /// One string.
    Text,
}

impl Format {
    /// Every format.
    pub const ALL: [Self; 3] = [Self::Messages, Self::PromptCompletion, Self::Text];

    /// Its name, as users write it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Messages => "messages",
            Self::PromptCompletion => "prompt/completion",
            Self::Text => "text",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The names of the fields in the file; by default the names of the [`Format`]s' parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fields {
    /// The list of messages.
    pub messages: String,
    /// The list of tools (optional in every record).
    pub tools: String,
    /// The prompt.
    pub prompt: String,
    /// The completion.
    pub completion: String,
    /// The text.
    pub text: String,
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
        }
    }
}

/// One checked record.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// A conversation. Every message is an object with a known `role` and a string `content`
    /// (`content` may be null or absent beside `tool_calls`); other keys are as in the file, but for
    /// the marks.
    Messages {
        /// The messages, at least one.
        messages: Vec<Value>,
        /// For each of them, whether the file marks it for training or against it.
        marks: Vec<Option<bool>>,
        /// The tools, if the record has any.
        tools: Option<Value>,
    },
    /// A prompt and its completion, neither empty.
    PromptCompletion {
        /// The prompt.
        prompt: String,
        /// The completion.
        completion: String,
    },
    /// A text, not empty.
    Text(String),
}

/// Which record format to expect, and under which names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schema {
    /// The format.
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
            .filter(|&format| {
                required(format, fields)
                    .iter()
                    .all(|f| object.contains_key(*f))
            })
            .collect();
        match fits[..] {
            [format] => Ok(Self {
                format,
                fields: fields.clone(),
            }),
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

    /// Reads and checks one line.
    pub fn parse(&self, line: &str) -> Result<Record, RecordProblem> {
        let mut object = object(line)?;
        let fields = &self.fields;
        if let Some(field) = required(self.format, fields)
            .into_iter()
            .find(|f| !object.contains_key(*f))
        {
            return Err(self.missing(field, &object));
        }
        match self.format {
            Format::Messages => {
                let mut messages = match object.remove(&fields.messages) {
                    Some(Value::Array(list)) => list,
                    other => {
                        return Err(wrong_type(&fields.messages, "a list", &other.into()));
                    }
                };
                if messages.is_empty() {
                    return Err(RecordProblem::Empty {
                        field: fields.messages.clone(),
                    });
                }
                let mut marks = Vec::with_capacity(messages.len());
                for (i, message) in messages.iter_mut().enumerate() {
                    let place = format!("{}[{i}]", fields.messages);
                    check_message(message, &place)?;
                    let message = message.as_object_mut().expect("checked");
                    marks.push(marks::take(message, &place)?);
                }
                let tools = tools(object.remove(&fields.tools), &fields.tools)?;
                Ok(Record::Messages {
                    messages,
                    marks,
                    tools,
                })
            }
            Format::PromptCompletion => Ok(Record::PromptCompletion {
                prompt: text(&mut object, &fields.prompt)?,
                completion: text(&mut object, &fields.completion)?,
            }),
            Format::Text => Ok(Record::Text(text(&mut object, &fields.text)?)),
        }
    }

    /// A record of another format says so; one of none names the field it lacks.
    fn missing(&self, field: &str, object: &Map<String, Value>) -> RecordProblem {
        let fits = |&format: &Format| {
            required(format, &self.fields)
                .iter()
                .all(|f| object.contains_key(*f))
        };
        match Format::ALL.iter().find(|f| fits(f)) {
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

/// The tools of a record. Arrow and Parquet hold lists of objects as strings, so a string is read as
/// the JSON in it; so is one that stands for a single tool.
fn tools(value: Option<Value>, field: &str) -> Result<Option<Value>, RecordProblem> {
    let inner = |text: &str, field: &str| {
        serde_json::from_str(text).map_err(|e| RecordProblem::InnerJson {
            field: field.to_owned(),
            reason: e.to_string(),
        })
    };
    let value = match value {
        Some(Value::String(text)) if text.trim().is_empty() => None,
        Some(Value::String(text)) => Some(inner(&text, field)?),
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
            *tool = inner(text, &place)?;
        }
        if !tool.is_object() {
            return Err(wrong_type(&place, "an object", tool));
        }
    }
    Ok((!list.is_empty()).then_some(Value::Array(list)))
}

fn required(format: Format, fields: &Fields) -> Vec<&str> {
    match format {
        Format::Messages => vec![&fields.messages],
        Format::PromptCompletion => vec![&fields.prompt, &fields.completion],
        Format::Text => vec![&fields.text],
    }
}

fn object(line: &str) -> Result<Map<String, Value>, RecordProblem> {
    match serde_json::from_str(line) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(other) => Err(RecordProblem::NotAnObject {
            found: type_name(&other),
        }),
        Err(e) => Err(match not_a_number(line, e.column()) {
            Some((found, column)) => RecordProblem::NotANumber { found, column },
            None => RecordProblem::NotJson {
                reason: e.to_string(),
            },
        }),
    }
}

/// The word at or just before a parser's column (in bytes, from 1) that Python writes for a number
/// that is none, and its column in characters.
fn not_a_number(line: &str, column: usize) -> Option<(&'static str, usize)> {
    ["-Infinity", "Infinity", "NaN"]
        .into_iter()
        .find_map(|word| {
            let found = (column.saturating_sub(3)..=column).find(|&at| {
                line.as_bytes()
                    .get(at..)
                    .is_some_and(|rest| rest.starts_with(word.as_bytes()))
            })?;
            Some((word, line[..found].chars().count() + 1))
        })
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

fn check_message(message: &Value, place: &str) -> Result<(), RecordProblem> {
    let Value::Object(fields) = message else {
        return Err(wrong_type(place, "an object", message));
    };
    let field = |name: &str| format!("{place}.{name}");
    match fields.get("role") {
        Some(Value::String(role)) => match role.as_str() {
            "system" | "user" | "assistant" | "tool" => {}
            role => {
                let role = role.chars().take(64).collect();
                return Err(RecordProblem::UnknownRole {
                    field: field("role"),
                    role,
                });
            }
        },
        Some(other) => return Err(wrong_type(&field("role"), "a string", other)),
        None if foreign::is_sharegpt(fields) => {
            let list = place.split('[').next().unwrap_or(place);
            return Err(RecordProblem::Foreign {
                field: field("role"),
                like: ForeignRecord::ShareGpt {
                    field: list.to_owned(),
                },
            });
        }
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

fn wrong_type(field: &str, expected: &'static str, found: &Value) -> RecordProblem {
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
fn names(object: &Map<String, Value>) -> String {
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

/// A line of a data file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Its number, from 1.
    pub number: u64,
    /// Its text, or why it has none.
    pub text: Result<String, RecordProblem>,
}

/// The lines of a JSONL file with their numbers from 1. Blank lines are left out; a byte order
/// mark and carriage returns are taken off. Holds one line at a time, and of a line above its bound
/// no more than that.
#[derive(Debug)]
pub struct Lines {
    reader: BufReader<File>,
    path: PathBuf,
    line: u64,
    bytes_max: usize,
    /// The rest of the last line is still to be passed over.
    inside: bool,
}

impl Lines {
    /// Opens a file, which must be a regular one: a pipe can be read once only, and a device may have
    /// no end. A line above `bytes_max` bytes will have no text.
    pub fn open(path: &Path, bytes_max: usize) -> Result<Self, DataError> {
        let reader = BufReader::with_capacity(1 << 18, lowtide_files::open_any(path)?.file);
        Ok(Self {
            reader,
            path: path.to_owned(),
            line: 0,
            bytes_max,
            inside: false,
        })
    }

    /// Reads one line without its end; `None` at the end of the file.
    fn read_line(&mut self) -> Result<Option<Result<Vec<u8>, RecordProblem>>, DataError> {
        let mut line = Vec::new();
        let mut any = false;
        loop {
            let chunk = self
                .reader
                .fill_buf()
                .map_err(|e| DataError::io(&self.path, e))?;
            if chunk.is_empty() {
                return Ok(any.then_some(Ok(line)));
            }
            let end = chunk.iter().position(|&b| b == b'\n');
            let body = end.unwrap_or(chunk.len());
            let passed = body + usize::from(end.is_some());
            if self.inside {
                self.inside = end.is_none();
                self.reader.consume(passed);
                continue;
            }
            any = true;
            if line.len() + body > self.bytes_max {
                self.inside = end.is_none();
                self.reader.consume(passed);
                let max = self.bytes_max;
                return Ok(Some(Err(RecordProblem::LineTooLong { max })));
            }
            line.extend_from_slice(&chunk[..body]);
            self.reader.consume(passed);
            if end.is_some() {
                return Ok(Some(Ok(line)));
            }
        }
    }

    fn next_line(&mut self) -> Result<Option<Line>, DataError> {
        while let Some(bytes) = self.read_line()? {
            self.line += 1;
            let number = self.line;
            let text = bytes.and_then(|bytes| {
                String::from_utf8(bytes).map_err(|e| RecordProblem::NotUtf8 {
                    valid: e.utf8_error().valid_up_to(),
                })
            });
            let text = text.map(|mut text| {
                if number == 1 && text.starts_with('\u{feff}') {
                    text.remove(0);
                }
                text
            });
            // The line's own end (a carriage return) is white space to JSON.
            if text.as_ref().is_ok_and(|text| text.trim().is_empty()) {
                continue;
            }
            return Ok(Some(Line { number, text }));
        }
        Ok(None)
    }
}

impl Iterator for Lines {
    type Item = Result<Line, DataError>;

    /// A line that is too long or not UTF-8 is an item like any other; an error of the system is the
    /// last.
    fn next(&mut self) -> Option<Self::Item> {
        self.next_line().transpose()
    }
}

#[cfg(test)]
#[path = "jsonl_tests.rs"]
mod tests;
