//! The plan of a slice: the run's own choices, on fewer blocks.
//!
//! A run's plan has a choice for each block (where weights, state and gradients stay, where the update
//! runs, what becomes of saved tensors). The slice takes those of the blocks that together show the
//! most of them, so that what is compared is what the run does.

use std::collections::BTreeSet;

use lowtide_model::file_params;
use lowtide_planner::{Choice, LoopOrder, Processor, Saved, Tier};
use lowtide_units::ids;
use lowtide_workload::{LocalId, ModelShape, ParamId, Stacks, UnitKind, Workload};

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

/// Whether anything of a unit is updated.
fn is_trained(w: &Workload, unit: usize) -> bool {
    ids(&w.units[unit].params).any(|p| !w.params[p].frozen)
}

/// What becomes of one unit.
fn of_unit(w: &Workload, choice: &Choice, unit: usize) -> BTreeSet<String> {
    let mut all = BTreeSet::from([format!("weights {}", place(choice.weights[unit]))]);
    if choice.home(unit, true) != choice.weights[unit] {
        all.insert("frozen weights on the device".to_owned());
    }
    if is_trained(w, unit) {
        all.extend([
            format!("optimizer state {}", place(choice.optimizer[unit])),
            format!("gradients {}", place(choice.gradients[unit])),
            match choice.update[unit] {
                Processor::Host => "updates on the host".to_owned(),
                Processor::Device => "updates on the device".to_owned(),
            },
        ]);
    }
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

/// What of a unit is frozen, by parameter, what its backward wants of its forward, and what it computes.
fn training(w: &Workload, unit: usize) -> (Vec<bool>, Vec<LocalId>, Vec<&str>) {
    let unit = &w.units[unit];
    let params = ids(&unit.params).map(|p| w.params[p].frozen);
    let ops = unit.forward.iter().map(|op| op.key.as_str());
    (params.collect(), unit.saved(), ops.collect())
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

/// Which blocks a slice of at least `least` blocks has, and its shape; of two stacks that many of each, and what is
/// between them.
pub(super) fn cut(shape: &ModelShape, whole: &Workload, least: u32) -> (Vec<usize>, ModelShape) {
    let Some(stacks) = shape.stacks else {
        let blocks = blocks(whole, least.clamp(1, shape.layers));
        let layers: Vec<u32> = blocks.iter().map(|&unit| unit as u32 - 1).collect();
        return (blocks, shape.of_layers(&layers));
    };
    let [encoder, decoder] = [stacks.encoder, shape.layers].map(|layers| least.clamp(1, layers));
    // The encoder's own, its end, which is a block too, and the decoder's.
    let own = 0..encoder as usize;
    let behind = stacks.encoder as usize..stacks.encoder as usize + 1 + decoder as usize;
    let all = units(whole, UnitKind::Block);
    let picked = own.chain(behind).map(|i| all[i]).collect();
    let layers: Vec<u32> = (0..decoder).collect();
    let slice = ModelShape {
        stacks: Some(Stacks { encoder, ..stacks }),
        ..shape.of_layers(&layers)
    };
    (picked, slice)
}

/// The frozen parameters of a slice whose blocks train like these blocks of the whole model, where `off` are the
/// frozen ones of the whole. Both are indices among the parameters of the files.
pub(super) fn frozen(whole: &ModelShape, off: &[ParamId], blocks: &[usize]) -> Vec<ParamId> {
    let params = file_params(whole);
    let last = whole.layers as usize + 1;
    let units = std::iter::once(0)
        .chain(blocks.iter().copied())
        .chain([last]);
    let of = |unit: usize| {
        let own = params.pairs().filter(move |(_, p)| p.unit as usize == unit);
        own.map(|(id, _)| off.contains(&id))
    };
    let flags = units.flat_map(of);
    let indexed = (0..).zip(flags).filter(|&(_, frozen)| frozen);
    indexed.map(|(i, _)| ParamId(i)).collect()
}

/// Puts the blocks that are trained alike in the order of the whole.
fn in_order(like: &mut [usize], slice: &Workload) {
    let blocks = units(slice, UnitKind::Block);
    for i in 0..like.len() {
        for k in i + 1..like.len() {
            if like[k] < like[i] && training(slice, blocks[k]) == training(slice, blocks[i]) {
                like.swap(i, k);
            }
        }
    }
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
    in_order(&mut like, slice);
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
        bases: match choice.bases.is_empty() {
            true => Vec::new(),
            false => like.iter().map(|&u| choice.bases[u]).collect(),
        },
        optimizer: like.iter().map(|&u| choice.optimizer[u]).collect(),
        update: like.iter().map(|&u| choice.update[u]).collect(),
        gradients: like.iter().map(|&u| choice.gradients[u]).collect(),
        inputs: choice.inputs,
        saved: like.iter().map(|&u| choice.saved[u].clone()).collect(),
        ahead: choice.ahead,
        carry: choice.carry,
        durable: choice.durable,
        direct: choice.direct,
    }
}

/// Where the slice would leave a tier unused that the whole model uses for weights or state, one of its blocks is
/// placed like a unit of the whole that uses it.
pub(super) fn use_every_tier(whole: &Choice, slice: &mut Choice, w: &Workload) {
    let blocks = units(w, UnitKind::Block).into_iter().rev();
    let mut blocks = blocks.filter(|&block| is_trained(w, block));
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
            if let Some(based) = slice.bases.get_mut(block) {
                *based = whole.bases[like];
            }
            slice.optimizer[block] = whole.optimizer[like];
            slice.update[block] = whole.update[like];
            slice.gradients[block] = whole.gradients[like];
        }
    }
}

