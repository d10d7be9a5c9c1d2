//! When a run saves, and what it does when it cannot.
//!
//! One file because room, cadence and what follows from a save are one story.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lowtide_config::{KeepBest, OnUnsaved, Run};
use lowtide_data::Batches;
use lowtide_executor::Trace;
use lowtide_model::HfWriter;
use lowtide_planner::Tier;

use super::every::Every;
use super::export::source_of;
use super::{Fit, Saves, tokenizer_files};
use crate::checkpoint;
use crate::error::TrainError;
use crate::output::room::{self, Need};
use crate::output::{
    self, ANSWERS, ANSWERS_LEFT, Followed, METRICS, METRICS_LEFT, Output, TENSORBOARD,
};
use crate::planning::Planned;
use crate::report::Phase;
use lowtide_session::rank_folder;

/// Bytes of a step's line in the metrics file and of its TensorBoard record, at most.
const LINE: u64 = 1024;
/// Bytes of an event of the trace.
const EVENT: u64 = 256;
/// Bytes of a model's or checkpoint's small files, the tokenizer's not counted.
pub(super) const SMALL: u64 = 1 << 20;
/// Bytes of a run's page and of what it is drawn of, each with the one before it.
const PAGES: u64 = 4 << 20;

/// Between which steps a run saves.
#[derive(Debug)]
pub(super) struct Cadence {
    steps: Every,
    /// As the run file has it.
    epochs: Option<f64>,
    every: Option<Duration>,
    last: Instant,
}

impl Cadence {
    /// Of a run whose batches are these.
    ///
    /// # Errors
    /// As [`Every::of`].
    pub(super) fn of(run: &Run, batches: &Batches) -> Result<Self, TrainError> {
        let minutes = run.checkpoint.every_minutes;
        let (steps, epochs) = (run.checkpoint.every_steps, run.checkpoint.every_epochs);
        Ok(Self {
            steps: Every::of(run, batches, (steps, epochs))?,
            epochs,
            every: (minutes > 0.0).then(|| Duration::from_secs_f64(60.0 * minutes)),
            last: Instant::now(),
        })
    }

    /// Whether a checkpoint is due after `step`, which is not the last.
    pub(super) fn due(&self, step: u64, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.last);
        self.steps.due(step) || self.every.is_some_and(|every| since >= every)
    }

    /// A checkpoint was saved, or tried to.
    pub(super) fn saved(&mut self, now: Instant) {
        self.last = now;
    }

    /// For people, with how many are kept.
    pub(super) fn told(&self, keep: u32, best: bool, on_error: OnUnsaved) -> String {
        let mut when = Vec::new();
        if let Every::Steps(steps) = self.steps {
            when.push(format!("every {steps} steps"));
        }
        match self.epochs {
            Some(1.0) => when.push("every epoch".to_owned()),
            Some(epochs) => when.push(format!("every {epochs} epochs")),
            None => {}
        }
        if let Some(every) = self.every {
            when.push(format!("every {} minutes", every.as_secs_f64() / 60.0));
        }
        if best {
            when.push("after each evaluation that is the best".to_owned());
        }
        when.push("at the end".to_owned());
        let kept = match (keep, best) {
            (1, false) => "the newest is kept".to_owned(),
            (1, true) => "the newest and the best are kept".to_owned(),
            (n, false) => format!("the newest {n} are kept"),
            (n, true) => format!("the newest {n} and the best are kept"),
        };
        let stops = match on_error {
            OnUnsaved::Continue => "",
            OnUnsaved::Stop => "; one that cannot be written ends the run",
        };
        format!("checkpoints: {}; {kept}{stops}", when.join(", "))
    }
}

/// The most times that a run saves in so many steps to come, the end included.
fn saves(run: &Run, steps: u64) -> u64 {
    let often = run.checkpoint.every_minutes > 0.0 || run.checkpoint.every_epochs.is_some();
    let by_steps = match (often, run.checkpoint.every_steps) {
        (true, _) => return steps.max(1),
        (false, 0) => 1,
        (false, every) => steps / every + 1,
    };
    // Each evaluation may be the best.
    let evaluations = match run.checkpoint.keep_best {
        KeepBest::None => 0,
        KeepBest::Loss | KeepBest::Accuracy => steps / run.eval.every_steps.max(1),
        KeepBest::ExactMatch => steps / run.eval.generate.every_steps.max(1),
    };
    by_steps + evaluations
}

