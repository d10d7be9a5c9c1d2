//! Examples as they come in, and what is counted of them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lowtide_units::Bytes;

use super::super::jsonl::Format;
use super::super::kept::{Counts, Part, Writer};
use super::super::mask::{Example, LossOn};
use super::super::place::Place;
use super::super::remarks::Remarks;
use super::super::store::{Span, Store, TOKEN_COST, words_of};
use super::{Dataset, LoadReport};
use crate::error::DataError;

/// Where examples go as they come in.
pub(crate) enum Sink<'a> {
    Memory {
        tokens: Vec<i32>,
        supervised: Vec<bool>,
    },
    /// A file of the cache, and which of the data files is no more what it is named after.
    File(Box<Writer>, &'a (dyn Fn() -> Option<PathBuf> + Sync)),
}

/// What became of the file of the cache, when all examples are in it.
pub(crate) enum Keeping {
    /// There is none.
    InMemory,
    /// It has its name.
    Kept(PathBuf),
    /// It was given up: a data file was changed meanwhile, so its name is not true.
    Changed(PathBuf),
    /// It cannot be ended, or cannot be given its name.
    Failed(DataError),
}

impl Keeping {
    /// What people should know of it.
    ///
    /// # Errors
    /// It cannot be ended, and it was asked for.
    pub(crate) fn outcome(self, required: bool) -> Result<Option<String>, DataError> {
        match self {
            Self::InMemory => Ok(None),
            Self::Kept(path) => Ok(Some(format!("tokens are kept in {}", path.display()))),
            Self::Changed(path) => Ok(Some(format!(
                "warning: tokens are not kept: {} was changed while it was read",
                path.display()
            ))),
            Self::Failed(e) if required => Err(e),
            Self::Failed(e) => Ok(Some(format!("warning: tokens are not kept: {e}"))),
        }
    }
}

impl Default for Sink<'_> {
    fn default() -> Self {
        Self::Memory {
            tokens: Vec::new(),
            supervised: Vec::new(),
        }
    }
}

/// Counts and the hash of examples.
#[derive(Default)]
pub(super) struct Counter {
    n_tokens: u64,
    n_supervised: u64,
    tokens_max: usize,
    hash: Hash,
}

impl Counter {
    pub(super) fn add(&mut self, example: &Example) {
        self.tokens_max = self.tokens_max.max(example.tokens.len());
        self.n_tokens += example.tokens.len() as u64;
        self.n_supervised += example.labels();
        if let Some(class) = example.class {
            self.hash.add(class as u64);
        }
        self.hash.add(example.tokens.len() as u64);
        for (&token, &supervised) in example.tokens.iter().zip(&example.supervised) {
            self.hash.add((token as u64) << 1 | u64::from(supervised));
        }
    }

    /// A report with these counts.
    pub(super) fn into(self, report: LoadReport) -> LoadReport {
        LoadReport {
            n_tokens: self.n_tokens,
            n_supervised: self.n_supervised,
            tokens_max: self.tokens_max,
            mask_hash: self.hash.0,
            ..report
        }
    }
}

/// What a data file's examples have.
#[derive(Clone, Copy, Default)]
struct OfFile {
    n_records: u64,
    n_tokens: u64,
    n_supervised: u64,
}

/// Examples as they come in.
pub(crate) struct Gathered<'a> {
    sink: Sink<'a>,
    /// Where they lie, unless a file alone has it.
    spans: Vec<Span>,
    lists_only: bool,
    counter: Counter,
    /// Where the next example begins.
    next: u64,
    files: Vec<OfFile>,
    n_tokens: u64,
    n_records: u64,
    n_unsupervised: u64,
    n_tokens_read: u64,
    remarks: Remarks,
}

impl<'a> Gathered<'a> {
    pub(crate) fn new(sink: Sink<'a>) -> Self {
        Self {
            sink,
            spans: Vec::new(),
            lists_only: false,
            counter: Counter::default(),
            next: 0,
            files: Vec::new(),
            n_tokens: 0,
            n_records: 0,
            n_unsupervised: 0,
            n_tokens_read: 0,
            remarks: Remarks::default(),
        }
    }

    /// Bytes of memory that the examples take.
    pub(super) fn memory(&self) -> u64 {
        let places = self.spans.len() as u64 * size_of::<Span>() as u64;
        match self.sink {
            Sink::Memory { .. } => self.n_tokens * TOKEN_COST + places,
            Sink::File(..) => places,
        }
    }

    /// Adds what was noticed in a record.
    pub(crate) fn note(&mut self, remarks: Remarks) {
        self.remarks.add(remarks);
    }

    /// Refuses examples that take more memory than this, at the record that was read last.
    pub(crate) fn afford(&self, path: &Path, place: Place, have: Bytes) -> Result<(), DataError> {
        let need = Bytes(self.memory());
        match need <= have {
            true => Ok(()),
            false => Err(DataError::Examples {
                path: path.to_owned(),
                place,
                need,
                have,
                unkept: None,
            }),
        }
    }

    /// The same, and where examples lie stands in the file alone: they take no memory.
    pub(crate) fn without_spans(self) -> Self {
        Self {
            lists_only: true,
            ..self
        }
    }

    /// Where the next example will lie in a file.
    pub(crate) fn here(&self) -> Option<Part> {
        match &self.sink {
            Sink::Memory { .. } => None,
            Sink::File(writer, _) => Some(writer.here()),
        }
    }

