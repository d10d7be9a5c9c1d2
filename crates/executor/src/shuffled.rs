//! Shuffled lanes: every interleaving that the edges allow, one for each seed, on one thread.
//!
//! A disk transfer begins and ends at different moments here too, two of a lane at once by the rules
//! of [`crate::disk_lane`]. When between the two its bytes move is drawn: at once, at its end, or
//! because another transfer has to wait for it on the drive.

use std::collections::VecDeque;
use std::sync::Arc;

use lowtide_device::Queue;
use lowtide_planner::{Lane, LaneKind, PerLane, TaskId, Work};
use lowtide_tiers::{Extent, Kind};

use crate::bind::{Engine, extent_of, submit_transfer};
use crate::disk_lane::{Place, ahead, is_transfer, memory_of};
use crate::error::ExecError;
use crate::parts::Submission;
use crate::shared::{LaneState, Shared, lock};
use crate::timeline::{Event, seconds};

/// A task of a submitted part.
type Waiting<E> = (Arc<Submission<<E as Engine>::Step>>, TaskId);

pub(crate) struct Shuffle<E: Engine> {
    shared: Arc<Shared<E>>,
    queue: Queue,
    state: u64,
    /// The lane that may run only where no other can, if there is one.
    slow: Option<Lane>,
    /// Each lane's tasks that have not begun.
    lanes: PerLane<VecDeque<Waiting<E>>>,
    /// Transfers that have begun and not ended, in the order in which they began.
    flying: Vec<Flight<E>>,
}

/// A transfer between its beginning and its end.
struct Flight<E: Engine> {
    lane: Lane,
    waiting: Waiting<E>,
    memory: Place,
    kind: Kind,
    extent: Extent,
    start: f64,
    /// What the drive said, once the bytes have moved.
    moved: Option<Result<(), ExecError>>,
}

impl<E: Engine> Shuffle<E> {
    pub fn new(shared: Arc<Shared<E>>, seed: u64) -> Self {
        let queue = Queue::new("shuffled", shared.options.threads);
        Self {
            shared,
            queue,
            state: seed,
            slow: None,
            lanes: PerLane::of(|_| VecDeque::new()),
            flying: Vec::new(),
        }
    }

    pub fn push(&mut self, s: Arc<Submission<E::Step>>) {
        // In every other part one lane is as far behind as the edges allow: otherwise a mistake that shows only when
        // a task is very late would hardly ever be seen.
        let lanes = self.shared.lanes();
        let drawn = self.draw(2 * lanes.len());
        self.slow = lanes.get(drawn).copied();
        for (lane, tasks) in self.shared.tables[s.part].lanes.iter() {
            self.lanes[lane].extend(tasks.iter().map(|&t| (Arc::clone(&s), t)));
        }
    }

    /// SplitMix64.
    fn draw(&mut self, n: usize) -> usize {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }

    /// What each lane waits for, for the report that none can run.
    fn note_states(&self) {
        let shared = &self.shared;
        for (lane, tasks) in self.lanes.iter() {
            *lock(&shared.states[lane]) =
                tasks.front().map_or(LaneState::Idle, |&(ref s, task)| {
                    let needs = shared.needs(s, task, shared.seam(s));
                    needs
                        .into_iter()
                        .find(|&(lane, count)| shared.progress.count(lane) < count)
                        .map_or(LaneState::Idle, |(lane, count)| LaneState::Waiting {
                            part: s.part,
                            task,
                            lane,
                            count,
                        })
                });
        }
    }

    fn work(&self, waiting: &Waiting<E>) -> Work {
        self.shared.plan.part(waiting.0.part)[waiting.1].work
    }

    fn flying(&self, lane: Lane) -> impl Iterator<Item = &Flight<E>> {
        self.flying.iter().filter(move |f| f.lane == lane)
    }

    /// Whether the next task of a lane may begin.
    fn begins(&self, lane: Lane) -> bool {
        let Some(waiting) = self.lanes[lane].front() else {
            return false;
        };
        let (s, task) = (&waiting.0, waiting.1);
        let shared = &self.shared;
        let needs = shared.needs(s, task, shared.seam(s));
        let met = |&(lane, count): &(Lane, u64)| shared.progress.count(lane) >= count;
        if !needs.iter().all(met) {
            return false;
        }
        let memory = memory_of(&shared.plan, s, task);
        let others = self.flying(lane).map(|f| &f.memory);
        let unfinished = self.flying(lane).count() as u64;
        lane.kind != LaneKind::Disk || unfinished <= ahead(self.work(waiting), &memory, others)
    }

