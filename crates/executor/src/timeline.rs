//! What really happened: when each task ran, as sums a lane and as a trace for Perfetto.

use std::io::{self, Write};
use std::time::Instant;

use lowtide_planner::waits::Cause;
use lowtide_planner::{Lane, PartName, PerLane, Phase, PieceId, Plan, Task, TaskId, Work};
use lowtide_workload::Workload;

/// A name for a task: what it does to what.
#[must_use]
pub fn task_label(plan: &Plan, w: &Workload, part: PartName, idx: TaskId) -> String {
    let task = &plan.part(part)[idx];
    let piece = |p: PieceId| {
        let piece = &plan.pieces[p];
        format!(
            "{} [{}..{})",
            plan.unit_names[piece.unit as usize], piece.params.start, piece.params.end
        )
    };
    // A part that repeats has other micro-batches each time.
    let repeats = matches!(part, PartName::Middle | PartName::Evaluate) && !plan.rounds().one();
    let micro = |m: u32| match repeats {
        true => format!("m{} of a round", m - plan.rounds().span(part).start),
        false => format!("m{m}"),
    };
    match task.work {
        Work::Compute {
            unit,
            phase,
            op,
            micro_batch,
        } => {
            let u = &w.units[unit as usize];
            let mark = match phase {
                Phase::Recompute => " again",
                Phase::Backward => " backward",
                Phase::Forward | Phase::Evaluate | Phase::Infer => "",
            };
            let name = &phase.ops(u)[op].name;
            format!("{} {name}{mark} {}", u.name, micro(micro_batch))
        }
        Work::Fold { piece: p } => format!("add up gradient {}", piece(p)),
        Work::Finish { piece: p } => format!("finish gradient {}", piece(p)),
        Work::Update { piece: p } => format!("update {}", piece(p)),
        Work::AllToAll { .. } => {
            let tensor = plan.slots[task.args[0].slot].tensor;
            format!("exchange {}", tensor.name(plan))
        }
        Work::AllGather { .. } => {
            let tensor = plan.slots[task.args[1].slot].tensor;
            format!("gather {}", tensor.name(plan))
        }
        Work::Copy | Work::Read | Work::Write => {
            let tensor = plan.slots[task.args[0].slot].tensor;
            format!("{} {}", task.lane, tensor.name(plan))
        }
        Work::Load { micro_batch } => format!("load inputs {}", micro(micro_batch)),
        Work::Norm => "norm".to_owned(),
        Work::Commit => "commit".to_owned(),
        Work::Losses => "losses".to_owned(),
        Work::Logits { micro_batch } => format!("logits m{micro_batch}"),
    }
}

/// What one lane did.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LaneMeasure {
    /// Seconds inside tasks.
    pub busy_seconds: f64,
    /// Bytes moved by copies and disk transfers.
    pub bytes: u64,
    /// Tasks completed, those of every part.
    pub tasks: u64,
}

/// Sums over everything that ran, by lane in the order of [`Lane::ALL`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Measured {
    /// Busy seconds, bytes and tasks of each lane.
    pub lanes: PerLane<LaneMeasure>,
    /// Seconds in which a drive read or wrote: both at once count once.
    pub drive_seconds: f64,
    /// Seconds in which the gpu lane stood still, by cause in the order of [`Cause::ALL`].
    pub gpu_waits: [f64; Cause::ALL.len()],
}

impl Measured {
    /// The sums of one lane.
    #[must_use]
    pub fn lane(&self, lane: Lane) -> &LaneMeasure {
        &self.lanes[lane]
    }

    /// The sum of two measurements that do not overlap in time.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        let mut d = *self;
        for (lane, a) in d.lanes.iter_mut() {
            let b = other.lanes[lane];
            a.busy_seconds += b.busy_seconds;
            a.bytes += b.bytes;
            a.tasks += b.tasks;
        }
        d.drive_seconds += other.drive_seconds;
        for (a, b) in d.gpu_waits.iter_mut().zip(other.gpu_waits) {
            *a += b;
        }
        d
    }

    /// What was done since `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let mut d = *self;
        for (lane, a) in d.lanes.iter_mut() {
            let b = before.lanes[lane];
            a.busy_seconds -= b.busy_seconds;
            a.bytes -= b.bytes;
            a.tasks -= b.tasks;
        }
        d.drive_seconds -= before.drive_seconds;
        for (a, b) in d.gpu_waits.iter_mut().zip(before.gpu_waits) {
            *a -= b;
        }
        d
    }
}

