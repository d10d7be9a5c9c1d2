//! Checkpoints that are written while steps go on: begun between two steps, put in place between two later ones.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use lowtide_config::{KeepBest, Run};
use lowtide_executor::ExecError;
use lowtide_report::outcome::Background;
use lowtide_session::Snapshot;
use lowtide_tiers::HostMemory;
use lowtide_units::Bytes;

use super::Fit;
use crate::checkpoint::background::{Staging, StagingPlan, Stops, Writer};
use crate::checkpoint::{self, Begun, RunState};
use crate::error::TrainError;
use crate::planning::Planned;
use crate::threads::threads_of;

/// Whether a run saves on the way, but for what it is asked.
pub(crate) fn saves_on_the_way(run: &Run) -> bool {
    let c = &run.checkpoint;
    c.every_steps > 0
        || c.every_epochs.is_some()
        || c.every_minutes > 0.0
        || c.keep_best != KeepBest::None
}

/// Writes checkpoints in the background.
pub(super) struct Backdrop {
    /// Here while nothing is written.
    staging: Option<Staging>,
    /// The state of a step that is not written yet.
    held: Option<(Snapshot, RunState)>,
    writing: Option<Writing>,
    pub(super) so_far: Background,
    /// Of that, what stands in the lines of steps.
    noted: f64,
}

struct Writing {
    writer: Writer,
    begun: Begun,
    state: RunState,
    kept_best: Option<u64>,
}

impl Backdrop {
    pub(super) fn new(staging: Staging) -> Self {
        Self {
            staging: Some(staging),
            held: None,
            writing: None,
            so_far: Background::default(),
            noted: 0.0,
        }
    }

    /// Seconds in which steps waited that stand in no line yet; from here on they count as noted.
    fn take_wait(&mut self) -> f64 {
        let writing = self.writing.as_ref();
        let now = writing.map_or(Duration::ZERO, |w| w.writer.held_up());
        let all = self.so_far.wait_seconds + now.as_secs_f64();
        (all - std::mem::replace(&mut self.noted, all)).max(0.0)
    }
}

/// The room that checkpoints in the background have in what a plan leaves of the host's budget.
///
/// # Errors
/// Why the run stops for them.
pub(crate) fn plan(run: &Run, left: Bytes, planned: &Planned) -> Result<StagingPlan, Stops> {
    if !run.checkpoint.background {
        return Err(Stops::Asked);
    }
    // What is open is all that is free: not all of it is for this.
    let left = match run.budget.host {
        Some(_) => left,
        None => Bytes(left.0 / 2),
    };
    // A budget may be more than is free: then a run that starts without this must not be refused for it. Of what is
    // free a tenth stays so.
    let to_come = planned.resident.to_come(&planned.plan, &planned.machine);
    let free = HostMemory::available().saturating_sub(to_come);
    let left = left.min(Bytes(free.0 / 10 * 9));
    let (plan, w) = (&planned.plan, planned.decoder.workload());
    StagingPlan::of(plan, w, left, threads_of(run))
}

