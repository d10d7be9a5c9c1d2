//! Runs that are planned again while they go on (`plan.adaptive`).

use std::fs;

use serde_json::{Value, json};

use crate::cases::scratch::{Scratch, example_rates};

const RUN: &str = "
model: { path: m }
output: out
threads: 1
budget: { device: 2MiB, host: 64MiB, disk: 64MiB }
plan: { adaptive: true, offload: disk, machine: wrong.json, min_gain: 0 }
data: { train: train.jsonl }
train: { steps: 80, micro_batch: 1, seq: 64, learning_rate: 1e-3 }
checkpoint: { every_steps: 0 }
log: { trace: false, tensorboard: false, every_steps: 1 }
";

/// Rates of no machine: a device a thousand times slower than it is, and drives without a limit. So saved tensors go
/// to a drive, each at the last moment.
fn wrong_rates() -> String {
    let text = fs::read_to_string(example_rates()).expect("rates");
    let mut machine: Value = serde_json::from_str(&text).expect("JSON");
    for (key, value) in [
        ("matmul_bf16", json!(1e8)),
        ("matmul_f32", json!(1e8)),
        ("op_overhead", json!(1e-3)),
        ("device_memory", json!(1e9)),
        ("copy_overhead", json!(1e-9)),
        ("h2d", json!(1e12)),
        ("d2h", json!(1e12)),
        ("shared", json!([])),
    ] {
        machine[key] = value;
    }
    machine["disk"] = json!({"read": 1e13, "write": 1e13, "mixed": 2e13, "latency": 1e-9});
    machine.to_string()
}

fn lines(case: &Scratch, output: &str) -> Vec<Value> {
    let text = case.read(&format!("{output}/metrics.jsonl"));
    let each = text.lines();
    each.map(|line| serde_json::from_str(line).expect("JSON"))
        .collect()
}

/// What another plan gains depends on what else the cores and the drive have to do: mostly a tenth to a third of a
/// step, sometimes too little. The bits are the same either way, and what is printed is what is written. A run that is
/// certain to change its plan is `trainer/a_run_changes_its_plan_once_and_is_resumed_behind_it`.
#[test]
fn a_run_planned_at_wrong_rates_looks_for_another_plan_and_ends_in_the_same_bits() {
    let case = Scratch::bare();
    case.write("wrong.json", wrong_rates());
    case.write("run.yaml", RUN);
    case.train(&["plan.adaptive=false", "output=once"]).fine();
    let model = |output| case.read_bytes(&format!("{output}/model/model.safetensors"));
    let loss = |output| -> Vec<Value> {
        let all = lines(&case, output).into_iter();
        all.filter_map(|l| l.get("loss").cloned()).collect()
    };
    let events = || -> Vec<Value> {
        let all = lines(&case, "out").into_iter();
        all.filter(|l| !l["event"].is_null()).collect()
    };
    // Planning may last longer than the run where all cores have other things to do.
    let judged = || {
        let ended = case.run(&[
            "train",
            "run.yaml",
            "-v",
            "--set",
            "checkpoint.resume=never",
        ]);
        let text = ended.fine().text();
        assert!(model("out") == model("once"), "another model");
        assert_eq!(loss("out"), loss("once"));
        let again = text.contains("planned again, because lanes are off");
        assert_eq!(events().len(), usize::from(again), "{text}");
        again || text.contains("was not planned again: ")
    };
    assert!((0..4).any(|_| judged()));
    let Some(event) = events().pop() else {
        return;
    };
    assert_eq!(event["event"], "replan");
    let number = |of: &Value| of.as_f64().expect("a number");
    let before = number(&event["predicted_seconds_before"]);
    let after = number(&event["predicted_seconds"]);
    assert!(after < 0.98 * before, "{event}");
    assert_ne!(event["plan"], event["plan_before"]);
    // What steps behind it are predicted to take is what this plan takes.
    let step = event["step"].as_u64().expect("a step");
    let all = lines(&case, "out");
    let predicted = |at: u64| {
        let line = all.iter().find(|l| l["step"] == at && l["steps"] == 80);
        line.map(|line| number(&line["predicted_seconds"]))
    };
    let first = predicted(step).expect("each step has a line");
    assert!(first > 1.0, "{first} at the wrong rates");
    assert!(predicted(step + 2).is_none_or(|s| (s - after).abs() < 1e-12));
    let shown = case.run(&["report", "out"]);
    assert!(shown.fine().out.contains("planned again"), "{}", shown.out);
}

/// All ranks would have to change it together.
#[test]
fn of_several_ranks_it_is_refused() {
    let case = Scratch::bare();
    case.write("run.yaml", RUN);
    let ended = case.train(&["gpus=2", "train.accumulate=2", "device=cpu"]);
    ended.refused(&["plan.adaptive", "gpus", "not supported"]);
    assert!(!case.at("out").exists());
}
