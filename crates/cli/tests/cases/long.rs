//! Long sequences: what fits with `train.rows_chunk` and not without, and whose numbers it decides.

use std::path::Path;

use crate::cases::scratch::Scratch;
use serde_json::{Value, json};

/// The configuration of a model without weights: llama2-7b with more positions.
fn config(positions: u32) -> Value {
    json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 32000, "hidden_size": 4096,
        "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 32, "max_position_embeddings": positions, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": false, "hidden_act": "silu"
    })
}

const RUN: &str = "
model: {path: long, init: random}
data: {packing: false}
train: {micro_batch: 1, accumulate: 1, steps: 10, seq: 262144}
budget: {device: 24GiB, host: 256GiB}
output: out
";

#[test]
fn a_quarter_of_a_million_tokens_of_7b_fit_24_gib_in_chunks() {
    let case = Scratch::bare();
    std::fs::create_dir(case.at("long")).expect("a directory");
    case.write("long/config.json", config(262_144).to_string());
    case.write("run.yaml", RUN);
    let machine = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/machines/h200.json");
    let machine = machine.to_str().expect("text");
    let plan = ["plan", "run.yaml", "--machine", machine, "--brief"];
    let ended = case.run(&[&plan[..], &["--json"]].concat());
    ended.refused(&["device 45", "--set train.rows_chunk=4096"]);
    let chunks = ["--set", "train.rows_chunk=8192", "--json"];
    let fits = case.run(&[&plan[..], &chunks].concat()).fine().json();
    let planned = fits["tiers"]["device"]["planned_bytes"].as_u64();
    assert!(planned.expect("a number") <= 24 << 30, "{fits}");
    // Not a position more than the model has.
    let longer = ["--set", "train.seq=262152"];
    let ended = case.run(&[&plan[..], &chunks, &longer].concat());
    ended.refused(&["262144", "max_position_embeddings"]);
}

/// A checkpoint does not go on with other chunks, but with chunks of all rows as with none.
#[test]
fn chunks_decide_numbers() {
    let case = Scratch::bare();
    case.write(
        "run.yaml",
        "
model: {path: m}
output: out
budget: {device: 1GiB, host: 256MiB}
data: {train: train.jsonl}
train: {steps: 1, micro_batch: 1, seq: 64, learning_rate: 1e-3, schedule: constant}
",
    );
    let loss = |sets: &[&str]| {
        let mut args = vec!["train", "run.yaml", "--json"];
        sets.iter().for_each(|set| args.extend(["--set", set]));
        case.run(&args)
    };
    let json = |sets: &[&str]| loss(sets).fine().json();
    let (whole, chunks) = (
        json(&["output=whole", "train.rows_chunk=64"]),
        json(&["train.rows_chunk=24"]),
    );
    let of = |answer: &Value| answer["loss_first"].as_f64().expect("a loss");
    assert!((of(&whole) - of(&chunks)).abs() < 1e-2 * of(&whole));
    let longer = "train.steps=2";
    let change = "checkpoint.change=[train.steps]";
    let ended = loss(&["train.rows_chunk=16", longer, change]);
    ended.refused(&["train.rows_chunk"]);
    json(&["train.rows_chunk=24", longer, change]);
    json(&["output=whole", longer, change]);
}
