//! A run that is done, one that lacks only its last things, one that goes on with other settings; what
//! of answers is compared and recorded.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde_json::Value;

use crate::cases::lost::started;
use crate::cases::scratch::{Ended, Scratch};

const NO_ANSWERS: &str = "eval.generate.exact_match=false";

fn case() -> Scratch {
    Scratch::new("sigterm-during-answers")
}

fn train(scratch: &Scratch, sets: &[&str]) -> Ended {
    let mut args = vec!["train", "run.yaml", "--json"];
    for set in sets {
        args.extend(["--set", set]);
    }
    scratch.run(&args)
}

/// Every file and folder below, with when it was changed and what is in it.
fn everything(dir: &Path) -> BTreeMap<PathBuf, (SystemTime, Vec<u8>)> {
    let mut all = BTreeMap::new();
    let mut open = vec![dir.to_owned()];
    while let Some(path) = open.pop() {
        let meta = fs::metadata(&path).expect("there");
        let bytes = if meta.is_dir() {
            let entries = fs::read_dir(&path).expect("readable");
            open.extend(entries.map(|e| e.expect("readable").path()));
            Vec::new()
        } else {
            fs::read(&path).expect("readable")
        };
        all.insert(path, (meta.modified().expect("a time"), bytes));
    }
    all
}

fn lines(scratch: &Scratch, file: &str) -> Vec<Value> {
    let text = scratch.read(file);
    let lines = text.lines().map(|l| serde_json::from_str(l).expect("JSON"));
    lines.collect()
}

fn losses(scratch: &Scratch) -> Vec<(u64, String)> {
    let lines = lines(scratch, "out/metrics.jsonl");
    let of = |l: &Value| Some((l["step"].as_u64()?, l.get("loss")?.to_string()));
    lines.iter().filter_map(of).collect()
}

#[test]
fn a_finished_run_has_nothing_to_do_and_touches_nothing() {
    let scratch = case();
    let few = [
        "train.steps=3",
        "eval.generate.max_examples=2",
        "log.trace=true",
    ];
    let first = train(&scratch, &few);
    let done = first.fine().json();
    assert_eq!(done["nothing_to_do"], false);
    let before = everything(&scratch.at("out"));
    let again = train(&scratch, &few);
    let answer = again.fine().json();
    assert!(
        again.err.contains("finished at step 3; nothing to do"),
        "{}",
        again.err
    );
    assert_eq!(answer["nothing_to_do"], true, "{answer}");
    for key in [
        "steps",
        "loss_last",
        "eval_loss_last",
        "exact_match_after",
        "output",
        "checkpoint",
        "trace",
    ] {
        assert_eq!(answer[key], done[key], "{key}");
    }
    let after = everything(&scratch.at("out"));
    assert!(before == after, "{:?}", changed(&before, &after));
    // Another run in its place is refused, and touches nothing either.
    train(&scratch, &[&few[..], &["seed=5"]].concat()).refused(&["seed"]);
    train(
        &scratch,
        &[
            &few[1..],
            &["train.steps=2", "checkpoint.change=train.steps"],
        ]
        .concat(),
    )
    .refused(&["after step 3", "ends at step 2"]);
    let after = everything(&scratch.at("out"));
    assert!(before == after, "{:?}", changed(&before, &after));
    // What the run did not ask for before is missing now.
    fs::remove_file(scratch.at("out/answers.jsonl")).expect("there");
    let more = train(
        &scratch,
        &[
            few[0],
            few[2],
            "eval.generate.max_examples=2",
            "checkpoint.resume=never",
        ],
    );
    assert_eq!(more.fine().json()["nothing_to_do"], false);
}

fn changed(
    a: &BTreeMap<PathBuf, (SystemTime, Vec<u8>)>,
    b: &BTreeMap<PathBuf, (SystemTime, Vec<u8>)>,
) -> Vec<PathBuf> {
    let keys = a.keys().chain(b.keys());
    keys.filter(|k| a.get(*k) != b.get(*k)).cloned().collect()
}

