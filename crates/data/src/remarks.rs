//! What people should hear of their data although nothing in it is an error.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::chat::ChatTemplate;
use super::marks::{self, is_assistant};
use super::place::Place;
use crate::error::RecordProblem;

/// Most names of keys that are kept: a file may have a new one in every line.
const NAMES_MAX: usize = 16;

/// Most places of records left out that are kept.
const PLACES_MAX: usize = 3;

/// Where a message has its calls of tools, and a template the tools that there are.
const CALLS: &str = "tool_calls";
const TOOLS: &str = "tools";

/// Whether a message has no calls.
fn is_none(calls: &Value) -> bool {
    calls.is_null() || calls.as_array().is_some_and(Vec::is_empty)
}

/// Whether a template may not write these lists of functions: it never names the variable, or a function's name is
/// missing from the text.
fn may_lack(lists: &[&Value], variable: &str, text: &str, template: &ChatTemplate) -> bool {
    let all = lists.iter().filter_map(|list| list.as_array()).flatten();
    let mut names = all.filter_map(|f| f["function"].get("name").or(f.get("name"))?.as_str());
    !template.mentions(variable) || names.any(|name| !text.contains(name))
}

/// Counts of what was noticed in records, in one or in many. Kept tokens that lack one of them are made anew.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remarks {
    /// Records left out because they cannot be used.
    pub n_left_out: u64,
    /// Place and problem of the first three of them.
    pub places: Vec<String>,
    /// Messages of the assistant that the file marks as not to be trained on.
    pub n_marked_against: u64,
    /// Messages of others that the file marks to be trained on, which they are not.
    pub n_marked_others: u64,
    /// Texts and prompts that begin with the tokenizer's beginning of a sequence written out.
    pub n_had_begin: u64,
    /// Texts and completions that end with the end of a sequence written out.
    pub n_had_end: u64,
    /// Records with a class of which a text lost its end.
    pub n_texts_cut: u64,
    /// Messages with calls of tools that the template does not write.
    pub n_calls_unwritten: u64,
    /// Records with tools that the template does not write.
    pub n_tools_unwritten: u64,
    /// Keys of messages that neither the template nor lowtide reads, with the number of messages; the
    /// first 16 of them.
    pub unknown_keys: BTreeMap<String, u64>,
}

impl Remarks {
    /// Notes what is special about a conversation.
    pub(super) fn of_messages(
        &mut self,
        messages: &[Value],
        marks: &[Option<bool>],
        template: &ChatTemplate,
    ) {
        for (message, mark) in messages.iter().zip(marks) {
            match (is_assistant(message), mark) {
                (true, Some(false)) => self.n_marked_against += 1,
                (false, Some(true)) => self.n_marked_others += 1,
                _ => {}
            }
            for key in message.as_object().into_iter().flat_map(|m| m.keys()) {
                if !marks::is_known(key) && !template.mentions(key) {
                    let name = key.chars().take(40).collect();
                    self.unknown_key(name, 1);
                }
            }
        }
    }

    /// Notes calls of tools, and tools, that are not in the `text` that the template has written: it is the same
    /// without them.
    pub(super) fn of_calls(
        &mut self,
        messages: &[Value],
        tools: Option<&Value>,
        text: &str,
        template: &ChatTemplate,
    ) {
        let calls: Vec<&Value> = messages.iter().map(|m| &m[CALLS]).collect();
        let n_calling = calls.iter().filter(|calls| !is_none(calls)).count() as u64;
        if n_calling > 0 && may_lack(&calls, CALLS, text, template) {
            let mut bare = messages.to_vec();
            for message in bare.iter_mut().filter_map(Value::as_object_mut) {
                if message
                    .shift_remove(CALLS)
                    .is_some_and(|calls| !is_none(&calls))
                {
                    message.entry("content").or_insert(Value::Null);
                }
            }
            let without = template.render(&bare, tools, false);
            if without.is_ok_and(|without| without.text == text) {
                self.n_calls_unwritten += n_calling;
            }
        }
        if let Some(tools) = tools
            && may_lack(&[tools], TOOLS, text, template)
        {
            let without = template.render(messages, None, false);
            self.n_tools_unwritten += u64::from(without.is_ok_and(|without| without.text == text));
        }
    }

