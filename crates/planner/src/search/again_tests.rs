//! Planning again for a session that runs: what may change, what may not, and what it is worth.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use lowtide_units::Bytes;
use lowtide_workload::Workload;

use super::again::plan_again;
use super::{Pins, Request};
use crate::build::build;
use crate::check::replaces;
use crate::choice::{Activations, Ahead, Budgets, Choice, Clip, LoopOrder, Pieces, Saved};
use crate::lanes::LaneKind;
use crate::machine::Machine;
use crate::plan::{Plan, Tier};
use crate::slowdown::AS_RATED;
use crate::testing::{dear, host_state, planned, workload};
use crate::{Again, make};

fn at(m: &Machine, kind: LaneKind, times: f64) -> Machine {
    let mut slowdown = AS_RATED;
    slowdown[kind as usize] = times;
    m.slowed(&slowdown)
}

fn again(w: &Workload, m: &Machine, clip: Clip, pins: Pins, old: &Plan) -> Option<Again> {
    let request = Request {
        workload: w,
        machine: m,
        budgets: Budgets::UNLIMITED,
        clip,
        pins,
    };
    plan_again(&request, old, &Arc::default()).expect("what is found is right")
}

fn ways(plan: &Plan) -> [usize; 3] {
    plan.choice.saved_tensors()
}

/// At the rates that it was planned with little is left to win; a drive that is slower gets less to do.
#[test]
fn a_slow_drive_gets_less_to_do_and_no_home_moves() {
    let (w, m) = (workload(4, 4), dear());
    let pins = host_state();
    let old = planned(&w, &m, pins);
    let again = |m: &Machine, old| again(&w, m, Clip::Exact, pins, old).expect("what runs fits");
    let gain = again(&m, &old).gain();
    assert!((0.0..0.02).contains(&gain), "{gain}");
    let written = |p: &Plan| p.prediction.disk_bytes_written;
    assert!(written(&old) > Bytes(0));
    let found = again(&at(&m, LaneKind::Disk, 100.0), &old);
    assert!(found.gain() > 0.1, "{}", found.gain());
    assert!(written(&found.plan) < written(&old));
    assert_ne!(found.plan.hash(), old.hash());
    for tier in Tier::ALL {
        let (new, old) = (found.plan.tier(tier), old.tier(tier));
        assert_eq!(new.planned_bytes, old.planned_bytes);
        assert_eq!(new.budget_bytes, old.budget_bytes);
    }
    // And back: what runs then has the same homes still.
    let back = again(&m, &found.plan);
    assert!(replaces(&old, &back.plan).is_ok());
    assert!(back.gain() >= 0.0, "{}", back.gain());
}

#[test]
fn what_is_pinned_stays_and_no_more_is_written() {
    let (w, m) = (workload(3, 2), dear());
    let by_hand = |saved| build(&w, &mixed(&w, saved), Clip::Exact, Budgets::UNLIMITED, &m);
    let with = |times: f64, pins: Pins, old: &Plan| {
        let m = at(&m, LaneKind::Disk, times);
        let found = again(&w, &m, Clip::Exact, pins, old).expect("what runs fits");
        // Equal inputs, equal plan.
        let same = again(&w, &m, Clip::Exact, pins, old).expect("as before");
        assert_eq!(same.plan, found.plan);
        found.plan
    };
    let offload = Pins {
        activations: Activations::Offload,
        ..Pins::default()
    };
    let moved = by_hand(Saved::Disk);
    assert_eq!(
        ways(&with(100.0, offload, &moved))[2],
        0,
        "none is computed again"
    );
    assert!(ways(&with(100.0, Pins::default(), &moved))[2] > 0);
    let all = Pins {
        recompute: Some(u32::MAX),
        ..Pins::default()
    };
    let again = with_room(by_hand(Saved::Recompute));
    let blocks = |plan: &Plan| plan.choice.saved.clone();
    assert_eq!(blocks(&with(0.01, all, &again)), blocks(&again));
    let most = again.prediction.disk_bytes_written;
    let few = Pins {
        writes: Some(most),
        ..Pins::default()
    };
    // Also of what is pinned to the drives.
    let pinned = Pins {
        offload: Some(Tier::Disk),
        ..few
    };
    let inputs = Pins {
        inputs: Some(Tier::Host),
        ..pinned
    };
    for pins in [few, pinned, inputs] {
        let found = with(0.01, pins, &again);
        assert!(found.prediction.disk_bytes_written <= most, "{pins:?}");
    }
    let unbounded = Pins {
        writes: None,
        ..pinned
    };
    let found = with(0.01, unbounded, &again);
    assert!(found.prediction.disk_bytes_written > most);
}

