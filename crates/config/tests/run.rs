//! Run files as people write them.

mod common;

use std::path::Path;

use lowtide_config::{
    ClipMode, ConfigError, DiskBudget, Format, Init, Length, Loop, LoopOrder, ModelSource, Place,
    Recompute, Resume, Run, ScheduleShape, Tier, UpdateOn, Warmup,
};
use lowtide_units::Bytes;
use lowtide_workload::{Dtype, Moments};

use common::{check, current, parse, run};

fn paths(run: &Run) -> Vec<&Path> {
    run.data.train.iter().map(|s| &*s.path).collect()
}

#[test]
fn a_data_file_has_a_weight() {
    let weights = |run: &Run| -> Vec<(String, f64)> {
        let sources = run.data.train.iter();
        sources
            .map(|s| (s.path.display().to_string(), s.weight))
            .collect()
    };
    let here = |name: &str| format!("/runs/first/{name}");
    for (yaml, want) in [
        ("data: {train: a}", vec![(here("a"), 1.0)]),
        (
            "data: {train: {path: a, weight: 0.25}}",
            vec![(here("a"), 0.25)],
        ),
        (
            "data: {train: [a, {path: b, weight: 2}, {path: /c}]}",
            vec![(here("a"), 1.0), (here("b"), 2.0), ("/c".into(), 1.0)],
        ),
    ] {
        assert_eq!(weights(&run(yaml, &[])), want, "{yaml}");
    }
    let set = run("", &["data.train=[{path: /b, weight: 3}]"]);
    assert_eq!(weights(&set), [("/b".into(), 3.0)]);
    let shown = serde_json::to_value(run("data: {train: [a, {path: b, weight: 2}]}", &[])).unwrap();
    let want = serde_json::json!(["/runs/first/a", {"path": "/runs/first/b", "weight": 2.0}]);
    assert_eq!(shown["data"]["train"], want);
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
    assert_eq!(r.train.label_smoothing, 0.0);
    assert_eq!(r.train.neftune_alpha, 0.0);
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
    assert!(r.checkpoint.background);
    assert_eq!((r.eval.every_steps, r.eval.batches), (0, None));
    assert_eq!(
        (r.eval.generate.max_new_tokens, r.eval.generate.exact_match),
        (32, false)
    );
    assert!(r.log.every_steps == 1 && r.log.tensorboard && r.log.trace && r.log.report);
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
  fields: {messages: m, prompt: question, completion: answer, text: t, text_pair: p, label: l, source: s, target: g}
  packing: no
  train_on: all
  shuffle: off
  max_examples: 7
  on_error: skip
  max_line: 1MiB
  cache: kept
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
  rows_chunk: 4096
  label_smoothing: 0.1
  neftune_alpha: 5
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
  generate: {max_new_tokens: 8, exact_match: true, max_examples: 9, extract: '#### (.*)', every_steps: 25, cached: 6}
checkpoint: {every_steps: 100, background: false, keep: 5, resume: old/step-7, durable: true, change: [train.steps, device]}
log: {every_steps: 10, report: false, tensorboard: false, trace: false}
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
        "precision": "f32", "device": "cpu", "gpus": 1, "seed": u64::MAX,
        "output": "/runs/first/../o", "threads": 3,
        "budget": {"device": 24 * gib, "host": 3 * gib / 2, "disk_writes": 5_000_000_000_000_u64, "disk": [
            {"dir": "/nvme", "size": 400_000_000_000_u64},
            {"dir": "/runs/first/swap", "size": 16384}
        ]},
        "data": {
            "train": ["/runs/first/a.jsonl", "/b.jsonl"], "eval": ["/runs/first/e.jsonl"],
            "eval_split": 0.0, "format": "chat",
            "fields": {"messages": "m", "prompt": "question", "completion": "answer", "text": "t",
                "text_pair": "p", "label": "l", "source": "s", "target": "g"},
            "packing": false, "train_on": "all", "shuffle": false, "max_examples": 7,
            "on_error": "skip", "text_by": "file", "max_line": 1 << 20,
            "cache": {"path": "/runs/first/kept"}, "streaming": false,
            "system": "You are: kind", "separator": null, "chat_template": "/runs/first/t.jinja"
        },
        "train": {
            "length": {"steps": 1000}, "micro_batch": 2, "seq": 512, "accumulate": 3,
            "last_batch": "keep", "learning_rate": 1e-5,
            "schedule": {"shape": "wsd", "warmup": {"steps": 10}, "decay_ratio": 0.25,
                "min_lr_ratio": 0.125},
            "clip": {"mode": "previous", "norm": 2.0}, "gradient": "bf16",
            "on_nonfinite": "stop", "label_smoothing": 0.1, "neftune_alpha": 5.0, "logits_chunk": 64, "rows_chunk": 4096, "freeze": [], "unfreeze": []
        },
        "optimizer": {"name": "adamw", "beta1": 0.8, "beta2": 0.9, "eps": 1e-6,
            "weight_decay": 0.1, "moments": "f32", "update": "device"},
        "strategy": {"name": "exact"},
        "plan": {"loop_order": "batch-major", "weights": "device", "optimizer": "disk",
            "gradients": "host", "inputs": "disk", "recompute": {"blocks": 12}, "activations": null,
            "offload": null, "direct": null, "min_gain": 1.0,
            "prefetch": 2,
            "pieces": "split", "adaptive": false, "machine": "/runs/first/machine.json"},
        "eval": {"every_steps": 50, "batches": 4, "patience": 0, "min_delta": 0.0,
            "generate": {"exact_match": true, "max_new_tokens": 8, "max_examples": 9,
                "extract": "#### (.*)", "every_steps": 25, "cached": 6}},
        "checkpoint": {"every_steps": 100, "every_minutes": 0.0, "background": false, "keep": 5, "on_error": "continue", "keep_best": "none",
            "resume": {"path": "/runs/first/old/step-7"}, "durable": true,
            "change": ["train.steps", "device"]},
        "log": {"every_steps": 10, "report": false, "tensorboard": false, "trace": false}
    });
    assert_eq!(json, want);
}

