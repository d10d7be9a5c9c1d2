//! A disk lane's worker: the next transfer is with the drive before the last one has ended, so that
//! the drive never runs dry between two of them.
//!
//! One thread submits tasks in plan order as soon as their edges allow, at most [`AHEAD`] before
//! they end; another waits for them in the same order and completes them. Others see what they
//! always saw: a lane that completes its tasks one after the other. What tasks of one lane owe each
//! other because the lane is serial holds still: writes to the same extent are kept in order by the
//! drive's arbiter, and a read into memory that an unfinished one of the lane fills waits for it, as
//! does everything that is no transfer. Shuffled lanes ([`crate::shuffled`]) begin and complete
//! transfers by the same rules.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use lowtide_device::Queue;
use lowtide_planner::{Lane, PartName, PerLane, Plan, TaskId, Tier, Work};
use lowtide_tiers::Ticket;

use crate::bind::{Engine, submit_transfer};
use crate::error::ExecError;
use crate::parts::Submission;
use crate::shared::{LaneState, Shared, lock, threads};
use crate::timeline::{Edge, Event, seconds};

/// Transfers of a lane that are submitted and not complete. With two, the drive has the next one's
/// blocks when the last blocks of this one are in flight; more would only hold slots longer.
const AHEAD: u64 = 2;

/// Bytes of a tier that is memory.
pub(crate) type Place = (Tier, Range<u64>);

/// A transfer that the drive has.
struct Flying<S> {
    submission: Arc<Submission<S>>,
    task: TaskId,
    ticket: Ticket,
    start: f64,
}

/// What the lane shows of itself while it stands still.
struct Shown {
    flying: VecDeque<(PartName, TaskId, Place)>,
    next: LaneState,
}

impl Shown {
    fn state(&self) -> LaneState {
        match self.flying.front() {
            Some(&(part, task, _)) => LaneState::Running { part, task },
            None => self.next.clone(),
        }
    }
}

struct DiskLane<'a, E: Engine> {
    shared: &'a Shared<E>,
    lane: Lane,
    queue: Queue,
    shown: Mutex<Shown>,
}

/// The lane's thread: as `work` of the other lanes.
pub(crate) fn work<E: Engine>(
    shared: &Shared<E>,
    lane: Lane,
    receiver: &Receiver<Arc<Submission<E::Step>>>,
) {
    let queue = match Queue::start(lane.name(), 1) {
        Ok(queue) => queue,
        Err(e) => return shared.fail(threads(lane, 1, &e)),
    };
    let lane = DiskLane {
        shared,
        lane,
        queue,
        shown: Mutex::new(Shown {
            flying: VecDeque::new(),
            next: LaneState::Idle,
        }),
    };
    let (sender, flying) = channel();
    std::thread::scope(|scope| {
        scope.spawn(|| lane.complete_all(flying));
        lane.submit_all(receiver, &sender);
        drop(sender);
    });
}

