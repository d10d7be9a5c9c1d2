//! Runs as one page that opens without a network, a script or another file.

use std::fmt::Write;

use crate::chart::escaped;
use crate::curve::Curve;
use crate::panel::{Series, legend, lines};
use crate::people::{count, seconds};
use crate::picture;
use crate::run::{Answer, RunReport};
use crate::step::{LANES, waited_for};
use crate::style::STYLE;
use crate::table::{Column, Table};
use crate::text::{differing, facts, loss, state};

/// The first bytes of every page, by which one is known.
pub const BEGIN: &str = "<!doctype html>\n<html lang=\"en\" data-lowtide=\"report\">";

/// Steps from which on a smoothed curve is drawn over the loss.
const SMOOTHED_FROM: u64 = 300;
/// Processes of a run that are listed.
const PROCESSES: usize = 100;
/// Characters of a file that are shown.
const SHOWN: usize = 200_000;

/// One run, or several side by side.
#[must_use]
pub fn html(runs: &[RunReport]) -> String {
    let title = match runs {
        [run] => format!("{}: {}", run.name(), run.model()),
        _ => format!("{} runs", runs.len()),
    };
    page_of(runs, &title, "")
}

/// Runs as a page with `above`, which is markup, before all else.
pub(crate) fn page_of(runs: &[RunReport], title: &str, above: &str) -> String {
    let several = runs.len() > 1;
    let mut page = begin(title);
    page.push_str(above);
    match runs {
        [run] => tiles(&mut page, run),
        _ => table(&mut page, runs),
    }
    curves(&mut page, runs);
    for run in runs {
        lanes(&mut page, run, several);
        plan(&mut page, run, several);
    }
    for run in runs {
        answers(&mut page, run, several);
    }
    if let [run] = runs {
        page.push_str("<h2>Facts</h2>\n");
        table(&mut page, runs);
        processes(&mut page, run);
    }
    for run in runs {
        let mut detail = |what: &str, value: &serde_json::Value| {
            if value.is_null() {
                return;
            }
            let text = serde_json::to_string_pretty(value).expect("plain values");
            let _ = writeln!(
                page,
                "<details><summary>{what}{}</summary><pre>{}</pre></details>",
                of(run, several),
                escaped(&cut(&text))
            );
        };
        detail("the run as checked", &run.run);
        detail("the machine's rates", &run.machine);
    }
    end(&mut page);
    page
}

/// A text of a file, not longer than is shown.
fn cut(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("{} […]", &text[..at]),
        None => text.to_owned(),
    }
}

/// A page up to its title.
pub(crate) fn begin(title: &str) -> String {
    format!(
        "{BEGIN}\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n",
        title = escaped(title)
    )
}

/// The end of a page.
pub(crate) fn end(page: &mut String) {
    page.push_str("</body>\n</html>\n");
}

/// `of NAME`, where a page has several runs.
fn of(run: &RunReport, several: bool) -> String {
    match several {
        true => format!(", {}", escaped(&run.name())),
        false => String::new(),
    }
}

