//! What a run tells while it runs and when it is done.

use std::collections::BTreeMap;
use std::path::Path;

use lowtide_executor::Measured;
use lowtide_planner::waits::{Cause, steady_step};
use lowtide_planner::{Lane, LaneKind};
use lowtide_report::step::{LaneCompared, WaitCompared};
use serde::Serialize;

use crate::adaptive::Replan;
use crate::fit::Evaluation;
use crate::planning::Planned;
use crate::wear::Wear;

/// When prompts were answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum When {
    /// Before the first step.
    Before,
    /// Between two steps.
    During,
    /// After the last step.
    After,
}

impl When {
    /// As records of it have it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Before => "before",
            Self::During => "during",
            Self::After => "after",
        }
    }
}

/// One finished step, for people and for the metrics file.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepLine {
    /// Which, from 1.
    pub step: u64,
    /// Of how many.
    pub steps: u64,
    /// Mean loss of the batch's supervised tokens. Left out of the line where it is no number.
    #[serde(skip_serializing_if = "is_no_number")]
    pub loss: f64,
    /// Norm of the gradients before clipping; left out likewise.
    #[serde(skip_serializing_if = "is_no_number")]
    pub grad_norm: f64,
    /// Learning rate of the step's update.
    pub learning_rate: f64,
    /// Real tokens of the batch; padding is not counted.
    pub tokens: u64,
    /// Time since the loss of the step before was known; evaluations and checkpoints in between are
    /// not counted, the update before them is. `None` where the process that made the step has died.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
    /// Real tokens a second. `None` for the first step of a process: no update lies in its time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_second: Option<f64>,
    /// Seconds of a step as the plan predicts them.
    pub predicted_seconds: f64,
    /// The lane that was busiest in this step, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ruling_lane: Option<&'static str>,
    /// Seconds inside tasks since the loss before, by lane, of the disk lanes together: for who looks on.
    #[serde(skip)]
    pub lanes: Vec<(LaneKind, f64)>,
    /// Bytes that the run has written to its drives so far, whichever process wrote them; left out where none.
    #[serde(skip_serializing_if = "is_zero")]
    pub disk_written: u64,
    /// What such steps do to the drives, where they write there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wear: Option<Wear>,
    /// Real tokens of the run so far, of the steps that have no line too.
    pub tokens_total: u64,
    /// Updates that were left out so far; left out where none.
    #[serde(skip_serializing_if = "is_zero")]
    pub skipped_total: u64,
    /// Spikes so far; left out where none.
    #[serde(skip_serializing_if = "is_zero")]
    pub spikes_total: u64,
    /// The update was left out: its norm was not finite, or a spike.
    pub skipped: bool,
    /// Where its norm is a spike: how many times the median of those before it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spike: Option<f64>,
    /// Seconds in which steps waited for a checkpoint that was written meanwhile, since the line before; left out where
    /// none did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint_wait_seconds: Option<f64>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "as serde wants it")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// JSON has no word for it.
#[allow(clippy::trivially_copy_pass_by_ref, reason = "as serde wants it")]
fn is_no_number(x: &f64) -> bool {
    !x.is_finite()
}

impl StepLine {
    /// Its points on TensorBoard's curves, but for what is not known.
    pub(crate) fn curves(&self) -> Vec<(&'static str, f32)> {
        let mut points = vec![
            ("train/loss", self.loss as f32),
            ("train/grad_norm", self.grad_norm as f32),
            ("train/learning_rate", self.learning_rate as f32),
        ];
        if let (Some(rate), Some(seconds)) = (self.tokens_per_second, self.seconds) {
            points.push(("train/tokens_per_second", rate as f32));
            points.push(("train/step_seconds", seconds as f32));
        }
        points.retain(|p| p.1.is_finite());
        points
    }
}

/// What takes a while and is no step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Data is read, tokenised and packed.
    Data,
    /// The machine's rates are measured.
    Measuring,
    /// The plan is made.
    Planning,
    /// Memory and disk space are reserved.
    Reserving,
    /// Projectors are learned from the first batch.
    Learning,
    /// Weights are filled.
    Weights,
    /// A checkpoint, or the state of a durable run, is read.
    Resuming,
    /// Loss on the evaluation data.
    Evaluating,
    /// A checkpoint is written.
    Saving,
    /// The model is written.
    Exporting,
}

impl Phase {
    /// The name that people are shown.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Data => "reading and tokenising data",
            Self::Measuring => "measuring this machine",
            Self::Planning => "planning",
            Self::Reserving => "reserving memory and disk space",
            Self::Learning => "learning projectors from the first batch",
            Self::Weights => "filling weights",
            Self::Resuming => "reading the saved state",
            Self::Evaluating => "evaluating",
            Self::Saving => "saving a checkpoint",
            Self::Exporting => "writing the model",
        }
    }
}

