//! The list of keys: every name, meaning, type, default and limit, once.
//!
//! One file because it is one table, and its order is that of the documentation made of it.

use std::ops::Bound::{self, Excluded, Included, Unbounded};

use lowtide_workload::OptimizerName;

use crate::key::KeyDefault::{ByOptimizer, Unset, Value};
use crate::key::{DECAY, Key, Kind};
use crate::words::{
    ClipMode, DTYPE_ALIASES, DTYPES, Device, Init, LastBatch, MOMENT_ALIASES, MOMENTS, NonFinite,
    OPTIMIZER_ALIASES, OPTIMIZERS, Reduce, ScheduleShape, SpikeAction, UpdateOn,
};

mod data;
mod ends;
mod plan;
mod strategy;

/// Every section with what it is about, in the order of the reference. The first is the top.
pub const SECTIONS: &[(&str, &str)] = &[
    ("", "Keys at the top of the file."),
    (
        "model",
        "The model: exactly one of `path`, `shape` and `config`.",
    ),
    ("budget", "How much of each memory the run may use."),
    ("data", "What is trained on, and how it is read."),
    ("data.fields", "Names of the fields in a data file."),
    (
        "train",
        "The steps: their number, their size and their learning rate.",
    ),
    ("train.clip", "Clipping by the global norm of the gradient."),
    (
        "train.spike",
        "Steps whose gradient norm is far above those before them.",
    ),
    ("optimizer", "The optimizer and where it runs."),
    (
        "strategy",
        "What is trained: the weights themselves, or less in their place.",
    ),
    (
        "strategy.lsp",
        "Training in subspaces (LSP-Offload, arXiv 2406.10181).",
    ),
    (
        "plan",
        "Knobs that the planner turns; each can be pinned. None changes a result.",
    ),
    ("eval", "Measuring loss on data that is not trained on."),
    (
        "eval.generate",
        "Greedy answers to the prompts of the evaluation data.",
    ),
    (
        "checkpoint",
        "Saving the training state, and going on from it.",
    ),
    ("log", "What is recorded beside the metrics."),
];

/// Every key, in the order of the reference. Each has a row in `crates/cli/tests/keys.rs`, which looks for
/// what changing it changes.
pub const KEYS: &[Key] = &{
    const PARTS: [&[Key]; 6] = [
        BEFORE_DATA,
        data::KEYS,
        AFTER_DATA,
        strategy::KEYS,
        plan::KEYS,
        ends::KEYS,
    ];
    const N: usize = {
        let (mut n, mut part) = (0, 0);
        while part < PARTS.len() {
            (n, part) = (n + PARTS[part].len(), part + 1);
        }
        n
    };
    let (mut all, mut part, mut n) = ([PARTS[0][0]; N], 0, 0);
    while part < PARTS.len() {
        let mut i = 0;
        while i < PARTS[part].len() {
            all[n] = PARTS[part][i];
            (i, n) = (i + 1, n + 1);
        }
        part += 1;
    }
    all
};

