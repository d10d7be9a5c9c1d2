//! The walk along one sequence of parts: what is where, and who is known to be done.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};

use lowtide_units::List;
use lowtide_workload::{LocalId, OpId, Workload};

use super::content::Spans;
use super::{Fault, overlaps};
use crate::fast::FastMap;
use crate::plan::{
    Lane, PartName, PerLane, PerTier, PieceId, Plan, SlotId, Task, TaskId, Tensor, Use, Version,
    Work,
};

/// For each lane, how many of the sequence's tasks on it are known to be complete.
pub(super) type Clock = PerLane<u32>;

/// What is known to be complete when a task is, task by task.
pub(super) type Knowledge = List<TaskId, Clock>;

/// The version that everything has at the start.
const START: u64 = 1;

#[derive(Clone, Copy, Default)]
pub(super) struct Users {
    pub(super) writer: Clock,
    pub(super) readers: Clock,
}

pub(super) struct Held {
    /// The version that each byte of the slot's tensor has here.
    pub(super) content: Spans,
    /// Uses by byte range inside the slot.
    pub(super) users: Vec<(u64, u64, Users)>,
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Holder {
    /// A slot, from its first use until another takes any of its bytes.
    Slot(SlotId),
    /// Nobody; those who used the bytes last.
    Past(Clock),
}

pub(super) struct Walk<'a> {
    pub(super) plan: &'a Plan,
    pub(super) w: &'a Workload,
    pub(super) held: FastMap<SlotId, Held>,
    /// By tier, who holds which bytes now: start -> (end, holder). Never overlapping.
    pub(super) holders: PerTier<BTreeMap<u64, (u64, Holder)>>,
    /// The newest version of each byte of what has a meaning now.
    pub(super) latest: FastMap<Tensor, Spans>,
    /// The last version that was given; each is of one write.
    pub(super) version: u64,
    /// Durable extents have changed places: the updates committed so far are odd in number.
    pub(super) flipped: bool,
    /// Next versions that were written since the last commit.
    pub(super) renewed: HashSet<SlotId>,
    /// Of several ranks: lane and count of the last commit, unless all ranks were waited for since.
    pub(super) commit: Option<(Lane, u32)>,
    /// The first exchange that no rank begins before its own commit, by its count on its lane: who knows it to be
    /// complete knows that all ranks have committed.
    pub(super) all_committed: Option<u32>,
    /// Micro-batches that the part runs later than it says.
    pub(super) shift: u32,
    /// Version of each weight that the batch's operations read.
    pub(super) batch: FastMap<Tensor, u64>,
    /// The last share of each gradient, by piece and first byte, that the batch has added: units from
    /// the last one down, micro-batch, operation.
    pub(super) shares: FastMap<(PieceId, u64), (u32, u32, OpId)>,
    /// Gradients of outputs with several readers: the last reader, and its name for it.
    pub(super) read_often: HashSet<(u32, LocalId)>,
    /// Of each of those, by micro-batch, the last unit of the batch that has used it, counted from the last one down.
    pub(super) handed: FastMap<Tensor, u32>,
    /// Pieces whose accumulator was sent to all ranks, and whose gradient is not made of the shares yet.
    pub(super) sent: HashSet<PieceId>,
    /// Pieces whose sums were added up to one, which is neither sent nor finished yet.
    pub(super) folded: HashSet<PieceId>,
    /// Pieces whose gradient is complete and waits for its update.
    pub(super) complete: HashSet<PieceId>,
    pub(super) count: Clock,
    pub(super) here: (PartName, TaskId),
}

impl<'a> Walk<'a> {
    pub(super) fn new(plan: &'a Plan, w: &'a Workload) -> Self {
        Self {
            plan,
            w,
            held: FastMap::default(),
            holders: PerTier::default(),
            latest: FastMap::default(),
            version: START,
            flipped: false,
            renewed: HashSet::new(),
            commit: None,
            all_committed: None,
            shift: 0,
            batch: FastMap::default(),
            shares: FastMap::default(),
            read_often: super::graph::read_often(w),
            handed: FastMap::default(),
            sent: HashSet::new(),
            folded: HashSet::new(),
            complete: HashSet::new(),
            count: Clock::default(),
            here: (PartName::First, TaskId(0)),
        }
    }