/// Checkpoints that a run keeps, the best one included.
fn kept(run: &Run) -> u32 {
    let best = run.checkpoint.keep_best != KeepBest::None;
    run.checkpoint.keep.saturating_add(u32::from(best))
}

/// Bytes that a run's saves and its model will take beside what is there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    checkpoint: u64,
    pub(super) model: u64,
}

impl Sizes {
    /// Of a run that saves nothing.
    pub(super) const NONE: Self = Self {
        checkpoint: 0,
        model: 0,
    };

    pub(super) fn of(run: &Run, planned: &Planned) -> Self {
        let decoder = &planned.decoder;
        let writer = HfWriter::new(decoder.shape(), run.precision, source_of(run));
        let tokenizer = run.model.tokenizer.as_deref();
        let tokenizer = tokenizer.map_or(0, tokenizer_files::bytes);
        Self {
            checkpoint: checkpoint::bytes(decoder.workload()) + SMALL,
            model: writer.file_bytes() + tokenizer + SMALL,
        }
    }

    /// Checkpoints to keep room for, with so many there and so many saves to come: a new one is whole
    /// before an old one goes.
    fn ahead(keep: u32, there: usize, saves: u64) -> u64 {
        let more = (u64::from(keep) + 1).saturating_sub(there as u64);
        more.max(1).min(saves)
    }

    /// What must fit before the first step, with the plan's state files: saves cannot be more than the
    /// steps to come.
    pub(super) fn needs(
        self,
        run: &Run,
        planned: &Planned,
        output: &Output,
        steps: u64,
    ) -> Vec<Need> {
        let there = checkpoint::count(output).unwrap_or(0);
        let dir = output.folder().path().to_owned();
        let need = |what: String, bytes| Need {
            dir: dir.clone(),
            what,
            bytes,
        };
        let n = Self::ahead(kept(run), there, saves(run, steps));
        let of = |n: u64| match n {
            1 => "for a checkpoint".to_owned(),
            n => format!("for {n} checkpoints"),
        };
        let lines = steps / run.log.every_steps + 2;
        // A branch copies what it leaves, and what it goes back to.
        let logs = [METRICS, ANSWERS, METRICS_LEFT, ANSWERS_LEFT]
            .map(|name| fs::metadata(dir.join(name)).map_or(0, |m| m.len()));
        let tasks =
            planned.plan.parts.values().map(|p| p.len()).sum::<usize>() as u64 * (steps + 1);
        let trace = if run.log.trace {
            tasks.min(Trace::FIRST_STEPS.events as u64) * EVENT
        } else {
            0
        };
        let pages = if run.log.report { PAGES } else { 0 };
        let mut all = vec![
            need(of(n), n.saturating_mul(self.checkpoint)),
            need("for the model".to_owned(), self.model),
            need(
                "for metrics, the trace and the page".to_owned(),
                lines * LINE + trace + pages + logs.iter().sum::<u64>(),
            ),
        ];
        let ranks = planned.plan.ranks;
        let near = ranks.min(run.gpus_of_host());
        let state = planned.plan.tier(Tier::Disk).planned_bytes.0 * u64::from(near);
        let total: u64 = run.budget.disk.iter().map(|d| d.size.0).sum();
        for drive in run.budget.disk.iter().filter(|_| state > 0) {
            let share = (state as f64 * drive.size.0 as f64 / total as f64) as u64;
            let bytes = |dir: &std::path::Path| lowtide_tiers::limits::state_file_bytes(dir).0;
            let there: u64 = match ranks {
                1 => bytes(&drive.dir),
                _ => (0..near as usize)
                    .map(|rank| bytes(&rank_folder(&drive.dir, rank)))
                    .sum(),
            };
            all.push(Need {
                dir: existing(&drive.dir),
                what: "for state".to_owned(),
                bytes: share.saturating_sub(there),
            });
        }
        all
    }
}

