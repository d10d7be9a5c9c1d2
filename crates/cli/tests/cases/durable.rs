//! State that outlives a killed run: truncated, damaged or given-up files of `checkpoint.durable`.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::cases::scratch::{Ended, Scratch, copy_over};

const RUN: &str = "
model: { path: m }
output: out
budget: { device: 64MiB, host: 64MiB, disk: 64MiB }
plan: { weights: host, optimizer: disk, gradients: host, machine: machine.json }
data: { train: train.jsonl }
train: { steps: 40, micro_batch: 1, accumulate: 2, seq: 128, learning_rate: 1e-3 }
checkpoint: { durable: true, every_steps: 0 }
log: { trace: false, tensorboard: false, every_steps: 1 }
";
const STATE: &str = "out/disk/lowtide-state.bin";
/// Where in a state file the drive's bytes begin.
const DATA: u64 = 2 << 20;

/// A folder with a run, and rates that were measured once.
fn fresh() -> Scratch {
    let case = Scratch::bare();
    case.write("run.yaml", RUN.replace(", machine: machine.json", ""));
    let once = ["checkpoint.durable=false", "train.steps=1", "output=first"];
    case.train(&once).fine();
    fs::rename(case.at("first/machine.json"), case.at("machine.json")).expect("rates of a run");
    fs::remove_dir_all(case.at("first")).expect("a finished run");
    case.write("run.yaml", RUN);
    case
}

/// The last step that the metrics tell of.
fn told(case: &Scratch) -> u64 {
    let text = fs::read_to_string(case.at("out/metrics.jsonl")).unwrap_or_default();
    text.lines().filter(|l| l.contains("\"loss\"")).count() as u64
}

fn start(case: &Scratch) -> Child {
    let mut command = case.command(&["train", "run.yaml"]);
    let quiet = command.stdout(Stdio::null()).stderr(Stdio::null());
    quiet.spawn().expect("starts")
}

/// Runs it, and kills it (SIGKILL) some steps later.
fn killed(case: &Scratch) {
    for _ in 0..20 {
        let mut child = start(case);
        let begun = Instant::now();
        while told(case) < 5 && child.try_wait().expect("a child").is_none() {
            assert!(begun.elapsed() < Duration::from_secs(120), "no step");
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().expect("SIGKILL");
        if !child.wait().expect("a child").success() {
            return;
        }
        fs::remove_dir_all(case.at("out")).expect("a run that was too fast");
    }
    panic!("the run is always faster");
}

fn model(case: &Scratch) -> Vec<u8> {
    fs::read(case.at("out/model/model.safetensors")).expect("an exported model")
}

fn copy(of: &Scratch) -> Scratch {
    let case = Scratch::bare();
    copy_over(of.path(), case.path());
    case
}

fn patch(path: &Path, at: u64, change: impl Fn(&mut [u8]), len: usize) {
    let file = OpenOptions::new().read(true).write(true).open(path);
    let file = file.expect("a state file");
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, at).expect("so long");
    change(&mut bytes);
    file.write_all_at(&bytes, at).expect("written");
}

/// Where the newest record is.
fn newest(path: &Path) -> u64 {
    let bytes = fs::read(path).expect("a state file");
    let number = |at: usize| u64::from_le_bytes(bytes[at + 8..at + 16].try_into().expect("8"));
    if number(4096) > number(8192) {
        4096
    } else {
        8192
    }
}

/// It was refused, the file named with what can be done, and nothing was changed.
#[track_caller]
fn refused(name: &str, case: &Scratch, sets: &[&str], words: &[&str]) {
    let look = |at: &str| fs::read(case.at(at)).ok();
    let before = [STATE, "out/metrics.jsonl"].map(look);
    let ended = case.train(sets);
    assert_eq!(ended.code, Some(2), "{name}: {}", ended.text());
    ended.refused(words);
    assert!(before == [STATE, "out/metrics.jsonl"].map(look), "{name}");
    assert!(!case.at("out/model").exists(), "{name}");
}

