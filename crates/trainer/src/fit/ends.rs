//! The end of a run: what it does after its last step, and the mark that all of it is done.

use std::fs;
use std::path::{Path, PathBuf};

use lowtide_config::{KeepBest, Run};
use lowtide_report::PAGE;
use lowtide_report::outcome::TrainReport;
use serde::{Deserialize, Serialize};

use super::best::{Evaluations, Measure};
use super::start::Start;
use super::summary::Ends;
use super::{Fit, Saves};
use crate::checkpoint;
use crate::error::TrainError;
use crate::metrics::value_at;
use crate::output::folder::Folder;
use crate::output::mark::Mark;
use crate::output::{FINISHED, METRICS, MODEL, TRACE};
use crate::report::{Phase, When};

/// Version of [`Finished`].
const FORMAT: u32 = 1;

/// `finished.json`: everything that was to be done after the last step is done.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Finished {
    format: u32,
    /// CRC-32C of the `run.json` of the checkpoint that it is about.
    checkpoint: u32,
    /// The evaluation that was made, as [`Evaluations::data`] and [`Evaluations::answers`].
    #[serde(default)]
    evaluated: Option<String>,
    #[serde(default)]
    answered: Option<String>,
    /// By what the model was chosen, as [`Best::of`](super::Best::of); none: it is that of the last step.
    #[serde(default)]
    best: Option<String>,
    report: TrainReport,
}

fn mark_of(output: &Path) -> PathBuf {
    output.join(FINISHED)
}

/// The checksum of what a checkpoint says of its run.
fn checksum(checkpoint: &Path) -> Option<u32> {
    let bytes = fs::read(checkpoint::run_path(checkpoint)).ok()?;
    Some(crc32c::crc32c(&bytes))
}

/// Whether all that was written of a model is still there.
fn is_whole(model: &Path) -> bool {
    let Ok(folder) = Folder::open(model) else {
        return false;
    };
    let mark = Mark::of(&folder);
    mark.is_ok_and(|mark| mark.is_some_and(|mark| mark.is_whole(&folder)))
}

/// The last step of the run that says it is finished at `output`, if one does.
pub(super) fn finished_at(output: &Path) -> Option<u64> {
    Some(read_mark(output)?.report.steps)
}

/// By what the model of a run is chosen.
fn chosen_by(run: &Run, evaluations: &Evaluations) -> Option<String> {
    let chosen = run.checkpoint.keep_best != KeepBest::None;
    chosen.then(|| evaluations.compared(run)).flatten()
}

fn read_mark(output: &Path) -> Option<Finished> {
    let text = fs::read_to_string(mark_of(output)).ok()?;
    let mark: Finished = serde_json::from_str(&text).ok()?;
    (mark.format == FORMAT).then_some(mark)
}

/// The report of a run that has nothing left to do: its newest checkpoint is that of its last step,
/// and the model and all that the run asks for were made of it. Touches nothing.
pub(super) fn finished(
    run: &Run,
    start: &Start,
    total: u64,
    asks: &Evaluations,
) -> Option<TrainReport> {
    let Start::Checkpoint(dir, state) = start else {
        return None;
    };
    let own = dir.starts_with(checkpoint::directory(&run.output));
    if !own || state.step != total {
        return None;
    }
    let mark = read_mark(&run.output)?;
    let model = run.output.join(MODEL);
    let whole = checksum(dir) == Some(mark.checkpoint)
        && (asks.data.is_none() || mark.evaluated == asks.data)
        && (asks.answers.is_none() || mark.answered == asks.answers)
        && mark.best == chosen_by(run, asks)
        && is_whole(&model);
    // Where things are now: the directory may have been moved.
    whole.then(|| TrainReport {
        nothing_to_do: true,
        output: Some(model),
        checkpoint: Some(dir.clone()),
        metrics: run.output.join(METRICS),
        trace: mark.report.trace.clone().map(|_| run.output.join(TRACE)),
        page: mark.report.page.clone().map(|_| run.output.join(PAGE)),
        ..mark.report
    })
}

