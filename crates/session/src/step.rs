//! What one part of a step needs to know, and what came of it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lowtide_data::Micro;
use lowtide_kernels::update::Hyper;

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
    /// What breaks it off (parts that leave nothing behind).
    requests: Option<Requests>,
    broken_off: AtomicBool,
    outcome: Mutex<Outcome>,
    ready: Condvar,
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

    /// As another process has it: an outcome is nobody's here.
    pub(super) fn told(inputs: Vec<Micro>, loss_scale: f32, update: Option<Hyper>) -> Self {
        Self {
            loss_scale,
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
