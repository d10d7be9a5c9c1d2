//! Tables of texts: a line of names, then a record a row (RFC 4180).
//!
//! `csv-core` cuts the cells; it allocates nothing, so that what a record may take is decided here.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use csv_core::{ReadRecordResult, Reader, ReaderBuilder};
use serde_json::{Map, Value};

use super::dataset::LoadOptions;
use super::jsonl::Fields;
use super::lines::Line;
use super::place::Place;
use super::source::put;
use crate::error::{DataError, RecordProblem};

/// Most columns of a table.
const COLUMNS_MAX: usize = 4096;

/// The records of a table.
pub(crate) struct Csv {
    reader: BufReader<File>,
    core: Reader,
    delimiter: u8,
    path: PathBuf,
    /// Names of the columns, and whether their cells are JSON.
    header: Vec<(String, bool)>,
    bytes_max: usize,
    /// Line ends that were passed over.
    passed: u64,
    ended: bool,
}

/// Where in a cell reading is: the core takes what stands behind a closing quote as more of the cell, and the end of
/// the file as the end of any.
#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    Begin,
    Bare,
    Quoted,
    /// Behind a quote that ends the cell, or is the first of two that are one.
    Closed,
}

impl At {
    /// Passes over bytes of a row; `Err`: the place of what stands behind a closed cell.
    fn pass(&mut self, bytes: &[u8], delimiter: u8) -> Result<(), usize> {
        for (i, &byte) in bytes.iter().enumerate() {
            let ends = byte == delimiter || matches!(byte, b'\n' | b'\r');
            *self = match (*self, byte) {
                (Self::Begin | Self::Closed, b'"') => Self::Quoted,
                (Self::Quoted, b'"') => Self::Closed,
                (Self::Quoted, _) => Self::Quoted,
                _ if ends => Self::Begin,
                (Self::Closed, _) => return Err(i),
                _ => Self::Bare,
            };
        }
        Ok(())
    }
}

/// A row's cells.
struct Row {
    line: u64,
    cells: Result<Vec<String>, RecordProblem>,
}

impl Csv {
    /// Opens a table and reads its names.
    pub fn open(file: File, path: &Path, options: &LoadOptions) -> Result<Self, DataError> {
        let mut reader = BufReader::with_capacity(1 << 18, file);
        let head = reader.fill_buf().map_err(|e| DataError::io(path, e))?;
        let bom = head.starts_with("\u{feff}".as_bytes());
        let delimiter = delimiter(path, head);
        if bom {
            reader.consume(3);
        }
        let mut csv = Self {
            reader,
            core: ReaderBuilder::new().delimiter(delimiter).build(),
            delimiter,
            path: path.to_owned(),
            header: Vec::new(),
            bytes_max: options.line_bytes_max,
            passed: 0,
            ended: false,
        };
        if let Some(row) = csv.row()? {
            let place = Place::Line(row.line);
            let names = row.cells.and_then(|names| header(names, &options.fields));
            csv.header = names.map_err(|problem| DataError::record(path, place, problem))?;
        }
        Ok(csv)
    }

