//! Run files as people write them, and the mistakes they make in them.

use std::path::{Path, PathBuf};

use lowtide_config::{
    ClipMode, ConfigError, DiskBudget, Format, Init, Length, LoopOrder, ModelSource, Place,
    Recompute, Resume, Run, ScheduleShape, Tier, UpdateOn, Warmup,
};
use lowtide_units::Bytes;
use lowtide_workload::{Dtype, Moments};

const BASE: &str = "/runs/first";

fn parse(yaml: &str, sets: &[&str]) -> Result<Run, ConfigError> {
    let sets: Vec<String> = sets.iter().map(|s| (*s).to_owned()).collect();
    Run::parse(yaml, "run.yaml", Path::new(BASE), &sets)
}

/// The run of a file with a model and, in `yaml`, other sections.
#[track_caller]
fn run(yaml: &str, sets: &[&str]) -> Run {
    let yaml = format!("model: {{path: m}}\n{yaml}");
    parse(&yaml, sets).unwrap_or_else(|e| panic!("{yaml}\n{sets:?}\n{e}"))
}

/// The whole error of a file.
#[track_caller]
fn check(yaml: &str, sets: &[&str], want: &str) {
    match parse(yaml, sets) {
        Ok(run) => panic!("accepted: {yaml}\n{sets:?}\n{run:?}"),
        Err(e) => assert_eq!(e.to_string(), want, "{yaml}\n{sets:?}"),
    }
}

/// As `check`, with a model above `yaml`, whose lines therefore count from 2.
#[track_caller]
fn refused(yaml: &str, want: &str) {
    check(&format!("model: {{path: m}}\n{yaml}"), &[], want);
}

fn current() -> PathBuf {
    std::env::current_dir().unwrap()
}

#[test]
fn a_run_with_nothing_but_a_model_is_the_defaults() {
    let r = run("", &[]);
    assert_eq!(r.model.source, ModelSource::Path("/runs/first/m".into()));
    assert_eq!(r.model.init, Init::Pretrained);
    assert_eq!(r.model.tokenizer, Some("/runs/first/m".into()));
    assert_eq!((r.precision, r.seed, r.threads), (Dtype::Bf16, 0, None));
    assert_eq!(r.output, Path::new("/runs/first/out"));
    assert_eq!(
        (r.budget.device, r.budget.host, r.budget.disk.len()),
        (None, None, 0)
    );
    assert_eq!(r.train.length, Length::Epochs(1.0));
    assert_eq!(
        (r.train.micro_batch, r.train.seq, r.train.accumulate),
        (1, 1024, 1)
    );
    assert_eq!(r.train.learning_rate, 2e-5);
    assert_eq!(r.train.schedule.shape, ScheduleShape::Cosine);
    assert_eq!(r.train.schedule.warmup, Warmup::Ratio(0.03));
    assert_eq!(
        (r.train.schedule.decay_ratio, r.train.schedule.min_lr_ratio),
        (0.1, 0.0)
    );
    assert_eq!(
        (r.train.clip.mode, r.train.clip.norm),
        (ClipMode::Exact, 1.0)
    );
    assert_eq!((r.train.gradient, r.train.logits_chunk), (Dtype::Bf16, 0));
    let o = r.optimizer;
    let setting = |key| o.setting(key).expect("AdamW reads it");
    let settings = ["beta1", "beta2", "eps", "weight_decay"].map(setting);
    assert_eq!(settings, [0.9, 0.999, 1e-8, 0.0]);
    assert_eq!((o.moments, o.update), (Moments::F32, None));
    assert_eq!(
        (r.plan.loop_order, r.plan.weights, r.plan.recompute),
        (None, None, None)
    );
    assert_eq!((r.plan.prefetch, r.plan.machine.clone()), (None, None));
    assert!(r.data.packing && r.data.shuffle && !r.data.has_eval());
    assert_eq!(
        (r.data.format, r.data.fields.prompt.as_str()),
        (Format::Auto, "prompt")
    );
    assert_eq!(
        (r.checkpoint.keep, r.checkpoint.resume.clone()),
        (2, Resume::Auto)
    );
    assert_eq!(
        (r.checkpoint.every_steps, r.checkpoint.every_minutes),
        (0, 30.0)
    );
    assert_eq!((r.eval.every_steps, r.eval.batches), (0, None));
    assert_eq!(
        (r.eval.generate.max_new_tokens, r.eval.generate.exact_match),
        (32, false)
    );
    assert!(r.log.every_steps == 1 && r.log.tensorboard && r.log.trace);
}

