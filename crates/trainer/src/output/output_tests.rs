//! Which output directories are taken, and what stays as it was in those that are not.

use std::fs;
use std::os::unix::fs::symlink;

use super::*;

fn run(dir: &Path, extra: &[&str]) -> Run {
    let text = "model: {path: base}\noutput: out\nbudget: {device: 1GiB, host: 1GiB}\n\
                data: {train: d.jsonl}\n\
                train: {steps: 1, seq: 8, micro_batch: 1}\n";
    let sets: Vec<String> = extra.iter().map(|&s| s.to_owned()).collect();
    Run::parse(text, "run.yaml", dir, &sets).unwrap()
}

fn scratch() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("base")).unwrap();
    fs::write(dir.path().join("base/config.json"), "{}").unwrap();
    fs::write(dir.path().join("d.jsonl"), "{}\n").unwrap();
    dir
}

#[test]
fn one_run_at_a_time_and_none_after_it() {
    let dir = scratch();
    let run = run(dir.path(), &[]);
    let first = Output::open(&run).unwrap();
    let path = dir.path().join("out").join(MARK);
    let second = Output::open(&run).unwrap_err();
    assert!(
        matches!(&second, TrainError::Locked { path: p } if *p == path),
        "{second}"
    );
    fs::write(dir.path().join("out/metrics.jsonl"), "").unwrap();
    drop(first);
    drop(Output::open(&run).unwrap());
    assert!(path.is_file());
}

/// The mark is replaced when it says more, and nobody gets the directory in between.
#[test]
fn what_was_kept_is_said_under_the_lock() {
    let dir = scratch();
    let run = run(dir.path(), &[]);
    let mut first = Output::open(&run).unwrap();
    assert_eq!(first.kept(), &Kept::default());
    let file = dir.path().join("drive/lowtide-state.bin");
    // A path need not be text.
    let bytes = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"/x/\xff/y");
    for (step, file) in [
        (2, file),
        (3, PathBuf::from(bytes)),
        (4, run.output.join("disk/s")),
    ] {
        let kept = Kept::of(&run.output, Some(step), Some(file.clone()), None);
        first.keep(kept.clone()).unwrap();
        assert_eq!(first.state_file(), Some(file));
        assert!(matches!(Output::open(&run), Err(TrainError::Locked { .. })));
        assert_eq!(first.kept(), &kept);
        let said = Mark::of(first.folder()).unwrap().unwrap();
        assert_eq!(said.kept(), kept);
    }
    // A path in the output is one of wherever the output is.
    assert_eq!(
        first.kept().state_file.as_deref(),
        Some(Path::new("disk/s"))
    );
    fs::write(dir.path().join("out/metrics.jsonl"), "").unwrap();
    let pending = dir.path().join("out").join(folder::pending(MARK));
    fs::write(&pending, "half").unwrap();
    drop(first);
    let next = Output::open(&run).unwrap();
    assert_eq!(next.kept().saved, Some(4));
    assert!(!pending.exists());
}

#[test]
fn a_run_that_wrote_nothing_leaves_nothing_that_was_not_there() {
    let dir = scratch();
    let run = run(dir.path(), &[]);
    drop(Output::open(&run).unwrap());
    assert!(!dir.path().join("out").exists());
    fs::create_dir(dir.path().join("out")).unwrap();
    drop(Output::open(&run).unwrap());
    assert!(dir.path().join("out").is_dir());
}

#[test]
fn a_file_system_without_locks_gets_the_reason() {
    for e in [Errno::NOLCK, Errno::OPNOTSUPP, Errno::NOSYS] {
        let error = unlocked(Path::new("out/.lowtide"), e);
        let said = std::io::Error::from(e).to_string();
        assert!(
            matches!(&error, TrainError::NoLocks { what, .. } if *what == said),
            "{error}"
        );
    }
    assert!(matches!(
        unlocked(Path::new("x"), Errno::ACCESS),
        TrainError::File { .. }
    ));
}

#[test]
fn links_at_the_names_of_outputs_are_named_and_their_targets_stay() {
    let dir = scratch();
    let run = run(dir.path(), &[]);
    let target = dir.path().join("precious");
    fs::write(&target, "precious").unwrap();
    let elsewhere = dir.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    fs::write(elsewhere.join("state.safetensors"), "precious").unwrap();
    fs::create_dir_all(dir.path().join("out/checkpoints")).unwrap();
    let pending = FILES.map(folder::pending);
    let files = FILES.iter().map(|&f| f.to_owned()).chain(pending);
    let folders = FOLDERS.map(str::to_owned).into_iter().chain([
        ".model.pending".to_owned(),
        "checkpoints/.step-00000002.pending".to_owned(),
    ]);
    // The mark first: a later case is refused under the lock, which is on the mark.
    let cases = [MARK.to_owned()]
        .into_iter()
        .chain(files)
        .map(|f| (f, &target))
        .chain(folders.map(|f| (f, &elsewhere)));
    for (name, target) in cases {
        let link = dir.path().join("out").join(&name);
        if name == CHECKPOINTS {
            fs::remove_dir(&link).unwrap();
        }
        symlink(target, &link).unwrap();
        let opened = Output::open(&run).and_then(|output| crate::checkpoint::recover(&output));
        let error = opened.map(drop);
        assert!(
            matches!(&error, Err(TrainError::Link { path }) if *path == link),
            "{name}: {error:?}"
        );
        fs::remove_file(&link).unwrap();
        let _ = fs::create_dir(dir.path().join("out/checkpoints"));
    }
    assert_eq!(fs::read_to_string(target).unwrap(), "precious");
    assert!(elsewhere.join("state.safetensors").is_file());
    Output::open(&run).unwrap();
}