#[test]
fn what_a_run_lacks_after_its_last_step_is_made_up() {
    let scratch = case();
    let few = ["train.steps=3", "eval.generate.max_examples=2"];
    train(&scratch, &few).fine();
    let model = fs::read(scratch.at("out/model/model.safetensors")).expect("there");
    let metrics = scratch.read("out/metrics.jsonl");
    let checkpoint = everything(&scratch.at("out/checkpoints"));
    // Killed between the last save and the export: no model, no mark, no answers.
    fs::remove_dir_all(scratch.at("out/model")).expect("there");
    let cut: Vec<&str> = metrics.lines().filter(|l| !l.contains("after")).collect();
    scratch.write("out/metrics.jsonl", cut.join("\n") + "\n");
    let _ = fs::remove_file(scratch.at("out/finished.json"));
    let again = train(&scratch, &few);
    let answer = again.fine().json();
    assert_eq!(answer["nothing_to_do"], false);
    assert_eq!(
        fs::read(scratch.at("out/model/model.safetensors")).expect("there"),
        model
    );
    assert_eq!(
        scratch.read("out/metrics.jsonl"),
        metrics,
        "each line once, as it was"
    );
    assert_eq!(
        everything(&scratch.at("out/checkpoints")),
        checkpoint,
        "saved again"
    );
    // The model alone is missing.
    fs::remove_dir_all(scratch.at("out/model")).expect("there");
    assert_eq!(train(&scratch, &few).fine().json()["nothing_to_do"], false);
    assert!(scratch.at("out/model/model.safetensors").exists());
    // A part of it is missing, or is cut off.
    fs::remove_file(scratch.at("out/model/tokenizer.json")).expect("there");
    assert_eq!(train(&scratch, &few).fine().json()["nothing_to_do"], false);
    scratch.write("out/model/model.safetensors", &model[..1000]);
    assert_eq!(train(&scratch, &few).fine().json()["nothing_to_do"], false);
    assert_eq!(
        fs::read(scratch.at("out/model/model.safetensors")).expect("there"),
        model
    );
    assert_eq!(train(&scratch, &few).fine().json()["nothing_to_do"], true);
    // Answers are asked for by a run that had none.
    let scratch = case();
    train(&scratch, &["train.steps=3", NO_ANSWERS]).fine();
    let answer = train(&scratch, &few).fine().json();
    assert!(answer["exact_match_after"].is_f64(), "{answer}");
}

#[test]
fn settings_change_where_the_run_names_them() {
    let scratch = case();
    let short = [NO_ANSWERS, "train.steps=4"];
    train(&scratch, &short).fine();
    let kept = everything(&scratch.at("out"));
    // Longer and at another rate: each has to be named.
    let long = [NO_ANSWERS, "train.steps=6", "train.learning_rate=5e-4"];
    train(&scratch, &long).refused(&["checkpoint.change=["]);
    let one = [&long[..], &["checkpoint.change=train.steps"]].concat();
    train(&scratch, &one).refused(&[
        "train.learning_rate",
        "checkpoint.change=[train.learning_rate]",
    ]);
    let both = [
        &long[..],
        &["checkpoint.change=[train.steps, train.learning_rate]"],
    ]
    .concat();
    let seed = [&both[..], &["seed=9"]].concat();
    train(&scratch, &seed).refused(&["seed"]);
    assert!(
        kept == everything(&scratch.at("out")),
        "a refusal changes nothing"
    );
    let ended = train(&scratch, &both);
    let answer = ended.fine().json();
    assert_eq!(answer["steps"], 6, "{answer}");
    for told in [
        "train.steps: 4 -> 6",
        "train.learning_rate: 0.001 -> 0.0005",
        "not the steps that a run",
    ] {
        assert!(ended.err.contains(told), "{told} in {}", ended.err);
    }
    let run = scratch.read("out/checkpoints/step-00000006/run.json");
    let run: Value = serde_json::from_str(&run).expect("JSON");
    let changes = run["changes"].as_array().expect("a list");
    assert_eq!(changes.len(), 2, "{changes:?}");
    assert!(changes.iter().all(|c| c["after_step"] == 4), "{changes:?}");
    // The rates of the steps after it are those of the new curve.
    let rates: Vec<f64> = lines(&scratch, "out/metrics.jsonl")
        .iter()
        .filter_map(|l| l["learning_rate"].as_f64())
        .collect();
    assert_eq!(rates.len(), 6);
    assert!(rates[4] < 5e-4 && rates[4] > rates[5], "{rates:?}");
    // From now on they are its own: no naming, and nothing to do.
    assert_eq!(train(&scratch, &long).fine().json()["nothing_to_do"], true);
    train(&scratch, &short).refused(&["train.learning_rate"]);
    // A name that nothing goes by is a mistake in the run file.
    train(&scratch, &["checkpoint.change=data.train"])
        .refused(&["checkpoint.change", "train.steps"]);
}

