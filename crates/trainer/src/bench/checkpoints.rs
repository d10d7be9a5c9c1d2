//! Steps of a shape with random weights, timed without checkpoints and, in the same process, with a checkpoint each so
//! many: what those cost.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use lowtide_config::Run;
use lowtide_data::Micro;
use lowtide_report::bench::CheckpointsReport;
use lowtide_session::{Session, Snapshot, StepData};

use crate::checkpoint::background::{Staging, StagingPlan, Stops, Writer};
use crate::checkpoint::{self, STATE, write_state};
use crate::error::TrainError;
use crate::fit::hyper;
use crate::output::folder::Folder;
use crate::report::{Observer, median};

/// What is written, where and how.
pub(super) struct Saves<'a> {
    pub every: u64,
    pub folder: &'a Path,
    pub plan: Result<StagingPlan, Stops>,
    pub staging: Option<Staging>,
}

/// One phase of steps under way.
struct Timing<'a> {
    run: &'a Run,
    inputs: &'a [Micro],
    observer: &'a mut dyn Observer,
    step: u64,
    flying: Option<Arc<StepData>>,
    last: Instant,
    writing: Option<Writer>,
    waited: f64,
    writes: Vec<f64>,
}

impl Timing<'_> {
    /// Hands out the next step; the one before is complete when it returns.
    fn submit(&mut self, session: &mut Session) -> Result<(), TrainError> {
        self.step += 1;
        let hyper = hyper(self.run, 1e-5, self.step);
        let data = session.submit(self.inputs.to_vec(), hyper)?;
        if let Some(before) = self.flying.replace(data) {
            self.outcome(session, &before)?;
        }
        Ok(())
    }

    fn outcome(&mut self, session: &mut Session, data: &StepData) -> Result<(), TrainError> {
        let loss = session.outcome(data)?.loss();
        let seconds = self.last.elapsed().as_secs_f64();
        let writing = match &self.writing {
            Some(writer) if writer.is_over() => ", a checkpoint is written",
            Some(_) => ", a checkpoint is being written",
            None => "",
        };
        self.observer
            .note(&format!("step: {seconds:.4} s, loss {loss:.4}{writing}"));
        self.last = Instant::now();
        Ok(())
    }

    /// Completes the step that is under way.
    fn complete(&mut self, session: &mut Session) -> Result<(), TrainError> {
        match self.flying.take() {
            Some(data) => self.outcome(session, &data),
            None => Ok(()),
        }
    }

    /// Begins to write what is held, if anything is.
    fn write(&mut self, held: Option<Snapshot>, saves: &mut Saves<'_>) -> Result<(), TrainError> {
        if let (Some(snapshot), Some(staging)) =
            (held, saves.staging.take_if(|_| self.writing.is_none()))
        {
            let folder = Folder::open(saves.folder)?;
            self.writing = Some(Writer::start(snapshot, staging, folder)?);
        }
        Ok(())
    }

    /// Waits for the checkpoint that is being written.
    fn join(&mut self, saves: &mut Saves<'_>) -> Result<f64, TrainError> {
        let Some(writer) = self.writing.take() else {
            return Ok(0.0);
        };
        let (begin, since) = (Instant::now(), writer.since());
        let (waited, end) = writer.join();
        self.waited += waited.as_secs_f64();
        let (staging, _, written) = end.expect("a writer that does not panic");
        saves.staging = Some(staging);
        written?;
        self.writes.push(since.elapsed().as_secs_f64());
        Ok(begin.elapsed().as_secs_f64())
    }
}

/// Times `steps` steps without checkpoints and `steps` with them.
pub(super) fn timed(
    run: &Run,
    session: &mut Session,
    inputs: &[Micro],
    steps: u64,
    mut saves: Saves<'_>,
    observer: &mut dyn Observer,
) -> Result<CheckpointsReport, TrainError> {
    let decoder = Arc::clone(session.decoder());
    let w = decoder.workload();
    let file = saves.folder.join(STATE);
    let in_rounds = !session.plan().rounds().one();
    let mut t = Timing {
        run,
        inputs,
        observer,
        step: 0,
        flying: None,
        last: Instant::now(),
        writing: None,
        waited: 0.0,
        writes: Vec::new(),
    };
    for _ in 0..super::StepOptions::WARM_UP {
        t.submit(session)?;
    }
    let begin = Instant::now();
    for _ in 0..steps {
        t.submit(session)?;
    }
    let without = begin.elapsed().as_secs_f64() / steps as f64;
    // From the outcome of one step to that of another, as above.
    t.complete(session)?;
    t.observer.note("now with checkpoints");
    let begin = Instant::now();
    for step in 0..steps {
        let mut held: Option<Snapshot> = None;
        if step.is_multiple_of(saves.every) {
            t.complete(session)?;
            t.waited += t.join(&mut saves)?;
            if saves.staging.is_some() {
                session.settle()?;
                held = Some(session.snapshot()?);
            } else {
                let stop = Instant::now();
                session.drain()?;
                write_state(&file, &file, w, &session.homes()?)?;
                let seconds = stop.elapsed().as_secs_f64();
                t.waited += seconds;
                t.writes.push(seconds);
            }
        }
        // As in a run: with rounds at once, else while the step runs.
        if in_rounds {
            t.write(held.take(), &mut saves)?;
        }
        t.submit(session)?;
        t.write(held, &mut saves)?;
    }
    t.complete(session)?;
    let with = begin.elapsed().as_secs_f64() / steps as f64;
    session.drain()?;
    let left_over = t.join(&mut saves)?;
    t.writes.sort_by(f64::total_cmp);
    Ok(CheckpointsReport {
        every: saves.every,
        bytes: checkpoint::bytes(w),
        staging_bytes: saves.plan.ok().map(|plan| plan.bytes().0),
        step_seconds: without,
        with_step_seconds: with,
        slowdown: with / without - 1.0,
        wait_seconds: t.waited,
        checkpoints: t.writes.len() as u64,
        write_seconds: median(&t.writes).unwrap_or_default(),
        left_over_seconds: left_over,
    })
}

/// A folder of its own for the checkpoints of a bench, which goes with it.
pub(super) struct Place(tempfile::TempDir);

impl Place {
    /// In a directory that is there.
    pub fn in_dir(dir: &Path) -> Result<Self, TrainError> {
        let made = tempfile::Builder::new()
            .prefix("lowtide-bench-")
            .tempdir_in(dir);
        made.map(Self).map_err(TrainError::io(dir))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }
}
