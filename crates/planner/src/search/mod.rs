//! Chooses: from a workload, a machine and three budgets to the plan with the least simulated step
//! time that fits.
//!
//! For each way of ordering the loops, cutting the pieces and placing gradients and block inputs
//! there is a *least* plan (everything offloaded, every block recomputed). Those that fit are the
//! starting points. From the fastest few, bytes that are left are spent where the simulator says
//! that they save time (`climb`): copies further ahead, keeping saved tensors, keeping weights,
//! gradients and optimizer state on the device, updating there. What is turned are a few counts
//! (`mix`), not every unit by itself. Nothing here looks at a clock or draws a random number: equal
//! inputs give an equal plan.
//!
//! One file because it is the frame of the search: requests, refusals and what all its parts ask of a draft.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lowtide_units::{Bytes, Seconds};
use lowtide_workload::Workload;
use serde::{Deserialize, Serialize};

use crate::build::{assemble, build};
use crate::check::{Fault, check};
use crate::choice::{
    Activations, Budgets, Choice, Clip, Direct, LoopOrder, Pieces, Processor, Saved, whole,
};
use crate::draft::{Draft, draft, persistent_bytes};
use crate::fast::FastMap;
use crate::layout::{Layout, Packing, layout};
use crate::machine::Machine;
use crate::plan::{LaneKind, PartName, Plan, Task, Tier};
use crate::rounds::Rounds;
use crate::simulate::{Busy, Steps, busy, steady_seconds};
use climb::{Candidate, GAIN};
use mix::{Count, Knobs, Mix};
use starts::first_of_each_loop;

pub mod again;
#[cfg(test)]
mod again_tests;
mod climb;
mod decode;
pub mod fit;
#[cfg(test)]
mod fit_tests;
mod ladder;
pub mod links;
mod mix;
pub mod outlook;
mod shorter;
#[cfg(test)]
mod spill_tests;
mod starts;
#[cfg(test)]
mod twin;
#[cfg(test)]
mod work_tests;

/// Knobs that the user holds fast; `None` is the planner's to choose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Pins {
    /// Whether the next block or the next micro-batch comes first.
    pub order: Option<LoopOrder>,
    /// Micro-batches of a [round](crate::rounds), where `order` is layer-major; 0: the whole batch is one.
    #[serde(default, skip_serializing_if = "whole")]
    pub round: u32,
    /// Home of every unit's weights.
    pub weights: Option<Tier>,
    /// Home of every unit's optimizer state.
    pub optimizer: Option<Tier>,
    /// Home of waiting gradients and accumulators.
    pub gradients: Option<Tier>,
    /// Home of block inputs.
    pub inputs: Option<Tier>,
    /// How many blocks recompute everything; the others keep everything.
    pub recompute: Option<u32>,
    /// What may become of saved tensors.
    pub activations: Activations,
    /// Where saved tensors go that move: the host, or the drives.
    pub offload: Option<Tier>,
    /// Seconds that a step must become shorter for each 10^12 bytes that it writes to the drives, of all ranks.
    pub min_gain: f64,
    /// The most bytes that a step of all ranks may write to the drives for what is not pinned there: saved tensors,
    /// block inputs, gradients, state. `None`: no limit.
    pub writes: Option<Bytes>,
    /// How far copies run ahead of their use: until so many eighths of the device are taken, and by so many of
    /// a block's largest tensors on the host.
    pub prefetch: Option<u8>,
    /// Cut of the parameters.
    pub pieces: Option<Pieces>,
    /// Where updates run.
    pub update: Option<Processor>,
    /// Weights and optimizer state in two versions on disk, committed by each update.
    pub durable: bool,
    /// Every transfer between drives and device passes host memory, also where the machine has
    /// [a rate](crate::machine::DiskRates::direct) for those that need not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub bounce: bool,
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
    "does not fit in device {}, host {}, disk {}; it would fit in device {}, host {}, disk {}",
    allowed.device, allowed.host, allowed.disk, up(nearest.device), up(nearest.host), up(nearest.disk)
)]
pub struct Refusal {
    /// What a plan that fits the nearest budgets needs.
    pub needed: Budgets,
    /// What was allowed.
    pub allowed: Budgets,
    /// The budgets nearest to the allowed ones that do fit.
    pub nearest: Budgets,
    /// Where no disk is allowed and the nearest budgets ask for none: the disk space with which the
    /// device and host memory that are allowed do, if any does.
    pub with_disk: Option<Bytes>,
}