    pub(super) fn fault<T>(&self, what: String) -> Result<T, Fault> {
        Err(Fault {
            part: self.here.0,
            task: self.here.1,
            what,
        })
    }

    /// Drained state: every home holds version 1 of its weights and state. Of keys and values too: which of them mean
    /// anything is for those to know who put answers into them.
    pub(super) fn start(&mut self) -> Result<(), Fault> {
        for (i, s) in self.plan.slots.pairs() {
            if !s.persistent {
                continue;
            }
            self.hold(i)?;
            let current = !matches!(s.version, Some((Version::Next, _)));
            if current
                && matches!(
                    s.tensor,
                    Tensor::Weight(_)
                        | Tensor::Shard(_)
                        | Tensor::State(_)
                        | Tensor::Clip
                        | Tensor::Cache(_)
                )
            {
                let held = self.held.get_mut(&i).expect("just held");
                held.content.set(0, s.bytes, START);
                let newest = self.latest.entry(s.tensor).or_default();
                newest.set(0, s.bytes, START);
            }
        }
        Ok(())
    }

    pub(super) fn part(
        &mut self,
        name: PartName,
        before: Option<(PartName, Knowledge, Clock)>,
    ) -> Result<(PartName, Knowledge, Clock), Fault> {
        let start = self.count;
        if name.begins() {
            self.begin_batch();
        }
        let plan = self.plan;
        let tasks = plan.part(name);
        // What is complete when a lane begins this part: everything if the part before was waited
        // for, else what that lane itself has done.
        let overlap = before
            .as_ref()
            .is_some_and(|(from, _, _)| overlaps(*from, name));
        let before_start = before.as_ref().map_or(start, |b| b.2);
        let mut seam: FastMap<TaskId, Vec<TaskId>> = FastMap::default();
        if !overlap {
            // All ranks are waited for before any begins such a part.
            self.commit = None;
        }
        if overlap {
            let from = before.as_ref().expect("overlap implies a part before").0;
            let Some(s) = plan.seam(from, name) else {
                return self.fault(format!("no seam from {from:?}"));
            };
            for &(to, from) in &s.edges {
                seam.entry(to).or_default().push(from);
            }
        }
        let mut known = Knowledge::default();
        // Knowledge a lane carries: of its last task in the part before, when parts overlap.
        let mut lane_known: PerLane<Clock> = PerLane::default();
        for (lane, k) in lane_known.iter_mut() {
            if overlap {
                // Two parts back everything is complete: a part is submitted only then.
                *k = before_start;
                let (from, clocks, _) = before.as_ref().expect("as above");
                let last = plan.part(*from).rposition(|t| t.lane == lane);
                if let Some(last) = last {
                    join(k, &clocks[last]);
                }
                k[lane] = start[lane];
            } else {
                *k = start;
            }
        }
        for (i, task) in tasks.pairs() {
            self.here = (name, i);
            let lane = task.lane;
            let mut clock = lane_known[lane];
            for &d in &task.after {
                join(&mut clock, &known[d]);
            }
            for &d in seam.get(&i).into_iter().flatten() {
                join(&mut clock, &before.as_ref().expect("as above").1[d]);
            }
            self.task(task, lane, &clock)?;
            self.count[lane] += 1;
            clock[lane] = self.count[lane];
            known.push(clock);
            lane_known[lane] = clock;
        }
        self.ends_in_a_commit(tasks)?;
        self.flipped ^= plan.commits(name);
        // Lives inside the part are over.
        let slots = &plan.slots;
        for (i, held) in &mut self.held {
            if !slots[*i].persistent {
                held.content = Spans::default();
            }
        }
        Ok((name, known, start))
    }