fn flip(bytes: &mut [u8]) {
    bytes.iter_mut().for_each(|b| *b ^= 0x10);
}

/// Damage of every kind to the file of a killed run. Either the run goes on to the model
/// of an unbroken run, or it ends with exit code 2 and says what can be done.
#[test]
fn a_damaged_state_file_is_refused_or_gone_on_from_to_the_same_bits() {
    let whole = fresh();
    whole.train(&[]).fine();
    let want = model(&whole);
    let origin = fresh();
    fs::copy(whole.at("machine.json"), origin.at("machine.json")).expect("copied");
    killed(&origin);
    let file_name = "lowtide-state.bin";
    let advice = "move or delete";
    let len = fs::metadata(origin.at(STATE)).expect("kept").len();
    assert!(len > DATA + (16 << 20), "{len}");

    type Damage = fn(&Path);
    let always: [(&str, Damage, &str); 11] = [
        ("cut off", |f| set_len(f, 8 << 20), "cut off"),
        ("one byte shorter", |f| set_len(f, len_of(f) - 1), "cut off"),
        ("empty", |f| set_len(f, 0), "cut off"),
        ("shorter than a header", |f| set_len(f, 100), "cut off"),
        (
            "header zeroed",
            |f| patch(f, 0, |b| b.fill(0), 4096),
            "header",
        ),
        ("a byte of the header", |f| patch(f, 33, flip, 1), "header"),
        (
            "both records zeroed",
            |f| patch(f, 4096, |b| b.fill(0), 8192),
            "records",
        ),
        (
            "a byte of both records",
            |f| {
                patch(f, 4196, flip, 1);
                patch(f, 8292, flip, 1);
            },
            "record",
        ),
        (
            "what is said of the run",
            |f| {
                patch(f, (64 << 10) + 20, flip, 1);
                patch(f, (544 << 10) + 20, flip, 1);
            },
            "journal",
        ),
        (
            "checksums of both versions",
            |f| {
                patch(f, (1 << 20) + 20, flip, 1);
                patch(f, (3 << 19) + 20, flip, 1);
            },
            "checksums",
        ),
        (
            "a byte here and there",
            |f| {
                (DATA..len_of(f) - 1)
                    .step_by(32 << 10)
                    .for_each(|at| patch(f, at, flip, 1));
            },
            "does not have the bytes",
        ),
    ];
    for (name, damage, word) in always {
        let case = copy(&origin);
        damage(&case.at(STATE));
        refused(
            name,
            &case,
            &[],
            &[file_name, word, advice, "begins at step 1"],
        );
    }

    let sometimes: [(&str, Damage); 4] = [
        ("a byte of the newest record", |f| {
            patch(f, newest(f) + 100, flip, 1)
        }),
        ("the newest record zeroed", |f| {
            patch(f, newest(f), |b| b.fill(0), 4096)
        }),
        ("cut off and as long as before", |f| {
            let len = len_of(f);
            set_len(f, 8 << 20);
            set_len(f, len);
        }),
        ("a byte of the data", |f| {
            patch(f, DATA + (1 << 20) + 5, flip, 1)
        }),
    ];
    for (name, damage) in sometimes {
        let case = copy(&origin);
        damage(&case.at(STATE));
        let ended = case.train(&[]);
        match ended.code {
            Some(0) => {
                assert!(went_on(&ended), "{name}: {}", ended.text());
                assert!(model(&case) == want, "{name}: another model");
            }
            _ => ended.refused(&[file_name, advice]),
        }
    }

    // What is done about it, as the message says.
    let case = copy(&origin);
    patch(&case.at(STATE), 0, flip, 1);
    fs::rename(case.at(STATE), case.at("aside")).expect("moved");
    case.train(&[])
        .refused(&[file_name, "is not there", "checkpoint.resume=never"]);
    case.train(&["checkpoint.resume=never"]).fine();
    assert!(model(&case) == want);
    // And nothing wrong at all.
    let ended = origin.train(&[]);
    assert!(went_on(ended.fine()), "{}", ended.text());
    // The killed process took the time of its last steps with it: the rate names the tokens that it is of.
    assert!(ended.out.contains(" of them in "), "{}", ended.out);
    assert!(model(&origin) == want);
    assert!(!origin.at("out/disk").exists());
}

