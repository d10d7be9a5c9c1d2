//! The output directory of a run: its lock, its mark, and every file and directory that a run makes in it.
//!
//! Three rules. Nothing is written through a link: a link at the name of an output is refused. Nothing is
//! removed that lowtide did not write: a directory has lowtide's mark, which says what of it is ours. And
//! a name means a whole directory, always (`replace.rs`). One process at a time has the directory: the
//! lock is on the open mark and dies with its process.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lowtide_config::Run;
use lowtide_report::{PAGE, REPORT};
use lowtide_session::{RANKS, rank_folder};
use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::error::{PathProblem, TrainError};
use folder::{Folder, Found, Moved};
use mark::{Branch, Holds, Kept, MARK, Mark};
use replace::Shelf;
use steps::step;

pub mod check;
pub mod folder;
pub mod mark;
pub(crate) mod overlap;
pub mod place;
pub mod replace;
pub mod room;
mod steps;

#[cfg(test)]
pub(crate) use steps::injected;

/// The fine-tuned model's directory.
pub const MODEL: &str = "model";
/// The checkpoints' directory.
pub const CHECKPOINTS: &str = "checkpoints";
/// The metrics file.
pub const METRICS: &str = "metrics.jsonl";
/// Answers to prompts.
pub const ANSWERS: &str = "answers.jsonl";
/// The metrics of the branch that was left last, as they were then.
pub const METRICS_LEFT: &str = "metrics.left.jsonl";
/// The answers of the branch that was left last.
pub const ANSWERS_LEFT: &str = "answers.left.jsonl";
/// The metrics of the branch that was left before, while the branch that goes back to it begins.
pub const METRICS_LEFT_2: &str = "metrics.left-2.jsonl";
/// The answers of the same branch.
pub const ANSWERS_LEFT_2: &str = "answers.left-2.jsonl";
/// The report of a run that has nothing left to do.
pub const FINISHED: &str = "finished.json";
/// The directory of TensorBoard's event files.
pub const TENSORBOARD: &str = "tensorboard";
/// The lanes' real times.
pub const TRACE: &str = "trace.json";
/// The run as checked.
pub const RUN: &str = "run.json";
/// The rates that it was planned with.
pub const MACHINE: &str = "machine.json";

/// Plain files that a run writes anew or cuts.
const FILES: [&str; 12] = [
    METRICS,
    ANSWERS,
    TRACE,
    RUN,
    MACHINE,
    FINISHED,
    REPORT,
    PAGE,
    METRICS_LEFT,
    ANSWERS_LEFT,
    METRICS_LEFT_2,
    ANSWERS_LEFT_2,
];
/// Directories that a run makes; state files of drives lie in the last.
const FOLDERS: [&str; 4] = [MODEL, CHECKPOINTS, TENSORBOARD, DISK];
const DISK: &str = "disk";
/// More processes than this do not come and go between an open and a lock.
const LOCK_TRIES: u32 = 100;
/// How long a program may take from its start by `fork` to the closing of files by `exec`, with much to spare.
const BETWEEN: Duration = Duration::from_millis(200);

/// An output directory that this process has for itself.
#[derive(Debug)]
pub struct Output {
    folder: Folder,
    /// Its lock is ours as long as it is open.
    mark: File,
    kept: Kept,
    /// The directory was not there before.
    made: bool,
    /// A drive of the run is in it, in a directory that this run or one before it made.
    drive: bool,
    notes: Vec<String>,
}

impl Output {
    /// Takes a run's output directory, made where there is none: holds it against the run's inputs, locks
    /// it, marks it, and puts in order what a killed run left; in the checkpoints'
    /// directory [`crate::checkpoint::recover`] does. Nothing in it is changed if it is refused.
    ///
    /// # Errors
    /// [`TrainError::Overlap`], [`TrainError::NotOurs`], [`TrainError::Link`], [`TrainError::Locked`],
    /// [`TrainError::NoLocks`]; files.
    pub fn open(run: &Run) -> Result<Self, TrainError> {
        overlap::refuse(run)?;
        let path = &run.output;
        let made = !path.exists();
        match std::fs::metadata(path) {
            Ok(meta) if !meta.is_dir() => {
                let what = "is not a directory, and the run's output goes into one".to_owned();
                let path = path.clone();
                return Err(TrainError::File { path, what });
            }
            Ok(_) => {}
            Err(_) => std::fs::create_dir_all(path).map_err(|e| TrainError::Path {
                key: "output",
                path: path.clone(),
                problem: PathProblem::NotMade(e.to_string()),
            })?,
        }
        let folder = Folder::open(path)?;
        refuse_strange(&folder)?;
        let (mark, kept) = lock(&folder)?;
        // What a kill left may be cleared only by who has the lock.
        let mut notes = Vec::new();
        for name in FILES.into_iter().chain([MARK]) {
            let pending = folder::pending(name);
            if folder.expect(&pending, Found::File)? {
                folder.remove(&pending)?;
            }
        }
        notes.extend(model_shelf(&folder).recover(|name| name == MODEL)?);
        refuse_model(&folder)?;
        let drive = run.budget.disk.iter().any(|d| d.dir == path.join(DISK));
        let drive = drive && (kept.made_disk || folder.found(DISK)? == Found::Nothing);
        Ok(Self {
            folder,
            mark,
            kept,
            made,
            drive,
            notes,
        })
    }

