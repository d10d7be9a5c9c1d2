//! What goes to disk so that the host's budget holds, and what would fit where nothing does.

use lowtide_units::{Bytes, ids};
use lowtide_workload::{Param, Unit};

use super::mix::{Knobs, Mix, pinned_ahead};
use super::{Refusal, Request, Search, Seen, fits};
use crate::choice::{Budgets, Choice, Direct};
use crate::draft::persistent_bytes;
use crate::plan::Tier;

/// What the first plan needs that fits a request, if any does.
pub(super) fn first(r: &Request<'_>, seen: &Seen) -> Option<[u64; 3]> {
    let with = |direct: Direct| {
        let knobs = Knobs::new(r, direct);
        let search = Search::new(*r, &knobs, seen);
        let holds = |(_, choice): &(Mix, Choice)| search.holds_whole(choice);
        let starts = search.starting_points().into_iter();
        let start = starts.chain(search.crowded()).find(holds)?;
        Some(search.whole(&start.1))
    };
    with(Direct::NONE).or_else(|| r.reaches_device().then(|| with(Direct::BOTH)).flatten())
}

/// So many times the distance between a budget that is refused and one that is enough is halved.
const HALVES: u32 = 7;

/// Tasks drafted up to which smaller budgets are looked for, about two seconds.
const LOOKED: u64 = 1_500_000;

/// Operations of a batch up to which they are looked for: of more, one look takes seconds.
const LARGE: usize = 10_000;

/// A refusal with smaller budgets that are enough, where there are any: each tier that has to grow is made as small
/// as halving finds while the others stay as they are. What halving passes over may be enough, too, so it is a little
/// more than the least.
#[must_use]
pub fn tightened(r: &Request<'_>, mut refusal: Refusal) -> Refusal {
    let w = r.workload;
    let each = |u: &Unit| 2 * u.forward.len() + u.backward.len();
    let operations: usize = w.units.iter().map(each).sum();
    if w.decodes() || operations * w.batch.accumulate as usize > LARGE {
        return refusal;
    }
    let seen = Seen::default();
    // Of budgets that are enough, with one tier smaller: they, and what a plan takes of them.
    let smaller = |enough: Budgets, tier: Tier| {
        let (mut least, mut refused) = (None, refusal.allowed.of(tier).0);
        let mut known = enough.of(tier).0;
        // What was allowed may do where the others have grown.
        let as_it_was = enough.with(tier, refusal.allowed.of(tier));
        if known > refused && seen.work.get() < LOOKED {
            let r = Request {
                budgets: as_it_was,
                ..*r
            };
            if let Some(needed) = first(&r, &seen) {
                return Some((as_it_was, needed));
            }
        }
        for _ in 0..HALVES {
            if known - known / 64 <= refused || seen.work.get() >= LOOKED {
                break;
            }
            let middle = u64::midpoint(refused, known);
            let budgets = enough.with(tier, Bytes(middle));
            match first(&Request { budgets, ..*r }, &seen) {
                Some(needed) => (known, least) = (middle, Some((budgets, needed))),
                None => refused = middle,
            }
        }
        least
    };
    let with_disk = refusal.with_disk.map(|disk| {
        let enough = refusal.allowed.with(Tier::Disk, disk);
        smaller(enough, Tier::Disk).map_or(disk, |(least, _)| least.disk)
    });
    let (mut nearest, mut needed) = (refusal.nearest, refusal.needed);
    for tier in Tier::ALL {
        if let Some((least, [device, host, disk])) = smaller(nearest, tier) {
            nearest = least;
            needed = Budgets {
                device: Bytes(device),
                host: Bytes(host),
                disk: Bytes(disk),
            };
        }
    }
    (refusal.nearest, refusal.needed, refusal.with_disk) = (nearest, needed, with_disk);
    refusal
}