#[test]
fn every_key_reaches_its_field() {
    let r = run(
        "
precision: fp32
device: cpu
seed: 18_446_744_073_709_551_615
output: ../o
threads: 3
budget:
  device: 24GiB
  host: 1.5 GiB
  disk: [{dir: /nvme, size: 400GB}, {dir: swap, size: 16384}]
  disk_writes: 5TB
data:
  train: [a.jsonl, /b.jsonl]
  eval: e.jsonl
  format: chat
  fields: {messages: m, prompt: question, completion: answer, text: t}
  packing: no
  train_on: all
  shuffle: off
  max_examples: 7
  on_error: skip
  max_line: 1MiB
  system: 'You are: kind'
  chat_template: t.jinja
train:
  steps: 1_000
  micro_batch: 2
  seq: 512
  accumulate: 3
  last_batch: keep
  learning_rate: 1e-5
  schedule: wsd
  warmup_steps: 10
  decay_ratio: 0.25
  min_lr_ratio: .125
  clip: {mode: previous, norm: 2}
  gradient: bf16
  logits_chunk: 64
optimizer: {beta1: 0.8, beta2: 0.9, eps: 1e-6, weight_decay: 0.1, moments: fp32, update: device}
plan:
  loop: batch-major
  weights: device
  optimizer: disk
  gradients: host
  inputs: disk
  recompute: 12
  prefetch: 2
  pieces: split
  machine: machine.json
eval:
  every_steps: 50
  batches: 4
  generate: {max_new_tokens: 8, exact_match: true, max_examples: 9, extract: '#### (.*)', every_steps: 25}
checkpoint: {every_steps: 100, keep: 5, resume: old/step-7, durable: true, change: [train.steps, device]}
log: {every_steps: 10, tensorboard: false, trace: false}
",
        &[],
    );
    let json = serde_json::to_value(&r).unwrap();
    let gib = 1_u64 << 30;
    let want = serde_json::json!({
        "file": "run.yaml",
        "model": {
            "source": {"path": "/runs/first/m"},
            "init": "pretrained",
            "tokenizer": "/runs/first/m"
        },
        "precision": "f32", "device": "cpu", "seed": u64::MAX,
        "output": "/runs/first/../o", "threads": 3,
        "budget": {"device": 24 * gib, "host": 3 * gib / 2, "disk_writes": 5_000_000_000_000_u64, "disk": [
            {"dir": "/nvme", "size": 400_000_000_000_u64},
            {"dir": "/runs/first/swap", "size": 16384}
        ]},
        "data": {
            "train": ["/runs/first/a.jsonl", "/b.jsonl"], "eval": ["/runs/first/e.jsonl"],
            "eval_split": 0.0, "format": "chat",
            "fields": {"messages": "m", "prompt": "question", "completion": "answer", "text": "t"},
            "packing": false, "train_on": "all", "shuffle": false, "max_examples": 7,
            "on_error": "skip", "max_line": 1 << 20,
            "system": "You are: kind", "separator": null, "chat_template": "/runs/first/t.jinja"
        },
        "train": {
            "length": {"steps": 1000}, "micro_batch": 2, "seq": 512, "accumulate": 3,
            "last_batch": "keep", "learning_rate": 1e-5,
            "schedule": {"shape": "wsd", "warmup": {"steps": 10}, "decay_ratio": 0.25,
                "min_lr_ratio": 0.125},
            "clip": {"mode": "previous", "norm": 2.0}, "gradient": "bf16",
            "on_nonfinite": "stop", "logits_chunk": 64, "freeze": [], "unfreeze": []
        },
        "optimizer": {"name": "adamw", "beta1": 0.8, "beta2": 0.9, "eps": 1e-6,
            "weight_decay": 0.1, "moments": "f32", "update": "device"},
        "plan": {"loop_order": "batch-major", "weights": "device", "optimizer": "disk",
            "gradients": "host", "inputs": "disk", "recompute": {"blocks": 12}, "activations": null,
            "offload": null, "min_gain": 1.0,
            "prefetch": 2,
            "pieces": "split", "machine": "/runs/first/machine.json"},
        "eval": {"every_steps": 50, "batches": 4,
            "generate": {"exact_match": true, "max_new_tokens": 8, "max_examples": 9,
                "extract": "#### (.*)", "every_steps": 25}},
        "checkpoint": {"every_steps": 100, "every_minutes": 0.0, "keep": 5,
            "resume": {"path": "/runs/first/old/step-7"}, "durable": true,
            "change": ["train.steps", "device"]},
        "log": {"every_steps": 10, "tensorboard": false, "trace": false}
    });
    assert_eq!(json, want);
}

