//! Every key of a run file does what it says: changing it changes what can be seen of a run.
//!
//! One row a key: two values, what else holds for both, and where to look. A key without a row fails
//! the test, so that none is parsed and then forgotten.
//!
//! One file because it is one table of keys and the function that goes through it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::cases::scratch::{Ended, Scratch, copy_over, example_rates};
use lowtide_config::{KEYS, KeyDefault};
use serde_json::{Value, json};

/// What all runs are but for the row's own keys.
const RUN: &str = "
model: {path: m}
device: cpu
budget: {device: 1GiB, host: 256MiB}
log: {trace: false, tensorboard: false}
plan: {machine: machine.json}
train: {steps: 2, seq: 64, schedule: constant, learning_rate: 1e-3, warmup_steps: 0, clip: {norm: 1e-3}}
data: {train: d.jsonl}
";

/// A run that ended, and its output directory.
struct Seen {
    ended: Ended,
    output: PathBuf,
}

type Look = fn(&Seen) -> Value;

/// One key: its two values (an empty one: not given), what else is set, the command, where to look.
struct Row {
    key: &'static str,
    values: [&'static str; 2],
    with: &'static [&'static str],
    command: &'static str,
    look: Look,
}

const fn trained(
    key: &'static str,
    values: [&'static str; 2],
    with: &'static [&'static str],
    look: Look,
) -> Row {
    Row {
        key,
        values,
        with,
        command: "train",
        look,
    }
}

const fn planned(
    key: &'static str,
    values: [&'static str; 2],
    with: &'static [&'static str],
    look: Look,
) -> Row {
    Row {
        key,
        values,
        with,
        command: "plan",
        look,
    }
}

fn lines(seen: &Seen) -> Vec<Value> {
    let text = fs::read_to_string(seen.output.join("metrics.jsonl")).unwrap_or_default();
    text.lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect()
}

fn column(seen: &Seen, field: &str) -> Value {
    lines(seen)
        .iter()
        .filter_map(|l| l.get(field))
        .cloned()
        .collect()
}

fn loss(seen: &Seen) -> Value {
    column(seen, "loss")
}

fn norm(seen: &Seen) -> Value {
    column(seen, "grad_norm")
}

fn rate(seen: &Seen) -> Value {
    column(seen, "learning_rate")
}

fn tokens(seen: &Seen) -> Value {
    column(seen, "tokens")
}

fn evaluated(seen: &Seen) -> Value {
    column(seen, "eval_loss")
}

/// A hash of the trained weights.
fn weights(seen: &Seen) -> Value {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hash = DefaultHasher::new();
    let bytes = fs::read(seen.output.join("model/model.safetensors")).expect("a model");
    bytes.hash(&mut hash);
    json!(hash.finish())
}

/// Names of all that the run wrote.
fn files(seen: &Seen) -> Value {
    fn walk(dir: &Path, under: &str, names: &mut BTreeSet<String>) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let name = format!("{under}{}", entry.file_name().to_string_lossy());
            match entry.file_type().is_ok_and(|t| t.is_dir()) {
                true => walk(&entry.path(), &format!("{name}/"), names),
                // Its name has the time in it.
                false if name.contains("tfevents") => _ = names.insert("events".to_owned()),
                false => _ = names.insert(name),
            }
        }
    }
    let mut names = BTreeSet::new();
    walk(&seen.output, "", &mut names);
    json!(names)
}

fn code(seen: &Seen) -> Value {
    json!(seen.ended.code)
}

/// The lines of all that was printed that have one of these words.
fn said(seen: &Seen, words: &[&str]) -> Value {
    let text = seen.ended.text();
    let wanted = |line: &&str| words.iter().any(|word| line.contains(word));
    text.lines().filter(wanted).map(str::to_owned).collect()
}

fn data(seen: &Seen) -> Value {
    said(seen, &["train data:"])
}

fn host(seen: &Seen) -> Value {
    said(seen, &["threads ("])
}

