//! All examples of the data files, tokenised, with what was counted on the way.

use std::iter::Peekable;
use std::path::{Path, PathBuf};

use lowtide_units::Bytes;
use rayon::prelude::*;

use super::foreign;
use super::jsonl::{Fields, Format, Schema};
use super::lines::{LINE_BYTES_MAX, Line, Lines};
use super::mask::{Encoder, Example, LossOn};
use super::remarks::Remarks;
use super::tokenizer::{Tokenizer, WHOLE_COST, WINDOW};
use crate::error::{DataError, RecordProblem};

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
    /// Longest line accepted, in bytes.
    pub line_bytes_max: usize,
    /// What becomes of a record that cannot be used.
    pub on_error: OnError,
    /// Bytes of host memory that records may take while they are read.
    pub memory: u64,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            format: None,
            fields: Fields::default(),
            loss_on: LossOn::default(),
            separator: String::new(),
            system: None,
            line_bytes_max: LINE_BYTES_MAX,
            on_error: OnError::default(),
            memory: u64::MAX,
        }
    }
}

/// What was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadReport {
    /// Format of the records.
    pub format: Format,
    /// Records read.
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

/// Tokenised examples: token ids and masks end to end, 5 bytes a token.
#[derive(Debug)]
pub struct Dataset {
    path: PathBuf,
    tokens: Vec<i32>,
    supervised: Vec<bool>,
    ends: Vec<usize>,
    report: LoadReport,
    remarks: Remarks,
}

/// One example of a [`Dataset`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExampleRef<'a> {
    /// Its tokens.
    pub tokens: &'a [i32],
    /// For each of them, whether the model learns to say it.
    pub supervised: &'a [bool],
}

impl Dataset {
    /// Reads and tokenises all files, in order; on all of rayon's threads, with the same result
    /// for any number of them. Every file must have the format of the first record.
    ///
    /// Stops at the first record that is wrong, or leaves such out and counts them. Records in which nothing is supervised are left
    /// out and counted. Refuses data in which no token is supervised, and data with prompts in
    /// which every token is.
    pub fn load(
        paths: &[PathBuf],
        options: &LoadOptions,
        tokenizer: &Tokenizer,
    ) -> Result<Self, DataError> {
        let first = paths.first().cloned().unwrap_or_default();
        let mut data = Gathered::default();
        let encode = |encoder: &Encoder<'_>, line: &str| encoder.encode(line);
        let (format, left_out) = read(
            paths,
            options,
            tokenizer,
            encode,
            |_, (example, remarks)| {
                data.add(&example);
                data.remarks.add(remarks);
            },
        )?;
        data.remarks.add(left_out);
        data.finish(first, format, options.loss_on)
    }

    /// Number of examples.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none; loading never gives such a data set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Example `i`.
    #[must_use]
    pub fn example(&self, i: usize) -> ExampleRef<'_> {
        let range = i.checked_sub(1).map_or(0, |before| self.ends[before])..self.ends[i];
        ExampleRef {
            tokens: &self.tokens[range.clone()],
            supervised: &self.supervised[range],
        }
    }

    /// The examples at these places, in this order, as a data set of their own. The report counts
    /// records and what was left out as for the whole.
    #[must_use]
    pub fn select(&self, places: &[usize]) -> Self {
        let mut part = Self {
            path: self.path.clone(),
            tokens: Vec::new(),
            supervised: Vec::new(),
            ends: Vec::with_capacity(places.len()),
            report: self.report,
            remarks: self.remarks.clone(),
        };
        for &i in places {
            let example = self.example(i);
            part.tokens.extend(example.tokens);
            part.supervised.extend(example.supervised);
            part.ends.push(part.tokens.len());
        }
        part.counted()
    }

    /// Counts tokens and hashes them, with their masks, into the report.
    fn counted(mut self) -> Self {
        let mut report = self.report;
        report.n_tokens = self.tokens.len() as u64;
        report.n_supervised = self.supervised.iter().filter(|&&s| s).count() as u64;
        report.tokens_max = 0;
        let mut hash = Hash::default();
        for i in 0..self.len() {
            let example = self.example(i);
            report.tokens_max = report.tokens_max.max(example.tokens.len());
            hash.add(example.tokens.len() as u64);
            for (&token, &supervised) in example.tokens.iter().zip(example.supervised) {
                hash.add((token as u64) << 1 | u64::from(supervised));
            }
        }
        report.mask_hash = hash.0;
        self.report = report;
        self
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
    #[must_use]
    pub fn view(&self, i: usize, tokenizer: &Tokenizer) -> Vec<(String, bool)> {
        let example = self.example(i);
        let texts = example.tokens.iter().map(|&t| tokenizer.token_text(t));
        texts.zip(example.supervised.iter().copied()).collect()
    }
}

