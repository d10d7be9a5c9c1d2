//! The numerics key: all that decides the numbers of a run, and nothing that does not.

use serde_json::{Value, json};

use crate::run::{Length, Run, Schedule, Warmup};
use crate::words::{ClipMode, LastBatch, ScheduleShape, SpikeAction, Strategy};

impl Run {
    /// What decides the run's numbers, as JSON. Two runs with equal keys, equal model files and
    /// equal data files train to the same bits, whatever their budgets, plans and threads; a
    /// checkpoint of one is a checkpoint of the other.
    ///
    /// The files are not in it: who opens them knows their contents, which a path does not tell.
    /// Nor is the length of the run where the learning rate does not depend on it, so that such a
    /// run can be resumed for longer. Long because it is a list.
    #[must_use]
    pub fn numerics_key(&self) -> Value {
        let (train, data, optimizer) = (&self.train, &self.data, &self.optimizer);
        let mut key = json!({
            "device": self.device,
            "precision": self.precision,
            "seed": self.seed,
            "init": self.model.init,
            "train": {
                "micro_batch": train.micro_batch,
                "seq": train.seq,
                "accumulate": train.accumulate,
                "learning_rate": train.learning_rate,
                "schedule": schedule(&train.schedule, train.length),
                "clip": clip(self),
                "gradient": train.gradient,
                "on_nonfinite": train.on_nonfinite,
                "logits_chunk": train.logits_chunk,
            },
            "optimizer": {
                "name": optimizer.name,
            },
            "data": {
                "format": data.format,
                "fields": data.fields,
                "packing": data.packing,
                "train_on": data.train_on,
                "shuffle": data.shuffle,
                "max_examples": data.max_examples,
                "eval_split": data.eval_split,
                "system": data.system,
                "separator": data.separator,
            },
        });
        for (setting, value) in &optimizer.settings {
            key["optimizer"][setting] = json!(value);
        }
        key["optimizer"]["moments"] = json!(optimizer.moments);
        if !optimizer.groups.is_empty() {
            key["optimizer"]["groups"] = json!(optimizer.groups);
        }
        // The order in which gradients add up: in a tree it is the same on every number of GPUs.
        match (train.leaves, self.gpus) {
            (1, 1) => {}
            (1, gpus) => key["gpus"] = json!(gpus),
            (leaves, _) => key["train"]["leaves"] = json!(leaves),
        }
        // What came later is in it where it is not the default, which is what was done before.
        if !self.model.labels.is_empty() {
            key["labels"] = json!(self.model.labels);
        }
        if data.streaming {
            key["data"]["streaming"] = json!(true);
        }
        if train.target != 0 {
            key["train"]["target"] = json!(train.target);
        }
        // A warning changes nothing.
        if let Some(spike) = train.spike.filter(|s| s.action != SpikeAction::Warn) {
            key["train"]["spike"] = json!(spike);
        }
        if train.label_smoothing != 0.0 {
            key["train"]["label_smoothing"] = json!(train.label_smoothing);
        }
        if train.neftune_alpha != 0.0 {
            key["train"]["neftune_alpha"] = json!(train.neftune_alpha);
        }
        if train.rows_chunk != 0 {
            key["train"]["rows_chunk"] = json!(train.rows_chunk);
        }
        if train.last_batch != LastBatch::Fill {
            key["train"]["last_batch"] = json!(train.last_batch);
        }
        for (name, patterns) in [("freeze", &train.freeze), ("unfreeze", &train.unfreeze)] {
            if !patterns.is_empty() {
                key["train"][name] = json!(patterns);
            }
        }
        // Answers decide which checkpoint is the best.
        if let Some(cached) = self.eval.generate.cached {
            key["eval"] = json!({ "generate": { "cached": cached } });
        }
        if let Some(lsp) = &self.lsp {
            key["strategy"] = json!({ "name": Strategy::Lsp, "lsp": lsp });
        }
        key
    }
}

/// The parts of a schedule that have an effect.
fn schedule(s: &Schedule, length: Length) -> Value {
    let mut key = json!({ "shape": s.shape, "warmup": s.warmup });
    let by_steps = matches!(s.warmup, Warmup::Steps(_)) || s.warmup == Warmup::Ratio(0.0);
    if s.shape != ScheduleShape::Constant {
        key["min_lr_ratio"] = json!(s.min_lr_ratio);
    }
    if s.shape == ScheduleShape::Wsd {
        key["decay_ratio"] = json!(s.decay_ratio);
    }
    if s.shape != ScheduleShape::Constant || !by_steps {
        key["length"] = json!(length);
    }
    key
}

/// The norm counts where it is used.
fn clip(run: &Run) -> Value {
    let clip = run.train.clip;
    match clip.mode {
        ClipMode::None => json!({ "mode": clip.mode }),
        _ => json!({ "mode": clip.mode, "norm": clip.norm }),
    }
}
