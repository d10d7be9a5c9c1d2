//! Rendering a conversation as text by the model's own chat template.
//!
//! Templates are Jinja programs written for Python; they run here on minijinja, set up as
//! transformers sets up Jinja2 (`trim_blocks`, `lstrip_blocks`, Python's printing and methods).
//! transformers' own `{% generation %}` block, around what the assistant says, is rewritten to
//! two reserved characters before parsing; where they come out they mark the loss mask.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value};
use minijinja::{Environment, Error, ErrorKind};
use serde_json::Value as Json;

use super::costs;
use super::guards::{Bounds, Spent, add_operators, print, printed};
use super::program::{Program, check_length};
use super::python;
use crate::error::{DataError, RecordProblem};

// Noncharacters: Unicode keeps them out of text for internal use like this one.
const OPEN: char = '\u{fdd0}';
const CLOSE: char = '\u{fdd1}';

/// Longest `{% generation %}`, with its spaces, in bytes.
const TAG_MAX: usize = 200;

/// Units of work by which all renderings of a template together may go beyond what honest ones take.
const EXCESS_MAX: u64 = 1 << 30;

/// Longest text of an error that a template or the engine gives, in characters.
const REASON_MAX: usize = 300;

const DEFAULT: &str = "default";
const TOOL_USE: &str = "tool_use";

/// A parsed chat template, ready to render; rendering is a pure function of its arguments.
#[derive(Debug)]
pub struct ChatTemplate {
    engine: Environment<'static>,
    programs: Vec<(String, Program)>,
    special_tokens: Vec<(String, Json)>,
    marks_assistant: bool,
    path: PathBuf,
    work: Work,
    fails_always: OnceLock<bool>,
}

/// What all renderings of a template took. Only what goes beyond an honest template's share is added up, so
/// the sum is the same in whatever order threads render, and never grows for an honest template.
#[derive(Debug, Default)]
struct Work {
    excess: AtomicU64,
    /// The largest excess of one rendering, and the construct that took most of it.
    most: Mutex<(u64, String)>,
}

impl Work {
    fn add(&self, spent: &Spent, bounds: &Bounds) {
        let excess = spent.units().saturating_sub(bounds.honest);
        if excess == 0 {
            return;
        }
        self.excess.fetch_add(excess, Ordering::Relaxed);
        let mut most = self.most.lock().unwrap_or_else(PoisonError::into_inner);
        if excess > most.0 {
            *most = (excess, spent.most.clone());
        }
    }

    fn exhausted(&self) -> Option<String> {
        (self.excess.load(Ordering::Relaxed) > EXCESS_MAX).then(|| {
            let most = self.most.lock().unwrap_or_else(PoisonError::into_inner);
            most.1.clone()
        })
    }
}

/// A rendered conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// What the template has printed.
    pub text: String,
    /// Byte ranges of `text` that stood in `{% generation %}` blocks, in order, none empty.
    pub generated: Vec<Range<usize>>,
}

impl ChatTemplate {
    /// Parses templates: pairs of name and source, of which `default` renders conversations and
    /// `tool_use`, if there, those with tools. `special_tokens` (`bos_token`, ...) are variables
    /// of the template; `now_unix_s` is what `strftime_now` shows, in UTC: it is data, so that
    /// training on another day does not train on other tokens. `path` is for errors.
    pub fn new(
        sources: &[(String, String)],
        special_tokens: Vec<(String, Json)>,
        now_unix_s: i64,
        path: &Path,
    ) -> Result<Self, DataError> {
        let fail = |line: Option<usize>, reason: String| DataError::Template {
            path: path.to_owned(),
            line,
            reason,
        };
        let engine = engine(now_unix_s);
        let mut programs = Vec::new();
        let mut marks_assistant = false;
        for (name, source) in sources {
            check_length(source).map_err(|e| fail(e.line(), describe(&e)))?;
            // Jinja2 reads every line end as `\n`.
            let source = &source.replace("\r\n", "\n").replace('\r', "\n");
            if let Some(method) = python::printed_method(source) {
                return Err(fail(
                    None,
                    format!(
                        "it prints the method '{method}' itself, which Python shows with an address in memory; \
                     '{method}()' calls it, ['{method}'] is the key"
                    ),
                ));
            }
            let marked = mark_generation(source);
            marks_assistant |= marked != *source;
            let program =
                Program::new(&marked, &syntax()).map_err(|e| fail(e.line(), describe(&e)))?;
            programs.push((name.clone(), program));
        }
        if !programs.iter().any(|(name, _)| name == DEFAULT) {
            let names: Vec<_> = sources.iter().map(|(name, _)| name.as_str()).collect();
            return Err(fail(
                None,
                format!("none is named 'default' (names: {})", names.join(", ")),
            ));
        }
        Ok(Self {
            engine,
            programs,
            special_tokens,
            marks_assistant,
            path: path.to_owned(),
            work: Work::default(),
            fails_always: OnceLock::new(),
        })
    }

