//! Which evaluation was the best so far, whose checkpoint is kept, and when a run ends because none was better for
//! too long.

use lowtide_config::{KeepBest, Run};
use serde::{Deserialize, Serialize};

use super::Fit;
use crate::answers::Question;
use crate::checkpoint;
use crate::error::TrainError;
use crate::metrics::{first_of, value_at};
use crate::output::METRICS;
use crate::report::When;
use lowtide_data::Packed;
use lowtide_report::outcome::BestKept;

/// The best evaluation on the way, as checkpoints have it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Best {
    /// Its step; 0: there was none yet.
    pub step: u64,
    /// Its loss, or its share of exact answers, as the bits of an f64.
    pub value: u64,
    /// The step of the last evaluation that was compared with it.
    pub judged: u64,
    /// Evaluations since that were not better.
    pub waited: u64,
    /// The value from which the waiting counts, where `eval.min_delta` makes it another one than the best.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<u64>,
    /// The `eval.min_delta` by which `waited` was counted, as the bits of an f64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_delta: Option<u64>,
    /// What of which evaluation it is; values of two are not compared. Empty: not said.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub of: String,
}

/// What evaluations a run makes: a hash of their data and of the settings that decide their values, of each kind that
/// it makes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Evaluations {
    /// Of those that give a loss and an accuracy.
    pub data: Option<String>,
    /// Of those that give a share of answers that equal their reference.
    pub answers: Option<String>,
}

impl Evaluations {
    pub(super) fn of(run: &Run, eval: Option<&Packed>, questions: &[Question]) -> Self {
        let data = eval.map(|packed| {
            let rows = (run.eval.batches)
                .map(|batches| (batches, run.train.micro_batch, run.train.accumulate));
            hash(&format!("{} {rows:?}", packed.fingerprint()))
        });
        let generate = &run.eval.generate;
        let answers = (!questions.is_empty()).then(|| {
            let settings = (generate.max_new_tokens, &generate.extract);
            hash(&format!("{questions:?} {settings:?}"))
        });
        Self { data, answers }
    }

    /// Whether a run has ended for want of a better one of these.
    pub(super) fn ended(&self, run: &Run, best: &Best) -> bool {
        best.ends(run) && self.compared(run).as_ref() == Some(&best.of)
    }

    /// What of them is compared, for [`Best::of`]; `None`: nothing.
    pub(super) fn compared(&self, run: &Run) -> Option<String> {
        let by = run.checkpoint.keep_best;
        let of = match by {
            KeepBest::None if run.eval.patience == 0 => return None,
            KeepBest::ExactMatch => &self.answers,
            KeepBest::None | KeepBest::Loss | KeepBest::Accuracy => &self.data,
        };
        Some(format!("{} {}", word(by), of.as_deref().unwrap_or("none")))
    }
}

fn hash(text: &str) -> String {
    format!("{:08x}", crc32c::crc32c(text.as_bytes()))
}

/// The measure by which the best is found; without a checkpoint that is kept it is the loss.
fn word(by: KeepBest) -> &'static str {
    match by {
        KeepBest::None | KeepBest::Loss => "loss",
        KeepBest::ExactMatch => "exact_match",
        KeepBest::Accuracy => "accuracy",
    }
}

impl Best {
    /// Takes the evaluation after a step; whether it is better than all before. One that was taken already is not.
    fn take(&mut self, by: KeepBest, min_delta: f64, (step, value): (u64, f64)) -> bool {
        if step == 0 || step <= self.judged {
            return false;
        }
        self.judged = step;
        if self.min_delta.is_some_and(|by| by != min_delta.to_bits()) {
            // What was enough by another one says nothing: the waiting begins anew, from the best.
            (self.waited, self.from) = (0, None);
        }
        self.min_delta = Some(min_delta.to_bits());
        let first = self.step == 0;
        let better_by = |delta: f64, than: u64| {
            let than = f64::from_bits(than);
            first
                || match by {
                    KeepBest::ExactMatch | KeepBest::Accuracy => value > than + delta,
                    KeepBest::Loss | KeepBest::None => value < than - delta,
                }
        };
        let better = better_by(0.0, self.value);
        let enough = better_by(min_delta, self.from.unwrap_or(self.value));
        // Small steps add up: they are compared with the last value that was enough, not with each other.
        self.from = match enough {
            true => None,
            false => self.from.or_else(|| better.then_some(self.value)),
        };
        self.waited = if enough { 0 } else { self.waited + 1 };
        if better {
            (self.step, self.value) = (step, value.to_bits());
        }
        better
    }

