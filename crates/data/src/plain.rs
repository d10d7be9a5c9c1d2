//! Plain text: a file, its paragraphs or its lines as records.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use super::dataset::LoadOptions;
use super::lines::Line;
use super::place::Place;
use crate::error::{DataError, RecordProblem};

/// What of a plain text is a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TextBy {
    /// All of the file.
    #[default]
    File,
    /// What lies between blank lines.
    Paragraph,
    /// Each line that is not blank.
    Line,
}

/// The records of a plain text. Line ends are `\n` in them, and none is at their end.
pub(crate) struct Plain {
    reader: BufReader<File>,
    path: PathBuf,
    by: TextBy,
    field: String,
    bytes_max: usize,
    line: u64,
    ended: bool,
}

/// A line as far as it was kept.
struct Kept {
    bytes: Vec<u8>,
    /// It was longer than what there was room for.
    cut: bool,
}

impl Plain {
    pub fn open(file: File, path: &Path, options: &LoadOptions) -> Self {
        Self {
            reader: BufReader::with_capacity(1 << 18, file),
            path: path.to_owned(),
            by: options.text_by,
            field: options.fields.text.clone(),
            bytes_max: options.line_bytes_max,
            line: 0,
            ended: false,
        }
    }

    /// The next line without its end; of one that is longer than `room` no more is kept.
    fn line(&mut self, room: usize) -> Result<Option<Kept>, DataError> {
        let (mut bytes, mut cut, mut any) = (Vec::new(), false, false);
        loop {
            let chunk = self.reader.fill_buf();
            let chunk = chunk.map_err(|e| DataError::io(&self.path, e))?;
            if chunk.is_empty() {
                break;
            }
            any = true;
            let end = chunk.iter().position(|&b| b == b'\n');
            let body = &chunk[..end.unwrap_or(chunk.len())];
            let kept = body.len().min(room - bytes.len());
            cut |= kept < body.len();
            bytes.extend_from_slice(&body[..kept]);
            let passed = body.len() + usize::from(end.is_some());
            self.reader.consume(passed);
            if end.is_some() {
                break;
            }
        }
        if !any {
            return Ok(None);
        }
        self.line += 1;
        if self.line == 1 && bytes.starts_with("\u{feff}".as_bytes()) {
            bytes.drain(..3);
        }
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
        Ok(Some(Kept { bytes, cut }))
    }

    fn record(&mut self) -> Result<Option<Line>, DataError> {
        let (mut text, mut number, mut cut) = (Vec::new(), 0, false);
        while !self.ended {
            let room = self.bytes_max.saturating_sub(text.len());
            let Some(line) = self.line(room)? else {
                self.ended = true;
                break;
            };
            let blank = !line.cut && line.bytes.iter().all(u8::is_ascii_whitespace);
            let begun = number > 0;
            if !begun && blank {
                continue;
            }
            if blank && self.by == TextBy::Paragraph {
                break;
            }
            cut |= line.cut;
            match begun {
                true => text.push(b'\n'),
                false => number = self.line,
            }
            text.extend(line.bytes);
            if self.by == TextBy::Line {
                break;
            }
        }
        if number == 0 {
            return Ok(None);
        }
        let long = cut || text.len() > self.bytes_max;
        let max = self.bytes_max;
        let text = match long {
            true => Err(RecordProblem::TextTooLong { max }),
            false => String::from_utf8(text).map_err(|e| RecordProblem::NotUtf8 {
                valid: e.utf8_error().valid_up_to(),
            }),
        };
        let field = &self.field;
        let text = text.map(|text| serde_json::json!({ field: text.trim_end() }).to_string());
        let place = Place::Line(number);
        Ok(Some(Line { place, text }))
    }
}

impl Iterator for Plain {
    type Item = Result<Line, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.record().transpose()
    }
}
