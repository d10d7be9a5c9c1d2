//! Plans with one task that is wrong in one way: what the checker is tested with, here and where
//! plans run (`crates/trainer/tests/main.rs` includes this file).

use std::cmp::Ordering;
use std::fmt;

use lowtide_units::{Id, ids};
use lowtide_workload::{ParamId, Workload};

use super::{Arg, PartName, Phase, Plan, SlotId, Task, TaskId, Tensor, Tier, Use, Work};

/// What was done to a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// The task is left out.
    Drop,
    /// The task runs twice.
    Duplicate,
    /// Two of its arguments have each other's bytes.
    SwapOperands,
    /// An argument has half of its bytes; of a transfer both have.
    Shrink,
    /// It and the next one of its lane have changed places.
    SwapTasks,
}

/// A plan with one wrong task.
pub(crate) struct Mutant {
    pub kind: Kind,
    pub part: PartName,
    pub task: TaskId,
    /// The work of the task, or of both.
    pub works: Vec<Work>,
    pub plan: Plan,
}

impl fmt::Display for Mutant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kind, part, task, ..
        } = self;
        write!(f, "{kind:?} of {part:?} {task}: {:?}", self.works)
    }
}

impl Mutant {
    /// Why a plan that was changed like this is still right, if it is one of the kinds that are.
    pub(crate) fn equivalent(&self, w: &Workload) -> Option<&'static str> {
        let task = &self.plan.part(self.part)[self.task];
        match (self.kind, self.works[0]) {
            (Kind::Duplicate, Work::Copy | Work::Read | Work::Write | Work::AllGather { .. }) => {
                Some("the same bytes are moved twice")
            }
            (
                Kind::Duplicate,
                Work::Compute {
                    phase: Phase::Recompute,
                    ..
                },
            ) => Some("the same tensors are computed again twice"),
            (Kind::SwapOperands, Work::Commit) => Some("the extents of a commit have no order"),
            (Kind::Shrink, Work::Copy) if leaves_padding(&self.plan, w, &task.args[0]) => {
                Some("only padding stays behind, which no operation reads")
            }
            (Kind::SwapTasks, _) => {
                let tasks = self.plan.part(self.part).iter().skip(self.task.idx() + 1);
                let next = tasks.into_iter().find(|t| t.lane == task.lane)?;
                let apart = apart(&self.plan, self.part, task, next);
                apart.then_some("neither of two neighbours of a lane uses what the other writes")
            }
            _ => None,
        }
    }
}

/// Whether an argument has every parameter that its piece has.
fn leaves_padding(plan: &Plan, w: &Workload, a: &Arg) -> bool {
    let (p, size) = match plan.slots[a.slot].tensor {
        Tensor::Weight(p) => (p, plan.precision.size()),
        Tensor::Accumulator(p) => (p, 4),
        _ => return false,
    };
    let piece = &plan.pieces[p];
    let last = ParamId(piece.params.end.0 - 1);
    let end = piece.offset_of(last) + w.params[last].elements;
    a.offset == 0 && a.bytes >= end * size
}

/// Whether two tasks of a part conflict in no byte whose content is ever read: scratch is not, nor is
/// what a forward without a backward leaves for it.
fn apart(plan: &Plan, part: PartName, a: &Task, b: &Task) -> bool {
    let range = |x: &Arg| {
        let s = &plan.slots[x.slot];
        let from = s.offset + x.offset;
        (s.tier, from, from + x.bytes)
    };
    let is_read = |slot: SlotId| {
        let mut args = plan.part(part).iter().flat_map(|t| &t.args);
        plan.slots[slot].persistent || args.any(|x| x.slot == slot && x.access != Use::Write)
    };
    let of = |t: &Task| -> Vec<Arg> {
        let read = t.args.iter().filter(|x| is_read(x.slot));
        read.copied().collect()
    };
    let (a, b) = (of(a), of(b));
    a.iter().all(|x| {
        b.iter().all(|y| {
            let ((t, f, e), (u, g, h)) = (range(x), range(y));
            let reads = x.access == Use::Read && y.access == Use::Read;
            reads || t != u || e <= g || h <= f
        })
    })
}

/// Every mutant of every task of a plan, one after the other.
pub(crate) fn mutants(plan: &Plan) -> impl Iterator<Item = Mutant> {
    let parts = PartName::ALL.into_iter();
    let tasks = parts.flat_map(|part| plan.part(part).ids().map(move |task| (part, task)));
    tasks.flat_map(|(part, task)| of_task(plan, part, task))
}

