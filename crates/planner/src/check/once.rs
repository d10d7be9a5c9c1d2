//! Rule 9, without a walk: no tier holds a local tensor twice at once.
//!
//! Two extents or two slots with the same content waste bytes. They also show that a fetch comes from further away
//! than it need: what is read from a drive while a host slot still has it is there twice.

use super::Fault;
use crate::fast::FastMap;
use crate::plan::{PartName, Plan, SlotId, TaskId, Tensor, Tier};

/// The first slot that is used for a tensor while another one of its tier is.
pub(super) fn once(plan: &Plan) -> Result<(), Fault> {
    for part in PartName::ALL {
        // First and last use of each slot of the part.
        let mut lives: FastMap<SlotId, (TaskId, TaskId)> = FastMap::default();
        for (t, task) in plan.part(part).pairs() {
            for a in &task.args {
                let s = &plan.slots[a.slot];
                if !s.persistent && matches!(s.tensor, Tensor::Local(..)) {
                    lives.entry(a.slot).or_insert((t, t)).1 = t;
                }
            }
        }
        let of = |(slot, (first, last)): (SlotId, (TaskId, TaskId))| {
            let s = &plan.slots[slot];
            (s.tier, s.tensor, first, last)
        };
        let mut all: Vec<(Tier, Tensor, TaskId, TaskId)> = lives.into_iter().map(of).collect();
        all.sort_unstable();
        for two in all.windows(2) {
            let ((tier, tensor, _, last), (other, again, first, _)) = (two[0], two[1]);
            if (tier, tensor) == (other, again) && first <= last {
                return Err(Fault {
                    part,
                    task: first,
                    what: format!("has {} twice on the {tier} at once", tensor.name(plan)),
                });
            }
        }
    }
    Ok(())
}
