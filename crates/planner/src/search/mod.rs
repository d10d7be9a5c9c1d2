//! Chooses: from a workload, a machine and three budgets to the plan with the least simulated step
//! time that fits.
//!
//! For each way of ordering the loops, cutting the pieces and placing gradients and block inputs
//! there is a *least* plan (everything offloaded, every block recomputed). Those that fit are the
//! starting points. From the fastest few, bytes that are left are spent where the simulator says
//! that they save time (`climb`): fetching further ahead, keeping saved tensors, keeping weights,
//! gradients and optimizer state on the device, updating there. What is turned are a few counts
//! (`mix`), not every unit by itself. Nothing here looks at a clock or draws a random number: equal
//! inputs give an equal plan.

use std::cell::{Cell, RefCell};

use lowtide_units::{Bytes, Seconds};
use lowtide_workload::{Unit, Workload};
use serde::{Deserialize, Serialize};

use crate::build::{assemble, build};
use crate::check::{Fault, check};
use crate::choice::{Budgets, Choice, Clip, LoopOrder, Pieces, Processor};
use crate::draft::{Draft, draft, persistent_bytes};
use crate::fast::FastMap;
use crate::layout::{Layout, layout};
use crate::machine::Machine;
use crate::plan::{PartName, Plan, Task, Tier};
use crate::rounds::Rounds;
use crate::simulate::{Busy, Steps, busy, steady_seconds};
use climb::Candidate;
use mix::{Count, Mix};

mod climb;
mod fit;
mod mix;
pub mod outlook;
#[cfg(test)]
mod twin;

/// Knobs that the user holds fast; `None` is the planner's to choose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pins {
    /// Loop order.
    pub order: Option<LoopOrder>,
    /// Home of every unit's weights.
    pub weights: Option<Tier>,
    /// Home of every unit's optimizer state.
    pub optimizer: Option<Tier>,
    /// Home of waiting gradients and accumulators.
    pub gradients: Option<Tier>,
    /// Home of block inputs.
    pub inputs: Option<Tier>,
    /// How many blocks recompute.
    pub recompute: Option<u32>,
    /// Windows fetched ahead.
    pub prefetch: Option<u8>,
    /// Cut of the parameters.
    pub pieces: Option<Pieces>,
    /// Where updates run.
    pub update: Option<Processor>,
    /// Weights and optimizer state in two versions on disk, committed by each update.
    pub durable: bool,
}

/// What to plan.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// One step in numbers.
    pub workload: &'a Workload,
    /// What the machine can do.
    pub machine: &'a Machine,
    /// What the user allows.
    pub budgets: Budgets,
    /// Clipping (in the numerics key, so not chosen here).
    pub clip: Clip,
    /// Knobs held fast.
    pub pins: Pins,
}

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error(
    "does not fit: needs at least device {}, host {}, disk {}; allowed are device {}, host {}, disk {}",
    needed.device, needed.host, needed.disk, allowed.device, allowed.host, allowed.disk
)]
pub struct Refusal {
    /// What the least plan needs that comes closest to the budgets.
    pub needed: Budgets,
    /// What was allowed.
    pub allowed: Budgets,
    /// The budgets nearest to the allowed ones that do fit.
    pub nearest: Budgets,
    /// Where no disk is allowed and the nearest budgets ask for none: the disk space with which the
    /// device and host memory that are allowed do, if any does.
    pub with_disk: Option<Bytes>,
}

/// Why planning failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Nothing fits.
    #[error(transparent)]
    Refused(Box<Refusal>),
    /// The planner made a plan that its checker refuses: our bug.
    #[error("the plan is wrong: {0}")]
    Wrong(Fault),
}

#[derive(Clone, Copy)]
struct Search<'a> {
    r: Request<'a>,
    disk: bool,
    seen: &'a Seen,
}

/// What is known of choices that were looked at: the same ones come up again and again.
#[derive(Default)]
struct Seen {
    sizes: RefCell<FastMap<Choice, Size>>,
    whole: RefCell<FastMap<Choice, [u64; 3]>>,
    seconds: RefCell<FastMap<Choice, f64>>,
    /// Tasks that were drafted, and three for each that was simulated: about as long as it takes.
    work: Cell<u64>,
    /// The newest draft that fits; likely to be timed next.
    newest: RefCell<Option<(Choice, Draft, Layout)>>,
}

/// What a draft says before its edges are made.
#[derive(Clone, Copy)]
struct Size {
    need: [u64; 3],
    /// Seconds of the busiest lane: no step is shorter.
    bound: f64,
}