/// The figures that one looks at first. Long because it is a list of them.
fn tiles(page: &mut String, run: &RunReport) {
    page.push_str("<div class=\"tiles\">\n");
    let mut tile = |name: &str, value: Option<String>, below: String| {
        if let Some(value) = value {
            let _ = writeln!(
                page,
                "<div class=\"tile\"><span>{name}</span><b>{}</b><i>{}</i></div>",
                escaped(&value),
                escaped(&below)
            );
        }
    };
    let f = &run.figures;
    let steps = match f.step {
        0 => "none yet".to_owned(),
        n => format!("{} of {}", count(n), count(f.steps)),
    };
    tile("steps", Some(steps), state(run));
    let first = f.loss_first.map(|l| format!("{} at step 1", loss(l)));
    tile(
        "loss, last steps",
        f.loss_last.map(loss),
        first.unwrap_or_default(),
    );
    let evaluations = (&f.evaluation_first, &f.evaluation_last, &f.evaluation_best);
    if let (Some(first), Some(last), Some(best)) = evaluations {
        let mut below = match first.step == last.step {
            true => format!("after step {}", count(last.step)),
            false => format!("{} after step {}", loss(first.eval_loss), count(first.step)),
        };
        if best.step != last.step && best.step != first.step {
            let _ = write!(
                below,
                ", best {} after step {}",
                loss(best.eval_loss),
                count(best.step)
            );
        }
        if f.evaluations_of_others > 0 {
            below.push_str(", those on other data left out");
        }
        tile("evaluation loss", Some(loss(last.eval_loss)), below);
    }
    let percent = |e: &crate::run::Evaluation| {
        e.eval_accuracy
            .map(|share| format!("{:.1}%", 100.0 * share))
    };
    if let (Some(first), Some(last)) = (&f.evaluation_first, &f.evaluation_last) {
        let before = percent(first).filter(|_| first.step != last.step);
        let below = before.map(|p| format!("{p} after step {}", count(first.step)));
        let title = match last.eval_f1 {
            Some(_) => "right documents",
            None => "right tokens",
        };
        tile(title, percent(last), below.unwrap_or_default());
        if let Some(f1) = last.eval_f1 {
            let before = first.eval_f1.filter(|_| first.step != last.step);
            let below = before.map(|f1| format!("{f1:.3} after step {}", count(first.step)));
            tile("F1", Some(format!("{f1:.3}")), below.unwrap_or_default());
        }
    }
    let share = |m: &crate::run::Match| format!("{:.1}%", 100.0 * m.exact_match);
    if let Some(last) = f.match_last.as_ref().or(f.match_before.as_ref()) {
        let before = f
            .match_before
            .as_ref()
            .map(|m| format!("{} before", share(m)));
        tile(
            "exact answers",
            Some(share(last)),
            before.unwrap_or_default(),
        );
    }
    let tokens = format!("{} tokens in all", count(f.tokens));
    tile(
        "tokens a second",
        f.tokens_per_second.map(|n| count(n as u64)),
        tokens,
    );
    let predicted = f
        .predicted_seconds
        .map(|s| format!("{} predicted", seconds(s)));
    tile(
        "a step, median",
        f.step_seconds.map(seconds),
        predicted.unwrap_or_default(),
    );
    page.push_str("</div>\n");
}

