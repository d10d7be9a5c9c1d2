//! Proves a plan before anything is allocated.
//!
//! Walks every sequence of parts that a run can make and shows, by rules of its own (nothing here
//! is shared with what made the plan):
//! 1. every slot lies inside its tier, and every use inside its slot;
//! 2. every read finds the tensor it names, in its newest version: nothing unwritten, overwritten
//!    or stale (a weight is never read before its own update), and one batch reads one version of
//!    each weight in forward and backward;
//! 3. every two uses of the same bytes, one of them a write, are ordered by lane order and edges;
//! 4. edges point backward in plan order, so lanes that keep that order cannot deadlock;
//! 5. when a run is drained, every home holds the newest version;
//! 6. of a durable plan: weights and state have two extents each; nothing but an update writes the
//!    next versions, nothing at all the current ones; each update ends in one commit, which finds
//!    every next version new and whole, and until which the current versions stay as they are;
//! 7. the first operation of a batch that has a share in a gradient overwrites it, every other one adds.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use crate::choice::Clip;
use crate::plan::{Arg, LANES, PartName, Plan, Task, Tensor, Tier, Use, Version, Work};

/// What a plan does wrong: always a bug in a planner or a strategy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Part and task.
    pub part: PartName,
    /// Index in the part.
    pub task: u32,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "task {} of part {:?}: {}",
            self.task, self.part, self.what
        )
    }
}

impl std::error::Error for Fault {}

/// The sequences of parts that cover every seam a run can make.
#[must_use]
pub fn sequences(clip: Clip) -> Vec<Vec<PartName>> {
    use PartName::{Drain, Evaluate, First, Infer, Steady};
    match clip {
        Clip::Exact => vec![
            vec![First, Drain, First, Drain, Evaluate, Infer, First, Drain],
            vec![
                First, Steady, Steady, Steady, Drain, Evaluate, First, Steady, Drain,
            ],
        ],
        Clip::Previous | Clip::None => vec![
            vec![
                First, Steady, Steady, Steady, Drain, Evaluate, Infer, Steady, Drain,
            ],
            vec![First, Drain, Steady, Steady, Drain],
        ],
    }
}

/// Whether the part may begin while the one before it still runs.
#[must_use]
pub fn overlaps(from: PartName, to: PartName) -> bool {
    use PartName::{Drain, First, Last, LastFirst, Middle, Steady};
    matches!(
        (from, to),
        (First | Steady | Last | LastFirst, Steady | Drain)
            | (First | Steady | Middle, Middle | Last | LastFirst)
    )
}

/// A sequence part by part: each round, with how many micro-batches later than it says it runs. All
/// rounds but the first and the last are alike, and no more than two parts are in flight: of many of them
/// the first and the last two stand for all.
fn walked(plan: &Plan, sequence: &[PartName]) -> Vec<(PartName, u32)> {
    let rounds = plan.rounds();
    let most = (rounds.middles().saturating_sub(1)) * rounds.each();
    let stands = |&(part, shift): &(PartName, u32)| match part {
        PartName::Middle => shift == 0 || shift + rounds.each() >= most,
        PartName::Evaluate => shift <= rounds.each(),
        _ => true,
    };
    let parts = sequence.iter().flat_map(|&p| plan.round_parts(p));
    parts.filter(stands).collect()
}

/// For each lane, how many of the sequence's tasks on it are known to be complete.
type Clock = [u32; LANES];

#[derive(Clone, Copy, Default)]
struct Users {
    writer: Clock,
    readers: Clock,
}

struct Held {
    content: Option<(Tensor, u64)>,
    /// Uses by byte range inside the slot.
    users: Vec<(u64, u64, Users)>,
}

#[derive(Clone, Copy, PartialEq)]
enum Holder {
    /// A slot, from its first use until another takes any of its bytes.
    Slot(u32),
    /// Nobody; those who used the bytes last.
    Past(Clock),
}

