//! The mistakes that people make in run files, each with what is said of it.
//!
//! One file because it is one list of mistakes.

mod common;

use lowtide_config::ConfigError;

use common::{check, parse, refused, run};

#[test]
fn unknown_keys_are_named_all_at_once() {
    let text = "model:\n  path: m\nper_device_train_batch_size: 4\ntrain:\n  sqe: 3\n  seq: none\nlora_r: 8\n";
    let error = parse(text, &[]).unwrap_err();
    let all = error.to_string();
    let lines: Vec<&str> = all.lines().collect();
    assert_eq!(lines.len(), 2, "{all}");
    assert!(
        lines[0].starts_with("run.yaml:3:1: unknown key 'per_device_train_batch_size'"),
        "{all}"
    );
    assert!(
        lines[1].starts_with("run.yaml:5:3: unknown key 'train.sqe'"),
        "{all}"
    );
    assert_eq!(error.key(), Some("per_device_train_batch_size"));
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
            "run.yaml:3:8: 'train.seq' is 'long'; allowed: a whole number from 2 to 1048576",
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
            "run.yaml:2:16: unknown key 'data.train.a'",
        ),
        (
            "data: {train: [a, {path: b, weigth: 2}]}",
            "run.yaml:2:29: unknown key 'data.train[1].weigth', did you mean 'data.train[1].weight'?",
        ),
        (
            "data: {train: [{weight: 2}]}",
            "run.yaml:2:16: 'data.train[0]' needs 'path'",
        ),
        (
            "data: {train: [{path: a, weight: 0}]}",
            "run.yaml:2:34: 'data.train[0].weight' is 0, out of range; allowed: a number above 0 up to 1000",
        ),
        (
            "data: {train: [{path: a, weight: twice}]}",
            "run.yaml:2:34: 'data.train[0].weight' is 'twice'; allowed: a number above 0 up to 1000",
        ),
        (
            "data: {train: [{path: [a]}]}",
            "run.yaml:2:23: 'data.train[0].path' is a list; allowed: a path",
        ),
        (
            "data: {train: [a, [b]]}",
            "run.yaml:2:19: 'data.train[1]' is a list; allowed: a path",
        ),
        (
            "optimizer: {groups: norm}",
            "run.yaml:2:21: 'optimizer.groups' is 'norm'; allowed: {match, learning_rate, weight_decay}, or a list of such, \
             with a learning rate above 0 up to 1 and a decay from 0 up to 1",
        ),
        (
            "optimizer: {groups: [{match: [a, [b]], weight_decay: 0}]}",
            "run.yaml:2:34: 'optimizer.groups[0].match[1]' is a list; allowed: text",
        ),
        (
            "optimizer: {groups: [{match: a, learning_rate: fast}]}",
            "run.yaml:2:48: 'optimizer.groups[0].learning_rate' is 'fast'; allowed: a number above 0 up to 1",
        ),
        (
            "optimizer: {groups: [{match: a}]}",
            "run.yaml:2:22: 'optimizer.groups[0]' needs 'learning_rate' or 'weight_decay'",
        ),
        (
            "optimizer: {groups: [{learning_rate: 0.1}]}",
            "run.yaml:2:22: 'optimizer.groups[0]' needs 'match'",
        ),
        (
            "optimizer: {groups: [{match: a, learning_rat: 0.1}]}",
            "run.yaml:2:33: unknown key 'optimizer.groups[0].learning_rat', did you mean 'optimizer.groups[0].learning_rate'?",
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
        "run.yaml:1:1: '(the file)' is a list; allowed: a mapping with precision, device, gpus, seed, \
         output, threads, model, budget, data, train, optimizer, strategy, plan, eval, checkpoint, log",
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
            "run.yaml:2:14: 'train.seq' is 0, out of range; allowed: a whole number from 2 to 1048576",
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
            "train: {learning_rate: 1e-400}",
            "run.yaml:2:24: 'train.learning_rate' is 1e-400, out of range; allowed: 0, or a number from 2.3e-308, the \
             least that f64 has in full",
        ),
        (
            "data: {eval_split: -0.6}",
            "run.yaml:2:20: 'data.eval_split' is -0.6, out of range; allowed: a number from 0 up to 1000000000",
        ),
        (
            "optimizer: {groups: [{match: a, learning_rate: 0}]}",
            "run.yaml:2:48: 'optimizer.groups[0].learning_rate' is 0, out of range; allowed: a number above 0 up to 1",
        ),
        (
            "optimizer: {groups: [{match: a, weight_decay: 2}]}",
            "run.yaml:2:47: 'optimizer.groups[0].weight_decay' is 2, out of range; allowed: a number from 0 up to 1",
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
        "train.seq=2",
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
            "run.yaml:2:14: 'plan.loop' is 'layermajor', did you mean 'layer-major'?; allowed: auto, layer-major, batch-major or groups:N with N from 1 to 100000",
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
            "run.yaml:2:19: 'optimizer.name: muon' is not supported yet; supported: adamw, lion, adafactor",
        ),
        (
            "optimizer: {name: lion, eps: 1e-6}",
            "run.yaml:2:30: 'optimizer.eps' needs 'optimizer.name' adamw or adafactor, which reads it",
        ),
        (
            "optimizer: {name: adafactor, beta1: 0.9}",
            "run.yaml:2:37: 'optimizer.beta1' needs 'optimizer.name' adamw or lion, which reads it",
        ),
        (
            "optimizer: {name: adafactor, moments: bf16}",
            "run.yaml:2:39: 'optimizer.moments' and 'optimizer.name' cannot both hold: Adafactor stores its moments in f32 only; leave 'optimizer.moments' out",
        ),
        (
            "optimizer: {name: adafactor, relative_step: true}",
            "run.yaml:2:30: unknown key 'optimizer.relative_step', did you mean 'train.learning_rate'?",
        ),
        (
            "optimizer: {decay_rate: -0.5}",
            "run.yaml:2:25: 'optimizer.decay_rate' needs 'optimizer.name' adafactor, which reads it",
        ),
        (
            "optimizer: {name: adafactor, decay_rate: 0}",
            "run.yaml:2:42: 'optimizer.decay_rate' is 0, out of range; allowed: a number from -1 below 0",
        ),
        (
            "optimizer: {eps: 1e-50}",
            "run.yaml:2:18: 'optimizer.eps' needs a number from 1.2e-38, the least that f32 has in full",
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
            "train: {reduce: tree, accumulate: 8, leaves: 4}\nplan: {loop: groups:6}",
            "run.yaml:3:14: 'plan.loop' and 'train.reduce' cannot both hold: each group adds to all 4 sums of a gradient; make it a multiple of 4 micro-batches",
        ),
        (
            "plan: {loop: groups:0}",
            "run.yaml:2:14: 'plan.loop' is 0, out of range; allowed: auto, layer-major, batch-major or groups:N with N from 1 to 100000",
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
            "train: {spike: {action: skip}}",
            "run.yaml:2:25: 'train.spike.action' needs 'train.spike.factor' above 0",
        ),
        (
            "train: {clip: {mode: previous}, spike: {factor: 9, action: stop}}",
            "run.yaml:2:60: 'train.spike.action' needs 'train.clip.mode: exact' to keep a spike from the weights",
        ),
        (
            "train: {spike: {factor: 9}}\nbudget: {disk: 1GiB}\ncheckpoint: {durable: true}",
            "run.yaml:2:25: 'train.spike.factor' and 'checkpoint.durable' cannot both hold: a durable run does not note the norms of its last steps; save checkpoints instead",
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
            "run.yaml:2:30: 'data.system' needs 'data.format' chat, alpaca or auto",
        ),
        (
            "data: {format: completion, system: s}",
            "run.yaml:2:36: 'data.system' needs 'data.format' chat, alpaca or auto",
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
            "eval: {every_epochs: 0.5}",
            "run.yaml:2:22: 'eval.every_epochs' needs evaluation data: 'data.eval' or 'data.eval_split'",
        ),
        (
            "data: {eval: a}\neval: {every_epochs: 0.5, every_steps: 5}",
            "run.yaml:3:40: 'eval.every_steps' and 'eval.every_epochs' cannot both hold: give one of them",
        ),
        (
            "checkpoint: {every_steps: 5, every_epochs: 1}",
            "run.yaml:2:27: 'checkpoint.every_steps' and 'checkpoint.every_epochs' cannot both hold: give one of them",
        ),
        (
            "data: {train: a, streaming: true}\ncheckpoint: {every_epochs: 1}",
            "run.yaml:3:28: 'checkpoint.every_epochs' and 'data.streaming' cannot both hold: how long an epoch is, is known with all examples",
        ),
        (
            "data: {train: a, eval_split: 0.7}",
            "run.yaml:2:30: 'data.eval_split' needs a share up to 0.5, or a whole number of examples",
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
            "data: {eval: a}\neval: {generate: {cached: 4}}",
            "run.yaml:3:27: 'eval.generate.cached' needs 'eval.generate.exact_match: true'",
        ),
        (
            "data: {eval: a}\neval: {every_steps: 5, min_delta: 0.1}",
            "run.yaml:3:35: 'eval.min_delta' needs 'eval.patience' above 0, which counts by it",
        ),
        (
            "data: {eval: a}\neval: {patience: 2}",
            "run.yaml:3:18: 'eval.patience' needs evaluations on the way: 'eval.every_steps' above 0, or 'eval.every_epochs'",
        ),
        (
            "data: {eval: a}\ncheckpoint: {keep_best: loss}",
            "run.yaml:3:25: 'checkpoint.keep_best' needs evaluations on the way: 'eval.every_steps' above 0, or 'eval.every_epochs'",
        ),
        (
            "data: {eval: a}\neval: {every_steps: 1}\ncheckpoint: {keep_best: exact_match}",
            "run.yaml:4:25: 'checkpoint.keep_best' needs answers on the way: 'eval.generate.exact_match' and 'eval.generate.every_steps' above 0",
        ),
        (
            "data: {eval: a}\neval: {every_steps: 1}\nbudget: {disk: 1GiB}\ncheckpoint: {keep_best: loss, durable: true}",
            "run.yaml:5:25: 'checkpoint.keep_best' and 'checkpoint.durable' cannot both hold: a durable run does not note which evaluation was the best; save checkpoints instead",
        ),
        (
            "data: {eval: a}\neval: {generate: {extract: a}}",
            "run.yaml:3:28: 'eval.generate.extract' needs 'eval.generate.exact_match: true'",
        ),
        (
            "checkpoint: {change: [train.steps, seed]}",
            "run.yaml:2:36: 'checkpoint.change[1]' is 'seed'; allowed: one or a list of train.steps, train.epochs, train.learning_rate, train.schedule, train.warmup_steps, train.warmup_ratio, train.decay_ratio, train.min_lr_ratio, train.clip.mode, train.clip.norm, train.on_nonfinite, train.spike.factor, train.spike.window, train.spike.action, train.label_smoothing, train.neftune_alpha, optimizer.beta1, optimizer.beta2, optimizer.eps, optimizer.clip_threshold, optimizer.decay_rate, optimizer.weight_decay, optimizer.groups, eval.generate.cached, device, gpus",
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
    check(
        "model: {path: a, labels: [a, b, a]}",
        &[],
        "run.yaml:1:26: 'model.labels' needs two names or more, no two of them equal",
    );
    run(
        "train: {clip: {mode: exact}, on_nonfinite: skip, schedule: wsd, warmup_steps: 5}",
        &[],
    );
    run("data: {train: a, eval: b, eval_split: 0}", &[]);
}

