//! Loss and greedy answers on data that is not trained on.

use std::sync::Arc;

use lowtide_config::Run;
use lowtide_executor::ExecError;
use serde_json::json;

use serde::Serialize;

use super::Fit;
use crate::answers::{self, Answer, answer_all};
use crate::beside::copy_weights;
use crate::error::TrainError;
use crate::f1::Classified;
use crate::generate::{Decoder, Places};
use crate::pairs::start_of;
use crate::report::{Phase, When};
use lowtide_data::{BatchShape, DataError, EvalBatches, Micro, Packed};
use lowtide_session::Requests;
use lowtide_session::{Outcome, Session};

impl Fit<'_> {
    /// Loss and accuracy, recorded; `None`: there is nothing to evaluate on, or the run was asked to
    /// end before it was known.
    pub(super) fn evaluate(&mut self, step: u64) -> Result<Option<Evaluation>, TrainError> {
        let Some(packed) = self.eval.clone() else {
            return Ok(None);
        };
        self.observer.phase(Some(Phase::Evaluating));
        let mut mean = Mean::default();
        let classifies = packed.data().classifies();
        for micro in evaluation(&packed, self.run)? {
            let micro = micro?;
            if classifies {
                for micro in micro {
                    let work = |f: &mut Self, r: &Requests| f.session.infer_until(micro.clone(), r);
                    match self.forward(work)? {
                        Some(outcome) => mean.classified.add(&micro, &outcome.logits),
                        None => {
                            self.observer.phase(None);
                            return Ok(None);
                        }
                    }
                }
                continue;
            }
            let work = |f: &mut Self, r: &Requests| f.session.evaluate_until(micro.clone(), r);
            match self.forward(work)? {
                Some(outcome) => mean.add(&outcome),
                None => {
                    self.observer.phase(None);
                    return Ok(None);
                }
            }
        }
        let evaluation = mean.value(classifies);
        let Evaluation { loss, accuracy, f1 } = evaluation;
        self.observer.phase(None);
        if !loss.is_finite() {
            return Err(self.diverged(step, format!("the evaluation loss is {loss}")));
        }
        self.observer.evaluated(step, evaluation);
        let totals = &mut self.state.totals;
        if totals.eval_loss_first.is_none() {
            totals.eval_loss_first = Some(loss.to_bits());
            totals.eval_accuracy_first = Some(accuracy.to_bits());
            totals.eval_step_first = step;
            totals.eval_data_first = self.evaluations.data.clone();
        }
        let mut line = json!({
            "step": step,
            "eval_loss": loss,
            "eval_accuracy": accuracy,
            "eval_data": self.evaluations.data,
        });
        if let Some(f1) = f1 {
            line["eval_f1"] = json!(f1);
        }
        // Where it cannot, the next save tells why.
        let _ = self.follow();
        let told = self.metrics.write(&line);
        self.tell(told);
        let events = self.events.as_mut();
        let mut scalars = vec![
            ("eval/loss", loss as f32),
            ("eval/accuracy", accuracy as f32),
        ];
        scalars.extend(f1.map(|f1| ("eval/f1", f1 as f32)));
        let told = events.and_then(|e| e.scalars(step, &scalars));
        self.tell(told);
        Ok(Some(evaluation))
    }

    /// Share of prompts answered as their reference, recorded with the answers; `None`: there are
    /// none, or the run was asked to end before all were answered. `when`: before, during or after
    /// training.
    pub(super) fn exact_match(&mut self, when: When) -> Result<Option<f64>, TrainError> {
        if self.questions.is_empty() {
            return Ok(None);
        }
        let (questions, extract) = (Arc::clone(&self.questions), self.extract.clone());
        let (tokenizer, stops) = (Arc::clone(&self.tokenizer), self.stops.clone());
        if let Some(answering) = &mut self.answering {
            copy_weights(&mut self.session, answering)?;
        }
        let start = start_of(self.run, self.session.decoder().shape())?;
        let places = Places::of(self.answers_by().decoder(), start);
        let most = self.run.eval.generate.max_new_tokens as usize;
        let made = answer_all(self, places, &tokenizer, &stops, &questions, &extract, most)?;
        let Some(made) = made else {
            return Ok(None);
        };
        let share = answers::right(&made) as f64 / made.len() as f64;
        self.observer.answered(when, share, made.len());
        self.record_answers(when, &made, share)?;
        Ok(Some(share))
    }

    /// The answers first: a share in the metrics says that all of its answers are recorded.
    fn record_answers(
        &mut self,
        when: When,
        made: &[Answer],
        share: f64,
    ) -> Result<(), TrainError> {
        let step = self.state.step;
        let _ = self.follow();
        if let Some(log) = &mut self.answers {
            log.forget(step, when.name())?;
            let write = |answer| log.write(&Recorded { step, when, answer });
            let told: Vec<String> = made.iter().filter_map(write).collect();
            self.tell(told);
        }
        let told = self.metrics.write(&json!({
            "step": step,
            "when": when,
            "exact_match": share,
            "right": answers::right(made),
            "prompts": made.len(),
            "eval_data": self.evaluations.answers,
        }));
        self.tell(told);
        if let Some(events) = &mut self.events {
            let told = [
                events.scalars(step, &[("eval/exact_match", share as f32)]),
                events.text(step, "eval/answers", &markdown(made)),
            ];
            self.tell(told.into_iter().flatten());
        }
        Ok(())
    }

    /// The session that makes answers.
    fn answers_by(&mut self) -> &mut Session {
        self.answering.as_mut().unwrap_or(&mut self.session)
    }

    /// Work that leaves nothing behind, done again where a request to save broke it off; `None`: the
    /// run was asked to end.
    fn forward<T>(
        &mut self,
        mut work: impl FnMut(&mut Self, &Requests) -> Result<Option<T>, ExecError>,
    ) -> Result<Option<T>, TrainError> {
        let requests = self.requests.clone();
        loop {
            if self.requests.stopping() {
                return Ok(None);
            }
            if self.requests.take_save() {
                if self.state.step == 0 {
                    self.observer
                        .note("asked to save: before the first step there is nothing to save");
                }
                self.save()?;
            }
            if let Some(done) = work(self, &requests)? {
                return Ok(Some(done));
            }
        }
    }
}

