//! A whole training run: from a run file's settings to a fine-tuned Hugging Face model.
//!
//! Order of things: read and check everything that can be wrong (data, tokenizer, model files,
//! plan, output directory), then reserve all memory, then load, then step. While a batch runs the
//! next one is prepared; its loss is shown as soon as its norm is known, while its update runs
//! under the next batch's forward.
//!
//! One file because it is the order in which a run happens; how it begins is in `fit/opening.rs`,
//! and what one of its steps does in the files beside it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use lowtide_config::{Run, ScheduleShape};
use lowtide_device::cuda::Gpu;
use lowtide_executor::{EngineError, ExecError, Measured};
use lowtide_kernels::update::Hyper;
use lowtide_planner::slowdown::Slowdown;
use lowtide_planner::{Lane, LaneKind, Machine};
use lowtide_report::outcome::{Background, TrainReport};
use serde::Serialize;
use serde_json::Value;

use crate::adaptive::Adaptive;
use crate::answers::{Extract, Question};
use crate::checkpoint::RunState;
use crate::error::TrainError;
use crate::inputs::news_of;
use crate::launch::{Met, Others};
use crate::learning_rate::{Decay, LearningRate};
use crate::metrics::{EventFile, MetricsLog};
use crate::output::folder::Folder;
use crate::output::mark::Kept;
use crate::output::room::Room;
use crate::output::{self, Output};
use crate::planning::Planned;
use crate::report::{Observer, StepLine, When, busy_of};
use crate::stops::Stops;
use crate::tally::Tally;
use crate::wear::Wear;
use background::Backdrop;
use best::{Evaluations, Measure};
use every::Every;
use lowtide_data::{Batches, DataError, Micro, Packed, Rows, State, Tokenizer};
use lowtide_session::Requests;
use lowtide_session::Totals;
use lowtide_session::{Mark, Session, StepData};
use opening::Opened;
use saving::{Cadence, Sizes};

mod adapt;
pub(crate) mod background;
mod best;
mod branch;
mod card;
mod change;
mod comparison;
mod ends;
mod evaluate;
mod every;
mod export;
mod journal;
mod left;
mod lost;
mod of_checkpoint;
mod opening;
mod page;
mod saving;
mod start;
mod summary;
mod tokenizer_files;

pub use best::Best;
pub use comparison::Comparison;
pub use evaluate::{Evaluation, evaluate};
pub use of_checkpoint::{Export, Exported, export_checkpoint};

/// The learning rate of each step.
#[must_use]
pub fn schedule_of(run: &Run, total: u64) -> LearningRate {
    let s = &run.train.schedule;
    LearningRate {
        peak: run.train.learning_rate,
        warmup_steps: s.warmup.steps(total),
        min_ratio: s.min_lr_ratio,
        decay: match s.shape {
            ScheduleShape::Constant => Decay::Constant,
            ScheduleShape::Linear => Decay::Linear,
            ScheduleShape::Cosine => Decay::Cosine,
            ScheduleShape::Wsd => Decay::WarmupStableDecay {
                decay_steps: (total as f64 * s.decay_ratio).ceil() as u64,
            },
        },
    }
}

