//! Runs that leave what their output has for an older checkpoint or for step 1, and are killed.

use std::fs;

use serde_json::Value;

use super::lost::{files, result, started};
use super::scratch::{Ended, Scratch, copy_over};

const RUN: &str = "
model: {path: m}
output: out
budget: {device: 1GiB, host: 256MiB}
plan: {machine: machine.json}
log: {trace: false, tensorboard: false}
train: {steps: 60, micro_batch: 2, seq: 64, learning_rate: 1e-3, warmup_steps: 0}
data: {train: train.jsonl, max_examples: 40}
checkpoint: {every_steps: 20, keep: 9}
";
const NAMED: &str = "out/checkpoints/step-00000020";
/// Another curve from there on.
const OTHER: [&str; 2] = [
    "train.learning_rate=4e-3",
    "checkpoint.change=train.learning_rate",
];

/// Another curve from the checkpoint of step 20 on.
fn branch() -> Vec<&'static str> {
    let resume = "checkpoint.resume=out/checkpoints/step-00000020";
    [&[resume][..], &OTHER].concat()
}

/// A finished run of three checkpoints, and what a run from the first with another rate comes to.
struct Origin {
    s: Scratch,
    want: (Vec<u8>, Vec<(u64, String, String)>),
}

fn origin() -> Origin {
    let s = Scratch::bare();
    s.write("run.yaml", RUN.replace("plan: {machine: machine.json}", ""));
    s.train(&["output=first", "train.steps=1"]).fine();
    fs::copy(s.at("first/machine.json"), s.at("machine.json")).unwrap();
    s.write("run.yaml", RUN);
    s.train(&[]).fine();
    copy_over(&s.at("out"), &s.at("want"));
    let named = "checkpoint.resume=want/checkpoints/step-00000020";
    s.train(&[&["output=want", named][..], &OTHER].concat())
        .fine();
    let want = result(&s, "want");
    assert_ne!(want, result(&s, "out"));
    assert_eq!(want.1.len(), 60);
    fs::remove_dir_all(s.at("want")).unwrap();
    fs::remove_dir_all(s.at("first")).unwrap();
    Origin { s, want }
}

fn copy(of: &Scratch) -> Scratch {
    let s = Scratch::bare();
    copy_over(of.path(), s.path());
    s
}

/// Kills a run when it has printed a line with `word`.
fn killed(s: &Scratch, sets: &[&str], word: &str) {
    drop(started(s, sets, word));
    let (model, ours) = (files(&s.at("out/model")), s.read("out/.lowtide"));
    assert!(!model.is_empty() && ours.contains("branch"), "{ours}");
}