struct Walk<'a> {
    plan: &'a Plan,
    held: HashMap<u32, Held>,
    /// By tier, who holds which bytes now: start -> (end, holder). Never overlapping.
    holders: [BTreeMap<u64, (u64, Holder)>; 3],
    latest: HashMap<Tensor, u64>,
    /// Durable extents have changed places: the updates committed so far are odd in number.
    flipped: bool,
    /// Micro-batches that the part runs later than it says.
    shift: u32,
    /// Version of each weight that the batch's operations read.
    batch: HashMap<Tensor, u64>,
    /// Gradients, by piece and first byte, that the batch has added to.
    summed: HashSet<(u32, u64)>,
    count: Clock,
    here: (PartName, u32),
}

/// Checks every sequence. `Ok` means that the plan may run.
///
/// # Errors
/// The first thing found wrong.
pub fn check(plan: &Plan, clip: Clip) -> Result<(), Fault> {
    bounds(plan)?;
    for sequence in sequences(clip) {
        let mut walk = Walk {
            plan,
            held: HashMap::new(),
            holders: Default::default(),
            latest: HashMap::new(),
            flipped: false,
            shift: 0,
            batch: HashMap::new(),
            summed: HashSet::new(),
            count: [0; LANES],
            here: (PartName::First, 0),
        };
        walk.start()?;
        let mut before: Option<(PartName, Vec<Clock>, Clock)> = None;
        for (part, shift) in walked(plan, &sequence) {
            walk.shift = shift;
            before = Some(walk.part(part, before)?);
            if clip != Clip::Exact || matches!(part, PartName::Drain | PartName::Evaluate) {
                walk.drained()?;
            }
        }
    }
    Ok(())
}

fn bounds(plan: &Plan) -> Result<(), Fault> {
    let fault = |what: String| {
        Err(Fault {
            part: PartName::First,
            task: 0,
            what,
        })
    };
    for (i, s) in plan.slots.iter().enumerate() {
        let tier = plan.tier(s.tier);
        if s.offset + s.bytes > tier.planned_bytes.0 {
            return fault(format!("slot {i} ends outside the {} tier", s.tier));
        }
        if s.offset % s.tier.align() != 0 || s.bytes % s.tier.align() != 0 {
            return fault(format!("slot {i} of the {} tier is not aligned", s.tier));
        }
    }
    for (i, s) in plan.slots.iter().enumerate() {
        let truth = s.persistent && matches!(s.tensor, Tensor::Weight(_) | Tensor::State(_));
        if let Some((version, other)) = s.version {
            let pair = plan.slots.get(other as usize).filter(|o| {
                (o.tensor, o.bytes, o.tier) == (s.tensor, s.bytes, Tier::Disk)
                    && o.version.is_some_and(|v| v.0 != version && v.1 == i as u32)
            });
            if !truth || s.tier != Tier::Disk || pair.is_none() {
                return fault(format!("slot {i} is no half of two versions on disk"));
            }
        }
    }
    lates(plan)?;
    if plan.choice.durable {
        for piece in 0..plan.pieces.len() as u32 {
            for t in [Tensor::Weight(piece), Tensor::State(piece)] {
                if !plan.homes(t).any(|(_, s)| s.version.is_some()) {
                    return fault(format!("{} is not durable", t.name(plan)));
                }
            }
        }
    }
    for (tier, used) in Tier::ALL.iter().zip(&plan.tiers) {
        if used.planned_bytes > used.budget_bytes {
            return fault(format!(
                "{tier} tier needs {} but holds {}",
                used.planned_bytes, used.budget_bytes
            ));
        }
    }
    for part in PartName::ALL {
        for (i, task) in plan.part(part).iter().enumerate() {
            let bad = |what: String| {
                Err(Fault {
                    part,
                    task: i as u32,
                    what,
                })
            };
            for a in &task.args {
                let Some(s) = plan.slots.get(a.slot as usize) else {
                    return bad(format!("uses slot {} which does not exist", a.slot));
                };
                if a.offset + a.bytes > s.bytes {
                    return bad(format!("uses bytes outside slot {}", a.slot));
                }
            }
            if task.after.iter().any(|&d| d as usize >= i) {
                return bad("waits for itself or a later task".to_owned());
            }
        }
    }
    Ok(())
}

