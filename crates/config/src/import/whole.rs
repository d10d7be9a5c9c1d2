//! What of a file of Axolotl holds with its other keys only: shares of all steps, the measure of the best, keys that
//! exclude each other, defaults, and the rules of a run file.

use std::path::Path;

use super::{AXOLOTL, DEFAULTS, EVALUATIONS, Import, SAVES};
use crate::run::Run;
use crate::tree::shortened;

impl Import {
    /// What happens each share of all steps happens each so many steps, or, where the run's length is in epochs, each
    /// such share of these.
    pub(super) fn shares_of_all(&mut self) {
        for (theirs, [by_steps, by_epochs], share) in std::mem::take(&mut self.shares) {
            let number = |key: &str| self.given.get(key).and_then(|n| n.parse::<f64>().ok());
            match (number("train.steps"), number("train.epochs")) {
                (Some(steps), _) => {
                    self.give(by_steps, format!("{}", (share * steps).ceil().max(1.0)))
                }
                // One epoch is the default of both.
                (None, epochs) => {
                    self.give(by_epochs, format!("{}", share * epochs.unwrap_or(1.0)))
                }
            }
            debug_assert!(AXOLOTL.iter().any(|(name, _)| *name == theirs));
        }
    }

    /// By what the best checkpoint is kept, where one is.
    pub(super) fn best(&mut self) {
        let Some(metric) = self.metric.take() else {
            return;
        };
        let known = [
            ("loss", "loss"),
            ("eval_loss", "loss"),
            ("accuracy", "accuracy"),
            ("eval_accuracy", "accuracy"),
        ];
        let ours = known.iter().find(|(theirs, _)| *theirs == metric);
        let asked = self
            .given
            .get("checkpoint.keep_best")
            .is_some_and(|by| by != "none");
        match ours {
            Some((_, ours)) if asked => {
                self.given
                    .insert("checkpoint.keep_best", (*ours).to_owned());
            }
            // Which is the best by loss is what early stopping asks, too.
            Some((_, "loss")) => {}
            _ => {
                let why = match asked {
                    true => {
                        "checkpoint.keep_best knows loss, accuracy and exact_match; the best is found by loss"
                    }
                    false => "no best model is kept without load_best_model_at_end",
                };
                let what = format!("metric_for_best_model: {}", shortened(&metric));
                self.dropped.push((what, why.to_owned()));
            }
        }
    }

    /// Says what Axolotl does where nothing is said, where lowtide does something else.
    pub(super) fn defaults(&mut self) {
        for (key, value) in DEFAULTS {
            if !self.given.contains_key(key) {
                self.give(key, value.to_owned());
                self.defaults.push(key);
            }
        }
    }

    /// Of keys that exclude each other takes over what holds in Axolotl.
    pub(super) fn one_of_each(&mut self) {
        for (holds, key, theirs, why) in [
            (
                "train.steps",
                "train.epochs",
                "num_epochs",
                "max_steps is given, which holds",
            ),
            (
                "train.warmup_steps",
                "train.warmup_ratio",
                "warmup_ratio",
                "warmup_steps is given; give one of them",
            ),
            (
                "data.eval",
                "data.eval_split",
                "val_set_size",
                "test_datasets are given, which are evaluated",
            ),
            (
                EVALUATIONS[0],
                EVALUATIONS[1],
                "evals_per_epoch or eval_strategy",
                "eval_steps is given, which holds",
            ),
            (
                SAVES[0],
                SAVES[1],
                "saves_per_epoch or save_strategy",
                "save_steps is given, which holds",
            ),
        ] {
            if self.given.contains_key(holds)
                && let Some(value) = self.given.remove(key)
            {
                let off = key == "data.eval_split" && value.parse() == Ok(0.0);
                if !off {
                    self.dropped
                        .push((format!("{theirs}: {value}"), why.to_owned()));
                }
            }
        }
    }

    /// Takes away what the run file's rules do not allow, with their reason.
    pub(super) fn checked(&mut self) {
        // A run needs a model; what else is wrong is looked for without one too.
        let some: &[String] = match self.given.contains_key("model.path") {
            true => &[],
            false => &["model.shape=qwen2.5-0.5b".to_owned()],
        };
        while let Err(e) = Run::parse(&self.yaml(), "run.yaml", Path::new("/"), some) {
            let about = e.key().map(str::to_owned);
            let bad = self
                .given
                .keys()
                .copied()
                .find(|key| about.as_deref() == Some(*key));
            let Some(bad) = bad else { return };
            let value = self.given.remove(bad).unwrap_or_default();
            // The place is one in a file that nobody has.
            let why = e.to_string();
            let why = why
                .split_once(": ")
                .map_or(why.as_str(), |(_, why)| why)
                .to_owned();
            self.dropped.push((format!("{bad}: {value}"), why));
        }
    }
}
