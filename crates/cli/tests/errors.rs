//! What a user can do wrong: a fact, advice, and exit code 2.

use crate::common::{answer, complaint, lowtide};

#[track_caller]
fn refuses(args: &[&str], words: &[&str]) {
    let output = lowtide(args).output().expect("the binary starts");
    let text = complaint(&output);
    assert_eq!(output.status.code(), Some(2), "{args:?}: {text}");
    assert!(
        output.stdout.is_empty() || text.starts_with("error"),
        "{args:?}: {text}"
    );
    for word in words {
        assert!(text.contains(word), "{args:?}: no {word:?} in {text}");
    }
    assert!(!text.contains("bug in lowtide"), "{text}");
}

#[test]
fn a_bench_of_nothing_is_refused() {
    let bench = ["bench", "disk", "--dir", "."];
    for (more, words) in [
        (["--size", "0"], ["--size 0: at least 128.0 MiB", "4GiB"]),
        (["--size", "lots"], ["--size lots", "a size such as"]),
        (["--seconds", "0"], ["--seconds 0", "from 0.001"]),
    ] {
        refuses(&[&bench[..], &more].concat(), &words);
    }
}

/// On a machine with a GPU this asks for nothing that is missing.
#[test]
fn a_gpu_that_is_not_there_is_told_with_what_to_do() {
    let shape = ["bench", "step", "--shape", "qwen2.5-0.5b"];
    let budgets = ["--device-memory", "8GiB", "--host-memory", "8GiB"];
    let gpu = ["--set", "device=cuda:0"];
    if std::path::Path::new("/dev/nvidiactl").exists() {
        let budgets = ["--device-memory", "4000GiB", "--host-memory", "8GiB"];
        refuses(
            &[&shape[..], &budgets, &gpu].concat(),
            &["device memory", "free of", "lower budget.device"],
        );
        return;
    }
    refuses(
        &[&shape[..], &budgets, &gpu].concat(),
        &["no CUDA device", "install NVIDIA's driver", "device=cpu"],
    );
}

#[test]
fn a_pace_of_links_needs_rates_and_a_link() {
    let shape = ["bench", "step", "--shape", "qwen2.5-0.5b"];
    let budgets = ["--device-memory", "8GiB", "--host-memory", "8GiB"];
    let cpu = ["--set", "device=cpu"];
    let args = [&shape[..], &budgets, &cpu].concat();
    for (pace, words) in [
        ("12GB/s", "LOWTIDE_PACE=12GB/s: not rates of links"),
        ("h2d:12GB/s", "this run computes on the processor"),
    ] {
        let output = lowtide(&args).env("LOWTIDE_PACE", pace).output();
        let output = output.expect("the binary starts");
        let text = complaint(&output);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(
            text.contains(words) && text.contains("unset LOWTIDE_PACE"),
            "{text}"
        );
    }
}

