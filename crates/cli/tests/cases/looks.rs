//! What people see: errors on wrong input, paths of any kind, and what a run tells.
//!
//! One file because its tests share what they look at.

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::os::unix::ffi::OsStrExt;
use std::process::Stdio;

use serde_json::Value;

use crate::cases::scratch::{Scratch, example_rates};

/// A short run on the quickstart's model and data, in a scratch folder.
pub const RUN: &str = "
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
pub fn scratch() -> Scratch {
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
    // As if the run had died after step 4 was saved.
    fs::remove_dir_all(parts.at("out/checkpoints/step-00000008")).expect("it is there");
    fs::remove_dir_all(parts.at("out/model")).expect("it is there");
    let from = "checkpoint.resume=out/checkpoints/step-00000004";
    let ended = parts.run(&["train", "run.yaml", "--json", "--set", from]);
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
        "copies ",
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

/// A name that is not UTF-8.
fn strange() -> &'static OsStr {
    OsStr::from_bytes(b"strange_\xff")
}

/// Every path of a run lies in a directory whose name is not UTF-8; in JSON it is shown with U+FFFD.
#[test]
fn paths_that_are_not_utf8_are_paths() {
    let scratch = Scratch::new("non-utf8-path");
    let dir = scratch.path().join(strange());
    fs::create_dir(&dir).expect("made");
    for name in ["m", "d.jsonl", "run.yaml"] {
        fs::rename(scratch.at(name), dir.join(name)).expect("moved");
    }
    let template = "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}\
        {% endif %}\n{% endfor %}";
    fs::write(dir.join("t.jinja"), template).expect("written");
    let run = |args: &[&str]| {
        let mut command = scratch.command(args);
        let output = command
            .current_dir(&dir)
            .output()
            .expect("the binary starts");
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(0), "{args:?}: {err}");
        assert!(!err.contains("bug in lowtide"), "{args:?}: {err}");
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        let last = out.lines().last().unwrap_or_default().to_owned();
        serde_json::from_str::<Value>(&last).unwrap_or_else(|e| panic!("{e}: {last}"))
    };
    fs::copy(example_rates(), dir.join("machine.json")).expect("copied");
    let sets = [
        "run.yaml",
        "--json",
        "--set",
        "plan.machine=machine.json",
        "--set",
        "device=cpu",
        "--set",
        "budget={device: 64MiB, host: 64MiB, disk: [{dir: disk, size: 64MiB}]}",
        "--set",
        "data.eval=d.jsonl",
        "--set",
        "log.trace=true",
        "--set",
        "log.tensorboard=true",
        "--set",
        "checkpoint.durable=true",
    ];
    let with =
        |command: &'static str, more: &[&'static str]| [&[command], &sets[..], more].concat();
    run(&with("plan", &[]));
    run(&with("verify", &["--steps", "1", "--blocks", "1"]));
    let report = run(&with("train", &[]));
    for key in ["output", "checkpoint", "metrics", "trace"] {
        let shown = report[key].as_str().expect("a path");
        assert!(shown.contains("strange_\u{fffd}/out/"), "{key}: {shown}");
    }
    assert!(dir.join("out/model/model.safetensors").is_file());
    let kept = fs::read(dir.join("out/run.json")).expect("written");
    let kept: Value = serde_json::from_slice(&kept).expect("JSON");
    let shown = kept["model"]["source"]["path"].as_str().expect("a path");
    assert!(shown.ends_with("strange_\u{fffd}/m"), "{shown}");
    run(&with(
        "train",
        &[
            "--set",
            "train.steps=2",
            "--set",
            "train.schedule=constant",
            "--set",
            "output=other",
            "--set",
            "data.chat_template=t.jinja",
        ],
    ));
    // The run's own model, and one that is named.
    let trained = run(&with("eval", &[]));
    assert_eq!(trained["eval_loss"], report["eval_loss_last"]);
    let base = run(&with("eval", &["--model", "m"]));
    assert_ne!(base["eval_loss"], trained["eval_loss"]);
    run(&with(
        "generate",
        &["--prompt", "The", "--max-new-tokens", "1"],
    ));
    // The run file named by its whole path, from elsewhere.
    let mut command = scratch.command(&["plan", "--json"]);
    let output = command
        .arg(dir.join("run.yaml"))
        .output()
        .expect("it starts");
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let mut command = scratch.command(&["train"]);
    let output = command
        .arg(dir.join("none.yaml"))
        .output()
        .expect("it starts");
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.code() == Some(2) && err.contains("none.yaml"),
        "{err}"
    );
}