#[test]
fn values_read_as_people_write_them() {
    assert_eq!(
        run("budget: {disk: 4GiB}", &[]).budget.disk,
        [DiskBudget {
            dir: "/runs/first/out/disk".into(),
            size: Bytes(4 << 30)
        }]
    );
    assert_eq!(run("budget: {disk: 0}", &[]).budget.disk, []);
    assert_eq!(
        run("budget: {disk: {dir: d, size: 1}}", &[])
            .budget
            .disk
            .len(),
        1
    );
    assert_eq!(
        run("budget: {host: 4TB}", &[]).budget.host,
        Some(Bytes(4_000_000_000_000))
    );
    assert_eq!(
        run("train: {epochs: 0.5}", &[]).train.length,
        Length::Epochs(0.5)
    );
    assert_eq!(
        run("plan: {recompute: none}", &[]).plan.recompute,
        Some(Recompute::Nothing)
    );
    assert_eq!(
        run("plan: {recompute: 0}", &[]).plan.recompute,
        Some(Recompute::Nothing)
    );
    assert_eq!(
        run("plan: {recompute: all}", &[]).plan.recompute,
        Some(Recompute::All)
    );
    assert_eq!(
        run("plan: {recompute: auto, prefetch: 0}", &[])
            .plan
            .prefetch,
        Some(0)
    );
    assert_eq!(
        run("precision: f32", &[]).train.gradient,
        Dtype::F32,
        "follows precision"
    );
    assert_eq!(
        run("checkpoint: {resume: never}", &[]).checkpoint.resume,
        Resume::Never
    );
    assert_eq!(
        run("optimizer: {update: host}", &[]).optimizer.update,
        Some(UpdateOn::Host)
    );
    // A name that YAML takes for a number stays as it was typed.
    assert_eq!(
        run("data: {fields: {text: 1.50}}", &[]).data.fields.text,
        "1.50"
    );
    assert_eq!(
        run("data: {train: [007]}", &[]).data.train,
        [Path::new("/runs/first/007")]
    );
    // Empty is not given.
    assert_eq!(
        run("train:\neval:\n  batches:\nthreads: ~", &[]),
        run("", &[])
    );
    // YAML's merging of mappings, with the own key winning.
    let merged = run(
        "checkpoint: &e {every_steps: 5}\nlog: {<<: *e, trace: no}",
        &[],
    );
    assert_eq!((merged.log.every_steps, merged.log.trace), (5, false));
    let own = run(
        "checkpoint: &e {every_steps: 5}\nlog: {<<: *e, every_steps: 3}",
        &[],
    );
    assert_eq!(own.log.every_steps, 3);
}

