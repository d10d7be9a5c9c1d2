//! The plan of a slice: the run's own choices, on fewer blocks.
//!
//! A run's plan has a choice for each block (where weights, state and gradients stay, where the update
//! runs, what becomes of saved tensors). The slice takes those of the blocks that together show the
//! most of them, so that what is compared is what the run does.

use std::collections::BTreeSet;

use lowtide_planner::{Choice, LoopOrder, Processor, Saved, Tier};
use lowtide_units::ids;
use lowtide_workload::{LocalId, ParamId, UnitKind, Workload};

/// What a plan does, in words: `optimizer state on the disk`.
pub(super) fn told(w: &Workload, choice: &Choice) -> BTreeSet<String> {
    let mut all: BTreeSet<String> = (0..w.units.len())
        .flat_map(|unit| of_unit(w, choice, unit))
        .collect();
    all.insert(
        match choice.order {
            LoopOrder::LayerMajor => "block by block",
            LoopOrder::BatchMajor => "micro-batch by micro-batch",
        }
        .to_owned(),
    );
    all.insert(format!("block inputs {}", place(choice.inputs)));
    if choice.round > 0 {
        all.insert(format!("rounds of {} micro-batches", choice.round));
    }
    if choice.durable {
        all.insert("two versions on the disk".to_owned());
    }
    all
}

fn place(tier: Tier) -> &'static str {
    match tier {
        Tier::Device => "on the device",
        Tier::Host => "on the host",
        Tier::Disk => "on the disk",
    }
}

/// What becomes of one unit.
fn of_unit(w: &Workload, choice: &Choice, unit: usize) -> BTreeSet<String> {
    let mut all = BTreeSet::from([
        format!("weights {}", place(choice.weights[unit])),
        format!("optimizer state {}", place(choice.optimizer[unit])),
        format!("gradients {}", place(choice.gradients[unit])),
        match choice.update[unit] {
            Processor::Host => "updates on the host".to_owned(),
            Processor::Device => "updates on the device".to_owned(),
        },
    ]);
    if w.units[unit].kind == UnitKind::Block {
        all.extend(choice.saved[unit].iter().map(|saved| {
            match saved {
                Saved::Keep => "saved tensors on the device",
                Saved::Host => "saved tensors on the host",
                Saved::Disk => "saved tensors on the disk",
                Saved::Recompute => "saved tensors recomputed",
            }
            .to_owned()
        }));
    }
    all
}

/// The units of a kind.
fn units(w: &Workload, kind: UnitKind) -> Vec<usize> {
    let of = |unit: &usize| w.units[*unit].kind == kind;
    (0..w.units.len()).filter(of).collect()
}

/// What of a unit is frozen, by parameter, and what its backward wants of its forward.
fn training(w: &Workload, unit: usize) -> (Vec<bool>, Vec<LocalId>) {
    let unit = &w.units[unit];
    let params = ids(&unit.params).map(|p| w.params[p].frozen);
    (params.collect(), unit.saved())
}

/// Which blocks of the whole a slice of at least `least` blocks trains like, ascending: the first of those that are
/// trained alike, and others from the first one on. Each then has a backward in the slice if it has one in the
/// whole: the first block of a kind has below it what its backward is for.
pub(super) fn blocks(whole: &Workload, least: u32) -> Vec<usize> {
    let all = units(whole, UnitKind::Block);
    let mut kinds = Vec::new();
    let mut picked = BTreeSet::new();
    for &unit in &all {
        let kind = training(whole, unit);
        if !kinds.contains(&kind) {
            kinds.push(kind);
            picked.insert(unit);
        }
    }
    for unit in all {
        if picked.len() < least as usize {
            picked.insert(unit);
        }
    }
    picked.into_iter().collect()
}

/// The frozen parameters of a slice whose blocks train like these of the whole.
pub(super) fn frozen(whole: &Workload, blocks: &[usize]) -> Vec<ParamId> {
    let others = |kind| units(whole, kind);
    let (first, last) = (others(UnitKind::Embedding), others(UnitKind::Head));
    let units = first.iter().chain(blocks).chain(&last);
    let flags = units.flat_map(|&unit| training(whole, unit).0);
    let indexed = (0..).zip(flags).filter(|&(_, frozen)| frozen);
    indexed.map(|(i, _)| ParamId(i)).collect()
}

