//! Spends what the budgets leave: turns one knob, or two against each other, and keeps what makes
//! the simulated step shorter.
//!
//! Every byte of the device can buy several things: units that stay, gradients that wait there,
//! saved tensors that are not computed again. What each is worth depends on the
//! others, so bytes are also *moved*: one knob gives some up and another takes as much as then
//! fits. Steps begin coarse and are halved, down to one unit. The work is bounded by the number of
//! drafted and simulated tasks, which is the same on every machine.
//!
//! One file because the climb is one loop over knobs, and each of its moves looks at the same candidate.

use super::Search;
use super::mix::{Count, Mix};
use crate::choice::{Choice, LoopOrder, Pieces};
use crate::draft::persistent_bytes;
use crate::plan::Tier;
use lowtide_units::Bytes;

mod sides;

/// A mix, what it gives each unit once state that does not fit on the host went to disk, and what
/// a step of it costs.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub mix: Mix,
    pub choice: Choice,
    /// What a step costs, as [`Search::seconds`] has it.
    pub seconds: f64,
}

/// A change is taken when the step is shorter by this fraction.
pub(super) const GAIN: f64 = 1e-4;

/// How far ahead copies are tried, in the units of [`super::mix::AHEAD`]: all of the device.
pub(super) const DEEPEST: u8 = 64;

/// How far ahead state that passes through the device is fetched at first, in the units of [`super::mix::AHEAD`].
const PASSING: u8 = 12;

/// The same in a climb by both sides: one piece's passes through while the next one's comes.
const TWO: u8 = 8;

/// How often the bytes up to which copies run ahead are lowered where not everything fits.
const LOWERED: usize = 3;

/// In the arenas of a session: the part of what comes and goes there by which they are lowered at first.
const LOWERED_BY: u64 = 16;

/// One climb from one start.
struct Climb<'s, 'a> {
    search: &'s Search<'a>,
    best: Candidate,
    /// Where [`super::Seen`]'s count of work ends the climb.
    limit: u64,
    /// Whether units whose state passes through are tried with room for two pieces of it.
    both_sides: bool,
}