#[test]
fn models_without_weights() {
    let shape = parse("model: {shape: llama2-7b}", &[]).unwrap();
    assert_eq!(shape.model.source, ModelSource::Shape("llama2-7b".into()));
    assert_eq!(
        (shape.model.init, shape.model.tokenizer.clone()),
        (Init::Random, None)
    );
    assert!(lowtide_workload::ModelShape::builtin("llama2-7b").is_some());
    let config = parse("model: {config: c.json, tokenizer: t}", &[]).unwrap();
    assert_eq!(
        config.model.source,
        ModelSource::Config("/runs/first/c.json".into())
    );
    assert_eq!(config.model.tokenizer, Some("/runs/first/t".into()));
    let anew = parse("model: {path: /m, init: random}", &[]).unwrap();
    assert_eq!(anew.model.init, Init::Random);
}

#[test]
fn overrides_win_over_the_file_and_later_ones_over_earlier() {
    let yaml = "train: {seq: 8, clip: {norm: 2}}\ndata: {train: a, fields: {prompt: p}}";
    let r = run(
        yaml,
        &[
            "train.seq=16",
            "train.seq = 32",
            "train.clip.norm=0.5",
            "data.fields={prompt: q, completion: c}",
            "data.train=[x.jsonl, 'y z.jsonl']",
            "plan.loop=layer-major",
            "budget.disk=[{dir: d, size: 4GiB}]",
            "plan.optimizer=disk",
            "data.system=[INST] be: kind # really",
        ],
    );
    assert_eq!((r.train.seq, r.train.clip.norm), (32, 0.5));
    assert_eq!(
        (
            r.data.fields.prompt.as_str(),
            r.data.fields.completion.as_str()
        ),
        ("q", "c")
    );
    assert_eq!(
        r.data.train,
        [current().join("x.jsonl"), current().join("y z.jsonl")]
    );
    assert_eq!(r.plan.loop_order, Some(LoopOrder::LayerMajor));
    assert_eq!(r.plan.optimizer, Some(Tier::Disk));
    assert_eq!(r.budget.disk[0].dir, current().join("d"));
    assert_eq!(r.data.system.as_deref(), Some("[INST] be: kind # really"));
    assert_eq!(
        run(yaml, &["train.seq="]).train.seq,
        1024,
        "an empty value is not given"
    );
    assert_eq!(
        run("", &["data.system=\"a\\nb\""]).data.system.as_deref(),
        Some("a\nb")
    );
}

#[test]
fn an_override_of_one_exclusive_key_drops_the_file_s_other() {
    let r = run(
        "train: {epochs: 3, warmup_ratio: 0.1}",
        &["train.steps=2", "train.warmup_steps=1"],
    );
    assert_eq!(r.train.length, Length::Steps(2));
    assert_eq!(r.train.schedule.warmup, Warmup::Steps(1));
    let r = run("", &["model.shape=llama2-7b"]);
    assert_eq!(r.model.source, ModelSource::Shape("llama2-7b".into()));
    let r = run("data: {train: t, eval: e}", &["data.eval_split=0.1"]);
    assert!(r.data.eval.is_empty() && r.data.eval_split == 0.1);
    let r = run("data: {train: t, eval: e}", &["data.eval_split=0"]);
    assert_eq!(r.data.eval.len(), 1, "no split is no choice");
    let r = run("train: {clip: {norm: 2}}", &["train.clip.mode=none"]);
    assert_eq!(
        r.train.clip.mode,
        ClipMode::None,
        "the override made the norm idle"
    );
    check(
        "model: {path: m}",
        &["train.steps=1", "train.epochs=1"],
        "--set train.steps=1: 'train.steps' and 'train.epochs' cannot both hold: give one of them",
    );
}

