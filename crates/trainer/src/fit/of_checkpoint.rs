//! The model of a checkpoint as a Hugging Face directory: in another type than the run exports it, in shards of
//! another size, or while the run has not ended.
//!
//! It needs no device, no budget and no plan. Bound: the checkpoint's weights are read twice, once for their
//! checksums, and the model is written once.

use std::path::{Path, PathBuf};

use lowtide_config::{Format, KeepBest, Run};
use lowtide_data as data;
use lowtide_data::{Tokenizer, format_of};
use lowtide_model::{FileDtype, HfWriter};
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use serde_json::json;

use super::card::card;
use super::export::{Parts, source_of};
use super::saving::{SMALL, existing};
use super::tokenizer_files;
use crate::checkpoint::{self, RunState, Weights, differences};
use crate::classes::{names_of, options_of};
use crate::device::Target;
use crate::error::TrainError;
use crate::inputs::open_tokenizer;
use crate::output::folder::{Folder, Found};
use crate::output::room::{self, Need};
use crate::output::{RUN, is_model, model_shelf, overlap};
use crate::pairs::start_if_any;
use crate::paths;
use crate::planning::decoder_of;
use crate::stops::stops_of;
use crate::threads::threads_of;

/// What to export, where to and how.
#[derive(Clone, Copy, Debug)]
pub struct Export<'a> {
    /// The model's directory: none, an empty one, or a model that lowtide has written, which is replaced.
    pub to: &'a Path,
    /// The checkpoint; `None`: the one whose model the run would export now, by `checkpoint.keep_best` as the run file
    /// says it or, where it does not, as the run had it.
    pub checkpoint: Option<&'a Path>,
    /// Type of the numbers; `None`: the run's precision. f32 and f16 are made of the f32 master weights.
    pub dtype: Option<FileDtype>,
    /// Bytes of tensors in a file, unless one tensor takes more; `None`: 5 GB.
    pub shard_bytes: Option<u64>,
}

/// What was exported.
#[derive(Clone, Debug)]
pub struct Exported {
    /// The model's directory.
    pub path: PathBuf,
    /// The checkpoint that it is of.
    pub checkpoint: PathBuf,
    /// Updates that had been made.
    pub step: u64,
    /// Type of its numbers.
    pub dtype: FileDtype,
    /// Files of weights.
    pub files: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// What people should know, such as what stood in a directory that was replaced.
    pub notes: Vec<String>,
}

/// Writes the model of a run's checkpoint. The directory gets its name when all of it is on the disk; after an error
/// the name means what it meant before. `progress(done, of)` counts numbers of the model. Long because it is one after
/// the other.
///
/// # Errors
/// A checkpoint that is missing, broken or of another run; [`TrainError::Taken`], [`TrainError::OwnOutput`] and
/// [`TrainError::Overlap`] for the directory; too little room; a number that f16 has none for.
pub fn export_checkpoint(
    run: &Run,
    what: &Export<'_>,
    mut progress: impl FnMut(u64, u64),
) -> Result<Exported, TrainError> {
    // Ranks share the work, not what is saved.
    let run = &Run {
        gpus: 1,
        ..run.clone()
    };
    run.training_ready()?;
    paths::reading(run)?;
    let to = std::path::absolute(what.to).map_err(TrainError::io(what.to))?;
    overlap::refuse_export(run, &to)?;
    let (dir, state) = find(run, what.checkpoint)?;
    let decoder = decoder_of(run, run.batch(), Target::default())?;
    same_model(&dir, &state, &json!(decoder.shape()))?;
    let tokenizer = open_tokenizer(run, Some(state.now_unix_s))?;
    let mut stops = stops_of(run, &tokenizer)?;
    if is_chat(run, &tokenizer)? {
        stops = stops.with_turns(&tokenizer);
    }
    let dtype = what.dtype.unwrap_or(run.precision.into());
    let names = names_of(run, decoder.shape())?;
    let mut writer = HfWriter::new(decoder.shape(), dtype, source_of(run)).labels(names);
    if let Some(bytes) = what.shard_bytes {
        writer = writer.shard_bytes(bytes);
    }
    let (parent, name) = place(&to)?;
    let bytes = writer.file_bytes();
    let of_tokenizer = run.model.tokenizer.as_deref();
    room::check(&[Need {
        dir: existing(parent),
        what: "for the model".to_owned(),
        bytes: bytes + of_tokenizer.map_or(0, tokenizer_files::bytes) + SMALL,
    }])?;
    // The weights that the device reads are the bf16 model; every other type is rounded once, from the masters.
    let master = dtype != FileDtype::Bf16;
    let mut weights = Weights::open(&dir, decoder.workload(), &state, master)
        .map_err(|e| checkpoint::with_whole_one(&run.output, e))?;
    std::fs::create_dir_all(parent).map_err(TrainError::io(parent))?;
    let folder = Folder::open(parent)?;
    let _lock = lock(parent)?;
    let shelf = model_shelf(&folder);
    let mut notes = shelf.recover(|found| found == name)?;
    if folder.expect(name, Found::Folder)?
        && let Some(there) = folder.sub(name)?
        && !is_model(&there)?
    {
        return Err(TrainError::Taken { path: to });
    }
    let all = decoder.workload().parameters();
    let files = writer.files();
    let parts = Parts {
        writer,
        tokenizer: &tokenizer,
        stops: &stops,
        start: start_if_any(run, decoder.shape())?,
        card: card(
            run,
            &state,
            None,
            all,
            state.best.text_if_of(state.step, run),
        ),
    };
    let mut merged = decoder.merged(threads_of(run));
    let mut done = 0;
    notes.extend(shelf.put(name, |folder| {
        parts.write(folder, |p, range, out| {
            done += out.len() as u64;
            progress(done, all);
            merged.read(p, range, out, |p, range, out| weights.read(p, range, out))
        })
    })?);
    Ok(Exported {
        path: to,
        checkpoint: dir,
        step: state.step,
        dtype,
        files,
        bytes,
        notes,
    })
}

