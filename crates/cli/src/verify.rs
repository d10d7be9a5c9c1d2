//! `lowtide verify`: the user's own proof that placement changes no number.

use lowtide_report::step::moved;
use serde_json::json;

use crate::Answer;
use crate::args::VerifyArgs;
use crate::error::OURS;
use crate::out::{Out, bytes};
use crate::progress::Waiting;

/// Trains a slice under the plan and all resident, and compares every bit.
pub fn verify(args: &VerifyArgs, out: Out) -> Answer {
    let run = args.run.load()?;
    let waiting = Waiting::begin("training a slice under the plan and all resident");
    let report = lowtide_trainer::verify(&run, args.steps, args.blocks, args.plant_fault)?;
    drop(waiting);
    out.text(&format!(
        "{} steps of {} blocks of the model, as planned and all resident",
        report.steps, report.blocks
    ));
    out.detail(&format!(
        "plan {}, all-resident plan {}",
        report.plan_hash, report.resident_hash
    ));
    if report.sent_away {
        out.text(
            "the run's plan keeps everything on the device; the slice was sent away all the same",
        );
    } else {
        out.text(&format!(
            "as the run's plan: {}",
            report.exercised.join(", ")
        ));
    }
    if !report.sent_away && !report.not_exercised.is_empty() {
        out.text(&format!(
            "not in {} blocks: {}; more with --blocks",
            report.blocks,
            report.not_exercised.join(", ")
        ));
    }
    out.text(&format!(
        "moved under the plan: {}",
        moved(&report.moved_bytes)
    ));
    match &report.first_difference {
        None => out.text(&format!(
            "equal in every bit: every loss, every norm and all {} of weights and optimizer state",
            bytes(report.compared_bytes)
        )),
        Some(what) => out.text(&format!("DIFFERENT: {what}")),
    }
    let code = if report.equal { 0 } else { OURS };
    Ok((json!(report), code))
}
