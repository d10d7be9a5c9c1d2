//! Nothing lost: exports, checkpoints, full disks, links, two runs in one directory.
//!
//! One file because its tests share the runs that are started and killed.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use super::scratch::{Ended, Scratch};

/// Four steps, a checkpoint each two.
pub const RUN: &str = "
model: {path: m}
output: out
budget: {device: 1GiB, host: 256MiB}
log: {trace: false, tensorboard: false}
train: {steps: 4, micro_batch: 2, seq: 64, learning_rate: 1e-3, warmup_steps: 0}
data: {train: train.jsonl, max_examples: 40}
checkpoint: {every_steps: 2}
";

/// Every file under a directory with its bytes.
pub fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(dir).expect("a directory").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type().expect("known").is_dir() {
            let below = files(&entry.path()).into_iter();
            all.extend(below.map(|(n, b)| (format!("{name}/{n}"), b)));
        } else {
            all.insert(name, fs::read(entry.path()).expect("readable"));
        }
    }
    all
}

pub fn names(dir: &Path) -> Vec<String> {
    files(dir).into_keys().collect()
}

#[test]
fn the_base_model_is_never_replaced() {
    let s = Scratch::new("base-model-deleted");
    fs::rename(s.at("m"), s.at("model")).unwrap();
    s.write("model/my-notes.txt", "precious");
    let run = s.read("run.yaml");
    s.write(
        "run.yaml",
        run.replace("path: m", "path: model")
            .replace("output: out", "output: ./"),
    );
    let before = files(s.path());
    s.train(&[]).refused(&["model.path", "model", "output="]);
    assert_eq!(files(s.path()), before);
    // Under another name, and as the output directory itself.
    std::os::unix::fs::symlink(s.at("model"), s.at("alias")).unwrap();
    s.train(&["model.path=alias"]).refused(&["model.path"]);
    s.train(&["model.path=model", "output=model"])
        .refused(&["model.path"]);
    fs::remove_file(s.at("alias")).unwrap();
    assert_eq!(files(s.path()), before);
    // Elsewhere it is no hindrance.
    s.train(&["output=out"]).fine();
    assert!(s.at("out/model/model.safetensors").is_file());
    for (name, bytes) in &before {
        assert_eq!(&fs::read(s.at(name)).unwrap(), bytes, "{name}");
    }
}

#[test]
fn a_strangers_model_is_refused_and_files_in_ours_are_kept() {
    let s = Scratch::bare();
    s.write("run.yaml", RUN);
    fs::create_dir_all(s.at("out/model")).unwrap();
    s.write("out/model/model.safetensors", "a stranger's");
    s.train(&[])
        .refused(&["out/model", "not written by lowtide", "move it away"]);
    assert_eq!(names(&s.at("out")), ["model/model.safetensors"]);
    fs::remove_dir_all(s.at("out")).unwrap();
    s.train(&[]).fine();
    let ours = fs::read(s.at("out/model/model.safetensors")).unwrap();
    // A second run over it, with a file of the user's, and one of ours that the user changed.
    s.write("out/model/notes.txt", "mine");
    s.write("out/model/config.json", "{\"mine\": true}");
    let again = s.train(&["checkpoint.resume=never"]);
    again.fine();
    assert!(
        again.text().contains("notes.txt: not lowtide's, kept"),
        "{}",
        again.text()
    );
    assert_eq!(s.read("out/model/notes.txt"), "mine");
    assert_eq!(s.read("out/model.kept/config.json"), "{\"mine\": true}");
    assert_eq!(fs::read(s.at("out/model/model.safetensors")).unwrap(), ours);
    assert!(s.read("out/model/config.json").contains("hidden_size"));
}

#[test]
fn a_run_that_cannot_start_leaves_no_directory() {
    let s = Scratch::bare();
    s.write("run.yaml", RUN);
    s.train(&["data.train=nothing.jsonl"])
        .refused(&["nothing.jsonl"]);
    assert!(!s.at("out").exists());
}