/// The facts, a column a run, and the keys that differ.
fn table(page: &mut String, runs: &[RunReport]) {
    let rows = facts(runs).into_iter();
    let mut rows: Vec<_> = rows
        .map(|(name, each)| (name.to_owned(), each, false))
        .collect();
    page.push_str("<div class=\"card\"><table id=\"facts\">\n");
    if runs.len() > 1 {
        page.push_str("<tr><th></th>");
        for run in runs {
            let _ = write!(page, "<th>{}</th>", escaped(&run.name()));
        }
        page.push_str("</tr>\n");
        let differing = differing(runs).into_iter();
        rows.extend(differing.map(|(name, each)| (name, each, true)));
    }
    for (name, each, differs) in rows {
        let class = if differs { " class=\"differs\"" } else { "" };
        let _ = write!(page, "<tr{class}><td>{}</td>", escaped(&name));
        for cell in each {
            let _ = write!(page, "<td>{}</td>", escaped(&cell.unwrap_or_default()));
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</table></div>\n");
}

/// The processes of a run that was stopped and went on.
fn processes(page: &mut String, run: &RunReport) {
    if run.processes.len() < 2 {
        return;
    }
    let mut table = Table::new([
        Column::right("began after step"),
        Column::left("lowtide"),
        Column::left("device"),
    ]);
    for p in run.processes.iter().take(PROCESSES) {
        table.row([count(p.after_step), cut(&p.version), cut(&p.device)]);
    }
    let _ = writeln!(
        page,
        "<details><summary>processes</summary>{}</details>",
        table.html()
    );
}

/// A curve of a run, and the same before it was smoothed.
type Drawn = fn(&RunReport) -> [Option<&Curve>; 2];

/// A picture a quantity.
fn curves(page: &mut String, runs: &[RunReport]) {
    let names: Vec<String> = runs.iter().map(RunReport::name).collect();
    let marks: Vec<f64> = match runs {
        [run] => {
            let begins = run.processes.iter().map(|p| p.after_step as f64);
            begins.filter(|at| *at > 0.0).collect()
        }
        _ => Vec::new(),
    };
    page.push_str(&legend(&names));
    page.push_str("<div class=\"two\">\n");
    let loss: Drawn = |r| match r.figures.step {
        SMOOTHED_FROM.. => [Some(&r.curves.loss_smoothed), Some(&r.curves.loss)],
        _ => [Some(&r.curves.loss), None],
    };
    let pictures: [(&str, bool, f64, Drawn); 7] = [
        ("loss of a step", false, 1.0, loss),
        ("loss on the evaluation data", true, 1.0, |r| {
            [Some(&r.curves.eval_loss), None]
        }),
        ("accuracy on the evaluation data, %", true, 100.0, |r| {
            [Some(&r.curves.eval_accuracy), None]
        }),
        ("exact answers, %", true, 100.0, |r| {
            [Some(&r.curves.exact_match), None]
        }),
        ("norm of the gradients before clipping", false, 1.0, |r| {
            [Some(&r.curves.grad_norm), None]
        }),
        ("learning rate", false, 1.0, |r| {
            [Some(&r.curves.learning_rate), None]
        }),
        ("tokens a second", false, 1.0, |r| {
            [Some(&r.curves.tokens_per_second), None]
        }),
    ];
    for (title, dots, times, of) in pictures {
        let series = runs.iter().zip(&names).map(|(run, name)| {
            let points = |curve: Option<&Curve>| {
                let all = curve.map(Curve::points).unwrap_or_default();
                all.into_iter().map(|(x, y)| (x, times * y)).collect()
            };
            let [points, raw] = of(run).map(points);
            Series {
                name: name.clone(),
                points,
                raw,
                dots,
            }
        });
        let picture = lines(title, &series.collect::<Vec<_>>(), &marks);
        if !picture.is_empty() {
            let _ = write!(page, "<div class=\"card\">{picture}</div>");
        }
    }
    page.push_str("</div>\n");
}

/// The step as it is planned: time by lane, memory by tier.
fn plan(page: &mut String, run: &RunReport, several: bool) {
    let Some(plan) = &run.plan else { return };
    let _ = writeln!(page, "<h2>The planned step{}</h2>", of(run, several));
    let mut note = "One step in the middle of the run, on the rates that this machine was measured with. Point at a box for its name.".to_owned();
    if plan.rounds_left_out > 0 {
        let _ = write!(
            note,
            " {} rounds of micro-batches are left out: each is as the last but one.",
            count(plan.rounds_left_out)
        );
    }
    if plan.ranks > 1 {
        let _ = write!(
            note,
            " Of one of {} ranks, which all do the same.",
            plan.ranks
        );
    }
    let _ = writeln!(
        page,
        "<p class=\"note\">{note}</p><div class=\"card wide\">{}</div>",
        picture::timeline(plan)
    );
    if let Some(memory) = &plan.memory {
        let _ = writeln!(
            page,
            "<h2>Memory{}</h2><div class=\"card\">{}</div>",
            of(run, several),
            memory.table().html()
        );
    }
    let (legend, tiers) = picture::memory(plan);
    if tiers.is_empty() {
        return;
    }
    let _ = writeln!(
        page,
        "<h2>Memory over the step{}</h2><p class=\"note\">Solid: what stays from step to step. Lighter: what comes and goes. Dashed: what is reserved.</p>{legend}<div class=\"two\">",
        of(run, several)
    );
    for tier in tiers {
        let _ = write!(page, "<div class=\"card\">{tier}</div>");
    }
    page.push_str("</div>\n");
}

/// Seconds of a step by lane, and what the device waited for, predicted beside measured.
fn lanes(page: &mut String, run: &RunReport, several: bool) {
    let row = |name: &str, of: &serde_json::Value| {
        let of = |key: &str| of[key].as_f64().unwrap_or(0.0);
        (
            name.to_owned(),
            [of("predicted_seconds"), of("measured_seconds")],
        )
    };
    let lanes = run.report["lanes"].as_object().into_iter().flatten();
    let mut lanes: Vec<_> = lanes.map(|(name, of)| row(name, of)).collect();
    let place = |name: &str| LANES.iter().position(|l| *l == name).unwrap_or(LANES.len());
    lanes.sort_by_key(|(name, _)| place(name));
    let waits = run.report["gpu_waits"].as_array().into_iter().flatten();
    let waits: Vec<_> = waits
        .map(|w| row(waited_for(w["cause"].as_str().unwrap_or("?")), w))
        .collect();
    if lanes.is_empty() {
        return;
    }
    let _ = writeln!(
        page,
        "<h2>Where a step's time goes{}</h2><p class=\"note\">Seconds of a step: predicted above, measured below{}.</p><div class=\"two\">",
        of(run, several),
        match run.report["part"]["after_step"].as_u64() {
            Some(n) if n > 0 => format!(" (of the process that began after step {})", count(n)),
            _ => String::new(),
        }
    );
    // Before the first step nothing is measured.
    let timed = run.report["part"]["steps"].as_u64() != Some(0);
    let mut rows = |head: &str, rows: &[(String, [f64; 2])]| {
        if rows.is_empty() {
            return;
        }
        let most = rows.iter().flat_map(|r| r.1).fold(0.0, f64::max);
        let _ = writeln!(
            page,
            "<div class=\"card\"><table><tr><th>{head}</th><th class=\"n\">predicted</th><th class=\"n\">measured</th><th></th></tr>"
        );
        for (name, [predicted, measured]) in rows {
            let wide = |s: f64| if most > 0.0 { 14.0 * s / most } else { 0.0 };
            let _ = writeln!(
                page,
                "<tr><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td>\
                 <span class=\"bar p\" style=\"width:{:.2}rem\"></span>\
                 <span class=\"bar\" style=\"width:{:.2}rem\"></span></td></tr>",
                escaped(name),
                seconds(*predicted),
                if timed {
                    seconds(*measured)
                } else {
                    "–".to_owned()
                },
                wide(*predicted),
                wide(*measured)
            );
        }
        page.push_str("</table></div>\n");
    };
    rows("lane", &lanes);
    rows("the device waits for", &waits);
    page.push_str("</div>\n");
}

/// Prompts with the answers before training and the last ones.
fn answers(page: &mut String, run: &RunReport, several: bool) {
    if run.answers.is_empty() {
        return;
    }
    let _ = writeln!(page, "<h2>Answers{}</h2>", of(run, several));
    for [before, after] in &run.answers {
        let Some(any) = after.as_ref().or(before.as_ref()) else {
            continue;
        };
        let _ = writeln!(
            page,
            "<div class=\"card\"><p class=\"note\">prompt</p><pre>{}</pre><p class=\"note\">reference</p><pre>{}</pre><div class=\"answers\">",
            escaped(any.prompt.trim_end()),
            escaped(&any.reference)
        );
        let mut put = |answer: &Option<Answer>| {
            let Some(answer) = answer else { return };
            let word = if answer.right { "right" } else { "wrong" };
            let _ = writeln!(
                page,
                "<div><p>after step {}: <span class=\"{word}\">{word}</span></p><pre>{}</pre></div>",
                answer.step,
                escaped(&answer.answer)
            );
        };
        put(before);
        put(after);
        page.push_str("</div></div>\n");
    }
}
