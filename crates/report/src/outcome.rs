//! What came of a run: the value that `lowtide train --json` prints and `report.json` has, and its text.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lowtide_files::shown;
use serde::{Deserialize, Serialize};

use crate::people::{bytes, seconds};
use crate::step::{LaneCompared, WaitCompared, compared, moved};
use crate::table::{Column, Table};

/// What became of a process's checkpoints in the background.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Background {
    /// Checkpoints that were written so.
    pub checkpoints: u64,
    /// Seconds from the state of the last one to its place under its name.
    pub last_seconds: f64,
    /// Seconds in which steps waited for checkpoints.
    pub wait_seconds: f64,
}

/// What this process did of a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// Updates that earlier processes had made.
    pub after_step: u64,
    /// Updates made here.
    pub steps: u64,
    /// Real tokens of them.
    pub tokens: u64,
    /// Seconds of them, evaluations and checkpoints not counted.
    pub seconds: f64,
}

/// The best evaluation of a run that keeps its checkpoint (`checkpoint.keep_best`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BestKept {
    /// After which step.
    pub step: u64,
    /// By what it is the best: `loss`, `accuracy` or `exact_match`.
    pub by: String,
    /// Its loss, or its share of right tokens, documents or answers, 0 to 1.
    pub value: f64,
    /// Its checkpoint is not there, or is damaged.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lost: bool,
}

impl BestKept {
    fn text(&self) -> String {
        let value = match self.by.as_str() {
            "loss" => format!("loss {:.4}", self.value),
            by => format!("{} {:.1}%", by.replace('_', " "), 100.0 * self.value),
        };
        let checkpoint = match self.lost {
            true => "gone or damaged",
            false => "kept",
        };
        format!(
            "{value} after step {}, whose checkpoint is {checkpoint}",
            self.step
        )
    }
}