/// The least size of so many digits as are shown that is not less: what is called enough is not rounded down.
fn up(n: Bytes) -> Bytes {
    let (unit, parts): (u128, u128) = match n.0 {
        n if n < 1 << 10 => (1, 1),
        n if n < 1 << 20 => (1 << 10, 10),
        n if n < 1 << 30 => (1 << 20, 10),
        n if n < 1 << 40 => (1 << 30, 10),
        _ => (1 << 40, 100),
    };
    let digits = (u128::from(n.0) * parts).div_ceil(unit);
    Bytes(u64::try_from(digits * unit / parts).unwrap_or(u64::MAX))
}

/// Why planning failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// No plan fits the budgets; what would is inside.
    #[error(transparent)]
    Refused(Box<Refusal>),
    /// The planner made a plan that its checker refuses: our bug.
    #[error("the plan is wrong: {0}")]
    Wrong(Fault),
}

#[derive(Clone, Copy)]
struct Search<'a> {
    r: Request<'a>,
    knobs: &'a Knobs,
    disk: bool,
    seen: &'a Seen,
}

/// What is known of choices that were looked at: the same ones come up again and again. All of it depends
/// on nothing but the choice, so it may come from anywhere.
#[derive(Clone, Default)]
struct Known {
    sizes: FastMap<Choice, Size>,
    whole: FastMap<Choice, [u64; 3]>,
    seconds: FastMap<Choice, f64>,
}

impl Known {
    fn extend(&mut self, other: Self) {
        self.sizes.extend(other.sizes);
        self.whole.extend(other.whole);
        self.seconds.extend(other.seconds);
    }
}

/// What one thread of a search knows and has done.
#[derive(Default)]
struct Seen {
    /// What is known by every thread.
    shared: RefCell<Arc<Known>>,
    own: RefCell<Known>,
    /// Tasks that were drafted, and three for each that was simulated: about as long as it takes.
    work: Cell<u64>,
    /// Where that count ends the looking for how much of a knob fits; zero: nowhere.
    limit: Cell<u64>,
    /// Set from outside: nobody waits for what is found any more.
    stop: Option<Arc<AtomicBool>>,
    /// The newest draft that fits; likely to be timed next.
    newest: RefCell<Option<(Choice, Draft, Layout)>>,
}

/// What a draft says before its edges are made.
#[derive(Clone, Copy)]
struct Size {
    need: [u64; 3],
    /// Seconds of the busiest lane: no step is shorter.
    bound: f64,
    /// Seconds of the drives.
    drives: f64,
    /// Bytes that a step of all ranks writes to the drives.
    written: u64,
}

/// How many starting points are improved, and climbed from: what is fastest with everything offloaded
/// need not be so when the bytes that are left are spent.
const IMPROVED: usize = 5;

/// Limits on the work of improving a start, of the first climb from it, and of a second one from the best or from
/// another start, in tasks drafted or simulated. A count of work instead of a clock gives the same plan on every
/// machine. A start that the first climb leaves behind is not climbed from further.
const WORK: [u64; 4] = [100_000, 100_000, 500_000, 200_000];

/// The same of a batch in which rounds are a choice: each look costs more, and there is more to choose.
const WORK_IN_ROUNDS: [u64; 4] = [150_000, 250_000, 1_500_000, 500_000];

/// Parameters of a unit up to which a look at a plan costs what [`WORK`] counts on: no family has more.
const USUAL: u64 = 12;

/// A plan that keeps all weights and optimizer state on the device is taken where it is at most this much slower than
/// the fastest. Predictions hold to a few percent, and links and host updates that have just the time they need are
/// sometimes late, where a device alone is not: a 135M model on an H100, planned for 42.4 ms with updates on the host
/// and for 43.3 without, took 45.1 and 47.7 ms with them and 42.3 and 43.7 without.
const SURE: f64 = 1.03;

/// Share of a step that the drives must take for it to count as ruled by them alone.
const DRIVES: f64 = 0.8;

/// From how many starts saved tensors are moved, and where the host is late updates put on both sides.
const MOVING: usize = 3;

/// How many are climbed from twice.
const CLIMBED: usize = 3;

