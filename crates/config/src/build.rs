//! From what was typed to what it means: defaults, types and absolute paths, a section a function.

use std::path::Path;

use lowtide_units::Bytes;
use lowtide_workload::{Dtype, Lsp, OptimizerName, Projector};

use crate::error::ConfigError;
use crate::low::Low;
use crate::run::{
    Budget, Cache, Checkpoint, Clip, Data, DiskBudget, Eval, Fields, Generate, Length, Log, Loop,
    Model, ModelSource, Optimizer, Plan, Recompute, Resume, Run, Schedule, Spike, Train, Warmup,
};
use crate::value::{Value, is_auto};
use crate::words::{Init, Reduce, Strategy};

/// What was typed with defaults filled in, rules between keys aside.
pub(crate) fn build(low: &Low) -> Result<Run, ConfigError> {
    let precision = low.word("precision").expect("has a default");
    let output = low.path("output").expect("has a default");
    Ok(Run {
        file: low.file.to_string(),
        model: model(low)?,
        precision,
        device: low.word("device").expect("has a default"),
        gpus: low.count32("gpus").expect("has a default"),
        hosts: 1,
        seed: low.count("seed").expect("has a default"),
        threads: low.count32("threads"),
        budget: budget(low, &output),
        data: data(low),
        train: train(low, precision),
        optimizer: optimizer(low),
        lsp: lsp(low),
        plan: plan(low),
        eval: eval(low),
        checkpoint: checkpoint(low),
        log: Log {
            every_steps: low.count("log.every_steps").expect("has a default"),
            report: low.flag("log.report"),
            tensorboard: low.flag("log.tensorboard"),
            trace: low.flag("log.trace"),
        },
        output,
    })
}

fn model(low: &Low) -> Result<Model, ConfigError> {
    let directory = low.path("model.path");
    let source = if let Some(path) = directory.clone() {
        ModelSource::Path(path)
    } else if let Some(path) = low.path("model.config") {
        ModelSource::Config(path)
    } else if let Some(Value::Word(name)) = low.any("model.shape") {
        ModelSource::Shape(name.to_owned())
    } else {
        return Err(ConfigError::Missing {
            file: low.file.to_string(),
            key: "model.path".to_owned(),
            why: "one of 'model.path', 'model.shape' and 'model.config' is needed".to_owned(),
        });
    };
    let init = if directory.is_some() {
        Init::Pretrained
    } else {
        Init::Random
    };
    Ok(Model {
        source,
        init: low.word("model.init").unwrap_or(init),
        path_typed: low.text("model.path"),
        tokenizer_typed: low.text("model.tokenizer"),
        tokenizer: low.path("model.tokenizer").or(directory),
        labels: low.texts("model.labels"),
    })
}

fn budget(low: &Low, output: &Path) -> Budget {
    let size = |name| match low.any(name) {
        Some(Value::Size(size)) => Some(size),
        _ => None,
    };
    let disk = match low.any("budget.disk") {
        Some(Value::Disks(disks)) => disks
            .into_iter()
            .map(|(dir, size)| DiskBudget {
                dir: low.absolute("budget.disk", &dir),
                size,
            })
            .collect(),
        Some(Value::Size(size)) => vec![DiskBudget {
            dir: output.join("disk"),
            size,
        }],
        other => panic!("budget.disk has a default: {other:?}"),
    };
    let disk = disk
        .into_iter()
        .filter(|d: &DiskBudget| d.size > Bytes::ZERO)
        .collect();
    Budget {
        device: size("budget.device"),
        host: size("budget.host"),
        disk_writes: size("budget.disk_writes"),
        disk,
    }
}

