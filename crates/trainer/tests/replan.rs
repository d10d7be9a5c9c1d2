//! Another plan between two steps changes no bit, on any device.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use lowtide_executor::Mode;
use lowtide_model::Decoder;
use lowtide_planner::{Budgets, Choice, Clip, Pieces, Plan, Processor, Saved, Tier, build, check};
use lowtide_session::{Session, SessionOptions};
use lowtide_workload::Dtype;

use crate::common::places::{Dice, beside, random};
use crate::common::{
    Trained, batch, checked, choice, decoder_on, devices, hyper, llama, open, quick_on, train,
};

const ACCUMULATE: u32 = 2;
const CLIPS: [Clip; 3] = [Clip::Exact, Clip::Previous, Clip::None];

/// Plans of these choices, each with room for the others.
fn sealed<const N: usize>(d: &Decoder, choices: [&Choice; N], clip: Clip) -> [Arc<Plan>; N] {
    let mut plans = choices.map(|c| build(d.workload(), c, clip, Budgets::UNLIMITED, &beside(1e7)));
    for tier in Tier::ALL {
        let most = plans.iter().map(|p| p.tier(tier).planned_bytes).max();
        for plan in &mut plans {
            plan.tiers[tier as usize].planned_bytes = most.expect("a plan");
        }
    }
    plans.map(|plan| {
        check::check(&plan, d.workload(), clip).unwrap_or_else(|e| panic!("{e}"));
        Arc::new(plan)
    })
}

/// Steps from one to another, each submitted under the one before.
fn steps(session: &mut Session, from: u64, to: u64, losses: &mut Vec<(u64, u64)>) {
    let mut running = None;
    for step in from..=to {
        let data = session.submit(batch(step, ACCUMULATE), hyper(step));
        let before = running.replace(data.expect("submitted"));
        for data in before.into_iter().chain(running.take_if(|_| step == to)) {
            let o = session.outcome(&data).expect("done");
            losses.push((o.loss().to_bits(), o.norm.to_bits()));
        }
    }
}

/// Steps of one plan, of another one and of the first again; with an evaluation by the second.
fn swapped(session: &mut Session, plans: &[Arc<Plan>; 2], each: [u64; 3]) -> Trained {
    let mut losses = Vec::new();
    let [a, b, c] = each;
    steps(session, 1, a, &mut losses);
    session.replace(Arc::clone(&plans[1])).expect("replaced");
    assert_eq!(session.plan().hash(), plans[1].hash());
    let before = session.measured();
    steps(session, a + 1, a + b, &mut losses);
    let busy = session.measured().since(&before);
    let negative = busy.lanes.values().any(|l| l.busy_seconds < 0.0);
    assert!(!negative, "it is measured on: {busy:?}");
    let loss = session.evaluate(batch(1, ACCUMULATE)).expect("evaluates");
    assert!(loss.loss().is_finite());
    session.replace(Arc::clone(&plans[0])).expect("and back");
    steps(session, a + b + 1, a + b + c, &mut losses);
    session.drain().expect("drained");
    let homes = session.homes().expect("staging");
    let state = homes.fingerprint().expect("read").0;
    drop(homes);
    Trained { losses, state }
}

/// The homes of one choice, and everything else of another.
fn with_homes(homes: &Choice, free: &Choice) -> Choice {
    Choice {
        order: if homes.round == 0 && free.round == 0 {
            free.order
        } else {
            homes.order
        },
        inputs: free.inputs,
        saved: free.saved.clone(),
        ahead: free.ahead,
        carry: free.carry,
        ..homes.clone()
    }
}