    /// Whether the template marks the assistant's text with `{% generation %}`.
    #[must_use]
    pub fn marks_assistant(&self) -> bool {
        self.marks_assistant
    }

    /// Whether a word stands anywhere in a template's source.
    pub(crate) fn mentions(&self, word: &str) -> bool {
        let mut programs = self.programs.iter();
        programs.any(|(_, program)| program.source().contains(word))
    }

    /// Renders messages; with `add_generation_prompt`, up to where the assistant's answer begins.
    pub fn render(
        &self,
        messages: &[Json],
        tools: Option<&Json>,
        add_generation_prompt: bool,
    ) -> Result<Rendered, RecordProblem> {
        if self.marks_assistant && (messages.iter().any(reserved) || tools.is_some_and(reserved)) {
            return Err(RecordProblem::ReservedCharacter { code: OPEN as u32 });
        }
        let named = |wanted: &str| self.programs.iter().rfind(|(name, _)| name == wanted);
        let special = tools.and_then(|_| named(TOOL_USE));
        let (_, program) = special
            .or_else(|| named(DEFAULT))
            .expect("new has looked for it");
        let (mut values, mut bytes) = (0, 0);
        for value in messages.iter().chain(tools) {
            weigh(value, &mut values, &mut bytes);
        }
        let bounds = Bounds::of(messages.len(), values, bytes);
        if let Some(most) = self.work.exhausted() {
            return Err(RecordProblem::TemplateWork {
                template: self.path.clone(),
                mib: EXCESS_MAX >> 20,
                most,
            });
        }
        let mut engine = self.engine.clone();
        engine.set_fuel(Some(bounds.fuel));
        let (rendered, spent) = program.render(
            &engine,
            self.variables(messages, tools, add_generation_prompt),
            bounds,
        );
        self.work.add(&spent, &bounds);
        if let Some(exceeded) = spent.exceeded {
            return Err(RecordProblem::TemplateLimit {
                template: self.path.clone(),
                line: rendered.err().and_then(|e| e.line()),
                construct: exceeded.construct,
                what: exceeded.what,
            });
        }
        let marked = rendered.map_err(|e| RecordProblem::Render {
            line: e.line(),
            reason: describe(&e),
            always: self.fails_always(),
        })?;
        take_marks(&marked)
    }

    /// Whether it fails on the plainest conversations too: then the fault is the template's and no record's.
    fn fails_always(&self) -> bool {
        if let Some(known) = self.fails_always.get() {
            return *known;
        }
        let talk = |roles: &[&str]| -> Vec<Json> {
            let message = |role| serde_json::json!({ "role": role, "content": "Hv9Rd" });
            roles.iter().map(message).collect()
        };
        let bounds = Bounds::of(3, 9, 100);
        let mut engine = self.engine.clone();
        engine.set_fuel(Some(bounds.fuel));
        let fails = |roles: &[&str]| {
            let messages = talk(roles);
            let variables = self.variables(&messages, None, false);
            self.programs.iter().all(|(_, program)| {
                let (rendered, spent) = program.render(&engine, variables.clone(), bounds);
                self.work.add(&spent, &bounds);
                rendered.is_err()
            })
        };
        let always = fails(&["user", "assistant"]) && fails(&["system", "user", "assistant"]);
        *self.fails_always.get_or_init(|| always)
    }

    /// What a template can see.
    fn variables(&self, messages: &[Json], tools: Option<&Json>, prompt: bool) -> Value {
        let mut variables: Vec<(&str, Value)> = vec![
            ("messages", Value::from(Serde(messages))),
            ("tools", Value::from(Serde(tools))),
            ("documents", Value::from(())),
            ("add_generation_prompt", Value::from(prompt)),
        ];
        variables.extend(
            self.special_tokens
                .iter()
                .map(|(k, v)| (k.as_str(), Value::from(Serde(v)))),
        );
        Value::from_pairs(variables)
    }

    /// Units of work that its renderings took beyond an honest template's share.
    #[cfg(test)]
    pub(super) fn excess(&self) -> u64 {
        self.work.excess.load(Ordering::Relaxed)
    }
}

/// Counts a JSON value's parts, and the bytes of its strings.
fn weigh(value: &Json, values: &mut usize, bytes: &mut usize) {
    *values += 1;
    match value {
        Json::String(s) => *bytes += s.len(),
        Json::Array(list) => list.iter().for_each(|v| weigh(v, values, bytes)),
        Json::Object(map) => map.iter().for_each(|(k, v)| {
            *bytes += k.len();
            weigh(v, values, bytes);
        }),
        _ => {}
    }
}

