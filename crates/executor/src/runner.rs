//! The runner: submits parts of a plan to the lanes and waits for them.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lowtide_device::Queue;
use lowtide_device::cuda::CudaError;
use lowtide_planner::plan::LANES;
use lowtide_planner::{Lane, LaneKind, PartName, Plan, Tier, check};
use lowtide_tiers::Disk;
use lowtide_units::Bytes;
use lowtide_workload::Workload;

use crate::bind::{Engine, Surroundings, Tiers, poison, run_task};
use crate::disk_lane;
use crate::error::ExecError;
use crate::options::{Mode, Options};
use crate::progress::Progress;
use crate::shuffled::Shuffle;
use crate::streams::{Marks, Streams, marks};
use crate::timeline::{AnyBusy, Edge, Event, Measured, Record, seconds, task_label, write_trace};
use crate::trace::Tracing;
use crate::waits::{Moments, Waits};

/// One submitted part.
pub(crate) struct Submission<S> {
    pub seq: u32,
    pub part: PartName,
    /// When it was submitted, in seconds since the runner began.
    pub at: f64,
    /// Micro-batches that the part runs later than it says.
    pub shift: u32,
    pub step: Arc<S>,
    /// An odd number of commits came before: durable extents have changed places.
    pub flipped: bool,
    /// Tasks each lane completes before this part begins.
    pub base: [u64; LANES],
    /// The same of the part before, when this one overlaps it.
    pub before: Option<(PartName, [u64; LANES])>,
    /// Uses left of each slot that lives inside the part.
    pub uses: Vec<AtomicU32>,
    /// Every task has its events, and they are kept for the trace.
    pub traced: bool,
}

/// What is known of each part before it runs.
pub(crate) struct PartTable {
    /// Task indices by lane.
    pub lanes: [Vec<u32>; LANES],
    /// Position of each task in its lane.
    pub position: Vec<u32>,
    /// Uses of each slot, one a task.
    pub uses: Vec<u32>,
    /// Which tasks begin and end a wait of their lane.
    pub marks: Marks,
}

#[derive(Clone, Debug)]
pub(crate) enum LaneState {
    Idle,
    Running {
        part: PartName,
        task: u32,
    },
    Waiting {
        part: PartName,
        task: u32,
        lane: usize,
        count: u64,
    },
}

pub(crate) struct Shared<E: Engine> {
    pub plan: Arc<Plan>,
    pub workload: Arc<Workload>,
    pub engine: Arc<E>,
    pub tiers: Tiers,
    pub options: Options,
    pub streams: Option<Streams>,
    pub tables: Vec<PartTable>,
    pub progress: Progress,
    pub error: Mutex<Option<ExecError>>,
    pub states: [Mutex<LaneState>; LANES],
    pub records: [Mutex<Record>; LANES],
    pub drives: Mutex<AnyBusy>,
    pub moments: Moments,
    pub waits: Mutex<Waits<E::Step>>,
    pub epoch: Instant,
}

/// A submitted part whose times were not read yet, with the tasks each lane has after it.
type Flying<S> = (Arc<Submission<S>>, [u64; LANES]);

/// Runs a checked plan.
pub struct Runner<E: Engine> {
    shared: Arc<Shared<E>>,
    senders: Vec<Sender<Arc<Submission<E::Step>>>>,
    workers: Vec<JoinHandle<()>>,
    shuffle: Option<Shuffle<E>>,
    submitted: u32,
    tracing: Tracing,
    flipped: bool,
    last: Option<Arc<Submission<E::Step>>>,
    flying: VecDeque<Flying<E::Step>>,
    /// Tasks each lane has when everything submitted is complete; and when all but the last part.
    goal: [u64; LANES],
    /// Tasks complete when the watchdog last saw their number change, and when that was.
    seen: (u64, Instant),
}

