//! Where a search starts: every way of ordering the loops, cutting the pieces and placing gradients and block
//! inputs, with as little on the device and the host as it takes.

use lowtide_workload::Unit;

use super::climb::Candidate;
use super::mix::{self, Count, Mix};
use super::{LARGEST, MOVING, Search};
use crate::choice::{Activations, Choice, LoopOrder, Pieces};
use crate::draft::persistent_bytes;
use crate::plan::Tier;

/// Of candidates, fastest first, so many: first the fastest of each loop, then the fastest others.
pub(super) fn first_of_each_loop(ranked: &mut Vec<Candidate>, n: usize) {
    let mut loops = Vec::new();
    ranked.sort_by_key(|c| {
        let this = (
            (c.mix.order, c.mix.round == 0),
            c.mix.get(Count::Near) == 0,
            c.mix.waiting,
            c.mix.ahead[1..] == [0, 0],
        );
        let known = loops.contains(&this);
        if !known {
            loops.push(this);
        }
        known
    });
    ranked.truncate(n);
}

impl Search<'_> {
    pub(super) fn tiers(&self, pinned: Option<Tier>, disk: bool) -> Vec<Tier> {
        match pinned {
            Some(t) => vec![t],
            None if disk => Tier::ALL.to_vec(),
            None => vec![Tier::Device, Tier::Host],
        }
    }

    /// Micro-batches that one part may have.
    pub(super) fn most_in_a_part(&self) -> u32 {
        let w = self.r.workload;
        let each = |u: &Unit| 2 * u.forward.len() + u.backward.len();
        let operations: usize = w.units.iter().map(each).sum();
        (LARGEST / operations.max(1) as u32).max(1)
    }

    /// Whether the search may cut the batch into rounds: it is too long to be planned as one, and no order
    /// of all its micro-batches was asked for.
    pub(super) fn in_rounds(&self) -> bool {
        self.r.pins.order != Some(LoopOrder::LayerMajor)
            && self.r.workload.batch.accumulate > self.most_in_a_part()
    }

    /// About so many micro-batches of a round, as many for each sum of a gradient: rounds are alike, so each adds to
    /// every sum, and the first one begins all of them. 0: the whole batch is one.
    pub(super) fn round_of(&self, micro_batches: u32) -> u32 {
        let w = self.r.workload;
        match micro_batches.next_multiple_of(w.sums()) {
            round if w.sums() > 1 && round >= w.batch.accumulate => 0,
            round => round,
        }
    }

    /// Whether all blocks for one micro-batch after the other are tried without rounds: as rounds of one, but
    /// with sums that need no home of their own. Of many micro-batches that is a long plan. A gradient of several sums
    /// would leave the device when only one of them has begun.
    pub(super) fn by_batch(&self) -> bool {
        self.r.workload.sums() == 1
            && (2..=8).contains(&self.r.workload.batch.accumulate)
            && !self.in_rounds()
    }

    /// Orders of the loops that have to be tried, with the micro-batches of a round.
    pub(super) fn loops(&self) -> Vec<(LoopOrder, u32)> {
        let batch = self.r.workload.batch.accumulate;
        match self.r.pins.order {
            Some(LoopOrder::BatchMajor) if self.in_rounds() => {
                vec![(LoopOrder::BatchMajor, self.round_of(1))]
            }
            Some(order) => {
                let groups = Some(self.r.pins.round).filter(|&round| round > 0 && round < batch);
                vec![(order, groups.map_or(0, |round| self.round_of(round)))]
            }
            None if batch == 1 => vec![(LoopOrder::LayerMajor, 0)],
            None if batch == 2 && self.by_batch() => {
                vec![(LoopOrder::LayerMajor, 0), (LoopOrder::BatchMajor, 0)]
            }
            None => {
                // Few micro-batches a round take least memory, many fetch weights least often.
                let most = self.most_in_a_part().min(batch - 1);
                let mut rounds = vec![self.round_of(1), self.round_of(4.min(most))];
                let all = if self.in_rounds() { most } else { 0 };
                rounds.push(self.round_of(all));
                rounds.dedup();
                let order = LoopOrder::LayerMajor;
                let mut loops: Vec<_> = rounds.into_iter().map(|round| (order, round)).collect();
                if self.by_batch() {
                    loops.push((LoopOrder::BatchMajor, 0));
                }
                loops
            }
        }
    }

    /// Every way that has to be tried, with as little as possible on device and host.
    pub(super) fn ways(&self, disk: bool) -> Vec<Mix> {
        let (w, pins) = (self.r.workload, self.knobs);
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
                        // State that comes from a drive is worth reading further ahead.
                        mix.ahead[2] *= if disk { 2 } else { 1 };
                        mix.unhurried = !disk;
                        mix.ahead = pins.prefetch.map_or(mix.ahead, mix::pinned_ahead);
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

    /// The ways that the device may hold: one for which it is too small with all that can wait elsewhere on
    /// the host needs no less of it with that on disk.
    pub(super) fn hopeful(&self, disk: bool) -> Vec<Mix> {
        let (w, pins) = (self.r.workload, self.knobs);
        let mut asked: Vec<((LoopOrder, u32, Pieces), bool)> = Vec::new();
        let mut hopeful = |way: &Mix| {
            let key = (way.order, way.round, way.pieces);
            if let Some(&(_, answer)) = asked.iter().find(|(k, _)| *k == key) {
                return answer;
            }
            let mut mix = Mix::least(way.order, way.pieces, Tier::Host, Tier::Host);
            mix.round = way.round;
            mix.inputs = pins.inputs.unwrap_or(mix.inputs);
            mix.ahead = pins.prefetch.map_or([0; 3], mix::pinned_ahead);
            let need = self.size(&mix.choice(w, pins)).need;
            let answer = need[Tier::Device as usize] <= self.r.budgets.device.0;
            asked.push((key, answer));
            answer
        };
        let ways = self.ways(disk).into_iter();
        ways.filter(|way| hopeful(way)).collect()
    }

    /// Those that fit, each as it is or with nothing fetched ahead.
    pub(super) fn starting_points(&self) -> Vec<(Mix, Choice)> {
        let (w, pins) = (self.r.workload, self.knobs);
        let mut found = Vec::new();
        let settled = |m: Mix| {
            let choice = self.settled(&m)?;
            Some((m.as_settled(&choice, pins), choice))
        };
        for way in self.hopeful(self.disk) {
            let [device, host, updates] = way.ahead;
            let with = |ahead| Mix {
                ahead,
                ..way.clone()
            };
            let least = match pins.prefetch {
                None => settled(with([0; 3])),
                Some(_) => None,
            };
            // What does not fit just in time seldom fits with more in motion: one look tells.
            let hopeless = least.is_none()
                && pins.prefetch.is_none()
                && self.spilled_to_fit(&way.choice(w, pins)).is_none();
            if hopeless {
                // Where nothing is computed again the host may be too small for what moves.
                let spilled = way.with(Count::Spilled, usize::MAX, w, pins);
                if pins.activations == Activations::Offload && spilled != way {
                    found.extend(settled(spilled));
                }
                continue;
            }
            let quarter = with([device, host / 4, updates / 4]);
            let more = || pins.prefetch.is_none().then(|| settled(quarter)).flatten();
            found.extend(settled(way.clone()).or_else(more).or(least));
        }
        // Everything on the device: where the device is large and the host is not, no plan with
        // state on the host fits to start from.
        for way in self.ways(false) {
            let mix = way.with(Count::Resident, usize::MAX, w, pins);
            if mix.inputs == Tier::Device && mix.get(Count::Resident) > 0 {
                found.extend(self.settled(&mix).map(|c| (mix, c)));
            }
        }
        found
    }

    /// Where host and disk are too small for all that is not in motion, and the device for all of
    /// it: as many units on the device as it holds.
    pub(super) fn crowded(&self) -> Vec<(Mix, Choice)> {
        let (w, pins) = (self.r.workload, self.knobs);
        let with = |way: &Mix, n: usize| way.with(Count::Resident, n, w, pins);
        // Copies that run ahead fill whatever is left: how much must be there is seen without them.
        let just_in_time = |mix: &Mix| Mix {
            ahead: pins.prefetch.map_or([0; 3], mix::pinned_ahead),
            ..mix.clone()
        };
        let on_device = |mix: &Mix| {
            let choice = just_in_time(mix).choice(w, pins);
            let holds = |need: [u64; 3]| need[Tier::Device as usize] <= self.r.budgets.device.0;
            holds(persistent_bytes(w, &choice, self.r.clip)) && holds(self.size(&choice).need)
        };
        let mut found = Vec::new();
        for way in self.hopeful(self.disk) {
            if !on_device(&way) {
                continue;
            }
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
            let start = |mix: Mix| {
                let choice = self.settled(&mix).filter(|c| self.holds_whole(c))?;
                Some((mix, choice))
            };
            let mixes = (1..=holds).rev().take(2).map(|n| with(&way, n));
            found.extend(
                mixes
                    .flat_map(|mix| [mix.clone(), just_in_time(&mix)])
                    .find_map(start),
            );
        }
        found
    }

    /// Starts from which saved tensors are moved: of each loop the fastest, as it is and with nothing near.
    pub(super) fn movers(&self, mut starts: Vec<Candidate>) -> Vec<Candidate> {
        let (w, knobs) = (self.r.workload, self.knobs);
        first_of_each_loop(&mut starts, MOVING);
        let far = |c: &Candidate| {
            let mut mix = c.mix.with(Count::Near, 0, w, knobs);
            mix.unhurried = false;
            let choice = self.settled(&mix).filter(|_| mix != c.mix)?;
            let seconds = self.seconds(&choice);
            Some(Candidate {
                mix,
                choice,
                seconds,
            })
        };
        let others: Vec<Candidate> = starts.iter().filter_map(far).collect();
        starts.iter_mut().for_each(|c| c.mix.unhurried = true);
        starts.extend(others);
        if knobs.spills() {
            let spilled = |c: &Candidate| {
                let mix = c.mix.with(Count::Spilled, usize::MAX, w, knobs);
                Candidate { mix, ..c.clone() }
            };
            let spilled: Vec<Candidate> = starts.iter().map(spilled).collect();
            starts.extend(spilled);
        }
        starts.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
        starts.dedup_by(|a, b| a.choice == b.choice && a.mix == b.mix);
        starts
    }

    /// Where state goes to a drive, what is read ahead takes room from what need not go: the fastest start with
    /// nothing ahead, too.
    pub(super) fn with_just_in_time(&self, mut starts: Vec<Candidate>) -> Vec<Candidate> {
        let free = self.disk && self.r.pins.prefetch.is_none();
        let Some(first) = starts.first().filter(|_| free) else {
            return starts;
        };
        let mix = Mix {
            ahead: [0; 3],
            ..first.mix.clone()
        };
        if let Some(choice) = self.settled(&mix).filter(|c| self.holds_whole(c)) {
            let seconds = self.seconds(&choice);
            starts.push(Candidate {
                mix,
                choice,
                seconds,
            });
        }
        starts
    }
}