fn device(seen: &Seen) -> Value {
    let text = seen.ended.text();
    let told = |line: &&str| line.starts_with("device: ") || line.starts_with("error: ");
    text.lines().filter(told).map(str::to_owned).collect()
}

fn kept(seen: &Seen) -> Value {
    json!(seen.ended.text().contains("tokens are kept in "))
}

fn resumed(seen: &Seen) -> Value {
    json!(seen.ended.text().contains("resumed from"))
}

fn exact(seen: &Seen) -> Value {
    said(seen, &["exact"])
}

fn spikes(seen: &Seen) -> Value {
    column(seen, "spike")
}

fn background(seen: &Seen) -> Value {
    said(seen, &["written while steps go on"])
}

fn on_error_of_saves(seen: &Seen) -> Value {
    said(seen, &["one that cannot be written ends the run"])
}

fn adaptive(seen: &Seen) -> Value {
    said(seen, &["planned again while it goes on"])
}

fn cache_of_answers(seen: &Seen) -> Value {
    said(seen, &["with a KV cache"])
}

/// The plan's choices, what it takes of each tier and which model it is for.
fn plan(seen: &Seen) -> Value {
    let answer = seen.ended.json();
    let parts = [
        "choice",
        "tiers",
        "fits",
        "machine",
        "parameters",
        "needed",
        "allowed",
    ];
    parts.iter().map(|part| answer[part].clone()).collect()
}

const CHUNK: &[&str] = &["train.micro_batch=2"];
const ROWS_OF_ONE: &[&str] = &["data.packing=false", "train.steps=6"];
const COMPLETIONS: &[&str] = &["data.train=all.jsonl", "data.format=completion"];
const OTHER_EVAL: &[&str] = &["data.eval=other.jsonl"];
const FALLS: &[&str] = &["train.schedule=linear", "train.steps=4"];
const FACTORED: &[&str] = &["optimizer.name=adafactor"];
const SMALL: &[&str] = &["budget.device=8MiB"];
/// A device that does not hold what the forward pass saves.
const TIGHT: &[&str] = &[
    "model.shape=qwen2.5-0.5b",
    "train.micro_batch=4",
    "train.seq=2048",
    "budget.device=4GiB",
    "budget.host=16GiB",
];
/// A host too small for what long sequences save, and a drive.
const SPILLING: &[&str] = &[
    "model.shape=qwen2.5-0.5b",
    "train.micro_batch=1",
    "train.seq=32768",
    "budget.device=6GiB",
    "budget.host=5GiB",
    "budget.disk=64GiB",
];
/// Drives that reach the device, behind a slow link.
const REACHING: &[&str] = &[
    SPILLING[0],
    SPILLING[1],
    SPILLING[2],
    SPILLING[3],
    SPILLING[4],
    SPILLING[5],
    "plan.offload=disk",
    "plan.machine=reaching.json",
];
const ANSWERS: &[&str] = &[
    "data.eval=answers.jsonl",
    "eval.generate.exact_match=true",
    "train.learning_rate=0",
];

/// Every norm is more than a thousandth of the one before it.
const SPIKES: &[&str] = &["train.steps=4", "train.spike.window=1"];

/// No evaluation is better than the first.
const STANDS: &[&str] = &[
    "data.eval=d.jsonl",
    "eval.every_steps=1",
    "train.learning_rate=0",
    "train.steps=4",
    "checkpoint.keep=1",
];

/// A run whose evaluations get better.
const LEARNS: &[&str] = &[
    "data.eval=d.jsonl",
    "eval.every_steps=1",
    "eval.patience=1",
    "train.learning_rate=1e-3",
    "train.warmup_steps=0",
    "train.steps=4",
    "checkpoint.keep=1",
];

/// A model that classifies, and its data.
const CLASSES: &[&str] = &[
    "model.config=c/config.json",
    "model.tokenizer=c/tokenizer.json",
    "data.train=c.jsonl",
    "data.eval=",
    "data.eval_split=0",
    "train.seq=32",
];
/// A model with an encoder and a decoder, and its data.
const PAIRS: &[&str] = &[
    "model.config=p/config.json",
    "model.tokenizer=p/tokenizer.json",
    "data.train=p.jsonl",
    "data.eval=",
    "data.eval_split=0",
    "train.seq=16",
    "train.target=8",
];
const NAMED: &[&str] = &[
    CLASSES[0],
    CLASSES[1],
    CLASSES[2],
    CLASSES[3],
    CLASSES[4],
    CLASSES[5],
    "model.labels=[negative, positive]",
];