/// The run's choice on a slice with fewer blocks: which blocks of the whole the slice's blocks do as,
/// in the order of the whole.
pub(super) fn slice_choice(whole: &Workload, choice: &Choice, slice: &Workload) -> Choice {
    let others = [UnitKind::Embedding, UnitKind::Head].map(|kind| units(whole, kind));
    let mut seen: BTreeSet<String> = others
        .iter()
        .flatten()
        .flat_map(|&unit| of_unit(whole, choice, unit))
        .collect();
    let mut left = units(whole, UnitKind::Block);
    let mut like = Vec::new();
    for of_slice in units(slice, UnitKind::Block) {
        let kind = training(slice, of_slice);
        let new = |unit: &usize| {
            let all = of_unit(whole, choice, *unit);
            all.difference(&seen).count()
        };
        let alike = |unit: &&usize| training(whole, **unit) == kind;
        // Of equals the first.
        let most = left.iter().filter(alike).map(new).max().unwrap_or(0);
        let mut places = left.iter();
        let at = places.position(|unit| alike(&unit) && new(unit) == most);
        let unit = left.remove(at.expect("a slice has no more blocks than the whole"));
        seen.extend(of_unit(whole, choice, unit));
        like.push(unit);
    }
    like.sort_unstable();
    let mut blocks = like.into_iter();
    let mut others = others.map(Vec::into_iter);
    let like: Vec<usize> = slice
        .units
        .iter()
        .map(|unit| match unit.kind {
            UnitKind::Embedding => others[0].next(),
            UnitKind::Head => others[1].next(),
            UnitKind::Block => blocks.next(),
        })
        .map(|unit| unit.expect("a slice has the units of the whole, but fewer blocks"))
        .collect();
    Choice {
        order: choice.order,
        round: choice.round,
        pieces: choice.pieces,
        weights: like.iter().map(|&u| choice.weights[u]).collect(),
        optimizer: like.iter().map(|&u| choice.optimizer[u]).collect(),
        update: like.iter().map(|&u| choice.update[u]).collect(),
        gradients: like.iter().map(|&u| choice.gradients[u]).collect(),
        inputs: choice.inputs,
        saved: like.iter().map(|&u| choice.saved[u].clone()).collect(),
        ahead: choice.ahead,
        carry: choice.carry,
        durable: choice.durable,
    }
}

/// Where the slice leaves a tier unused that the whole uses for weights or state, one of its blocks does
/// as a unit of the whole that uses it.
pub(super) fn use_every_tier(whole: &Choice, slice: &mut Choice, w: &Workload) {
    let mut blocks = units(w, UnitKind::Block).into_iter().rev();
    for tier in Tier::ALL {
        let user = |c: &Choice| {
            let all = 0..c.weights.len();
            let uses = |u: &usize| c.weights[*u] == tier || c.optimizer[*u] == tier;
            all.into_iter().find(uses)
        };
        if let Some(like) = user(whole)
            && user(slice).is_none()
            && let Some(block) = blocks.next()
        {
            slice.weights[block] = whole.weights[like];
            slice.optimizer[block] = whole.optimizer[like];
            slice.update[block] = whole.update[like];
            slice.gradients[block] = whole.gradients[like];
        }
    }
}

#[cfg(test)]
mod tests {
    use lowtide_workload::{Batch, ModelShape};

    use super::*;
    use crate::device::Target;

    fn workload(layers: u32) -> Workload {
        let shape = ModelShape {
            layers,
            ..ModelShape::builtin("qwen2.5-0.5b").expect("a built-in shape")
        };
        let batch = Batch {
            micro_batch: 1,
            seq: 128,
            accumulate: 2,
        };
        let run = lowtide_config::Run::parse(
            "model: {shape: qwen2.5-0.5b}",
            "run.yaml",
            std::path::Path::new("/r"),
            &[],
        )
        .expect("a valid run");
        let options = crate::planning::options_of(&run, &shape, batch, Target::default());
        lowtide_model::describe(&shape, &options.expect("options")).expect("a shape")
    }

    /// A plan with one block of each of a few kinds, far apart.
    fn mixed(w: &Workload) -> Choice {
        let mut c = Choice::resident(w);
        let blocks = units(w, UnitKind::Block);
        for (i, tier) in [(3, Tier::Host), (17, Tier::Disk)] {
            c.weights[blocks[i]] = Tier::Host;
            c.optimizer[blocks[i]] = tier;
            c.update[blocks[i]] = Processor::Host;
            c.gradients[blocks[i]] = Tier::Host;
        }
        c.saved[blocks[9]].fill(Saved::Recompute);
        c
    }

    #[test]
    fn a_slice_shows_what_the_whole_does() {
        let whole = workload(24);
        let choice = mixed(&whole);
        let all = told(&whole, &choice);
        assert!(
            all.contains("optimizer state on the disk") && all.contains("saved tensors recomputed")
        );
        for blocks in 1..5 {
            let w = workload(blocks);
            let mut slice = slice_choice(&whole, &choice, &w);
            assert_eq!(slice.weights.len(), w.units.len());
            use_every_tier(&choice, &mut slice, &w);
            let shown = told(&w, &slice);
            assert!(shown.is_subset(&all));
            let missing: Vec<&String> = all.difference(&shown).collect();
            match blocks {
                // The disk comes first: it shows most.
                1 => assert_eq!(
                    missing,
                    ["optimizer state on the host", "saved tensors recomputed"]
                ),
                _ => assert_eq!(missing, [""; 0]),
            }
        }
    }

    #[test]
    fn a_tier_that_the_slice_lacks_is_used_by_a_block() {
        let (whole, w) = (workload(8), workload(1));
        let mut choice = Choice::resident(&whole);
        choice.optimizer[units(&whole, UnitKind::Block)[5]] = Tier::Disk;
        let mut slice = Choice::resident(&w);
        use_every_tier(&choice, &mut slice, &w);
        assert!(slice.optimizer.contains(&Tier::Disk));
    }
}
