//! A run's plan for those who ask before they start it: made for this machine or any other, with what else is worth
//! knowing of it. Reserves nothing.

use std::path::Path;

use lowtide_config::Run;
use lowtide_planner::waits::{Cause, steady_step};
use lowtide_planner::{Machine, Plan};
use lowtide_report::account::PlanReport;
use lowtide_report::memory::Memory;
use lowtide_report::sweep::{Along, Sweep};
use lowtide_units::{Bytes, Seconds};
use lowtide_workload::Workload;

use crate::basis::{Basis, WhatIf};
use crate::beside::PlannedAnswers;
use crate::curve::curve;
use crate::device;
use crate::error::TrainError;
use crate::hub;
use crate::inputs::{sample_of, steps_of};
use crate::picture::plan_report;
use crate::planning::{decoder_of, load_machine, pins_of, shape_of};
use crate::report::Nobody;
use crate::shown::memory;
use crate::wear;

mod subspaces;

pub use subspaces::{OfCompression, OfExact};

/// What a run's plan is made from.
#[derive(Debug)]
pub struct Planner<'a> {
    basis: Basis<'a>,
}

/// A run's plan.
#[derive(Debug)]
pub struct PlanMade {
    /// The plan, which has passed its checker.
    pub plan: Plan,
    /// What was left on the table; none where it was not asked for.
    pub what_if: Option<WhatIf>,
    /// What `budget.disk_writes` leaves to a run of which nobody knows how many steps it has.
    pub writes: Option<StepsOfWrites>,
    /// Steps that are known to come, 0 where nobody knows.
    ahead: u64,
}

/// How many steps may be made before as much is written as the run may write.
#[derive(Debug)]
pub struct StepsOfWrites {
    /// What may be written.
    pub allowed: Bytes,
    /// The steps that write as much.
    pub steps: u64,
    /// Why nobody knows how many steps the run has; none: its data say so, and are not read.
    pub unknown: Option<TrainError>,
}

impl<'a> Planner<'a> {
    /// For a machine whose rates a file has, or are given as if it had. Asks nothing of this one.
    ///
    /// # Errors
    /// A model or a file that cannot be read; a batch that the model does not take; rates that lack what a run of
    /// several GPUs exchanges.
    pub fn of_machine(
        run: &'a Run,
        path: &Path,
        machine: Option<Machine>,
    ) -> Result<Self, TrainError> {
        let shape = shape_of(run)?;
        let machine = machine.map_or_else(|| load_machine(path), Ok)?;
        let basis = Basis::of_machine(run, &shape, (path, machine))?.with_answers()?;
        Ok(Self { basis })
    }

    /// For this machine, which is measured now. `measuring` hears which device it is before that.
    ///
    /// # Errors
    /// A model that cannot be read; a device or a directory that cannot be used; budgets beyond what there is.
    pub fn here(run: &'a Run, measuring: impl FnOnce(&str)) -> Result<Self, TrainError> {
        let device = device::open(run, &shape_of(run)?)?;
        let decoder = decoder_of(run, run.batch(), device.target)?;
        measuring(&device.note);
        let sample = || sample_of(run);
        let basis = Basis::here(run, &device, decoder, sample, &mut Nobody)?.with_answers()?;
        Ok(Self { basis })
    }

    /// The model at the run's batch, as one rank has it.
    #[must_use]
    pub fn workload(&self) -> &Workload {
        self.basis.decoder.workload()
    }

    /// The rates, as one rank has them.
    #[must_use]
    pub fn machine(&self) -> &Machine {
        &self.basis.machine
    }

    /// Whether the device is a GPU.
    #[must_use]
    pub fn is_gpu(&self) -> bool {
        self.basis.target.is_gpu()
    }

    /// Makes the plan; with what was left on the table unless it is to be brief, which takes several times as long.
    ///
    /// # Errors
    /// [`TrainError::Refused`] with what would fit; drives that may not be written so much.
    pub fn plan(&self, brief: bool) -> Result<PlanMade, TrainError> {
        let run = self.basis.run;
        // Only a run that may not write all it likes has its steps counted.
        let steps = match run.budget.disk_writes {
            Some(_) => hub::data(run.clone()).and_then(|run| steps_of(&run)),
            None => Ok(None),
        };
        let ahead = steps.as_ref().map_or(0, |steps| steps.unwrap_or(0));
        let look = |pins| match brief {
            true => self.basis.plan_pinned(pins).map(|plan| (plan, None)),
            false => {
                let looked = self.basis.look(pins);
                looked.map(|(plan, what_if)| (plan, Some(what_if)))
            }
        };
        let (plan, what_if) =
            wear::within(run, pins_of(run), (0, ahead), wear::fill, look, |l| &l.0)?;
        let writes = writes(run, &plan, steps)?;
        Ok(PlanMade {
            plan,
            what_if,
            writes,
            ahead,
        })
    }

    /// The plan of the run's answers in what its steps leave; none where it makes none with a cache.
    ///
    /// # Errors
    /// A plan that its checker refuses.
    pub fn plan_answers(&self, made: &PlanMade) -> Result<Option<PlannedAnswers>, TrainError> {
        self.basis.plan_answers(&made.plan)
    }

    /// Memory of the plan, and of answers beside its steps, by tier.
    #[must_use]
    pub fn memory(&self, made: &PlanMade, answers: Option<&PlannedAnswers>) -> Memory {
        let taken = |tier| answers.map_or(Bytes::ZERO, |answers| answers.bytes(tier));
        memory(&made.plan, &self.basis.arenas(), |tier| {
            [taken(tier), Bytes::ZERO]
        })
    }

    /// What becomes of saved tensors with more and less memory, or larger batches. `progress` hears how many points are
    /// done, of how many.
    ///
    /// # Errors
    /// A plan that its checker refuses.
    pub fn curve(
        &self,
        along: Along,
        made: &PlanMade,
        progress: impl FnMut(usize, usize),
    ) -> Result<Sweep, TrainError> {
        curve(&self.basis, along, (&made.plan, made.ahead), progress)
    }

    /// What the gpu lane waits for in a step.
    #[must_use]
    pub fn gpu_waits(&self, made: &PlanMade) -> Vec<(Cause, Seconds)> {
        steady_step(&made.plan, self.workload(), self.machine()).gpu_waits
    }

    /// A step as the value that is drawn.
    #[must_use]
    pub fn picture(&self, made: &PlanMade) -> PlanReport {
        plan_report(&made.plan, self.workload(), self.machine())
    }
}

/// Holds what a run would write to its drives against what it may. Where only data that are not there say how many
/// steps it has, says how many it may make.
fn writes(
    run: &Run,
    plan: &Plan,
    steps: Result<Option<u64>, TrainError>,
) -> Result<Option<StepsOfWrites>, TrainError> {
    let (start, step) = (wear::fill(plan), plan.prediction.disk_bytes_written);
    let Some(allowed) = run.budget.disk_writes.filter(|_| start.0 + step.0 > 0) else {
        return Ok(None);
    };
    let unknown = match steps {
        Ok(Some(steps)) => return wear::check(run, plan, (0, start, steps)).map(|()| None),
        Ok(None) => None,
        Err(e) => Some(e),
    };
    wear::check(run, plan, (0, start, 0))?;
    let most = (allowed.0 - start.0).checked_div(step.0);
    Ok(most.map(|steps| StepsOfWrites {
        allowed,
        steps,
        unknown,
    }))
}