#[test]
fn unknown_keys_name_the_key_that_was_meant() {
    for (yaml, want) in [
        (
            "train:\n  sqe: 8",
            "run.yaml:3:3: unknown key 'train.sqe', did you mean 'train.seq'?",
        ),
        (
            "trian: {seq: 8}",
            "run.yaml:2:1: unknown key 'trian', did you mean 'train'?",
        ),
        (
            "seq: 8",
            "run.yaml:2:1: unknown key 'seq', did you mean 'train.seq'?",
        ),
        (
            "max_grad_norm: 1",
            "run.yaml:2:1: unknown key 'max_grad_norm', did you mean 'train.clip.norm'?",
        ),
        (
            "train: {gradient_accumulation_steps: 8}",
            "run.yaml:2:9: unknown key 'train.gradient_accumulation_steps', did you mean 'train.accumulate'?",
        ),
        (
            "train.seq: 8",
            "run.yaml:2:1: unknown key 'train.seq', write it as 'seq' inside 'train'",
        ),
        ("zzzzzz: 8", "run.yaml:2:1: unknown key 'zzzzzz'"),
        (
            "budget: {disk: [{dir: a, sise: 1}]}",
            "run.yaml:2:26: unknown key 'budget.disk[0].sise', did you mean 'budget.disk[0].size'?",
        ),
    ] {
        refused(yaml, want);
    }
    check(
        "model: {path: m}",
        &["train.learning_rat=1"],
        "--set train.learning_rat=1: unknown key 'train.learning_rat', did you mean 'train.learning_rate'?",
    );
    check(
        "",
        &["train.seq"],
        "--set train.seq: not of the form key.path=value",
    );
}

#[test]
fn a_key_given_twice_names_both_places() {
    for (yaml, want) in [
        (
            "seed: 1\nthreads: 2\nseed: 1",
            "run.yaml:4:1: key 'seed' was given before, at run.yaml:2:1",
        ),
        (
            "train:\n  seq: 8\n  seq: 9",
            "run.yaml:4:3: key 'train.seq' was given before, at run.yaml:3:3",
        ),
        (
            "plan: {}\nplan: {}",
            "run.yaml:3:1: key 'plan' was given before, at run.yaml:2:1",
        ),
        (
            "budget: {disk: {dir: a, dir: b, size: 1}}",
            "run.yaml:2:25: key 'budget.disk.dir' was given before, at run.yaml:2:17",
        ),
    ] {
        refused(yaml, want);
    }
}

#[test]
fn values_of_another_type_name_place_key_and_what_is_allowed() {
    for (yaml, want) in [
        (
            "train:\n  seq: long",
            "run.yaml:3:8: 'train.seq' is 'long'; allowed: a whole number from 1 to 1048576",
        ),
        (
            "train: {micro_batch: 1.5}",
            "run.yaml:2:22: 'train.micro_batch' is '1.5'; allowed: a whole number from 1 to 65536",
        ),
        (
            "train: {learning_rate: fast}",
            "run.yaml:2:24: 'train.learning_rate' is 'fast'; allowed: a number from 0 up to 1",
        ),
        (
            "data: {packing: 2}",
            "run.yaml:2:17: 'data.packing' is '2'; allowed: true or false",
        ),
        (
            "output: [a]",
            "run.yaml:2:9: 'output' is a list; allowed: a path",
        ),
        (
            "data: {train: {a: b}}",
            "run.yaml:2:15: 'data.train' is a mapping; allowed: a path or a list of paths",
        ),
        (
            "data: {train: [a, [b]]}",
            "run.yaml:2:19: 'data.train[1]' is a list; allowed: a path",
        ),
        (
            "budget: {host: 12 parsecs}",
            "run.yaml:2:16: 'budget.host' is '12 parsecs'; allowed: a size such as 24GiB, 512MiB, 4TB or 16384",
        ),
        (
            "budget: {disk: [4GiB]}",
            "run.yaml:2:17: 'budget.disk[0]' is '4GiB'; allowed: a size such as 400GiB, or a list of {dir, size}",
        ),
        (
            "budget: {disk: [{dir: a}]}",
            "run.yaml:2:17: 'budget.disk[0]' needs 'size'",
        ),
        (
            "train: {clip: 1.0}",
            "run.yaml:2:15: 'train.clip' is '1.0'; allowed: a mapping with mode, norm",
        ),
    ] {
        refused(yaml, want);
    }
    check(
        "- a",
        &[],
        "run.yaml:1:1: '(the file)' is a list; allowed: a mapping with precision, device, seed, \
         output, threads, model, budget, data, train, optimizer, plan, eval, checkpoint, log",
    );
    check("a: [1", &[], "run.yaml:1:4: not YAML: unclosed bracket '['");
    check(
        "model: {path: m}",
        &["data.train=[a"],
        "--set data.train=[a: not YAML: unclosed bracket '['",
    );
}