/// A named change of nothing changes nothing: the numbers are those of a run without it.
#[test]
fn naming_what_does_not_differ_is_allowed_and_changes_no_bit() {
    let (plain, named) = (case(), case());
    let sets = [NO_ANSWERS, "train.steps=4"];
    train(&plain, &sets).fine();
    train(
        &named,
        &[&sets[..], &["checkpoint.change=[train.steps]"]].concat(),
    )
    .fine();
    assert_eq!(losses(&plain), losses(&named));
    let weights = |s: &Scratch| fs::read(s.at("out/model/model.safetensors")).expect("there");
    assert_eq!(weights(&plain), weights(&named));
}

#[test]
fn answers_are_compared_by_what_is_extracted_and_recorded() {
    let scratch = case();
    // References that no model gives word for word, with a final answer like GSM8K's.
    let eval: String = scratch
        .read("eval.jsonl")
        .lines()
        .take(6)
        .map(|line| {
            let mut record: Value = serde_json::from_str(line).expect("JSON");
            let messages = record["messages"].as_array_mut();
            let field = match messages {
                Some(messages) => &mut messages.last_mut().expect("a turn")["content"],
                None => &mut record["completion"],
            };
            let text = field.as_str().expect("a reference").to_owned();
            *field = format!("so it is\n#### {text}").into();
            record.to_string() + "\n"
        })
        .collect();
    scratch.write("final.jsonl", &eval);
    let sets = [
        "data.eval=final.jsonl",
        "train.steps=2",
        "eval.generate.max_new_tokens=12",
        "eval.generate.every_steps=1",
        "log.tensorboard=true",
    ];
    let any = [&sets[..], &["eval.generate.extract=(?s)(?:#### )?(.*)"]].concat();
    let answer = train(&scratch, &any).fine().json();
    let answers = lines(&scratch, "out/answers.jsonl");
    let of = |when: &str| answers.iter().filter(|a| a["when"] == when).count();
    assert_eq!((of("before"), of("during"), of("after")), (6, 6, 6));
    for a in &answers {
        for key in ["prompt", "reference", "answer", "wanted"] {
            assert!(a[key].is_string(), "{key}: {a}");
        }
        assert_eq!(a["right"], a["extracted"] == a["wanted"], "{a}");
    }
    let after: Vec<&Value> = answers.iter().filter(|a| a["when"] == "after").collect();
    let right = after.iter().filter(|a| a["right"] == true).count();
    assert_eq!(answer["exact_match_after"], right as f64 / 6.0);
    let metrics = lines(&scratch, "out/metrics.jsonl");
    let recorded: Vec<(&Value, &Value, &Value)> = metrics
        .iter()
        .filter(|l| l.get("exact_match").is_some())
        .map(|l| (&l["step"], &l["when"], &l["right"]))
        .collect();
    assert_eq!(recorded.len(), 3, "{recorded:?}");
    assert_eq!(recorded[2], (&2.into(), &"after".into(), &right.into()));
    let events = fs::read_dir(scratch.at("out/tensorboard")).expect("events");
    let events: Vec<u8> = events
        .flat_map(|e| fs::read(e.expect("readable").path()).expect("events"))
        .collect();
    let has = |text: &str| events.windows(text.len()).any(|w| w == text.as_bytes());
    assert!(has("eval/exact_match") && has("eval/answers") && has("so it is"));
    // `eval` counts the same answers of the same model.
    let mut args = vec!["eval", "run.yaml", "--json", "--model", "out/model"];
    any.iter().for_each(|set| args.extend(["--set", set]));
    let evaluated = scratch.run(&args);
    let evaluated = evaluated.fine().json();
    assert_eq!(evaluated["right"], right, "{evaluated}");
    assert_eq!(evaluated["answers"].as_array().map(Vec::len), Some(6));
    for (a, b) in evaluated["answers"]
        .as_array()
        .expect("a list")
        .iter()
        .zip(&after)
    {
        assert_eq!(a["answer"], b["answer"]);
    }
}