/// How many starting points are improved, and climbed from: what is fastest with everything offloaded
/// need not be so when the bytes that are left are spent.
const IMPROVED: usize = 5;

/// Work that spending on a start, and each climb, may do: what bounds the time of planning.
const SPEND: u64 = 150_000;
const CLIMB: u64 = 600_000;

/// Plans a request.
///
/// # Errors
/// [`PlanError::Refused`] when no plan fits the budgets, with what would.
pub fn plan(r: &Request<'_>) -> Result<Plan, PlanError> {
    let seen = Seen::default();
    let search = Search::new(*r, &seen);
    search.made(&search.best()?)
}

/// Operations of a part that is planned task by task; a batch of more is cut into rounds.
const LARGEST: u32 = 30_000;

/// The parts that are made to size and time a choice. Before the first norm is known the gradients
/// of `previous` wait inside the batch's own part, which then needs more than a steady step.
fn timed_parts(clip: Clip, rounds: Rounds) -> Vec<PartName> {
    let mut parts: Vec<PartName> = rounds.steady().into_iter().map(|(part, _)| part).collect();
    if clip == Clip::Previous {
        parts.push(if rounds.one() {
            PartName::First
        } else {
            PartName::LastFirst
        });
    }
    parts
}

/// What the lanes of a drafted steady step do.
fn busy_of(d: &Draft, rounds: Rounds, w: &Workload, machine: &Machine) -> Busy {
    let parts: Vec<(&[Task], u32)> = rounds
        .steady()
        .into_iter()
        .map(|(part, times)| (&*d.parts[part as usize], times))
        .collect();
    busy(&parts, &d.pieces, w, machine)
}

fn fits(need: &[u64; 3], budgets: &Budgets) -> bool {
    Tier::ALL
        .iter()
        .all(|&t| need[t as usize] <= budgets.of(t).0)
}

impl Clone for Seen {
    fn clone(&self) -> Self {
        Self {
            sizes: self.sizes.clone(),
            whole: self.whole.clone(),
            seconds: self.seconds.clone(),
            work: self.work.clone(),
            newest: RefCell::default(),
        }
    }
}

impl<'a> Search<'a> {
    fn new(r: Request<'a>, seen: &'a Seen) -> Self {
        let disk = r.budgets.disk.0 > 0;
        Self { r, disk, seen }
    }
}

