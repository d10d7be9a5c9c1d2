//! Signals, closed pipes and limits: a run saves and ends, or goes on, wherever it stands.
//!
//! One file because all of it is asked of a run that is under way.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cases::scratch::Scratch;

/// What a signal may take: two seconds, and as much again for a machine that is busy.
const SOON: Duration = Duration::from_secs(4);
/// When something that should happen has not happened.
const NEVER: Duration = Duration::from_secs(240);

/// A run that is going, and the lines it prints.
pub struct Going {
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
}

/// A test that fails leaves no run behind.
impl Drop for Going {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How a run ended.
pub struct End {
    pub code: Option<i32>,
    after: Duration,
    pub lines: Vec<String>,
}

impl End {
    /// The answer of a run with `--json`: the last line that is one.
    #[track_caller]
    fn answer(&self) -> Value {
        let answers = self.lines.iter().rev();
        let mut answers = answers.filter_map(|l| serde_json::from_str(l).ok());
        let found: Option<Value> = answers.next();
        found.unwrap_or_else(|| panic!("no answer in {:#?}", self.lines))
    }
}

impl Going {
    pub fn start(mut command: Command) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let (sender, lines) = channel();
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let errors = sender.clone();
        std::thread::spawn(move || {
            let lines = BufReader::new(out.expect("piped")).lines();
            lines.map_while(Result::ok).for_each(|l| _ = sender.send(l));
        });
        std::thread::spawn(move || {
            let lines = BufReader::new(err.expect("piped")).lines();
            lines.map_while(Result::ok).for_each(|l| _ = errors.send(l));
        });
        Self {
            child,
            lines,
            seen: Vec::new(),
        }
    }

    /// Waits for a line that begins so.
    #[track_caller]
    fn told(&mut self, begin: &str) {
        let until = Instant::now() + NEVER;
        loop {
            match self.lines.recv_timeout(until - Instant::now()) {
                Ok(line) => {
                    self.seen.push(line);
                    if self.seen.last().is_some_and(|l| l.starts_with(begin)) {
                        return;
                    }
                }
                Err(e) => panic!("no line {begin:?} ({e}) in {:#?}", self.seen),
            }
        }
    }

