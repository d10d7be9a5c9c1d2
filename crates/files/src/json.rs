//! JSON with errors that say what Python has written.

use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// What is wrong with a JSON text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JsonProblem {
    /// A word that Python's `json` writes for a float and JSON does not have.
    #[error("line {line}, column {column}: {word}{} is not JSON", key_of(key))]
    NotANumber {
        /// Line, from 1.
        line: usize,
        /// Column, from 1, in bytes.
        column: usize,
        /// `NaN`, `Infinity` or `-Infinity`.
        word: &'static str,
        /// The key whose value it is or is in, where there is one.
        key: Option<String>,
    },
    /// A byte order mark, which JSON does not have.
    #[error("begins with a byte order mark, which is not JSON")]
    ByteOrderMark,
    /// Anything else, in the parser's words with line and column.
    #[error("{0}")]
    Other(String),
}

fn key_of(key: &Option<String>) -> String {
    match key {
        Some(key) => format!(", in the value of '{key}',"),
        None => String::new(),
    }
}

/// Parses JSON.
///
/// # Errors
/// What is wrong, with line and column; numbers that only Python's `json` reads are named.
pub fn json_from_slice<T: DeserializeOwned>(text: &[u8]) -> Result<T, JsonProblem> {
    serde_json::from_slice(text).map_err(|error| explain(text, &error))
}

fn explain(text: &[u8], error: &serde_json::Error) -> JsonProblem {
    if text.starts_with(b"\xef\xbb\xbf") {
        return JsonProblem::ByteOrderMark;
    }
    let offset = offset(text, error.line(), error.column());
    match python_number(text) {
        // Where the parser stumbled, and not over something before it.
        Some(found) if offset + 1 >= found.at && offset <= found.at + found.word.len() + 1 => {
            let before = &text[..found.at];
            let line = before.iter().filter(|&&b| b == b'\n').count() + 1;
            let begin = before
                .iter()
                .rposition(|&b| b == b'\n')
                .map_or(0, |i| i + 1);
            JsonProblem::NotANumber {
                line,
                column: found.at - begin + 1,
                word: found.word,
                key: found.key,
            }
        }
        _ => JsonProblem::Other(json_words(error)),
    }
}

/// What a parser says of a text that is not JSON, in JSON's terms, with line and column.
#[must_use]
pub fn json_words(error: &serde_json::Error) -> String {
    // A word that begins as one of JSON's and is another.
    let text = error.to_string();
    match text.strip_prefix("expected ident ") {
        Some(place) => format!("expected true, false or null {place}"),
        None => text,
    }
}

/// The byte that a line and a column, both from 1, name.
fn offset(text: &[u8], line: usize, column: usize) -> usize {
    let newlines = text.iter().enumerate().filter(|(_, b)| **b == b'\n');
    let begin = match line {
        0 | 1 => 0,
        n => newlines.map(|(i, _)| i + 1).nth(n - 2).unwrap_or(0),
    };
    begin + column.saturating_sub(1)
}

struct Found {
    at: usize,
    word: &'static str,
    key: Option<String>,
}

/// The first `NaN`, `Infinity` or `-Infinity` outside strings, and the last key before it.
fn python_number(text: &[u8]) -> Option<Found> {
    let mut key: Option<&[u8]> = None;
    let mut string: Option<&[u8]> = None;
    let mut i = 0;
    while i < text.len() {
        match text[i] {
            b'"' => {
                let begin = i + 1;
                i = begin;
                while i < text.len() && text[i] != b'"' {
                    i += if text[i] == b'\\' { 2 } else { 1 };
                }
                string = text.get(begin..i.min(text.len()));
            }
            b':' => key = string,
            _ => {
                let words = ["NaN", "Infinity", "-Infinity"];
                if let Some(word) = words
                    .into_iter()
                    .find(|w| text[i..].starts_with(w.as_bytes()))
                {
                    let key = key.map(|k| String::from_utf8_lossy(k).chars().take(80).collect());
                    return Some(Found { at: i, word, key });
                }
            }
        }
        i += 1;
    }
    None
}

/// Parses JSON in which no object has one key with two values: which of them is meant, nobody can
/// say. Python takes the last.
///
/// # Errors
/// As [`json_from_slice`]; a key that is there twice with different values.
pub fn unique_json(text: &[u8]) -> Result<Value, JsonProblem> {
    json_from_slice::<Unique>(text).map(|u| u.0)
}

/// A value as [`unique_json`] reads it, for other readers.
#[derive(Clone, Debug, PartialEq)]
pub struct Unique(pub Value);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue).map(Unique)
    }
}

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, b: bool) -> Result<Value, E> {
        Ok(Value::Bool(b))
    }

    fn visit_i64<E>(self, n: i64) -> Result<Value, E> {
        Ok(Value::from(n))
    }

    fn visit_u64<E>(self, n: u64) -> Result<Value, E> {
        Ok(Value::from(n))
    }

    fn visit_f64<E>(self, n: f64) -> Result<Value, E> {
        Ok(Number::from_f64(n).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, s: &str) -> Result<Value, E> {
        Ok(Value::from(s))
    }

    fn visit_string<E>(self, s: String) -> Result<Value, E> {
        Ok(Value::String(s))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Unique(item)) = seq.next_element()? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some((key, Unique(value))) = access.next_entry::<String, Unique>()? {
            match map.get(&key) {
                Some(first) if *first != value => {
                    let short: String = key.chars().take(80).collect();
                    let what = format!("key '{short}' is there twice, with different values");
                    return Err(serde::de::Error::custom(what));
                }
                _ => _ = map.insert(key, value),
            }
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(text: &str) -> String {
        unique_json(text.as_bytes())
            .expect_err("it is refused")
            .to_string()
    }

    #[test]
    fn numbers_that_only_python_reads_are_named() {
        for (text, want) in [
            (
                "{\"a\": 1,\n \"b\": NaN}",
                "line 2, column 7: NaN, in the value of 'b', is not JSON",
            ),
            (
                "{\"b\": [0.0, -Infinity]}",
                "line 1, column 13: -Infinity, in the value of 'b', is not JSON",
            ),
            ("Infinity", "line 1, column 1: Infinity is not JSON"),
            (
                "{\"NaN\": \"Infinity\", \"x\": {\"y\\\"\": Infinity}}",
                "line 1, column 34: Infinity, in the value of 'y\\\"', is not JSON",
            ),
        ] {
            assert_eq!(problem(text), want);
        }
        // Another mistake stands before it.
        let other = problem("{\"a\": x, \"b\": NaN}");
        assert!(
            other.contains("expected value at line 1 column 7"),
            "{other}"
        );
        let other = problem("{\"a\": \"NaN\", \"b\": nan}");
        assert_eq!(other, "expected true, false or null at line 1 column 20");
        assert!(problem("\u{feff}{}").contains("byte order mark"));
    }

    #[test]
    fn a_key_with_two_values_is_refused() {
        let error = problem("{\"x\": {\"a\": 1, \"b\": 2, \"a\": 3}}");
        assert!(error.contains("key 'a' is there twice"), "{error}");
        let same = unique_json(
            br#"{"a": [1, 2.5, null, true, "s", -7], "a": [1, 2.5, null, true, "s", -7]}"#,
        );
        assert_eq!(
            same.unwrap(),
            serde_json::json!({"a": [1, 2.5, null, true, "s", -7]})
        );
    }

    #[test]
    fn depth_is_bounded() {
        let deep = "[".repeat(100_000);
        assert!(problem(&deep).contains("recursion limit"));
    }
}