#[test]
fn the_length_of_targets_reaches_the_batch() {
    let target = |yaml| run(yaml, &[]).batch().target;
    assert_eq!((target(""), target("train: {target: 48}")), (0, 48));
}

/// Durable runs, as the one above, look for none.
#[test]
fn spikes_reach_their_field() {
    let r = run("train: {spike: {factor: 8, window: 20, action: stop}}", &[]);
    let spike = r.train.spike.expect("it is asked for");
    let have = (spike.factor, spike.window, spike.action.word());
    assert_eq!(have, (8.0, 20, "stop"));
    assert_eq!(run("", &[]).train.spike, None);
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
        paths(&run("data: {train: [007]}", &[])),
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
        paths(&r),
        [current().join("x.jsonl"), current().join("y z.jsonl")]
    );
    assert_eq!(r.plan.loop_order, Some(Loop::Order(LoopOrder::LayerMajor)));
    let groups = |n: &str| {
        run(yaml, &[&format!("plan.loop=groups:{n}")])
            .plan
            .loop_order
    };
    assert_eq!(
        (groups("4"), groups("1_0")),
        (Some(Loop::Groups(4)), Some(Loop::Groups(10)))
    );
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
    let epochs =
        "data: {train: t, eval: e}\neval: {every_epochs: 1}\ncheckpoint: {every_epochs: 1}";
    let r = run(epochs, &["eval.every_steps=0", "checkpoint.every_steps=0"]);
    assert_eq!(r.eval.every_epochs, None, "nothing on the way is asked for");
    assert_eq!(r.checkpoint.every_epochs, None);
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
    // Of a file that is made elsewhere the paths may begin here.
    let here = format!("@{}", path.display());
    let r = Run::load(std::path::Path::new(&here), &[]).unwrap();
    assert_eq!(r.model.source, ModelSource::Path(current().join("m")));
    let sets = dir.join("sets");
    std::fs::write(&sets, "seed=4\n\ndata.system=\"a\\nb\"\n").unwrap();
    assert_eq!(
        Run::overrides_of(&sets).unwrap(),
        ["seed=4", "data.system=\"a\\nb\""]
    );
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
