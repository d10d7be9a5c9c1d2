//! Broken files, directories and numbers from the outside: a clear message, exit code 2, and the
//! last checkpoint intact.

use std::fs;
use std::path::Path;

use crate::common::{answer, root};
use tempfile::TempDir;

/// A copy of the quickstart's base model and data with a short run file.
fn quickstart() -> (TempDir, String) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let from = root().join("examples/quickstart");
    fs::create_dir(dir.path().join("base")).expect("fresh");
    for entry in fs::read_dir(from.join("base")).expect("the base model") {
        let path = entry.expect("readable").path();
        let name = path.file_name().expect("a file");
        fs::copy(&path, dir.path().join("base").join(name)).expect("copied");
    }
    fs::copy(from.join("train.jsonl"), dir.path().join("train.jsonl")).expect("copied");
    let run = dir.path().join("run.yaml");
    // Measuring would take seconds of every start.
    let rates = crate::cases::scratch::example_rates();
    let text = "
plan: {machine: RATES}
model: {path: base}
output: out
budget: {device: 16MiB, host: 16MiB, disk: 32MiB}
data: {train: train.jsonl}
train: {steps: 4, micro_batch: 1, seq: 64, learning_rate: 1e-3, schedule: constant, warmup_steps: 0}
checkpoint: {every_steps: 2}
log: {tensorboard: false, trace: false}
";
    let text = text.replace("RATES", &rates.display().to_string());
    fs::write(&run, text).expect("written");
    let run = run.to_str().expect("UTF-8").to_owned();
    (dir, run)
}

#[track_caller]
fn refused(run: &str, sets: &[&str], words: &[&str]) {
    let mut args = vec!["train", run];
    for set in sets {
        args.extend(["--set", set]);
    }
    let (code, json) = answer(&args);
    let error = json["error"].as_str().unwrap_or_default().to_owned();
    assert_eq!(code, 2, "{json}");
    for word in words {
        assert!(error.contains(word), "{word:?} in {error:?}");
    }
}

fn damage(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).expect("there");
    change(&mut bytes);
    fs::write(path, bytes).expect("written");
}

#[test]
fn damaged_model_files_are_named() {
    let (dir, run) = quickstart();
    let weights = dir.path().join("base/model.safetensors");
    let whole = fs::read(&weights).expect("there");
    damage(&weights, |b| b.truncate(b.len() - 1000));
    refused(&run, &[], &["model.safetensors"]);
    damage(&weights, |b| {
        *b = whole.clone();
        b[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    });
    refused(&run, &[], &["model.safetensors"]);
    fs::write(&weights, &whole).expect("written");
    let tokenizer = dir.path().join("base/tokenizer.json");
    let text = fs::read(&tokenizer).expect("there");
    damage(&tokenizer, |b| b.truncate(100));
    refused(&run, &[], &["tokenizer.json"]);
    fs::write(&tokenizer, text).expect("written");
    fs::remove_file(dir.path().join("base/config.json")).expect("there");
    refused(&run, &[], &["config.json"]);
    assert!(
        !dir.path().join("out/model").exists(),
        "nothing half-written"
    );
}

#[test]
fn a_line_that_is_not_json_is_named_with_its_file_and_number() {
    let (dir, run) = quickstart();
    damage(&dir.path().join("train.jsonl"), |b| {
        let line = b.iter().position(|&c| c == b'\n').expect("lines") + 1;
        b.insert(line, b'%');
    });
    refused(&run, &[], &["train.jsonl:2"]);
}

#[test]
fn no_room_is_told_before_anything_is_written() {
    let (dir, run) = quickstart();
    refused(&run, &["budget.device=100KiB"], &["device"]);
    let sets = [
        "plan.optimizer=disk",
        "budget.disk={dir: /dev/null/x, size: 32MiB}",
    ];
    let (code, json) = answer(&["train", &run, "--set", sets[0], "--set", sets[1]]);
    assert_eq!(code, 2, "{json}");
    assert!(!dir.path().join("out/model").exists());
}

#[test]
fn an_output_that_cannot_be_written_is_refused() {
    let (dir, run) = quickstart();
    // A file where the directory should be: also refused for a user whom permissions do not bind.
    fs::write(dir.path().join("taken"), b"").expect("written");
    let output = format!("output={}", dir.path().join("taken/out").display());
    refused(&run, &[&output], &["taken"]);
}

#[test]
fn a_loss_that_is_not_finite_stops_and_leaves_the_last_checkpoint() {
    let (dir, run) = quickstart();
    // Two good steps and a checkpoint; beside it a run whose weights hold NaN.
    let (code, json) = answer(&["train", &run, "--set", "train.steps=2"]);
    assert_eq!(code, 0, "{json}");
    let state = dir
        .path()
        .join("out/checkpoints/step-00000002/state.safetensors");
    let before = fs::read(&state).expect("a checkpoint");
    let (fresh, bad) = quickstart();
    damage(&fresh.path().join("base/model.safetensors"), |b| {
        let end = b.len();
        b[end - 64..].fill(0x7f); // finite, and too large for a sum
    });
    refused(&bad, &[], &["step 1", "NaN"]);
    assert!(!fresh.path().join("out/model").exists());
    assert_eq!(fs::read(&state).expect("still there"), before);
    // And going on from it works.
    let (code, json) = answer(&["train", &run]);
    assert_eq!(code, 0, "{json}");
    assert_eq!(json["steps"], 4);
}

#[test]
fn durable_state_needs_a_disk_and_is_on_it() {
    let (dir, run) = quickstart();
    let durable = "checkpoint.durable=true";
    refused(
        &run,
        &[durable, "plan.optimizer=host"],
        &["plan.optimizer", "durable"],
    );
    refused(
        &run,
        &[durable, "budget.disk=0"],
        &["checkpoint.durable", "budget.disk"],
    );
    refused(&run, &[durable, "budget.disk=64KiB"], &["does not fit"]);
    let (code, json) = answer(&["train", &run, "--set", durable]);
    assert_eq!(code, 0, "{json}");
    let files = fs::read_dir(dir.path().join("out/disk")).map_or(0, Iterator::count);
    assert_eq!(files, 0, "state files of a run that is done");
    // Another run's kept state is not touched.
    let (other, again) = quickstart();
    fs::create_dir_all(other.path().join("shared")).expect("fresh");
    let shared = format!(
        "budget.disk={{dir: {}, size: 32MiB}}",
        other.path().join("shared").display()
    );
    // A loss that is not finite ends a durable run without an end: its files stay.
    damage(&other.path().join("base/model.safetensors"), |b| {
        let end = b.len();
        b[end - 64..].fill(0x7f); // finite, and too large for a sum
    });
    refused(&again, &[durable, &shared], &["step 1"]);
    let elsewhere = format!("output={}", dir.path().join("elsewhere").display());
    refused(
        &run,
        &[&shared, &elsewhere, "plan.optimizer=disk"],
        &["kept state"],
    );
    // Its own run begins anew.
    refused(&again, &[durable, &shared], &["step 1"]);
}