    /// What was noticed so far, and how many records were left out because nothing in them is supervised.
    pub(crate) fn noticed(&self) -> (u64, &Remarks) {
        (self.n_unsupervised, &self.remarks)
    }

    /// Refuses data files that are no more what they were at the beginning.
    pub(crate) fn check_unchanged(&self) -> Result<(), DataError> {
        match &self.sink {
            Sink::File(_, changed) => {
                changed().map_or(Ok(()), |path| Err(DataError::Changed { path }))
            }
            Sink::Memory { .. } => Ok(()),
        }
    }

    /// What was added can be read.
    pub(crate) fn flush(&mut self) -> Result<(), DataError> {
        match &mut self.sink {
            Sink::Memory { .. } => Ok(()),
            Sink::File(writer, _) => writer.flush().map_err(|e| writer.failed(&e)),
        }
    }

    /// Adds an example; whether it is kept, because something in it is supervised.
    pub(crate) fn add(&mut self, example: &Example, file: usize) -> Result<bool, DataError> {
        self.n_records += 1;
        self.n_tokens_read += example.tokens.len() as u64;
        // The first token has nothing before it that could predict it.
        if example.class.is_none() && !example.supervised.iter().skip(1).any(|&s| s) {
            self.n_unsupervised += 1;
            return Ok(false);
        }
        let stored = &*example.stored();
        let len = u32::try_from(stored.tokens.len()).expect("a record's bytes are bounded");
        let taken = match &mut self.sink {
            Sink::Memory { tokens, supervised } => {
                tokens.extend(&stored.tokens);
                supervised.extend(&stored.supervised);
                u64::from(len)
            }
            Sink::File(writer, _) => {
                writer
                    .add(stored, file as u32)
                    .map_err(|e| writer.failed(&e))?;
                words_of(len)
            }
        };
        self.counter.add(example);
        if !self.lists_only {
            self.spans.push(Span {
                from: self.next,
                len,
                file: u32::try_from(file).expect("a run file has fewer files"),
            });
        }
        self.next += taken;
        self.n_tokens += u64::from(len);
        if self.files.len() <= file {
            self.files.resize(file + 1, OfFile::default());
        }
        let of = &mut self.files[file];
        of.n_records += 1;
        of.n_tokens += example.tokens.len() as u64;
        of.n_supervised += example.labels();
        Ok(true)
    }

    /// Refuses a file with prompts in which every token is supervised.
    pub(crate) fn check_masks(
        &self,
        paths: &[PathBuf],
        format: Format,
        loss_on: LossOn,
    ) -> Result<(), DataError> {
        let plain = matches!(format, Format::Text | Format::Classes);
        let has_prompts = !plain && loss_on == LossOn::Answers;
        let mut files = self.files.iter().zip(paths);
        let all_of = |(of, _): &(&OfFile, _)| of.n_tokens > 0 && of.n_supervised == of.n_tokens;
        match files.find(all_of) {
            Some((of, path)) if has_prompts => Err(DataError::EverythingSupervised {
                path: path.clone(),
                n_records: of.n_records,
                n_tokens: of.n_tokens,
            }),
            _ => Ok(()),
        }
    }

    pub(crate) fn finish(
        self,
        paths: &[PathBuf],
        format: Format,
        loss_on: LossOn,
    ) -> Result<(Dataset, Keeping), DataError> {
        let first = || paths.first().cloned().unwrap_or_default();
        let n_records = self.n_records;
        if self.counter.n_tokens == 0 {
            let n_tokens = self.n_tokens_read;
            return Err(DataError::NothingSupervised {
                path: first(),
                n_records,
                n_tokens,
                n_cut: 0,
            });
        }
        self.check_masks(paths, format, loss_on)?;
        let report = LoadReport {
            format,
            n_records,
            n_unsupervised: self.n_unsupervised,
            n_tokens: 0,
            n_supervised: 0,
            tokens_max: 0,
            mask_hash: 0,
        };
        let report = self.counter.into(report);
        let (store, unfinished) = match self.sink {
            Sink::Memory { tokens, supervised } => (Store::Memory { tokens, supervised }, None),
            Sink::File(mut writer, changed) => {
                let store = writer.so_far().map_err(|e| writer.failed(&e))?;
                (store, Some((writer, changed)))
            }
        };
        let data = Dataset {
            path: first(),
            store: Arc::new(store),
            spans: self.spans,
            report,
            remarks: self.remarks,
        };
        let Some((writer, changed)) = unfinished else {
            return Ok((data, Keeping::InMemory));
        };
        if let Some(path) = changed() {
            return Ok((data, Keeping::Changed(path)));
        }
        let counts = Counts {
            report: data.report,
            remarks: data.remarks.clone(),
        };
        let path = writer.path().to_owned();
        // The tokens can be read through the open file, whatever its name is.
        let keeping = match writer.finish(&counts) {
            Ok(()) => Keeping::Kept(path),
            Err(e) => Keeping::Failed(DataError::Kept {
                path,
                reason: e.to_string(),
            }),
        };
        Ok((data, keeping))
    }
}

/// A hash that is the same on every machine and in every version: SplitMix64's mixer, chained.
#[derive(Default)]
pub(crate) struct Hash(pub u64);

impl Hash {
    pub fn add(&mut self, word: u64) {
        let mut z = (self.0 ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        self.0 = z ^ z >> 31;
    }
}