fn went_on(ended: &Ended) -> bool {
    ended.text().contains("went on from")
}

fn set_len(path: &Path, len: u64) {
    let file = OpenOptions::new().write(true).open(path);
    file.expect("a state file").set_len(len).expect("cut");
}

fn len_of(path: &Path) -> u64 {
    fs::metadata(path).expect("a state file").len()
}

/// Something else under the name of the state file is not opened, followed, waited for or removed.
#[test]
fn what_is_no_regular_file_is_refused() {
    let case = fresh();
    fs::create_dir_all(case.at("out/disk")).expect("made");
    case.write("thesis", "somebody's");
    let path = case.at(STATE);
    std::os::unix::fs::symlink(case.at("thesis"), &path).expect("a link");
    case.train(&[])
        .refused(&["lowtide-state.bin", "symbolic link"]);
    case.train(&["checkpoint.durable=false"])
        .refused(&["symbolic link"]);
    case.train(&["checkpoint.resume=never"])
        .refused(&["symbolic link"]);
    fs::remove_file(&path).expect("the link");
    assert_eq!(case.read("thesis"), "somebody's");
    let made = std::process::Command::new("mkfifo").arg(&path).status();
    assert!(made.expect("mkfifo").success());
    case.train(&[]).refused(&["lowtide-state.bin", "FIFO"]);
    fs::remove_file(&path).expect("the FIFO");
    fs::create_dir(&path).expect("a directory");
    case.train(&[]).refused(&["lowtide-state.bin", "directory"]);
    fs::remove_dir(&path).expect("still there and empty");
    case.train(&[]).fine();
}

/// What a killed run kept is there until what takes its place has been loaded.
#[test]
fn kept_state_is_given_up_only_for_what_was_loaded() {
    let whole = fresh();
    whole.train(&[]).fine();
    let want = model(&whole);
    let case = fresh();
    fs::copy(whole.at("machine.json"), case.at("machine.json")).expect("copied");
    killed(&case);
    // Begun anew, with a model file that is cut off.
    let weights = fs::read(case.at("m/model.safetensors")).expect("the base model");
    case.write("m/model.safetensors", &weights[..weights.len() / 2]);
    refused(
        "never",
        &case,
        &["checkpoint.resume=never"],
        &["model.safetensors"],
    );
    case.write("m/model.safetensors", &weights);
    // From a checkpoint that cannot be loaded: one that is named, and one that is the newest.
    fs::create_dir_all(case.at("out/checkpoints/step-00000999")).expect("made");
    refused("newest", &case, &[], &["step-00000999"]);
    let named = ["checkpoint.resume=out/checkpoints/step-00000999"];
    refused("named", &case, &named, &["step-00000999"]);
    fs::remove_dir_all(case.at("out/checkpoints")).expect("ours");
    // Not durable any more.
    refused(
        "off",
        &case,
        &["checkpoint.durable=false"],
        &["checkpoint.durable"],
    );
    let ended = case.train(&[]);
    assert!(went_on(ended.fine()), "{}", ended.text());
    assert!(model(&case) == want);
    assert!(!case.at("out/disk").exists());

    // Given up when that is asked for.
    fs::remove_dir_all(case.at("out")).expect("a finished run");
    killed(&case);
    for sets in [
        &["checkpoint.resume=never"][..],
        &["checkpoint.resume=never", "checkpoint.durable=false"],
        &[
            "checkpoint.resume=never",
            "checkpoint.durable=false",
            "plan.optimizer=host",
        ],
    ] {
        let again = copy(&case);
        let ended = again.train(sets);
        assert!(!went_on(ended.fine()), "{}", ended.text());
        assert!(model(&again) == want);
        assert_eq!(
            fs::read_dir(again.at("out/disk")).map_or(0, Iterator::count),
            0
        );
    }
}

