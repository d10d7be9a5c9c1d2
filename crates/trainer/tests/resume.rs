//! Checkpoint at step k and resume = unbroken, bit for bit; also after kill -9 at random moments
//! with state on disk, and placed differently; a durable run resumes from its last step; memory of a resume never
//! above that of a start.
//!
//! One file because all of them compare with the same unbroken run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use lowtide_config::Run;
use lowtide_session::CommitRecord;
use lowtide_session::Requests;
use lowtide_tiers::committed;
use lowtide_trainer::{Observer, StepLine, TrainError, TrainReport, train};

const CONFIG: &str = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama",
 "vocab_size": 1024, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
 "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "hidden_act": "silu",
 "max_position_embeddings": 64, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
 "tie_word_embeddings": true}"#;

/// State, weights, gradients and block inputs all travel through the disk.
const ON_DISK: &str = "plan: {weights: disk, optimizer: disk, gradients: disk, inputs: disk}";
/// Block inputs too; of weights the truth is there, and copies stay on the host or the device.
const DURABLE: [&str; 3] = [
    "plan: {weights: disk, gradients: disk, inputs: disk}",
    "plan: {weights: host, gradients: host}",
    "plan: {weights: device, gradients: device, prefetch: 2}",
];
const DURABLE_STEPS: u64 = 80;
const RESIDENT: &str = "plan: {weights: device, optimizer: device, gradients: device}";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()
        .expect("the workspace")
}

fn run_file(dir: &Path, output: &str, plan: &str, clip: &str) -> PathBuf {
    run_file_of(dir, output, plan, clip, 12, "{every_steps: 2}")
}

/// Each update is committed, and there is no checkpoint before the end.
fn durable_file(dir: &Path, output: &str, plan: &str, clip: &str) -> PathBuf {
    run_file_of(dir, output, plan, clip, DURABLE_STEPS, "{durable: true}")
}

fn run_file_of(
    dir: &Path,
    output: &str,
    plan: &str,
    clip: &str,
    steps: u64,
    checkpoint: &str,
) -> PathBuf {
    let quickstart = root().join("examples/quickstart");
    fs::write(dir.join("config.json"), CONFIG).expect("a writable directory");
    // Placements are given, so nothing depends on the rates; measuring them takes a second of every start.
    let rates = root().join("examples/machines/h200.json");
    let plan = plan.replacen(
        "plan: {",
        &format!("plan: {{machine: {}, ", rates.display()),
        1,
    );
    assert!(plan.contains("machine"), "{plan}");
    let text = format!(
        r#"
model: {{config: config.json, tokenizer: {base}}}
output: {output}
threads: 1
budget: {{device: 64MiB, host: 64MiB, disk: 64MiB}}
data: {{train: {data}}}
train:
  steps: {steps}
  seq: 48
  micro_batch: 2
  accumulate: 2
  learning_rate: 1e-3
  clip: {{mode: {clip}}}
checkpoint: {checkpoint}
log: {{tensorboard: false, trace: false}}
{plan}
"#,
        base = quickstart.join("base").display(),
        data = quickstart.join("train.jsonl").display(),
    );
    let path = dir.join(format!("{output}.yaml"));
    fs::write(&path, text).expect("a writable directory");
    path
}

struct StopAfter<'a> {
    step: u64,
    stop: &'a Requests,
    notes: Vec<String>,
}

impl Observer for StopAfter<'_> {
    fn note(&mut self, text: &str) {
        self.notes.push(text.to_owned());
    }

    fn step(&mut self, line: &StepLine) {
        if line.step == self.step {
            self.stop.stop();
        }
    }
}

fn go(file: &Path, stop_after: u64) -> TrainReport {
    try_go(file, &[], stop_after).expect("trains").0
}

/// The report and what the run noted.
fn try_go(
    file: &Path,
    sets: &[&str],
    stop_after: u64,
) -> Result<(TrainReport, Vec<String>), TrainError> {
    let sets: Vec<String> = sets.iter().map(|&s| s.to_owned()).collect();
    let run = Run::load(file, &sets).expect("a valid run file");
    let stop = Requests::new();
    let mut observer = StopAfter {
        step: stop_after,
        stop: &stop,
        notes: Vec::new(),
    };
    let report = train(&run, &mut observer, &stop)?;
    Ok((report, observer.notes))
}