impl Search<'_> {
    /// A start with the bytes that are left spent in the best of a few orders.
    pub(super) fn spend(&self, start: Candidate, work: u64) -> Candidate {
        let least = start.mix.clone();
        let mut climb = Climb::new(self, start, work);
        climb.spend(&least);
        climb.end()
    }

    /// A start with what is dear to compute again stored, and moved as far as it does not fit.
    pub(super) fn moving(&self, start: Candidate, work: u64) -> Candidate {
        let least = start.mix.clone();
        let mut climb = Climb::new(self, start, work);
        climb.moving(&least);
        climb.end()
    }

    /// The best that can be reached from a candidate, doing about `work` at most.
    pub(super) fn climb(&self, from: Candidate, work: u64) -> Candidate {
        let mut climb = Climb::new(self, from, work);
        climb.turn();
        climb.end()
    }

    /// The best that can be reached from a candidate or one of some mixes, doing about `work` at most.
    pub(super) fn climb_from_any(&self, from: Candidate, mixes: &[Mix], work: u64) -> Candidate {
        let mut climb = Climb::new(self, from, work);
        for mix in mixes {
            climb.try_mix(mix);
        }
        climb.turn();
        climb.end()
    }

    /// The choice of a mix, with state and weights on disk that do not fit on the host, and with copies no
    /// further ahead than lets everything lie on the device.
    pub(super) fn settled(&self, mix: &Mix) -> Option<Choice> {
        let mut choice = mix.choice(self.r.workload, self.knobs);
        if self.knobs.held.is_some() {
            return self.held_back(choice);
        }
        let budget = self.r.budgets.device.0;
        for left in (0..=LOWERED).rev() {
            let fitted = self.spilled_to_fit(&choice);
            if fitted.is_some() || choice.ahead.device.0 == 0 {
                return fitted;
            }
            // What lies between slots is not known before they have their places.
            let have = self.size(&choice).need[Tier::Device as usize];
            let line = choice.ahead.device.0;
            let above = match have.saturating_sub(budget) {
                0 => line / 8,
                above => above,
            };
            let lower = line.saturating_sub(above + above / 2);
            choice.ahead.device = Bytes(if left > 1 { lower } else { 0 });
        }
        None
    }

    /// A choice in the arenas of a session, where none of its other bytes can go elsewhere: with copies as far ahead as
    /// a steady step then fits. One that fits is often near one that does not, and much faster than one that fetches
    /// everything just in time.
    fn held_back(&self, choice: Choice) -> Option<Choice> {
        let fits = |choice: &Choice| self.spilled_to_fit(choice).is_some();
        if fits(&choice) {
            return Some(choice);
        }
        let mut least = choice.clone();
        least.ahead.device = Bytes(0);
        let less = |choice: &Choice| self.less_ahead(choice);
        let mut lower = std::iter::successors(less(&choice), less);
        fits(&least).then(|| lower.find(fits)).flatten()
    }

    /// The same with copies less far ahead of their use, in a few steps down to nothing.
    pub(super) fn less_ahead(&self, choice: &Choice) -> Option<Choice> {
        let all = self.r.budgets.device.0;
        let stays = persistent_bytes(self.r.workload, choice, self.r.clip)[Tier::Device as usize];
        let comes = all.saturating_sub(stays);
        let line = choice.ahead.device.0;
        let left_out = (2 * all.saturating_sub(line)).max(comes / LOWERED_BY);
        let mut less = choice.clone();
        // Far below all of it little is ahead, and each step is a look at a plan.
        less.ahead.device = Bytes(if left_out > comes / 2 {
            0
        } else {
            all - left_out
        });
        (line > 0).then_some(less)
    }

    /// A choice with state and weights on disk that do not fit on the host, if then everything fits.
    pub(super) fn spilled_to_fit(&self, choice: &Choice) -> Option<Choice> {
        // What has its home already goes nowhere else.
        let fitted = match self.disk && self.knobs.held.is_none() {
            true => self.fit(choice.clone(), &self.r.budgets),
            false => self.holds(choice).then(|| choice.clone()),
        };
        fitted.filter(|choice| self.may_write(choice))
    }

    /// Whether a mix fits with copies as far ahead as it says, or still some way.
    fn fits_well(&self, mix: &Mix) -> bool {
        let mut choice = mix.choice(self.r.workload, self.knobs);
        if !mix.unhurried {
            choice.ahead.device = Bytes(choice.ahead.device.0 / 4 * 3);
        }
        self.spilled_to_fit(&choice).is_some()
    }

    /// About how many bytes of the device one choice takes more than another: what stays there, and saved
    /// tensors between forward and backward.
    fn more_on_device(&self, less: &Choice, more: &Choice) -> u64 {
        let w = self.r.workload;
        let together = match (more.order, more.round) {
            (LoopOrder::BatchMajor, _) => 1,
            (_, 0) => w.batch.accumulate,
            (_, round) => round,
        };
        let bytes = |choice: &Choice| {
            let stays = persistent_bytes(w, choice, self.r.clip)[Tier::Device as usize];
            stays + u64::from(together) * choice.kept_bytes(w)
        };
        bytes(more).saturating_sub(bytes(less)).max(1)
    }

    /// The mix with as much of one knob as fits, more or less than it has; nothing where it does
    /// not fit without any.
    pub(super) fn filled(&self, mix: &Mix, count: Count) -> Option<Mix> {
        let (w, pins) = (self.r.workload, self.knobs);
        let at = |n: usize| mix.with(count, n, w, pins);
        let most = mix.most(count, w, pins);
        let fits = |n: usize| self.fits_well(&at(n));
        let now = mix.get(count);
        // What one more costs says where to look first.
        let choice = |n: usize| at(n).choice(w, pins);
        let near = if now < most {
            now + 1
        } else {
            now.checked_sub(1)?
        };
        let each = self.more_on_device(&choice(now.min(near)), &choice(now.max(near)));
        let settled = self.settled(&at(now)).unwrap_or_else(|| choice(now));
        let (have, budget) = (self.size(&settled).need[0], self.r.budgets.device.0);
        let mut guess = if have <= budget {
            now.saturating_add(((budget - have) / each) as usize)
        } else {
            now.saturating_sub((have - budget).div_ceil(each) as usize)
        };
        // It fits below `low` and not from `high` on.
        let (mut low, mut high, mut step) = (0, most + 1, 1);
        while high > low {
            if self.seen.exhausted() {
                return None;
            }
            guess = guess.clamp(low, high - 1);
            if fits(guess) {
                low = guess + 1;
                guess = guess.saturating_add(step);
            } else {
                high = guess;
                guess = guess.saturating_sub(step);
            }
            step *= 2;
            if guess < low || guess >= high {
                guess = usize::midpoint(low, high);
            }
        }
        Some(at(low.checked_sub(1)?))
    }
}

