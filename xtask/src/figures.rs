//! Measured figures in documents: each is one of `bench/RESULTS.md`, or stands in `bench/figures.tsv` with where it is
//! from.
//!
//! A figure is a number with a unit of time, rate, share or memory (`9.6 ms`, `21,896 tokens/s`, `4.31 x`, `0.5 %`),
//! one with a comma for thousands, or one with two or more digits behind its point. Code, the tables that
//! `cargo xtask results` fills, and whole GiB (they are budgets) are left out. A block of code behind
//! `<!-- record: FILE -->` is lines of that file.

use std::fs;
use std::path::Path;

use regex::Regex;

use crate::results;

/// Figures that no record gives, with the reason: document, figure (`*`: all of it), kind, reason.
const LIST: &str = "bench/figures.tsv";
/// What a listed figure is: given by hand, a limit, made of figures of the results, or of a source that is named.
const KINDS: [&str; 4] = ["given", "limit", "derived", "quoted"];
const RECORD: &str = "<!-- record: ";

/// A figure of a document, and the line that it stands in, from 1.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    line: usize,
    /// As it is written, unit included.
    text: String,
    number: String,
    unit: String,
}

/// Figures without a source, entries of the list that nothing needs, and recorded blocks that are not in their record.
pub fn check(root: &Path) -> Vec<String> {
    let known = match results::figures(root) {
        Ok(figures) => figures,
        Err(what) => return vec![what],
    };
    let list = fs::read_to_string(root.join(LIST)).unwrap_or_default();
    let mut findings = Vec::new();
    let mut entries = Vec::new();
    for line in list
        .lines()
        .filter(|l| !l.is_empty() && !l.starts_with('#'))
    {
        let fields: Vec<&str> = line.split('\t').collect();
        match fields[..] {
            [document, figure, kind, reason] if KINDS.contains(&kind) && !reason.is_empty() => {
                entries.push((document, figure, false));
            }
            _ => findings.push(format!(
                "{LIST}: '{line}' is not document, figure, one of {KINDS:?}, reason"
            )),
        }
    }
    for document in documents(root) {
        let text = fs::read_to_string(root.join(&document)).unwrap_or_default();
        findings.extend(blocks(root, &document, &text));
        for found in figures(&text) {
            let in_results = known.iter().any(|f| {
                f.text == found.number && (found.unit.is_empty() || same(&f.unit, &found.unit))
            });
            let listed = entries
                .iter_mut()
                .find(|(d, f, _)| *d == document && (*f == "*" || *f == found.text));
            match listed {
                Some(entry) => entry.2 = true,
                None if in_results => {}
                None => findings.push(format!(
                    "{document}:{}: {} is neither in bench/RESULTS.md nor in {LIST}",
                    found.line, found.text
                )),
            }
        }
    }
    let unused = entries.iter().filter(|(_, _, used)| !used);
    findings.extend(unused.map(|(d, f, _)| format!("{LIST}: {d} has no figure {f} to explain")));
    findings
}

/// Documents whose figures are checked: all of the root and of docs.
fn documents(root: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for folder in ["", "docs"] {
        let entries = fs::read_dir(root.join(folder)).into_iter().flatten();
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.ends_with(".md") {
                let path = Path::new(folder).join(name);
                names.push(path.to_string_lossy().into_owned());
            }
        }
    }
    names.sort();
    names
}

/// Whether a column's unit is what a document writes.
fn same(column: &str, written: &str) -> bool {
    let plain = |unit: &str| {
        match unit {
            "x" => "times",
            "seconds" => "s",
            "model TFLOP/s" => "TFLOP/s",
            other => other,
        }
        .to_owned()
    };
    plain(column) == plain(written)
}

fn figures(text: &str) -> Vec<Found> {
    let units = "tokens/s|model TFLOP/s|TFLOP/s|GFLOP/s|GB/s|TB/s|µs|ms|seconds|s|minutes|hours|%|x|times|GiB|MiB";
    let number = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+\.\d+|\d+|\.\d+";
    let regex = Regex::new(&format!("({number})(?: ?({units}))?")).expect("a regular expression");
    let mut found = Vec::new();
    for (i, line) in prose(text).lines().enumerate() {
        let mut at = 0;
        while let Some(c) = regex.captures_at(line, at) {
            let all = c.get(0).expect("the whole match");
            let (number, unit) = (c.get(1).expect("a number"), c.get(2));
            at = number.end();
            // A unit ends there; 8 x 2048 is a product.
            let behind = |end: usize| line[end..].chars().next();
            let unit = unit.filter(|u| {
                let longer = behind(u.end()).is_some_and(|c| c.is_alphanumeric() || c == '/');
                let product = u.as_str() == "x"
                    && line[u.end()..]
                        .trim_start()
                        .starts_with(|c: char| c.is_ascii_digit() || c == '(');
                !longer && !product
            });
            let before = line[..all.start()].chars().next_back();
            let part = |c: char| c.is_alphanumeric() || "._-/#^".contains(c);
            if before.is_some_and(part) || (unit.is_none() && is_part(&line[at..])) {
                continue;
            }
            let text = number.as_str();
            let unit = unit.map_or("", |u| u.as_str());
            let whole = !text.contains('.');
            let budget = whole && ["GiB", "MiB"].contains(&unit);
            let digits = text.split_once('.').map_or(0, |(_, d)| d.len());
            let bare = unit.is_empty() && !text.contains(',') && digits < 2;
            if !budget && !bare {
                let end = if unit.is_empty() { at } else { all.end() };
                found.push(Found {
                    line: i + 1,
                    text: line[all.start()..end].to_owned(),
                    number: text.to_owned(),
                    unit: unit.to_owned(),
                });
            }
        }
    }
    found
}

