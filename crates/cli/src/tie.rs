//! What training in subspaces has to beat: exact training's step under the same budgets, and the growth of steps at
//! which the two tie; and what twice and half as many directions would take.

use lowtide_config::Run;
use lowtide_trainer::basis::Basis;
use lowtide_trainer::planning::{decoder_of, pins_of};
use lowtide_trainer::wear;
use lowtide_trainer::{ModelError, TrainError};
use serde_json::{Value, json};

use crate::out::seconds;

/// For a run in subspaces, given the seconds of its step: what it has to beat, as text and as JSON; nothing for a run
/// that trains exactly. Plans once more.
///
/// # Errors
/// Those of planning, but budgets that exact training does not fit are shown as such.
pub fn beside_exact(
    run: &Run,
    basis: &Basis<'_>,
    step: f64,
    ahead: u64,
) -> Result<Option<(String, Value)>, TrainError> {
    if run.lsp.is_none() {
        return Ok(None);
    }
    let exact = Run {
        lsp: None,
        ..run.clone()
    };
    let outcome = match step_of(&exact, basis, ahead)? {
        Some(of_exact) => {
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
        None => (
            "exact training does not fit these budgets".to_owned(),
            json!({"fits": false}),
        ),
    };
    Ok(Some(outcome))
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

/// Twice and half as many directions as a run in subspaces trains (half of an odd compression is left out), as far as
/// their plans fit: a text and its JSON; empty for a run that trains exactly.
///
/// # Errors
/// Those of planning.
pub fn other_compressions(
    run: &Run,
    basis: &Basis<'_>,
    ahead: u64,
) -> Result<(String, Value), TrainError> {
    let (mut text, mut all) = (String::new(), Vec::new());
    let Some(lsp) = run.lsp else {
        return Ok((text, json!(all)));
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
        let step = match step_of(&other, basis, ahead) {
            Ok(Some(step)) => step,
            Ok(None) | Err(TrainError::Model(ModelError::NothingProjected { .. })) => continue,
            Err(e) => return Err(e),
        };
        let tokens_per_second = run.batch().tokens() as f64 / step;
        text += &format!(
            "changes numbers: --set strategy.lsp.compression={compression}: {tokens_per_second:.1} tokens/s\n"
        );
        all.push(json!({
            "compression": compression,
            "step_seconds": step,
            "tokens_per_second": tokens_per_second,
        }));
    }
    Ok((text, json!(all)))
}
