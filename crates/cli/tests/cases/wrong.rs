//! A sweep of wrong inputs: run files, values, paths, files, flags. Each is refused with exit code 2, names
//! what is wrong, says what to do, and leaves every file as it was.
//!
//! One file because it is a sweep: lists of wrong inputs, looked at by one function.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use crate::cases::looks::{RUN, scratch};
use crate::cases::scratch::{Ended, Scratch};

/// Names and contents of everything in a folder; of what is no file, its name alone.
fn everything(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("readable") {
            let entry = entry.expect("readable");
            let (path, kind) = (entry.path(), entry.file_type().expect("known"));
            if kind.is_dir() {
                folders.push(path.clone());
            }
            let bytes = match kind.is_file() {
                true => fs::read(&path).expect("readable"),
                false => Vec::new(),
            };
            all.insert(path, bytes);
        }
    }
    all
}

/// Every refusal is quick; the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs it to its end, or ends it.
fn within(scratch: &Scratch, args: &[&str]) -> Option<Ended> {
    let mut command = scratch.command(args);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary starts");
    let id = child.id();
    let (sender, ended) = mpsc::channel();
    // Whoever waits takes the child along, so it is ended by its number.
    let output = std::thread::spawn(move || {
        let text = |pipe: &mut dyn Read| {
            let mut bytes = Vec::new();
            pipe.read_to_end(&mut bytes).expect("readable");
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let err = child
            .stderr
            .take()
            .map(|mut p| text(&mut p))
            .unwrap_or_default();
        let out = child
            .stdout
            .take()
            .map(|mut p| text(&mut p))
            .unwrap_or_default();
        let code = child.wait().expect("a child").code();
        let _ = sender.send(());
        Ended { code, out, err }
    });
    let late = ended.recv_timeout(PATIENCE).is_err();
    if late {
        let _ = Command::new("kill")
            .args(["-KILL", &id.to_string()])
            .status();
    }
    let output = output.join().expect("no panic");
    (!late).then_some(output)
}

/// Refused: exit code 2, an error with these words and advice, no panic, and nothing made or changed.
#[track_caller]
fn refused(scratch: &Scratch, args: &[&str], words: &[&str]) -> Option<String> {
    let before = everything(scratch.path());
    let Some(ended) = within(scratch, args) else {
        return Some(format!("{args:?}: no answer within {PATIENCE:?}"));
    };
    let mut wrong = Vec::new();
    if ended.code != Some(2) {
        wrong.push(format!("exit code {:?}", ended.code));
    }
    for word in words.iter().chain(&["error: "]) {
        if !ended.err.contains(word) {
            wrong.push(format!("no {word:?}"));
        }
    }
    // The grammar of the command line has advice of its own.
    if !["  help: ", "For more information"]
        .iter()
        .any(|h| ended.err.contains(h))
    {
        wrong.push("no advice".to_owned());
    }
    for word in ["bug in lowtide", "panicked", "RUST_BACKTRACE"] {
        if ended.text().contains(word) {
            wrong.push(format!("{word:?}"));
        }
    }
    if ended.err.len() > 8000 {
        wrong.push(format!("{} bytes of error", ended.err.len()));
    }
    let after = everything(scratch.path());
    for path in before.keys().chain(after.keys()) {
        if before.get(path) != after.get(path) {
            wrong.push(format!("{} changed", path.display()));
        }
    }
    let args: String = format!("{args:?}").chars().take(200).collect();
    let err: String = ended.err.chars().take(600).collect();
    (!wrong.is_empty()).then(|| format!("{args}: {}\n{err}", wrong.join(", ")))
}

#[track_caller]
fn none(failures: Vec<String>) {
    assert!(
        failures.is_empty(),
        "{}\n{} failures",
        failures.join("\n"),
        failures.len()
    );
}

/// Run files that are none: their text, and what the error names.
#[test]
fn run_files_that_are_none() {
    let bomb: String = (0..30u8).fold("a0: &a0 [x, x]\n".to_owned(), |text, i| {
        text + &format!("a{}: &a{} [*a{i}, *a{i}, *a{i}]\n", i + 1, i + 1)
    });
    let texts: Vec<(Vec<u8>, &[&str])> = vec![
        (b"".to_vec(), &["empty"]),
        (b"[]".to_vec(), &["run.yaml:1:1"]),
        (b"just text".to_vec(), &["run.yaml:1:1"]),
        (b"null".to_vec(), &["model.path"]),
        (b"model: {path: m}\nfile: \xff\n".to_vec(), &["run.yaml"]),
        (
            b"model: {path: \"m\0\"}\ndata: {train: train.jsonl}\n".to_vec(),
            &["run.yaml"],
        ),
        (
            b"model: {path: m}\nmodel: {path: m}\n".to_vec(),
            &["run.yaml:2:1", "'model'"],
        ),
        (
            b"model: {path: m, path: m}\n".to_vec(),
            &["run.yaml:1:", "'model.path'"],
        ),
        (bomb.into_bytes(), &["run.yaml"]),
        (vec![b'['; 100_000], &["run.yaml"]),
        (
            [&b"model: "[..], &[b'{'; 300], b"a: 1"].concat(),
            &["run.yaml"],
        ),
        (
            [vec![b'k'; 100_000], b": 1\n".to_vec()].concat(),
            &["run.yaml"],
        ),
        ("größe: 1\n".into(), &["run.yaml:1:1", "größe"]),
        (b"model:\n\tpath: m\n".to_vec(), &["run.yaml:2:"]),
        (b"model: {path: \"m\n".to_vec(), &["run.yaml:"]),
        (
            b"model: {path: m}\n---\nmodel: {path: m}\n".to_vec(),
            &["run.yaml"],
        ),
        (b"model: m\n".to_vec(), &["run.yaml:1:", "'model'"]),
        (
            b"model: {path: [m]}\n".to_vec(),
            &["run.yaml:1:", "'model.path'"],
        ),
        (
            b"model: {path: m}\ntrain.seq: 5\n".to_vec(),
            &["run.yaml:2:1", "train.seq"],
        ),
        (b"model: *nobody\n".to_vec(), &["run.yaml:"]),
        (b"%YAML 9.9\n@\n".to_vec(), &["run.yaml"]),
    ];
    let scratch = scratch();
    let mut failures = Vec::new();
    for (text, words) in texts {
        scratch.write("run.yaml", &text);
        failures.extend(refused(&scratch, &["train", "run.yaml"], words));
    }
    scratch.write("run.yaml", RUN);
    fs::create_dir(scratch.at("folder.yaml")).expect("made");
    symlink("gone", scratch.at("gone.yaml")).expect("made");
    let fifo = std::process::Command::new("mkfifo")
        .arg(scratch.at("pipe.yaml"))
        .status();
    assert!(fifo.expect("mkfifo").success());
    for file in [
        "folder.yaml",
        "gone.yaml",
        "pipe.yaml",
        "none.yaml",
        "/dev/zero",
        "",
    ] {
        failures.extend(refused(&scratch, &["train", file], &[file]));
    }
    none(failures);
}

/// Values that no key takes, by `--set`.
#[test]
fn values_that_no_key_takes() {
    let long = format!("train.seq={}", "9".repeat(50_000));
    let each: Vec<String> = (0..65)
        .map(|i| format!("{{dir: d{i}, size: 1MiB}}"))
        .collect();
    let drives = format!("budget.disk=[{}]", each.join(", "));
    let cases: &[(&str, &[&str])] = &[
        ("train.seq=0", &["train.seq"]),
        ("train.seq=-1", &["train.seq"]),
        ("train.seq=99999999999999999999", &["train.seq"]),
        ("train.seq=1.5", &["train.seq"]),
        ("train.seq=٣", &["train.seq"]),
        (&long, &["train.seq"]),
        ("train.seq=4294967295", &["train.seq"]),
        ("train.micro_batch=0", &["train.micro_batch"]),
        ("train.micro_batch=4294967295", &["train.micro_batch"]),
        ("train.accumulate=0", &["train.accumulate"]),
        ("train.learning_rate=.nan", &["train.learning_rate"]),
        ("train.learning_rate=inf", &["train.learning_rate"]),
        ("train.learning_rate=-1", &["train.learning_rate"]),
        ("train.learning_rate=1e999", &["train.learning_rate"]),
        ("train.steps=0", &["train.steps"]),
        ("train.epochs=-0.5", &["train.epochs"]),
        ("train.warmup_steps=9", &["train.warmup_steps"]),
        ("train.logits_chunk=-3", &["train.logits_chunk"]),
        ("seed=-1", &["seed"]),
        ("threads=0", &["threads"]),
        ("threads=1000000000", &["threads"]),
        ("budget.device=lots", &["budget.device", "24GiB"]),
        ("budget.host=-1GiB", &["budget.host"]),
        ("budget.disk=1XB", &["budget.disk"]),
        ("budget.disk=[{dir: x}]", &["budget.disk[0]", "size"]),
        ("budget.disk=[{dir: x, size: 1MiB, speed: 2}]", &["speed"]),
        ("budget.disk=[[]]", &["budget.disk[0]"]),
        ("budget.disk=[", &["budget.disk"]),
        (
            "budget.device=1MiB",
            &["does not fit", "--set budget.device="],
        ),
        ("budget.device=0", &["does not fit", "--set budget.device="]),
        ("budget.host=0", &["budget.host"]),
        ("budget.host=9999TiB", &["budget.host", "machine"]),
        ("budget.device=9999TiB", &["budget.device", "machine"]),
        ("budget.disk=999999TiB", &["budget.disk", "file system"]),
        ("budget.host=18446744073709551615", &["budget.host"]),
        (
            "budget.disk=[{dir: a, size: 1MiB}, {dir: ./a, size: 1MiB}]",
            &["budget.disk[1].dir", "both are"],
        ),
        (&drives, &["budget.disk", "a list of 65 drives", "up to 64"]),
        ("data.format=xml", &["data.format", "chat"]),
        ("data.packing=maybe", &["data.packing"]),
        ("data.train={a: b}", &["data.train"]),
        ("data.train=[[a]]", &["data.train[0]"]),
        ("data.eval_split=2.5", &["data.eval_split"]),
        ("plan.weights=moon", &["plan.weights", "device"]),
        ("plan.recompute=-1", &["plan.recompute"]),
        (
            "optimizer.name=muon",
            &["optimizer.name", "not supported yet"],
        ),
        ("optimizer.beta1=1.5", &["optimizer.beta1"]),
        ("device=tpu", &["device"]),
        ("precision=fp8", &["precision"]),
        ("log.every_steps=0", &["log.every_steps"]),
        ("checkpoint.keep=0", &["checkpoint.keep"]),
        ("no equals sign", &["key.path=value"]),
        ("=value", &["key.path=value"]),
        ("train.sqe=1", &["train.sqe", "'train.seq'"]),
        ("model.größe=1", &["model.größe"]),
        ("train=5", &["train"]),
        ("train={seq: {}}", &["train.seq"]),
        ("model.shape=nothing-like-it", &["model.shape"]),
    ];
    let scratch = scratch();
    let mut failures = Vec::new();
    for (set, words) in cases {
        failures.extend(refused(
            &scratch,
            &["train", "run.yaml", "--set", set],
            words,
        ));
    }
    // The tokens of one batch alone are more than the machine holds.
    let most = [
        "train",
        "run.yaml",
        "--set",
        "train.micro_batch=65536",
        "--set",
        "train.seq=1048576",
    ];
    failures.extend(refused(&scratch, &most, &["train.micro_batch"]));
    for command in ["plan", "verify", "eval"] {
        let args = [&[command][..], &most[1..]].concat();
        failures.extend(refused(&scratch, &args, &[]));
    }
    // Where the file gives the value, its place is named.
    scratch.write("run.yaml", RUN.replace("seq: 64", "seq: none"));
    failures.extend(refused(
        &scratch,
        &["train", "run.yaml"],
        &["run.yaml:8:", "train.seq"],
    ));
    none(failures);
}

/// Paths to what is not there, of another kind, or not to be read; each for every key that takes such
/// a path. The key is named.
#[test]
fn paths_that_lead_nowhere() {
    let scratch = scratch();
    fs::create_dir(scratch.at("folder")).expect("made");
    scratch.write("empty", b"");
    scratch.write("text", b"hello\n");
    scratch.write("bytes", b"\xff\xfe\0\0");
    symlink("gone", scratch.at("dangling")).expect("made");
    symlink("turn", scratch.at("around")).expect("made");
    symlink("around", scratch.at("turn")).expect("made");
    let fifo = std::process::Command::new("mkfifo")
        .arg(scratch.at("pipe"))
        .status();
    assert!(fifo.expect("mkfifo").success());
    let long = "n".repeat(5000);
    let nowhere = [
        "none",
        "dangling",
        "around",
        "none/deep",
        "text/below",
        &long,
        "/dev/null",
        "pipe",
    ];
    let mut failures = Vec::new();
    let mut try_each = |command: &str, key: &str, paths: &[&str], words: &[&str]| {
        for path in paths {
            let set = format!("{key}={path}");
            let args = [command, "run.yaml", "--set", &set];
            failures.extend(refused(&scratch, &args, words));
        }
    };
    for key in [
        "data.train",
        "data.eval",
        "data.chat_template",
        "plan.machine",
    ] {
        try_each("train", key, &nowhere, &[key]);
        try_each("train", key, &["folder"], &[key, "a directory, not a file"]);
    }
    for key in ["model.path", "model.tokenizer", "checkpoint.resume"] {
        try_each("train", key, &nowhere, &[key]);
    }
    try_each(
        "train",
        "model.path",
        &["text"],
        &["model.path", "a file, not a directory"],
    );
    try_each(
        "train",
        "checkpoint.resume",
        &["text"],
        &["a file, not a directory"],
    );
    try_each("train", "checkpoint.resume", &["folder"], &["folder"]);
    try_each("plan", "model.path", &nowhere, &["model.path"]);
    try_each("eval", "data.eval", &nowhere, &["data.eval"]);
    try_each("verify", "data.train", &nowhere, &["data.train"]);
    // What is written may be new, but nothing that is no directory may stand there.
    let taken = [
        "text",
        "text/below",
        "dangling/below",
        "around",
        "/dev/null",
        "pipe",
        &long,
    ];
    try_each("train", "output", &taken, &["output: "]);
    for path in taken {
        let set = format!("budget.disk=[{{dir: {path}, size: 64MiB}}]");
        let args = ["train", "run.yaml", "--set", &set];
        failures.extend(refused(&scratch, &args, &["budget.disk: "]));
    }
    // Files with nothing in them, or something else.
    let mut try_each = |key: &str, paths: &[&str]| {
        for path in paths {
            let set = format!("{key}={path}");
            failures.extend(refused(
                &scratch,
                &["train", "run.yaml", "--set", &set],
                &[path],
            ));
        }
    };
    for key in ["data.train", "data.eval", "plan.machine", "model.tokenizer"] {
        try_each(key, &["empty", "text", "bytes"]);
    }
    try_each("data.chat_template", &["bytes"]);
    try_each("model.path", &["folder"]);
    none(failures);
}

/// Files of the model's directory, each broken in turn.
#[test]
fn files_of_a_model_that_are_broken() {
    let mut failures = Vec::new();
    let files = [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors",
    ];
    for file in files {
        for content in [
            &b""[..],
            b"{",
            b"[]",
            b"null",
            b"\xff\xff",
            b"{}",
            &[b'['; 60_000],
        ] {
            // A tokenizer may do without its settings, or with none of them.
            if file == "tokenizer_config.json" && content == b"{}" {
                continue;
            }
            let scratch = scratch();
            scratch.write(&format!("m/{file}"), content);
            failures.extend(refused(&scratch, &["train", "run.yaml"], &[file]));
        }
        let scratch = scratch();
        fs::remove_file(scratch.at("m").join(file)).expect("there");
        fs::create_dir(scratch.at("m").join(file)).expect("made");
        failures.extend(refused(&scratch, &["train", "run.yaml"], &[file]));
    }
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        let scratch = scratch();
        fs::remove_file(scratch.at("m").join(file)).expect("there");
        failures.extend(refused(&scratch, &["train", "run.yaml"], &["m"]));
    }
    none(failures);
}

