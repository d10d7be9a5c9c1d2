//! `lowtide report`: runs by their output directories.

use lowtide_report::{RunReport, page, text};
use serde_json::json;

use crate::Answer;
use crate::args::ReportArgs;
use crate::out::{Out, place};

/// Shows one run, or several side by side.
pub fn report(args: &ReportArgs, out: Out) -> Answer {
    // A page that cannot be written is an error before anything is read.
    let to = args.html.as_ref();
    let to = to.map(|file| place("--html", file, |head| head.starts_with(page::BEGIN)));
    let to = to.transpose()?;
    let runs = args.dirs.iter().map(|dir| RunReport::read(dir));
    let runs = runs.collect::<Result<Vec<_>, _>>()?;
    out.text(&text::compare(&runs));
    if let Some(to) = to {
        to.write(&page::html(&runs))?;
        out.text(&format!("page: {}", to.path().display()));
    }
    Ok((json!({"runs": runs}), 0))
}
