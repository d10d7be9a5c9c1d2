//! `lowtide data`: what a run would train on.

use std::io::IsTerminal;

use lowtide_report::data::{html, text};
use lowtide_report::page;
use lowtide_trainer::Phase;
use serde_json::json;

use crate::Answer;
use crate::args::DataArgs;
use crate::out::{Out, place};
use crate::progress::Waiting;

/// Reads a run's data and shows it.
pub fn data(args: &DataArgs, out: Out) -> Answer {
    // A page that cannot be written is an error before anything is read.
    let to = args.html.as_ref();
    let to = to.map(|file| place("--html", file, |head| head.starts_with(page::BEGIN)));
    let to = to.transpose()?;
    let run = args.run.args().load()?;
    let waiting = Waiting::begin(Phase::Data.name());
    let report = lowtide_trainer::data(&run, args.samples as usize)?;
    drop(waiting);
    let colours = std::io::stdout().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    out.as_it_is(&text(&report, colours));
    if let Some(to) = to {
        to.write(&html(&report, &run.file))?;
        out.text(&format!("page: {}", to.path().display()));
    }
    Ok((json!({"data": report}), 0))
}