#[test]
fn values_beyond_their_limits() {
    for (yaml, want) in [
        (
            "train: {seq: 0}",
            "run.yaml:2:14: 'train.seq' is 0, out of range; allowed: a whole number from 1 to 1048576",
        ),
        (
            "seed: -1",
            "run.yaml:2:7: 'seed' is -1, out of range; allowed: a whole number from 0",
        ),
        (
            "threads: 99999999999999999999999",
            "run.yaml:2:10: 'threads' is 99999999999999999999999, out of range; allowed: a whole number from 1 to 4096",
        ),
        (
            "data: {eval_split: 0.6}",
            "run.yaml:2:20: 'data.eval_split' is 0.6, out of range; allowed: a number from 0 up to 0.5",
        ),
        (
            "train: {clip: {norm: 0}}",
            "run.yaml:2:22: 'train.clip.norm' is 0, out of range; allowed: a number above 0",
        ),
        (
            "train: {clip: {norm: .nan}}",
            "run.yaml:2:22: 'train.clip.norm' is .nan, out of range; allowed: a number above 0",
        ),
        (
            "train: {clip: {norm: 1e999}}",
            "run.yaml:2:22: 'train.clip.norm' is 1e999, out of range; allowed: a number above 0",
        ),
        (
            "optimizer: {beta1: 1}",
            "run.yaml:2:20: 'optimizer.beta1' is 1, out of range; allowed: a number from 0 below 1",
        ),
        (
            "plan: {prefetch: 9}",
            "run.yaml:2:18: 'plan.prefetch' is 9, out of range; allowed: auto or a whole number from 0 to 8",
        ),
        (
            "train: {epochs: 0}",
            "run.yaml:2:17: 'train.epochs' is 0, out of range; allowed: a number above 0 up to 1000000",
        ),
    ] {
        refused(yaml, want);
    }
}

#[test]
fn limits_themselves_are_allowed() {
    for set in [
        "train.seq=1",
        "train.seq=1048576",
        "threads=4096",
        "plan.prefetch=8",
        "train.learning_rate=0",
        "train.learning_rate=1",
        "train.warmup_ratio=1",
        "optimizer.beta1=0",
        "seed=18446744073709551615",
    ] {
        run("", &[set]);
    }
}

#[test]
fn words_that_are_unknown_or_planned() {
    for (yaml, want) in [
        (
            "plan: {loop: layermajor}",
            "run.yaml:2:14: 'plan.loop' is 'layermajor', did you mean 'layer-major'?; allowed: auto, layer-major, batch-major",
        ),
        (
            "precision: int4",
            "run.yaml:2:12: 'precision' is 'int4'; allowed: bf16, f32",
        ),
        (
            "device: tpu",
            "run.yaml:2:9: 'device' is 'tpu', did you mean 'cpu'?; allowed: auto, cpu, cuda:0",
        ),
        (
            "optimizer: {name: muon}",
            "run.yaml:2:19: 'optimizer.name: muon' is not supported yet; supported: adamw, lion",
        ),
        (
            "optimizer: {name: lion, eps: 1e-6}",
            "run.yaml:2:30: 'optimizer.eps' needs 'optimizer.name' adamw, which reads it",
        ),
        (
            "optimizer: {moments: int4}",
            "run.yaml:2:22: 'optimizer.moments' is 'int4', did you mean 'int8'?; allowed: f32, bf16, int8",
        ),
        (
            "plan: {prefetch: all}",
            "run.yaml:2:18: 'plan.prefetch' is 'all'; allowed: auto or a whole number from 0 to 8",
        ),
    ] {
        refused(yaml, want);
    }
    let Err(ConfigError::UnknownWord { nearest, .. }) = parse("model: {shape: lama2-7b}", &[])
    else {
        panic!("a shape that does not exist");
    };
    assert_eq!(nearest.as_deref(), Some("llama2-7b"));
}