#[test]
fn links_at_the_names_of_outputs_are_refused() {
    let s = Scratch::bare();
    s.write("run.yaml", RUN);
    s.write("precious", "precious");
    fs::create_dir(s.at("elsewhere")).unwrap();
    s.write("elsewhere/keep", "precious");
    for (name, target) in [
        ("metrics.jsonl", "precious"),
        ("machine.json", "precious"),
        ("run.json", "precious"),
        ("trace.json", "nothing-there"),
        ("model", "elsewhere"),
        ("checkpoints", "elsewhere"),
        ("tensorboard", "elsewhere"),
        ("disk", "elsewhere"),
    ] {
        fs::create_dir(s.at("out")).unwrap();
        let link = s.at("out").join(name);
        std::os::unix::fs::symlink(s.at(target), &link).unwrap();
        s.train(&[]).refused(&[name, "symbolic link"]);
        assert_eq!(fs::read_dir(s.at("out")).unwrap().count(), 1);
        fs::remove_dir_all(s.at("out")).unwrap();
    }
    assert_eq!(s.read("precious"), "precious");
    assert_eq!(names(&s.at("elsewhere")), ["keep"]);
    assert!(!s.at("nothing-there").exists());
}

/// A child that ends when the test does.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a run and returns when it has printed a line with `word`.
pub fn started(
    s: &Scratch,
    sets: &[&str],
    word: &str,
) -> (Running, BufReader<std::process::ChildStdout>) {
    let mut args = vec!["train", "run.yaml"];
    sets.iter().for_each(|set| args.extend(["--set", set]));
    let mut child = s
        .command(&args)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary starts");
    let mut out = BufReader::new(child.stdout.take().expect("piped"));
    let running = Running(child);
    let mut line = String::new();
    while !line.contains(word) {
        line.clear();
        assert!(
            out.read_line(&mut line).expect("text") > 0,
            "ended before {word:?}"
        );
    }
    (running, out)
}

#[test]
fn two_runs_with_one_output_directory_are_refused() {
    let s = Scratch::bare();
    s.write("run.yaml", RUN);
    let long = ["train.steps=100000", "checkpoint.every_steps=0"];
    let (first, _out) = started(&s, &long, "step 1/");
    s.train(&[])
        .refused(&["another run", "out/.lowtide", "output="]);
    // The lock dies with its process.
    drop(first);
    s.train(&[]).fine();
}

/// Runs `script` in a shell that has a file system of `size` at `small`, which nobody else sees and which goes with
/// it. `None`, printed as skipped, where this user may not mount.
#[allow(clippy::print_stdout, reason = "what is skipped must be seen")]
pub fn with_small_disk(s: &Scratch, size: &str, script: &str) -> Option<Ended> {
    fs::create_dir_all(s.at("small")).unwrap();
    let whole = format!(
        "mount -t tmpfs -o size={size} tmpfs small && echo mounted || exit 77\n\
         lowtide=$0\n{script}"
    );
    for how in [&["-m"][..], &["-U", "-r", "-m"]] {
        let output = Command::new("unshare")
            .args(how)
            .args([
                "timeout",
                "300",
                "sh",
                "-c",
                &whole,
                env!("CARGO_BIN_EXE_lowtide"),
            ])
            .current_dir(s.path())
            .env("LOWTIDE_CACHE", s.cache())
            .output();
        match output {
            Ok(output) if output.stdout.starts_with(b"mounted") => {
                return Some(Ended {
                    code: output.status.code(),
                    out: String::from_utf8_lossy(&output.stdout).into_owned(),
                    err: String::from_utf8_lossy(&output.stderr).into_owned(),
                });
            }
            _ => {}
        }
    }
    println!("skipped: no file system of its own can be mounted here");
    None
}

#[test]
fn too_little_room_is_refused_before_the_first_step() {
    let s = Scratch::new("disk-full-at-first-save");
    let script =
        "$lowtide train run.yaml --set output=small/out; rc=$?; find small -type f; exit $rc";
    let Some(ended) = with_small_disk(&s, "8m", script) else {
        return;
    };
    ended.refused(&[
        "small: the run needs",
        "3 checkpoints",
        "free",
        "checkpoint.keep=1",
    ]);
    assert!(!ended.out.contains("step 1/"), "{}", ended.out);
    assert!(!ended.out.contains("small/out"), "{}", ended.out);
    // State files on the same file system count with the rest.
    let disk = [
        "output=first",
        "budget.disk=64MiB",
        "plan.optimizer=disk",
        "train.steps=1",
    ];
    s.train(&disk).fine();
    let script = "$lowtide train run.yaml --set output=small/out --set budget.disk=20MiB \
                  --set plan.optimizer=disk --set plan.machine=first/machine.json";
    let ended = with_small_disk(&s, "40m", script).expect("as above");
    ended.refused(&["small: the run needs", "for state"]);
    // And with all of it, it trains.
    let script = "$lowtide train run.yaml --set output=small/out";
    with_small_disk(&s, "40m", script).expect("as above").fine();
}

