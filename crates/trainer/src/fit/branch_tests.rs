//! A branch is begun and saves, and the process dies before any of the calls that change something.

use std::collections::BTreeMap;
use std::fs;

use super::*;
use crate::metrics::MetricsLog;
use crate::output::injected::{dead, live};
use crate::output::{ANSWERS, ANSWERS_LEFT, METRICS_LEFT};

fn run(dir: &Path, extra: &[&str]) -> Run {
    let text = "model: {path: base}\noutput: out\nbudget: {device: 1GiB, host: 1GiB}\n\
                data: {train: d.jsonl}\ncheckpoint: {keep: 9}\n\
                train: {steps: 60, seq: 8, micro_batch: 1}\n";
    // A path of an override is one of the current directory.
    let absolute = |s: &str| s.replace("=out/", &format!("={}/out/", dir.display()));
    let sets: Vec<String> = extra.iter().map(|s| absolute(s)).collect();
    Run::parse(text, "run.yaml", dir, &sets).unwrap()
}

/// Lines of steps up to `last`, by the one who wrote them.
fn lines(from: u64, last: u64, by: &str) -> String {
    let line = |step| format!("{{\"step\":{step},\"loss\":1.0,\"by\":\"{by}\"}}\n");
    (from..=last).map(line).collect()
}

/// Saves a checkpoint of the output's branch.
fn save(output: &Output, step: u64, by: u64) -> Result<(), TrainError> {
    let state = RunState {
        step,
        tokens: by,
        branch: output.kept().number(),
        ..RunState::new()
    };
    checkpoint::put(output, step, |folder| {
        folder.write(checkpoint::STATE, |out| {
            out.write_all(b"\x02\0\0\0\0\0\0\0{}")
        })?;
        let said = checkpoint::encode(&state);
        folder.write(checkpoint::RUN, |out| out.write_all(&said))
    })
    .map(drop)
}

/// An output whose run has finished at step 60.
fn finished(run: &Run) {
    let mut output = Output::open(run).unwrap();
    for step in [20, 40, 60] {
        save(&output, step, 1).unwrap();
        saved(&mut output, step).unwrap();
    }
    fs::write(run.output.join(METRICS), lines(1, 60, "a")).unwrap();
    fs::write(run.output.join(FINISHED), "{}").unwrap();
}

/// All checkpoints that can be resumed, under whatever name: step and who made them.
fn checkpoints(run: &Run) -> BTreeMap<String, (u64, u64)> {
    let dir = checkpoint::directory(&run.output);
    let names = fs::read_dir(dir).unwrap().flatten().map(|e| e.path());
    let seen = names.filter_map(|path| {
        let name = path.file_name()?.to_str()?.to_owned();
        let state = (!name.starts_with('.')).then(|| checkpoint::look(&path).unwrap())?;
        Some((name, (state.step, state.tokens)))
    });
    seen.collect()
}

/// What a process does from its start behind its second checkpoint.
fn go(run: &Run) -> Result<u64, TrainError> {
    let mut output = Output::open(run)?;
    crate::checkpoint::recover(&output)?;
    let (start, origin) = Start::find(run, &output, &mut Vec::new())?;
    let from = start.state().map_or(0, |s| s.step);
    origin.begin(run, &start, &mut output, None, || Ok(None))?;
    let log = |name| MetricsLog::open(output.folder(), name, Some(from));
    let mut metrics = log(METRICS)?;
    for step in from + 1..=60 {
        if dead() {
            break;
        }
        let line = lines(step, step, "b");
        metrics.write(&serde_json::from_str::<serde_json::Value>(&line).unwrap());
        if step.is_multiple_of(20) {
            save(&output, step, 2)?;
            saved(&mut output, step)?;
        }
    }
    Ok(from)
}

