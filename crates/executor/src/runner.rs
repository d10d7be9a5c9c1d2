//! The runner: submits parts of a plan to the lanes and waits for them.
//!
//! One file because all of it is the state of one run: what is submitted, what is complete, and by which plan.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::atomic::AtomicU32;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lowtide_device::cuda::CudaError;
use lowtide_planner::{Lane, PartName, PerLane, PerPart, Plan, Tier, check};
use lowtide_tiers::Disk;
use lowtide_units::{Bytes, List};
use lowtide_workload::Workload;

use crate::bind::{Engine, Tiers};
use crate::error::ExecError;
use crate::hold::{HeldFrom, Hold};
use crate::options::{Mode, Options};
use crate::parts::{PartTable, Submission};
use crate::progress::Progress;
use crate::shared::{LaneState, Shared, lock, threads};
use crate::shuffled::Shuffle;
use crate::standstill::Still;
use crate::streams::Streams;
use crate::timeline::{Measured, Record, seconds, write_trace};
use crate::trace::{Trace, Tracing};
use crate::waits::Moments;
use crate::worker::work;

/// A submitted part whose times were not read yet, with the tasks each lane has after it.
type Flying<S> = (Arc<Submission<S>>, PerLane<u64>);

/// Runs a checked plan.
pub struct Runner<E: Engine> {
    shared: Arc<Shared<E>>,
    senders: Vec<Sender<Arc<Submission<E::Step>>>>,
    workers: Vec<JoinHandle<()>>,
    shuffle: Option<Shuffle<E>>,
    submitted: u32,
    tracing: Tracing,
    flipped: bool,
    /// What is read while steps go on, with whether its update is submitted.
    hold: Option<(Arc<Hold>, bool)>,
    /// The plan whose tasks are traced: the first one.
    traced: Arc<Plan>,
    last: Option<Arc<Submission<E::Step>>>,
    flying: VecDeque<Flying<E::Step>>,
    /// Tasks each lane has when everything submitted is complete; and when all but the last part.
    goal: PerLane<u64>,
    /// What the watchdog has seen.
    seen: Still,
}

impl<E: Engine> Runner<E> {
    /// A runner of `plan` on these tiers. The plan must have passed the checker.
    ///
    /// # Errors
    /// When the device gives no stream or event.
    ///
    /// # Panics
    /// When a tier is not exactly as large as planned, or a thread cannot be started.
    pub fn new(
        plan: Arc<Plan>,
        workload: Arc<Workload>,
        engine: Arc<E>,
        tiers: Tiers,
        options: Options,
    ) -> Result<Self, CudaError> {
        for (tier, memory) in [(Tier::Device, &tiers.device), (Tier::Host, &tiers.host)] {
            assert_eq!(
                memory.bytes(),
                plan.tier(tier).planned_bytes,
                "{tier} arena"
            );
        }
        let tables = PerPart::of(|p| PartTable::new(&plan, p, options.holds));
        let epoch = Instant::now();
        let streams = options
            .gpu
            .as_ref()
            .map(|gpu| Streams::new(gpu, &tables, epoch))
            .transpose()?;
        let moments = Moments::new(&tables);
        let (trace_events, ranks) = (options.trace.events, plan.ranks);
        let traced = Arc::clone(&plan);
        let shared = Arc::new(Shared {
            plan,
            workload,
            engine,
            tiers,
            options,
            streams,
            tables,
            progress: Progress::default(),
            error: Mutex::new(None),
            states: PerLane::of(|_| Mutex::new(LaneState::Idle)),
            records: PerLane::of(|_| Mutex::new(Record::new(trace_events, ranks))),
            drives: Mutex::default(),
            moments,
            waits: Mutex::default(),
            epoch,
        });
        let mut runner = Self {
            shared,
            senders: Vec::new(),
            workers: Vec::new(),
            shuffle: None,
            submitted: 0,
            tracing: Tracing::default(),
            flipped: false,
            hold: None,
            traced,
            last: None,
            flying: VecDeque::new(),
            goal: PerLane::default(),
            seen: Still::new(0, epoch),
        };
        runner.start();
        Ok(runner)
    }

