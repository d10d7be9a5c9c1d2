//! Where a run begins or resumes: nothing, a checkpoint, or the journal of a durable run that died.
//!
//! What an earlier run asked to keep is given up when what takes its place has been loaded, never before;
//! and what cannot be read is not "nothing there": it is named, with what can be done.

use std::path::{Path, PathBuf};

use lowtide_config::{Resume, Run};
use lowtide_executor::Trace;
use lowtide_planner::Pins;
use lowtide_tiers::{self as tiers, Disk, DiskConfig, Open, TierError};
use lowtide_units::Bytes;
use serde_json::Value;

use super::branch::{self, Origin};
use super::change::changes;
use super::journal::Journal;
use crate::checkpoint::{self, Change, RunState};
use crate::error::TrainError;
use crate::open::{disk_of, load_with, open_on};
use crate::output::Output;
use crate::paths;
use crate::planning::{Planned, directories_of, pins_of};
use crate::projectors::Projectors;
use lowtide_data::Batches;
use lowtide_session::{DiskChoice, RANKS, Session, rank_folder};

/// Where a run resumes from.
#[derive(Debug)]
pub(super) enum Start {
    Anew,
    Checkpoint(PathBuf, Box<RunState>),
    Journal(Box<Journal>),
}

impl Start {
    /// What a run's settings and files say, and how the run comes there. Notes what people should know of it.
    pub(super) fn find(
        run: &Run,
        output: &Output,
        notes: &mut Vec<String>,
    ) -> Result<(Self, Origin), TrainError> {
        let named = match &run.checkpoint.resume {
            Resume::Never => return Ok((Self::Anew, Origin::new(run, output, None)?)),
            Resume::Auto => None,
            Resume::Path(dir) => Some(dir),
        };
        let follows = named.is_none_or(|dir| branch::began_at(run, output, dir));
        if follows && let Some(start) = Self::saved(run, output, named.is_some(), notes)? {
            return Ok((start, Origin::GoesOn));
        }
        let unsaved = output.kept().unsaved();
        let Some(dir) = named else {
            let Some(branch) = unsaved else {
                return Ok((Self::Anew, Origin::GoesOn));
            };
            let start = branch::beginning(output, branch).map(|dir| Self::at(run, dir));
            return Ok((start.unwrap_or(Ok(Self::Anew))?, Origin::Again));
        };
        paths::checkpoint(dir)?;
        if let Some(newest) = checkpoint::newest_in(dir) {
            return Err(TrainError::NotACheckpoint {
                path: dir.clone(),
                newest,
            });
        }
        let start = Self::at(run, dir.clone())?;
        let origin = match start.state() {
            Some(state) if !follows || unsaved.is_none() => {
                Origin::new(run, output, Some((dir, state)))?
            }
            _ => Origin::Again,
        };
        Ok((start, origin))
    }

    /// What the branch of an output has saved: its journal, unless the newest of its checkpoints is newer. If the
    /// branch was begun at a checkpoint that is `named`, only what was saved since then and is whole.
    fn saved(
        run: &Run,
        output: &Output,
        named: bool,
        notes: &mut Vec<String>,
    ) -> Result<Option<Self>, TrainError> {
        let kept = output.kept();
        for path in checkpoint::strange_in(&run.output) {
            notes.push(format!(
                "warning: {} has the name of a checkpoint and is no directory: it is passed over, and no checkpoint of \
                 this step can be saved while it is there",
                path.display()
            ));
        }
        let mut newest = checkpoint::newest_of(output);
        if named {
            // The named checkpoint is a place to begin, so a broken one that was saved since is no reason to stop.
            let own = checkpoint::list_of(output).into_iter().rev();
            let mut own = own.filter(|(step, _)| branch::is_own(kept, *step));
            newest = own.find(|(_, dir)| match checkpoint::verify(dir) {
                Ok(_) => true,
                Err(e) => {
                    notes.push(format!("warning: {e}; the run goes on from what is whole"));
                    false
                }
            });
        }
        // The journal's state is in place already, and is read whole before it is used.
        if let Some(journal) = Journal::find(run, notes)?
            && journal.state().branch >= kept.number()
            && newest
                .as_ref()
                .is_none_or(|(step, _)| *step <= journal.state().step)
        {
            if !run.checkpoint.durable {
                return Err(journal.unusable("checkpoint.durable is off"));
            }
            return Ok(Some(Self::Journal(Box::new(journal))));
        }
        newest.map(|(_, dir)| Self::at(run, dir)).transpose()
    }

    /// Starts at this checkpoint. If it cannot be read, the error names the newest one that is whole.
    fn at(run: &Run, dir: PathBuf) -> Result<Self, TrainError> {
        match checkpoint::look(&dir) {
            Ok(state) => Ok(Self::Checkpoint(dir, Box::new(state))),
            Err(e) => Err(checkpoint::with_whole_one(&run.output, e)),
        }
    }

