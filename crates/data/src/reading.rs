//! Records through an encoder: in chunks, on all threads, within the memory that reading may take.

use std::iter::Peekable;
use std::path::{Path, PathBuf};

use lowtide_units::Bytes;
use rayon::prelude::*;

use super::dataset::{LoadOptions, OnError};
use super::foreign;
use super::jsonl::{Format, Schema};
use super::lines::Line;
use super::mask::Encoder;
use super::place::Place;
use super::remarks::Remarks;
use super::source::{Make, Source};
use super::tokenizer::{Tokenizer, WHOLE_COST, WINDOW};
use crate::error::{DataError, RecordProblem};

/// Lines handled in one go: enough for every thread, little enough to hold.
const CHUNK_LINES: usize = 1024;
const CHUNK_BYTES: usize = 16 << 20;

/// Does `work` on every line of the files, on all of rayon's threads, and hands `take` what comes of it with the number
/// of its file and its place in it, in order, and what was left out before it; an error of `take` ends it. Gives the
/// format and what was left out.
pub(crate) fn read<T: Send>(
    paths: &[PathBuf],
    options: &LoadOptions,
    tokenizer: &Tokenizer,
    work: impl Fn(&Encoder<'_>, &str) -> Result<T, RecordProblem> + Sync,
    mut take: impl FnMut((usize, Place), T, &Remarks) -> Result<(), DataError>,
) -> Result<(Format, Remarks), DataError> {
    let mut encoder = None;
    let (mut left_out, mut n_taken) = (Remarks::default(), 0u64);
    for (file, path) in paths.iter().enumerate() {
        let mut lines = Source::open(path, options)?.peekable();
        let mut is_first = true;
        let (before, mut other, mut may_fit) = (n_taken, None, false);
        loop {
            let chunk = chunk(&mut lines, options.memory)?;
            if chunk.is_empty() {
                break;
            }
            if encoder.is_none()
                && let Some(schema) = schema(options, &chunk)
            {
                encoder = Some(encoder_of(path, options, schema, tokenizer)?);
            }
            let places: Vec<Place> = chunk.iter().map(|line| line.place).collect();
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
            for (place, done) in places.into_iter().zip(done) {
                match (done, options.on_error) {
                    (Ok(value), _) => {
                        n_taken += 1;
                        take((file, place), value, &left_out)?;
                    }
                    // A file of another layout is not a record that cannot be used.
                    (Err(problem), OnError::Skip)
                        if !(problem.ends_all() || is_first && problem.is_of_layout()) =>
                    {
                        left_out.left_out(path, place, &problem);
                        if problem.may_be_of_layout() {
                            other.get_or_insert((place, problem));
                        } else {
                            may_fit |= !problem.is_no_record();
                        }
                    }
                    (Err(problem), _) => {
                        let foreign = is_first.then(|| foreign_file(path)).flatten();
                        return Err(
                            foreign.unwrap_or_else(|| DataError::record(path, place, problem))
                        );
                    }
                }
                is_first = false;
            }
        }
        // None of its records can be used, and all of them lack fields: that is its layout. Of one file alone all is
        // said below.
        if let Some((place, problem)) = other
            && n_taken == before
            && !may_fit
            && paths.len() > 1
        {
            return Err(DataError::record(path, place, problem));
        }
    }
    match encoder {
        Some(encoder) if n_taken > 0 => Ok((encoder.format(), left_out)),
        _ => Err(nothing(paths, &left_out)),
    }
}

/// An encoder of records of a file.
fn encoder_of<'a>(
    path: &Path,
    options: &'a LoadOptions,
    schema: Schema,
    tokenizer: &'a Tokenizer,
) -> Result<Encoder<'a>, DataError> {
    let format = schema.format;
    if options.system.is_some() && !matches!(format, Format::Messages | Format::Alpaca) {
        return Err(DataError::NoSystem {
            path: path.to_owned(),
            format: format.name(),
        });
    }
    let (loss_on, separator) = (options.loss_on, &options.separator);
    let classes = options.classes.as_ref();
    let encoder = Encoder::classifying(schema, tokenizer, loss_on, separator, classes)?;
    Ok(encoder.with_system(options.system.clone()))
}

/// What the records of these files are encoded as: what the run file says, or what the first of them looks like. None
/// is tokenised.
///
/// # Errors
/// A file that cannot be read, or whose first record has no format; a tokenizer that lacks what the format needs.
pub fn format_of(
    paths: &[PathBuf],
    options: &LoadOptions,
    tokenizer: &Tokenizer,
) -> Result<Format, DataError> {
    let encoded = |path: &Path, schema| {
        let encoder = encoder_of(path, options, schema, tokenizer)?;
        Ok(encoder.format())
    };
    if let Some(given) = schema(options, &[]) {
        let first = paths.first().map_or(Path::new(""), |path| path);
        return encoded(first, given);
    }
    for path in paths {
        let mut lines = Source::open(path, options)?.peekable();
        loop {
            let chunk = chunk(&mut lines, options.memory)?;
            if let Some(found) = schema(options, &chunk) {
                return encoded(path, found);
            }
            match (chunk.into_iter().next(), options.on_error) {
                (None, _) => break,
                (Some(_), OnError::Skip) => {}
                (Some(line), OnError::Stop) => {
                    let place = line.place;
                    return Err(DataError::record(path, place, no_format(line, options)));
                }
            }
        }
    }
    Err(nothing(paths, &Remarks::default()))
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
    // Opening a table or a text has found that already.
    let what = (Make::of(path) == Make::Json).then(|| foreign::file(path))?;
    what.map(|what| DataError::ForeignFile {
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

/// The format that the run file names, or that of the first line; of the first that has one where others are left
/// out.
fn schema(options: &LoadOptions, chunk: &[Line]) -> Option<Schema> {
    if let Some(format) = options.format {
        let line = chunk.first().and_then(|line| line.text.as_deref().ok());
        return Some(Schema::named(format, line, &options.fields));
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
fn chunk(lines: &mut Peekable<Source>, memory: u64) -> Result<Vec<Line>, DataError> {
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
