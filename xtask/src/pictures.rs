//! `cargo xtask pictures`: the pictures of README.md and ARCHITECTURE.md, from the code's own data.
//!
//! `docs/crates.svg` is drawn here, from the table of edges that a test holds against `cargo metadata`. The planned
//! steps, `docs/step.svg` and `docs/step-quickstart.svg`, are drawn by `lowtide plan --svg`; the test `kept` of
//! crates/cli has the same commands and compares. `docs/view.svg`, what `train` shows on a terminal, is drawn by a test
//! of the view, which compares it otherwise.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use crate::edges::EDGES;

const CRATES: &str = "docs/crates.svg";
const VIEW: &str = "docs/view.svg";

/// What a crate is for, in two or three words, from the bottom up.
const PURPOSE: &[(&str, &str)] = &[
    ("units", "bytes, seconds, rates"),
    ("files", "files of others"),
    ("random", "numbers by index"),
    ("data", "files to batches"),
    ("report", "runs as pages"),
    ("workload", "a step in numbers"),
    ("config", "the run file"),
    ("planner", "a step as a plan"),
    ("tiers", "host memory, drives"),
    ("device", "CPU, CUDA, NCCL"),
    ("kernels", "operations"),
    ("model", "decoders"),
    ("executor", "a plan on lanes"),
    ("session", "a plan with memory"),
    ("measure", "rates"),
    ("trainer", "a whole run"),
    ("cli", "the command"),
    ("fuzz", "hostile files"),
];

const WIDTH: f64 = 150.0;
const HEIGHT: f64 = 44.0;
const ACROSS: f64 = 178.0;
const DOWN: f64 = 84.0;
const MARGIN: f64 = 12.0;

/// Draws all of them.
pub fn run(root: &Path) -> ExitCode {
    fs::write(root.join(CRATES), crates(EDGES)).expect("a file of the repository");
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let machine = ["--machine", "examples/machines/h200.json", "--brief"];
    let model = "--shape llama2-7b --micro-batch 8 --seq 2048 --accumulate 1 --device-memory 24GiB --host-memory 105GiB";
    let steps = [
        (model, "docs/step.svg"),
        ("examples/quickstart/run.yaml", "docs/step-quickstart.svg"),
    ];
    for (what, picture) in steps {
        let status = Command::new(&cargo)
            .current_dir(root)
            .args([
                "run",
                "--quiet",
                "--release",
                // Of all packages: of one alone its dependencies have other features and are built anew.
                "--bin",
                "lowtide",
                "--",
                "plan",
            ])
            .args(what.split(' '))
            .args(machine)
            .args(["--svg", picture])
            .stdout(std::process::Stdio::null())
            .status();
        if !status.is_ok_and(|s| s.success()) {
            eprintln!("{picture}: lowtide plan {what} failed");
            return ExitCode::FAILURE;
        }
        println!("{picture}");
    }
    // The test that compares it draws it.
    let status = Command::new(&cargo)
        .current_dir(root)
        .args(["test", "--quiet", "--release", "--workspace"])
        .args(["--bin", "lowtide", "view::"])
        .env("LOWTIDE_RENEW", "1")
        .stdout(std::process::Stdio::null())
        .status();
    if !status.is_ok_and(|s| s.success()) {
        eprintln!("{VIEW}: the tests of the view failed");
        return ExitCode::FAILURE;
    }
    println!("{VIEW}");
    println!("{CRATES}");
    ExitCode::SUCCESS
}

/// Whether the picture of the crates is that of the table.
pub fn check(root: &Path) -> Vec<String> {
    let mut findings = Vec::new();
    for (name, _) in EDGES {
        if !PURPOSE.iter().any(|(n, _)| n == name) {
            findings.push(format!(
                "xtask/src/pictures.rs: nothing says what {name} is for"
            ));
        }
    }
    if fs::read_to_string(root.join(CRATES)).ok() != Some(crates(EDGES)) {
        findings.push(format!(
            "{CRATES}: not that of the edges: run cargo xtask pictures"
        ));
    }
    findings
}

