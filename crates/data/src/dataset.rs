//! All examples of the data files, tokenised, with what was counted on the way.
//!
//! One file because options, report and examples of a data set are kept and read back together.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::jsonl::{Fields, Format};
use super::kept::{self, Found, List, Writer};
use super::key::keys_of;
use super::lines::LINE_BYTES_MAX;
use super::mask::{Encoder, Example, LossOn};
use super::plain::TextBy;
use super::reading::read;
use super::remarks::Remarks;
use super::store::{Span, Store};
use super::stream::report_of;
use super::tokenizer::Tokenizer;
use crate::error::DataError;
use lowtide_random::Philox;
use lowtide_units::Bytes;

mod changes;
mod gathered;

pub(super) use changes::KeyOf;
use changes::stamp;
use gathered::Counter;
pub(super) use gathered::{Gathered, Hash, Keeping, Sink};

/// What becomes of a record that cannot be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnError {
    /// Reading ends with its place and what is wrong with it.
    #[default]
    Stop,
    /// It is left out and counted.
    Skip,
}

/// How to read data files.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// The format, or none to tell it from the first record.
    pub format: Option<Format>,
    /// The names of the fields.
    pub fields: Fields,
    /// What the loss is on.
    pub loss_on: LossOn,
    /// Stands between prompt and completion (as part of the prompt).
    pub separator: String,
    /// System prompt of conversations that bring none.
    pub system: Option<String>,
    /// What of a plain text is a record.
    pub text_by: TextBy,
    /// Of records of [`Format::Classes`], which are then the only ones that are read.
    pub classes: Option<Classes>,
    /// Longest record accepted, in bytes.
    pub line_bytes_max: usize,
    /// What becomes of a record that cannot be used.
    pub on_error: OnError,
    /// Bytes of host memory that records may take while they are read.
    pub memory: u64,
}

/// How texts with a class are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Classes {
    /// Their names, in order.
    pub names: Vec<String>,
    /// Most tokens of an example: of what is longer, the longer text loses its end, token by token.
    pub tokens_max: usize,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            format: None,
            fields: Fields::default(),
            loss_on: LossOn::default(),
            separator: String::new(),
            system: None,
            text_by: TextBy::default(),
            classes: None,
            line_bytes_max: LINE_BYTES_MAX,
            on_error: OnError::default(),
            memory: u64::MAX,
        }
    }
}

/// What was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadReport {
    /// Format of the records.
    pub format: Format,
    /// Records that were read, those left out included.
    pub n_records: u64,
    /// Records left out because not one of their tokens is supervised.
    pub n_unsupervised: u64,
    /// Tokens in the examples kept.
    pub n_tokens: u64,
    /// Supervised tokens in them.
    pub n_supervised: u64,
    /// Tokens of the longest example.
    pub tokens_max: usize,
    /// A hash of all tokens and masks, in order: equal for equal data, tokenizer and template.
    pub mask_hash: u64,
}

/// Bytes for each example of a weighted set: its number in lists of them, and where it lies.
const PLACE_COST: u64 = 2 * size_of::<usize>() as u64 + size_of::<Span>() as u64;

/// Tokenised examples. A part of a data set, and one that has examples several times, share its tokens.
#[derive(Debug)]
pub struct Dataset {
    path: PathBuf,
    store: Arc<Store>,
    spans: Vec<Span>,
    report: LoadReport,
    remarks: Remarks,
}

impl Dataset {
    /// Reads and tokenises all files, in order; on all of rayon's threads, with the same result
    /// for any number of them. Every file must have the format of the first record.
    ///
    /// Stops at the first record that is wrong, or leaves such out and counts them. Records in which nothing is
    /// supervised are left out and counted. Refuses data in which no token is supervised, and a file with prompts in
    /// which every token is.
    pub fn load(
        paths: &[PathBuf],
        options: &LoadOptions,
        tokenizer: &Tokenizer,
    ) -> Result<Self, DataError> {
        Ok(Self::read(paths, options, tokenizer, Sink::default())?.0)
    }