/// How long at least one of several lanes was busy.
#[derive(Debug, Default)]
pub(crate) struct AnyBusy {
    lanes: u32,
    since: f64,
    seconds: f64,
}

impl AnyBusy {
    /// A lane that was idle has work.
    pub fn enter(&mut self, now: f64) {
        if self.lanes == 0 {
            self.since = now;
        }
        self.lanes += 1;
    }

    /// A lane has no more work.
    pub fn leave(&mut self, now: f64) {
        self.lanes -= 1;
        if self.lanes == 0 {
            self.seconds += now - self.since;
        }
    }

    /// Seconds until `now`.
    pub fn seconds(&self, now: f64) -> f64 {
        let running = if self.lanes > 0 {
            now - self.since
        } else {
            0.0
        };
        self.seconds + running
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Event {
    pub part: PartName,
    pub submission: u32,
    pub task: TaskId,
    pub start: f64,
    pub end: f64,
}

/// One lane's record. Events are kept up to a limit.
#[derive(Debug)]
pub(crate) struct Record {
    pub measure: LaneMeasure,
    pub events: Vec<Event>,
    limit: usize,
    /// How many run the plan.
    ranks: u32,
}

impl Record {
    pub fn new(limit: usize, ranks: u32) -> Self {
        Self {
            measure: LaneMeasure::default(),
            events: Vec::new(),
            limit,
            ranks,
        }
    }

    /// A task that ran from `event.start` to `event.end`; its event is kept for the trace where
    /// `traced`.
    pub fn add(&mut self, task: &Task, event: Event, traced: bool) {
        self.measure.busy_seconds += event.end - event.start;
        self.count(task);
        if traced {
            self.keep(event);
        }
    }

    /// A task whose time is added as a part of a longer stretch.
    pub fn count(&mut self, task: &Task) {
        self.measure.tasks += 1;
        self.measure.bytes += task.moved(self.ranks).0;
    }

    /// Keeps an event for the trace, while there is room.
    pub fn keep(&mut self, event: Event) {
        if self.events.len() < self.limit {
            self.events.push(event);
        }
    }
}

/// Which end of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Edge {
    Start,
    End,
}

/// Seconds since the runner began.
pub(crate) fn seconds(epoch: Instant) -> f64 {
    epoch.elapsed().as_secs_f64()
}

/// Writes the events of all lanes in the trace-event format that Perfetto and Chrome load.
pub(crate) fn write_trace(
    out: &mut dyn Write,
    plan: &Plan,
    w: &Workload,
    lanes: &PerLane<Vec<Event>>,
) -> io::Result<()> {
    writeln!(out, "{{\"displayTimeUnit\":\"ms\",\"traceEvents\":[")?;
    let kinds = plan.lane_kinds();
    let there = Lane::ALL.iter().filter(|lane| kinds.contains(&lane.kind));
    for (l, lane) in there.enumerate() {
        writeln!(
            out,
            "{{\"ph\":\"M\",\"pid\":0,\"tid\":{l},\"name\":\"thread_name\",\"args\":{{\"name\":\"{}\"}}}},",
            lane.name()
        )?;
        writeln!(
            out,
            "{{\"ph\":\"M\",\"pid\":0,\"tid\":{l},\"name\":\"thread_sort_index\",\"args\":{{\"sort_index\":{l}}}}},"
        )?;
    }
    for (l, events) in lanes.values().enumerate() {
        for e in events {
            let name = serde_json::Value::String(task_label(plan, w, e.part, e.task));
            writeln!(
                out,
                "{{\"ph\":\"X\",\"pid\":0,\"tid\":{l},\"ts\":{:.3},\"dur\":{:.3},\"name\":{name},\"args\":{{\"submission\":{},\"task\":{}}}}},",
                e.start * 1e6,
                (e.end - e.start) * 1e6,
                e.submission,
                e.task
            )?;
        }
    }
    // The format allows no comma after the last event.
    writeln!(
        out,
        "{{\"ph\":\"M\",\"pid\":0,\"name\":\"process_name\",\"args\":{{\"name\":\"lowtide\"}}}}"
    )?;
    writeln!(out, "]}}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_that_are_busy_at_once_count_once() {
        let mut busy = AnyBusy::default();
        busy.enter(1.0);
        busy.enter(2.0);
        busy.leave(3.0);
        assert_eq!(busy.seconds(3.5), 2.5, "one still runs");
        busy.leave(4.0);
        busy.enter(6.0);
        busy.leave(6.5);
        assert_eq!(busy.seconds(9.0), 3.5);
    }
}