/// Of a batch in rounds: the slots that each micro-batch has its own of are alike, and a round that
/// repeats names those of its own micro-batches alone.
fn lates(plan: &Plan) -> Result<(), Fault> {
    let fault = |part: PartName, task: usize, what: String| {
        Err(Fault {
            part,
            task: task as u32,
            what,
        })
    };
    let late = plan.late.clone();
    if late.is_empty() {
        return Ok(());
    }
    let slots = late.clone().map(|s| plan.slots.get(s as usize));
    let mut alike = (0..).zip(slots).map(|(m, s)| match s {
        Some(s) => match s.tensor {
            Tensor::Local(u, i, of) if of == m && s.persistent => Some((s.tier, s.bytes, u, i)),
            _ => None,
        },
        None => None,
    });
    let first = alike.next().flatten();
    if first.is_none() || late.len() != plan.accumulate as usize || !alike.all(|s| s == first) {
        let what = "a slot for each micro-batch is missing or unlike the others".to_owned();
        return fault(PartName::First, 0, what);
    }
    let rounds = plan.rounds();
    for part in [PartName::First, PartName::Steady, PartName::Middle] {
        let own = rounds.span(part);
        for (i, task) in plan.part(part).iter().enumerate() {
            let named = task.args.iter().filter(|a| late.contains(&a.slot));
            if let Some(a) = named
                .into_iter()
                .find(|a| !own.contains(&(a.slot - late.start)))
            {
                let what = format!(
                    "uses {} in another round",
                    plan.slots[a.slot as usize].tensor.name(plan)
                );
                return fault(part, i, what);
            }
        }
    }
    Ok(())
}