#[test]
fn numbers_that_f32_does_not_hold_are_refused() {
    for (yaml, want) in [
        (
            "optimizer: {beta2: 0.99999999}",
            "run.yaml:2:20: 'optimizer.beta2' needs a number up to 0.99999994, the greatest below 1 that f32 has",
        ),
        (
            "optimizer: {name: lion, beta1: 0.9999999999}",
            "run.yaml:2:32: 'optimizer.beta1' needs a number up to 0.99999994, the greatest below 1 that f32 has",
        ),
        (
            "optimizer: {beta1: 1e-60}",
            "run.yaml:2:20: 'optimizer.beta1' needs a number from 1.2e-38, the least that f32 has in full",
        ),
        (
            "optimizer: {weight_decay: 1e-46}",
            "run.yaml:2:27: 'optimizer.weight_decay' needs a number from 1.2e-38, the least that f32 has in full",
        ),
        (
            "optimizer: {name: adafactor, decay_rate: -1e-40}",
            "run.yaml:2:42: 'optimizer.decay_rate' needs a number to -1.2e-38, the least that f32 has in full",
        ),
        (
            "optimizer: {name: adafactor, clip_threshold: 1e-40}",
            "run.yaml:2:46: 'optimizer.clip_threshold' needs a number from 1.2e-38, the least that f32 has in full",
        ),
        (
            "optimizer: {groups: [{match: a, weight_decay: 0.1}, {match: b, learning_rate: 1e-39}]}",
            "run.yaml:2:21: 'optimizer.groups' needs as 'learning_rate' of its entry 2 a number from 1.2e-38, the least that f32 has in full",
        ),
        (
            "train: {learning_rate: 1e-300}",
            "run.yaml:2:24: 'train.learning_rate' needs a number from 1.2e-38, the least that f32 has in full",
        ),
        (
            "train: {clip: {norm: 1e-46}}",
            "run.yaml:2:22: 'train.clip.norm' needs a number from 1.2e-38, the least that f32 has in full",
        ),
        (
            "train: {clip: {norm: 1e39}}",
            "run.yaml:2:22: 'train.clip.norm' needs a number up to 3.4e38, the greatest that f32 has",
        ),
        (
            "train: {label_smoothing: 1e-50}",
            "run.yaml:2:26: 'train.label_smoothing' needs a number from 1.2e-38, the least that f32 has in full",
        ),
        (
            "train: {neftune_alpha: 1e-50}",
            "run.yaml:2:24: 'train.neftune_alpha' needs a number from 1.2e-38, the least that f32 has in full",
        ),
    ] {
        refused(yaml, want);
    }
    // The greatest below 1 that it has, and nothing at all, are numbers like others.
    parse(
        "model: {shape: qwen2.5-0.5b}\noptimizer: {beta1: 0, beta2: 0.99999994, weight_decay: 0}\n\
         train: {learning_rate: 0, label_smoothing: 0}",
        &[],
    )
    .unwrap();
}
