//! Plans again for a session that runs: what outlives a step stays where it is, what comes and goes is chosen anew,
//! within the bytes that are reserved.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use lowtide_units::Seconds;
use lowtide_workload::{LocalId, Unit, Workload};

use super::climb::{Candidate, DEEPEST};
use super::mix::{AHEAD, Count, Knobs, Mix, pinned_ahead};
use super::{PlanError, Request, Search, Seen};
use crate::build::packed;
use crate::check::{check, replaces};
use crate::choice::{Budgets, Choice, LoopOrder, Saved};
use crate::plan::{Plan, Tier};
use crate::simulate::predict;

/// Limit on the work of the climb, in tasks drafted or simulated: about two seconds of one thread, while steps go on.
const WORK: u64 = 1_500_000;

/// What planning again has found.
#[derive(Clone, Debug)]
pub struct Again {
    /// A plan that [`replaces`] the one that runs.
    pub plan: Plan,
    /// A step of the plan that runs, at the rates of the request.
    pub before: Seconds,
}

impl Again {
    /// The share of a step that is saved.
    #[must_use]
    pub fn gain(&self) -> f64 {
        1.0 - self.plan.prediction.step_seconds.0 / self.before.0
    }
}

/// Plans again what a session runs by `old`, at the rates of the request's machine: everything that stays from step to
/// step keeps its place, and so do the cut of the parameters and the rounds of the batch; what becomes of saved
/// tensors and block inputs, how far copies run ahead and, of a batch in one round, the order of the loops are free.
/// The bytes that `old` has reserved take the place of the request's budgets. A step writes no more to the drives than
/// [`Pins::writes`](super::Pins::writes) says, pinned or not. `None`: nothing fits that was tried, which can be when
/// copies take longer than before; or `stop` was set meanwhile.
///
/// # Errors
/// [`PlanError::Wrong`]: our bug.
pub fn plan_again(
    r: &Request<'_>,
    old: &Plan,
    stop: &Arc<AtomicBool>,
) -> Result<Option<Again>, PlanError> {
    let mut request = *r;
    let reserved = |tier| old.tier(tier).planned_bytes;
    request.budgets = Budgets {
        device: reserved(Tier::Device),
        host: reserved(Tier::Host),
        disk: reserved(Tier::Disk),
    };
    let held = &old.choice;
    let knobs = Knobs::new(&request, held.direct);
    let seen = Seen {
        stop: Some(Arc::clone(stop)),
        ..Seen::default()
    };
    let orders = match (r.pins.order, held.round) {
        (None, 0) if Search::new(request, &knobs, &seen).by_batch() => {
            vec![LoopOrder::LayerMajor, LoopOrder::BatchMajor]
        }
        _ => vec![held.order],
    };
    let pins = &mut request.pins;
    pins.order = Some(held.order);
    pins.pieces = Some(held.pieces);
    // No search moves what is pinned.
    (pins.weights, pins.optimizer, pins.gradients) =
        (Some(Tier::Disk), Some(Tier::Disk), Some(Tier::Disk));
    let knobs = Knobs::new(&request, held.direct).holding(held);
    let search = Search::new(request, &knobs, &seen);
    let best = search.again(held, &orders);
    let Some(best) = best.filter(|_| !seen.stopped()) else {
        return Ok(None);
    };
    let budgets = Budgets {
        device: old.tier(Tier::Device).budget_bytes,
        host: old.tier(Tier::Host).budget_bytes,
        disk: old.tier(Tier::Disk).budget_bytes,
    };
    let packing = search.packing();
    let mut plan = packed(
        r.workload,
        &best.choice,
        r.clip,
        budgets,
        r.machine,
        packing,
    );
    for tier in Tier::ALL {
        // What is reserved stays so, used or not.
        let planned = &mut plan.tiers[tier as usize].planned_bytes;
        *planned = reserved(tier).max(*planned);
    }
    check(&plan, r.workload, r.clip).map_err(PlanError::Wrong)?;
    replaces(old, &plan).map_err(PlanError::Wrong)?;
    let written = plan.prediction.disk_bytes_written;
    if r.pins.writes.is_some_and(|most| written > most) {
        return Ok(None);
    }
    let before = predict(old, r.workload, r.machine).step_seconds;
    Ok(Some(Again { plan, before }))
}

impl Search<'_> {
    /// The best that is found of choices with the homes of one.
    fn again(&self, held: &Choice, orders: &[LoopOrder]) -> Option<Candidate> {
        let like = self.like(held);
        let mut mixes = Vec::new();
        for &order in orders {
            for ahead in [like.ahead, [0; 3]] {
                let rungs = like.get(Count::Stored);
                for stored in [rungs, rungs / 2, 0] {
                    let mix = Mix {
                        order,
                        ahead,
                        ..like.clone()
                    };
                    mixes.push(mix.with(Count::Stored, stored, self.r.workload, self.knobs));
                }
            }
        }
        // What runs, with its tasks where the rates of now put them: as far ahead as before, or less far.
        let held = std::iter::successors(Some(held.clone()), |choice| self.less_ahead(choice));
        let held = held.map(|choice| (like.clone(), choice));
        let others = mixes.iter().map(|mix| {
            let choice = mix.choice(self.r.workload, self.knobs);
            (mix.clone(), choice)
        });
        let mut starts = held.chain(others);
        let from = starts.find_map(|(mix, choice)| self.candidate(mix, choice))?;
        Some(self.climb_from_any(from, &mixes, self.looks(WORK)))
    }

    fn candidate(&self, mix: Mix, choice: Choice) -> Option<Candidate> {
        let fits = !self.seen.stopped() && self.may_write(&choice) && self.holds_whole(&choice);
        fits.then(|| {
            let seconds = self.seconds(&choice);
            Candidate {
                mix,
                choice,
                seconds,
            }
        })
    }

    /// The mix that comes nearest to a choice. Its blocks may store what no rung of the ladders does at the rates of
    /// now.
    fn like(&self, held: &Choice) -> Mix {
        let (w, knobs) = (self.r.workload, self.knobs);
        let ladders = &knobs.ladders;
        let mut mix = Mix::least(held.order, held.pieces, Tier::Host, held.inputs);
        (mix.round, mix.carry) = (held.round, held.carry);
        // Bytes are reserved: nothing is saved by leaving some.
        let deepest = [DEEPEST, AHEAD[1], AHEAD[2]];
        mix.ahead = knobs.prefetch.map_or(deepest, pinned_ahead);
        let (mut stored, mut staying, mut spilled) = (0, 0, 0);
        for &u in &ladders.blocks {
            let bytes = stored_bytes(w, u, &held.saved[u]);
            let below = (1..=ladders.steps).take_while(|&k| ladders.rung(u, k).bytes <= bytes);
            stored += below.count();
            let has = |way: Saved| usize::from(held.saved[u].contains(&way));
            staying += has(Saved::Keep);
            spilled += has(Saved::Disk);
        }
        for (count, value) in [
            (Count::Stored, stored),
            (Count::Staying, staying),
            (Count::Spilled, spilled),
        ] {
            mix = mix.with(count, value, w, knobs);
        }
        mix
    }
}

/// Bytes of what a block stores, of one micro-batch.
fn stored_bytes(w: &Workload, unit: usize, saved: &[Saved]) -> u64 {
    let unit: &Unit = &w.units[unit];
    let all = unit.saved().into_iter().zip(saved);
    let stored = all.filter(|&(_, &way)| way != Saved::Recompute);
    stored
        .map(|(t, _): (LocalId, _)| unit.tensors[t].bytes.0)
        .sum()
}