    /// Notes a record that is left out.
    pub(super) fn left_out(&mut self, path: &Path, place: Place, problem: &RecordProblem) {
        self.n_left_out += 1;
        if self.places.len() < PLACES_MAX {
            self.places
                .push(format!("{}{place}: {problem}", path.display()));
        }
    }

    fn unknown_key(&mut self, name: String, n: u64) {
        if self.unknown_keys.len() < NAMES_MAX || self.unknown_keys.contains_key(&name) {
            *self.unknown_keys.entry(name).or_default() += n;
        }
    }

    /// Adds what was noticed in another record.
    pub(super) fn add(&mut self, other: Self) {
        self.n_marked_against += other.n_marked_against;
        self.n_marked_others += other.n_marked_others;
        self.n_left_out += other.n_left_out;
        let room = PLACES_MAX - self.places.len();
        self.places.extend(other.places.into_iter().take(room));
        self.n_had_begin += other.n_had_begin;
        self.n_had_end += other.n_had_end;
        self.n_texts_cut += other.n_texts_cut;
        self.n_calls_unwritten += other.n_calls_unwritten;
        self.n_tools_unwritten += other.n_tools_unwritten;
        for (name, n) in other.unknown_keys {
            self.unknown_key(name, n);
        }
    }

    /// A sentence each, for people.
    #[must_use]
    pub fn sentences(&self) -> Vec<String> {
        let mut all = Vec::new();
        if self.n_left_out > 0 {
            let more = self.n_left_out - self.places.len() as u64;
            all.push(format!(
                "{} records left out, they cannot be used (data.on_error: skip): {}{}",
                self.n_left_out,
                self.places.join("; "),
                if more > 0 {
                    format!("; and {more} more")
                } else {
                    String::new()
                },
            ));
        }
        if self.n_marked_against > 0 {
            all.push(format!(
                "{} messages of the assistant are marked not to be trained on and are left out of the loss",
                self.n_marked_against
            ));
        }
        if self.n_marked_others > 0 {
            all.push(format!(
                "{} messages that are not the assistant's are marked to be trained on; data.train_on decides, and \
                 they are not",
                self.n_marked_others
            ));
        }
        if self.n_had_begin > 0 {
            all.push(format!(
                "{} records have the beginning of a sequence written out; it is not put there again",
                self.n_had_begin
            ));
        }
        if self.n_had_end > 0 {
            all.push(format!(
                "{} records have the end of a sequence written out; it is not put there again",
                self.n_had_end
            ));
        }
        if self.n_texts_cut > 0 {
            all.push(format!(
                "{} records are longer than train.seq: the longer text of each lost its end",
                self.n_texts_cut
            ));
        }
        let other = "data.chat_template names another template";
        if self.n_calls_unwritten > 0 {
            all.push(format!(
                "warning: {} messages call tools (`tool_calls`), which the chat template does not write: the model \
                 learns nothing of these calls; {other}",
                self.n_calls_unwritten
            ));
        }
        if self.n_tools_unwritten > 0 {
            all.push(format!(
                "warning: {} records have `tools`, which the chat template does not write: the model does not see \
                 them; {other}",
                self.n_tools_unwritten
            ));
        }
        if !self.unknown_keys.is_empty() {
            let names: Vec<String> = self
                .unknown_keys
                .iter()
                .map(|(name, n)| format!("'{name}' ({n})"))
                .collect();
            all.push(format!(
                "keys of messages that nothing reads, neither the chat template nor lowtide: {}",
                names.join(", ")
            ));
        }
        all
    }
}