impl Decoder for Fit<'_> {
    type Error = TrainError;

    fn infer(&mut self, inputs: Micro) -> Result<Option<Outcome>, TrainError> {
        self.forward(|f, r| f.answers_by().infer_until(inputs.clone(), r))
    }

    fn no_numbers(&mut self, what: String) -> TrainError {
        self.diverged(self.state.step, what)
    }

    fn progress(&mut self, done: usize) {
        self.observer.answering(done, self.questions.len());
    }
}

/// A line of `answers.jsonl`.
#[derive(Serialize)]
struct Recorded<'a> {
    step: u64,
    when: When,
    #[serde(flatten)]
    answer: &'a Answer,
}

/// Answers that TensorBoard shows.
const SHOWN: usize = 5;

/// The first answers, each part as it is.
fn markdown(answers: &[Answer]) -> String {
    let quoted = |text: &str| {
        text.lines()
            .map(|l| format!("    {l}\n"))
            .collect::<String>()
    };
    let one = |(i, a): (usize, &Answer)| {
        let verdict = if a.right { "right" } else { "wrong" };
        format!(
            "**{} ({verdict})**\n\n{}\nreference\n\n{}\nanswer\n\n{}\n",
            i + 1,
            quoted(&a.prompt),
            quoted(&a.reference),
            quoted(&a.answer),
        )
    };
    answers.iter().take(SHOWN).enumerate().map(one).collect()
}

/// Batches of an evaluation.
fn evaluation(
    packed: &Arc<Packed>,
    run: &Run,
) -> Result<impl Iterator<Item = Result<Vec<Micro>, DataError>> + use<>, TrainError> {
    let shape = BatchShape {
        micro_batch: run.train.micro_batch as usize,
        accumulate: run.train.accumulate as usize,
    };
    let (most, mut micro) = (run.eval.batches, 0);
    let batches = EvalBatches::new(Arc::clone(packed), shape)?;
    Ok(batches
        .take_while(move |batch| {
            let more = most.is_none_or(|most| micro < most);
            micro += batch.as_ref().map_or(0, |batch| batch.micro.len() as u64);
            more
        })
        .map(|batch| Ok(batch?.micro)))
}

/// What is known of evaluation data.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation {
    /// Mean loss of a supervised token, or of a document with a class.
    pub loss: f64,
    /// Share of documents whose class the model says; of models without classes the share
    /// of supervised tokens that greedy decoding would take, after all tokens before as they are in the data.
    pub accuracy: f64,
    /// Of a model that classifies: of two classes the F1 of the second, of more the mean of all that occur.
    pub f1: Option<f64>,
}

/// Means over supervised tokens.
#[derive(Default)]
struct Mean {
    sum: f64,
    count: f64,
    right: f64,
    /// Documents, of a model that classifies.
    classified: Classified,
}

impl Mean {
    fn add(&mut self, outcome: &Outcome) {
        for (sum, count) in &outcome.losses {
            self.sum += sum;
            self.count += count;
        }
        self.right += outcome.right.iter().copied().map(f64::from).sum::<f64>();
    }

    fn value(&self, classifies: bool) -> Evaluation {
        if classifies {
            return Evaluation {
                loss: self.classified.loss(),
                accuracy: self.classified.accuracy(),
                f1: Some(self.classified.f1()),
            };
        }
        Evaluation {
            f1: None,
            loss: self.sum / self.count,
            accuracy: self.right / self.count,
        }
    }
}

/// Loss and accuracy on evaluation data. Drains first.
///
/// # Errors
/// What stopped the run.
pub fn evaluate(
    session: &mut Session,
    packed: &Arc<Packed>,
    run: &Run,
) -> Result<Evaluation, TrainError> {
    let mut mean = Mean::default();
    let classifies = packed.data().classifies();
    for micro in evaluation(packed, run)? {
        if !classifies {
            mean.add(&session.evaluate(micro?)?);
            continue;
        }
        for micro in micro? {
            let outcome = session.infer(micro.clone())?;
            mean.classified.add(&micro, &outcome.logits);
        }
    }
    Ok(mean.value(classifies))
}
