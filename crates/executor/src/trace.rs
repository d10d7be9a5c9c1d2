//! Which submissions of a part are traced.

use lowtide_planner::{PartName, PerLane, PerPart, TaskId};

/// What of a run is traced. A traced task has an event at its start and one at its end, which cost
/// the device about a microsecond each: several percent of a step of a small model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// How often each part is traced: the first times that it is submitted.
    pub times: u32,
    /// Events kept a lane. A part is traced only while every lane has room for another.
    pub events: usize,
}

impl Trace {
    /// No part is traced, so no task costs an event.
    pub const NONE: Self = Self {
        times: 0,
        events: 0,
    };
    /// The first steps of a run; the others go at full speed.
    pub const FIRST_STEPS: Self = Self {
        times: 16,
        events: 100_000,
    };
    /// All that there is room for.
    pub const ALL: Self = Self {
        times: u32::MAX,
        events: 200_000,
    };
}

/// What was traced so far.
#[derive(Debug, Default)]
pub(crate) struct Tracing {
    /// Times, by part.
    parts: PerPart<u32>,
    /// Events, by lane.
    events: PerLane<usize>,
}

impl Tracing {
    /// Whether this submission of a part is to be traced. Counts it if so.
    pub fn takes(&mut self, part: PartName, lanes: &PerLane<Vec<TaskId>>, trace: Trace) -> bool {
        let times = &mut self.parts[part];
        if *times >= trace.times || self.events.values().any(|&n| n >= trace.events) {
            return false;
        }
        *times += 1;
        for (lane, events) in self.events.iter_mut() {
            *events += lanes[lane].len();
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use lowtide_planner::Lane;

    use super::*;

    #[test]
    fn the_first_times_of_each_part_are_traced_while_there_is_room() {
        let lanes = |tasks: u32| {
            let mut lanes: PerLane<Vec<TaskId>> = PerLane::default();
            lanes[Lane::GPU] = (0..tasks).map(TaskId).collect();
            lanes
        };
        let traced = |trace, submissions: &[(PartName, u32)]| -> Vec<bool> {
            let mut tracing = Tracing::default();
            let takes = |&(part, tasks)| tracing.takes(part, &lanes(tasks), trace);
            submissions.iter().map(takes).collect()
        };
        let (step, infer) = ((PartName::Steady, 10), (PartName::Infer, 5));
        let few = Trace {
            times: 2,
            events: 1000,
        };
        // Answers before the first step leave room for the steps.
        let order = [infer, infer, infer, step, step, step, infer];
        assert_eq!(
            traced(few, &order),
            [true, true, false, true, true, false, false]
        );
        let small = Trace {
            times: 9,
            events: 11,
        };
        // The second begins with room for one event: a part larger than all the room is traced too.
        assert_eq!(traced(small, &[step, step, infer]), [true, true, false]);
        assert_eq!(traced(Trace::NONE, &[step]), [false]);
    }
}
