//! Records of Parquet files: the columns that a record's formats have, put together again row by row.
//!
//! The crate `parquet` makes values of pages. It sees no byte of a file as it is: what the file says of itself is
//! written anew ([`footer`]), and its pages are found, bounded and unpacked before ([`pages`]). The values become the
//! JSON of a line: then a table and JSONL of the same records are the same data. What a record lacks is left out of it,
//! as it is in JSONL, where a table has it as missing.

mod footer;
mod leaf;
mod pages;
mod thrift;
mod tree;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lowtide_files::Regular;
use lowtide_units::Bytes;
use parquet::column::reader::get_column_reader;
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};
use parquet::schema::types::Type;

use self::leaf::Leaf;
use self::pages::{Pages, Shape, Unpacker};
use self::tree::{Builder, Node, Stop};
use super::dataset::LoadOptions;
use super::jsonl::Schema;
use super::lines::Line;
use super::place::Place;
use super::trial::foreign;
use crate::error::{DataError, RecordProblem};

/// Most bytes of what a file says of itself.
const FOOTER_MAX: u64 = 256 << 20;
/// Bytes of memory for each value of a row group, where a record may have any number of them: its levels and a text,
/// in lists that grow to twice what is in them.
const VALUE_COST: u64 = 72;
/// Rows that any file may have, and how many more for each of its bytes: a few bytes can say that a text is there
/// thousands of millions of times, and no data set does.
const ROWS_MAX: u64 = 1 << 20;
const ROWS_PER_BYTE: u64 = 1024;
/// Names of columns that a record's formats have nothing of: as many as an error may name.
const OTHERS_MAX: usize = 16;

/// The records of a Parquet file.
pub(crate) struct Parquet {
    file: Arc<File>,
    len: u64,
    meta: ParquetMetaData,
    path: PathBuf,
    /// Columns of the schema that are read: their name, what they write, and the number of their first leaf.
    fields: Vec<(String, Node)>,
    /// Leaves that are read, by number.
    leaves: Vec<usize>,
    /// The other columns, each with nothing: an error names what is there.
    others: String,
    bytes_max: usize,
    memory: u64,
    group: usize,
    open: Vec<Leaf>,
    row: u64,
    rows_left: u64,
    ended: bool,
}

