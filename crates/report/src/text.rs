//! Runs side by side, as a table for a terminal.

use std::collections::{BTreeMap, HashSet};

use crate::people::{bytes, count, seconds};
use crate::run::{Evaluation, RunReport, State};
use crate::table::{Column, Table};

/// Characters of a cell that are shown.
const CELL_MAX: usize = 200;
/// Keys of run files that differ, at most: a run file has about a hundred.
const KEYS_MAX: usize = 500;

/// What is said of a run in one row: its name, and what it is of each run; nothing where it is not known.
pub(crate) type Fact = (&'static str, Vec<Option<String>>);

/// The facts of runs that are known of any of them. Long because each is a line of a table.
pub(crate) fn facts(runs: &[RunReport]) -> Vec<Fact> {
    let row = |name, of: &dyn Fn(&RunReport) -> Option<String>| -> Fact {
        (name, runs.iter().map(of).collect())
    };
    let planned = |tier: &'static str| {
        move |r: &RunReport| {
            r.report["planned_bytes"][tier]
                .as_u64()
                .filter(|&n| n > 0)
                .map(bytes)
        }
    };
    let rows = vec![
        row("model", &|r| Some(r.model())),
        row("state", &|r| Some(state(r))),
        row("missing", &|r| r.missing.clone()),
        row("tokens a step", &|r| {
            let of = |key: &str| r.run["train"][key].as_u64();
            let (b, t, m) = (of("micro_batch")?, of("seq")?, of("accumulate")?);
            let rows = if m == 1 {
                b.to_string()
            } else {
                format!("{b} x {m}")
            };
            Some(format!("{rows} x {t}"))
        }),
        row("steps", &|r| {
            let f = &r.figures;
            (f.step > 0).then(|| format!("{} of {}", count(f.step), count(f.steps)))
        }),
        row("tokens", &|r| {
            (r.figures.tokens > 0).then(|| count(r.figures.tokens))
        }),
        row("tokens/s", &|r| {
            let of = |n| format!("{n:.0} (each start's first step left out)");
            r.figures.tokens_per_second.map(of)
        }),
        row("a step", &|r| {
            let median = r.figures.step_seconds;
            median.map(|s| format!("{} (median)", seconds(s)))
        }),
        row("predicted", &|r| r.figures.predicted_seconds.map(seconds)),
        row("projectors", &|r| {
            let learned = r.report["learning_seconds"].as_f64();
            learned.map(|s| format!("learned in {}", seconds(s)))
        }),
        row("loss at step 1", &|r| r.figures.loss_first.map(loss)),
        row("loss at end", &|r| {
            let mean = |x| format!("{} (mean of the last steps, at most 10)", loss(x));
            r.figures.loss_last.map(mean)
        }),
        row("eval loss", &|r| {
            let f = &r.figures;
            let (first, last) = (f.evaluation_first.as_ref()?, f.evaluation_last.as_ref()?);
            let best = f
                .evaluation_best
                .as_ref()
                .filter(|b| b.step != first.step && b.step != last.step);
            let of = |e: &Evaluation| format!("{} after step {}", loss(e.eval_loss), e.step);
            let mut each = vec![of(first)];
            each.extend((first.step != last.step).then(|| of(last)));
            each.extend(best.map(|b| format!("best {}", of(b))));
            Some(each.join(", "))
        }),
        row("eval accuracy", &|r| {
            let f = &r.figures;
            let (first, last) = (f.evaluation_first.as_ref()?, f.evaluation_last.as_ref()?);
            let of = |e: &Evaluation| {
                let share = 100.0 * e.eval_accuracy?;
                Some(format!("{share:.1}% after step {}", e.step))
            };
            let each = [of(first), of(last).filter(|_| first.step != last.step)];
            let each: Vec<String> = each.into_iter().flatten().collect();
            (!each.is_empty()).then(|| each.join(", "))
        }),
        row("eval F1", &|r| {
            let f = &r.figures;
            let (first, last) = (f.evaluation_first.as_ref()?, f.evaluation_last.as_ref()?);
            let of = |e: &Evaluation| Some(format!("{:.3} after step {}", e.eval_f1?, e.step));
            let each = [of(first), of(last).filter(|_| first.step != last.step)];
            let each: Vec<String> = each.into_iter().flatten().collect();
            (!each.is_empty()).then(|| each.join(", "))
        }),
        row("exact match", &|r| {
            let f = &r.figures;
            let each = [&f.match_before, &f.match_last].into_iter().flatten();
            let each = each.map(|m| {
                let when = match m.when.as_str() {
                    "before" | "after" => format!("{} training", m.when),
                    _ => format!("after step {}", m.step),
                };
                format!("{:.1}% of {} {when}", 100.0 * m.exact_match, m.prompts)
            });
            let each: Vec<String> = each.collect();
            (!each.is_empty()).then(|| each.join(", "))
        }),
        row("left out", &|r| {
            let n = r.figures.evaluations_of_others;
            (n > 0).then(|| match n {
                1 => "1 evaluation of other data or settings than the last one".to_owned(),
                n => format!("{n} evaluations of other data or settings than the last one"),
            })
        }),
        row("skipped steps", &|r| {
            let n = r.figures.skipped;
            (n > 0).then(|| n.to_string())
        }),
        row("spikes", &|r| {
            let n = r.figures.spikes;
            (n > 0).then(|| n.to_string())
        }),
        row("planned again", &|r| {
            let n = r.figures.replans;
            (n > 0).then(|| n.to_string())
        }),
        row("device planned", &planned("device")),
        row("host planned", &planned("host")),
        row("disk planned", &planned("disk")),
        row("host at most", &|r| {
            r.report["peak_rss_bytes"].as_u64().map(bytes)
        }),
        row("disk written", &|r| {
            r.report["disk_written"]
                .as_u64()
                .filter(|&n| n > 0)
                .map(bytes)
        }),
        row("machine", &|r| {
            r.machine["name"].as_str().map(str::to_owned)
        }),
        row("measured on", &|r| {
            r.machine["date"].as_str().map(str::to_owned)
        }),
        row("device", &|r| {
            let device = &r.processes.last()?.device;
            Some(device.strip_prefix("device: ").unwrap_or(device).to_owned())
        }),
        row("started", &|r| {
            let n = r.processes.len();
            (n > 1).then(|| format!("{n} times"))
        }),
        row("lowtide", &|r| r.version.clone()),
    ];
    let known = |row: &Fact| row.1.iter().any(Option::is_some);
    rows.into_iter().filter(known).collect()
}

