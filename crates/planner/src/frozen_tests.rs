//! Plans of workloads of which something is frozen.

use lowtide_units::ids;
use lowtide_workload::{ParamId, ParamKind};

use crate::build::build;
use crate::check::check;
use crate::choice::{Budgets, Choice, Clip, LoopOrder, Processor};
use crate::plan::{PartName, Plan, Tensor, Tier, Work};
use crate::testing::{frozen, machine, untied, workload};
use crate::tests::{CLIPS, every_choice};
use crate::traffic::{Traffic, explain_cores, traffic};

/// Of a tied and of an untied model: the embedding; it and the first block; everything but the second block's
/// first matrix; the norms; the head's own.
#[test]
fn plans_with_frozen_parameters_pass_the_checker() {
    let cases: [(bool, &[u32]); 6] = [
        (true, &[0]),
        (false, &[0]),
        (true, &[0, 1, 2, 3]),
        (false, &[0, 1, 2, 3, 4, 6, 7, 8]),
        (true, &[1, 4, 7]),
        (false, &[8]),
    ];
    let mut seen = 0;
    for accumulate in [1, 3] {
        for (tied, off) in cases {
            let w = match tied {
                true => workload(2, accumulate),
                false => untied(2, accumulate),
            };
            let w = frozen(w, off);
            for (i, (w, mut c)) in every_choice(w).into_iter().enumerate() {
                // A case sees a sixth of the combinations with one clipping mode each.
                if i % 6 != off.len() % 6 || c.durable {
                    continue;
                }
                if accumulate == 3 && i % 4 == 0 {
                    (c.round, c.order) = (2, LoopOrder::LayerMajor);
                }
                if i.is_multiple_of(2) {
                    c.bases = (0..w.units.len())
                        .map(|u| (u + i / 12).is_multiple_of(2))
                        .collect();
                }
                let clip = CLIPS[i % 3];
                let plan = build(&w, &c, clip, Budgets::UNLIMITED, &machine());
                if let Err(fault) = check(&plan, &w, clip) {
                    panic!("{fault}\n{c:?} {clip:?} M {accumulate} {off:?}");
                }
                let owned = plan.slots.iter().filter_map(|s| match s.tensor {
                    Tensor::State(p) | Tensor::Gradient(p) | Tensor::Accumulator(p) => Some(p),
                    _ => None,
                });
                let mut params = owned.flat_map(|p| ids(&plan.pieces[p].params));
                assert!(params.all(|p| !off.contains(&p.0)), "{off:?}");
                seen += 1;
            }
        }
    }
    assert!(seen > 900, "{seen}");
}

/// Bytes read from the drives and written to them are counted by what they hold, as those on the links are.
#[test]
fn what_drives_read_and_write_is_told() {
    let w = frozen(workload(2, 1), &[2, 3]);
    let mut c = Choice::resident(&w);
    c.weights.fill(Tier::Disk);
    c.optimizer.fill(Tier::Disk);
    let plan = build(&w, &c, Clip::Exact, Budgets::UNLIMITED, &machine());
    let [up, _, read, written] = traffic(&plan);
    assert!(
        read.frozen.0 > 0 && read.weights.0 > 0 && read.state.0 > 0,
        "{read:?}"
    );
    assert_eq!(up.frozen, read.frozen, "it has no other home");
    assert_eq!(written.frozen.0, 0);
    let sum = |t: Traffic| t.frozen + t.weights + t.gradients + t.state + t.others;
    let p = &plan.prediction;
    assert_eq!(sum(read), p.disk_bytes_read);
    assert_eq!(sum(written), p.disk_bytes_written);

    // Of a base and its projector it is said in a sentence.
    let mut subspaces = w.clone();
    for (p, kind) in [
        (2, ParamKind::Base),
        (3, ParamKind::Projector),
        (5, ParamKind::Core),
    ] {
        subspaces.params[ParamId(p)].kind = kind;
    }
    let told = explain_cores(&plan, &subspaces);
    let bytes = up.frozen;
    for want in [
        &*format!("frozen tensors) {bytes} over the link, {bytes} of it from the drives,"),
        "bases of 0 of 1 units stay on the device",
    ] {
        assert!(told.contains(want), "{told}");
    }
    c.weights.fill(Tier::Host);
    let plan = build(&w, &c, Clip::Exact, Budgets::UNLIMITED, &machine());
    let told = explain_cores(&plan, &subspaces);
    assert!(
        told.contains(&format!("frozen tensors) {bytes} over the link, and")),
        "{told}"
    );
}

/// A base that stays on the device while the core that is trained beside it does not: it is read over no link, and what
/// is read of the others is as it was.
#[test]
fn a_base_may_stay_alone() {
    let w = frozen(workload(2, 1), &[2, 5]);
    let mut c = Choice::resident(&w);
    c.weights.fill(Tier::Host);
    c.optimizer.fill(Tier::Host);
    c.update.fill(Processor::Host);
    let moved = |c: &Choice| {
        let plan = build(&w, c, Clip::Exact, Budgets::UNLIMITED, &machine());
        check(&plan, &w, Clip::Exact).expect("it is right");
        let device = plan
            .slots
            .iter()
            .filter(|s| s.persistent && s.tier == Tier::Device);
        let held: u64 = device
            .filter(|s| matches!(s.tensor, Tensor::Weight(p) if plan.pieces[p].frozen))
            .map(|s| s.bytes)
            .sum();
        let [up, ..] = traffic(&plan);
        (up.frozen.0, up.weights.0, held)
    };
    let (frozen, weights, held) = moved(&c);
    assert!(frozen > 0 && held == 0);
    c.bases = vec![false, true, false, false];
    let half = moved(&c);
    // The last block's is read once: it is still there when backward begins.
    assert_eq!((frozen, half.0, half.1), (3 * half.2, half.2, weights));
    c.bases = vec![true; 4];
    let all = moved(&c);
    assert_eq!((all.0, all.1, all.2), (0, weights, 2 * half.2));
    // What is trained and what has nothing frozen stays where it was.
    assert!(half.2 > 0 && c.home(1, false) == Tier::Host && c.home(1, true) == Tier::Device);
}

/// A frozen piece that is updated or has an accumulator is not this workload's plan, nor is one that says it is
/// trained.
#[test]
fn planted_faults_of_frozen_pieces_are_found() {
    let w = frozen(workload(2, 1), &[1, 2]);
    let c = Choice::resident(&w);
    let good = build(&w, &c, Clip::Exact, Budgets::UNLIMITED, &machine());
    check(&good, &w, Clip::Exact).expect("the whole plan is right");
    let frozen = good.pieces.pairs().find(|(_, p)| p.frozen);
    let (off, piece) = frozen.map(|(i, p)| (i, p.clone())).expect("one is frozen");
    assert_eq!(piece.params, ParamId(1)..ParamId(3));
    assert_eq!(piece.norm_chunks, 0);
    let fails = |plan: &Plan, words: &str| {
        let fault = check(plan, &w, Clip::Exact).expect_err(words).to_string();
        assert!(fault.contains(words), "{fault}");
    };
    let mut updated = good.clone();
    for task in &mut updated.parts[PartName::Steady] {
        if let Work::Update { piece } = &mut task.work {
            *piece = off;
            break;
        }
    }
    fails(&updated, "");
    let mut trained = good.clone();
    trained.pieces[off].frozen = false;
    fails(&trained, "has no place in piece");
}