    /// The same, with the tokens in a file of the cache: that of an earlier call, or one that is made now. They take no
    /// memory then. Gives what people should know of it, too.
    ///
    /// # Errors
    /// As [`Self::load`]; a cache that was asked for and cannot be used. One that was not is done without.
    pub fn load_kept(
        paths: &[PathBuf],
        options: &LoadOptions,
        tokenizer: &Tokenizer,
        cache: &Cache,
    ) -> Result<(Self, Vec<String>), DataError> {
        if !cache.holds(paths) {
            return Ok((Self::load(paths, options, tokenizer)?, Vec::new()));
        }
        let without = |path: PathBuf, reason: String| match cache.required {
            true => Err(DataError::Kept { path, reason }),
            false => {
                let note = format!("tokens are not kept: {}: {reason}", path.display());
                match Self::load(paths, options, tokenizer) {
                    Ok(data) => Ok((data, vec![note])),
                    Err(DataError::Examples {
                        path,
                        place,
                        need,
                        have,
                        unkept: _,
                    }) => Err(DataError::Examples {
                        path,
                        place,
                        need,
                        have,
                        unkept: Some(note),
                    }),
                    Err(e) => Err(e),
                }
            }
        };
        let (writer, key, mut notes) = match Self::open_kept(paths, options, tokenizer, cache) {
            Ok(Opened::Found((data, _), _, notes)) => return Ok((*data, notes)),
            Ok(Opened::New(writer, key, notes)) => (writer, key, notes),
            Err(DataError::Kept { path, reason }) => return without(path, reason),
            Err(e) => return Err(e),
        };
        let changed = || key.changed(paths);
        match Self::read(paths, options, tokenizer, Sink::File(writer, &changed)) {
            Ok((data, keeping)) => {
                notes.extend(keeping.outcome(cache.required)?);
                Ok((data, notes))
            }
            Err(DataError::Kept { path, reason }) => without(path, reason),
            Err(e) => Err(e),
        }
    }

    /// What the cache has of these files: their tokens, or a file that was begun for them.
    pub(super) fn open_kept(
        paths: &[PathBuf],
        options: &LoadOptions,
        tokenizer: &Tokenizer,
        cache: &Cache,
    ) -> Result<Opened, DataError> {
        let mut notes = Vec::new();
        let kept = |path: &Path, reason: String| DataError::Kept {
            path: path.to_owned(),
            reason,
        };
        if cache.folder.as_os_str().is_empty() {
            let reason = "there is no folder for them: neither HOME nor XDG_CACHE_HOME is set";
            return Err(kept(Path::new("data.cache"), reason.to_owned()));
        }
        let stamps = paths.iter().map(|path| stamp(path)).collect();
        let Some(keys) = keys_of(paths, options, tokenizer)? else {
            let reason = "the tokenizer cannot be written down".to_owned();
            return Err(kept(tokenizer.path(), reason));
        };
        let path = kept::path_of(&cache.folder, &keys.file);
        let key = KeyOf {
            key: keys.file,
            data: keys.data,
            stamps,
        };
        match kept::find(&path, &key.key, options.memory) {
            Found::Whole(whole) => {
                let first = paths.first().cloned().unwrap_or_default();
                let report = whole.counts.report;
                let data = Self {
                    path: first,
                    store: Arc::new(whole.store),
                    spans: whole.spans,
                    report,
                    remarks: whole.counts.remarks,
                };
                match data.counted() {
                    Ok(data) if data.report == report => {
                        notes.push(format!("tokens are those kept in {}", path.display()));
                        let found = (Box::new(data), whole.list);
                        return Ok(Opened::Found(found, key, notes));
                    }
                    Ok(_) => notes.push(made_anew(&path, "its counts are not those of its tokens")),
                    Err(e) => notes.push(made_anew(&path, &e.to_string())),
                }
            }
            Found::Damaged(what) => notes.push(made_anew(&path, &what)),
            Found::Strange(what) => return Err(kept(&path, what)),
            Found::Nothing => {}
        }
        let writer = Writer::create(&cache.folder, &key.key);
        let writer = writer.map_err(|e| kept(&path, e.to_string()))?;
        Ok(Opened::New(Box::new(writer), key, notes))
    }

