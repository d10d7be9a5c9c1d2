//! Derives what each task must wait for from the bytes it uses, and leaves out what its lane's own
//! order and its other edges already guarantee.

use std::collections::BTreeMap;
use std::ops::Range;

use lowtide_units::List;

use crate::plan::{Lane, PerLane, PerTier, Slot, SlotId, Task, Use, Work};

/// For each lane one past the last task known to be complete; 0: none.
pub(crate) type Clock = PerLane<u32>;

fn join(a: &mut Clock, b: &Clock) {
    for (x, y) in a.zip_mut(b) {
        *x = (*x).max(*y);
    }
}

/// Who used a byte range last.
#[derive(Clone, Copy, Default)]
struct Users {
    writer: Clock,
    readers: Clock,
}

/// Uses of an arena's bytes, as ranges that cover it without gaps or overlaps.
#[derive(Clone, Default)]
struct Ranges(BTreeMap<u64, (u64, Users)>);

impl Ranges {
    fn split(&mut self, at: u64) {
        if let Some((&from, &(to, users))) = self.0.range(..at).next_back()
            && to > at
        {
            self.0.insert(from, (at, users));
            self.0.insert(at, (to, users));
        }
    }

    /// Collects into `needs` what an access to `from..to` must follow, and records it.
    fn access(
        &mut self,
        from: u64,
        to: u64,
        access: Use,
        lane: Lane,
        mark: u32,
        needs: &mut Clock,
    ) {
        if from == to {
            return;
        }
        // Most accesses are to exactly what an earlier one was to.
        match self.0.get_mut(&from) {
            Some((end, users)) if *end == to => users.record(access, lane, mark, needs),
            _ if access == Use::Read => self.read(from, to, lane, mark, needs),
            _ => self.write(from, to, lane, mark, needs),
        }
    }

    fn read(&mut self, from: u64, to: u64, lane: Lane, mark: u32, needs: &mut Clock) {
        self.split(from);
        self.split(to);
        let mut at = from;
        let mut gaps = Vec::new();
        for (&start, (end, users)) in self.0.range_mut(from..to) {
            if start > at {
                gaps.push((at, start));
            }
            users.record(Use::Read, lane, mark, needs);
            at = *end;
        }
        if at < to {
            gaps.push((at, to));
        }
        for (a, b) in gaps {
            let mut users = Users::default();
            users.readers[lane] = mark;
            self.0.insert(a, (b, users));
        }
    }

    /// The whole range becomes one: its bytes have one last user from here on. Without this,
    /// ranges would only ever get smaller.
    fn write(&mut self, from: u64, to: u64, lane: Lane, mark: u32, needs: &mut Clock) {
        self.split(from);
        self.split(to);
        let mut inside = Vec::new();
        for (&start, (_, users)) in self.0.range(from..to) {
            join(needs, &users.writer);
            join(needs, &users.readers);
            inside.push(start);
        }
        for start in inside {
            self.0.remove(&start);
        }
        let mut users = Users::default();
        users.writer[lane] = mark;
        self.0.insert(from, (to, users));
    }
}

impl Users {
    fn record(&mut self, access: Use, lane: Lane, mark: u32, needs: &mut Clock) {
        join(needs, &self.writer);
        if access == Use::Read {
            self.readers[lane] = mark;
        } else {
            join(needs, &self.readers);
            *self = Self::default();
            self.writer[lane] = mark;
        }
    }
}

/// The edges of a sequence of tasks, made part by part. A clone continues from the same past.
#[derive(Clone)]
pub(crate) struct Edges<'a> {
    slots: &'a List<SlotId, Slot>,
    /// Slots that each micro-batch has its own of, see [`crate::plan::Plan::late`].
    late: Range<SlotId>,
    /// An odd number of updates was committed: durable extents have changed places.
    flipped: bool,
    arenas: PerTier<Ranges>,
    /// Lane and mark of the last commit.
    committed: Option<(Lane, u32)>,
    /// Lane of each task so far, and what it knows to be complete.
    known: Vec<(Lane, Clock)>,
    last_of_lane: PerLane<Option<usize>>,
}

