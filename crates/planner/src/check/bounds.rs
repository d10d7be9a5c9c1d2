//! Rules 1 and 4, without a walk: slots, tiers, arguments and edges are in bounds.

use lowtide_units::ids;

use super::Fault;
use crate::plan::{PartName, Plan, Slot, TaskId, Tensor, Tier};

/// The first thing that lies outside of where it may.
pub(super) fn bounds(plan: &Plan) -> Result<(), Fault> {
    let fault = |what: String| {
        Err(Fault {
            part: PartName::First,
            task: TaskId(0),
            what,
        })
    };
    for (i, s) in plan.slots.iter().enumerate() {
        let tier = plan.tier(s.tier);
        if s.offset + s.bytes > tier.planned_bytes.0 {
            return fault(format!("slot {i} ends outside the {} tier", s.tier));
        }
        if s.offset % s.tier.align() != 0 || s.bytes % s.tier.align() != 0 {
            return fault(format!("slot {i} of the {} tier is not aligned", s.tier));
        }
    }
    for (i, s) in plan.slots.pairs() {
        let truth = s.persistent
            && matches!(
                s.tensor,
                Tensor::Weight(_) | Tensor::Shard(_) | Tensor::State(_)
            );
        if let Some((version, other)) = s.version {
            let pair = plan.slots.find(other).filter(|o| {
                (o.tensor, o.bytes, o.tier) == (s.tensor, s.bytes, Tier::Disk)
                    && o.version.is_some_and(|v| v.0 != version && v.1 == i)
            });
            if !truth || s.tier != Tier::Disk || pair.is_none() {
                return fault(format!("slot {i} is no half of two versions on disk"));
            }
        }
    }
    lates(plan)?;
    if plan.choice.durable {
        for piece in plan.pieces.ids() {
            for t in [plan.master(piece), Tensor::State(piece)] {
                if !plan.homes(t).any(|(_, s)| s.version.is_some()) {
                    return fault(format!("{} is not durable", t.name(plan)));
                }
            }
        }
    }
    for (tier, used) in Tier::ALL.iter().zip(&plan.tiers) {
        if used.planned_bytes > used.budget_bytes {
            return fault(format!(
                "{tier} tier needs {} but holds {}",
                used.planned_bytes, used.budget_bytes
            ));
        }
    }
    for part in PartName::ALL {
        for (i, task) in plan.part(part).pairs() {
            let bad = |what: String| {
                Err(Fault {
                    part,
                    task: i,
                    what,
                })
            };
            for a in &task.args {
                let Some(s) = plan.slots.find(a.slot) else {
                    return bad(format!("uses slot {} which does not exist", a.slot));
                };
                if a.offset + a.bytes > s.bytes {
                    return bad(format!("uses bytes outside slot {}", a.slot));
                }
            }
            if task.after.iter().any(|&d| d >= i) {
                return bad("waits for itself or a later task".to_owned());
            }
        }
    }
    Ok(())
}

/// Of a batch in rounds: the slots that each micro-batch has its own of are alike, and a round that
/// repeats names those of its own micro-batches alone.
fn lates(plan: &Plan) -> Result<(), Fault> {
    let fault = |part: PartName, task: TaskId, what: String| Err(Fault { part, task, what });
    let late = plan.late.clone();
    if late.is_empty() {
        return Ok(());
    }
    // Of one tensor after the other a slot for each micro-batch.
    let slots: Vec<_> = ids(&late).map(|s| plan.slots.find(s)).collect();
    let each = plan.accumulate as usize;
    let one_each = |slots: &[Option<&Slot>]| {
        let mut alike = (0..).zip(slots).map(|(m, s)| {
            let s = s.as_ref()?;
            match s.tensor {
                Tensor::Local(u, i, of) if of == m && s.persistent => Some((s.tier, s.bytes, u, i)),
                _ => None,
            }
        });
        let first = alike.next().flatten();
        first.is_some() && alike.all(|s| s == first)
    };
    if slots.len() % each != 0 || !slots.chunks(each).all(one_each) {
        let what = "a slot for each micro-batch is missing or unlike the others".to_owned();
        return fault(PartName::First, TaskId(0), what);
    }
    let rounds = plan.rounds();
    for part in [PartName::First, PartName::Steady, PartName::Middle] {
        let own = rounds.span(part);
        for (i, task) in plan.part(part).pairs() {
            let named = task.args.iter().filter(|a| late.contains(&a.slot));
            if let Some(a) = named
                .into_iter()
                .find(|a| !own.contains(&((a.slot.0 - late.start.0) % plan.accumulate)))
            {
                let what = format!(
                    "uses {} in another round",
                    plan.slots[a.slot].tensor.name(plan)
                );
                return fault(part, i, what);
            }
        }
    }
    Ok(())
}