impl Parquet {
    pub fn open(regular: Regular, path: &Path, options: &LoadOptions) -> Result<Self, DataError> {
        let wrong = |what: String| DataError::Parquet {
            path: path.to_owned(),
            what,
        };
        let Regular { file, len } = regular;
        let mut tail = [0; 8];
        let at = len
            .checked_sub(12)
            .ok_or_else(|| wrong("it ends too early".into()))?;
        file.read_exact_at(&mut tail, at + 4)
            .map_err(|e| DataError::io(path, e))?;
        let n = u64::from(u32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]));
        match &tail[4..] {
            b"PAR1" => {}
            b"PARE" => return Err(wrong("it is encrypted".into())),
            _ => {
                return Err(wrong(
                    "it has no end, as a download that was broken off".into(),
                ));
            }
        }
        if n > at || n > FOOTER_MAX {
            let (n, most) = (Bytes(n), Bytes(FOOTER_MAX.min(at)));
            return Err(wrong(format!(
                "it says {n} of itself, and up to {most} are read"
            )));
        }
        let mut footer = vec![0; n as usize];
        file.read_exact_at(&mut footer, at + 4 - n)
            .map_err(|e| DataError::io(path, e))?;
        let new = footer::rewritten(&footer).map_err(&wrong)?;
        drop(footer);
        let (need, have) = (Bytes(new.memory), Bytes(options.memory));
        if need > have {
            return Err(DataError::ParquetMemory {
                path: path.to_owned(),
                part: "what it says of itself".into(),
                need,
                have,
            });
        }
        let meta = foreign(|| ParquetMetaDataReader::decode_metadata(&new.bytes));
        let meta = meta.map_err(&wrong)?.map_err(|e| wrong(e.to_string()))?;
        rows(&meta, len).map_err(&wrong)?;
        let schema = meta.file_metadata().schema();
        let (fields, leaves, others) = columns(schema, options).map_err(&wrong)?;
        if leaves.is_empty() && meta.row_groups().iter().any(|group| group.num_rows() > 0) {
            let problem = Schema::detect(&format!("{{{others}}}"), &options.fields).err();
            return Err(match problem {
                Some(problem) => DataError::record(path, Place::Row(1), problem),
                None => wrong(format!("no known format has its columns: {others}")),
            });
        }
        Ok(Self {
            file: Arc::new(file),
            len,
            path: path.to_owned(),
            fields,
            leaves,
            others,
            bytes_max: options.line_bytes_max,
            memory: options.memory.saturating_sub(new.memory),
            group: 0,
            open: Vec::new(),
            row: 0,
            rows_left: 0,
            ended: false,
            meta,
        })
    }

    fn wrong(&self, what: String) -> DataError {
        DataError::Parquet {
            path: self.path.clone(),
            what,
        }
    }

    /// Opens the next row group that has rows; whether there is one.
    fn next_group(&mut self) -> Result<bool, DataError> {
        while self.rows_left == 0 {
            // What the rows before were read from has nothing more.
            let left = |leaf: &mut Leaf| leaf.fill();
            let more = foreign(|| {
                self.open
                    .iter_mut()
                    .map(left)
                    .collect::<Result<Vec<_>, _>>()
            });
            match more {
                Ok(Ok(more)) if more.iter().all(|more| !more) => {}
                _ => return Err(self.wrong("a column of it has more rows than it says".into())),
            }
            self.open.clear();
            if self.group == self.meta.num_row_groups() {
                return Ok(false);
            }
            let rows = self.meta.row_group(self.group).num_rows();
            self.rows_left = u64::try_from(rows)
                .map_err(|_| self.wrong("it has fewer rows than none".into()))?;
            if self.rows_left > 0 {
                self.open = self.leaves_of()?;
            }
            self.group += 1;
        }
        Ok(true)
    }

    /// The columns of the next row group, where reading them takes no more memory than may be.
    fn leaves_of(&self) -> Result<Vec<Leaf>, DataError> {
        let group = self.meta.row_group(self.group);
        let (mut need, mut all) = (0u64, Vec::new());
        for &i in &self.leaves {
            if i >= group.num_columns() {
                return Err(self.wrong("a row group lacks a column".into()));
            }
            let (column, descr) = (group.column(i), group.column(i).column_descr());
            let named = |what| self.wrong(format!("column '{}': {what}", short(descr.name())));
            let shape = Shape {
                definitions: descr.max_def_level(),
                repetitions: descr.max_rep_level(),
                physical: descr.physical_type(),
            };
            let left = self.memory.saturating_sub(need);
            let pages = Pages::of(&self.file, self.len, column, shape, left).map_err(named)?;
            need = need.saturating_add(pages.memory);
            // A single row may have all of the elements of lists.
            if shape.repetitions > 0 {
                need = need.saturating_add(pages.values.saturating_mul(VALUE_COST));
            }
            if need > self.memory {
                return Err(DataError::ParquetMemory {
                    path: self.path.clone(),
                    part: format!("row group {}", self.group),
                    need: Bytes(need),
                    have: Bytes(self.memory),
                });
            }
            let (values, rows) = (pages.values, self.rows_left);
            if values < rows || shape.repetitions == 0 && values > rows {
                return Err(named(format!(
                    "its pages have {values} rows, and there are {rows}"
                )));
            }
            all.push((column.column_descr_ptr(), pages));
        }
        let open = || -> Result<Vec<Leaf>, Stop> {
            let each = all.into_iter().map(|(descr, pages)| {
                let levels = (descr.max_def_level(), descr.max_rep_level());
                let pages = Box::new(Unpacker::new(Arc::clone(&self.file), pages));
                Leaf::new(get_column_reader(descr, pages), levels.0, levels.1)
            });
            each.collect()
        };
        match foreign(open) {
            Ok(Ok(leaves)) => Ok(leaves),
            Ok(Err(Stop::Damaged(what))) | Err(what) => Err(self.wrong(what)),
            Ok(Err(Stop::Record(problem))) => Err(self.wrong(problem.to_string())),
        }
    }

    /// The next row as JSON; `Err(Stop::Record)`: it cannot be used, and the one behind it may.
    fn write(&mut self) -> Result<String, Stop> {
        for leaf in &mut self.open {
            if !leaf.fill()? {
                return Err(Stop::Damaged("a column of it has too few rows".into()));
            }
        }
        let begun: Vec<usize> = self.open.iter().map(Leaf::at).collect();
        let mut out = vec![b'{'];
        let written = self.write_fields(&mut out);
        if let Err(Stop::Damaged(_)) = written {
            return written.map(|()| String::new());
        }
        for (leaf, begun) in self.open.iter_mut().zip(begun) {
            leaf.finish(begun)?;
        }
        written?;
        if out.len() > 1 && !self.others.is_empty() {
            out.push(b',');
        }
        out.extend(self.others.bytes());
        out.push(b'}');
        Ok(String::from_utf8(out).expect("written from texts"))
    }

    fn write_fields(&mut self, out: &mut Vec<u8>) -> Result<(), Stop> {
        for (name, node) in &self.fields {
            let before = out.len();
            if before > 1 {
                out.push(b',');
            }
            tree::string(name, out);
            out.push(b':');
            if !tree::write(node, &mut self.open, out, self.bytes_max)? {
                out.truncate(before);
            }
        }
        Ok(())
    }

    fn record(&mut self) -> Result<Option<Line>, DataError> {
        if self.ended || !self.next_group()? {
            return Ok(None);
        }
        self.row += 1;
        self.rows_left -= 1;
        let place = Place::Row(self.row);
        let text: Result<String, RecordProblem> = match foreign(|| self.write()) {
            Ok(Ok(text)) => Ok(text),
            Ok(Err(Stop::Record(problem))) => Err(problem),
            Ok(Err(Stop::Damaged(what))) | Err(what) => {
                self.ended = true;
                return Err(self.wrong(format!("row {}: {what}", self.row)));
            }
        };
        Ok(Some(Line { place, text }))
    }
}