fn of_task(plan: &Plan, part: PartName, task: TaskId) -> Vec<Mutant> {
    let tasks = plan.part(part);
    let this = &tasks[task];
    let mut all = Vec::new();
    let mut add = |kind, works: &[Work], plan: Plan| {
        all.push(Mutant {
            kind,
            part,
            task,
            works: works.to_vec(),
            plan,
        });
    };
    let works = [this.work];
    add(Kind::Drop, &works, without_task(plan, part, task));
    add(Kind::Duplicate, &works, with_twice(plan, part, task));
    let with_args = |change: &dyn Fn(&mut [Arg])| {
        let mut plan = plan.clone();
        change(&mut plan.parts[part][task].args);
        plan
    };
    let place = |a: &Arg| (a.slot, a.offset, a.bytes);
    for i in 0..this.args.len() {
        for j in i + 1..this.args.len() {
            if place(&this.args[i]) == place(&this.args[j]) {
                continue;
            }
            let swapped = with_args(&|args| {
                args.swap(i, j);
                let access = args[i].access;
                args[i].access = args[j].access;
                args[j].access = access;
            });
            add(Kind::SwapOperands, &works, swapped);
        }
    }
    let transfer = matches!(this.work, Work::Copy | Work::Read | Work::Write);
    let unit = match this.work {
        Work::Read | Work::Write => Tier::Disk.align(),
        _ => 1,
    };
    let ranges = if transfer { 1 } else { this.args.len() };
    for i in 0..ranges {
        let half = this.args[i].bytes / 2 / unit * unit;
        if half == 0 {
            continue;
        }
        let changed = |args: &mut [Arg], change: &dyn Fn(&mut Arg)| match transfer {
            true => args.iter_mut().for_each(change),
            false => change(&mut args[i]),
        };
        let front = with_args(&|args| changed(args, &|a| a.bytes -= half));
        add(Kind::Shrink, &works, front);
        let back = with_args(&|args| {
            changed(args, &|a| {
                (a.offset, a.bytes) = (a.offset + half, a.bytes - half)
            });
        });
        add(Kind::Shrink, &works, back);
    }
    let next = ids(&(TaskId(task.0 + 1)..tasks.next_id())).find(|&i| tasks[i].lane == this.lane);
    if let Some(next) = next {
        let mut plan = plan.clone();
        let tasks = &mut plan.parts[part];
        let (front, behind) = tasks.split_at_mut(next.idx());
        std::mem::swap(&mut front[task.idx()].work, &mut behind[0].work);
        std::mem::swap(&mut front[task.idx()].args, &mut behind[0].args);
        let works = [behind[0].work, front[task.idx()].work];
        add(Kind::SwapTasks, &works, plan);
    }
    all
}

/// The plan with a task twice in a row; tasks that waited for it wait for both.
fn with_twice(plan: &Plan, part: PartName, task: TaskId) -> Plan {
    let mut plan = plan.clone();
    let mut tasks = plan.part(part).to_vec();
    for d in tasks.iter_mut().flat_map(|t| &mut t.after) {
        d.0 += u32::from(*d >= task);
    }
    let again = tasks[task.idx()].clone();
    tasks.insert(task.idx() + 1, again);
    plan.parts[part] = tasks.into();
    for seam in &mut plan.seams {
        for (to, from) in &mut seam.edges {
            to.0 += u32::from(seam.to == part && *to > task);
            from.0 += u32::from(seam.from == part && *from >= task);
        }
    }
    plan
}

/// The plan without one task: who waited for it, and its lane, wait for what it waited for.
pub(crate) fn without_task(plan: &Plan, part: PartName, gone: TaskId) -> Plan {
    let mut plan = plan.clone();
    let mut tasks = plan.part(part).to_vec();
    let removed = tasks.remove(gone.idx());
    let (earlier, later) = tasks.split_at(gone.idx());
    let before = earlier.iter().rposition(|t| t.lane == removed.lane);
    let next = later.iter().position(|t| t.lane == removed.lane);
    let next = next.map(|i| i + gone.idx());
    let mut instead = removed.after.clone();
    instead.extend(before.map(TaskId::new));
    let mut waiters = Vec::new();
    for (i, task) in tasks.iter_mut().enumerate() {
        if task.after.contains(&gone) || next == Some(i) {
            task.after.extend(&instead);
            waiters.push(TaskId::new(i));
        }
        task.after.retain(|&d| d != gone);
        let later = task.after.iter_mut().filter(|d| **d > gone);
        later.for_each(|d| d.0 -= 1);
    }
    plan.parts[part] = tasks.into();
    for seam in &mut plan.seams {
        let old = std::mem::take(&mut seam.edges);
        for (to, from) in old {
            let tos = match (seam.to == part, to.cmp(&gone)) {
                (true, Ordering::Equal) => waiters.clone(),
                (true, Ordering::Greater) => vec![TaskId(to.0 - 1)],
                _ => vec![to],
            };
            let froms = match (seam.from == part, from.cmp(&gone)) {
                (true, Ordering::Equal) => instead.clone(),
                (true, Ordering::Greater) => vec![TaskId(from.0 - 1)],
                _ => vec![from],
            };
            let pairs = tos.iter().flat_map(|&t| froms.iter().map(move |&f| (t, f)));
            seam.edges.extend(pairs);
        }
        seam.edges.sort_unstable();
    }
    plan
}