/// A plan whose saved tensors move, made for links four times as fast as they are, with most of the device taken by
/// what stays. What computes them again has more slots and must fit the same bytes: it is found, as fast as with any
/// amount of memory, and so is what lies between where links can carry some. With slots packed as in other searches the
/// step is a tenth longer than by hand, and with copies held back by parts of all of the device it takes longer than
/// what runs.
#[test]
fn links_that_are_slower_than_planned_are_planned_for_in_what_is_reserved() {
    let w = workload(30, 4);
    for (slower, least) in [(48.0, 0.2), (32.0, 0.12)] {
        let mut m = dear();
        (m.h2d.0, m.d2h.0) = (m.h2d.0 / slower, m.d2h.0 / slower);
        let mut c = Choice::resident(&w);
        for u in w.units.len() / 2..w.units.len() {
            (c.weights[u], c.optimizer[u]) = (Tier::Host, Tier::Host);
            (c.update[u], c.gradients[u]) = (crate::Processor::Host, Tier::Host);
        }
        c.inputs = Tier::Host;
        c.saved.iter_mut().for_each(|s| s.fill(Saved::Host));
        let stays = crate::draft::persistent_bytes(&w, &c, Clip::Exact)[0];
        c.ahead.device = Bytes(stays + (800 << 10));
        let of = |c: &Choice, m: &Machine| build(&w, c, Clip::Exact, Budgets::UNLIMITED, m);
        let old = of(&c, &m);
        let slow = at(&at(&m, LaneKind::H2d, 4.0), LaneKind::D2h, 4.0);
        let found = again(&w, &slow, Clip::Exact, Pins::default(), &old).expect("what runs fits");
        c.saved.iter_mut().for_each(|s| s.fill(Saved::Recompute));
        let by_hand = of(&c, &slow);
        assert!(by_hand.tier(Tier::Device).planned_bytes > old.tier(Tier::Device).planned_bytes);
        let seconds = |plan: &Plan| plan.prediction.step_seconds.0;
        let (got, want) = (seconds(&found.plan), seconds(&by_hand));
        assert!(got <= 1.01 * want, "{slower}: {got}, by hand {want}");
        assert!(found.gain() > least, "{slower}: {}", found.gain());
    }
}

/// What nobody waits for any more ends at once, and finds nothing.
#[test]
fn a_stop_ends_the_planning() {
    let (w, m) = (workload(3, 2), dear());
    let old = build(
        &w,
        &mixed(&w, Saved::Disk),
        Clip::Exact,
        Budgets::UNLIMITED,
        &m,
    );
    let request = Request {
        workload: &w,
        machine: &at(&m, LaneKind::Disk, 100.0),
        budgets: Budgets::UNLIMITED,
        clip: Clip::Exact,
        pins: Pins::default(),
    };
    let with = |stop| plan_again(&request, &old, &Arc::new(AtomicBool::new(stop))).expect("right");
    assert!(with(false).is_some_and(|again| again.gain() > 0.02));
    assert!(with(true).is_none());
}

/// All blocks for one micro-batch after the other are tried where every search tries them: of many micro-batches that
/// is a long plan.
#[test]
fn of_many_micro_batches_the_order_stays() {
    let m = crate::testing::machine();
    for (accumulate, free) in [(4, true), (9, false)] {
        let w = workload(2, accumulate);
        let mut c = Choice::resident(&w);
        // Room on the device for what one micro-batch stores, and not for that of all.
        c.order = LoopOrder::BatchMajor;
        let of = |c: &Choice| build(&w, c, Clip::Exact, Budgets::UNLIMITED, &m);
        let room = of(&c).tier(Tier::Device).planned_bytes;
        c.order = LoopOrder::LayerMajor;
        c.saved.iter_mut().for_each(|s| s.fill(Saved::Disk));
        (c.inputs, c.ahead) = (Tier::Disk, Ahead::NONE);
        let mut old = of(&c);
        let planned = &mut old.tiers[Tier::Device as usize].planned_bytes;
        *planned = room.max(*planned);
        let slow = at(&m, LaneKind::Disk, 1000.0);
        let found = again(&w, &slow, Clip::Exact, Pins::default(), &old).expect("what runs fits");
        let by_batch = found.plan.choice.order == LoopOrder::BatchMajor;
        assert_eq!(by_batch, free, "{accumulate}: {:?}", found.plan.choice);
    }
}

