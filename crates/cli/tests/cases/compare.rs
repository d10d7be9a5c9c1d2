//! `compare`: two ways of a run from the same start, whose figures are those of their metrics; and what it refuses.

use serde_json::Value;

use super::scratch::{Scratch, example_rates, number};

const RUN: &str = r"
model:
  path: m
budget: {device: 200MiB, host: 1GiB, disk: 200MiB}
data:
  train: train.jsonl
  eval: eval.jsonl
train:
  steps: 30
  micro_batch: 2
  seq: 64
  learning_rate: 0.002
eval: {batches: 4, generate: {exact_match: true}}
plan: {optimizer: disk}
checkpoint: {every_steps: 1, keep_best: exact_match}
output: out
";

fn ready() -> Scratch {
    let scratch = Scratch::bare();
    scratch.write(
        "run.yaml",
        RUN.replace("keep_best: exact_match", "durable: true"),
    );
    scratch
}

fn compare(scratch: &Scratch, args: &[&str]) -> super::scratch::Ended {
    let machine = format!("plan.machine={}", example_rates().display());
    scratch.run(&[&["compare", "run.yaml", "--set", &machine][..], args].concat())
}

/// Records of an arm's metrics that have this key.
fn records(scratch: &Scratch, arm: &str, key: &str) -> Vec<Value> {
    let text = scratch.read(&format!("out/compare/{arm}/metrics.jsonl"));
    let all = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    all.filter(|r| r.get(key).is_some()).collect()
}

#[test]
fn exact_and_subspaces_side_by_side() {
    let scratch = ready();
    let ended = compare(&scratch, &["--steps", "6", "--json", "--html", "page.html"]);
    let answer = ended.fine().json();
    let arms = answer["arms"].as_array().expect("a list");
    let names: Vec<_> = arms
        .iter()
        .map(|a| a["name"].as_str().expect("a name"))
        .collect();
    assert_eq!(
        (names.as_slice(), &answer["steps"]),
        (&["exact", "lsp"][..], &6.into())
    );
    for (arm, name) in arms.iter().zip(names) {
        let (steps, evaluations) = (
            records(&scratch, name, "tokens"),
            records(&scratch, name, "eval_loss"),
        );
        assert_eq!((steps.len(), evaluations.len()), (6, 7), "{name}");
        let learned = arm["learning_seconds"].as_f64();
        assert_eq!(learned.is_some_and(|s| s > 0.0), name == "lsp");
        let points = arm["points"].as_array().expect("points");
        let mut seconds = learned.unwrap_or(0.0);
        for (i, (point, evaluation)) in points.iter().zip(&evaluations).enumerate() {
            if let Some(step) = i.checked_sub(1).map(|i| &steps[i]) {
                seconds += number(step, "seconds");
                assert_eq!(point["loss"], step["loss"], "{name}");
            }
            assert_eq!(
                (&point["step"], &point["eval_loss"]),
                (&evaluation["step"], &evaluation["eval_loss"])
            );
            assert!(
                (number(point, "seconds") - seconds).abs() < 1e-9,
                "{name}: {point} {seconds}"
            );
        }
        for absent in [
            "checkpoints",
            "model",
            "answers.jsonl",
            "finished.json",
            "disk",
            "trace.json",
        ] {
            assert!(
                !scratch.at(&format!("out/compare/{name}/{absent}")).exists(),
                "{name}: {absent}"
            );
        }
    }
    // The same start, to the bit: a core of zeros leaves a matrix as it is.
    assert_eq!(
        arms[0]["points"][0]["eval_loss"],
        arms[1]["points"][0]["eval_loss"]
    );
    assert_eq!(arms[0]["points"][1]["loss"], arms[1]["points"][1]["loss"]);
    assert_ne!(arms[0]["points"][6], arms[1]["points"][6]);
    let tie = &answer["ties"][0];
    let lowest = |i: usize| number(&arms[i]["points"][6], "eval_loss");
    assert_eq!(number(tie, "loss"), lowest(0).max(lowest(1)), "{tie}");
    let seconds = |i: usize| tie["seconds"][i].as_f64().expect("a number");
    let ratio = seconds(1) / seconds(0);
    assert!((number(tie, "times_the_seconds") / ratio - 1.0).abs() < 1e-12);
    assert!(scratch.read("page.html").contains("<table id=\"arms\">"));

    // Once more, the other way about, from a file that says lsp: the arms of before are replaced.
    let bits = |name: &str| {
        records(&scratch, name, "loss")
            .iter()
            .map(|r| r["loss"].clone())
            .collect::<Vec<_>>()
    };
    let before = ["exact", "lsp"].map(bits);
    let run = scratch.read("run.yaml").replace(", durable: true", "");
    scratch.write(
        "run.yaml",
        run + "strategy: {name: lsp, lsp: {compression: 4}}\n",
    );
    let text = compare(&scratch, &["--steps", "6"]);
    let text = text.fine().text();
    assert!(
        text.contains("the lowest that both reached: exact after"),
        "{text}"
    );
    assert!(
        text.contains("strategy.lsp.compression  -") && text.contains("host planned"),
        "{text}"
    );
    assert_eq!(["exact", "lsp"].map(bits), before);
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let scratch = ready();
    for (args, words) in [
        (&["--steps", "0"][..], &["--steps", "0"][..]),
        (&["--arm", "fast"], &["--arm fast", "NAME:KEY=VALUE"]),
        (&["--arm", "../x:seed=1"], &["../x", "letters"]),
        (&["--arm", "a:train.lr=1"], &["train.lr", "unknown key"]),
        (
            &["--arm", "a:checkpoint.keep=3"],
            &["arm a is arm run", "changes what it does"],
        ),
        (
            &["--set", "optimizer.weight_decay=0.1"],
            &["optimizer.weight_decay", "strategy.name"],
        ),
        (
            &[
                "--set",
                "strategy.name=lsp",
                "--set",
                "strategy.lsp.compression=32",
            ],
            &["arm lsp: ", "1/32 of 128 features"],
        ),
        (
            &["--set", "data.train=none.jsonl"],
            &["arm exact: ", "none.jsonl"],
        ),
    ] {
        compare(&scratch, args).refused(words);
    }
    assert!(!scratch.at("out").exists());
    // A file that lowtide did not write stays, and so does the run's own output.
    std::fs::create_dir_all(scratch.at("out/compare/exact")).expect("made");
    scratch.write("out/compare/exact/metrics.jsonl", "mine");
    compare(&scratch, &["--steps", "1"]).refused(&["arm exact: ", "metrics.jsonl", "not"]);
    assert_eq!(scratch.read("out/compare/exact/metrics.jsonl"), "mine");
}