    /// The next row that is not blank.
    fn row(&mut self) -> Result<Option<Row>, DataError> {
        if self.ended || !self.skip_blank()? {
            return Ok(None);
        }
        let line = self.passed + 1;
        let (mut text, mut n_text) = (vec![0; self.bytes_max.saturating_add(1).min(4096)], 0);
        let (mut ends, mut n_ends) = (vec![0; 64], 0);
        let (mut problem, mut cell, mut lines) = (None, At::Begin, 0);
        loop {
            let input = self.reader.fill_buf();
            let input = input.map_err(|e| DataError::io(&self.path, e))?;
            let at_end = input.is_empty();
            let (result, read, written, new_ends) =
                self.core
                    .read_record(input, &mut text[n_text..], &mut ends[n_ends..]);
            let part = &input[..read];
            lines += part.iter().filter(|&&b| b == b'\n').count() as u64;
            // A quote that was not closed ends at the next one, behind rows that it has swallowed: nobody knows which.
            if !matches!(problem, Some(RecordProblem::BehindQuote { .. }))
                && let Err(i) = cell.pass(part, self.delimiter)
            {
                let rest = String::from_utf8_lossy(&part[i..part.len().min(i + 4)]);
                let found = rest.chars().next().unwrap_or_default();
                problem = Some(RecordProblem::BehindQuote { found });
            }
            self.reader.consume(read);
            n_text += written;
            n_ends += new_ends;
            match result {
                ReadRecordResult::InputEmpty => {}
                // What is above a bound is read over what was read before.
                ReadRecordResult::OutputFull if text.len() > self.bytes_max => {
                    let max = self.bytes_max;
                    problem.get_or_insert(RecordProblem::LineTooLong { max });
                    n_text = 0;
                }
                ReadRecordResult::OutputFull => {
                    let most = self.bytes_max + 1;
                    text.resize((2 * text.len()).min(most.max(text.len() + 1)), 0);
                }
                ReadRecordResult::OutputEndsFull if ends.len() >= COLUMNS_MAX => {
                    let max = COLUMNS_MAX;
                    problem.get_or_insert(RecordProblem::Columns { max });
                    n_ends = 0;
                }
                ReadRecordResult::OutputEndsFull => ends.resize(2 * ends.len(), 0),
                ReadRecordResult::Record | ReadRecordResult::End => {
                    self.passed += lines;
                    self.ended = at_end;
                    // The end of the file has ended a quoted cell.
                    if at_end && cell == At::Quoted {
                        problem = Some(RecordProblem::OpenQuote);
                    }
                    if n_ends == 0 && problem.is_none() {
                        return Ok(None);
                    }
                    let cells = match problem {
                        Some(problem) => Err(problem),
                        None => cells(&text[..n_text], &ends[..n_ends]),
                    };
                    return Ok(Some(Row { line, cells }));
                }
            }
        }
    }

    /// Passes over line ends; whether anything is behind them.
    fn skip_blank(&mut self) -> Result<bool, DataError> {
        loop {
            let chunk = self.reader.fill_buf();
            let chunk = chunk.map_err(|e| DataError::io(&self.path, e))?;
            let blank = chunk.iter().take_while(|b| matches!(b, b'\n' | b'\r'));
            let n = blank.count();
            self.passed += chunk[..n].iter().filter(|&&b| b == b'\n').count() as u64;
            let (more, all) = (n < chunk.len(), chunk.is_empty());
            self.reader.consume(n);
            if more || all {
                return Ok(more);
            }
        }
    }

    fn record(&self, cells: Vec<String>) -> Result<String, RecordProblem> {
        if cells.len() != self.header.len() {
            return Err(RecordProblem::Cells {
                have: cells.len(),
                need: self.header.len(),
            });
        }
        let mut record = Map::new();
        for ((name, json), cell) in self.header.iter().zip(cells) {
            put(&mut record, name, cell, *json)?;
        }
        Ok(Value::Object(record).to_string())
    }
}

/// What stands between cells: a tab in a `.tsv`; else the one of comma, semicolon and tab that the first line has most
/// of.
fn delimiter(path: &Path, head: &[u8]) -> u8 {
    if path
        .extension()
        .is_some_and(|e| e.eq_ignore_ascii_case("tsv"))
    {
        return b'\t';
    }
    let line = head.split(|&b| b == b'\n').next().unwrap_or_default();
    let n = |c: u8| line.iter().filter(|&&b| b == c).count();
    let best = [b',', b';', b'\t'].into_iter().rev().max_by_key(|&c| n(c));
    best.filter(|&c| n(c) > 0).unwrap_or(b',')
}

fn header(names: Vec<String>, fields: &Fields) -> Result<Vec<(String, bool)>, RecordProblem> {
    for (i, name) in names.iter().enumerate() {
        if names[..i].contains(name) {
            let field = name.chars().take(80).collect();
            return Err(RecordProblem::TwiceNamed { field });
        }
    }
    let all = names.into_iter().map(|name| {
        let json = fields.is_list(&name);
        (name, json)
    });
    Ok(all.collect())
}

fn cells(text: &[u8], ends: &[usize]) -> Result<Vec<String>, RecordProblem> {
    let mut from = 0;
    let cell = ends.iter().map(|&end| {
        let bytes = text[from..end].to_vec();
        let before = std::mem::replace(&mut from, end);
        String::from_utf8(bytes).map_err(|e| RecordProblem::NotUtf8 {
            valid: before + e.utf8_error().valid_up_to(),
        })
    });
    cell.collect()
}

impl Iterator for Csv {
    type Item = Result<Line, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        let row = match self.row() {
            Ok(row) => row?,
            Err(e) => return Some(Err(e)),
        };
        let place = Place::Line(row.line);
        let text = row.cells.and_then(|cells| self.record(cells));
        Some(Ok(Line { place, text }))
    }
}