/// State that is not where it was, or that the run does not look for any more, is missed: the steps that
/// it holds are not begun anew silently.
#[test]
fn state_that_is_not_found_is_missed() {
    let whole = fresh();
    whole.train(&[]).fine();
    let want = model(&whole);
    let origin = fresh();
    fs::copy(whole.at("machine.json"), origin.at("machine.json")).expect("copied");
    killed(&origin);
    let never = "checkpoint.resume=never";
    let elsewhere = "budget.disk=[{dir: elsewhere, size: 64MiB}]";
    let none = "plan.optimizer=host";
    let off = "checkpoint.durable=false";

    let case = copy(&origin);
    fs::rename(case.at("out/disk"), case.at("unmounted")).expect("moved");
    for sets in [&[][..], &[off], &[off, none], &[elsewhere]] {
        let words = [STATE, "is not there", "mounted", never];
        refused(&format!("gone {sets:?}"), &case, sets, &words);
        assert!(!case.at("elsewhere").exists(), "{sets:?}");
    }
    // Mounted again, be it somewhere else with all of the output.
    fs::rename(case.at("unmounted"), case.at("out/disk")).expect("back");
    fs::rename(case.at("out"), case.at("moved")).expect("moved");
    let ended = case.train(&["output=moved"]);
    assert!(went_on(ended.fine()), "{}", ended.text());
    let moved = fs::read(case.at("moved/model/model.safetensors"));
    assert!(moved.expect("exported") == want);

    let case = copy(&origin);
    for sets in [&[elsewhere][..], &[elsewhere, off]] {
        let words = [STATE, "budget.disk names another directory", never];
        refused(&format!("other drives {sets:?}"), &case, sets, &words);
        assert!(!case.at("elsewhere").exists(), "{sets:?}");
    }
    let ended = case.train(&[]);
    assert!(went_on(ended.fine()), "{}", ended.text());
    assert!(model(&case) == want);

    // A checkpoint is there: it is older, and named.
    let case = copy(&origin);
    let saved = ["train.steps=2", "output=saved", "checkpoint.every_steps=0"];
    case.train(&saved).fine();
    copy_over(&case.at("saved/checkpoints"), &case.at("out/checkpoints"));
    fs::rename(case.at(STATE), case.at("aside")).expect("moved");
    let from = "checkpoint.resume=out/checkpoints/step-00000002";
    let words = [
        STATE,
        "go on from step 2",
        "out/checkpoints/step-00000002",
        never,
    ];
    refused("older", &case, &[], &words);
    let change = "checkpoint.change=[train.steps]";
    case.train(&[from, change]).fine();
    assert!(!case.at(STATE).exists());
    // What came to its end is missed by nobody.
    let again = case.train(&[change]);
    assert!(again.fine().text().contains("nothing to do"));
}

/// One process at a time in a disk directory, run or probe; the lock dies with its process.
#[test]
fn a_run_and_a_probe_do_not_share_a_disk_directory() {
    let case = fresh();
    fs::create_dir(case.at("drive")).expect("made");
    case.write(
        "run.yaml",
        RUN.replace("disk: 64MiB", "disk: { dir: drive, size: 64MiB }")
            .replace("steps: 40", "steps: 100000"),
    );
    let mut child = start(&case);
    let begun = Instant::now();
    while told(&case) < 1 {
        assert!(begun.elapsed() < Duration::from_secs(120), "no step");
        std::thread::sleep(Duration::from_millis(5));
    }
    let pid = format!("process {}", child.id());
    case.run(&["probe", "--disk", "drive"])
        .refused(&["drive", &pid, "wait"]);
    case.train(&["output=other"])
        .refused(&["drive", &pid, "wait"]);
    child.kill().expect("SIGKILL");
    child.wait().expect("a child");
    // The lock is gone with it.
    let before = told(&case);
    let mut child = start(&case);
    while told(&case) <= before {
        let ended = child.try_wait().expect("a child");
        assert!(
            ended.is_none() && begun.elapsed() < Duration::from_secs(240),
            "{ended:?}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().expect("SIGKILL");
    child.wait().expect("a child");
}
