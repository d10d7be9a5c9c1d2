//! Which saved tensors of a unit are worth their bytes: the ladder of what may be stored, from nothing to
//! everything.
//!
//! What storing a tensor saves depends on what else is stored: attention's output is worth a product as long
//! as what it reads must be computed again, and little after that. So sets of tensors are compared, each by
//! the seconds that the operations take which run again without it. The rungs of the ladder are the corners of
//! the lower convex hull of seconds over bytes: each rung buys its bytes at a better price than any after it.
//! Where the bytes then lie, on the device or elsewhere, is another question (`mix`).

use lowtide_workload::{Access, LocalId, OpId, Unit, UnitKind, What, Workload};

use crate::choice::Saved;
use crate::machine::Machine;
use crate::program::recomputed_ops;

/// Most groups of tensors of a unit for which every set is tried: 2^12 sets.
const GROUPS: usize = 12;

/// A set of saved tensors: for each of [`Unit::saved`] whether it is stored.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Rung {
    pub stored: Vec<bool>,
    pub bytes: u64,
    /// Seconds of the operations that backward then runs again.
    pub seconds: f64,
}

/// The rungs of each block, nothing stored first; equal blocks have equal ones.
#[derive(Clone, Debug, Default)]
pub(super) struct Ladders {
    /// For each unit its ladder, none for units that are no blocks.
    of_unit: Vec<Option<usize>>,
    ladders: Vec<Vec<Rung>>,
    /// Units that are blocks, in forward order.
    pub blocks: Vec<usize>,
    /// Steps of the highest ladder.
    pub steps: usize,
}

impl Ladders {
    pub(super) fn new(w: &Workload, machine: &Machine) -> Self {
        let mut found = Self::default();
        let mut known: Vec<usize> = Vec::new();
        for (u, unit) in w.units.iter().enumerate() {
            if unit.kind != UnitKind::Block {
                found.of_unit.push(None);
                continue;
            }
            let same = |&k: &usize| alike(&w.units[k], unit);
            let which = known.iter().position(same).unwrap_or_else(|| {
                known.push(u);
                found.ladders.push(ladder(w, unit, machine));
                known.len() - 1
            });
            found.of_unit.push(Some(which));
            found.blocks.push(u);
        }
        let steps = found.ladders.iter().map(|l| l.len() - 1);
        found.steps = steps.max().unwrap_or(0);
        found
    }

    /// What a block stores `steps` rungs up its ladder, or on its last rung.
    pub(super) fn rung(&self, unit: usize, steps: usize) -> &Rung {
        let ladder = &self.ladders[self.of_unit[unit].expect("a block")];
        &ladder[steps.min(ladder.len() - 1)]
    }

    /// Rungs whose bytes buy much: at least a tenth of what the first one's buy.
    pub(super) fn dear(&self) -> usize {
        let dear = |ladder: &Vec<Rung>| {
            let price = |k: usize| {
                let (low, high) = (&ladder[k], &ladder[k + 1]);
                (low.seconds - high.seconds) / (high.bytes - low.bytes) as f64
            };
            (0..ladder.len() - 1)
                .take_while(|&k| price(k) * 10.0 >= price(0))
                .count()
        };
        self.ladders.iter().map(dear).max().unwrap_or(0)
    }
}

/// Whether two blocks do the same operations on tensors of the same sizes.
fn alike(a: &Unit, b: &Unit) -> bool {
    let bytes = |u: &Unit| u.tensors.iter().map(|t| t.bytes).collect::<Vec<_>>();
    let ops = |u: &Unit| {
        let of = |op: &lowtide_workload::Op| (op.name.clone(), op.flops.0.to_bits(), op.workspace);
        u.forward
            .iter()
            .chain(&u.backward)
            .map(of)
            .collect::<Vec<_>>()
    };
    a.saved() == b.saved() && bytes(a) == bytes(b) && ops(a) == ops(b)
}

