//! The numerics key: what changes a number is in it, what does not is not.

use std::path::Path;

use lowtide_config::{KEYS, Kind, Run};

const BASE: &str = "
model: {path: m}
budget: {disk: 1GiB}
data: {train: a, eval_split: 0.1}
train: {steps: 100}
";

fn key(sets: &[&str]) -> serde_json::Value {
    let sets: Vec<String> = sets.iter().map(|s| (*s).to_owned()).collect();
    let run = Run::parse(BASE, "run.yaml", Path::new("/r"), &sets);
    run.unwrap_or_else(|e| panic!("{sets:?}: {e}"))
        .numerics_key()
}

/// Keys that change no number of the training itself, or files, whose contents others add.
const OUTSIDE: &[&str] = &[
    "model.path",
    "model.shape",
    "model.config",
    "model.tokenizer",
    "device",
    "output",
    "threads",
    "budget.",
    "data.train",
    // Which records are left out shows in the data's fingerprint.
    "data.on_error",
    "data.text_by",
    "data.max_line",
    "data.cache",
    "data.eval",
    "data.chat_template",
    "optimizer.update",
    "plan.",
    "eval.every_steps",
    "eval.every_epochs",
    "eval.batches",
    "eval.patience",
    "eval.min_delta",
    "eval.generate.exact_match",
    "eval.generate.max_new_tokens",
    "eval.generate.max_examples",
    "eval.generate.extract",
    "eval.generate.every_steps",
    "checkpoint.",
    "log.",
];

/// Another allowed value than the one of `BASE`.
fn other(name: &str, kind: &Kind) -> String {
    match name {
        "gpus" | "train.leaves" => "2".into(),
        "train.reduce" => "tree".into(),
        "train.on_nonfinite" | "train.spike.action" => "skip".into(),
        "train.epochs" | "optimizer.beta1" => "0.5".into(),
        "train.clip.norm" => "3".into(),
        "optimizer.decay_rate" => "-0.5".into(),
        "data.format" => "completion".into(),
        "data.eval_split" => "0.2".into(),
        "data.streaming" => "true".into(),
        "train.decay_ratio" | "train.min_lr_ratio" | "train.warmup_ratio" => "0.3".into(),
        "model.init" => "random".into(),
        "train.schedule" => "linear".into(),
        "train.last_batch" => "keep".into(),
        "optimizer.name" => "lion".into(),
        "strategy.name" => "lsp".into(),
        "strategy.lsp.projector" => "random".into(),
        "optimizer.moments" => "bf16".into(),
        "train.clip.mode" => "previous".into(),
        "data.train_on" => "all".into(),
        "model.labels" => "[no, yes]".into(),
        "optimizer.groups" => "{match: a, weight_decay: 0.5}".into(),
        "precision" | "train.gradient" => "f32".into(),
        _ => match kind {
            Kind::Flag => "false".into(),
            Kind::Count { .. } => "17".into(),
            Kind::Number { .. } => "0.125".into(),
            _ => "word".into(),
        },
    }
}

#[test]
fn each_key_is_in_it_or_is_named_here_as_outside() {
    for k in KEYS {
        let outside = OUTSIDE
            .iter()
            .any(|o| *o == k.name || o.ends_with('.') && k.name.starts_with(o));
        if outside {
            continue;
        }
        let mut sets = vec![];
        if k.name == "train.decay_ratio" {
            sets.push("train.schedule=wsd");
        }
        if k.name == "data.streaming" {
            sets.push("data.eval_split=0");
        }
        if k.name == "gpus" || k.name == "train.reduce" {
            sets.push("train.accumulate=2");
        }
        if k.name == "train.leaves" {
            sets.extend(["train.accumulate=4", "train.reduce=tree"]);
        }
        if k.name.starts_with("eval.generate.") {
            sets.extend([
                "data.eval_split=0",
                "data.eval=b",
                "eval.generate.exact_match=true",
            ]);
        }
        if k.name.starts_with("train.spike.") {
            sets.push("train.spike.factor=4");
            if k.name != "train.spike.action" {
                sets.push("train.spike.action=stop");
            }
        }
        if k.name == "train.unfreeze" {
            sets.push("train.freeze=*");
        }
        if k.name.starts_with("strategy.lsp.") {
            sets.push("strategy.name=lsp");
        }
        if ["optimizer.clip_threshold", "optimizer.decay_rate"].contains(&k.name) {
            sets.push("optimizer.name=adafactor");
        }
        let before = key(&sets);
        let set = format!("{}={}", k.name, other(k.name, &k.kind));
        sets.push(&set);
        assert_ne!(key(&sets), before, "{set}");
    }
}