struct Fit<'a> {
    run: &'a Run,
    observer: &'a mut dyn Observer,
    requests: Requests,
    /// Kept free for the checkpoints and the model to come.
    room: Room,
    sizes: Sizes,
    cadence: Cadence,
    evaluates: Every,
    /// Writes checkpoints while steps go on, where that can be.
    background: Option<Backdrop>,
    /// What became of those that were, once no more are.
    beside: Option<Background>,
    session: Session,
    /// Answers with a cache are made here.
    answering: Option<Session>,
    tokenizer: Arc<Tokenizer>,
    stops: Stops,
    train: Rows,
    batches: Batches,
    eval: Option<Arc<Packed>>,
    questions: Arc<[Question]>,
    extract: Extract,
    numerics: Value,
    gpu: Option<Gpu>,
    total: u64,
    schedule: LearningRate,
    metrics: MetricsLog,
    /// Answers to prompts, where the run asks for them.
    answers: Option<MetricsLog>,
    events: Option<EventFile>,
    /// What the run's page has that stays the same, where it has a page.
    page: Option<page::Page>,
    /// State of the data after each batch that is not yet saved.
    state: RunState,
    /// Real tokens of all batches handed out.
    dealt: u64,
    /// Totals of the processes before this one: seconds and the tokens they are for.
    earlier: Totals,
    /// Rates that it was planned with.
    machine: Machine,
    /// A step's time by the plan.
    predicted_seconds: f64,
    /// Plans again where the lanes are off their rates, if the run asks for it.
    adaptive: Option<Adaptive>,
    wear: Option<Wear>,
    durable: bool,
    last_checkpoint: Option<PathBuf>,
    /// The step whose state is in the newest checkpoint of the output directory, as far as known.
    saved: Option<u64>,
    /// Steps of this process whose checkpoint was due and could not be written.
    unsaved: Vec<u64>,
    /// What evaluations it makes.
    evaluations: Evaluations,
    /// The best evaluation before the present one, while the checkpoint of that is not in place.
    best_before: Option<Best>,
    /// The session has the best checkpoint's state, which is not that of the last step: nothing is saved of it.
    gone_back: bool,
    /// The checkpoint of the best evaluation is damaged.
    best_lost: bool,
    /// The output directory is a new one in which the machine and the run are not written yet.
    undescribed: bool,
    /// What it leaves behind.
    saves: Saves,
    /// Seconds in which projectors were learned, where they were.
    learning_seconds: Option<f64>,
    /// Last, so that its lock outlives all that is written and removed.
    output: Output,
}

/// What a run leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Saves {
    /// Checkpoints, its model, and what it tells of itself.
    All,
    /// Only what it tells of itself: metrics and page.
    Nothing,
}

/// A batch that is ready to be submitted.
struct Prepared {
    micro: Vec<Micro>,
    tokens: u64,
    lr: f64,
    after: State,
}

/// What needs drained state, so that it happens between two batches.
struct Due {
    save: bool,
    evaluation: bool,
    answers: bool,
}

impl Due {
    fn any(&self) -> bool {
        self.save || self.evaluation || self.answers
    }
}

/// A batch in flight.
struct Flight {
    step: u64,
    data: Arc<StepData>,
    tokens: u64,
    lr: f64,
    after: State,
}

/// Trains a run. Requests may come at any time (signals make them): to save and go on, or to save
/// and return. A step that is under way is finished first; an evaluation, answers and an export are
/// broken off, leave nothing behind, and are done again by the run that goes on.
///
/// # Errors
/// Everything that can be wrong with the run; the newest checkpoint stays intact.
pub fn train(
    run: &Run,
    observer: &mut dyn Observer,
    requests: &Requests,
) -> Result<TrainReport, TrainError> {
    train_with(run, observer, requests, None)
}

/// As [`train`], in the process of the first of several ranks; the others [follow](crate::launch::follow).
///
/// # Errors
/// As [`train`]: each is reported to the other ranks. And what stopped one of them.
pub fn lead(
    run: &Run,
    met: &Met,
    observer: &mut dyn Observer,
    requests: &Requests,
) -> Result<TrainReport, TrainError> {
    let others = match Others::of(met, requests) {
        Ok(others) => others,
        Err(e) => {
            met.party.stop(&e.to_string());
            return Err(e);
        }
    };
    let done = train_with(run, observer, requests, Some(&others));
    // Before the way to the others goes, which on GPUs would wait for them.
    match &done {
        // 0: asked by something else than a signal.
        Ok(report) => {
            let asked = || requests.stopped_by().unwrap_or(0);
            others.end(report.stopped.then(asked));
        }
        Err(e) => met.party.stop(&e.to_string()),
    }
    done
}

/// As [`train`], where `plan.adaptive` reads that lanes take so many times as long as planned, whatever is measured:
/// for tests, so that what another plan gains is certain.
///
/// # Errors
/// As [`train`].
pub fn train_slowed(
    run: &Run,
    observer: &mut dyn Observer,
    requests: &Requests,
    slowdown: &Slowdown,
) -> Result<TrainReport, TrainError> {
    match opening::open(run, observer, requests, (None, Saves::All))? {
        Opened::Finished(report) => Ok(*report),
        Opened::Begun(mut fit, planned) => {
            let adaptive = fit.adaptive.iter_mut();
            adaptive.for_each(|adaptive| adaptive.pretend(slowdown));
            fit.go(*planned)
        }
    }
}