pub(crate) fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every critical section leaves its data whole, so a panic elsewhere spoils nothing.
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<E: Engine> Shared<E> {
    pub fn label(&self, part: PartName, task: u32) -> String {
        task_label(&self.plan, &self.workload, part, task)
    }

    /// Runs a task whose edges are satisfied (on a stream: whose waits are in it), records it,
    /// completes it or gives it to the stream.
    pub fn run(
        &self,
        queue: &Queue,
        s: &Submission<E::Step>,
        task_idx: u32,
    ) -> Result<(), ExecError> {
        let task = &self.plan.part(s.part)[task_idx as usize];
        let lane = task.lane.idx();
        let stream = self.streams.as_ref().filter(|st| st.is_stream(lane));
        let count =
            s.base[lane] + u64::from(self.tables[s.part as usize].position[task_idx as usize]) + 1;
        let device = |source: CudaError| ExecError::Device {
            task: self.label(s.part, task_idx),
            source,
        };
        let marks = &self.tables[s.part as usize].marks;
        let start = seconds(self.epoch);
        self.moments.set(lane, count, Edge::Start, start);
        if let Some(streams) = stream {
            streams
                .begin(lane, count, s.traced || marks.start[task_idx as usize])
                .map_err(device)?;
        }
        let around = Surroundings {
            plan: &self.plan,
            tiers: &self.tiers,
            engine: &*self.engine,
            queue,
            step: &s.step,
            flipped: s.flipped,
            shift: s.shift,
        };
        run_task(&around, task, || self.label(s.part, task_idx))?;
        let Some(streams) = stream else {
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
            .end(lane, count, s.traced || marks.end[task_idx as usize])
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

    /// Whether each task of a stream is complete before the next is given to it.
    fn in_turn(&self) -> bool {
        self.options.synchronous || self.options.poison || self.options.mode != Mode::Threads
    }

    /// Waits for another lane's tasks: a host lane until they are complete, a stream until they
    /// are given, and then puts the wait in the stream. `waited` are the counts that this lane has
    /// waited for. False when the run has failed.
    pub fn await_need(
        &self,
        lane: usize,
        (other, count): (usize, u64),
        waited: &mut [u64; LANES],
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

    /// Poisons the slots whose last use this task was. The next holder of any of their bytes waits
    /// for every user, so also for this one, which has not completed yet.
    pub fn release(&self, queue: &Queue, s: &Submission<E::Step>, task_idx: u32) {
        let task = &self.plan.part(s.part)[task_idx as usize];
        for (i, arg) in task.args.iter().enumerate() {
            if task.args[..i].iter().any(|a| a.slot == arg.slot) {
                continue;
            }
            let slot = &self.plan.slots[arg.slot as usize];
            if slot.persistent || slot.tier == Tier::Disk {
                continue;
            }
            if s.uses[arg.slot as usize].fetch_sub(1, Ordering::AcqRel) == 1 {
                poison(&self.tiers, slot, queue);
            }
        }
    }

    pub fn fail(&self, error: ExecError) {
        lock(&self.error).get_or_insert(error);
        self.progress.fail();
    }

    /// The device failed in something that was given to `lane` and is not complete.
    pub fn lost(&self, lane: usize, source: CudaError) -> ExecError {
        let task = match &*lock(&self.states[lane]) {
            LaneState::Running { part, task } | LaneState::Waiting { part, task, .. } => format!(
                "{} at or before {} (with LOWTIDE_SYNC=1 the task itself is named)",
                Lane::ALL[lane],
                self.label(*part, *task)
            ),
            LaneState::Idle => format!(
                "{} (with LOWTIDE_SYNC=1 the task itself is named)",
                Lane::ALL[lane]
            ),
        };
        ExecError::Device { task, source }
    }

    /// What a task must wait for: (lane, tasks completed on it).
    pub fn needs(
        &self,
        s: &Submission<E::Step>,
        task_idx: u32,
        seam: &[(u32, u32)],
    ) -> Vec<(usize, u64)> {
        let task = &self.plan.part(s.part)[task_idx as usize];
        let of = |part: PartName, base: &[u64; LANES], d: u32| {
            let lane = self.plan.part(part)[d as usize].lane.idx();
            (
                lane,
                base[lane] + u64::from(self.tables[part as usize].position[d as usize]) + 1,
            )
        };
        let mut needs: Vec<(usize, u64)> =
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
    pub fn seam(&self, s: &Submission<E::Step>) -> &[(u32, u32)] {
        s.before
            .as_ref()
            .and_then(|(from, _)| self.plan.seam(*from, s.part))
            .map_or(&[], |seam| &seam.edges)
    }

    /// Who waits for whom, starting from the lane that has waited for the others' sake longest.
    pub fn chain(&self) -> String {
        let states: Vec<LaneState> = self.states.iter().map(|s| lock(s).clone()).collect();
        let start = (0..LANES).find(|&l| matches!(states[l], LaneState::Waiting { .. }));
        let running = || {
            (0..LANES)
                .filter_map(|l| match &states[l] {
                    LaneState::Running { part, task } => Some(format!(
                        "{} runs {}",
                        Lane::ALL[l],
                        self.label(*part, *task)
                    )),
                    _ => None,
                })
                .collect::<Vec<_>>()
                .join("; ")
        };
        let Some(mut lane) = start else {
            let text = running();
            return if text.is_empty() {
                "every lane is idle".to_owned()
            } else {
                text
            };
        };
        let mut text = String::new();
        let mut seen = [false; LANES];
        loop {
            if std::mem::replace(&mut seen[lane], true) {
                text.push_str(", which closes a circle");
                return text;
            }
            match &states[lane] {
                LaneState::Waiting {
                    part,
                    task,
                    lane: other,
                    count,
                } => {
                    let label = self.label(*part, *task);
                    text.push_str(&format!(
                        "{} waits with {label} until {} has completed {count} tasks (it has {}); ",
                        Lane::ALL[lane],
                        Lane::ALL[*other],
                        self.progress.count(*other)
                    ));
                    lane = *other;
                }
                LaneState::Running { part, task } => {
                    text.push_str(&format!(
                        "{} is still running {}",
                        Lane::ALL[lane],
                        self.label(*part, *task)
                    ));
                    return text;
                }
                LaneState::Idle => {
                    text.push_str(&format!("{} has nothing more to do", Lane::ALL[lane]));
                    return text;
                }
            }
        }
    }
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
        let tables: Vec<PartTable> = PartName::ALL.iter().map(|&p| table(&plan, p)).collect();
        let epoch = Instant::now();
        let streams = options
            .gpu
            .as_ref()
            .map(|gpu| Streams::new(gpu, &tables, epoch))
            .transpose()?;
        let moments = Moments::new(&tables);
        let trace_events = options.trace.events;
        let mode = options.mode;
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
            states: std::array::from_fn(|_| Mutex::new(LaneState::Idle)),
            records: std::array::from_fn(|_| Mutex::new(Record::new(trace_events))),
            drives: Mutex::default(),
            moments,
            waits: Mutex::default(),
            epoch,
        });
        let mut runner = Self {
            shared: Arc::clone(&shared),
            senders: Vec::new(),
            workers: Vec::new(),
            shuffle: None,
            submitted: 0,
            tracing: Tracing::default(),
            flipped: false,
            last: None,
            flying: VecDeque::new(),
            goal: [0; LANES],
            seen: (0, epoch),
        };
        match mode {
            Mode::Shuffled(seed) => runner.shuffle = Some(Shuffle::new(shared, seed)),
            Mode::Threads => {
                for lane in Lane::ALL {
                    let (sender, receiver) = channel();
                    let its = Arc::clone(&shared);
                    let worker = std::thread::Builder::new()
                        .name(format!("lane-{lane}"))
                        .spawn(move || work(&its, lane, &receiver));
                    runner.senders.push(sender);
                    match worker {
                        Ok(worker) => runner.workers.push(worker),
                        // Told by whatever is asked of the runner next.
                        Err(e) => shared.fail(threads(lane, 1, &e)),
                    }
                }
            }
        }
        Ok(runner)
    }

    /// Queues a part, of a batch in rounds all that belong to it, behind what was submitted before and
    /// returns. At most two parts are in flight: blocks until the one before the last is complete, and
    /// until all are where the plan has no seam for the two to overlap.
    ///
    /// # Errors
    /// What stopped the run.
    pub fn submit(&mut self, part: PartName, step: Arc<E::Step>) -> Result<(), ExecError> {
        let plan = Arc::clone(self.plan());
        for (part, shift) in plan.round_parts(part) {
            self.submit_one(part, shift, Arc::clone(&step))?;
        }
        Ok(())
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
        let table = &self.shared.tables[part as usize];
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
                Vec::new()
            },
            traced,
        });
        for (goal, lane) in self.goal.iter_mut().zip(&table.lanes) {
            *goal += lane.len() as u64;
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
        self.seen = (self.shared.progress.total(), Instant::now());
        Ok(())
    }

    /// Blocks until everything submitted is complete.
    ///
    /// # Errors
    /// What stopped the run.
    pub fn wait(&mut self) -> Result<(), ExecError> {
        self.wait_until(self.goal)
    }

    fn wait_until(&mut self, goal: [u64; LANES]) -> Result<(), ExecError> {
        if let Some(shuffle) = &mut self.shuffle {
            shuffle.run_until(&goal);
        }
        self.seen = (self.shared.progress.total(), Instant::now());
        for (lane, &count) in goal.iter().enumerate() {
            while !self.reached(lane, count) {
                if self.shared.progress.failed() {
                    let error = lock(&self.shared.error).clone();
                    return Err(error.unwrap_or(ExecError::Stopped));
                }
                self.watch();
            }
        }
        while let Some((s, end)) = self.flying.front()
            && end.iter().zip(&goal).all(|(e, g)| e <= g)
        {
            self.shared.retire(s).map_err(|source| ExecError::Device {
                task: "reading the times of a step".to_owned(),
                source,
            })?;
            self.flying.pop_front();
        }
        Ok(())
    }

    /// Whether `lane` completes `count` tasks within a moment. Fails the run when the device did.
    fn reached(&self, lane: usize, count: u64) -> bool {
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
        let total = self.shared.progress.total();
        if total != self.seen.0 || self.idle() {
            self.seen = (total, Instant::now());
        } else if self.seen.1.elapsed() >= self.shared.options.watchdog {
            let seconds = self.seen.1.elapsed().as_secs();
            let chain = self.shared.chain();
            self.shared.fail(ExecError::Stuck { seconds, chain });
        }
    }

    /// Whether everything submitted is complete.
    #[must_use]
    pub fn idle(&self) -> bool {
        (0..LANES).all(|l| self.shared.progress.count(l) >= self.goal[l])
    }

    /// Whether the run has failed; the next wait says why.
    #[must_use]
    pub fn stopped(&self) -> bool {
        self.shared.progress.failed()
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

    /// The plan.
    #[must_use]
    pub fn plan(&self) -> &Arc<Plan> {
        &self.shared.plan
    }

    pub(crate) fn tiers(&self) -> &Tiers {
        &self.shared.tiers
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
        for (sum, record) in m.lanes.iter_mut().zip(&self.shared.records) {
            *sum = lock(record).measure;
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
        let lanes: Vec<Vec<Event>> = self
            .shared
            .records
            .iter()
            .map(|r| lock(r).events.clone())
            .collect();
        write_trace(out, &self.shared.plan, &self.shared.workload, &lanes)
    }
}

impl<E: Engine> Drop for Runner<E> {
    fn drop(&mut self) {
        if !self.idle() {
            self.shared.fail(ExecError::Stopped);
        }
        self.senders.clear();
        for worker in self.workers.drain(..) {
            // Workers catch their tasks' panics; one that died all the same has nothing to add.
            let _ = worker.join();
        }
        if let Some(streams) = &self.shared.streams {
            // Memory is freed after this; what failed there was reported.
            let _ = streams.gpu.synchronize();
        }
    }
}

fn table(plan: &Plan, part: PartName) -> PartTable {
    let tasks = plan.part(part);
    let mut lanes: [Vec<u32>; LANES] = Default::default();
    let mut position = Vec::with_capacity(tasks.len());
    let mut uses = vec![0; plan.slots.len()];
    for (i, task) in tasks.iter().enumerate() {
        let lane = &mut lanes[task.lane.idx()];
        position.push(lane.len() as u32);
        lane.push(i as u32);
        for (k, arg) in task.args.iter().enumerate() {
            if !task.args[..k].iter().any(|a| a.slot == arg.slot) {
                uses[arg.slot as usize] += 1;
            }
        }
    }
    PartTable {
        marks: marks(plan, part, &lanes),
        lanes,
        position,
        uses,
    }
}

/// One lane's thread: takes parts in order, runs its tasks of each in order.
/// Why a lane has no threads.
pub(crate) fn threads(lane: Lane, threads: usize, why: &std::io::Error) -> ExecError {
    ExecError::Threads {
        lane: lane.name().to_owned(),
        threads,
        why: why.to_string(),
    }
}

fn work<E: Engine>(shared: &Shared<E>, lane: Lane, receiver: &Receiver<Arc<Submission<E::Step>>>) {
    if lane.kind == LaneKind::Disk {
        return disk_lane::work(shared, lane, receiver);
    }
    let l = lane.idx();
    let n = shared.options.threads;
    let own = match (lane, &shared.streams) {
        (_, Some(streams)) if streams.is_stream(l) => Ok(None),
        // Beside a GPU updates take every core: what submits to its streams and serves I/O goes first.
        (Lane::HOST, streams) => Queue::spread(lane.name(), n, streams.is_some()).map(Some),
        (Lane::GPU, _) => Queue::start(lane.name(), n).map(Some),
        _ => Queue::start(lane.name(), 1).map(Some),
    };
    let own = match own {
        Ok(own) => own,
        Err(e) => return shared.fail(threads(lane, n, &e)),
    };
    let queue = own
        .as_ref()
        .or_else(|| shared.streams.as_ref().and_then(|s| s.queue(l)))
        .expect("a lane has threads or a stream");
    let mut waited = [0; LANES];
    for s in receiver {
        let seam = shared.seam(&s);
        for &task in &shared.tables[s.part as usize].lanes[l] {
            for (other, count) in shared.needs(&s, task, seam) {
                if waited[other] >= count {
                    continue;
                }
                *lock(&shared.states[l]) = LaneState::Waiting {
                    part: s.part,
                    task,
                    lane: other,
                    count,
                };
                match shared.await_need(l, (other, count), &mut waited) {
                    Ok(true) => {}
                    Ok(false) => return,
                    Err(source) => return shared.fail(shared.lost(other, source)),
                }
            }
            if shared.progress.failed() {
                return;
            }
            *lock(&shared.states[l]) = LaneState::Running { part: s.part, task };
            if let Err(error) = shared.run(queue, &s, task) {
                shared.fail(error);
                return;
            }
        }
        *lock(&shared.states[l]) = LaneState::Idle;
    }
}