    /// Why a run has ended before its length, for one that is started again.
    pub(super) fn why_ended(&self, run: &Run, step: u64, of: u64) -> String {
        let or = match self.delta(run) {
            0.0 => "",
            _ => ", or another eval.min_delta,",
        };
        format!(
            "training ended after step {step} of {of}: {}; a larger eval.patience{or} goes on",
            self.why(run)
        )
    }

    /// The `eval.min_delta` that was counted with; that of the run where an earlier version did not say it.
    fn delta(&self, run: &Run) -> f64 {
        self.min_delta.map_or(run.eval.min_delta, f64::from_bits)
    }

    /// What patience ends for.
    fn why(&self, run: &Run) -> String {
        let (n, step) = (self.waited, self.step);
        match self.delta(run) {
            0.0 => format!(
                "{n} evaluations in a row were not better than that after step {step} (eval.patience)"
            ),
            delta => format!(
                "{n} evaluations in a row were not better by more than {delta} (eval.patience, eval.min_delta); the \
                 best is that after step {step}"
            ),
        }
    }

    /// Its value, with what it is.
    pub(super) fn value_text(&self, run: &Run) -> String {
        text_of(run.checkpoint.keep_best, f64::from_bits(self.value))
    }

    /// The same if it is of this step.
    pub(super) fn text_if_of(&self, step: u64, run: &Run) -> Option<String> {
        (self.step > 0 && self.step == step).then(|| self.value_text(run))
    }

    /// Whether it is the best by the measure that a run asks for.
    pub(super) fn is_by(&self, by: KeepBest) -> bool {
        self.of.split(' ').next() == Some(word(by))
    }

    /// Whether a run has waited long enough for a better one, by what is better for this run.
    pub(super) fn ends(&self, run: &Run) -> bool {
        let same = self.delta(run).to_bits() == run.eval.min_delta.to_bits();
        run.eval.patience > 0 && self.waited >= run.eval.patience && same
    }
}

/// What of an evaluation is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Measure {
    /// Its loss, or its accuracy where that is asked for.
    Evaluation,
    ExactMatch,
}