type Edges<'a> = &'a [(&'a str, &'a [&'a str])];

/// Crates by what they use: each stands above all that it may use, with lines to those that no other of them uses for
/// it.
fn crates(edges: Edges<'_>) -> String {
    let uses: BTreeMap<&str, &[&str]> = edges.iter().copied().collect();
    let mut level: BTreeMap<&str, usize> = BTreeMap::new();
    // Rows of the table come after all that they use.
    for (name, to) in edges {
        let above = to.iter().filter_map(|t| level.get(t)).max();
        level.insert(name, above.map_or(0, |l| l + 1));
    }
    let levels = level.values().max().map_or(0, |l| l + 1);
    let mut rows: Vec<Vec<&str>> = vec![Vec::new(); levels];
    for (name, _) in edges {
        rows[level[name]].push(name);
    }
    let most = rows.iter().map(Vec::len).max().unwrap_or(0) as f64;
    let (width, height) = (
        most * ACROSS + 2.0 * MARGIN,
        levels as f64 * DOWN + 2.0 * MARGIN,
    );
    let mut places: BTreeMap<&str, (f64, f64)> = BTreeMap::new();
    for (i, row) in rows.iter().enumerate() {
        let left = MARGIN + (most - row.len() as f64) * ACROSS / 2.0 + (ACROSS - WIDTH) / 2.0;
        for (j, name) in row.iter().enumerate() {
            let top = MARGIN + (levels - 1 - i) as f64 * DOWN;
            places.insert(name, (left + j as f64 * ACROSS, top));
        }
    }
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" role=\"img\" \
         font-family=\"system-ui,'DejaVu Sans',sans-serif\" font-size=\"12\">\n\
         <desc>The crates: each may use those below it that its lines lead to, and what these use</desc>\n\
         <style>:root{{--card:#fff;--box:#f3f6fa;--line:#9aa7b5;--ink:#1c2128;--dim:#5c6670}}\
         @media(prefers-color-scheme:dark){{:root{{--card:#171c23;--box:#222a34;--line:#5d6b7a;--ink:#e3e8ee;--dim:#93a0ad}}}}\
         .paper{{fill:var(--card)}}.box{{fill:var(--box);stroke:var(--line)}}.line{{fill:none;stroke:var(--line)}}\
         .name{{fill:var(--ink);font-weight:600;font-size:14px}}.what{{fill:var(--dim)}}</style>\n\
         <rect class=\"paper\" width=\"100%\" height=\"100%\"/>\n"
    );
    for (name, to) in edges {
        let (x, y) = places[name];
        for target in to.iter().filter(|t| !through_another(&uses, to, t)) {
            let (tx, ty) = places[target];
            let (from, end) = (x + WIDTH / 2.0, tx + WIDTH / 2.0);
            let (top, bottom) = (y + HEIGHT, ty);
            let half = f64::midpoint(top, bottom);
            let _ = writeln!(
                out,
                "<path class=\"line\" d=\"M{from:.0} {top:.0}C{from:.0} {half:.0} {end:.0} {half:.0} {end:.0} {bottom:.0}\"/>"
            );
        }
    }
    for (name, (x, y)) in &places {
        let what = PURPOSE.iter().find(|(n, _)| n == name).map_or("", |p| p.1);
        let _ = writeln!(
            out,
            "<rect class=\"box\" x=\"{x:.0}\" y=\"{y:.0}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" rx=\"7\"/>\
             <text class=\"name\" x=\"{cx:.0}\" y=\"{:.0}\" text-anchor=\"middle\">{name}</text>\
             <text class=\"what\" x=\"{cx:.0}\" y=\"{:.0}\" text-anchor=\"middle\">{what}</text>",
            y + 19.0,
            y + 35.0,
            cx = x + WIDTH / 2.0,
        );
    }
    out.push_str("</svg>\n");
    out
}

/// Whether another of these crates leads to `target`.
fn through_another(uses: &BTreeMap<&str, &[&str]>, these: &[&str], target: &str) -> bool {
    fn leads(uses: &BTreeMap<&str, &[&str]>, from: &str, to: &str) -> bool {
        let next = uses.get(from).copied().unwrap_or_default();
        next.contains(&to) || next.iter().any(|n| leads(uses, n, to))
    }
    these
        .iter()
        .any(|other| *other != target && leads(uses, other, target))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_picture_of_the_crates_is_current() {
        crate::assert_none(&check(&crate::root()));
    }

    #[test]
    fn a_line_that_others_make_is_not_drawn() {
        let edges: Edges<'_> = &[
            ("units", &[]),
            ("tiers", &["units"]),
            ("device", &["units", "tiers"]),
        ];
        let text = crates(edges);
        assert_eq!(text.matches("<rect class=\"box\"").count(), 3);
        assert_eq!(
            text.matches("<path").count(),
            2,
            "device to tiers, tiers to units"
        );
        // Higher above what is used.
        let top = |name: &str| {
            let at = text.find(&format!(">{name}</text>")).expect("drawn");
            let y = text[..at].rsplit("y=\"").next().expect("a place");
            y.split('"')
                .next()
                .and_then(|y| y.parse::<f64>().ok())
                .expect("a number")
        };
        assert!(top("device") < top("tiers") && top("tiers") < top("units"));
        let more: Edges<'_> = &[
            ("units", &[]),
            ("tiers", &["units"]),
            ("device", &["units"]),
        ];
        assert_ne!(crates(more), text, "another table is another picture");
    }
}
