//! Whether a plan may take the place of another one in a running session, between two steps.

use lowtide_units::Id;

use super::Fault;
use crate::plan::{PartName, Plan, Slot, SlotId, TaskId, Tier};

/// Whether `new` may run on the memory of a session that runs `old`, whose updates are all made: everything that
/// outlives a step lies where it lay (weights, optimizer state, gradients, clip factor: each persistent slot but those
/// that only a batch in rounds uses inside itself), the parameters are cut alike, and every tier is as large as what is
/// reserved. Both must have passed [`check`](super::check).
///
/// # Errors
/// The first thing that differs.
pub fn replaces(old: &Plan, new: &Plan) -> Result<(), Fault> {
    let fault = |what: String| {
        Err(Fault {
            part: PartName::First,
            task: TaskId(0),
            what,
        })
    };
    let shape = |p: &Plan| (p.precision, p.gradient, p.optimizer, p.accumulate, p.ranks);
    if shape(old) != shape(new) || old.unit_names != new.unit_names {
        return fault("the plan that is to run on is of another step".to_owned());
    }
    if old.pieces != new.pieces {
        return fault("the plan that is to run on cuts the parameters otherwise".to_owned());
    }
    for tier in Tier::ALL {
        let (have, need) = (old.tier(tier).planned_bytes, new.tier(tier).planned_bytes);
        if have != need {
            return fault(format!("the {tier} tier has {have}, and is to have {need}"));
        }
    }
    let (before, after) = (homes(old), homes(new));
    for (i, pair) in before.iter().zip(&after).enumerate() {
        if pair.0 != pair.1 {
            let name = pair.0.1.tensor.name(old);
            return fault(format!("home {i}, {name}, would lie elsewhere"));
        }
    }
    if before.len() != after.len() {
        let (before, after) = (before.len(), after.len());
        return fault(format!("{before} homes would become {after}"));
    }
    Ok(())
}

/// What outlives a step, with its number.
fn homes(plan: &Plan) -> Vec<(SlotId, &Slot)> {
    let slots = plan.slots.pairs();
    let stays = slots.filter(|(i, s)| s.persistent && !plan.late.contains(i));
    stays.map(|(i, s)| (SlotId::new(i.idx()), s)).collect()
}