#[test]
fn a_full_disk_costs_log_lines_and_nothing_else() {
    let s = Scratch::new("log-disk-full");
    let script = "
        $lowtide train run.yaml --set output=small/out --set train.steps=300 \
            --set log.tensorboard=true --set checkpoint.every_steps=100 > log 2>&1 & p=$!
        while ! grep -q 'step 30/' log; do kill -0 $p || exit 78; sleep 0.05; done
        dd if=/dev/zero of=small/fill bs=1k 2>/dev/null
        wait $p; rc=$?
        cat log; ls small/out/checkpoints; ls small/out/model; exit $rc";
    let Some(ended) = with_small_disk(&s, "40m", script) else {
        return;
    };
    ended.fine();
    for word in [
        "warning: ",
        "metrics.jsonl: No space",
        "step 300/300",
        "step-00000200",
        "step-00000300",
        "model.safetensors",
    ] {
        assert!(ended.out.contains(word), "{word:?} in {}", ended.out);
    }
    // Once when it begins, once when the run ends with lines missing; for the events too.
    assert!(ended.out.matches("warning: ").count() <= 4, "{}", ended.out);
}

/// A checkpoint that cannot be written costs itself alone, is named when the run ends, and ends the run where it is to.
#[test]
fn checkpoints_that_were_not_written_are_named_at_the_end() {
    let s = Scratch::new("log-disk-full");
    let run = |more: &str, in_the_way: &str| {
        let script = format!(
            "$0 train run.yaml --set train.steps=400 --set checkpoint.every_steps=200 --set plan.machine={} \
                {more} > log 2>&1 & p=$!
            # Two hundred steps are seconds, also of a machine that is busy.
            while ! grep -q 'step 1/' log; do kill -0 $p || exit 78; sleep 0.05; done
            {in_the_way}
            wait $p; rc=$?
            cat log; ls out/checkpoints; exit $rc",
            super::scratch::example_rates().display()
        );
        let output = Command::new("timeout")
            .args(["300", "sh", "-c", &script, env!("CARGO_BIN_EXE_lowtide")])
            .current_dir(s.path())
            .env("LOWTIDE_CACHE", s.cache())
            .output();
        Ended::of(&output.expect("a shell"))
    };
    let for_a_while = "
        touch out/checkpoints
        while ! grep -q 'was not saved' log; do kill -0 $p || exit 79; sleep 0.01; done
        rm out/checkpoints";
    let ended = run("", for_a_while);
    ended.fine();
    for word in [
        "warning: the checkpoint of step 200 was not saved: ",
        "the run goes on, there is no checkpoint yet",
        "not written ",
        "step 200",
        "step-00000400",
    ] {
        assert!(ended.out.contains(word), "{word:?} in {}", ended.out);
    }
    assert!(!ended.out.contains("step-00000200"), "{}", ended.out);
    fs::remove_dir_all(s.at("out")).unwrap();
    let ended = run("--set checkpoint.on_error=stop", "touch out/checkpoints");
    assert_eq!(ended.code, Some(2), "{}", ended.out);
    for word in [
        "one that cannot be written ends the run",
        "the checkpoint of step 200 was not saved: ",
        "out/checkpoints: is not a directory",
    ] {
        assert!(ended.out.contains(word), "{word:?} in {}", ended.out);
    }
    assert!(!ended.out.contains("step 300/"), "{}", ended.out);
}