/// Those before the keys of data.
const BEFORE_DATA: &[Key] = &[
    Key {
        name: "model.path",
        doc: "Hugging Face model directory (`config.json`, safetensors, tokenizer), or a name on the Hub, `org/name` or \
              `org/name@revision`, where no such path exists: it is taken from Hugging Face's cache, or fetched there by `hf`.",
        kind: Kind::Path,
        default: Unset("none"),
        elsewhere: &[
            "model_name_or_path",
            "base_model",
            "hf_assets_path",
            "model_name",
            "checkpoint_dir",
            "checkpointer",
            "pretrained_model_name_or_path",
            "model._component_",
            "model_id",
        ],
    },
    Key {
        name: "model.shape",
        doc: "A built-in shape by name, for planning and benches without weights.",
        kind: Kind::Shape,
        default: Unset("none"),
        elsewhere: &["flavor"],
    },
    Key {
        name: "model.config",
        doc: "A `config.json` to train from random weights.",
        kind: Kind::Path,
        default: Unset("none"),
        elsewhere: &["config_name"],
    },
    Key {
        name: "model.init",
        doc: "Where the first weights come from.",
        kind: Kind::word(Init::WORDS),
        default: Unset("`pretrained` with `model.path`, otherwise `random`"),
        elsewhere: &["init_from"],
    },
    Key {
        name: "model.tokenizer",
        doc: "Directory of a tokenizer, its `tokenizer.json`, or a name on the Hub as in `model.path`.",
        kind: Kind::Path,
        default: Unset("that of `model.path`"),
        elsewhere: &[
            "tokenizer_name",
            "tokenizer_path",
            "tokenizer_config",
            "tokenizer_name_or_path",
            "tokenizer._component_",
        ],
    },
    Key {
        name: "model.labels",
        doc: "Names of the classes of a model that classifies, in their order: what data have as `label` in place of a number. \
              The model is exported with them.",
        kind: Kind::Texts,
        default: Unset("those of the model's `id2label`, else two"),
        elsewhere: &["num_labels", "label_names", "id2label"],
    },
    Key {
        name: "precision",
        doc: "Type of weights and activations in the products; master weights are always f32.",
        kind: DTYPE,
        default: Value("bf16"),
        elsewhere: &[
            "dtype",
            "torch_dtype",
            "bf16",
            "mixed_precision",
            "mixed_precision_param",
        ],
    },
    Key {
        name: "device",
        doc: "What computes.",
        kind: Kind::Word {
            words: Device::WORDS,
            aliases: &[("cuda", "cuda:0"), ("gpu", "cuda:0")],
            planned: &[],
        },
        default: Value("auto"),
        elsewhere: &["device_map"],
    },
    Key {
        name: "gpus",
        doc: "GPUs that train together: 1, 2, 4, 8 or 16; each takes its part of `train.accumulate`. On the CPU: ranks.",
        kind: Kind::Count { min: 1, max: 16 },
        default: Value("1"),
        elsewhere: &["nproc_per_node", "num_processes", "world_size", "n_gpus"],
    },
    Key {
        name: "seed",
        doc: "Seed of the shuffle and of random weights.",
        kind: Kind::Count {
            min: 0,
            max: u64::MAX,
        },
        default: Value("0"),
        elsewhere: &["random_seed", "data_seed", "manual_seed"],
    },
    Key {
        name: "output",
        doc: "Directory of everything the run writes.",
        kind: Kind::Path,
        default: Value("out"),
        elsewhere: &["output_dir", "dump_folder", "save_dir"],
    },
    Key {
        name: "threads",
        doc: "Threads that compute on the host. Changes no result.",
        kind: Kind::Count { min: 1, max: 4096 },
        default: Unset("all cores; beside a GPU they give way to what submits to it"),
        elsewhere: &["num_threads", "dataset_num_proc", "n_threads"],
    },
    Key {
        name: "budget.device",
        doc: "Device memory the run may use.",
        kind: Kind::Size,
        default: Unset("what is free at the start"),
        elsewhere: &["gpu_memory", "max_memory"],
    },
    Key {
        name: "budget.host",
        doc: "Host memory that the plan may take; what the process holds beside it (code, libraries, data) comes to it.",
        kind: Kind::Size,
        default: Unset("what is free at the start"),
        elsewhere: &["cpu_memory", "ram"],
    },
    Key {
        name: "budget.disk",
        doc: "Disk space for swapping. A plain size lies in `<output>/disk`.",
        kind: Kind::Disks,
        default: Value("0"),
        elsewhere: &["nvme", "nvme_path", "offload_folder"],
    },
    Key {
        name: "budget.disk_writes",
        doc: "What the run may write to these drives in all, over all its processes (one that was killed counts up to its last \
              line of metrics). One that would write more is refused before its first step: flash wears out.",
        kind: Kind::Size,
        default: Unset("no limit"),
        elsewhere: &[],
    },
];