    pub(super) fn state(&self) -> Option<&RunState> {
        match self {
            Self::Anew => None,
            Self::Checkpoint(_, state) => Some(state),
            Self::Journal(journal) => Some(journal.state()),
        }
    }

    /// What of its settings this run changes, and that it is not at its end already.
    pub(super) fn changes(
        &self,
        run: &Run,
        numerics: &Value,
        total: u64,
    ) -> Result<Vec<Change>, TrainError> {
        let (path, state) = match self {
            Self::Anew => return Ok(Vec::new()),
            Self::Checkpoint(dir, state) => (dir.as_path(), &**state),
            Self::Journal(journal) => (journal.path(), journal.state()),
        };
        let changes = changes(run, path, state, (numerics, total))?;
        if state.step > total {
            return Err(TrainError::Beyond {
                path: path.to_owned(),
                step: state.step,
                total,
            });
        }
        Ok(changes)
    }

    /// The run's knobs. Extents are found by how the parameters are cut, so that is held fast.
    pub(super) fn pins(&self, run: &Run) -> Pins {
        let mut pins = pins_of(run);
        if let Self::Journal(journal) = self {
            pins.pieces.get_or_insert(journal.pieces());
        }
        pins
    }

    /// A session of the plan, on the state that is there or on nothing. What an earlier run kept stays
    /// as it is.
    pub(super) fn open(
        &self,
        run: &Run,
        planned: &Planned,
        trace: Trace,
    ) -> Result<Session, TrainError> {
        let durable = planned.plan.choice.durable;
        let mut ours = false;
        if let Self::Journal(journal) = self {
            journal.fits(&planned.plan)?;
        } else {
            let kept = kept_files(run)?;
            ours = !kept.is_empty() && kept.iter().all(|k| k.ours);
        }
        let anew = if ours { Open::Replace } else { Open::Create };
        let disk = match (self, disk_of(run, &planned.plan)) {
            (_, DiskChoice::Directories(drives)) if !durable && ours => DiskChoice::Instead(drives),
            (_, disk) if !durable => disk,
            (Self::Journal(journal), DiskChoice::Directories(drives)) => DiskChoice::Durable {
                drives,
                run: journal.run(),
                open: Open::Existing,
            },
            (_, DiskChoice::Directories(drives)) => DiskChoice::Durable {
                drives,
                run: id(run),
                open: anew,
            },
            (_, other) => other,
        };
        let opened = open_on(run, planned, trace, disk);
        opened.map_err(|e| match (self, e) {
            (Self::Journal(j), TrainError::Tier(e @ TierError::OtherDisk { .. })) => {
                j.unusable(&e.to_string())
            }
            (_, TrainError::Tier(e)) if matches!(e, TierError::BadFile { .. }) => readable(run, e),
            (_, TrainError::Tier(TierError::Space { path, need, free })) if ours => kept_state(
                run,
                &path,
                format!(
                    "holds what an earlier run kept, and until the new run has loaded its own it needs \
                     {need} beside it: {free} are free"
                ),
            ),
            (_, e) => e,
        })
    }

    /// Fills the session: from the checkpoint or the journal, or with first values and any learned projectors. What
    /// an earlier run kept stays as it is.
    pub(super) fn load(
        &mut self,
        run: &Run,
        session: &mut Session,
        batches: &mut Batches,
        projectors: Option<&Projectors>,
    ) -> Result<(), TrainError> {
        match self {
            Self::Anew => load_with(run, session, projectors)?,
            Self::Checkpoint(dir, state) => {
                batches.restore(state.data)?;
                let decoder = std::sync::Arc::clone(session.decoder());
                checkpoint::load(dir, decoder.workload(), &session.homes()?, state)
                    .map_err(|e| checkpoint::with_whole_one(&run.output, e))?;
                if state.step > 0 {
                    session.restore_clip(state.clip.map(f64::from_bits))?;
                    session.restore_norms(&state.norms)?;
                }
            }
            Self::Journal(journal) => {
                let found = session.resume().map_err(|e| match e {
                    TierError::NotWhole { path, what } => kept_state(
                        run,
                        &path,
                        format!("none of the states that it tells of is whole: {what}"),
                    ),
                    e => e.into(),
                })?;
                journal.settle(found.sequence);
                batches.restore(journal.state().data)?;
                session.restore_clip(journal.state().clip.map(f64::from_bits))?;
            }
        }
        Ok(())
    }

    /// Gives up what an earlier run kept and this one takes the place of: not before everything has been
    /// loaded.
    pub(super) fn publish(&self, run: &Run, session: &Session) -> Result<(), TrainError> {
        if let Self::Journal(_) = self {
            return Ok(());
        }
        session.publish_disk()?;
        give_up(run, session)?;
        // A run that was killed may have used drives which this one does not.
        let mine = session.disk_paths();
        for dir in all_folders(run) {
            if !mine.contains(&tiers::state_path(&dir)) {
                // What cannot be removed does no harm here.
                let _ = tiers::Scratch::sweep(&dir);
            }
        }
        Ok(())
    }
}

