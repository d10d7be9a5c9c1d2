//! Runs that differ in a few settings, made one after another from the same start on the same batches, to be held
//! against each other: nothing is saved of them but their metrics.

use std::path::Path;

use lowtide_config::{Checkpoint, Eval, Generate, KeepBest, Length, Log, OnUnsaved, Resume, Run};
use lowtide_report::outcome::TrainReport;
use lowtide_session::Requests;

use super::Saves;
use super::opening::{self, Opened};
use crate::device;
use crate::error::TrainError;
use crate::open::check_weights;
use crate::paths;
use crate::planning::{check_budgets, decoder_of, shape_of};
use crate::report::Observer;

/// The folder of an output directory in which each run of a comparison has one, by its name.
const FOLDER: &str = "compare";
/// Evaluations on the way, where the run asks for none.
const EVALUATIONS: u64 = 10;

/// Runs that are compared, each called an arm.
#[derive(Clone, Debug)]
pub struct Comparison {
    arms: Vec<(String, Run)>,
}

impl Comparison {
    /// Of these runs with their names, `steps` steps of each: into a folder of the first one's output, with an
    /// evaluation at least each tenth of the steps, without checkpoints, model or answers. Of each what can be wrong
    /// is looked at before the first one begins, but for budgets, which only a plan knows.
    ///
    /// # Errors
    /// [`TrainError::Arm`] with what is wrong with an arm; [`TrainError::Alike`] of two that are one.
    pub fn of(runs: Vec<(String, Run)>, steps: u64) -> Result<Self, TrainError> {
        let Some(output) = runs.first().map(|(_, run)| run.output.clone()) else {
            return Ok(Self { arms: Vec::new() });
        };
        for (i, (second, run)) in runs.iter().enumerate() {
            let settings = arm(run, &output, steps);
            let same = |(_, other): &&(String, Run)| arm(other, &output, steps) == settings;
            if let Some((first, _)) = runs[..i].iter().find(same) {
                return Err(TrainError::Alike {
                    first: first.clone(),
                    second: second.clone(),
                });
            }
        }
        let arms = runs.into_iter().map(|(name, run)| {
            let run = arm(&run, &output.join(FOLDER).join(&name), steps);
            (name, run)
        });
        let arms: Vec<_> = arms.collect();
        for (name, run) in &arms {
            check(run).map_err(|e| of_arm(name, e))?;
        }
        Ok(Self { arms })
    }

    /// Their names and runs, in the order in which they are made.
    pub fn arms(&self) -> impl ExactSizeIterator<Item = (&str, &Run)> {
        self.arms.iter().map(|(name, run)| (&**name, run))
    }

    /// Trains the arm with this number, anew: what an earlier comparison has left in its folder is replaced.
    ///
    /// # Errors
    /// [`TrainError::Arm`] with what is wrong with it.
    pub fn train(
        &self,
        arm: usize,
        observer: &mut dyn Observer,
        requests: &Requests,
    ) -> Result<TrainReport, TrainError> {
        let (name, run) = &self.arms[arm];
        let trained = match opening::open(run, observer, requests, (None, Saves::Nothing)) {
            Ok(Opened::Finished(report)) => Ok(*report),
            Ok(Opened::Begun(fit, planned)) => fit.go(*planned),
            Err(e) => Err(e),
        };
        trained.map_err(|e| of_arm(name, e))
    }
}

fn of_arm(name: &str, source: TrainError) -> TrainError {
    TrainError::Arm {
        arm: name.to_owned(),
        source: Box::new(source),
    }
}

