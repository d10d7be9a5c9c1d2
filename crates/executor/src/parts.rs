//! A part of a plan as the lanes see it: before it runs, and as one that was submitted.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use lowtide_planner::{Arg, PartName, PerLane, Plan, SlotId, TaskId, Use};
use lowtide_units::List;

use crate::hold::Hold;

/// One submitted part.
pub(crate) struct Submission<S> {
    pub seq: u32,
    pub part: PartName,
    /// When it was submitted, in seconds since the runner began.
    pub at: f64,
    /// Micro-batches that the part runs later than it says.
    pub shift: u32,
    pub step: Arc<S>,
    /// An odd number of commits came before: durable extents have changed places.
    pub flipped: bool,
    /// Tasks each lane completes before this part begins.
    pub base: PerLane<u64>,
    /// The same of the part before, when this one overlaps it.
    pub before: Option<(PartName, PerLane<u64>)>,
    /// Uses left of each slot that lives inside the part.
    pub uses: List<SlotId, AtomicU32>,
    /// Every task has its events, and they are kept for the trace.
    pub traced: bool,
    /// What is read of the state before this part: its tasks write it when that was done.
    pub hold: Option<Arc<Hold>>,
}

/// What is known of each part before it runs.
pub(crate) struct PartTable {
    /// Tasks by lane.
    pub lanes: PerLane<Vec<TaskId>>,
    /// Position of each task in its lane.
    pub position: List<TaskId, u32>,
    /// Uses of each slot, one a task.
    pub uses: List<SlotId, u32>,
    /// Which tasks begin and end a wait of their lane.
    pub marks: Marks,
}

/// Which of a part's tasks have an event at their start and at their end.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    /// The first of its lane, and those that wait for another lane.
    pub start: List<TaskId, bool>,
    /// The last of its lane, those that another lane waits for, and those before a marked start.
    pub end: List<TaskId, bool>,
}

impl PartTable {
    /// Of a part of a plan; `holds`: what it writes of persistent slots may be read while steps go on.
    pub fn new(plan: &Plan, part: PartName, holds: bool) -> Self {
        let tasks = plan.part(part);
        let mut lanes: PerLane<Vec<TaskId>> = PerLane::default();
        let mut position = List::default();
        let mut uses: List<SlotId, u32> = vec![0; plan.slots.len()].into();
        for (i, task) in tasks.pairs() {
            let lane = &mut lanes[task.lane];
            position.push(lane.len() as u32);
            lane.push(i);
            for (k, arg) in task.args.iter().enumerate() {
                if !task.args[..k].iter().any(|a| a.slot == arg.slot) {
                    uses[arg.slot] += 1;
                }
            }
        }
        Self {
            marks: marks(plan, part, &lanes, holds),
            lanes,
            position,
            uses,
        }
    }
}

/// Where a part's events are; `lanes` are its tasks by lane.
fn marks(plan: &Plan, part: PartName, lanes: &PerLane<Vec<TaskId>>, holds: bool) -> Marks {
    let tasks = plan.part(part);
    let mut m = Marks {
        start: vec![false; tasks.len()].into(),
        end: vec![false; tasks.len()].into(),
    };
    for (t, task) in tasks.pairs() {
        for &d in &task.after {
            if tasks[d].lane != task.lane {
                m.start[t] = true;
                m.end[d] = true;
            }
        }
        // It may wait for a reader, and a reader for it.
        let writes = |a: &Arg| a.access != Use::Read && plan.slots[a.slot].persistent;
        if holds && task.args.iter().any(writes) {
            m.start[t] = true;
            m.end[t] = true;
        }
    }
    for seam in &plan.seams {
        for &(t, d) in &seam.edges {
            if seam.to == part {
                m.start[t] = true;
            }
            if seam.from == part {
                m.end[d] = true;
            }
        }
    }
    for lane in lanes.values() {
        if let (Some(&first), Some(&last)) = (lane.first(), lane.last()) {
            m.start[first] = true;
            m.end[last] = true;
        }
        for pair in lane.windows(2) {
            if m.start[pair[1]] {
                m.end[pair[0]] = true;
            }
        }
    }
    m
}
