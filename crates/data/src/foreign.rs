//! Files and records of other formats, recognised by what they look like.
//!
//! Nothing here reads them. A file that cannot be read is looked at once more, so that its error names
//! what it is, and the command line can say how to turn it into what is read.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use lowtide_files::Foreign;
use serde_json::{Map, Value};

/// Bytes of a file's head that are looked at.
const HEAD: u64 = 4096;

/// What a file is that is not JSONL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForeignFile {
    /// One JSON object over several lines.
    JsonObject,
    /// Comma- or tab-separated values, or plain text.
    Csv,
    /// Apache Arrow's file format, also Feather.
    Arrow,
    /// gzip, zstd, bzip2, xz.
    Compressed,
    /// A zip archive.
    Zip,
    /// A web page, or an error in XML that a download saved.
    Html,
    /// The pointer that Git LFS leaves in place of a file.
    LfsPointer,
    /// A text in UTF-16.
    Utf16(&'static str),
    /// Lines that end as on old Macintosh systems: with a carriage return alone.
    CarriageReturns,
}

impl fmt::Display for ForeignFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::JsonObject => "a JSON object over several lines",
            Self::Csv => "a table (CSV)",
            Self::Arrow => "an Arrow file",
            Self::Compressed => "a compressed file",
            Self::Zip => "a zip archive",
            Self::Html => "a web page (HTML)",
            Self::LfsPointer => "a Git LFS pointer, not the file itself",
            Self::Utf16(_) => "a text in UTF-16",
            Self::CarriageReturns => "a file whose lines end with a carriage return alone",
        })
    }
}

/// What a file that cannot be read as JSONL is, if its head tells.
pub(super) fn file(path: &Path) -> Option<ForeignFile> {
    let mut head = Vec::new();
    File::open(path)
        .ok()?
        .take(HEAD)
        .read_to_end(&mut head)
        .ok()?;
    recognised(&head)
}

fn recognised(head: &[u8]) -> Option<ForeignFile> {
    // What no file of ours begins with, and then what is known of data sets alone.
    match Foreign::begins(head) {
        Some(Foreign::Gzip | Foreign::Zstd) => return Some(ForeignFile::Compressed),
        Some(Foreign::Zip) => return Some(ForeignFile::Zip),
        Some(Foreign::Page) => return Some(ForeignFile::Html),
        Some(Foreign::LfsPointer) => return Some(ForeignFile::LfsPointer),
        Some(Foreign::Parquet | Foreign::Gguf) | None => {}
    }
    let magics: [(&[u8], ForeignFile); 6] = [
        (b"ARROW1", ForeignFile::Arrow),
        (b"BZh", ForeignFile::Compressed),
        (b"\xfd7zXZ", ForeignFile::Compressed),
        (b"\xff\xfe", ForeignFile::Utf16("UTF-16")),
        (b"\xfe\xff", ForeignFile::Utf16("UTF-16")),
        // The stream format of Arrow: a continuation mark before the first message's length.
        (b"\xff\xff\xff\xff", ForeignFile::Arrow),
    ];
    if let Some((_, what)) = magics.iter().find(|(magic, _)| head.starts_with(magic)) {
        return Some(*what);
    }
    if let Some(name) = unmarked_utf16(head) {
        return Some(ForeignFile::Utf16(name));
    }
    let text = String::from_utf8_lossy(head);
    if !text.contains('\n') && text.contains("}\r{") {
        return Some(ForeignFile::CarriageReturns);
    }
    let text = text.trim_start_matches('\u{feff}').trim_start();
    let line = text.lines().next()?.trim_end();
    match text.chars().next()? {
        // A JSON array, whose elements are records.
        '[' => None,
        // A whole record stands on its line; what ends within one goes on below.
        '{' => {
            let cut = serde_json::from_str::<Value>(line).is_err_and(|e| e.is_eof());
            // One that is torn within a value is a record with a mistake.
            let more = text.len() > line.len() && line.ends_with(['{', '[', ',', ':']);
            (cut && more).then_some(ForeignFile::JsonObject)
        }
        _ => {
            let cells = line.split([',', '\t', ';']).count();
            (cells > 1 && !line.contains(['{', '}'])).then_some(ForeignFile::Csv)
        }
    }
}

/// Whether a text without a mark at its begin is UTF-16, and of which order of bytes: of the first characters, which
/// are ASCII where records begin, every second byte is 0.
fn unmarked_utf16(head: &[u8]) -> Option<&'static str> {
    let (pairs, _) = head[..head.len().min(32)].as_chunks::<2>();
    let all = |zero: usize| {
        pairs
            .iter()
            .all(|pair| pair[zero] == 0 && pair[1 - zero] != 0)
    };
    match pairs.len() >= 2 {
        true if all(0) => Some("UTF-16BE"),
        true if all(1) => Some("UTF-16LE"),
        _ => None,
    }
}