impl Fit<'_> {
    /// What became of checkpoints in the background so far.
    pub(super) fn beside(&self) -> Option<Background> {
        let now = self.background.as_ref().map(|b| b.so_far);
        now.or(self.beside)
    }

    /// From here on the run stops for checkpoints: nobody would end one that is begun.
    pub(super) fn end_background(&mut self) {
        self.beside = self.beside();
        self.background = None;
    }

    /// The run ends with an error: what is being written of a state stays, for that state is whole. What is held and
    /// not complete is given up where its update is not under way, and never will be.
    pub(super) fn end_whole(&mut self) {
        if let Some(background) = &mut self.background {
            background.held.take_if(|(held, _)| !held.is_under_way());
            let writing = background.writing.as_ref();
            if let Some(w) = writing.filter(|w| !w.writer.is_under_way()) {
                w.writer.stop();
            }
        }
        // The run's own error is the one to tell.
        let _ = self.end_writing(true);
    }

    /// Whether the state of a step can be saved while steps go on.
    pub(super) fn has_background(&self) -> bool {
        self.background.is_some() && !self.gone_back
    }

    /// Whether the state of a step is held or being written, beside the steps.
    pub(super) fn is_writing(&self) -> bool {
        let background = self.background.as_ref();
        background.is_some_and(|b| b.held.is_some() || b.writing.is_some())
    }

    /// Seconds in which the steps since the last time this was asked waited for a checkpoint.
    pub(super) fn checkpoint_wait(&mut self) -> Option<f64> {
        let seconds = self.background.as_mut()?.take_wait();
        (seconds > 0.0).then_some(seconds)
    }

    /// Takes hold of the state of the present step, which nothing runs behind, to be written by
    /// [`Fit::start_writing`]. Waits for the checkpoint before.
    pub(super) fn hold(&mut self) -> Result<(), TrainError> {
        let step = self.state.step;
        if self.background.as_ref().is_some_and(|b| b.is_of(step)) {
            return Ok(());
        }
        let begin = Instant::now();
        if self.end_writing(true)?
            && let Some(background) = &mut self.background
        {
            background.so_far.wait_seconds += begin.elapsed().as_secs_f64();
        }
        // The one before could not be begun, and what it needed went with it.
        if self.background.is_none() {
            return self.try_save();
        }
        if self.is_saved(step)? {
            return Ok(());
        }
        self.checked(step, |fit| fit.session.settle())?;
        self.note_state();
        let snapshot = self.session.snapshot()?;
        let state = self.state.clone();
        if let Some(background) = &mut self.background {
            background.held = Some((snapshot, state));
        }
        Ok(())
    }

    /// Begins to write the state that is held, if any: while the next step runs.
    pub(super) fn start_writing(&mut self) -> Result<(), TrainError> {
        let Some((snapshot, state)) = self.background.as_mut().and_then(|b| b.held.take()) else {
            return Ok(());
        };
        let step = state.step;
        let started = self.write(snapshot, state);
        started.or_else(|e| {
            self.make_room();
            self.unsaved(step, e)
        })
    }

    fn write(&mut self, snapshot: Snapshot, state: RunState) -> Result<(), TrainError> {
        let kept_best = self.kept_best();
        let notes = self.lend_room();
        self.tell(notes);
        let (begun, folder) = Begun::begin(&self.output, state.step)?;
        let Some(background) = &mut self.background else {
            return Ok(());
        };
        let staging = background.staging.take();
        let staging = staging.expect("what was written before is ended");
        let writer = match Writer::start(snapshot, staging, folder) {
            Ok(writer) => writer,
            Err(e) => {
                // Its staging went with it: from here on the run stops for checkpoints.
                begun.abandon();
                self.end_background();
                return Err(e);
            }
        };
        background.writing = Some(Writing {
            writer,
            begun,
            state,
            kept_best,
        });
        Ok(())
    }

    /// Puts a checkpoint in its place that is written, or, where the caller waits, that is being written. Whether there
    /// was one. Of one that could not be written a note says why, and the run goes on.
    pub(super) fn end_writing(&mut self, wait: bool) -> Result<bool, TrainError> {
        self.start_writing()?;
        let over = |w: &mut Writing| wait || w.writer.is_over();
        let writing = self
            .background
            .as_mut()
            .and_then(|b| b.writing.take_if(over));
        let Some(Writing {
            writer,
            begun,
            state,
            kept_best,
        }) = writing
        else {
            return Ok(false);
        };
        let since = writer.since();
        let (waited, end) = writer.join();
        // Before that goes, where its staging did.
        if let Some(background) = &mut self.background {
            background.so_far.wait_seconds += waited.as_secs_f64();
        }
        let done = match end {
            Some((staging, folder, done)) => {
                if let Some(background) = &mut self.background {
                    background.staging = Some(staging);
                }
                match done {
                    Ok(checksums) => self.put_in_place(begun, &folder, &state, checksums),
                    Err(e) => {
                        begun.abandon();
                        Err(e)
                    }
                }
            }
            None => {
                begun.abandon();
                self.end_background();
                Err(TrainError::Exec(ExecError::Panic {
                    task: format!("writing the checkpoint of step {}", state.step),
                    message: "see above".to_owned(),
                }))
            }
        };
        match done {
            Ok(path) => {
                if let Some(background) = &mut self.background {
                    background.so_far.checkpoints += 1;
                    background.so_far.last_seconds = since.elapsed().as_secs_f64();
                }
                self.is_in_place(path, state.step, kept_best);
            }
            // The run has failed, and tells why itself.
            Err(TrainError::Exec(ExecError::Stopped)) => {}
            Err(e) => self.unsaved(state.step, e)?,
        }
        self.make_room();
        Ok(true)
    }

    fn put_in_place(
        &mut self,
        begun: Begun,
        folder: &crate::output::folder::Folder,
        state: &RunState,
        checksums: std::collections::BTreeMap<String, u32>,
    ) -> Result<PathBuf, TrainError> {
        let followed = self.follow();
        let said = followed.and_then(|()| checkpoint::write_run(folder, state, checksums));
        if let Err(e) = said {
            begun.abandon();
            return Err(e);
        }
        let (path, notes) = begun.finish(&self.output, folder)?;
        self.tell(notes);
        Ok(path)
    }
}

impl Backdrop {
    /// Whether the state of this step is held or being written.
    fn is_of(&self, step: u64) -> bool {
        let held = self.held.as_ref().map(|(_, state)| state.step);
        let written = self.writing.as_ref().map(|w| w.state.step);
        held == Some(step) || written == Some(step)
    }
}
