//! Checkpoint at step k and go on = unbroken, bit for bit; also after kill -9 at random moments
//! with state on disk, and placed differently; memory of a resume never above that of a start.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lowtide_config::Run;
use lowtide_trainer::TrainError;
use lowtide_trainer::fit::{Observer, StepLine, TrainReport, train};

const CONFIG: &str = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama",
 "vocab_size": 1024, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
 "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "hidden_act": "silu",
 "max_position_embeddings": 64, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
 "tie_word_embeddings": true}"#;

/// State, weights, gradients and block inputs all travel through the disk.
const ON_DISK: &str = "plan: {weights: disk, optimizer: disk, gradients: disk, inputs: disk}";
const RESIDENT: &str = "plan: {weights: device, optimizer: device, gradients: device}";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()
        .expect("the workspace")
}

fn run_file(dir: &Path, output: &str, plan: &str, clip: &str) -> PathBuf {
    let quickstart = root().join("examples/quickstart");
    fs::write(dir.join("config.json"), CONFIG).expect("a writable directory");
    let text = format!(
        r#"
model: {{config: config.json, tokenizer: {base}}}
output: {output}
threads: 1
budget: {{device: 64MiB, host: 64MiB, disk: 64MiB}}
data: {{train: {data}}}
train:
  steps: 12
  seq: 48
  micro_batch: 2
  accumulate: 2
  learning_rate: 1e-3
  clip: {{mode: {clip}}}
checkpoint: {{every_steps: 2}}
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
    stop: &'a AtomicBool,
}

impl Observer for StopAfter<'_> {
    fn step(&mut self, line: &StepLine) {
        if line.step == self.step {
            self.stop.store(true, Ordering::Relaxed);
        }
    }
}

fn go(file: &Path, stop_after: u64) -> TrainReport {
    let run = Run::load(file, &[]).expect("a valid run file");
    let stop = AtomicBool::new(false);
    train(
        &run,
        &mut StopAfter {
            step: stop_after,
            stop: &stop,
        },
        &stop,
    )
    .expect("trains")
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

/// Moments with remainder bits and scales go through a checkpoint whole; a checkpoint of one kind is
/// refused by a run of another.
#[test]
fn a_resumed_run_of_small_moments_equals_an_unbroken_one() {
    let with = |plan: &str, moments: &str| format!("{plan}\noptimizer: {{moments: {moments}}}");
    for (moments, other) in [("bf16", "int8"), ("int8", "f32")] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let whole = run_file(dir.path(), "whole", &with(RESIDENT, moments), "exact");
        go(&whole, u64::MAX);
        let want = result(&dir.path().join("whole"));
        let report = go(
            &run_file(dir.path(), "part", &with(ON_DISK, moments), "exact"),
            5,
        );
        assert!(report.stopped && report.steps < 12);
        let wrong = run_file(dir.path(), "part", &with(RESIDENT, other), "exact");
        let run = Run::load(&wrong, &[]).expect("a valid run file");
        match train(
            &run,
            &mut StopAfter {
                step: 0,
                stop: &AtomicBool::new(false),
            },
            &AtomicBool::new(false),
        ) {
            Err(TrainError::OtherRun {
                key, theirs, ours, ..
            }) => {
                assert_eq!(key, "optimizer.moments");
                assert_eq!(
                    (theirs, ours),
                    (format!("\"{moments}\""), format!("\"{other}\""))
                );
            }
            other => panic!("resumed with other moments: {other:?}"),
        }
        let report = go(
            &run_file(dir.path(), "part", &with(RESIDENT, moments), "exact"),
            u64::MAX,
        );
        assert!(!report.stopped);
        assert_eq!(result(&dir.path().join("part")), want, "{moments}");
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
        .args(["child", "--exact", "--test-threads=1"])
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
    // Drop the last checkpoint: the resume has steps to make.
    fs::remove_dir_all(dir.path().join("run/checkpoints/step-00000012")).expect("the last");
    let resume = peak(&file);
    // Page-level noise of thread stacks and allocator arenas.
    assert!(resume <= start + (4 << 20), "{resume} > {start}");
}