#[cfg(test)]
mod tests {
    use lowtide_workload::{Batch, Layers, ModelShape, Window};

    use super::*;
    use crate::device::Target;

    fn workload(layers: u32) -> Workload {
        without(layers, &[])
    }

    fn shape(layers: u32) -> ModelShape {
        ModelShape {
            layers,
            ..ModelShape::builtin("qwen2.5-0.5b").expect("a built-in shape")
        }
    }

    /// Of which some parameters are frozen.
    fn without(layers: u32, frozen: &[ParamId]) -> Workload {
        let shape = shape(layers);
        let batch = Batch {
            target: 0,
            micro_batch: 1,
            seq: 128,
            accumulate: 2,
        };
        let options = lowtide_model::Options {
            frozen: frozen.to_vec(),
            ..options_of(&shape, batch)
        };
        lowtide_model::describe(&shape, &options).expect("a shape")
    }

    fn options_of(shape: &ModelShape, batch: Batch) -> lowtide_model::Options {
        let run = lowtide_config::Run::parse(
            "model: {shape: qwen2.5-0.5b}",
            "run.yaml",
            std::path::Path::new("/r"),
            &[],
        )
        .expect("a valid run");
        crate::planning::options_of(&run, shape, batch, Target::default()).expect("options")
    }

    /// A slice has a block of each kind of layer, and each computes there what it does in the whole.
    #[test]
    fn layers_that_compute_otherwise_are_in_the_slice() {
        let whole = ModelShape {
            window: Some(Window {
                keys: 16,
                layers: Layers::those(6, |l| l != 4),
            }),
            ..shape(6)
        };
        let of = |shape: &ModelShape| {
            let batch = Batch {
                target: 0,
                micro_batch: 1,
                seq: 128,
                accumulate: 2,
            };
            lowtide_model::describe(shape, &options_of(shape, batch)).expect("a shape")
        };
        let all = of(&whole);
        let picked = blocks(&all, 3);
        assert_eq!(picked, [1, 2, 5]);
        let layers: Vec<u32> = picked.iter().map(|&unit| unit as u32 - 1).collect();
        let slice = of(&whole.of_layers(&layers));
        for (i, &unit) in picked.iter().enumerate() {
            assert_eq!(training(&slice, i + 1), training(&all, unit));
        }
        let keys = |w: &Workload, unit: usize| training(w, unit).2.join(" ").contains("window16");
        assert!(keys(&slice, 1) && keys(&slice, 2) && !keys(&slice, 3));
    }

    /// Blocks that are trained otherwise keep the choices of blocks like them, in whatever order those that show most
    /// come.
    #[test]
    fn a_slice_with_frozen_blocks_has_choices_of_blocks_like_them() {
        let all = workload(4);
        let off = [0, 1, 3]
            .into_iter()
            .flat_map(|unit: usize| ids(&all.units[unit].params));
        let off: Vec<ParamId> = off.collect();
        let whole = without(4, &off);
        let picked = blocks(&whole, 2);
        assert_eq!(picked, [1, 2, 3]);
        let slice = without(picked.len() as u32, &frozen(&shape(4), &off, &picked));
        let mut choice = Choice::resident(&whole);
        // The last block shows the most, and is trained as the second.
        choice.weights[4] = Tier::Host;
        choice.optimizer[4] = Tier::Host;
        choice.update[4] = Processor::Host;
        let got = slice_choice(&whole, &choice, &slice);
        for (unit, saved) in slice.units.iter().zip(&got.saved) {
            assert_eq!(unit.saved().len(), saved.len(), "{}", unit.name);
        }
        assert_eq!(got.weights[2], Tier::Host);
        // What is frozen has no state that could be anywhere.
        let resident = told(&whole, &Choice::resident(&whole));
        let mut moved = Choice::resident(&whole);
        moved.optimizer[1] = Tier::Disk;
        moved.update[1] = Processor::Host;
        assert_eq!(told(&whole, &moved), resident);
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
