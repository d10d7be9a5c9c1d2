//! Loss and greedy answers on data that is not trained on.

use std::sync::Arc;

use lowtide_config::Run;
use serde_json::json;

use super::Fit;
use crate::data::{BatchShape, EvalBatches, Packed};
use crate::error::TrainError;
use crate::generate::exact_match;
use crate::report::Phase;
use crate::step::Session;

impl Fit<'_> {
    pub(super) fn evaluate(&mut self, step: u64) -> Result<Option<f64>, TrainError> {
        let Some(packed) = &self.eval else {
            return Ok(None);
        };
        self.observer.phase(Some(Phase::Evaluating));
        let loss = evaluate(&mut self.session, packed, self.run)?;
        self.observer.phase(None);
        self.observer.evaluated(step, loss);
        self.metrics
            .write(&json!({ "step": step, "eval_loss": loss }))?;
        if let Some(events) = &mut self.events {
            events.scalars(step, &[("eval/loss", loss as f32)])?;
        }
        Ok(Some(loss))
    }

    pub(super) fn exact_match(&mut self, when: &str) -> Result<Option<f64>, TrainError> {
        if self.prompts.is_empty() {
            return Ok(None);
        }
        let n = self.prompts.len();
        let observer = &mut *self.observer;
        let share = exact_match(
            &mut self.session,
            &self.tokenizer,
            &self.stops,
            &self.prompts,
            self.run.eval.generate.max_new_tokens as usize,
            |done| observer.answering(done, n),
        )?;
        self.observer.answered(when, share, n);
        Ok(Some(share))
    }
}

/// Mean loss of the supervised tokens of evaluation data. Drains first.
///
/// # Errors
/// What stopped the run.
pub fn evaluate(session: &mut Session, packed: &Arc<Packed>, run: &Run) -> Result<f64, TrainError> {
    let shape = BatchShape {
        micro_batch: run.train.micro_batch as usize,
        accumulate: run.train.accumulate as usize,
    };
    let (mut sum, mut count, mut micro) = (0.0, 0.0, 0);
    for batch in EvalBatches::new(Arc::clone(packed), shape)? {
        if run.eval.batches.is_some_and(|max| micro >= max) {
            break;
        }
        micro += batch.micro.len() as u64;
        for (s, n) in session.evaluate(batch.micro)?.losses {
            sum += s;
            count += n;
        }
    }
    Ok(sum / count)
}