    /// Waits until a file or folder is there.
    #[track_caller]
    fn made(&self, path: &Path) {
        let until = Instant::now() + NEVER;
        while !path.exists() {
            assert!(Instant::now() < until, "no {}", path.display());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill")
            .args([format!("-{name}"), pid])
            .status();
        assert!(sent.expect("kill is there").success(), "it has ended");
    }

    fn running(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_none()
    }

    pub fn end(mut self) -> End {
        let begin = Instant::now();
        let status: ExitStatus = loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                break status;
            }
            if begin.elapsed() > NEVER {
                let _ = self.child.kill();
                panic!("it does not end: {:#?}", self.seen);
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let after = begin.elapsed();
        loop {
            match self.lines.recv_timeout(Duration::from_secs(10)) {
                Ok(line) => self.seen.push(line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("somebody holds its pipes open"),
            }
        }
        End {
            code: status.code(),
            after,
            lines: std::mem::take(&mut self.seen),
        }
    }

    /// Ends it by a signal: soon, with the signal's exit code and an answer that names it.
    #[track_caller]
    pub fn ends_by(self, name: &str, code: i32) -> End {
        self.signal(name);
        let end = self.end();
        assert_eq!(end.code, Some(code), "SIG{name}: {:#?}", end.lines);
        assert!(end.after < SOON, "SIG{name} took {:?}", end.after);
        let answer = end.answer();
        assert_eq!(answer["stopped"], true, "{answer}");
        assert_eq!(answer["signal"], format!("SIG{name}"), "{answer}");
        end
    }
}

pub fn case() -> Scratch {
    Scratch::new("sigterm-during-answers")
}

pub fn train(scratch: &Scratch, sets: &[&str]) -> Command {
    let mut args = vec!["train", "run.yaml", "--json"];
    for set in sets {
        args.extend(["--set", set]);
    }
    scratch.command(&args)
}

/// The quickstart's data, many times: evaluating on it takes long.
fn much_data(scratch: &Scratch, times: usize) {
    let once = scratch.read("train.jsonl");
    scratch.write("much.jsonl", once.repeat(times));
}

/// Lines of the metrics with this key.
pub fn metrics(scratch: &Scratch, key: &str) -> Vec<Value> {
    let text = scratch.read("out/metrics.jsonl");
    let lines = text.lines().map(|l| serde_json::from_str(l).expect("JSON"));
    lines.filter(|l: &Value| l.get(key).is_some()).collect()
}

/// Waits until a step after this one is made.
#[track_caller]
pub fn stepped(run: &Going, scratch: &Scratch, after: u64) {
    run.made(&scratch.at("out/metrics.jsonl"));
    let until = Instant::now() + NEVER;
    let step = |l: &str| {
        serde_json::from_str(l)
            .ok()
            .filter(|l: &Value| l.get("loss").is_some())
    };
    loop {
        let text = scratch.read("out/metrics.jsonl");
        let last = text
            .lines()
            .rev()
            .find_map(step)
            .and_then(|l| l["step"].as_u64());
        if last > Some(after) {
            return;
        }
        assert!(Instant::now() < until, "no step after {after}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn checkpoints(scratch: &Scratch) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(scratch.at("out/checkpoints")) else {
        return Vec::new();
    };
    let names = entries.map(|e| e.expect("readable").file_name());
    let mut names: Vec<String> = names.map(|n| n.to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Files where the run's drive is.
fn left_on_disk(scratch: &Scratch) -> usize {
    std::fs::read_dir(scratch.at("out/disk")).map_or(0, Iterator::count)
}

pub const NO_ANSWERS: &str = "eval.generate.exact_match=false";

#[test]
fn sigterm_during_answers() {
    let scratch = case();
    // Before the first step there is nothing to save.
    let mut run = Going::start(train(&scratch, &[]));
    run.told("train data");
    std::thread::sleep(Duration::from_millis(2500));
    run.ends_by("TERM", 143);
    assert_eq!(checkpoints(&scratch), [""; 0]);
    // After the last everything but the answers is there, and the run that goes on makes them.
    let few = "eval.generate.max_examples=2";
    let mut run = Going::start(train(&scratch, &[NO_ANSWERS]));
    run.told("step 1/");
    run.ends_by("TERM", 143);
    let run = Going::start(train(&scratch, &[]));
    run.made(&scratch.at("out/model"));
    let end = run.ends_by("TERM", 143);
    let answer = end.answer();
    assert_eq!(answer["steps"], 20, "{answer}");
    assert_eq!(answer["exact_match_after"], Value::Null, "{answer}");
    assert!(answer["output"].is_string(), "{answer}");
    assert_eq!(
        checkpoints(&scratch).last().map(String::as_str),
        Some("step-00000020")
    );
    let again = scratch.run(&["train", "run.yaml", "--json", "--set", few]);
    let answer = again.fine().json();
    assert_eq!(
        (&answer["steps"], &answer["stopped"]),
        (&20.into(), &false.into()),
        "{answer}"
    );
    assert!(answer["exact_match_after"].is_f64(), "{answer}");
}

#[test]
fn an_evaluation_that_is_broken_off_is_made_by_the_run_that_goes_on() {
    let scratch = case();
    much_data(&scratch, 8);
    let sets = [NO_ANSWERS, "data.eval=much.jsonl", "eval.every_steps=1"];
    let mut run = Going::start(train(&scratch, &sets));
    run.told("after step 0");
    run.told("step 1/");
    std::thread::sleep(Duration::from_millis(200));
    let end = run.ends_by("TERM", 143);
    assert_eq!(end.answer()["steps"], 1, "{:#?}", end.lines);
    let evaluated = |step: u64| {
        let lines = metrics(&scratch, "eval_loss");
        lines.iter().filter(|l| l["step"] == step).count()
    };
    assert_eq!(evaluated(1), 0, "recorded as if it were complete");
    let few = [&sets[..], &["eval.batches=1"]].concat();
    let mut run = Going::start(train(&scratch, &few));
    run.told("resumed");
    run.told("after step 2");
    run.ends_by("TERM", 143);
    assert_eq!((evaluated(0), evaluated(1), evaluated(2)), (1, 1, 1));
}

#[test]
fn each_signal_saves_and_ends_with_its_own_code() {
    let scratch = case();
    let sets = [NO_ANSWERS, "train.steps=1000000", "train.schedule=constant"];
    let mut last = 0;
    for (name, code) in [("INT", 130), ("TERM", 143), ("HUP", 129), ("USR2", 140)] {
        let run = Going::start(train(&scratch, &sets));
        stepped(&run, &scratch, last);
        let answer = run.ends_by(name, code).answer();
        let steps = answer["steps"].as_u64().expect("steps");
        assert!(steps > last, "{answer}");
        let name = format!("step-{steps:08}");
        assert!(checkpoints(&scratch).contains(&name), "{name}");
        last = steps;
    }
}

#[test]
fn sigusr1_saves_and_goes_on() {
    let scratch = case();
    let sets = [NO_ANSWERS, "train.steps=1000000"];
    let mut run = Going::start(train(&scratch, &sets));
    stepped(&run, &scratch, 0);
    assert_eq!(checkpoints(&scratch), [""; 0]);
    for _ in 0..2 {
        let before = Instant::now();
        run.signal("USR1");
        run.told("checkpoint ");
        assert!(before.elapsed() < SOON, "{:?}", before.elapsed());
    }
    assert!(run.running());
    // Whatever is evaluated meanwhile is evaluated whole.
    run.ends_by("TERM", 143);
    assert_eq!(checkpoints(&scratch).len(), 2);

    let scratch = case();
    much_data(&scratch, 1);
    let sets = [
        NO_ANSWERS,
        "data.eval=much.jsonl",
        "train.steps=2",
        "eval.every_steps=1",
    ];
    let whole = scratch.run(&[
        "train",
        "run.yaml",
        "--json",
        "--set",
        "output=whole",
        "--set",
        sets[0],
        "--set",
        sets[1],
        "--set",
        sets[2],
        "--set",
        sets[3],
    ]);
    let want = whole.fine().json()["eval_loss_last"].clone();
    let mut run = Going::start(train(&scratch, &sets));
    run.told("after step 0");
    run.told("after step 1");
    run.made(&scratch.at("out/checkpoints/step-00000002"));
    run.signal("USR1");
    let end = run.end();
    assert_eq!(end.code, Some(0), "{:#?}", end.lines);
    assert_eq!(end.answer()["eval_loss_last"], want);
}

#[test]
fn a_second_signal_ends_at_once_and_leaves_nothing_on_the_drive() {
    let scratch = case();
    // A step takes many seconds.
    let sets = [
        NO_ANSWERS,
        "train.micro_batch=32",
        "train.accumulate=64",
        "train.steps=5",
        "budget.disk=1GiB",
        "plan.optimizer=disk",
    ];
    let mut run = Going::start(train(&scratch, &sets));
    run.told("after step 0");
    std::thread::sleep(Duration::from_millis(500));
    run.signal("TERM");
    std::thread::sleep(Duration::from_millis(1100));
    run.signal("USR2");
    std::thread::sleep(Duration::from_millis(100));
    assert!(run.running(), "a step that is under way is finished");
    let end = run.ends_by("INT", 130);
    let words = "stopped by SIGINT; nothing is saved: the next start begins with step 1";
    assert!(end.lines.iter().any(|l| l == words), "{:#?}", end.lines);
    assert_eq!(end.answer()["saved_step"], 0);
    assert_eq!(left_on_disk(&scratch), 0);
}

#[test]
fn signals_that_come_together_are_one_wish() {
    let scratch = case();
    let sets = [NO_ANSWERS, "train.steps=1000000", "train.schedule=constant"];
    let run = Going::start(train(&scratch, &sets));
    stepped(&run, &scratch, 0);
    run.signal("INT");
    run.signal("INT");
    // It may have ended by now.
    let _ = Command::new("kill")
        .args(["-TERM", &run.child.id().to_string()])
        .stderr(Stdio::null())
        .status();
    let end = run.end();
    assert_eq!(end.code, Some(130), "{:#?}", end.lines);
    let steps = end.answer()["steps"].as_u64().expect("a whole report");
    let name = format!("step-{steps:08}");
    assert!(checkpoints(&scratch).contains(&name), "{name}");
}

#[test]
fn what_a_killed_run_left_on_a_drive_goes_though_the_run_goes_on_without_it() {
    let scratch = case();
    let sets = [
        NO_ANSWERS,
        "train.steps=40",
        "data.eval=",
        "budget.disk=1GiB",
    ];
    let on_disk = [&sets[..], &["plan.optimizer=disk"]].concat();
    let run = Going::start(train(&scratch, &on_disk));
    stepped(&run, &scratch, 0);
    run.signal("KILL");
    run.end();
    assert!(left_on_disk(&scratch) > 0, "a killed run removes nothing");
    let on_host = [&sets[..], &["plan.optimizer=host"]].concat();
    let run = Going::start(train(&scratch, &on_host));
    let end = run.end();
    assert_eq!(end.code, Some(0), "{:#?}", end.lines);
    assert_eq!(left_on_disk(&scratch), 0);
}

#[test]
fn a_start_ends_at_once_wherever_it_stands() {
    let scratch = case();
    much_data(&scratch, 400);
    let sets = [
        NO_ANSWERS,
        "data.train=much.jsonl",
        "budget.disk=1GiB",
        "plan.optimizer=disk",
    ];
    for delay in [30u64, 150, 400, 800, 1500, 2500, 4000] {
        let mut run = Going::start(train(&scratch, &sets));
        std::thread::sleep(Duration::from_millis(delay));
        if delay == 30 {
            // The handler itself needs a moment to be there.
            std::thread::sleep(Duration::from_millis(200));
        }
        assert!(run.running());
        run.ends_by("TERM", 143);
        assert_eq!(left_on_disk(&scratch), 0, "after {delay} ms");
    }
    // Once it has planned: memory is being filled, or the first evaluation runs.
    let mut run = Going::start(train(&scratch, &[NO_ANSWERS]));
    run.told("weights ");
    run.ends_by("INT", 130);
    for command in ["eval", "verify"] {
        let mut process = scratch.command(&[
            command,
            "run.yaml",
            "--json",
            "--set",
            "data.eval=much.jsonl",
        ]);
        process.args(["--set", NO_ANSWERS]);
        let run = Going::start(process);
        std::thread::sleep(Duration::from_millis(700));
        run.ends_by("TERM", 143);
    }
}

/// A shell that sets something up and becomes lowtide.
fn shell(scratch: &Scratch, before: &str, sets: &[&str]) -> Command {
    let run = train(scratch, sets);
    let mut command = Command::new("sh");
    command
        .args(["-c", &format!("{before}; exec \"$@\""), "sh"])
        .arg(run.get_program())
        .args(run.get_args())
        .current_dir(scratch.path())
        .process_group(0);
    command
}

#[test]
fn a_hang_up_that_is_ignored_stays_ignored() {
    let scratch = case();
    let sets = [NO_ANSWERS, "train.steps=1000000"];
    let mut run = Going::start(shell(&scratch, "trap '' HUP", &sets));
    stepped(&run, &scratch, 0);
    run.signal("HUP");
    std::thread::sleep(Duration::from_millis(1500));
    assert!(run.running());
    run.ends_by("TERM", 143);
}

#[test]
fn a_file_beyond_the_limit_on_sizes_is_an_error_that_names_it() {
    let scratch = case();
    // 1 MiB: logs and settings fit, a checkpoint does not.
    let run = Going::start(shell(
        &scratch,
        "ulimit -f 2048",
        &[NO_ANSWERS, "train.steps=2"],
    ));
    let end = run.end();
    assert_eq!(end.code, Some(2), "{:#?}", end.lines);
    let error = end.answer()["error"].to_string();
    assert!(error.contains("state.safetensors"), "{error}");
    assert!(error.contains("File too large"), "{error}");
    assert_eq!(checkpoints(&scratch), [""; 0]);
}

#[test]
fn a_closed_pipe_is_no_panic() {
    let scratch = case();
    let mut command = scratch.command(&["train", "run.yaml", "--set", NO_ANSWERS]);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{err}");
    assert!(!err.contains("panicked") && !err.contains("bug"), "{err}");
    assert!(scratch.at("out/model/model.safetensors").exists());
}