/// Flags of every command.
#[test]
fn flags_that_cannot_be_followed() {
    let scratch = scratch();
    scratch.write("text", b"hello\n");
    let shape = [
        "plan",
        "--shape",
        "qwen2.5-0.5b",
        "--device-memory",
        "2GiB",
        "--host-memory",
        "4GiB",
    ];
    let with = |more: &[&'static str]| [&shape[..], more].concat();
    let cases: Vec<(Vec<&str>, &[&str])> = vec![
        (vec!["tarin", "run.yaml"], &["tarin"]),
        (vec!["train"], &["RUN.yaml"]),
        (vec!["train", "run.yaml", "--sets", "a=b"], &["--sets"]),
        (vec!["verify", "run.yaml", "--steps", "0"], &["--steps"]),
        (
            vec!["verify", "run.yaml", "--steps", "18446744073709551615"],
            &["--steps"],
        ),
        (
            vec![
                "bench",
                "step",
                "run.yaml",
                "--steps",
                "18446744073709551615",
            ],
            &["--steps"],
        ),
        (
            vec!["bench", "host", "--disk", ".", "--disk", "."],
            &["--disk"],
        ),
        (
            vec!["bench", "disk", "--dir", ".", "--size", "9999TiB"],
            &["9999.00 TiB needed"],
        ),
        (
            vec!["bench", "disk", "--dir", ".", "--seconds", "1e300"],
            &["--seconds"],
        ),
        (
            [
                &["probe", "--device", "cpu"][..],
                &["--disk", "x"].repeat(65),
            ]
            .concat(),
            &["--disk", "64"],
        ),
        (vec!["verify", "run.yaml", "--blocks", "-1"], &["-1"]),
        (
            vec![
                "generate",
                "run.yaml",
                "--prompt",
                "a",
                "--temperature",
                "-1",
            ],
            &["--temperature"],
        ),
        (
            vec![
                "generate",
                "run.yaml",
                "--prompt",
                "a",
                "--temperature",
                "NaN",
            ],
            &["--temperature"],
        ),
        (
            vec!["generate", "run.yaml", "--prompt", "a", "--top-p", "0"],
            &["--top-p"],
        ),
        (
            vec![
                "generate",
                "run.yaml",
                "--prompt",
                "a",
                "--max-new-tokens",
                "x",
            ],
            &["--max-new-tokens"],
        ),
        (
            vec!["generate", "run.yaml", "--prompt", ""],
            &["nothing to continue"],
        ),
        (
            vec!["generate", "run.yaml", "--prompt", "a", "--model", "none"],
            &["none"],
        ),
        (vec!["eval", "run.yaml", "--model", "text"], &["text"]),
        (
            vec!["eval", "run.yaml", "--set", "data.eval="],
            &["no evaluation data"],
        ),
        (vec!["probe", "--threads", "0"], &["--threads"]),
        (vec!["probe", "--device", "tpu"], &["tpu"]),
        (
            vec!["probe", "--device", "cpu", "--disk", "text"],
            &["text"],
        ),
        (vec!["probe", "--device", "cpu", "--out", "m"], &["m"]),
        (
            vec!["probe", "--device", "cpu", "--out", "none/machine.json"],
            &["none: "],
        ),
        (vec!["bench", "disk", "--dir", "text"], &["text"]),
        (
            vec!["bench", "disk", "--dir", ".", "--seconds", "nan"],
            &["--seconds"],
        ),
        (vec!["bench", "host", "--seconds", "-1"], &["--seconds"]),
        (
            vec!["bench", "host", "--parameters", "99999999999999999"],
            &["memory"],
        ),
        (vec!["plan", "run.yaml", "--machine", "text"], &["text"]),
        (vec!["plan", "run.yaml", "--machine", "."], &["."]),
        (with(&["--machine", "run.yaml"]), &["run.yaml"]),
        (with(&["--disk", "a=1GiB", "--disk", "2GiB"]), &["--disk"]),
        (with(&["--disk", "=1GiB"]), &["--disk"]),
        (with(&["--disk", "much"]), &["budget.disk"]),
        (with(&["--micro-batch", "0"]), &["train.micro_batch"]),
        (
            with(&["--micro-batch", "4294967295", "--seq", "4294967295"]),
            &["train."],
        ),
        (with(&["--device-memory", "lots"]), &["--device-memory"]),
    ];
    let mut failures = Vec::new();
    for (args, words) in cases {
        failures.extend(refused(&scratch, &args, words));
    }
    none(failures);
}

/// A limit on processes that is below what the run asks for. Root has no such limit, and is not held by one.
#[test]
fn threads_that_cannot_be_started() {
    let scratch = scratch();
    let lowtide = env!("CARGO_BIN_EXE_lowtide");
    // An address space of 2 GiB has no room for the stacks of so many threads.
    let line = format!(
        "ulimit -v 2000000; exec {lowtide} train run.yaml --set threads=4096 --set log.trace=false"
    );
    let run = || {
        let mut command = Command::new("sh");
        command.args(["-c", &line]).current_dir(scratch.path());
        command.env("LOWTIDE_CACHE", scratch.cache());
        let output = command.output().expect("a shell");
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), err)
    };
    // Where the last stack fits and the few KiB for its thread's signals do not, the standard library ends the process.
    let unlucky = |err: &str| err.contains("failed to allocate an alternative stack");
    let mut runs = (0..5).map(|_| run());
    let (code, err) = runs.find(|(_, err)| !unlucky(err)).expect("not each time");
    assert_eq!(code, Some(2), "{err}");
    assert!(
        err.contains("threads: 4096 asked for") && err.contains("help: "),
        "{err}"
    );
}

/// Arguments that are no text are named, where they must be text.
#[test]
fn overrides_that_are_no_text() {
    let scratch = scratch();
    let mut command = scratch.command(&["train", "run.yaml", "--set"]);
    command.arg(OsStr::from_bytes(b"output=\xff"));
    let output = command.output().expect("the binary starts");
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{err}");
    for word in ["--set output=", "not UTF-8", "help: "] {
        assert!(err.contains(word), "{word:?} in {err}");
    }
}