const LONG_ANSWERS: &[&str] = &[
    "data.eval=answers.jsonl",
    "eval.generate.exact_match=true",
    "eval.generate.max_new_tokens=9",
    "train.learning_rate=0",
];

const ROWS: &[Row] = &[
    trained("model.path", ["", "m2"], &[], loss),
    planned("model.shape", ["llama2-7b", "gpt3-175b"], &[], plan),
    planned("model.config", ["m/config.json", "deeper.json"], &[], plan),
    trained("model.init", ["pretrained", "random"], &[], loss),
    trained("model.tokenizer", ["m", "t2"], &[], tokens),
    trained(
        "model.labels",
        ["[negative, positive]", "[positive, negative]"],
        CLASSES,
        loss,
    ),
    trained("precision", ["bf16", "f32"], &[], loss),
    // Without a GPU the second is refused, with one it computes there.
    trained("device", ["cpu", "cuda:0"], &["plan.machine="], device),
    trained("gpus", ["1", "2"], &["train.accumulate=2"], device),
    trained("seed", ["0", "2"], ROWS_OF_ONE, loss),
    trained("output", ["", "elsewhere"], &[], files),
    trained("threads", ["1", "2"], &[], host),
    planned("budget.device", ["1GiB", "8MiB"], &[], plan),
    planned("budget.host", ["256MiB", "1MiB"], SMALL, plan),
    planned("budget.disk", ["0", "1GiB"], SMALL, plan),
    trained(
        "budget.disk_writes",
        ["1GiB", "1MiB"],
        &["budget.disk=1GiB", "plan.optimizer=disk"],
        code,
    ),
    trained("data.train", ["", "other.jsonl"], &[], tokens),
    trained("data.eval", ["", "other.jsonl"], &[], evaluated),
    trained("data.eval_split", ["0", "0.3"], &[], evaluated),
    trained(
        "data.format",
        ["completion", "text"],
        &["data.train=all.jsonl"],
        data,
    ),
    trained(
        "data.fields.messages",
        ["messages", "chat"],
        &["data.train=all.jsonl", "data.format=chat"],
        tokens,
    ),
    trained(
        "data.fields.prompt",
        ["prompt", "question"],
        COMPLETIONS,
        tokens,
    ),
    trained(
        "data.fields.completion",
        ["completion", "answer"],
        COMPLETIONS,
        tokens,
    ),
    trained(
        "data.fields.text",
        ["text", "question"],
        &["data.train=all.jsonl", "data.format=text"],
        tokens,
    ),
    trained(
        "data.fields.text_pair",
        ["text_pair", "other"],
        NAMED,
        tokens,
    ),
    trained("data.fields.label", ["label", "kind"], NAMED, loss),
    trained("data.fields.source", ["source", "other"], PAIRS, tokens),
    trained("data.fields.target", ["target", "other"], PAIRS, tokens),
    trained("data.packing", ["true", "false"], &[], tokens),
    trained("data.train_on", ["assistant", "all"], &[], data),
    trained("data.shuffle", ["true", "false"], ROWS_OF_ONE, tokens),
    trained("data.max_examples", ["", "2"], ROWS_OF_ONE, data),
    trained(
        "data.on_error",
        ["stop", "skip"],
        &["data.train=bad.jsonl"],
        code,
    ),
    trained(
        "data.text_by",
        ["file", "line"],
        &["data.train=lines.txt"],
        data,
    ),
    trained("data.max_line", ["16MiB", "100"], &[], code),
    trained("data.cache", ["none", "kept"], &[], kept),
    trained(
        "data.streaming",
        ["false", "true"],
        &["data.cache=kept"],
        weights,
    ),
    trained("data.system", ["", "Be kind."], &[], tokens),
    trained("data.separator", ["", "and then"], COMPLETIONS, tokens),
    trained("data.chat_template", ["", "t.jinja"], &[], tokens),
    trained("train.steps", ["2", "3"], &[], tokens),
    trained("train.epochs", ["1", "2"], &["data.packing=false"], tokens),
    trained("train.micro_batch", ["1", "2"], &[], tokens),
    trained("train.seq", ["64", "32"], &[], tokens),
    planned(
        "train.target",
        ["8", "16"],
        &["model.config=t5.json", "train.accumulate=2"],
        plan,
    ),
    trained("train.accumulate", ["1", "2"], &[], tokens),
    trained(
        "train.reduce",
        ["order", "tree"],
        &["train.accumulate=4"],
        weights,
    ),
    trained(
        "train.leaves",
        // Of four micro-batches four leaves and two have the same sums.
        ["4", "2"],
        &["train.accumulate=8", "train.reduce=tree"],
        weights,
    ),
    trained(
        "train.last_batch",
        ["fill", "keep"],
        &["data.packing=false", "train.micro_batch=4"],
        tokens,
    ),
    trained("train.learning_rate", ["1e-3", "1e-4"], &[], rate),
    trained(
        "train.schedule",
        ["constant", "cosine"],
        &["train.steps=4"],
        rate,
    ),
    trained("train.warmup_steps", ["0", "2"], &[], rate),
    trained("train.warmup_ratio", ["0", "1"], &[], rate),
    trained(
        "train.decay_ratio",
        ["0.1", "0.9"],
        &["train.schedule=wsd", "train.steps=10"],
        rate,
    ),
    trained("train.min_lr_ratio", ["0", "0.5"], FALLS, rate),
    trained("train.clip.mode", ["exact", "none"], &[], weights),
    trained("train.clip.norm", ["1e-3", "1e-6"], &[], weights),
    trained("train.gradient", ["bf16", "f32"], &[], norm),
    trained(
        "train.freeze",
        ["model.embed_tokens", "model.layers.0"],
        &[],
        weights,
    ),
    trained(
        "train.unfreeze",
        ["model.embed_tokens", "model.layers.0"],
        &["train.freeze=*"],
        weights,
    ),
    trained(
        "optimizer.groups",
        [
            "{match: model.layers.0, learning_rate: 1e-4}",
            "[{match: '*norm*', weight_decay: 0.5}]",
        ],
        &[],
        weights,
    ),
    // Their gradient is not finite: the one stops, the other goes on to the end.
    trained(
        "train.on_nonfinite",
        ["stop", "skip"],
        &["model.path=steep"],
        code,
    ),
    trained("train.spike.factor", ["1e-3", "1e6"], SPIKES, spikes),
    trained(
        "train.spike.window",
        ["1", "2"],
        &["train.spike.factor=1e-3", "train.steps=4"],
        spikes,
    ),
    trained(
        "train.spike.action",
        ["warn", "stop"],
        &["train.spike.factor=1e-3", "train.spike.window=1"],
        code,
    ),
    trained("train.label_smoothing", ["0", "0.5"], &[], weights),
    trained("train.neftune_alpha", ["0", "5"], &[], weights),
    planned("train.logits_chunk", ["0", "8"], CHUNK, plan),
    planned("train.rows_chunk", ["0", "24"], &[], plan),
    trained("optimizer.name", ["adamw", "lion"], &[], weights),
    trained("optimizer.beta1", ["0.9", "0.5"], &[], weights),
    trained("optimizer.beta2", ["0.999", "0.5"], &[], weights),
    trained("optimizer.eps", ["1e-8", "1e-3"], &[], weights),
    trained("optimizer.clip_threshold", ["1", "0.1"], FACTORED, weights),
    trained("optimizer.decay_rate", ["-0.8", "-0.1"], FACTORED, weights),
    trained("optimizer.weight_decay", ["0", "1"], &[], weights),
    trained("optimizer.moments", ["f32", "bf16"], &[], weights),
    planned("optimizer.update", ["host", "device"], &[], plan),
    trained("strategy.name", ["exact", "lsp"], &[], norm),
    trained(
        "strategy.lsp.compression",
        ["2", "4"],
        &["strategy.name=lsp"],
        norm,
    ),
    trained(
        "strategy.lsp.projector",
        ["learned", "random"],
        &["strategy.name=lsp"],
        norm,
    ),
    planned(
        "plan.loop",
        ["layer-major", "groups:1"],
        &["train.accumulate=2"],
        plan,
    ),
    planned("plan.weights", ["device", "host"], &[], plan),
    planned("plan.optimizer", ["device", "host"], &[], plan),
    planned("plan.gradients", ["device", "host"], &[], plan),
    planned("plan.inputs", ["device", "host"], &[], plan),
    planned("plan.recompute", ["none", "all"], &[], plan),
    planned("plan.activations", ["recompute", "offload"], TIGHT, plan),
    planned("plan.offload", ["host", "disk"], SPILLING, plan),
    planned("plan.direct", ["auto", "never"], REACHING, plan),
    planned("plan.min_gain", ["0", "1e6"], SPILLING, plan),
    planned("plan.prefetch", ["0", "2"], &["plan.weights=host"], plan),
    planned("plan.pieces", ["block", "split"], &[], plan),
    trained("plan.adaptive", ["false", "true"], &[], adaptive),
    planned("plan.machine", ["machine.json", "renamed.json"], &[], plan),
    trained("eval.every_steps", ["0", "1"], OTHER_EVAL, evaluated),
    trained("eval.every_epochs", ["", "0.001"], OTHER_EVAL, evaluated),
    trained("eval.batches", ["", "1"], &["data.eval=d.jsonl"], evaluated),
    trained(
        "eval.generate.exact_match",
        ["false", "true"],
        &["data.eval=d.jsonl", "eval.generate.max_new_tokens=2"],
        exact,
    ),
    trained("eval.generate.max_new_tokens", ["3", "9"], ANSWERS, exact),
    trained("eval.generate.max_examples", ["1", "2"], ANSWERS, exact),
    // The first letter of what is said in more tokens than the reference has.
    trained(
        "eval.generate.extract",
        ["", r"^\s*(\S)"],
        LONG_ANSWERS,
        exact,
    ),
    trained("eval.generate.every_steps", ["0", "1"], ANSWERS, exact),
    trained(
        "eval.generate.cached",
        ["0", "2"],
        ANSWERS,
        cache_of_answers,
    ),
    trained("eval.patience", ["0", "1"], STANDS, tokens),
    trained("eval.min_delta", ["0", "100"], LEARNS, tokens),
    trained("checkpoint.keep_best", ["none", "loss"], STANDS, files),
    trained("checkpoint.every_steps", ["0", "1"], &[], files),
    trained("checkpoint.every_epochs", ["", "0.001"], &[], files),
    trained("checkpoint.every_minutes", ["0", "1e-6"], &[], files),
    trained(
        "checkpoint.background",
        ["false", "true"],
        &["checkpoint.every_steps=1"],
        background,
    ),
    trained(
        "checkpoint.keep",
        ["1", "2"],
        &["checkpoint.every_steps=1"],
        files,
    ),
    trained(
        "checkpoint.on_error",
        ["continue", "stop"],
        &["checkpoint.every_steps=1"],
        on_error_of_saves,
    ),
    trained(
        "checkpoint.resume",
        ["auto", "never"],
        &["train.steps=3"],
        resumed,
    ),
    trained(
        "checkpoint.change",
        ["", "train.learning_rate"],
        &["train.steps=3", "train.learning_rate=1e-4"],
        code,
    ),
    planned(
        "checkpoint.durable",
        ["false", "true"],
        &["budget.disk=1GiB"],
        plan,
    ),
    trained("log.every_steps", ["1", "2"], &[], tokens),
    trained("log.report", ["false", "true"], &[], files),
    trained("log.tensorboard", ["false", "true"], &[], files),
    trained("log.trace", ["false", "true"], &[], files),
];

