//! A run's data: tokenizer, training rows, evaluation rows.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lowtide_config as config;
use lowtide_config::{Length, Run};
use lowtide_tiers::{HostMemory, numa};
use lowtide_units::Bytes;
use lowtide_workload::Batch;

use crate::classes::{self, options_of};
use crate::error::TrainError;
use crate::pairs;
use crate::paths;
use crate::planning::{batch_bytes, shape_of};
use crate::stops::note_of_ends;
use crate::threads::threads_of;
use lowtide_data::DataError;
use lowtide_data::packing::TooLong;
use lowtide_data::{
    BatchShape, Cache, Dataset, Dealing, Fields, Format, LastBatch, LoadOptions, LossOn, Micro,
    OnError, Packed, Packing, RowLayout, Rows, Stream, TextBy, Threads, Tokenizer, WINDOW,
};
use lowtide_random::Philox;

mod split;
mod told;

use told::{describe, hash_of, of_set, remark};
pub(crate) use told::{news_of, steps_line, weak_evaluation};

/// What a run trains and evaluates on.
#[derive(Debug)]
pub struct Inputs {
    /// Training rows, in memory or as a stream.
    pub train: Rows,
    /// Evaluation rows, if the run has any.
    pub eval: Option<Arc<Packed>>,
    /// What was counted, for people.
    pub notes: Vec<String>,
    /// Details, for those who look inside.
    pub details: Vec<String>,
}

impl Inputs {
    /// Whether the data are conversations.
    #[must_use]
    pub fn is_chat(&self) -> bool {
        self.train.format() == Format::Messages
    }
}

/// Random numbers of the evaluation split.
const SPLIT_STREAM: u64 = 2 << 62;
/// First of the streams that choose which examples of a file a weight has once more, one a file.
const WEIGHT_STREAMS: u64 = 3 << 61;

/// The run's tokenizer, with its chat template; `now` is what templates see as the time. The model
/// has a row for each of its tokens.
///
/// # Errors
/// Files that are missing or not what they must be; a token beyond the model's rows.
pub fn open_tokenizer(run: &Run, now: Option<i64>) -> Result<Tokenizer, TrainError> {
    run.training_ready()?;
    let path = run
        .model
        .tokenizer
        .as_ref()
        .expect("training_ready has checked");
    let mut tokenizer = Tokenizer::open(path)?;
    if let Some(template) = &run.data.chat_template {
        tokenizer = tokenizer.with_chat_template_file(template)?;
    }
    if let Some(now) = now {
        tokenizer = tokenizer.with_now(now)?;
    }
    tokenizer = tokenizer.with_memory(reading_memory(run));
    let shape = shape_of(run)?;
    let vocab = shape.vocab;
    let (token, id) = tokenizer.largest();
    if i64::from(id) >= i64::from(vocab) {
        return Err(TrainError::Vocabulary {
            tokens: tokenizer.vocab_size(),
            token: token.chars().take(80).collect(),
            id,
            vocab,
        });
    }
    Ok(tokenizer)
}

/// How the run's data files are read, but for the classes of a model that has some (`classes::options_of`).
#[must_use]
pub fn load_options(run: &Run) -> LoadOptions {
    let d = &run.data;
    LoadOptions {
        format: match d.format {
            config::Format::Auto => None,
            config::Format::Chat => Some(Format::Messages),
            config::Format::Completion => Some(Format::PromptCompletion),
            config::Format::Text => Some(Format::Text),
            config::Format::Alpaca => Some(Format::Alpaca),
            config::Format::Classification => Some(Format::Classes),
            config::Format::Seq2seq => Some(Format::Pair),
        },
        fields: Fields {
            messages: d.fields.messages.clone(),
            prompt: d.fields.prompt.clone(),
            completion: d.fields.completion.clone(),
            text: d.fields.text.clone(),
            ..Fields::default()
        },
        loss_on: match d.train_on {
            config::TrainOn::Assistant => LossOn::Answers,
            config::TrainOn::All => LossOn::Everything,
        },
        text_by: match d.text_by {
            config::TextBy::File => TextBy::File,
            config::TextBy::Paragraph => TextBy::Paragraph,
            config::TextBy::Line => TextBy::Line,
        },
        classes: None,
        line_bytes_max: usize::try_from(d.max_line.0).unwrap_or(usize::MAX),
        on_error: match d.on_error {
            config::OnError::Stop => OnError::Stop,
            config::OnError::Skip => OnError::Skip,
        },
        system: d.system.clone(),
        separator: d.separator.clone().unwrap_or_default(),
        memory: reading_memory(run).0,
    }
}

