//! A long batch is judged by a shorter one.
//!
//! Where an embedding shares its table with the head, its backward for all micro-batches stands in a batch's last
//! round ([`crate::rounds`]): a part whose tasks are as many as the batch is long. Everything else of a batch in rounds
//! is the same for any number of them. So which choice is fastest is asked of a batch of some rounds, with what waits
//! between rounds for the micro-batches that it has not taken off the budgets; the choice is then drafted, timed and
//! checked with the whole batch.

use lowtide_units::Bytes;
use lowtide_workload::{Batch, Workload};

use super::climb::Candidate;
use super::{Found, Knobs, Pins, Request, Search, Seen, found};
use crate::choice::{Direct, LoopOrder};
use crate::plan::{Tier, gradients_of_outputs};
use crate::program::sharing;

/// Micro-batches of a batch that is judged in place of a longer one, at least.
const LOOKED_AT: u32 = 1024;

/// Rounds that it has at least: a first, a last, and some between.
const ROUNDS: u32 = 4;

/// Bytes that wait between rounds for each micro-batch.
fn waiting(w: &Workload) -> u64 {
    let gradients = gradients_of_outputs(w);
    let late = sharing(w).into_iter().filter_map(|u| gradients[u as usize]);
    late.map(|(reader, i)| w.units[reader as usize].tensors[i].bytes.0)
        .sum()
}

/// So many micro-batches are judged in place of a request's batch. Nothing where that is no longer, or where its
/// length makes no part longer.
pub(super) fn looked_at(r: &Request<'_>) -> Option<u32> {
    let w = r.workload;
    let (knobs, seen) = (Knobs::new(r, Direct::NONE), Seen::default());
    let most = Search::new(*r, &knobs, &seen).most_in_a_part();
    // More than a round that is pinned, which would not be one of a batch as short.
    let rounds = ROUNDS.saturating_mul(most.max(r.pins.round));
    let looked_at = rounds.max(LOOKED_AT);
    let looked_at = looked_at.next_multiple_of(w.sums());
    let whole = r.pins.order == Some(LoopOrder::LayerMajor) && r.pins.round == 0;
    let longer = w.batch.accumulate >= 2 * looked_at && waiting(w) > 0;
    // What a step writes to the drives grows with the batch, too.
    (longer && !whole && r.pins.writes.is_none()).then_some(looked_at)
}

/// The best candidate of a long batch, by a shorter one. Nothing where there is no shorter one, or no choice of it
/// fits: then the batch itself is searched.
pub(super) fn best(r: &Request<'_>) -> Option<Found> {
    let w = r.workload;
    let looked_at = looked_at(r)?;
    let mut short = w.clone();
    short.batch = Batch {
        accumulate: looked_at,
        ..w.batch
    };
    let beyond = Bytes(waiting(w) * u64::from(w.batch.accumulate - looked_at));
    tiers(r, beyond).into_iter().find_map(|tier| {
        let left = r.budgets.of(tier).0.checked_sub(beyond.0)?;
        let request = Request {
            workload: &short,
            budgets: r.budgets.with(tier, Bytes(left)),
            pins: Pins {
                inputs: Some(tier),
                ..r.pins
            },
            ..*r
        };
        let Candidate { mix, choice, .. } = found(&request).ok()?.best;
        let (knobs, seen) = (Knobs::new(r, choice.direct), Seen::default());
        let search = Search::new(*r, &knobs, &seen);
        if !search.holds_whole(&choice) {
            return None;
        }
        let seconds = search.seconds(&choice);
        let best = Candidate {
            mix,
            choice,
            seconds,
        };
        Some(Found { knobs, seen, best })
    })
}

/// Where block inputs and what waits between rounds may be, the first to be tried first: on the device only where they
/// take little of it.
fn tiers(r: &Request<'_>, beyond: Bytes) -> Vec<Tier> {
    const LITTLE: u64 = 8;
    if let Some(tier) = r.pins.inputs {
        return vec![tier];
    }
    let mut tiers = vec![Tier::Host, Tier::Disk];
    let first = beyond.0 <= r.budgets.device.0 / LITTLE;
    tiers.insert(if first { 0 } else { 1 }, Tier::Device);
    tiers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::choice::{Budgets, Choice, Clip};
    use crate::search::fits;
    use crate::testing::{machine, needs, untied, workload};

    fn request<'a>(w: &'a Workload, m: &'a crate::Machine, host: u64) -> Request<'a> {
        let few = workload(3, 4);
        let device = needs(&few, &Choice::resident(&few), Clip::Exact)[0];
        Request {
            workload: w,
            machine: m,
            budgets: Budgets {
                device: Bytes(2 * device),
                host: Bytes(host),
                disk: Bytes(0),
            },
            clip: Clip::Exact,
            pins: Pins::default(),
        }
    }

    /// The plan of a batch of 65,536 is found by looks at a short one; all of it is there and fits.
    #[test]
    fn a_very_long_batch_is_planned_by_a_shorter_one() {
        let (w, m) = (workload(3, 65_536), machine());
        let host = (1 << 24) + waiting(&w) * 65_536;
        let r = request(&w, &m, host);
        let found = found(&r).expect("it fits");
        // The looks at the long one are two: does it fit, and how long does it take.
        let work = found.seen.work.get();
        let search = Search::new(r, &found.knobs, &found.seen);
        let made = search.made(&found.best).expect("the plan is right");
        let tasks: usize = made.parts.values().map(|tasks| tasks.len()).sum();
        assert!(work > 0 && work < 5 * tasks as u64, "{work} of {tasks}");
        assert_eq!(made.accumulate, 65_536);
        let need = Tier::ALL.map(|t| made.tier(t).planned_bytes.0);
        assert!(fits(&need, &r.budgets), "{need:?}");
        // Without room for what waits between rounds nothing is returned that does not fit.
        assert!(best(&request(&w, &m, waiting(&w) * 65_536 - 1)).is_none());
    }

    /// Rounds that are pinned are longer than the shortest batch that is looked at.
    #[test]
    fn rounds_that_are_pinned_stay_in_a_long_batch() {
        let (w, m) = (workload(3, 16_384), machine());
        let mut r = request(&w, &m, 1 << 40);
        r.pins.order = Some(LoopOrder::LayerMajor);
        r.pins.round = LOOKED_AT;
        let found = best(&r).expect("it fits");
        assert_eq!(found.best.choice.round, LOOKED_AT);
    }

    #[test]
    fn a_batch_that_makes_no_part_longer_is_searched_itself() {
        let m = machine();
        for w in [untied(3, 65_536), workload(3, 1024)] {
            assert!(best(&request(&w, &m, 1 << 40)).is_none());
        }
        let w = workload(3, 65_536);
        let mut r = request(&w, &m, 1 << 40);
        r.pins.order = Some(LoopOrder::LayerMajor);
        assert!(best(&r).is_none());
    }
}