/// Whether what follows a bare number makes it part of a name or a version.
fn is_part(rest: &str) -> bool {
    let mut chars = rest.chars();
    let first = chars.next();
    let more = chars.next().is_some_and(|c| c.is_ascii_digit());
    first.is_some_and(|c| c.is_alphanumeric() || "_-/".contains(c) || (c == '.' && more))
}

/// A document without code, without links' targets and without the tables that are generated; lines stay.
fn prose(text: &str) -> String {
    let (mut fenced, mut generated) = (false, false);
    let mut out = String::new();
    for line in text.lines() {
        let marks = line.trim_start().starts_with("```");
        if line.starts_with("<!-- results: ") {
            generated = !line.starts_with("<!-- results: end");
        }
        if !(marks || fenced || generated) {
            let outside = line.split('`').step_by(2).collect::<Vec<_>>().join("`");
            for piece in outside.split("](").enumerate() {
                let text = match piece {
                    (0, text) => text,
                    (_, text) => text.split_once(')').map_or("", |(_, rest)| rest),
                };
                out.push_str(text);
            }
        }
        fenced ^= marks;
        out.push('\n');
    }
    out
}

/// Lines of recorded blocks that their record does not have, in its order. `...` stands for lines left out.
fn blocks(root: &Path, document: &str, text: &str) -> Vec<String> {
    let mut findings = Vec::new();
    let mut lines = text.lines().enumerate();
    while let Some((_, line)) = lines.next() {
        let Some(file) = line.strip_prefix(RECORD) else {
            continue;
        };
        let file = file.trim_end_matches(" -->");
        let Ok(record) = fs::read_to_string(root.join(file)) else {
            findings.push(format!("{document}: {file} does not exist"));
            continue;
        };
        let mut rest = record.lines();
        let block = lines
            .by_ref()
            .skip_while(|(_, l)| !l.starts_with("```"))
            .skip(1);
        for (i, shown) in block.take_while(|(_, l)| !l.starts_with("```")) {
            if shown != "..." && !rest.any(|l| l.trim_end() == shown) {
                findings.push(format!("{document}:{}: not in {file}: {shown}", i + 1));
                break;
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_a_source() {
        crate::assert_none(&check(&crate::root()));
    }

    #[test]
    fn figures_are_told_from_other_numbers() {
        let text = "A step of 1.7 s, 21,896 tokens/s (4.31 x), .98 and 0.97, 45 % or 3%, 20 seconds.\n\
                    8 x 2048 in 24 GiB, 16 layers, version 1.95.0, h200-2026-11-21, `5 ms`, [a](b-3.25.md), 2.0.\n\
                    ```\n9 ms\n```\n<!-- results: t -->\n| 7 ms |\n<!-- results: end -->\n0.5 GiB behind it, `LOWTIDE=1` 30-minute.";
        let found: Vec<_> = figures(text)
            .into_iter()
            .map(|f| (f.line, f.text))
            .collect();
        let want = [
            (1, "1.7 s"),
            (1, "21,896 tokens/s"),
            (1, "4.31 x"),
            (1, ".98"),
            (1, "0.97"),
            (1, "45 %"),
            (1, "3%"),
            (1, "20 seconds"),
            (9, "0.5 GiB"),
        ];
        assert_eq!(found, want.map(|(line, text)| (line, text.to_owned())));
    }

    #[test]
    fn planted_figures_are_found() {
        let dir = tempfile::tempdir().expect("a folder");
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            fs::write(path, text).expect("written");
        };
        write(
            "bench/runs/index.json",
            r#"{"tables": [{"name": "t", "title": "T", "text": "", "columns":
                [{"name": "r", "unit": "tokens/s", "value": "run#r", "format": "0,"}], "rows": [{"row": "a", "run": "d/x.json"}]}]}"#,
        );
        write("bench/runs/d/x.json", "{\"r\": 1500}");
        write(
            "bench/runs/d/record.json",
            r#"{"date":"2026-11-27","machine":"m","commit":null,"dirty":null,"of":"o"}"#,
        );
        write(LIST, "# head\nREADME.md\t5 ms\tgiven\ta limit\n");
        let text = "1,500 tokens/s, 5 ms.\n<!-- record: bench/runs/d/log.txt -->\n```text\none\n...\nthree\n```\n";
        write("README.md", text);
        write("bench/runs/d/log.txt", "one\ntwo\nthree\n");
        assert_eq!(check(dir.path()), [""; 0]);
        for (what, with) in [
            ("1,500 tokens/s", "1,501 tokens/s"),
            ("1,500 tokens/s", "1,500 ms"),
            ("5 ms", "6 ms"),
            ("three", "tree"),
            ("log.txt", "none.txt"),
        ] {
            write("README.md", &text.replace(what, with));
            // An entry that is no longer needed is a finding of its own.
            let n = 1 + usize::from(what == "5 ms");
            let found = check(dir.path());
            assert_eq!(found.len(), n, "{with}: {found:?}");
        }
    }
}
