//! Plans of steps of decoding, with keys and values that stay.

use lowtide_units::{Bytes, List};
use lowtide_workload::{Access, LocalId, Operand, What, Workload};

use crate::check::check;
use crate::choice::{Budgets, Clip};
use crate::plan::{PartName, Plan, SlotId, TaskId, Tensor, Tier, Use};
use crate::search::{Pins, PlanError, Request, fits_any, plan};
use crate::testing::{machine, workload};

/// Bytes of what each block keeps.
const KEPT: u64 = 1 << 15;

/// What [`workload`] is where it makes answers: nothing is trained, and each block changes what it keeps.
fn decoding(layers: u32) -> Workload {
    let mut w = workload(layers, 1);
    w.params.iter_mut().for_each(|p| p.frozen = true);
    for unit in &mut w.units {
        (unit.backward, unit.evaluate) = (List::default(), List::default());
        if let Some(op) = unit.forward.iter_mut().find(|op| op.name == "act") {
            unit.cache = Bytes(KEPT);
            op.operands.insert(
                1,
                Operand {
                    what: What::Cache,
                    access: Access::Accumulate,
                },
            );
        }
    }
    w
}

fn made(w: &Workload, budgets: Budgets) -> Result<Plan, PlanError> {
    let machine = machine();
    let request = Request {
        workload: w,
        machine: &machine,
        budgets,
        clip: Clip::Exact,
        pins: Pins::default(),
    };
    let made = plan(&request);
    assert_eq!(made.is_ok(), fits_any(&request));
    made
}

/// The slots of what is kept.
fn kept(plan: &Plan) -> Vec<SlotId> {
    let slots = plan.slots.pairs();
    let kept = slots.filter(|(_, s)| matches!(s.tensor, Tensor::Cache(_)));
    kept.map(|(i, _)| i).collect()
}

#[test]
fn weights_go_where_there_is_room_and_what_is_kept_stays() {
    let w = decoding(4);
    let whole = made(&w, Budgets::UNLIMITED).expect("no limits");
    let [device, host, disk] = Tier::ALL.map(|t| whole.tier(t).planned_bytes);
    assert!(whole.choice.weights.iter().all(|&t| t == Tier::Device));
    assert_eq!(
        (whole.tier(Tier::Host).weights, disk),
        (Bytes::ZERO, Bytes::ZERO)
    );
    let mut last = whole.prediction.step_seconds;
    let mut seen = [false; 3];
    let weights = whole.tier(Tier::Device).weights;
    for eighths in [7, 5, 3, 0] {
        for drives in [false, true] {
            let budgets = Budgets {
                device: device.saturating_sub(weights) + Bytes(weights.0 / 8 * eighths + (1 << 17)),
                host: host
                    + if drives {
                        Bytes(1 << 18)
                    } else {
                        Bytes(1 << 30)
                    },
                disk: if drives { Bytes(1 << 30) } else { Bytes::ZERO },
            };
            let Ok(plan) = made(&w, budgets) else {
                panic!("{eighths} eighths, drives {drives}")
            };
            for tier in Tier::ALL {
                assert!(plan.tier(tier).planned_bytes <= budgets.of(tier), "{tier}");
                seen[tier as usize] |= plan.choice.weights.contains(&tier);
            }
            // Only steps of decoding, and one slot a block on the device that stays.
            for name in PartName::ALL {
                assert_eq!(
                    plan.part(name).is_empty(),
                    name != PartName::Infer,
                    "{name:?}"
                );
            }
            let slots = kept(&plan);
            assert_eq!(slots.len(), 4);
            for slot in slots.into_iter().map(|i| &plan.slots[i]) {
                assert_eq!((slot.tier, slot.bytes), (Tier::Device, KEPT));
                assert!(slot.persistent);
            }
            if !drives {
                let seconds = plan.prediction.step_seconds;
                assert!(
                    seconds.0 > 0.99 * last.0,
                    "{seconds} with less room, {last} with more"
                );
                last = seconds;
            }
        }
    }
    assert_eq!(seen, [true; 3]);
}