impl<'s, 'a> Climb<'s, 'a> {
    fn new(search: &'s Search<'a>, best: Candidate, work: u64) -> Self {
        let limit = search.seen.work.get() + work;
        search.seen.limit.set(limit);
        Self {
            search,
            best,
            limit,
            both_sides: false,
        }
    }

    fn end(self) -> Candidate {
        self.search.seen.limit.set(0);
        self.best
    }
}

impl Climb<'_, '_> {
    /// Takes a mix if it fits and its step is shorter.
    fn try_mix(&mut self, mix: &Mix) -> bool {
        if self.spent() {
            return false;
        }
        let Some(mut choice) = self.search.settled(mix) else {
            return false;
        };
        let limit = self.best.seconds * (1.0 - GAIN);
        loop {
            if choice == self.best.choice || self.search.size(&choice).bound >= limit {
                return false;
            }
            let seconds = self.search.seconds(&choice);
            if seconds >= limit {
                return false;
            }
            if self.search.holds_whole(&choice) {
                self.best = Candidate {
                    mix: mix.as_settled(&choice, self.search.knobs),
                    choice,
                    seconds,
                };
                return true;
            }
            // Other parts may need more than a steady step; of a session's parts none may.
            let held = self.search.knobs.held.is_some() && !self.spent();
            match held.then(|| self.search.less_ahead(&choice)).flatten() {
                Some(less) => choice = less,
                None => return false,
            }
        }
    }

    fn spent(&self) -> bool {
        let seen = self.search.seen;
        seen.stopped() || seen.work.get() >= self.limit
    }

    fn fill(&mut self, mix: &Mix, count: Count) -> bool {
        if self.spent() {
            return false;
        }
        match self.search.filled(mix, count) {
            Some(full) => self.try_mix(&full),
            None => false,
        }
    }

    /// Orders of spending the same bytes; the simulator says which was wiser.
    fn spend(&mut self, least: &Mix) {
        const ORDERS: [[Count; 3]; 4] = [
            [Count::Resident, Count::Staying, Count::Stored],
            [Count::Staying, Count::Stored, Count::Resident],
            [Count::Copies, Count::Resident, Count::Stored],
            [Count::Near, Count::Resident, Count::Stored],
        ];
        let (w, knobs) = (self.search.r.workload, self.search.knobs);
        if self.off_the_drives() {
            return;
        }
        let bases = [[Count::Base, Count::Resident, Count::Stored]];
        let bases = bases.iter().filter(|_| knobs.bases);
        for &order in ORDERS.iter().chain(bases) {
            // Nothing moves that need not.
            let mut mix = least.with(Count::Staying, usize::MAX, w, knobs);
            if self.search.settled(&mix).is_none() {
                mix = least.clone();
            }
            for count in order {
                if let Some(full) = self.search.filled(&mix, count) {
                    // Half of it leaves room for the next.
                    let half = usize::midpoint(mix.get(count), full.get(count));
                    self.try_mix(&full.with(count, half, w, knobs));
                    self.try_mix(&full);
                    mix = full;
                }
            }
            // The same with all of the others streamed, or half of them.
            let most = mix.most(Count::Streamed, w, knobs);
            for streamed in [most, most / 2] {
                let mut mix = mix.with(Count::Streamed, streamed, w, knobs);
                // State that passes through is fetched while what came before is updated and sent back.
                if knobs.prefetch.is_none() {
                    mix.ahead[2] = mix.ahead[2].max(PASSING);
                }
                self.fill(&mix, order[0]);
                self.fill(&mix, Count::Resident);
            }
        }
    }

    /// Where the drives rule: as many units and gradients on the device as it holds, since whatever is there or makes
    /// room on the host need not be read and written. Whether the drives still rule then, so that nothing else is worth
    /// a look: of a large model few looks are as much work as a climb may do.
    fn off_the_drives(&mut self) -> bool {
        // Where all homes stay only saved tensors can be taken off them.
        if self.search.knobs.held.is_some() {
            return false;
        }
        for count in [Count::Resident, Count::Near] {
            if !self.search.ruled_by_drives(&self.best) {
                return false;
            }
            self.fill(&self.best.mix.clone(), count);
        }
        self.search.ruled_by_drives(&self.best)
    }

