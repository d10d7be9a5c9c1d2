//! The records of a data file, whatever its make: each as the JSON object that a line of JSONL would be.

use std::io::Read;
use std::path::Path;

use lowtide_files::Unique;
use serde_json::{Map, Value};

use super::csv::Csv;
use super::dataset::LoadOptions;
use super::foreign;
use super::lines::{Line, Lines};
use super::parquet::Parquet;
use super::plain::Plain;
use crate::error::{DataError, RecordProblem};
use crate::foreign::ForeignFile;

/// What a data file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Make {
    /// JSONL, or one JSON array.
    Json,
    /// A table with a line of names.
    Csv,
    /// Apache Parquet: columns in compressed pages.
    Parquet,
    /// Text without a structure.
    Plain,
}

impl Make {
    /// What a file is, by its first bytes and by the ending of its name: Parquet says so itself, a table and a
    /// text cannot. One that is called a table or a text and holds JSON records is read as these.
    pub(super) fn of(path: &Path) -> Self {
        let head = head(path);
        if head.starts_with(b"PAR1") {
            return Self::Parquet;
        }
        let ending = path.extension().and_then(|e| e.to_str());
        let make = match ending.map(str::to_ascii_lowercase).as_deref() {
            Some("csv" | "tsv") => Self::Csv,
            Some("txt" | "text" | "md") => Self::Plain,
            Some("parquet") => Self::Parquet,
            _ => return Self::Json,
        };
        match begins_json(&head) {
            true => Self::Json,
            false => make,
        }
    }
}

fn head(path: &Path) -> Vec<u8> {
    let mut head = Vec::new();
    // What cannot be opened is an error where it is read.
    if let Ok(regular) = lowtide_files::open_any(path) {
        let _ = regular.file.take(4096).read_to_end(&mut head);
    }
    head
}

/// Whether a text begins as an object or as an array of objects does.
fn begins_json(head: &[u8]) -> bool {
    let head = head.strip_prefix("\u{feff}".as_bytes()).unwrap_or(head);
    let mut bytes = head.iter().filter(|b| !b.is_ascii_whitespace());
    let mut next = || bytes.next().copied();
    let first = [next(), next(), next()].map(Option::unwrap_or_default);
    matches!(first, [b'{', b'"' | b'}', _] | [b'[', b'{', b'"' | b'}'])
}

/// The records of one file, one at a time; each is no longer than the options allow, or has no text.
pub(crate) struct Source {
    records: Records,
    bytes_max: usize,
}

enum Records {
    Json(Lines),
    Csv(Box<Csv>),
    Parquet(Box<Parquet>),
    Plain(Plain),
}

impl Source {
    /// Opens a regular file.
    pub fn open(path: &Path, options: &LoadOptions) -> Result<Self, DataError> {
        // First, so that what is not there is missing whatever it is called.
        let regular = lowtide_files::open_any(path)?;
        let make = Make::of(path);
        if let (Make::Csv | Make::Plain, Some(what)) = (make, foreign::file(path))
            && !matches!(
                what,
                ForeignFile::Csv | ForeignFile::JsonObject | ForeignFile::CarriageReturns
            )
        {
            let path = path.to_owned();
            return Err(DataError::ForeignFile { path, what });
        }
        let bytes_max = options.line_bytes_max;
        let records = match make {
            Make::Json => Records::Json(Lines::open(path, bytes_max)?),
            Make::Csv => Records::Csv(Box::new(Csv::open(regular.file, path, options)?)),
            Make::Parquet => Records::Parquet(Box::new(Parquet::open(regular, path, options)?)),
            Make::Plain => Records::Plain(Plain::open(regular.file, path, options)),
        };
        Ok(Self { records, bytes_max })
    }
}

impl Iterator for Source {
    type Item = Result<Line, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut next = match &mut self.records {
            Records::Json(lines) => lines.next(),
            Records::Csv(csv) => csv.next(),
            Records::Parquet(parquet) => parquet.next(),
            // Its text is bounded as it is in the file.
            Records::Plain(plain) => return plain.next(),
        };
        // Of what was put together as JSON, that counts: names, quotes and escapes may be longer than what they are of.
        if let Some(Ok(line)) = &mut next
            && line
                .text
                .as_ref()
                .is_ok_and(|text| text.len() > self.bytes_max)
        {
            let max = self.bytes_max;
            line.text = Err(RecordProblem::LineTooLong { max });
        }
        next
    }
}

/// A text under a name in a record; of a field that is a list the text is JSON, and none where it is empty.
pub(super) fn put(
    record: &mut Map<String, Value>,
    name: &str,
    text: String,
    json: bool,
) -> Result<(), RecordProblem> {
    let value = match json {
        false => Value::String(text),
        true if text.trim().is_empty() => return Ok(()),
        true => {
            let read = serde_json::from_str::<Unique>(&text);
            let read = read.map_err(|e| RecordProblem::InnerJson {
                field: name.to_owned(),
                reason: lowtide_files::json_words(&e),
            })?;
            read.0
        }
    };
    record.insert(name.to_owned(), value);
    Ok(())
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;
