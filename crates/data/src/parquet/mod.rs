//! Records of Parquet files: the columns that a record's formats have, put together again row by row.
//!
//! The crate `parquet` reads pages and columns; which numbers of a file it may believe, [`guard`] decides before. The
//! values become the JSON of a line: then a table and JSONL of the same records are the same data. What a record lacks is
//! left out of it, as it is in JSONL, where a table has it as missing.

mod guard;
mod leaf;
mod tree;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use lowtide_files::Regular;
use lowtide_units::Bytes;
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::schema::types::Type;

use self::leaf::Leaf;
use self::tree::{Builder, Node, Stop};
use super::dataset::LoadOptions;
use super::lines::Line;
use super::place::Place;
use super::trial::foreign;
use crate::error::{DataError, RecordProblem};

/// Most bytes of what a file says of itself.
const FOOTER_MAX: u64 = 256 << 20;
/// Most bytes of one page: writers make them of one or a few MiB.
const PAGE_MAX: u64 = 1 << 30;
/// Bytes of memory for each value of a row group, where a record may have any number of them.
const VALUE_COST: u64 = 64;
/// Names of columns that a record's formats have nothing of: as many as an error may name.
const OTHERS_MAX: usize = 16;

/// What the pages of a column have.
struct Pages {
    /// Values.
    values: u64,
    /// Bytes of memory that reading one after another takes, the dictionary kept.
    memory: u64,
}

/// The records of a Parquet file.
pub(crate) struct Parquet {
    file: File,
    reader: SerializedFileReader<File>,
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
        guard::footer(&footer).map_err(&wrong)?;
        drop(footer);
        let again = file.try_clone().map_err(|e| DataError::io(path, e))?;
        let reader = foreign(|| SerializedFileReader::new(again));
        let reader = reader.map_err(&wrong)?.map_err(|e| wrong(e.to_string()))?;
        let schema = reader.metadata().file_metadata().schema();
        let (fields, leaves, others) = columns(schema, options).map_err(&wrong)?;
        Ok(Self {
            file,
            path: path.to_owned(),
            fields,
            leaves,
            others,
            bytes_max: options.line_bytes_max,
            memory: options.memory,
            group: 0,
            open: Vec::new(),
            row: 0,
            rows_left: 0,
            ended: false,
            reader,
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
            if self.group == self.reader.num_row_groups() {
                return Ok(false);
            }
            let meta = self.reader.metadata().clone();
            let rows = meta.row_group(self.group).num_rows();
            self.rows_left = u64::try_from(rows)
                .map_err(|_| self.wrong("it has fewer rows than none".into()))?;
            if self.rows_left > 0 && !self.leaves.is_empty() {
                self.open = self.leaves_of(&meta)?;
            }
            self.group += 1;
        }
        Ok(true)
    }

    fn leaves_of(&self, meta: &ParquetMetaData) -> Result<Vec<Leaf>, DataError> {
        let group = meta.row_group(self.group);
        let mut need = 0u64;
        for &i in &self.leaves {
            if i >= group.num_columns() {
                return Err(self.wrong("a row group lacks a column".into()));
            }
            let pages = self.pages(group.column(i))?;
            need = need.saturating_add(pages.memory);
            // A single row may have all of the elements of lists.
            if group.column(i).column_descr().max_rep_level() > 0 {
                need = need.saturating_add(pages.values.saturating_mul(VALUE_COST));
            }
        }
        if need > self.memory {
            return Err(self.wrong(format!(
                "row group {} takes up to {} of host memory while it is read, and {} are allowed",
                self.group,
                Bytes(need),
                Bytes(self.memory)
            )));
        }
        let open = || -> Result<Vec<Leaf>, Stop> {
            let group = self.reader.get_row_group(self.group)?;
            let each = self.leaves.iter().map(|&i| {
                let descr = group.metadata().column(i).column_descr_ptr();
                let column = group.get_column_reader(i)?;
                Leaf::new(column, descr.max_def_level(), descr.max_rep_level())
            });
            each.collect()
        };
        match foreign(open) {
            Ok(Ok(leaves)) => Ok(leaves),
            Ok(Err(Stop::Damaged(what))) | Err(what) => Err(self.wrong(what)),
            Ok(Err(Stop::Record(problem))) => Err(self.wrong(problem.to_string())),
        }
    }

    /// Walks over the pages of a column: none is larger than may be, and a dictionary has no more values than bytes.
    fn pages(&self, column: &ColumnChunkMetaData) -> Result<Pages, DataError> {
        let data = column.data_page_offset();
        let begin = column
            .dictionary_page_offset()
            .map_or(data, |d| d.min(data));
        // Some writers have an offset of 0 for no dictionary.
        let begin = if begin <= 0 { data } else { begin };
        let (Ok(mut at), Ok(size)) = (
            u64::try_from(begin),
            u64::try_from(column.compressed_size()),
        ) else {
            return Err(self.wrong("a column of it lies before its beginning".into()));
        };
        let end = at.saturating_add(size);
        let (mut values, mut page_max, mut dictionary) = (0u64, 0, 0u64);
        let mut head = Vec::new();
        while at < end {
            let page = self.page(at, &mut head)?;
            if page.uncompressed > PAGE_MAX || page.compressed > PAGE_MAX {
                let size = Bytes(page.uncompressed.max(page.compressed));
                return Err(self.wrong(format!(
                    "a page of it has {size}, and up to {} are read at once",
                    Bytes(PAGE_MAX)
                )));
            }
            if page.dictionary && page.values > page.uncompressed {
                return Err(self.wrong("a dictionary of it has more values than bytes".into()));
            }
            match page.dictionary {
                true => dictionary += page.uncompressed + page.values * VALUE_COST,
                false => values = values.saturating_add(page.values),
            }
            page_max = page_max.max(page.uncompressed + page.compressed);
            at = at.saturating_add(page.header + page.compressed);
        }
        match at == end {
            true => Ok(Pages {
                values,
                memory: page_max.saturating_add(dictionary),
            }),
            false => Err(self.wrong("the pages of a column do not end with it".into())),
        }
    }

    /// The header of the page at an offset.
    fn page(&self, at: u64, head: &mut Vec<u8>) -> Result<guard::Page, DataError> {
        let mut most = 256;
        loop {
            head.resize(most, 0);
            let mut got = 0;
            while got < most {
                let read = self.file.read_at(&mut head[got..], at + got as u64);
                match read.map_err(|e| DataError::io(&self.path, e))? {
                    0 => break,
                    n => got += n,
                }
            }
            match guard::page(&head[..got]) {
                Ok(page) => return Ok(page),
                Err(_) if got == most && most < guard::HEADER_MAX => most *= 8,
                Err(what) => return Err(self.wrong(format!("a page's header: {what}"))),
            }
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
            let name: String = field.name().chars().take(80).collect();
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
#[path = "../parquet_tests.rs"]
mod tests;
#[cfg(test)]
pub(crate) use tests::written;