/// Host memory that may be taken while data are read: nothing else of the run is there yet.
fn reading_memory(run: &Run) -> Bytes {
    let free = HostMemory::available();
    run.budget.host.map_or(free, |budget| budget.min(free))
}

/// Bytes of data files from which on their tokens are kept unless the run says otherwise.
const CACHE_BYTES_MIN: u64 = 16 << 20;

/// Where the tokens of the run's data are kept.
fn cache_of(run: &Run) -> Cache {
    match &run.data.cache {
        config::Cache::None => Cache::default(),
        config::Cache::Path(folder) => Cache {
            folder: folder.clone(),
            required: true,
            bytes_min: 0,
        },
        config::Cache::Auto => Cache {
            folder: paths::cache_folder().map_or(PathBuf::new(), |folder| folder.join("data")),
            required: false,
            bytes_min: CACHE_BYTES_MIN,
        },
    }
}

/// In which order the run's rows are dealt out.
#[must_use]
pub fn dealing(run: &Run) -> Dealing {
    Dealing {
        seed: run.data.shuffle.then_some(run.seed),
        last_batch: match run.train.last_batch {
            config::LastBatch::Fill => LastBatch::Fill,
            config::LastBatch::Keep => LastBatch::Keep,
            config::LastBatch::Drop => LastBatch::Drop,
        },
    }
}

/// `in_order`: whether packing keeps the order of the examples.
fn pack(run: &Run, data: Dataset, in_order: bool) -> Result<Arc<Packed>, TrainError> {
    if data.report().format == Format::Pair {
        let (seq, targets) = (run.train.seq as usize, pairs::targets_of(run)?);
        let packed = Packed::of_pairs(data, seq, targets, packing(run, in_order))?;
        return Ok(Arc::new(packed));
    }
    let too_long = if data.report().format == Format::Text {
        TooLong::Split
    } else {
        TooLong::Truncate
    };
    Ok(Arc::new(Packed::new(
        data,
        run.train.seq as usize,
        packing(run, in_order),
        too_long,
    )?))
}

fn packing(run: &Run, in_order: bool) -> Packing {
    match run.data.packing {
        false => Packing::No,
        true if in_order => Packing::InOrder,
        true => Packing::BestFit,
    }
}

/// The first micro-batch of a run's data, to measure operations on: packed documents make attention
/// cheaper. `None` where the run names no data or it cannot be read (training will say why), and
/// where it is too much to read for this alone.
#[must_use]
pub fn sample_of(run: &Run) -> Option<Micro> {
    const MOST: u64 = 64 << 20;
    let bytes: u64 = run
        .data
        .train
        .iter()
        .filter_map(|source| std::fs::metadata(&source.path).ok())
        .map(|m| m.len())
        .sum();
    let one = Batch {
        accumulate: 1,
        ..run.batch()
    };
    if bytes > MOST || batch_bytes(one) > Bytes::GIB {
        return None;
    }
    let tokenizer = open_tokenizer(run, None).ok()?;
    let train = load_inputs(run, &tokenizer).ok()?.train;
    let shape = BatchShape {
        micro_batch: run.train.micro_batch as usize,
        accumulate: 1,
    };
    Some(
        train
            .batches(shape, dealing(run))
            .ok()?
            .next_batch()
            .ok()?
            .micro
            .swap_remove(0),
    )
}

/// The steps of a run, which of epochs the data say: they are read for it. `None` where the run names none.
///
/// # Errors
/// As [`open_tokenizer`] and [`load_inputs`].
pub fn steps_of(run: &Run) -> Result<Option<u64>, TrainError> {
    let epochs = match run.train.length {
        Length::Steps(n) => return Ok(Some(n)),
        Length::Epochs(_) if run.training_ready().is_err() => return Ok(None),
        Length::Epochs(epochs) => epochs,
    };
    paths::inputs(run)?;
    let train = load_inputs(run, &open_tokenizer(run, None)?)?.train;
    let shape = BatchShape {
        micro_batch: run.train.micro_batch as usize,
        accumulate: run.train.accumulate as usize,
    };
    let batches = train.batches(shape, dealing(run))?;
    Ok(Some(batches.batches_for(epochs)?))
}

/// Reads, tokenises and packs a run's data.
///
/// # Errors
/// A record that cannot be used, with file and line; data in which nothing is supervised.
pub fn load_inputs(run: &Run, tokenizer: &Tokenizer) -> Result<Inputs, TrainError> {
    match run.data.streaming {
        true => stream_inputs(run, tokenizer),
        false => whole_inputs(run, tokenizer),
    }
}