/// Where a run stands. One that was stopped and is resumed has steps that its last account does not know.
pub(crate) fn state(r: &RunReport) -> String {
    let stopped = r.report["stopped"].as_bool() == Some(true);
    let steps = r.report["steps"].as_u64();
    match (r.state, stopped && steps == Some(r.figures.step)) {
        (State::Finished, true) => "stopped",
        (State::Finished, _) => "finished",
        (State::Unfinished, true) => "not finished: stopped",
        (State::Unfinished, _) => "not finished",
    }
    .to_owned()
}

/// A loss: four digits behind the point, and of a run that went astray its power of ten.
pub(crate) fn loss(x: f64) -> String {
    match x.abs() >= 1e6 {
        true => format!("{x:.3e}"),
        false => format!("{x:.4}"),
    }
}

/// The keys of the run files that differ, with their values as JSON, in the order of the first run's file.
pub(crate) fn differing(runs: &[RunReport]) -> Vec<(String, Vec<Option<String>>)> {
    let flat: Vec<BTreeMap<String, String>> = runs
        .iter()
        .map(|r| flattened(&r.run).into_iter().collect())
        .collect();
    let mut seen = HashSet::new();
    let mut rows = Vec::new();
    for (key, _) in runs.iter().flat_map(|r| flattened(&r.run)) {
        let values: Vec<Option<String>> = flat.iter().map(|f| f.get(&key).cloned()).collect();
        // Where a run's files are is no difference of the run.
        let outputs = runs
            .iter()
            .map(|r| r.run["output"].as_str().unwrap_or_default());
        let away = |(value, output): (&Option<String>, &str)| {
            let value = value.as_ref();
            value.map(|v| {
                if output.is_empty() {
                    v.clone()
                } else {
                    v.replace(output, "")
                }
            })
        };
        let away: Vec<_> = values.iter().zip(outputs).map(away).collect();
        let differs = away.windows(2).any(|w| w[0] != w[1]);
        let place = ["file", "output"].contains(&key.as_str());
        if differs && !place && rows.len() < KEYS_MAX && seen.insert(key.clone()) {
            rows.push((key, values));
        }
    }
    rows
}

fn flattened(value: &serde_json::Value) -> Vec<(String, String)> {
    fn walk(prefix: &str, value: &serde_json::Value, out: &mut Vec<(String, String)>) {
        match value.as_object() {
            Some(map) if !map.is_empty() => {
                for (key, value) in map {
                    let key = match prefix {
                        "" => key.clone(),
                        _ => format!("{prefix}.{key}"),
                    };
                    walk(&key, value, out);
                }
            }
            _ => out.push((prefix.to_owned(), value.to_string())),
        }
    }
    let mut out = Vec::new();
    walk("", value, &mut out);
    out
}

/// A text of a run's files for a terminal: of some length, and without what a terminal obeys.
pub(crate) fn printable(text: &str) -> String {
    match text.char_indices().nth(CELL_MAX) {
        Some((end, _)) => harmless(&text[..end]) + " […]",
        None => harmless(text),
    }
}

/// A text without what a terminal obeys.
#[must_use]
pub fn harmless(text: &str) -> String {
    // What changes the direction of a text is no control character.
    let obeyed =
        |c: char| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let mut shown = String::new();
    for c in text.chars() {
        match obeyed(c) {
            true => shown.extend(c.escape_default()),
            false => shown.push(c),
        }
    }
    shown
}

/// One run's facts, or several runs' side by side, a column each.
#[must_use]
pub fn compare(runs: &[RunReport]) -> String {
    let mut rows = vec![("", runs.iter().map(|r| Some(r.name())).collect::<Vec<_>>())];
    rows.extend(facts(runs));
    let differing = if runs.len() > 1 {
        differing(runs)
    } else {
        Vec::new()
    };
    let mut rows: Vec<(String, Vec<Option<String>>)> = rows
        .into_iter()
        .map(|(name, each)| (name.to_owned(), each))
        .collect();
    rows.extend(differing);
    in_columns(rows, runs.len())
}

/// Rows with a name and so many cells each, as a table for a terminal.
pub(crate) fn in_columns(mut rows: Vec<(String, Vec<Option<String>>)>, columns: usize) -> String {
    for (name, each) in &mut rows {
        *name = printable(name);
        for cell in each.iter_mut().flatten() {
            *cell = printable(cell);
        }
    }
    let columns = std::iter::repeat_n(Column::left("").behind(2), columns);
    let mut table = Table::new([Column::left("")].into_iter().chain(columns));
    for (name, each) in rows {
        let each = each.into_iter();
        let each = each.map(|cell| cell.unwrap_or_else(|| "-".to_owned()));
        table.row([name].into_iter().chain(each));
    }
    table.text()
}