/// Which steps have lines is said by who made them, also by those without a page and of another setting.
#[test]
fn lines_that_nobody_was_to_write_are_not_missed() {
    let s = Scratch::new("newest-checkpoint-broken");
    s.train(&[]).fine();
    let change = "checkpoint.change=train.steps";
    let longer = |sets: &[&str]| {
        let ended = s.train(&[&[change], sets].concat());
        ended.fine();
        ended.text()
    };
    let said = longer(&["train.steps=19", "log.report=false", "log.every_steps=10"]);
    assert!(!said.contains("no line"), "{said}");
    let report = s.run(&["report", "out"]).fine().text();
    assert!(!report.contains("missing"), "{report}");
    // Lines of the process before are missed though fewer are written from here on.
    let metrics = s.read("out/metrics.jsonl");
    let first: String = metrics.lines().take(2).map(|l| format!("{l}\n")).collect();
    s.write("out/metrics.jsonl", first);
    let said = longer(&["train.steps=20", "log.report=false", "log.every_steps=1000"]);
    assert!(
        said.contains("ends at step 2: it has no lines of steps 3 to 19"),
        "{said}"
    );
}

#[test]
fn metrics_that_are_gone_are_missed() {
    let s = Scratch::new("newest-checkpoint-broken");
    s.train(&[]).fine();
    let metrics = s.read("out/metrics.jsonl");
    let report = || s.run(&["report", "out"]).fine().text();
    assert!(!report().contains("missing"), "{}", report());
    let longer = |steps: &str| {
        let ended = s.train(&[steps, "checkpoint.change=train.steps"]);
        ended.fine();
        ended.text()
    };
    // A run that has all of them says nothing.
    let said = longer("train.steps=7");
    assert!(
        !said.contains("metrics.jsonl is not") && !said.contains("has no line"),
        "{said}"
    );
    // Cut, gone, emptied.
    let first: String = metrics.lines().take(2).map(|l| format!("{l}\n")).collect();
    s.write("out/metrics.jsonl", first);
    assert!(
        report().contains("metrics.jsonl ends at step 2, of 7 that were made"),
        "{}",
        report()
    );
    let said = longer("train.steps=8");
    assert!(
        said.contains("metrics.jsonl ends at step 2: it has no lines of steps 3 to 7"),
        "{said}"
    );
    fs::remove_file(s.at("out/metrics.jsonl")).unwrap();
    assert!(
        report().contains("metrics.jsonl is not there"),
        "{}",
        report()
    );
    let said = longer("train.steps=9");
    assert!(
        said.contains("metrics.jsonl is not there: of the steps up to 8"),
        "{said}"
    );
    s.write("out/metrics.jsonl", "");
    assert!(
        report().contains("metrics.jsonl has no step, of 9"),
        "{}",
        report()
    );
    let said = longer("train.steps=10");
    assert!(
        said.contains("metrics.jsonl has no step: of the steps up to 9"),
        "{said}"
    );
    // What cannot be read is an error with its name.
    fs::remove_file(s.at("out/metrics.jsonl")).unwrap();
    fs::create_dir(s.at("out/metrics.jsonl")).unwrap();
    s.run(&["report", "out"]).refused(&["metrics.jsonl"]);
    s.train(&["train.steps=11", "checkpoint.change=train.steps"])
        .refused(&["metrics.jsonl: is not a plain file"]);
}

/// What a run came to: the model's bytes, and loss and norm of each step.
pub fn result(s: &Scratch, output: &str) -> (Vec<u8>, Vec<(u64, String, String)>) {
    let model = fs::read(s.at(output).join("model/model.safetensors")).expect("exported");
    let metrics = fs::read_to_string(s.at(output).join("metrics.jsonl")).expect("metrics");
    let line = |l: &str| {
        let v: Value = serde_json::from_str(l).expect("JSON");
        let step = v["step"].as_u64().expect("a step");
        (step, v["loss"].to_string(), v["grad_norm"].to_string())
    };
    (model, metrics.lines().map(line).collect())
}