/// Files that rows name.
fn prepare(case: &Scratch) {
    let records: Vec<String> = case
        .read("train.jsonl")
        .lines()
        .take(6)
        .map(str::to_owned)
        .collect();
    case.write("d.jsonl", records.join("\n"));
    case.write(
        "other.jsonl",
        "{\"messages\": [{\"role\": \"user\", \"content\": \"Say it.\"}, \
        {\"role\": \"assistant\", \"content\": \"It is said, and more than once.\"}]}\n",
    );
    let chat = |words: &str| json!([{"role": "user", "content": "hi"}, {"role": "assistant", "content": words}]);
    let all = json!({"messages": chat("yes"), "chat": chat("yes, and then some"), "prompt": "a", "completion": "b",
        "question": "a longer prompt than the other", "answer": "a longer answer than the other", "text": "short"});
    case.write("all.jsonl", format!("{all}\n"));
    case.write("lines.txt", "one line\nand another\n");
    let class = json!({"text": "the film was weak", "text_pair": "not good", "other": "this book is very very good",
        "label": "negative", "kind": "positive"});
    case.write("c.jsonl", format!("{class}\n").repeat(3));
    let classify = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/classify");
    fs::create_dir_all(case.at("c")).expect("a directory");
    for name in ["config.json", "tokenizer.json"] {
        let text = fs::read_to_string(classify.join(name)).expect("an example");
        case.write(&format!("c/{name}"), text);
    }
    let pair = json!({"source": "abc", "target": "cba", "other": "abcdef"});
    case.write("p.jsonl", format!("{pair}\n").repeat(3));
    let reverse = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/reverse");
    fs::create_dir_all(case.at("p")).expect("a directory");
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        let text = fs::read_to_string(reverse.join(name)).expect("an example");
        case.write(&format!("p/{name}"), text);
    }
    case.write("bad.jsonl", format!("{}\nnonsense\n", records[0]));
    let config = case.read("m/config.json");
    let deeper = config.replace("\"num_hidden_layers\": 4", "\"num_hidden_layers\": 5");
    assert_ne!(config, deeper);
    case.write("deeper.json", deeper);
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../reference/golden");
    fs::copy(golden.join("t5/config.json"), case.at("t5.json")).expect("a model of two stacks");
    let mut tokenizer: Value =
        serde_json::from_str(&case.read("m/tokenizer_config.json")).expect("JSON");
    let template = tokenizer["chat_template"].as_str().expect("a template");
    let template = format!("Once more. {template}");
    case.write("t.jinja", &template);
    tokenizer["chat_template"] = template.into();
    copy_over(&case.at("m"), &case.at("t2"));
    case.write("t2/tokenizer_config.json", tokenizer.to_string());

    // Rates that are the same wherever this test runs: with measured ones, what a key changes in a plan
    // depended on how busy the machine was. And other weights.
    fs::copy(example_rates(), case.at("machine.json")).expect("a machine");
    case.write("run.yaml", RUN);
    case.train(&["output=first"]).fine();
    let machine = case.read("machine.json");
    let mut renamed: Value = serde_json::from_str(&machine).expect("JSON");
    renamed["name"] = "another machine".into();
    case.write("renamed.json", renamed.to_string());
    let mut reaching: Value = serde_json::from_str(&machine).expect("JSON");
    let rate = json!(2e10);
    reaching["disk"] = json!({
        "read": rate, "write": rate, "mixed": rate, "latency": 1e-5,
        "direct": {"read": rate, "write": rate, "mixed": rate, "latency": 1e-5, "most_memory": 1u64 << 40}
    });
    (reaching["h2d"], reaching["d2h"]) = (json!(1e9), json!(1e9));
    case.write("reaching.json", reaching.to_string());
    copy_over(&case.at("first/model"), &case.at("m2"));
    copy_over(&case.at("m"), &case.at("steep"));
    steepen(&case.at("steep/model.safetensors"));

    // What the model says in three tokens, as the reference answer.
    let prompt = "{\"prompt\": \"What is\", \"completion\": \"x\"}\n";
    let generate = [
        "generate",
        "run.yaml",
        "--prompt",
        "What is",
        "--max-new-tokens",
        "3",
        "--json",
    ];
    let answer = case.run(&generate).fine().json();
    let mut record: Value = serde_json::from_str(prompt).expect("JSON");
    record["completion"] = answer["text"].clone();
    assert!(record["completion"].is_string(), "{answer}");
    case.write("answers.jsonl", format!("{record}\n").repeat(2));
}