    /// Starts a worker for each lane.
    fn start(&mut self) {
        let shared = Arc::clone(&self.shared);
        match shared.options.mode {
            Mode::Shuffled(seed) => self.shuffle = Some(Shuffle::new(shared, seed)),
            Mode::Threads => {
                for lane in shared.lanes() {
                    let (sender, receiver) = channel();
                    let its = Arc::clone(&shared);
                    let worker = std::thread::Builder::new()
                        .name(format!("lane-{lane}"))
                        .spawn(move || work(&its, lane, &receiver));
                    self.senders.push(sender);
                    match worker {
                        Ok(worker) => self.workers.push(worker),
                        // The error is returned by the next call on the runner.
                        Err(e) => shared.fail(threads(lane, 1, &e)),
                    }
                }
            }
        }
    }

    /// Ends the workers, once each has done what it was given.
    fn end(&mut self) {
        self.senders.clear();
        self.shuffle = None;
        for worker in self.workers.drain(..) {
            // Workers catch their tasks' panics; one that died all the same has nothing to add.
            let _ = worker.join();
        }
    }

    /// Goes on with another plan on the same memory, once everything that was submitted is complete; what each lane
    /// does is measured on. Nothing of the new plan is traced: a trace has the tasks of one plan. The engine stays, so
    /// of a plan it may know only what stays the same.
    ///
    /// # Errors
    /// What stopped the run; the device's, when it gives no stream or event: then the old plan can run on.
    ///
    /// # Panics
    /// When a plan would find another state than this one has left ([`check::replaces`]), when something is held, or
    /// updates are still to be made and the caller has not drained.
    pub fn replace(&mut self, plan: Arc<Plan>) -> Result<(), ExecError> {
        if let Err(fault) = check::replaces(self.plan(), &plan) {
            panic!("not the same homes: {fault}");
        }
        assert!(!self.is_held(), "who reads a hold reads by the old plan");
        self.wait()?;
        let options = &self.shared.options;
        let tables = PerPart::of(|p| PartTable::new(&plan, p, options.holds));
        let streams = options.gpu.as_ref();
        let streams = streams.map(|gpu| Streams::new(gpu, &tables, self.shared.epoch));
        let streams = streams.transpose().map_err(|source| ExecError::Device {
            task: "making the streams of another plan".to_owned(),
            source,
        })?;
        self.end();
        self.hold = None;
        self.last = None;
        let shared = Arc::get_mut(&mut self.shared).expect("the workers have ended");
        shared.moments = Moments::new(&tables);
        (shared.plan, shared.tables, shared.streams) = (plan, tables, streams);
        shared.progress = Progress::default();
        shared.states = PerLane::of(|_| Mutex::new(LaneState::Idle));
        shared.options.trace = Trace::NONE;
        // The part before the next one is none of its plan.
        lock(&shared.waits).before = None;
        self.goal = PerLane::default();
        self.seen = Still::new(0, Instant::now());
        self.start();
        Ok(())
    }

    /// Queues a part, of a batch in rounds all that belong to it, behind what was submitted before and
    /// returns. At most two parts are in flight: blocks until the one before the last is complete, and
    /// until all are where the plan has no seam for the two to overlap.
    ///
    /// # Errors
    /// What stopped the run.
    pub fn submit(&mut self, part: PartName, step: Arc<E::Step>) -> Result<(), ExecError> {
        let plan = Arc::clone(self.plan());
        let rounds: Vec<_> = plan.round_parts(part).collect();
        let last = rounds
            .iter()
            .rposition(|&(part, _)| self.updates_held(part));
        let mut needs = Vec::new();
        for (i, (part, shift)) in rounds.into_iter().enumerate() {
            self.submit_one(part, shift, Arc::clone(&step))?;
            self.note_update(part, &mut needs);
            // Who reads begins under the rounds behind the update, which are submitted as those before them end.
            if last == Some(i)
                && let Some((hold, submitted)) = &mut self.hold
            {
                hold.submitted(std::mem::take(&mut needs));
                *submitted = true;
            }
        }
        Ok(())
    }

    /// Whether a part writes what a hold waits for.
    fn updates_held(&self, part: PartName) -> bool {
        let Some((hold, false)) = &self.hold else {
            return false;
        };
        let mut tasks = self.plan().part(part).iter();
        tasks.any(|task| hold.written(task).next().is_some())
    }

    /// Notes which tasks of the part that was submitted last a hold waits for whose update is that part's.
    fn note_update(&self, part: PartName, needs: &mut Vec<Vec<(Lane, u64)>>) {
        let (Some((hold, false)), Some(last)) = (&self.hold, &self.last) else {
            return;
        };
        let table = &self.shared.tables[part];
        for (id, task) in self.plan().part(part).pairs() {
            let count = last.base[task.lane] + u64::from(table.position[id]) + 1;
            hold.need(needs, task, count);
        }
    }

