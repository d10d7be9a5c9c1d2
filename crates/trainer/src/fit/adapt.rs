//! Another plan between two steps, where the lanes are off the rates of the one that runs.

use std::sync::Arc;

use lowtide_units::Bytes;

use super::{Fit, Flight};
use crate::adaptive::{Adaptive, Replan, most_tasks};
use crate::error::TrainError;
use crate::planning::Planned;
use crate::resident::Resident;
use crate::tally::{Lap, Tally};
use crate::wear::Wear;

/// Host memory that planning again takes, for each task that another plan may have: those of drafts that are compared,
/// their slots, edges and times, and what a runner holds for those of the new plan.
const PLANNING: u64 = 8192;

impl Planned {
    /// The same where the run may be planned again while steps go on.
    pub(super) fn with_planning(self) -> Self {
        let tasks = most_tasks(&self.plan);
        let resident = Resident {
            beside: self.resident.beside + Bytes(PLANNING * tasks as u64),
            ..self.resident
        };
        Self { resident, ..self }
    }
}

impl Fit<'_> {
    /// Holds what the lanes did in a step against the plan.
    pub(super) fn look_at_lanes(&mut self, step: u64, lap: &Lap) {
        // A checkpoint that is written meanwhile takes from the links and the drives.
        let counts = lap.whole && !self.is_writing();
        let note = self.adaptive.as_mut().and_then(|adaptive| {
            if !counts {
                adaptive.interrupted();
            }
            adaptive.step(step, &lap.lanes, lap.seconds)
        });
        if let Some(note) = note {
            self.observer.detail(&note);
        }
    }

    /// Whether the run should go on with another plan: who reads a state beside the steps reads it by this one.
    pub(super) fn has_better_plan(&self) -> bool {
        let adaptive = self.adaptive.as_ref();
        adaptive.is_some_and(Adaptive::is_ready) && !self.is_writing()
    }

    /// Finishes the batch in flight, makes its update, and goes on with the better plan; with the one before, where the
    /// device has no more streams.
    pub(super) fn change_plan(
        &mut self,
        f: Flight,
        tally: &mut Tally,
        planned: &mut Planned,
    ) -> Result<(), TrainError> {
        self.finish(f, tally)?;
        let step = self.state.step;
        self.checked(step, |s| s.session.drain())?;
        tally.drain(self.session.measured());
        self.count(tally);
        if let Some(replan) = self.replace(step)? {
            planned.plan = Arc::clone(&replan.to_run);
            planned.machine = replan.machine.clone();
            self.predicted_seconds = replan.predicted_seconds;
            self.wear = Wear::of(&planned.plan, &planned.machine);
            self.page_of(planned);
            tally.replanned();
            // Where it cannot, the next save tells why.
            let _ = self.follow();
            let warning = self.metrics.write(&replan);
            self.tell(warning);
            self.observer.replanned(&replan);
        }
        tally.pause(self.session.measured());
        Ok(())
    }

    /// Puts the better plan in the place of the one that runs, behind this step; none where that runs on.
    fn replace(&mut self, step: u64) -> Result<Option<Replan>, TrainError> {
        let Some(plan) = self.adaptive.as_ref().and_then(Adaptive::better).cloned() else {
            return Ok(None);
        };
        let replaced = self.session.replace(plan);
        let Some(adaptive) = &mut self.adaptive else {
            return Ok(None);
        };
        match replaced {
            Ok(()) => Ok(adaptive.take(step)),
            // What it has of the old plan is whole.
            Err(e) if !self.session.stopped() => {
                adaptive.give_up();
                let note = format!("the run goes on with the plan that it has: {e}");
                self.observer.note(&note);
                Ok(None)
            }
            Err(e) => self.checked(step, |_| Err(e)),
        }
    }
}