fn saved(s: &Scratch, name: &str) -> Vec<u8> {
    let path = s.at("out/checkpoints").join(name).join("state.safetensors");
    fs::read(path).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn note(ended: &Ended, words: &[&str]) {
    let text = ended.fine().text();
    for word in words {
        assert!(text.contains(word), "{word:?} in {text}");
    }
}

/// Before the branch has saved, a kill loses nothing: the same command and a start by itself both begin at the named
/// checkpoint again, and what was left is there to be named.
#[test]
fn a_branch_that_was_killed_before_it_saved_begins_again() {
    let Origin { s: origin, want } = origin();
    let metrics = origin.read("out/metrics.jsonl");
    let before = files(&origin.at("out/checkpoints"));
    let s = copy(&origin);
    killed(&s, &branch(), "step 24/");
    assert!(before == files(&s.at("out/checkpoints")), "touched");
    assert_eq!(
        s.read("out/finished.json"),
        origin.read("out/finished.json")
    );
    assert_eq!(s.read("out/metrics.left.jsonl"), metrics);
    let mid = s.read("out/metrics.jsonl");
    assert!((20..40).contains(&mid.lines().count()), "{mid}");
    for sets in [branch(), OTHER.to_vec()] {
        let s = copy(&s);
        // Killed once more, in another way.
        killed(&s, &sets, "step 21/");
        let ended = s.train(&sets);
        let resumed = format!("after step 20 of {}", s.at(NAMED).display());
        note(
            &ended,
            &[&resumed, "ended before it had saved", "step-00000060"],
        );
        assert_eq!(result(&s, "out"), want);
        assert_eq!(s.read("out/metrics.left.jsonl"), metrics);
        for (name, old) in [
            ("step-00000040", "step-00000040.left"),
            ("step-00000060", "step-00000060.left"),
        ] {
            assert_eq!(saved(&s, old), before[&format!("{name}/state.safetensors")]);
            assert_ne!(saved(&s, old), saved(&s, name));
        }
        for again in [branch(), OTHER.to_vec()] {
            note(&s.train(&again), &["finished at step 60; nothing to do"]);
        }
    }
    // What was left is gone on with where it is named: its end, and with its metrics.
    let finished = s.train(&["checkpoint.resume=out/checkpoints/step-00000060"]);
    note(&finished, &["nothing to do"]);
    let back = s.train(&["checkpoint.resume=out/checkpoints/step-00000040"]);
    back.fine();
    assert_eq!(result(&s, "out"), result(&origin, "out"));
}

/// Once it has saved, both go on from what it saved; to begin there again another run has to be named.
#[test]
fn a_branch_that_has_saved_goes_on_from_what_it_saved() {
    let Origin { s: origin, want } = origin();
    let s = copy(&origin);
    // Behind the line that says it is saved stands the mark.
    let (running, mut out) = started(&s, &branch(), "/step-00000040\n");
    let next = std::io::BufRead::read_line(&mut out, &mut String::new());
    assert!(next.expect("text") > 0);
    drop(running);
    assert!(!s.at("out/finished.json").exists());
    let told = |s: &Scratch| s.at("out/checkpoints/step-00000040").display().to_string();
    for sets in [branch(), OTHER.to_vec()] {
        let s = copy(&s);
        let ended = s.train(&sets);
        note(
            &ended,
            &[&format!("resumed from {} after step 40", told(&s))],
        );
        assert_eq!(result(&s, "out"), want);
        note(&s.train(&sets), &["nothing to do"]);
    }
    // With other settings it is another branch.
    let rate = [branch()[0], "train.learning_rate=2e-3", OTHER[1]];
    let t = copy(&s);
    let ended = t.train(&rate);
    note(
        &ended,
        &[&format!(
            "resumed from {} after step 20",
            t.at(NAMED).display()
        )],
    );
    assert_ne!(result(&t, "out"), want);
    assert!(t.at("out/checkpoints/step-00000040.left-2").exists());
    // So it is with other groups of tensors, each time anew.
    let t = copy(&s);
    let first = "optimizer.groups={match: '*norm*', weight_decay: 0.5}";
    t.train(&[branch()[0], first])
        .refused(&["optimizer.groups", "checkpoint.change=[optimizer.groups]"]);
    let mut results = Vec::new();
    for groups in [
        first,
        "optimizer.groups={match: '*norm*', weight_decay: 0.25}",
    ] {
        let ended = t.train(&[branch()[0], groups, "checkpoint.change=optimizer.groups"]);
        let resumed = format!("resumed from {} after step 20", t.at(NAMED).display());
        note(&ended, &[&resumed, "optimizer.groups: none -> [["]);
        results.push(result(&t, "out"));
    }
    assert_ne!(results[0], results[1]);
    // The branch's own checkpoint is gone: a start by itself misses it; one that names where to begin begins there
    // again.
    let t = copy(&s);
    fs::remove_dir_all(t.at("out/checkpoints/step-00000040")).unwrap();
    t.train(&OTHER).refused(&["step-00000040", "is not there"]);
    let ended = t.train(&branch());
    note(
        &ended,
        &[&format!(
            "resumed from {} after step 20",
            t.at(NAMED).display()
        )],
    );
    assert_eq!(result(&t, "out"), want);
    // It is broken: the way that is offered works.
    let t = copy(&s);
    let state = t.at("out/checkpoints/step-00000040/state.safetensors");
    let mut bytes = fs::read(&state).unwrap();
    let last = bytes.len() - 9;
    bytes[last] ^= 1;
    fs::write(&state, bytes).unwrap();
    let refused = t.train(&OTHER);
    refused.refused(&[
        "is damaged",
        &format!("checkpoint.resume={}", t.at(NAMED).display()),
    ]);
    let ended = t.train(&branch());
    note(&ended, &["is damaged", "goes on from what is whole"]);
    assert_eq!(result(&t, "out"), want);
}

/// The one that is named is not pruned before there is another; then it may, and the same command still goes on.
#[test]
fn a_named_checkpoint_stays_until_the_branch_has_one() {
    let Origin { s, want } = origin();
    // Behind a save what is too much is gone before the next step.
    let alone = vec!["checkpoint.keep=1", "checkpoint.background=false"];
    let sets = [branch(), alone].concat();
    killed(&s, &sets, "step 24/");
    assert_eq!(fs::read_dir(s.at("out/checkpoints")).unwrap().count(), 3);
    // Stopped before its first step.
    killed(&s, &sets, "step 21/");
    assert!(s.at(NAMED).exists());
    killed(&s, &sets, "step 45/");
    assert!(!s.at(NAMED).exists());
    assert_eq!(fs::read_dir(s.at("out/checkpoints")).unwrap().count(), 1);
    note(
        &s.train(&sets),
        &["after step 40", "goes on with what was saved"],
    );
    assert_eq!(result(&s, "out"), want);
    note(&s.train(&sets), &["nothing to do"]);
}

/// The checkpoint of another output.
#[test]
fn a_branch_from_another_output_goes_on_by_itself() {
    let Origin { s, want } = origin();
    fs::rename(s.at("out"), s.at("old")).unwrap();
    let named = "checkpoint.resume=old/checkpoints/step-00000020";
    let sets = [&[named][..], &OTHER].concat();
    for sets in [&sets[..], &OTHER] {
        drop(started(&s, &[&[named][..], &OTHER].concat(), "step 24/"));
        note(
            &s.train(sets),
            &["begins after step 20 of", "ended before it had saved"],
        );
        let (model, steps) = result(&s, "out");
        assert_eq!((&model, &steps[..]), (&want.0, &want.1[20..]));
        fs::remove_dir_all(s.at("out")).unwrap();
    }
    drop(started(&s, &sets, "step 24/"));
    // It is gone.
    fs::remove_dir_all(s.at("old")).unwrap();
    s.train(&OTHER).refused(&["old/checkpoints/step-00000020"]);
}

/// A run that was begun anew and killed before it saved: a start by itself begins anew too, and says what there is.
#[test]
fn a_run_begun_anew_and_killed_does_not_become_the_one_before() {
    let Origin { s: origin, .. } = origin();
    let never = ["checkpoint.resume=never", "train.learning_rate=4e-3"];
    let s = copy(&origin);
    killed(&s, &never, "step 6/");
    let want = {
        let s = copy(&origin);
        s.train(&["output=new", never[1]]).fine();
        result(&s, "new")
    };
    assert_eq!(
        s.read("out/metrics.left.jsonl"),
        origin.read("out/metrics.jsonl")
    );
    let t = copy(&s);
    let ended = t.train(&never[1..]);
    note(
        &ended,
        &[
            "begins at step 1",
            "ended before it had saved",
            "step-00000060",
        ],
    );
    assert_eq!(result(&t, "out"), want);
    assert!(t.at("out/checkpoints/step-00000060.left").exists());
    note(&t.train(&never[1..]), &["nothing to do"]);
    // The one before is gone on with where it is named.
    let t = copy(&s);
    note(
        &t.train(&["checkpoint.resume=out/checkpoints/step-00000060"]),
        &["nothing to do"],
    );
    t.train(&["checkpoint.resume=out/checkpoints/step-00000040"])
        .fine();
    assert_eq!(result(&t, "out"), result(&origin, "out"));
    // Killed behind its first checkpoint it goes on from there.
    killed(&s, &never, "/step-00000020\n");
    note(&s.train(&never[1..]), &["after step 20"]);
    assert_eq!(result(&s, "out"), want);
    let mark: Value = serde_json::from_str(&s.read("out/.lowtide")).unwrap();
    assert_eq!(mark["kept"]["branch"]["unsaved"], false, "{mark}");
}

/// Each step of a durable run is saved; whichever way it was begun, its own journal is what it goes on from.
#[test]
fn a_durable_branch_goes_on_from_its_own_last_step() {
    let Origin { s: origin, want } = origin();
    let durable = [
        "checkpoint.durable=true",
        "budget.disk=64MiB",
        "checkpoint.every_steps=0",
    ];
    let sets = [branch(), durable.to_vec()].concat();
    let s = copy(&origin);
    killed(&s, &sets, "step 24/");
    assert!(s.at("out/checkpoints/step-00000060").exists());
    for sets in [sets.clone(), [&OTHER[..], &durable].concat()] {
        let s = copy(&s);
        let ended = s.train(&sets);
        note(&ended, &["went on from"]);
        assert!(!ended.text().contains("after step 60"), "{}", ended.text());
        assert_eq!(result(&s, "out"), want);
        assert!(s.at("out/checkpoints/step-00000060.left").exists());
        note(&s.train(&sets), &["nothing to do"]);
    }
    // The journal of a branch that was left is not that of the next.
    let anew = [&["checkpoint.resume=never"][..], &durable].concat();
    killed(&s, &anew, "step 3/");
    let ended = s.train(&durable);
    note(&ended, &["went on from"]);
    assert_eq!(result(&s, "out"), result(&origin, "out"));
}