/// Everything that must not depend on interruptions: weights, and loss and norm of every step.
fn result(output: &Path) -> (Vec<u8>, Vec<(u64, String, String)>) {
    let weights = fs::read(output.join("model/model.safetensors")).expect("an exported model");
    let metrics = fs::read_to_string(output.join("metrics.jsonl")).expect("metrics");
    let lines = metrics
        .lines()
        .map(|l| {
            let v: serde_json::Value = serde_json::from_str(l).expect("JSON");
            (
                v["step"].as_u64().expect("a step"),
                v["loss"].to_string(),
                v["grad_norm"].to_string(),
            )
        })
        .collect();
    (weights, lines)
}

/// The noise on embeddings is that of its step, whichever process makes it; and a model is the same one when its
/// directory has another name.
#[test]
fn a_resumed_run_with_noise_and_a_model_that_moved_equals_an_unbroken_one() {
    let noise = "train.neftune_alpha=5";
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = |name| run_file(dir.path(), name, RESIDENT, "exact");
    let all = try_go(&file("plain"), &[], u64::MAX).expect("trains");
    assert!(!all.0.stopped);
    try_go(&file("whole"), &[noise], u64::MAX).expect("trains");
    let want = result(&dir.path().join("whole"));
    assert!(want.0 != result(&dir.path().join("plain")).0, "no noise");
    let (part, moved) = (file("part"), dir.path().join("moved"));
    let (report, _) = try_go(&part, &[noise], 5).expect("trains");
    assert!(report.stopped && report.steps < 12);
    fs::create_dir(&moved).expect("a writable directory");
    fs::copy(dir.path().join("config.json"), moved.join("config.json")).expect("copied");
    let config = format!("model.config={}", moved.join("config.json").display());
    let (report, _) = try_go(&part, &[noise, &config], u64::MAX).expect("goes on");
    assert!(!report.stopped && report.part.after_step >= 5);
    assert!(result(&dir.path().join("part")) == want);
}

/// The state of every optimizer goes through a checkpoint whole, scales too; a checkpoint of one optimizer or
/// kind of moments is refused by a run of another, which names the key that differs.
#[test]
fn a_resumed_run_of_small_moments_equals_an_unbroken_one() {
    let with = |plan: &str, optimizer: &str| format!("{plan}\noptimizer: {{{optimizer}}}");
    for (optimizer, other, key) in [
        ("moments: bf16", "moments: int8", "optimizer.moments"),
        ("moments: int8", "moments: f32", "optimizer.moments"),
        ("name: lion", "name: adamw", "optimizer.name"),
        ("name: adamw", "name: lion", "optimizer.name"),
        ("name: adafactor", "name: adamw", "optimizer.name"),
        ("name: lion", "name: adafactor", "optimizer.name"),
        (
            "name: lion, moments: int8",
            "name: lion",
            "optimizer.moments",
        ),
    ] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let whole = run_file(dir.path(), "whole", &with(RESIDENT, optimizer), "exact");
        go(&whole, u64::MAX);
        let want = result(&dir.path().join("whole"));
        let report = go(
            &run_file(dir.path(), "part", &with(ON_DISK, optimizer), "exact"),
            5,
        );
        assert!(report.stopped && report.steps < 12);
        let wrong = run_file(dir.path(), "part", &with(RESIDENT, other), "exact");
        let run = Run::load(&wrong, &[]).expect("a valid run file");
        match train(
            &run,
            &mut StopAfter {
                step: 0,
                stop: &Requests::new(),
                notes: Vec::new(),
            },
            &Requests::new(),
        ) {
            Err(TrainError::OtherRun {
                key: found,
                theirs,
                ours,
                ..
            }) => {
                let word = |all: &str| all.rsplit(' ').next().expect("a word").to_owned();
                let words = match (key, optimizer) {
                    ("optimizer.moments", "name: lion, moments: int8") => {
                        ["int8", "f32"].map(str::to_owned)
                    }
                    _ => [word(optimizer), word(other)],
                };
                assert_eq!(found, key);
                assert_eq!([theirs, ours], words.map(|w| format!("\"{w}\"")));
            }
            other => panic!("resumed with another optimizer: {other:?}"),
        }
        let report = go(
            &run_file(dir.path(), "part", &with(RESIDENT, optimizer), "exact"),
            u64::MAX,
        );
        assert!(!report.stopped);
        assert_eq!(result(&dir.path().join("part")), want, "{optimizer}");
    }
}