impl Fit<'_> {
    /// Compares an evaluation after the present step with the best one. Ends the run with this step if none was
    /// better for long enough. Returns whether this step's state is to be kept.
    ///
    /// It is the best only once its checkpoint is in place: [`Fit::best_is_in_place`], [`Fit::best_is_unsaved`].
    pub(super) fn judge(
        &mut self,
        measure: Measure,
        value: Option<f64>,
    ) -> Result<bool, TrainError> {
        let by = self.run.checkpoint.keep_best;
        let asked = by != KeepBest::None || self.run.eval.patience > 0;
        let measured = match by {
            KeepBest::ExactMatch => Measure::ExactMatch,
            KeepBest::Loss | KeepBest::Accuracy | KeepBest::None => Measure::Evaluation,
        };
        let (true, Some(value)) = (asked && measure == measured, value) else {
            return Ok(false);
        };
        // Whether the one before is the best is known once it is written.
        if self.best_before.is_some() {
            self.end_writing(true)?;
        }
        let step = self.state.step;
        let before = self.state.best.clone();
        let min_delta = self.run.eval.min_delta;
        let better = self.state.best.take(by, min_delta, (step, value));
        if better && by != KeepBest::None && self.saved != Some(step) {
            self.best_before = Some(before);
        }
        if self.state.best.ends(self.run) && step < self.total {
            let why = self.state.best.why(self.run);
            self.observer
                .note(&format!("training ends after step {step}: {why}"));
            self.total = step;
        }
        Ok(better && by != KeepBest::None)
    }

    /// The checkpoint of a step has its name.
    pub(super) fn best_is_in_place(&mut self, step: u64) {
        if self.state.best.step == step {
            self.best_before = None;
        }
    }

    /// The checkpoint of a step was not saved: if its evaluation was the best, the one before, whose checkpoint is
    /// there, is so again. Waiting for a better one began anew all the same.
    pub(super) fn best_is_unsaved(&mut self, step: u64) {
        let best = &mut self.state.best;
        if best.step == step
            && let Some(before) = self.best_before.take()
        {
            (best.step, best.value) = (before.step, before.value);
        }
    }

    /// Begins the record of the best evaluation anew where it is of another measure or of other evaluations than this
    /// run compares: their values say nothing of each other.
    pub(super) fn same_best(&mut self) {
        let Some(of) = self.evaluations.compared(self.run) else {
            return;
        };
        let best = &mut self.state.best;
        if best.of == of {
            return;
        }
        let was = std::mem::take(best);
        best.of = of;
        if was.step > 0 {
            let note = format!(
                "the best evaluation so far, after step {}, is of another measure or of other evaluation data: the \
                 best is looked for anew from step {} on (checkpoint.keep_best, eval.patience)",
                was.step, self.state.step
            );
            self.observer.note(&note);
        }
    }

    /// Lets the first evaluation and the answers before training be those of what this run evaluates: figures of other
    /// data say nothing of each other. A state of which is not known what it is of stays.
    pub(super) fn same_evaluations(&mut self) -> Result<(), TrainError> {
        let folder = self.output.folder();
        let totals = &mut self.state.totals;
        let mut changed = false;
        if let Some(data) = &self.evaluations.data {
            let other = totals.eval_data_first.as_ref().is_some_and(|d| d != data);
            if other || totals.eval_loss_first.is_none() {
                // Recorded where the run had these data before, or died before its state knew of it.
                let first = first_of(folder, METRICS, data)?;
                totals.eval_loss_first = first.map(|f| f.loss.to_bits());
                totals.eval_accuracy_first = first.and_then(|f| f.accuracy).map(f64::to_bits);
                totals.eval_step_first = first.map_or(0, |f| f.step);
                totals.eval_data_first = first.map(|_| data.clone());
            }
            changed |= other;
        }
        if let Some(answers) = &self.evaluations.answers {
            let other = totals.answers_first.as_ref().is_some_and(|a| a != answers);
            if other {
                let of = (Some(When::Before.name()), answers.as_str());
                let before = value_at(folder, METRICS, 0, of, "exact_match")?;
                self.state.exact_match_before = before;
                totals.answers_first = before.map(|_| answers.clone());
            }
            changed |= other;
        }
        if changed {
            self.observer.note(
                "the evaluation data, or settings of the evaluation, have changed: the summary leaves out what is of \
                 the others",
            );
        }
        Ok(())
    }

    /// The same of an evaluation's loss or accuracy.
    pub(super) fn judge_evaluation(
        &mut self,
        loss: Option<f64>,
        accuracy: Option<f64>,
    ) -> Result<bool, TrainError> {
        let value = match self.run.checkpoint.keep_best {
            KeepBest::Accuracy => accuracy,
            _ => loss,
        };
        self.judge(Measure::Evaluation, value)
    }

    /// The step whose checkpoint is kept whatever else is saved.
    pub(super) fn kept_best(&self) -> Option<u64> {
        let by = self.run.checkpoint.keep_best;
        (by != KeepBest::None && self.state.best.step > 0).then_some(self.state.best.step)
    }

    /// What the summary of a run says of it.
    pub(super) fn best_kept(&self) -> Option<BestKept> {
        let step = self.kept_best()?;
        Some(BestKept {
            step,
            by: word(self.run.checkpoint.keep_best).to_owned(),
            value: f64::from_bits(self.state.best.value),
            lost: self.best_lost
                || !checkpoint::path_of(self.output.folder().path(), step).is_dir(),
        })
    }

    /// Loads the state of the best checkpoint over the last one's, which is saved, unless that is the best. Returns
    /// the step of the best one if it is another.
    pub(super) fn go_back_to_best(&mut self) -> Result<Option<u64>, TrainError> {
        let Some(step) = self.kept_best().filter(|&step| step < self.state.step) else {
            return Ok(None);
        };
        let dir = checkpoint::path_of(self.output.folder().path(), step);
        if !dir.is_dir() {
            self.observer.note(&format!(
                "warning: {}: the checkpoint of the best evaluation is not there; the model is that of the last step",
                dir.display()
            ));
            return Ok(None);
        }
        // All of it first: what is half loaded is no model.
        let state = match checkpoint::verify(&dir) {
            Ok(state) => state,
            Err(e) => {
                self.best_lost = true;
                self.observer.note(&format!(
                    "warning: the checkpoint of the best evaluation is damaged, so the model is that of the last step; \
                     `lowtide export` makes one of another checkpoint: {e}"
                ));
                return Ok(None);
            }
        };
        let decoder = std::sync::Arc::clone(self.session.decoder());
        self.gone_back = true;
        checkpoint::load(&dir, decoder.workload(), &self.session.homes()?, &state)?;
        self.observer.note(&format!(
            "the model is that of step {step}, whose evaluation was the best: {}",
            self.state.best.value_text(self.run)
        ));
        Ok(Some(step))
    }
}