/// As [`whole_inputs`], but training rows come window by window, tokenised by a thread of their own. Evaluation rows
/// are in memory.
fn stream_inputs(run: &Run, tokenizer: &Tokenizer) -> Result<Inputs, TrainError> {
    let (options, cache) = (options_of(run)?, cache_of(run));
    let mut notes = classes::notes(run)?;
    let mut details = Vec::new();
    let mut eval = None;
    if !run.data.eval.is_empty() {
        let (data, told) = Dataset::load_kept(&run.data.eval, &options, tokenizer, &cache)?;
        notes.extend(told.iter().map(|told| of_set("eval", told)));
        remark("eval", &data, &mut notes);
        let packed = pack(run, data, false)?;
        describe("eval", &packed, &mut notes);
        notes.extend(
            weak_evaluation(run, &packed)
                .iter()
                .map(|said| of_set("eval", said)),
        );
        details.push(hash_of("eval", &packed));
        eval = Some(packed);
    }
    let paths: Vec<PathBuf> = run.data.train.iter().map(|s| s.path.clone()).collect();
    // One of the thread's own, which sees the same time.
    let own = open_tokenizer(run, Some(tokenizer.now_unix_s()))?;
    let layout = RowLayout {
        seq: run.train.seq as usize,
        packing: packing(run, !run.data.shuffle),
        window: WINDOW,
    };
    // Updates and what submits to a GPU come first.
    let threads = Threads {
        n: threads_of(run),
        begin: numa::give_way,
    };
    let (stream, told) = Stream::open(&paths, &options, own, &cache, layout, threads)?;
    notes.extend(told.iter().map(|told| of_set("train", told)));
    notes.push(format!(
        "train data: streamed, packed and shuffled in windows of {WINDOW} tokens"
    ));
    let train = Rows::Stream(Arc::new(stream));
    notes.extend(news_of(&train, false));
    notes.extend(note_of_layout(train.format(), tokenizer));
    Ok(Inputs {
        train,
        eval,
        notes,
        details,
    })
}

/// As [`load_inputs`], with all rows known whether the run streams them or not.
///
/// # Errors
/// As [`load_inputs`].
pub fn whole_inputs(run: &Run, tokenizer: &Tokenizer) -> Result<Inputs, TrainError> {
    let options = options_of(run)?;
    let mut notes = classes::notes(run)?;
    let paths: Vec<PathBuf> = run.data.train.iter().map(|s| s.path.clone()).collect();
    if run.data.eval.is_empty() && run.data.eval_split > 0.0 {
        once_each(&paths, run.data.eval_split)?;
    }
    let cache = cache_of(run);
    let load = |name: &str, paths: &[PathBuf], notes: &mut Vec<String>| {
        let (data, told) = Dataset::load_kept(paths, &options, tokenizer, &cache)?;
        notes.extend(told.iter().map(|told| of_set(name, told)));
        remark(name, &data, notes);
        Ok::<_, DataError>(data)
    };
    let mut data = load("train", &paths, &mut notes)?;
    let mut eval = None;
    if run.data.eval.is_empty() && run.data.eval_split > 0.0 {
        let (mine, theirs) = split::of(run, &data)?;
        eval = Some(theirs);
        data = mine;
    } else if !run.data.eval.is_empty() {
        eval = Some(load("eval", &run.data.eval, &mut notes)?);
    }
    data = weighted(run, data, &mut notes)?;
    notes.extend(note_of_layout(data.report().format, tokenizer));
    let train = pack(run, data, !run.data.shuffle)?;
    describe("train", &train, &mut notes);
    let eval = eval.map(|e| pack(run, e, false)).transpose()?;
    if let Some(eval) = &eval {
        describe("eval", eval, &mut notes);
        notes.extend(
            weak_evaluation(run, eval)
                .iter()
                .map(|said| of_set("eval", said)),
        );
    }
    let mut details = vec![hash_of("train", &train)];
    details.extend(eval.as_ref().map(|eval| hash_of("eval", eval)));
    Ok(Inputs {
        train: Rows::Whole(train),
        eval,
        notes,
        details,
    })
}

/// What is to be said of the chat template: where turns end, or that these records do without it.
fn note_of_layout(format: Format, tokenizer: &Tokenizer) -> Option<String> {
    match format {
        Format::Messages => note_of_ends(tokenizer),
        Format::PromptCompletion if tokenizer.chat_template().is_some() => Some(
            "prompts and completions are trained on as they are, without the model's chat template; records with \
             `messages` are rendered by it"
                .to_owned(),
        ),
        _ => None,
    }
}