/// A run as it is compared: so many steps into another output.
fn arm(run: &Run, output: &Path, steps: u64) -> Run {
    let mut arm = run.clone();
    // Drives in the run's output are of that run.
    for disk in &mut arm.budget.disk {
        if let Ok(inside) = disk.dir.strip_prefix(&run.output) {
            disk.dir = output.join(inside);
        }
    }
    output.clone_into(&mut arm.output);
    arm.train.length = Length::Steps(steps);
    let every = match arm.eval.every_steps {
        _ if !arm.data.has_eval() => 0,
        0 => u64::MAX,
        n => n,
    };
    arm.eval = Eval {
        every_steps: every.min(steps.div_ceil(EVALUATIONS)),
        every_epochs: None,
        patience: 0,
        min_delta: 0.0,
        generate: Generate {
            exact_match: false,
            every_steps: 0,
            cached: None,
            ..arm.eval.generate
        },
        ..arm.eval
    };
    arm.checkpoint = Checkpoint {
        every_steps: 0,
        every_epochs: None,
        every_minutes: 0.0,
        background: false,
        keep_best: KeepBest::None,
        resume: Resume::Never,
        durable: false,
        change: Vec::new(),
        keep: 1,
        on_error: OnUnsaved::Continue,
        ..arm.checkpoint
    };
    arm.log = Log {
        every_steps: 1,
        report: true,
        tensorboard: false,
        trace: false,
    };
    arm
}

/// What can be wrong with a run that is known before anything is measured.
fn check(run: &Run) -> Result<(), TrainError> {
    run.training_ready()?;
    paths::inputs(run)?;
    paths::outputs(run)?;
    let shape = shape_of(run)?;
    check_weights(run, &shape)?;
    let device = device::open(run, &shape)?;
    check_budgets(run, &device)?;
    decoder_of(run, run.batch(), device.target).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(sets: &[&str]) -> Run {
        let text = "model: {path: m}\nbudget: {device: 1GiB, host: 1GiB, disk: 1GiB}\ndata: {train: t.jsonl, eval: e.jsonl}\n\
                    train: {epochs: 2, seq: 8}\noutput: out\ncheckpoint: {durable: true}\n";
        let sets: Vec<String> = sets.iter().map(|s| (*s).to_owned()).collect();
        Run::parse(text, "run.yaml", Path::new("/base"), &sets).unwrap()
    }

    #[test]
    fn an_arm_leaves_alone_what_is_the_runs() {
        let elsewhere = run(&["budget.disk=[{dir: /drive, size: 1GiB}]"]);
        assert_eq!(
            arm(&elsewhere, Path::new("/a"), 7).budget.disk,
            elsewhere.budget.disk
        );
        let own = run(&["eval.every_steps=3"]);
        let of = arm(&own, Path::new("/base/out/compare/a"), 70);
        assert_eq!(own.budget.disk[0].dir, Path::new("/base/out/disk"));
        assert_eq!(of.budget.disk[0].dir, Path::new("/base/out/compare/a/disk"));
        assert_eq!(of.output, Path::new("/base/out/compare/a"));
        assert!(!of.checkpoint.durable && of.checkpoint.resume == Resume::Never);
        assert_eq!(
            (of.train.length, of.eval.every_steps),
            (Length::Steps(70), 3)
        );
        for (steps, every) in [(1, 1), (10, 1), (11, 2), (300, 30)] {
            let of = arm(&run(&[]), Path::new("/a"), steps);
            assert_eq!(of.eval.every_steps, every, "{steps} steps");
        }
        let mut without = run(&[]);
        without.data.eval.clear();
        assert_eq!(arm(&without, Path::new("/a"), 70).eval.every_steps, 0);
    }

    #[test]
    fn arms_that_differ_in_nothing_that_is_compared_are_refused() {
        let pair = |sets: &[&str]| {
            let arms = vec![("a".to_owned(), run(&[])), ("b".to_owned(), run(sets))];
            Comparison::of(arms, 5).unwrap_err()
        };
        for sets in [
            &[][..],
            &["checkpoint.every_steps=5"],
            &["train.epochs=3"],
            &["output=elsewhere"],
            &["checkpoint.on_error=stop"],
        ] {
            let error = pair(sets);
            assert!(
                matches!(&error, TrainError::Alike { first, second } if first == "a" && second == "b"),
                "{sets:?}: {error}"
            );
        }
        let mut other = run(&[]);
        other.eval.min_delta = 0.5;
        assert!(arm(&other, Path::new("/a"), 5) == arm(&run(&[]), Path::new("/a"), 5));
        // Another rate is another arm; what is wrong then is that the data are not there.
        let error = pair(&["train.learning_rate=1e-3"]);
        assert!(
            matches!(&error, TrainError::Arm { arm, source } if arm == "a" && matches!(**source, TrainError::Path { .. })),
            "{error}"
        );
    }
}