impl Walk<'_> {
    fn fault<T>(&self, what: String) -> Result<T, Fault> {
        Err(Fault {
            part: self.here.0,
            task: self.here.1,
            what,
        })
    }

    /// Drained state: every home holds version 1 of its weights and state.
    fn start(&mut self) -> Result<(), Fault> {
        for (i, s) in self.plan.slots.iter().enumerate() {
            if !s.persistent {
                continue;
            }
            self.hold(i as u32)?;
            let current = !matches!(s.version, Some((Version::Next, _)));
            if current
                && matches!(
                    s.tensor,
                    Tensor::Weight(_) | Tensor::State(_) | Tensor::Clip
                )
            {
                self.held.get_mut(&(i as u32)).expect("just held").content = Some((s.tensor, 1));
                self.latest.insert(s.tensor, 1);
            }
        }
        Ok(())
    }

    /// Makes `slot` the holder of its bytes; whoever held any of them loses its content. Returns
    /// the clock of everybody who used those bytes before.
    fn hold(&mut self, slot: u32) -> Result<Clock, Fault> {
        let s = &self.plan.slots[slot as usize];
        let holders = &mut self.holders[s.tier as usize];
        let (from, to) = (s.offset, s.offset + s.bytes);
        if holders.get(&from) == Some(&(to, Holder::Slot(slot))) {
            return Ok([0; LANES]);
        }
        let start = holders
            .range(..=from)
            .next_back()
            .filter(|&(_, &(end, _))| end > from)
            .map_or(from, |(&k, _)| k);
        let losers: Vec<(u64, u64, Holder)> = holders
            .range(start..to)
            .map(|(&k, &(end, holder))| (k, end, holder))
            .collect();
        let mut clock = [0; LANES];
        for (k, end, holder) in losers {
            let past = match holder {
                Holder::Past(past) => past,
                Holder::Slot(other) => {
                    let loser = &self.plan.slots[other as usize];
                    if loser.persistent {
                        return self.fault(format!(
                            "{} shares bytes with {}, which stays",
                            s.tensor.name(self.plan),
                            loser.tensor.name(self.plan)
                        ));
                    }
                    let mut past = [0; LANES];
                    for (_, _, u) in self.held.remove(&other).iter().flat_map(|h| &h.users) {
                        join(&mut past, &u.writer);
                        join(&mut past, &u.readers);
                    }
                    past
                }
            };
            join(&mut clock, &past);
            let holders = &mut self.holders[s.tier as usize];
            holders.remove(&k);
            if k < from {
                holders.insert(k, (from, Holder::Past(past)));
            }
            if end > to {
                holders.insert(to, (end, Holder::Past(past)));
            }
        }
        self.holders[s.tier as usize].insert(from, (to, Holder::Slot(slot)));
        self.held.insert(
            slot,
            Held {
                content: None,
                users: Vec::new(),
            },
        );
        Ok(clock)
    }

    fn part(
        &mut self,
        name: PartName,
        before: Option<(PartName, Vec<Clock>, Clock)>,
    ) -> Result<(PartName, Vec<Clock>, Clock), Fault> {
        let start = self.count;
        if name.begins() {
            self.batch.clear();
            self.summed.clear();
        }
        let plan = self.plan;
        let tasks = plan.part(name);
        // What is complete when a lane begins this part: everything if the part before was waited
        // for, else what that lane itself has done.
        let overlap = before
            .as_ref()
            .is_some_and(|(from, _, _)| overlaps(*from, name));
        let before_start = before.as_ref().map_or(start, |b| b.2);
        let mut seam: HashMap<u32, Vec<u32>> = HashMap::new();
        if overlap {
            let from = before.as_ref().expect("overlap implies a part before").0;
            let Some(s) = plan.seam(from, name) else {
                return self.fault(format!("no seam from {from:?}"));
            };
            for &(to, from) in &s.edges {
                seam.entry(to).or_default().push(from);
            }
        }
        let mut known: Vec<Clock> = Vec::with_capacity(tasks.len());
        // Knowledge a lane carries: of its last task in the part before, when parts overlap.
        let mut lane_known: [Clock; LANES] = [[0; LANES]; LANES];
        for (l, k) in lane_known.iter_mut().enumerate() {
            if overlap {
                // Two parts back everything is complete: a part is submitted only then.
                *k = before_start;
                let (from, clocks, _) = before.as_ref().expect("as above");
                let last = plan.part(*from).iter().rposition(|t| t.lane.idx() == l);
                if let Some(last) = last {
                    join(k, &clocks[last]);
                }
                k[l] = start[l];
            } else {
                *k = start;
            }
        }
        for (i, task) in tasks.iter().enumerate() {
            self.here = (name, i as u32);
            let lane = task.lane.idx();
            let mut clock = lane_known[lane];
            for &d in &task.after {
                join(&mut clock, &known[d as usize]);
            }
            for &d in seam.get(&(i as u32)).into_iter().flatten() {
                join(
                    &mut clock,
                    &before.as_ref().expect("as above").1[d as usize],
                );
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
            if !slots[*i as usize].persistent {
                held.content = None;
            }
        }
        Ok((name, known, start))
    }

    /// The slot whose bytes an argument means: versions change places with each commit, and a round
    /// that repeats goes on to the next micro-batches.
    fn place(&self, slot: u32) -> u32 {
        if self.plan.late.contains(&slot) {
            return self.plan.late.start + self.stands_for(slot - self.plan.late.start);
        }
        match self.plan.slots[slot as usize].version {
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
    fn tensor(&self, slot: u32) -> Tensor {
        let tensor = self.plan.slots[slot as usize].tensor;
        if self.plan.late.contains(&slot) {
            return tensor;
        }
        match tensor {
            Tensor::Local(u, i, m) => Tensor::Local(u, i, self.stands_for(m)),
            Tensor::Inputs(m) => Tensor::Inputs(m + self.shift),
            t => t,
        }
    }

    fn version(&self, a: &Arg) -> Option<Version> {
        self.plan.slots[a.slot as usize].version.map(|v| v.0)
    }

    fn task(&mut self, task: &Task, lane: usize, clock: &Clock) -> Result<(), Fault> {
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
        if task.work == Work::Commit {
            self.committed(task, &placed)?;
        }
        let task = &*placed;
        for a in &task.args {
            self.ordered(a, lane, clock)?;
        }
        match task.work {
            Work::Commit => Ok(()),
            Work::Copy | Work::Read | Work::Write => self.moved(&task.args[0], &task.args[1]),
            _ => {
                for a in &task.args {
                    if a.access == Use::Write {
                        continue;
                    }
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
                for a in &task.args {
                    if a.access != Use::Read {
                        self.adds_up(task, a)?;
                        self.written(a);
                    }
                }
                Ok(())
            }
        }
    }

    /// Rule 7: the first operation of a batch that has a share in a gradient overwrites it, every other
    /// one adds.
    fn adds_up(&mut self, task: &Task, a: &Arg) -> Result<(), Fault> {
        let (Tensor::Accumulator(p) | Tensor::Gradient(p)) = self.tensor(a.slot) else {
            return Ok(());
        };
        if !matches!(task.work, Work::Compute { .. }) {
            return Ok(());
        }
        let first = self.summed.insert((p, a.offset));
        if first != (a.access == Use::Write) {
            let name = self.tensor(a.slot).name(self.plan);
            return self.fault(match first {
                true => format!("adds to {name} of the batch before"),
                false => format!("overwrites {name}, which is not complete"),
            });
        }
        Ok(())
    }

    /// Rule 6, of one use: durable extents are written whole, and only as next versions.
    fn unspoilt(&self, a: &Arg) -> Result<(), Fault> {
        let s = &self.plan.slots[a.slot as usize];
        if a.access == Use::Read {
            return Ok(());
        }
        match s.version {
            Some((Version::Current, _)) => self.fault(format!(
                "writes the current version of {}",
                s.tensor.name(self.plan)
            )),
            Some((Version::Next, _)) if (a.offset, a.bytes) != (0, s.bytes) => self.fault(format!(
                "writes part of the next version of {}",
                s.tensor.name(self.plan)
            )),
            _ => Ok(()),
        }
    }

    /// Rule 6, of a commit: it holds every durable extent, and finds every next version new.
    fn committed(&self, task: &Task, placed: &Task) -> Result<(), Fault> {
        for (i, s) in self.plan.slots.iter().enumerate() {
            let found = task.args.iter().position(|a| a.slot as usize == i);
            match (s.version, found) {
                (None, _) => {}
                (Some(_), None) => {
                    return self.fault(format!("commits without {}", s.tensor.name(self.plan)));
                }
                (Some((Version::Current, _)), Some(_)) => {}
                (Some((Version::Next, _)), Some(k)) => {
                    self.read(&placed.args[k])?;
                }
            }
        }
        for (a, p) in task.args.iter().zip(&placed.args) {
            if self.version(a).is_none() {
                self.read(p)?;
            }
        }
        Ok(())
    }

    /// Rule 6, of a part: an update and its commit come together.
    fn ends_in_a_commit(&self, tasks: &[Task]) -> Result<(), Fault> {
        let count = |f: fn(&Work) -> bool| tasks.iter().filter(|t| f(&t.work)).count();
        let updates = count(|w| matches!(w, Work::Update { .. }));
        let commits = count(|w| matches!(w, Work::Commit));
        let wanted = usize::from(self.plan.choice.durable && updates > 0);
        if commits != wanted {
            return self.fault(format!("{commits} commits of {updates} updates"));
        }
        let last_commit = tasks.iter().rposition(|t| t.work == Work::Commit);
        let last_update = tasks
            .iter()
            .rposition(|t| matches!(t.work, Work::Update { .. }));
        if last_commit.is_some() && last_commit < last_update {
            return self.fault("commits before its last update".to_owned());
        }
        Ok(())
    }

    /// Rule 3.
    fn ordered(&mut self, a: &Arg, lane: usize, clock: &Clock) -> Result<(), Fault> {
        let before = self.hold(a.slot)?;
        let mark = self.count[lane] + 1;
        let mut needs = before;
        let held = self.held.get_mut(&a.slot).expect("just held");
        let s = &self.plan.slots[a.slot as usize];
        let whole = !s.persistent;
        let (from, to) = if whole {
            (0, s.bytes)
        } else {
            (a.offset, a.offset + a.bytes)
        };
        let mut exact = false;
        for (f, t, u) in &mut held.users {
            if *f < to && from < *t {
                join(&mut needs, &u.writer);
                if a.access != Use::Read {
                    join(&mut needs, &u.readers);
                }
            }
            if (*f, *t) == (from, to) {
                exact = true;
                if a.access == Use::Read {
                    u.readers[lane] = mark;
                } else {
                    u.writer[lane] = mark;
                }
            }
        }
        if !exact {
            let mut u = Users::default();
            if a.access == Use::Read {
                u.readers[lane] = mark;
            } else {
                u.writer[lane] = mark;
            }
            held.users.push((from, to, u));
        }
        for l in 0..LANES {
            if l != lane && needs[l] > clock[l] {
                let s = &self.plan.slots[a.slot as usize];
                let other = crate::plan::Lane::ALL[l];
                return self.fault(format!(
                    "does not wait for lane {other}, which still uses the bytes of {} on the {}",
                    s.tensor.name(self.plan),
                    s.tier
                ));
            }
        }
        Ok(())
    }

    /// Rule 2.
    fn read(&self, a: &Arg) -> Result<(Tensor, u64), Fault> {
        let s = &self.plan.slots[a.slot as usize];
        let Some((tensor, version)) = self.held[&a.slot].content else {
            return self.fault(format!("reads {} unwritten", s.tensor.name(self.plan)));
        };
        if self.latest.get(&tensor) != Some(&version) {
            return self.fault(format!("reads {} stale", s.tensor.name(self.plan)));
        }
        Ok((tensor, version))
    }

    fn written(&mut self, a: &Arg) {
        let tensor = self.tensor(a.slot);
        let version = self.latest.entry(tensor).or_insert(0);
        *version += 1;
        let version = *version;
        self.held.get_mut(&a.slot).expect("held").content = Some((tensor, version));
    }

    fn moved(&mut self, from: &Arg, to: &Arg) -> Result<(), Fault> {
        let (tensor, version) = self.read(from)?;
        let target = self.tensor(to.slot);
        if tensor == target {
            self.held.get_mut(&to.slot).expect("held").content = Some((tensor, version));
            return Ok(());
        }
        // A copy may also rename: partial sums into the table of all, a complete f32 accumulator
        // into the gradient.
        match (tensor, target) {
            (Tensor::NormParts(_), Tensor::AllNormParts) => {}
            (Tensor::Accumulator(p), Tensor::Gradient(q)) if p == q => {}
            _ => {
                return self.fault(format!(
                    "moves {} into the slot of {}",
                    tensor.name(self.plan),
                    target.name(self.plan)
                ));
            }
        }
        self.written(to);
        Ok(())
    }

    /// Rule 5.
    fn drained(&self) -> Result<(), Fault> {
        for (i, s) in self.plan.slots.iter().enumerate() {
            if s.persistent && matches!(s.tensor, Tensor::Weight(_) | Tensor::State(_)) {
                if matches!(s.version, Some((Version::Next, _))) {
                    continue;
                }
                let held = &self.held[&self.place(i as u32)];
                let newest = self.latest.get(&s.tensor).map(|&v| (s.tensor, v));
                if held.content != newest {
                    return self.fault(format!(
                        "{} is stale on the {} when the run is drained",
                        s.tensor.name(self.plan),
                        s.tier
                    ));
                }
            }
        }
        Ok(())
    }
}

fn join(a: &mut Clock, b: &Clock) {
    for (x, y) in a.iter_mut().zip(b) {
        *x = (*x).max(*y);
    }
}
