//! Batches in rounds: every cut is a right plan, and what is simulated of it stands for all of it.

use crate::build::build;
use crate::check::check;
use crate::choice::{Ahead, Budgets, Choice, Clip, LoopOrder, Pieces, Processor, Saved};
use crate::mutants::without_task;
use crate::plan::{PartName, Plan, SlotId, Task, TaskId, Tensor, Tier, Work};
use crate::search::{Pins, Request, plan};
use crate::simulate::{predict, simulate};
use crate::testing::{machine, untied, with_positions, workload};
use lowtide_units::Bytes;
use lowtide_workload::{Dtype, Workload};

const CLIPS: [Clip; 3] = [Clip::Exact, Clip::Previous, Clip::None];

/// Homes in turn: every combination of where gradients, inputs and state are.
fn homes(w: &Workload, round: u32) -> Vec<Choice> {
    let n = w.units.len();
    let mut all = Vec::new();
    for gradients in Tier::ALL {
        for inputs in Tier::ALL {
            for (k, optimizer) in Tier::ALL.into_iter().enumerate() {
                let saved = [Saved::Keep, Saved::Recompute, Saved::Host][k];
                let mut c = Choice::resident(w);
                c.round = round;
                c.weights = vec![Tier::ALL[(k + 1) % 3]; n];
                c.optimizer = vec![optimizer; n];
                let on_device = k == 0 || round.is_multiple_of(2);
                c.update = vec![
                    if on_device {
                        Processor::Device
                    } else {
                        Processor::Host
                    };
                    n
                ];
                c.gradients = vec![gradients; n];
                c.inputs = inputs;
                c.saved.iter_mut().for_each(|s| s.fill(saved));
                c.ahead = [Ahead::NONE, Ahead::each(Bytes(1 << 18)), Ahead::UNLIMITED][k % 3];
                c.carry = [Tier::Device, Tier::Host][k % 2];
                if optimizer == Tier::Disk && round == 1 {
                    c.make_durable();
                }
                all.push(c);
            }
        }
    }
    all
}

/// Micro-batches of a batch and of a round.
const CUTS: [(u32, u32); 7] = [(2, 1), (3, 2), (4, 2), (5, 2), (6, 1), (7, 2), (13, 2)];

#[test]
fn every_cut_passes_the_checker() {
    for (i, &(accumulate, round)) in CUTS.iter().enumerate() {
        for mut w in [workload, untied, with_positions].map(|of| of(2, accumulate)) {
            for (k, c) in homes(&w, round).into_iter().enumerate() {
                w.gradient = [Dtype::Bf16, Dtype::F32][k % 2];
                let clip = CLIPS[(i + k) % 3];
                let plan = build(&w, &c, clip, Budgets::UNLIMITED, &machine());
                if let Err(fault) = check(&plan, &w, clip) {
                    panic!("{fault}\n{round} of {accumulate} {clip:?} {c:?}");
                }
            }
        }
    }
}

fn in_rounds(accumulate: u32, round: u32) -> (Workload, Choice) {
    let w = workload(2, accumulate);
    let n = w.units.len();
    let mut c = Choice::resident(&w);
    c.round = round;
    c.weights = vec![Tier::Host; n];
    c.optimizer = vec![Tier::Host; n];
    c.update = vec![Processor::Host; n];
    c.gradients = vec![Tier::Host; n];
    c.inputs = Tier::Host;
    (w, c)
}

#[test]
fn no_edge_between_rounds_is_superfluous_and_every_missing_one_is_found() {
    let (w, c) = in_rounds(13, 2);
    for clip in CLIPS {
        let good = build(&w, &c, clip, Budgets::UNLIMITED, &machine());
        check(&good, &w, clip).expect("the whole plan is right");
        for part in [PartName::Steady, PartName::Middle, PartName::Last] {
            for task in good.part(part).ids() {
                for k in 0..good.part(part)[task].after.len() {
                    let mut broken = good.clone();
                    broken.parts[part][task].after.remove(k);
                    assert!(
                        check(&broken, &w, clip).is_err(),
                        "{clip:?} {part:?} {task}"
                    );
                }
            }
        }
        let mut pairs = Vec::new();
        for s in 0..good.seams.len() {
            pairs.push((good.seams[s].from, good.seams[s].to));
            for k in 0..good.seams[s].edges.len() {
                let mut broken = good.clone();
                broken.seams[s].edges.remove(k);
                assert!(
                    check(&broken, &w, clip).is_err(),
                    "{clip:?} {:?} {k}",
                    pairs.last()
                );
            }
        }
        for pair in [
            (PartName::Steady, PartName::Middle),
            (PartName::Middle, PartName::Middle),
            (PartName::Middle, PartName::Last),
            (PartName::Last, PartName::Steady),
        ] {
            assert!(pairs.contains(&pair), "{pair:?}");
        }
    }
}

