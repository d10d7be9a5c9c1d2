//! One column of a row group: its levels and values, some records ahead.

use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, DataType};

use super::tree::{Stop, string};
use crate::error::RecordProblem;

/// Records that are read from a column at once.
const AHEAD: usize = 64;

/// Values of a column, by their make.
enum Values {
    Bool(Vec<bool>),
    Int(Vec<i32>),
    Long(Vec<i64>),
    Float(Vec<f32>),
    Double(Vec<f64>),
    Bytes(Vec<ByteArray>),
}

/// A column that is being read.
pub(super) struct Leaf {
    reader: ColumnReader,
    definition_max: i16,
    repeated: bool,
    definitions: Vec<i16>,
    repetitions: Vec<i16>,
    values: Values,
    /// Levels that are passed.
    at: usize,
    /// Values that are passed.
    value: usize,
}

impl Leaf {
    pub fn new(
        reader: ColumnReader,
        definition_max: i16,
        repetition_max: i16,
    ) -> Result<Self, Stop> {
        let values = match reader {
            ColumnReader::BoolColumnReader(_) => Values::Bool(Vec::new()),
            ColumnReader::Int32ColumnReader(_) => Values::Int(Vec::new()),
            ColumnReader::Int64ColumnReader(_) => Values::Long(Vec::new()),
            ColumnReader::FloatColumnReader(_) => Values::Float(Vec::new()),
            ColumnReader::DoubleColumnReader(_) => Values::Double(Vec::new()),
            ColumnReader::ByteArrayColumnReader(_) => Values::Bytes(Vec::new()),
            _ => {
                return Err(Stop::Damaged(
                    "a column has another type than its schema".into(),
                ));
            }
        };
        Ok(Self {
            reader,
            definition_max,
            repeated: repetition_max > 0,
            definitions: Vec::new(),
            repetitions: Vec::new(),
            values,
            at: 0,
            value: 0,
        })
    }

    /// Makes sure that the next record is there; whether there is one.
    pub fn fill(&mut self) -> Result<bool, Stop> {
        if self.at < self.definitions.len() {
            return Ok(true);
        }
        self.definitions.clear();
        self.repetitions.clear();
        (self.at, self.value) = (0, 0);
        let (def, rep) = (&mut self.definitions, &mut self.repetitions);
        let levels = match (&mut self.reader, &mut self.values) {
            (ColumnReader::BoolColumnReader(r), Values::Bool(v)) => read(r, def, rep, v),
            (ColumnReader::Int32ColumnReader(r), Values::Int(v)) => read(r, def, rep, v),
            (ColumnReader::Int64ColumnReader(r), Values::Long(v)) => read(r, def, rep, v),
            (ColumnReader::FloatColumnReader(r), Values::Float(v)) => read(r, def, rep, v),
            (ColumnReader::DoubleColumnReader(r), Values::Double(v)) => read(r, def, rep, v),
            (ColumnReader::ByteArrayColumnReader(r), Values::Bytes(v)) => read(r, def, rep, v),
            _ => unreachable!("made with its reader"),
        }?;
        // A column in which nothing can be missing has no levels.
        self.definitions.resize(levels, self.definition_max);
        self.repetitions.resize(levels, 0);
        let n_values = match &self.values {
            Values::Bool(v) => v.len(),
            Values::Int(v) => v.len(),
            Values::Long(v) => v.len(),
            Values::Float(v) => v.len(),
            Values::Double(v) => v.len(),
            Values::Bytes(v) => v.len(),
        };
        let there = self
            .definitions
            .iter()
            .filter(|&&d| d == self.definition_max);
        if there.count() != n_values || self.repetitions.first().is_some_and(|&r| r != 0) {
            return Err(damaged());
        }
        Ok(levels > 0)
    }

    /// The level of definition of the next value.
    pub fn definition(&self) -> Result<i16, Stop> {
        self.definitions.get(self.at).copied().ok_or_else(damaged)
    }

    /// The level of repetition of the next value, where it is one of the same record.
    pub fn next_repetition(&self) -> Option<i16> {
        let next = self.repetitions.get(self.at).copied();
        next.filter(|&r| self.repeated && r > 0)
    }

    /// Passes over the next value.
    pub fn pass(&mut self) -> Result<(), Stop> {
        self.value += usize::from(self.definition()? == self.definition_max);
        self.at += 1;
        Ok(())
    }

    /// Passes over the rest of the record, wherever its writing ended.
    pub fn finish(&mut self, begun: usize) -> Result<(), Stop> {
        if self.at == begun {
            self.pass()?;
        }
        while self.next_repetition().is_some() {
            self.pass()?;
        }
        Ok(())
    }

    /// Levels that are passed of those that are read.
    pub fn at(&self) -> usize {
        self.at
    }

    /// Writes the next value and passes over it; whether there is one.
    pub fn write(&mut self, out: &mut Vec<u8>, most: usize) -> Result<bool, Stop> {
        let (i, there) = (self.value, self.definition()? == self.definition_max);
        self.pass()?;
        if !there {
            return Ok(false);
        }
        let number = match &self.values {
            Values::Bool(v) => v[i].to_string(),
            Values::Int(v) => v[i].to_string(),
            Values::Long(v) => v[i].to_string(),
            // JSON has no other numbers, and what has none is missing.
            Values::Float(v) if !v[i].is_finite() => return Ok(false),
            Values::Double(v) if !v[i].is_finite() => return Ok(false),
            Values::Float(v) => serde_json::Value::from(v[i]).to_string(),
            Values::Double(v) => serde_json::Value::from(v[i]).to_string(),
            Values::Bytes(v) => {
                let bytes = v[i].data();
                // Before it is copied: a file may have one long text in many places.
                if out.len().saturating_add(bytes.len()) > most {
                    return Err(Stop::Record(RecordProblem::LineTooLong { max: most }));
                }
                let text = std::str::from_utf8(bytes).map_err(|e| {
                    let valid = e.valid_up_to();
                    Stop::Record(RecordProblem::NotUtf8 { valid })
                })?;
                string(text, out);
                return Ok(true);
            }
        };
        out.extend(number.bytes());
        Ok(true)
    }
}

fn damaged() -> Stop {
    Stop::Damaged("its columns do not belong to the same records".into())
}

/// The next records' levels, and their values.
fn read<T: DataType>(
    reader: &mut ColumnReaderImpl<T>,
    definitions: &mut Vec<i16>,
    repetitions: &mut Vec<i16>,
    values: &mut Vec<T::T>,
) -> Result<usize, Stop> {
    values.clear();
    let (_, _, levels) =
        reader.read_records(AHEAD, Some(definitions), Some(repetitions), values)?;
    Ok(levels)
}
