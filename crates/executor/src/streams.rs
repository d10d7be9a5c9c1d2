//! Lanes that are streams of a CUDA device: events at their tasks' ends, and when they happened.
//!
//! A worker gives its tasks to its stream without waiting for them; it lets the stream wait for another
//! stream's event only after that event was recorded ([`Progress::wait_given`]), because a wait for
//! an event that was never recorded holds nothing up. A lane of the host waits for an event itself.
//!
//! Events are recorded where somebody needs them: at the end of a task that another lane waits for,
//! around every stretch of tasks that runs without waiting (so that a lane's busy time is known),
//! and around every task while a trace is recorded. An event costs the device about a microsecond.
//!
//! [`Progress::wait_given`]: crate::progress::Progress::wait_given

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use lowtide_device::Queue;
use lowtide_device::cuda::{self, CudaError, Event, Gpu};
use lowtide_planner::{Lane, LaneKind, PerLane, PerPart, TaskId};

use crate::parts::{Marks, PartTable};
use crate::timeline::{Edge, seconds};

/// Whether a lane is a stream of the device.
pub(crate) fn is_stream(lane: Lane) -> bool {
    matches!(
        lane.kind,
        LaneKind::Gpu | LaneKind::H2d | LaneKind::D2h | LaneKind::Net
    )
}

/// The streams of a run.
#[derive(Debug)]
pub(crate) struct Streams {
    pub gpu: Gpu,
    lanes: PerLane<Option<Stream>>,
}

#[derive(Debug)]
struct Stream {
    queue: Queue,
    /// Events of the lane's tasks, reused by the lane's count of tasks. There are enough that none is recorded again
    /// while its part or the one after it is in flight.
    starts: Vec<Event>,
    ends: Vec<Event>,
    clock: Mutex<Clock>,
}

/// A moment whose time is known on both sides.
#[derive(Clone, Copy, Debug)]
struct Clock {
    /// The end of this task (counted from 1) happened ...
    task: u64,
    /// ... in seconds after the runner began.
    seconds: f64,
}

impl Streams {
    /// A stream for each lane that has one, with its events.
    pub fn new(gpu: &Gpu, tables: &PerPart<PartTable>, epoch: Instant) -> Result<Self, CudaError> {
        let mut lanes: PerLane<Option<Stream>> = PerLane::default();
        for lane in Lane::ALL {
            if !is_stream(lane) {
                continue;
            }
            let most = tables
                .values()
                .map(|t| t.lanes[lane].len())
                .max()
                .unwrap_or(0);
            if lane == Lane::NET && most == 0 {
                continue;
            }
            let events = || (0..4 * most + 1).map(|_| Event::new(gpu)).collect();
            let (starts, ends): (Result<Vec<_>, _>, Result<Vec<_>, _>) = (events(), events());
            // Other ranks wait for a collective, and with them all that they do next. A long kernel of the gpu lane
            // must not hold every multiprocessor until it ends.
            let queue = match lane {
                Lane::NET => cuda::Queue::first(gpu)?,
                _ => cuda::Queue::new(gpu)?,
            };
            let stream = Stream {
                queue: Queue::Cuda(queue),
                starts: starts?,
                ends: ends?,
                clock: Mutex::new(Clock {
                    task: 0,
                    seconds: 0.0,
                }),
            };
            // Count 0 is the beginning.
            stream.cuda().record(stream.end(0))?;
            stream.end(0).synchronize()?;
            stream.clock().seconds = seconds(epoch);
            lanes[lane] = Some(stream);
        }
        Ok(Self {
            gpu: gpu.clone(),
            lanes,
        })
    }

    pub fn queue(&self, lane: Lane) -> Option<&Queue> {
        self.lanes[lane].as_ref().map(|s| &s.queue)
    }

    pub fn is_stream(&self, lane: Lane) -> bool {
        self.lanes[lane].is_some()
    }

    fn stream(&self, lane: Lane) -> &Stream {
        self.lanes[lane].as_ref().expect("asked of stream lanes")
    }

    /// Lets `lane`'s stream wait until `other`'s has completed `count` tasks. Those must have been
    /// given.
    pub fn wait(&self, lane: Lane, other: Lane, count: u64) -> Result<(), CudaError> {
        self.stream(lane).cuda().wait(self.stream(other).end(count))
    }