#[test]
fn rules_between_keys() {
    for (yaml, want) in [
        (
            "train: {steps: 3, epochs: 1}",
            "run.yaml:2:16: 'train.steps' and 'train.epochs' cannot both hold: give one of them",
        ),
        (
            "train: {warmup_steps: 4, steps: 3}",
            "run.yaml:2:23: 'train.warmup_steps' and 'train.steps' cannot both hold: 4 steps of warm-up in 3 steps",
        ),
        (
            "train: {warmup_steps: 4, warmup_ratio: 0.1}",
            "run.yaml:2:23: 'train.warmup_steps' and 'train.warmup_ratio' cannot both hold: give one of them",
        ),
        (
            "train: {schedule: wsd, warmup_ratio: 0.6, decay_ratio: 0.5}",
            "run.yaml:2:56: 'train.decay_ratio' and 'train.warmup_ratio' cannot both hold: warm-up 0.6 and decay 0.5 are more than all steps",
        ),
        (
            "train: {schedule: wsd, steps: 10, warmup_steps: 10}",
            "run.yaml:2:49: 'train.decay_ratio' and 'train.warmup_steps' cannot both hold: warm-up 1 and decay 0.1 are more than all steps",
        ),
        (
            "train: {decay_ratio: 0.1}",
            "run.yaml:2:22: 'train.decay_ratio' needs 'train.schedule: wsd'",
        ),
        (
            "train: {schedule: constant, min_lr_ratio: 0.1}",
            "run.yaml:2:43: 'train.min_lr_ratio' needs a 'train.schedule' that falls: linear, cosine or wsd",
        ),
        (
            "train: {clip: {mode: none, norm: 1}}",
            "run.yaml:2:34: 'train.clip.norm' needs 'train.clip.mode' exact or previous",
        ),
        (
            "train: {clip: {mode: previous}, on_nonfinite: skip}",
            "run.yaml:2:47: 'train.on_nonfinite' needs 'train.clip.mode: exact' to skip a step",
        ),
        (
            "data: {train: a, eval: b, eval_split: 0.1}",
            "run.yaml:2:24: 'data.eval' and 'data.eval_split' cannot both hold: give one of them",
        ),
        (
            "data: {eval_split: 0.1}",
            "run.yaml:2:20: 'data.eval_split' needs 'data.train', of which it is a share",
        ),
        (
            "data: {format: text, train_on: assistant}",
            "run.yaml:2:32: 'data.train_on' needs 'data.format' chat, completion or auto",
        ),
        (
            "data: {format: text, system: s}",
            "run.yaml:2:30: 'data.system' needs 'data.format' chat, completion or auto",
        ),
        (
            "checkpoint: {durable: true}",
            "run.yaml:2:23: 'checkpoint.durable' needs a 'budget.disk' above 0",
        ),
        (
            "checkpoint: {durable: true}\nbudget: {disk: 1GiB}\nplan: {optimizer: host}",
            "run.yaml:2:23: 'checkpoint.durable' and 'plan.optimizer' cannot both hold: durable optimizer state is on disk, not on the host",
        ),
        (
            "eval: {every_steps: 5}",
            "run.yaml:2:21: 'eval.every_steps' needs evaluation data: 'data.eval' or 'data.eval_split'",
        ),
        (
            "eval: {generate: {exact_match: true}}",
            "run.yaml:2:32: 'eval.generate.exact_match' needs evaluation data: 'data.eval' or 'data.eval_split'",
        ),
        (
            "data: {train: a, eval_split: 0.1}\neval: {generate: {exact_match: true}}",
            "run.yaml:3:32: 'eval.generate.exact_match' needs 'data.eval', whose prompts are answered ('data.eval_split' keeps rows apart, not prompts)",
        ),
        (
            "data: {eval: a}\neval: {generate: {exact_match: true, extract: '('}}",
            "run.yaml:3:47: 'eval.generate.extract' is '(', no regular expression: unclosed group",
        ),
        (
            "data: {eval: a}\neval: {generate: {extract: a}}",
            "run.yaml:3:28: 'eval.generate.extract' needs 'eval.generate.exact_match: true'",
        ),
        (
            "checkpoint: {change: [train.steps, seed]}",
            "run.yaml:2:36: 'checkpoint.change[1]' is 'seed'; allowed: one or a list of train.steps, train.epochs, train.learning_rate, train.schedule, train.warmup_steps, train.warmup_ratio, train.decay_ratio, train.min_lr_ratio, train.clip.mode, train.clip.norm, train.on_nonfinite, optimizer.beta1, optimizer.beta2, optimizer.eps, optimizer.weight_decay, device",
        ),
        (
            "plan: {optimizer: disk}",
            "run.yaml:2:19: 'plan.optimizer' needs a 'budget.disk' above 0 to be pinned to disk",
        ),
        (
            "plan: {inputs: host}\nbudget: {host: 0}",
            "run.yaml:2:16: 'plan.inputs' needs a 'budget.host' above 0 to be pinned to host",
        ),
        (
            "model: {path: m}",
            "run.yaml:2:1: key 'model' was given before, at run.yaml:1:1",
        ),
    ] {
        refused(yaml, want);
    }
    check(
        "",
        &[],
        "run.yaml: 'model.path' is missing: one of 'model.path', 'model.shape' and 'model.config' is needed",
    );
    check(
        "model: {path: a, shape: llama2-7b}",
        &[],
        "run.yaml:1:15: 'model.path' and 'model.shape' cannot both hold: give one of them",
    );
    check(
        "model: {shape: llama2-7b, init: pretrained}",
        &[],
        "run.yaml:1:33: 'model.init' needs 'model.path', whose weights it reads",
    );
    run(
        "train: {clip: {mode: exact}, on_nonfinite: skip, schedule: wsd, warmup_steps: 5}",
        &[],
    );
    run("data: {train: a, eval: b, eval_split: 0}", &[]);
}