/// The directory, or the nearest above it that is there.
pub(super) fn existing(dir: &std::path::Path) -> std::path::PathBuf {
    let there = dir.ancestors().find(|d| d.is_dir());
    there.unwrap_or(dir).to_owned()
}

/// Checks and takes the room that a run needs for `steps` more steps.
pub(super) fn take_room(
    sizes: Sizes,
    run: &Run,
    planned: &Planned,
    output: &Output,
    steps: u64,
) -> Result<room::Room, TrainError> {
    let needs = sizes.needs(run, planned, output, steps);
    if sizes.checkpoint > 0 && steps > 0 {
        checkpoint::try_folder(output)?;
    }
    room::check(&needs)?;
    let held = needs[0].bytes + needs[1].bytes;
    room::Room::keep(output.folder(), held)
}

/// Whether an error is about what stands in the output directory, not about the run.
fn of_files(e: &TrainError) -> bool {
    matches!(
        e,
        TrainError::File { .. }
            | TrainError::Link { .. }
            | TrainError::NotOurs { .. }
            | TrainError::Locked { .. }
            | TrainError::NoLocks { .. }
            | TrainError::Overlap { .. }
    )
}

impl Fit<'_> {
    /// Saves between two steps what is not saved yet. If the disk does not take it the run goes on: its state is in
    /// memory, and the older checkpoints are whole.
    pub(super) fn save(&mut self) -> Result<(), TrainError> {
        let saved = match self.has_background() {
            true => self.hold().and_then(|()| self.start_writing()),
            false => self.try_save(),
        };
        saved.or_else(|e| self.unsaved(self.state.step, e))
    }

    /// As [`Fit::save`] in the background, of which what can be done while the next step runs is left to
    /// [`Fit::end_writing`]. Not where steps have rounds: who submits one waits until nearly all of them are done.
    pub(super) fn save_soon(&mut self) -> Result<(), TrainError> {
        let at_once = !self.session.plan().rounds().one();
        let held = self.hold().and_then(|()| match at_once {
            true => self.start_writing(),
            false => Ok(()),
        });
        held.or_else(|e| self.unsaved(self.state.step, e))
    }

    /// Says that the disk did not take a checkpoint; other errors are the run's.
    pub(super) fn unsaved(&mut self, step: u64, e: TrainError) -> Result<(), TrainError> {
        if !of_files(&e) {
            return Err(self.of_state(step, e));
        }
        self.best_is_unsaved(step);
        if self.unsaved.last() != Some(&step) {
            self.unsaved.push(step);
        }
        if self.run.checkpoint.on_error == OnUnsaved::Stop {
            return Err(TrainError::Unsaved {
                step,
                source: Box::new(e),
                older: self.last_checkpoint.clone(),
            });
        }
        let older = match &self.last_checkpoint {
            Some(older) => format!("the newest checkpoint is {}", older.display()),
            None => "there is no checkpoint yet".to_owned(),
        };
        self.observer.note(&format!(
            "warning: the checkpoint of step {step} was not saved: {e}; the run goes on, {older}"
        ));
        Ok(())
    }

    /// Saves at the end. What is saved behind it, because the output directory is gone or somebody asks, is written at
    /// once. An earlier checkpoint that was being written and cannot be does not keep this one from being saved; its
    /// error is the first.
    pub(super) fn save_last(&mut self) -> Result<(), TrainError> {
        let before = self.end_writing(true);
        let saved = self.try_save();
        self.end_background();
        let saved = saved.map_err(|e| match e {
            e if of_files(&e) => TrainError::Unsaved {
                step: self.state.step,
                source: Box::new(e),
                older: self.last_checkpoint.clone(),
            },
            e => self.of_state(self.state.step, e),
        });
        match (before, saved) {
            // Of such a state no model is written.
            (_, Err(e @ TrainError::NonFinite { .. })) => Err(e),
            (before, saved) => before.and(saved),
        }
    }

    /// Says of a state with numbers that are none which step it is of: nothing can be trained from it, and no
    /// checkpoint before it goes.
    fn of_state(&self, step: u64, e: TrainError) -> TrainError {
        match e {
            // What has a step says which.
            TrainError::NonFinite { step: 0, what, .. } => self.diverged(step, what),
            e => e,
        }
    }

    /// Whether there is nothing to save: before the first step, what is saved already, or of a run that saves nothing.
    pub(super) fn is_saved(&mut self, step: u64) -> Result<bool, TrainError> {
        self.follow()?;
        self.cadence.saved(Instant::now());
        if self.saves == Saves::Nothing {
            return Ok(true);
        }
        let saved = step == 0 || self.saved == Some(step) || self.gone_back;
        if saved && step > 0 && self.output.kept().unsaved().is_none() {
            // The process that saved it may have died before this.
            self.prune(self.state.step, self.kept_best());
        }
        Ok(saved)
    }

    /// Notes of the last step what is saved beside the state; nothing runs.
    pub(super) fn note_state(&mut self) {
        self.state.clip = self.session.clip_words().map(f64::to_bits);
        self.state.norms = self.session.last_norms();
        if let Some(gpu) = &self.gpu {
            self.state.products = gpu.choices();
        }
    }

    pub(super) fn try_save(&mut self) -> Result<(), TrainError> {
        let step = self.state.step;
        self.end_writing(true)?;
        if self.is_saved(step)? {
            return Ok(());
        }
        self.checked(step, |s| s.session.drain())?;
        self.note_state();
        self.observer.phase(Some(Phase::Saving));
        let decoder = Arc::clone(self.session.decoder());
        let told = self.lend_room();
        self.tell(told);
        let homes = self.session.homes()?;
        let saved = checkpoint::save(&self.output, decoder.workload(), &homes, &self.state);
        self.observer.phase(None);
        let saved = saved.map(|(path, told)| {
            self.tell(told);
            self.is_in_place(path, step, self.kept_best());
        });
        self.make_room();
        saved
    }

    /// A checkpoint has its name: what follows from that.
    pub(super) fn is_in_place(&mut self, path: PathBuf, step: u64, kept_best: Option<u64>) {
        self.observer.saved(step, &path);
        self.last_checkpoint = Some(path);
        self.saved = Some(step);
        // It may have been tried before.
        self.unsaved.retain(|&unsaved| unsaved != step);
        self.best_is_in_place(step);
        let marked = super::branch::saved(&mut self.output, step);
        self.tell(marked.err().map(|e| format!("warning: {e}")));
        self.prune(step, kept_best);
    }

    /// Gives up the room of one checkpoint, which is about to be written: its file takes as much at once. That of the
    /// others and of the model stays held.
    pub(super) fn lend_room(&mut self) -> Option<String> {
        let Sizes { checkpoint, model } = self.sizes;
        self.room.lend(self.output.folder(), checkpoint, model)
    }

    /// Keeps room for the checkpoints to come.
    pub(super) fn make_room(&mut self) {
        let step = self.state.step;
        let there = checkpoint::count(&self.output).unwrap_or(0);
        if step < self.total {
            let saves = saves(self.run, self.total - step);
            let n = Sizes::ahead(kept(self.run), there, saves);
            let checkpoints = n.saturating_mul(self.sizes.checkpoint);
            let ahead = checkpoints.saturating_add(self.sizes.model);
            let told = self.room.resize(self.output.folder(), ahead);
            self.tell(told);
        }
    }

    /// Goes after the output directory if it was renamed or removed since; one that was removed is made
    /// again, and what is recorded goes there. So of the files of records.
    pub(super) fn follow(&mut self) -> Result<(), TrainError> {
        let Some(followed) = self.output.follow(self.run)? else {
            let told = self.follow_records();
            self.tell(told);
            return self.describe();
        };
        let folder = self.output.folder();
        let now = folder.path().display();
        match followed {
            Followed::Moved { was } => {
                let told = format!(
                    "warning: {} was moved or replaced; the run goes on writing into the directory that it \
                     began in, which is {now} now",
                    was.display()
                );
                self.last_checkpoint = self.last_checkpoint.take().map(|path| {
                    let within = path.strip_prefix(&was).map(|rest| folder.at(rest));
                    within.unwrap_or(path)
                });
                let records = self.follow_records();
                self.tell([told].into_iter().chain(records));
            }
            Followed::Anew { was } => {
                let told = format!(
                    "warning: {} was removed with what the run had written there: checkpoints and the model go to a \
                     new directory, {now}, where the metrics are written anew",
                    was.display()
                );
                self.saved = None;
                self.last_checkpoint = None;
                self.undescribed = true;
                // That they are written anew is said above.
                self.follow_records();
                self.tell([told]);
            }
        }
        self.describe()
    }

    /// Writes what machine and which run it is into a new output directory, again each time until both are there.
    fn describe(&mut self) -> Result<(), TrainError> {
        if self.undescribed {
            let folder = self.output.folder();
            super::write_json(folder, output::MACHINE, &self.machine)?;
            super::write_json(folder, output::RUN, self.run)?;
            self.undescribed = false;
        }
        Ok(())
    }

    /// Sees to it that metrics, answers and events stand under their names; what there is to say.
    fn follow_records(&mut self) -> Vec<String> {
        let folder = self.output.folder();
        let answers = self.answers.as_mut();
        let events = self.events.as_mut();
        let told = [
            self.metrics.follow(folder, METRICS),
            answers.and_then(|log| log.follow(folder, ANSWERS)),
            events.and_then(|events| {
                // Where it cannot be made, writing says so.
                let folder = folder.make(TENSORBOARD).ok()?;
                events.follow(&folder)
            }),
        ];
        told.into_iter().flatten().collect()
    }

    /// Removes checkpoints that are too many. One that stays is no reason to end a run.
    fn prune(&mut self, saved: u64, kept_best: Option<u64>) {
        let keep = self.run.checkpoint.keep as usize;
        let told = checkpoint::prune(&self.output, saved, kept_best, keep)
            .unwrap_or_else(|e| vec![format!("warning: an old checkpoint stays: {e}")]);
        self.tell(told);
    }

    /// Passes lines on to the observer, in order.
    pub(super) fn tell(&mut self, told: impl IntoIterator<Item = String>) {
        told.into_iter().for_each(|t| self.observer.note(&t));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whichever_is_due_first() {
        let begin = Instant::now();
        let later = |s| begin + Duration::from_secs(s);
        let cadence = |steps, every| Cadence {
            steps: match steps {
                0 => Every::Never,
                n => Every::Steps(n),
            },
            epochs: None,
            every,
            last: begin,
        };
        let minute = Some(Duration::from_secs(60));
        assert!(cadence(3, None).due(6, later(0)));
        assert!(!cadence(3, None).due(7, later(1_000_000)));
        assert!(!cadence(0, minute).due(6, later(59)));
        assert!(cadence(0, minute).due(6, later(60)));
        assert!(cadence(3, minute).due(7, later(61)) && cadence(3, minute).due(9, later(1)));
        assert!(!cadence(0, None).due(1, later(1_000_000)));
        let mut one = cadence(0, minute);
        one.saved(later(60));
        assert!(!one.due(7, later(119)) && one.due(7, later(120)));
        assert_eq!(
            cadence(5, Some(Duration::from_secs(90))).told(2, false, OnUnsaved::Continue),
            "checkpoints: every 5 steps, every 1.5 minutes, at the end; the newest 2 are kept"
        );
        assert_eq!(
            cadence(0, None).told(1, true, OnUnsaved::Stop),
            "checkpoints: after each evaluation that is the best, at the end; the newest and the best are kept; one that \
             cannot be written ends the run"
        );
    }

    #[test]
    fn what_is_ahead_counts_what_is_there() {
        // The last one is whole before the oldest of `keep` goes; there are no more than the run will save.
        for (keep, there, saves, want) in [
            (2, 0, 9, 3),
            (2, 1, 9, 2),
            (2, 2, 9, 1),
            (2, 5, 9, 1),
            (1, 0, 9, 2),
            (10, 1, 2, 2),
            (u32::MAX, 0, 3, 3),
        ] {
            let n = Sizes::ahead(keep, there, saves);
            assert_eq!(n, want, "{there} of {keep}, {saves} saves");
        }
    }
}