impl Iterator for Parquet {
    type Item = Result<Line, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.record().transpose()
    }
}

/// Refuses more rows than a file of so many bytes may have.
fn rows(meta: &ParquetMetaData, len: u64) -> Result<(), String> {
    let groups = meta.row_groups().iter();
    let rows = groups.map(|group| u64::try_from(group.num_rows()).unwrap_or_default());
    let rows = rows.fold(0u64, u64::saturating_add);
    let most = ROWS_MAX.saturating_add(ROWS_PER_BYTE.saturating_mul(len));
    match rows <= most {
        true => Ok(()),
        false => Err(format!(
            "it says that it has {rows} rows; up to {most} are read from {}",
            Bytes(len)
        )),
    }
}

/// A name as an error has it.
fn short(name: &str) -> String {
    name.chars().take(80).collect()
}

/// The columns of a schema that a record's formats have, their leaves, and the names of others.
#[expect(
    clippy::type_complexity,
    reason = "three parts of one thing, used once"
)]
fn columns(
    schema: &Type,
    options: &LoadOptions,
) -> Result<(Vec<(String, Node)>, Vec<usize>, String), String> {
    let (mut builder, mut fields) = (Builder::default(), Vec::new());
    let (mut leaves, mut leaf, mut others) = (Vec::new(), 0, Vec::new());
    for field in schema.get_fields() {
        let n = n_leaves(field);
        if options.fields.has(field.name()) {
            let node = builder.field(field)?;
            leaves.extend(leaf..leaf + n);
            fields.push((field.name().to_owned(), node));
        } else if others.len() < OTHERS_MAX {
            let name = short(field.name());
            others.push(format!("{}:null", serde_json::Value::from(name)));
        }
        leaf += n;
    }
    Ok((fields, leaves, others.join(",")))
}

/// The leaves below a field: an empty group has none of its own.
fn n_leaves(field: &Type) -> usize {
    match field.is_primitive() {
        true => 1,
        false => field.get_fields().iter().map(|f| n_leaves(f)).sum(),
    }
}

#[cfg(test)]
#[path = "hostile_tests.rs"]
mod hostile;
#[cfg(test)]
#[path = "../parquet_tests.rs"]
mod tests;
#[cfg(test)]
pub(crate) use tests::written;
