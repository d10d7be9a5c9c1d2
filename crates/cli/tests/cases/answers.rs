//! Answers during training with a KV cache: beside the steps, within the budgets, the same wherever weights are.

use serde_json::Value;

use super::scratch::{Ended, Scratch};

const RUN: &str = "model: {path: m}\noutput: out\nbudget: {device: 64MiB, host: 64MiB}\n\
    log: {trace: false, tensorboard: false, report: false}\n\
    data: {train: train.jsonl, eval: eval.jsonl}\n\
    train: {steps: 4, seq: 128, learning_rate: 1e-2, schedule: constant, warmup_steps: 0}\n\
    eval: {batches: 1, generate: {exact_match: true, max_new_tokens: 6, max_examples: 5, every_steps: 2, cached: 3}}\n\
    checkpoint: {keep_best: exact_match}\n";

fn case() -> Scratch {
    let case = Scratch::bare();
    case.write("run.yaml", RUN);
    case
}

fn train(case: &Scratch, output: &str, sets: &[&str]) -> Ended {
    let output = format!("output={output}");
    let mut args = vec!["train", "run.yaml", "--json", "--set", &output];
    sets.iter().for_each(|set| args.extend(["--set", set]));
    case.run(&args)
}

/// Answers as they are recorded: all, or those of one time.
fn answers(case: &Scratch, output: &str, when: &str) -> Vec<Value> {
    let text = case.read(&format!("{output}/answers.jsonl"));
    let lines = text.lines().map(|l| serde_json::from_str(l).expect("JSON"));
    let of = |a: &Value| when == "all" || a["when"] == when;
    lines.filter(of).collect()
}

#[test]
fn answers_with_a_cache_are_made_beside_the_steps() {
    let case = case();
    let whole = train(&case, "whole", &[]).fine().json();
    let all = answers(&case, "whole", "all");
    // Before, after steps 2 and 4, and of what is exported.
    assert_eq!(all.len(), 20);
    let at = |step: u64| {
        all.iter()
            .filter(|a| a["step"] == step)
            .map(|a| &a["answer"])
            .collect::<Vec<_>>()
    };
    assert_ne!(at(0), at(2), "the weights are those of the step");

    // `eval` makes the same ones of the model that is exported: that of the best step.
    let model = ["eval", "run.yaml", "--json", "--model", "whole/model"];
    let evaluated = case.run(&model).fine().json();
    assert_eq!(evaluated["cached"], 3);
    let last = all[15..].iter().map(|a| &a["answer"]);
    let same = evaluated["answers"].as_array().expect("answers").iter();
    assert_eq!(
        same.map(|a| &a["answer"]).collect::<Vec<_>>(),
        last.collect::<Vec<_>>()
    );

    // Wherever weights are, and in less memory.
    let sets = ["budget.device=6MiB", "plan.weights=host"];
    let tight = train(&case, "tight", &sets).fine().json();
    assert_eq!(answers(&case, "tight", "all"), all);
    let device = |report: &Value| report["planned_bytes"]["device"].as_u64().expect("bytes");
    assert!(device(&tight) <= 6 << 20, "{tight}");
    assert!(device(&tight) < device(&whole));

    // A run that goes on from step 2 answers as the one that never stopped.
    let from = "checkpoint.resume=whole/checkpoints/step-00000002";
    train(&case, "parts", &[from]).fine();
    let last = |output: &str| {
        answers(&case, output, "during").split_off(5 * usize::from(output == "whole"))
    };
    assert_eq!(last("parts"), last("whole"));
}

#[test]
fn what_answers_with_a_cache_take_is_within_the_budgets() {
    let case = case();
    let plan = |sets: &[&str]| {
        let mut args = vec!["plan", "run.yaml", "--json", "--brief"];
        sets.iter().for_each(|set| args.extend(["--set", set]));
        case.run(&args)
    };
    // The machine of the file is a GPU, whose libraries take scratch.
    let with = plan(&["budget.device=1GiB"]).fine().json();
    let answers = &with["answers"];
    assert_eq!(
        (&answers["at_once"], &answers["tokens"]),
        (&3.into(), &128.into())
    );
    assert!(answers["device_bytes"].as_u64() > Some(0), "{answers}");
    assert_eq!(
        plan(&["budget.device=1GiB", "eval.generate.cached=0"])
            .fine()
            .json()["answers"],
        Value::Null
    );
    // What fits without answers does not fit with them, and the budgets that are named do.
    let least = ["budget.device=1MiB", "budget.host=2MiB"];
    let refused = plan(&least);
    refused.refused(&[
        "does not fit",
        "answers with a KV cache take",
        "eval.generate.cached=0",
    ]);
    let nearest = &refused.json()["nearest"];
    let of = |tier: &str| format!("budget.{tier}={}", nearest[tier].as_u64().expect("bytes"));
    let (device, host) = (of("device"), of("host"));
    let without = plan(&[&device, &host, "eval.generate.cached=0"])
        .fine()
        .json();
    let with = plan(&[&device, &host]).fine().json();
    for (i, tier) in ["device", "host"].iter().enumerate() {
        let held = |plan: &Value, of: &str| plan["tiers"][tier][of].as_u64().unwrap_or(0);
        let planned = held(&with, "planned_bytes");
        let answers = held(&with, "answers");
        assert_eq!(with["answers"][format!("{tier}_bytes")], answers);
        let parts = ["weights", "optimizer", "gradients", "transient"].map(|of| held(&with, of));
        let steps: u64 = parts.iter().sum();
        assert_eq!(steps + answers, planned, "{tier}");
        let budget = nearest[tier].as_u64().expect("bytes");
        assert!(planned <= budget, "{tier}: {planned} of {budget}");
        assert!(i == 1 || held(&without, "planned_bytes") > steps);
        assert_eq!(held(&without, "answers"), 0);
    }
    // What they do not do.
    for (set, words) in [
        (
            &["gpus=2", "train.accumulate=2"][..],
            &["eval.generate.cached", "gpus"],
        ),
        (
            &["strategy.name=lsp"],
            &["eval.generate.cached", "strategy.name"],
        ),
    ] {
        plan(set).refused(words);
    }
}

/// Places are reserved for the prompts that there are, not for all that are allowed.
#[test]
fn places_of_a_cache_are_no_more_than_prompts() {
    let case = case();
    let eval = case.read("eval.jsonl");
    let two: Vec<&str> = eval.lines().take(2).collect();
    case.write("two.jsonl", two.join("\n") + "\n");
    let sets = [
        "data.eval=two.jsonl",
        "train.steps=1",
        "eval.generate.cached=64",
        "eval.generate.max_examples=64",
        "eval.generate.every_steps=0",
        "checkpoint.keep_best=none",
    ];
    let ended = train(&case, "few", &sets);
    assert!(
        ended.fine().text().contains("answers: 2 at once") && ended.text().contains("\nanswers  "),
        "{}",
        ended.text()
    );
    assert_eq!(answers(&case, "few", "before").len(), 2);
}