    /// As much as fits of what is dear to compute again stored: as many blocks' as the device holds stay there,
    /// the others' move. Then the same with all of it moved, and what that frees for resident units.
    fn moving(&mut self, least: &Mix) {
        let (w, knobs) = (self.search.r.workload, self.search.knobs);
        let (n, dear) = (knobs.ladders.blocks.len(), knobs.ladders.dear());
        let stored = |rungs: usize| {
            let mix = least.with(Count::Stored, rungs, w, knobs);
            self.search.filled(&mix, Count::Staying)
        };
        let (mut fits, mut beyond) = (0, dear * n + 1);
        let mut best = None;
        let mut guess = dear * n;
        while beyond - fits > n.div_ceil(8) && !self.spent() {
            match stored(guess) {
                Some(mix) => (fits, best) = (guess, Some(mix)),
                None => beyond = guess,
            }
            guess = usize::midpoint(fits, beyond);
        }
        let Some(best) = best else { return };
        self.try_mix(&best);
        let moved = best.with(Count::Staying, 0, w, knobs);
        self.fill(&moved, Count::Resident);
        let few = least.with(Count::Stored, n, w, knobs);
        self.fill(&few, Count::Staying);
        self.fill(&few, Count::Resident);
        if least.get(Count::Spilled) > 0 {
            self.spilled(&best);
            self.spilled(&moved);
        }
    }

