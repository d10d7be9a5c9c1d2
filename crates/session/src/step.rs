//! What one part of a step needs to know, and what came of it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lowtide_data::Micro;
use lowtide_kernels::update::Hyper;
use lowtide_model::Training;
use serde::{Deserialize, Serialize};

use crate::commit::Mark;
use crate::outcome::Outcome;
use crate::requests::Requests;

/// Everything one part needs to know and where its results go.
#[derive(Debug)]
pub struct StepData {
    /// Inputs of each micro-batch.
    pub inputs: Vec<Micro>,
    /// One over the batch's supervised tokens.
    pub loss_scale: f32,
    /// Settings of the updates that run in this part (with exact clipping those of the batch
    /// before); `grad_scale` is put in by the update.
    pub update: Option<Hyper>,
    /// Where the run stands behind this batch (durable runs).
    pub(super) mark: Option<Mark>,
    /// Which step's update this part makes and commits (durable runs).
    pub(super) commits: Option<u64>,
    /// Of a batch that is trained on, which step it is and where these micro-batches are in it.
    pub(super) place: Option<Place>,
    /// What breaks it off (parts that leave nothing behind).
    requests: Option<Requests>,
    broken_off: AtomicBool,
    outcome: Mutex<Outcome>,
    ready: Condvar,
}

/// Which micro-batches of a batch a rank has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Place {
    /// The step that the batch is, from 1.
    pub step: u64,
    /// The rank's first micro-batch.
    pub first: u64,
    /// From one of the rank's to its next.
    pub stride: u64,
}

impl StepData {
    /// A part's data; the loss is the mean over the supervised tokens of all micro-batches.
    #[must_use]
    pub fn new(inputs: Vec<Micro>, update: Option<Hyper>) -> Arc<Self> {
        let whole = supervised(&inputs);
        Self::marked((inputs, whole), update, None, None)
    }

    /// As [`StepData::new`], of a rank's share of a batch that has so many supervised tokens in all; and, for a
    /// journal, with the batch's own mark and the step whose update this part commits.
    pub(super) fn marked(
        inputs: (Vec<Micro>, usize),
        update: Option<Hyper>,
        mark: Option<Mark>,
        commits: Option<u64>,
    ) -> Arc<Self> {
        Arc::new(Self {
            mark,
            commits,
            ..Self::of(inputs, update)
        })
    }

    /// Data of a part that leaves nothing behind (an evaluation, a token): once anything is asked,
    /// the rest of its work is left out and its outcome means nothing.
    pub(super) fn until(inputs: (Vec<Micro>, usize), requests: &Requests) -> Arc<Self> {
        Arc::new(Self {
            requests: Some(requests.clone()),
            ..Self::of(inputs, None)
        })
    }

    /// The same of a batch that is trained on.
    pub(super) fn at(mut self: Arc<Self>, place: Place) -> Arc<Self> {
        Arc::get_mut(&mut self).expect("just made").place = Some(place);
        self
    }

    /// Which micro-batch of training the rank's `m`th is; `None` where it is not trained on.
    pub(super) fn training(&self, m: u32) -> Option<Training> {
        self.place.map(|place| Training {
            step: place.step,
            micro_batch: place.first + place.stride * u64::from(m),
        })
    }

    /// As another process sent it: an outcome is nobody's here.
    pub(super) fn received(
        inputs: Vec<Micro>,
        loss_scale: f32,
        update: Option<Hyper>,
        place: Option<Place>,
        (mark, commits): (Option<Mark>, Option<u64>),
    ) -> Self {
        Self {
            loss_scale,
            place,
            mark,
            commits,
            ..Self::of((inputs, 0), update)
        }
    }

    fn of((inputs, supervised): (Vec<Micro>, usize), update: Option<Hyper>) -> Self {
        Self {
            inputs,
            loss_scale: 1.0 / supervised.max(1) as f32,
            update,
            mark: None,
            commits: None,
            place: None,
            requests: None,
            broken_off: AtomicBool::new(false),
            outcome: Mutex::default(),
            ready: Condvar::new(),
        }
    }

    /// Whether work was left out, or is from here on.
    pub(super) fn breaks_off(&self) -> bool {
        let asked = self.requests.as_ref().is_some_and(Requests::pending);
        if asked {
            self.broken_off.store(true, Ordering::Relaxed);
        }
        self.broken_off.load(Ordering::Relaxed)
    }

    /// Whether work was left out.
    pub(super) fn is_broken_off(&self) -> bool {
        self.broken_off.load(Ordering::Relaxed)
    }

    /// Whether these are the losses of all micro-batches.
    pub(super) fn is_evaluated(&self, losses: usize) -> bool {
        losses >= self.inputs.len()
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Outcome> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set(&self, change: impl FnOnce(&mut Outcome)) {
        change(&mut self.lock());
        self.ready.notify_all();
    }

    /// The outcome, once it is there; `None` after `limit`.
    pub fn outcome(&self, limit: Duration) -> Option<Outcome> {
        let (guard, timeout) = self
            .ready
            .wait_timeout_while(self.lock(), limit, |o| !o.done)
            .unwrap_or_else(PoisonError::into_inner);
        (!timeout.timed_out() || guard.done).then(|| guard.clone())
    }

    /// What there is of the outcome now.
    #[must_use]
    pub fn peek(&self) -> Outcome {
        self.lock().clone()
    }
}

/// Supervised tokens of micro-batches.
pub(super) fn supervised(inputs: &[Micro]) -> usize {
    let labels = inputs.iter().flat_map(|m| &m.labels);
    labels.filter(|&&l| l >= 0).count()
}
