//! A run that is killed at random moments: the same command goes on, to the same bits, and leaves nothing over.
//!
//! `LOWTIDE_KILLS` says how many kills (6 unless it is set), `LOWTIDE_SEED` which. A moment is drawn by the run's
//! last line (start, step, save, evaluation, end), then evenly within the time until its next one.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use lowtide_trainer::inside::checkpoint;
use serde_json::Value;

/// State on disk, saves and evaluations between steps.
const RUN: &str = "
model: {path: BASE}
output: OUTPUT
budget: {device: 1GiB, host: 256MiB, disk: 64MiB}
plan: {optimizer: disk, machine: machine.json}
train: {steps: 8, micro_batch: 2, seq: 64, learning_rate: 1e-3, warmup_steps: 0}
data: {train: BASE/../train.jsonl, eval: BASE/../eval.jsonl, max_examples: 60}
eval: {every_steps: 3, batches: 4}
checkpoint: {every_steps: 2}
log: {trace: false} # one that makes no step leaves none
";
/// Longer than any start takes on a busy machine.
const STUCK: Duration = Duration::from_secs(300);

/// What a run does when it has printed a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Start,
    Step,
    Save,
    Evaluation,
    /// After the last evaluation: the export and what is behind it.
    Export,
}

impl Phase {
    /// Of a line, if it begins one.
    fn of(line: &str) -> Option<Self> {
        let begins = |word: &str| line.starts_with(word);
        match line {
            _ if begins("step ") => Some(Self::Step),
            _ if begins("checkpoint ") => Some(Self::Save),
            _ if begins("after step 8: evaluation") => Some(Self::Export),
            _ if begins("after step ") => Some(Self::Evaluation),
            _ => None,
        }
    }
}

