//! YAML as typed: scalars keep their text, every node its place, every pair of a mapping its own
//! entry, so that what a value means is decided by its key alone (`shape: 1.50` stays `1.50`).

use std::fmt;
use std::sync::Arc;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::options::DuplicateKeyPolicy;
use serde_saphyr::{NonFiniteFloatPolicy, Spanned};

use crate::error::{ConfigError, Place};

/// A value with its place.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Node {
    pub tree: Tree,
    pub at: Place,
}

/// A value as typed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Tree {
    Null,
    Scalar(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// One pair of a mapping, in the order of the file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    pub key: String,
    pub at: Place,
    pub value: Node,
}

impl Node {
    /// A scalar given whole, without YAML.
    pub fn scalar(text: &str, at: Place) -> Self {
        let tree = if text.is_empty() {
            Tree::Null
        } else {
            Tree::Scalar(text.to_owned())
        };
        Self { tree, at }
    }

    /// What it is, for an error.
    pub fn found(&self) -> String {
        match &self.tree {
            Tree::Null => "empty".to_owned(),
            Tree::Scalar(text) => format!("'{}'", shortened(text)),
            Tree::List(_) => "a list".to_owned(),
            Tree::Map(_) => "a mapping".to_owned(),
        }
    }
}

/// At most 60 characters of a text, for an error.
pub(crate) fn shortened(text: &str) -> String {
    const MOST: usize = 60;
    if text.chars().count() <= MOST {
        return text.to_owned();
    }
    text.chars().take(MOST).chain("…".chars()).collect()
}

/// Reads one YAML document. `place` turns a line and a column into a place.
pub(crate) fn parse(text: &str, place: &dyn Fn(u32, u32) -> Place) -> Result<Node, ConfigError> {
    let options = serde_saphyr::options! {
        // Every pair reaches the tree, which can then name both places of a key given twice.
        duplicate_keys: DuplicateKeyPolicy::LastWins,
        // `.nan` is refused by the key's limits, with the key's name.
        non_finite_float_policy: NonFiniteFloatPolicy::PassThrough,
        with_snippet: false,
        // The deepest run file nests five times; the bound keeps recursion off the stack's end.
        budget: serde_saphyr::budget! { max_depth: 32 },
    };
    let root: Spanned<Raw> = serde_saphyr::from_str_with_options(text, options).map_err(|e| {
        let (line, column) = e.location().map_or((1, 1), |l| mark(&l));
        let whole = e.without_snippet().to_string();
        let why = whole.split(" at line ").next().unwrap_or(&whole).to_owned();
        ConfigError::Syntax {
            at: place(line, column),
            why,
        }
    })?;
    Ok(resolve(root, text, place))
}

fn mark(l: &serde_saphyr::Location) -> (u32, u32) {
    let number = |n: u64| u32::try_from(n).unwrap_or(u32::MAX).max(1);
    (number(l.line()), number(l.column()))
}

/// Puts the typed text back into scalars that the YAML reader has already made numbers.
fn resolve(raw: Spanned<Raw>, text: &str, place: &dyn Fn(u32, u32) -> Place) -> Node {
    let (line, column) = mark(&raw.referenced);
    let tree = match raw.value {
        Raw::Null => Tree::Null,
        Raw::Text(text) => Tree::Scalar(text),
        Raw::Typed(read) => {
            let typed = source(&raw.defined, text)
                .map(str::trim)
                .filter(|t| !t.is_empty());
            Tree::Scalar(typed.map_or(read, str::to_owned))
        }
        Raw::List(items) => {
            Tree::List(items.into_iter().map(|i| resolve(i, text, place)).collect())
        }
        Raw::Map(pairs) => {
            let entry = |(key, value): (Spanned<String>, _)| {
                let (line, column) = mark(&key.referenced);
                Entry {
                    key: key.value,
                    at: place(line, column),
                    value: resolve(value, text, place),
                }
            };
            Tree::Map(pairs.into_iter().map(entry).collect())
        }
    };
    Node {
        tree,
        at: place(line, column),
    }
}

fn source<'a>(l: &serde_saphyr::Location, text: &'a str) -> Option<&'a str> {
    let start = usize::try_from(l.span().byte_offset()?).ok()?;
    let len = usize::try_from(l.span().byte_len()?).ok()?;
    text.get(start..start.checked_add(len)?)
}

/// What the YAML reader makes of a node.
enum Raw {
    Null,
    Text(String),
    /// A number or a truth value, printed again.
    Typed(String),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<String>, Spanned<Raw>)>),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_bool<E>(self, v: bool) -> Result<Raw, E> {
        Ok(Raw::Typed(v.to_string()))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Raw, E> {
        Ok(Raw::Typed(v.to_string()))
    }

    fn visit_u64<E>(self, v: u64) -> Result<Raw, E> {
        Ok(Raw::Typed(v.to_string()))
    }

    fn visit_f64<E>(self, v: f64) -> Result<Raw, E> {
        Ok(Raw::Typed(v.to_string()))
    }

    fn visit_str<E>(self, v: &str) -> Result<Raw, E> {
        Ok(Raw::Text(v.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Raw, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Raw::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
        let mut pairs = Vec::new();
        while let Some(pair) = map.next_entry()? {
            pairs.push(pair);
        }
        Ok(Raw::Map(pairs))
    }
}

/// The place of a line and column in a file.
pub(crate) fn in_file(file: &Arc<str>) -> impl Fn(u32, u32) -> Place {
    let file = Arc::clone(file);
    move |line, column| Place::File {
        file: Arc::clone(&file),
        line,
        column,
    }
}