/// Lines handled in one go: enough for every thread, little enough to hold.
const CHUNK_LINES: usize = 1024;
const CHUNK_BYTES: usize = 16 << 20;

/// Does `work` on every line of the files, on all of rayon's threads, and hands `take` what comes of it
/// with the line's number, in order. Gives the format and what was left out.
pub(crate) fn read<T: Send>(
    paths: &[PathBuf],
    options: &LoadOptions,
    tokenizer: &Tokenizer,
    work: impl Fn(&Encoder<'_>, &str) -> Result<T, RecordProblem> + Sync,
    mut take: impl FnMut(u64, T),
) -> Result<(Format, Remarks), DataError> {
    let mut encoder = None;
    let (mut left_out, mut n_taken) = (Remarks::default(), 0u64);
    for path in paths {
        let mut lines = Lines::open(path, options.line_bytes_max)?.peekable();
        let mut is_first = true;
        loop {
            let chunk = chunk(&mut lines, options.memory)?;
            if chunk.is_empty() {
                break;
            }
            if encoder.is_none()
                && let Some(schema) = schema(options, &chunk)
            {
                let (loss_on, separator) = (options.loss_on, &options.separator);
                let new = Encoder::new(schema, tokenizer, loss_on, separator)?;
                encoder = Some(new.with_system(options.system.clone()));
            }
            let numbers: Vec<u64> = chunk.iter().map(|line| line.number).collect();
            let done: Vec<Result<T, RecordProblem>> = match &encoder {
                Some(encoder) => chunk
                    .into_par_iter()
                    .map(|line| {
                        let text = line.text?;
                        affordable(text.len(), options.memory)?;
                        work(encoder, &text)
                    })
                    .collect(),
                None => chunk
                    .into_iter()
                    .map(|line| Err(no_format(line, options)))
                    .collect(),
            };
            for (number, done) in numbers.into_iter().zip(done) {
                match (done, options.on_error) {
                    (Ok(value), _) => {
                        n_taken += 1;
                        take(number, value);
                    }
                    (Err(problem), OnError::Skip) if !problem.ends_all() => {
                        left_out.left_out(path, number, &problem);
                    }
                    (Err(problem), _) => {
                        let foreign = is_first.then(|| foreign_file(path)).flatten();
                        return Err(
                            foreign.unwrap_or_else(|| DataError::record(path, number, problem))
                        );
                    }
                }
                is_first = false;
            }
        }
    }
    match encoder {
        Some(encoder) if n_taken > 0 => Ok((encoder.format(), left_out)),
        _ => Err(nothing(paths, &left_out)),
    }
}

/// Why files without one record that can be used are refused.
fn nothing(paths: &[PathBuf], left_out: &Remarks) -> DataError {
    let path = paths.first().cloned().unwrap_or_default();
    let Some(first) = left_out.places.first() else {
        return DataError::NoRecords { path };
    };
    foreign_file(&path).unwrap_or_else(|| DataError::AllSkipped {
        path,
        n: left_out.n_left_out,
        first: first.clone(),
    })
}

fn foreign_file(path: &Path) -> Option<DataError> {
    foreign::file(path).map(|what| DataError::ForeignFile {
        path: path.to_owned(),
        what,
    })
}

/// Why a line has no text, or no format.
fn no_format(line: Line, options: &LoadOptions) -> RecordProblem {
    let schema = line
        .text
        .and_then(|text| Schema::detect(&text, &options.fields));
    match schema {
        Err(problem) => problem,
        // Only the first line decides where a wrong one ends all; the error is that one's.
        Ok(schema) => RecordProblem::MixedFormats {
            first: "other",
            found: schema.format.name(),
        },
    }
}

/// The format that is told, or that of the first line; of the first that has one where others are left
/// out.
fn schema(options: &LoadOptions, chunk: &[Line]) -> Option<Schema> {
    if let Some(format) = options.format {
        return Some(Schema {
            format,
            fields: options.fields.clone(),
        });
    }
    let detect = |line: &Line| Schema::detect(line.text.as_ref().ok()?, &options.fields).ok();
    match options.on_error {
        OnError::Stop => chunk.first().and_then(detect),
        OnError::Skip => chunk.iter().find_map(detect),
    }
}

/// Bytes of memory that a record takes for each of its line's while it is read: the line, its values (two copies),
/// its texts as rendered, their tokens with their places. English takes 14, a token for each character 33, tools
/// in small pieces 35 (docs/robustness.md). Of its text a window is tokenised at a time.
const RECORD_COST: u64 = 40;

/// Most bytes of memory that a record takes while it is read.
fn cost(bytes: usize) -> u64 {
    let bytes = bytes as u64;
    let window = bytes.min(WINDOW as u64) * WHOLE_COST;
    bytes.saturating_mul(RECORD_COST).saturating_add(window)
}

/// Refuses a record that cannot be read within so much memory.
fn affordable(bytes: usize, memory: u64) -> Result<(), RecordProblem> {
    let need = cost(bytes);
    match need <= memory {
        true => Ok(()),
        false => Err(RecordProblem::Memory {
            bytes: Bytes(bytes as u64),
            need: Bytes(need),
            have: Bytes(memory),
        }),
    }
}

/// The next lines, as many as may be read at once: one at least. Threads tokenise a window each.
fn chunk(lines: &mut Peekable<Lines>, memory: u64) -> Result<Vec<Line>, DataError> {
    let windows = rayon::current_num_threads() as u64 * cost(WINDOW);
    let rest = memory.saturating_sub(windows).max(memory / 2) / RECORD_COST;
    let most = usize::try_from(rest).unwrap_or(usize::MAX).min(CHUNK_BYTES);
    let (mut chunk, mut n_bytes) = (Vec::new(), 0);
    let bytes = |line: &Line| line.text.as_ref().map_or(0, String::len);
    while chunk.len() < CHUNK_LINES
        && let Some(line) = lines.next_if(|line| {
            let next = line.as_ref().map_or(0, bytes);
            n_bytes == 0 || n_bytes + next <= most
        })
    {
        let line = line?;
        n_bytes += bytes(&line);
        chunk.push(line);
    }
    Ok(chunk)
}

/// Examples as they come in.
#[derive(Default)]
struct Gathered {
    tokens: Vec<i32>,
    supervised: Vec<bool>,
    ends: Vec<usize>,
    n_records: u64,
    n_unsupervised: u64,
    n_tokens_read: u64,
    remarks: Remarks,
}

impl Gathered {
    fn add(&mut self, example: &Example) {
        self.n_records += 1;
        self.n_tokens_read += example.tokens.len() as u64;
        // The first token has nothing before it that could predict it.
        if !example.supervised.iter().skip(1).any(|&s| s) {
            self.n_unsupervised += 1;
            return;
        }
        self.tokens.extend(&example.tokens);
        self.supervised.extend(&example.supervised);
        self.ends.push(self.tokens.len());
    }

    fn finish(self, path: PathBuf, format: Format, loss_on: LossOn) -> Result<Dataset, DataError> {
        let n_supervised = self.supervised.iter().filter(|&&s| s).count() as u64;
        let (n_tokens, n_records) = (self.tokens.len() as u64, self.n_records);
        if self.ends.is_empty() {
            let n_tokens = self.n_tokens_read;
            return Err(DataError::NothingSupervised {
                path,
                n_records,
                n_tokens,
                n_cut: 0,
            });
        }
        let has_prompts = format != Format::Text && loss_on == LossOn::Answers;
        if has_prompts && n_supervised == n_tokens {
            return Err(DataError::EverythingSupervised {
                path,
                n_records,
                n_tokens,
            });
        }
        let report = LoadReport {
            format,
            n_records,
            n_unsupervised: self.n_unsupervised,
            n_tokens,
            n_supervised,
            tokens_max: 0,
            mask_hash: 0,
        };
        let Self {
            tokens,
            supervised,
            ends,
            remarks,
            ..
        } = self;
        let data = Dataset {
            path,
            tokens,
            supervised,
            ends,
            report,
            remarks,
        };
        Ok(data.counted())
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

#[cfg(test)]
impl Dataset {
    /// A data set of given examples.
    pub(crate) fn of(examples: &[Example]) -> Result<Self, DataError> {
        let mut data = Gathered::default();
        examples.iter().for_each(|e| data.add(e));
        data.finish("test".into(), Format::Text, LossOn::Answers)
    }
}

#[cfg(test)]
#[path = "dataset_tests.rs"]
mod tests;