/// The first task of a part that uses a slot of this kind.
fn find(plan: &Plan, part: PartName, what: impl Fn(Tensor) -> bool) -> (TaskId, usize) {
    let tasks = plan.part(part).pairs();
    let mut args = tasks.flat_map(|(t, task)| (0..task.args.len()).map(move |a| (t, a)));
    let slot = |t: TaskId, a: usize| plan.part(part)[t].args[a].slot;
    args.find(|&(t, a)| {
        let s = &plan.slots[slot(t, a)];
        s.persistent && what(s.tensor)
    })
    .expect("one does")
}

#[test]
fn planted_faults_between_rounds_are_found() {
    let (w, c) = in_rounds(13, 2);
    let good = build(&w, &c, Clip::Exact, Budgets::UNLIMITED, &machine());
    let fails = |plan: &Plan, words: &str| {
        let fault = check(plan, &w, Clip::Exact).expect_err(words);
        assert!(fault.what.contains(words), "{fault} instead of {words}");
    };
    let late = |t: Tensor| matches!(t, Tensor::Local(1, ..));
    // An output gradient of the embedding's goes where that of another micro-batch belongs.
    let mut broken = good.clone();
    let (t, a) = find(&good, PartName::Middle, late);
    let before = broken.parts[PartName::Middle][t].args[a].slot;
    broken.parts[PartName::Middle][t].args[a].slot = SlotId(before.0 + 1);
    fails(&broken, "moves");
    // A round writes another round's.
    let mut broken = good.clone();
    broken.parts[PartName::Middle][t].args[a].slot = good.late.start;
    fails(&broken, "in another round");
    // One micro-batch has none.
    let mut broken = good.clone();
    broken.late.end.0 -= 1;
    fails(&broken, "for each micro-batch");
    // Two of them share bytes, far from both ends.
    let mut broken = good.clone();
    let at = SlotId(good.late.start.0 + 6);
    broken.slots[at].offset = broken.slots[SlotId(at.0 + 1)].offset;
    fails(&broken, "which stays");
    // A round that does not put its sums back.
    let sums = |t: Tensor| matches!(t, Tensor::Accumulator(_));
    let mut broken = good.clone();
    let back = |p: &Plan, t: &Task| {
        let to = t.args.get(1).map(|a| &p.slots[a.slot]);
        t.work == Work::Copy && to.is_some_and(|s| s.persistent && sums(s.tensor))
    };
    let first = |p: &Plan| p.part(PartName::Middle).position(|t| back(p, t));
    while let Some(at) = first(&broken) {
        broken = without_task(&broken, PartName::Middle, at);
    }
    fails(&broken, "stale");
    // Rounds that do not add up: the last one begins anew, or the first one goes on.
    let mut broken = good.clone();
    let tasks = broken.parts[PartName::Last].iter_mut();
    let mut args = tasks.flat_map(|t| &mut t.args);
    let sum = |s: SlotId| matches!(good.slots[s].tensor, Tensor::Accumulator(_));
    let share = args.find(|a| sum(a.slot) && a.access == crate::plan::Use::Update);
    share.expect("a gradient goes on").access = crate::plan::Use::Write;
    fails(&broken, "overwrites");
    let c = Choice {
        gradients: vec![Tier::Device; w.units.len()],
        ..c
    };
    let good = build(&w, &c, Clip::Exact, Budgets::UNLIMITED, &machine());
    let mut broken = good.clone();
    let first = broken.parts[PartName::Steady].iter_mut();
    let sum = |s: SlotId| matches!(good.slots[s].tensor, Tensor::Accumulator(_));
    let mut args = first.flat_map(|t| &mut t.args);
    let share = args.find(|a| sum(a.slot) && a.access == crate::plan::Use::Write);
    share.expect("a gradient begins").access = crate::plan::Use::Update;
    fails(&broken, "of the batch before");
}