#[test]
fn placement_and_recording_are_not_in_it() {
    let base = key(&[]);
    for set in [
        "threads=3",
        "output=/elsewhere",
        "budget.host=1GiB",
        "budget.device=1GiB",
        "plan.loop=batch-major",
        "plan.weights=host",
        "plan.optimizer=disk",
        "plan.gradients=disk",
        "plan.inputs=host",
        "plan.recompute=3",
        "plan.activations=offload",
        "plan.offload=host",
        "plan.direct=never",
        "plan.min_gain=3",
        "plan.prefetch=1",
        "plan.pieces=split",
        "plan.adaptive=true",
        "optimizer.update=host",
        "eval.every_steps=2",
        "checkpoint.every_steps=4",
        "checkpoint.resume=never",
        "checkpoint.durable=true",
        "log.report=false",
        "log.trace=false",
        "data.train=/moved/a",
    ] {
        assert_eq!(key(&[set]), base, "{set}");
    }
}

/// The order in which gradients add up is: in a tree it is the same on every number of GPUs.
#[test]
fn the_number_of_gpus_is_in_it_unless_gradients_add_up_in_a_tree() {
    let of = |reduce, gpus, accumulate| key(&[reduce, gpus, accumulate]);
    let (order, tree, four) = (
        "train.reduce=order",
        "train.reduce=tree",
        "train.accumulate=4",
    );
    assert_ne!(of(order, "gpus=1", four), of(order, "gpus=2", four));
    assert_eq!(of(tree, "gpus=1", four), of(tree, "gpus=4", four));
    assert_ne!(of(tree, "gpus=1", four), of(order, "gpus=1", four));
    // One micro-batch, or three, add up in order.
    let three = "train.accumulate=3";
    assert_eq!(of(tree, "gpus=1", three), of(order, "gpus=1", three));
    let leaves = |n: &str| key(&[tree, four, n]);
    assert_eq!(leaves("train.leaves=4"), of(tree, "gpus=2", four));
    assert_ne!(leaves("train.leaves=2"), leaves("train.leaves=4"));
}

/// Of an optimizer the settings that it reads, at its own defaults.
#[test]
fn settings_of_other_optimizers_are_not_in_it() {
    let lion = &key(&["optimizer.name=lion"])["optimizer"];
    let want = serde_json::json!({
        "name": "lion", "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.0, "moments": "f32"
    });
    assert_eq!(*lion, want);
    let given = &key(&["optimizer.name=lion", "optimizer.beta2=0.5"])["optimizer"];
    assert_eq!(given["beta2"], 0.5);
}

#[test]
fn idle_values_are_not_in_it() {
    let none = "train.clip.mode=none";
    assert!(key(&[none])["train"]["clip"].get("norm").is_none());
    let constant = ["train.schedule=constant", "train.warmup_steps=2"];
    let longer = [constant[0], constant[1], "train.steps=200"];
    assert_eq!(
        key(&constant),
        key(&longer),
        "a constant rate can be resumed for longer"
    );
    assert_ne!(key(&[]), key(&["train.steps=200"]), "a cosine cannot");
    let by_ratio = ["train.schedule=constant"];
    assert_ne!(
        key(&by_ratio),
        key(&["train.schedule=constant", "train.steps=200"])
    );
}