#[test]
fn a_kill_at_any_call_loses_neither_the_branch_nor_what_it_left() {
    for (resume, begins) in [("out/checkpoints/step-00000020", 20), ("never", 0)] {
        let named = format!("checkpoint.resume={resume}");
        let mut begun = 0;
        for calls in 0.. {
            let dir = tempfile::tempdir().unwrap();
            let (auto, branch) = (run(dir.path(), &[]), run(dir.path(), &[&named]));
            finished(&auto);
            live(Some(calls));
            let done = go(&branch);
            let killed = dead();
            live(None);
            assert!(killed || done.is_ok(), "{done:?}");
            let all = checkpoints(&auto);
            for step in [40, 60] {
                assert!(
                    all.values().any(|c| *c == (step, 1)),
                    "{calls}: {step} of {all:?}"
                );
            }
            let output = Output::open(&auto).unwrap();
            let (start, origin) = Start::find(&auto, &output, &mut Vec::new()).unwrap();
            let at = start.state().map_or((0, 2), |s| (s.step, s.tokens));
            let Some(branch_now) = output.kept().branch.clone() else {
                // It had not begun: all is as it was.
                assert_eq!((at, origin), ((60, 1), Origin::GoesOn), "{calls}");
                let text = fs::read_to_string(auto.output.join(METRICS)).unwrap();
                assert_eq!(text, lines(1, 60, "a"));
                assert!(auto.output.join(FINISHED).exists());
                continue;
            };
            begun += 1;
            let own = all
                .iter()
                .filter(|(name, c)| c.1 == 2 && !name.contains("left"));
            let own = own.map(|(_, c)| c.0).max();
            let first = (begins, if begins == 0 { 2 } else { 1 });
            assert_eq!(at, own.map_or(first, |step| (step, 2)), "{calls}");
            assert_eq!(branch_now.number, 1);
            let left = fs::read_to_string(auto.output.join(METRICS_LEFT)).unwrap();
            assert_eq!(left, lines(1, 60, "a"), "{calls}");
            if all.keys().all(|name| !name.contains("left")) {
                assert!(auto.output.join(FINISHED).exists(), "{calls}");
            }
            drop(output);
            // The same command, or one by itself, comes to the same end. (One that begins anew does so each time.)
            let again = if calls % 2 == 0 && begins > 0 {
                &branch
            } else {
                &auto
            };
            assert_eq!(go(again).unwrap(), at.0, "{calls}");
            let text = fs::read_to_string(auto.output.join(METRICS)).unwrap();
            let want = lines(1, begins, "a") + &lines(begins + 1, 60, "b");
            assert_eq!(text, want, "{calls}");
            let end = checkpoints(&auto);
            let named = |name: &str| end.get(name).copied();
            assert_eq!(named("step-00000060"), Some((60, 2)), "{calls}: {end:?}");
            assert_eq!(
                named("step-00000060.left"),
                Some((60, 1)),
                "{calls}: {end:?}"
            );
            assert_eq!(
                end.len(),
                if begins == 0 { 6 } else { 5 },
                "{calls}: {end:?}"
            );
            let output = Output::open(&auto).unwrap();
            assert!(output.kept().unsaved().is_none() && !auto.output.join(FINISHED).exists());
            if !killed {
                break;
            }
        }
        assert!(begun > 20, "{begun} kills behind the beginning");
    }
}

/// Branches of branches: each that was left without having saved is given up for the one before it.
#[test]
fn a_branch_that_never_saved_is_no_more_when_another_begins() {
    let dir = tempfile::tempdir().unwrap();
    let auto = run(dir.path(), &[]);
    finished(&auto);
    for (resume, rate, from) in [
        ("out/checkpoints/step-00000020", 1e-3, 20),
        ("out/checkpoints/step-00000040", 1e-3, 40),
        ("out/checkpoints/step-00000040", 2e-3, 40),
        ("never", 1e-3, 0),
        ("out/checkpoints/step-00000060", 1e-3, 60),
    ] {
        let sets = [
            format!("checkpoint.resume={resume}"),
            format!("train.learning_rate={rate}"),
        ];
        let branch = run(dir.path(), &[&sets[0], &sets[1]]);
        let mut output = Output::open(&branch).unwrap();
        let (start, origin) = Start::find(&branch, &output, &mut Vec::new()).unwrap();
        assert!(matches!(origin, Origin::New(_)), "{resume}");
        origin
            .begin(&branch, &start, &mut output, None, || Ok(None))
            .unwrap();
        let mut log =
            MetricsLog::open(output.folder(), METRICS, (from > 0).then_some(from)).unwrap();
        let text = fs::read_to_string(auto.output.join(METRICS)).unwrap();
        assert_eq!(text, lines(1, from, "a"), "{resume}");
        log.write(&json!({"step": from + 1, "by": "b"}));
        let left = fs::read_to_string(auto.output.join(METRICS_LEFT)).unwrap();
        assert_eq!(left, lines(1, 60, "a"), "{resume}");
        assert!(auto.output.join(FINISHED).exists());
    }
}

/// Lines of steps with a loss that tells the curve.
fn curve(from: u64, last: u64, loss: f64) -> String {
    let line = |step| {
        let loss = loss + step as f64 / 3.0;
        format!("{}\n", json!({"step": step, "loss": loss}))
    };
    (from..=last).map(line).collect()
}

fn save_of(output: &mut Output, step: u64, loss: f64) {
    let mut state = RunState {
        step,
        branch: output.kept().number(),
        ..RunState::new()
    };
    let last = step.saturating_sub(9).max(1)..=step;
    let losses = last.map(|s| (s, (loss + s as f64 / 3.0).to_bits()));
    state.totals.last_losses = losses.collect();
    checkpoint::put(output, step, |folder| {
        folder.write(checkpoint::STATE, |out| {
            out.write_all(b"\x02\0\0\0\0\0\0\0{}")
        })?;
        let said = checkpoint::encode(&state);
        folder.write(checkpoint::RUN, |out| out.write_all(&said))
    })
    .unwrap();
    saved(output, step).unwrap();
}