/// A relative path of the file begins at the file's directory, one of `--set` at the current one; help
/// and docs say so.
#[test]
fn paths_of_overrides_begin_at_the_current_directory() {
    let scratch = scratch();
    fs::create_dir_all(scratch.at("runs/deep")).expect("made");
    let text = RUN.replace("path: m}", "path: ../../m}");
    let text = text.replace(
        "train: train.jsonl, eval: eval.jsonl",
        "train: ../../train.jsonl",
    );
    let text = text.replace("machine: machine", "machine: ../../machine");
    scratch.write(
        "runs/deep/run.yaml",
        text.replace("eval: {batches: 1}\n", ""),
    );
    let run = ["train", "runs/deep/run.yaml", "--set", "train.steps=1"];
    scratch
        .run(&[&run[..], &["--set", "output=here"]].concat())
        .fine();
    assert!(scratch.at("here/model").is_dir() && !scratch.at("runs/deep/here").exists());
    scratch.run(&run).fine();
    assert!(scratch.at("runs/deep/out/model").is_dir());
    let missing = scratch.run(&[&run[..], &["--set", "data.train=none.jsonl"]].concat());
    let place = format!("data.train: {}", scratch.at("none.jsonl").display());
    missing.refused(&[&place, "one of --set at the current directory"]);
    for command in ["train", "plan", "probe", "eval", "verify", "generate"] {
        let help = scratch.run(&[command, "--help"]).fine().text();
        let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(
            help.contains("relative to the current directory"),
            "{command}: {help}"
        );
    }
    let docs = scratch.run(&["schema", "--markdown"]).fine().text();
    let docs = docs.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(
        docs.contains("paths in `--set` to the current directory"),
        "{docs}"
    );
}

/// A checkpoint of other numbers names keys of the run file, never the hash alone.
#[test]
fn a_checkpoint_of_another_run_names_what_changed() {
    let scratch = scratch();
    scratch.train(&["train.steps=4"]).fine();
    scratch.write(
        "some.jsonl",
        scratch
            .read("train.jsonl")
            .lines()
            .take(50)
            .collect::<Vec<_>>()
            .join("\n"),
    );
    let resumed = |sets: &[&str]| {
        let steps = ["train.steps=6", "train.schedule=constant"];
        scratch.train(&[&steps[..], sets].concat())
    };
    let first = ["output=fresh", "train.steps=4", "train.schedule=constant"];
    scratch.train(&first).fine();
    for (set, words) in [
        (
            "data.train=some.jsonl",
            &["data.train", "tokenizer", "chat template", "train.seq"][..],
        ),
        ("train.seq=48", &["another train.seq: 64 there, 48 here"]),
        ("precision=f32", &["another precision"]),
        ("train.learning_rate=0.5", &["another train.learning_rate"]),
        ("seed=7", &["another seed"]),
    ] {
        let ended = resumed(&["output=fresh", set]);
        ended.refused(&[words, &["help: put it back", "checkpoint.resume=never"]].concat());
        assert!(!ended.err.contains("data.fingerprint"), "{}", ended.err);
    }
}

/// Advice on budgets keeps the drives of the run, and names a drive where memory alone falls short.
/// What standard output does not take is lost for whoever reads it: an error. A reader that went away is none.
#[test]
fn what_standard_output_refuses_is_an_error() {
    let scratch = scratch();
    let to = |args: &[&str], to: Stdio| {
        let mut command = scratch.command(args);
        let output = command.stdout(to).output().expect("the binary starts");
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), err)
    };
    let commands: [&[&str]; 6] = [
        &["schema"],
        &["schema", "--markdown"],
        &["--help"],
        &["--version"],
        &["plan", "run.yaml"],
        &["train", "run.yaml", "--json"],
    ];
    for args in commands {
        let full = OpenOptions::new().write(true).open("/dev/full");
        let (code, err) = to(args, full.expect("a device").into());
        assert_eq!(code, Some(2), "{args:?}: {err}");
        assert!(
            err.contains("standard output: No space left"),
            "{args:?}: {err}"
        );
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let (code, err) = to(args, writer.into());
        assert_eq!(code, Some(0), "{args:?}: {err}");
        assert!(!err.contains("standard output"), "{args:?}: {err}");
    }
    // An error of its own has its own code and words.
    let full = OpenOptions::new().write(true).open("/dev/full");
    let (code, err) = to(
        &["train", "nowhere.yaml", "--json"],
        full.expect("a device").into(),
    );
    assert_eq!(code, Some(2), "{err}");
    assert!(err.contains("nowhere.yaml"), "{err}");
}

