//! What training in subspaces has to beat: exact training's step under the same budgets, and the growth of steps at
//! which the two tie; and what twice and half as many directions would take.

use lowtide_config::Run;
use lowtide_model::ModelError;
use serde::Serialize;

use super::{PlanMade, Planner};
use crate::basis::Basis;
use crate::error::TrainError;
use crate::planning::{decoder_of, pins_of};
use crate::wear;

/// Exact training under the budgets of a run in subspaces.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct OfExact {
    /// Whether there is a plan of it.
    pub fits: bool,
    /// Seconds of its step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step_seconds: Option<f64>,
    /// How many times its steps the run in subspaces may need to the same loss, and take no longer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps_at_tie: Option<f64>,
}

/// The run with another number of directions.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct OfCompression {
    /// `strategy.lsp.compression`.
    pub compression: u32,
    /// Seconds of its step.
    pub step_seconds: f64,
    /// Its tokens a second.
    pub tokens_per_second: f64,
}

impl Planner<'_> {
    /// For a run in subspaces what it has to beat; nothing for a run that trains exactly. Plans once more.
    ///
    /// # Errors
    /// Those of planning, but budgets that exact training does not fit are shown as such.
    pub fn exact(&self, made: &PlanMade) -> Result<Option<OfExact>, TrainError> {
        let run = self.basis.run;
        if run.lsp.is_none() {
            return Ok(None);
        }
        let exact = Run {
            lsp: None,
            ..run.clone()
        };
        let step_seconds = step_of(&exact, &self.basis, made.ahead)?;
        Ok(Some(OfExact {
            fits: step_seconds.is_some(),
            step_seconds,
            steps_at_tie: step_seconds.map(|exact| exact / made.plan.prediction.step_seconds.0),
        }))
    }

    /// Twice and half as many directions as a run in subspaces trains (half of an odd compression is left out), as far
    /// as their plans fit; none for a run that trains exactly.
    ///
    /// # Errors
    /// Those of planning.
    pub fn compressions(&self, made: &PlanMade) -> Result<Vec<OfCompression>, TrainError> {
        let (run, mut all) = (self.basis.run, Vec::new());
        let Some(lsp) = run.lsp else {
            return Ok(all);
        };
        // The most that the key takes.
        let most = 1024;
        let half = (lsp.compression % 2 == 0).then_some(lsp.compression / 2);
        for compression in half.into_iter().chain([lsp.compression * 2]) {
            if compression > most {
                continue;
            }
            let mut other = run.clone();
            other.lsp = other.lsp.map(|mut lsp| {
                lsp.compression = compression;
                lsp
            });
            let step_seconds = match step_of(&other, &self.basis, made.ahead) {
                Ok(Some(step)) => step,
                Ok(None) | Err(TrainError::Model(ModelError::NothingProjected { .. })) => continue,
                Err(e) => return Err(e),
            };
            all.push(OfCompression {
                compression,
                step_seconds,
                tokens_per_second: run.batch().tokens() as f64 / step_seconds,
            });
        }
        Ok(all)
    }
}

/// Seconds of a step of another run on the same machine, under the same budgets, of which one is what may be written in
/// the steps `ahead`; `None` where it does not fit.
fn step_of(run: &Run, basis: &Basis<'_>, ahead: u64) -> Result<Option<f64>, TrainError> {
    let basis = Basis {
        run,
        decoder: decoder_of(run, run.batch(), basis.target)?,
        ..basis.clone()
    };
    let make = |pins| basis.plan_pinned(pins);
    match wear::within(run, pins_of(run), (0, ahead), wear::fill, make, |plan| plan) {
        Ok(plan) => {
            let allowed = wear::check(run, &plan, (0, wear::fill(&plan), ahead));
            Ok(allowed.is_ok().then_some(plan.prediction.step_seconds.0))
        }
        Err(TrainError::Refused(_)) => Ok(None),
        Err(e) => Err(e),
    }
}
