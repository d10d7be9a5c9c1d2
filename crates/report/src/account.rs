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
