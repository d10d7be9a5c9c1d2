//! Output directories that lack what was kept, that move during a run, or are named as something else; what is
//! left of a drive's directory.

use std::fs;

use serde_json::Value;

use super::lost::{RUN, files, names, result, started};
use super::scratch::{Scratch, copy_over};

/// Steps that were kept and can't be gone on from are missed, whatever tells of them, before anything is
/// touched; each way on that is offered works.
#[test]
fn a_start_that_would_lose_kept_steps_is_refused() {
    let whole = Scratch::bare();
    whole.write("run.yaml", RUN);
    whole.train(&[]).fine();
    let want = result(&whole, "out");
    let (all, newest, older) = (
        "out/checkpoints",
        "out/checkpoints/step-00000004",
        "out/checkpoints/step-00000002",
    );
    let copy = || {
        let s = Scratch::bare();
        copy_over(whole.path(), s.path());
        s
    };
    for gone in [
        &[all][..],
        &[newest],
        &[all, "out/finished.json"],
        &[newest, "out/finished.json"],
        &[all, "out/metrics.jsonl"],
        &[all, "out/.lowtide"],
        &[all, "out/model", "out/finished.json"],
    ] {
        let s = copy();
        for name in gone {
            let path = s.at(name);
            if path.is_dir() {
                fs::remove_dir_all(path).unwrap();
            } else {
                fs::remove_file(path).unwrap();
            }
        }
        let unmarked = gone.contains(&"out/.lowtide");
        let before = files(&s.at("out"));
        let refused = s.train(&[]);
        refused.refused(&[
            newest,
            "is not there",
            "up to 4",
            "checkpoint.resume=never",
            "output=DIR",
        ]);
        let mut after = files(&s.at("out"));
        if unmarked {
            after.remove(".lowtide");
        }
        assert!(before == after, "{gone:?}: something was touched");
        let offers_older = refused.err.contains(older);
        assert_eq!(offers_older, gone.contains(&newest), "{}", refused.err);
        if offers_older {
            s.train(&[&format!("checkpoint.resume={older}")]).fine();
        } else {
            s.train(&["checkpoint.resume=never"]).fine();
        }
        assert_eq!(result(&s, "out"), want, "{gone:?}");
        // And then nothing is missed any more.
        let again = s.train(&[]);
        assert!(again.fine().text().contains("nothing to do"), "{gone:?}");
    }
    // Put back.
    let s = copy();
    fs::rename(s.at(all), s.at("aside")).unwrap();
    s.train(&[]).refused(&[newest]);
    fs::rename(s.at("aside"), s.at(all)).unwrap();
    assert!(s.train(&[]).fine().text().contains("nothing to do"));
    // Elsewhere.
    fs::remove_dir_all(s.at(all)).unwrap();
    s.train(&["output=other"]).fine();
    // What was never saved is not missed, and the run says so.
    for name in [all, "out/model"] {
        let _ = fs::remove_dir_all(s.at(name));
    }
    fs::remove_file(s.at("out/finished.json")).unwrap();
    let mut mark: Value = serde_json::from_str(&s.read("out/.lowtide")).unwrap();
    assert_eq!(mark["kept"]["saved"], 4);
    mark.as_object_mut().unwrap().remove("kept").unwrap();
    s.write("out/.lowtide", mark.to_string());
    let ended = s.train(&[]);
    let text = ended.fine().text();
    assert!(
        text.contains("the run before made 4 steps here") && text.contains("begins at step 1"),
        "{text}"
    );
    assert_eq!(result(&s, "out"), want);
}

