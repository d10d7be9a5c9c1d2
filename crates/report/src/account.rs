//! What a run records of itself in addition to its metrics: `report.json`, of which and of the metrics its page is
//! drawn.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::memory::Memory;

/// Version of [`Account`].
pub const FORMAT: u32 = 1;

/// `report.json`: written with each page.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Account {
    /// Version of this, [`FORMAT`].
    pub format: u32,
    /// The processes that made the run's steps, the first one first.
    pub processes: Vec<Process>,
    /// What the run did so far, by its own account.
    pub report: Value,
    /// The step as it is planned.
    pub plan: PlanReport,
}

/// A process of a run: one that was stopped has another behind it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Steps that were made when it began.
    pub after_step: u64,
    /// The version of lowtide that it ran.
    pub version: String,
    /// What it ran on, with the versions of that.
    pub device: String,
    /// Of how many steps one has a line in the metrics; 0: an earlier version did not say it.
    #[serde(default)]
    pub every_steps: u64,
}

/// How many lines the metrics should have of the steps from the one after `before` up to `to`, by the processes that
/// made them, and the step of the first of these; `None` where no process says of how many steps one has a line.
#[must_use]
pub fn lines(processes: &[Process], before: u64, to: u64) -> Option<(u64, u64)> {
    if processes.iter().all(|process| process.every_steps == 0) {
        return None;
    }
    let (mut lines, mut first) = (0u64, 0);
    for (i, process) in processes.iter().enumerate() {
        let every = process.every_steps;
        let next = processes.get(i + 1).map_or(u64::MAX, |p| p.after_step);
        let (from, to) = (before.max(process.after_step), next.min(to));
        if every == 0 || from >= to {
            continue;
        }
        let own = to / every - from / every;
        if own > 0 && lines == 0 {
            first = (from / every + 1).saturating_mul(every);
        }
        lines = lines.saturating_add(own);
    }
    Some((lines, first))
}

/// A step in the middle of a run, as it is planned and predicted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PlanReport {
    /// How long it takes, in seconds, as it is drawn here.
    pub seconds: f64,
    /// Rounds of it that are not drawn, because they are as the last but one.
    pub rounds_left_out: u64,
    /// Ranks that do this at once.
    pub ranks: u64,
    /// What each lane does.
    pub lanes: Vec<LaneRow>,
    /// What each tier holds.
    pub tiers: Vec<TierRow>,
    /// The table of memory, with what stands beside the steps; a picture alone has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
}

/// A lane of a step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LaneRow {
    /// Name of the lane: `gpu`, `h2d` and so on.
    pub name: String,
    /// Its tasks in the order of their begin.
    pub boxes: Vec<TaskBox>,
}

/// A task, or several short ones that follow each other.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TaskBox {
    /// When it begins, in seconds from the step's begin.
    pub start: f64,
    /// When it ends, in seconds from the step's begin.
    pub end: f64,
    /// What it does: one of [`KINDS`](crate::picture::KINDS).
    pub kind: String,
    /// Its name; of several that of the longest.
    pub name: String,
    /// How many short tasks are drawn as this one box.
    pub tasks: u64,
}

/// Memory of a tier over a step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TierRow {
    /// Name of the tier: `device`, `host` or `disk`.
    pub name: String,
    /// Bytes that the plan reserves.
    pub planned_bytes: u64,
    /// Bytes that the run may use.
    pub budget_bytes: u64,
    /// Names of what bytes can hold: the columns of the next two fields.
    pub contents: Vec<String>,
    /// Bytes of each content that stay from step to step.
    pub kept: Vec<u64>,
    /// Bytes of each content that come and go, from each of these seconds on.
    pub moving: Vec<(f64, Vec<u64>)>,
}

impl TierRow {
    /// The most bytes that it holds at once; sums of an untrusted file end at the largest number.
    #[must_use]
    pub fn most(&self) -> u64 {
        let sum = |all: &[u64]| all.iter().fold(0u64, |n, &m| n.saturating_add(m));
        let most = self.moving.iter().map(|(_, held)| sum(held)).max();
        sum(&self.kept).saturating_add(most.unwrap_or(0))
    }
}