/// All rounds one by one take as long as what stands for them.
#[test]
fn the_repeat_takes_as_long_as_all_rounds() {
    let m = machine();
    for (accumulate, round) in [(12, 1), (24, 2), (31, 2), (40, 4)] {
        for mut c in homes(&workload(3, accumulate), round) {
            c.durable = false;
            let w = workload(3, accumulate);
            let clip = CLIPS[accumulate as usize % 3];
            let plan = build(&w, &c, clip, Budgets::UNLIMITED, &m);
            let all: Vec<PartName> = plan.round_parts(PartName::Steady).map(|p| p.0).collect();
            let n = all.len();
            let run = simulate(&plan, &w, &m, &all.repeat(3));
            let step = run.end(3 * n - 1) - run.end(2 * n - 1);
            let predicted = predict(&plan, &w, &m).step_seconds.0;
            assert!(
                (predicted / step - 1.0).abs() < 0.01,
                "{round} of {accumulate}: {predicted} predicted, {step} of all\n{c:?}"
            );
        }
    }
}

/// Of a long batch the plan is as large as its rounds.
#[test]
fn a_longer_batch_has_no_more_tasks() {
    let tasks = |accumulate| {
        let (w, c) = in_rounds(accumulate, 4);
        let plan = build(&w, &c, Clip::Exact, Budgets::UNLIMITED, &machine());
        let steady = plan.rounds().steady();
        let all: usize = steady.iter().map(|&(p, _)| plan.part(p).len()).sum();
        // Each micro-batch has the embedding's backward at the end: inputs loaded and copied, the output
        // gradient fetched, the operation.
        all - 4 * accumulate as usize
    };
    assert_eq!(tasks(1024), tasks(64));
}

#[test]
fn a_round_of_all_is_no_cut() {
    let (w, c) = in_rounds(4, 4);
    let whole = Choice {
        round: 0,
        ..c.clone()
    };
    let of = |c: &Choice| build(&w, c, Clip::Exact, Budgets::UNLIMITED, &machine());
    assert_eq!(of(&c).hash(), of(&whole).hash());
    assert_eq!(c.order, LoopOrder::LayerMajor);
}

/// Groups that the user asks for are the rounds of the plan, of every size; as many as the batch are no cut.
#[test]
fn pinned_groups_are_the_rounds_of_a_plan() {
    let (w, m) = (workload(3, 5), machine());
    let rounds = |round| {
        let request = Request {
            workload: &w,
            machine: &m,
            budgets: Budgets {
                device: Bytes(8 << 20),
                host: Bytes(64 << 20),
                disk: Bytes::ZERO,
            },
            clip: Clip::Exact,
            pins: Pins {
                order: Some(LoopOrder::LayerMajor),
                round,
                ..Pins::default()
            },
        };
        let planned = plan(&request).expect("fits").rounds();
        (planned.each(), planned.count())
    };
    assert_eq!(
        [1, 2, 3, 4, 5, 9, 0].map(rounds),
        [(1, 5), (2, 3), (3, 2), (4, 2), (5, 1), (5, 1), (5, 1)]
    );
}

/// Of a tied embedding with positions only the table gets a share from the head: the positions' gradient begins with
/// the embedding's backward, in every cut, and what moves before holds nothing of it.
#[test]
fn positions_of_a_tied_embedding_begin_their_own_gradient() {
    for (accumulate, round) in [(1, 0), (2, 0), (6, 2), (13, 2)] {
        let w = with_positions(3, accumulate);
        for gradients in Tier::ALL {
            for (k, order) in [LoopOrder::LayerMajor, LoopOrder::BatchMajor]
                .into_iter()
                .enumerate()
            {
                for pieces in [Pieces::Unit, Pieces::Split(1000)] {
                    let mut c = Choice::resident(&w);
                    c.round = round;
                    c.order = order;
                    c.pieces = pieces;
                    c.ahead = [Ahead::NONE, Ahead::UNLIMITED][k];
                    c.gradients.fill(gradients);
                    let clip = CLIPS[(k + accumulate as usize) % 3];
                    let plan = build(&w, &c, clip, Budgets::UNLIMITED, &machine());
                    let at = format!("{round} of {accumulate}, {gradients}, {clip:?}, {c:?}");
                    check(&plan, &w, clip).unwrap_or_else(|fault| panic!("{fault}, {at}"));
                }
            }
        }
    }
}