fn ladder(w: &Workload, unit: &Unit, machine: &Machine) -> Vec<Rung> {
    let groups = groups(unit);
    let n = unit.saved().len();
    let rung = |stored: Vec<bool>| Rung {
        bytes: bytes(unit, &stored),
        seconds: seconds(w, unit, machine, &stored),
        stored,
    };
    let of = |set: u32| {
        let within = |t: &usize| {
            groups
                .iter()
                .any(|(bit, g)| set >> bit & 1 == 1 && g.contains(t))
        };
        rung((0..n).map(|t| within(&t)).collect())
    };
    let groups_n = groups.iter().map(|(bit, _)| bit + 1).max().unwrap_or(0);
    let sets: Vec<Rung> = (0..1u32 << groups_n).map(of).collect();
    let mut ladder = vec![sets[0].clone()];
    loop {
        let last = ladder.last().expect("the empty set");
        let price = |r: &Rung| (last.seconds - r.seconds) / (r.bytes - last.bytes) as f64;
        let more = sets
            .iter()
            .filter(|r| r.bytes > last.bytes && r.seconds < last.seconds);
        // Of equal prices the one with more bytes: there is no corner at the others.
        let best = more.max_by(|a, b| price(a).total_cmp(&price(b)).then(a.bytes.cmp(&b.bytes)));
        match best {
            Some(best) => {
                let best = best.clone();
                ladder.push(best);
            }
            None => break,
        }
    }
    // What costs nothing to compute again still is a rung: the last stores everything.
    if ladder.last().is_some_and(|r| !r.stored.iter().all(|&s| s)) {
        ladder.push(rung(vec![true; n]));
    }
    ladder
}

/// Saved tensors (by position) that are stored together, each set with its bit: those of one operation. A
/// unit of very many operations shares the bits.
fn groups(unit: &Unit) -> Vec<(usize, Vec<usize>)> {
    let saved = unit.saved();
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for op in &unit.forward {
        let writes = |t: &LocalId| {
            let mut operands = op.operands.iter();
            operands.any(|o| o.what == What::Local(*t) && o.access == Access::Write)
        };
        let written: Vec<usize> = (0..saved.len()).filter(|&k| writes(&saved[k])).collect();
        if !written.is_empty() {
            groups.push(written);
        }
    }
    let each = groups.len().div_ceil(GROUPS).max(1);
    groups
        .into_iter()
        .enumerate()
        .map(|(i, g)| (i / each, g))
        .collect()
}

fn bytes(unit: &Unit, stored: &[bool]) -> u64 {
    let saved = unit.saved().into_iter().zip(stored);
    let stored = saved.filter(|&(_, &s)| s);
    stored.map(|(t, _)| unit.tensors[t].bytes.0).sum()
}

fn seconds(w: &Workload, unit: &Unit, machine: &Machine, stored: &[bool]) -> f64 {
    let saved: Vec<Saved> = stored
        .iter()
        .map(|&s| if s { Saved::Keep } else { Saved::Recompute })
        .collect();
    let again = recomputed_ops(unit, &saved).into_iter();
    let op = |i: OpId| machine.op(&unit.forward[i], w.precision).0;
    again.map(op).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{machine, workload};

    fn names(unit: &Unit, rung: &Rung) -> Vec<String> {
        let saved = unit.saved().into_iter().zip(&rung.stored);
        let stored = saved.filter(|&(_, &s)| s);
        stored.map(|(t, _)| unit.tensors[t].name.clone()).collect()
    }

    #[test]
    fn the_dearest_bytes_come_first() {
        let (w, mut m) = (workload(3, 1), machine());
        m.matmul_bf16 = lowtide_units::FlopsPerSecond(1e9);
        let ladders = Ladders::new(&w, &m);
        assert_eq!(ladders.blocks, [1, 2, 3]);
        let unit = &w.units[1];
        let rungs: Vec<Vec<String>> = (0..=ladders.steps)
            .map(|k| names(unit, ladders.rung(1, k)))
            .collect();
        // The product's result first; what it reads and what is made of it cost next to nothing.
        assert_eq!(rungs[0], [""; 0]);
        assert_eq!(rungs[1], ["up"]);
        assert_eq!(rungs.last().expect("rungs"), &["h", "up", "act"]);
        assert_eq!(ladders.dear(), 1);
        let price = |k: usize| {
            let (low, high) = (ladders.rung(1, k), ladders.rung(1, k + 1));
            (low.seconds - high.seconds) / (high.bytes - low.bytes) as f64
        };
        assert!(
            (1..ladders.steps).all(|k| price(k) <= price(k - 1)),
            "{ladders:?}"
        );
    }

    #[test]
    fn a_tensor_is_worth_all_that_runs_again_without_it() {
        // `up` is not saved: the rotation of a product's result, which costs nothing by itself.
        let (mut w, mut m) = (workload(1, 1), machine());
        m.matmul_bf16 = lowtide_units::FlopsPerSecond(1e9);
        let unit = &mut w.units[1];
        for op in unit.backward.iter_mut().filter(|op| op.name == "act'") {
            op.operands.retain(|o| o.what != What::Local(LocalId(2)));
        }
        let ladders = Ladders::new(&w, &m);
        let unit = &w.units[1];
        assert_eq!(names(unit, ladders.rung(1, 1)), ["act"]);
        let (none, act) = (ladders.rung(1, 0).seconds, ladders.rung(1, 1).seconds);
        assert!(act < none / 10.0, "{act} of {none}");
    }
}