/// A run that was begun again and killed after its first save goes on from there, whatever the one before had reached.
#[test]
fn a_run_that_was_begun_again_and_killed_goes_on() {
    let s = Scratch::bare();
    s.write("run.yaml", RUN);
    let long = ["train.steps=60", "checkpoint.every_steps=2"];
    s.train(&long).fine();
    fs::remove_dir_all(s.at("out/checkpoints")).unwrap();
    let again = ["train", "run.yaml", "--set", long[0], "--set", long[1]];
    let never = [&again[..], &["--set", "checkpoint.resume=never"]].concat();
    let mut killed = s.command(&never).spawn().unwrap();
    while !s.at("out/checkpoints/step-00000002").exists() {
        assert!(killed.try_wait().unwrap().is_none(), "it was too fast");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert!(!s.at("out/finished.json").exists());
    let ended = s.run(&again);
    assert!(!ended.fine().text().contains("begins at step 1"));
}

/// What a run holds is the directory that it began in: renamed or replaced, all goes on there; removed, all
/// that is still in memory goes to a new one. Nothing is written into a directory that took its name.
#[test]
fn an_output_directory_that_is_moved_replaced_or_removed_costs_nothing() {
    let s = Scratch::bare();
    s.write("run.yaml", RUN);
    let disk = "budget.disk=64MiB";
    let sets = |output: &'static str| {
        [
            output,
            disk,
            "plan.optimizer=disk",
            "train.steps=60",
            "checkpoint.every_steps=20",
        ]
    };
    s.train(&sets("output=want")).fine();
    let want = result(&s, "want");
    let kept = names(&s.at("want"));
    let until = |sets: &[&str], act: &dyn Fn()| {
        let (mut running, mut out) = started(&s, sets, "step 1/");
        act();
        let mut text = String::new();
        std::io::Read::read_to_string(&mut out, &mut text).expect("text");
        assert!(running.0.wait().expect("a child").success(), "{text}");
        text
    };
    // Renamed.
    let text = until(&sets("output=out"), &|| {
        fs::rename(s.at("out"), s.at("moved")).unwrap();
    });
    assert!(text.contains("was moved or replaced"), "{text}");
    assert_eq!(text.matches("was moved").count(), 1, "{text}");
    let told = s.at("moved/checkpoints/step-00000060");
    assert!(text.contains(&told.display().to_string()), "{text}");
    assert!(!s.at("out").exists());
    assert_eq!(result(&s, "moved"), want);
    assert_eq!(names(&s.at("moved")), kept);
    // Replaced, by what another run could have made.
    copy_over(&s.at("want"), &s.at("other"));
    fs::create_dir(s.at("other/disk")).unwrap();
    s.write("other/disk/lowtide-state.bin", "another run's");
    let other = files(&s.at("other"));
    let text = until(&sets("output=out"), &|| {
        fs::rename(s.at("out"), s.at("again")).unwrap();
        fs::rename(s.at("other"), s.at("out")).unwrap();
    });
    assert!(text.contains("was moved or replaced"), "{text}");
    assert_eq!(result(&s, "again"), want);
    assert_eq!(names(&s.at("again")), kept);
    assert!(files(&s.at("out")) == other, "another's was touched");
    // Removed: what was recorded is gone, what is in memory is not.
    let text = until(&sets("output=third"), &|| {
        fs::remove_dir_all(s.at("third")).unwrap();
    });
    assert!(text.contains("was removed"), "{text}");
    let (model, metrics) = result(&s, "third");
    assert_eq!(model, want.0);
    assert!(
        !metrics.is_empty() && want.1.ends_with(&metrics),
        "{metrics:?}"
    );
    let mut all = names(&s.at("third"));
    all.retain(|name| !name.starts_with("checkpoints"));
    let mut as_ever = kept.clone();
    as_ever.retain(|name| !name.starts_with("checkpoints"));
    assert_eq!(all, as_ever);
    let again = s.train(&sets("output=third"));
    assert!(again.fine().text().contains("nothing to do"));
}