/// What a run did. Steps, tokens, seconds and losses are those of the whole run, whichever process
/// made them; times by lane, moved bytes and memory are those of this process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainReport {
    /// Updates made in all.
    pub steps: u64,
    /// Real tokens trained on.
    pub tokens: u64,
    /// Loss of the first step; `None` before it.
    pub loss_first: Option<f64>,
    /// Mean loss of the last steps; `None` before the first.
    pub loss_last: Option<f64>,
    /// How many steps that mean is of: ten, or fewer.
    pub loss_last_steps: u64,
    /// Loss of the first evaluation on the same data as the last one: before the first step, but where the data changed
    /// or came later.
    pub eval_loss_first: Option<f64>,
    /// After which step it was made.
    #[serde(default, skip_serializing_if = "crate::memory::is_zero")]
    pub eval_step_first: u64,
    /// Evaluation loss after the last step.
    pub eval_loss_last: Option<f64>,
    /// Share of the evaluation's supervised tokens that greedy decoding would take, in the first evaluation.
    #[serde(default)]
    pub eval_accuracy_first: Option<f64>,
    /// The same share after the last step.
    #[serde(default)]
    pub eval_accuracy_last: Option<f64>,
    /// The best evaluation so far, where its checkpoint is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best: Option<BestKept>,
    /// Exact match before training, if asked for.
    pub exact_match_before: Option<f64>,
    /// Exact match after training.
    pub exact_match_after: Option<f64>,
    /// Seconds of all steps, evaluations and checkpoints not counted.
    pub seconds: f64,
    /// Real tokens of the steps whose time is known: a process that was killed took its times with it.
    #[serde(default)]
    pub timed_tokens: u64,
    /// Real tokens a second of the steps whose time is known; `None` without one.
    pub tokens_per_second: Option<f64>,
    /// Steps whose update was left out: their norm was not finite, or a spike.
    #[serde(default)]
    pub skipped: u64,
    /// Steps whose norm was a spike, updated or not.
    #[serde(default)]
    pub spikes: u64,
    /// This process's part.
    pub part: Part,
    /// Median measured time of a step; `None` where no step was timed.
    pub step_seconds: Option<f64>,
    /// Predicted time of a step.
    pub predicted_step_seconds: f64,
    /// Predicted and measured seconds of a step, by lane.
    pub lanes: BTreeMap<String, LaneCompared>,
    /// What the gpu lane waited for, the longest first.
    #[serde(default)]
    pub gpu_waits: Vec<WaitCompared>,
    /// Bytes moved by lane: h2d, d2h, disk_read, disk_write.
    pub moved_bytes: BTreeMap<String, u64>,
    /// Checkpoints of this process that were written while steps went on; none where the run stops for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub background: Option<Background>,
    /// Bytes written to the drives by the whole run, the filling of each start among them.
    #[serde(default)]
    pub disk_written: u64,
    /// Seconds in which this process learned projectors before the first step, where it did; in no other time here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learning_seconds: Option<f64>,
    /// Bytes of the parameters as the device reads them.
    pub parameter_bytes: u64,
    /// Planned, which is reserved, bytes by tier.
    pub planned_bytes: BTreeMap<String, u64>,
    /// Host memory planned for the process: arenas and what it holds beside them, or what it held before.
    pub planned_rss_bytes: u64,
    /// The most that was resident before the plan was made: reading data, measuring, planning.
    pub start_rss_bytes: u64,
    /// Peak resident memory of the process.
    pub peak_rss_bytes: Option<u64>,
    /// Stopped by a signal; the same command goes on.
    pub stopped: bool,
    /// Steps of this process whose checkpoint was due and could not be written; later ones may have been.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unsaved: Vec<u64>,
    /// One of the runs that `compare` makes: of its state and its model nothing is saved.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub compared: bool,
    /// All of it was done before: nothing was read or written but what says so.
    #[serde(default)]
    pub nothing_to_do: bool,
    /// The fine-tuned model (absent when stopped).
    #[serde(serialize_with = "shown::option")]
    pub output: Option<PathBuf>,
    /// The newest checkpoint.
    #[serde(serialize_with = "shown::option")]
    pub checkpoint: Option<PathBuf>,
    /// Metrics, one JSON object a line.
    #[serde(serialize_with = "shown::path")]
    pub metrics: PathBuf,
    /// The trace for Perfetto.
    #[serde(serialize_with = "shown::option")]
    pub trace: Option<PathBuf>,
    /// The run as a page.
    #[serde(default, serialize_with = "shown::option")]
    pub page: Option<PathBuf>,
}

impl TrainReport {
    /// For people. `events`: where TensorBoard's files are, if there are any; `gpu`: the run's device is one.
    #[must_use]
    pub fn text(&self, events: Option<&Path>, gpu: bool) -> String {
        let mut table = Table::new([Column::left("").wide(14), Column::left("")]);
        let mut line = |name: &str, value: String| table.row([name.to_owned(), value]);
        how_far(self, &mut line);
        how_well(self, &mut line);
        how_fast(self, gpu, &mut line);
        let mut path = |name: &str, path: Option<&Path>| {
            if let Some(path) = path {
                line(name, path.display().to_string());
            }
        };
        path("model", self.output.as_deref());
        path("checkpoint", self.checkpoint.as_deref());
        path("metrics", Some(&self.metrics));
        path("tensorboard", events);
        path("trace", self.trace.as_deref());
        path("page", self.page.as_deref());
        table.text()
    }
}

/// A line of the summary: its name and what it says.
type Line<'a> = dyn FnMut(&str, String) + 'a;

