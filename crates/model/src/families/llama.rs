//! Llama, Mistral, Qwen2 and Qwen3: one block, with the biases, head norms and windows that each type allows.

use lowtide_workload::{Family, Layers, ModelShape, Window};
use serde_json::{Value, json};

use super::Architecture;
use super::like_llama::{self, Absent};
use crate::ModelError;
use crate::config_json::keys::{Config, unsupported};
use crate::describe::check::wrong;

pub(super) struct Llama;

impl Architecture for Llama {
    fn types(&self) -> &'static [&'static str] {
        &["llama", "mistral", "qwen2", "qwen3"]
    }

    fn parse(
        &self,
        c: &Config<'_>,
        kind: &str,
        name: &str,
        longest: u32,
    ) -> Result<ModelShape, ModelError> {
        let absent = Absent {
            kv_heads: match kind {
                "llama" => None,
                "mistral" => Some(8),
                _ => Some(32),
            },
            head_dim: (kind == "qwen3").then_some(128),
            max_positions: match kind {
                "llama" => 2048,
                "mistral" => 131_072,
                _ => 32_768,
            },
            norm_eps: 1e-6,
            eps_key: "rms_norm_eps",
            tied: false,
            theta: 10_000.0,
            act: like_llama::SILU,
            longrope: &[],
            partial: None,
        };
        let shape = like_llama::parse(c, Family::Llama, name, &absent)?;
        let window = window(c, kind, shape.layers, shape.max_positions.min(longest))?;
        let attention_bias = match kind {
            "llama" | "qwen3" => c.flag("attention_bias", false)?,
            _ => false,
        };
        Ok(ModelShape {
            qkv_bias: attention_bias || kind == "qwen2",
            out_bias: attention_bias,
            mlp_bias: kind == "llama" && c.flag("mlp_bias", false)?,
            qk_norm: kind == "qwen3",
            window,
            ..shape
        })
    }

    fn check(&self, s: &ModelShape) -> Result<(), ModelError> {
        like_llama::check(s)?;
        super::all_rotated(s)?;
        match kind_of(s) {
            "llama" => super::no_windows(s),
            "mistral" if !s.all_windows() => {
                let need = "none or all without biases and head norms";
                Err(wrong("number of layers with a window", 1u32, need))
            }
            _ => Ok(()),
        }
    }

    fn config_json(&self, s: &ModelShape) -> Value {
        let kind = kind_of(s);
        let architecture = match kind {
            "qwen3" => "Qwen3ForCausalLM",
            "qwen2" => "Qwen2ForCausalLM",
            "mistral" => "MistralForCausalLM",
            _ => "LlamaForCausalLM",
        };
        let mut config = like_llama::config_json(s, architecture, kind);
        let keys = s.window.as_ref().map(|w| w.keys);
        match kind {
            "mistral" => config["sliding_window"] = json!(keys),
            "qwen2" | "qwen3" => {
                config["use_sliding_window"] = json!(keys.is_some());
                if keys.is_some() {
                    config["sliding_window"] = json!(keys);
                    config["layer_types"] = like_llama::layer_types(s);
                }
            }
            _ => config["mlp_bias"] = json!(s.mlp_bias),
        }
        if matches!(kind, "llama" | "qwen3") {
            config["attention_bias"] = json!(s.out_bias);
        }
        config
    }
}

/// The type whose configuration says all of a shape: each allows other biases, norms and windows.
fn kind_of(s: &ModelShape) -> &'static str {
    if s.qk_norm {
        "qwen3"
    } else if s.qkv_bias && !s.out_bias {
        "qwen2"
    } else if s.window.is_some() && !s.qkv_bias && !s.mlp_bias {
        "mistral"
    } else {
        "llama"
    }
}

/// The windows of a configuration, as transformers makes them: of a Mistral in every layer, of a Qwen in those of
/// `layer_types` or from `max_window_layers` on, if it uses them at all.
fn window(
    c: &Config<'_>,
    kind: &str,
    layers: u32,
    longest: u32,
) -> Result<Option<Window>, ModelError> {
    let used = match kind {
        "mistral" => true,
        "qwen2" | "qwen3" => c.flag("use_sliding_window", false)?,
        _ => false,
    };
    let types = like_llama::sliding(c, layers)?;
    if !used {
        like_llama::all_full(c, types.as_ref())?;
        return Ok(None);
    }
    // Absent and null differ: a configuration without the key has a window of 4096.
    let keys = match c.map.get("sliding_window") {
        Some(Value::Null) => {
            if kind != "mistral" && types.is_some_and(|types| !types.is_empty()) {
                let need = "a number, as layer_types has sliding_attention";
                return Err(unsupported("sliding_window", &Value::Null, need));
            }
            return Ok(None);
        }
        Some(_) => c.size("sliding_window")?,
        None => 4096,
    };
    let all = Layers::those(layers, |_| true);
    let sliding = if kind == "mistral" {
        // Transformers reads no `layer_types` of a Mistral; whoever wrote some means another model.
        if keys < longest && types.is_some_and(|types| types != all) {
            let value = c.get("layer_types").unwrap_or(&Value::Null);
            let supported = "sliding_attention in every layer of a mistral with a sliding_window";
            return Err(unsupported("layer_types", value, supported));
        }
        all
    } else {
        let from = c.whole_or("max_window_layers", 28)?;
        types.unwrap_or_else(|| Layers::those(layers, |l| l >= from))
    };
    Ok(like_llama::window(keys, sliding, longest))
}