/// What a record is of that fits no format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ForeignRecord {
    /// A conversation under another name.
    Conversation {
        /// Field of the record that holds it.
        field: String,
    },
    /// A prompt and an answer under other names.
    Pair {
        /// The prompt's field.
        prompt: &'static str,
        /// The completion's field.
        completion: &'static str,
    },
    /// Preferences: `chosen` and `rejected`.
    Preference,
}

impl fmt::Display for ForeignRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Conversation { field } => write!(f, "a conversation in the field '{field}'"),
            Self::Pair { prompt, completion } => {
                write!(
                    f,
                    "a prompt and completion called '{prompt}' and '{completion}'"
                )
            }
            Self::Preference => {
                f.write_str("a record of preferences (chosen, rejected), which is not supported")
            }
        }
    }
}

/// Names under which other data sets have a prompt and its answer.
const PAIRS: [(&str, &str); 8] = [
    ("question", "answer"),
    ("query", "response"),
    ("prompt", "response"),
    ("instruction", "response"),
    ("input", "output"),
    ("prompt", "answer"),
    ("question", "response"),
    ("source", "target"),
];

/// What a record's fields look like.
pub(super) fn record(object: &Map<String, Value>) -> Option<ForeignRecord> {
    let has = |name: &str| object.contains_key(name);
    for (field, value) in object {
        let first = value.as_array().and_then(|list| list.first()?.as_object());
        let ours = |m: &Map<String, Value>| m.contains_key("role") && m.contains_key("content");
        if first.is_some_and(|m| ours(m) || is_sharegpt(m)) && !has("chosen") {
            return Some(ForeignRecord::Conversation {
                field: field.clone(),
            });
        }
    }
    if has("chosen") && has("rejected") {
        return Some(ForeignRecord::Preference);
    }
    let (prompt, completion) = PAIRS.into_iter().find(|(p, c)| has(p) && has(c))?;
    Some(ForeignRecord::Pair { prompt, completion })
}

/// Whether a message is one of ShareGPT's.
pub(super) fn is_sharegpt(message: &Map<String, Value>) -> bool {
    message.contains_key("from") && message.contains_key("value") && !message.contains_key("role")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn files_are_recognised_by_their_heads() {
        for (head, want) in [
            (&b"[{\"text\": \"a\"}]"[..], None),
            (b"[\"a\", \"b\"]", None),
            (b"{\n  \"text\": \"a\"\n}\n", Some(ForeignFile::JsonObject)),
            (b"{\"data\": [\n", Some(ForeignFile::JsonObject)),
            (b"{\"text\": \"a\"}\n", None),
            (b"{\"text\": NaN}\n{}", None),
            (b"{'text': 'a'}\n", None),
            (b"question,answer\n1,2\n", Some(ForeignFile::Csv)),
            (b"question\tanswer\n", Some(ForeignFile::Csv)),
            (b"a line of text\n", None),
            (b"PAR1\x15\x04", None),
            (b"\x1f\x8b\x08", Some(ForeignFile::Compressed)),
            (b"PK\x03\x04", Some(ForeignFile::Zip)),
            (b"\xff\xff\xff\xff\x10", Some(ForeignFile::Arrow)),
            (b"\xff\xfe{\0", Some(ForeignFile::Utf16("UTF-16"))),
            (b"\0{\0\"\0t", Some(ForeignFile::Utf16("UTF-16BE"))),
            (b"{\0\"\0t\0", Some(ForeignFile::Utf16("UTF-16LE"))),
            (b"<!DOCTYPE html><html>", Some(ForeignFile::Html)),
            (b"<html>\n\n{ \"text\": 1", Some(ForeignFile::Html)),
            (b"<?xml version='1.0'?><Error>", Some(ForeignFile::Html)),
            (
                b"version https://git-lfs.github.com/spec/v1\noid",
                Some(ForeignFile::LfsPointer),
            ),
            (b"", None),
        ] {
            assert_eq!(recognised(head), want, "{}", String::from_utf8_lossy(head));
        }
    }

    #[test]
    fn records_are_recognised_by_their_fields() {
        let sharegpt = json!([{"from": "human", "value": "hi"}]);
        let ours = json!([{"role": "user", "content": "hi"}]);
        for (object, want) in [
            (
                json!({"dialog": sharegpt}),
                "a conversation in the field 'dialog'",
            ),
            (
                json!({"dialog": ours}),
                "a conversation in the field 'dialog'",
            ),
            (
                json!({"question": "a", "answer": "b"}),
                "called 'question' and 'answer'",
            ),
            (
                json!({"prompt": "a", "chosen": ours, "rejected": ours}),
                "a record of preferences",
            ),
            (json!({"id": 1}), "nothing"),
        ] {
            let recognised = record(object.as_object().unwrap());
            let recognised = recognised.map_or("nothing".to_owned(), |r| r.to_string());
            assert!(recognised.contains(want), "{object}: {recognised}");
        }
    }
}
