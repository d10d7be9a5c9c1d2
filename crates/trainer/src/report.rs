//! What a run tells while it runs and when it is done.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lowtide_executor::Measured;
use lowtide_planner::plan::Prediction;
use lowtide_planner::{Lane, LaneKind, Machine, Plan};
use serde::Serialize;

/// One finished step, for people and for the metrics file.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepLine {
    /// Which, from 1.
    pub step: u64,
    /// Of how many.
    pub steps: u64,
    /// Mean loss of the batch's supervised tokens.
    pub loss: f64,
    /// Norm of the gradients before clipping.
    pub grad_norm: f64,
    /// Learning rate.
    pub learning_rate: f64,
    /// Real tokens of the batch; padding is not counted.
    pub tokens: u64,
    /// Time since the loss of the step before was known.
    pub seconds: f64,
    /// Real tokens a second. Not a number for the first step after a start, an evaluation or a
    /// checkpoint: no update lies in its time.
    pub tokens_per_second: f64,
    /// Share of the bound that this step reached: the predicted work of the busiest lane over the
    /// time taken. Not a number where `tokens_per_second` is not.
    pub share_of_bound: f64,
    /// The lane that was busiest in this step.
    pub ruling_lane: &'static str,
    /// The update was left out: its norm was not finite.
    pub skipped: bool,
}

impl StepLine {
    /// Its points on TensorBoard's curves, but for what is not known.
    pub(crate) fn curves(&self) -> Vec<(&'static str, f32)> {
        let mut points = vec![
            ("train/loss", self.loss as f32),
            ("train/grad_norm", self.grad_norm as f32),
            ("train/learning_rate", self.learning_rate as f32),
        ];
        if self.share_of_bound.is_finite() {
            points.push(("train/tokens_per_second", self.tokens_per_second as f32));
            points.push(("train/share_of_bound", self.share_of_bound as f32));
        }
        points
    }
}

/// Who is told what happens. Every method has a default that does nothing.
pub trait Observer {
    /// Something worth knowing.
    fn note(&mut self, _text: &str) {}
    /// The plan is made and everything is about to be reserved.
    fn planned(&mut self, _plan: &Plan, _machine: &Machine) {}
    /// A step is finished.
    fn step(&mut self, _line: &StepLine) {}
    /// An evaluation is finished.
    fn evaluated(&mut self, _step: u64, _loss: f64) {}
    /// So many of so many prompts are answered.
    fn answering(&mut self, _done: usize, _of: usize) {}
    /// Exact match was measured.
    fn answered(&mut self, _when: &str, _share: f64, _prompts: usize) {}
    /// A checkpoint is on the disk.
    fn saved(&mut self, _path: &Path) {}
}

/// Predicted and measured seconds of one lane in one step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct LaneCompared {
    /// Predicted seconds of work.
    pub predicted_seconds: f64,
    /// Measured seconds inside tasks, of the disk lanes together; mean over the steps.
    pub measured_seconds: f64,
}

/// Predicted work of a step and measured work of a step, the mean of `steps`, by lane; while a drive
/// reads and writes at once, its seconds count once.
pub(crate) fn compare_lanes(
    prediction: &Prediction,
    measured: &Measured,
    steps: f64,
) -> BTreeMap<String, LaneCompared> {
    LaneKind::ALL
        .iter()
        .zip(&prediction.lanes)
        .map(|(kind, lane)| {
            let lanes = Lane::ALL.iter().filter(|l| l.kind == *kind);
            let busy = match kind {
                LaneKind::Disk => measured.drive_seconds,
                _ => lanes.map(|&l| measured.lane(l).busy_seconds).sum(),
            };
            let compared = LaneCompared {
                predicted_seconds: lane.busy_seconds.0,
                measured_seconds: busy / steps,
            };
            (kind.name().to_owned(), compared)
        })
        .collect()
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

/// What a run did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TrainReport {
    /// Updates made in all.
    pub steps: u64,
    /// Real tokens trained on.
    pub tokens: u64,
    /// Loss of the first step.
    pub loss_first: f64,
    /// Mean loss of the last steps (up to ten).
    pub loss_last: f64,
    /// Evaluation loss before the first and after the last step, if there is evaluation data.
    pub eval_loss_first: Option<f64>,
    /// As above.
    pub eval_loss_last: Option<f64>,
    /// Exact match before training, if asked for.
    pub exact_match_before: Option<f64>,
    /// Exact match after training.
    pub exact_match_after: Option<f64>,
    /// Seconds from the first step to the last.
    pub seconds: f64,
    /// Real tokens a second.
    pub tokens_per_second: f64,
    /// Median measured time of a step.
    pub step_seconds: f64,
    /// Predicted time of a step.
    pub predicted_step_seconds: f64,
    /// By lane.
    pub lanes: BTreeMap<String, LaneCompared>,
    /// Bytes moved by lane: h2d, d2h, disk_read, disk_write.
    pub moved_bytes: BTreeMap<String, u64>,
    /// Bytes of the parameters as the device reads them.
    pub parameter_bytes: u64,
    /// Planned, which is reserved, bytes by tier.
    pub planned_bytes: BTreeMap<String, u64>,
    /// Host memory planned for the process: arenas and what it holds beside them.
    pub planned_rss_bytes: u64,
    /// Peak resident memory of the process since the plan was made.
    pub peak_rss_bytes: Option<u64>,
    /// Stopped by a signal; the same command goes on.
    pub stopped: bool,
    /// The fine-tuned model (absent when stopped).
    pub output: Option<PathBuf>,
    /// The newest checkpoint.
    pub checkpoint: Option<PathBuf>,
    /// Metrics, one JSON object a line.
    pub metrics: PathBuf,
    /// The trace for Perfetto.
    pub trace: Option<PathBuf>,
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
