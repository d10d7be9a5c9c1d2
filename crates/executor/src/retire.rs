//! What is added up when a part is complete: the times of streams, and the gpu lane's pauses by cause.

use std::sync::Arc;

use lowtide_device::cuda::CudaError;
use lowtide_planner::waits::Cause;
use lowtide_planner::{Lane, TaskId};
use lowtide_units::List;

use crate::bind::Engine;
use crate::options::Mode;
use crate::parts::Submission;
use crate::shared::{Shared, lock};
use crate::timeline::{Edge, Event, seconds};
use crate::waits::Waits;

/// A task of a lane: how many tasks the lane has completed with it.
#[derive(Clone, Copy)]
struct At {
    lane: Lane,
    count: u64,
}

impl<E: Engine> Shared<E> {
    /// Adds up the times of a completed part: the gpu lane's waits, and what the stream lanes did.
    pub fn retire(&self, s: &Arc<Submission<E::Step>>) -> Result<(), CudaError> {
        // In a drawn order lanes wait for the draw.
        if self.options.mode == Mode::Threads {
            self.add_waits(s)?;
        }
        let Some(streams) = &self.streams else {
            return Ok(());
        };
        let table = &self.tables[s.part];
        for (l, tasks) in table.lanes.iter() {
            if !streams.is_stream(l) {
                continue;
            }
            let mut record = lock(&self.records[l]);
            let mut busy = 0.0;
            let mut events = Vec::new();
            streams.times(
                l,
                &table.marks,
                (tasks, s.base[l]),
                s.traced,
                |task, start, end| events.push((task, start, end)),
                |seconds| busy += seconds,
            )?;
            for &task in tasks {
                record.count(&self.plan.part(s.part)[task]);
            }
            if s.traced {
                // Without the gaps between tasks that do not wait for anything.
                busy = events.iter().map(|(_, start, end)| end - start).sum();
            } else {
                events.clear(); // those whose events had another use
            }
            record.measure.busy_seconds += busy;
            for (task, start, end) in events {
                record.keep(Event {
                    part: s.part,
                    submission: s.seq,
                    task,
                    start,
                    end,
                });
            }
        }
        Ok(())
    }

    /// Adds the pauses of the gpu lane before tasks of a completed part.
    fn add_waits(&self, s: &Arc<Submission<E::Step>>) -> Result<(), CudaError> {
        let l = Lane::GPU;
        let table = &self.tables[s.part];
        let (tasks, base) = (&table.lanes[l], s.base[l]);
        let mut waits = lock(&self.waits);
        if !tasks.is_empty() {
            self.set_clock(&table.marks.start, tasks, base)?;
        }
        for (i, &task) in tasks.iter().enumerate() {
            if !table.marks.start[task] {
                continue;
            }
            let at = At {
                lane: l,
                count: base + i as u64 + 1,
            };
            let start = self.moment(at, Edge::Start)?;
            let from = match i {
                // It follows a step closely, or whatever was done between the two.
                0 if s.before.is_some() => waits.last,
                0 => waits.last.max(s.at),
                _ => self.moment(self.earlier(at), Edge::End)?,
            };
            if start > from {
                self.explain(s, at, (from, start), &mut waits)?;
            }
        }
        if !tasks.is_empty() {
            let count = base + tasks.len() as u64;
            waits.last = self.moment(At { lane: l, count }, Edge::End)?;
        }
        waits.before = Some(Arc::clone(s));
        Ok(())
    }

    /// Sets the streams' clocks by what is known of both sides: no task began before it was handed to its stream,
    /// and none that is complete ended after now. The two clocks drift apart by some microseconds a second.
    fn set_clock(
        &self,
        marked: &List<TaskId, bool>,
        tasks: &[TaskId],
        base: u64,
    ) -> Result<(), CudaError> {
        let Some(streams) = &self.streams else {
            return Ok(());
        };
        let lane = Lane::GPU;
        let count = base + tasks.len() as u64;
        let end = streams.moment(lane, count, Edge::End)?;
        let mut forward = (seconds(self.epoch) - end).min(0.0);
        for (i, &task) in tasks.iter().enumerate() {
            if marked[task] {
                let count = base + i as u64 + 1;
                let given = self.moments.get(lane, count, Edge::Start);
                let start = streams.moment(lane, count, Edge::Start)?;
                forward = forward.max(given - start);
            }
        }
        streams.set_forward(forward);
        Ok(())
    }

    /// When a task began or ended. That end of a stream's task has an event.
    fn moment(&self, at: At, edge: Edge) -> Result<f64, CudaError> {
        match &self.streams {
            Some(streams) if streams.is_stream(at.lane) => streams.moment(at.lane, at.count, edge),
            _ => Ok(self.moments.get(at.lane, at.count, edge)),
        }
    }

    fn earlier(&self, at: At) -> At {
        At {
            count: at.count - 1,
            ..at
        }
    }

    /// Of the tasks of other lanes that a task of `lane` waits for, the one that ended last, and when.
    fn last_need(
        &self,
        s: &Submission<E::Step>,
        task: TaskId,
        lane: Lane,
    ) -> Result<Option<(At, f64)>, CudaError> {
        let mut last: Option<(At, f64)> = None;
        for (other, count) in self.needs(s, task, self.seam(s)) {
            if other == lane {
                continue;
            }
            let at = At { lane: other, count };
            let end = self.moment(at, Edge::End)?;
            if last.is_none_or(|(_, e)| end > e) {
                last = Some((at, end));
            }
        }
        Ok(last)
    }

    /// Follows a pause back that lasted until the start of a task of part `s`.
    fn explain(
        &self,
        s: &Arc<Submission<E::Step>>,
        at: At,
        (from, until): (f64, f64),
        waits: &mut Waits<E::Step>,
    ) -> Result<(), CudaError> {
        let (mut at, mut until) = (at, until);
        let before = waits.before.clone();
        while until > from {
            let part = [Some(s), before.as_ref()];
            let mut parts = part.into_iter().flatten();
            let Some(part) = parts.find(|p| p.base[at.lane] < at.count) else {
                waits.add(Cause::Other, until - from);
                return Ok(());
            };
            let table = &self.tables[part.part];
            let tasks = &table.lanes[at.lane];
            let i = (at.count - part.base[at.lane] - 1) as usize;
            // Of a stretch of tasks that a stream runs without waiting, only the first has an event at its start, and
            // its seconds count for the last one. The first task of a part always has one.
            let stream = self.streams.as_ref().is_some_and(|s| s.is_stream(at.lane));
            let marked = |&i: &usize| !stream || table.marks.start[tasks[i]];
            let first = (0..=i).rev().find(marked).unwrap_or(0);
            let head = At {
                count: at.count - (i - first) as u64,
                ..at
            };
            if at.lane != Lane::GPU {
                let start = self.moment(head, Edge::Start)?.clamp(from, until);
                let task = &self.plan.part(part.part)[tasks[i]];
                waits.add(Cause::of(&self.plan, task), until - start);
                until = start;
            }
            let turn = self.earlier(head);
            let mut last = (turn, self.moment(turn, Edge::End)?);
            if let Some(need) = self.last_need(part, tasks[first], at.lane)?
                && need.1 > last.1
            {
                last = need;
            }
            if last.1 < until {
                let submitted = part.at.clamp(last.1.max(from), until);
                waits.add(Cause::Launch, until - submitted);
                waits.add(Cause::Unsubmitted, submitted - last.1.max(from));
                until = last.1;
            }
            at = last.0;
        }
        Ok(())
    }
}