/// Bases, projectors and cores go through a checkpoint; one of another strategy is refused.
#[test]
fn a_resumed_run_in_subspaces_equals_an_unbroken_one() {
    let with = |plan: &str, strategy: &str| format!("{plan}\nstrategy: {strategy}");
    for (lsp, other, clip) in [
        (
            "{name: lsp}",
            "{name: lsp, lsp: {projector: random}}",
            "exact",
        ),
        (
            "{name: lsp, lsp: {projector: random}}",
            "{name: lsp}",
            "none",
        ),
    ] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = |output: &str, plan: &str, strategy: &str| {
            run_file(dir.path(), output, &with(plan, strategy), clip)
        };
        go(&file("whole", RESIDENT, lsp), u64::MAX);
        let want = result(&dir.path().join("whole"));
        assert_eq!(want.1.len(), 12);
        let report = go(&file("part", ON_DISK, lsp), 5);
        assert!(report.stopped && report.steps < 12);
        for (other, part) in [
            ("{name: exact}", "strategy"),
            (other, "strategy.lsp.projector"),
        ] {
            match try_go(&file("part", RESIDENT, other), &[], 0) {
                Err(TrainError::OtherRun { key, .. }) => assert_eq!(key, part),
                other => panic!("resumed with another strategy: {:?}", other.err()),
            }
        }
        let report = go(&file("part", RESIDENT, lsp), u64::MAX);
        assert!(!report.stopped);
        assert_eq!(result(&dir.path().join("part")), want, "{clip}");
        // Another training than the exact one.
        go(&file("exact", RESIDENT, "{name: exact}"), u64::MAX);
        let exact = result(&dir.path().join("exact"));
        assert_eq!(
            exact.1[0].1, want.1[0].1,
            "the first loss is the model's own"
        );
        assert_ne!(exact.1[11].1, want.1[11].1);
    }
}

#[test]
fn a_resumed_run_equals_an_unbroken_one() {
    for clip in ["exact", "previous", "none"] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        go(&run_file(dir.path(), "whole", RESIDENT, clip), u64::MAX);
        let want = result(&dir.path().join("whole"));
        assert_eq!(want.1.len(), 12);
        // Stopped at an odd step, resumed in another placement.
        let part = run_file(dir.path(), "part", ON_DISK, clip);
        let report = go(&part, 5);
        assert!(report.stopped && report.output.is_none() && report.steps < 12);
        let placed_otherwise = run_file(dir.path(), "part", RESIDENT, clip);
        let report = go(&placed_otherwise, u64::MAX);
        assert!(!report.stopped);
        assert_eq!(result(&dir.path().join("part")), want, "{clip}");
    }
}

/// The child's side of the tests below: trains, or waits to be killed.
#[test]
fn child() {
    let Ok(file) = std::env::var("LOWTIDE_TEST_CHILD") else {
        return;
    };
    let report = go(Path::new(&file), u64::MAX);
    fs::write(
        format!("{file}.done"),
        report.peak_rss_bytes.unwrap_or(0).to_string(),
    )
    .expect("a writable directory");
}

fn spawn(file: &Path) -> std::process::Child {
    Command::new(std::env::current_exe().expect("this test"))
        .args(["resume::child", "--exact", "--test-threads=1"])
        .env("LOWTIDE_TEST_CHILD", file)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("a process")
}

#[test]
fn twenty_kills_leave_the_same_bits() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let whole = run_file(dir.path(), "whole", ON_DISK, "exact");
    let mut child = spawn(&whole);
    let begin = std::time::Instant::now();
    assert!(child.wait().expect("a child").success());
    let lasted = begin.elapsed();
    let want = result(&dir.path().join("whole"));
    let file = run_file(dir.path(), "killed", ON_DISK, "exact");
    let mut x = 0x1234_5678_9abc_def1_u64;
    let mut kills = 0;
    while kills < 20 {
        let mut child = spawn(&file);
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        let share = 0.2 + 0.8 * (x % 1000) as f64 / 1000.0;
        std::thread::sleep(Duration::from_secs_f64(lasted.as_secs_f64() * share));
        child.kill().expect("SIGKILL");
        child.wait().expect("a child");
        kills += 1;
        if file.with_extension("yaml.done").exists() {
            // It was done before the kill: begin again, so that every kill hits a run.
            fs::remove_file(file.with_extension("yaml.done")).expect("just seen");
            fs::remove_dir_all(dir.path().join("killed")).expect("just seen");
        }
    }
    let mut child = spawn(&file);
    assert!(child.wait().expect("a child").success());
    assert_eq!(result(&dir.path().join("killed")), want);
}