/// A drive's directory that was made for a command goes with what was in it.
#[test]
fn no_empty_directories_of_drives_are_left() {
    let s = Scratch::bare();
    s.write("run.yaml", RUN);
    let disk = [
        "--set",
        "budget.disk=64MiB",
        "--set",
        "plan.optimizer=disk",
        "--set",
        "data.eval=eval.jsonl",
    ];
    for command in ["verify", "eval", "train"] {
        let args = [&[command, "run.yaml"], &disk[..]].concat();
        s.run(&args).fine();
        assert!(!s.at("out/disk").exists(), "{command}");
        assert_eq!(s.at("out").exists(), command == "train", "{command}");
    }
    // Of a finished run that gets an evaluation. One that was there is somebody else's.
    let more = [
        "eval.generate.exact_match=true",
        "eval.generate.max_examples=1",
    ];
    fs::create_dir(s.at("out/disk")).unwrap();
    let sets = [
        "budget.disk=64MiB",
        "plan.optimizer=disk",
        "data.eval=eval.jsonl",
    ];
    s.train(&[&sets[..], &more].concat()).fine();
    assert!(s.at("out/disk").exists());
    fs::remove_dir(s.at("out/disk")).unwrap();
    s.train(&[&sets[..], &more[..1], &["eval.generate.max_examples=2"]].concat())
        .fine();
    assert!(!s.at("out/disk").exists());
    // What a killed process has left is its own.
    let anew = [&sets[..], &["checkpoint.resume=never", "train.steps=60"]].concat();
    drop(super::lost::started(&s, &anew, "step 3/"));
    assert!(s.at("out/disk").exists());
    s.train(&[&sets[..], &["train.steps=60"]].concat()).fine();
    assert!(!s.at("out/disk").exists());
    // Somebody's file in it stays, with its place.
    fs::create_dir(s.at("out/disk")).unwrap();
    s.write("out/disk/notes", "mine");
    s.train(&[&sets[..], &["train.steps=60", "checkpoint.resume=never"]].concat())
        .fine();
    assert_eq!(s.read("out/disk/notes"), "mine");
}

/// A directory that holds checkpoints is no checkpoint: the newest in it is named.
#[test]
fn an_output_named_as_a_checkpoint_is_told_apart() {
    let s = Scratch::bare();
    s.write("run.yaml", RUN);
    s.train(&[]).fine();
    let before = files(&s.at("out"));
    for dir in ["out", "out/checkpoints", "out/"] {
        let resume = format!("checkpoint.resume={dir}");
        s.train(&[&resume, "output=new"]).refused(&[
            "checkpoint.resume: ",
            "holds checkpoints",
            "out/checkpoints/step-00000004",
        ]);
    }
    assert!(before == files(&s.at("out")) && !s.at("new").exists());
    let named = "checkpoint.resume=out/checkpoints/step-00000004";
    s.train(&[named, "output=new"]).fine();
    // What holds none stays what it was said to be.
    s.train(&["checkpoint.resume=m", "output=other"])
        .refused(&["a broken checkpoint", "run.json"]);
}

/// The files of records are written anew where they lose their names, with all that stood in them.
#[test]
fn metrics_that_are_removed_or_replaced_during_a_run_are_written_anew() {
    let s = Scratch::bare();
    s.write("run.yaml", RUN);
    let sets = |output: &'static str| {
        [
            output,
            "train.steps=40",
            "checkpoint.every_steps=20",
            "log.tensorboard=true",
        ]
    };
    s.train(&sets("output=want")).fine();
    let want = result(&s, "want");
    let during = |output, act: &dyn Fn()| {
        let (mut running, mut out) = started(&s, &sets(output), "step 1/");
        act();
        let mut text = String::new();
        std::io::Read::read_to_string(&mut out, &mut text).expect("text");
        assert!(running.0.wait().expect("a child").success(), "{text}");
        text
    };
    let text = during("output=out", &|| {
        fs::remove_file(s.at("out/metrics.jsonl")).unwrap();
        fs::remove_dir_all(s.at("out/tensorboard")).unwrap();
    });
    assert_eq!(
        text.matches("metrics.jsonl was removed").count(),
        1,
        "{text}"
    );
    assert_eq!(result(&s, "out"), want);
    assert_eq!(names(&s.at("out")).len(), names(&s.at("want")).len());
    let text = during("output=again", &|| {
        let path = s.at("again/metrics.jsonl");
        fs::remove_file(&path).unwrap();
        fs::write(path, "another's\n").unwrap();
    });
    assert!(text.contains("metrics.jsonl was replaced"), "{text}");
    assert_eq!(result(&s, "again"), want);
    assert_eq!(s.read("again/metrics.jsonl.kept"), "another's\n");
}