    /// Takes up a hold.
    pub(crate) fn begin_hold(&mut self, hold: Arc<Hold>, from: HeldFrom) {
        self.hold = Some((hold, from == HeldFrom::Now));
    }

    /// Whether something is held.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.hold.as_ref().is_some_and(|(hold, _)| !hold.is_over())
    }

    fn submit_one(
        &mut self,
        part: PartName,
        shift: u32,
        step: Arc<E::Step>,
    ) -> Result<(), ExecError> {
        let overlap = self
            .last
            .as_ref()
            .is_some_and(|l| check::overlaps(l.part, part));
        if overlap {
            let base = self.last.as_ref().expect("there is one").base;
            self.wait_until(base)?;
        } else {
            self.wait()?;
        }
        let table = &self.shared.tables[part];
        let before = overlap
            .then(|| self.last.as_ref().map(|l| (l.part, l.base)))
            .flatten();
        let traced = self
            .tracing
            .takes(part, &table.lanes, self.shared.options.trace);
        let submission = Arc::new(Submission {
            seq: self.submitted,
            part,
            at: seconds(self.shared.epoch),
            shift,
            step,
            flipped: self.flipped,
            base: self.goal,
            before,
            uses: if self.shared.options.poison {
                table.uses.iter().map(|&n| AtomicU32::new(n)).collect()
            } else {
                List::default()
            },
            traced,
            hold: self
                .hold
                .as_ref()
                .filter(|(hold, submitted)| *submitted && !hold.is_over())
                .map(|(hold, _)| Arc::clone(hold)),
        });
        for (lane, goal) in self.goal.iter_mut() {
            *goal += table.lanes[lane].len() as u64;
        }
        self.submitted += 1;
        self.flipped ^= self.shared.plan.commits(part);
        for sender in &self.senders {
            // A worker is gone only after a failure, which the next wait reports.
            let _ = sender.send(Arc::clone(&submission));
        }
        if let Some(shuffle) = &mut self.shuffle {
            shuffle.push(Arc::clone(&submission));
        }
        self.flying.push_back((Arc::clone(&submission), self.goal));
        self.last = Some(submission);
        self.seen = Still::new(self.progress(), Instant::now());
        Ok(())
    }

    /// Blocks until everything submitted is complete.
    ///
    /// # Errors
    /// What stopped the run.
    pub fn wait(&mut self) -> Result<(), ExecError> {
        self.wait_until(self.goal)
    }

    fn wait_until(&mut self, goal: PerLane<u64>) -> Result<(), ExecError> {
        if let Some(shuffle) = &mut self.shuffle {
            shuffle.run_until(&goal);
        }
        self.seen = Still::new(self.progress(), Instant::now());
        for (lane, &count) in goal.iter() {
            while !self.reached(lane, count) {
                if self.shared.failed() {
                    return Err(self.cause_of_the_end());
                }
                self.watch();
            }
        }
        // What is complete may have used bytes that never came from another rank.
        if self.shared.failed() {
            return Err(self.cause_of_the_end());
        }
        while let Some((s, end)) = self.flying.front()
            && end.iter().all(|(lane, count)| *count <= goal[lane])
        {
            if let Err(source) = self.shared.retire(s) {
                // Whoever reads what is held must not wait for more.
                let error = ExecError::Device {
                    task: "reading the times of a step".to_owned(),
                    source,
                };
                self.shared.fail(error.clone());
                return Err(error);
            }
            self.flying.pop_front();
        }
        Ok(())
    }

    /// What stopped the run.
    fn cause_of_the_end(&self) -> ExecError {
        self.error().map_or(ExecError::Stopped, |(_, error)| error)
    }

    /// Whether `lane` completes `count` tasks within a moment. Fails the run when the device did.
    fn reached(&self, lane: Lane, count: u64) -> bool {
        let shared = &*self.shared;
        let limit = Duration::from_millis(200).min(shared.options.watchdog);
        let Some(streams) = shared.streams.as_ref().filter(|s| s.is_stream(lane)) else {
            return shared.progress.wait_for(lane, count, Some(limit));
        };
        if shared.progress.count(lane) >= count {
            return !shared.progress.failed();
        }
        if !shared.progress.wait_given(lane, count, Some(limit)) {
            return false;
        }
        let start = Instant::now();
        while start.elapsed() < limit && !shared.progress.failed() {
            match streams.happened(lane, count) {
                Ok(true) => {
                    shared.progress.reach(lane, count);
                    return true;
                }
                Ok(false) => std::thread::sleep(Duration::from_micros(100)),
                Err(source) => {
                    shared.fail(shared.lost(lane, source));
                    return false;
                }
            }
        }
        false
    }

    /// Looks after the lanes for a caller that waits for a result and not for the runner: call it
    /// again and again while that lasts. Fails the run when it stands still; the next wait says so.
    pub fn watch(&mut self) {
        let (total, now) = (self.progress(), Instant::now());
        if self.idle() {
            self.seen = Still::new(total, now);
            return;
        }
        let lasts = self.seen.look(total, now);
        if lasts >= self.shared.options.watchdog {
            let (seconds, chain) = (lasts.as_secs(), self.shared.chain());
            self.shared.fail(ExecError::Stuck { seconds, chain });
        }
    }

    /// Grows whenever a lane gets on, or who reads what lanes wait for.
    fn progress(&self) -> u64 {
        let hold = self.hold.as_ref();
        let reads = hold.map_or(0, |(hold, _)| hold.reads());
        self.shared.progress.total() + reads
    }

    /// Whether everything submitted is complete.
    #[must_use]
    pub fn idle(&self) -> bool {
        Lane::ALL
            .into_iter()
            .all(|l| self.shared.progress.count(l) >= self.goal[l])
    }

    /// Whether the run has failed, here or on another rank; the next wait says why.
    #[must_use]
    pub fn stopped(&self) -> bool {
        self.shared.failed()
    }

    /// Stops what is under way, and whoever waits for this rank.
    pub fn stop(&self) {
        if !self.idle() {
            self.shared.fail(ExecError::Stopped);
        }
    }

    /// What stopped the run, if something did, and when.
    #[must_use]
    pub fn error(&self) -> Option<(Instant, ExecError)> {
        lock(&self.shared.error).clone()
    }

    /// Whether the second extent of every durable tensor is the current one, when all is done.
    #[must_use]
    pub fn flipped(&self) -> bool {
        self.flipped
    }

    /// Goes on from the state that an earlier run committed; to be called before anything runs.
    pub fn flip(&mut self, flipped: bool) {
        self.flipped = flipped;
    }

    /// Collectives that this rank has made, or given to its stream.
    #[must_use]
    pub fn exchanged(&self) -> u64 {
        self.shared.progress.begun(Lane::NET)
    }

    /// Who waits for whom on this rank's lanes.
    #[must_use]
    pub fn chain(&self) -> String {
        self.shared.chain()
    }

    /// The plan whose parts are submitted.
    #[must_use]
    pub fn plan(&self) -> &Arc<Plan> {
        &self.shared.plan
    }

    pub(crate) fn tiers(&self) -> &Tiers {
        &self.shared.tiers
    }

    pub(crate) fn shared(&self) -> &Arc<Shared<E>> {
        &self.shared
    }

    /// The disk, if there is one.
    #[must_use]
    pub fn disk(&self) -> Option<&Disk> {
        self.shared.tiers.disk.as_ref()
    }

    /// Bytes of the device's memory and the host's.
    #[must_use]
    pub fn reserved(&self) -> [Bytes; 2] {
        let tiers = &self.shared.tiers;
        [tiers.device.bytes(), tiers.host.bytes()]
    }

    /// Sums of what the lanes did so far.
    #[must_use]
    pub fn measured(&self) -> Measured {
        let mut m = Measured::default();
        for (lane, sum) in m.lanes.iter_mut() {
            *sum = lock(&self.shared.records[lane]).measure;
        }
        m.gpu_waits = lock(&self.shared.waits).seconds;
        m.drive_seconds = lock(&self.shared.drives).seconds(seconds(self.shared.epoch));
        m
    }

    /// Writes the recorded events in the format that Perfetto loads.
    ///
    /// # Errors
    /// The writer's.
    pub fn write_trace(&self, out: &mut dyn Write) -> std::io::Result<()> {
        let lanes = PerLane::of(|lane| lock(&self.shared.records[lane]).events.clone());
        write_trace(out, &self.traced, &self.shared.workload, &lanes)
    }
}

impl<E: Engine> Drop for Runner<E> {
    fn drop(&mut self) {
        self.stop();
        self.end();
        if let Some(streams) = &self.shared.streams {
            // Memory is freed after this; what failed there was reported.
            let _ = streams.gpu.synchronize();
        }
    }
}
