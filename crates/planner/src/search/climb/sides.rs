//! Updates on both sides: where the host's updates take much of a step, some of them move to the device, and their
//! state is streamed through it.
//!
//! Changed one at a time, the knobs win nothing: with room for one piece's state the device waits for each piece, and
//! where pieces are whole units, one may be larger than that room. So the cut of the pieces, the room and the number
//! of units change together, and with them copies of weights, which leave the link free for state.

use lowtide_units::ids;

use super::{Candidate, Climb, DEEPEST};
use crate::choice::Processor;
use crate::plan::Lane;
use crate::search::Search;
use crate::search::mix::{Count, Mix};

/// Share of a step from which on the host's updates, alone, may be what the rest waits for.
const LATE: f64 = 0.2;

/// Of units whose state passes through, and of copies of weights.
const WAYS: [[isize; 2]; 5] = [[1, 0], [-1, 0], [0, 1], [0, -1], [1, 1]];

impl Search<'_> {
    /// Whether the host's updates take so much of a candidate's step that something else may wait for them.
    pub(in crate::search) fn late_host(&self, candidate: &Candidate) -> bool {
        let (w, m) = (self.r.workload, self.r.machine);
        let of = |u: usize| -> u64 {
            ids(&w.units[u].params)
                .map(|p| &w.params[p])
                .filter(|p| !p.frozen)
                .map(|p| w.padded(p) / u64::from(w.ranks))
                .sum()
        };
        let on_host = |u: &usize| candidate.choice.update[*u] == Processor::Host;
        let elements = (0..w.units.len()).filter(on_host).map(of).sum();
        m.update(Lane::HOST, elements, w.optimizer).0 > LATE * candidate.seconds
    }

    /// As [`Search::climb`], with updates on both sides first. What it ends in may be the worse one, so neither is in
    /// the other's place.
    pub(in crate::search) fn climb_by_both_sides(&self, from: Candidate, work: u64) -> Candidate {
        let mut climb = Climb::new(self, from, work);
        climb.both_sides = true;
        climb.sides();
        climb.turn();
        climb.end()
    }
}

impl Climb<'_, '_> {
    /// Some of the host's updates on the device, before anything else is turned: what that is worth depends on whether
    /// the host or the links are late.
    fn sides(&mut self) {
        let (w, knobs) = (self.search.r.workload, self.search.knobs);
        let step = self.best.mix.most(Count::Streamed, w, knobs).div_ceil(8);
        let none = self.best.mix.get(Count::Streamed) == 0;
        for pieces in self.search.cuts().into_iter().filter(|_| none) {
            if let Some(mix) = self.moved(Count::Streamed, true, step) {
                let mix = Mix { pieces, ..mix };
                // What passes through takes room.
                let _ = self.try_mix(&mix) || self.fill(&mix, Count::Stored);
            }
        }
        if self.best.mix.get(Count::Streamed) == 0 {
            return;
        }
        let mut more = self.best.mix.clone();
        if knobs.prefetch.is_none() {
            more.ahead[2] = more.ahead[2].saturating_mul(2).min(DEEPEST);
        }
        self.try_mix(&more);
        let mut by = step as isize;
        while by > 0 {
            for [streamed, copies] in WAYS {
                loop {
                    let at = |mix: &Mix, count: Count, way: isize| {
                        let to = mix.get(count).saturating_add_signed(way * by);
                        mix.with(count, to, w, knobs)
                    };
                    let mix = at(&self.best.mix, Count::Streamed, streamed);
                    let mix = at(&mix, Count::Copies, copies);
                    if mix == self.best.mix || !self.try_mix(&mix) {
                        break;
                    }
                }
            }
            by /= 2;
        }
    }
}