    /// Blocks until `lane` has completed `count` tasks, which must have been given.
    pub fn synchronize(&self, lane: Lane, count: u64) -> Result<(), CudaError> {
        self.stream(lane).end(count).synchronize()
    }

    /// Whether `lane` has completed `count` tasks, which must have been given.
    pub fn happened(&self, lane: Lane, count: u64) -> Result<bool, CudaError> {
        self.stream(lane).end(count).happened()
    }

    /// Before the lane's task number `count` (from 1); `marked`: its start has an event.
    pub fn begin(&self, lane: Lane, count: u64, marked: bool) -> Result<(), CudaError> {
        if marked {
            let s = self.stream(lane);
            s.cuda().record(s.start(count))?;
        }
        Ok(())
    }

    /// After it. The first error of what was given to the stream since the last call.
    pub fn end(&self, lane: Lane, count: u64, marked: bool) -> Result<(), CudaError> {
        let s = self.stream(lane);
        if let Some(e) = s.cuda().take_error() {
            return Err(e);
        }
        if marked {
            s.cuda().record(s.end(count))?;
        }
        Ok(())
    }

    /// Seconds since the runner began at which the lane's task number `count` began or ended, by the gpu lane's
    /// clock. That edge of the task must have an event, and must have happened.
    pub fn moment(&self, lane: Lane, count: u64, edge: Edge) -> Result<f64, CudaError> {
        let (s, gpu) = (self.stream(lane), self.stream(Lane::GPU));
        let clock = *gpu.clock();
        let event = match edge {
            Edge::Start => s.start(count),
            Edge::End => s.end(count),
        };
        Ok(clock.seconds + event.seconds_since(gpu.end(clock.task))?)
    }

    /// Sets the clocks of all lanes forward.
    pub fn set_forward(&self, seconds: f64) {
        for stream in self.lanes.values().flatten() {
            stream.clock().seconds += seconds;
        }
    }

    /// Times of a completed part's tasks on a stream lane: `each(task, start, end)` for every task
    /// that has both events (all of them where `all`), `stretch(seconds)` for every stretch that
    /// ran without waiting. `tasks` are the part's on this lane, the first of them number
    /// `base + 1`.
    pub fn times(
        &self,
        lane: Lane,
        marks: &Marks,
        (tasks, base): (&[TaskId], u64),
        all: bool,
        mut each: impl FnMut(TaskId, f64, f64),
        mut stretch: impl FnMut(f64),
    ) -> Result<(), CudaError> {
        let Some(&last) = tasks.last() else {
            return Ok(());
        };
        let s = self.stream(lane);
        let mut clock = s.clock();
        let zero = s.end(clock.task);
        let mut open: Option<f64> = None;
        for (i, &task) in tasks.iter().enumerate() {
            let count = base + i as u64 + 1;
            let first = marks.start[task];
            let start = (all || first)
                .then(|| s.start(count).seconds_since(zero))
                .transpose()?;
            if first {
                open = start;
            }
            let closes = tasks.get(i + 1).is_none_or(|&next| marks.start[next]);
            let end = (all || closes)
                .then(|| s.end(count).seconds_since(zero))
                .transpose()?;
            if let (true, Some(from), Some(to)) = (closes, open, end) {
                stretch(to - from);
            }
            if let (Some(start), Some(end)) = (start, end) {
                each(task, clock.seconds + start, clock.seconds + end);
            }
        }
        debug_assert!(marks.end[last], "a part's last task has an event");
        let now = base + tasks.len() as u64;
        clock.seconds += s.end(now).seconds_since(zero)?;
        clock.task = now;
        Ok(())
    }
}

impl Stream {
    fn cuda(&self) -> &cuda::Queue {
        self.queue
            .cuda()
            .expect("a stream lane's queue is a stream")
    }

    fn start(&self, count: u64) -> &Event {
        &self.starts[(count % self.starts.len() as u64) as usize]
    }

    fn end(&self, count: u64) -> &Event {
        &self.ends[(count % self.ends.len() as u64) as usize]
    }

    fn clock(&self) -> MutexGuard<'_, Clock> {
        self.clock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