/// Those behind the keys of data.
const AFTER_DATA: &[Key] = &[
    Key {
        name: "train.steps",
        doc: "Updates to make. Excludes `train.epochs`.",
        kind: Kind::Count {
            min: 1,
            max: 1_000_000_000,
        },
        default: Unset("as `train.epochs`"),
        elsewhere: &[
            "max_steps",
            "num_steps",
            "iters",
            "total_steps",
            "max_steps_per_epoch",
            "total_num_steps",
        ],
    },
    Key {
        name: "train.epochs",
        doc: "Passes over the training data; part of a pass is allowed. Excludes `train.steps`.",
        kind: Kind::Number {
            low: Excluded(0.0),
            high: Included(1e6),
        },
        default: Unset("1 without `train.steps`"),
        elsewhere: &["num_train_epochs", "num_epochs", "max_epochs"],
    },
    Key {
        name: "train.micro_batch",
        doc: "Sequences that go through the model at once.",
        kind: Kind::Count {
            min: 1,
            max: 65_536,
        },
        default: Value("1"),
        elsewhere: &[
            "per_device_train_batch_size",
            "micro_batch_size",
            "local_batch_size",
            "batch_size",
            "train_micro_batch_size_per_gpu",
        ],
    },
    Key {
        name: "train.seq",
        doc: "Tokens of one sequence.",
        kind: Kind::Count {
            min: 2,
            max: 1 << 20,
        },
        default: Value("1024"),
        elsewhere: &[
            "seq_len",
            "sequence_len",
            "max_seq",
            "max_length",
            "max_seq_length",
            "cutoff_len",
            "block_size",
            "max_seq_len",
            "model_max_length",
            "context_length",
        ],
    },
    Key {
        name: "train.target",
        doc: "Tokens of one target, of a model with an encoder and a decoder, where `train.seq` are those of its source. \
              0: the model has a decoder alone.",
        kind: Kind::Count {
            min: 0,
            max: 1 << 20,
        },
        default: Value("0"),
        elsewhere: &["max_target_length"],
    },
    Key {
        name: "train.accumulate",
        doc: "Micro-batches of one update.",
        kind: Kind::Count {
            min: 1,
            max: 65_536,
        },
        default: Value("1"),
        elsewhere: &[
            "gradient_accumulation_steps",
            "grad_accum",
            "gradient_accumulation",
        ],
    },
    Key {
        name: "train.reduce",
        doc: "The order in which gradients of micro-batches add up.",
        kind: Kind::word(Reduce::WORDS),
        default: Value("order"),
        elsewhere: &["reduce"],
    },
    Key {
        name: "train.leaves",
        doc: "Of `train.reduce: tree` the most GPUs that give the same bits: a power of two that divides \
              `train.accumulate`. A GPU of R keeps leaves / R sums of each gradient under way, 4 bytes a parameter each.",
        kind: Kind::Count { min: 1, max: 16 },
        default: Unset("the largest power of two that divides `train.accumulate`, up to 16"),
        elsewhere: &[],
    },
    Key {
        name: "train.last_batch",
        doc: "What becomes of the rows that are left when an epoch does not come out even.",
        kind: Kind::word(LastBatch::WORDS),
        default: Value("fill"),
        elsewhere: &["dataloader_drop_last", "drop_last"],
    },
    Key {
        name: "train.learning_rate",
        doc: "Peak learning rate.",
        kind: Kind::Number {
            low: Included(0.0),
            high: Included(1.0),
        },
        default: Value("2e-5"),
        elsewhere: &[
            "lr",
            "peak_lr",
            "relative_step",
            "scale_parameter",
            "warmup_max_lr",
        ],
    },
    Key {
        name: "train.schedule",
        doc: "How the learning rate moves after the warm-up.",
        kind: Kind::word(ScheduleShape::WORDS),
        default: Value("cosine"),
        elsewhere: &[
            "lr_scheduler",
            "lr_scheduler_type",
            "lr_schedule",
            "decay_type",
            "scheduler",
            "scheduler.type",
        ],
    },
    Key {
        name: "train.warmup_steps",
        doc: "Steps of warm-up. Step i of w has i/w of the peak: the first has 1/w, not 0, and the last has all of it. \
              Excludes `train.warmup_ratio`.",
        kind: Kind::Count {
            min: 0,
            max: 1_000_000_000,
        },
        default: Unset("as `train.warmup_ratio`"),
        elsewhere: &["num_warmup_steps", "warmup_num_steps"],
    },
    Key {
        name: "train.warmup_ratio",
        doc: "The same as a share of all steps, rounded up.",
        kind: Kind::Number {
            low: Included(0.0),
            high: Included(1.0),
        },
        default: Unset("0.03 without `train.warmup_steps`"),
        elsewhere: &["warmup"],
    },
    Key {
        name: "train.decay_ratio",
        doc: "With `schedule: wsd`, the share of all steps over which the learning rate falls.",
        kind: Kind::Number {
            low: Included(0.0),
            high: Included(1.0),
        },
        default: Value("0.1"),
        elsewhere: &["num_decay_steps", "lr_decay_ratio", "cooldown_ratio"],
    },
    Key {
        name: "train.min_lr_ratio",
        doc: "Learning rate at the end as a share of the peak.",
        kind: Kind::Number {
            low: Included(0.0),
            high: Included(1.0),
        },
        default: Value("0"),
        elsewhere: &[
            "min_lr_rate",
            "cosine_min_lr_ratio",
            "min_lr_factor",
            "min_lr",
            "cos_min_ratio",
        ],
    },
    Key {
        name: "train.clip.mode",
        doc: "By which norm gradients are clipped.",
        kind: Kind::word(ClipMode::WORDS),
        default: Value("exact"),
        elsewhere: &["clip_mode"],
    },
    Key {
        name: "train.clip.norm",
        doc: "Largest global norm that is left as it is.",
        kind: Kind::Number {
            low: Excluded(0.0),
            high: Unbounded,
        },
        default: Value("1.0"),
        elsewhere: &[
            "max_grad_norm",
            "max_norm",
            "grad_clip",
            "gradient_clip_val",
            "clip_grad_norm",
            "gradient_clipping",
        ],
    },
    Key {
        name: "train.gradient",
        doc: "Type of the complete gradient that clipping and the optimizer read.",
        kind: DTYPE,
        default: Unset("as `precision`"),
        elsewhere: &["mixed_precision_reduce", "grad_dtype", "gradient_dtype"],
    },
    Key {
        name: "train.on_nonfinite",
        doc: "What to do at a gradient that is not finite. `skip` needs `clip.mode: exact`.",
        kind: Kind::word(NonFinite::WORDS),
        default: Value("stop"),
        elsewhere: &["on_nan", "skip_nan", "logging_nan_inf_filter"],
    },
    Key {
        name: "train.spike.factor",
        doc: "A gradient norm above so many times the median of the norms of the steps before is a spike. 0: none is looked for.",
        kind: Kind::Number {
            low: Included(0.0),
            high: Included(1e6),
        },
        default: Value("0"),
        elsewhere: &[
            "loss_watchdog_threshold",
            "check_for_spiky_loss",
            "check_for_large_grads",
        ],
    },
    Key {
        name: "train.spike.window",
        doc: "How many steps before, spikes among them; until there are as many, nothing is a spike. They are saved with checkpoints.",
        kind: Kind::Count {
            min: 1,
            max: 10_000,
        },
        default: Value("64"),
        elsewhere: &["loss_watchdog_patience"],
    },
    Key {
        name: "train.spike.action",
        doc: "What to do at a spike. `skip` and `stop` need `clip.mode: exact`, so that it is seen before the update.",
        kind: Kind::word(SpikeAction::WORDS),
        default: Value("warn"),
        elsewhere: &[],
    },
    Key {
        name: "train.label_smoothing",
        doc: "The share of each label that is spread evenly over all tokens in training, as PyTorch's `cross_entropy` does \
              it. Evaluations count labels as they are.",
        kind: Kind::Number {
            low: Included(0.0),
            high: Included(1.0),
        },
        default: Value("0"),
        elsewhere: &["label_smoothing_factor"],
    },
    Key {
        name: "train.neftune_alpha",
        doc: "NEFTune: noise on what the embedding gives, in training alone: evenly from -1 to 1, times this over the root of \
              the numbers of a row (`train.seq` times the model's width). 0: none; usual are 5 to 15.",
        kind: Kind::Number {
            low: Included(0.0),
            high: Included(1e6),
        },
        default: Value("0"),
        elsewhere: &[
            "neftune_noise_alpha",
            "noisy_embedding_alpha",
            "neftune_alpha",
        ],
    },
    Key {
        name: "train.logits_chunk",
        doc: "Rows of logits that exist at once; 0 lets the model choose from its shape.",
        kind: Kind::Count {
            min: 0,
            max: 1 << 24,
        },
        default: Value("0"),
        elsewhere: &["chunk_size", "loss_chunk", "num_output_chunks"],
    },
    Key {
        name: "train.rows_chunk",
        doc: "Tokens of a micro-batch that a block computes at a time, but for attention, which has all of a row: its \
              wide tensors then exist for so many, which makes room for long sequences; forward and backward run \
              chunk after chunk, and what is between them is computed again. A multiple of 8; 0: all at once. \
              Gradients add up in another order, so their last bits differ. Not with experts, `t5` or \
              `strategy.name: lsp`.",
        kind: Kind::Count {
            min: 0,
            max: 1 << 24,
        },
        default: Value("0"),
        elsewhere: &[
            "tiled_mlp",
            "tiled_mlp_num_shards",
            "chunk_size_feed_forward",
        ],
    },
    Key {
        name: "train.freeze",
        doc: "Tensors that are not trained, by name: no gradient, no optimizer state, and nothing of backward below \
              the lowest that is trained. `*` is any run of characters, and a name stands for all below it: \
              `[model.embed_tokens, model.layers.0]`.",
        kind: Kind::Texts,
        default: Unset("everything is trained"),
        elsewhere: &[
            "frozen_parameters",
            "freeze_layers",
            "freeze_modules",
            "freeze_parameters",
            "freeze_trainable_layers",
        ],
    },
    Key {
        name: "train.unfreeze",
        doc: "Tensors that are trained although `freeze` names them, by name.",
        kind: Kind::Texts,
        default: Unset("none"),
        elsewhere: &[
            "unfrozen_parameters",
            "trainable_parameters",
            "freeze_trainable_modules",
        ],
    },
    Key {
        name: "optimizer.name",
        doc: "The optimizer.",
        kind: Kind::Word {
            words: OPTIMIZERS,
            aliases: OPTIMIZER_ALIASES,
            planned: OptimizerName::PLANNED,
        },
        default: Value("adamw"),
        elsewhere: &["optim", "optimizer.type", "optimizer._component_"],
    },
    setting(
        "optimizer.beta1",
        "Decay of the first moment.",
        (Included(0.0), Excluded(1.0)),
        &["adam_beta1", "betas"],
    ),
    setting(
        "optimizer.beta2",
        "Decay of the second moment.",
        (Included(0.0), Excluded(1.0)),
        &["adam_beta2"],
    ),
    setting(
        "optimizer.eps",
        "Added to the root of the second moment.",
        (Excluded(0.0), Included(1.0)),
        &["adam_epsilon", "epsilon"],
    ),
    setting(
        "optimizer.clip_threshold",
        "Greatest root mean square of a tensor's update before the learning rate; larger ones are scaled to it.",
        (Excluded(0.0), Included(1000.0)),
        &[],
    ),
    setting(
        "optimizer.decay_rate",
        "Weight of a step's squares in the second moment: the number of the step to this power.",
        (Included(-1.0), Excluded(0.0)),
        &["beta2_decay"],
    ),
    setting(
        "optimizer.weight_decay",
        "Decoupled decay; it is multiplied by the learning rate.",
        DECAY,
        &["decay"],
    ),
    Key {
        name: "optimizer.groups",
        doc: "Tensors with a learning rate or a decay of their own, by name as in `train.freeze`: `[{match: \
              [model.embed_tokens, lm_head], learning_rate: 1e-6}, {match: '*norm*', weight_decay: 0.1}]`. Of several \
              that fit the first holds. A learning rate is the peak of the same schedule; a decay holds for all that \
              match, norms and biases too. Not with `strategy.name: lsp`.",
        kind: Kind::Rates,
        default: Unset("one learning rate; norms and biases do not decay"),
        elsewhere: &["lr_groups", "embedding_lr", "param_groups"],
    },
    Key {
        name: "optimizer.moments",
        doc: "Type in which the moments are stored; arithmetic is f32. Changes the numbers.",
        kind: Kind::Word {
            words: MOMENTS,
            aliases: MOMENT_ALIASES,
            planned: &[],
        },
        default: Value("f32"),
        elsewhere: &["optim_bits", "moments_dtype"],
    },
    Key {
        name: "optimizer.update",
        doc: "Which processor runs the optimizer. Changes no result.",
        kind: Kind::Pin {
            words: UpdateOn::WORDS,
        },
        default: Value("auto"),
        elsewhere: &["cpu_offload", "enable_cpu_offload"],
    },
];

/// Keys that exclude each other. A `--set` of one overrules the file's other.
pub(crate) const EXCLUSIVE: &[&[&str]] = &[
    &["model.path", "model.shape", "model.config"],
    &["train.steps", "train.epochs"],
    &["train.warmup_steps", "train.warmup_ratio"],
    &["data.eval", "data.eval_split"],
    &["eval.every_steps", "eval.every_epochs"],
    &["checkpoint.every_steps", "checkpoint.every_epochs"],
];

const DTYPE: Kind = Kind::Word {
    words: DTYPES,
    aliases: DTYPE_ALIASES,
    planned: &[],
};

/// A number of some optimizers.
const fn setting(
    name: &'static str,
    doc: &'static str,
    (low, high): (Bound<f64>, Bound<f64>),
    elsewhere: &'static [&'static str],
) -> Key {
    Key {
        name,
        doc,
        kind: Kind::Number { low, high },
        default: ByOptimizer,
        elsewhere,
    }
}

/// The key of a name.
pub(crate) fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|k| k.name == name)
}