    /// The output directory, opened once: its path may change while the run writes into it.
    #[must_use]
    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    /// What was found and kept while it was opened, for people; once.
    pub fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    /// What its run has kept to resume from, as its mark says.
    #[must_use]
    pub fn kept(&self) -> &Kept {
        &self.kept
    }

    /// The first state file of its durable run that has not come to its end.
    #[must_use]
    pub fn state_file(&self) -> Option<PathBuf> {
        let file = self.kept.state_file.as_ref()?;
        Some(self.folder.path().join(file))
    }

    /// Records in the mark what the run has kept. A new mark takes the name while its lock is held, so no other
    /// process gets the directory in between.
    ///
    /// # Errors
    /// Files; the mark then says what it said before.
    pub fn keep(&mut self, kept: Kept) -> Result<(), TrainError> {
        let kept = Kept {
            made_disk: self.drive && kept.writes.is_some(),
            ..kept
        };
        if kept == self.kept {
            return Ok(());
        }
        let text = Mark::output(kept.clone()).text();
        let mut new = None;
        self.folder.write_with(MARK, |mut file| {
            file.write_all(text.as_bytes())?;
            rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive)?;
            new = Some(file.try_clone()?);
            Ok(())
        })?;
        // Only now the lock on the old one goes: its name is gone.
        self.mark = new.expect("written");
        self.kept = kept;
        Ok(())
    }

    /// Looks whether the directory was renamed, replaced or removed since. The run keeps writing into the one that it
    /// holds: that is what is locked, and what was written is in it. If it was removed, nothing can be written there,
    /// and the run's output is opened again by its path, so that what is still in memory can be saved.
    ///
    /// # Errors
    /// As [`Output::open`], where it was removed.
    pub fn follow(&mut self, run: &Run) -> Result<Option<Followed>, TrainError> {
        let was = self.folder.path().to_owned();
        match self.folder.moved() {
            None => Ok(None),
            Some(Moved::To(now)) => {
                self.folder.call(now);
                Ok(Some(Followed::Moved { was }))
            }
            Some(Moved::Gone) => {
                let mut new = Self::open(run)?;
                new.keep(Kept {
                    saved: None,
                    branch: self.kept.branch.clone().map(|b| Branch {
                        unsaved: false,
                        ..b
                    }),
                    ..self.kept.clone()
                })?;
                *self = new;
                Ok(Some(Followed::Anew { was }))
            }
        }
    }

    /// Where the models of this output are.
    #[must_use]
    pub fn model(&self) -> Shelf<'_> {
        model_shelf(&self.folder)
    }
}

/// What [`Output::follow`] has found.
#[derive(Debug, PartialEq, Eq)]
pub enum Followed {
    /// The directory has another path than it had.
    Moved {
        /// Its path before.
        was: PathBuf,
    },
    /// It was removed, and this is another one, with nothing in it.
    Anew {
        /// Where it was.
        was: PathBuf,
    },
}

impl Drop for Output {
    /// A run that was refused before it wrote anything leaves no directory that was not there before.
    fn drop(&mut self) {
        // Made for state files, by this process or one that was killed; one with something in it stays.
        if self.drive {
            for rank in 0..RANKS {
                let _ = self.folder.remove_empty(rank_folder(Path::new(DISK), rank));
            }
            let _ = self.folder.remove_empty(DISK);
        }
        if !self.made {
            return;
        }
        let entries = self.folder.entries().unwrap_or_default();
        if matches!(&entries[..], [(name, _)] if name == MARK) {
            // Best effort; still under the lock.
            let _ = self.folder.remove(MARK);
            let _ = std::fs::remove_dir(self.folder.path());
        }
    }
}

/// Where models are in a folder.
pub(crate) fn model_shelf(folder: &Folder) -> Shelf<'_> {
    Shelf {
        folder,
        holds: Holds::Model,
        always: &[],
        earlier: |_| false,
    }
}