#[test]
fn training_needs_data_and_a_tokenizer() {
    let missing = |yaml: &str| {
        let ready = parse(yaml, &[]).unwrap().training_ready();
        ready.err().map(|e| e.key().unwrap().to_owned())
    };
    assert_eq!(missing("model: {path: m}").as_deref(), Some("data.train"));
    let shape = "model: {shape: llama2-7b}\ndata: {train: a}";
    assert_eq!(missing(shape).as_deref(), Some("model.tokenizer"));
    assert_eq!(missing("model: {path: m}\ndata: {train: a}"), None);
}

#[test]
fn load_resolves_against_the_file_and_says_when_it_is_not_there() {
    let dir = std::env::temp_dir().join(format!("lowtide-config-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let path = dir.join("run.yaml");
    std::fs::write(&path, "\u{feff}model: {path: m}\nseed: x\n").unwrap();
    let Err(e) = Run::load(&path, &[]) else {
        panic!("a seed that is no number")
    };
    let want = Place::File {
        file: path.display().to_string().into(),
        line: 2,
        column: 7,
    };
    assert_eq!(e.place(), Some(&want));
    let r = Run::load(&path, &["seed=4".to_owned(), "model.path=n".to_owned()]);
    assert!(r.is_err(), "the file's own mistake stays one");
    std::fs::write(&path, "model: {path: m}\n").unwrap();
    let r = Run::load(&path, &["plan.machine=mm.json".to_owned()]).unwrap();
    assert_eq!(r.model.source, ModelSource::Path(dir.join("m")));
    assert_eq!(r.output, dir.join("out"));
    assert_eq!(r.plan.machine, Some(current().join("mm.json")));
    std::fs::remove_dir_all(&dir).unwrap();
    assert!(matches!(
        Run::load(&path, &[]),
        Err(ConfigError::Read { .. })
    ));
}

#[test]
fn warmup_is_rounded_up_and_never_longer_than_the_run() {
    assert_eq!(Warmup::Ratio(0.03).steps(100), 3);
    assert_eq!(Warmup::Ratio(0.03).steps(101), 4);
    assert_eq!(Warmup::Ratio(1.0).steps(7), 7);
    assert_eq!(Warmup::Ratio(0.0).steps(7), 0);
    assert_eq!(Warmup::Steps(9).steps(7), 7);
}
