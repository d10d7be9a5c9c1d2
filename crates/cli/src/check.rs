//! `lowtide check`: whether what a run has left is what it wrote.

use serde_json::json;

use crate::Answer;
use crate::args::CheckArgs;
use crate::error::{CliError, USERS};
use crate::out::{Out, bytes};
use crate::progress::Waiting;

/// Reads everything and says what is not as it was written.
pub fn check(args: &CheckArgs, out: Out) -> Answer {
    if !args.dir.exists() {
        return Err(CliError::Usage {
            what: format!("{}: no such file or directory", args.dir.display()),
            help: "give a checkpoint (checkpoints/step-N of an output), an exported model, or the output directory of a run",
        });
    }
    let waiting = Waiting::begin("reading every file");
    let all = lowtide_trainer::check(&args.dir)?;
    drop(waiting);
    for checked in &all {
        let path = checked.path.display();
        match &checked.wrong[..] {
            [] => out.text(&format!(
                "{path}: whole, {} files, {}",
                checked.files,
                bytes(checked.bytes)
            )),
            wrong => {
                out.text(&format!("{path}: NOT what was written"));
                wrong.iter().for_each(|what| out.text(&format!("  {what}")));
            }
        }
    }
    let whole = all.iter().all(|checked| checked.wrong.is_empty());
    let code = if whole { 0 } else { USERS };
    Ok((json!({"whole": whole, "checked": all}), code))
}