/// A state file that an earlier run asked to keep.
pub(super) struct KeptFile {
    dir: PathBuf,
    /// Whether it belongs to this run, by its id.
    pub(super) ours: bool,
}

/// Those in the directories of a run's drives.
pub(super) fn kept_files(run: &Run) -> Result<Vec<KeptFile>, TrainError> {
    let mut kept = Vec::new();
    for dir in all_folders(run) {
        let by = tiers::kept_by(&dir).map_err(|e| readable(run, e))?;
        kept.extend(by.map(|by| KeptFile {
            ours: ours(run, &dir, by),
            dir,
        }));
    }
    Ok(kept)
}

/// Where each rank of a run has its drives; one alone has no folders of its own there.
pub(super) fn folders(run: &Run) -> Vec<Vec<PathBuf>> {
    let dirs = directories_of(run);
    match run.gpus {
        1 => vec![dirs],
        ranks => {
            let of = |rank| dirs.iter().map(|d| rank_folder(d, rank)).collect();
            (0..ranks as usize).map(of).collect()
        }
    }
}

/// The same of a run on any number of ranks.
fn all_folders(run: &Run) -> Vec<PathBuf> {
    let given = directories_of(run);
    let ranks = |dir: &PathBuf| {
        let dir = dir.clone();
        (0..RANKS).map(move |rank| rank_folder(&dir, rank))
    };
    let all = given.iter().flat_map(ranks);
    given.iter().cloned().chain(all).collect()
}

/// What this run has kept on another number of ranks, which each had another share of the state: where, and how it goes
/// on.
pub(super) fn kept_otherwise(run: &Run) -> Result<Option<(PathBuf, String)>, TrainError> {
    let own: Vec<PathBuf> = folders(run).into_iter().flatten().collect();
    let given = directories_of(run);
    let others = all_folders(run).into_iter().filter(|d| !own.contains(d));
    let mut found = None;
    for dir in others {
        let by = tiers::kept_by(&dir).map_err(|e| readable(run, e))?;
        if by.is_some_and(|by| ours(run, &dir, by)) {
            // The last one counts: of more ranks than there are now.
            found = Some(dir);
        }
    }
    Ok(found.map(|dir| {
        let rank =
            |dir: &Path| (0..RANKS).find(|&r| given.iter().any(|d| rank_folder(d, r) == dir));
        let ranks = rank(&dir).map_or(1, |last| last + 1);
        (dir, of_ranks(run, ranks as u32))
    }))
}

/// What is wrong with the state of a run on another number of ranks.
pub(super) fn of_ranks(run: &Run, ranks: u32) -> String {
    format!(
        "holds the state of this run on {ranks} GPUs, this start has {}: with 'gpus: {ranks}' it goes on, and what it saves \
         can be gone on from with any number",
        run.gpus
    )
}

/// A state file that cannot be read becomes an error that says what is kept and what can be done.
pub(super) fn readable(run: &Run, e: TierError) -> TrainError {
    match e {
        TierError::BadFile { path, what } if state_files(run).contains(&path) => {
            kept_state(run, &path, what)
        }
        e => e.into(),
    }
}

/// The names of the state files of a run's drives.
fn state_files(run: &Run) -> Vec<PathBuf> {
    let dirs = all_folders(run).into_iter();
    dirs.map(|dir| tiers::state_path(&dir)).collect()
}

pub(super) fn kept_state(run: &Run, path: &Path, what: String) -> TrainError {
    let mut files = state_files(run);
    files.retain(|file| file.symlink_metadata().is_ok());
    TrainError::KeptState {
        path: path.to_owned(),
        what,
        files,
        checkpoint: checkpoint::list(&run.output).pop().map(|(_, dir)| dir),
    }
}

/// Which run kept files belong to: that of this output directory.
fn id(run: &Run) -> u128 {
    let path = run.output.as_os_str().as_encoded_bytes();
    let hash = |seed: u64| {
        path.iter().fold(seed, |h, &b| {
            (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3)
        })
    };
    u128::from(hash(0xcbf2_9ce4_8422_2325)) << 64 | u128::from(hash(0x9e37_79b9_7f4a_7c15))
}

/// A file inside the output directory is ours even if both were moved.
pub(super) fn ours(run: &Run, dir: &Path, kept_by: u128) -> bool {
    kept_by == id(run) || dir.starts_with(&run.output)
}

/// Removes the files of this run's earlier state that the session's own did not take the place of.
fn give_up(run: &Run, session: &Session) -> Result<(), TrainError> {
    let mine = session.disk_paths();
    for kept in kept_files(run)? {
        if kept.ours && !mine.contains(&tiers::state_path(&kept.dir)) {
            let config = DiskConfig {
                open: Open::Replace,
                ..DiskConfig::new([(kept.dir, 1.0)])
            };
            // Replaced, under the directory's lock, by one that is not kept; closing it removes it.
            Disk::open(&config.fit(Bytes(tiers::ALIGN))?, None)?.publish()?;
        }
    }
    Ok(())
}
