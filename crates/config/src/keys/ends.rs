//! The keys of what happens beside and after the steps: evaluation, checkpoints, records.

use std::ops::Bound::{Excluded, Included};

use crate::key::KeyDefault::{Unset, Value};
use crate::key::{Key, Kind};
use crate::words::{KeepBest, OnUnsaved};

/// How many epochs lie between two.
const EPOCHS: Kind = Kind::Number {
    low: Excluded(0.0),
    high: Included(1e6),
};

/// Those keys, in the order of the reference.
pub(super) const KEYS: &[Key] = &[
    Key {
        name: "eval.every_steps",
        doc: "Evaluate each so many steps; 0: after the last only. Excludes `eval.every_epochs`.",
        kind: Kind::Count {
            min: 0,
            max: 1_000_000_000,
        },
        default: Value("0"),
        elsewhere: &["eval_steps", "eval_interval", "run_val_every_n_steps"],
    },
    Key {
        name: "eval.every_epochs",
        doc: "Evaluate each so many passes over the training data, behind the step with which each is complete: 1, or a part \
              such as 0.25. Not with `data.streaming`, which does not know how long a pass is. Excludes `eval.every_steps`.",
        kind: EPOCHS,
        default: Unset("as `eval.every_steps`"),
        elsewhere: &["evals_per_epoch", "eval_interval_epochs"],
    },
    Key {
        name: "eval.batches",
        doc: "Most micro-batches in one evaluation.",
        kind: Kind::Count {
            min: 1,
            max: 1_000_000_000,
        },
        default: Unset("all of the evaluation data"),
        elsewhere: &["max_eval_batches", "eval_iters", "max_eval_samples"],
    },
    Key {
        name: "eval.patience",
        doc: "End training after so many evaluations in a row that were not better than the best one: a lower loss, or with \
              `checkpoint.keep_best: exact_match` more exact answers; 0: never. The model is then exported as at the last step.",
        kind: Kind::Count {
            min: 0,
            max: 1_000_000,
        },
        default: Value("0"),
        elsewhere: &["early_stopping_patience"],
    },
    Key {
        name: "eval.min_delta",
        doc: "Only an evaluation that is better by more than this makes `eval.patience` count from the beginning: a loss that \
              much lower, or a share that much higher, than that of the last one that did. Which is the best, for \
              `checkpoint.keep_best`, does not depend on it.",
        kind: Kind::Number {
            low: Included(0.0),
            high: Included(1e6),
        },
        default: Value("0"),
        elsewhere: &["early_stopping_threshold", "early_stopping_min_delta"],
    },
    Key {
        name: "eval.generate.exact_match",
        doc: "Count greedy answers that equal the reference, before and after training.",
        kind: Kind::Flag,
        default: Value("false"),
        elsewhere: &["predict_with_generate", "do_predict"],
    },
    Key {
        name: "eval.generate.max_new_tokens",
        doc: "Most tokens of one answer.",
        kind: Kind::Count {
            min: 1,
            max: 1 << 20,
        },
        default: Value("32"),
        elsewhere: &["eval_max_new_tokens", "max_tokens"],
    },
    Key {
        name: "eval.generate.max_examples",
        doc: "Most prompts answered, the first ones.",
        kind: Kind::Count {
            min: 1,
            max: u64::MAX,
        },
        default: Value("64"),
        elsewhere: &["eval_table_size"],
    },
    Key {
        name: "eval.generate.extract",
        doc: "Regular expression of what is compared: the first group that takes part, or all of it where it has no \
              group, in its last match in the reference and in the answer, spaces around it ignored (for GSM8K \
              `#### (.*)`).",
        kind: Kind::Pattern,
        default: Unset("the whole texts"),
        elsewhere: &["answer_regex", "regex_pattern"],
    },
    Key {
        name: "eval.generate.every_steps",
        doc: "Answer each so many steps too; 0: before and after training only.",
        kind: Kind::Count {
            min: 0,
            max: 1_000_000_000,
        },
        default: Value("0"),
        elsewhere: &[],
    },
    Key {
        name: "eval.generate.cached",
        doc: "Answer so many prompts at once with a KV cache, in memory that is kept for it beside the steps': each has room for \
              `train.seq` tokens. 0: no cache, each token runs its whole prefix again. Another number may give other last bits of logits.",
        kind: Kind::Count {
            min: 0,
            max: 1 << 15,
        },
        default: Value("0"),
        elsewhere: &["use_cache"],
    },
    Key {
        name: "checkpoint.every_steps",
        doc: "Save each so many steps; 0: not by steps. Excludes `checkpoint.every_epochs`.",
        kind: Kind::Count {
            min: 0,
            max: 1_000_000_000,
        },
        default: Value("0"),
        elsewhere: &[
            "save_steps",
            "save_interval",
            "save_every",
            "save_every_n_steps",
        ],
    },
    Key {
        name: "checkpoint.every_epochs",
        doc: "Save each so many passes over the training data, as `eval.every_epochs`. Excludes `checkpoint.every_steps`.",
        kind: EPOCHS,
        default: Unset("as `checkpoint.every_steps`"),
        elsewhere: &["saves_per_epoch", "save_every_n_epochs"],
    },
    Key {
        name: "checkpoint.every_minutes",
        doc: "Save between two steps when so many minutes have passed since the last save; 0: never by \
              time. With `checkpoint.durable` each step is on disk without it.",
        kind: Kind::Number {
            low: Included(0.0),
            high: Included(1e6),
        },
        default: Unset("30; 0 with `checkpoint.durable`"),
        elsewhere: &["save_interval_minutes"],
    },
    Key {
        name: "checkpoint.background",
        doc: "Write checkpoints while steps go on, through host memory that the budget leaves: an update waits only until its own \
              part of the state is copied. A run on several GPUs, a durable one, and one whose host budget leaves no room \
              stop for each checkpoint, and say so.",
        kind: Kind::Flag,
        default: Value("true"),
        elsewhere: &["async_save", "enable_async_checkpoint", "async_mode"],
    },
    Key {
        name: "checkpoint.keep",
        doc: "Checkpoints kept; older ones are deleted.",
        kind: Kind::Count {
            min: 1,
            max: 1_000_000,
        },
        default: Value("2"),
        elsewhere: &[
            "save_total_limit",
            "keep_latest_k",
            "keep_last_n_checkpoints",
        ],
    },
    Key {
        name: "checkpoint.on_error",
        doc: "What becomes of the run where a checkpoint on the way cannot be written. The last one always ends it with an error, \
              after its model is written.",
        kind: Kind::word(OnUnsaved::WORDS),
        default: Value("continue"),
        elsewhere: &[],
    },
    Key {
        name: "checkpoint.keep_best",
        doc: "Save when an evaluation is the best so far, keep that checkpoint beside those of `checkpoint.keep`, and export the model \
              of it at the end.",
        kind: Kind::word(KeepBest::WORDS),
        default: Value("none"),
        elsewhere: &[
            "load_best_model_at_end",
            "metric_for_best_model",
            "save_best",
        ],
    },
    Key {
        name: "checkpoint.resume",
        doc: "Which checkpoint to go on from. Later ones in the output directory are set aside: once the run has saved, \
              they are called `step-….left`, count for `checkpoint.keep` and go first. The same command, or \
              `auto`, goes on with what was saved since.",
        kind: Kind::WordOrPath {
            words: &[
                (
                    "auto",
                    "the newest in the output directory, if there is one",
                ),
                ("never", "start anew"),
            ],
        },
        default: Value("auto"),
        elsewhere: &[
            "resume_from_checkpoint",
            "auto_resume_from_checkpoints",
            "load_step",
        ],
    },
    Key {
        name: "checkpoint.durable",
        doc: "Weights and optimizer state in two versions on disk; each update is committed, and a run that \
              was killed goes on from its last step. Takes 24 bytes a parameter of `budget.disk`.",
        kind: Kind::Flag,
        default: Value("false"),
        elsewhere: &[],
    },
    Key {
        name: "checkpoint.change",
        doc: "Keys that may differ from those of the checkpoint that the run goes on from: to train for longer, or \
              at another rate, from there on.",
        kind: Kind::Words {
            words: crate::change::WORDS,
        },
        default: Unset("a checkpoint of another key's value is refused"),
        elsewhere: &["ignore_data_skip", "override_opt_param_scheduler"],
    },
    Key {
        name: "log.every_steps",
        doc: "Record metrics each so many steps.",
        kind: Kind::Count {
            min: 1,
            max: 1_000_000_000,
        },
        default: Value("1"),
        elsewhere: &[
            "logging_steps",
            "log_freq",
            "log_every_n_steps",
            "steps_per_report",
            "steps_per_print",
        ],
    },
    Key {
        name: "log.report",
        doc: "Write `report.html`, the run as a page that opens without a network: with checkpoints and evaluations, and at the end.",
        kind: Kind::Flag,
        default: Value("true"),
        elsewhere: &[],
    },
    Key {
        name: "log.tensorboard",
        doc: "Write TensorBoard events.",
        kind: Kind::Flag,
        default: Value("true"),
        elsewhere: &["use_tensorboard", "enable_tensorboard", "report_to"],
    },
    Key {
        name: "log.trace",
        doc: "Write the lanes' real times in the first steps as a Perfetto trace.",
        kind: Kind::Flag,
        default: Value("true"),
        elsewhere: &["profiler", "enable_profiling"],
    },
];