impl<E: Engine> DiskLane<'_, E> {
    fn submit_all(
        &self,
        receiver: &Receiver<Arc<Submission<E::Step>>>,
        sender: &Sender<Flying<E::Step>>,
    ) {
        let (shared, l) = (self.shared, self.lane);
        let mut waited = PerLane::default();
        for s in receiver {
            let seam = shared.seam(&s);
            let table = &shared.tables[s.part];
            for &task in &table.lanes[l] {
                for need in shared.needs(&s, task, seam) {
                    let (other, count) = need;
                    if waited[other] >= count {
                        continue;
                    }
                    self.show_next(LaneState::Waiting {
                        part: s.part,
                        task,
                        lane: other,
                        count,
                    });
                    match shared.await_need(l, need, &mut waited) {
                        Ok(true) => {}
                        Ok(false) => return,
                        Err(source) => return shared.fail(shared.lost(other, source)),
                    }
                }
                // Tasks of this lane before this one.
                let before = s.base[l] + u64::from(table.position[task]);
                let work = shared.plan.part(s.part)[task].work;
                let memory = memory_of(&shared.plan, &s, task);
                let ahead = {
                    let shown = lock(&self.shown);
                    ahead(work, &memory, shown.flying.iter().map(|f| &f.2))
                };
                if !shared.progress.wait(l, before.saturating_sub(ahead)) {
                    return;
                }
                if !shared.pass(&s, task) || shared.failed() {
                    return;
                }
                if !is_transfer(work) {
                    self.show_next(LaneState::Running { part: s.part, task });
                    if let Err(error) = shared.run(&self.queue, &s, task) {
                        return shared.fail(error);
                    }
                    continue;
                }
                let start = self.take_off((s.part, task, memory));
                self.show_next(LaneState::Idle);
                let flying = Flying {
                    ticket: submit_transfer(
                        &shared.plan,
                        &shared.tiers,
                        &shared.plan.part(s.part)[task],
                        (u64::from(s.seq) << 32) | u64::from(task.0),
                        (s.flipped, s.shift),
                    ),
                    submission: Arc::clone(&s),
                    task,
                    start,
                };
                if sender.send(flying).is_err() {
                    return; // the other thread has failed the run
                }
            }
            self.show_next(LaneState::Idle);
        }
    }

    fn complete_all(&self, flying: Receiver<Flying<E::Step>>) {
        let (shared, l) = (self.shared, self.lane);
        let mut last = 0.0f64;
        for f in flying {
            if let Err(source) = f.ticket.wait() {
                let task = shared.label(f.submission.part, f.task);
                return shared.fail(ExecError::Disk { task, source });
            }
            let s = &f.submission;
            shared.keep_pace(s.part, f.task, f.start.max(last));
            if shared.options.poison {
                shared.release(&self.queue, s, f.task);
            }
            // A lane does one task at a time: what began under another one begins with its end.
            let event = Event {
                part: s.part,
                submission: s.seq,
                task: f.task,
                start: f.start.max(last),
                end: seconds(shared.epoch),
            };
            last = event.end;
            let task = &shared.plan.part(s.part)[f.task];
            lock(&shared.records[l]).add(task, event, s.traced);
            let position = shared.tables[s.part].position[f.task];
            let count = s.base[l] + u64::from(position) + 1;
            shared.moments.set(l, count, Edge::Start, event.start);
            shared.moments.set(l, count, Edge::End, event.end);
            self.land(last);
            shared.progress.complete(l);
        }
    }

    /// A transfer goes to the drive: when.
    fn take_off(&self, transfer: (PartName, TaskId, Place)) -> f64 {
        let mut shown = lock(&self.shown);
        let now = seconds(self.shared.epoch);
        if shown.flying.is_empty() {
            lock(&self.shared.drives).enter(now);
        }
        shown.flying.push_back(transfer);
        now
    }

    /// The oldest transfer has ended.
    fn land(&self, now: f64) {
        let mut shown = lock(&self.shown);
        shown.flying.pop_front();
        if shown.flying.is_empty() {
            lock(&self.shared.drives).leave(now);
        }
        *lock(&self.shared.states[self.lane]) = shown.state();
    }

    fn show_next(&self, next: LaneState) {
        let mut shown = lock(&self.shown);
        shown.next = next;
        *lock(&self.shared.states[self.lane]) = shown.state();
    }
}

pub(crate) fn is_transfer(work: Work) -> bool {
    matches!(work, Work::Read | Work::Write)
}

/// The bytes of memory that a transfer reads or writes; none for other work.
pub(crate) fn memory_of<S>(plan: &Plan, s: &Submission<S>, task: TaskId) -> Place {
    let task = &plan.part(s.part)[task];
    let arg = match task.work {
        Work::Read => &task.args[1],
        Work::Write => &task.args[0],
        _ => return (Tier::Host, 0..0),
    };
    let slot = &plan.slots[plan.shifted(arg.slot, s.shift)];
    let start = slot.offset + arg.offset;
    (slot.tier, start..start + arg.bytes)
}

/// How many tasks of the lane before this one may be unfinished when it begins. `memory` is its own,
/// `flying` that of the lane's transfers that have not ended.
pub(crate) fn ahead<'a>(
    work: Work,
    (tier, memory): &Place,
    mut flying: impl Iterator<Item = &'a Place>,
) -> u64 {
    let mut is_being_filled = || {
        flying.any(|(of, other)| of == tier && other.start < memory.end && memory.start < other.end)
    };
    let alone = !is_transfer(work) || (work == Work::Read && is_being_filled());
    if alone { 0 } else { AHEAD - 1 }
}