    /// The slot whose bytes an argument means: versions change places with each commit, and a round
    /// that repeats goes on to the next micro-batches.
    pub(super) fn place(&self, slot: SlotId) -> SlotId {
        if self.plan.late.contains(&slot) {
            // Of one tensor after the other the micro-batches of the batch.
            let (start, each) = (self.plan.late.start.0, self.plan.accumulate);
            let at = slot.0 - start;
            return SlotId(start + at / each * each + self.stands_for(at % each));
        }
        match self.plan.slots[slot].version {
            Some((_, other)) if self.flipped => other,
            _ => slot,
        }
    }

    /// The micro-batch that stands for one that a task of this part names: what runs once, at the end,
    /// names those of every round, also of rounds that another stands for.
    fn stands_for(&self, m: u32) -> u32 {
        let rounds = self.plan.rounds();
        let each = rounds.each();
        if matches!(self.here.0, PartName::Middle | PartName::Evaluate) {
            return m + self.shift;
        }
        let (round, middles) = (m / each, rounds.middles());
        if (2..middles.saturating_sub(1)).contains(&round) {
            each + m % each
        } else {
            m
        }
    }

    /// The tensor that a slot means, with the micro-batch that it is of.
    pub(super) fn tensor(&self, slot: SlotId) -> Tensor {
        let tensor = self.plan.slots[slot].tensor;
        if self.plan.late.contains(&slot) {
            return tensor;
        }
        match tensor {
            Tensor::Local(u, i, m) => Tensor::Local(u, i, self.stands_for(m)),
            Tensor::Inputs(m) => Tensor::Inputs(m + self.shift),
            t => t,
        }
    }

    fn task(&mut self, task: &Task, lane: Lane, clock: &Clock) -> Result<(), Fault> {
        for a in &task.args {
            self.unspoilt(a)?;
        }
        let mut placed = Cow::Borrowed(task);
        let moves =
            self.shift > 0 || self.here.0 == PartName::Last || self.here.0 == PartName::LastFirst;
        if self.flipped || (moves && !self.plan.late.is_empty()) {
            for a in &mut placed.to_mut().args {
                a.slot = self.place(a.slot);
            }
        }
        self.apart(&placed.args)?;
        if task.work == Work::Commit {
            self.committed(task, &placed)?;
        }
        self.behind_all_commits(task, lane, clock)?;
        let task = &*placed;
        for a in &task.args {
            self.ordered(a, lane, clock)?;
        }
        match task.work {
            Work::Commit => Ok(()),
            Work::Copy | Work::Read | Work::Write => self.moved(&task.args[0], &task.args[1]),
            Work::AllGather { piece } => self.gathered(piece, &task.args[0], &task.args[1]),
            _ => self.works(task),
        }
    }

    /// Work that is no transfer: what it reads is there, then what it writes is new.
    fn works(&mut self, task: &Task) -> Result<(), Fault> {
        for a in task.args.iter().filter(|a| a.access != Use::Read) {
            self.adds_up(task.work, a, a.access == Use::Write)?;
        }
        for a in &task.args {
            self.handed_down(task.work, a)?;
        }
        for a in task.args.iter().filter(|a| a.access != Use::Write) {
            let (tensor, version) = self.read(a)?;
            if matches!(tensor, Tensor::Weight(_))
                && matches!(task.work, Work::Compute { .. })
                && *self.batch.entry(tensor).or_insert(version) != version
            {
                return self.fault(format!(
                    "reads {} after its update in the same batch",
                    tensor.name(self.plan)
                ));
            }
        }
        for a in task.args.iter().filter(|a| a.access != Use::Read) {
            match (task.work, self.tensor(a.slot)) {
                (Work::Compute { .. }, Tensor::Accumulator(p) | Tensor::Gradient(p)) => {
                    self.shared(a, p);
                }
                _ => self.written(a),
            }
        }
        self.turns(task.work)
    }
}

pub(super) fn join(a: &mut Clock, b: &Clock) {
    for (x, y) in a.zip_mut(b) {
        *x = (*x).max(*y);
    }
}
