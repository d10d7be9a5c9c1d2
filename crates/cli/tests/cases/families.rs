//! A run of each kind of block that Llama does not have: it trains, its export is the model that was trained, decoding
//! takes it, and the same bits come from everywhere.

use serde_json::{Value, json};

use super::scratch::Scratch;

const RUN: &str = r"
model: {config: new/config.json, tokenizer: m}
budget: {device: 200MiB, host: 1GiB}
data:
  train: train.jsonl
  eval: eval.jsonl
train:
  steps: 3
  micro_batch: 2
  seq: 96
  learning_rate: 0.003
output: out
";

/// A model of a type, from random weights.
fn of(kind: &str, keys: Value) -> Scratch {
    let scratch = Scratch::bare();
    let mut config = json!({
        "model_type": kind,
        "vocab_size": 1024,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": true
    });
    for (key, value) in keys.as_object().expect("keys") {
        config[key] = value.clone();
    }
    std::fs::create_dir(scratch.at("new")).expect("a folder");
    scratch.write("new/config.json", config.to_string());
    scratch.write("run.yaml", RUN);
    scratch
}

fn loss(told: &Value, key: &str) -> f64 {
    told[key]
        .as_f64()
        .unwrap_or_else(|| panic!("{key}: {told}"))
}

/// Trains; what is exported evaluates to the loss that the run ended with, and is decoded.
fn trained(scratch: &Scratch) -> f64 {
    scratch.train(&[]).fine();
    let report: Value = serde_json::from_str(&scratch.read("out/finished.json")).expect("JSON");
    let trained = loss(&report["report"], "eval_loss_last");
    let eval = ["eval", "run.yaml", "--model", "out/model", "--json"];
    let loaded = loss(&scratch.run(&eval).fine().json(), "eval_loss");
    assert!(
        (trained - loaded).abs() < 1e-6 * trained,
        "{trained} {loaded}"
    );
    let generate = [
        "generate",
        "run.yaml",
        "--model",
        "out/model",
        "--prompt",
        "What is",
        "--max-new-tokens",
        "3",
    ];
    scratch.run(&generate).fine();
    let verify = [
        "verify", "run.yaml", "--json", "--steps", "2", "--blocks", "2",
    ];
    assert_eq!(scratch.run(&verify).fine().json()["equal"], true);
    trained
}

/// Norms behind attention and MLP: no key takes them away, so the run alone is looked at.
#[test]
fn olmo2() {
    trained(&of("olmo2", json!({})));
}

/// The last loss with these keys, and with all of them but one.
fn differs(kind: &str, keys: Value, without: &str) {
    let whole = trained(&of(kind, keys.clone()));
    let mut less = keys;
    less[without] = Value::Null;
    let scratch = of(kind, less);
    scratch.train(&[]).fine();
    let report: Value = serde_json::from_str(&scratch.read("out/finished.json")).expect("JSON");
    let other = loss(&report["report"], "eval_loss_last");
    assert!((whole - other).abs() > 1e-4, "{without}: {whole} {other}");
}

#[test]
fn mistral_with_a_window() {
    differs("mistral", json!({"sliding_window": 7}), "sliding_window");
}

#[test]
fn qwen2_with_a_window_in_some_layers() {
    let keys = json!({"use_sliding_window": true, "sliding_window": 7, "max_window_layers": 2});
    differs("qwen2", keys, "use_sliding_window");
}

#[test]
fn phi3() {
    differs("phi3", json!({"sliding_window": 7}), "sliding_window");
}

/// Of each head's sixteen numbers twelve are rotated.
#[test]
fn phi4_mini() {
    let keys = json!({
        "partial_rotary_factor": 0.75,
        "original_max_position_embeddings": 128,
        "rope_scaling": {
            "type": "longrope",
            "short_factor": [1.0, 1.0, 1.1, 1.2, 1.3, 1.4],
            "long_factor": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
        }
    });
    trained(&of("phi3", keys));
}

#[test]
fn smollm3() {
    let keys = json!({"no_rope_layers": [1, 0, 1, 0]});
    differs("smollm3", keys, "no_rope_layers");
}

#[test]
fn granite() {
    let keys = json!({
        "embedding_multiplier": 12.0,
        "attention_multiplier": 0.1,
        "residual_multiplier": 0.22,
        "logits_scaling": 4.0
    });
    differs("granite", keys, "logits_scaling");
}

/// Without a scalar scores are divided by the root of 256.
#[test]
fn gemma2() {
    let keys = json!({
        "head_dim": 16,
        "query_pre_attn_scalar": 12,
        "sliding_window": 7,
        "attn_logit_softcapping": 0.1,
        "final_logit_softcapping": 8.0,
        "hidden_activation": "gelu_pytorch_tanh"
    });
    differs("gemma2", keys, "attn_logit_softcapping");
}

/// Without a pattern a full layer comes fifth: all four are local.
#[test]
fn gemma3() {
    let keys = json!({
        "head_dim": 16,
        "query_pre_attn_scalar": 12,
        "sliding_window": 7,
        "sliding_window_pattern": 2,
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        "rope_local_base_freq": 100.0,
        "hidden_activation": "gelu_pytorch_tanh"
    });
    differs("gemma3_text", keys, "sliding_window_pattern");
}

#[test]
fn cohere2() {
    let keys = json!({"sliding_window": 7, "sliding_window_pattern": 2, "logit_scale": 0.5});
    differs("cohere2", keys, "sliding_window_pattern");
}

/// Attention and MLP side by side, or in turn.
#[test]
fn gpt_neox() {
    let keys = json!({"hidden_act": "gelu", "use_parallel_residual": false, "rotary_pct": 0.5});
    differs("gpt_neox", keys, "use_parallel_residual");
}

#[test]
fn stablelm() {
    let keys = json!({"use_parallel_residual": true, "use_qkv_bias": true});
    differs("stablelm", keys, "use_parallel_residual");
}

/// The weights of a token's experts add up to 1, or not.
#[test]
fn qwen3_moe() {
    let keys = json!({
        "moe_intermediate_size": 48,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "norm_topk_prob": true
    });
    differs("qwen3_moe", keys, "norm_topk_prob");
}

#[test]
fn mixtral() {
    let keys = json!({"num_local_experts": 4, "sliding_window": 7});
    trained(&of("mixtral", keys));
}

#[test]
fn gemma() {
    trained(&of(
        "gemma",
        json!({"head_dim": 16, "hidden_act": "gelu_pytorch_tanh"}),
    ));
}