#[test]
fn what_a_run_would_replace_must_be_lowtides() {
    let dir = scratch();
    let run = run(dir.path(), &[]);
    let at = |name: &str| dir.path().join("out").join(name);
    fs::create_dir(dir.path().join("out")).unwrap();
    for name in FILES {
        fs::write(at(name), "{\"step\": 1}\n").unwrap();
        let error = Output::open(&run).unwrap_err();
        assert!(
            matches!(&error, TrainError::NotOurs { path } if *path == at(name)),
            "{error}"
        );
        fs::remove_file(at(name)).unwrap();
        assert!(!at(MARK).exists());
    }
    // An empty directory has nothing to lose; a full one has.
    fs::create_dir(at(MODEL)).unwrap();
    drop(Output::open(&run).unwrap());
    fs::write(at("model/model.safetensors"), "weights").unwrap();
    let error = Output::open(&run).unwrap_err();
    assert!(
        matches!(&error, TrainError::NotOurs { path } if *path == at(MODEL)),
        "{error}"
    );
    assert!(at("model/model.safetensors").is_file());
    // A mark that is not lowtide's.
    fs::remove_dir_all(at(MODEL)).unwrap();
    fs::write(at(MARK), "somebody's").unwrap();
    let error = Output::open(&run).unwrap_err();
    assert!(
        matches!(&error, TrainError::NotOurs { path } if *path == at(MARK)),
        "{error}"
    );
}

#[test]
fn an_earlier_versions_output_is_taken_and_marked() {
    let dir = scratch();
    let run = run(dir.path(), &[]);
    let at = |name: &str| dir.path().join("out").join(name);
    fs::create_dir(dir.path().join("out")).unwrap();
    fs::write(at(RUN), serde_json::to_string_pretty(&run).unwrap()).unwrap();
    fs::write(at(METRICS), "{\"step\": 1}\n").unwrap();
    drop(Output::open(&run).unwrap());
    let text = fs::read(at(MARK)).unwrap();
    assert_eq!(Mark::parse(&text).unwrap().holds(), Holds::Output);
}

#[test]
fn inputs_where_outputs_go_are_refused_by_whatever_way_they_are_named() {
    let dir = scratch();
    let d = dir.path();
    fs::create_dir_all(d.join("out/model")).unwrap();
    fs::write(d.join("out/model/config.json"), "{}").unwrap();
    fs::create_dir_all(d.join("out/checkpoints/step-00000001")).unwrap();
    fs::write(d.join("out/checkpoints/step-00000001/t.jinja"), "").unwrap();
    symlink(d.join("out/model"), d.join("link")).unwrap();
    symlink(d.join("out"), d.join("other")).unwrap();
    fs::create_dir(d.join("linked")).unwrap();
    symlink(
        d.join("out/model/config.json"),
        d.join("linked/config.json"),
    )
    .unwrap();
    fs::write(d.join("metrics.jsonl"), "{}\n").unwrap();
    fs::hard_link(d.join("metrics.jsonl"), d.join("out/metrics.jsonl")).unwrap();
    let path = |name: &str| d.join(name).display().to_string();
    for (key, value) in [
        ("model.path", "out/model"),
        ("model.path", "link"),
        ("model.path", "other/model"),
        ("model.path", "out/./model/../model"),
        ("model.path", "linked"),
        ("model.path", "out"),
        ("model.path", "other"),
        ("model.tokenizer", "out/model"),
        ("data.train", "out/metrics.jsonl"),
        ("data.train", "metrics.jsonl"),
        ("data.eval", "out/model/eval.jsonl"),
        (
            "data.chat_template",
            "out/checkpoints/step-00000001/t.jinja",
        ),
    ] {
        let error = Output::open(&run(d, &[&format!("{key}={}", path(value))])).unwrap_err();
        assert!(
            matches!(&error, TrainError::Overlap { key: k, .. } if *k == key),
            "{key} {value}: {error}"
        );
        assert!(!d.join("out").join(MARK).exists());
    }
    // Beside each other they do not meet.
    let fine = format!("output={}", path("base/out"));
    drop(Output::open(&run(d, &[&fine])).unwrap());
    let here = format!("output={}", path(""));
    let error = Output::open(&run(d, &[&here])).unwrap_err();
    assert!(
        matches!(error, TrainError::NotOurs { .. }),
        "a stranger's metrics.jsonl"
    );
}