    /// Whether a transfer of a lane may end.
    fn ends(&self, lane: Lane) -> bool {
        self.flying(lane).next().is_some()
    }

    /// Begins tasks and ends transfers in random order until every lane has completed `goal` tasks.
    /// Each draw first picks a lane to favour for a while, so that lanes also run far apart.
    pub fn run_until(&mut self, goal: &PerLane<u64>) {
        let shared = Arc::clone(&self.shared);
        let mut favour = (Lane::GPU, 0);
        while Lane::ALL
            .into_iter()
            .any(|l| shared.progress.count(l) < goal[l])
            && !shared.failed()
        {
            let ready = Lane::ALL
                .into_iter()
                .filter(|&l| self.begins(l) || self.ends(l));
            let mut ready: Vec<Lane> = ready.collect();
            if ready.len() > 1 {
                ready.retain(|&l| Some(l) != self.slow);
            }
            if ready.is_empty() {
                self.note_states();
                let chain = shared.chain();
                shared.fail(ExecError::Stuck { seconds: 0, chain });
                return;
            }
            if favour.1 == 0 || !ready.contains(&favour.0) {
                favour = (ready[self.draw(ready.len())], self.draw(12));
            } else {
                favour.1 -= 1;
            }
            let lane = favour.0;
            let ends = self.ends(lane) && (!self.begins(lane) || self.draw(2) == 0);
            let done = if ends {
                self.end(lane)
            } else {
                self.begin(lane)
            };
            if let Err(error) = done {
                shared.fail(error);
            }
        }
    }

    fn begin(&mut self, lane: Lane) -> Result<(), ExecError> {
        let waiting = self.lanes[lane].pop_front().expect("it may begin");
        let (s, task) = (Arc::clone(&waiting.0), waiting.1);
        let shared = Arc::clone(&self.shared);
        if !is_transfer(self.work(&waiting)) {
            let queue = shared.streams.as_ref().and_then(|s| s.queue(lane));
            return shared.run(queue.unwrap_or(&self.queue), &s, task);
        }
        let planned = &shared.plan.part(s.part)[task];
        let (kind, extent, _) = extent_of(&shared.plan, planned, (s.flipped, s.shift));
        self.flying.push(Flight {
            lane,
            memory: memory_of(&shared.plan, &s, task),
            waiting,
            kind,
            extent,
            start: seconds(shared.epoch),
            moved: None,
        });
        if self.draw(2) == 0 {
            self.moves(self.flying.len() - 1);
        }
        Ok(())
    }

    /// Moves a transfer's bytes, those first of earlier ones that a drive keeps before it.
    fn moves(&mut self, at: usize) {
        if self.flying[at].moved.is_some() {
            return;
        }
        for before in 0..at {
            let (a, b) = (&self.flying[before], &self.flying[at]);
            let ends = |e: Extent| e.offset + e.bytes;
            let (x, y) = (a.extent, b.extent);
            let overlap = x.offset < ends(y) && y.offset < ends(x);
            if overlap && (a.kind == Kind::Write || b.kind == Kind::Write) {
                self.moves(before);
            }
        }
        let shared = &self.shared;
        let (s, task) = &self.flying[at].waiting;
        let planned = &shared.plan.part(s.part)[*task];
        let deadline = (u64::from(s.seq) << 32) | u64::from(task.0);
        let place = (s.flipped, s.shift);
        let ticket = submit_transfer(&shared.plan, &shared.tiers, planned, deadline, place);
        let done = ticket.wait().map_err(|source| ExecError::Disk {
            task: shared.label(s.part, *task),
            source,
        });
        self.flying[at].moved = Some(done);
    }

    /// The oldest transfer of a lane ends.
    fn end(&mut self, lane: Lane) -> Result<(), ExecError> {
        let oldest = self.flying.iter().position(|f| f.lane == lane);
        let at = oldest.expect("one is flying");
        self.moves(at);
        let flight = self.flying.remove(at);
        flight.moved.expect("moved above")?;
        let (s, task) = flight.waiting;
        let shared = &self.shared;
        if shared.options.poison {
            shared.release(&self.queue, &s, task);
        }
        let event = Event {
            part: s.part,
            submission: s.seq,
            task,
            start: flight.start,
            end: seconds(shared.epoch),
        };
        let planned = &shared.plan.part(s.part)[task];
        lock(&shared.records[lane]).add(planned, event, s.traced);
        shared.progress.complete(lane);
        Ok(())
    }
}
