//! What a durable run says of itself with each update, in the journal of its disk.
//!
//! A commit runs at the same time as the thread that hands out batches, which may not have seen the batch's loss yet.
//! So the engine collects the parts of a record where they arise: the place in the run when a batch is submitted,
//! loss and norm when they are known, the clip factor from its home.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use lowtide_executor::{EngineError, Record};
use serde::{Deserialize, Serialize};

use crate::outcome::Outcome;
use crate::totals::Totals;
use lowtide_data::State;

/// Where a run stands when a batch's update is made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mark {
    /// Updates made, this one included.
    pub step: u64,
    /// Place in the data behind this batch.
    pub data: State,
    /// Real tokens of the run so far, this batch's included.
    pub tokens: u64,
    /// Bits of the loss of the run's first step, where it is known already.
    pub loss_first: Option<u64>,
    /// Bits of the exact match before training, if it was measured.
    pub exact_match_before: Option<u64>,
    /// Real tokens of this batch.
    pub batch_tokens: u64,
    /// Bits of this batch's learning rate.
    pub learning_rate: u64,
    /// Times and losses of the run so far; those of this batch are not known yet.
    #[serde(default)]
    pub totals: Totals,
}

/// What the metrics file says of a step, as bits where it is a real number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepNumbers {
    /// Number of the step, from 1.
    pub step: u64,
    /// Mean loss of the batch, as bits of an `f64`.
    pub loss: u64,
    /// Norm of the gradients before clipping.
    pub norm: u64,
    /// Learning rate of the step, as bits.
    pub learning_rate: u64,
    /// Real tokens of the batch.
    pub tokens: u64,
    /// The update was left out.
    pub skipped: bool,
}

/// What the journal of a durable run records with a commit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CommitRecord {
    /// Step, place in the data, and totals of the run at the commit.
    pub mark: Mark,
    /// Factor, norm and go-ahead of the batch, as the bits of three f64.
    pub clip: [u64; 3],
    /// The last steps, this one last: those whose metrics may not have been written.
    pub steps: Vec<StepNumbers>,
}

/// How many steps a record has the numbers of. Without exact clipping a batch is committed while its own line and the
/// line of the batch before may not be written yet.
const STEPS_OF_A_RECORD: usize = 2;

/// Makes what a journal says of the run as a whole.
pub type About = Box<dyn Fn() -> Vec<u8> + Send + Sync>;

/// What an engine knows for its next commits.
#[derive(Default)]
pub(super) struct Commits {
    about: Mutex<Option<About>>,
    reported: Mutex<Reported>,
}

#[derive(Debug, Default)]
struct Reported {
    loss_first: Option<u64>,
    steps: VecDeque<(Mark, StepNumbers)>,
}

impl Commits {
    fn reported(&self) -> MutexGuard<'_, Reported> {
        self.reported.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_about(&self, about: About) {
        *self.about.lock().unwrap_or_else(PoisonError::into_inner) = Some(about);
    }

    /// A batch's loss and norm are known.
    pub(super) fn note(&self, mark: &Mark, outcome: &Outcome) {
        let mut reported = self.reported();
        let loss = outcome.loss().to_bits();
        let first = *reported
            .loss_first
            .get_or_insert(mark.loss_first.unwrap_or(loss));
        let mark = Mark {
            loss_first: Some(first),
            ..mark.clone()
        };
        let numbers = StepNumbers {
            step: mark.step,
            loss,
            norm: outcome.norm.to_bits(),
            learning_rate: mark.learning_rate,
            tokens: mark.batch_tokens,
            skipped: outcome.skipped,
        };
        reported.steps.push_back((mark, numbers));
        // One more may be known than is committed.
        while reported.steps.len() > STEPS_OF_A_RECORD + 1 {
            reported.steps.pop_front();
        }
    }

    /// The record of `step`; an empty one for a batch that has no place in a run.
    pub(super) fn record(&self, step: Option<u64>, clip: &[f64; 3]) -> Result<Record, EngineError> {
        let Some(step) = step else {
            return Ok(Record::default());
        };
        let reported = self.reported();
        let known = reported.steps.iter().filter(|(m, _)| m.step <= step);
        let known: Vec<_> = known.collect();
        let mark = known.last().filter(|(m, _)| m.step == step);
        let Some((mark, _)) = mark else {
            return Err(EngineError::Wrong(format!(
                "step {step} is committed before its norm is known"
            )));
        };
        let steps = &known[known.len().saturating_sub(STEPS_OF_A_RECORD)..];
        let record = CommitRecord {
            mark: mark.clone(),
            clip: clip.map(f64::to_bits),
            steps: steps.iter().map(|(_, n)| n.clone()).collect(),
        };
        let about = self.about.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Record {
            about: about.as_ref().map(|f| f()).unwrap_or_default(),
            record: serde_json::to_vec(&record).expect("plain values"),
        })
    }
}

impl fmt::Debug for Commits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reported().fmt(f)
    }
}