#[test]
fn an_expression_that_cannot_be_used_is_an_error_that_names_its_place() {
    let scratch = case();
    train(&scratch, &["eval.generate.extract=#### (.*"])
        .refused(&["eval.generate.extract", "unclosed group"]);
    // The reference of line 1 of this file has no such line.
    train(&scratch, &["eval.generate.extract=#### (.*)"]).refused(&["eval.jsonl:1", "#### (.*)"]);
    // Without answers it would do nothing.
    train(&scratch, &["eval.generate.extract=a", NO_ANSWERS])
        .refused(&["eval.generate.extract", "exact_match"]);
}

/// What a run may write to its drives holds for all of its processes together.
#[test]
fn a_run_that_would_wear_its_drives_out_is_refused_before_its_first_step() {
    let scratch = case();
    // One machine's rates, so that both processes have one plan.
    let rates = include_str!("../../../../examples/machines/h200.json");
    scratch.write("machine.json", rates);
    let run = |steps: u64, allowed: Option<u64>| {
        let (steps, allowed) = (
            format!("train.steps={steps}"),
            allowed.map(|n| format!("budget.disk_writes={n}")),
        );
        let mut sets = vec![
            NO_ANSWERS,
            "budget.disk=1GiB",
            "plan.optimizer=disk",
            "plan.machine=machine.json",
            "checkpoint.change=train.steps",
            &steps,
        ];
        sets.extend(allowed.as_deref());
        train(&scratch, &sets)
    };
    let written = |ended: &Ended| {
        ended.fine().json()["disk_written"]
            .as_u64()
            .expect("a number")
    };
    let refused = run(2, Some(1 << 20));
    refused.refused(&["budget.disk_writes", "1.0 MiB allowed", "2 steps to come"]);
    let sets = [
        "budget.disk=1GiB",
        "plan.optimizer=disk",
        "plan.machine=machine.json",
        "budget.disk_writes=1MiB",
        "train.steps=2",
    ];
    for command in ["plan", "verify"] {
        let mut args = vec![command, "run.yaml"];
        args.extend(sets.iter().flat_map(|set| ["--set", set]));
        scratch.run(&args).refused(&["budget.disk_writes"]);
        // Epochs count too: their steps are those of the data.
        let last = args.len() - 1;
        args[last] = "train.epochs=1";
        scratch
            .run(&args)
            .refused(&["budget.disk_writes", "steps to come"]);
    }
    // A model of which something lies on the drives is written there by whatever opens it.
    for rest in [
        &["bench", "step", "run.yaml"][..],
        &["eval", "run.yaml"],
        &["generate", "run.yaml", "--prompt", "a"],
    ] {
        let mut args = rest.to_vec();
        args.extend(sets.iter().flat_map(|set| ["--set", set]));
        args.extend(["--set", "plan.weights=disk"]);
        let refused = scratch.run(&args);
        refused.refused(&["budget.disk_writes", "1.0 MiB allowed"]);
        let mut args = rest.to_vec();
        args.extend(sets.iter().flat_map(|set| ["--set", set]));
        args.extend(["--set", "plan.weights=disk"]);
        args.extend(["--set", "budget.disk_writes=10GiB", "--set", NO_ANSWERS]);
        scratch.run(&args).fine();
    }
    // Without data, the plan says how many bytes a run may write to its drives.
    scratch.write(
        "nodata.yaml",
        "model: {path: m}\noutput: out\nbudget: {device: 1GiB, host: 256MiB}\n\
         train: {epochs: 1, micro_batch: 2, seq: 128}\n",
    );
    let mut plan = vec!["plan", "nodata.yaml"];
    plan.extend(sets[..3].iter().flat_map(|set| ["--set", set]));
    plan.extend(["--set", "budget.disk_writes=1TiB"]);
    let told = scratch.run(&plan);
    assert!(
        told.text().contains("budget.disk_writes: 1.00 TiB are"),
        "{}",
        told.text()
    );
    assert!(!scratch.at("out/metrics.jsonl").exists());
    // A filling and two steps; another filling and two more.
    let two = written(&run(2, None));
    let last = lines(&scratch, "out/metrics.jsonl");
    let last = last.iter().rev().find_map(|l| l["disk_written"].as_u64());
    assert!(last.expect("is counted") <= two);
    run(4, Some(2 * two - 1)).refused(&["budget.disk_writes", "are written"]);
    let four = written(&run(4, Some(2 * two)));
    assert_eq!(four, 2 * two);
    // What a killed process wrote counts by its last line of metrics, though no checkpoint knows of it.
    let told = lines(&scratch, "out/metrics.jsonl");
    let last = told.into_iter().rfind(|l| l["disk_written"].is_u64());
    let mut more = last.expect("a step's line");
    (more["step"], more["disk_written"]) = (5.into(), (2 * two + 1000).into());
    let text = scratch.read("out/metrics.jsonl") + &format!("{more}\n");
    scratch.write("out/metrics.jsonl", text);
    run(6, Some(3 * two)).refused(&["budget.disk_writes"]);
    let six = written(&run(6, Some(3 * two + 1000)));
    assert_eq!(six, 3 * two + 1000);
}