/// Trains, with the other ranks where they are processes.
fn train_with(
    run: &Run,
    observer: &mut dyn Observer,
    requests: &Requests,
    others: Option<&Others>,
) -> Result<TrainReport, TrainError> {
    match opening::open(run, observer, requests, (others, Saves::All))? {
        Opened::Finished(report) => Ok(*report),
        Opened::Begun(fit, planned) => fit.go(*planned),
    }
}

fn write_json(folder: &Folder, name: &str, value: &impl Serialize) -> Result<(), TrainError> {
    let text = serde_json::to_string_pretty(value).expect("plain values");
    folder.write(name, |out| writeln!(out, "{text}"))
}

impl Fit<'_> {
    fn go(mut self, mut planned: Planned) -> Result<TrainReport, TrainError> {
        match self.steps(&mut planned) {
            Ok((tally, after_step)) => self.close(&planned, tally, after_step),
            Err(e) => {
                self.end_whole();
                Err(e)
            }
        }
    }

    /// All steps of the run, with what is due between them; what they measured, and behind which step they began.
    fn steps(&mut self, planned: &mut Planned) -> Result<(Tally, u64), TrainError> {
        if self.state.step == 0 {
            self.state.exact_match_before = self.exact_match(When::Before)?;
            self.state.totals.answers_first = self.evaluations.answers.clone();
            self.evaluate(0)?;
        }
        let after_step = self.state.step;
        self.make_up()?;
        // Now there is something to lose.
        self.observer.begins(after_step);
        self.requests.guard();
        let mut tally = Tally::new(self.session.measured());
        self.begin_page(planned, &tally, after_step);
        tally.pause(self.session.measured());
        let mut flight: Option<Flight> = None;
        let mut step = self.state.step;
        let mut next = self.prepare(step + 1)?;
        let mut broken = None;
        loop {
            // Saving and evaluating need drained state, so they happen between two batches.
            let asked = self.requests.saving();
            if let Some(f) = flight.take_if(|f| asked || self.due(f.step).any()) {
                self.pause(f, &mut tally, planned)?;
            }
            let more = step < self.total && !self.requests.stopping();
            if let Some(f) = flight.take_if(|_| more && self.has_better_plan()) {
                self.change_plan(f, &mut tally, planned)?;
            }
            let submitted = match next.take() {
                Some(batch) if more => {
                    step += 1;
                    let flight = self.submit(step, batch)?;
                    match self.prepare(step + 1) {
                        Ok(batch) => next = batch,
                        Err(e) => broken = Some(e),
                    }
                    Some(flight)
                }
                _ => None,
            };
            let ended = submitted.is_none();
            if let Some(done) = std::mem::replace(&mut flight, submitted) {
                self.finish(done, &mut tally)?;
            }
            if self.end_writing(false)? {
                self.show(planned, &tally);
            }
            self.hear(false);
            if ended && flight.is_none() {
                break;
            }
        }
        // Nothing is planned beside what comes now.
        self.adaptive = None;
        let step_now = self.state.step;
        self.checked(step_now, |s| s.session.drain())?;
        tally.end(self.session.measured());
        self.count(&tally);
        self.hear(true);
        if let Some(e) = broken {
            // Steps before it are not lost for want of the next batch.
            self.save_last()?;
            return Err(e.into());
        }
        Ok((tally, after_step))
    }

    /// Passes on what a stream of data has to tell: once, of all records, or at once of those so far.
    fn hear(&mut self, at_once: bool) {
        for told in news_of(&self.train, at_once) {
            self.observer.note(&told);
        }
    }

    /// Finishes the batch in flight, and does what is due while nothing runs.
    fn pause(&mut self, f: Flight, tally: &mut Tally, planned: &Planned) -> Result<(), TrainError> {
        let due = self.due(f.step);
        self.finish(f, tally)?;
        self.adaptive.iter_mut().for_each(Adaptive::interrupted);
        if self.has_background() && !due.evaluation && !due.answers {
            self.requests.take_save();
            return self.save_soon();
        }
        let at = self.state.step;
        self.checked(at, |s| s.session.drain())?;
        tally.drain(self.session.measured());
        self.count(tally);
        let mut best = false;
        if due.evaluation {
            let loss = self.evaluate(self.state.step);
            if let Err(TrainError::Data(_)) = &loss {
                // As for want of training data: steps before it are not lost.
                self.save_last()?;
            }
            let of = loss?;
            best |= self.judge_evaluation(of.map(|e| e.loss), of.map(|e| e.accuracy))?;
        }
        if due.answers {
            let share = self.exact_match(When::During)?;
            best |= self.judge(Measure::ExactMatch, share)?;
        }
        if self.requests.take_save() || due.save || best {
            self.save()?;
        }
        self.show(planned, tally);
        tally.pause(self.session.measured());
        Ok(())
    }

    /// Hands a batch to the lanes.
    fn submit(&mut self, step: u64, batch: Prepared) -> Result<Flight, TrainError> {
        let Prepared {
            micro,
            tokens,
            lr,
            after,
        } = batch;
        let hyper = hyper(self.run, lr, step);
        self.dealt += tokens;
        let mark = self.durable.then(|| Mark {
            step,
            data: after,
            tokens: self.dealt,
            loss_first: self.state.loss_first.map(f64::to_bits),
            exact_match_before: self.state.exact_match_before.map(f64::to_bits),
            batch_tokens: tokens,
            learning_rate: lr.to_bits(),
            totals: self.state.totals.clone(),
        });
        let submit = |s: &mut Self| s.session.submit_marked(micro, hyper, mark);
        // What fails by now is the batch before: of this one only rounds without its norm have run.
        let data = self.checked(step - 1, submit)?;
        Ok(Flight {
            step,
            data,
            tokens,
            lr,
            after,
        })
    }

    /// Everything behind the last step: evaluation, export, the last checkpoint, what becomes of the state files.
    fn close(
        mut self,
        planned: &Planned,
        tally: Tally,
        after_step: u64,
    ) -> Result<TrainReport, TrainError> {
        let mut ends = self.end(after_step)?;
        if self.state.step > after_step {
            ends.trace = self.trace();
        }
        let missing = [
            self.metrics.missing(),
            self.answers.as_ref().and_then(MetricsLog::missing),
            self.events.as_ref().and_then(EventFile::missing),
        ];
        self.tell(missing.into_iter().flatten());
        // The state is in a checkpoint now.
        self.session.discard_disk();
        let mut report = self.report(planned, &tally, &ends);
        report.page = self.show_last(&report);
        let marked = self.finished_mark(&report);
        let Self {
            session,
            mut output,
            ..
        } = self;
        // Closes the state files, which removes them: a run that says it is finished leaves none.
        drop(session);
        output.keep(Kept {
            state_file: None,
            writes: None,
            ..output.kept().clone()
        })?;
        if let Some(mark) = marked {
            write_json(output.folder(), output::FINISHED, &mark)?;
        }
        Ok(report)
    }

    /// What is due between this step and the next.
    fn due(&self, step: u64) -> Due {
        let between = step > 0 && step < self.total;
        let due = |n: u64| between && n > 0 && step.is_multiple_of(n);
        Due {
            save: between && self.cadence.due(step, Instant::now()),
            evaluation: between && self.evaluates.due(step),
            answers: due(self.run.eval.generate.every_steps),
        }
    }

    /// Runs something of the session; a failure over a number that is not finite says which step.
    fn checked<T>(
        &mut self,
        step: u64,
        work: impl FnOnce(&mut Self) -> Result<T, ExecError>,
    ) -> Result<T, TrainError> {
        let done = work(self);
        if done.is_err() {
            self.end_whole();
        }
        done.map_err(|e| match e {
            ExecError::Engine {
                source: EngineError::NonFinite(what),
                ..
            } => self.diverged(step, what),
            ExecError::Engine {
                source: EngineError::Spike(what),
                ..
            } => TrainError::Spike {
                step,
                what,
                checkpoint: self.last_checkpoint.clone(),
            },
            e => TrainError::Exec(e),
        })
    }

    /// A number of this step is none.
    fn diverged(&self, step: u64, what: String) -> TrainError {
        TrainError::NonFinite {
            step,
            what,
            checkpoint: self.last_checkpoint.clone(),
        }
    }

    /// The batch of a step, if the run has that step.
    fn prepare(&mut self, step: u64) -> Result<Option<Prepared>, DataError> {
        if step > self.total {
            return Ok(None);
        }
        let batch = self.batches.next_batch()?;
        Ok(Some(Prepared {
            micro: batch.micro,
            tokens: batch.real_tokens,
            lr: self.schedule.lr(step - 1, self.total),
            after: self.batches.state(),
        }))
    }

    /// Waits for a batch's loss and norm, and accounts for it.
    fn finish(&mut self, f: Flight, tally: &mut Tally) -> Result<(), TrainError> {
        let outcome = self.checked(f.step, |s| s.session.outcome(&f.data))?;
        let lap = tally.lap(self.session.measured());
        tally.steps += 1;
        tally.tokens += f.tokens;
        self.count(tally);
        self.look_at_lanes(f.step, &lap);
        let loss = outcome.loss();
        self.state.step = f.step;
        self.state.data = f.after;
        self.state.tokens += f.tokens;
        if loss.is_finite() {
            self.state.loss_first.get_or_insert(loss);
        }
        let totals = &mut self.state.totals;
        totals.loss(f.step, loss.to_bits());
        let spike = outcome.spike.is_some();
        totals.odd.count(f.step, outcome.skipped, spike);
        let line = StepLine {
            step: f.step,
            steps: self.total,
            loss,
            grad_norm: outcome.norm,
            learning_rate: f.lr,
            tokens: f.tokens,
            seconds: Some(lap.seconds),
            tokens_per_second: lap.whole.then(|| f.tokens as f64 / lap.seconds),
            predicted_seconds: self.predicted_seconds,
            ruling_lane: Some(lap.ruling_lane),
            lanes: self.lanes_of(&lap.lanes),
            disk_written: self.state.totals.disk_written,
            wear: self.wear,
            tokens_total: self.state.tokens,
            skipped_total: self.state.totals.odd.skipped,
            spikes_total: self.state.totals.odd.spikes,
            skipped: outcome.skipped,
            spike: outcome.spike,
            checkpoint_wait_seconds: match self.has_line(f.step) {
                true => self.checkpoint_wait(),
                false => None,
            },
        };
        self.log(&line);
        Ok(())
    }

    /// What the plan's kinds of lanes did.
    fn lanes_of(&self, measured: &Measured) -> Vec<(LaneKind, f64)> {
        let kinds = self.session.plan().lane_kinds().iter();
        kinds.map(|&kind| (kind, busy_of(kind, measured))).collect()
    }

    /// Brings the run's totals to what this process has done so far.
    fn count(&mut self, tally: &Tally) {
        let (earlier, totals) = (&self.earlier, &mut self.state.totals);
        totals.seconds = earlier.seconds + tally.seconds;
        totals.timed_tokens = earlier.timed_tokens + tally.tokens;
        // With those of evaluations and answers.
        let of_rank = self.session.measured().lane(Lane::DISK_WRITE).bytes;
        let written = of_rank * u64::from(self.session.plan().ranks);
        totals.disk_written = earlier.disk_written + written;
    }

    /// Whether a step is recorded.
    fn has_line(&self, step: u64) -> bool {
        step.is_multiple_of(self.run.log.every_steps) || step == self.total
    }

    fn log(&mut self, line: &StepLine) {
        if self.has_line(line.step) {
            // Where it cannot, the next save tells why.
            let _ = self.follow();
            let told = self.metrics.write(line);
            self.tell(told);
            let events = self.events.as_mut();
            let told = events.and_then(|e| e.scalars(line.step, &line.curves()));
            self.tell(told);
        }
        self.observer.step(line);
    }
}

/// A step's settings of the optimizer.
pub(crate) fn hyper(run: &Run, lr: f64, step: u64) -> Hyper {
    let settings = run.optimizer.settings.iter();
    settings.fold(Hyper::new(lr as f32, step), |h, &(key, value)| {
        h.with(key, value as f32)
    })
}