/// Steps, tokens and seconds.
fn how_far(r: &TrainReport, line: &mut Line<'_>) {
    if r.stopped {
        line(
            "stopped",
            format!(
                "after step {}; the same command goes on from there",
                r.steps
            ),
        );
    }
    let rate =
        |r: Option<f64>| r.map_or(String::new(), |r| format!(", {r:.0} tokens/s on average"));
    line(
        "steps",
        format!(
            "{}, {} tokens{}{}{}",
            r.steps,
            r.tokens,
            // A process that was killed took the times of its last steps with it.
            match r.timed_tokens {
                n if n == r.tokens || n == 0 => " in ".to_owned(),
                n => format!("; {n} of them in "),
            },
            seconds(r.seconds),
            rate(r.tokens_per_second)
        ),
    );
    if r.skipped + r.spikes > 0 {
        let spikes = match r.spikes {
            0 => String::new(),
            n => format!("; the norm of {n} was a spike"),
        };
        line(
            "left out",
            format!("{} of these updates{spikes}", r.skipped),
        );
    }
    if let Some(last) = r.unsaved.last() {
        let n = r.unsaved.len();
        // Of a disk that was full for days the last ones say enough.
        let named: Vec<String> = r.unsaved[n.saturating_sub(8)..]
            .iter()
            .map(u64::to_string)
            .collect();
        let which = match n {
            1 => format!("the checkpoint of step {last}"),
            _ if n > named.len() => {
                format!("{n} checkpoints, the last of steps {}", named.join(", "))
            }
            _ => format!("the checkpoints of steps {}", named.join(", ")),
        };
        line(
            "not written",
            format!("{which}; the warnings of these steps say why"),
        );
    }
    if r.part.after_step > 0 {
        line(
            "of them here",
            format!(
                "{}, {} tokens in {}; earlier ones up to step {}",
                r.part.steps,
                r.part.tokens,
                seconds(r.part.seconds),
                r.part.after_step
            ),
        );
    }
}

/// Losses and exact answers.
fn how_well(r: &TrainReport, line: &mut Line<'_>) {
    if let (Some(first), Some(last)) = (r.loss_first, r.loss_last) {
        let of = match r.loss_last_steps {
            1 => format!("at step {}", r.steps),
            n => format!("mean of the last {n} steps"),
        };
        line("loss", format!("{first:.4} at step 1, {last:.4} {of}"));
    }
    // Each figure with its place, those that are known.
    let mut two = |name: &str, each: [Option<String>; 2]| {
        let known: Vec<String> = each.into_iter().flatten().collect();
        if !known.is_empty() {
            line(name, known.join(", "));
        }
    };
    // The first on the data that the last one is of.
    let first = match r.eval_step_first {
        0 => "before step 1".to_owned(),
        n => format!("after step {n} (first on this evaluation data)"),
    };
    let alone = r.eval_step_first > 0 && r.eval_step_first == r.steps && r.eval_loss_last.is_some();
    let last = match alone {
        true => format!("after step {} (first on this evaluation data)", r.steps),
        false => format!("after step {}", r.steps),
    };
    two(
        "eval loss",
        [
            r.eval_loss_first
                .filter(|_| !alone)
                .map(|x| format!("{x:.4} {first}")),
            r.eval_loss_last.map(|x| format!("{x:.4} {last}")),
        ],
    );
    let percent = |x: f64| format!("{:.1}%", 100.0 * x);
    two(
        "eval accuracy",
        [
            r.eval_accuracy_first
                .filter(|_| !alone)
                .map(|x| format!("{} {first}", percent(x))),
            r.eval_accuracy_last
                .map(|x| format!("{} {last}", percent(x))),
        ],
    );
    let share = |x: f64, when: &str| format!("{:.1}% {when} training", 100.0 * x);
    two(
        "exact match",
        [
            r.exact_match_before.map(|x| share(x, "before")),
            r.exact_match_after.map(|x| share(x, "after")),
        ],
    );
    if let Some(best) = &r.best {
        line("best", best.text());
    }
}

