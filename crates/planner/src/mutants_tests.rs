//! Every task of several plans done wrong in every way there is: either the checker finds it, or the plan is still
//! right and the test says why. `trainer/what_the_checker_lets_go_gives_the_same_bits` runs such plans.

#![allow(clippy::print_stderr, reason = "the counts are worth reading")]

use std::collections::BTreeMap;

use crate::build::build;
use crate::check::check;
use crate::choice::{Budgets, Choice, Clip, LoopOrder, Pieces, Processor, Saved};
use crate::mutants::{Kind, mutants};
use crate::plan::{Arg, Tier};
use crate::testing::{machine, untied, workload};
use lowtide_workload::{Dtype, OptimizerName, Workload};

fn offloaded(w: &Workload) -> Choice {
    let n = w.units.len();
    let mut c = Choice::resident(w);
    c.weights = vec![Tier::Host; n];
    c.optimizer = vec![Tier::Disk; n];
    c.update = vec![Processor::Host; n];
    c.gradients = vec![Tier::Host; n];
    c.inputs = Tier::Host;
    c.saved.iter_mut().for_each(|s| s.fill(Saved::Recompute));
    c
}

/// Everything on disk, updates on the device, saved tensors on every tier, pieces cut.
fn mixed(w: &Workload) -> Choice {
    let n = w.units.len();
    let ways = [Saved::Host, Saved::Disk, Saved::Keep, Saved::Recompute];
    let mut c = offloaded(w);
    c.weights = vec![Tier::Disk; n];
    c.update = vec![Processor::Device; n];
    c.gradients = vec![Tier::Disk; n];
    c.inputs = Tier::Disk;
    for saved in &mut c.saved {
        let each = saved.iter_mut().zip(ways.iter().cycle());
        each.for_each(|(s, &way)| *s = way);
    }
    c.ahead = crate::choice::Ahead::UNLIMITED;
    c.pieces = Pieces::Split(1 << 10);
    c.order = LoopOrder::BatchMajor;
    c
}

/// How many mutants there are and how many of each kind are let go, all of them for a reason.
fn survivors(w: &Workload, c: &Choice, clip: Clip) -> (usize, BTreeMap<Kind, usize>) {
    let good = build(w, c, clip, Budgets::UNLIMITED, &machine());
    check(&good, w, clip).expect("the whole plan is right");
    let (mut all, mut left) = (0, BTreeMap::new());
    for mutant in mutants(&good) {
        all += 1;
        if check(&mutant.plan, w, clip).is_err() {
            continue;
        }
        let args = || {
            let task = &mutant.plan.part(mutant.part)[mutant.task];
            let named = |a: &Arg| (*a, good.slots[a.slot].tensor.name(&good));
            task.args.iter().map(named).collect::<Vec<_>>()
        };
        assert!(
            mutant.equivalent(w).is_some(),
            "let go: {mutant} {:?}",
            args()
        );
        *left.entry(mutant.kind).or_default() += 1;
    }
    eprintln!("{all} mutants with {clip:?}, let go: {left:?}");
    (all, left)
}

#[test]
fn every_mutant_of_a_task_is_found_or_is_right() {
    let kinds = [
        Kind::Duplicate,
        Kind::SwapOperands,
        Kind::Shrink,
        Kind::SwapTasks,
    ];
    let mut f32 = untied(2, 5);
    f32.gradient = Dtype::F32;
    let (w, long) = (workload(2, 2), workload(1, 7));
    let mut factored = untied(1, 2);
    factored.optimizer.name = OptimizerName::Adafactor;
    let in_rounds = |w: &Workload, c: fn(&Workload) -> Choice| Choice { round: 2, ..c(w) };
    let durable = |mut c: Choice| {
        c.make_durable();
        c
    };
    // Of each plan, how many of `kinds` are right all the same.
    let cases = [
        (&w, offloaded(&w), Clip::Exact, [109, 0, 4, 40]),
        (&w, durable(mixed(&w)), Clip::Exact, [317, 552, 8, 47]),
        (
            &w,
            durable(offloaded(&w)),
            Clip::Previous,
            [101, 240, 4, 41],
        ),
        (&w, mixed(&w), Clip::None, [305, 0, 9, 52]),
        (
            &long,
            in_rounds(&long, offloaded),
            Clip::Exact,
            [125, 0, 9, 37],
        ),
        (
            &f32,
            in_rounds(&f32, mixed),
            Clip::Previous,
            [406, 0, 0, 63],
        ),
        (&factored, offloaded(&factored), Clip::None, [67, 0, 0, 21]),
        (&factored, mixed(&factored), Clip::Exact, [189, 0, 0, 28]),
    ];
    let (mut all, mut left) = (0, 0);
    let (mut counts, mut wanted) = (Vec::new(), Vec::new());
    for (w, c, clip, want) in cases {
        let (n, found) = survivors(w, &c, clip);
        let found = kinds.map(|kind| found.get(&kind).copied().unwrap_or(0));
        counts.push(found);
        wanted.push(want);
        (all, left) = (all + n, left + found.iter().sum::<usize>());
    }
    assert_eq!(counts, wanted);
    eprintln!("{left} of {all} mutants are right all the same");
    assert_eq!((left, all), (2774, 33482));
}