/// With room for what another plan has elsewhere.
fn with_room(mut plan: Plan) -> Plan {
    for tier in Tier::ALL {
        let planned = &mut plan.tiers[tier as usize].planned_bytes;
        *planned = Bytes(4 * planned.0.max(1 << 20));
    }
    plan
}

/// A choice with some of everything, by hand.
fn mixed(w: &Workload, saved: Saved) -> Choice {
    let mut c = Choice::resident(w);
    let n = w.units.len();
    for u in n / 2..n {
        (c.weights[u], c.optimizer[u]) = (Tier::Host, Tier::Disk);
        c.update[u] = crate::Processor::Host;
        c.gradients[u] = Tier::Host;
    }
    c.saved.iter_mut().for_each(|s| s.fill(saved));
    c.inputs = Tier::Host;
    c
}

/// Every kind of plan that can run is planned again, whatever its homes, rounds, versions and clipping.
#[test]
fn any_plan_is_planned_again() {
    let m = crate::testing::machine();
    let mut found = 0;
    for clip in [Clip::Exact, Clip::Previous, Clip::None] {
        for (accumulate, round, durable) in [(2, 0, true), (4, 2, false)] {
            let w = workload(3, accumulate);
            let mut c = mixed(&w, Saved::Disk);
            c.round = round;
            if durable {
                c.make_durable();
                c.update.fill(crate::Processor::Host);
                c.weights.fill(Tier::Host);
                c.gradients.fill(Tier::Host);
            }
            let old = build(&w, &c, clip, Budgets::UNLIMITED, &m);
            let slow = at(&m, LaneKind::Disk, 4.0);
            let again = again(&w, &slow, clip, Pins::default(), &old);
            let again = again.expect("what runs fits");
            assert_eq!(again.plan.choice.optimizer, c.optimizer);
            assert_eq!(again.plan.choice.round, round);
            assert!(replaces(&old, &again.plan).is_ok());
            found += usize::from(again.gain() > 0.02);
        }
    }
    assert!(found >= 3, "{found} of 6 are worth it");
}

/// Planted mistakes: a plan whose homes, cut or arenas are others takes nobody's place.
#[test]
fn a_plan_with_other_homes_is_refused() {
    let (w, m) = (workload(3, 2), crate::testing::machine());
    let of = |c: &Choice| build(&w, c, Clip::Exact, Budgets::UNLIMITED, &m);
    let c = mixed(&w, Saved::Host);
    let old = of(&c);
    let sealed = |mut plan: Plan| {
        for tier in Tier::ALL {
            plan.tiers[tier as usize].planned_bytes = old.tier(tier).planned_bytes;
        }
        plan
    };
    let refused = |plan: &Plan, why: &str| {
        let fault = replaces(&old, plan).expect_err(why).to_string();
        assert!(fault.contains(why), "{fault}");
    };
    assert!(replaces(&old, &sealed(of(&mixed(&w, Saved::Recompute)))).is_ok());
    let changed = |change: &dyn Fn(&mut Choice)| {
        let mut c = c.clone();
        change(&mut c);
        of(&c)
    };
    refused(
        &sealed(changed(&|c| c.optimizer[2] = Tier::Host)),
        "elsewhere",
    );
    refused(
        &sealed(changed(&|c| c.gradients[0] = Tier::Host)),
        "elsewhere",
    );
    refused(&sealed(changed(&|c| c.weights[3] = Tier::Device)), "home");
    refused(&sealed(changed(&|c| c.pieces = Pieces::Split(64))), "cuts");
    refused(&sealed(changed(&|c| c.make_durable())), "home");
    let kept = changed(&|c| {
        c.saved.iter_mut().for_each(|s| s.fill(Saved::Keep));
        c.order = LoopOrder::BatchMajor;
    });
    refused(&kept, "tier has");
    let other = make(&Request {
        workload: &workload(4, 2),
        machine: &m,
        budgets: Budgets::UNLIMITED,
        clip: Clip::Exact,
        pins: Pins::default(),
    });
    refused(&other.expect("it fits"), "another step");
}