#[test]
fn a_broken_newest_checkpoint_is_named_with_the_whole_one() {
    let s = Scratch::new("newest-checkpoint-broken");
    s.train(&[]).fine();
    let want = result(&s, "out");
    let (old, new) = (
        "out/checkpoints/step-00000004",
        "out/checkpoints/step-00000006",
    );
    let (run, state) = (
        format!("{new}/run.json"),
        format!("{new}/state.safetensors"),
    );
    let edited = |from: &str, to: &str| {
        let text = s.read(&run);
        assert!(text.contains(from), "{from} in {text}");
        s.write(&run, text.replacen(from, to, 1));
    };
    let flipped = |at: u64| {
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(s.at(&state))
            .unwrap();
        let mut byte = [0];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut byte, at).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[byte[0] ^ 4], at).unwrap();
    };
    let cut = |to: u64| {
        fs::OpenOptions::new()
            .write(true)
            .open(s.at(&state))
            .unwrap()
            .set_len(to)
            .unwrap()
    };
    let length = fs::metadata(s.at(&state)).unwrap().len();
    let empty = || {
        fs::read_dir(s.at(new))
            .unwrap()
            .flatten()
            .for_each(|e| fs::remove_file(e.path()).unwrap())
    };
    type Harm<'a> = (&'a str, Box<dyn Fn() + 'a>);
    let harms: Vec<Harm<'_>> = vec![
        (
            "run.json",
            Box::new(|| fs::remove_file(s.at(&run)).unwrap()),
        ),
        ("run.json", Box::new(|| s.write(&run, ""))),
        ("run.json", Box::new(|| s.write(&run, &s.read(&run)[..200]))),
        (
            "run.json is of step 4",
            Box::new(|| {
                fs::copy(s.at(old).join("run.json"), s.at(&run)).unwrap();
            }),
        ),
        (
            "checksum differs",
            Box::new(|| edited("\"step\": 6", "\"step\": 7")),
        ),
        (
            "checksum differs",
            Box::new(|| edited("\"epoch\": 0", "\"epoch\": 1")),
        ),
        (
            "checksum differs",
            Box::new(|| edited("\"position\": ", "\"position\": 1")),
        ),
        (
            "no checksum",
            Box::new(|| edited("\"checksum\": ", "\"checkmate\": ")),
        ),
        (
            "state.safetensors: no such file",
            Box::new(|| fs::remove_file(s.at(&state)).unwrap()),
        ),
        ("is cut", Box::new(|| s.write(&state, ""))),
        ("is cut", Box::new(|| cut(100_000))),
        ("is cut", Box::new(|| cut(length - 1))),
        ("is damaged", Box::new(|| flipped(0))),
        ("is damaged", Box::new(|| flipped(length / 2))),
        ("is damaged", Box::new(|| flipped(length - 1))),
        ("run.json", Box::new(empty)),
    ];
    let whole: BTreeMap<_, _> = files(&s.at(new));
    let metrics = s.read("out/metrics.jsonl");
    for (i, (word, harm)) in harms.iter().enumerate() {
        harm();
        let ended = s.train(&[]);
        ended.refused(&[
            new,
            word,
            &format!("{old} is whole"),
            "--set checkpoint.resume=",
        ]);
        assert_eq!(s.read("out/metrics.jsonl"), metrics, "{i}");
        let at = ended.err.find("checkpoint.resume=").expect("as above");
        let set = ended.err[at..]
            .split_whitespace()
            .next()
            .expect("a word")
            .to_owned();
        if i % 5 == 0 {
            // What the message says is what works.
            s.train(&[&set]).fine();
            assert_eq!(result(&s, "out"), want, "{i}");
        }
        let _ = fs::remove_dir_all(s.at(new));
        fs::create_dir(s.at(new)).unwrap();
        whole
            .iter()
            .for_each(|(name, bytes)| s.write(&format!("{new}/{name}"), bytes));
        s.write("out/metrics.jsonl", &metrics);
    }
    // With the older one broken too there is none, and that is said.
    fs::remove_file(s.at(&run)).unwrap();
    s.write(&format!("{old}/state.safetensors"), "");
    s.train(&[]).refused(&[
        new,
        "no other checkpoint of this run is whole",
        "checkpoint.resume=never",
    ]);
}

