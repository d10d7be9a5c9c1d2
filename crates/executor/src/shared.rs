//! What the lanes of a run share, and how any of them does a task.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lowtide_device::Queue;
use lowtide_device::cuda::CudaError;
use lowtide_planner::{Lane, PartName, PerLane, PerPart, Plan, TaskId, Tier};
use lowtide_workload::Workload;

use crate::bind::{Engine, Surroundings, Tiers, poison, run_task};
use crate::error::ExecError;
use crate::options::{Mode, Options};
use crate::parts::{PartTable, Submission};
use crate::progress::Progress;
use crate::streams::Streams;
use crate::timeline::{AnyBusy, Edge, Event, Record, seconds, task_label};
use crate::waits::{Moments, Waits};

#[derive(Clone, Debug)]
pub(crate) enum LaneState {
    Idle,
    Running {
        part: PartName,
        task: TaskId,
    },
    Waiting {
        part: PartName,
        task: TaskId,
        lane: Lane,
        count: u64,
    },
    /// For who reads what the task is to write.
    Held {
        part: PartName,
        task: TaskId,
    },
}

pub(crate) struct Shared<E: Engine> {
    pub plan: Arc<Plan>,
    pub workload: Arc<Workload>,
    pub engine: Arc<E>,
    pub tiers: Tiers,
    pub options: Options,
    pub streams: Option<Streams>,
    pub tables: PerPart<PartTable>,
    pub progress: Progress,
    /// What stopped it, and when.
    pub error: Mutex<Option<(Instant, ExecError)>>,
    pub states: PerLane<Mutex<LaneState>>,
    pub records: PerLane<Mutex<Record>>,
    pub drives: Mutex<AnyBusy>,
    pub moments: Moments,
    pub waits: Mutex<Waits<E::Step>>,
    pub epoch: Instant,
}

