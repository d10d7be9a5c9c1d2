//! `lowtide import`: a run file of another trainer as one of ours.

use lowtide_config::import_axolotl_file;
use serde_json::json;

use crate::Answer;
use crate::args::ImportArgs;
use crate::out::{Out, complain};

/// Prints the run file. What was not taken over stands in it as comments.
pub fn import(args: &ImportArgs, out: Out) -> Answer {
    let imported = import_axolotl_file(&args.file)?;
    out.text(imported.yaml.trim_end());
    for (what, why) in &imported.warned {
        complain(&format!("warning: {what} is left out: {why}"));
    }
    let dropped = imported.dropped.iter();
    let dropped: Vec<_> = dropped
        .map(|(what, why)| json!({"key": what, "why": why}))
        .collect();
    Ok((json!({"yaml": imported.yaml, "dropped": dropped}), 0))
}