/// Times of a step, bytes moved, and memory, predicted and measured.
fn how_fast(r: &TrainReport, gpu: bool, line: &mut Line<'_>) {
    if let Some(median) = r.step_seconds {
        let predicted = seconds(r.predicted_step_seconds);
        line(
            "a step",
            format!(
                "{} measured (median), {predicted} predicted",
                seconds(median)
            ),
        );
    }
    // Without a step there is nothing to compare.
    if r.part.steps > 0 {
        let step = r.step_seconds.unwrap_or(r.predicted_step_seconds);
        let table = compared(&r.lanes, &r.gpu_waits, step, gpu).text();
        table.lines().for_each(|row| line("", row.to_owned()));
        line("moved", moved(&r.moved_bytes));
    }
    if let Some(b) = r.background.filter(|b| b.checkpoints > 0) {
        line(
            "checkpoints",
            format!(
                "{} written while steps went on, which waited {} for them; the last took {}",
                b.checkpoints,
                seconds(b.wait_seconds),
                seconds(b.last_seconds)
            ),
        );
    }
    line(
        "host memory",
        format!(
            "{} planned with the process{}",
            bytes(r.planned_rss_bytes),
            r.peak_rss_bytes.map_or(String::new(), |n| format!(
                ", {} resident at most",
                bytes(n)
            ))
        ),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A run that was stopped and went on, in each line that one can have.
    #[test]
    fn a_run_has_a_line_for_each_thing_that_is_known() {
        let report = serde_json::json!({
            "steps": 20, "tokens": 4096, "loss_first": 3.5, "loss_last": 1.25, "loss_last_steps": 10,
            "eval_loss_first": 3.0, "eval_loss_last": null, "eval_accuracy_first": 0.25,
            "exact_match_before": 0.0, "exact_match_after": 0.5,
            "best": {"step": 12, "by": "exact_match", "value": 0.75}, "seconds": 12.0, "timed_tokens": 4096,
            "tokens_per_second": 341.3, "skipped": 2, "spikes": 1,
            "part": {"after_step": 10, "steps": 10, "tokens": 2048, "seconds": 6.0},
            "step_seconds": 0.5, "predicted_step_seconds": 0.25,
            "lanes": {"gpu": {"predicted_seconds": 0.25, "measured_seconds": 0.5}},
            "gpu_waits": [{"cause": "disk", "predicted_seconds": 0.0, "measured_seconds": 0.125}],
            "moved_bytes": {"d2h": 1024, "h2d": 3 << 29},
            "background": {"checkpoints": 2, "last_seconds": 1.0, "wait_seconds": 0.001},
            "parameter_bytes": 1, "planned_bytes": {}, "planned_rss_bytes": 1 << 20, "start_rss_bytes": 1,
            "peak_rss_bytes": 1 << 19, "stopped": true, "unsaved": [12, 14], "output": null, "checkpoint": "out/c",
            "metrics": "out/m", "trace": null, "page": "out/report.html"
        });
        let report: TrainReport = serde_json::from_value(report).expect("a report");
        let want = [
            "stopped       after step 20; the same command goes on from there",
            "steps         20, 4096 tokens in 12.00 s, 341 tokens/s on average",
            "left out      2 of these updates; the norm of 1 was a spike",
            "not written   the checkpoints of steps 12, 14; the warnings of these steps say why",
            "of them here  10, 2048 tokens in 6.00 s; earlier ones up to step 10",
            "loss          3.5000 at step 1, 1.2500 mean of the last 10 steps",
            "eval loss     3.0000 before step 1",
            "eval accuracy 25.0% before step 1",
            "exact match   0.0% before training, 50.0% after training",
            "best          exact match 75.0% after step 12, whose checkpoint is kept",
            "a step        500.0 ms measured (median), 250.0 ms predicted",
            "              lanes, working at once   predicted    measured",
            "              gpu                       250.0 ms    500.0 ms",
            "              gpu waits                   0.0 µs    125.0 ms  for:",
            "                                          0.0 µs    125.0 ms  the disk",
            "moved         d2h 1.0 KiB, h2d 1.5 GiB",
            "checkpoints   2 written while steps went on, which waited 1.0 ms for them; the last took 1.00 s",
            "host memory   1.0 MiB planned with the process, 512.0 KiB resident at most",
            "checkpoint    out/c",
            "metrics       out/m",
            "tensorboard   out/t",
            "page          out/report.html",
        ];
        let text = report.text(Some(Path::new("out/t")), true);
        assert_eq!(text.lines().collect::<Vec<_>>(), want);
    }
}