/// The checkpoint, and what it says of itself.
fn find(run: &Run, named: Option<&Path>) -> Result<(PathBuf, RunState), TrainError> {
    let whole = |e| checkpoint::with_whole_one(&run.output, e);
    if let Some(dir) = named {
        let path = dir.to_owned();
        if !dir.is_dir() {
            return Err(TrainError::NoCheckpoint { path });
        }
        if checkpoint::newest_in(dir).is_some() {
            let what = "no checkpoint, but a directory that holds checkpoints";
            return Err(TrainError::Nothing { path, what });
        }
        return Ok((dir.to_owned(), checkpoint::look(dir).map_err(whole)?));
    }
    let Some((newest, dir)) = checkpoint::list(&run.output).pop() else {
        return Err(TrainError::NoCheckpoint {
            path: checkpoint::directory(&run.output),
        });
    };
    let state = checkpoint::look(&dir).map_err(whole)?;
    let best = state.best.step;
    let by = match run.checkpoint.keep_best {
        KeepBest::None if !run.checkpoint.keep_best_given => kept_by(run),
        by => by,
    };
    // The best by another measure is not what this run file asks for.
    if by != KeepBest::None && state.best.is_by(by) && best > 0 && best < newest {
        let dir = checkpoint::path_of(&run.output, best);
        if dir.is_dir() {
            let state = checkpoint::look(&dir).map_err(whole)?;
            return Ok((dir, state));
        }
    }
    Ok((dir, state))
}

/// By what the run at the output kept its best checkpoint, which the run file may not say: `run.json` does.
fn kept_by(run: &Run) -> KeepBest {
    let said = lowtide_files::read_json(&run.output.join(RUN), lowtide_files::SMALL);
    let said = said.unwrap_or(serde_json::Value::Null);
    let word = said["checkpoint"]["keep_best"].as_str();
    let all = [KeepBest::Loss, KeepBest::Accuracy, KeepBest::ExactMatch];
    all.into_iter()
        .find(|by| word == Some(by.word()))
        .unwrap_or(KeepBest::None)
}

/// Refuses a checkpoint of another model.
fn same_model(dir: &Path, state: &RunState, ours: &serde_json::Value) -> Result<(), TrainError> {
    let theirs = json!({ "shape": state.numerics["shape"] });
    match differences(&theirs, &json!({ "shape": ours })).pop() {
        None => Ok(()),
        Some((key, theirs, ours)) => Err(TrainError::OtherRun {
            path: dir.to_owned(),
            key,
            theirs: theirs.to_string(),
            ours: ours.to_string(),
            may_change: None,
            again: None,
        }),
    }
}

/// Whether the run's data are conversations. Where only their records say so, the first is read.
fn is_chat(run: &Run, tokenizer: &Tokenizer) -> Result<bool, TrainError> {
    if run.data.format == Format::Auto {
        paths::inputs(run)?;
    }
    let files: Vec<PathBuf> = run.data.train.iter().map(|s| s.path.clone()).collect();
    Ok(format_of(&files, &options_of(run)?, tokenizer)? == data::Format::Messages)
}

/// The directory that a model goes into, and its name there.
fn place(to: &Path) -> Result<(&Path, &str), TrainError> {
    let bad = |what: &str| TrainError::File {
        path: to.to_owned(),
        what: what.to_owned(),
    };
    let (Some(parent), Some(name)) = (to.parent(), to.file_name()) else {
        return Err(bad("no directory of its own"));
    };
    let name = name
        .to_str()
        .ok_or_else(|| bad("a model's directory needs a name in UTF-8"))?;
    Ok((parent, name))
}

/// Keeps a second export out of the same folder; where the file system has no locks there is none.
fn lock(parent: &Path) -> Result<std::fs::File, TrainError> {
    let file = std::fs::File::open(parent).map_err(TrainError::io(parent))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => Err(TrainError::Locked {
            path: parent.to_owned(),
        }),
        _ => Ok(file),
    }
}
