//! Plans of workloads whose units are no chain: two stacks of blocks, outputs that several units read, a table that
//! two embeddings and the head share.

use lowtide_units::Bytes;
use lowtide_workload::{Access, Workload};

use crate::build::build;
use crate::check::check;
use crate::choice::{Budgets, Choice, Clip, LoopOrder, Processor, Saved};
use crate::mutants::mutants;
use crate::plan::{PartName, Plan, TaskId, Tensor, Tier, Use, Work};
use crate::search::{Pins, Request, plan};
use crate::testing::{machine, stacks};
use crate::tests::{CLIPS, every_choice};

#[test]
fn every_choice_for_stacks_passes_the_checker() {
    let mut seen = 0;
    for (accumulate, tied) in [(1, true), (3, false), (3, true)] {
        for (i, (w, mut c)) in every_choice(stacks(accumulate, tied))
            .into_iter()
            .enumerate()
        {
            // Of each workload a seventh of the combinations, with one clipping mode each.
            if i % 7 != accumulate as usize + usize::from(tied) {
                continue;
            }
            if accumulate == 3 && i % 2 == 0 && !c.durable {
                (c.round, c.order) = (1 + (i as u32 / 2) % 2, LoopOrder::LayerMajor);
            }
            let clip = CLIPS[i % 2 + i % 5 / 4];
            let plan = build(&w, &c, clip, Budgets::UNLIMITED, &machine());
            if let Err(fault) = check(&plan, &w, clip) {
                panic!("{fault}\n{c:?} {clip:?} M {accumulate}");
            }
            seen += 1;
        }
    }
    assert!(seen > 270, "{seen}");
}

/// The search finds plans under budgets that hold little, and each is right (it checks what it returns).
#[test]
fn the_search_plans_stacks_in_any_room() {
    let (w, m) = (stacks(3, true), machine());
    let ask = |device: u64| {
        let budgets = Budgets {
            device: Bytes(device),
            ..Budgets::UNLIMITED
        };
        let request = Request {
            workload: &w,
            machine: &m,
            budgets,
            clip: Clip::Exact,
            pins: Pins::default(),
        };
        plan(&request)
    };
    let roomy = ask(1 << 30).expect("room for all");
    let most = roomy.tier(Tier::Device).planned_bytes.0;
    let tight = ask(most / 2).expect("half of the room");
    assert!(tight.tier(Tier::Device).planned_bytes.0 <= most / 2);
    assert!(ask(most / 20).is_err(), "no plan takes so little");
}

/// Everything away from the device but what an operation needs.
fn away(w: &Workload) -> Choice {
    let n = w.units.len();
    let mut c = Choice::resident(w);
    c.weights = vec![Tier::Host; n];
    c.optimizer = vec![Tier::Disk; n];
    c.update = vec![Processor::Host; n];
    c.gradients = vec![Tier::Host; n];
    c.inputs = Tier::Host;
    c.carry = Tier::Host;
    c.ahead = crate::choice::Ahead::NONE;
    c.saved.iter_mut().for_each(|s| s.fill(Saved::Recompute));
    c
}

/// The task of a part that does an operation of a unit.
fn find(plan: &Plan, w: &Workload, unit: &str, name: &str) -> TaskId {
    let does = |work: Work| match work {
        Work::Compute {
            unit: u, phase, op, ..
        } => {
            let u = &w.units[u as usize];
            let ops = phase.ops(u);
            u.name == unit && ops[op].name == name
        }
        _ => false,
    };
    let found = plan.part(PartName::First).position(|t| does(t.work));
    found.expect("it is there")
}

/// The gradient of an output adds up from its last reader down, behind that one's overwrite and before it is used.
#[test]
fn readers_of_an_output_add_to_its_gradient_in_one_order() {
    let mut w = stacks(1, true);
    for (k, unit) in w.units.iter_mut().enumerate() {
        unit.name = k.to_string();
    }
    let c = Choice::resident(&w);
    let good = build(&w, &c, Clip::Exact, Budgets::UNLIMITED, &machine());
    check(&good, &w, Clip::Exact).expect("the whole plan is right");
    let fault = |plan: &Plan, w: &Workload| {
        check(plan, w, Clip::Exact)
            .expect_err("a fault")
            .to_string()
    };
    // Units 6, 7 and 8 read what unit 4 puts out.
    let [first, second, third] = ["6", "7", "8"].map(|u| find(&good, &w, u, "beside'"));
    let end = find(&good, &w, "4", "end'");
    let access = [first, second, third].map(|t| good.part(PartName::First)[t].args[0].access);
    assert_eq!(access, [Use::Update, Use::Update, Use::Write]);
    let slots = [first, second, third].map(|t| good.part(PartName::First)[t].args[0].slot);
    assert!(slots.iter().all(|&s| s == slots[0]), "it is there once");
    assert!(matches!(good.slots[slots[0]].tensor, Tensor::Local(8, ..)));
    let swapped = |a: TaskId, b: TaskId| {
        let mut plan = good.clone();
        let part = &mut plan.parts[PartName::First];
        let (of_a, of_b) = (part[a].clone(), part[b].clone());
        (part[a].work, part[a].args) = (of_b.work, of_b.args);
        (part[b].work, part[b].args) = (of_a.work, of_a.args);
        plan
    };
    let said = fault(&swapped(second, first), &w);
    assert!(said.contains("in another order"), "{said}");
    let said = fault(&swapped(third, second), &w);
    assert!(said.contains("unwritten"), "{said}");
    let said = fault(&swapped(first, end), &w);
    assert!(said.contains("in another order"), "{said}");
    let again = |of: &dyn Fn(&mut Workload)| {
        let mut other = w.clone();
        of(&mut other);
        fault(&good, &other)
    };
    let adds = |w: &mut Workload, unit: usize, access| {
        let last = w.units[unit]
            .backward
            .iter_mut()
            .last()
            .expect("an operation");
        last.operands[0].access = access;
    };
    let said = again(&|w| adds(w, 8, Access::Accumulate));
    assert!(
        said.contains("8 makes the gradient of 4's output"),
        "{said}"
    );
    let said = again(&|w| adds(w, 7, Access::Write));
    assert!(
        said.contains("7 makes the gradient of 4's output"),
        "{said}"
    );
    let said = again(&|w| {
        w.units[6].backward = w.units[6].backward.iter().take(6).cloned().collect();
    });
    assert!(
        said.contains("6 makes the gradient of 4's output"),
        "{said}"
    );
    let said = again(&|w| w.units[6].inputs[1].unit = 7);
    assert!(
        said.contains("6 reads what unit 7 does not put out"),
        "{said}"
    );
    let said = again(&|w| w.units[6].inputs[1].unit = 5);
    assert!(said.contains("6 reads what unit 5"), "{said}");
}

#[test]
fn every_mutant_of_a_task_of_stacks_is_found_or_is_right() {
    let w = stacks(1, true);
    let good = build(&w, &away(&w), Clip::Exact, Budgets::UNLIMITED, &machine());
    check(&good, &w, Clip::Exact).expect("the whole plan is right");
    let (mut all, mut left) = (0, 0);
    for mutant in mutants(&good).filter(|m| m.part == PartName::First) {
        all += 1;
        if check(&mutant.plan, &w, Clip::Exact).is_ok() {
            assert!(mutant.equivalent(&w).is_some(), "let go: {mutant}");
            left += 1;
        }
    }
    assert_eq!((left, all), (127, 1974));
}
