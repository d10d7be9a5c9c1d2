//! What training in subspaces has to beat: exact training's step under the same budgets, and the growth of steps at which
//! the two tie.

use lowtide_config::Run;
use lowtide_trainer::TrainError;
use lowtide_trainer::basis::Basis;
use lowtide_trainer::planning::decoder_of;
use serde_json::{Value, json};

use crate::out::seconds;

/// A text and its JSON for a run in subspaces whose step takes so many seconds; nothing for one that trains exactly. Plans
/// once more.
///
/// # Errors
/// Those of planning, but for budgets that exact training does not fit: that is told.
pub fn beside_exact(
    run: &Run,
    basis: &Basis<'_>,
    step: f64,
) -> Result<Option<(String, Value)>, TrainError> {
    if run.lsp.is_none() {
        return Ok(None);
    }
    let exact = Run {
        lsp: None,
        ..run.clone()
    };
    let basis = Basis {
        run: &exact,
        decoder: decoder_of(&exact, exact.batch(), basis.target)?,
        ..basis.clone()
    };
    let told = match basis.plan() {
        Ok(plan) => {
            let of_exact = plan.prediction.step_seconds.0;
            let tie = of_exact / step;
            let who = match tie > 1.0 {
                true => format!(
                    "lsp is ahead as long as it needs less than {tie:.2} times the steps to the same loss"
                ),
                false => "lsp wins no time, only memory".to_owned(),
            };
            let text = format!(
                "exact training under the same budgets: step {}; {who}",
                seconds(of_exact)
            );
            (
                text,
                json!({"fits": true, "step_seconds": of_exact, "steps_at_tie": tie}),
            )
        }
        Err(TrainError::Refused(_)) => (
            "exact training does not fit these budgets".to_owned(),
            json!({"fits": false}),
        ),
        Err(e) => return Err(e),
    };
    Ok(Some(told))
}
