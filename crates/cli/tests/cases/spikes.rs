//! Steps whose gradient norm is far above those before: noted, left out, or the end of the run.

use serde_json::Value;

use super::scratch::{Ended, Scratch};

/// Even a norm below the median of three is one: about every second step.
const RUN: &str = "model: {path: m}\noutput: out\nbudget: {device: 64MiB, host: 64MiB}\n\
    log: {trace: false, tensorboard: false}\ncheckpoint: {every_steps: 3, keep: 9}\n\
    data: {train: train.jsonl, packing: false}\n\
    train: {steps: 10, seq: 64, accumulate: 2, learning_rate: 1e-3, schedule: constant, warmup_steps: 0, \
    spike: {factor: 0.8, window: 3, action: skip}}\n";

fn train(case: &Scratch, output: &str, sets: &[&str]) -> Ended {
    let output = format!("output={output}");
    let mut args = vec!["train", "run.yaml", "--json", "--set", &output];
    sets.iter().for_each(|set| args.extend(["--set", set]));
    case.run(&args)
}

/// What is recorded of each step: loss, norm, how many times the median, whether its update was left out.
type Row = (u64, f64, f64, Option<f64>, bool);

fn rows(case: &Scratch, output: &str) -> Vec<Row> {
    let text = case.read(&format!("{output}/metrics.jsonl"));
    let lines = text
        .lines()
        .map(|l| serde_json::from_str::<Value>(l).expect("JSON"));
    let steps = lines.filter(|l| l.get("grad_norm").is_some());
    let of = |l: &Value, key: &str| l[key].as_f64();
    let row = |l: Value| {
        let number = |key| of(&l, key).expect("a number");
        let step = l["step"].as_u64().expect("a step");
        (
            step,
            number("loss"),
            number("grad_norm"),
            of(&l, "spike"),
            l["skipped"] == true,
        )
    };
    steps.map(row).collect()
}

/// Judges the norms that are recorded, as they should have been.
fn judged(rows: &[Row]) -> usize {
    let mut spikes = 0;
    for (i, row) in rows.iter().enumerate() {
        let mut before: Vec<f64> = rows[i.saturating_sub(3)..i].iter().map(|r| r.2).collect();
        before.sort_by(f64::total_cmp);
        let median = before.get(1).filter(|_| before.len() == 3);
        let spike = median.filter(|m| row.2 > 0.8 * **m).map(|m| row.2 / m);
        assert_eq!(row.3, spike, "{row:?}");
        spikes += usize::from(spike.is_some());
    }
    spikes
}

#[test]
fn spikes_are_left_out_alike_wherever_and_however_often_a_run_stops() {
    let case = Scratch::bare();
    case.write("run.yaml", RUN);
    let report = train(&case, "whole", &[]).fine().json();
    let whole = rows(&case, "whole");
    let spikes = judged(&whole);
    assert!((2..8).contains(&spikes) && whole.len() == 10, "{whole:?}");
    assert!(whole.iter().all(|r| r.4 == r.3.is_some()), "{whole:?}");
    assert_eq!(
        (&report["skipped"], &report["spikes"]),
        (&spikes.into(), &spikes.into())
    );
    let page = case.read("whole/report.html");
    assert!(page.contains("spikes"));

    // Other places, and parts of a run: norms of before are saved.
    train(&case, "tight", &["budget.device=3MiB", "plan.weights=host"]).fine();
    assert_eq!(rows(&case, "tight"), whole);
    let parts = train(
        &case,
        "parts",
        &["checkpoint.resume=whole/checkpoints/step-00000003"],
    );
    assert_eq!(rows(&case, "parts"), whole[3..]);
    assert_eq!(parts.fine().json()["spikes"], spikes);
    assert_eq!(
        case.read_bytes("parts/model/model.safetensors"),
        case.read_bytes("whole/model/model.safetensors")
    );
    // Two ranks judge as one: by the norm that both have.
    train(&case, "ranks", &["gpus=2", "plan.machine="]).fine();
    let ranks = rows(&case, "ranks");
    assert!(
        judged(&ranks) > 0 && ranks.iter().all(|r| r.4 == r.3.is_some()),
        "{ranks:?}"
    );

    // A warning changes nothing; another setting of what is left out is another run.
    let warned = train(&case, "warned", &["train.spike.action=warn"]);
    let plain = train(&case, "plain", &["train.spike={factor: 0}"]);
    plain.fine();
    let losses = |output| {
        rows(&case, output)
            .iter()
            .map(|r| (r.1, r.2))
            .collect::<Vec<_>>()
    };
    assert_eq!(losses("warned"), losses("plain"));
    assert!(
        warned.fine().err.contains("times the median"),
        "{}",
        warned.err
    );
    assert!(rows(&case, "warned").iter().any(|r| r.3.is_some() && !r.4));
    let first = whole.iter().position(|r| r.4).expect("a spike") + 1;
    assert_ne!(losses("plain")[first], (whole[first].1, whole[first].2));
    train(
        &case,
        "whole",
        &[
            "train.steps=12",
            "train.spike.factor=2",
            "checkpoint.change=train.steps",
        ],
    )
    .refused(&["train.spike.factor"]);

    let stopped = train(&case, "stopped", &["train.spike.action=stop"]);
    stopped.refused(&[
        "times",
        "the median of the 3 steps before",
        "train.spike.action=skip",
    ]);
    let words = format!("step {first}: gradient norm");
    assert!(stopped.err.contains(&words), "{words}: {}", stopped.err);
}