/// Jinja2's syntax as transformers sets it.
pub(super) fn syntax() -> SyntaxConfig {
    let syntax = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build();
    syntax.expect("the default delimiters")
}

/// minijinja set up as transformers sets up Jinja2.
pub(super) fn engine(now_unix_s: i64) -> Environment<'static> {
    // Nothing is there but what has a cost.
    let mut engine = Environment::empty();
    costs::add_all(&mut engine, now_unix_s);
    add_operators(&mut engine);
    engine.set_formatter(|out, _, value| {
        let text = printed(value)?;
        print(text.len() as u64)?;
        out.write_str(&text)
            .map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))
    });
    engine
}

/// The error and what caused it, on one line and not longer than a few. Where it stands in the template is
/// shown beside it.
fn describe(error: &Error) -> String {
    let message = |e: &Error| {
        let text = e.to_string();
        let place = e.line().map(|line| format!(" (in {DEFAULT}:{line})"));
        match place.and_then(|place| text.strip_suffix(&place).map(str::to_owned)) {
            Some(text) => text,
            None => text,
        }
    };
    let mut text = message(error);
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let cause_text = cause
            .downcast_ref::<Error>()
            .map_or_else(|| cause.to_string(), message);
        text = format!("{text}: {cause_text}");
        source = cause.source();
    }
    let mut shown: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(REASON_MAX)
        .collect();
    if shown.len() < text.len() {
        shown.push_str("...");
    }
    shown
}

fn reserved(value: &Json) -> bool {
    match value {
        Json::String(s) => s.contains([OPEN, CLOSE]),
        Json::Array(list) => list.iter().any(reserved),
        Json::Object(map) => map
            .iter()
            .any(|(k, v)| k.contains([OPEN, CLOSE]) || reserved(v)),
        _ => false,
    }
}

/// Replaces `{% generation %}` and `{% endgeneration %}` by reserved characters.
///
/// Each becomes two tags with the character between them: the outer keeps the left whitespace
/// control of the original, the inner the right one, and trimming reaches neither's other side.
/// `with` is a block that makes a scope, as the original does.
fn mark_generation(source: &str) -> String {
    let mut out = String::with_capacity(source.len() + 64);
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        match generation_tag(rest) {
            Some((left, opens, right, len)) => {
                let (word, mark) = if opens {
                    ("with", OPEN)
                } else {
                    ("endwith", CLOSE)
                };
                out.push_str(&format!("{{%{left} {word} %}}{mark}{{% {word} {right}%}}"));
                rest = &rest[len..];
            }
            None => {
                out.push_str("{%");
                rest = &rest[2..];
            }
        }
    }
    out.push_str(rest);
    out
}

/// Reads a generation tag at the beginning of `text`: left control, opening or closing, right
/// control, length.
fn generation_tag(text: &str) -> Option<(&str, bool, &str, usize)> {
    let body = text.strip_prefix("{%")?;
    // No further than a real one is long, or a source of openings alone is read once for each.
    let near = &body.as_bytes()[..body.len().min(TAG_MAX)];
    let end = near.windows(2).position(|w| w == b"%}")?;
    let (mut inner, controls) = (&body[..end], ['-', '+']);
    let left = &inner[..usize::from(inner.starts_with(controls))];
    inner = &inner[left.len()..];
    let right = &inner[inner.len() - usize::from(inner.ends_with(controls))..];
    inner = &inner[..inner.len() - right.len()];
    let opens = match inner.trim() {
        "generation" => true,
        "endgeneration" => false,
        _ => return None,
    };
    Some((left, opens, right, end + 4))
}

/// Takes the reserved characters out and notes where they stood.
fn take_marks(marked: &str) -> Result<Rendered, RecordProblem> {
    // Looking for one character goes by whole words of memory, for one of two by the character.
    if !marked.contains(OPEN) && !marked.contains(CLOSE) {
        return Ok(Rendered {
            text: marked.to_owned(),
            generated: Vec::new(),
        });
    }
    let mut text = String::with_capacity(marked.len());
    let mut generated = Vec::new();
    let mut open = None;
    for piece in marked.split_inclusive([OPEN, CLOSE]) {
        let body = piece.trim_end_matches([OPEN, CLOSE]);
        text.push_str(body);
        match piece[body.len()..].chars().next() {
            None => {}
            Some(OPEN) if open.is_none() => open = Some(text.len()),
            Some(CLOSE) => match open.take() {
                Some(from) if from < text.len() => generated.push(from..text.len()),
                Some(_) => {}
                None => return Err(RecordProblem::UnpairedMarkers),
            },
            Some(_) => return Err(RecordProblem::UnpairedMarkers),
        }
    }
    match open {
        Some(_) => Err(RecordProblem::UnpairedMarkers),
        None => Ok(Rendered { text, generated }),
    }
}

#[cfg(test)]
#[path = "chat_tests.rs"]
mod tests;