impl Search<'_> {
    /// The whole plan of a candidate, checked.
    fn made(&self, best: &Candidate) -> Result<Plan, PlanError> {
        let r = &self.r;
        let plan = build(r.workload, &best.choice, r.clip, r.budgets, r.machine);
        check(&plan, r.clip).map_err(PlanError::Wrong)?;
        Ok(plan)
    }

    /// What a steady step needs of a choice, and the bound of that step. Of the other parts few
    /// need more ([`Search::holds_whole`]).
    fn size(&self, choice: &Choice) -> Size {
        if let Some(&size) = self.seen.sizes.borrow().get(choice) {
            return size;
        }
        let Request {
            workload: w,
            clip,
            machine,
            ..
        } = self.r;
        let rounds = choice.rounds(w);
        let d = draft(w, choice, clip, &timed_parts(clip, rounds));
        let l = layout(&d.slots, PartName::ALL.len());
        self.worked(d.parts.iter().map(Vec::len).sum());
        let bound = busy_of(&d, rounds, w, machine).busiest.0;
        let size = Size {
            need: l.totals,
            bound,
        };
        self.seen.sizes.borrow_mut().insert(choice.clone(), size);
        if fits(&size.need, &self.r.budgets) {
            *self.seen.newest.borrow_mut() = Some((choice.clone(), d, l));
        }
        size
    }

    /// What a choice needs in all parts, to the byte.
    fn whole(&self, choice: &Choice) -> [u64; 3] {
        if let Some(&need) = self.seen.whole.borrow().get(choice) {
            return need;
        }
        let d = draft(self.r.workload, choice, self.r.clip, &PartName::ALL);
        let need = layout(&d.slots, PartName::ALL.len()).totals;
        self.seen.whole.borrow_mut().insert(choice.clone(), need);
        need
    }

    /// Whether all parts of a choice fit the budgets of the request.
    fn holds_whole(&self, choice: &Choice) -> bool {
        fits(&self.whole(choice), &self.r.budgets)
    }

    /// Whether a steady step of a choice fits the budgets of the request.
    fn holds(&self, choice: &Choice) -> bool {
        let Request {
            workload,
            clip,
            budgets,
            ..
        } = &self.r;
        let known = self.seen.sizes.borrow().get(choice).copied();
        match known {
            Some(size) => fits(&size.need, budgets),
            // What stays is known without a draft, and most of what does not fit fails by it.
            None => {
                fits(&persistent_bytes(workload, choice, *clip), budgets)
                    && fits(&self.size(choice).need, budgets)
            }
        }
    }

    fn worked(&self, tasks: usize) {
        self.seen.work.set(self.seen.work.get() + tasks as u64);
    }

    /// Simulated time of a step.
    fn seconds(&self, choice: &Choice) -> f64 {
        if let Some(&seconds) = self.seen.seconds.borrow().get(choice) {
            return seconds;
        }
        let Request {
            workload: w,
            clip,
            machine,
            ..
        } = self.r;
        let bound = self.size(choice).bound;
        let rounds = choice.rounds(w);
        let newest = self.seen.newest.borrow_mut().take_if(|(c, ..)| c == choice);
        let (d, l) = newest.map_or_else(
            || {
                let d = draft(w, choice, clip, &timed_parts(clip, rounds));
                let l = layout(&d.slots, PartName::ALL.len());
                (d, l)
            },
            |(_, d, l)| (d, l),
        );
        let parts: Vec<PartName> = rounds.steady().into_iter().map(|(part, _)| part).collect();
        let plan = assemble(w, choice, clip, d, l, &parts);
        let simulated = Steps::new(rounds).sequence;
        let tasks: usize = simulated.iter().map(|&p| plan.part(p).len()).sum();
        self.worked(tasks * 3 / 4);
        let seconds = steady_seconds(&plan, w, machine, Seconds(bound)).0;
        self.seen
            .seconds
            .borrow_mut()
            .insert(choice.clone(), seconds);
        seconds
    }

    /// The fastest starting points, or what would fit where there is none.
    fn starts(&self) -> Result<Vec<Candidate>, PlanError> {
        let starts = self.fastest(self.starting_points());
        if starts.is_empty() {
            return Err(PlanError::Refused(Box::new(self.refusal())));
        }
        Ok(starts)
    }

    /// The best candidate that was found.
    fn best(&self) -> Result<Candidate, PlanError> {
        let starts = self.starts()?;
        let first = |a: &Candidate, b: &Candidate| a.seconds.total_cmp(&b.seconds);
        let mut spent = self.each(starts, |search, start| search.spend(start, SPEND));
        spent.sort_by(first);
        spent.dedup_by(|a, b| a.mix == b.mix);
        let climbed = self.each(spent, |search, from| search.climb(from, CLIMB));
        Ok(climbed.into_iter().min_by(first).expect("not empty"))
    }

    /// The fastest few, fastest first; of equals the first. Those whose bound is above the time
    /// of enough others are not simulated.
    fn fastest(&self, starts: Vec<(Mix, Choice)>) -> Vec<Candidate> {
        let mut order: Vec<(f64, usize)> = starts
            .iter()
            .enumerate()
            .map(|(i, (_, c))| (self.size(c).bound, i))
            .collect();
        order.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut best: Vec<(f64, usize)> = Vec::new();
        for (bound, i) in order {
            if best
                .get(IMPROVED - 1)
                .is_some_and(|&(seconds, _)| seconds < bound)
            {
                break;
            }
            best.push((self.seconds(&starts[i].1), i));
            best.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        }
        best.truncate(IMPROVED);
        best.into_iter()
            .map(|(seconds, i)| {
                let (mix, choice) = starts[i].clone();
                Candidate {
                    mix,
                    choice,
                    seconds,
                }
            })
            .collect()
    }

    fn tiers(&self, pinned: Option<Tier>, disk: bool) -> Vec<Tier> {
        match pinned {
            Some(t) => vec![t],
            None if disk => Tier::ALL.to_vec(),
            None => vec![Tier::Device, Tier::Host],
        }
    }

    /// Micro-batches that one part may have.
    fn most_in_a_part(&self) -> u32 {
        let w = self.r.workload;
        let each = |u: &Unit| 2 * u.forward.len() + u.backward.len();
        let operations: usize = w.units.iter().map(each).sum();
        (LARGEST / operations.max(1) as u32).max(1)
    }

    /// Whether the search may cut the batch into rounds: it is too long to be planned as one, and no order
    /// of all its micro-batches was asked for.
    fn in_rounds(&self) -> bool {
        self.r.pins.order != Some(LoopOrder::LayerMajor)
            && self.r.workload.batch.accumulate > self.most_in_a_part()
    }

    /// Orders of the loops that have to be tried, with the micro-batches of a round.
    fn loops(&self) -> Vec<(LoopOrder, u32)> {
        let batch = self.r.workload.batch.accumulate;
        match self.r.pins.order {
            Some(LoopOrder::BatchMajor) if self.in_rounds() => vec![(LoopOrder::BatchMajor, 1)],
            Some(order) => vec![(order, 0)],
            None if batch == 1 => vec![(LoopOrder::LayerMajor, 0)],
            None if !self.in_rounds() => {
                vec![(LoopOrder::LayerMajor, 0), (LoopOrder::BatchMajor, 0)]
            }
            None => {
                let most = self.most_in_a_part();
                let mut rounds = vec![1, 4.min(most), most];
                rounds.dedup();
                let order = LoopOrder::LayerMajor;
                rounds.into_iter().map(|round| (order, round)).collect()
            }
        }
    }

    /// Every way that has to be tried, with as little as possible on device and host.
    fn ways(&self, disk: bool) -> Vec<Mix> {
        let (w, pins) = (self.r.workload, &self.r.pins);
        let mut ways = Vec::new();
        for (order, round) in self.loops() {
            for pieces in self.cuts() {
                for &gradients in &self.tiers(pins.gradients, disk) {
                    for &inputs in &self.tiers(pins.inputs, disk) {
                        let waiting = match gradients {
                            Tier::Device => Tier::Host,
                            tier => tier,
                        };
                        let mut mix = Mix::least(order, pieces, waiting, inputs);
                        mix.round = round;
                        mix.prefetch = pins.prefetch.unwrap_or(1);
                        if gradients == Tier::Device {
                            mix = mix.with(Count::Near, usize::MAX, w, pins);
                        }
                        ways.push(mix);
                    }
                }
            }
        }
        ways
    }

    /// Those that fit, each as it is or with nothing fetched ahead.
    fn starting_points(&self) -> Vec<(Mix, Choice)> {
        let (w, pins) = (self.r.workload, &self.r.pins);
        let mut found = Vec::new();
        for way in self.ways(self.disk) {
            let mut mixes = vec![way.clone()];
            if pins.prefetch.is_none() {
                mixes.push(Mix { prefetch: 0, ..way });
            }
            let settled = |m: Mix| self.settled(&m).map(|c| (m, c));
            found.extend(mixes.into_iter().find_map(settled));
        }
        // Everything on the device: where the device is large and the host is not, no plan with
        // state on the host fits to start from.
        for way in self.ways(false) {
            let mix = way.with(Count::Resident, usize::MAX, w, pins);
            if mix.inputs == Tier::Device && mix.get(Count::Resident) > 0 {
                found.extend(self.settled(&mix).map(|c| (mix, c)));
            }
        }
        found.retain(|(_, choice)| self.holds_whole(choice));
        if found.is_empty() {
            found = self.crowded();
        }
        found
    }

    /// Where host and disk are too small for all that is not in motion, and the device for all of
    /// it: as many units on the device as it holds.
    fn crowded(&self) -> Vec<(Mix, Choice)> {
        let (w, pins) = (self.r.workload, &self.r.pins);
        let with = |way: &Mix, n: usize| way.with(Count::Resident, n, w, pins);
        let on_device = |mix: &Mix| {
            let need = self.size(&mix.choice(w, pins)).need;
            need[Tier::Device as usize] <= self.r.budgets.device.0
        };
        let mut found = Vec::new();
        for way in self.ways(self.disk) {
            // Each unit more takes more of the device: the last count that it holds.
            let (mut holds, mut beyond) = (0, way.most(Count::Resident, w, pins) + 1);
            while beyond - holds > 1 {
                let middle = usize::midpoint(holds, beyond);
                if on_device(&with(&way, middle)) {
                    holds = middle;
                } else {
                    beyond = middle;
                }
            }
            // A unit less may be what lets the rest lie as it must.
            for n in (1..=holds).rev().take(2) {
                let mix = with(&way, n);
                if let Some(choice) = self.settled(&mix).filter(|c| self.holds_whole(c)) {
                    found.push((mix, choice));
                    break;
                }
            }
        }
        found
    }

    /// Does something with each candidate on a thread of its own; what one learns the others do
    /// not see.
    fn each(
        &self,
        candidates: Vec<Candidate>,
        what: impl Fn(Search<'_>, Candidate) -> Candidate + Sync,
    ) -> Vec<Candidate> {
        let what = &what;
        std::thread::scope(|scope| {
            let threads: Vec<_> = candidates
                .into_iter()
                .map(|candidate| {
                    let seen = self.seen.clone();
                    let r = self.r;
                    scope.spawn(move || what(Search::new(r, &seen), candidate))
                })
                .collect();
            threads
                .into_iter()
                .map(|t| {
                    t.join()
                        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                })
                .collect()
        })
    }
}