struct Running {
    child: Child,
    lines: Receiver<String>,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Running {
    fn start(run: &Path) -> Self {
        let mut child = crate::common::lowtide(&["train"])
            .arg(run)
            .current_dir(run.parent().expect("a file in a folder"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let (tell, lines) = channel();
        let out = BufReader::new(child.stdout.take().expect("piped"));
        let err = BufReader::new(child.stderr.take().expect("piped"));
        let tell_errors = tell.clone();
        std::thread::spawn(move || {
            out.lines()
                .map_while(Result::ok)
                .try_for_each(|l| tell.send(l))
        });
        std::thread::spawn(move || {
            err.lines()
                .map_while(Result::ok)
                .try_for_each(|l| tell_errors.send(l))
        });
        Self { child, lines }
    }

    /// Reads lines until one begins a phase; `None` when the run has ended, well.
    fn next_phase(&mut self) -> Option<Phase> {
        let mut text = String::new();
        let until = Instant::now() + STUCK;
        loop {
            match self.lines.recv_timeout(until - Instant::now()) {
                Ok(line) => {
                    if let Some(phase) = Phase::of(&line) {
                        return Some(phase);
                    }
                    text += &line;
                    text.push('\n');
                }
                Err(RecvTimeoutError::Timeout) => panic!("stuck after:\n{text}"),
                Err(RecvTimeoutError::Disconnected) => {
                    let ended = self.child.wait().expect("a child");
                    assert!(ended.success(), "{ended}:\n{text}");
                    return None;
                }
            }
        }
    }
}

/// Phases of a run with how long each lasts.
fn phases(run: &Path) -> Vec<(Phase, Duration)> {
    let mut running = Running::start(run);
    let (mut all, mut begun) = (vec![(Phase::Start, Duration::ZERO)], Instant::now());
    loop {
        let next = running.next_phase();
        all.last_mut().expect("never empty").1 = begun.elapsed();
        begun = Instant::now();
        match next {
            Some(phase) => all.push((phase, Duration::ZERO)),
            None => return all,
        }
    }
}

/// Hash of the weights' file, and loss and norm of each line.
fn result(output: &Path) -> (u64, Vec<String>) {
    let mut hash = DefaultHasher::new();
    let weights = fs::read(output.join("model/model.safetensors")).expect("exported");
    let metrics = fs::read_to_string(output.join("metrics.jsonl")).expect("metrics");
    let line = |l: &str| {
        let v: Value = serde_json::from_str(l).expect("JSON");
        format!(
            "{} {} {} {}",
            v["step"], v["loss"], v["grad_norm"], v["eval_loss"]
        )
    };
    weights.hash(&mut hash);
    (hash.finish(), metrics.lines().map(line).collect())
}

/// Whatever a kill leaves, what has a name is whole.
fn names_mean_whole(output: &Path) {
    for (step, dir) in checkpoint::list(output) {
        let state = checkpoint::verify(&dir).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(state.step, step);
    }
    let model = output.join("model");
    if model.exists() {
        let header = fs::read(model.join("model.safetensors")).expect("a whole model");
        assert!(header.len() > 1 << 20 && model.join("config.json").is_file());
        assert!(model.join(".lowtide").is_file() && model.join("tokenizer.json").is_file());
    }
}

/// All names under the output of a run that is done, but for TensorBoard's files, one a start.
fn left(output: &Path) -> Vec<String> {
    fn walk(dir: &Path, at: &str, all: &mut Vec<String>) {
        for entry in fs::read_dir(dir).expect("a directory").flatten() {
            let name = format!("{at}{}", entry.file_name().to_string_lossy());
            match entry.file_type().expect("known").is_dir() {
                true => walk(&entry.path(), &format!("{name}/"), all),
                false => all.push(name),
            }
        }
    }
    let mut all = Vec::new();
    walk(output, "", &mut all);
    all.retain(|n| !n.starts_with("tensorboard/events"));
    all.sort();
    all
}

struct Dice(u64);

impl Dice {
    fn draw(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

/// A run file whose output is `name`.
fn run_file(dir: &Path, name: &str) -> PathBuf {
    let base = crate::common::root().join("examples/quickstart/base");
    let text = RUN
        .replace("BASE", &base.display().to_string())
        .replace("OUTPUT", name);
    let path = dir.join(format!("{name}.yaml"));
    fs::write(&path, text).expect("a writable directory");
    path
}

fn number(name: &str, default: u64) -> u64 {
    let given = std::env::var(name).ok();
    given.map_or(default, |n| n.parse().expect("a number"))
}

#[test]
#[allow(clippy::print_stdout, reason = "figures worth reading")]
fn kills_at_random_moments_leave_the_same_bits_and_no_litter() {
    let want_kills = number("LOWTIDE_KILLS", 6);
    let mut dice = Dice(number("LOWTIDE_SEED", 0x5eed_0f15_0b17_ca5e) | 1);
    let dir = tempfile::tempdir().expect("a temporary directory");
    // Rates that were measured once spare every start a second.
    let first = run_file(dir.path(), "first");
    let text = fs::read_to_string(&first).expect("just written");
    fs::write(&first, text.replace(", machine: machine.json", "")).expect("writable");
    let mut running = Running::start(&first);
    while running.next_phase().is_some() {}
    fs::copy(
        dir.path().join("first/machine.json"),
        dir.path().join("machine.json"),
    )
    .expect("rates");
    let whole = run_file(dir.path(), "whole");
    let phases = phases(&whole);
    let want = result(&dir.path().join("whole"));
    let files = left(&dir.path().join("whole"));
    let kinds = [
        Phase::Start,
        Phase::Step,
        Phase::Save,
        Phase::Evaluation,
        Phase::Export,
    ];
    let killed = run_file(dir.path(), "killed");
    let output = dir.path().join("killed");
    let (mut kills, mut finished, mut in_row) = (BTreeMap::<Phase, u64>::new(), 0, 0);
    while kills.values().sum::<u64>() < want_kills {
        // A kind of phase, one of that kind, and a moment in it.
        let kind = kinds[dice.draw(kinds.len() as u64) as usize];
        let of_kind: Vec<Duration> = phases.iter().filter(|p| p.0 == kind).map(|p| p.1).collect();
        let nth = dice.draw(of_kind.len() as u64) as usize;
        let wait = of_kind[nth].mul_f64(dice.draw(1000) as f64 / 1000.0);
        let mut running = Running::start(&killed);
        let (mut seen, mut now) = (0, Some(Phase::Start));
        while let Some(phase) = now {
            if phase == kind {
                if seen == nth {
                    break;
                }
                seen += 1;
            }
            now = running.next_phase();
        }
        if now.is_some() {
            std::thread::sleep(wait);
        }
        running.child.kill().expect("SIGKILL");
        let ended = running.child.wait().expect("a child");
        names_mean_whole(&output);
        if ended.success() {
            // It was done before the kill.
            assert_eq!(result(&output), want);
            assert_eq!(left(&output), files);
            fs::remove_dir_all(&output).expect("just seen");
            finished += 1;
            in_row = 0;
        } else {
            *kills.entry(kind).or_default() += 1;
            in_row += 1;
        }
        // A run that was killed often enough may end; so each kind of moment meets fresh runs too.
        if in_row == 5 || kills.values().sum::<u64>() == want_kills {
            let mut last = Running::start(&killed);
            while last.next_phase().is_some() {}
            assert_eq!(result(&output), want, "{kills:?}");
            assert_eq!(left(&output), files, "{kills:?}");
            fs::remove_dir_all(&output).expect("just seen");
            finished += 1;
            in_row = 0;
        }
    }
    let all: u64 = kills.values().sum();
    println!("{all} kills {kills:?}, {finished} runs to their end, 0 stuck, 0 litter, same bits");
    assert!(finished > 0);
}