#[test]
fn an_earlier_versions_checkpoint_is_gone_on_from() {
    let s = Scratch::bare();
    s.write("run.yaml", RUN);
    s.train(&[]).fine();
    let want = result(&s, "out");
    // As it was before there were marks and checksums: the first checkpoint, and what was written first.
    let dir = "out/checkpoints/step-00000002";
    let mut said: Value = serde_json::from_str(&s.read(&format!("{dir}/run.json"))).unwrap();
    said["format"] = 1.into();
    said.as_object_mut().unwrap().remove("checksum").unwrap();
    s.write(&format!("{dir}/run.json"), said.to_string());
    fs::remove_file(s.at(dir).join(".lowtide")).unwrap();
    fs::remove_file(s.at("out/.lowtide")).unwrap();
    fs::remove_file(s.at("out/finished.json")).unwrap();
    fs::remove_dir_all(s.at("out/model")).unwrap();
    fs::remove_dir_all(s.at("out/checkpoints/step-00000004")).unwrap();
    fs::create_dir(s.at("out/checkpoints/.step-00000004.pending")).unwrap();
    s.write(
        "out/checkpoints/.step-00000004.pending/state.safetensors",
        "half",
    );
    let ended = s.train(&["checkpoint.keep=1"]);
    ended.fine();
    assert!(ended.text().contains("after step 2"), "{}", ended.text());
    assert_eq!(result(&s, "out"), want);
    let left = names(&s.at("out/checkpoints"));
    let want = [".lowtide", "run.json", "state.safetensors"];
    assert_eq!(left, want.map(|f| format!("step-00000004/{f}")));
    assert!(s.at("out/.lowtide").is_file());
}

#[test]
fn saving_by_time_changes_no_number_and_is_told() {
    let s = Scratch::bare();
    s.write("run.yaml", RUN);
    let plain = s.train(&["checkpoint.every_steps=0", "output=plain"]);
    let told = "checkpoints: every 30 minutes, at the end; the newest 2 are kept";
    assert!(plain.fine().out.contains(told), "{}", plain.out);
    assert_eq!(
        plain.out.matches("\ncheckpoint ").count(),
        2,
        "{}",
        plain.out
    );
    let timed = s.train(&[
        "checkpoint.every_steps=0",
        "checkpoint.every_minutes=1e-6",
        "output=timed",
    ]);
    // One behind each step but the last, one at the end, and the summary's.
    assert_eq!(
        timed.fine().out.matches("\ncheckpoint ").count(),
        5,
        "{}",
        timed.out
    );
    assert_eq!(result(&s, "timed"), result(&s, "plain"));
    let steps: Vec<String> = names(&s.at("timed/checkpoints"));
    assert_eq!(steps.len(), 2 * 3, "{steps:?}");
}

#[test]
fn a_checkpoint_that_cannot_be_written_is_told_and_the_run_goes_on() {
    let s = Scratch::bare();
    s.write("run.yaml", RUN);
    let sets = [
        "train.steps=200",
        "checkpoint.every_steps=0",
        "checkpoint.every_minutes=1e-6",
        "checkpoint.keep=1",
    ];
    let (mut running, mut out) = started(&s, &sets, "step 20/");
    // Where the checkpoints go stands a file for a while. A save may be quicker than we are.
    let checkpoints = s.at("out/checkpoints");
    for n in 0.. {
        let _ = fs::rename(&checkpoints, s.at(&format!("aside-{n}")));
        if fs::File::create_new(&checkpoints).is_ok() {
            break;
        }
    }
    let mut line = String::new();
    while !line.contains("was not saved") {
        line.clear();
        assert!(out.read_line(&mut line).expect("text") > 0, "no warning");
    }
    for word in [
        "warning: ",
        "checkpoints: is not a directory",
        "the run goes on",
        "newest checkpoint is",
    ] {
        assert!(line.contains(word), "{word:?} in {line}");
    }
    fs::remove_file(&checkpoints).unwrap();
    let rest: Vec<String> = out.lines().map(|l| l.expect("text")).collect();
    assert!(running.0.wait().expect("a child").success(), "{rest:?}");
    assert!(
        rest.iter().any(|l| l.starts_with("step 200/200")),
        "{rest:?}"
    );
    let want = [".lowtide", "run.json", "state.safetensors"];
    assert_eq!(
        names(&checkpoints),
        want.map(|f| format!("step-00000200/{f}"))
    );
}