fn data(low: &Low) -> Data {
    let field = |name| low.text(name).expect("has a default");
    Data {
        train: low.sources("data.train"),
        eval: low.paths("data.eval"),
        train_typed: low.files_typed("data.train"),
        eval_typed: low.files_typed("data.eval"),
        eval_split: low.number("data.eval_split").expect("has a default"),
        format: low.word("data.format").expect("has a default"),
        fields: Fields {
            messages: field("data.fields.messages"),
            prompt: field("data.fields.prompt"),
            completion: field("data.fields.completion"),
            text: field("data.fields.text"),
            text_pair: field("data.fields.text_pair"),
            label: field("data.fields.label"),
            source: field("data.fields.source"),
            target: field("data.fields.target"),
        },
        packing: low.flag("data.packing"),
        train_on: low.word("data.train_on").expect("has a default"),
        shuffle: low.flag("data.shuffle"),
        max_examples: low.count("data.max_examples"),
        on_error: low.word("data.on_error").expect("has a default"),
        text_by: low.word("data.text_by").expect("has a default"),
        max_line: match low.any("data.max_line") {
            Some(Value::Size(size)) => size,
            other => panic!("data.max_line has a default: {other:?}"),
        },
        cache: match low.any("data.cache") {
            Some(Value::Word("auto")) => Cache::Auto,
            Some(Value::Word("none")) => Cache::None,
            Some(Value::Text(path)) => Cache::Path(low.absolute("data.cache", &path)),
            other => panic!("data.cache has a default: {other:?}"),
        },
        streaming: low.flag("data.streaming"),
        system: low.text("data.system"),
        separator: low.text("data.separator"),
        chat_template: low.path("data.chat_template"),
    }
}

fn train(low: &Low, precision: Dtype) -> Train {
    let number = |name| low.number(name).expect("has a default");
    let count = |name| low.count32(name).expect("has a default");
    let length = match low.count("train.steps") {
        Some(steps) => Length::Steps(steps),
        None => Length::Epochs(low.number("train.epochs").unwrap_or(1.0)),
    };
    let warmup = match low.count("train.warmup_steps") {
        Some(steps) => Warmup::Steps(steps),
        None => Warmup::Ratio(low.number("train.warmup_ratio").unwrap_or(0.03)),
    };
    Train {
        length,
        micro_batch: count("train.micro_batch"),
        seq: count("train.seq"),
        target: count("train.target"),
        accumulate: count("train.accumulate"),
        leaves: match low.word("train.reduce").expect("has a default") {
            Reduce::Order => 1,
            // As many as the most GPUs have a use for.
            Reduce::Tree => low
                .count32("train.leaves")
                .unwrap_or_else(|| 1 << count("train.accumulate").trailing_zeros().min(4)),
        },
        last_batch: low.word("train.last_batch").expect("has a default"),
        learning_rate: number("train.learning_rate"),
        schedule: Schedule {
            shape: low.word("train.schedule").expect("has a default"),
            warmup,
            decay_ratio: number("train.decay_ratio"),
            min_lr_ratio: number("train.min_lr_ratio"),
        },
        clip: Clip {
            mode: low.word("train.clip.mode").expect("has a default"),
            norm: number("train.clip.norm"),
        },
        gradient: low.word("train.gradient").unwrap_or(precision),
        on_nonfinite: low.word("train.on_nonfinite").expect("has a default"),
        spike: Some(number("train.spike.factor"))
            .filter(|&factor| factor > 0.0)
            .map(|factor| Spike {
                factor,
                window: count("train.spike.window"),
                action: low.word("train.spike.action").expect("has a default"),
            }),
        label_smoothing: number("train.label_smoothing"),
        neftune_alpha: number("train.neftune_alpha"),
        logits_chunk: count("train.logits_chunk"),
        rows_chunk: count("train.rows_chunk"),
        freeze: low.texts("train.freeze"),
        unfreeze: low.texts("train.unfreeze"),
    }
}

fn optimizer(low: &Low) -> Optimizer {
    let name: OptimizerName = low.word("optimizer.name").expect("has a default");
    let settings = name.about().settings.iter().map(|setting| {
        let given = low.number_given(&format!("optimizer.{}", setting.key));
        let default = || setting.default.parse().expect("a number");
        (setting.key, given.unwrap_or_else(default))
    });
    Optimizer {
        name,
        settings: settings.collect(),
        groups: match low.any("optimizer.groups") {
            Some(Value::Groups(groups)) => groups,
            _ => Vec::new(),
        },
        moments: low.word("optimizer.moments").expect("has a default"),
        update: low.word("optimizer.update"),
    }
}

