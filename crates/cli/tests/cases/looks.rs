//! What people see: errors on wrong input, paths of any kind, and what a run tells.

use std::fs;

use serde_json::Value;

use crate::scratch::Scratch;

/// A short run on the quickstart's model and data, in a scratch folder.
const RUN: &str = "
model: {path: m}
output: out
device: cpu
budget: {device: 64MiB, host: 64MiB, disk: 64MiB}
data: {train: train.jsonl, eval: eval.jsonl}
eval: {batches: 1}
train: {steps: 8, micro_batch: 2, seq: 64, learning_rate: 1e-3, warmup_steps: 0}
checkpoint: {every_steps: 4, keep: 3}
plan: {machine: machine.json, optimizer: disk}
log: {trace: false, tensorboard: false}
";

/// The run in a folder, with rates so that nothing is measured.
fn scratch() -> Scratch {
    let scratch = Scratch::bare();
    scratch.write("run.yaml", RUN);
    let machines = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/machines");
    fs::copy(format!("{machines}/h200.json"), scratch.at("machine.json")).expect("copied");
    scratch
}

#[track_caller]
fn no_null(json: &Value, at: &str) {
    match json {
        Value::Null => panic!("{at} is null"),
        Value::Object(map) => map
            .iter()
            .for_each(|(k, v)| no_null(v, &format!("{at}.{k}"))),
        _ => {}
    }
}

/// Lines of the metrics file; none has a figure that is not known.
#[track_caller]
fn metrics(scratch: &Scratch) -> Vec<Value> {
    let text = scratch.read("out/metrics.jsonl");
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    for line in &lines {
        no_null(line, &line.to_string());
    }
    lines
}

#[test]
fn a_summary_is_of_the_whole_run_across_resumes() {
    let whole = scratch();
    let want = whole.run(&["train", "run.yaml", "--json"]).fine().json();
    let parts = scratch();
    parts.run(&["train", "run.yaml", "--json"]).fine();
    // The run died after step 4 was saved.
    fs::remove_dir_all(parts.at("out/checkpoints/step-00000008")).expect("it is there");
    fs::remove_dir_all(parts.at("out/model")).expect("it is there");
    let ended = parts.run(&["train", "run.yaml", "--json"]);
    let got = ended.fine().json();
    for key in [
        "steps",
        "tokens",
        "loss_first",
        "loss_last",
        "loss_last_steps",
        "eval_loss_first",
        "eval_loss_last",
    ] {
        assert_eq!(got[key], want[key], "{key}: {got}");
    }
    assert_eq!(want["loss_last_steps"], 8, "{want}");
    assert_eq!(got["part"]["after_step"], 4);
    assert_eq!(got["part"]["steps"], 4);
    let number = |json: &Value, key: &str| json[key].as_f64().expect("a number");
    assert!(number(&got, "seconds") > number(&got["part"], "seconds"));
    let rate = number(&got, "tokens") / number(&got, "seconds");
    let told = number(&got, "tokens_per_second");
    assert!((rate / told - 1.0).abs() < 1e-9, "{rate} {told}");
    assert!(ended.err.contains("of them here  4, "), "{}", ended.err);
    // After the checkpoint of step 4 a step has a rate, too; the first of a process has none.
    let lines = metrics(&whole);
    let rated: Vec<u64> = lines
        .iter()
        .filter(|l| l.get("tokens_per_second").is_some())
        .map(|l| l["step"].as_u64().expect("a step"))
        .collect();
    assert_eq!(rated, [2, 3, 4, 5, 6, 7, 8]);
    let rated = metrics(&parts)
        .iter()
        .filter(|l| l.get("tokens_per_second").is_none() && l.get("loss").is_some())
        .map(|l| l["step"].as_u64().expect("a step"))
        .collect::<Vec<_>>();
    assert_eq!(rated, [1, 5]);
}

#[test]
fn the_default_view_is_for_users_and_verbose_for_insiders() {
    let scratch = scratch();
    let view = scratch.train(&[]).fine().text();
    for no in [
        "gpu",
        "masks",
        "strategies",
        "bound",
        "not told",
        "prefetch",
        "threads",
        "->",
        "NaN",
        "null",
    ] {
        assert!(!view.contains(no), "{no:?} in {view}");
    }
    for yes in [
        "predicted step ",
        "ruled by ",
        "(predicted ",
        " at step 1, ",
        " mean of the last 8 steps",
        " before step 1, ",
        " after step 8",
    ] {
        assert!(view.contains(yes), "{yes:?} in {view}");
    }
    // The time left from the second step on; it is known there already.
    let line = |step: &str| {
        let line = view.lines().find(|l| l.starts_with(step));
        line.unwrap_or_else(|| panic!("no {step} in {view}"))
    };
    assert!(!line("step 1/8").contains("left"), "{view}");
    assert!(line("step 2/8").ends_with(" left"), "{view}");
    let sets = ["--set", "output=other", "--verbose"];
    let verbose = scratch.run(&[&["train", "run.yaml"][..], &sets].concat());
    let verbose = verbose.fine().text();
    for yes in [
        "masks ",
        "strategies that change numbers: none",
        "prefetch ",
        " threads ",
    ] {
        assert!(verbose.contains(yes), "{yes:?} in {verbose}");
    }
    let plan = scratch.run(&["plan", "run.yaml", "--set", "plan.machine="]);
    assert!(!plan.fine().text().contains("gpu"), "{}", plan.text());
    let bench = ["bench", "step", "run.yaml", "--steps", "1"];
    let bench = scratch.run(&bench).fine().text();
    assert!(
        !bench.contains("gpu") && !bench.contains("not told"),
        "{bench}"
    );
}