impl<'a> Edges<'a> {
    pub(crate) fn new(slots: &'a List<SlotId, Slot>, late: &Range<SlotId>) -> Self {
        Self {
            slots,
            late: late.clone(),
            flipped: false,
            arenas: PerTier::default(),
            committed: None,
            known: Vec::new(),
            last_of_lane: PerLane::default(),
        }
    }

    /// For every task, behind those before, the tasks (by position in the whole sequence) that it
    /// must wait for, no more than one a lane. The tasks run `shift` micro-batches later than they say.
    pub(crate) fn extend(&mut self, tasks: &[Task], shift: u32) -> Vec<Vec<u32>> {
        self.known.reserve(tasks.len());
        let barrier = barrier(tasks);
        let next = |task| self.next(task, shift, barrier(task));
        let after = tasks.iter().map(next).collect();
        self.flipped ^= tasks.iter().any(|t| t.work == Work::Commit);
        after
    }

    /// `barrier`: no rank's next update begins before all ranks have begun this task.
    fn next(&mut self, task: &Task, shift: u32, barrier: bool) -> Vec<u32> {
        let i = self.known.len();
        let lane = task.lane;
        let mark = i as u32 + 1;
        let mut needs = Clock::default();
        for arg in &task.args {
            let shift = if self.late.contains(&arg.slot) {
                shift
            } else {
                0
            };
            let mut slot = &self.slots[SlotId(arg.slot.0 + shift)];
            if let Some((_, other)) = slot.version.filter(|_| self.flipped) {
                slot = &self.slots[other];
            }
            // A transient slot is used as a whole: its last user may fill all of it when its life
            // ends, and the next holder of any of its bytes waits for all its users.
            let (from, bytes) = if slot.persistent {
                (slot.offset + arg.offset, arg.bytes)
            } else {
                (slot.offset, slot.bytes)
            };
            let arena = &mut self.arenas[slot.tier];
            arena.access(from, from + bytes, arg.access, lane, mark, &mut needs);
        }
        if let Some((lane, commit)) = self.committed.filter(|_| barrier) {
            needs[lane] = needs[lane].max(commit);
        }
        if task.work == Work::Commit {
            self.committed = Some((lane, mark));
        }
        // What the lane's own order guarantees.
        let mut have = self.last_of_lane[lane].map_or(Clock::default(), |p| {
            let mut c = self.known[p].1;
            c[lane] = p as u32 + 1;
            c
        });
        needs[lane] = 0;
        let mut after = Vec::new();
        // Later tasks know more, so ask them first.
        loop {
            let latest = needs.values().copied().max().expect("there are lanes");
            if latest == 0 {
                break;
            }
            let t = latest - 1;
            let (l, knows) = self.known[t as usize];
            needs[l] = 0;
            if have[l] > t {
                continue;
            }
            after.push(t);
            join(&mut have, &knows);
            have[l] = have[l].max(t + 1);
        }
        after.reverse();
        self.known.push((lane, have));
        self.last_of_lane[lane] = Some(i);
        after
    }
}

/// Which of a part's collectives wait for the last commit, so that no rank writes over a version before all ranks have
/// committed the one behind it. An update waits for the exchange of its gradient, and with exact clipping for that of
/// the norm, which is later: a commit then has until the end of the batch.
fn barrier(tasks: &[Task]) -> impl Fn(&Task) -> bool + use<> {
    let exchanged = |t: &Task| matches!(t.work, Work::AllToAll { .. });
    let updated = |t: &Task| matches!(t.work, Work::Update { .. });
    let first = tasks.iter().position(exchanged);
    let at_once = first.is_some_and(|first| tasks[first..].iter().any(updated));
    move |t| match t.work {
        Work::AllToAll { .. } => at_once,
        Work::AllGather { piece } => piece.is_none(),
        _ => false,
    }
}