impl Search<'_> {
    /// Whether optimizer state and weights may go from host to disk.
    fn movable(&self) -> (bool, bool) {
        let pins = &self.r.pins;
        (
            self.disk && pins.optimizer.is_none(),
            self.disk && pins.weights.is_none(),
        )
    }

    /// With all that may move on disk.
    fn spilled(&self, mut choice: Choice) -> Choice {
        let (states, weights) = self.movable();
        let mut moved = false;
        if states {
            self.spill(&mut choice, u64::MAX, false, &mut moved);
        }
        if weights {
            self.spill(&mut choice, u64::MAX, true, &mut moved);
        }
        choice
    }

    /// Moves state, then weights, from host to disk until the host's budget holds.
    pub(super) fn fit(&self, mut choice: Choice, budgets: &Budgets) -> Option<Choice> {
        let (states, weights) = self.movable();
        let last = self.spilled(choice.clone());
        let stays = persistent_bytes(self.r.workload, &last, self.r.clip);
        if stays[0] > budgets.device.0 || stays[1] > budgets.host.0 {
            return None;
        }
        let spill = |choice: &mut Choice, need: &[u64; 3]| {
            let mut excess = need[1].saturating_sub(budgets.host.0);
            let mut moved = false;
            if states {
                excess = self.spill(choice, excess, false, &mut moved);
            }
            if weights && excess > 0 {
                self.spill(choice, excess, true, &mut moved);
            }
            moved
        };
        // What stays on the host is known without a draft.
        let stays = persistent_bytes(self.r.workload, &choice, self.r.clip);
        spill(&mut choice, &stays);
        for _ in 0..12 {
            let need = self.size(&choice).need;
            if fits(&need, budgets) {
                return Some(choice);
            }
            if need[0] > budgets.device.0 || need[2] > budgets.disk.0 || !spill(&mut choice, &need)
            {
                return None;
            }
        }
        // What is read from disk needs room on the host too, so the last steps may be short.
        fits(&self.size(&last).need, budgets).then_some(last)
    }

    /// Moves units' state (or weights) from host to disk, last unit first, because the first ones are needed first in
    /// the next forward. Returns the bytes that are still too many.
    fn spill(&self, choice: &mut Choice, mut excess: u64, weights: bool, moved: &mut bool) -> u64 {
        let w = self.r.workload;
        for (u, unit) in w.units.iter().enumerate().rev() {
            if excess == 0 {
                break;
            }
            // A frozen parameter has no state.
            let params = ids(&unit.params).map(|p| &w.params[p]);
            let based = choice.bases.get(u) == Some(&true);
            let params: Vec<&Param> = params
                .filter(|p| !p.frozen || (weights && !based))
                .collect();
            let n: u64 = params.iter().map(|p| w.kept(p)).sum();
            let state = |p: &Param| {
                let own = std::slice::from_ref(p);
                w.optimizer.state_bytes(w.precision, w.kept(p), own)
            };
            let (homes, bytes) = if weights {
                (&mut choice.weights, n * w.precision.size())
            } else {
                (&mut choice.optimizer, params.into_iter().map(state).sum())
            };
            if n > 0 && homes[u] == Tier::Host {
                homes[u] = Tier::Disk;
                *moved = true;
                excess = excess.saturating_sub(bytes);
            }
        }
        excess
    }

    /// What would fit: the seeds without limits, each with the change in budgets that it needs, in all parts. Or a
    /// plan that does fit, where no other start did. Long because what has been found so far decides at every level
    /// what can be left out.
    pub(super) fn refusal(&self) -> Result<(Mix, Choice), Refusal> {
        let allowed = self.r.budgets;
        let mut best: Option<(f64, [u64; 3])> = None;
        let mut on_disk: Option<u64> = None;
        // One tier free, the others as allowed; then two; then all.
        let free: [[bool; 3]; 7] = [
            [true, false, false],
            [false, true, false],
            [false, false, true],
            [true, true, false],
            [true, false, true],
            [false, true, true],
            [true, true, true],
        ];
        for mask in free {
            let of = |t: Tier| {
                if mask[t as usize] {
                    Budgets::UNLIMITED.of(t)
                } else {
                    allowed.of(t)
                }
            };
            let limits = Budgets {
                device: of(Tier::Device),
                host: of(Tier::Host),
                disk: of(Tier::Disk),
            };
            let search = Search {
                r: Request {
                    budgets: limits,
                    ..self.r
                },
                disk: limits.disk.0 > 0,
                ..*self
            };
            // The least disk space is reported, too, with which the other two budgets are enough.
            let asked = mask == [false, false, true] && allowed.disk.0 == 0;
            for way in search.ways(search.disk) {
                for ahead in [[0; 3], way.ahead] {
                    let ahead = self.r.pins.prefetch.map_or(ahead, pinned_ahead);
                    let way = Mix {
                        ahead,
                        ..way.clone()
                    };
                    let choice = way.choice(self.r.workload, self.knobs);
                    // With a free host nothing would go to disk by itself.
                    let spilled = search.spilled(choice.clone());
                    // For most seeds, the bytes that stay already show that they are no nearer, which saves a draft.
                    // The more lies on disk, the less lies on the host.
                    let stays = |c: &Choice| persistent_bytes(self.r.workload, c, self.r.clip);
                    let (most, least) = (stays(&choice), stays(&spilled));
                    let further = |need: &[u64; 3]| {
                        let cost = excess(need, &allowed);
                        !asked && best.as_ref().is_some_and(|(c, _)| *c <= cost)
                    };
                    let fitted = (!further(&[most[0], least[1], most[2]]))
                        .then(|| search.fit(choice, &limits));
                    let spilled = (!further(&least)).then_some(spilled);
                    for choice in fitted.flatten().into_iter().chain(spilled) {
                        let steady = self.size(&choice).need;
                        let nearer = |need: &[u64; 3], best: &Option<(f64, [u64; 3])>| {
                            let cost = excess(need, &allowed);
                            fits(need, &limits) && best.as_ref().is_none_or(|(c, _)| cost < *c)
                        };
                        let asked_for = asked && fits(&steady, &limits);
                        if !(asked_for || nearer(&steady, &best)) {
                            continue;
                        }
                        // Other parts than a steady step may need more.
                        let need = self.whole(&choice);
                        if fits(&need, &allowed) {
                            return Ok((way.as_settled(&choice, self.knobs), choice));
                        }
                        if asked && fits(&need, &limits) {
                            on_disk = Some(on_disk.map_or(need[2], |least| least.min(need[2])));
                        }
                        if nearer(&need, &best) {
                            best = Some((excess(&need, &allowed), need));
                        }
                    }
                }
            }
            if best.is_some() && mask.iter().filter(|&&m| m).count() == 1 {
                continue;
            }
            if best.is_some() {
                break;
            }
        }
        let need = best.map_or([u64::MAX >> 2; 3], |(_, need)| need);
        let budget = |t: usize, have: Bytes| Bytes(need[t].max(have.0));
        Err(Refusal {
            needed: Budgets {
                device: Bytes(need[0]),
                host: Bytes(need[1]),
                disk: Bytes(need[2]),
            },
            allowed,
            nearest: Budgets {
                device: budget(0, allowed.device),
                host: budget(1, allowed.host),
                disk: budget(2, allowed.disk),
            },
            with_disk: on_disk
                .filter(|_| allowed.disk.0 == 0 && need[2] == 0)
                .map(Bytes),
        })
    }
}

/// How far a need is above the budgets: the sum of the logarithms of the ratios, so that doubling
/// a small budget weighs as much as doubling a large one.
pub(super) fn excess(need: &[u64; 3], allowed: &Budgets) -> f64 {
    Tier::ALL
        .iter()
        .map(|&t| {
            let have = allowed.of(t).0.max(1 << 20) as f64;
            (need[t as usize] as f64 / have).max(1.0).ln()
        })
        .sum()
}