    /// A mix with the saved tensors of fewer blocks on the drives: of as few as leave all state on the host, and of
    /// half of those that move.
    fn spilled(&mut self, mix: &Mix) {
        let (w, knobs) = (self.search.r.workload, self.search.knobs);
        let most = mix.get(Count::Spilled);
        let at = |n: usize| mix.with(Count::Spilled, n, w, knobs);
        let holds = |n: usize| self.search.holds(&at(n).choice(w, knobs));
        let (mut low, mut high) = (0, most);
        while high > low && !self.spent() {
            let middle = usize::midpoint(low, high);
            if holds(middle) {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        for n in [low, most / 2] {
            self.try_mix(&at(n));
        }
    }

    /// How much is stored and how much of it stays: both at once, as what one takes the other may have to give,
    /// or units on the device, in steps down to one block's rung.
    fn waterlines(&mut self) {
        // Of tensors stored, staying, units resident and near, and blocks whose tensors go to a drive.
        const WAYS: [[isize; 5]; 20] = [
            [1, 0, 0, 0, 0],
            [1, -1, 0, 0, 0],
            [0, -1, 0, 0, 0],
            [0, 1, 0, 0, 0],
            [-1, 0, 0, 0, 0],
            [-1, 1, 0, 0, 0],
            [1, 1, 0, 0, 0],
            [-1, -1, 0, 0, 0],
            [1, 0, -1, 0, 0],
            [0, 1, -1, 0, 0],
            [0, 0, 1, 0, 0],
            [0, -1, 1, 0, 0],
            [1, 0, 0, -1, 0],
            [0, 0, 0, 0, 1],
            [0, 0, 0, 0, -1],
            [1, 0, 0, 0, 1],
            [-1, 0, 0, 0, -1],
            [0, -1, 0, 0, 1],
            [0, 1, 0, 0, -1],
            [0, 0, 1, 0, 1],
        ];
        let (w, knobs) = (self.search.r.workload, self.search.knobs);
        let counts = [
            Count::Stored,
            Count::Staying,
            Count::Resident,
            Count::Near,
            Count::Spilled,
        ];
        if counts[..2]
            .iter()
            .all(|&c| self.best.mix.most(c, w, knobs) == 0)
        {
            return;
        }
        let ways = || WAYS.into_iter().filter(|w| w[4] == 0 || knobs.spills());
        let mut step = (knobs.ladders.blocks.len() / 4).max(1);
        loop {
            let mut better = false;
            for way in ways() {
                let at = |mix: &Mix| {
                    let to = |k: usize| {
                        let by = way[k] * step as isize;
                        let now = match counts[k] {
                            // Of blocks that store nothing, nothing stays.
                            Count::Staying => mix.get(Count::Staying).min(mix.get(Count::Stored)),
                            count => mix.get(count),
                        };
                        now.saturating_add_signed(by)
                    };
                    // What takes from the others comes first.
                    let set = |mix: Mix, k: usize| mix.with(counts[k], to(k), w, knobs);
                    [2, 3, 0, 1, 4].into_iter().fold(mix.clone(), set)
                };
                loop {
                    let mix = at(&self.best.mix);
                    if mix == self.best.mix || !self.try_mix(&mix) {
                        break;
                    }
                    better = true;
                }
            }
            if self.spent() || (!better && step == 1) {
                return;
            }
            if !better {
                step = step.div_ceil(3);
            }
        }
    }

    /// Turns every knob until none helps.
    fn turn(&mut self) {
        let n = self.search.r.workload.units.len();
        let mut step = (n / 4).max(1);
        if !self.off_the_drives() {
            self.waterlines();
            self.stored(step);
        }
        self.sorts();
        loop {
            let mut better = self.singles(step);
            better |= self.exchanges(step);
            better |= self.streamed(step);
            better |= self.stored(step);
            if !better {
                better |= self.sorts();
            }
            if self.spent() {
                return;
            }
            if !better {
                if step == 1 {
                    return;
                }
                step /= 2;
            }
        }
    }

    fn moved(&self, count: Count, up: bool, step: usize) -> Option<Mix> {
        let (w, pins) = (self.search.r.workload, self.search.knobs);
        let mix = &self.best.mix;
        let at = mix.get(count);
        // A step of blocks is one of all their dear rungs, until single ones are turned.
        let step = match count {
            Count::Stored if step > 1 => step * self.search.knobs.ladders.dear().max(1),
            _ => step,
        };
        let to = if up { at + step } else { at.checked_sub(step)? };
        let mut mix = mix.with(count, to, w, pins);
        // State that passes through is fetched while what came before is updated and sent back.
        if self.both_sides && count == Count::Streamed && up && pins.prefetch.is_none() {
            mix.ahead[2] = mix.ahead[2].max(TWO);
        }
        (mix.get(count) != at).then_some(mix)
    }

    /// More or fewer units of a knob, as long as it helps.
    fn singles(&mut self, step: usize) -> bool {
        let mut better = false;
        for count in Count::ALL {
            for up in [true, false] {
                while let Some(mix) = self.moved(count, up, step) {
                    if !self.try_mix(&mix) {
                        break;
                    }
                    better = true;
                }
            }
        }
        better
    }

    /// Between host and device at the same bytes, and with the bytes' knobs refilled.
    fn streamed(&mut self, step: usize) -> bool {
        let (w, knobs) = (self.search.r.workload, self.search.knobs);
        let mut better = false;
        for up in [true, false] {
            let paid = [Count::Resident, Count::Near, Count::Copies, Count::Base];
            for refill in paid
                .into_iter()
                .filter(|&c| c != Count::Base || knobs.bases)
            {
                let Some(mix) = self.moved(Count::Streamed, up, step) else {
                    continue;
                };
                better |= self.fill(&mix, refill);
                if refill != Count::Near && mix.get(Count::Near) > 0 {
                    let far = mix.with(Count::Near, 0, w, knobs);
                    better |= self.fill(&far, refill);
                }
            }
        }
        better
    }

    /// More or fewer tensors stored, and as many of them staying as then fit; more or fewer moved, and the
    /// bytes' knobs refilled.
    fn stored(&mut self, step: usize) -> bool {
        let mut better = false;
        for up in [true, false] {
            if let Some(mix) = self.moved(Count::Stored, up, step) {
                better |= self.fill(&mix, Count::Staying);
            }
        }
        better
    }

    /// One knob gives up bytes, another takes as much as then fits.
    fn exchanges(&mut self, step: usize) -> bool {
        let mut better = false;
        let bases = self.search.knobs.bases;
        let paid = || {
            Count::PAID
                .into_iter()
                .filter(|&c| c != Count::Base || bases)
        };
        for from in paid() {
            for to in paid() {
                if from != to
                    && let Some(mix) = self.moved(from, false, step)
                {
                    better |= self.fill(&mix, to);
                }
            }
        }
        better
    }

    /// Knobs that are not counts, each with what it frees spent again.
    fn sorts(&mut self) -> bool {
        let mut better = false;
        for mix in self.aheads_of(&self.best.mix.clone()) {
            better |= self.try_mix(&mix);
        }
        for mix in self.others_of(&self.best.mix.clone()) {
            // It may need bytes, or free some.
            better |= self.try_mix(&mix)
                || self.fill(&mix, Count::Resident)
                || self.fill(&mix, Count::Stored);
        }
        better
    }

    /// The mixes that differ in how far copies run ahead.
    fn aheads_of(&self, mix: &Mix) -> Vec<Mix> {
        let (w, pins) = (self.search.r.workload, self.search.knobs);
        let mut all: Vec<Mix> = Vec::new();
        if pins.prefetch.is_some() {
            return all;
        }
        // Just in time for all but the device, and for all.
        for device in [mix.ahead[0], 0] {
            let ahead = [device, 0, 0];
            if ahead != mix.ahead {
                all.push(Mix {
                    ahead,
                    ..mix.clone()
                });
            }
        }
        let mut add = |pool: usize, n: u8| {
            let mut other = mix.clone();
            other.ahead[pool] = n.min(DEEPEST);
            if other != *mix && !all.contains(&other) {
                all.push(other);
            }
        };
        add(0, DEEPEST);
        add(0, 0);
        add(0, mix.ahead[0].saturating_sub(4));
        // Reading ahead is for drives, and for state that passes through the device.
        let streams = mix.get(Count::Streamed) > 0 || mix.most(Count::Streamed, w, pins) == 0;
        let pools = [(1, self.search.disk), (2, self.search.disk || streams)];
        for pool in pools.into_iter().filter(|p| p.1).map(|p| p.0) {
            let n = mix.ahead[pool];
            add(pool, n / 2);
            add(pool, n + 1);
            add(pool, (n * 2).max(4));
        }
        all
    }

    /// The mixes that differ in one knob that is no count.
    fn others_of(&self, mix: &Mix) -> Vec<Mix> {
        let (w, pins) = (self.search.r.workload, self.search.knobs);
        let mut all = Vec::new();
        let mut add = |change: &dyn Fn(&mut Mix)| {
            let mut other = mix.clone();
            change(&mut other);
            other.cut_to(w, pins);
            if other != *mix {
                all.push(other);
            }
        };
        if pins.pieces.is_none() {
            for pieces in self.search.cuts() {
                add(&|m| m.pieces = pieces);
            }
        }
        let batch = w.batch.accumulate;
        if pins.order.is_none() && batch > 2 {
            let whole = !self.search.in_rounds();
            let most = self.search.most_in_a_part().min(batch - 1);
            if whole {
                add(&|m| (m.round, m.order) = (0, LoopOrder::LayerMajor));
            }
            if self.search.by_batch() {
                add(&|m| (m.round, m.order) = (0, LoopOrder::BatchMajor));
            }
            if mix.round == 0 {
                let half = self.search.round_of(batch.div_ceil(2));
                add(&|m| (m.round, m.order) = (half, LoopOrder::LayerMajor));
            } else {
                let round = |n: u32| self.search.round_of(n);
                add(&|m| m.round = round((m.round * 2).min(most)));
                add(&|m| m.round = round((m.round / 2).max(1)));
            }
        } else if pins.order.is_none() && batch == 2 {
            for order in [LoopOrder::LayerMajor, LoopOrder::BatchMajor] {
                if order == LoopOrder::LayerMajor || w.sums() == 1 {
                    add(&|m| m.order = order);
                }
            }
        }
        if pins.inputs.is_none() {
            for tier in [Tier::Device, Tier::Host] {
                add(&|m| m.inputs = tier);
            }
            if self.search.disk && mix.inputs == Tier::Host {
                add(&|m| m.inputs = Tier::Disk);
            }
        }
        if batch > 1 && mix.inputs != Tier::Device {
            for tier in [Tier::Device, Tier::Host] {
                add(&|m| m.carry = tier);
            }
        }
        if pins.gradients.is_none() && self.search.disk {
            for tier in [Tier::Host, Tier::Disk] {
                add(&|m| m.waiting = tier);
            }
        }
        add(&|m| m.skip = 1 - m.skip.min(1));
        add(&|m| m.unhurried = !m.unhurried);
        all.retain(|m| m.ahead.iter().all(|&n| n <= DEEPEST));
        all
    }
}

impl Search<'_> {
    /// Ways to cut the parameters that are tried.
    pub(super) fn cuts(&self) -> Vec<Pieces> {
        if let Some(pieces) = self.r.pins.pieces {
            return vec![pieces];
        }
        let w = self.r.workload;
        let largest = w.params.iter().map(|p| p.elements).max().unwrap_or(1);
        let split = Pieces::Split((largest / 8).max(1 << 20));
        // A cut that changes nothing is the same way twice.
        if crate::draft::cut(w, split).len() == crate::draft::cut(w, Pieces::Unit).len() {
            vec![Pieces::Unit]
        } else {
            vec![Pieces::Unit, split]
        }
    }
}
