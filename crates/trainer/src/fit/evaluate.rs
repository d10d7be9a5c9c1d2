//! Loss and greedy answers on data that is not trained on.

use std::sync::Arc;

use lowtide_config::Run;
use lowtide_executor::ExecError;
use serde_json::json;

use super::Fit;
use crate::data::{BatchShape, EvalBatches, Micro, Packed};
use crate::error::TrainError;
use crate::generate::{Decoder, share_right};
use crate::report::Phase;
use crate::requests::Requests;
use crate::step::{Outcome, Session};

impl Fit<'_> {
    /// Evaluation loss, recorded; `None`: there is nothing to evaluate on, or the run was asked to
    /// end before it was known.
    pub(super) fn evaluate(&mut self, step: u64) -> Result<Option<f64>, TrainError> {
        let Some(packed) = self.eval.clone() else {
            return Ok(None);
        };
        self.observer.phase(Some(Phase::Evaluating));
        let mut mean = Mean::default();
        for micro in evaluation(&packed, self.run)? {
            let work = |s: &mut Session, r: &Requests| s.evaluate_until(micro.clone(), r);
            match self.forward(work)? {
                Some(outcome) => mean.add(&outcome),
                None => {
                    self.observer.phase(None);
                    return Ok(None);
                }
            }
        }
        let loss = mean.value();
        self.observer.phase(None);
        self.observer.evaluated(step, loss);
        self.metrics
            .write(&json!({ "step": step, "eval_loss": loss }))?;
        if let Some(events) = &mut self.events {
            events.scalars(step, &[("eval/loss", loss as f32)])?;
        }
        Ok(Some(loss))
    }

    /// Share of prompts answered as their reference; `None`: there are none, or the run was asked to
    /// end before all were answered.
    pub(super) fn exact_match(&mut self, when: &str) -> Result<Option<f64>, TrainError> {
        if self.prompts.is_empty() {
            return Ok(None);
        }
        let prompts = Arc::clone(&self.prompts);
        let (tokenizer, stops) = (Arc::clone(&self.tokenizer), self.stops.clone());
        let batch = self.session.decoder().workload().batch;
        let most = self.run.eval.generate.max_new_tokens as usize;
        let share = share_right(self, batch, &tokenizer, &stops, &prompts, most)?;
        if let Some(share) = share {
            self.observer.answered(when, share, prompts.len());
        }
        Ok(share)
    }

    /// Work that leaves nothing behind, done again where a request to save broke it off; `None`: the
    /// run was asked to end.
    fn forward<T>(
        &mut self,
        mut work: impl FnMut(&mut Session, &Requests) -> Result<Option<T>, ExecError>,
    ) -> Result<Option<T>, TrainError> {
        loop {
            if self.requests.stopping() {
                return Ok(None);
            }
            if self.requests.take_save() {
                if self.state.step == 0 {
                    self.observer
                        .note("asked to save: before the first step there is nothing to save");
                }
                self.save_now()?;
            }
            if let Some(done) = work(&mut self.session, &self.requests)? {
                return Ok(Some(done));
            }
        }
    }
}

impl Decoder for Fit<'_> {
    type Error = TrainError;

    fn infer(&mut self, inputs: Micro) -> Result<Option<Outcome>, TrainError> {
        self.forward(|s, r| s.infer_until(inputs.clone(), r))
    }

    fn progress(&mut self, done: usize) {
        self.observer.answering(done, self.prompts.len());
    }
}

/// Batches of an evaluation.
fn evaluation(
    packed: &Arc<Packed>,
    run: &Run,
) -> Result<impl Iterator<Item = Vec<Micro>> + use<>, TrainError> {
    let shape = BatchShape {
        micro_batch: run.train.micro_batch as usize,
        accumulate: run.train.accumulate as usize,
    };
    let (most, mut micro) = (run.eval.batches, 0);
    let batches = EvalBatches::new(Arc::clone(packed), shape)?;
    Ok(batches
        .take_while(move |batch| {
            let more = most.is_none_or(|most| micro < most);
            micro += batch.micro.len() as u64;
            more
        })
        .map(|batch| batch.micro))
}

/// Mean loss of supervised tokens.
#[derive(Default)]
struct Mean {
    sum: f64,
    count: f64,
}

impl Mean {
    fn add(&mut self, outcome: &Outcome) {
        for (sum, count) in &outcome.losses {
            self.sum += sum;
            self.count += count;
        }
    }

    fn value(&self) -> f64 {
        self.sum / self.count
    }
}

/// Mean loss of the supervised tokens of evaluation data. Drains first.
///
/// # Errors
/// What stopped the run.
pub fn evaluate(session: &mut Session, packed: &Arc<Packed>, run: &Run) -> Result<f64, TrainError> {
    let mut mean = Mean::default();
    for micro in evaluation(packed, run)? {
        mean.add(&session.evaluate(micro)?);
    }
    Ok(mean.value())
}