/// Refuses a file that is named twice, by whatever names: the split would have copies of an example on both sides.
fn once_each(paths: &[PathBuf], share: f64) -> Result<(), DataError> {
    let id = |path: &PathBuf| {
        // A file that is missing is an error where it is read.
        let meta = std::fs::metadata(path).ok()?;
        Some((meta.dev(), meta.ino()))
    };
    let ids: Vec<_> = paths.iter().map(id).collect();
    for (i, one) in ids.iter().enumerate() {
        let twice = |other: &Option<_>| one.is_some() && other == one;
        if let Some(first) = ids[..i].iter().position(twice) {
            return Err(DataError::SplitOfTwice {
                path: paths[i].clone(),
                first: paths[first].clone(),
                share,
            });
        }
    }
    Ok(())
}

/// The data with each file's examples as often as the run says. After the split: no example is on both sides of it.
fn weighted(run: &Run, data: Dataset, notes: &mut Vec<String>) -> Result<Dataset, TrainError> {
    let sources = run.data.train.iter();
    let weights: Vec<(&Path, f64)> = sources.map(|s| (&*s.path, s.weight)).collect();
    let most = run
        .data
        .max_examples
        .map_or(usize::MAX, |most| most as usize);
    if weights.iter().all(|w| w.1 == 1.0) {
        return Ok(match most < data.len() {
            true => data.select(&(0..most).collect::<Vec<_>>())?,
            false => data,
        });
    }
    let before = data.by_file(weights.len());
    let random = |file| Philox::new(run.seed, WEIGHT_STREAMS | file);
    let mut data = data.weighted(&weights, reading_memory(run), random)?;
    if most < data.len() {
        data = data.select(&first_of_each(&data.by_file(weights.len()), most))?;
    }
    let after = data.by_file(weights.len());
    for ((source, before), after) in run.data.train.iter().zip(before).zip(after) {
        notes.push(format!(
            "train data: {} with weight {}: {after} examples an epoch of {before}",
            source.path.display(),
            source.weight
        ));
    }
    Ok(data)
}

/// Places of `most` examples of a set of files, so many of each: the first ones of each file, by its share of them all.
fn first_of_each(counts: &[u64], most: usize) -> Vec<usize> {
    let all: u128 = counts.iter().map(|&n| u128::from(n)).sum();
    let (mut places, mut before) = (Vec::with_capacity(most), 0u128);
    for &n in counts {
        // Up to here so many, rounded: the shares add up to `most`, and none is above its file.
        let up_to = |n: u128| (n * most as u128 + all / 2) / all;
        let of_file = up_to(before + u128::from(n)) - up_to(before);
        let from = before as usize;
        places.extend(from..from + of_file as usize);
        before += u128::from(n);
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_examples_of_weighted_files_are_shared_out() {
        assert_eq!(first_of_each(&[6, 3], 3), [0, 1, 6]);
        assert_eq!(first_of_each(&[2, 0, 2], 3), [0, 1, 2]);
        for counts in [vec![1, 1, 1, 1], vec![7, 1, 13, 5], vec![1_000_000, 3]] {
            let all: u64 = counts.iter().sum();
            for most in 0..all.min(40) as usize {
                let places = first_of_each(&counts, most);
                assert_eq!(places.len(), most, "{counts:?}");
                let (mut from, mut at) = (0, 0);
                for n in &counts {
                    let end = from + *n as usize;
                    let here = places[at..].iter().take_while(|p| **p < end).count();
                    let want: Vec<usize> = (from..from + here).collect();
                    assert_eq!(places[at..at + here], want, "the first ones");
                    (from, at) = (end, at + here);
                }
                assert_eq!(at, most);
            }
        }
    }

    #[test]
    fn a_file_that_is_there_twice_is_not_split() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("a"), "x").unwrap();
        std::fs::write(at("b"), "x").unwrap();
        std::os::unix::fs::symlink(at("a"), at("link")).unwrap();
        std::fs::hard_link(at("a"), at("hard")).unwrap();
        assert!(once_each(&[at("a"), at("b")], 0.1).is_ok());
        assert!(once_each(&[at("none"), at("none")], 0.1).is_ok());
        for other in ["a", "./a", "link", "hard"] {
            let error = once_each(&[at("b"), at("a"), at(other)], 0.1).unwrap_err();
            let error = error.to_string();
            assert!(
                error.contains("data.eval_split: 0.1") && error.contains("in data.train before"),
                "{other}: {error}"
            );
        }
    }
}