/// The best evaluation's value, with what it is.
fn text_of(by: KeepBest, value: f64) -> String {
    match by {
        KeepBest::Loss | KeepBest::None => format!("loss {value:.4}"),
        KeepBest::Accuracy => format!("accuracy {:.1}%", 100.0 * value),
        KeepBest::ExactMatch => format!("exact match {:.1}%", 100.0 * value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_has_few_digits() {
        assert_eq!(
            text_of(KeepBest::Loss, 0.608_791_200_950_696_5),
            "loss 0.6088"
        );
        assert_eq!(text_of(KeepBest::ExactMatch, 0.5), "exact match 50.0%");
    }

    #[test]
    fn the_best_is_found_and_how_long_ago_it_was() {
        let mut best = Best::default();
        let mut take = |by, step, value| {
            let better = best.take(by, 0.0, (step, value));
            (better, best.step, best.waited)
        };
        assert_eq!(
            take(KeepBest::Loss, 0, 1.0),
            (false, 0, 0),
            "before training"
        );
        assert_eq!(take(KeepBest::Loss, 2, 3.0), (true, 2, 0));
        assert_eq!(
            take(KeepBest::Loss, 4, 3.0),
            (false, 2, 1),
            "as good is no better"
        );
        assert_eq!(take(KeepBest::Loss, 4, 1.0), (false, 2, 1), "taken already");
        assert_eq!(take(KeepBest::Loss, 6, 4.0), (false, 2, 2));
        assert_eq!(take(KeepBest::None, 8, 2.0), (true, 8, 0));
        let mut best = Best::default();
        assert!(
            best.take(KeepBest::ExactMatch, 0.0, (1, 0.0))
                && best.take(KeepBest::ExactMatch, 0.0, (2, 0.5))
        );
        assert!(!best.take(KeepBest::ExactMatch, 0.0, (3, 0.25)));
        assert_eq!((best.step, best.waited), (2, 1));
    }

    /// The best is the lowest loss whatever `min_delta` is; patience counts from the last value that was enough.
    #[test]
    fn small_steps_do_not_end_the_waiting_until_they_add_up() {
        let mut best = Best::default();
        let mut take = |step, value| {
            let better = best.take(KeepBest::Loss, 0.5, (step, value));
            (better, best.step, best.waited)
        };
        assert_eq!(take(1, 4.0), (true, 1, 0), "the first");
        assert_eq!(take(2, 3.75), (true, 2, 1));
        assert_eq!(take(3, 3.5), (true, 3, 2), "not more than min_delta");
        assert_eq!(take(4, 3.75), (false, 3, 3));
        assert_eq!(take(5, 3.25), (true, 5, 0), "enough below 4");
        assert_eq!(take(6, 3.0), (true, 6, 1));
        assert_eq!(take(7, 2.5), (true, 7, 0), "enough below 3.25");
        // By another one the waiting begins anew, from the best.
        let mut best = Best::default();
        for (step, value, delta, waited) in [
            (1, 4.0, 0.5, 0),
            (2, 3.75, 0.5, 1),
            (3, 3.625, 0.5, 2),
            (4, 3.625, 0.25, 1),
            (5, 3.25, 0.25, 0),
        ] {
            best.take(KeepBest::Loss, delta, (step, value));
            assert_eq!(best.waited, waited, "step {step}");
        }
        let mut best = Best::default();
        for (step, share, waited) in [(1, 0.5, 0), (2, 0.5625, 1), (3, 0.625, 2), (4, 0.75, 0)] {
            best.take(KeepBest::Accuracy, 0.125, (step, share));
            assert_eq!(best.waited, waited, "step {step}");
        }
    }
}