impl Fit<'_> {
    /// Saves, and after the last step evaluates, writes the model and answers prompts; a run that saves nothing only
    /// evaluates. What is recorded as done is not done again; what the run is asked to stop in is left out.
    pub(super) fn end(&mut self, after_step: u64) -> Result<Ends, TrainError> {
        let step = self.state.step;
        let mut ends = Ends {
            after_step,
            stopped: step < self.total,
            ..Ends::default()
        };
        let saved = self.save_last();
        if ends.stopped || matches!(saved, Err(TrainError::NonFinite { .. })) {
            return saved.map(|()| ends);
        }
        ends.eval_loss_last = self.recorded(after_step, None, "eval_loss")?;
        ends.eval_accuracy_last = self.recorded(after_step, None, "eval_accuracy")?;
        if ends.eval_loss_last.is_none() {
            let last = self.evaluate(step)?;
            ends.eval_loss_last = last.map(|e| e.loss);
            ends.eval_accuracy_last = last.map(|e| e.accuracy);
        }
        if self.saves == Saves::Nothing {
            ends.stopped = self.eval.is_some() && ends.eval_loss_last.is_none();
            return Ok(ends);
        }
        self.judge_evaluation(ends.eval_loss_last, ends.eval_accuracy_last)?;
        if self.run.checkpoint.keep_best == KeepBest::ExactMatch {
            let share = match self.recorded(after_step, Some(When::During), "exact_match")? {
                Some(share) => Some(share),
                None => self.exact_match(When::During)?,
            };
            self.judge(Measure::ExactMatch, share)?;
        }
        // What is answered below are the questions to what is exported. A last state that could not be saved is lost
        // either way.
        let exports = self.go_back_to_best()?.unwrap_or(step);
        self.observer.phase(Some(Phase::Exporting));
        // A model that is trained is written even where the state could not be saved.
        let exported = self.export(ends.eval_loss_last);
        self.observer.phase(None);
        if let (Err(_), Ok(Some(path))) = (&saved, &exported) {
            self.observer.note(&format!(
                "the model of step {exports} was written all the same: {}",
                path.display()
            ));
        }
        saved?;
        ends.output = exported?;
        ends.exact_match_after =
            match self.recorded(after_step, Some(When::After), "exact_match")? {
                Some(share) => Some(share),
                None => self.exact_match(When::After)?,
            };
        let whole = (self.eval.is_none() || ends.eval_loss_last.is_some())
            && ends.output.is_some()
            && (self.questions.is_empty() || ends.exact_match_after.is_some());
        ends.stopped = !whole;
        Ok(ends)
    }

    /// What an earlier process has recorded of the last step.
    fn recorded(
        &self,
        after_step: u64,
        when: Option<When>,
        key: &str,
    ) -> Result<Option<f64>, TrainError> {
        // But for an evaluation with which training ended.
        if after_step < self.state.step && self.state.best.judged < self.state.step {
            return Ok(None);
        }
        self.value_at(when, key)
    }

    /// What is recorded of the present step, of the evaluations that this run makes.
    pub(super) fn value_at(
        &self,
        when: Option<When>,
        key: &str,
    ) -> Result<Option<f64>, TrainError> {
        let of = match when {
            None => &self.evaluations.data,
            Some(_) => &self.evaluations.answers,
        };
        let Some(of) = of else {
            return Ok(None);
        };
        let (folder, step) = (self.output.folder(), self.state.step);
        value_at(folder, METRICS, step, (when.map(When::name), of), key)
    }

    /// What says that everything is done, if it is.
    pub(super) fn finished_mark(&self, report: &TrainReport) -> Option<Finished> {
        let newest = self.last_checkpoint.as_deref().and_then(checksum);
        let checkpoint = newest.filter(|_| !report.stopped)?;
        Some(Finished {
            format: FORMAT,
            checkpoint,
            evaluated: self.evaluations.data.clone(),
            answered: self.evaluations.answers.clone(),
            best: chosen_by(self.run, &self.evaluations),
            report: report.clone(),
        })
    }
}