#[test]
fn another_plan_between_two_steps_changes_no_bit() {
    for gpu in devices() {
        let gpu = gpu.as_ref();
        let mut dice = Dice(0x0ada_9417);
        let d = decoder_on(gpu, &llama(2, true), Dtype::Bf16, ACCUMULATE);
        let draws = if gpu.is_some() { 2 } else { 6 };
        for clip in CLIPS {
            let resident = choice(&d, Tier::Device, Tier::Device, Tier::Device);
            let plan = checked(&d, &resident, clip);
            let mut session = open(&d, &plan, clip, quick_on(gpu, true));
            let want = train(&mut session, 8, ACCUMULATE);
            for i in 0..draws {
                let first = random(&d, &mut dice);
                let second = with_homes(&first, &random(&d, &mut dice));
                let plans = sealed(&d, [&first, &second], clip);
                let mode = match (gpu, i % 3) {
                    (None, 2) => Mode::Shuffled(i),
                    _ => Mode::Threads,
                };
                let options = SessionOptions {
                    mode,
                    ..quick_on(gpu, gpu.is_none() || i % 2 == 0)
                };
                let mut session = open(&d, &plans[0], clip, options);
                let got = swapped(&mut session, &plans, [3, 3, 2]);
                assert_eq!(got, want, "{clip:?} {first:?} {second:?} {gpu:?}");
            }
        }
    }
}

/// Ten steps, another plan, ten steps: as twenty of either. Of two versions on disk, too.
#[test]
fn ten_steps_and_ten_by_another_plan_are_twenty() {
    let d = decoder_on(None, &llama(2, true), Dtype::Bf16, ACCUMULATE);
    for durable in [false, true] {
        let mut c = choice(&d, Tier::Host, Tier::Disk, Tier::Disk);
        c.saved.iter_mut().for_each(|s| s.fill(Saved::Disk));
        if durable {
            c.make_durable();
        }
        let again = Choice {
            saved: vec![vec![Saved::Recompute; c.saved[1].len()]; c.saved.len()],
            ..c.clone()
        };
        let mut again = again;
        for (to, from) in again.saved.iter_mut().zip(&c.saved) {
            to.truncate(from.len());
        }
        let plans = sealed(&d, [&c, &again], Clip::Exact);
        let mut session = open(&d, &plans[0], Clip::Exact, quick_on(None, true));
        let want = train(&mut session, 20, ACCUMULATE);
        drop(session);
        let mut session = open(&d, &plans[0], Clip::Exact, quick_on(None, true));
        let got = swapped(&mut session, &plans, [10, 10, 0]);
        assert_eq!(got, want, "durable {durable}");
    }
}

/// Planted mistake: of a plan with other homes nothing runs, and the one before runs on.
#[test]
fn a_plan_with_other_homes_does_not_run() {
    let d = decoder_on(None, &llama(2, true), Dtype::Bf16, ACCUMULATE);
    let c = choice(&d, Tier::Host, Tier::Host, Tier::Host);
    let mut others = [c.clone(), c.clone(), c.clone()];
    others[0].optimizer[1] = Tier::Device;
    others[0].update[1] = Processor::Device;
    others[1].gradients[2] = Tier::Device;
    others[2].pieces = Pieces::Split(256);
    let [plan, a, b, e] = sealed(&d, [&c, &others[0], &others[1], &others[2]], Clip::Exact);
    let mut session = open(&d, &plan, Clip::Exact, quick_on(None, true));
    let want = train(&mut session, 4, ACCUMULATE);
    drop(session);
    // As large as it is planned alone, which is less than what is reserved.
    let small = checked(&d, &c, Clip::Exact);
    let mut session = open(&d, &plan, Clip::Exact, quick_on(None, true));
    let mut losses = Vec::new();
    steps(&mut session, 1, 2, &mut losses);
    for other in [a, b, e, small] {
        let refused = catch_unwind(AssertUnwindSafe(|| session.replace(other)));
        let why = refused.expect_err("refused");
        let why = why.downcast::<String>().expect("a reason");
        assert!(why.contains("not the same homes"), "{why}");
    }
    steps(&mut session, 3, 4, &mut losses);
    assert_eq!(losses, want.losses);
}