/// The first curve to step 40, left at step 20 for another that has saved step 40 too, and a run of another output.
fn two_curves(dir: &Path) {
    let auto = run(dir, &[]);
    let other = run(dir, &[&format!("output={}/other", dir.display())]);
    let mut output = Output::open(&other).unwrap();
    save_of(&mut output, 20, 7.0);
    let mut output = Output::open(&auto).unwrap();
    for step in [20, 40] {
        save_of(&mut output, step, 1.0);
    }
    fs::write(auto.output.join(METRICS), curve(1, 40, 1.0)).unwrap();
    fs::write(auto.output.join(ANSWERS), curve(1, 40, 1.5)).unwrap();
    drop(output);
    let branch = run(dir, &["checkpoint.resume=out/checkpoints/step-00000020"]);
    let mut output = Output::open(&branch).unwrap();
    let (start, origin) = Start::find(&branch, &output, &mut Vec::new()).unwrap();
    origin
        .begin(&branch, &start, &mut output, None, || Ok(None))
        .unwrap();
    let two = |one, two| curve(1, 20, one) + &curve(21, 40, two);
    fs::write(auto.output.join(METRICS), two(1.0, 2.0)).unwrap();
    fs::write(auto.output.join(ANSWERS), two(1.5, 2.5)).unwrap();
    save_of(&mut output, 40, 2.0);
}

/// Where a branch goes back to one that was left, or begins at another run's checkpoint, the metrics are those of the
/// curve that its checkpoint is of, or none; whenever it is killed.
#[test]
fn metrics_are_those_of_the_curve_that_is_gone_on_with() {
    let two = |one, two| curve(1, 20, one) + &curve(21, 40, two);
    for (resume, want, loss) in [
        ("out/checkpoints/step-00000040.left", 40, 1.0),
        ("out/checkpoints/step-00000020", 20, 1.0),
        ("other/checkpoints/step-00000020", 0, 7.0),
    ] {
        let mut kills = 0;
        for calls in (0..).step_by(if want == 40 { 1 } else { 4 }) {
            let dir = tempfile::tempdir().unwrap();
            two_curves(dir.path());
            let named = format!("checkpoint.resume={}/{resume}", dir.path().display());
            let rate = "train.learning_rate=1e-4";
            let (auto, branch) = (run(dir.path(), &[]), run(dir.path(), &[&named, rate]));
            let begin = |run: &Run| {
                let mut output = Output::open(run)?;
                let (start, origin) = Start::find(run, &output, &mut Vec::new())?;
                origin.begin(run, &start, &mut output, None, || Ok(None))?;
                let step = start.state().unwrap().step;
                MetricsLog::open(output.folder(), METRICS, Some(step)).map(drop)
            };
            live(Some(calls));
            let done = begin(&branch);
            let killed = dead();
            live(None);
            assert!(killed || done.is_ok(), "{done:?}");
            let read = |name: &str| fs::read_to_string(auto.output.join(name)).unwrap();
            let begun = Output::open(&auto).unwrap().kept().number() == 2;
            if !begun {
                assert_eq!(read(METRICS), two(1.0, 2.0), "{calls}");
                assert_eq!(read(ANSWERS), two(1.5, 2.5), "{calls}");
                kills += 1;
            }
            // The next start by itself, or the same command.
            begin(if begun && calls % 2 == 0 {
                &auto
            } else {
                &branch
            })
            .unwrap();
            let metrics = fs::read_to_string(auto.output.join(METRICS)).unwrap_or_default();
            assert_eq!(metrics, curve(1, want, loss), "{calls} {resume}");
            // What was left is there too.
            assert_eq!(read(METRICS_LEFT), two(1.0, 2.0), "{calls} {resume}");
            assert_eq!(read(ANSWERS_LEFT), two(1.5, 2.5), "{calls} {resume}");
            if want == 40 {
                assert_eq!(read(ANSWERS), curve(1, 40, 1.5), "{calls}");
            }
            let names = fs::read_dir(&auto.output).unwrap().flatten();
            assert!(
                names
                    .into_iter()
                    .all(|e| e.file_name() != "metrics.left-2.jsonl")
            );
            // Its first checkpoint takes the place of all that are of other curves.
            if resume.ends_with("left") {
                let mut output = Output::open(&auto).unwrap();
                save_of(&mut output, 50, 1.0);
                assert_eq!(checkpoint::list(&auto.output).len(), 1, "{calls}");
            }
            if !killed {
                break;
            }
        }
        assert!(kills > 1, "{resume}: {kills}");
    }
}