/// Plans a request.
///
/// # Errors
/// [`PlanError::Refused`] when no plan fits the budgets, with what would.
pub fn plan(r: &Request<'_>) -> Result<Plan, PlanError> {
    if r.workload.decodes() {
        return decode::plan(r);
    }
    let Found { knobs, seen, best } = found(r)?;
    Search::new(*r, &knobs, &seen).made(&best)
}

/// The best candidate of a request, with what was learned on the way to it.
struct Found {
    knobs: Knobs,
    seen: Seen,
    best: Candidate,
}

/// Searches, where drives reach the device twice: what is ahead of its use, and so what fits, differs with the memory
/// that transfers pass. Where it is no faster, transfers pass the host.
fn found(r: &Request<'_>) -> Result<Found, PlanError> {
    if let Some(found) = shorter::best(r) {
        return Ok(found);
    }
    let with = |direct: Direct| {
        let (knobs, seen) = (Knobs::new(r, direct), Seen::default());
        let best = Search::new(*r, &knobs, &seen).best()?;
        Ok(Found { knobs, seen, best })
    };
    let bounced = with(Direct::NONE);
    if !r.reaches_device() {
        return bounced;
    }
    match (bounced, with(Direct::BOTH)) {
        (Ok(a), Ok(b)) if b.best.seconds < a.best.seconds * (1.0 - GAIN) => Ok(b),
        (Err(_), Ok(b)) => Ok(b),
        (bounced, _) => bounced,
    }
}

/// Plans a step that is made once: the fastest of the plans that [`plan`] only starts from, found in a fraction of
/// the time.
///
/// # Errors
/// As [`plan`].
pub fn plan_one_step(r: &Request<'_>) -> Result<Plan, PlanError> {
    let (knobs, seen) = (Knobs::new(r, Direct::NONE), Seen::default());
    let search = Search::new(*r, &knobs, &seen);
    search.made(&search.starts()?.swap_remove(0))
}

/// Whether any plan fits a request. Looks for none that is fast, and for no reason where there is none.
#[must_use]
pub fn fits_any(r: &Request<'_>) -> bool {
    if r.workload.decodes() {
        return decode::fits_any(r);
    }
    fit::first(r, &Seen::default()).is_some()
}

impl Request<'_> {
    /// Whether transfers may pass host memory by.
    fn reaches_device(&self) -> bool {
        let may = self.machine.may_register(self.budgets.device);
        may && !self.pins.bounce && self.budgets.disk.0 > 0
    }
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
        .map(|(part, times)| (&*d.parts[part], times))
        .collect();
    let direct = |task: &Task| task.is_direct(|slot| d.slots[slot].tier);
    busy(&parts, &d.pieces, w, machine, direct)
}

fn fits(need: &[u64; 3], budgets: &Budgets) -> bool {
    Tier::ALL
        .iter()
        .all(|&t| need[t as usize] <= budgets.of(t).0)
}

impl Seen {
    /// What was learned before, for a thread of its own.
    fn knowing(shared: Arc<Known>) -> Self {
        Self {
            shared: RefCell::new(shared),
            ..Self::default()
        }
    }

    fn get<T: Copy>(
        &self,
        choice: &Choice,
        of: impl Fn(&Known) -> &FastMap<Choice, T>,
    ) -> Option<T> {
        let shared = of(&self.shared.borrow()).get(choice).copied();
        shared.or_else(|| of(&self.own.borrow()).get(choice).copied())
    }

    /// Whether nobody waits for what is found.
    fn stopped(&self) -> bool {
        let stop = self.stop.as_ref();
        stop.is_some_and(|stop| stop.load(Ordering::Relaxed))
    }

    /// Whether the work is done that may be done.
    fn exhausted(&self) -> bool {
        self.stopped() || (1..=self.work.get()).contains(&self.limit.get())
    }

    /// Everything that is known, for others to know.
    fn share(&self) -> Arc<Known> {
        let own = self.own.take();
        let mut shared = self.shared.borrow_mut();
        Arc::make_mut(&mut shared).extend(own);
        Arc::clone(&shared)
    }
}

impl<'a> Search<'a> {
    fn new(r: Request<'a>, knobs: &'a Knobs, seen: &'a Seen) -> Self {
        let disk = r.budgets.disk.0 > 0;
        Self {
            r,
            knobs,
            disk,
            seen,
        }
    }
}