fn lsp(low: &Low) -> Option<Lsp> {
    let name: Strategy = low.word("strategy.name").expect("has a default");
    let compression = low.count32("strategy.lsp.compression");
    let projector: Option<Projector> = low.word("strategy.lsp.projector");
    (name == Strategy::Lsp).then(|| Lsp {
        compression: compression.expect("has a default"),
        projector: projector.expect("has a default"),
    })
}

fn plan(low: &Low) -> Plan {
    let pinned = |name| low.any(name).filter(|value| !is_auto(value));
    let blocks = |n| u32::try_from(n).expect("the key's limits fit 32 bits");
    Plan {
        loop_order: pinned("plan.loop").map(|value| match value {
            Value::Count(n) => Loop::Groups(blocks(n)),
            _ => Loop::Order(low.word("plan.loop").expect("a word or a count")),
        }),
        weights: low.word("plan.weights"),
        optimizer: low.word("plan.optimizer"),
        gradients: low.word("plan.gradients"),
        inputs: low.word("plan.inputs"),
        recompute: pinned("plan.recompute").map(|value| match value {
            Value::Word("none") | Value::Count(0) => Recompute::Nothing,
            Value::Word("all") => Recompute::All,
            Value::Count(n) => Recompute::Blocks(blocks(n)),
            other => panic!("plan.recompute is a word or a count: {other:?}"),
        }),
        activations: low.word("plan.activations"),
        offload: low.word("plan.offload"),
        direct: low.word("plan.direct"),
        min_gain: low.number("plan.min_gain").expect("has a default"),
        prefetch: pinned("plan.prefetch").map(|value| match value {
            Value::Count(n) => blocks(n),
            other => panic!("plan.prefetch is auto or a count: {other:?}"),
        }),
        pieces: low.word("plan.pieces"),
        adaptive: low.flag("plan.adaptive"),
        machine: low.path("plan.machine"),
    }
}

fn eval(low: &Low) -> Eval {
    Eval {
        every_steps: low.count("eval.every_steps").expect("has a default"),
        every_epochs: low.number("eval.every_epochs"),
        batches: low.count("eval.batches"),
        patience: low.count("eval.patience").expect("has a default"),
        min_delta: low.number("eval.min_delta").expect("has a default"),
        generate: Generate {
            exact_match: low.flag("eval.generate.exact_match"),
            max_new_tokens: low
                .count32("eval.generate.max_new_tokens")
                .expect("has a default"),
            max_examples: low
                .count("eval.generate.max_examples")
                .expect("has a default"),
            extract: low.text("eval.generate.extract"),
            every_steps: low
                .count("eval.generate.every_steps")
                .expect("has a default"),
            cached: low.count32("eval.generate.cached").filter(|&n| n > 0),
        },
    }
}

fn checkpoint(low: &Low) -> Checkpoint {
    let resume = match low.any("checkpoint.resume") {
        Some(Value::Word("auto")) => Resume::Auto,
        Some(Value::Word("never")) => Resume::Never,
        Some(Value::Text(path)) => Resume::Path(low.absolute("checkpoint.resume", &path)),
        other => panic!("checkpoint.resume has a default: {other:?}"),
    };
    let durable = low.flag("checkpoint.durable");
    Checkpoint {
        every_steps: low.count("checkpoint.every_steps").expect("has a default"),
        every_epochs: low.number("checkpoint.every_epochs"),
        every_minutes: low
            .number("checkpoint.every_minutes")
            .unwrap_or(if durable { 0.0 } else { 30.0 }),
        background: low.flag("checkpoint.background"),
        keep: low.count32("checkpoint.keep").expect("has a default"),
        on_error: low.word("checkpoint.on_error").expect("has a default"),
        keep_best: low.word("checkpoint.keep_best").expect("has a default"),
        keep_best_given: low.typed("checkpoint.keep_best").is_some(),
        resume,
        durable,
        change: low.words("checkpoint.change"),
    }
}
