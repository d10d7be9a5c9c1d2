//! `lowtide report`: runs by their output directories.

use lowtide_report::{RunReport, page, text};
use serde_json::json;

use crate::Answer;
use crate::args::ReportArgs;
use crate::out::Out;
use crate::probe::place;

/// Shows one run, or several side by side.
pub fn report(args: &ReportArgs, out: Out) -> Answer {
    // A page that cannot be written is an error before anything is read.
    let to = args.html.as_ref();
    let to = to.map(|file| place("--html", file, |head| head.starts_with(page::BEGIN)));
    let to = to.transpose()?;
    let runs = args.dirs.iter().map(|dir| RunReport::read(dir));
    let runs = runs.collect::<Result<Vec<_>, _>>()?;
    out.text(&text::compare(&runs));
    if let Some((folder, name)) = to {
        let page = page::html(&runs);
        folder.write(&name, |file| {
            std::io::Write::write_all(file, page.as_bytes())
        })?;
        out.text(&format!("page: {}", folder.at(&name).display()));
    }
    Ok((json!({"runs": runs}), 0))
}