/// The step that a dead run's journal is at; of several ranks that of the one behind.
fn committed_step(output: &Path) -> u64 {
    let disk = output.join("disk");
    let of = |dir: &Path| {
        let found = committed(dir).expect("readable");
        found.map_or(0, |c| {
            let record: CommitRecord = serde_json::from_slice(&c.record).expect("a record");
            record.mark.step
        })
    };
    let ranks = [0, 1].map(|rank| disk.join(format!("rank-{rank}")));
    if !ranks[0].exists() {
        return of(&disk);
    }
    let [a, b] = ranks.map(|dir| of(&dir));
    assert!(a.abs_diff(b) <= 1, "ranks are at steps {a} and {b}");
    a.min(b)
}

/// Files under a run's drive.
fn state_files(output: &Path) -> usize {
    let disk = output.join("disk");
    let folders = [disk.clone(), disk.join("rank-0"), disk.join("rank-1")];
    let entries = folders.iter().filter_map(|dir| fs::read_dir(dir).ok());
    entries
        .flatten()
        .flatten()
        .filter(|e| e.path().is_file())
        .count()
}

/// The last step that a run reported.
fn told_step(output: &Path) -> u64 {
    let text = fs::read_to_string(output.join("metrics.jsonl")).unwrap_or_default();
    let whole = text.lines().rev().find_map(|line| {
        let v: serde_json::Value = serde_json::from_str(line).ok()?;
        v["step"].as_u64()
    });
    whole.unwrap_or(0)
}

/// Kills a child after some more steps than it began with and some more time, both random. Returns what it had
/// reported and what it had committed; `None` if it was done before.
fn kill_within(file: &Path, output: &Path, x: &mut u64) -> Option<(u64, u64)> {
    let mut draw = |n: u64| {
        *x ^= *x << 13;
        *x ^= *x >> 7;
        *x ^= *x << 17;
        *x % n
    };
    let at_start = told_step(output);
    let until = at_start + draw(4);
    let (begun, early) = (std::time::Instant::now(), Duration::from_millis(draw(400)));
    let mut child = spawn(file);
    // With no step to wait for, it is killed at some moment of its start.
    let wait = |told: u64| match at_start == until {
        true => begun.elapsed() < early,
        false => told < until,
    };
    while child.try_wait().expect("a child").is_none() && wait(told_step(output)) {
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(Duration::from_micros(draw(12_000)));
    child.kill().expect("SIGKILL");
    let done = child.wait().expect("a child").success();
    (!done).then(|| (told_step(output), committed_step(output)))
}

#[test]
fn a_durable_run_killed_at_random_goes_on_from_its_last_step() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut x = 0x0123_4567_89ab_cdef_u64;
    let (mut kills, mut in_run) = (0, 0);
    for (clip, gpus) in [("exact", 2), ("previous", 1), ("none", 2)] {
        let with = |plan: &str| format!("{plan}\ngpus: {gpus}");
        let whole = run_file_of(
            dir.path(),
            &format!("whole-{clip}"),
            &with(RESIDENT),
            clip,
            DURABLE_STEPS,
            "{}",
        );
        go(&whole, u64::MAX);
        let want = result(&dir.path().join(format!("whole-{clip}")));
        assert_eq!(want.1.len() as u64, DURABLE_STEPS);
        let name = format!("killed-{clip}");
        let output = dir.path().join(&name);
        let mut before = 0;
        for round in 0.. {
            // Another placement each time: what is committed does not depend on it.
            let file = durable_file(dir.path(), &name, &with(DURABLE[round % 3]), clip);
            let Some((told, committed)) = kill_within(&file, &output, &mut x) else {
                break;
            };
            assert!(
                committed + 1 >= told,
                "{clip}: {committed} of {told} steps are left"
            );
            assert!(committed >= before, "{clip}: {committed} after {before}");
            let checkpoints = output.join("checkpoints");
            assert!(!checkpoints.exists() || committed == DURABLE_STEPS);
            before = committed;
            kills += 1;
            in_run += usize::from(told > 0);
            if round == 7 {
                break;
            }
        }
        let file = durable_file(dir.path(), &name, &with(DURABLE[0]), clip);
        // A process that was killed after its last step has nothing left to resume.
        let ended = output.join("finished.json").exists();
        let (_, notes) = try_go(&file, &[], u64::MAX).expect("goes on");
        let on_from = format!("after step {before}");
        let newest = ended || notes.iter().any(|n| n.ends_with(&on_from));
        assert!(newest, "{clip}: {on_from}: {notes:?}");
        assert_eq!(result(&output), want, "{clip}");
        assert_eq!(state_files(&output), 0, "of a run that is done");
    }
    assert!(
        kills >= 20 && in_run >= 12,
        "{kills} kills, {in_run} in a run"
    );
}