/// A process that is killed has written more than the last line of its metrics tells: as much as its output's mark
/// says.
#[test]
fn what_a_killed_process_may_have_written_counts() {
    let scratch = case();
    let rates = include_str!("../../../../examples/machines/h200.json");
    scratch.write("machine.json", rates);
    let sets = [
        NO_ANSWERS,
        "budget.disk=1GiB",
        "plan.optimizer=disk",
        "plan.machine=machine.json",
        "log.every_steps=5",
    ];
    let fresh = |steps: &str| {
        let steps = [&sets[..], &["output=fresh", steps]].concat();
        let ended = train(&scratch, &steps);
        let written = ended.fine().json()["disk_written"].as_u64();
        fs::remove_dir_all(scratch.at("fresh")).expect("there");
        written.expect("a number")
    };
    let (two, four) = (fresh("train.steps=2"), fresh("train.steps=4"));
    let step = (four - two) / 2;
    let fill = two - 2 * step;
    let long = [&sets[..], &["train.steps=400"]].concat();
    drop(started(&scratch, &long, "step 20/"));
    let told = lines(&scratch, "out/metrics.jsonl");
    let told = told.iter().rev().find_map(|l| l["disk_written"].as_u64());
    let told = told.expect("is counted");
    let again = |allowed: u64| {
        let allowed = format!("budget.disk_writes={allowed}");
        let few = [&sets[..], &["train.steps=11", &allowed]].concat();
        train(&scratch, &few)
    };
    // Up to the next line it may have made five steps more, and two are in the lanes.
    let most = told + 7 * step + fill + 11 * step;
    again(most - 1).refused(&["budget.disk_writes", "11 steps to come"]);
    let ended = again(most);
    assert_eq!(ended.fine().json()["disk_written"], most);
}
