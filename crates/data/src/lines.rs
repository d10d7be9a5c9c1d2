//! Records' texts out of a file, one at a time and with a bound: lines of JSONL, elements of a JSON array.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use super::array::{Byte, Inside};
use super::place::Place;
use crate::error::{DataError, RecordProblem};

/// Longest line accepted unless the run file says otherwise: a file that is not JSONL (one line of many
/// gigabytes) must end in an error, not fill the memory.
pub const LINE_BYTES_MAX: usize = 16 << 20;

/// A record's text in a data file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Where it stands.
    pub place: Place,
    /// Its text, or why it has none.
    pub text: Result<String, RecordProblem>,
}

/// The records of a JSONL file, or of a file that is one JSON array, with the numbers of their lines from 1. Blank
/// lines are left out; a byte order mark and carriage returns are taken off. Holds one record at a time, and of one
/// above its bound no more than that.
#[derive(Debug)]
pub struct Lines {
    reader: BufReader<File>,
    path: PathBuf,
    line: u64,
    bytes_max: usize,
    /// The rest of the last line is still to be passed over.
    inside: bool,
    /// What is read, once the file's begin has been seen.
    layout: Option<Layout>,
}

/// How a file's records stand in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    /// One a line.
    Lines,
    /// Elements of an array.
    Array {
        /// How many were read.
        index: u64,
    },
    /// Behind the array's end, where only white space may be.
    Behind,
    /// There is no more.
    Ended,
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
            layout: None,
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

    /// What the file's records are, from its first byte that is no white space. The array's bracket, and what is
    /// before it, are passed over.
    fn layout(&mut self) -> Result<Layout, DataError> {
        if let Some(layout) = self.layout {
            return Ok(layout);
        }
        let chunk = self.reader.fill_buf();
        let chunk = chunk.map_err(|e| DataError::io(&self.path, e))?;
        let text = chunk.strip_prefix("\u{feff}".as_bytes()).unwrap_or(chunk);
        let white = text.iter().take_while(|b| b.is_ascii_whitespace()).count();
        let layout = match text.get(white) {
            Some(b'[') => {
                let passed = chunk.len() - text.len() + white + 1;
                self.line = 1 + count_lines(&chunk[..passed]);
                self.reader.consume(passed);
                Layout::Array { index: 0 }
            }
            // A buffer full of white space is no array that a program wrote.
            _ => Layout::Lines,
        };
        self.layout = Some(layout);
        Ok(layout)
    }

    fn next_line(&mut self) -> Result<Option<Line>, DataError> {
        match self.layout()? {
            Layout::Lines => {}
            Layout::Array { index } => return self.next_element(index),
            Layout::Behind => return self.behind(),
            Layout::Ended => return Ok(None),
        }
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
            let place = Place::Line(number);
            return Ok(Some(Line { place, text }));
        }
        Ok(None)
    }
}

impl Lines {
    /// The next element of the array; of one that is too long its end is looked for all the same.
    fn next_element(&mut self, index: u64) -> Result<Option<Line>, DataError> {
        let (mut element, mut inside) = (Vec::new(), Inside::default());
        let (mut line, mut long) = (self.line, false);
        loop {
            let chunk = self.reader.fill_buf();
            let chunk = chunk.map_err(|e| DataError::io(&self.path, e))?;
            if chunk.is_empty() {
                self.layout = Some(Layout::Ended);
                return Ok(Some(Line {
                    place: Place::Element { line, index },
                    text: Err(RecordProblem::NoEnd),
                }));
            }
            let mut end = None;
            let mut passed = 0;
            for &byte in chunk {
                passed += 1;
                self.line += u64::from(byte == b'\n');
                match inside.take(byte) {
                    Byte::Inside if element.is_empty() && byte.is_ascii_whitespace() => {
                        line = self.line;
                    }
                    Byte::Inside if element.len() >= self.bytes_max => long = true,
                    Byte::Inside => {
                        if element.is_empty() {
                            line = self.line;
                        }
                        element.push(byte);
                    }
                    other => {
                        end = Some(other);
                        break;
                    }
                }
            }
            self.reader.consume(passed);
            let Some(end) = end else { continue };
            self.layout = Some(match end {
                Byte::End => Layout::Behind,
                _ => Layout::Array { index: index + 1 },
            });
            if end == Byte::End && index == 0 && element.is_empty() {
                return self.behind();
            }
            let text = match long {
                true => Err(RecordProblem::LineTooLong {
                    max: self.bytes_max,
                }),
                false => String::from_utf8(element).map_err(|e| RecordProblem::NotUtf8 {
                    valid: e.utf8_error().valid_up_to(),
                }),
            };
            let place = Place::Element { line, index };
            return Ok(Some(Line { place, text }));
        }
    }

    /// What stands behind the array, where only white space should.
    fn behind(&mut self) -> Result<Option<Line>, DataError> {
        self.layout = Some(Layout::Ended);
        loop {
            let chunk = self.reader.fill_buf();
            let chunk = chunk.map_err(|e| DataError::io(&self.path, e))?;
            if chunk.is_empty() {
                return Ok(None);
            }
            let white = chunk.iter().take_while(|b| b.is_ascii_whitespace()).count();
            self.line += count_lines(&chunk[..white]);
            if white < chunk.len() {
                return Ok(Some(Line {
                    place: Place::Line(self.line),
                    text: Err(RecordProblem::Behind),
                }));
            }
            self.reader.consume(white);
        }
    }
}

fn count_lines(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|&&b| b == b'\n').count() as u64
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
#[path = "lines_tests.rs"]
mod tests;