    /// A part of a store, as a data set of its own.
    pub(super) fn of_spans(
        path: PathBuf,
        store: Arc<Store>,
        spans: Vec<Span>,
        format: Format,
    ) -> Result<Self, DataError> {
        let (report, remarks) = report_of(format);
        let data = Self {
            path,
            store,
            spans,
            report,
            remarks,
        };
        data.counted()
    }

    /// Where its examples lie.
    pub(super) fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// What they lie in.
    pub(super) fn store(&self) -> Arc<Store> {
        Arc::clone(&self.store)
    }

    pub(super) fn read(
        paths: &[PathBuf],
        options: &LoadOptions,
        tokenizer: &Tokenizer,
        sink: Sink<'_>,
    ) -> Result<(Self, Keeping), DataError> {
        let mut data = Gathered::new(sink);
        let encode = |encoder: &Encoder<'_>, line: &str| encoder.encode(line);
        let (format, left_out) = read(
            paths,
            options,
            tokenizer,
            encode,
            |(file, place), (example, remarks), _| {
                data.add(&example, file)?;
                data.note(remarks);
                data.afford(&paths[file], place, Bytes(options.memory))
            },
        )?;
        data.note(left_out);
        data.finish(paths, format, options.loss_on)
    }

    /// Number of examples.
    #[must_use]
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Whether there is none; loading never gives such a data set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Example `i`.
    ///
    /// # Errors
    /// A file of the cache that is not what was written.
    pub fn example(&self, i: usize) -> Result<Example, DataError> {
        let stored = self.store.read(self.spans[i])?;
        Ok(match self.classifies() {
            true => stored.with_class(),
            false => stored,
        })
    }

    /// Whether its examples have a class.
    #[must_use]
    pub fn classifies(&self) -> bool {
        self.report.format == Format::Classes
    }

    /// The number of tokens of example `i`.
    #[must_use]
    pub fn tokens_of(&self, i: usize) -> usize {
        // A class stands before the tokens.
        self.spans[i].len as usize - usize::from(self.classifies())
    }

    /// The examples at these places, in this order, as a data set of their own. The report counts
    /// records and what was left out as for the whole.
    ///
    /// # Errors
    /// As [`Self::example`].
    pub fn select(&self, places: &[usize]) -> Result<Self, DataError> {
        let part = Self {
            path: self.path.clone(),
            store: Arc::clone(&self.store),
            spans: places.iter().map(|&i| self.spans[i]).collect(),
            report: self.report,
            remarks: self.remarks.clone(),
        };
        part.counted()
    }

    /// The same data with the examples of each file as often as its weight says: 2 has each twice, 0.5 one half of
    /// them, 1.5 all of them and one half again. Which half, `random` decides; a file's examples stay in their order,
    /// one pass behind the other. `weights` are finite, from 0 on, one a file, with the file's path. `memory`: bytes
    /// that the examples' places may take.
    ///
    /// # Errors
    /// A weight that leaves none of a file's examples, unless it is 0; weights that leave none of any, or that make
    /// more than can be numbered or than there is memory for.
    pub fn weighted(
        &self,
        weights: &[(&Path, f64)],
        memory: Bytes,
        random: impl Fn(u64) -> Philox,
    ) -> Result<Self, DataError> {
        let mut files: Vec<Vec<usize>> = vec![Vec::new(); weights.len()];
        for (i, span) in self.spans.iter().enumerate() {
            files[span.file as usize].push(i);
        }
        let counts = files.iter().zip(weights);
        let counts: Vec<u64> = counts
            .map(|(file, (_, weight))| (file.len() as f64 * weight).round() as u64)
            .collect();
        let total = counts.iter().fold(0u64, |sum, &n| sum.saturating_add(n));
        let none = |&i: &usize| {
            let all_none = total == 0 && !files[i].is_empty();
            all_none || counts[i] == 0 && !files[i].is_empty() && weights[i].1 > 0.0
        };
        if let Some(file) = (0..files.len()).find(none) {
            return Err(DataError::WeightOfNone {
                path: weights[file].0.to_owned(),
                file,
                weight: weights[file].1,
                examples: files[file].len() as u64,
            });
        }
        let need = Bytes(total.saturating_mul(PLACE_COST));
        let most = Bytes(u64::from(u32::MAX) * PLACE_COST);
        if need > memory.min(most) {
            let largest = (0..files.len()).max_by_key(|&i| counts[i]);
            let file = largest.unwrap_or_default();
            return Err(DataError::WeightTooLarge {
                path: weights[file].0.to_owned(),
                file,
                weight: weights[file].1,
                need,
                have: memory.min(most),
            });
        }
        let mut places = Vec::with_capacity(total as usize);
        for (i, (file, mut left)) in files.iter().zip(counts).enumerate() {
            while left > 0 && left >= file.len() as u64 {
                places.extend(file);
                left -= file.len() as u64;
            }
            let order = random(i as u64).permutation(file.len());
            let mut some: Vec<usize> = order[..left as usize].iter().map(|&k| k as usize).collect();
            some.sort_unstable();
            places.extend(some.into_iter().map(|k| file[k]));
        }
        self.select(&places)
    }