/// Makes the last norm's weights so large that the loss is finite and its gradient is not.
fn steepen(path: &Path) {
    let mut bytes = fs::read(path).expect("weights");
    let n = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + n]).expect("a header");
    let norm = &header["model.norm.weight"];
    assert_eq!(norm["dtype"], "BF16");
    let at = |i: usize| 8 + n + norm["data_offsets"][i].as_u64().expect("an offset") as usize;
    for weight in bytes[at(0)..at(1)].chunks_exact_mut(2) {
        weight.copy_from_slice(&0x7e97_u16.to_le_bytes()); // 1e38
    }
    fs::write(path, bytes).expect("written");
}

/// A row's value that need not be given: the key's default, where neither all runs nor the row set the key.
fn default_of(row: &Row) -> Option<&'static str> {
    let last = row.key.rsplit('.').next().unwrap_or(row.key);
    let is_set = RUN.contains(&format!("{last}:"))
        || row
            .with
            .iter()
            .any(|with| with.starts_with(&format!("{}=", row.key)));
    let key = KEYS.iter().find(|key| key.name == row.key)?;
    match key.default {
        KeyDefault::Value(text) if !is_set => Some(text),
        _ => None,
    }
}

#[test]
fn every_key_changes_what_it_says() {
    let rows: BTreeMap<&str, &Row> = ROWS.iter().map(|row| (row.key, row)).collect();
    assert_eq!(rows.len(), ROWS.len(), "a key twice");
    let keys: BTreeSet<&str> = KEYS.iter().map(|key| key.name).collect();
    let have: BTreeSet<&str> = rows.keys().copied().collect();
    assert_eq!(keys, have, "keys, and rows that look for what each changes");

    let case = Scratch::bare();
    prepare(&case);
    let mut idle = Vec::new();
    // Rows that set the same look at one run: most have the default as their first value.
    let mut runs: BTreeMap<Vec<String>, Seen> = BTreeMap::new();
    for (i, row) in ROWS.iter().enumerate() {
        let default = default_of(row);
        let looks = row.values.map(|value| {
            let goes_on = ["checkpoint.resume", "checkpoint.change"].contains(&row.key);
            let mut sets: Vec<String> = row.with.iter().map(|&with| with.to_owned()).collect();
            if !value.is_empty() && Some(value) != default {
                sets.push(format!("{}={value}", row.key));
            }
            let mut asked = vec![row.command.to_owned()];
            asked.extend(sets.iter().cloned());
            if goes_on {
                asked.push(row.key.to_owned());
            }
            let seen = runs.entry(asked).or_insert_with(|| {
                let output = format!("o{i}-{}", value == row.values[1]);
                if goes_on {
                    copy_over(&case.at("first"), &case.at(&output));
                }
                let mut args = vec![row.command, "run.yaml", "--verbose"];
                if row.command == "plan" {
                    args.push("--json");
                }
                let output_set = format!("output={output}");
                for set in std::iter::once(&output_set).chain(&sets) {
                    args.extend(["--set", set]);
                }
                Seen {
                    ended: case.run(&args),
                    output: case.at(&output),
                }
            });
            let code_is_looked_at = row.look as usize == code as Look as usize;
            if value == row.values[0] && !code_is_looked_at && row.command == "train" {
                seen.ended.fine();
            }
            (row.look)(seen)
        });
        if looks[0] == looks[1] {
            idle.push(format!("{}: {:?} gives {}", row.key, row.values, looks[0]));
        }
    }
    assert!(
        idle.is_empty(),
        "keys that change nothing:\n{}",
        idle.join("\n")
    );
}