/// Receives what happens in a run. Every method has a default that does nothing.
pub trait Observer {
    /// Something worth knowing.
    fn note(&mut self, _text: &str) {}
    /// What computes: a line about it, and whether it is a GPU.
    fn device(&mut self, note: &str, _gpu: bool) {
        self.note(note);
    }
    /// Something for those who look inside.
    fn detail(&mut self, _text: &str) {}
    /// Something begins that may take a while. It lasts until the next phase, the next step, or
    /// `None`.
    fn phase(&mut self, _phase: Option<Phase>) {}
    /// The plan is made and everything is about to be reserved.
    fn planned(&mut self, _planned: &Planned) {}
    /// Steps begin behind this one, which is saved or is 0.
    fn begins(&mut self, _after_step: u64) {}
    /// A step is finished.
    fn step(&mut self, _line: &StepLine) {}
    /// Another plan runs from here on.
    fn replanned(&mut self, _replan: &Replan) {}
    /// An evaluation is finished.
    fn evaluated(&mut self, _step: u64, _evaluation: Evaluation) {}
    /// So many of so many prompts are answered.
    fn answering(&mut self, _done: usize, _of: usize) {}
    /// Exact match was measured.
    fn answered(&mut self, _when: When, _share: f64, _prompts: usize) {}
    /// The checkpoint of a step is on the disk.
    fn saved(&mut self, _step: u64, _path: &Path) {}
}

/// An observer that ignores everything.
#[derive(Clone, Copy, Debug)]
pub struct Nobody;

impl Observer for Nobody {}

/// Seconds inside tasks of a kind of lane.
pub(crate) fn busy_of(kind: LaneKind, measured: &Measured) -> f64 {
    let lanes = Lane::ALL.iter().filter(|l| l.kind == kind);
    match kind {
        LaneKind::Disk => measured.drive_seconds,
        _ => lanes.map(|&l| measured.lane(l).busy_seconds).sum(),
    }
}

/// Predicted and measured work of a step by lane, and what the gpu lane waited for, the longest first; measured is the
/// mean of `steps`.
pub(crate) fn compare(
    planned: &Planned,
    measured: &Measured,
    steps: f64,
) -> (BTreeMap<String, LaneCompared>, Vec<WaitCompared>) {
    let step = steady_step(&planned.plan, planned.decoder.workload(), &planned.machine);
    let lanes = planned
        .plan
        .lane_kinds()
        .iter()
        .zip(step.lanes)
        .map(|(kind, lane)| {
            let busy: f64 = busy_of(*kind, measured);
            let compared = LaneCompared {
                predicted_seconds: lane.0,
                measured_seconds: busy / steps,
            };
            (kind.name().to_owned(), compared)
        });
    let waits = Cause::ALL.iter().zip(measured.gpu_waits);
    let mut waits: Vec<WaitCompared> = waits
        .map(|(&cause, seconds)| WaitCompared {
            cause: cause.name().to_owned(),
            predicted_seconds: step
                .gpu_waits
                .iter()
                .find(|(c, _)| *c == cause)
                .map_or(0.0, |(_, s)| s.0),
            measured_seconds: seconds / steps,
        })
        .filter(|w| w.longer() > 0.0)
        .collect();
    waits.sort_by(|a, b| b.longer().total_cmp(&a.longer()));
    (lanes.collect(), waits)
}

/// Bytes that the lanes moved, by name.
pub(crate) fn moved_bytes(of: impl Fn(Lane) -> u64) -> BTreeMap<String, u64> {
    [
        ("h2d", Lane::H2D),
        ("d2h", Lane::D2H),
        ("disk_read", Lane::DISK_READ),
        ("disk_write", Lane::DISK_WRITE),
    ]
    .map(|(name, lane)| (name.to_owned(), of(lane)))
    .into()
}

/// The median of sorted numbers, the mean of the middle two where they are even; `None` of none.
pub(crate) fn median(sorted: &[f64]) -> Option<f64> {
    let upper = sorted.get(sorted.len() / 2)?;
    let lower = sorted[(sorted.len() - 1) / 2];
    Some(f64::midpoint(lower, *upper))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_two_is_their_mean() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[1.0, 4.0]), Some(2.5));
        assert_eq!(median(&[1.0, 2.0, 9.0]), Some(2.0));
        assert_eq!(median(&[1.0, 2.0, 6.0, 9.0]), Some(4.0));
    }
}
