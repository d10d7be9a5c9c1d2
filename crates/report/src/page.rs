//! Runs as one page that opens without a network, a script or another file.

use std::fmt::Write;

use crate::chart::{Series, escaped, legend, lines};
use crate::people::seconds;
use crate::run::{Answer, RunReport, Step};
use crate::text::{differing, facts};

/// The first bytes of every page, by which one is known.
pub const BEGIN: &str = "<!doctype html>\n<html lang=\"en\" data-lowtide=\"report\">";

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a;background:#fff}\
table{border-collapse:collapse;margin:1rem 0;display:block;overflow-x:auto}\
td,th{padding:.25rem .9rem .25rem 0;text-align:left;border-bottom:1px solid #ddd;vertical-align:top}\
td.n,th.n{text-align:right}svg{max-width:100%;height:auto}h2{margin-top:2.2rem}\
.bar{display:inline-block;height:.7rem;background:#1f6fb2}.bar.p{background:#b9c7d4}\
.legend{list-style:none;padding:0;display:flex;flex-wrap:wrap;gap:.3rem 1.4rem}\
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:#f6f6f6;padding:.8rem;margin:.2rem 0}\
.on{background:#d5efdb}.cut{background:#f9d9dc;text-decoration:line-through}\
.right{color:#2a7f3e}.wrong{color:#c01c28}summary{cursor:pointer}";

/// One run, or several beside each other.
#[must_use]
pub fn html(runs: &[RunReport]) -> String {
    let title = match runs {
        [run] => format!("{}: {}", run.name(), run.model()),
        _ => format!("{} runs", runs.len()),
    };
    let mut page = begin(&title);
    table(&mut page, runs);
    curves(&mut page, runs);
    for run in runs {
        lanes(&mut page, run, runs.len() > 1);
    }
    for run in runs {
        answers(&mut page, run, runs.len() > 1);
    }
    for run in runs {
        let _ = writeln!(
            page,
            "<details><summary>the run as checked{}</summary><pre>{}</pre></details>",
            of(run, runs.len() > 1),
            escaped(&serde_json::to_string_pretty(&run.run).expect("plain values"))
        );
        if !run.machine.is_null() {
            let _ = writeln!(
                page,
                "<details><summary>the machine's rates{}</summary><pre>{}</pre></details>",
                of(run, runs.len() > 1),
                escaped(&serde_json::to_string_pretty(&run.machine).expect("plain values"))
            );
        }
    }
    end(&mut page);
    page
}

/// A page up to its title.
pub(crate) fn begin(title: &str) -> String {
    format!(
        "{BEGIN}\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width\">\n\
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

/// The facts, a column a run, and the keys that differ.
fn table(page: &mut String, runs: &[RunReport]) {
    let mut rows: Vec<(String, Vec<Option<String>>)> = facts(runs)
        .into_iter()
        .map(|(name, each)| (name.to_owned(), each))
        .collect();
    page.push_str("<table id=\"facts\">\n");
    if runs.len() > 1 {
        page.push_str("<tr><th></th>");
        for run in runs {
            let _ = write!(page, "<th>{}</th>", escaped(&run.name()));
        }
        page.push_str("</tr>\n");
        rows.extend(differing(runs));
    }
    for (name, each) in rows {
        let _ = write!(page, "<tr><td>{}</td>", escaped(&name));
        for cell in each {
            let _ = write!(page, "<td>{}</td>", escaped(&cell.unwrap_or_default()));
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</table>\n");
}

/// A picture a quantity.
fn curves(page: &mut String, runs: &[RunReport]) {
    let names: Vec<String> = runs.iter().map(RunReport::name).collect();
    page.push_str(&legend(&names));
    let draw =
        |page: &mut String, title: &str, dots, points: &dyn Fn(&RunReport) -> Vec<(f64, f64)>| {
            let series: Vec<Series> = runs
                .iter()
                .zip(&names)
                .map(|(run, name)| Series {
                    name: name.clone(),
                    points: points(run),
                    dots,
                })
                .collect();
            page.push_str(&lines(title, "step", &series));
        };
    let by_step = |of: fn(&Step) -> Option<f64>| {
        move |run: &RunReport| {
            let each = run.steps.iter();
            each.filter_map(|s| Some((s.step as f64, of(s)?)))
                .collect::<Vec<_>>()
        }
    };
    draw(page, "loss of a step", false, &by_step(|s| s.loss));
    draw(page, "loss on the evaluation data", true, &|r| {
        let each = r.evaluations.iter();
        each.map(|e| (e.step as f64, e.eval_loss)).collect()
    });
    draw(page, "exact match, %", true, &|r| {
        let each = r.matches.iter();
        each.map(|m| (m.step as f64, 100.0 * m.exact_match))
            .collect()
    });
    draw(
        page,
        "norm of the gradients before clipping",
        false,
        &by_step(|s| s.grad_norm),
    );
    draw(
        page,
        "learning rate",
        false,
        &by_step(|s| Some(s.learning_rate)),
    );
    draw(
        page,
        "tokens a second",
        false,
        &by_step(|s| s.tokens_per_second),
    );
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
    let lanes: Vec<_> = lanes.map(|(name, of)| row(name, of)).collect();
    let waits = run.report["gpu_waits"].as_array().into_iter().flatten();
    let waits: Vec<_> = waits
        .map(|w| row(w["cause"].as_str().unwrap_or("?"), w))
        .collect();
    if lanes.is_empty() {
        return;
    }
    let _ = writeln!(
        page,
        "<h2>Where a step's time goes{}</h2>",
        of(run, several)
    );
    let most = lanes
        .iter()
        .chain(&waits)
        .flat_map(|r| r.1)
        .fold(0.0, f64::max);
    let mut rows = |head: &str, rows: &[(String, [f64; 2])]| {
        if rows.is_empty() {
            return;
        }
        let _ = writeln!(
            page,
            "<table><tr><th>{head}</th><th class=\"n\">predicted</th><th class=\"n\">measured</th><th></th></tr>"
        );
        for (name, [predicted, measured]) in rows {
            let wide = |s: f64| if most > 0.0 { 22.0 * s / most } else { 0.0 };
            let _ = writeln!(
                page,
                "<tr><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td>\
                 <span class=\"bar p\" style=\"width:{:.2}rem\"></span><br>\
                 <span class=\"bar\" style=\"width:{:.2}rem\"></span></td></tr>",
                escaped(name),
                seconds(*predicted),
                seconds(*measured),
                wide(*predicted),
                wide(*measured)
            );
        }
        page.push_str("</table>\n");
    };
    rows("lane", &lanes);
    rows("the device waits for", &waits);
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
            "<h3>prompt</h3><pre>{}</pre><p>reference</p><pre>{}</pre>",
            escaped(any.prompt.trim_end()),
            escaped(&any.reference)
        );
        let mut put = |answer: &Option<Answer>| {
            let Some(answer) = answer else { return };
            let (class, word) = match answer.right {
                true => ("right", "right"),
                false => ("wrong", "wrong"),
            };
            let _ = writeln!(
                page,
                "<p>after step {}: <span class=\"{class}\">{word}</span></p><pre>{}</pre>",
                answer.step,
                escaped(&answer.answer)
            );
        };
        put(before);
        put(after);
    }
}