    /// The number of the file that example `i` is from.
    #[must_use]
    pub fn file_of(&self, i: usize) -> usize {
        self.spans[i].file as usize
    }

    /// Number of examples of each of `n` files.
    #[must_use]
    pub fn by_file(&self, n: usize) -> Vec<u64> {
        let mut counts = vec![0; n];
        for span in &self.spans {
            counts[span.file as usize] += 1;
        }
        counts
    }

    /// Counts tokens and hashes them, with their masks, into the report.
    fn counted(mut self) -> Result<Self, DataError> {
        let mut counter = Counter::default();
        for i in 0..self.len() {
            counter.add(&self.example(i)?);
        }
        self.report = counter.into(self.report);
        Ok(self)
    }

    /// What was read.
    #[must_use]
    pub fn report(&self) -> &LoadReport {
        &self.report
    }

    /// What was noticed in the records read.
    #[must_use]
    pub fn remarks(&self) -> &Remarks {
        &self.remarks
    }

    /// The first file, for error messages.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Example `i` for a person to look at: each token's text and whether it is trained on.
    ///
    /// # Errors
    /// As [`Self::example`].
    pub fn view(&self, i: usize, tokenizer: &Tokenizer) -> Result<Vec<(String, bool)>, DataError> {
        let example = self.example(i)?;
        let texts = example.tokens.iter().map(|&t| tokenizer.token_text(t));
        Ok(texts.zip(example.supervised.iter().copied()).collect())
    }
}

/// Where tokenised examples are kept between runs.
#[derive(Clone, Debug, Default)]
pub struct Cache {
    /// The folder; empty: nowhere.
    pub folder: PathBuf,
    /// Whether data that cannot be kept there are refused; else they are done without it.
    pub required: bool,
    /// Bytes of data files below which nothing is kept: they are tokenised as fast as they are found again.
    pub bytes_min: u64,
}

impl Cache {
    /// Whether these files' tokens are kept.
    fn holds(&self, paths: &[PathBuf]) -> bool {
        let len = |path: &PathBuf| std::fs::metadata(path).map_or(0, |m| m.len());
        let bytes: u64 = paths.iter().map(len).sum();
        // What was asked for and cannot be done is an error.
        self.required || !self.folder.as_os_str().is_empty() && bytes >= self.bytes_min
    }
}

/// What a cache has of data files, with what people should know.
pub(super) enum Opened {
    /// Their tokens, and where they lie.
    Found((Box<Dataset>, List), KeyOf, Vec<String>),
    /// A file that was begun for them.
    New(Box<Writer>, KeyOf, Vec<String>),
}

fn made_anew(path: &Path, what: &str) -> String {
    format!(
        "warning: tokens kept in {} are damaged and made anew: {what}",
        path.display()
    )
}

#[cfg(test)]
impl Dataset {
    /// A data set of given examples.
    pub(crate) fn of(examples: &[Example]) -> Result<Self, DataError> {
        let mut data = Gathered::new(Sink::default());
        examples.iter().try_for_each(|e| data.add(e, 0).map(drop))?;
        Ok(data
            .finish(&["test".into()], Format::Text, LossOn::Answers)?
            .0)
    }
}

#[cfg(test)]
#[path = "dataset_tests.rs"]
mod tests;