#[test]
fn what_does_not_fit_is_refused_with_what_would() {
    let w = decoding(4);
    let small = Budgets {
        device: Bytes(3 * KEPT),
        host: Bytes(1 << 30),
        disk: Bytes::ZERO,
    };
    let Err(PlanError::Refused(refusal)) = made(&w, small) else {
        panic!("four blocks keep more than the device has")
    };
    assert!(refusal.needed.device > Bytes(4 * KEPT), "{refusal}");
    made(&w, refusal.nearest).expect("the nearest budgets fit");
    let whole = made(&w, Budgets::UNLIMITED).expect("no limits");
    let beside = |t: Tier| {
        whole
            .tier(t)
            .planned_bytes
            .saturating_sub(whole.tier(t).weights)
    };
    let small = Budgets {
        device: beside(Tier::Device) + Bytes(170 << 10),
        host: beside(Tier::Host) + Bytes(140 << 10),
        ..small
    };
    let Err(PlanError::Refused(refusal)) = made(&w, small) else {
        panic!("weights fit nowhere")
    };
    let disk = refusal.with_disk.expect("a drive would do");
    made(&w, Budgets { disk, ..small }).expect("it does");
}

#[test]
fn planted_faults_of_what_is_kept_are_found() {
    let w = decoding(3);
    let good = made(&w, Budgets::UNLIMITED).expect("no limits");
    let slots = kept(&good);
    let uses = |plan: &Plan, slot: SlotId| -> (TaskId, usize) {
        let mut tasks = plan.part(PartName::Infer).pairs().rev();
        let found = tasks.find_map(|(t, task)| {
            let at = task.args.iter().position(|a| a.slot == slot);
            at.map(|at| (t, at))
        });
        found.expect("it is used")
    };
    let plant = |what: &str, word: &str, how: &dyn Fn(&mut Plan)| {
        let mut plan = good.clone();
        how(&mut plan);
        let fault = check(&plan, &w, Clip::Exact).expect_err(what).to_string();
        assert!(fault.contains(word), "{what}: {fault}");
    };
    let (task, at) = uses(&good, slots[1]);
    plant("overwritten", "Write for", &|plan| {
        plan.parts[PartName::Infer][task].args[at].access = Use::Write;
    });
    plant("only read", "Read for", &|plan| {
        plan.parts[PartName::Infer][task].args[at].access = Use::Read;
    });
    plant("another block's", "belongs", &|plan| {
        plan.parts[PartName::Infer][task].args[at].slot = slots[0];
    });
    plant("a part of it", "uses bytes", &|plan| {
        plan.parts[PartName::Infer][task].args[at].bytes -= 256;
    });
    plant("gone after a step", "unwritten", &|plan| {
        plan.slots[slots[1]].persistent = false;
    });
    plant("two blocks' in one place", "shares bytes", &|plan| {
        plan.slots[slots[1]].offset = plan.slots[slots[0]].offset;
    });
    let local = good.slots.pairs().find(|(_, s)| {
        s.tier == Tier::Device && matches!(s.tensor, Tensor::Local(1, LocalId(4), _))
    });
    let (local, _) = local.expect("a block's output");
    plant(
        "under a tensor that comes and goes",
        "shares bytes",
        &|plan| {
            plan.slots[local].offset = plan.slots[slots[1]].offset;
        },
    );
    plant("a step that is not there", "is not there", &|plan| {
        let tasks = plan.parts[PartName::Infer].to_vec();
        plan.parts[PartName::Infer] = tasks[..tasks.len() - 1].to_vec().into();
    });
    plant("another part's work", "is not this part's work", &|plan| {
        plan.parts[PartName::Steady] = plan.parts[PartName::Infer].clone();
    });
}