/// What a run does about a journal that it cannot or shall not use.
#[test]
fn a_journal_is_used_refused_or_given_up_as_asked() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let output = dir.path().join("run");
    let file = durable_file(dir.path(), "run", DURABLE[1], "exact");
    let mut x = 99;
    while committed_step(&output) < 3 {
        let killed = kill_within(&file, &output, &mut x);
        killed.expect("forty steps are not done so soon");
    }
    let at = committed_step(&output);
    let refused = |sets: &[&str]| {
        let error = try_go(&file, sets, u64::MAX).expect_err("refused");
        assert_eq!(committed_step(&output), at, "{error}");
        error
    };
    // Not durable any more, cut otherwise, on other drives, with other numbers.
    for (sets, words) in [
        (vec!["checkpoint.durable=false"], "checkpoint.durable"),
        (vec!["plan.pieces=split"], "pieces"),
        (
            vec!["budget.disk=[{dir: run/disk, size: 64MiB}, {dir: more, size: 64MiB}]"],
            "striping",
        ),
    ] {
        let sets: Vec<String> = sets
            .into_iter()
            .map(|s| {
                s.replace("run/disk", &output.join("disk").display().to_string())
                    .replace("more", &dir.path().join("more").display().to_string())
            })
            .collect();
        let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
        match refused(&sets) {
            TrainError::Durable { step, what, .. } => {
                assert!(step == at && what.contains(words), "{what}");
            }
            e => panic!("{sets:?}: {e}"),
        }
    }
    let other = refused(&["train.learning_rate=2e-3"]);
    assert!(matches!(&other, TrainError::OtherRun { key, .. } if key.contains("learning_rate")));
    // Larger and smaller budgets are no hindrance; Ctrl-C saves and leaves no state files.
    let budgets = ["budget.host=32MiB", "budget.disk=96MiB", "plan.inputs=disk"];
    let (report, notes) = try_go(&file, &budgets, at + 3).expect("goes on");
    assert!(report.stopped && report.steps >= at + 3);
    assert!(
        notes
            .iter()
            .any(|n| n.ends_with(&format!("after step {at}"))),
        "{notes:?}"
    );
    assert!(report.checkpoint.is_some() && committed_step(&output) == 0);
    // Behind the checkpoint, and anew, over what a kill left.
    let saved = report.steps;
    while committed_step(&output) <= saved {
        kill_within(&file, &output, &mut x).expect("not done");
    }
    let checkpoint = report.checkpoint.expect("as above");
    let from = format!("checkpoint.resume={}", checkpoint.display());
    let (again, notes) = try_go(&file, &[&from], saved + 1).expect("goes on");
    assert!(
        notes
            .iter()
            .any(|n| n.ends_with(&format!("after step {saved}"))),
        "{notes:?}"
    );
    assert!(again.stopped);
    let (_, notes) = try_go(&file, &["checkpoint.resume=never"], 2).expect("begins");
    assert!(!notes.iter().any(|n| n.contains("after step")), "{notes:?}");
}

#[test]
fn a_resume_takes_no_more_memory_than_a_start() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let peak = |file: &Path| -> u64 {
        assert!(spawn(file).wait().expect("a child").success());
        let text = fs::read_to_string(format!("{}.done", file.display())).expect("done");
        text.parse().expect("a number")
    };
    let file = run_file(dir.path(), "run", ON_DISK, "exact");
    let start = peak(&file);
    let dirs = fs::read_dir(dir.path().join("run/checkpoints"))
        .expect("checkpoints")
        .count();
    assert!(dirs >= 1);
    // Drop the last checkpoint and all records of it: the resume has steps to make.
    fs::remove_dir_all(dir.path().join("run/checkpoints/step-00000012")).expect("the last");
    for name in ["finished.json", ".lowtide"] {
        fs::remove_file(dir.path().join("run").join(name)).expect("written");
    }
    let resume = peak(&file);
    // Page-level noise of thread stacks and allocator arenas.
    assert!(resume <= start + (4 << 20), "{resume} > {start}");
}