pub(crate) fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every critical section leaves its data whole, so a panic elsewhere spoils nothing.
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<E: Engine> Shared<E> {
    /// A task's name for people, with its rank where there are several.
    pub fn label(&self, part: PartName, task: TaskId) -> String {
        let label = task_label(&self.plan, &self.workload, part, task);
        match &self.options.comm {
            Some(comm) => format!("rank {}: {label}", comm.world().rank),
            None => label,
        }
    }

    /// The lanes that the plan has.
    pub fn lanes(&self) -> Vec<Lane> {
        let kinds = self.plan.lane_kinds();
        let lanes = Lane::ALL.into_iter();
        lanes.filter(|lane| kinds.contains(&lane.kind)).collect()
    }

    /// Runs a task whose edges are satisfied (on a stream: whose waits are in it), records it,
    /// completes it or gives it to the stream.
    pub fn run(
        &self,
        queue: &Queue,
        s: &Submission<E::Step>,
        task_idx: TaskId,
    ) -> Result<(), ExecError> {
        let task = &self.plan.part(s.part)[task_idx];
        let lane = task.lane;
        let stream = self.streams.as_ref().filter(|st| st.is_stream(lane));
        let count = s.base[lane] + u64::from(self.tables[s.part].position[task_idx]) + 1;
        let device = |source: CudaError| ExecError::Device {
            task: self.label(s.part, task_idx),
            source,
        };
        let marks = &self.tables[s.part].marks;
        let start = seconds(self.epoch);
        self.moments.set(lane, count, Edge::Start, start);
        if let Some(streams) = stream {
            streams
                .begin(lane, count, s.traced || marks.start[task_idx])
                .map_err(device)?;
        }
        let around = Surroundings {
            plan: &self.plan,
            tiers: &self.tiers,
            engine: &*self.engine,
            workload: &self.workload,
            comm: self.options.comm.as_deref(),
            queue,
            step: &s.step,
            flipped: s.flipped,
            shift: s.shift,
        };
        run_task(&around, task, || self.label(s.part, task_idx))?;
        let Some(streams) = stream else {
            self.keep_pace(s.part, task_idx, start);
            if self.options.poison {
                self.release(queue, s, task_idx);
            }
            let event = Event {
                part: s.part,
                submission: s.seq,
                task: task_idx,
                start,
                end: seconds(self.epoch),
            };
            lock(&self.records[lane]).add(task, event, s.traced);
            self.moments.set(lane, count, Edge::End, event.end);
            self.progress.complete(lane);
            return Ok(());
        };
        streams
            .end(lane, count, s.traced || marks.end[task_idx])
            .map_err(device)?;
        if self.in_turn() {
            let done = || {
                queue
                    .cuda()
                    .map_or(Ok(()), lowtide_device::cuda::Queue::synchronize)
            };
            done().map_err(device)?;
            if self.options.poison {
                self.release(queue, s, task_idx);
                done().map_err(device)?;
            }
            self.progress.reach(lane, count);
        }
        self.progress.give(lane);
        Ok(())
    }

    /// Waits until a task has taken the time that it takes at least.
    pub fn keep_pace(&self, part: PartName, task: TaskId, start: f64) {
        if let Some(pace) = &self.options.pace {
            let left = start + pace[part][task].0 - seconds(self.epoch);
            std::thread::sleep(Duration::from_secs_f64(left.max(0.0)));
        }
    }

    /// Whether each task of a stream is complete before the next is given to it.
    fn in_turn(&self) -> bool {
        self.options.synchronous || self.options.poison || self.options.mode != Mode::Threads
    }

    /// Waits for another lane's tasks: a host lane until they are complete, a stream until they
    /// are given, and then puts the wait in the stream. `waited` are the counts that this lane has
    /// waited for. False when the run has failed.
    pub fn await_need(
        &self,
        lane: Lane,
        (other, count): (Lane, u64),
        waited: &mut PerLane<u64>,
    ) -> Result<bool, CudaError> {
        if waited[other] >= count {
            return Ok(true);
        }
        waited[other] = count;
        let Some(streams) = self.streams.as_ref().filter(|s| s.is_stream(other)) else {
            return Ok(self.progress.wait(other, count));
        };
        if lane == other {
            return Ok(true); // a stream's own order
        }
        if !self.progress.wait_given(other, count, None) {
            return Ok(false);
        }
        if streams.is_stream(lane) {
            streams.wait(lane, other, count)?;
        } else if self.progress.count(other) < count {
            streams.synchronize(other, count)?;
            self.progress.reach(other, count);
        }
        Ok(true)
    }

    /// Waits until what a task writes was read by whoever holds it. False when the run has failed.
    pub fn pass(&self, s: &Submission<E::Step>, task_idx: TaskId) -> bool {
        let Some(hold) = &s.hold else {
            return true;
        };
        let task = &self.plan.part(s.part)[task_idx];
        let lane = task.lane;
        let before = s.base[lane] + u64::from(self.tables[s.part].position[task_idx]);
        for group in hold.written(task) {
            if hold.is_released(group) {
                continue;
            }
            let part = s.part;
            let task = task_idx;
            *lock(&self.states[lane]) = LaneState::Held { part, task };
            // What goes wrong on the device is found by who waits for its tasks.
            let dry = || self.is_complete(lane, before).unwrap_or(true);
            if !hold.wait(group, || self.failed(), dry) {
                return false;
            }
        }
        true
    }

    /// Whether a lane has completed so many tasks, of which the last has an event where the lane is a stream.
    pub fn is_complete(&self, lane: Lane, count: u64) -> Result<bool, CudaError> {
        if self.progress.count(lane) >= count {
            return Ok(true);
        }
        let streams = self.streams.as_ref().filter(|s| s.is_stream(lane));
        match streams.filter(|_| self.progress.begun(lane) >= count) {
            Some(streams) => streams.happened(lane, count),
            None => Ok(false),
        }
    }

    /// Poisons the slots whose last use this task was. The next holder of any of their bytes waits
    /// for every user, so also for this one, which has not completed yet.
    pub fn release(&self, queue: &Queue, s: &Submission<E::Step>, task_idx: TaskId) {
        let task = &self.plan.part(s.part)[task_idx];
        for (i, arg) in task.args.iter().enumerate() {
            if task.args[..i].iter().any(|a| a.slot == arg.slot) {
                continue;
            }
            let slot = &self.plan.slots[arg.slot];
            if slot.persistent || slot.tier == Tier::Disk {
                continue;
            }
            if s.uses[arg.slot].fetch_sub(1, Ordering::AcqRel) == 1 {
                poison(&self.tiers, slot, queue);
            }
        }
    }

    /// Stops this rank; with it, all that wait for it.
    pub fn fail(&self, error: ExecError) {
        let why = error.to_string();
        lock(&self.error).get_or_insert_with(|| (Instant::now(), error));
        self.progress.fail();
        if let Some(comm) = &self.options.comm {
            comm.stop(&why);
        }
    }

    /// Whether the run has failed, here or on another rank: then bytes that were to come from others may be anything,
    /// and no task may use them. Asked behind a task's waits: a group is stopped before any collective ends without its
    /// bytes.
    pub fn failed(&self) -> bool {
        if self.progress.failed() {
            return true;
        }
        let comm = self.options.comm.as_ref();
        let Some((comm, source)) = comm.and_then(|c| Some((c, c.stopped()?))) else {
            return false;
        };
        let task = format!("rank {}", comm.world().rank);
        self.fail(ExecError::Ranks { task, source });
        true
    }

    /// The device failed in something that was given to `lane` and is not complete.
    pub fn lost(&self, lane: Lane, source: CudaError) -> ExecError {
        let task = match &*lock(&self.states[lane]) {
            LaneState::Running { part, task }
            | LaneState::Held { part, task }
            | LaneState::Waiting { part, task, .. } => format!(
                "{} at or before {} (with LOWTIDE_SYNC=1 the task itself is named)",
                lane,
                self.label(*part, *task)
            ),
            LaneState::Idle => format!("{} (with LOWTIDE_SYNC=1 the task itself is named)", lane),
        };
        ExecError::Device { task, source }
    }

    /// What a task must wait for: (lane, tasks completed on it).
    pub fn needs(
        &self,
        s: &Submission<E::Step>,
        task_idx: TaskId,
        seam: &[(TaskId, TaskId)],
    ) -> Vec<(Lane, u64)> {
        let task = &self.plan.part(s.part)[task_idx];
        let of = |part: PartName, base: &PerLane<u64>, d: TaskId| {
            let lane = self.plan.part(part)[d].lane;
            (
                lane,
                base[lane] + u64::from(self.tables[part].position[d]) + 1,
            )
        };
        let mut needs: Vec<(Lane, u64)> =
            task.after.iter().map(|&d| of(s.part, &s.base, d)).collect();
        if let Some((part, base)) = &s.before {
            let from = seam.partition_point(|e| e.0 < task_idx);
            needs.extend(
                seam[from..]
                    .iter()
                    .take_while(|e| e.0 == task_idx)
                    .map(|e| of(*part, base, e.1)),
            );
        }
        needs
    }

    /// Edges from the part before into `s`, sorted by the later task.
    pub fn seam(&self, s: &Submission<E::Step>) -> &[(TaskId, TaskId)] {
        s.before
            .as_ref()
            .and_then(|(from, _)| self.plan.seam(*from, s.part))
            .map_or(&[], |seam| &seam.edges)
    }
}

/// Why a lane has no threads.
pub(crate) fn threads(lane: Lane, threads: usize, why: &std::io::Error) -> ExecError {
    ExecError::Threads {
        lane: lane.name().to_owned(),
        threads,
        why: why.to_string(),
    }
}