#[test]
fn an_evaluation_tells_what_was_noticed_in_its_data() {
    let scratch = scratch();
    let ended = scratch.run(&["eval", "run.yaml"]);
    assert!(ended.fine().out.contains("eval data: "), "{}", ended.out);
}

#[test]
fn advice_on_budgets_knows_what_the_machine_has() {
    let scratch = scratch();
    let args = |shape: &str| {
        let model = format!("model={{shape: {shape}, tokenizer: m}}");
        let sets = [
            &model,
            "plan.optimizer=",
            "budget.device=1GiB",
            "budget.host=1GiB",
            "budget.disk=0",
        ];
        let mut args = vec!["train".to_owned(), "run.yaml".to_owned()];
        args.extend(
            sets.iter()
                .flat_map(|s| ["--set".to_owned(), (*s).to_owned()]),
        );
        args
    };
    let train = |shape: &str| {
        let args = args(shape);
        scratch.run(&args.iter().map(String::as_str).collect::<Vec<_>>())
    };
    // 175 billion parameters have more state than any machine that tests run on has memory.
    train("gpt3-175b").refused(&["this machine has", "is for a larger one"]);
    let small = train("qwen2.5-0.5b");
    small.refused(&["budgets that are enough: --set"]);
}

#[test]
fn advice_on_budgets_does_not_forget_the_disk() {
    let scratch = scratch();
    let shape = "model={shape: qwen2.5-0.5b}";
    let plan = |sets: &[&str]| {
        let mut args = vec![
            "plan",
            "run.yaml",
            "--set",
            shape,
            "--set",
            "plan.optimizer=",
        ];
        for set in sets {
            args.extend(["--set", set]);
        }
        scratch.run(&args)
    };
    let pasted = |advice: &str| -> Vec<String> {
        let sets = advice.split("--set ").skip(1);
        sets.map(|s| s.trim().trim_matches('\'').to_owned())
            .collect()
    };
    let line = |err: &str, about: &str| {
        let line = err.lines().find(|l| l.contains(about));
        line.unwrap_or_else(|| panic!("no {about:?} in {err}"))
            .to_owned()
    };
    // No drive allowed: more host memory, or one.
    let memory = ["budget.device=2GiB", "budget.host=3GiB", "budget.disk=0"];
    let refused = plan(&memory);
    refused.refused(&["budgets that are enough", "or a drive"]);
    let sets = pasted(&line(&refused.err, "or a drive"));
    assert!(
        sets.len() == 1 && sets[0].starts_with("budget.disk="),
        "{sets:?}"
    );
    let sets: Vec<&str> = memory
        .iter()
        .copied()
        .chain(sets.iter().map(String::as_str))
        .collect();
    plan(&sets).fine();
    // Of all ranks, as a run file has it.
    let machine = format!("plan.machine={}", scratch.rates_of(4).display());
    let memory = [
        &machine,
        "gpus=4",
        "train.accumulate=4",
        "budget.device=2GiB",
        "budget.host=3GiB",
        "budget.disk=0",
    ];
    let refused = plan(&memory);
    let sets = pasted(&line(&refused.err, "or a drive"));
    let sets: Vec<&str> = memory
        .iter()
        .copied()
        .chain(sets.iter().map(String::as_str))
        .collect();
    plan(&sets).fine();
    // Drives that are a little too small keep their places and shares.
    let drives = "budget.disk=[{dir: a, size: 600MiB}, {dir: b, size: 1800MiB}]";
    let memory = ["budget.device=2GiB", "budget.host=3GiB", drives];
    let refused = plan(&memory);
    let advice = line(&refused.err, "budgets that are enough");
    refused.refused(&["budgets that are enough"]);
    let size = |dir| -> u64 {
        let place = format!("{{dir: \"{}\", size: ", scratch.at(dir).display());
        let (_, rest) = advice
            .split_once(&place)
            .unwrap_or_else(|| panic!("{place} in {advice}"));
        let (size, _) = rest.split_once("MiB").expect("a size");
        size.parse().expect("a number")
    };
    assert!(size("b").abs_diff(3 * size("a")) <= 3, "{advice}");
    let sets = pasted(&advice);
    let sets: Vec<&str> = memory
        .iter()
        .copied()
        .chain(sets.iter().map(String::as_str))
        .collect();
    plan(&sets).fine();
}