#[test]
fn mistakes_are_told_with_what_was_probably_meant() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("run.yaml");
    let run = path.to_str().expect("UTF-8");
    std::fs::write(&path, "model: { shape: qwen2.5-0.5b }\ntrain: { sqe: 3 }\n").expect("written");
    refuses(
        &["train", run],
        &[
            "error: ",
            "run.yaml:2:",
            "unknown key 'train.sqe'",
            "'train.seq'",
        ],
    );
    // A file of another trainer: all of its keys, and where they stand beside ours.
    let theirs = "model_name_or_path: m\nmax_length: 512\npacking: true\n";
    std::fs::write(&path, theirs).expect("written");
    let words = [
        "'model.path'",
        "'train.seq'",
        "'data.packing'",
        "lowtide import",
        "coming-from.md",
    ];
    refuses(&["train", run], &words);
    refuses(
        &["import", run],
        &["no run file of Axolotl", "TRL", "coming-from.md"],
    );
    std::fs::write(&path, "model: { shape: qwen2.5-0.5b }\n").expect("written");
    refuses(&["train", run], &["data.train"]);
    for option in ["--learning_rate", "--per-device-train-batch-size"] {
        refuses(&["train", run, option, "3"], &["changed by --set train."]);
    }
    refuses(
        &["plan", run, "--set", "budget.host=lots"],
        &["budget.host", "24GiB"],
    );
    refuses(&["plan", run, "--machine", run], &["not a machine file"]);
    refuses(&["train", "no/such/run.yaml"], &["no/such/run.yaml"]);
    refuses(
        &["plan", run, "--set", "model.path=no/such/model"],
        &["no/such/model"],
    );
    let budgets = ["--device-memory", "1GiB", "--host-memory", "1GiB"];
    let shape = |name| [&["plan", "--shape", name][..], &budgets].concat();
    refuses(&shape("qwen2.5-0.5"), &["did you mean 'qwen2.5-0.5b'"]);
    refuses(
        &[&shape("gpt3-13b")[..], &["--seq", "4096"]].concat(),
        &["--set train.seq=2048"],
    );
    refuses(&["plan"], &["Usage"]);
    refuses(&["generate", run], &[run, "--prompt", "--message"]);
    // Answers have no batch, and as many positions as the model.
    let answers = [&["bench", "generate", "--shape", "llama2-7b"][..], &budgets].concat();
    for unused in [["--seq", "64"], ["--svg", "a.svg"]] {
        refuses(
            &[&answers[..], &unused].concat(),
            &[unused[0], "leave it out"],
        );
    }
    let long = ["--prompt-tokens", "4000", "--new-tokens", "200"];
    let words = ["4200 tokens", "positions for 4096", "--prompt-tokens"];
    refuses(&[&answers[..], &long].concat(), &words);
    let quickstart = crate::common::root().join("examples/quickstart/run.yaml");
    let quickstart = quickstart.to_str().expect("text");
    // How many steps a run of epochs has is known with its data.
    let output = format!("output={}", dir.path().join("out").display());
    let mut warm = vec!["train", quickstart, "--set", "device=cpu", "--set", &output];
    for set in ["train.steps=", "train.epochs=1", "train.warmup_steps=1000"] {
        warm.extend(["--set", set]);
    }
    refuses(
        &warm,
        &[
            "train.warmup_steps is 1000",
            "train.epochs 1 makes",
            "train.warmup_ratio",
        ],
    );
    // Who looks at the data hears it, too.
    warm[0] = "data";
    refuses(&warm, &["train.warmup_steps is 1000"]);
    let none = [
        "eval",
        quickstart,
        "--cached",
        "4",
        "--set",
        "eval.generate.exact_match=false",
    ];
    refuses(&none, &["--cached", "answers no prompts"]);
    let several = ["eval", quickstart, "--cached", "4", "--gpus", "2"];
    refuses(&several, &["--cached", "one GPU"]);
    let folder = std::env::temp_dir();
    let folder = folder.to_str().expect("text");
    refuses(&["generate", folder], &["a directory", "the run file"]);
}

#[test]
fn with_json_the_error_is_the_last_line() {
    let (code, error) = answer(&["train", "no/such/run.yaml"]);
    assert_eq!((code, &error["exit_code"]), (2, &2.into()));
    assert!(
        error["error"]
            .as_str()
            .expect("text")
            .contains("no/such/run.yaml")
    );
    // Also of a command line that is not understood.
    for args in [
        &["train", "run.yaml", "--nope"][..],
        &["export", "run.yaml", "o", "--dtype", "f8"],
        &["eval", "run.yaml", "--cached", "0"],
    ] {
        let (code, error) = answer(args);
        assert_eq!((code, &error["exit_code"]), (2, &2.into()), "{error}");
        let text = error["error"].as_str().expect("text");
        assert!(text.contains(args[args.len() - 1]), "{text}");
    }
    let events = lowtide(&["train", "run.yaml", "--events", "--nope"]).output();
    let events = events.expect("the binary starts").stdout;
    assert!(serde_json::from_slice::<serde_json::Value>(&events).is_ok());
}

#[test]
fn the_schema_is_json_and_the_reference_markdown() {
    let output = lowtide(&["schema"]).output().expect("the binary starts");
    let schema: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(
        schema["properties"]["train"]["properties"]["seq"]["type"],
        "integer"
    );
    let (code, line) = answer(&["schema"]);
    assert_eq!((code, line), (0, schema));
    let output = lowtide(&["schema", "--markdown"])
        .output()
        .expect("the binary starts");
    assert!(String::from_utf8_lossy(&output.stdout).contains("| `seq` |"));
}