/// Refuses what stands at the names of outputs and is not lowtide's.
fn refuse_strange(folder: &Folder) -> Result<(), TrainError> {
    folder.expect(MARK, Found::File)?;
    for name in FOLDERS {
        folder.expect(name, Found::Folder)?;
    }
    for name in FILES {
        folder.expect(name, Found::File)?;
    }
    refuse_model(folder)?;
    if Mark::of(folder)?.is_some() || is_earlier(folder)? {
        return Ok(());
    }
    for name in FILES {
        if folder.found(name)? != Found::Nothing {
            return Err(TrainError::NotOurs {
                path: folder.at(name),
            });
        }
    }
    Ok(())
}

/// A model's directory is replaced only if it has the mark, or nothing in it.
fn refuse_model(folder: &Folder) -> Result<(), TrainError> {
    let Some(model) = folder.sub(MODEL)? else {
        return Ok(());
    };
    match is_model(&model)? {
        true => Ok(()),
        false => Err(TrainError::NotOurs {
            path: model.path().to_owned(),
        }),
    }
}

/// Whether a directory is a model that lowtide has written, or has nothing in it.
pub(crate) fn is_model(dir: &Folder) -> Result<bool, TrainError> {
    let ours = Mark::of(dir)?.is_some_and(|m| m.holds() == Holds::Model);
    Ok(ours || dir.entries()?.is_empty())
}

/// Whether a directory without a mark is the output of an earlier version, which wrote the run as checked
/// before all else.
fn is_earlier(folder: &Folder) -> Result<bool, TrainError> {
    if folder.found(RUN)? != Found::File {
        return Ok(false);
    }
    let mut text = Vec::new();
    let read = folder.read(RUN)?.take(1 << 20).read_to_end(&mut text);
    read.map_err(TrainError::io(&folder.at(RUN)))?;
    let run: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
    let keys = ["model", "budget", "train", "checkpoint", "output"];
    Ok(keys.iter().all(|k| run.get(k).is_some()))
}

/// Opens the mark, written where there is none, and takes its lock.
fn lock(folder: &Folder) -> Result<(File, Kept), TrainError> {
    let path = folder.at(MARK);
    let mut tries = 0;
    let mut mark = loop {
        let mark = folder.open_or_make(MARK)?;
        take(&mark).map_err(|e| unlocked(&path, e))?;
        // Its last holder may have removed it between our open and our lock.
        let ours = mark.metadata().map_err(TrainError::io(&path))?;
        match folder.read(MARK).map(|f| f.metadata()) {
            Ok(Ok(named)) if (named.dev(), named.ino()) == (ours.dev(), ours.ino()) => break mark,
            _ => {}
        }
        tries += 1;
        if tries == LOCK_TRIES {
            let what = "is another file each time it is opened".to_owned();
            return Err(TrainError::File { path, what });
        }
    };
    let mut text = Vec::new();
    let read = (&mark).take(mark::LONGEST).read_to_end(&mut text);
    read.map_err(TrainError::io(&path))?;
    if text.is_empty() {
        let text = Mark::output(Kept::default()).text();
        let written = step(|| {
            mark.write_all(text.as_bytes())?;
            mark.sync_all()
        });
        written.map_err(TrainError::io(&path))?;
        return Ok((mark, Kept::default()));
    }
    match Mark::parse(&text) {
        Some(said) if said.holds() == Holds::Output => Ok((mark, said.kept())),
        _ => Err(TrainError::NotOurs { path }),
    }
}

/// Takes the lock of a file, unless another one holds it for longer than [`BETWEEN`]. A run that has just ended in this
/// process may seem to hold it: a program that another thread starts has this process's files until it runs.
fn take(mark: &File) -> Result<(), Errno> {
    let begin = Instant::now();
    loop {
        match rustix::fs::flock(mark, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) if begin.elapsed() < BETWEEN => {
                std::thread::sleep(Duration::from_millis(5));
            }
            taken => return taken,
        }
    }
}

fn unlocked(path: &Path, e: Errno) -> TrainError {
    let path = path.to_owned();
    match e {
        Errno::WOULDBLOCK => TrainError::Locked { path },
        Errno::NOLCK | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL => TrainError::NoLocks {
            path,
            what: std::io::Error::from(e).to_string(),
        },
        e => TrainError::io(&path)(e.into()),
    }
}

/// The path that leads somewhere, with what exists of it resolved.
pub(crate) fn resolved(path: &Path) -> PathBuf {
    for ancestor in path.ancestors() {
        if let Ok(real) = ancestor.canonicalize() {
            return match path.strip_prefix(ancestor) {
                Ok(rest) if rest.as_os_str().is_empty() => real,
                Ok(rest) => real.join(rest),
                Err(_) => real,
            };
        }
    }
    path.to_owned()
}

#[cfg(test)]
#[path = "output_tests.rs"]
mod tests;