impl Search<'_> {
    /// The whole plan of a candidate, checked.
    fn made(&self, best: &Candidate) -> Result<Plan, PlanError> {
        let r = &self.r;
        let plan = build(r.workload, &best.choice, r.clip, r.budgets, r.machine);
        check(&plan, r.workload, r.clip).map_err(PlanError::Wrong)?;
        Ok(plan)
    }

    /// How slots are packed: what a running session has reserved is all that there is.
    fn packing(&self) -> Packing {
        match self.knobs.held {
            Some(_) => Packing::Tight,
            None => Packing::Usual,
        }
    }

    /// What a steady step needs of a choice, and the bound of that step. Of the other parts few
    /// need more ([`Search::holds_whole`]).
    fn size(&self, choice: &Choice) -> Size {
        if let Some(size) = self.seen.get(choice, |k| &k.sizes) {
            return size;
        }
        let Request {
            workload: w,
            clip,
            machine,
            ..
        } = self.r;
        let rounds = choice.rounds(w);
        let d = draft(
            w,
            &self.knobs.rates,
            choice,
            clip,
            &timed_parts(clip, rounds),
        );
        let l = layout(&d.slots, PartName::ALL.len(), self.packing());
        self.worked(d.parts.values().map(|tasks| tasks.len()).sum());
        let busy = busy_of(&d, rounds, w, machine);
        let size = Size {
            need: l.totals,
            bound: busy.busiest.0,
            drives: busy.lanes[LaneKind::Disk as usize].busy_seconds.0,
            written: busy.written.0 * u64::from(w.ranks),
        };
        let mut own = self.seen.own.borrow_mut();
        own.sizes.insert(choice.clone(), size);
        if fits(&size.need, &self.r.budgets) {
            *self.seen.newest.borrow_mut() = Some((choice.clone(), d, l));
        }
        size
    }

    /// What a choice needs in all parts, to the byte.
    fn whole(&self, choice: &Choice) -> [u64; 3] {
        if let Some(need) = self.seen.get(choice, |k| &k.whole) {
            return need;
        }
        let d = draft(
            self.r.workload,
            &self.knobs.rates,
            choice,
            self.r.clip,
            &PartName::ALL,
        );
        let need = layout(&d.slots, PartName::ALL.len(), self.packing()).totals;
        self.worked(d.parts.values().map(|tasks| tasks.len()).sum());
        let mut own = self.seen.own.borrow_mut();
        own.whole.insert(choice.clone(), need);
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
        let known = self.seen.get(choice, |k| &k.sizes);
        match known {
            Some(size) => fits(&size.need, budgets),
            // What stays is known without a draft, and most of what does not fit fails by it.
            None => {
                fits(&persistent_bytes(workload, choice, *clip), budgets)
                    && fits(&self.size(choice).need, budgets)
            }
        }
    }

    /// Whether a candidate's step waits for the drives alone: only what moves fewer bytes over them makes it shorter.
    fn ruled_by_drives(&self, candidate: &Candidate) -> bool {
        self.disk && self.size(&candidate.choice).drives > DRIVES * candidate.seconds
    }

    fn worked(&self, tasks: usize) {
        self.seen.work.set(self.seen.work.get() + tasks as u64);
    }

    /// What a step costs: its simulated time, and the time that its writes to the drives must save.
    fn seconds(&self, choice: &Choice) -> f64 {
        let step = self.step_seconds(choice);
        step + self.r.pins.min_gain * self.size(choice).written as f64 / 1e12
    }

    /// Whether a step writes no more to the drives than it may.
    fn may_write(&self, choice: &Choice) -> bool {
        let pins = &self.r.pins;
        let Some(most) = pins.writes else {
            return true;
        };
        if self.knobs.held.is_some() {
            // Whoever pinned what a step writes counts on the plan that runs.
            return self.size(choice).written <= most.0;
        }
        let disk = Some(Tier::Disk);
        let moved = choice.saved.iter().flatten().any(|&s| s == Saved::Disk);
        let saved = moved && pins.offload.is_none();
        let inputs = choice.inputs == Tier::Disk && pins.inputs.is_none();
        // What is stored on the host may be what sends these to the drives.
        let state = !choice.durable && pins.optimizer != disk && pins.weights != disk;
        let state = state
            && [&choice.optimizer, &choice.weights]
                .iter()
                .any(|t| t.contains(&Tier::Disk));
        let gradients = pins.gradients != disk && choice.gradients.contains(&Tier::Disk);
        !(saved || inputs || state || gradients) || self.size(choice).written <= most.0
    }

    /// Simulated time of a step.
    fn step_seconds(&self, choice: &Choice) -> f64 {
        if let Some(seconds) = self.seen.get(choice, |k| &k.seconds) {
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
                let d = draft(
                    w,
                    &self.knobs.rates,
                    choice,
                    clip,
                    &timed_parts(clip, rounds),
                );
                let l = layout(&d.slots, PartName::ALL.len(), self.packing());
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
        let mut own = self.seen.own.borrow_mut();
        own.seconds.insert(choice.clone(), seconds);
        seconds
    }

    /// The fastest starting points, or what would fit where there is none.
    fn starts(&self) -> Result<Vec<Candidate>, PlanError> {
        let mut starts = self.fastest(self.starting_points());
        if starts.is_empty() {
            starts = self.fastest(self.crowded());
        }
        if starts.is_empty() {
            match self.refusal() {
                Ok(start) => starts = self.fastest(vec![start]),
                Err(refusal) => return Err(PlanError::Refused(Box::new(refusal))),
            }
        }
        Ok(starts)
    }

    /// The best candidate that was found: the fastest, or with everything on the device where that is as good.
    fn best(&self) -> Result<Candidate, PlanError> {
        let fastest = self.fastest_of_all()?;
        let resident = self.resident(&fastest);
        let sure = resident.filter(|r| r.seconds <= SURE * fastest.seconds);
        Ok(self.one_way(sure.unwrap_or(fastest)))
    }

    /// A candidate, or what it becomes if only its reads or only its writes pass the host by, or neither: each way has
    /// a rate of its own, and a plan that moves nothing past the host is not to look as if it did.
    fn one_way(&self, mut best: Candidate) -> Candidate {
        if best.choice.direct != Direct::BOTH {
            return best;
        }
        for (read, write, gain) in [
            (false, false, 0.0),
            (true, false, GAIN),
            (false, true, GAIN),
        ] {
            let mut choice = best.choice.clone();
            choice.direct = Direct { read, write };
            if !self.holds_whole(&choice) || !self.may_write(&choice) {
                continue;
            }
            let seconds = self.seconds(&choice);
            if seconds <= best.seconds * (1.0 - gain) {
                best = Candidate {
                    choice,
                    seconds,
                    ..best
                };
            }
        }
        best
    }

    fn fastest_of_all(&self) -> Result<Candidate, PlanError> {
        let starts = self.starts()?;
        let first = |a: &Candidate, b: &Candidate| a.seconds.total_cmp(&b.seconds);
        let rounds = self.r.workload.batch.accumulate > 2 && self.r.pins.order.is_none();
        let work = if rounds { WORK_IN_ROUNDS } else { WORK };
        let [spend, first_climb, of_best, of_others] = work.map(|work| self.looks(work));
        let ranked = |mut found: Vec<Candidate>| {
            found.sort_by(first);
            found.dedup_by(|a, b| a.choice == b.choice);
            found
        };
        let moving = self.movers(starts.clone());
        let starts = self.with_just_in_time(starts);
        let mut spent = self.each(starts, |search, start| search.spend(start, spend));
        spent.extend(self.each(moving, |search, start| search.moving(start, spend)));
        let mut spent = ranked(spent);
        first_of_each_loop(&mut spent, IMPROVED);
        let late = spent.first().filter(|c| self.late_host(c)).is_some();
        let sided = spent.iter().take(if late { MOVING } else { 0 });
        let mut sided: Vec<Candidate> = sided.cloned().collect();
        let climbed = self.each(spent, |search, from| search.climb(from, first_climb));
        let best = self.promising(ranked(climbed));
        let fastest = best.first().map_or(0.0, |c| c.seconds);
        let mut climbed = self.each(best, |search, from| {
            let work = if from.seconds <= fastest {
                of_best
            } else {
                of_others
            };
            search.climb(from, work)
        });
        // Behind the others, which thus end where they would without these.
        for work in [first_climb, of_others] {
            let by_both = self.each(sided, |search, from| search.climb_by_both_sides(from, work));
            sided = self.promising(ranked(by_both));
        }
        climbed.extend(sided);
        Ok(climbed.into_iter().min_by(first).expect("not empty"))
    }

    /// The work limit for the same number of looks at plans. Where units have more parameters, each look costs more:
    /// in subspaces a matrix is a base, a core and a projector.
    fn looks(&self, work: u64) -> u64 {
        let w = self.r.workload;
        let (parameters, usual) = (w.params.len() as u64, USUAL * w.units.len() as u64);
        work * parameters.div_ceil(usual)
    }

    /// A candidate with all weights and optimizer state on the device, if it fits.
    fn resident(&self, best: &Candidate) -> Option<Candidate> {
        let (w, pins) = (self.r.workload, self.knobs);
        let all = Mix {
            skip: 0,
            ..best.mix.clone()
        };
        let mix = self.filled(&all, Count::Resident)?;
        let all = mix.most(Count::Resident, w, pins);
        if all == 0 || mix.get(Count::Resident) < all {
            return None;
        }
        let choice = self.settled(&mix).filter(|c| self.holds_whole(c))?;
        let seconds = self.seconds(&choice);
        Some(Candidate {
            mix,
            choice,
            seconds,
        })
    }

    /// Of candidates, fastest first, the first few, the last of them the first of another kind than the fastest:
    /// of another order of the loops where there is one, else with other tiers or nothing ahead.
    fn promising(&self, mut ranked: Vec<Candidate>) -> Vec<Candidate> {
        let order = |m: &Mix| m.order;
        let other = |m: &Mix| (m.waiting, m.inputs, m.ahead == [0; 3]);
        if let Some(best) = ranked.first().map(|c| c.mix.clone()) {
            let of_other_order = ranked.iter().position(|c| order(&c.mix) != order(&best));
            let of_other_tiers = || ranked.iter().position(|c| other(&c.mix) != other(&best));
            if let Some(i) = of_other_order.or_else(of_other_tiers)
                && i >= CLIMBED
            {
                ranked.swap(CLIMBED - 1, i);
            }
        }
        ranked.truncate(CLIMBED);
        ranked
    }

    /// The fastest few that fit in all parts, fastest first; of equals the first. Those whose bound is
    /// above the time of enough others are not looked at further.
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
            if !self.holds_whole(&starts[i].1) {
                continue;
            }
            best.push((self.seconds(&starts[i].1), i));
            best.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        }
        best.truncate(IMPROVED);
        // All blocks for one micro-batch after the other fetch weights most often while nothing is on the
        // device, and store least at once: that start is not to be judged by its first time.
        let by_batch = |i: usize| starts[i].0.order == LoopOrder::BatchMajor;
        if self.by_batch()
            && best.len() == IMPROVED
            && !best.iter().any(|&(_, i)| by_batch(i))
            && let Some(i) = (0..starts.len())
                .filter(|&i| by_batch(i) && self.holds_whole(&starts[i].1))
                .min_by(|&a, &b| {
                    let bound = |i: usize| self.size(&starts[i].1).bound;
                    bound(a).total_cmp(&bound(b))
                })
        {
            best[IMPROVED - 1] = (self.seconds(&starts[i].1), i);
        }
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

    /// Does something with each candidate on a thread of its own; what one learns the others see when
    /// all are done.
    fn each(
        &self,
        candidates: Vec<Candidate>,
        what: impl Fn(Search<'_>, Candidate) -> Candidate + Sync,
    ) -> Vec<Candidate> {
        let what = &what;
        let known = self.seen.share();
        let done: Vec<(Candidate, Known, usize)> = std::thread::scope(|scope| {
            let threads: Vec<_> = candidates
                .into_iter()
                .map(|candidate| {
                    let seen = Seen::knowing(Arc::clone(&known));
                    let (r, knobs) = (self.r, self.knobs);
                    scope.spawn(move || {
                        let done = what(Search::new(r, knobs, &seen), candidate);
                        (done, seen.own.into_inner(), seen.work.get() as usize)
                    })
                })
                .collect();
            threads.into_iter().map(|t| joined(t.join())).collect()
        });
        drop(known);
        done.into_iter()
            .map(|(candidate, learned, work)| {
                self.seen.own.borrow_mut().extend(learned);
                self.worked(work);
                candidate
            })
            .collect()
    }
}

/// What a thread did; its panic goes on here.
fn joined<T>(done: std::thread::Result<T>) -> T {
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