#[test]
fn what_a_killed_save_left_is_gone_after_the_next_start() {
    let s = Scratch::bare();
    s.write("run.yaml", RUN);
    s.train(&[]).fine();
    let want = result(&s, "out");
    for name in [
        "out/checkpoints/.step-00000003.pending",
        "out/checkpoints/.step-00000001.given-up",
        "out/checkpoints/.step-00000004.old",
        "out/.model.pending",
        "out/.model.old",
    ] {
        fs::create_dir(s.at(name)).unwrap();
        if name.contains("checkpoints") {
            let mark = r#"{"program": "lowtide", "version": "0", "format": 1, "holds": "checkpoint", "pending": true}"#;
            s.write(&format!("{name}/.lowtide"), mark);
            s.write(&format!("{name}/state.safetensors"), "half");
        }
    }
    s.write("out/.run.json.pending", "half");
    // Names that only look like ours are not.
    fs::create_dir(s.at("out/checkpoints/.step-3.pending")).unwrap();
    s.train(&["checkpoint.resume=never"]).fine();
    assert_eq!(result(&s, "out"), want);
    let hidden = |dir: &str| {
        let all = fs::read_dir(s.at(dir)).unwrap().flatten();
        let all = all.map(|e| e.file_name().to_string_lossy().into_owned());
        all.filter(|n| n.starts_with('.')).collect::<Vec<_>>()
    };
    assert_eq!(hidden("out"), [".lowtide"]);
    assert_eq!(hidden("out/checkpoints"), [".step-3.pending"]);
}

#[test]
fn a_pipe_in_place_of_an_output_is_refused() {
    let s = Scratch::bare();
    s.write("run.yaml", RUN);
    fs::create_dir(s.at("out")).unwrap();
    let made = Command::new("mkfifo")
        .arg(s.at("out/metrics.jsonl"))
        .status();
    assert!(made.expect("mkfifo").success());
    s.train(&[]).refused(&["metrics.jsonl", "not a plain file"]);
}

/// A kill between the save of the last step and the removal of the oldest checkpoint.
#[test]
fn a_checkpoint_too_many_goes_with_the_next_start() {
    let s = Scratch::new("newest-checkpoint-broken");
    s.write("run.yaml", RUN);
    let keep = |n: u32| format!("checkpoint.keep={n}");
    s.train(&["output=out", &keep(3), "checkpoint.every_steps=1"])
        .fine();
    let steps = || {
        let there = fs::read_dir(s.at("out/checkpoints")).unwrap().flatten();
        let mut names: Vec<_> = there.map(|e| e.file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(steps().len(), 3);
    // As if it had died before it was done.
    fs::remove_file(s.at("out/finished.json")).unwrap();
    s.train(&["output=out", &keep(2), "checkpoint.every_steps=1"])
        .fine();
    assert_eq!(steps(), ["step-00000003", "step-00000004"]);
}

/// A user may move a checkpoint to another drive and link it back, or leave something under a name to come.
#[test]
fn links_and_files_under_names_of_checkpoints_cost_no_run() {
    let s = Scratch::bare();
    s.write("run.yaml", RUN);
    s.train(&[]).fine();
    let want = result(&s, "out");
    fs::create_dir(s.at("big")).unwrap();
    let checkpoint = |step: u32| s.at(&format!("out/checkpoints/step-{step:08}"));
    fs::rename(checkpoint(4), s.at("big/step-00000004")).unwrap();
    std::os::unix::fs::symlink(s.at("big/step-00000004"), checkpoint(4)).unwrap();
    std::os::unix::fs::symlink("nowhere", checkpoint(6)).unwrap();
    fs::write(checkpoint(7), "a file").unwrap();
    let first = format!("checkpoint.resume={}", checkpoint(2).display());
    let more = [
        "train.steps=8",
        "checkpoint.change=train.steps",
        "checkpoint.keep=1",
    ];
    let ended = s.train(&[&more[..], &[&first]].concat());
    ended.fine();
    assert!(
        ended.text().contains("of step 6 was not saved"),
        "{}",
        ended.text()
    );
    // And no later start is stopped by what stays.
    let again = s.train(&[&more[..], &["train.steps=9"]].concat());
    again.fine();
    assert!(fs::read_link(checkpoint(6)).is_ok() && s.at("big/step-00000004").is_dir());
    assert_ne!(result(&s, "out"), want);
}
